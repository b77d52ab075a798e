//! Entries: what of a record is hashed, and the bundles in which they are published.

use super::tree::{Hash, TILE_WIDTH, leaf_hash};
use crate::frame::{Kind, MAX_LEAF};
use crate::outcome::Severity;
use crate::reader::Record;

/// Bytes of an entry before the leaf.
pub const ENTRY_HEADER: usize = 10;
/// The largest entry, in bytes: what the length of 16 bits in a bundle can express.
pub const MAX_ENTRY: usize = ENTRY_HEADER + MAX_LEAF;

/// A record as it is published and hashed: number (little-endian), kind, severity, leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The record's number.
    pub seq: u64,
    /// What it is.
    pub kind: Kind,
    /// How much depended on it.
    pub severity: Severity,
    /// Its bytes, verbatim.
    pub leaf: &'a [u8],
}

/// Why bytes are no entry or no bundle of entries.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes of an entry are not what a record gives.
    #[error("these {bytes} bytes are no entry of an audit log: number, kind and severity do not fit")]
    Entry {
        /// How many bytes there are.
        bytes: usize,
    },
    /// A bundle is cut short or goes on too long.
    #[error("the bundle holds {found} whole entries and then {rest} more bytes: it is damaged, take another copy")]
    Bundle {
        /// Whole entries found.
        found: usize,
        /// Bytes that belong to none of them.
        rest: usize,
    },
}

impl<'a> Entry<'a> {
    /// The entry of a record.
    #[must_use]
    pub fn of(record: &'a Record) -> Self {
        Self { seq: record.seq, kind: record.kind, severity: record.severity, leaf: &record.leaf }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`EntryError::Entry`] for anything that no record gives.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EntryError> {
        let parsed = || {
            let (header, leaf) = bytes.split_at_checked(ENTRY_HEADER)?;
            let (seq, rest) = header.split_first_chunk::<8>()?;
            let &[kind, severity] = rest else { return None };
            let severity = match severity {
                0 => Severity::Routine,
                1 => Severity::Critical,
                _ => return None,
            };
            let kind = Kind::from_byte(kind).filter(|&kind| kind != Kind::Link)?;
            let seq = u64::from_le_bytes(*seq);
            (seq > 0 && leaf.len() <= MAX_LEAF).then_some(Self { seq, kind, severity, leaf })
        };
        parsed().ok_or(EntryError::Entry { bytes: bytes.len() })
    }

    /// The bytes that are hashed and published.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENTRY_HEADER.saturating_add(self.leaf.len()));
        self.write(&mut bytes);
        bytes
    }

    /// Appends the bytes that are hashed and published.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, self.severity as u8]);
        out.extend_from_slice(self.leaf);
    }

    /// Its hash as a leaf of the tree.
    #[must_use]
    pub fn hash(&self) -> Hash {
        leaf_hash(&self.to_bytes())
    }
}

/// Appends an entry to a bundle: its length in two bytes, big-endian, then its bytes. At most [`MAX_ENTRY`] of them.
pub fn push(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
    bundle.extend_from_slice(&[(length >> 8) as u8, (length & 0xff) as u8]);
    bundle.extend_from_slice(entry.get(..usize::from(length)).unwrap_or(entry));
}

/// The raw entries of a bundle, at most 256. Whether each is an entry, [`Entry::parse`] tells.
///
/// # Errors
/// [`EntryError::Bundle`] if the lengths do not add up.
pub fn split(bundle: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    split_up_to(bundle, TILE_WIDTH as usize)
}

/// As [`split`], with another number of entries at most: to tell what was put in.
pub(crate) fn split_up_to(bundle: &[u8], limit: usize) -> Result<Vec<&[u8]>, EntryError> {
    let mut entries = Vec::with_capacity(TILE_WIDTH as usize);
    let mut rest = bundle;
    while !rest.is_empty() {
        let next = rest
            .split_first_chunk::<2>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(length[0]) << 8 | usize::from(length[1])));
        match next {
            Some((entry, behind)) if entries.len() < limit => {
                entries.push(entry);
                rest = behind;
            }
            _ => return Err(EntryError::Bundle { found: entries.len(), rest: rest.len() }),
        }
    }
    Ok(entries)
}
