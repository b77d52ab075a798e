//! What is kept between runs: the audit log's directory, the secret of the seal key, the key of commitments to persons.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vram_residency::actor::SubjectKey;
use vram_residency::attest::AttestKey;
use vram_residency::seal::{MAX_SECRET, MIN_SECRET};
use zeroize::Zeroizing;

use crate::cli::Global;
use crate::exit::Failure;
use crate::small_file;

const KEY_NAME: &str = "seal.key";
const SUBJECT_KEY_NAME: &str = "subject.key";
const ATTEST_KEY_NAME: &str = "attest.key";
/// How a key is made by hand.
pub(crate) const MAKE_KEY: &str = "head -c 32 /dev/urandom > FILE; chmod 600 FILE";

/// `$XDG_STATE_HOME/vram`, else `~/.local/state/vram`.
pub(crate) fn directory(instead: &str) -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("vram")).ok_or_else(|| {
        let message = format!(
            "no state directory: neither XDG_STATE_HOME nor HOME is an absolute path; set one or give {instead}"
        );
        Failure::new("state", message)
    })
}

/// Where the audit log is.
pub(crate) fn audit_dir(global: &Global) -> Result<PathBuf, Failure> {
    match &global.audit_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(directory("--audit-dir")?.join("audit")),
    }
}

/// Where the secret is, and whether it may be made.
pub(crate) fn key_path(global: &Global) -> Result<(PathBuf, bool), Failure> {
    match &global.key_file {
        Some(file) => Ok((file.clone(), false)),
        None => Ok((directory("--key-file")?.join(KEY_NAME), true)),
    }
}

/// The bytes that the seal key is derived from. The default file is made on first use; one that was named must exist,
/// so that a slip of the pen does not quietly become a new key.
pub(crate) fn secret(global: &Global) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let (path, ours) = key_path(global)?;
    match open_key(&path) {
        Ok(file) => read_secret(&path, &file),
        Err(error) if error.kind() == io::ErrorKind::NotFound && ours => {
            make_secret(&path).map_err(|error| cannot(&path, "made", &error))?;
            let file = open_key(&path).map_err(|error| cannot(&path, "opened", &error))?;
            read_secret(&path, &file)
        }
        Err(error) => Err(cannot(&path, "opened", &error)),
    }
}

/// Where the key that signs the log is: beside the log's directory and with its name, so that each log has its own.
pub(crate) fn audit_key_path(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(file) = &global.audit_key {
        return Ok(file.clone());
    }
    let dir = audit_dir(global)?;
    let named = std::path::absolute(&dir).ok().and_then(|dir| {
        let mut name = dir.file_name()?.to_owned();
        name.push(".key");
        Some(dir.with_file_name(name))
    });
    named.ok_or_else(|| {
        let message =
            format!("{} has no name of its own that a key could have; name one with --audit-key", dir.display());
        Failure::new("key", message)
    })
}

/// Whether nothing has this name, not even a link that leads nowhere. An error of the disk is no such answer.
pub(crate) fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Where the key of the commitments to persons is.
pub(crate) fn subject_key_path() -> Result<PathBuf, Failure> {
    Ok(directory("XDG_STATE_HOME")?.join(SUBJECT_KEY_NAME))
}

/// The key under which the log knows who gave an order. Made where it is not there and `make` says so.
pub(crate) fn subject_key(make: bool) -> Result<SubjectKey, Failure> {
    let path = subject_key_path()?;
    let fail = |failure: Failure| {
        let message = failure.message.replacen("the seal key", "the subject key", 1);
        Failure { message, ..failure }
    };
    let file = match open_key(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
            make_secret(&path).and_then(|()| open_key(&path))
        }
        opened => opened,
    };
    let file = file.map_err(|error| fail(cannot(&path, "opened", &error)))?;
    let secret = read_secret(&path, &file).map_err(fail)?;
    let refused = || Failure::new("key", format!("the subject key {} is not usable", path.display()));
    SubjectKey::new(&secret).ok_or_else(refused)
}

/// Where the key of attestations is, and whether that is the default place.
pub(crate) fn attest_key_path(named: Option<&Path>) -> Result<(PathBuf, bool), Failure> {
    match named {
        Some(file) => Ok((file.to_owned(), false)),
        None => Ok((directory("--attest-key")?.join(ATTEST_KEY_NAME), true)),
    }
}

/// The key that signs attestations: a file that nobody else can read.
pub(crate) fn attest_key(path: &Path) -> Result<AttestKey, Failure> {
    let retold = |message: &str| {
        let message = message.replacen("the seal key", "the attestation key", 1);
        let message = message.replace(MAKE_KEY, &make_attest_key(path));
        Failure::new("key", message.replace("--key-file", "--attest-key"))
    };
    let file = open_key(path).map_err(|error| retold(&cannot(path, "opened", &error).message))?;
    let text = read_secret(path, &file).map_err(|failure| retold(&failure.message))?;
    let key = AttestKey::from_pem(std::str::from_utf8(&text).unwrap_or_default());
    key.map_err(|error| Failure::new("key", format!("the attestation key {} is not usable: {error}", path.display())))
}

/// What makes the key of attestations in its place.
pub(crate) fn make_attest_key(path: &Path) -> String {
    match attest_key_path(None) {
        Ok((usual, _)) if usual == path => "vram attest --keygen".to_owned(),
        _ => format!("vram attest --keygen --attest-key {}", path.display()),
    }
}

/// Opens a file that should be a key. Whatever it is instead, this does not wait for anybody.
pub(crate) fn open_key(path: &Path) -> io::Result<File> {
    small_file::open(path)
}

/// A directory in which others could put something else in the place of what it holds.
#[derive(Debug)]
pub(crate) struct Exposed {
    pub(crate) detail: String,
    pub(crate) remedy: String,
}

/// None where the directory is this user's alone, or not there.
fn exposed(dir: &Path) -> Option<Exposed> {
    let facts = std::fs::metadata(dir).ok()?;
    let shown = dir.display();
    if !is_trusted(facts.uid()) {
        let detail = format!("{shown} belongs to another user (number {})", facts.uid());
        return Some(Exposed { detail, remedy: "use a directory of your own".to_owned() });
    }
    let mode = facts.mode() & 0o7777;
    (mode & 0o022 != 0).then(|| Exposed {
        detail: format!("{shown} can be written by others (mode {mode:04o})"),
        remedy: format!("run: chmod go-w {shown}"),
    })
}

/// The directories that hold what is kept between runs, as far as they are exposed.
pub(crate) fn exposed_directories(global: &Global) -> Vec<Exposed> {
    let state = if global.key_file.is_none() || global.audit_dir.is_none() { directory("").ok() } else { None };
    state.into_iter().chain(audit_dir(global).ok()).filter_map(|dir| exposed(&dir)).collect()
}

/// Whether a user may decide over this one's secrets: this one itself, or root.
fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

/// Reads a secret that nobody else can read.
pub(crate) fn read_secret(path: &Path, mut file: &File) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let metadata = file.metadata().map_err(|error| cannot(path, "examined", &error))?;
    let refuse = |what: String| Err(Failure::new("key", format!("the seal key {} {what}", path.display())));
    if !metadata.is_file() {
        return refuse("is not a regular file; name a file of 32 random bytes".to_owned());
    }
    if !is_trusted(metadata.uid()) {
        let owner = metadata.uid();
        return refuse(format!("belongs to another user (number {owner}), who can read it; name a file of your own"));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return refuse(format!("can be used by others (mode {mode:04o}); run: chmod 600 {}", path.display()));
    }
    // The whole buffer is there from the start, so that no copy of the secret is left behind by growing.
    let mut secret = Zeroizing::new(vec![0; MAX_SECRET.saturating_add(1)]);
    let mut length = 0_usize;
    while let Some(rest) = secret.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot(path, "read", &error)),
        }
    }
    if !(MIN_SECRET..=MAX_SECRET).contains(&length) {
        let length = metadata.len().max(length as u64);
        return refuse(format!(
            "has {length} bytes and must have {MIN_SECRET} to {MAX_SECRET}; \
             restore it from a copy, or make another with: {MAKE_KEY}"
        ));
    }
    secret.truncate(length);
    Ok(secret)
}

/// Makes the secret. Of two first starts one wins, and both read what the winner made.
fn make_secret(path: &Path) -> io::Result<()> {
    let mut secret = Zeroizing::new([0; MIN_SECRET]);
    getrandom::fill(&mut *secret).map_err(io::Error::other)?;
    match write_new(path, &*secret, 0o600) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Writes a file that is not there yet: complete and on disk under a name of its own first, then linked to its place.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = directory.join(format!(".{name}.{:016x}", u64::from_le_bytes(random)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    let linked = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    linked?;
    removed?;
    File::open(directory)?.sync_all()
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => format!("make it with: {MAKE_KEY}"),
        io::ErrorKind::StorageFull => "free some space, or name another file with --key-file".to_owned(),
        _ => "check the path and its permissions, or name another file with --key-file".to_owned(),
    };
    Failure::new("key", format!("the seal key {} cannot be {what}: {error}; {remedy}", path.display()))
}
