//! The records of a log, oldest first, whether from its own segments or from what is published of it.

use std::collections::VecDeque;
use std::fmt;

use audit_logging::reader::{self, Records, Violation};
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::SignedNote;
use audit_logging::tlog::source::Source;
use audit_logging::tlog::tree::{TILE_WIDTH, Tile};
use audit_logging::{ReadError, Record};
use serde::Serialize;

use super::place::Found;
use super::proof::{read_bundle, unpublished, unreadable};
use super::{Named, read};
use crate::exit::Failure;

/// A record, where it stands, or what stands in the place of one.
pub(super) enum Item {
    Record {
        record: Record,
        /// Its place in the tree, where that is certain.
        index: Option<u64>,
        /// Whether it comes from the log's own segments.
        in_segment: bool,
    },
    Wrong(Wrong),
}

/// What is not as it was written.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Wrong {
    Segment(#[serde(serialize_with = "named")] Violation),
    Bundle { file: String, what: String },
}

fn named<S: serde::Serializer>(violation: &Violation, serializer: S) -> Result<S::Ok, S::Error> {
    Named::from(violation).serialize(serializer)
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(violation) => fmt::Display::fmt(violation, f),
            Self::Bundle { file, what } => {
                write!(f, "{file} is no bundle of records ({what}); compare it with a replica")
            }
        }
    }
}

/// Reads what was found: the segments where they are at hand, else what is published.
pub(super) fn records<'a>(found: &'a Found) -> Result<All<'a>, Failure> {
    match (&found.wal, &found.published) {
        (None, Some(published)) => Ok(All::Published(Published::open(&**published, &found.shown)?)),
        (Some(dir), _) => {
            let records = read(dir, reader::records(dir))?;
            let index = Some(records.pruned());
            Ok(All::Own { records: Box::new(records), index })
        }
        (None, None) => Err(unpublished(&found.shown)),
    }
}

/// See [`records`].
pub(super) enum All<'a> {
    Own { records: Box<Records>, index: Option<u64> },
    Published(Published<'a>),
}

impl All<'_> {
    /// Entries that are not there: pruned, or missing. After everything was read.
    pub(super) fn gone(&self) -> u64 {
        match self {
            Self::Own { .. } => 0,
            Self::Published(published) => published.gone,
        }
    }
}

impl Iterator for All<'_> {
    type Item = Result<Item, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let (records, index) = match self {
            Self::Own { records, index } => (records, index),
            Self::Published(published) => return published.next(),
        };
        Some(match records.next()? {
            Ok(record) => {
                let at = *index;
                *index = at.map(|at| at.saturating_add(1));
                Ok(Item::Record { record, index: at, in_segment: true })
            }
            Err(ReadError::Violation(violation)) => {
                // How many records are missing is not known, so neither is any later one's place.
                *index = None;
                Ok(Item::Wrong(Wrong::Segment(violation)))
            }
            Err(error) => Err(error.into()),
        })
    }
}

/// The entries under the checkpoint, bundle by bundle.
pub(super) struct Published<'a> {
    source: &'a dyn Source,
    size: u64,
    bundle: u64,
    gone: u64,
    ready: VecDeque<Item>,
}

impl<'a> Published<'a> {
    fn open(source: &'a dyn Source, shown: &str) -> Result<Self, Failure> {
        let note = source.get("checkpoint").map_err(unreadable)?.ok_or_else(|| unpublished(shown))?;
        let note = SignedNote::parse(&note).map_err(|error| Failure::integrity("audit", error.to_string()))?;
        let size = Checkpoint::parse(note.text()).map_err(|error| Failure::integrity("audit", error.to_string()))?.size;
        Ok(Self { source, size, bundle: 0, gone: 0, ready: VecDeque::new() })
    }

    fn load(&mut self) -> Result<(), Failure> {
        let start = self.bundle.saturating_mul(TILE_WIDTH);
        let width = self.size.saturating_sub(start).min(TILE_WIDTH);
        let bytes = read_bundle(self.source, self.size, self.bundle)?;
        let tile = u16::try_from(width).ok().and_then(|width| Tile::entries(self.bundle, width));
        let file = tile.map_or_else(String::new, |tile| tile.path());
        self.bundle = self.bundle.saturating_add(1);
        let Some(bytes) = bytes else {
            self.gone = self.gone.saturating_add(width);
            return Ok(());
        };
        let entries = match entry::split(&bytes) {
            Ok(entries) => entries,
            Err(error) => {
                self.ready.push_back(Item::Wrong(Wrong::Bundle { file, what: error.to_string() }));
                return Ok(());
            }
        };
        let numbered = (start..).zip(entries.into_iter().take(usize::try_from(width).unwrap_or(0)));
        self.ready.extend(numbered.map(|(index, bytes)| match Entry::parse(bytes) {
            Ok(Entry { seq, kind, severity, leaf }) => {
                let record = Record { seq, severity, kind, durable: 0, leaf: leaf.to_vec(), segment: 0, offset: 0 };
                Item::Record { record, index: Some(index), in_segment: false }
            }
            Err(error) => Item::Wrong(Wrong::Bundle { file: file.clone(), what: error.to_string() }),
        }));
        Ok(())
    }
}

impl Iterator for Published<'_> {
    type Item = Result<Item, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && self.bundle.saturating_mul(TILE_WIDTH) < self.size {
            if let Err(failure) = self.load() {
                self.bundle = u64::MAX;
                return Some(Err(failure));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
