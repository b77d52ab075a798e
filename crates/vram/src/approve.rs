//! Approvals: whether the files that are given are the ones that a manifest names.
//!
//! A directory must match exactly: every file in it is named, and every name is a file in it. Single files must be named;
//! what else is named is told. Model files are compared while they become resident, all others here.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vram_residency::approval::{
    Algorithm, Approval, MAX_FILES, MAX_MANIFEST, Manifest, ManifestError, Remembered, SignerKey, hash_like,
};
use vram_residency::digest::{Digest, Expected};
use vram_residency::{Error, VramManager};

use crate::exit::Failure;
use crate::jobs::{Job, name_of};
use crate::state;

/// Directories inside one another, at most.
const DEEPEST: usize = 64;

/// What was said about a manifest.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Source {
    /// Only what this manifest approves: a sha256sum or b3sum list, or a model signature (OpenSSF Model Signing). Exit 3
    /// where anything differs.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// The public key, in PEM, that must have signed the manifest.
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub(crate) manifest_key: Option<PathBuf>,
    /// The hash of a list that does not name it: sha256 or blake3 [default: what the list's name says].
    #[arg(long, value_name = "HASH", requires = "manifest")]
    pub(crate) manifest_hash: Option<Algorithm>,
}

/// A manifest that was read, and that holds.
#[derive(Debug)]
pub(crate) struct Approver {
    manifest: Manifest,
    path: PathBuf,
    remembered: Remembered,
}

/// What a manifest says of one model file.
#[derive(Debug, Clone)]
pub(crate) struct Approved {
    by: Arc<Approver>,
    expected: Expected,
}

/// The same for programs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ApprovalView {
    pub(crate) manifest: Digest,
    pub(crate) form: &'static str,
    /// The key that signed it.
    pub(crate) signer: Option<String>,
    pub(crate) approved: String,
    /// Whether the digest that belongs to this SHA-256 was known from an earlier load.
    pub(crate) remembered: bool,
    /// Bytes that were hashed with SHA-256 for this load.
    pub(crate) sha256_bytes: u64,
}

impl Approved {
    pub(crate) fn approval(&self) -> Approval<'_> {
        let Self { by, expected } = self;
        Approval { manifest: &by.manifest, expected: *expected, remembered: by.remembered.digest_of(*expected) }
    }

    /// What is told where bytes are not those that the manifest names: in its own words, so that they can be found there.
    pub(crate) fn retell(&self, error: Error, file: &Path, remedy: &str) -> Failure {
        let is_unexpected = matches!(error, Error::Unexpected { .. });
        let failure = Failure::from(error);
        if !is_unexpected {
            return failure;
        }
        let (file, manifest, expected) = (name_of(file), name_of(&self.by.path), self.expected);
        Failure { message: format!("{file} is not what {manifest} approves ({expected}); {remedy}"), ..failure }
    }

    pub(crate) fn view(&self, sha256_bytes: u64) -> ApprovalView {
        let approval = self.approval();
        ApprovalView {
            manifest: approval.manifest.digest(),
            form: approval.manifest.form().as_str(),
            signer: approval.manifest.signer().map(|key| key.to_string()),
            approved: approval.expected.to_string(),
            remembered: approval.remembered.is_some(),
            sha256_bytes,
        }
    }
}

impl ApprovalView {
    /// By which document, in a few words.
    pub(crate) fn by(&self) -> String {
        match &self.signer {
            Some(key) => format!("{} signed by the key {key}", self.form),
            None => format!("{} {}", self.form, self.manifest),
        }
    }

    /// How its SHA-256 came to be known, where it was asked for.
    pub(crate) const fn how(&self) -> &'static str {
        match (self.sha256_bytes, self.remembered) {
            (0, true) => "; its SHA-256 was approved before, so none was computed",
            (0, false) => "",
            _ => "; SHA-256 computed while it was loaded",
        }
    }
}

impl Source {
    /// Reads the manifest, if there is one. That it is refused is on record before this returns.
    pub(crate) fn open(&self, manager: &VramManager, audit_dir: &Path) -> Result<Option<Arc<Approver>>, Failure> {
        let Some(path) = &self.manifest else { return Ok(None) };
        let shown = path.display();
        let cannot = |what: &str, path: &Path, error: io::Error| {
            let path = path.display();
            Failure::new("file", format!("the {what} {path} cannot be read: {error}; check the path"))
        };
        let key = match &self.manifest_key {
            None => None,
            Some(file) => {
                let text = read(file).map_err(|error| cannot("manifest key", file, error))?;
                let key = SignerKey::from_pem(std::str::from_utf8(&text).unwrap_or_default());
                Some(key.map_err(|error| Failure::new("key", format!("{}: {error}", file.display())))?)
            }
        };
        let bytes = read(path).map_err(|error| cannot("manifest", path, error))?;
        let algorithm = self.manifest_hash.or_else(|| hash_by_name(path));
        match Manifest::parse(&bytes, key.as_ref(), algorithm) {
            Ok(manifest) => {
                let remembered = match manifest.names().filter_map(|name| manifest.get(name)).any(is_sha256) {
                    true => manager.remembered(audit_dir),
                    false => Remembered::default(),
                };
                Ok(Some(Arc::new(Approver { manifest, path: path.clone(), remembered })))
            }
            // Nothing is wrong with the manifest: it was not said how to read it.
            Err(error @ ManifestError::Algorithm { .. }) => Err(Failure::usage(format!("{shown}: {error}"))),
            Err(error) => Err(refuse(manager, Some(Digest::of(&bytes)), &format!("{}: {error}", name_of(path)))),
        }
    }
}

impl Approver {
    /// Approves every job or none; gives the names for which there is no file. That it is refused is on record before
    /// this returns.
    pub(crate) fn approve(
        self: &Arc<Self>,
        arguments: &[PathBuf],
        jobs: &mut [Job],
        manager: &VramManager,
    ) -> Result<Vec<String>, Failure> {
        let outcome = match arguments {
            [directory] if directory.is_dir() => self.approve_directory(directory, jobs),
            files if files.iter().any(|file| file.is_dir()) => {
                let message = "--manifest is about one directory, or about files; name them in another run";
                return Err(Failure::usage(message));
            }
            files => self.approve_files(files, jobs),
        };
        outcome.map_err(|reason| {
            let reason = format!("{reason}; nothing is loaded by the manifest {}", name_of(&self.path));
            refuse(manager, Some(self.manifest.digest()), &reason)
        })
    }

    fn approve_directory(self: &Arc<Self>, root: &Path, jobs: &mut [Job]) -> Result<Vec<String>, String> {
        let found = self.files_below(root)?;
        if let Some(missing) = self.manifest.names().find(|name| !found.contains(*name)) {
            return Err(format!("the manifest names '{missing}', which is not in {}", name_of(root)));
        }
        let mut others = found;
        for job in jobs {
            let name = job.file.path().strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default().to_owned();
            job.approved = Some(self.approved(&name)?);
            others.remove(&name);
        }
        for name in others {
            self.compare(&root.join(&name), &name)?;
        }
        Ok(Vec::new())
    }

    fn approve_files(self: &Arc<Self>, arguments: &[PathBuf], jobs: &mut [Job]) -> Result<Vec<String>, String> {
        let mut unused: BTreeSet<&str> = self.manifest.names().collect();
        let last_of = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        for job in &mut *jobs {
            let name = last_of(job.file.path());
            self.check_link(job.file.path(), &name)?;
            job.approved = Some(self.approved(&name)?);
            unused.remove(name.as_str());
        }
        // An index that led to the files is approved too, where it is named.
        for argument in arguments {
            let name = last_of(argument);
            if unused.remove(name.as_str()) {
                self.compare(argument, &name)?;
            }
        }
        Ok(unused.into_iter().map(str::to_owned).collect())
    }

    fn approved(self: &Arc<Self>, name: &str) -> Result<Approved, String> {
        let expected = self.manifest.get(name).ok_or_else(|| self.unnamed(name))?;
        Ok(Approved { by: Arc::clone(self), expected })
    }

    fn unnamed(&self, name: &str) -> String {
        format!("the manifest does not name '{name}'{}", self.hint(name))
    }

    /// The same file below a directory, as a list has it that was made outside.
    fn hint(&self, name: &str) -> String {
        let longer = self.manifest.names().find(|other| other.strip_suffix(name).is_some_and(|dir| dir.ends_with('/')));
        let hint = longer.map(|other| format!("; it names '{other}': make the list in the directory that is loaded"));
        hint.unwrap_or_default()
    }

    /// Compares a file that does not become resident.
    fn compare(&self, path: &Path, name: &str) -> Result<(), String> {
        let expected = self.manifest.get(name).ok_or_else(|| self.unnamed(name))?;
        let cannot = |error: io::Error| format!("'{name}' cannot be read: {error}");
        let mut file = state::open_key(path).map_err(cannot)?;
        let actual = hash_like(expected, &mut file).map_err(cannot)?;
        if actual == expected { Ok(()) } else { Err(format!("'{name}' is {actual} and {expected} is approved")) }
    }

    fn check_link(&self, path: &Path, name: &str) -> Result<(), String> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
        if is_link && !self.manifest.allows_links() {
            return Err(format!("'{name}' is a symbolic link, which the manifest does not allow"));
        }
        Ok(())
    }

    /// The names of all files below a directory, but for the manifest itself and what it leaves out.
    fn files_below(&self, root: &Path) -> Result<BTreeSet<String>, String> {
        let own = fs::metadata(&self.path).ok();
        let is_own =
            |facts: &Metadata| own.as_ref().is_some_and(|own| (own.dev(), own.ino()) == (facts.dev(), facts.ino()));
        let mut names = BTreeSet::new();
        let mut open = vec![(root.to_owned(), String::new(), 0_usize)];
        while let Some((directory, prefix, depth)) = open.pop() {
            let shown = name_of(&directory);
            let cannot = |error: io::Error| format!("{shown} cannot be read: {error}");
            for entry in fs::read_dir(&directory).map_err(cannot)? {
                let entry = entry.map_err(cannot)?;
                let name = entry.file_name();
                let name = name.to_str().ok_or_else(|| format!("{shown} has a file whose name is not UTF-8"))?;
                let name = format!("{prefix}{name}");
                if self.manifest.ignores(&name) {
                    continue;
                }
                let path = entry.path();
                self.check_link(&path, &name)?;
                let facts = fs::metadata(&path).map_err(|error| format!("'{name}' cannot be examined: {error}"))?;
                if facts.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < DEEPEST {
                    open.push((path, format!("{name}/"), depth.saturating_add(1)));
                } else if !facts.is_file() {
                    return Err(format!("'{name}' is neither a file nor a plain directory within {DEEPEST} others"));
                } else if !is_own(&facts) && (!names.insert(name) || names.len() > MAX_FILES) {
                    return Err(format!("{} has more than {MAX_FILES} files", name_of(root)));
                }
            }
        }
        if let Some(extra) = names.iter().find(|name| self.manifest.get(name).is_none()) {
            let hint = self.hint(extra);
            return Err(format!("{} has '{extra}', which the manifest does not name{hint}", name_of(root)));
        }
        Ok(names)
    }
}

/// What is told of names for which no file was given.
pub(crate) fn told(unused: &[String]) -> Option<String> {
    let first = unused.first()?;
    Some(match unused.len().saturating_sub(1) {
        0 => format!("the manifest also names '{first}', which was not given"),
        more => format!("the manifest also names '{first}' and {more} more, which were not given"),
    })
}

/// What became of reading headers. A file that is there and is no model is not what its manifest approves: that is told
/// once there is a log to record it in.
pub(crate) fn readable<T: Default>(
    planned: Result<T, Failure>,
    arguments: &[PathBuf],
    source: &Source,
) -> Result<(T, Option<Failure>), Failure> {
    let is_approved = source.manifest.is_some() && arguments.iter().all(|file| file.exists());
    match planned {
        Err(failure) if failure.kind == "model" && is_approved => Ok((T::default(), Some(failure))),
        planned => Ok((planned?, None)),
    }
}

/// Refuses what is no model. That it is refused is on record before this returns.
pub(crate) fn refuse_unreadable(manager: &VramManager, unreadable: Option<Failure>) -> Result<(), Failure> {
    match unreadable {
        None => Ok(()),
        Some(failure) => {
            // The model's own words name paths, which do not belong into the log.
            let refused = refuse(manager, None, "a file is no model, so it is not what the manifest approves");
            Err(Failure { message: format!("{}; so it is not what the manifest approves", failure.message), ..refused })
        }
    }
}

/// Refuses files without a manifest, where one is required. That they are refused is on record before this returns.
pub(crate) fn refuse_without(manager: &VramManager) -> Failure {
    refuse(
        manager,
        None,
        "no manifest was given, and this daemon loads only what one approves; name it with --manifest",
    )
}

/// Records a refusal, then tells of it.
fn refuse(manager: &VramManager, manifest: Option<Digest>, reason: &str) -> Failure {
    match manager.record_refused_approval(manifest, reason) {
        Ok(()) => Failure::integrity("approval", reason),
        Err(error) => Failure::integrity("approval", format!("{reason}; and {error}")),
    }
}

const fn is_sha256(expected: Expected) -> bool {
    matches!(expected, Expected::Sha256(_))
}

/// Which hash a list's name tells of: `SHA256SUMS`, `model.sha256`, `B3SUMS`, `model.b3`, `blake3.txt`.
fn hash_by_name(path: &Path) -> Option<Algorithm> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match (has(&["sha256"]), has(&["b3", "blake3"])) {
        (true, false) => Some(Algorithm::Sha256),
        (false, true) => Some(Algorithm::Blake3),
        _ => None,
    }
}

/// A file of a manifest's size, at most by one byte longer, so that its reader sees that it is too long.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let most = u64::try_from(MAX_MANIFEST).unwrap_or(u64::MAX).saturating_add(1);
    let file = state::open_key(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lists_name_tells_its_hash_or_nobody_guesses() {
        for (name, hash) in [
            ("SHA256SUMS", Some(Algorithm::Sha256)),
            ("llama.sha256", Some(Algorithm::Sha256)),
            ("B3SUMS", Some(Algorithm::Blake3)),
            ("llama.blake3", Some(Algorithm::Blake3)),
            ("checksums.txt", None),
            ("sha256-and-b3.txt", None),
        ] {
            assert_eq!(hash_by_name(Path::new(name)), hash, "{name}");
        }
        assert_eq!(told(&["a".to_owned()]).unwrap(), "the manifest also names 'a', which was not given");
        let more = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(told(&more).unwrap(), "the manifest also names 'a' and 2 more, which were not given");
        assert_eq!(told(&[]), None);
    }
}
