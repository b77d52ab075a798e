//! The small files from which fuzzing starts, under `fuzz/seeds`. They are made here, so that they follow the format
//! when it grows; `VRAM_WRITE_SEEDS=1 cargo test -p vram-residency --test model_seeds` writes them anew.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "common/model_files.rs"]
mod common;

use std::fs;
use std::path::Path;

use common::{Gguf, safetensors, small_gguf, small_safetensors, string, written};
use vram_residency::model::writer::TensorSpec;
use vram_residency::model::{Dtype, Format, parse};

/// Name, content, and whether the reader accepts it.
type Seeds = Vec<(&'static str, Vec<u8>, bool)>;

fn safetensors_seeds() -> Seeds {
    let types = Dtype::all().filter(|dtype| Dtype::from_safetensors(dtype.name()).is_some());
    let every_type = types.map(|dtype| TensorSpec::new(dtype.name(), dtype, [dtype.block_elements(), 2])).collect();
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    vec![
        ("small", small_safetensors(), true),
        ("every-type", written(every_type), true),
        ("no-tensor", safetensors("{}", 0), true),
        ("only-metadata", safetensors(r#"{"__metadata__":{"format":"pt"}}"#, 0), true),
        ("empty-tensors", written(vec![TensorSpec::new("e", Dtype::F16, [0, 7])]), true),
        ("escaped", safetensors(&one.replacen('a', r"\u0061\ud83e\udd80\\", 1), 8), true),
        ("spaced", safetensors(&format!("{}  ", one.replace(',', " ,\n\t")), 8), true),
        (
            "duplicate",
            safetensors(&one.replacen('{', r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"#, 1), 8),
            false,
        ),
        ("truncated", small_safetensors()[..200].to_vec(), false),
    ]
}

fn gguf_seeds() -> Seeds {
    let types = Dtype::all().filter(|dtype| dtype.to_ggml().is_some());
    let every_type =
        types.fold(Gguf::new().aligned(8), |file, dtype| file.tensor(dtype.name(), dtype, &[dtype.block_elements()]));
    let nested = [
        &9_u32.to_le_bytes()[..],
        &2_u64.to_le_bytes(),
        &[&6_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 4]].concat(),
        &[&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &string(b"x")].concat(),
    ];
    let every_value = (0_u32..13).fold(Gguf::new(), |file, kind| match kind {
        8 => file.entry("string", kind, &string(b"text")),
        9 => file.entry("array", kind, &nested.concat()),
        0 | 1 | 7 => file.entry(&format!("one.{kind}"), kind, &[1]),
        2 | 3 => file.entry(&format!("two.{kind}"), kind, &[1; 2]),
        4..=6 => file.entry(&format!("four.{kind}"), kind, &[1; 4]),
        _ => file.entry(&format!("eight.{kind}"), kind, &[1; 8]),
    });
    let small = small_gguf().build();
    vec![
        ("small", small.clone(), true),
        ("version-2", Gguf { version: 2, ..small_gguf() }.build(), true),
        ("every-type", every_type.build(), true),
        ("every-value", every_value.tensor("t", Dtype::F32, &[1, 2, 3, 4]).build(), true),
        ("no-tensor", Gguf::new().entry("general.architecture", 8, &string(b"llama")).build(), true),
        ("no-padding-at-the-end", Gguf { cut: 12, ..Gguf::new().tensor("t", Dtype::F32, &[5]) }.build(), true),
        ("many-counts", Gguf { tensor_count: Some(1 << 60), ..small_gguf() }.build(), false),
        ("big-endian", Gguf { version: 3_u32.swap_bytes(), ..small_gguf() }.build(), false),
        ("truncated", small[..150].to_vec(), false),
    ]
}

#[test]
fn seeds_are_what_fuzzing_starts_from() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (format, seeds) in [(Format::Safetensors, safetensors_seeds()), (Format::Gguf, gguf_seeds())] {
        for (name, bytes, sound) in seeds {
            assert_eq!(parse(&bytes, Some(format)).is_ok(), sound, "{format}/{name}");
            assert!(bytes.len() < 4096, "{format}/{name} has {} bytes", bytes.len());
            let path = root.join(format.name()).join(name);
            if std::env::var_os("VRAM_WRITE_SEEDS").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let kept = fs::read(&path).unwrap_or_default();
            assert!(kept == bytes, "{} is not what this test makes", path.display());
        }
    }
}
