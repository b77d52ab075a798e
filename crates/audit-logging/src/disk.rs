//! The real file system.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Dir, FlockOperation, Mode, OFlags};

use crate::vfs::{Access, Identity, Lock, Locked, Vfs, VfsFile, not_a_file};

/// The operating system's own file system calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

#[derive(Debug)]
struct DiskFile(File);

#[derive(Debug)]
struct DiskLock {
    /// Held for the locks that hang on their descriptors.
    _file: File,
    _dir: Option<File>,
}

impl Lock for DiskLock {}

/// No link is followed, and no FIFO waited for.
fn no_surprise() -> i32 {
    i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0)
}

/// Opens what must be a regular file.
fn open_regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let opened = options.open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    match opened {
        Ok((true, file)) => Ok(file),
        Err(error) if fs::symlink_metadata(path).map_or(true, |meta| meta.is_file()) => Err(error),
        _ => Err(not_a_file()),
    }
}

fn identity_of(meta: &fs::Metadata) -> Identity {
    Identity { device: meta.dev(), inode: meta.ino(), links: meta.nlink(), bytes: meta.len() }
}

impl VfsFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.0, bytes, offset)?)
    }

    fn begin_sync(&self) {
        // Dirty pages are not dropped by this: their writing begins.
        let _ = rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not `File::sync_data`: that one retries an interrupted sync on the same descriptor.
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity_of(&self.0.metadata()?))
    }

    fn is_private(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.mode() & 0o077 == 0)
    }
}

impl Vfs for Disk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        // Not `fs::read_dir`: that one panics where closing the directory reports an error.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut names = Vec::new();
        for entry in Dir::new(rustix::fs::open(dir, flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(no_surprise());
        match access {
            Access::Read => {}
            Access::Write => {
                options.write(true);
            }
            Access::Create => {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                options.write(true).create_new(true).mode(0o600);
            }
        }
        Ok(Box::new(DiskFile(open_regular(&options, path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        Ok(identity_of(&fs::symlink_metadata(path)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Locked> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_surprise());
        let file = open_regular(&options, path)?;
        let try_lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
        // The directory is locked as well: whoever removes a lock file that he takes for stale lets nobody else in.
        let dir = path.parent().map(File::open).transpose()?;
        let locked = try_lock(&file).and_then(|()| dir.as_ref().map_or(Ok(()), try_lock));
        match locked {
            Ok(()) => {
                // For people only; the lock itself does not depend on it.
                let _ = file.set_len(0);
                let _ = file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0);
                Ok(Locked::Ours(Box::new(DiskLock { _file: file, _dir: dir })))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = [0u8; 16];
                let n = file.read_at(&mut text, 0).unwrap_or(0);
                let pid = text
                    .get(..n)
                    .and_then(|bytes| std::str::from_utf8(bytes).ok())
                    .and_then(|text| text.trim().parse().ok());
                Ok(Locked::Theirs { pid })
            }
            Err(error) => Err(error.into()),
        }
    }
}
