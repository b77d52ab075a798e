//! What a signed log shows, and on whose word.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use audit_logging::evidence::{self, EvidenceError, Held, Pruning, Question, Ranges, Report, Violation, What};
use audit_logging::publish::{self, SignedState};
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::source::Source;
use audit_logging::tlog::tree::TILE_WIDTH;
use audit_logging::{Clock, Disk, Record, SystemClock};
use serde::Serialize;

use super::keys::{self, KeyOrigin, LogKeys};
use super::proof::{read_bundle, read_file};
use super::{Leaf, place};
use crate::cli::{AuditVerify, Global};
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::{Out, Style, printable, rfc3339};
use crate::state;

/// Largest checkpoint that is read.
const MAX_CHECKPOINT: u64 = 256 << 10;

/// What was found out about a signed log.
pub(super) struct Signed {
    report: Report,
    key: KeyOrigin,
    witnesses: usize,
    quorum: usize,
    /// Whether copies or checkpoints from elsewhere were there to compare with.
    others: usize,
}

/// The same for programs.
#[derive(Serialize)]
pub(super) struct SignedLine<'a> {
    origin: Option<&'a str>,
    root: Option<String>,
    key: &'a KeyOrigin,
    keys: &'a [String],
    ranges: RangesLine,
    cosigned_by: Vec<Cosigned<'a>>,
    statement: String,
    /// Entries of which only the hashes are there.
    pruned: u64,
    prunings: Vec<PruningLine>,
    compared: u64,
    violations_total: u64,
    violations: Vec<ViolationLine<'a>>,
}

/// Where each range ends, in entries from the beginning.
#[derive(Serialize)]
struct RangesLine {
    cosigned: u64,
    replicated: u64,
    signed: u64,
    unsigned: u64,
}

#[derive(Serialize)]
struct Cosigned<'a> {
    name: &'a str,
    time: Option<u64>,
}

/// A record that announces a pruning.
#[derive(Serialize)]
struct PruningLine {
    record: u64,
    minimum_index: u64,
    first_seq: u64,
    time_unix_ms: u64,
    keep_s: Option<u64>,
}

impl From<&Pruning> for PruningLine {
    fn from(pruning: &Pruning) -> Self {
        let Pruning { seq: record, minimum_index, first_seq, time_unix_ms, keep_s } = *pruning;
        Self { record, minimum_index, first_seq, time_unix_ms, keep_s }
    }
}

#[derive(Serialize)]
struct ViolationLine<'a> {
    what: &'static str,
    record: Option<u64>,
    tree_index: Option<u64>,
    file: &'a str,
    detail: &'a str,
}

/// Verifies what is published of a log.
pub(super) fn verify(
    options: &AuditVerify,
    global: &Global,
    published: &dyn Source,
    shown: &str,
    wal: Option<&Path>,
) -> Result<Signed, Failure> {
    let LogKeys { keys, origin: key } = keys::log_keys(&options.trusted, global, published, shown, wal)?;
    if keys.is_empty() {
        let message = "the log is signed and its key is not known here: name the one that you were given with --vkey";
        return Err(Failure::new("key", message));
    }
    let (witnesses, quorum) = keys::witnesses(&options.trusted)?;
    let now = SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut question = Question::new(published, &keys);
    question.witness_keys = &witnesses;
    question.quorum = quorum;
    question.expected_origin = options.origin.as_deref();
    question.wal = wal.map(|dir| (Arc::new(Disk) as _, dir));
    question.now = Some(now.as_secs());
    question.threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let copies = options.replicas.iter().map(|named| place::open_copy(named)).collect::<Result<Vec<_>, _>>()?;
    for copy in &copies {
        question.held.push((copy.shown.clone(), Held::Replica(&*copy.source)));
    }
    for path in &options.checkpoints {
        let note = read_file(path, MAX_CHECKPOINT)?;
        question.held.push((path.display().to_string(), Held::Checkpoint(note)));
    }
    let others = question.held.len();
    // What this machine signed counts whatever keys were given.
    let own = wal.is_some_and(|dir| keys::is_own(dir, global));
    let key_file = match &key {
        KeyOrigin::State(vkey) => Some(vkey.with_extension("key")),
        _ if own => state::audit_key_path(global).ok(),
        _ => None,
    };
    let last = key_file.as_ref().map(|key_file| publish::read_signed(&Disk, key_file));
    let state_file = key_file.map(|key_file| publish::state_file(&key_file).display().to_string()).unwrap_or_default();
    let unreadable = match last {
        Some(Ok(last)) => {
            let named =
                |key: &audit_logging::tlog::note::VerifierKey, last: &SignedState| key.name() == last.checkpoint.origin;
            let last = last.filter(|last| keys.iter().any(|key| named(key, last)));
            question.last_signed = last.map(|last| (state_file.clone(), last));
            None
        }
        Some(Err(error)) => Some(error.to_string()),
        None => None,
    };
    let mut report = evidence::verify(&question).map_err(|error| match error {
        EvidenceError::Wal(error) => error.into(),
        error => Failure::new("audit", error.to_string()),
    })?;
    if let Some(detail) = unreadable {
        add(&mut report, What::StateDamaged, None, &state_file, detail);
    }
    if !witnesses.is_empty() && report.ranges.cosigned == 0 {
        let detail = format!("{quorum} of the {} given are asked for", witnesses.len());
        add(&mut report, What::NotCosigned, None, "cosigned", detail);
    }
    if let Some(age) = options.max_age {
        let newest = match witnesses.is_empty() {
            false => report.cosignatures.iter().filter_map(|by| by.time).max().map(Duration::from_secs),
            true => newest_record(published, report.ranges.signed)?,
        };
        check_age(age.0, newest, now)?;
    }
    Ok(Signed { report, key, witnesses: witnesses.len(), quorum, others })
}

fn add(report: &mut Report, what: What, index: Option<u64>, file: &str, detail: String) {
    report.violations_total = report.violations_total.saturating_add(1);
    report.violations.push(Violation { what, record: None, index, file: file.to_owned(), detail });
}

/// When the last signed record was made, as it says itself.
fn newest_record(published: &dyn Source, size: u64) -> Result<Option<Duration>, Failure> {
    let Some(last) = size.checked_sub(1) else { return Ok(None) };
    let bundle = read_bundle(published, size, last / TILE_WIDTH)?.unwrap_or_default();
    let entries = entry::split(&bundle).unwrap_or_default();
    let time = entries.last().and_then(|bytes| Entry::parse(bytes).ok()).and_then(|entry| {
        let Entry { seq, kind, severity, leaf } = entry;
        let record = Record { seq, severity, kind, durable: 0, leaf: leaf.to_vec(), segment: 0, offset: 0 };
        u64::try_from(Leaf::of(&record).time_ns()?).ok()
    });
    Ok(time.map(Duration::from_nanos))
}

fn check_age(most: Duration, newest: Option<Duration>, now: Duration) -> Result<(), Failure> {
    let age = newest.map(|newest| now.saturating_sub(newest));
    match age {
        Some(age) if age <= most => Ok(()),
        Some(age) => Err(Failure::integrity(
            "stale",
            format!(
                "the newest evidence is {} s old and may be {} s old: the log stands still, or its end was cut off; ask \
                 its machine",
                age.as_secs(),
                most.as_secs()
            ),
        )),
        None => {
            Err(Failure::integrity("stale", "nothing tells how old the log is: it has no signed record with a time"))
        }
    }
}

impl Signed {
    pub(super) fn is_intact(&self) -> bool {
        self.report.is_intact()
    }

    pub(super) fn is_signed(&self) -> bool {
        self.report.ranges.signed > 0
    }

    pub(super) fn violations(&self) -> u64 {
        self.report.violations_total
    }

    pub(super) fn tell(&self, out: &Out) {
        let report = &self.report;
        let Ranges { cosigned, replicated, signed, unsigned } = report.ranges;
        out.line(format_args!("  origin     {}", printable(report.origin.as_deref().unwrap_or("unknown"))));
        let from = match &self.key {
            KeyOrigin::Given => "the one given".to_owned(),
            KeyOrigin::State(path) => format!("this machine's own, {}", path.display()),
            KeyOrigin::LogItself => "the one that lies with the log".to_owned(),
            KeyOrigin::None => "none".to_owned(),
        };
        out.line(format_args!("  key        {}", printable(&from)));
        range("cosigned", 0, cosigned, "witnesses elsewhere saw them", out);
        range("replicated", cosigned, replicated, "others hold a checkpoint of them", out);
        range(
            "signed",
            replicated,
            signed,
            "by the log's key alone, whose holder could sign something else instead",
            out,
        );
        range("unsigned", signed, unsigned, "the checksums are all that protects them", out);
        for by in &report.cosignatures {
            let time = by.time.map(|time| rfc3339(time.saturating_mul(1_000_000_000))).unwrap_or_default();
            out.line(format_args!("  witness    {} at {time}", printable(&by.name)));
        }
        if self.witnesses > 0 {
            out.line(format_args!("  quorum     {} of {}", self.quorum, count(self.witnesses, "witness")));
        }
        if report.pruned > 0 {
            out.line(format_args!(
                "  pruned     {}, as signed records announce; their hashes are kept",
                count(report.pruned, "entry")
            ));
        }
        for pruning in &report.prunings {
            let Pruning { seq, minimum_index, first_seq, time_unix_ms, keep_s } = *pruning;
            let time = rfc3339(time_unix_ms.saturating_mul(1_000_000));
            let age = keep_s.map(|keep| format!(", records older than {} h", keep / 3600)).unwrap_or_default();
            out.line(format_args!(
                "             record {seq} of {time}: entries before {minimum_index}, record {first_seq}{age}"
            ));
        }
        for violation in &report.violations {
            out.line(out.styled(Style::Red, format_args!("  VIOLATION  {violation}")));
        }
        let unlisted = report.violations_total.saturating_sub(report.violations.len() as u64);
        if unlisted > 0 {
            out.line(out.styled(Style::Red, format_args!("  VIOLATION  and {unlisted} more")));
        }
    }

    /// What all of this is worth.
    pub(super) fn conclude(&self, out: &Out) {
        if self.is_intact() && self.is_signed() {
            let ok = out.styled(Style::Green, "ok");
            out.line(format_args!("{ok} every published record is the one that was signed"));
        }
        let mut said = self.report.statement();
        if self.others == 0 && self.witnesses == 0 {
            said.push_str(" --replica, --checkpoint and --witness name what others hold.");
        }
        if self.key == KeyOrigin::LogItself {
            said.push_str(
                " The key lies with the log itself: all of it fits together, but whose log it is, only a key that you got \
                 on another way can show (--vkey).",
            );
        }
        out.line(out.styled(Style::Dim, said));
    }

    pub(super) fn line(&self) -> SignedLine<'_> {
        let report = &self.report;
        let Ranges { cosigned, replicated, signed, unsigned } = report.ranges;
        SignedLine {
            origin: report.origin.as_deref(),
            root: report.root.map(|root| root.to_string()),
            key: &self.key,
            keys: &report.keys,
            ranges: RangesLine { cosigned, replicated, signed, unsigned },
            cosigned_by: report.cosignatures.iter().map(|by| Cosigned { name: &by.name, time: by.time }).collect(),
            statement: report.statement(),
            pruned: report.pruned,
            prunings: report.prunings.iter().map(PruningLine::from).collect(),
            compared: report.compared,
            violations_total: report.violations_total,
            violations: report
                .violations
                .iter()
                .map(|violation| ViolationLine {
                    what: violation.what.as_str(),
                    record: violation.record,
                    tree_index: violation.index,
                    file: &violation.file,
                    detail: &violation.detail,
                })
                .collect(),
        }
    }
}

/// A range of entries, where it has any.
fn range(name: &str, first: u64, end: u64, what: &str, out: &Out) {
    match end.saturating_sub(first) {
        0 => out.line(format_args!("  {name:<10} none")),
        1 => out.line(format_args!("  {name:<10} 1 entry, {first}: {what}")),
        count => out.line(format_args!("  {name:<10} {count} entries, {first} to {}: {what}", end.saturating_sub(1))),
    }
}
