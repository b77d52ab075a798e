//! `vram audit show`: the records, for people or programs. Takes no lock and writes nothing.

use std::collections::VecDeque;
use std::fmt::Write;
use std::path::Path;

use audit_logging::reader::{self, Violation};
use audit_logging::{Kind, ReadError, Record, Severity};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::filter::Wanted;
use super::{Leaf, Named, broken, read, word};
use crate::cli::AuditShow;
use crate::exit::Failure;
use crate::output::{Out, Style, hex, printable, size};

/// Fields that the columns show already, or that are too long for a line.
const NOT_REPEATED: [&str; 11] =
    ["v", "time", "time_ns", "monotonic_ns", "time_unix_ms", "device", "severity", "event", "log", "shard_id", "seal"];

pub(super) fn run(options: &AuditShow, dir: &Path, out: &Out) -> Result<(), Failure> {
    let wanted = Wanted::of(&options.filter);
    let last = options.last.map(|last| usize::try_from(last.get()).unwrap_or(usize::MAX));
    let mut kept: VecDeque<Result<Record, Violation>> = VecDeque::new();
    let (mut shown, mut violations) = (0_u64, 0_u64);
    for item in read(dir, reader::records(dir))? {
        let item = match item {
            Ok(record) => Ok(record),
            Err(ReadError::Violation(violation)) => Err(violation),
            Err(error) => return Err(error.into()),
        };
        match &item {
            Ok(record) if !wanted.has(record) => continue,
            Ok(_) => shown = shown.saturating_add(1),
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
    if shown == 0 {
        // A misspelt event must not look like one that never happened.
        out.warn(format_args!("no record of {} is what was asked for", printable(&dir.to_string_lossy())));
    }
    match violations {
        0 => Ok(()),
        _ => Err(broken(dir, violations)),
    }
}

fn print(item: &Result<Record, Violation>, out: &Out) {
    match item {
        Err(violation) => {
            out.line(out.styled(Style::Red, format_args!("      !! {violation}")));
            out.object(&ViolationLine { violation: violation.into() });
        }
        Ok(record) if out.json => out.object(&line(record)),
        Ok(record) => print_record(record, out),
    }
}

/// A record on a line for people.
pub(super) fn print_record(record: &Record, out: &Out) {
    let leaf = Leaf::of(record);
    let name = if record.kind == Kind::Event { leaf.text("event") } else { record.kind.as_str() };
    let severity = match record.severity {
        Severity::Critical => out.styled(Style::Yellow, "CRITICAL"),
        Severity::Routine => "routine ".to_owned(),
    };
    let shard = printable(leaf.text("shard_id"));
    let name = out.styled(Style::Bold, format_args!("{:<22}", printable(name)));
    let rest = if leaf.0.is_some() { rest_of(&leaf) } else { format!("{} of no JSON", size(record.leaf.len() as u64)) };
    out.line(format_args!("{:>8}  {:<30}  {severity}  {name}  {shard}  {rest}", record.seq, when(&leaf)));
}

/// When a record was made, as it says itself.
fn when(leaf: &Leaf) -> String {
    let own = || leaf.0.as_ref()?.get("time_unix_ms")?.as_i64();
    match own().and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok()) {
        Some(time) => time.to_string(),
        None => printable(leaf.text("time")),
    }
}

/// The remaining fields, for people.
fn rest_of(leaf: &Leaf) -> String {
    let mut text = String::new();
    for (name, value) in leaf.fields() {
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

/// A record on a line of JSON.
#[derive(Serialize)]
pub(super) struct Line<'a> {
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

pub(super) fn line(record: &Record) -> Line<'_> {
    // A line break inside the record would make two lines of it.
    let text = std::str::from_utf8(&record.leaf).ok().filter(|text| !text.contains(['\n', '\r']));
    let verbatim = text.and_then(|text| serde_json::from_str(text).ok());
    Line {
        seq: record.seq,
        severity: word(record.severity),
        kind: record.kind.as_str(),
        segment: record.segment,
        offset: record.offset,
        record_hex: verbatim.is_none().then(|| hex(&record.leaf)),
        record: verbatim,
    }
}
