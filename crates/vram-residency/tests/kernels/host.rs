//! The GPU kernels' own sources, compiled for this machine's CPU and driven as a filter.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A region of a launch: its bytes, which blocks of it are hashed, and where it begins.
pub struct Region<'a> {
    pub bytes: &'a [u8],
    /// MiB of the region in front of `bytes` that are not there and must not be read.
    pub absent: u64,
    pub first_block: u64,
    pub blocks: u64,
    /// Added to an address that is a multiple of 64; a multiple of 8.
    pub misalignment: u64,
}

/// The two ways in which the chunk kernel adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Plain = 1,
    Multiplier = 2,
}

/// The running program.
pub struct Kernels(Child);

impl Kernels {
    /// Compiles the sources with `g++` and starts the result. None, loudly, where there is no `g++`, unless
    /// `VRAM_REQUIRE_KERNELS` makes that a failure.
    pub fn start() -> Option<Self> {
        static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
        let program = PROGRAM.get_or_init(compile).as_ref()?;
        let started = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Some(Self(started.unwrap_or_else(|error| panic!("{}: {error}", program.display()))))
    }

    /// Sends a request and reads an answer of this many bytes. A kernel that broke a rule has ended the program.
    fn ask(&mut self, request: &[u8], answer: usize) -> Vec<u8> {
        let mut bytes = vec![0; answer];
        // One thread may do both: the program reads a whole request before it answers.
        let asked = self.0.stdin.as_mut().unwrap().write_all(request);
        let got = asked.and_then(|()| self.0.stdout.as_mut().unwrap().read_exact(&mut bytes));
        assert!(got.is_ok(), "the kernels gave up; their reason is on standard error");
        bytes
    }

    /// One 32-byte value per block. `key` None is the official unkeyed hash.
    pub fn blake3(&mut self, variant: Variant, key: Option<&[u8; 32]>, regions: &[Region<'_>]) -> Vec<[u8; 32]> {
        let mut request = Vec::new();
        let mode = if key.is_some() { 16 } else { 0 };
        push_words(&mut request, &[variant as u32, regions.len().try_into().unwrap(), mode]);
        match key {
            Some(key) => request.extend_from_slice(key),
            None => push_words(&mut request, &IV),
        }
        let blocks = push_regions(&mut request, regions);
        let answer = self.ask(&request, blocks * 32);
        answer.chunks_exact(32).map(|value| value.try_into().unwrap()).collect()
    }

    /// 8192 bytes per block: its 256 tiles, each four little-endian sums of 64 bits.
    pub fn nh(&mut self, key: &[u32; 1030], regions: &[Region<'_>]) -> Vec<u8> {
        let mut request = Vec::new();
        push_words(&mut request, &[3, regions.len().try_into().unwrap(), 0]);
        push_words(&mut request, key);
        let blocks = push_regions(&mut request, regions);
        self.ask(&request, blocks * 8192)
    }

    /// What the read probe leaves at its sink.
    pub fn read(&mut self, thread_blocks: u32, bytes: &[u8]) -> u32 {
        let mut request = Vec::new();
        push_words(&mut request, &[4, thread_blocks]);
        request.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        request.extend_from_slice(bytes);
        u32::from_le_bytes(self.ask(&request, 4).try_into().unwrap())
    }

    /// The product of two n × n matrices.
    pub fn matmul(&mut self, n: u32, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut request = Vec::new();
        push_words(&mut request, &[5, n]);
        a.iter().chain(b).for_each(|value| request.extend_from_slice(&value.to_le_bytes()));
        let answer = self.ask(&request, a.len() * 4);
        answer.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
    }

    /// The word that the store probe wrote.
    pub fn store(&mut self, value: u32) -> u32 {
        let mut request = Vec::new();
        push_words(&mut request, &[6, value]);
        u32::from_le_bytes(self.ask(&request, 4).try_into().unwrap())
    }

    /// Ends the program, which must be content: a sanitizer's complaint shows here at the latest.
    pub fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success(), "the kernels' program failed; its reason is on standard error");
    }
}

/// The chaining value that an unkeyed BLAKE3 starts from: SHA-256's initial value.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

fn push_words(request: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| request.extend_from_slice(&word.to_le_bytes()));
}

fn push_regions(request: &mut Vec<u8>, regions: &[Region<'_>]) -> usize {
    for region in regions {
        for number in [region.bytes.len() as u64, region.absent, region.first_block, region.blocks, region.misalignment]
        {
            request.extend_from_slice(&number.to_le_bytes());
        }
        request.extend_from_slice(region.bytes);
    }
    regions.iter().map(|region| usize::try_from(region.blocks).unwrap()).sum()
}

/// `VRAM_KERNELS_CXXFLAGS` adds flags: a sanitizer, say.
fn compile() -> Option<PathBuf> {
    if Command::new("g++").arg("--version").output().is_err() {
        assert!(std::env::var_os("VRAM_REQUIRE_KERNELS").is_none(), "there is no g++, and it is required");
        // Not captured by the test harness, unlike `eprintln!`.
        let word = "\n>>> SKIPPED: there is no g++, so the GPU kernels' sources were not run on the CPU <<<\n";
        let _ = std::io::stderr().write_all(word.as_bytes());
        return None;
    }
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../kernels/host/main.cpp");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-host-{}", std::process::id()));
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]);
    compiler.args(std::env::var("VRAM_KERNELS_CXXFLAGS").unwrap_or_default().split_whitespace());
    let said = compiler.arg("-o").arg(&program).arg(&source).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    // Renamed to one name for all runs, so that what is left behind is one file and nobody runs half of it.
    let kept = program.with_file_name(if std::env::var_os("VRAM_KERNELS_CXXFLAGS").is_some() {
        "kernels-host-with-flags"
    } else {
        "kernels-host"
    });
    std::fs::rename(&program, &kept).unwrap();
    Some(kept)
}
