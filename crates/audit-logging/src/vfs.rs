//! The few things the log asks of a file system, as traits, so that every fault can be injected.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// What a file is, as the file system sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Number of names the file has. 0: it was unlinked.
    pub links: u64,
}

impl Identity {
    /// Whether both are the same file (the number of names may differ).
    #[must_use]
    pub fn is_same_file(&self, other: &Identity) -> bool {
        self.device == other.device && self.inode == other.inode
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and to write.
    Write,
    /// A new, empty file, to read and to write; what bore the name before loses it.
    Create,
}

/// An open file.
pub trait VfsFile: Send + Debug {
    /// Reads at `offset`; returns how many bytes, 0 at the end of the file.
    ///
    /// # Errors
    /// What the operating system reports.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at `offset`; returns how many bytes were taken, which may be fewer than given.
    ///
    /// # Errors
    /// What the operating system reports. Some of the bytes may have been written all the same.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Has the file system begin to write what [`VfsFile::sync_data`] will wait for. Whoever syncs many files begins with
    /// all of them, so that they share the work. May do nothing.
    fn begin_sync(&self) {}
    /// Returns when everything written to this file survives a power cut.
    ///
    /// # Errors
    /// What the operating system reports; the log then never uses this file again.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// What the operating system reports.
    fn length(&self) -> io::Result<u64>;
    /// Which file this is, and whether it still has a name.
    ///
    /// # Errors
    /// What the operating system reports.
    fn identity(&self) -> io::Result<Identity>;
    /// Whether nobody but its owner may read or write it, as far as the file system knows of owners.
    ///
    /// # Errors
    /// What the operating system reports.
    fn is_private(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Holds the right to write in a directory; dropping it, or dying, gives it back.
pub trait Lock: Send + Debug {}

/// The outcome of an attempt to become the writer of a directory.
#[derive(Debug)]
pub enum Locked {
    /// The right is ours.
    Ours(Box<dyn Lock>),
    /// Somebody else has it.
    Theirs {
        /// Their process id, where the lock file tells it.
        pid: Option<u32>,
    },
}

/// A file system.
pub trait Vfs: Send + Sync + Debug {
    /// Makes the directory and its parents, readable and writable by the owner only. Fine if it exists.
    ///
    /// # Errors
    /// What the operating system reports.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// What the operating system reports.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Opens a file. Never follows a symbolic link in the last part of the path, and never waits for a FIFO.
    ///
    /// # Errors
    /// What the operating system reports; [`not_a_file`] for anything but a regular file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn VfsFile>>;
    /// Gives a file another name in one step.
    ///
    /// # Errors
    /// What the operating system reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file's name away.
    ///
    /// # Errors
    /// What the operating system reports.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory. A file system without such a call leaves it, which does no harm.
    ///
    /// # Errors
    /// What the operating system reports.
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let _ = dir;
        Ok(())
    }
    /// Returns when the directory's names survive a power cut.
    ///
    /// # Errors
    /// What the operating system reports.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// What the path names now; an error of kind `NotFound` if nothing.
    ///
    /// # Errors
    /// What the operating system reports.
    fn identity(&self, path: &Path) -> io::Result<Identity>;
    /// Tries to become the only writer, with `path` as the lock file. Does not wait.
    ///
    /// # Errors
    /// What the operating system reports.
    fn lock(&self, path: &Path) -> io::Result<Locked>;
}

/// The error that [`Vfs::open`] gives for anything but a regular file: a directory, a symbolic link, a FIFO.
#[must_use]
pub fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "not a regular file")
}

/// Whether an error says that something will never be readable as a file, not that reading it failed this time.
pub(crate) fn is_not_a_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported && error.raw_os_error().is_none()
}

/// The directory that a path lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a directory and those above it that are missing, so that they survive a power cut: from the top down, each one
/// durable before the next is made. If the directory is there, its name may be what a process left in the cache when it
/// was killed, so that is made durable, too.
pub(crate) fn make_dir(vfs: &dyn Vfs, dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|dir| vfs.identity(dir).is_err() && !dir.as_os_str().is_empty()).collect();
    if missing.is_empty() {
        return match vfs.sync_dir(parent(dir)) {
            // Whoever may not even open the directory above did not make this one.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        };
    }
    missing.iter().rev().try_for_each(|missing| {
        vfs.create_dir(missing)?;
        vfs.sync_dir(parent(missing))
    })
}

/// Reads until the buffer is full or the file ends; returns how many bytes. Takes up again after an interruption.
pub(crate) fn read_full(file: &dyn VfsFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0usize;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes everything, going on after short writes and interruptions.
pub(crate) fn write_full(file: &dyn VfsFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0usize;
    let mut interrupted = 0u32;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done = done.saturating_add(n),
            // A file system that only ever interrupts must not hang the writer.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && interrupted < 1_000 => {
                interrupted = interrupted.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
