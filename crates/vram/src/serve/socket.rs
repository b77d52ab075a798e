//! The control socket: whoever may open it may command the daemon, so only its own user and root may. The attach socket
//! is bound in the same way.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use tokio::net::UnixListener;

use crate::exit::Failure;
use crate::state;

const NAME: &str = "vram.sock";
/// What the kernel takes as the path of a socket, its end included.
const LONGEST: usize = 107;

/// `$XDG_RUNTIME_DIR/vram.sock`, else `vram.sock` in the state directory.
pub(crate) fn default_path() -> Result<PathBuf, Failure> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match runtime {
        Some(dir) => Ok(dir.join(NAME)),
        None => Ok(state::directory("--socket")?.join(NAME)),
    }
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    listener: StdListener,
    /// Device and inode of what was bound: somebody may put something else in its place.
    made: (u64, u64),
    /// Locked while the daemon lives, also where somebody removes the socket.
    _lock: File,
}

impl Control {
    /// Binds it. The leftover of a dead daemon is replaced; a live daemon's is not.
    pub(super) fn bind(path: &Path) -> Result<Self, Failure> {
        Self::bind_with(path, 0o600, "--socket")
    }

    /// The same for another socket of the daemon's, with the mode of its file and the option that chooses its path.
    pub(super) fn bind_with(path: &Path, mode: u32, option: &str) -> Result<Self, Failure> {
        let shown = path.display();
        let refuse = |what: String| Err(Failure::new("socket", what));
        if path.as_os_str().len().saturating_add(20) > LONGEST {
            return refuse(format!(
                "the socket {shown} has too long a path for the system; choose a shorter one with {option}"
            ));
        }
        let cannot = |error: std::io::Error| {
            let what = format!("the socket {shown} cannot be made: {error}; choose another path with {option}");
            Failure::new("socket", what)
        };
        if default_path().is_ok_and(|usual| usual == path) {
            DirBuilder::new().recursive(true).mode(0o700).create(parent(path)).map_err(cannot)?;
        }
        let Some(lock) = lock(path).map_err(cannot)? else {
            return refuse(format!("another daemon has {shown}; stop it first, or choose another {option}"));
        };
        if let Ok(facts) = std::fs::symlink_metadata(path) {
            if !facts.file_type().is_socket() {
                return refuse(format!("{shown} is there and is no socket; choose another path with {option}"));
            }
            if UnixStream::connect(path).is_ok() {
                return refuse(format!(
                    "a program answers on {shown} already; stop it first, or choose another {option}"
                ));
            }
        }
        let (listener, made) = bind_private(path, mode).map_err(cannot)?;
        Ok(Self { path: path.to_owned(), listener, made, _lock: lock })
    }

    /// For the daemon's runtime.
    pub(super) fn listener(&self) -> Result<UnixListener, Failure> {
        let cannot =
            |error: std::io::Error| Failure::new("socket", format!("the control socket cannot be used: {error}"));
        let listener = self.listener.try_clone().map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        UnixListener::from_std(listener).map_err(cannot)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Somebody may have removed it before, and another have put his own there.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|facts| identity(&facts) == self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn identity(facts: &Metadata) -> (u64, u64) {
    (facts.dev(), facts.ino())
}

/// The right to a path: a lock on a file beside it, which stays, empty, when the daemon ends. None where another has it.
fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let mut options = OpenOptions::new();
    // A link that somebody left there is not followed.
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(nofollow);
    let file = options.open(name)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Made where nobody else can look, closed to others, and only then put in its place.
fn bind_private(path: &Path, mode: u32) -> std::io::Result<(StdListener, (u64, u64))> {
    let private = parent(path).join(format!(".vram-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = private.join("s");
    let bound = StdListener::bind(&made).and_then(|listener| {
        std::fs::set_permissions(&made, Permissions::from_mode(mode))?;
        let facts = std::fs::symlink_metadata(&made)?;
        std::fs::rename(&made, path)?;
        Ok((listener, identity(&facts)))
    });
    let _ = std::fs::remove_dir_all(&private);
    bound
}
