//! Files that are whole or not there: written under another name, synced, renamed, and the directory synced.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tlog::source::{DirSource, Source as _};
use crate::tlog::tree::Tile;
use crate::vfs::{self, Access, Vfs, VfsFile, parent};

/// Files written before the first of them is synced.
const AT_ONCE: usize = 128;

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

fn write(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn VfsFile>> {
    let file = vfs.open(&unfinished(path), Access::Create)?;
    vfs::write_full(&*file, bytes, 0)?;
    Ok(file)
}

/// Gives a file this content in one step. It survives a power cut when this returns.
pub(crate) fn replace(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(vfs, path, bytes)?.sync_data()?;
    vfs.rename(&unfinished(path), path)?;
    vfs.sync_dir(parent(path))
}

/// The directory of a published log.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    source: DirSource,
    /// Directories that are known to survive a power cut.
    made: BTreeSet<PathBuf>,
}

impl Store {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, dir: &Path) -> Self {
        let source = DirSource::on(Arc::clone(&vfs), dir);
        Self { vfs, dir: dir.to_owned(), source, made: BTreeSet::new() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn source(&self) -> &DirSource {
        &self.source
    }

    pub(crate) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.source.get(path).map_err(io::Error::other)
    }

    /// Gives one file this content in one step.
    pub(crate) fn replace(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(path);
        self.make_parent(&path)?;
        replace(&*self.vfs, &path, bytes)
    }

    fn make_parent(&mut self, path: &Path) -> io::Result<()> {
        let dir = parent(path).to_owned();
        if self.made.contains(&dir) {
            return Ok(());
        }
        // A directory found here may be one whose name a crash kept from the disk: every level is synced once.
        self.vfs.create_dir(&dir)?;
        for made in dir.ancestors().take_while(|dir| dir.starts_with(&self.dir) && *dir != self.dir) {
            if self.made.contains(made) {
                break;
            }
            self.vfs.sync_dir(parent(made))?;
        }
        self.made.extend(dir.ancestors().take_while(|dir| dir.starts_with(&self.dir)).map(Path::to_owned));
        Ok(())
    }

    /// Writes these files, all of them or an error. They survive a power cut when this returns. After an error each is
    /// as it was, or as it was to be.
    pub(crate) fn write_all(&mut self, files: &[(String, &[u8])]) -> io::Result<()> {
        let mut dirs = BTreeSet::new();
        for some in files.chunks(AT_ONCE) {
            let mut open = Vec::with_capacity(some.len());
            for (path, bytes) in some {
                let path = self.dir.join(path);
                self.make_parent(&path)?;
                open.push((write(&*self.vfs, &path, bytes)?, path));
            }
            open.iter().for_each(|(file, _)| file.begin_sync());
            for (file, _) in &open {
                file.sync_data()?;
            }
            for (_, path) in open {
                self.vfs.rename(&unfinished(&path), &path)?;
                dirs.insert(parent(&path).to_owned());
            }
        }
        dirs.iter().try_for_each(|dir| self.vfs.sync_dir(dir))
    }

    /// Removes files of the tree, and directories that are empty then. They stay removed after a power cut.
    pub(crate) fn remove(&mut self, tiles: &[Tile]) -> io::Result<()> {
        let mut dirs = BTreeSet::new();
        for path in tiles.iter().map(|tile| self.dir.join(tile.path())) {
            self.vfs.remove(&path)?;
            dirs.insert(parent(&path).to_owned());
        }
        dirs.iter().try_for_each(|dir| self.vfs.sync_dir(dir))?;
        for dir in dirs.iter().filter(|dir| self.vfs.list(dir).is_ok_and(|names| names.is_empty())) {
            self.made.remove(dir);
            let _ = self.vfs.remove_dir(dir);
        }
        Ok(())
    }

    /// Removes the partial tiles that a full one has replaced. What cannot be removed stays; it does no harm.
    pub(crate) fn remove_partial(&mut self, full: Tile) {
        let mut dir = self.dir.join(full.path()).into_os_string();
        dir.push(".p");
        let dir = PathBuf::from(dir);
        let Ok(names) = self.vfs.list(&dir) else { return };
        self.made.remove(&dir);
        for name in names {
            let _ = self.vfs.remove(&dir.join(name));
        }
        let _ = self.vfs.remove_dir(&dir);
    }
}
