//! Sources that misbehave: short reads, interruptions, errors at every call, files that end early.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "common/model_files.rs"]
mod common;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Gguf, accepted, small_gguf, small_safetensors, string};
use vram_residency::model::{Dtype, Format, ModelError, Source, parse};

/// A source over memory that does `fault` instead of the read with this number.
struct Faulty<'a, F> {
    bytes: &'a [u8],
    calls: AtomicU64,
    fault: F,
}

impl<F: Fn(u64, u64, &mut [u8]) -> Option<io::Result<usize>> + Send + Sync> Source for Faulty<'_, F> {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        (self.fault)(call, offset, buf).unwrap_or_else(|| self.bytes.read_at(offset, buf))
    }
}

fn faulty<F>(bytes: &[u8], fault: F) -> Faulty<'_, F>
where
    F: Fn(u64, u64, &mut [u8]) -> Option<io::Result<usize>> + Send + Sync,
{
    Faulty { bytes, calls: AtomicU64::new(0), fault }
}

/// A header of several buffers, whose strings fall across the edges between them in another way for each `shift`.
fn long_gguf(shift: usize) -> Vec<u8> {
    let mut words = 8_u32.to_le_bytes().to_vec();
    words.extend(20_000_u64.to_le_bytes());
    for n in 0..20_000_usize {
        words.extend(string(&b"abcdefghijk"[..n % 12]));
    }
    let mut file = Gguf::new()
        .entry("shift", 8, &string(&vec![b'x'; shift]))
        .entry("tokenizer.ggml.tokens", 9, &words)
        .entry("flags", 9, &[&7_u32.to_le_bytes()[..], &70_000_u64.to_le_bytes(), &[1; 70_000]].concat());
    for n in 0..2000 {
        file = file.tensor(&format!("blk.{n}.weight"), Dtype::F16, &[3]);
    }
    file.build()
}

fn files() -> [(Vec<u8>, Format); 3] {
    [(small_safetensors(), Format::Safetensors), (small_gguf().build(), Format::Gguf), (long_gguf(3), Format::Gguf)]
}

#[test]
fn headers_longer_than_the_buffer_read_alike_wherever_its_edges_fall() {
    for shift in 0..64 {
        let file = long_gguf(shift);
        let parsed = accepted(&file, Format::Gguf);
        assert_eq!(parsed.table.len(), 2000);
        assert!(parsed.data_start > 4 * 65_536);
        assert_eq!(parsed.header_digest, *blake3::hash(&file[..parsed.data_start as usize]).as_bytes());
    }
}

#[test]
fn short_and_interrupted_reads_change_nothing() {
    for (bytes, format) in files() {
        let sound = accepted(&bytes, format);
        let source = faulty(&bytes, |call, offset, buf| match call % 3 {
            0 => Some(Err(io::ErrorKind::Interrupted.into())),
            1 => {
                buf[0] = bytes[offset as usize];
                Some(Ok(1))
            }
            _ => {
                let half = buf.len().div_ceil(2);
                Some(bytes.as_slice().read_at(offset, &mut buf[..half]))
            }
        });
        assert_eq!(parse(&source, Some(format)).unwrap(), sound);
    }
}

#[test]
fn an_error_at_every_read_is_told_with_its_place() {
    for (bytes, format) in files() {
        let mut failed = 0;
        for at in 0.. {
            let broken = |call, _, _: &mut [u8]| (call == at).then(|| Err(io::Error::other("bad sector")));
            match parse(&faulty(&bytes, broken), Some(format)) {
                Err(ModelError::Read { cause, .. }) => assert_eq!(cause.to_string(), "bad sector"),
                Err(other) => panic!("{other}"),
                Ok(parsed) => {
                    common::assert_sound(&parsed, bytes.len() as u64);
                    break;
                }
            }
            failed += 1;
        }
        assert!(failed > 0);
    }
}

#[test]
fn a_file_that_ends_earlier_than_it_said_is_refused() {
    for (bytes, format) in files() {
        let data_start = accepted(&bytes, format).data_start;
        for end in (0..data_start).step_by(if bytes.len() > 10_000 { 997 } else { 1 }) {
            let short = |_, offset, buf: &mut [u8]| Some((&bytes[..end as usize]).read_at(offset, buf));
            match parse(&faulty(&bytes, short), Some(format)) {
                Err(ModelError::Read { offset, cause }) => {
                    assert_eq!((offset, cause.kind()), (end, io::ErrorKind::UnexpectedEof));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
