//! Which tiles a tree has, and what their files are called.

use std::fmt;

use super::tree::MAX_SIZE;

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// The highest level a tile of a tree below [`MAX_SIZE`] can have.
const MAX_LEVEL: u8 = 4;

/// By how many bits the number of an entry is shifted to give the number of a hash at a level.
pub(crate) fn shift(level: u8) -> u32 {
    u32::from(level).saturating_mul(8)
}

/// A file of the published tree: a tile of hashes, or a bundle of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    level: Option<u8>,
    index: u64,
    width: u16,
}

impl Tile {
    /// A tile of hashes. `None` for what no tree below [`MAX_SIZE`] has.
    #[must_use]
    pub fn hashes(level: u8, index: u64, width: u16) -> Option<Self> {
        (level <= MAX_LEVEL).then_some(Self { level: Some(level), index, width })?.checked()
    }

    /// A bundle of entries. `None` for what no tree below [`MAX_SIZE`] has.
    #[must_use]
    pub fn entries(index: u64, width: u16) -> Option<Self> {
        Self { level: None, index, width }.checked()
    }

    fn checked(self) -> Option<Self> {
        let width = u64::from(self.width);
        let fits = (1..=TILE_WIDTH).contains(&width) && self.index < MAX_SIZE && self.end() <= MAX_SIZE;
        fits.then_some(self)
    }

    /// The level of a tile of hashes; `None` for a bundle of entries.
    #[must_use]
    pub fn level(&self) -> Option<u8> {
        self.level
    }

    /// Whether it is a bundle of entries.
    #[must_use]
    pub fn is_entries(&self) -> bool {
        self.level.is_none()
    }

    /// Its number within its level.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries it has, 1 to 256.
    #[must_use]
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it has all 256. Its bytes then never change.
    #[must_use]
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == TILE_WIDTH
    }

    /// The full tile at this place.
    #[must_use]
    pub fn full(&self) -> Self {
        Self { width: TILE_WIDTH as u16, ..*self }
    }

    /// Entries of the tree below one hash of this tile.
    fn unit(&self) -> u64 {
        1u64 << shift(self.level.unwrap_or(0).min(MAX_LEVEL))
    }

    /// The first entry of the tree that it covers.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.index.saturating_mul(TILE_WIDTH).saturating_mul(self.unit())
    }

    /// The first entry behind those that it covers: the smallest tree that has this tile.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start().saturating_add(u64::from(self.width).saturating_mul(self.unit()))
    }

    /// The path below the log's directory, as C2SP `tlog-tiles` names it: `tile/0/x001/234.p/17`.
    #[must_use]
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// The tile that a path names; `None` unless the path is written exactly as [`Tile::path`] writes it.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        // The longest path of a tree below the limit is much shorter.
        if path.len() > 64 {
            return None;
        }
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let level = match level {
            "entries" => None,
            digits => Some(digits.parse::<u8>().ok()?),
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse::<u16>().ok()?),
            None => (rest, TILE_WIDTH as u16),
        };
        let mut index = 0u64;
        for group in number.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            let value = digits.parse::<u16>().ok().filter(|_| digits.len() == 3)?;
            index = index.checked_mul(1000)?.checked_add(u64::from(value))?;
        }
        let tile = match level {
            Some(level) => Self::hashes(level, index, width)?,
            None => Self::entries(index, width)?,
        };
        (tile.path() == path).then_some(tile)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            Some(level) => write!(f, "tile/{level}/")?,
            None => f.write_str("tile/entries/")?,
        }
        // An index below 2^40 has five groups of digits at most.
        for unit in [1_000_000_000_000u64, 1_000_000_000, 1_000_000, 1000] {
            let above = self.index.checked_div(unit).unwrap_or(0);
            if above > 0 {
                write!(f, "x{:03}/", above % 1000)?;
            }
        }
        write!(f, "{:03}", self.index % 1000)?;
        if self.is_full() {
            return Ok(());
        }
        write!(f, ".p/{}", self.width)
    }
}

/// The tiles and bundles that a tree of `new` entries has and that one of `old` entries has not, bundles first, then
/// tiles from the lowest level up: the order in which they are to become durable. Sizes beyond [`MAX_SIZE`] have none.
///
/// An iterator, because a hostile size asks for more than fits the memory.
pub fn tiles_between(old: u64, new: u64) -> impl Iterator<Item = Tile> {
    let sane = old < new && new <= MAX_SIZE;
    std::iter::once(None).chain((0..=MAX_LEVEL).map(Some)).filter(move |_| sane).flat_map(move |level| {
        let shift = shift(level.unwrap_or(0));
        let (had, has) = (old >> shift, new >> shift);
        let tile = move |index, width| Tile { level, index, width };
        let full = (had >> 8..has >> 8).map(move |index| tile(index, TILE_WIDTH as u16));
        let rest = (has & 0xff) as u16;
        full.chain((had != has && rest > 0).then(|| tile(has >> 8, rest)))
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seventy_thousand_entries_have_the_tiles_that_the_specification_says() {
        let tiles: Vec<Tile> = tiles_between(0, 70_000).collect();
        assert_eq!(tiles.iter().filter(|tile| tile.is_entries()).count(), 274);
        assert_eq!(tiles.iter().filter(|tile| !tile.is_entries()).count(), 277);
        let last = |level| tiles.iter().rfind(|tile| tile.level() == Some(level)).unwrap().path();
        assert_eq!(
            (last(0), last(1), last(2)),
            ("tile/0/273.p/112".into(), "tile/1/001.p/17".into(), "tile/2/000.p/1".into())
        );
        assert_eq!(Tile::hashes(0, 1_234_067, 256).unwrap().path(), "tile/0/x001/x234/067");
        assert_eq!(tiles_between(5, 5).count() + tiles_between(6, 5).count() + tiles_between(0, u64::MAX).count(), 0);
    }

    #[test]
    fn paths_that_nobody_writes_are_refused() {
        for path in [
            "",
            "tile/",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/00/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/x000/000",
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/5/000",
            "tile/64/000",
            "tile/0/+00",
            "tile/0/000/",
            "tile/0//000",
            "/tile/0/000",
            "tile/entries/000.p/",
            "tile/data/000",
            "tile/0/000.p/1/",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
            "tile/-1/000",
            "tile/0/../000",
            "tile/4/001",
        ] {
            assert_eq!(Tile::from_path(path), None, "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_path_comes_back_and_agrees_with_the_crate(level in 0u8..=4, index in 0u64..MAX_SIZE, width in 1u16..=256) {
            let index = index >> (8 * u32::from(level) + 8);
            if let Some(tile) = Tile::hashes(level, index, width) {
                prop_assert_eq!(Tile::from_path(&tile.path()), Some(tile));
                let other = tlog_tiles::Tile::new(8, level, index, u32::from(width), false).path();
                prop_assert_eq!(tile.path(), other.replacen("tile/8/", "tile/", 1));
            }
            let bundle = Tile::entries(index, width).unwrap();
            prop_assert_eq!(Tile::from_path(&bundle.path()), Some(bundle));
        }

        #[test]
        fn new_tiles_agree_with_the_crate(old in 0u64..200_000, more in 1u64..70_000) {
            let ours: Vec<String> = tiles_between(old, old + more).filter(|tile| !tile.is_entries()).map(|tile| tile.path()).collect();
            let theirs: Vec<String> = tlog_tiles::Tile::new_tiles(8, old, old + more)
                .iter()
                .map(|tile| tile.path().replacen("tile/8/", "tile/", 1))
                .collect();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn any_text_is_a_path_or_none(text in "(tile/)?[0-9a-zx./]{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                if let Some(tile) = Tile::from_path(&text) {
                    prop_assert_eq!(tile.path(), text);
                }
            }
        }
    }
}
