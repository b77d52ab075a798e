//! `vram audit`: everything about the log of what was done.

mod export;
mod filter;
mod keygen;
mod keys;
mod ocsf;
mod place;
mod proof;
mod prune;
mod records;
mod show;
mod signed;
mod subject;
mod verify;

use std::io;
use std::path::Path;

use audit_logging::reader::{self, Violation};
use audit_logging::tlog::entry::Entry;
use audit_logging::{ReadError, Record, Severity};
use serde::Serialize;
use serde_json::Value;

use crate::cli::{Audit, Global};
use crate::exit::Failure;
use crate::output::Out;

/// Does what was asked about a log.
pub(super) fn run(audit: &Audit, global: &Global, out: &Out) -> Result<(), Failure> {
    match audit {
        Audit::Show(options) => show::run(options, global, out),
        Audit::Verify(options) => verify::run(options, global, out),
        Audit::Export(options) => export::run(options, global, out),
        Audit::Keygen(options) => keygen::run(options, global, out),
        Audit::Prove(options) => proof::prove(options, global, out),
        Audit::CheckProof(options) => proof::check(options, out),
        Audit::Prune(options) => prune::run(options, global, out),
        Audit::Subject(options) => subject::run(options, out),
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

pub(crate) use prune::{first_younger, held};

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

    fn number(&self, field: &str) -> Option<i128> {
        self.0.as_ref()?.get(field)?.as_i64().map(i128::from)
    }

    /// When the record was made, as it says itself: nanoseconds since 1970.
    fn time_ns(&self) -> Option<i128> {
        let own = self.number("time_unix_ms").map(|milliseconds| milliseconds.saturating_mul(1_000_000));
        own.or_else(|| self.number("time_ns"))
    }

    /// Every field, in the record's order.
    fn fields(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.as_ref().and_then(Value::as_object).into_iter().flatten()
    }
}

/// Where a record stands in the tree, and its hash there.
struct Place {
    /// None where it is not certain.
    index: Option<u64>,
    leaf_hash: String,
}

impl Place {
    fn of(record: &Record, index: Option<u64>) -> Self {
        Self { index, leaf_hash: Entry::of(record).hash().to_string() }
    }
}

/// One word for a severity.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "critical",
        Severity::Routine => "routine",
    }
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
