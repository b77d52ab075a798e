//! Small files that a user names: keys, manifests, policies, attestations, proofs.
//!
//! Whatever has the name, nobody is waited for, nothing is set in motion, and no more is read than such a file may have.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a regular file. The error names what it is instead.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, because opening a device may do something; and after, because the name may have changed hands.
    check_kind(fs::metadata(path)?.file_type())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

/// The bytes of a regular file that has `most` at most: [`io::ErrorKind::FileTooLarge`] where it has more.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let too_large = |length: u64| {
        let told = format!("it has {length} bytes and at most {most} are read");
        io::Error::new(io::ErrorKind::FileTooLarge, told)
    };
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_large(length));
    }
    // It may grow meanwhile.
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > most { Err(too_large(length)) } else { Ok(bytes) }
}

/// The same as text.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

fn check_kind(kind: FileType) -> io::Result<()> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe (FIFO)",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    };
    Err(io::Error::other(format!("it is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("pipe"), path("link")).unwrap();
        let other = [
            (dir.path().to_owned(), "a directory"),
            (path("pipe"), "a pipe"),
            (path("link"), "a pipe"),
            (path("socket"), "a socket"),
            (Path::new("/dev/zero").to_owned(), "a device"),
        ];
        for (path, what) in other {
            let error = read(&path, 100).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("not a regular file"), "{}: {error}", path.display());
        }
        assert_eq!(read(&path("nothing"), 100).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn no_more_is_read_than_such_a_file_may_have() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [b'a'; 10]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "a".repeat(10));
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // By its length alone: a terabyte is not read first.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read(&path, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("1099511627776"), "{error}");
        // What tells no length is read no further either.
        assert_eq!(read(Path::new("/proc/self/maps"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
