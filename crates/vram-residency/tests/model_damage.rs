//! Damaged headers: every truncation and every flipped bit of a sound file.
//!
//! Neither format protects its header by a checksum, so some damage reads like another sound file. The property: a
//! damaged file is refused, or it is accepted with as many tensors, each starting at the very byte where it did and
//! ending there too. (In GGUF it may end elsewhere within its own padding, because the header alone does not say where
//! padding begins.) So accepted damage can rename or retype a tensor, reshape it within its bytes, or change metadata
//! that is not kept; it never moves, adds or drops a tensor or makes two share a byte. And it never goes unnoticed: the
//! digest of the header is another one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "common/model_files.rs"]
mod common;

use common::{assert_sound, small_gguf, small_safetensors};
use vram_residency::model::{Format, Parsed, parse};

/// What `small_gguf` aligns to.
const ALIGNMENT: u64 = 64;

/// What happened to a set of damaged files.
#[derive(Debug, Default)]
struct Tally {
    refused: u32,
    /// Accepted with the same table: the damage was in metadata that is not kept.
    same: u32,
    /// Accepted with another name, element type or shape for the same bytes.
    renamed: u32,
    /// Accepted with a tensor that takes more or less of its own padding.
    resized: u32,
}

impl Tally {
    fn add(&mut self, original: &Parsed, file: &[u8], format: Option<Format>) {
        let Ok(parsed) = parse(&file, format) else {
            self.refused += 1;
            return;
        };
        assert_sound(&parsed, file.len() as u64);
        assert_eq!(parsed.format, original.format);
        assert_eq!(parsed.data_start, original.data_start);
        let ranges = |parsed: &Parsed, slot: u64| -> Vec<(u64, u64)> {
            let tensors = parsed.table.tensors().iter();
            tensors.map(|tensor| (tensor.start, tensor.end.next_multiple_of(slot))).collect()
        };
        if ranges(&parsed, 1) != ranges(original, 1) {
            assert_eq!(original.format, Format::Gguf, "a tensor was moved or resized");
            assert_eq!(ranges(&parsed, ALIGNMENT), ranges(original, ALIGNMENT), "a tensor left its padding");
            self.resized += 1;
            return;
        }
        let same = parsed.table == original.table;
        assert_eq!(same, parsed.table.digest() == original.table.digest());
        if same { self.same += 1 } else { self.renamed += 1 }
    }

    fn total(&self) -> u32 {
        self.refused + self.same + self.renamed + self.resized
    }
}

fn flip_every_bit(file: &[u8], format: Option<Format>) -> Tally {
    let original = parse(&file, format).unwrap();
    let mut tally = Tally::default();
    let mut damaged = file.to_vec();
    for bit in 0..original.data_start as usize * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        tally.add(&original, &damaged, format);
        if let Ok(parsed) = parse(&damaged, format) {
            assert_ne!(parsed.header_digest, original.header_digest, "bit {bit}");
        }
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(tally.total() as u64, original.data_start * 8);
    println!("{} header bits: {tally:?}", original.data_start * 8);
    tally
}

fn truncate_everywhere(file: &[u8], format: Option<Format>) -> Tally {
    let original = parse(&file, format).unwrap();
    let mut tally = Tally::default();
    for len in 0..file.len() {
        tally.add(&original, &file[..len], format);
    }
    println!("{} truncations: {tally:?}", file.len());
    assert_eq!((tally.renamed, tally.resized), (0, 0));
    tally
}

#[test]
fn every_header_bit_of_a_safetensors_file() {
    let file = small_safetensors();
    for format in [None, Some(Format::Safetensors)] {
        let tally = flip_every_bit(&file, format);
        assert!(tally.refused > tally.same + tally.renamed, "{tally:?}");
    }
}

#[test]
fn every_header_bit_of_a_gguf_file() {
    let file = small_gguf().build();
    for format in [None, Some(Format::Gguf)] {
        let tally = flip_every_bit(&file, format);
        assert!(tally.refused > tally.renamed, "{tally:?}");
    }
}

#[test]
fn every_truncation_of_a_safetensors_file() {
    let file = small_safetensors();
    for format in [None, Some(Format::Safetensors)] {
        let tally = truncate_everywhere(&file, format);
        assert_eq!(tally.same, 0, "{tally:?}");
    }
}

#[test]
fn every_truncation_of_a_gguf_file() {
    let sound = small_gguf();
    let file = sound.build();
    // Only the padding after the last tensor, F32 [5], may be missing.
    let padding = ALIGNMENT as u32 - 20;
    for format in [None, Some(Format::Gguf)] {
        assert_eq!(truncate_everywhere(&file, format).same, padding);
    }
}

#[test]
fn every_byte_of_a_header_set_to_every_value() {
    for (file, format) in [(small_safetensors(), Format::Safetensors), (small_gguf().build(), Format::Gguf)] {
        let original = parse(&file, Some(format)).unwrap();
        let mut tally = Tally::default();
        let mut damaged = file.clone();
        for at in 0..original.data_start as usize {
            for value in 0..=u8::MAX {
                damaged[at] = value;
                tally.add(&original, &damaged, Some(format));
            }
            damaged[at] = file[at];
        }
        println!("{format}, {} bytes replaced: {tally:?}", tally.total());
    }
}
