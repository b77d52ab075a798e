//! Where a pruned log begins: the file `pruned` beside the segments.
//!
//! It holds the text of the `pruned` record that announced it, verbatim. It is on disk before the first segment is
//! removed, and the record is signed before that: so a file that no record announces is a sign of tampering.

use std::io;
use std::path::Path;

use crate::control;
use crate::frame::{Frame, Kind};
use crate::vfs::{self, Access, Vfs};

/// The name of the file.
pub(crate) const FILE: &str = "pruned";
/// It is shorter than this.
const MOST: usize = 1024;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Floor {
    /// The first segment that is kept.
    pub(crate) segment: u64,
    /// The number of the last record before that segment.
    pub(crate) last_seq: u64,
    /// Records before that segment: the place in the published log at which it begins.
    pub(crate) index: u64,
    /// Bundles of published entries that end here or before are not kept. At least `index`.
    pub(crate) minimum: u64,
    /// Changes of key that records before `minimum` state. Their bundles are kept, wherever they lie.
    pub(crate) keys: u64,
    /// The record that announces all of this.
    pub(crate) leaf: Vec<u8>,
}

impl Floor {
    /// The text of the record, without its time and its braces. `before`: the number of the first record still published.
    pub(crate) fn text(&self, before: u64) -> String {
        let Self { segment, last_seq, index, minimum, keys, .. } = self;
        format!(
            r#""log":"pruned","before":{before},"minimum_index":{minimum},"segment":{segment},"last_seq":{last_seq},"index":{index},"keys":{keys}"#
        )
    }

    /// What a record of a log announces, if it is one of these.
    pub(crate) fn announced(kind: Kind, leaf: &[u8]) -> Option<Self> {
        if kind != Kind::Publication || control::text(leaf, "log") != Some("pruned") {
            return None;
        }
        Self::parse(leaf)
    }

    fn parse(leaf: &[u8]) -> Option<Self> {
        let number = |name| control::number(leaf, name);
        let floor = Self {
            segment: number("segment").filter(|&segment| segment > 0)?,
            last_seq: number("last_seq")?,
            index: number("index")?,
            minimum: number("minimum_index")?,
            keys: number("keys")?,
            leaf: leaf.to_vec(),
        };
        Some(floor).filter(|floor| floor.index <= floor.minimum && floor.index <= floor.last_seq)
    }

    /// What the directory says; `None` where nothing was pruned, or the file is not what it should be.
    pub(crate) fn read(vfs: &dyn Vfs, dir: &Path) -> io::Result<Option<Self>> {
        let file = match vfs.open(&dir.join(FILE), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || vfs::is_not_a_file(&error) => return Ok(None),
            other => other?,
        };
        let mut bytes = [0u8; MOST];
        let n = vfs::read_full(&*file, &mut bytes, 0)?;
        Ok(Self::parse(bytes.get(..n).unwrap_or_default()))
    }

    /// Whether this is the record that announces it.
    pub(crate) fn is_announced_by(&self, frame: &Frame<'_>) -> bool {
        frame.kind == Kind::Publication && frame.leaf == self.leaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_comes_back_and_half_of_it_does_not() {
        let max = u64::MAX;
        let floor = Floor { segment: max, last_seq: max, index: max, minimum: max, keys: max, leaf: Vec::new() };
        let leaf = format!(r#"{{{},"time_unix_ms":{}}}"#, floor.text(max), i64::MIN);
        assert!(leaf.len() < control::ROOM);
        let back = Floor::announced(Kind::Publication, leaf.as_bytes()).unwrap();
        assert_eq!(back, Floor { leaf: leaf.clone().into_bytes(), ..floor });
        assert_eq!(Floor::announced(Kind::Event, leaf.as_bytes()), None);
        assert_eq!(Floor::announced(Kind::Publication, &leaf.as_bytes()[..60]), None);
    }
}
