//! What can be typed about the audit log.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// `vram audit`
#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Print the records, oldest first.
    Show(AuditShow),
    /// Check every byte of the log, what was signed of it, and what others hold of it.
    Verify(AuditVerify),
    /// Make the key that signs the log, so that others can verify it. Nothing that exists is overwritten.
    Keygen(AuditKeygen),
    /// Write a proof that one record is in the log: a file that anybody can check offline.
    Prove(AuditProve),
    /// Check such a proof, offline, and print the record that it is about.
    CheckProof(AuditCheckProof),
    /// Print the records for a SIEM: OCSF events, or the records themselves, one JSON object a line.
    Export(AuditExport),
    /// Give up old records, announced and signed; the proofs of everything else stay. Asks for a signed log.
    Prune(AuditPrune),
    /// Print how the log names a user of this machine, to search for with `audit show --actor`.
    Subject(AuditSubject),
}

/// `vram audit show`
#[derive(Debug, Args)]
pub(crate) struct AuditShow {
    /// The log's directory, published files or URL [default: --audit-dir, else the state directory's].
    pub(crate) log: Option<String>,
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// Only the last N of what is left.
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<NonZeroU32>,
}

/// `vram audit verify`
#[derive(Debug, Args)]
pub(crate) struct AuditVerify {
    /// The log's directory, published files or URL [default: --audit-dir, else the state directory's].
    pub(crate) log: Option<String>,
    #[command(flatten)]
    pub(crate) trusted: Trusted,
    /// A copy of the published log that somebody else keeps: a directory or URL. What is only there was cut off here.
    #[arg(long = "replica", value_name = "DIR|URL")]
    pub(crate) replicas: Vec<String>,
    /// A signed checkpoint of this log that was kept elsewhere.
    #[arg(long = "checkpoint", value_name = "FILE")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// The name that the log must have.
    #[arg(long, value_name = "NAME")]
    pub(crate) origin: Option<String>,
    /// The newest cosignature, or without witnesses the newest record, may be this old, such as 2h or 1d.
    #[arg(long, value_name = "TIME")]
    pub(crate) max_age: Option<Age>,
}

/// `vram audit keygen`
#[derive(Debug, Args)]
pub(crate) struct AuditKeygen {
    /// The log's name for all time, 1 to 255 bytes without spaces and + [default: HOST/vram-audit/ and 8 random digits].
    #[arg(long, value_name = "NAME", conflicts_with = "rotate")]
    pub(crate) origin: Option<String>,
    /// Make the next key of a log that has one. The log changes to it, and records that, as soon as it is written to.
    #[arg(long)]
    pub(crate) rotate: bool,
}

/// Whose signatures count.
#[derive(Debug, Default, Args)]
pub(crate) struct Trusted {
    /// The log's verifier key, or a file that holds it; several times where the key was rotated.
    #[arg(long = "vkey", value_name = "VKEY|FILE")]
    pub(crate) vkeys: Vec<String>,
    /// A witness's verifier key, or a file with one a line; several times for several.
    #[arg(long = "witness", value_name = "VKEY|FILE")]
    pub(crate) witnesses: Vec<String>,
    /// So many of the witnesses must have cosigned [default: all of them].
    #[arg(long, value_name = "K")]
    pub(crate) quorum: Option<usize>,
}

/// `vram audit prove`
#[derive(Debug, Args)]
pub(crate) struct AuditProve {
    /// The record's number, as `audit show` prints it.
    pub(crate) seq: u64,
    /// The log's directory, published directory or URL [default: --audit-dir, else the state directory's].
    pub(crate) log: Option<String>,
    /// A file with the record, where the log itself has given it up: a line of `audit export`, in either format.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Where the proof goes [default: record-SEQ.tlog-proof].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trusted: Trusted,
}

/// `vram audit check-proof`
#[derive(Debug, Args)]
pub(crate) struct AuditCheckProof {
    /// The proof.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) trusted: Trusted,
    /// The record that it should be about: a line of `audit export`, in either format, or the bytes of an entry. Needed where
    /// the proof does not carry it.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

/// `vram audit export`
#[derive(Debug, Args)]
pub(crate) struct AuditExport {
    /// The log's directory, published files or URL [default: --audit-dir, else the state directory's].
    pub(crate) log: Option<String>,
    /// What a line is: an event of the Open Cybersecurity Schema Framework, or a record with its place in the log.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: ExportFormat,
    #[command(flatten)]
    pub(crate) filter: Filter,
}

/// `vram audit prune`
#[derive(Debug, Args)]
pub(crate) struct AuditPrune {
    /// Records below this number.
    #[arg(long, value_name = "SEQ", required_unless_present = "older_than", conflicts_with = "older_than")]
    pub(crate) before: Option<u64>,
    /// Records older than this, such as 400d: everything before the first that is younger.
    #[arg(long, value_name = "TIME")]
    pub(crate) older_than: Option<Age>,
    /// A copy of the published log: a directory or URL. What it does not have yet is kept.
    #[arg(long = "replica", value_name = "DIR|URL")]
    pub(crate) replicas: Vec<String>,
    /// Only say what would go.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `vram audit subject`
#[derive(Debug, Args)]
pub(crate) struct AuditSubject {
    /// The user's number, as `id -u NAME` prints it.
    #[arg(long, value_name = "N")]
    pub(crate) uid: u32,
}

/// Which records are meant. All conditions must hold.
#[derive(Debug, Default, Args)]
pub(crate) struct Filter {
    /// Only records about this shard.
    #[arg(long, value_name = "ID")]
    pub(crate) shard: Option<String>,
    /// Only this event, such as SealVerificationFailed, or kind of the log's own record, such as gap.
    #[arg(long, value_name = "NAME")]
    pub(crate) event: Option<String>,
    /// Only records of this severity.
    #[arg(long)]
    pub(crate) severity: Option<SeverityChoice>,
    /// Only what this user ordered, as `vram audit subject` prints it.
    #[arg(long, value_name = "COMMITMENT")]
    pub(crate) actor: Option<String>,
    /// Only records from this time on: 2026-11-25T08:30:00Z, 2026-11-25 (its start, UTC), or 90m, 12h, 7d ago.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Only records before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
    /// Only these record numbers, both ends included: 17, 10..20, 10.. or ..20.
    #[arg(long, value_name = "NUMBERS")]
    pub(crate) seq: Option<Numbers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SeverityChoice {
    Critical,
    Routine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// OCSF 1.5.0.
    Ocsf,
    /// The records.
    Ndjson,
}

/// A moment, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(jiff::Timestamp),
    Ago(Duration),
}

impl Moment {
    /// Nanoseconds since 1970, where `now` is that.
    pub(crate) fn nanoseconds(self, now: i128) -> i128 {
        match self {
            Self::At(time) => time.as_nanosecond(),
            Self::Ago(time) => now.saturating_sub(i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)),
        }
    }
}

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "a time is 2026-11-25T08:30:00Z, 2026-11-25, or a whole number with s, m, h or d behind it";
        if let Ok(time) = text.parse() {
            return Ok(Self::At(time));
        }
        if let Ok(time) = format!("{text}T00:00:00Z").parse() {
            return Ok(Self::At(time));
        }
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(SHAPE)?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(SHAPE),
        };
        let number: u64 = number.parse().map_err(|_| SHAPE)?;
        number.checked_mul(factor).map(|seconds| Self::Ago(Duration::from_secs(seconds))).ok_or(SHAPE)
    }
}

/// How old something may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

impl FromStr for Age {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(Moment::Ago(time)) => Ok(Self(time)),
            _ => Err("an age is a whole number with s, m, h or d behind it"),
        }
    }
}

/// Record numbers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Numbers {
    pub(crate) fn contains(self, seq: u64) -> bool {
        (self.first..=self.last).contains(&seq)
    }
}

impl FromStr for Numbers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "record numbers are 17, 10..20, 10.. or ..20";
        let number =
            |text: &str, absent: u64| if text.is_empty() { Ok(absent) } else { text.parse().map_err(|_| SHAPE) };
        let (first, last) = match text.split_once("..") {
            Some(("", "")) => return Err(SHAPE),
            Some((first, last)) => (number(first, 0)?, number(last, u64::MAX)?),
            None => {
                let one = text.parse().map_err(|_| SHAPE)?;
                (one, one)
            }
        };
        if first > last { Err("the first record number is above the last") } else { Ok(Self { first, last }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_read() {
        let at = |text: &str| Moment::At(text.parse().unwrap());
        assert_eq!("2026-11-25T08:30:00Z".parse(), Ok(at("2026-11-25T08:30:00Z")));
        assert_eq!("2026-11-25T08:30:00+02:00".parse(), Ok(at("2026-11-25T06:30:00Z")));
        assert_eq!("2026-11-25".parse(), Ok(at("2026-11-25T00:00:00Z")));
        assert_eq!("7d".parse(), Ok(Moment::Ago(Duration::from_secs(7 * 86_400))));
        assert_eq!(Moment::Ago(Duration::from_secs(2)).nanoseconds(5_000_000_000), 3_000_000_000);
        for bad in ["", "d", "-1d", "1.5h", "yesterday", "2026-13-01", "99999999999999999999d"] {
            assert!(bad.parse::<Moment>().is_err(), "{bad}");
        }
        let numbers = |first, last| Ok(Numbers { first, last });
        assert_eq!("17".parse(), numbers(17, 17));
        assert_eq!("10..20".parse(), numbers(10, 20));
        assert_eq!("10..".parse(), numbers(10, u64::MAX));
        assert_eq!("..20".parse(), numbers(0, 20));
        for bad in ["", "..", "a", "20..10", "1...2", "-3"] {
            assert!(bad.parse::<Numbers>().is_err(), "{bad}");
        }
    }
}
