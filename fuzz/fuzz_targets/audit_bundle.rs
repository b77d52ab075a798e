//! Bundles and the names of tiles may come from anywhere: they are read without a panic, and what is read is written
//! back the same.
#![no_main]

use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::tree::Tile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(entries) = entry::split(bytes) {
        let mut again = Vec::new();
        for bytes in entries {
            entry::push(&mut again, bytes);
            if let Ok(entry) = Entry::parse(bytes) {
                assert_eq!(entry.to_bytes(), bytes, "one way to write an entry");
            }
        }
        assert_eq!(again, bytes, "one way to write a bundle");
    }
    if let Ok(path) = std::str::from_utf8(bytes)
        && let Some(tile) = Tile::from_path(path)
    {
        assert_eq!(tile.path(), path, "one way to write a path");
        assert!(tile.start() < tile.end());
    }
});
