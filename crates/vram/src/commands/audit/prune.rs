//! `vram audit prune`: old records go, announced and signed.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use audit_logging::publish::{AcceptError, PruneError, Pruned, Publisher};
use audit_logging::{Clock, ReadError, SystemClock, reader};
use serde::Serialize;

use super::{Leaf, broken, place, read};
use crate::cli::{AuditPrune, Global};
use crate::exit::Failure;
use crate::output::{Out, Style, printable};
use crate::session::Trail;
use crate::state;

/// Records are given up in bundles of so many.
const BUNDLE: u64 = 256;
/// How long to wait for the disk.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Serialize)]
struct Done {
    pruned: u64,
    minimum_index: u64,
    first_seq: u64,
    first_segment: u64,
}

/// Prunes the log of this machine.
pub(super) fn run(options: &AuditPrune, global: &Global, out: &Out) -> Result<(), Failure> {
    let dir = state::audit_dir(global)?;
    let report = read(&dir, reader::verify(&dir))?;
    if !report.is_intact() {
        return Err(broken(&dir, report.violations_total));
    }
    let before = match (options.before, options.older_than) {
        (Some(before), _) => before,
        (None, age) => first_younger(&dir, age.map_or(Duration::MAX, |age| age.0))?,
    };
    let copies = options.replicas.iter().map(|named| place::open_copy(named)).collect::<Result<Vec<_>, _>>()?;
    let (trail, publisher) = Trail::open_signed(global)?;
    let pruned = limit(&publisher, &copies).and_then(|limit| publisher.prune(before, limit, PATIENCE).map_err(failed));
    drop(publisher);
    let closed = trail.close(out);
    tell(&pruned?, out);
    closed.map(drop)
}

fn failed(error: PruneError) -> Failure {
    match error {
        PruneError::Refused(_) => Failure::integrity("audit", error.to_string()),
        error => Failure::new("audit", error.to_string()),
    }
}

/// Entries that every copy has.
fn limit(publisher: &Publisher, copies: &[place::Remote]) -> Result<u64, Failure> {
    let mut limit = u64::MAX;
    if !copies.is_empty() {
        // Returns once everything that was signed is read, so that no copy looks as if it were ahead.
        publisher.prune(0, 0, PATIENCE).map_err(failed)?;
    }
    for copy in copies {
        let shown = printable(&copy.shown);
        let note = copy.source.get("checkpoint").map_err(|error| Failure::new("audit", error.to_string()))?;
        let note = note.ok_or_else(|| Failure::new("audit", format!("{shown} has no checkpoint; check the path")))?;
        let size = publisher.compare_seen(&note).map_err(|error| match error {
            AcceptError::Io(_) => Failure::new("audit", format!("{shown}: {error}")),
            error => Failure::integrity("audit", format!("{shown}: {error}")),
        })?;
        limit = limit.min(size);
    }
    Ok(limit)
}

fn tell(pruned: &Pruned, out: &Out) {
    let Pruned { minimum_index, first_seq, entries, first_segment } = *pruned;
    let ok = out.styled(Style::Green, "ok");
    match entries {
        0 => out.line(format_args!(
            "{ok} nothing to give up: records go in bundles of {BUNDLE}, and the first one kept is number {first_seq}"
        )),
        _ => out.line(format_args!(
            "{ok} {entries} records were given up; the first one published is number {first_seq}, the first segment kept \
             is {first_segment}, and every hash is still there"
        )),
    }
    out.object(&Done { pruned: entries, minimum_index, first_seq, first_segment });
}

/// The number of the first record in a log that is younger than this; above all numbers if none is. Goes by what the
/// records say, in their order: one with a clock that ran ahead keeps what is behind it.
pub(crate) fn first_younger(dir: &Path, age: Duration) -> Result<u64, Failure> {
    let now = SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = i128::try_from(now.saturating_sub(age).as_nanos()).unwrap_or(i128::MAX);
    for record in read(dir, reader::records(dir))? {
        let record = match record {
            Ok(record) => record,
            Err(error @ ReadError::Violation(_)) => {
                return Err(Failure::integrity(
                    "audit",
                    format!("nothing is pruned of a log that is damaged: {error}"),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        if Leaf::of(&record).time_ns().is_some_and(|time| time >= limit) {
            return Ok(record.seq);
        }
    }
    Ok(u64::MAX)
}
