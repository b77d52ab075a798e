//! `vram audit verify`: every byte, held against what the log says of itself. Takes no lock and writes nothing.

use std::path::Path;

use audit_logging::reader::{self, Report};
use serde::Serialize;

use super::{Named, broken, read};
use crate::exit::Failure;
use crate::output::{Out, Style};

/// What `verify --json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    dir: &'a Path,
    intact: bool,
    segments: u64,
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
    signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
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

pub(super) fn run(dir: &Path, out: &Out) -> Result<(), Failure> {
    let report = read(dir, reader::verify(dir))?;
    let mut failure = (!report.is_intact()).then(|| broken(dir, report.violations_total));
    tell(dir, &report, out);
    out.object(&Verdict {
        dir,
        intact: report.is_intact(),
        segments: report.segments,
        records: report.records,
        last_seq: report.last_seq,
        durable: report.durable,
        clean_close: report.clean_close,
        torn_tail: report.torn_tail.map(|torn| Torn { segment: torn.segment, offset: torn.offset, bytes: torn.bytes }),
        gaps_total: report.gaps_total,
        gaps: report
            .gaps
            .iter()
            .map(|gap| GapLine { first: gap.first, count: gap.count, stated_by: gap.stated_by.as_str() })
            .collect(),
        void_segments: report.void_segments,
        violations_total: report.violations_total,
        violations: report.violations.iter().map(Named::from).collect(),
        signed: false,
        error: failure.as_ref(),
    });
    if let Some(failure) = &mut failure {
        failure.in_report = true;
    }
    failure.map_or(Ok(()), Err)
}

fn tell(dir: &Path, report: &Report, out: &Out) {
    out.line(out.styled(Style::Bold, format_args!("audit log {}", dir.display())));
    out.line(format_args!("  segments   {}", report.segments));
    out.line(format_args!("  records    {}, the last is number {}", report.records, report.last_seq));
    out.line(format_args!("  durable    up to number {}", report.durable));
    let end = if report.clean_close { "closed cleanly" } else { "not closed: in use, or its writer was stopped" };
    out.line(format_args!("  end        {end}"));
    match report.torn_tail {
        None => out.line("  torn tail  none"),
        Some(torn) => out.line(format_args!(
            "  torn tail  {} bytes in segment {} at byte {}: an unfinished write, no violation",
            torn.bytes, torn.segment, torn.offset
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
        out.line(format_args!("  void       {} segments were given up after a storage fault", report.void_segments));
    }
    for violation in &report.violations {
        out.line(out.styled(Style::Red, format_args!("  VIOLATION  {violation}")));
    }
    let unlisted = report.violations_total.saturating_sub(report.violations.len() as u64);
    if unlisted > 0 {
        out.line(out.styled(Style::Red, format_args!("  VIOLATION  and {unlisted} more")));
    }
    if report.is_intact() {
        out.line(sum_up(report, out));
    }
    out.line(out.styled(
        Style::Dim,
        "The checksums have no key: they show damage and careless edits, not a forger who rewrites them too, nor \
         records that were cut off at the end; that takes signed checkpoints, which this log does not have yet.",
    ));
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
