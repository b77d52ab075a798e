//! Reading a header from front to back through a small buffer, and hashing it on the way.

use super::source::read_exact_at;
use super::{ModelError, Source};

/// Bytes held at a time, whatever the size of the header.
const BUFFER: usize = 64 << 10;

/// A position in a source that only moves forward. What it passes is hashed from the very buffer it was read from.
pub(super) struct Cursor<'a> {
    source: &'a dyn Source,
    len: u64,
    /// Where `buffer` begins in the source.
    base: u64,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have been passed.
    passed: usize,
    hasher: blake3::Hasher,
    /// No position beyond it: the limit on the header.
    limit: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a dyn Source, limit: u64) -> Self {
        Cursor {
            source,
            len: source.len(),
            base: 0,
            buffer: Vec::new(),
            passed: 0,
            hasher: blake3::Hasher::new(),
            limit,
        }
    }

    /// Bytes in the source.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where the next byte is.
    pub(super) fn position(&self) -> u64 {
        self.base.saturating_add(u64::try_from(self.passed).unwrap_or(u64::MAX))
    }

    /// Bytes from here to the end of the source.
    pub(super) fn left(&self) -> u64 {
        self.len.saturating_sub(self.position())
    }

    /// Refuses `needed` bytes that the source does not have or that would make the header too long.
    pub(super) fn demand(&self, what: &'static str, needed: u64) -> Result<(), ModelError> {
        let (offset, left) = (self.position(), self.left());
        if needed > left {
            return Err(ModelError::Truncated { what, offset, needed, left });
        }
        let found = offset.saturating_add(needed);
        if found > self.limit {
            let what = "the header's length";
            return Err(ModelError::Limit { what, offset, found, limit: self.limit });
        }
        Ok(())
    }

    /// Makes at least one byte available, or returns none at the end of the source.
    fn ahead(&mut self) -> Result<&[u8], ModelError> {
        if self.passed >= self.buffer.len() {
            self.hasher.update(&self.buffer);
            self.base = self.position();
            self.passed = 0;
            let count = usize::try_from(self.left()).unwrap_or(BUFFER).min(BUFFER);
            self.buffer.resize(count, 0);
            read_exact_at(self.source, self.base, &mut self.buffer)?;
        }
        Ok(self.buffer.get(self.passed..).unwrap_or_default())
    }

    /// Passes `count` bytes and shows each piece of them to `look`.
    fn pass(&mut self, what: &'static str, count: u64, mut look: impl FnMut(&[u8])) -> Result<(), ModelError> {
        self.demand(what, count)?;
        let mut rest = count;
        while rest > 0 {
            let ahead = self.ahead()?;
            let piece = usize::try_from(rest).unwrap_or(usize::MAX).min(ahead.len());
            look(ahead.get(..piece).unwrap_or_default());
            self.passed = self.passed.saturating_add(piece);
            rest = rest.saturating_sub(u64::try_from(piece).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Passes `count` bytes without looking.
    pub(super) fn skip(&mut self, what: &'static str, count: u64) -> Result<(), ModelError> {
        self.pass(what, count, |_| {})
    }

    /// Passes `count` bytes; returns where the first is that `fits` refuses.
    pub(super) fn first_misfit(
        &mut self,
        what: &'static str,
        count: u64,
        fits: impl Fn(u8) -> bool,
    ) -> Result<Option<u64>, ModelError> {
        let mut at = self.position();
        let mut misfit = None;
        self.pass(what, count, |piece| {
            for byte in piece {
                if misfit.is_none() && !fits(*byte) {
                    misfit = Some(at);
                }
                at = at.saturating_add(1);
            }
        })?;
        Ok(misfit)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        let mut filled = 0_usize;
        self.pass(what, u64::try_from(N).unwrap_or(u64::MAX), |piece| {
            let end = filled.saturating_add(piece.len());
            if let Some(to) = array.get_mut(filled..end) {
                to.copy_from_slice(piece);
            }
            filled = end;
        })?;
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The next `count` bytes; the caller has checked that `count` is small.
    pub(super) fn bytes(&mut self, what: &'static str, count: u64) -> Result<Vec<u8>, ModelError> {
        self.demand(what, count)?;
        let mut bytes = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
        self.pass(what, count, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// The hash of every byte that was passed.
    pub(super) fn finish(mut self) -> [u8; 32] {
        self.hasher.update(self.buffer.get(..self.passed).unwrap_or_default());
        self.hasher.finalize().into()
    }
}
