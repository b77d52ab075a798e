//! `vram audit export`: the records for other programs, one JSON object a line, derived from the one stored record.

use std::path::Path;

use audit_logging::reader;
use audit_logging::{ReadError, Record};
use serde::Serialize;

use super::filter::Wanted;
use super::show::{Line, line};
use super::{Place, broken, ocsf, read};
use crate::cli::{AuditExport, ExportFormat};
use crate::exit::Failure;
use crate::output::Out;

/// A record with its place in the tree.
#[derive(Serialize)]
struct Placed<'a> {
    tree_index: Option<u64>,
    /// RFC 6962 hash of the entry, in base64.
    leaf_hash: &'a str,
    #[serde(flatten)]
    line: Line<'a>,
}

/// Prints them. A log that is not as it was written is exported as far as it is good, and ends with exit code 3.
pub(super) fn run(options: &AuditExport, dir: &Path, out: &Out) -> Result<(), Failure> {
    // Whatever was asked for: what comes out is JSON.
    let out = &out.for_programs();
    let wanted = Wanted::of(&options.filter);
    let records = read(dir, reader::records(dir))?;
    let (mut index, mut violations) = (Some(records.pruned()), 0_u64);
    for item in records {
        let record = match item {
            Ok(record) => record,
            Err(ReadError::Violation(violation)) => {
                out.warn(format_args!("warning: {violation}"));
                // How many records are missing is not known, so neither is any later one's place.
                index = None;
                violations = violations.saturating_add(1);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if wanted.has(&record) {
            print(&record, &Place::of(&record, index), options.format, out);
        }
        index = index.map(|index| index.saturating_add(1));
        if out.is_closed() {
            return Ok(());
        }
    }
    match violations {
        0 => out.finish(),
        _ => Err(Failure { in_report: true, ..broken(dir, violations) }),
    }
}

fn print(record: &Record, place: &Place, format: ExportFormat, out: &Out) {
    match format {
        ExportFormat::Ocsf => ocsf::event(record, place, |event| out.object(event)),
        ExportFormat::Ndjson => {
            out.object(&Placed { tree_index: place.index, leaf_hash: &place.leaf_hash, line: line(record) });
        }
    }
}
