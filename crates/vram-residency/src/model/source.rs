//! Where a model's bytes come from: positioned reads, nothing else.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use super::ModelError;

/// Bytes that can be read at any position, from several threads at once.
pub trait Source: Send + Sync {
    /// Bytes in the source. A file that cannot be examined counts as empty.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads at most `buf.len()` bytes at `offset`; 0 means that `offset` is at or beyond the end.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

impl Source for File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }
}

impl Source for &[u8] {
    fn len(&self) -> u64 {
        u64::try_from(<[u8]>::len(self)).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        Source::len(&self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Source::read_at(&self.as_slice(), offset, buf)
    }
}

/// Fills `buf` from `offset`, over short reads and interruptions.
///
/// # Errors
/// [`ModelError::Read`] with the offset that failed; its cause is `UnexpectedEof` if the source ended early, which
/// for a file means that it was cut short while it was read.
pub fn read_exact_at(source: &dyn Source, offset: u64, buf: &mut [u8]) -> Result<(), ModelError> {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        match source.read_at(at, rest) {
            Ok(0) => {
                let cause = io::Error::new(ErrorKind::UnexpectedEof, "the file ended while it was read");
                return Err(ModelError::Read { offset: at, cause });
            }
            Ok(count) if count > rest.len() => {
                let cause = io::Error::new(ErrorKind::InvalidData, "the source claims more bytes than were asked for");
                return Err(ModelError::Read { offset: at, cause });
            }
            Ok(count) => {
                at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                rest = rest.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(ModelError::Read { offset: at, cause }),
        }
    }
    Ok(())
}
