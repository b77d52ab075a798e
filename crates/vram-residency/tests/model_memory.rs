//! What reading a header may take: 64 MiB, or four times the file if that is more. Measured for the headers that cost
//! most per byte of file, as the peak of the resident memory of a process that does nothing else.
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

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Gguf, safetensors};
use vram_residency::model::{Dtype, ModelFile, limits};

/// Names the file that `child` reads.
const FILE: &str = "MODEL_MEMORY_FILE";

/// A field of /proc/self/status, in bytes.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let number = line.trim_start_matches(':').trim().split(' ').next().unwrap();
    number.parse::<u64>().unwrap() * 1024
}

/// Reads one header and tells what it took. Runs in a process of its own, started by the test below.
#[test]
fn child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let before = status("VmRSS");
    let outcome = ModelFile::open(Path::new(&file), None);
    let peak = status("VmHWM").saturating_sub(before);
    let verdict = match outcome {
        Ok(file) => format!("accepted {}", file.table().len()),
        Err(error) => format!("refused: {}", error.fault()),
    };
    println!("\npeak={peak}\nverdict={verdict}");
}

/// Has another process read the header, checks its peak, and returns its verdict.
fn within_bounds(what: &str, bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(FILE, file.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let (peak, verdict) = (field("peak=").parse::<u64>().unwrap(), field("verdict="));
    let bound = (64 << 20).max(4 * bytes.len() as u64);
    println!("{what}: file {} bytes, peak {peak} bytes of {bound}; {verdict}", bytes.len());
    assert!(peak <= bound, "{what}: {peak} bytes for a file of {}", bytes.len());
    verdict
}

fn header(entries: impl Iterator<Item = String>) -> String {
    let mut header = String::from("{");
    for entry in entries {
        header.push_str(&entry);
        header.push(',');
    }
    header.pop();
    header.push('}');
    header
}

#[test]
fn reading_a_header_stays_within_its_memory() {
    let tiny = |n: u32| format!(r#""{n:x}":{{"dtype":"U8","shape":[],"data_offsets":[{n},{}]}}"#, n + 1);
    let st = |what, entries: &mut dyn Iterator<Item = String>, data| {
        within_bounds(what, &safetensors(&header(entries), data))
    };

    // The smallest entries, in a file that is nothing but a header: as many as are accepted, then more.
    let verdict = st("tiny tensors", &mut (0..150_000).map(tiny), 150_000);
    assert_eq!(verdict, "accepted 150000");
    let verdict = st("more tiny tensors", &mut (0..200_000).map(tiny), 200_000);
    assert!(verdict.contains("67108864 bytes of memory"), "{verdict}");
    // The same header is accepted from a file of a model's size.
    let count = limits::MAX_TENSORS as u32;
    let long = header((0..count).map(|n| match n.checked_sub(count - 1) {
        None => tiny(n),
        Some(_) => {
            format!(r#""last":{{"dtype":"U8","shape":[40000000],"data_offsets":[{n},{}]}}"#, n + 40_000_000)
        }
    }));
    let verdict = within_bounds("most tensors", &safetensors(&long, count as usize - 1 + 40_000_000));
    assert_eq!(verdict, format!("accepted {count}"));
    let verdict = st("too many tensors", &mut (0..=count).map(tiny), 40_000_000);
    assert!(verdict.contains("limit of 262144"), "{verdict}");

    let ones = vec!["1"; limits::MAX_RANK].join(",");
    let ranked = |n: u32| format!(r#""{n:x}":{{"dtype":"U8","shape":[{ones}],"data_offsets":[{n},{}]}}"#, n + 1);
    let verdict = st("many dimensions", &mut (0..50_000).map(ranked), 50_000);
    assert_eq!(verdict, "accepted 50000");
    let wide = format!(r#""a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#, "1,".repeat(20_000_000));
    let verdict = st("a shape of 20 million dimensions", &mut std::iter::once(wide), 1);
    assert!(verdict.contains("longer than it may be"), "{verdict}");
    let name = "n".repeat(4000);
    let named = |n: u32| format!(r#""{name}{n}":{{"dtype":"U8","shape":[],"data_offsets":[{n},{}]}}"#, n + 1);
    let verdict = st("long names", &mut (0..12_000).map(named), 12_000);
    assert_eq!(verdict, "accepted 12000");
    let escaped = "\\u0041".repeat(10_000_000);
    let metadata = format!(r#""__metadata__":{{"k":"{escaped}"}}"#);
    assert_eq!(st("a long metadata value", &mut std::iter::once(metadata), 0), "accepted 0");
    let mut many = String::from(r#""__metadata__":{"#);
    (0..limits::MAX_METADATA).for_each(|n| write!(many, r#""{n:x}":"","#).unwrap());
    many.pop();
    many.push('}');
    assert_eq!(st("many metadata entries", &mut std::iter::once(many), 0), "accepted 0");

    let tensors = |count: u32| {
        let file = (0..count).fold(Gguf::new().aligned(8), |file, n| file.tensor(&format!("{n:x}"), Dtype::I8, &[1]));
        file.build()
    };
    assert_eq!(within_bounds("GGUF tensors", &tensors(200_000)), "accepted 200000");
    let verdict = within_bounds("more GGUF tensors", &tensors(count));
    assert!(verdict.contains("67108864 bytes of memory"), "{verdict}");
    let entries = (0..limits::MAX_METADATA).fold(Gguf::new(), |file, n| file.entry(&format!("{n:x}"), 0, &[0]));
    assert_eq!(within_bounds("GGUF entries", &entries.build()), "accepted 0");
    let array = [&0_u32.to_le_bytes()[..], &80_000_000_u64.to_le_bytes(), &vec![0; 80_000_000]].concat();
    let file = Gguf::new().entry("k", 9, &array).build();
    assert_eq!(within_bounds("a long GGUF array", &file), "accepted 0");
}
