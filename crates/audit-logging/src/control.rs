//! The records that the log writes itself: small JSON texts in a buffer on the stack.

use std::fmt::{self, Write as _};

use crate::finding::Violation;
use crate::frame::Kind;
use crate::outcome::Fault;

/// Bytes that such a text may take. The longest has about 300.
pub(crate) const ROOM: usize = 480;

/// A short text that allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    bytes: [u8; ROOM],
    len: usize,
}

impl Leaf {
    fn of(text: fmt::Arguments<'_>) -> Self {
        let mut leaf = Self { bytes: [0; ROOM], len: 0 };
        // The texts below are shorter than the buffer by construction (a test checks the longest).
        let _ = leaf.write_fmt(text);
        leaf
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Write for Leaf {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.saturating_add(text.len());
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Why a segment follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The one before is full.
    Full,
    /// The one before can no longer be trusted with writes; what lies there behind `end` is void.
    Fault,
    /// The one before is not as it was written; nothing of it is cut.
    Finding,
}

/// What a link frame says of the segment before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) previous: u64,
    pub(crate) end: u64,
    pub(crate) last_seq: u64,
    /// Records in the log up to there.
    pub(crate) records: u64,
    pub(crate) cause: Cause,
}

impl Link {
    pub(crate) fn leaf(&self) -> Leaf {
        let cause = match self.cause {
            Cause::Full => "full",
            Cause::Fault => "fault",
            Cause::Finding => "finding",
        };
        let Link { previous, end, last_seq, records, .. } = self;
        Leaf::of(format_args!(
            r#"{{"log":"link","previous":{previous},"end":{end},"last_seq":{last_seq},"records":{records},"cause":"{cause}"}}"#
        ))
    }

    pub(crate) fn parse(leaf: &[u8]) -> Option<Self> {
        let cause = match text(leaf, "cause")? {
            "full" => Cause::Full,
            "fault" => Cause::Fault,
            "finding" => Cause::Finding,
            _ => return None,
        };
        Some(Self {
            previous: number(leaf, "previous")?,
            end: number(leaf, "end")?,
            last_seq: number(leaf, "last_seq")?,
            records: number(leaf, "records")?,
            cause,
        })
    }
}

/// Numbers that carry no record, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Absent {
    /// The number after them.
    pub(crate) fn next(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    pub(crate) fn parse(leaf: &[u8]) -> Option<Self> {
        Some(Self { first: number(leaf, "first")?, count: number(leaf, "count")? })
    }
}

pub(crate) fn gap(absent: Absent, reason: &str, ms: i64) -> Leaf {
    let Absent { first, count } = absent;
    Leaf::of(format_args!(r#"{{"log":"gap","first":{first},"count":{count},"reason":"{reason}","time_unix_ms":{ms}}}"#))
}

pub(crate) fn open(log_id: [u8; 16], records: u64, ms: i64) -> Leaf {
    let id = u128::from_be_bytes(log_id);
    Leaf::of(format_args!(
        r#"{{"log":"open","version":1,"log_id":"{id:032x}","records":{records},"time_unix_ms":{ms}}}"#
    ))
}

pub(crate) fn close(records: u64, ms: i64) -> Leaf {
    Leaf::of(format_args!(r#"{{"log":"close","records":{records},"time_unix_ms":{ms}}}"#))
}

pub(crate) fn recovered(segment: u64, offset: u64, lost_bytes: u64, absent: Absent, ms: i64) -> Leaf {
    let Absent { first, count } = absent;
    Leaf::of(format_args!(
        r#"{{"log":"recovered","segment":{segment},"offset":{offset},"lost_bytes":{lost_bytes},"first":{first},"count":{count},"time_unix_ms":{ms}}}"#
    ))
}

pub(crate) fn finding(violation: &Violation, absent: Absent, ms: i64) -> Leaf {
    let Absent { first, count } = absent;
    let Violation { segment, offset, seq, what } = violation;
    let what = what.as_str();
    Leaf::of(format_args!(
        r#"{{"log":"finding","what":"{what}","segment":{segment},"offset":{offset},"seq":{seq},"first":{first},"count":{count},"time_unix_ms":{ms}}}"#
    ))
}

pub(crate) fn clock(expected_ms: i64, found_ms: i64) -> Leaf {
    Leaf::of(format_args!(r#"{{"log":"clock","expected_unix_ms":{expected_ms},"time_unix_ms":{found_ms}}}"#))
}

pub(crate) fn storage(fault: Fault, segment: u64, ms: i64) -> Leaf {
    let what = fault.operation.as_str();
    let code = fault.os_error.unwrap_or(0);
    Leaf::of(format_args!(
        r#"{{"log":"storage","what":"{what}","os_error":{code},"segment":{segment},"time_unix_ms":{ms}}}"#
    ))
}

/// What follows `"key":` in one of our own texts.
fn after<'a>(leaf: &'a [u8], key: &str) -> Option<&'a str> {
    after_within(leaf, key, ROOM)
}

fn after_within<'a>(leaf: &'a [u8], key: &str, room: usize) -> Option<&'a str> {
    let text = std::str::from_utf8(leaf.get(..leaf.len().min(room))?).ok()?;
    text.match_indices(key).find_map(|(at, _)| {
        let before = text.get(..at)?;
        let behind = text.get(at.checked_add(key.len())?..)?;
        if before.ends_with('"') { behind.strip_prefix("\":") } else { None }
    })
}

/// Whether a record states that the log changes its key.
pub(crate) fn states_key(kind: Kind, leaf: &[u8]) -> bool {
    kind == Kind::Publication && text(leaf, "log") == Some("key")
}

/// The number under a key in one of our own texts.
pub(crate) fn number(leaf: &[u8], key: &str) -> Option<u64> {
    let rest = after(leaf, key)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// The word under a key in one of our own texts.
pub(crate) fn text<'a>(leaf: &'a [u8], key: &str) -> Option<&'a str> {
    let rest = after(leaf, key)?.strip_prefix('"')?;
    rest.get(..rest.find('"')?)
}

/// As [`text`], in a text as long as two keys with the longest names make it.
pub(crate) fn long_text<'a>(leaf: &'a [u8], key: &str) -> Option<&'a str> {
    let rest = after_within(leaf, key, 2048)?.strip_prefix('"')?;
    rest.get(..rest.find('"')?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::What;
    use crate::outcome::Operation;
    use crate::segment::LINK_ROOM;

    const MAX: u64 = u64::MAX;

    #[test]
    fn the_longest_texts_fit_and_are_read_back() {
        let absent = Absent { first: MAX, count: MAX };
        let violation = Violation { segment: MAX, offset: MAX, seq: MAX, what: What::SequenceBroken };
        let fault =
            Fault { operation: Operation::Vanished, kind: std::io::ErrorKind::NotFound, os_error: Some(i32::MIN) };
        let leaves = [
            Link { previous: MAX, end: MAX, last_seq: MAX, records: MAX, cause: Cause::Finding }.leaf(),
            gap(absent, Operation::Vanished.as_str(), i64::MIN),
            open([0xff; 16], MAX, i64::MIN),
            close(MAX, i64::MIN),
            recovered(MAX, MAX, MAX, absent, i64::MIN),
            finding(&violation, absent, i64::MIN),
            clock(i64::MIN, i64::MIN),
            storage(fault, MAX, i64::MIN),
        ];
        for leaf in leaves {
            let text = std::str::from_utf8(leaf.bytes()).unwrap();
            assert!(text.starts_with("{\"log\":\"") && text.ends_with('}'), "{text}");
            assert!(crate::frame::padded(leaf.bytes().len()) <= LINK_ROOM);
        }
    }

    #[test]
    fn a_link_comes_back_and_only_a_whole_one() {
        let link = Link { previous: 7, end: 4096, last_seq: 99, records: 98, cause: Cause::Fault };
        let leaf = link.leaf();
        assert_eq!(Link::parse(leaf.bytes()), Some(link));
        for cut in 0..leaf.bytes().len() - 2 {
            let parsed = Link::parse(&leaf.bytes()[..cut]);
            assert_eq!(parsed, None, "cut at {cut}");
        }
        assert_eq!(number(br#"{"xfirst":1,"first":2}"#, "first"), Some(2));
        assert_eq!(number(br#"{"first":-2}"#, "first"), None);
        assert_eq!(number(br#"{"first":99999999999999999999}"#, "first"), None);
        assert_eq!(text(br#"{"reason":"a b","x":1}"#, "reason"), Some("a b"));
    }
}
