//! Properties of the readers over generated files.
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

use std::collections::BTreeMap;

use common::{Gguf, accepted, string, written};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use vram_residency::model::writer::TensorSpec;
use vram_residency::model::{Dtype, Format, TensorTable, parse};

/// Names with everything that is allowed: dots, quotes, spaces, letters beyond ASCII.
const NAME: &str = "[a-zA-Z0-9_. \"\\\\é漢🦀-]{1,12}";

/// A type, and dimensions that fill its blocks.
fn tensor(types: Vec<Dtype>, ranks: std::ops::Range<usize>, least: u64) -> impl Strategy<Value = (Dtype, Vec<u64>)> {
    (select(types), vec(least..5, ranks)).prop_map(|(dtype, mut shape)| {
        match shape.first_mut() {
            Some(first) => *first *= dtype.block_elements(),
            None if dtype.block_elements() > 1 => shape.push(dtype.block_elements()),
            None => {}
        }
        (dtype, shape)
    })
}

fn safetensors_types() -> Vec<Dtype> {
    Dtype::all().filter(|dtype| Dtype::from_safetensors(dtype.name()).is_some()).collect()
}

fn gguf_types() -> Vec<Dtype> {
    Dtype::all().filter(|dtype| dtype.to_ggml().is_some()).collect()
}

/// What `locate` must say, found by looking at every tensor.
fn locate_naively(table: &TensorTable, offset: u64) -> Option<&str> {
    let holds = |start: u64, end: u64| start <= offset && offset < end;
    table.tensors().iter().find(|tensor| holds(tensor.start, tensor.end)).map(|tensor| &*tensor.name)
}

fn locate_agrees(table: &TensorTable, len: u64) -> Result<(), TestCaseError> {
    for offset in (0..len + 2).chain([u64::MAX - 1, u64::MAX]) {
        prop_assert_eq!(table.locate(offset).map(|tensor| &*tensor.name), locate_naively(table, offset));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_written_safetensors_file_reads_back(
        tensors in btree_map(NAME, tensor(safetensors_types(), 0..4, 0), 0..12)
    ) {
        let specs = tensors.iter().map(|(name, (dtype, shape))| TensorSpec::new(name.as_str(), *dtype, shape.clone()));
        let specs: Vec<_> = specs.collect();
        let file = written(specs.clone());
        prop_assert_eq!(&file, &written(specs), "not deterministic");
        let parsed = accepted(&file, Format::Safetensors);
        prop_assert_eq!(parsed.data_start % 8, 0);
        prop_assert_eq!(parsed.header_digest, *blake3::hash(&file[..parsed.data_start as usize]).as_bytes());
        prop_assert_eq!(parsed.table.len(), tensors.len());
        for (name, (dtype, shape)) in &tensors {
            let read = parsed.table.get(name).unwrap();
            prop_assert_eq!((read.dtype, &*read.shape), (*dtype, shape.as_slice()));
        }
        prop_assert!(parsed.table.get("no such tensor!").is_none());
        locate_agrees(&parsed.table, file.len() as u64)?;

        // The format's own library reads the same from the same bytes.
        let library = safetensors::SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(library.len(), tensors.len());
        for (name, view) in library.tensors() {
            let ours = parsed.table.get(&name).unwrap();
            prop_assert_eq!(view.data(), &file[ours.start as usize..ours.end as usize]);
            prop_assert_eq!(view.dtype().to_string(), ours.dtype.name());
            prop_assert!(view.shape().iter().map(|size| *size as u64).eq(ours.shape.iter().copied()));
        }
    }

    #[test]
    fn a_gguf_file_reads_back(
        version in 2_u32..=3,
        alignment in select(vec![None, Some(8), Some(16), Some(32), Some(256)]),
        entries in btree_map("[a-z_.]{1,10}", vec(any::<u8>(), 0..40), 0..6),
        tensors in btree_map(NAME, tensor(gguf_types(), 1..5, 1), 0..8),
    ) {
        let mut file = Gguf { version, ..Gguf::new() };
        for (key, value) in &entries {
            file = file.entry(&format!("x.{key}"), 8, &string(value));
        }
        if let Some(alignment) = alignment {
            file = file.aligned(alignment);
        }
        for (name, (dtype, shape)) in &tensors {
            file = file.tensor(name, *dtype, shape);
        }
        let bytes = file.build();
        let parsed = accepted(&bytes, Format::Gguf);
        prop_assert_eq!(parsed.header_digest, *blake3::hash(&bytes[..parsed.data_start as usize]).as_bytes());
        prop_assert_eq!(parsed.table.len(), tensors.len());
        for (name, (dtype, shape)) in &tensors {
            let read = parsed.table.get(name).unwrap();
            prop_assert_eq!((read.dtype, &*read.shape), (*dtype, shape.as_slice()));
            prop_assert_eq!((read.start - parsed.data_start) % file.alignment, 0);
        }
        locate_agrees(&parsed.table, bytes.len() as u64)?;
    }

    #[test]
    fn whatever_is_accepted_the_library_accepts_too(
        at in 0_usize..200, bytes in vec(any::<u8>(), 1..4), insert in any::<bool>(),
    ) {
        // Edits of a sound header, with the length put right, so that many pass the first checks.
        let sound = common::small_safetensors();
        let header_len = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
        let mut header = sound[8..8 + header_len].to_vec();
        let at = at.min(header.len());
        let end = if insert { at } else { (at + bytes.len()).min(header.len()) };
        header.splice(at..end, bytes);
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(&header);
        file.extend(&sound[8 + header_len..]);
        if let Ok(parsed) = parse(&file, Some(Format::Safetensors)) {
            common::assert_sound(&parsed, file.len() as u64);
            let library = safetensors::SafeTensors::deserialize(&file).unwrap();
            let theirs: BTreeMap<String, usize> =
                library.tensors().into_iter().map(|(name, view)| (name, view.data().len())).collect();
            let ours: BTreeMap<String, usize> =
                parsed.table.tensors().iter().map(|tensor| (tensor.name.to_string(), tensor.bytes() as usize)).collect();
            prop_assert_eq!(theirs, ours);
            let by_serde: safetensors::tensor::Metadata = serde_json::from_slice(&header).unwrap();
            prop_assert_eq!(by_serde.tensors().len(), parsed.table.len());
        }
    }

    #[test]
    fn noise_never_panics(mut bytes in vec(any::<u8>(), 0..600), prefix in 0_u8..4) {
        match prefix {
            0 => {}
            1 => bytes.splice(..0, *b"GGUF\x03\0\0\0").for_each(drop),
            2 => bytes.splice(..0, *b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0").for_each(drop),
            _ => {
                let len = (bytes.len() as u64 + 1).to_le_bytes();
                bytes.splice(..0, [&len[..], b"{"].concat()).for_each(drop);
            }
        }
        for format in [None, Some(Format::Safetensors), Some(Format::Gguf), Some(Format::Raw)] {
            if let Ok(parsed) = parse(&bytes, format) {
                common::assert_sound(&parsed, bytes.len() as u64);
            }
        }
    }
}

/// The canonical encoding, written out by hand as the documentation of `digest` states it.
#[test]
fn table_digest_is_what_the_documentation_says() {
    let file = written(vec![TensorSpec::new("a", Dtype::U8, [3]), TensorSpec::new("bé", Dtype::BF16, [2, 4])]);
    let parsed = accepted(&file, Format::Safetensors);
    let start = parsed.data_start;
    let mut bytes = Vec::new();
    bytes.extend(30_u32.to_le_bytes());
    bytes.extend(b"vram-residency/tensor-table/v1");
    bytes.extend(2_u64.to_le_bytes());
    for (name, dtype, shape, first, last) in
        [("bé", "BF16", &[2_u64, 4][..], start, start + 16), ("a", "U8", &[3], start + 16, start + 19)]
    {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((dtype.len() as u32).to_le_bytes());
        bytes.extend(dtype.as_bytes());
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
    }
    assert_eq!(parsed.table.digest(), *blake3::hash(&bytes).as_bytes());

    let mut empty = 30_u32.to_le_bytes().to_vec();
    empty.extend(b"vram-residency/tensor-table/v1");
    empty.extend(0_u64.to_le_bytes());
    assert_eq!(TensorTable::empty().digest(), *blake3::hash(&empty).as_bytes());
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    use vram_residency::model::writer::Layout;

    let refused = |spec: TensorSpec| Layout::new(vec![spec]).unwrap_err();
    refused(TensorSpec::new("", Dtype::U8, [1]));
    refused(TensorSpec::new("a\nb", Dtype::U8, [1]));
    refused(TensorSpec::new("__metadata__", Dtype::U8, [1]));
    refused(TensorSpec::new("n".repeat(4097), Dtype::U8, [1]));
    refused(TensorSpec::new("a", Dtype::Q4_0, [32]));
    refused(TensorSpec::new("a", Dtype::F4, [3]));
    refused(TensorSpec::new("a", Dtype::U8, [1; 33]));
    refused(TensorSpec::new("a", Dtype::U8, [1 << 63, 2]));
    refused(TensorSpec::new("a", Dtype::F64, [1 << 62]));
    refused(TensorSpec::new("a", Dtype::U8, [u64::MAX]));
    let twice = || TensorSpec::new("a", Dtype::U8, [1]);
    Layout::new(vec![twice(), twice()]).unwrap_err();
    Layout::with_metadata(vec![twice()], &[("k", "1"), ("k", "2")]).unwrap_err();
}

#[test]
fn the_writer_streams_in_pieces_in_the_order_of_the_file() {
    use vram_residency::model::writer::Layout;

    let layout = Layout::new(vec![
        TensorSpec::new("small", Dtype::U8, [7]),
        TensorSpec::new("large", Dtype::F32, [(5 << 20) / 8, 1]),
    ])
    .unwrap();
    let mut pieces = Vec::new();
    let mut file = Vec::new();
    layout
        .write(&mut file, |tensor, offset, piece| {
            assert!(piece.iter().all(|byte| *byte == 0));
            pieces.push((tensor.name.to_string(), offset, piece.len()));
        })
        .unwrap();
    let mib = 1 << 20;
    let large = |offset: usize, len| ("large".to_owned(), offset as u64, len);
    assert_eq!(pieces, [large(0, mib), large(mib, mib), large(2 * mib, mib / 2), ("small".to_owned(), 0, 7)]);
    assert_eq!(accepted(&file, Format::Safetensors).table, *layout.table());
}
