//! Where a model's bytes come from: positioned reads, nothing else.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::{ReadWriteFlags, preadv2};

use super::ModelError;

/// `RWF_DONTCACHE`, since Linux 6.14: what the page cache has is taken from there and stays; what it has not is read ahead as
/// usual, and dropped once it was taken.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

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

    /// Reads like [`Self::read_at`] what nobody is expected to read again soon. A file then leaves no copy in the page cache,
    /// where the kernel and the file system know how; the bytes are the same in any case.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn read_once_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read_at(offset, buf)
    }
}

impl Source for File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn read_once_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        // An older kernel, a file system without it, a sandbox that knows no such call, an interruption, or a bad disk:
        // whatever it is, the ordinary way reads, or says what is wrong. Its offsets end where those of files do.
        let within = i64::try_from(offset).is_ok();
        let read = within.then(|| preadv2(self, &mut [IoSliceMut::new(buf)], offset, DONT_CACHE));
        match read {
            Some(Ok(count)) => Ok(count),
            _ => FileExt::read_at(self, buf, offset),
        }
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
    fill(&|offset, buf| source.read_at(offset, buf), offset, buf)
}

/// The same with [`Source::read_once_at`].
pub(crate) fn read_once_exact_at(source: &dyn Source, offset: u64, buf: &mut [u8]) -> Result<(), ModelError> {
    fill(&|offset, buf| source.read_once_at(offset, buf), offset, buf)
}

/// A way to read at most as many bytes as there is room for.
type Read<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<usize> + 'a;

fn fill(read: &Read<'_>, offset: u64, buf: &mut [u8]) -> Result<(), ModelError> {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        match read(at, rest) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Gives three bytes at a time, and is interrupted each second time.
    struct Stutters(Vec<u8>, AtomicU64);

    impl Source for Stutters {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("not this way"))
        }

        fn read_once_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            if self.1.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(ErrorKind::Interrupted.into());
            }
            let most = buf.len().min(3);
            self.0.read_at(offset, &mut buf[..most])
        }
    }

    #[test]
    fn what_is_read_once_is_read_over_short_reads_and_interruptions_to_the_end() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = Stutters(bytes.clone(), AtomicU64::new(0));
        let mut read = [0; 41];
        read_once_exact_at(&source, 59, &mut read).unwrap();
        assert_eq!(read, bytes[59..]);
        let ended = read_once_exact_at(&source, 60, &mut read).unwrap_err();
        assert!(matches!(ended, ModelError::Read { offset: 100, .. }), "{ended:?}");
    }
}
