//! `vram audit show`: the records, for people or programs, of a log or of what is published of it. Takes no lock and writes
//! nothing.

use std::collections::VecDeque;
use std::fmt::Write;
use std::path::Path;

use audit_logging::{Kind, Record, Severity};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::filter::Wanted;
use super::place;
use super::records::{Item, Wrong, records};
use super::{Leaf, broken, word};
use crate::cli::{AuditShow, Global};
use crate::exit::Failure;
use crate::output::{Out, Style, hex, printable, size};

/// Fields that the columns show already, or that are too long for a line.
const NOT_REPEATED: [&str; 11] =
    ["v", "time", "time_ns", "monotonic_ns", "time_unix_ms", "device", "severity", "event", "log", "shard_id", "seal"];

pub(super) fn run(options: &AuditShow, global: &Global, out: &Out) -> Result<(), Failure> {
    let found = place::find(options.log.as_deref(), global)?;
    let wanted = Wanted::of(&options.filter);
    let last = options.last.map(|last| usize::try_from(last.get()).unwrap_or(usize::MAX));
    let mut kept: VecDeque<Item> = VecDeque::new();
    let (mut shown, mut violations, mut first) = (0_u64, 0_u64, None);
    let mut all = records(&found)?;
    for item in &mut all {
        let item = item?;
        match &item {
            Item::Record { record, .. } => {
                first = first.or(Some(record.seq));
                if !wanted.has(record) {
                    continue;
                }
                shown = shown.saturating_add(1);
            }
            Item::Wrong(_) => violations = violations.saturating_add(1),
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
    let named = printable(&found.shown);
    if all.gone() > 0 {
        out.warn(format_args!(
            "{} published records are not there: pruned, or missing; vram audit verify tells which",
            all.gone()
        ));
    }
    if shown == 0 {
        // A misspelt event must not look like one that never happened.
        out.warn(format_args!("no record of {named} is what was asked for"));
        if let Some(first) = first.filter(|&first| first > 1) {
            out.warn(format_args!("the first record that is there is number {first}: those before it were pruned"));
        }
    }
    match violations {
        0 => Ok(()),
        _ => Err(broken(Path::new(&found.shown), violations)),
    }
}

fn print(item: &Item, out: &Out) {
    match item {
        Item::Wrong(wrong) => {
            out.line(out.styled(Style::Red, format_args!("      !! {wrong}")));
            out.object(&ViolationLine { violation: wrong });
        }
        Item::Record { record, in_segment, .. } if out.json => out.object(&line(record, *in_segment)),
        Item::Record { record, .. } => print_record(record, out),
    }
}

/// A record on a line for people.
pub(super) fn print_record(record: &Record, out: &Out) {
    let leaf = Leaf::of(record);
    let name = match record.kind {
        Kind::Event => leaf.text("event"),
        // Such as key or pruned.
        Kind::Publication if !leaf.text("log").is_empty() => leaf.text("log"),
        kind => kind.as_str(),
    };
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
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The record's own bytes, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a RawValue>,
    /// The same in hex, where they are no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_hex: Option<String>,
}

#[derive(Serialize)]
struct ViolationLine<'a> {
    violation: &'a Wrong,
}

/// A record for programs, with its place in the log's own segments where it comes from there.
pub(super) fn line(record: &Record, in_segment: bool) -> Line<'_> {
    // A line break inside the record would make two lines of it.
    let text = std::str::from_utf8(&record.leaf).ok().filter(|text| !text.contains(['\n', '\r']));
    let verbatim = text.and_then(|text| serde_json::from_str(text).ok());
    Line {
        seq: record.seq,
        severity: word(record.severity),
        kind: record.kind.as_str(),
        segment: in_segment.then_some(record.segment),
        offset: in_segment.then_some(record.offset),
        record_hex: verbatim.is_none().then(|| hex(&record.leaf)),
        record: verbatim,
    }
}
