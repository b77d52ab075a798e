//! The control socket: whoever may open it may command the daemon, so only its own user and root may.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

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
}

impl Control {
    /// Binds it. The leftover of a dead daemon is replaced; a live daemon's is not.
    pub(super) fn bind(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let refuse = |what: String| Err(Failure::new("socket", what));
        if path.as_os_str().len().saturating_add(20) > LONGEST {
            return refuse(format!(
                "the socket {shown} has too long a path for the system; choose a shorter one with --socket"
            ));
        }
        if let Ok(facts) = std::fs::symlink_metadata(path) {
            if !facts.file_type().is_socket() {
                return refuse(format!("{shown} is there and is no socket; choose another path with --socket"));
            }
            if UnixStream::connect(path).is_ok() {
                return refuse(format!(
                    "a daemon answers on {shown} already; stop it first, or choose another --socket"
                ));
            }
        }
        let listener = bind_private(path).map_err(|error| {
            Failure::new(
                "socket",
                format!("the socket {shown} cannot be made: {error}; choose another path with --socket"),
            )
        })?;
        Ok(Self { path: path.to_owned(), listener })
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
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Made where nobody else can look, closed to others, and only then put in its place.
fn bind_private(path: &Path) -> std::io::Result<StdListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let private = parent.join(format!(".vram-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = private.join("s");
    let bound = StdListener::bind(&made).and_then(|listener| {
        std::fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        std::fs::rename(&made, path)?;
        Ok(listener)
    });
    let _ = std::fs::remove_dir_all(&private);
    bound
}
