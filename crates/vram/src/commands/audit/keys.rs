//! Whose signatures count, and where that was learned.

use std::io;
use std::path::{Path, PathBuf};

use audit_logging::Disk;
use audit_logging::publish::{self, verifier_file};
use audit_logging::tlog::note::{Algorithm, VerifierKey};
use audit_logging::tlog::source::{Source, SourceError};
use serde::Serialize;

use crate::cli::{Global, Trusted};
use crate::exit::Failure;
use crate::{small_file, state};

/// Largest file of keys that is read.
const MAX_FILE: u64 = 1 << 20;
/// The copy of the key that lies with the published log.
const COPY: &str = "vkey";

/// Where the log's key came from: what a verification is worth depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "from", content = "path", rename_all = "kebab-case")]
pub(super) enum KeyOrigin {
    /// Whoever verifies named it.
    Given,
    /// This machine's own, where the log is this machine's.
    State(PathBuf),
    /// It lies with the log itself: consistent, but with whom is not known.
    LogItself,
    /// There is none.
    None,
}

/// The keys of a log.
#[derive(Debug)]
pub(super) struct LogKeys {
    pub(super) keys: Vec<VerifierKey>,
    pub(super) origin: KeyOrigin,
}

/// The keys given; else this machine's own; else those that lie with the log.
pub(super) fn log_keys(
    trusted: &Trusted,
    global: &Global,
    published: &dyn Source,
    shown: &str,
    wal: Option<&Path>,
) -> Result<LogKeys, Failure> {
    if !trusted.vkeys.is_empty() {
        return Ok(LogKeys { keys: given(&trusted.vkeys, "--vkey", Algorithm::Ed25519)?, origin: KeyOrigin::Given });
    }
    let found = published.get(COPY);
    let copy = found.as_ref().ok().cloned().flatten();
    let copy = copy.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let copied = copy.lines().filter(|line| !line.trim().is_empty()).map(VerifierKey::parse);
    let copied: Vec<_> = copied.collect::<Result<_, _>>().unwrap_or_default();
    // This machine's own key is only about this machine's own logs: the one that it writes, and copies that name the key.
    if let Ok(path) = state::audit_key_path(global).map(|path| verifier_file(&path))
        && let Ok(own) = publish::read_verifier(&Disk, &path)
        && (copied.iter().any(|key| key.name() == own.name()) || wal.is_some_and(|dir| is_own(dir, global)))
    {
        return Ok(LogKeys { keys: vec![own], origin: KeyOrigin::State(path) });
    }
    // That nobody answered is something else than that no key lies there.
    if let Err(error) = found
        && !error.misfit
    {
        return Err(unanswered(shown, &error));
    }
    let origin = if copied.is_empty() { KeyOrigin::None } else { KeyOrigin::LogItself };
    Ok(LogKeys { keys: copied, origin })
}

fn unanswered(shown: &str, error: &SourceError) -> Failure {
    let remedy = if shown.contains("://") { "check the address, and that it answers" } else { "check the path" };
    Failure::new("audit", format!("the log at {shown} cannot be read: {}; {remedy}", error.source))
}

/// Whether it is the log that this machine writes, going by the options.
pub(super) fn is_own(dir: &Path, global: &Global) -> bool {
    let own = state::audit_dir(global).ok().and_then(|own| std::path::absolute(own).ok());
    own.is_some() && own == std::path::absolute(dir).ok()
}

/// The witnesses given, and how many of them are needed.
pub(super) fn witnesses(trusted: &Trusted) -> Result<(Vec<VerifierKey>, usize), Failure> {
    let keys = given(&trusted.witnesses, "--witness", Algorithm::Cosignature)?;
    let quorum = trusted.quorum.unwrap_or(keys.len());
    if quorum > keys.len() {
        let message = format!(
            "--quorum {quorum} asks for more cosignatures than there are witnesses ({}); name them with --witness",
            keys.len()
        );
        return Err(Failure::usage(message));
    }
    Ok((keys, quorum))
}

/// Keys as they were given: each a key, or a file with one a line.
pub(super) fn given(words: &[String], flag: &str, wanted: Algorithm) -> Result<Vec<VerifierKey>, Failure> {
    let mut keys: Vec<VerifierKey> = Vec::new();
    for word in words {
        let path = Path::new(word);
        let text = if path.exists() { read(path, flag)? } else { word.clone() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let key = VerifierKey::parse(line).map_err(|error| {
                let what = match (path.is_file(), word.contains('+')) {
                    (true, _) => format!("{flag} {word} holds no key: {error}"),
                    (false, true) => format!("{flag} {word} is no key: {error}"),
                    (false, false) => format!("{flag} {word}: there is no such file, and it is no key; check the path"),
                };
                Failure::usage(what)
            })?;
            if key.algorithm() != wanted {
                let what = if wanted == Algorithm::Cosignature { "a witness" } else { "a log" };
                return Err(Failure::usage(format!("{flag}: the key {} is not the key of {what}", key.name())));
            }
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

fn read(path: &Path, flag: &str) -> Result<String, Failure> {
    small_file::read_text(path, MAX_FILE).map_err(|error| {
        let message = format!("{flag} {} cannot be read: {error}; check the path", path.display());
        if error.kind() == io::ErrorKind::FileTooLarge { Failure::usage(message) } else { Failure::new("key", message) }
    })
}
