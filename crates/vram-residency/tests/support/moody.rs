//! A disk that fails when a test wants it to.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_logging::vfs::{Access, Identity, Locked, VfsFile};
use audit_logging::{Disk, Options, Vfs};

use super::small_log;

/// The real disk, until it is told to fail.
#[derive(Debug, Clone, Default)]
pub struct Moody {
    /// 0 is well, anything else is the error of every write and sync.
    error: Arc<AtomicI32>,
    /// What is written with this in it is refused.
    refused: Arc<Mutex<Option<&'static str>>>,
    /// What each sync takes at least.
    sync: Arc<Mutex<Duration>>,
}

impl Moody {
    pub fn fails_with(&self, error: i32) {
        self.error.store(error, Ordering::SeqCst);
    }

    /// Until it is told otherwise.
    pub fn refuses(&self, words: Option<&'static str>) {
        *self.refused.lock().unwrap() = words;
    }

    /// A log on it: small segments, and soon tried again.
    pub fn log(&self) -> Options {
        Options { vfs: Arc::new(self.clone()), retry_after: Duration::from_millis(20), ..small_log() }
    }

    /// From now on.
    pub fn syncs_take(&self, time: Duration) {
        *self.sync.lock().unwrap() = time;
    }

    fn check(&self) -> io::Result<()> {
        match self.error.load(Ordering::SeqCst) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[derive(Debug)]
struct MoodyFile(Box<dyn VfsFile>, Moody);

impl VfsFile for MoodyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.1.check()?;
        if let Some(words) = *self.1.refused.lock().unwrap()
            && bytes.windows(words.len()).any(|part| part == words.as_bytes())
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.check()?;
        let time = *self.1.sync.lock().unwrap();
        std::thread::sleep(time);
        // It may have begun to fail meanwhile.
        self.1.check()?;
        self.0.sync_data()
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

impl Vfs for Moody {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        Disk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        Disk.list(dir)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn VfsFile>> {
        if access == Access::Create {
            self.check()?;
        }
        Ok(Box::new(MoodyFile(Disk.open(path, access)?, self.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        Disk.sync_dir(dir)
    }
    fn identity(&self, path: &Path) -> io::Result<Identity> {
        Disk.identity(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Locked> {
        Disk.lock(path)
    }
}
