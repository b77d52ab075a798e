//! `vram audit prune`: old records go, announced and signed.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use audit_logging::publish::{AcceptError, PruneError, PruneOptions, Pruned, Publisher};
use audit_logging::tlog::source::{DirSource, Source, SourceError};
use audit_logging::tlog::tree::Tile;
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
    dry_run: bool,
    /// Entries that went.
    pruned: u64,
    /// Entries below the limit that stay published, with a change of key among them.
    kept: u64,
    /// Records below the limit that still stand in segments.
    in_segments: u64,
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
    let actor = state::subject_key(true)?.user(rustix::process::getuid().as_raw());
    let (trail, publisher) = Trail::open_signed(global)?;
    let itself = options.replicas.iter().find(|named| is_itself(named, publisher.dir()));
    let limit = match itself {
        Some(named) => Err(Failure::usage(format!("--replica {named} is the log itself and no copy; name a copy"))),
        None => limit(&publisher, &copies, before),
    };
    let pruned = limit.and_then(|limit| {
        let wish = PruneOptions {
            limit,
            keep: options.older_than.map(|age| age.0),
            actor: Some(actor.to_string()),
            dry_run: options.dry_run,
            ..PruneOptions::before(before)
        };
        publisher.prune(wish, PATIENCE).map_err(failed)
    });
    drop(publisher);
    let closed = trail.close(out);
    tell(&pruned?, options.dry_run, out);
    closed.map(drop)
}

fn failed(error: PruneError) -> Failure {
    match error {
        PruneError::Refused(_) => Failure::integrity("audit", error.to_string()),
        PruneError::Pending => {
            Failure::new("audit", "the pruning was not done after 10 minutes: the disk is too slow; run it again")
        }
        error => Failure::new("audit", error.to_string()),
    }
}

/// The entry from which on some copy does not have what would be removed here.
fn limit(publisher: &Publisher, copies: &[place::Remote], before: u64) -> Result<u64, Failure> {
    let mut limit = u64::MAX;
    if copies.is_empty() {
        return Ok(limit);
    }
    // Returns once everything that was signed is read, so that no copy looks as if it were ahead.
    let look = PruneOptions { dry_run: true, ..PruneOptions::before(before) };
    let end = publisher.prune(look, PATIENCE).map_err(failed)?.minimum_index;
    for copy in copies {
        let shown = printable(&copy.shown);
        let unread = |error: SourceError| Failure::new("audit", format!("{shown}: {error}"));
        let note = copy.source.get("checkpoint").map_err(unread)?;
        let note = note.ok_or_else(|| Failure::new("audit", format!("{shown} has no checkpoint; check the path")))?;
        let size = publisher.compare_seen(&note).map_err(|error| match error {
            AcceptError::Io(_) => Failure::new("audit", format!("{shown}: {error}")),
            error => Failure::integrity("audit", format!("{shown}: {error}")),
        })?;
        limit = limit.min(size).min(held(&*copy.source, publisher.dir(), end).map_err(unread)?);
    }
    Ok(limit)
}

/// The first entry before `end` that is published in a directory and that a copy does not have in the same way; `end` if it
/// has them all.
pub(crate) fn held(copy: &dyn Source, published: &Path, end: u64) -> Result<u64, SourceError> {
    let own = DirSource::new(published);
    for tile in (0..end / BUNDLE).filter_map(|number| Tile::entries(number, BUNDLE as u16)) {
        if let Some(bytes) = own.get(&tile.path())?
            && copy.get(&tile.path())? != Some(bytes)
        {
            return Ok(tile.start());
        }
    }
    Ok(end)
}

/// A copy that is the log itself is none.
fn is_itself(named: &str, published: &Path) -> bool {
    let path = Path::new(named.strip_prefix("file://").unwrap_or(named));
    let own = published.canonicalize().ok();
    own.is_some() && [path.to_owned(), path.join(place::PUBLISHED)].iter().any(|path| path.canonicalize().ok() == own)
}

fn tell(pruned: &Pruned, dry_run: bool, out: &Out) {
    let Pruned { minimum_index, first_seq, entries, kept, in_segments, first_segment } = *pruned;
    let ok = out.styled(Style::Green, "ok");
    match (entries, dry_run) {
        (0, _) => out.line(format_args!(
            "{ok} nothing more to give up: records go in bundles of {BUNDLE}, and all before record {first_seq} are dealt with"
        )),
        (_, true) => out.line(format_args!(
            "{entries} published records would go, all before record {first_seq}; their hashes would stay"
        )),
        (_, false) => out.line(format_args!(
            "{ok} {entries} published records are gone, all before record {first_seq}; their hashes are still there"
        )),
    }
    if kept > 0 {
        out.line(format_args!("   {kept} before it stay: a change of key stands beside them, which verifiers follow"));
    }
    if in_segments > 0 {
        out.line(format_args!(
            "   {in_segments} before it still stand in the log's own segment {first_segment}, which goes once all of its \
             records are given up"
        ));
    }
    out.object(&Done { dry_run, pruned: entries, kept, in_segments, minimum_index, first_seq, first_segment });
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
