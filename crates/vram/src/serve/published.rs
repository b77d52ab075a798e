//! The published audit log, as it lies on the disk: for whoever verifies it, and read-only.
//!
//! Only the files that a published log has are answered, by their exact names. They are opened one directory after the
//! other and no link is followed, so nothing outside is reached whatever lies there. A file with a second name is not
//! answered either, nor one of another user: a published log writes none, and what they are is not known.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use audit_logging::tlog::source::MAX_FILE;
use audit_logging::tlog::tree::Tile;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Bytes of a file that are in memory at a time.
const CHUNK: u64 = 64 << 10;

/// How a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    content: &'static str,
    cache: &'static str,
}

const TEXT: &str = "text/plain; charset=utf-8";
const REPLACED: Kind = Kind { content: TEXT, cache: "no-cache" };
const KEPT: &str = "public, max-age=31536000, immutable";

/// The kind of the file that a published log has under this name; none where it has none.
fn kind(name: &str) -> Option<Kind> {
    if matches!(name, "checkpoint" | "cosigned" | "vkey" | "minimum-index") {
        return Some(REPLACED);
    }
    if let Some(size) = name.strip_prefix("rotation/") {
        let size: u64 = size.parse().ok().filter(|number: &u64| number.to_string() == size)?;
        return (size > 0).then_some(Kind { content: TEXT, cache: KEPT });
    }
    let tile = Tile::from_path(name)?;
    // A partial one goes some time after the full one is there, and never changes until then.
    let cache = if tile.is_full() { KEPT } else { "public, max-age=60" };
    Some(Kind { content: "application/octet-stream", cache })
}

/// The file of this name; `Ok(None)` where a published log has no such file, or this one has it not.
pub(super) async fn file(dir: PathBuf, name: &str) -> io::Result<Option<Response>> {
    let Some(kind) = kind(name) else { return Ok(None) };
    let name = name.to_owned();
    let Some((file, length)) = blocking(move || open(&dir, &name)).await? else { return Ok(None) };
    let file = Arc::new(file);
    let chunks = stream::try_unfold(0, move |offset: u64| {
        let file = Arc::clone(&file);
        async move {
            let left = length.saturating_sub(offset);
            if left == 0 {
                return Ok::<_, io::Error>(None);
            }
            let bytes = blocking(move || {
                let mut bytes = vec![0; usize::try_from(left.min(CHUNK)).unwrap_or(0)];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(Bytes::from(bytes))
            })
            .await?;
            let after = offset.saturating_add(bytes.len() as u64);
            Ok(Some((bytes, after)))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, kind.content.to_owned()),
        (header::CACHE_CONTROL, kind.cache.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok(Some((headers, Body::from_stream(chunks)).into_response()))
}

/// Opens a file below a directory without following a link anywhere below it, and says how long it is.
fn open(dir: &Path, name: &str) -> io::Result<Option<(File, u64)>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let (parents, last) = name.rsplit_once('/').unwrap_or(("", name));
    let walk = || {
        let mut at = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty())?;
        let owner = rustix::fs::fstat(&at)?.st_uid;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            at = rustix::fs::openat(&at, part, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok((rustix::fs::openat(&at, last, flags | OFlags::NOFOLLOW, Mode::empty())?, owner))
    };
    let (file, owner) = match walk() {
        Ok((opened, owner)) => (File::from(opened), owner),
        // Not there, or not what a published log consists of, such as a link or a socket.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let about = file.metadata()?;
    // One that was replaced just now has no name left, and is still what was published.
    let is_alone = about.nlink() <= 1;
    let is_own = about.uid() == owner || about.uid() == rustix::process::geteuid().as_raw();
    let is_published = about.is_file() && about.len() <= MAX_FILE && is_alone && is_own;
    Ok(is_published.then_some((file, about.len())))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_a_published_log_have_a_kind() {
        for name in ["checkpoint", "cosigned", "vkey", "minimum-index"] {
            assert_eq!(kind(name).unwrap().cache, "no-cache", "{name}");
        }
        assert_eq!(kind("tile/0/x001/234").unwrap().cache, KEPT);
        assert_eq!(kind("tile/entries/000").unwrap().content, "application/octet-stream");
        assert_ne!(kind("tile/0/000.p/17").unwrap().cache, KEPT, "it is removed one day");
        assert_eq!(kind("rotation/42").unwrap().cache, KEPT);
        for name in [
            "",
            "lock",
            "../audit.key",
            "checkpoint.tmp",
            "checkpoint/",
            "/checkpoint",
            "tile",
            "tile/0/000.tmp",
            "tile/0/../../../audit.key",
            "rotation/",
            "rotation/0",
            "rotation/042",
            "rotation/-1",
            "rotation/1/2",
            "tile/0/000.p/256",
            "./checkpoint",
            "000000000001.wal",
        ] {
            assert_eq!(kind(name), None, "{name}");
        }
    }

    #[test]
    fn no_link_is_followed_below_the_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, outside) = (scratch.path().join("tlog"), scratch.path().join("outside"));
        std::fs::create_dir_all(dir.join("tile/0")).unwrap();
        std::fs::create_dir_all(outside.join("entries")).unwrap();
        std::fs::write(outside.join("secret"), "s").unwrap();
        std::fs::write(outside.join("entries/000"), "s").unwrap();
        std::fs::write(dir.join("tile/0/000"), "tile").unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), dir.join("checkpoint")).unwrap();
        std::os::unix::fs::symlink(outside.join("entries"), dir.join("tile/entries")).unwrap();
        std::fs::create_dir(dir.join("vkey")).unwrap();
        // Nor is anybody waited for who could write into one of these.
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("cosigned")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("minimum-index"), fifo, Mode::RUSR, 0).unwrap();
        // A second name of a file elsewhere is a link as well.
        std::fs::hard_link(outside.join("secret"), dir.join("tile/0/001")).unwrap();
        assert_eq!(open(&dir, "tile/0/000").unwrap().unwrap().1, 4);
        for name in [
            "checkpoint",
            "tile/entries/000",
            "vkey",
            "tile/1/000",
            "tile/0/000/1",
            "cosigned",
            "minimum-index",
            "tile/0/001",
        ] {
            assert!(open(&dir, name).unwrap().is_none(), "{name}");
        }
        // Nor is one of a third user, where this one may give a file away at all.
        if std::os::unix::fs::chown(dir.join("tile/0/000"), Some(12_345), None).is_ok() {
            assert!(open(&dir, "tile/0/000").unwrap().is_none());
            std::os::unix::fs::chown(dir.join("tile/0/000"), Some(0), None).unwrap();
        }
        // The directory itself may be a link: the operator put it there.
        std::os::unix::fs::symlink(&dir, scratch.path().join("link")).unwrap();
        assert!(open(&scratch.path().join("link"), "tile/0/000").unwrap().is_some());
    }
}
