//! `vram audit export`: the records for other programs, one JSON object a line, derived from the one stored record.

use std::path::Path;

use audit_logging::Record;
use serde::Serialize;

use super::filter::Wanted;
use super::records::{Item, records};
use super::show::{Line, line};
use super::{Place, broken, ocsf, place};
use crate::cli::{AuditExport, ExportFormat, Global};
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
pub(super) fn run(options: &AuditExport, global: &Global, out: &Out) -> Result<(), Failure> {
    let found = place::find(options.log.as_deref(), global)?;
    // Whatever was asked for: what comes out is JSON.
    let out = &out.for_programs();
    let wanted = Wanted::of(&options.filter);
    let mut violations = 0_u64;
    let mut all = records(&found)?;
    for item in &mut all {
        match item? {
            Item::Wrong(wrong) => {
                out.warn(format_args!("warning: {wrong}"));
                violations = violations.saturating_add(1);
            }
            Item::Record { record, index, in_segment } if wanted.has(&record) => {
                print(&record, in_segment, &Place::of(&record, index), options.format, out);
            }
            Item::Record { .. } => {}
        }
        if out.is_closed() {
            return Ok(());
        }
    }
    if all.gone() > 0 {
        out.warn(format_args!(
            "warning: {} published records are not there: pruned, or missing; vram audit verify tells which",
            all.gone()
        ));
    }
    match violations {
        0 => out.finish(),
        _ => Err(Failure { in_report: true, ..broken(Path::new(&found.shown), violations) }),
    }
}

fn print(record: &Record, in_segment: bool, place: &Place, format: ExportFormat, out: &Out) {
    match format {
        ExportFormat::Ocsf => ocsf::event(record, place, |event| out.object(event)),
        ExportFormat::Ndjson => {
            out.object(&Placed {
                tree_index: place.index,
                leaf_hash: &place.leaf_hash,
                line: line(record, in_segment),
            });
        }
    }
}
