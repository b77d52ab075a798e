//! A bundle against its tile: what was done to it?

use std::collections::HashSet;

use super::{Violation, What};
use crate::tlog::entry::{self, Entry};
use crate::tlog::source::{Source, SourceError};
use crate::tlog::tree::{HASH_BYTES, Hash, Tile, leaf_hash};

/// Entries that are looked at in a bundle, so that one that was put in is seen.
const MAX_ENTRIES: usize = 512;

/// Reads a bundle; where a partial one is gone because the full one replaced it, its part of the full one.
pub(super) fn read(source: &dyn Source, tile: Tile) -> Result<Option<Vec<u8>>, SourceError> {
    if let Some(bytes) = source.get(&tile.path())? {
        return Ok(Some(bytes));
    }
    let full = if tile.is_full() { None } else { source.get(&tile.full().path())? };
    Ok(full.and_then(|bytes| {
        let entries = entry::split(&bytes).ok()?;
        let mut part = Vec::new();
        entries.iter().take(usize::from(tile.width())).for_each(|bytes| entry::push(&mut part, bytes));
        Some(part)
    }))
}

/// The hashes in the bytes of a tile.
pub(super) fn hashes(tile: &[u8]) -> Vec<Hash> {
    tile.chunks_exact(HASH_BYTES).filter_map(|hash| Some(Hash(hash.try_into().ok()?))).collect()
}

/// The leaf hashes of a bundle; an error for bytes that are no bundle.
pub(super) fn leaf_hashes(bundle: &[u8]) -> Result<Vec<Hash>, Violation> {
    entry::split_up_to(bundle, MAX_ENTRIES)
        .map(|entries| entries.iter().map(|entry| leaf_hash(entry)).collect())
        .map_err(|error| Violation {
            what: What::BundleDamaged,
            record: None,
            index: None,
            file: String::new(),
            detail: error.to_string(),
        })
}

/// Says what was done to the entries `found`, where the tree has `expected`. Names the first record concerned.
pub(super) fn difference(tile: Tile, bundle: &[u8], found: &[Hash], expected: &[Hash]) -> Violation {
    let entries = entry::split_up_to(bundle, MAX_ENTRIES).unwrap_or_default();
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let at = at.unwrap_or(found.len().min(expected.len()));
    let (rest_found, rest) = (found.get(at..).unwrap_or_default(), expected.get(at..).unwrap_or_default());
    let known: HashSet<&Hash> = expected.iter().collect();
    let common = found.iter().filter(|hash| known.contains(hash)).count();
    let sorted = |hashes: &[Hash]| {
        let mut hashes = hashes.to_vec();
        hashes.sort_unstable();
        hashes
    };
    let first = rest_found.first();
    let what = if common == 0 && found.len() > 1 {
        What::BundleForeign
    } else if found.len() == expected.len() && sorted(found) == sorted(expected) {
        What::EntriesReordered
    } else if found.len() > expected.len() {
        match first.is_some_and(|hash| known.contains(hash)) || at == expected.len() && doubled(found, expected) {
            true => What::EntryDuplicated,
            false => What::EntryInserted,
        }
    } else if found.len() < expected.len() {
        What::EntryDeleted
    } else if rest_found.get(1..) == rest.get(1..) || common.saturating_mul(2) > found.len() {
        What::EntryEdited
    } else {
        What::BundleForeign
    };
    let number = |at: usize| entries.get(at).and_then(|bytes| Entry::parse(bytes).ok()).map(|entry| entry.seq);
    let before = at.checked_sub(1).and_then(number);
    let record = match what {
        What::EntryDeleted => {
            before.map_or_else(|| number(at).and_then(|seq| seq.checked_sub(1)), |seq| seq.checked_add(1))
        }
        What::EntryEdited => before.and_then(|seq| seq.checked_add(1)).or_else(|| number(at)),
        _ => number(at),
    };
    let index = tile.start().saturating_add(at as u64);
    Violation { what, record, index: Some(index), file: tile.path(), detail: String::new() }
}

/// Whether what was appended is a copy of what is there.
fn doubled(found: &[Hash], expected: &[Hash]) -> bool {
    found.get(expected.len()..).unwrap_or_default().iter().all(|hash| expected.contains(hash))
}
