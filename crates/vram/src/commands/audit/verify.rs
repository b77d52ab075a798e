//! `vram audit verify`: every byte, held against what the log says of itself, what was signed of it, and what others hold.
//! Takes no lock and writes nothing.

use std::path::Path;

use audit_logging::reader::{self, Report};
use audit_logging::tlog::source::{DirSource, Source};
use audit_logging::{Disk, publish};
use serde::Serialize;

use super::keys;
use super::place::{self, Found, PUBLISHED};
use super::signed::{self, Signed, SignedLine};
use super::{Named, broken, read};
use crate::cli::{AuditVerify, Global};
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::{Out, Style};
use crate::state;

/// What `verify --json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    dir: &'a str,
    intact: bool,
    #[serde(flatten)]
    records: Option<Records>,
    /// Whether a signature of a trusted key covers any of it.
    signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<SignedLine<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
}

/// What was found in the log's own segments.
#[derive(Serialize)]
struct Records {
    segments: u64,
    pruned: u64,
    records: u64,
    last_seq: u64,
    durable: u64,
    clean_close: bool,
    torn_tail: Option<Torn>,
    gaps_total: u64,
    gaps: Vec<GapLine>,
    void_segments: u64,
    violations_total: u64,
    violations: Vec<Named>,
}

#[derive(Serialize)]
struct Torn {
    segment: u64,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct GapLine {
    first: u64,
    count: u64,
    stated_by: &'static str,
}

/// Verifies a log: its segments, what is published of it, or both.
pub(super) fn run(options: &AuditVerify, global: &Global, out: &Out) -> Result<(), Failure> {
    let Found { shown, wal, published } = place::find(options.log.as_deref(), global)?;
    let report = match &wal {
        Some(dir) => Some(read(dir, reader::verify(dir))?),
        None => None,
    };
    let published = match (published, &wal) {
        (None, Some(dir)) if should_be_signed(options, global, dir) => {
            Some(Box::new(DirSource::new(&dir.join(PUBLISHED))) as _)
        }
        (published, _) => published,
    };
    if let (None, Some(published)) = (&wal, &published) {
        must_be_a_log(&**published, &shown)?;
    }
    let signed = match &published {
        Some(published) => Some(signed::verify(options, global, &**published, &shown, wal.as_deref())?),
        None => None,
    };
    let violations = report.as_ref().map_or(0, |report| report.violations_total);
    let violations = signed.as_ref().map_or(violations, |signed| violations.max(signed.violations()));
    let mut failure = (violations > 0).then(|| broken(Path::new(&shown), violations));
    out.line(out.styled(Style::Bold, format_args!("audit log {shown}")));
    if let Some(report) = &report {
        tell(report, out);
    }
    if let Some(signed) = &signed {
        signed.tell(out);
    }
    if let Some(report) = report.as_ref().filter(|report| report.is_intact()) {
        out.line(sum_up(report, out));
    }
    match &signed {
        Some(signed) => signed.conclude(out),
        None => out.line(out.styled(Style::Dim, UNSIGNED)),
    }
    out.object(&Verdict {
        dir: &shown,
        intact: violations == 0,
        records: report.as_ref().map(Records::of),
        signed: signed.as_ref().is_some_and(Signed::is_signed),
        published: signed.as_ref().map(Signed::line),
        error: failure.as_ref(),
    });
    if let Some(failure) = &mut failure {
        failure.in_report = true;
    }
    failure.map_or(Ok(()), Err)
}

/// Where nothing of a log is found, nothing was taken from it either, as far as can be told from here.
fn must_be_a_log(published: &dyn Source, shown: &str) -> Result<(), Failure> {
    for file in ["checkpoint", "cosigned", "vkey", "tile/0/000", "tile/entries/000"] {
        if published.get(file).map_or(true, |bytes| bytes.is_some()) {
            return Ok(());
        }
    }
    let message = format!(
        "no signed log is published at {shown}: check the address (a daemon's ends in /audit); a log is signed from the \
         first start after vram audit keygen on"
    );
    Err(Failure::new("audit", message))
}

/// What is said of a log that nobody signed.
const UNSIGNED: &str = "The checksums have no key: they show damage and careless edits, not a forger who rewrites them too, \
     nor records that were cut off at the end. A signed log shows that: vram audit keygen makes the key, and the log is \
     signed from the next run on.";

/// Whether nothing being published is itself a finding: somebody says that the log is signed.
fn should_be_signed(options: &AuditVerify, global: &Global, dir: &Path) -> bool {
    let asked = !options.trusted.vkeys.is_empty() || !options.trusted.witnesses.is_empty() || options.origin.is_some();
    let compared = !options.replicas.is_empty() || !options.checkpoints.is_empty() || options.max_age.is_some();
    let own = || {
        let key = state::audit_key_path(global).ok()?;
        publish::read_signed(&Disk, &key).ok().flatten().filter(|last| last.checkpoint.size > 0)
    };
    asked || compared || (keys::is_own(dir, global) && own().is_some())
}

impl Records {
    fn of(report: &Report) -> Self {
        Self {
            segments: report.segments,
            pruned: report.pruned,
            records: report.records,
            last_seq: report.last_seq,
            durable: report.durable,
            clean_close: report.clean_close,
            torn_tail: report.torn_tail.map(|torn| Torn {
                segment: torn.segment,
                offset: torn.offset,
                bytes: torn.bytes,
            }),
            gaps_total: report.gaps_total,
            gaps: report
                .gaps
                .iter()
                .map(|gap| GapLine { first: gap.first, count: gap.count, stated_by: gap.stated_by.as_str() })
                .collect(),
            void_segments: report.void_segments,
            violations_total: report.violations_total,
            violations: report.violations.iter().map(Named::from).collect(),
        }
    }
}

fn tell(report: &Report, out: &Out) {
    out.line(format_args!("  segments   {}", report.segments));
    if report.pruned > 0 {
        let pruned =
            format!("{} that {}", count(report.pruned, "record"), if report.pruned == 1 { "was" } else { "were" });
        out.line(format_args!("  begins     behind {pruned} pruned, as a record announces"));
    }
    out.line(format_args!("  records    {}, the last is number {}", report.records, report.last_seq));
    out.line(format_args!("  durable    up to number {}", report.durable));
    let end = if report.clean_close { "closed cleanly" } else { "not closed: in use, or its writer was stopped" };
    out.line(format_args!("  end        {end}"));
    match report.torn_tail {
        None => out.line("  torn tail  none"),
        Some(torn) => out.line(format_args!(
            "  torn tail  {} in segment {} at byte {}: an unfinished write, no violation",
            count(torn.bytes, "byte"),
            torn.segment,
            torn.offset
        )),
    }
    if report.gaps.is_empty() {
        out.line("  gaps       none");
    }
    for gap in &report.gaps {
        let Some(end) = gap.first.checked_add(gap.count.saturating_sub(1)) else { continue };
        out.line(format_args!(
            "  gap        numbers {} to {end} carry no record, as the log states itself ({})",
            gap.first,
            gap.stated_by.as_str()
        ));
    }
    let unlisted = report.gaps_total.saturating_sub(report.gaps.len() as u64);
    if unlisted > 0 {
        out.line(format_args!("  gap        and {unlisted} more"));
    }
    if report.void_segments > 0 {
        let void = count(report.void_segments, "segment");
        out.line(format_args!("  void       {void}, given up after a storage fault"));
    }
    for violation in &report.violations {
        out.line(out.styled(Style::Red, format_args!("  VIOLATION  {violation}")));
    }
    let unlisted = report.violations_total.saturating_sub(report.violations.len() as u64);
    if unlisted > 0 {
        out.line(out.styled(Style::Red, format_args!("  VIOLATION  and {unlisted} more")));
    }
}

/// What an intact log is, and no more than that.
fn sum_up(report: &Report, out: &Out) -> String {
    let ok = out.styled(Style::Green, "ok");
    match (report.records, report.torn_tail) {
        (0, None) => "There are no records, so there is nothing to say about them.".to_owned(),
        (0, Some(torn)) => format!("There are no records, only {} bytes of an unfinished write.", torn.bytes),
        (_, Some(torn)) => format!(
            "{ok} every kept record is as it was written; {} bytes of an unfinished write at the end are no record",
            torn.bytes
        ),
        (_, None) if report.clean_close => format!("{ok} every record is as it was written"),
        (_, None) => format!("{ok} every kept record is as it was written; the end of the log was not closed"),
    }
}
