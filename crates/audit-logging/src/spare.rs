//! The spare segment: always one ready, so that a full disk refuses a spare and not a critical record.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::outcome::{Fault, Operation};
use crate::segment::{self, SEGMENT_HEADER, SegmentHeader};
use crate::vfs::{self, Access, Vfs, VfsFile};

/// Bytes of zeros that are written before they are synced.
const SYNC_EVERY: u64 = 256 << 10;

/// A segment file that can be written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Box<dyn VfsFile>,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Where the next frame goes.
    pub(crate) offset: u64,
    /// Everything before this offset is durable.
    pub(crate) synced: u64,
}

impl Segment {
    pub(crate) fn room(&self) -> u64 {
        self.header.bytes.saturating_sub(self.offset)
    }

    /// Whether the file still has its name, and the name still this file, and all of it is there.
    pub(crate) fn is_in_place(&self, vfs: &dyn Vfs) -> bool {
        self.disturbed(vfs).is_none()
    }

    /// What somebody did to the file, if so: it lost its name, or it is no longer as long as it was made.
    pub(crate) fn disturbed(&self, vfs: &dyn Vfs) -> Option<Operation> {
        let (Ok(open), Ok(named)) = (self.file.identity(), vfs.identity(&self.path)) else {
            return Some(Operation::Vanished);
        };
        if open.links == 0 || !open.is_same_file(&named) {
            return Some(Operation::Vanished);
        }
        (open.bytes != self.header.bytes).then_some(Operation::Resized)
    }
}

/// What a new segment is made of.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) log_id: [u8; 16],
    pub(crate) bytes: u64,
}

/// Name of a segment file that is not finished. Whatever bears such a name counts for nothing.
fn unfinished(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("segment-{index:012}.tmp"))
}

impl Maker {
    /// Writes a whole segment: header and zeros under a temporary name, sync, rename, sync of the directory. When the
    /// file bears its name, header and zeros are durable.
    ///
    /// `live`: the segment in use, 0 if there is none yet. `gently`: sync in small portions, so that the disk serves critical records in between. It takes longer.
    pub(crate) fn make(&self, index: u64, live: u64, gently: bool) -> Result<Segment, Fault> {
        let fault = |error: std::io::Error| Fault::new(Operation::Prepare, &error);
        let header = SegmentHeader { index, bytes: self.bytes, log_id: self.log_id, live };
        let (from, to) = (unfinished(&self.dir, index), segment::path(&self.dir, index));
        let file = self.vfs.open(&from, Access::Create).map_err(fault)?;
        let done = self.fill(&*file, &header, gently).and_then(|()| {
            self.vfs.rename(&from, &to)?;
            self.vfs.sync_dir(&self.dir)
        });
        if let Err(error) = done {
            // Leave no half-made file to fill the disk further.
            let _ = self.vfs.remove(&from);
            return Err(fault(error));
        }
        let start = SEGMENT_HEADER as u64;
        Ok(Segment { file, path: to, header, offset: start, synced: start })
    }

    fn fill(&self, file: &dyn VfsFile, header: &SegmentHeader, gently: bool) -> std::io::Result<()> {
        let mut chunk = vec![0u8; 256 << 10];
        let mut at = 0u64;
        if let Some(start) = chunk.get_mut(..SEGMENT_HEADER) {
            start.copy_from_slice(&header.encode());
        }
        while at < header.bytes {
            let n = usize::try_from(header.bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(chunk.len());
            vfs::write_full(file, chunk.get(..n).unwrap_or_default(), at)?;
            if at == 0
                && let Some(start) = chunk.get_mut(..SEGMENT_HEADER)
            {
                start.fill(0);
            }
            at = at.saturating_add(n as u64);
            if gently && at.is_multiple_of(SYNC_EVERY) && at < header.bytes {
                file.sync_data()?;
            }
        }
        file.sync_data()
    }
}

#[derive(Debug)]
enum Slot {
    /// None, and none on order.
    Empty,
    /// Ordered, with this index, while that segment is in use.
    Ordered(u64, u64),
    Making,
    Ready(Segment),
    /// The last attempt failed.
    Failed,
    Stop,
}

type Shared = (Mutex<Slot>, Condvar);

/// Keeps the spare, and the thread that makes it.
#[derive(Debug)]
pub(crate) struct Spare {
    maker: Maker,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock(shared: &Shared) -> MutexGuard<'_, Slot> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(maker: &Maker, shared: &Shared) {
    let mut slot = lock(shared);
    loop {
        match *slot {
            Slot::Stop => return,
            Slot::Ordered(index, live) => {
                *slot = Slot::Making;
                drop(slot);
                let made = maker.make(index, live, true);
                slot = lock(shared);
                if matches!(*slot, Slot::Making) {
                    *slot = made.map_or(Slot::Failed, Slot::Ready);
                }
                shared.1.notify_all();
            }
            _ => slot = shared.1.wait(slot).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Spare {
    /// With a thread of its own, or without: then [`Spare::order`] makes the segment before it returns.
    pub(crate) fn new(maker: Maker, ready: Option<Segment>, threaded: bool) -> std::io::Result<Self> {
        let slot = ready.map_or(Slot::Empty, Slot::Ready);
        let shared = Arc::new((Mutex::new(slot), Condvar::new()));
        let thread = if threaded {
            let (maker, shared) = (maker.clone(), Arc::clone(&shared));
            let builder = std::thread::Builder::new().name("audit-spare".to_owned());
            Some(builder.spawn(move || work(&maker, &shared))?)
        } else {
            None
        };
        Ok(Self { maker, shared, thread })
    }

    /// Has a spare made, unless one is ready or on order.
    pub(crate) fn order(&self, index: u64, live: u64) {
        let mut slot = lock(&self.shared);
        if !matches!(*slot, Slot::Empty | Slot::Failed) {
            return;
        }
        if self.thread.is_some() {
            *slot = Slot::Ordered(index, live);
            self.shared.1.notify_all();
        } else {
            *slot = self.maker.make(index, live, true).map_or(Slot::Failed, Slot::Ready);
        }
    }

    /// Whether none is ready and none on order.
    pub(crate) fn is_lacking(&self) -> bool {
        matches!(*lock(&self.shared), Slot::Empty | Slot::Failed)
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*lock(&self.shared), Slot::Ready(_))
    }

    /// Takes the spare; waits for one that is being made. `None` if there is none.
    pub(crate) fn take(&self) -> Option<Segment> {
        let mut slot = lock(&self.shared);
        loop {
            match *slot {
                Slot::Ordered(..) | Slot::Making => {
                    slot = self.shared.1.wait(slot).unwrap_or_else(PoisonError::into_inner);
                }
                Slot::Ready(_) => {
                    return match std::mem::replace(&mut *slot, Slot::Empty) {
                        Slot::Ready(segment) => Some(segment),
                        _ => None,
                    };
                }
                Slot::Empty | Slot::Failed | Slot::Stop => return None,
            }
        }
    }

    /// Makes a segment here and now.
    pub(crate) fn make(&self, index: u64, live: u64) -> Result<Segment, Fault> {
        self.maker.make(index, live, false)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        *lock(&self.shared) = Slot::Stop;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
