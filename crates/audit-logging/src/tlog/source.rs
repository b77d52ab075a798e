//! Where a published log is read from.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::vfs::{self, Access, Vfs};

/// Bytes that a file of a published log can have: a full bundle of the largest entries.
pub const MAX_FILE: u64 = 256 * (2 + 65_535);

/// A published log, wherever it lies: a directory, a web server, an object store.
pub trait Source: Send + Sync {
    /// The bytes of a file, by its path below the log: `checkpoint`, `tile/0/000`. `None` if it does not exist.
    ///
    /// # Errors
    /// [`SourceError`] if that cannot be told, or if the file is larger than any file of a log.
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError>;
}

/// A file of a published log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} of the published log cannot be read: {source}; check that it is there and may be read")]
pub struct SourceError {
    /// The path below the log.
    pub path: String,
    /// What was reported.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
    /// Whether something is there that is no file of a log: not a regular file, or larger than any.
    pub misfit: bool,
}

impl SourceError {
    /// Names the path.
    pub fn new(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { path: path.to_owned(), source: source.into(), misfit: false }
    }

    /// Names the path of what is no file of a log.
    pub fn misfit(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { misfit: true, ..Self::new(path, source) }
    }
}

/// A published log in a directory.
#[derive(Debug, Clone)]
pub struct DirSource {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
}

impl DirSource {
    /// The log published in this directory of the real file system.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self::on(Arc::new(Disk), dir)
    }

    /// The log published in this directory of another file system.
    #[must_use]
    pub fn on(vfs: Arc<dyn Vfs>, dir: &Path) -> Self {
        Self { vfs, dir: dir.to_owned() }
    }
}

/// Whether a path stays below the directory: words of letters, digits, `.` and `-`, none of them beginning with a dot.
fn is_plain(path: &str) -> bool {
    path.len() <= 255
        && path.split('/').all(|part| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(good)
        })
}

impl Source for DirSource {
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        if !is_plain(path) {
            return Err(SourceError::new(path, "no file of a published log has such a name"));
        }
        let file = match self.vfs.open(&self.dir.join(path), Access::Read) {
            Ok(file) => file,
            // A file where a directory belongs has no files below it.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) if vfs::is_not_a_file(&error) => return Err(SourceError::misfit(path, error)),
            Err(error) => return Err(SourceError::new(path, error)),
        };
        let length = file.length().map_err(|error| SourceError::new(path, error))?;
        if length > MAX_FILE {
            return Err(SourceError::misfit(path, format!("it has {length} bytes, more than any file of a log")));
        }
        let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(0)];
        let n = vfs::read_full(&*file, &mut bytes, 0).map_err(|error| SourceError::new(path, error))?;
        bytes.truncate(n);
        Ok(Some(bytes))
    }
}
