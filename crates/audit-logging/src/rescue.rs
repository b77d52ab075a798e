//! When somebody takes the log's files away while it is being written.

use std::io;

use crate::outcome::{Fault, OpenError, Operation};
use crate::recovery;
use crate::segment;
use crate::vfs::{self, Access};
use crate::walk;
use crate::writer::Writer;

impl Writer {
    /// Sees to it that the directory exists and is ours. If it was removed or replaced, it is made and locked anew.
    pub(crate) fn keep_directory(&mut self) -> Result<(), Fault> {
        let found = self.vfs.identity(&self.dir).ok();
        if let (Some(found), Some(known)) = (found, self.dir_identity)
            && found.is_same_file(&known)
        {
            return Ok(());
        }
        let lock = recovery::enter(&*self.vfs, &self.dir).map_err(|error| match error {
            OpenError::Io { source, .. } => Fault::new(Operation::Directory, &source),
            _ => Fault { operation: Operation::Directory, kind: io::ErrorKind::ResourceBusy, os_error: None },
        })?;
        let fault = |error: io::Error| Fault::new(Operation::Directory, &error);
        let highest = walk::list(&*self.vfs, &self.dir).map_err(fault)?.indices.last().copied().unwrap_or(0);
        self.next_index = self.next_index.max(highest.saturating_add(1));
        self.dir_identity = self.vfs.identity(&self.dir).ok();
        self.lock = lock;
        Ok(())
    }

    /// Puts the segment that lost its name back, from the file that is still open, as far as it was durable. What bears
    /// its name now is moved aside as evidence. Best effort: whatever comes of it, the log goes on in another segment.
    pub(crate) fn rescue(&self) {
        let _ = self.try_rescue();
    }

    fn try_rescue(&self) -> io::Result<()> {
        let current = &self.current;
        let index = current.header.index;
        if current.is_in_place(&*self.vfs) || current.synced <= segment::SEGMENT_HEADER as u64 {
            return Ok(());
        }
        let mut bytes = vec![0u8; usize::try_from(current.header.bytes).unwrap_or(0)];
        let kept = usize::try_from(current.synced).unwrap_or(0).min(bytes.len());
        if vfs::read_full(&*current.file, bytes.get_mut(..kept).unwrap_or_default(), 0)? < kept {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let temporary = self.dir.join(format!("segment-{index:012}.tmp"));
        let copy = self.vfs.open(&temporary, Access::Create)?;
        vfs::write_full(&*copy, &bytes, 0)?;
        copy.sync_data()?;
        if self.vfs.identity(&current.path).is_ok() {
            let aside = self.dir.join(format!("segment-{index:012}.displaced-{}", self.next_index));
            self.vfs.rename(&current.path, &aside)?;
        }
        self.vfs.rename(&temporary, &current.path)?;
        self.vfs.sync_dir(&self.dir)
    }
}
