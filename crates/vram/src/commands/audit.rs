//! `vram audit show` and `vram audit verify`: offline, on a log directory. Takes no lock and writes nothing.

use std::collections::VecDeque;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use audit_logging::reader::{self, Report, Violation};
use audit_logging::{Kind, ReadError, Record, Severity};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::{Audit, AuditShow, AuditVerify, Global, SeverityChoice};
use crate::exit::Failure;
use crate::output::{Out, Style, hex, printable, size};
use crate::state;

/// Fields that the columns show already, or that are too long for a line.
const NOT_REPEATED: [&str; 11] =
    ["v", "time", "time_ns", "monotonic_ns", "time_unix_ms", "device", "severity", "event", "log", "shard_id", "seal"];

/// Shows or verifies a log.
pub(super) fn run(audit: &Audit, global: &Global, out: &Out) -> Result<(), Failure> {
    match audit {
        Audit::Show(options) => show(options, &directory(options.dir.as_deref(), global)?, out),
        Audit::Verify(AuditVerify { dir }) => verify(&directory(dir.as_deref(), global)?, out),
    }
}

/// Nothing where nothing was written yet.
fn not_begun(dir: &Path, error: &ReadError) -> Option<Failure> {
    let empty = || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    let nothing = match error {
        ReadError::Io { path, source } => path == dir && source.kind() == io::ErrorKind::NotFound,
        ReadError::NoLog { .. } => empty(),
        _ => false,
    };
    nothing.then(|| {
        let message = format!(
            "nothing has been recorded yet in {}: the first vram seal begins the log; if there should be one, check \
             the path",
            dir.display()
        );
        Failure::new("audit", message)
    })
}

fn read<T>(dir: &Path, read: Result<T, ReadError>) -> Result<T, Failure> {
    read.map_err(|error| not_begun(dir, &error).unwrap_or_else(|| error.into()))
}

fn directory(named: Option<&Path>, global: &Global) -> Result<PathBuf, Failure> {
    named.map_or_else(|| state::audit_dir(global), |dir| Ok(dir.to_owned()))
}

/// The names of the events in a log, oldest first, from behind a record on.
pub(super) fn events_after(dir: &Path, seq: u64) -> Result<impl Iterator<Item = Result<String, ReadError>>, Failure> {
    let records = reader::records(dir)?.filter(move |record| record.as_ref().map_or(true, |record| record.seq > seq));
    Ok(records.map(|record| Ok(Leaf::of(&record?).text("event").to_owned())))
}

/// What a record says, as far as it is understood.
struct Leaf(Option<Value>);

impl Leaf {
    fn of(record: &Record) -> Self {
        Self(serde_json::from_slice(&record.leaf).ok())
    }

    fn text(&self, field: &str) -> &str {
        self.0.as_ref().and_then(|leaf| leaf.get(field)).and_then(Value::as_str).unwrap_or_default()
    }

    /// The remaining fields, for people.
    fn rest(&self) -> String {
        let mut text = String::new();
        let fields = self.0.as_ref().and_then(Value::as_object);
        for (name, value) in fields.into_iter().flatten() {
            if NOT_REPEATED.contains(&name.as_str()) || value.is_null() {
                continue;
            }
            let separator = if text.is_empty() { "" } else { "  " };
            // Writing into a string cannot fail.
            let _ = match value {
                Value::String(value) => write!(text, "{separator}{name}={value}"),
                value => write!(text, "{separator}{name}={value}"),
            };
        }
        printable(&text)
    }
}

/// A record on a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    severity: &'static str,
    kind: &'static str,
    segment: u64,
    offset: u64,
    /// The record's own bytes, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a RawValue>,
    /// The same in hex, where they are no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_hex: Option<String>,
}

#[derive(Serialize)]
struct ViolationLine {
    violation: Named,
}

/// A violation for programs.
#[derive(Serialize)]
struct Named {
    segment: u64,
    offset: u64,
    seq: u64,
    what: &'static str,
}

impl From<&Violation> for Named {
    fn from(violation: &Violation) -> Self {
        let Violation { segment, offset, seq, what } = *violation;
        Self { segment, offset, seq, what: what.as_str() }
    }
}

fn show(options: &AuditShow, dir: &Path, out: &Out) -> Result<(), Failure> {
    let last = options.last.map(|last| usize::try_from(last.get()).unwrap_or(usize::MAX));
    let mut kept: VecDeque<Result<Record, Violation>> = VecDeque::new();
    let mut violations = 0_u64;
    for item in read(dir, reader::records(dir))? {
        let item = match item {
            Ok(record) => Ok(record),
            Err(ReadError::Violation(violation)) => Err(violation),
            Err(error) => return Err(error.into()),
        };
        match &item {
            Ok(record) if !wanted(options, record) => continue,
            Ok(_) => {}
            Err(_) => violations = violations.saturating_add(1),
        }
        match last {
            None => print(&item, out),
            Some(last) => {
                if kept.len() >= last {
                    kept.pop_front();
                }
                kept.push_back(item);
            }
        }
        if out.is_closed() {
            return Ok(());
        }
    }
    kept.iter().for_each(|item| print(item, out));
    match violations {
        0 => Ok(()),
        _ => Err(broken(dir, violations)),
    }
}

fn wanted(options: &AuditShow, record: &Record) -> bool {
    let severity = match options.severity {
        None => true,
        Some(SeverityChoice::Critical) => record.severity == Severity::Critical,
        Some(SeverityChoice::Routine) => record.severity == Severity::Routine,
    };
    if !severity || (options.shard.is_none() && options.event.is_none()) {
        return severity;
    }
    let leaf = Leaf::of(record);
    options.shard.as_deref().is_none_or(|shard| leaf.text("shard_id") == shard)
        && options.event.as_deref().is_none_or(|event| {
            // The log's own records go by their kind, as `show` prints it.
            event.eq_ignore_ascii_case(leaf.text("event")) || event.eq_ignore_ascii_case(record.kind.as_str())
        })
}

fn print(item: &Result<Record, Violation>, out: &Out) {
    match item {
        Err(violation) => {
            out.line(out.styled(Style::Red, format_args!("      !! {violation}")));
            out.object(&ViolationLine { violation: violation.into() });
        }
        Ok(record) if out.json => out.object(&line(record)),
        Ok(record) => {
            let leaf = Leaf::of(record);
            let name = if record.kind == Kind::Event { leaf.text("event") } else { record.kind.as_str() };
            let severity = match record.severity {
                Severity::Critical => out.styled(Style::Yellow, "CRITICAL"),
                Severity::Routine => "routine ".to_owned(),
            };
            let shard = printable(leaf.text("shard_id"));
            let name = out.styled(Style::Bold, format_args!("{:<22}", printable(name)));
            let rest =
                if leaf.0.is_some() { leaf.rest() } else { format!("{} of no JSON", size(record.leaf.len() as u64)) };
            out.line(format_args!("{:>8}  {:<30}  {severity}  {name}  {shard}  {rest}", record.seq, when(&leaf)));
        }
    }
}

/// When a record was made, as it says itself.
fn when(leaf: &Leaf) -> String {
    let own = || leaf.0.as_ref()?.get("time_unix_ms")?.as_i64();
    match own().and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok()) {
        Some(time) => time.to_string(),
        None => printable(leaf.text("time")),
    }
}

fn line(record: &Record) -> Line<'_> {
    // A line break inside the record would make two lines of it.
    let text = std::str::from_utf8(&record.leaf).ok().filter(|text| !text.contains(['\n', '\r']));
    let verbatim = text.and_then(|text| serde_json::from_str(text).ok());
    Line {
        seq: record.seq,
        severity: match record.severity {
            Severity::Critical => "critical",
            Severity::Routine => "routine",
        },
        kind: record.kind.as_str(),
        segment: record.segment,
        offset: record.offset,
        record_hex: verbatim.is_none().then(|| hex(&record.leaf)),
        record: verbatim,
    }
}

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

fn verify(dir: &Path, out: &Out) -> Result<(), Failure> {
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

fn broken(dir: &Path, violations: u64) -> Failure {
    let places = if violations == 1 { "1 place" } else { "several places" };
    Failure::integrity(
        "audit",
        format!(
            "the audit log {} is not as it was written in {places}; keep the directory as evidence and compare it with a copy",
            dir.display()
        ),
    )
}
