//! The frame: one record as it lies in a segment. `docs/audit-log.md` explains every byte.

use crate::outcome::Severity;

/// Bytes before the leaf.
pub(crate) const HEADER: usize = 32;
/// The largest leaf: with the 10 bytes that an entry puts before it, what a length of 16 bits can express in an entry
/// bundle of the tlog-tiles layout.
pub const MAX_LEAF: usize = 65_525;
/// Numbers at or above this are refused: no log reaches them, and below it no sum can overflow.
pub(crate) const MAX_SEQ: u64 = 1 << 62;

const AT_LEAF_CRC: usize = 4;
const AT_SEQ: usize = 8;
const AT_DURABLE: usize = 16;
const AT_KIND: usize = 24;
const AT_HEADER_CRC: usize = 28;

/// What a record is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// What the caller emitted, verbatim.
    Event = 1,
    /// Records with the numbers named in it were refused or lost.
    Gap = 2,
    /// First record after an end without a close record: how many bytes were cut off, which numbers are skipped.
    Recovered = 3,
    /// First record after opening a log in which something is not as it was written.
    Finding = 4,
    /// First record of a new log, or after a clean close.
    Open = 5,
    /// Last record before a clean end.
    Close = 6,
    /// The time of day jumped against the monotonic clock.
    Clock = 7,
    /// A segment had to be given up; nothing was lost.
    Storage = 8,
    /// Start of every segment but the first: where the log left the one before. It has no number of its own and
    /// [`records`](crate::reader::records) passes over it.
    Link = 9,
    /// What the log says of its own publication: a heartbeat, a new key, a rollback.
    Publication = 10,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Event,
            2 => Kind::Gap,
            3 => Kind::Recovered,
            4 => Kind::Finding,
            5 => Kind::Open,
            6 => Kind::Close,
            7 => Kind::Clock,
            8 => Kind::Storage,
            9 => Kind::Link,
            10 => Kind::Publication,
            _ => return None,
        })
    }

    /// One word for people and for JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Gap => "gap",
            Kind::Recovered => "recovered",
            Kind::Finding => "finding",
            Kind::Open => "open",
            Kind::Close => "close",
            Kind::Clock => "clock",
            Kind::Storage => "storage",
            Kind::Link => "link",
            Kind::Publication => "publication",
        }
    }
}

/// A frame whose checksums hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) seq: u64,
    pub(crate) durable: u64,
    pub(crate) kind: Kind,
    pub(crate) severity: Severity,
    pub(crate) leaf: &'a [u8],
    /// Bytes in the segment, padding included.
    pub(crate) size: usize,
}

/// What the bytes at some place are.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// Nothing was written here.
    End,
    Frame(Frame<'a>),
    /// The header holds, so the next frame's place is known, but the leaf does not.
    BadLeaf {
        size: usize,
    },
    Damaged,
}

/// Bytes that a frame with such a leaf takes: a multiple of 8.
pub(crate) const fn padded(leaf: usize) -> usize {
    HEADER.saturating_add(leaf).saturating_add(7) & !7
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}

/// Checksum of leaf and padding, computed before any lock is taken.
pub(crate) fn leaf_crc(leaf: &[u8]) -> u32 {
    let padding = padded(leaf.len()).saturating_sub(HEADER).saturating_sub(leaf.len());
    crc32c::crc32c_append(crc32c::crc32c(leaf), [0u8; 8].get(..padding).unwrap_or_default())
}

/// Appends a frame that still lacks what only the writer knows: see [`stamp`]. Allocates nothing within the capacity.
pub(crate) fn push(buffer: &mut Vec<u8>, kind: Kind, severity: Severity, seq: u64, leaf: &[u8], leaf_crc: u32) {
    let mut header = [0u8; HEADER];
    let size = u32::try_from(HEADER.saturating_add(leaf.len())).unwrap_or(u32::MAX);
    put(&mut header, 0, &size.to_le_bytes());
    put(&mut header, AT_LEAF_CRC, &leaf_crc.to_le_bytes());
    put(&mut header, AT_SEQ, &seq.to_le_bytes());
    put(&mut header, AT_KIND, &[kind as u8, severity as u8]);
    let end = buffer.len().saturating_add(padded(leaf.len()));
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(leaf);
    buffer.resize(end, 0);
}

/// What the writer needs to know of a frame that it was handed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handed {
    pub(crate) size: usize,
    pub(crate) seq: u64,
    pub(crate) severity: Severity,
    pub(crate) kind: Kind,
}

/// Reads the head of a frame in memory, stamped or not.
pub(crate) fn handed(bytes: &[u8]) -> Option<Handed> {
    let size = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let severity = if *bytes.get(AT_KIND.checked_add(1)?)? == 1 { Severity::Critical } else { Severity::Routine };
    Some(Handed {
        size: padded(size.checked_sub(HEADER)?),
        seq: u64_at(bytes, AT_SEQ)?,
        severity,
        kind: Kind::from_byte(*bytes.get(AT_KIND)?)?,
    })
}

/// The frames in memory, in order.
pub(crate) fn all_handed(bytes: &[u8]) -> impl Iterator<Item = Handed> + '_ {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let next = handed(bytes.get(at..)?)?;
        at = at.saturating_add(next.size);
        Some(next)
    })
}

/// Completes a frame for one segment: the bound known to be durable now, and the checksum of the header, which starts
/// from the segment's own checksum, so that a frame is valid in its own segment only.
pub(crate) fn stamp(frame: &mut [u8], durable: u64, salt: u32) {
    put(frame, AT_DURABLE, &durable.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, frame.get(..AT_HEADER_CRC).unwrap_or_default());
    put(frame, AT_HEADER_CRC, &crc.to_le_bytes());
}

/// Reads what lies at the start of `bytes`. Bounded work, no allocation, any input.
pub(crate) fn parse(bytes: &[u8], salt: u32) -> Parsed<'_> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Parsed::Damaged };
    let size = u32_at(header, 0).map_or(0, |size| size as usize);
    if size == 0 {
        return Parsed::End;
    }
    let leaf_len = size.wrapping_sub(HEADER);
    let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, kind, severity, zero @ .., _, _, _, _] =
        *header;
    let severity = match severity {
        0 => Severity::Routine,
        1 => Severity::Critical,
        _ => return Parsed::Damaged,
    };
    let Some(kind) = Kind::from_byte(kind) else { return Parsed::Damaged };
    if leaf_len > MAX_LEAF || zero != [0, 0] {
        return Parsed::Damaged;
    }
    let stored = u32_at(header, AT_HEADER_CRC);
    if stored != Some(crc32c::crc32c_append(salt, header.get(..AT_HEADER_CRC).unwrap_or_default())) {
        return Parsed::Damaged;
    }
    let (Some(seq), Some(durable), Some(crc)) =
        (u64_at(header, AT_SEQ), u64_at(header, AT_DURABLE), u32_at(header, AT_LEAF_CRC))
    else {
        return Parsed::Damaged;
    };
    if (seq == 0 && kind != Kind::Link) || seq >= MAX_SEQ {
        return Parsed::Damaged;
    }
    let total = padded(leaf_len);
    let Some(body) = bytes.get(HEADER..total) else { return Parsed::Damaged };
    if crc32c::crc32c(body) != crc {
        return Parsed::BadLeaf { size: total };
    }
    let leaf = body.get(..leaf_len).unwrap_or_default();
    Parsed::Frame(Frame { seq, durable, kind, severity, leaf, size: total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_frame_comes_back(
            leaf in proptest::collection::vec(any::<u8>(), 0..3000),
            (seq, durable, salt) in (1..MAX_SEQ, any::<u64>(), any::<u32>()),
            (kind, critical) in (1u8..=10, any::<bool>()),
            behind in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let kind = Kind::from_byte(kind).unwrap();
            let severity = if critical { Severity::Critical } else { Severity::Routine };
            let mut bytes = Vec::new();
            push(&mut bytes, kind, severity, seq, &leaf, leaf_crc(&leaf));
            stamp(&mut bytes, durable, salt);
            prop_assert_eq!(bytes.len(), padded(leaf.len()));
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(handed(&bytes).unwrap().size, bytes.len());
            bytes.extend_from_slice(&behind);
            let Parsed::Frame(found) = parse(&bytes, salt) else { panic!("not a frame") };
            prop_assert_eq!((found.seq, found.durable, found.kind, found.severity), (seq, durable, kind, severity));
            prop_assert_eq!((found.leaf, found.size), (leaf.as_slice(), padded(leaf.len())));
            prop_assert!(!matches!(parse(&bytes, salt ^ 1), Parsed::Frame(_)), "valid in its own segment only");
        }
    }
}
