//! The key on disk, and what lies beside it: the largest size ever signed, the public key, the next key.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::store;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::{KeyError, SigningKey, VerifierKey};
use crate::vfs::{self, Access, Vfs};

/// Longer than any of these files.
const MAX_FILE: u64 = 4096;

/// Why a key file cannot be used.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("the key file {} cannot be used: {source}; make one with `vram audit keygen`, or check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error("the key file {} can be read by others than its owner: whoever read it can sign for this log; make a new key, and chmod 600 it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// What it holds is no key.
    #[error("the key file {} holds no usable key: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A key is there already.
    #[error("{} exists: a key that signed is never overwritten; choose another path, or rotate to a new key", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The next key bears another name.
    #[error("the next key {} is named {found:?} and the log {expected:?}: a log keeps its name, make the key with that origin", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Its name.
        found: String,
        /// The log's name.
        expected: String,
    },
    /// The record of what was signed is unreadable.
    #[error("{} does not say what was signed: it was changed; restore it, or start a new log with a new key", path.display())]
    State {
        /// The file.
        path: PathBuf,
    },
    /// The key itself cannot be drawn.
    #[error(transparent)]
    Generate(#[from] KeyError),
}

fn beside(key_file: &Path, suffix: &str) -> PathBuf {
    let mut name = key_file.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    key_file.with_file_name(name)
}

/// Where the largest size ever signed is kept: `audit.key.state` beside `audit.key`.
#[must_use]
pub fn state_file(key_file: &Path) -> PathBuf {
    beside(key_file, ".state")
}

/// Where the next key is put to rotate to it: `audit.key.next` beside `audit.key`.
#[must_use]
pub fn next_file(key_file: &Path) -> PathBuf {
    beside(key_file, ".next")
}

/// Where the public key is: `audit.vkey` beside `audit.key`.
#[must_use]
pub fn verifier_file(key_file: &Path) -> PathBuf {
    key_file.with_extension("vkey")
}

/// A name for a new log: `<host name>/vram-audit/<8 random hex digits>`.
///
/// # Errors
/// [`KeyError::Random`].
pub fn default_origin() -> Result<String, KeyError> {
    let mut random = [0u8; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| KeyError::Random { os_error: error.raw_os_error() })?;
    let system = rustix::system::uname();
    let host: String = system
        .nodename()
        .to_string_lossy()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
        .take(200)
        .collect();
    let host = if host.is_empty() { "node".to_owned() } else { host };
    Ok(format!("{host}/vram-audit/{:08x}", u32::from_be_bytes(random)))
}

/// Draws a key for a log with this name and writes it to `key_file`, for its owner only, with the public key beside it.
/// For the next key of a log, give [`next_file`] and the log's name.
///
/// # Errors
/// [`KeyFileError`]: the file exists, cannot be written, or the name cannot be used.
pub fn generate(vfs: &dyn Vfs, key_file: &Path, origin: &str) -> Result<VerifierKey, KeyFileError> {
    let io_error = |source| KeyFileError::Io { path: key_file.to_owned(), source };
    if vfs.identity(key_file).is_ok() {
        return Err(KeyFileError::Exists { path: key_file.to_owned() });
    }
    let key = named(key_file, SigningKey::generate(origin)?)?;
    let text = Zeroizing::new(format!("{}\n", *key.to_text()));
    vfs::make_dir(vfs, vfs::parent(key_file)).map_err(io_error)?;
    store::replace(vfs, key_file, text.as_bytes()).map_err(io_error)?;
    let vkey = key.verifier().clone();
    store::replace(vfs, &verifier_file(key_file), format!("{vkey}\n").as_bytes()).map_err(io_error)?;
    Ok(vkey)
}

/// The name goes into JSON texts of the log.
fn named(path: &Path, key: SigningKey) -> Result<SigningKey, KeyFileError> {
    let name = key.verifier().name();
    if name.contains(['"', '\\']) {
        return Err(KeyFileError::Key { path: path.to_owned(), source: KeyError::Name { name: name.to_owned() } });
    }
    Ok(key)
}

fn read(vfs: &dyn Vfs, path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let io_error = |source| KeyFileError::Io { path: path.to_owned(), source };
    let file = vfs.open(path, Access::Read).map_err(io_error)?;
    if secret && !file.is_private().map_err(io_error)? {
        return Err(KeyFileError::Exposed { path: path.to_owned() });
    }
    let length = file.length().map_err(io_error)?.min(MAX_FILE);
    let mut bytes = Zeroizing::new(vec![0u8; usize::try_from(length).unwrap_or(0)]);
    let n = vfs::read_full(&*file, &mut bytes, 0).map_err(io_error)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// The signing key in a file. A link is not followed, and a file that others may read is refused.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_signer(vfs: &dyn Vfs, path: &Path) -> Result<SigningKey, KeyFileError> {
    let bytes = read(vfs, path, true)?;
    let key = SigningKey::parse(std::str::from_utf8(&bytes).unwrap_or_default());
    named(path, key.map_err(|source| KeyFileError::Key { path: path.to_owned(), source })?)
}

/// The public key in a file.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_verifier(vfs: &dyn Vfs, path: &Path) -> Result<VerifierKey, KeyFileError> {
    let bytes = read(vfs, path, false)?;
    let key = VerifierKey::parse(std::str::from_utf8(&bytes).unwrap_or_default());
    key.map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// The next key, if one was put beside this one.
pub(crate) fn read_next(vfs: &dyn Vfs, key_file: &Path, origin: &str) -> Result<Option<SigningKey>, KeyFileError> {
    let path = next_file(key_file);
    match vfs.identity(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeyFileError::Io { path, source }),
        Ok(_) => {}
    }
    let key = read_signer(vfs, &path)?;
    if key.verifier().name() != origin {
        let found = key.verifier().name().to_owned();
        return Err(KeyFileError::Name { path, found, expected: origin.to_owned() });
    }
    Ok(Some(key))
}

/// What is kept beside a key of what was signed with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedState {
    /// The largest state ever signed, with this key or one before it; of size 0 where the first was about to be.
    pub checkpoint: Checkpoint,
    /// Whether a checkpoint could be seen by then: if there is none any more, somebody took it away.
    pub seen: bool,
}

/// The last line of the file, where a checkpoint could be seen.
const SEEN: &str = "seen\n";

impl SignedState {
    pub(crate) fn write(&self, vfs: &dyn Vfs, key_file: &Path) -> io::Result<()> {
        let text = format!("{}{}", self.checkpoint, if self.seen { SEEN } else { "" });
        store::replace(vfs, &state_file(key_file), text.as_bytes())
    }
}

/// What was signed with this key, or one before it; `None` if the log was never published.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_signed(vfs: &dyn Vfs, key_file: &Path) -> Result<Option<SignedState>, KeyFileError> {
    let path = state_file(key_file);
    let bytes = match read(vfs, &path, false) {
        Ok(bytes) => bytes,
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let (text, seen) = text.strip_suffix(SEEN).map_or((text, false), |text| (text, true));
    let checkpoint = Checkpoint::parse(text).map_err(|_| KeyFileError::State { path })?;
    Ok(Some(SignedState { checkpoint, seen }))
}

/// Makes the next key the key, durably.
pub(crate) fn take_next(vfs: &dyn Vfs, key_file: &Path, vkey: &VerifierKey) -> io::Result<()> {
    let next = next_file(key_file);
    vfs.rename(&next, key_file)?;
    vfs.sync_dir(vfs::parent(key_file))?;
    // The public key that was made with the next one, readable by whom it was made for.
    match vfs.rename(&verifier_file(&next), &verifier_file(key_file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            store::replace(vfs, &verifier_file(key_file), format!("{vkey}\n").as_bytes())
        }
        Err(error) => Err(error),
        Ok(()) => vfs.sync_dir(vfs::parent(key_file)),
    }
}
