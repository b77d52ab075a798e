//! From a source to a region in one pass: progress is reported and SHA-256 computed while the bytes stream by.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::device::Fill;
use crate::model::{ModelError, Source, read_exact_at, read_once_exact_at};

/// Called with the number of bytes that have just become resident, from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Asked now and then, from several threads, whether the loading should stop.
pub type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

/// A source that fills a region.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a dyn Source,
    /// Whether nothing of it is to be kept in main memory, as far as that can be had.
    pub(crate) once: bool,
    pub(crate) progress: Option<Progress<'a>>,
    pub(crate) sha256: Option<&'a OrderedSha256>,
    pub(crate) cancelled: Option<Cancelled<'a>>,
}

impl Fill for Loader<'_> {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let turn = self.sha256.map(|sha| Turn { sha, offset, taken: false });
        if self.cancelled.is_some_and(|cancelled| cancelled()) {
            return Err(io::Error::other("it was asked to stop"));
        }
        let read = if self.once { read_once_exact_at } else { read_exact_at };
        read(self.source, offset, buffer).map_err(cause)?;
        if let Some(turn) = turn {
            turn.take(buffer)?;
        }
        if let Some(progress) = self.progress {
            progress(buffer.len() as u64);
        }
        Ok(())
    }

    fn abandon(&self) {
        if let Some(sha256) = self.sha256 {
            sha256.abandon();
        }
    }
}

fn cause(error: ModelError) -> io::Error {
    match error {
        ModelError::Read { cause, .. } => cause,
        other => io::Error::other(other),
    }
}

/// SHA-256 of pieces that several threads bring, each waiting for its turn.
///
/// It cannot wait for ever: pieces are handed out in ascending order, so the piece whose turn it is is always in
/// somebody's hands, and whoever gives up, the source, the device or a panic, says so.
#[derive(Debug, Default)]
pub(crate) struct OrderedSha256 {
    state: Mutex<Hashing>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Hashing {
    hasher: Sha256,
    /// Where the next piece starts.
    position: u64,
    /// Bytes hashed so far.
    bytes: u64,
    abandoned: bool,
}

/// One piece's turn. Dropped without being taken, it tells the others not to wait for it.
struct Turn<'a> {
    sha: &'a OrderedSha256,
    offset: u64,
    taken: bool,
}

impl OrderedSha256 {
    pub(crate) fn finish(&self) -> [u8; 32] {
        self.lock().hasher.clone().finalize().into()
    }

    /// Bytes hashed so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Tells everybody not to wait.
    fn abandon(&self) {
        self.lock().abandoned = true;
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Hashing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    fn take(mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.sha.lock();
        while state.position < self.offset && !state.abandoned {
            state = self.sha.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            return Err(io::Error::other("another block could not be read"));
        }
        state.hasher.update(bytes);
        state.bytes = state.bytes.saturating_add(bytes.len() as u64);
        state.position = self.offset.saturating_add(bytes.len() as u64);
        self.taken = true;
        drop(state);
        self.sha.moved.notify_all();
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.sha.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::BLOCK_BYTES;

    /// The block before it will never come, because the device gave up: nobody is left waiting.
    #[test]
    fn a_turn_ends_when_the_filling_is_abandoned() {
        let sha256 = OrderedSha256::default();
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| Turn { sha: &sha256, offset: BLOCK_BYTES, taken: false }.take(b"second block"));
            let loader =
                Loader { source: &b"".as_slice(), once: false, progress: None, sha256: Some(&sha256), cancelled: None };
            loader.abandon();
            assert!(waiting.join().unwrap().is_err());
        });
    }
}
