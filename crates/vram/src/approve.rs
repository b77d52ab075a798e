//! Approvals: whether the files that are given are the ones that a manifest names.
//!
//! A directory must match exactly: every file in it is named, and every name is a file in it. Single files must be named;
//! what else is named is told. Model files are compared while they become resident, all others here; of an index, the
//! bytes that decided which files make the model.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vram_residency::approval::{
    Algorithm, Approval, Form, MAX_FILES, MAX_MANIFEST, Manifest, ManifestError, Remembered, SignerKey, hash_like,
};
use vram_residency::digest::{Digest, Expected};
use vram_residency::model::ShardIndex;
use vram_residency::{Error, VramManager};

use crate::exit::Failure;
use crate::jobs::{Job, name_of};
use crate::small_file;

pub(crate) use unreadable::{Unreadable, readable, refuse_unreadable};

mod unreadable;

/// Directories inside one another, at most.
const DEEPEST: usize = 64;
/// Bytes of a public key's text, at most.
const MAX_KEY: u64 = 64 << 10;

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
            Some(key) => format!("{} bundle that the key {key} signed", self.form),
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
        match self.read(path)? {
            Ok(manifest) => {
                let remembered = match manifest.names().filter_map(|name| manifest.get(name)).any(is_sha256) {
                    true => manager.remembered(audit_dir),
                    false => Remembered::default(),
                };
                Ok(Some(Arc::new(Approver { manifest, path: path.clone(), remembered })))
            }
            Err((digest, refused)) => Err(refuse(manager, digest, &refused)),
        }
    }

    /// The manifest, or why it approves nothing, with the digest of its bytes. A failure where nobody can know that yet.
    fn read(&self, path: &Path) -> Result<Result<Manifest, (Option<Digest>, Refused)>, Failure> {
        let cannot = |what: &str, path: &Path, error: io::Error| {
            let path = path.display();
            Failure::new("file", format!("the {what} {path} cannot be read: {error}; check the path"))
        };
        let key = match &self.manifest_key {
            None => None,
            Some(file) => {
                let text = small_file::read(file, MAX_KEY).map_err(|error| cannot("manifest key", file, error))?;
                let key = SignerKey::from_pem(std::str::from_utf8(&text).unwrap_or_default());
                Some(key.map_err(|error| Failure::new("key", format!("{}: {error}", file.display())))?)
            }
        };
        let most = u64::try_from(MAX_MANIFEST).unwrap_or(u64::MAX);
        let bytes = match small_file::read(path, most) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let told = |to: To| format!("the manifest {} is too large: {error}; split it", to.path(path));
                return Ok(Err((None, Refused::new(told))));
            }
            read => read.map_err(|error| cannot("manifest", path, error))?,
        };
        let algorithm = self.manifest_hash.or_else(|| hash_by_name(path));
        match Manifest::parse(&bytes, key.as_ref(), algorithm) {
            Ok(manifest) => Ok(Ok(manifest)),
            // Nothing is wrong with the manifest: it was not said how to read it.
            Err(error @ ManifestError::Algorithm { .. }) => Err(Failure::usage(format!("{}: {error}", path.display()))),
            Err(error) => {
                let refused = Refused::new(|to| match to {
                    To::Person => format!("{}: {error}", to.path(path)),
                    To::Record => format!("{}: {}", to.path(path), error.for_the_record()),
                });
                Ok(Err((Some(Digest::of(&bytes)), refused)))
            }
        }
    }
}

/// Whom a sentence is for. Records are kept for as long as the log, and name no directories, which could name persons.
#[derive(Debug, Clone, Copy)]
enum To {
    Person,
    Record,
}

impl To {
    /// A file's name below the model's directory, or its last part.
    fn name(self, name: &str) -> String {
        let name = match self {
            Self::Person => name,
            Self::Record => name.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default(),
        };
        name.replace(char::is_control, "\u{fffd}")
    }

    /// A file that was named on the command line or in the configuration.
    fn path(self, path: &Path) -> String {
        self.name(&name_of(path))
    }

    fn directory(self, path: &Path) -> String {
        match self {
            Self::Person => name_of(path),
            Self::Record => "the directory".to_owned(),
        }
    }
}

/// Why something is not approved.
struct Refused {
    told: String,
    recorded: String,
}

impl Refused {
    fn new(words: impl Fn(To) -> String) -> Self {
        Self { told: words(To::Person), recorded: words(To::Record) }
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
            _ => self.approve_files(jobs),
        };
        outcome.map_err(|Refused { told, recorded }| {
            let behind =
                |words: &str, to: To| format!("{words}; nothing is loaded by the manifest {}", to.path(&self.path));
            let refused = Refused { told: behind(&told, To::Person), recorded: behind(&recorded, To::Record) };
            refuse(manager, Some(self.manifest.digest()), &refused)
        })
    }

    fn approve_directory(self: &Arc<Self>, root: &Path, jobs: &mut [Job]) -> Result<Vec<String>, Refused> {
        let below = |path: &Path| path.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default().to_owned();
        let index = jobs.iter().find_map(|job| job.index.clone());
        let index = index.map(|index| (below(index.path()), index));
        if let Some((name, index)) = &index {
            self.approve_index(index, name)?;
        }
        let mut others = self.files_below(root)?;
        if let Some(missing) = self.manifest.names().find(|name| !others.contains(*name)) {
            let told =
                |to: To| format!("the manifest names '{}', which is not in {}", to.name(missing), to.directory(root));
            return Err(Refused::new(told));
        }
        if let Some((name, _)) = &index {
            others.remove(name);
        }
        for job in jobs {
            let name = below(job.file.path());
            job.approved = Some(self.approved(&name)?);
            others.remove(&name);
        }
        for name in others {
            self.compare(&root.join(&name), &name)?;
        }
        Ok(Vec::new())
    }

    fn approve_files(self: &Arc<Self>, jobs: &mut [Job]) -> Result<Vec<String>, Refused> {
        let mut unused: BTreeSet<&str> = self.manifest.names().collect();
        let last_of = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        for job in &mut *jobs {
            let name = last_of(job.file.path());
            self.check_link(job.file.path(), &name)?;
            job.approved = Some(self.approved(&name)?);
            unused.remove(name.as_str());
            if let Some(index) = &job.index {
                let name = last_of(index.path());
                self.check_link(index.path(), &name)?;
                self.approve_index(index, &name)?;
                unused.remove(name.as_str());
            }
        }
        Ok(unused.into_iter().map(str::to_owned).collect())
    }

    /// The bytes that decided which files make the model are those that are approved.
    fn approve_index(&self, index: &ShardIndex, name: &str) -> Result<(), Refused> {
        let Some(expected) = self.manifest.get(name) else {
            let remedy = match self.manifest.form() {
                Form::ModelSigning => "have it signed together with the model",
                _ => "add its line to the list, from where you trust it",
            };
            return Err(Refused::new(|to| {
                let (hint, name) = (self.hint(name, to), to.name(name));
                format!(
                    "'{name}' decides which files make the model, and the manifest does not name it{hint}; {remedy}"
                )
            }));
        };
        self.hold(expected, hash_like(expected, &mut index.bytes()), name)
    }

    fn approved(self: &Arc<Self>, name: &str) -> Result<Approved, Refused> {
        let expected = self.manifest.get(name).ok_or_else(|| self.unnamed(name))?;
        Ok(Approved { by: Arc::clone(self), expected })
    }

    fn unnamed(&self, name: &str) -> Refused {
        Refused::new(|to| format!("the manifest does not name '{}'{}", to.name(name), self.hint(name, to)))
    }

    /// The same file below a directory, as a list has it that was made outside.
    fn hint(&self, name: &str, to: To) -> String {
        let longer = self.manifest.names().find(|other| other.strip_suffix(name).is_some_and(|dir| dir.ends_with('/')));
        let hint = longer
            .map(|other| format!("; it names '{}': make the list in the directory that is loaded", to.name(other)));
        hint.unwrap_or_default()
    }

    /// Compares a file that does not become resident.
    fn compare(&self, path: &Path, name: &str) -> Result<(), Refused> {
        let expected = self.manifest.get(name).ok_or_else(|| self.unnamed(name))?;
        self.hold(expected, small_file::open(path).and_then(|mut file| hash_like(expected, &mut file)), name)
    }

    /// Compares what a file is with what is approved.
    fn hold(&self, expected: Expected, actual: io::Result<Expected>, name: &str) -> Result<(), Refused> {
        match actual {
            Ok(actual) if actual == expected => Ok(()),
            Ok(actual) => Err(Refused::new(|to| format!("'{}' is {actual} and {expected} is approved", to.name(name)))),
            Err(error) => Err(Refused::new(|to| format!("'{}' cannot be read: {error}", to.name(name)))),
        }
    }

    fn check_link(&self, path: &Path, name: &str) -> Result<(), Refused> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
        if is_link && !self.manifest.allows_links() {
            return Err(Refused::new(|to| {
                format!("'{}' is a symbolic link, which the manifest does not allow", to.name(name))
            }));
        }
        Ok(())
    }

    /// The names of all files below a directory, but for the manifest itself and what it leaves out.
    fn files_below(&self, root: &Path) -> Result<BTreeSet<String>, Refused> {
        // By its name: another name for the same file is another file of the directory.
        let own = place(&self.path);
        let mut names = BTreeSet::new();
        let mut open = vec![(root.to_owned(), String::new(), 0_usize)];
        while let Some((directory, prefix, depth)) = open.pop() {
            let cannot =
                |error: io::Error| Refused::new(|to| format!("{} cannot be read: {error}", to.directory(&directory)));
            for entry in fs::read_dir(&directory).map_err(cannot)? {
                let entry = entry.map_err(cannot)?;
                let name = entry.file_name();
                let name = name.to_str().ok_or_else(|| {
                    Refused::new(|to| format!("{} has a file whose name is not UTF-8", to.directory(&directory)))
                })?;
                let name = format!("{prefix}{name}");
                if self.manifest.ignores(&name) {
                    continue;
                }
                let path = entry.path();
                self.check_link(&path, &name)?;
                let facts = fs::metadata(&path)
                    .map_err(|error| Refused::new(|to| format!("'{}' cannot be examined: {error}", to.name(&name))))?;
                if facts.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < DEEPEST {
                    open.push((path, format!("{name}/"), depth.saturating_add(1)));
                } else if !facts.is_file() {
                    return Err(Refused::new(|to| {
                        let name = to.name(&name);
                        format!("'{name}' is neither a file nor a plain directory within {DEEPEST} others")
                    }));
                } else if (own.is_none() || place(&path) != own) && (!names.insert(name) || names.len() > MAX_FILES) {
                    let told = |to: To| format!("{} has more than {MAX_FILES} files", to.directory(root));
                    return Err(Refused::new(told));
                }
            }
        }
        if let Some(extra) = names.iter().find(|name| self.manifest.get(name).is_none()) {
            return Err(Refused::new(|to| {
                let (hint, root, extra) = (self.hint(extra, to), to.directory(root), to.name(extra));
                format!("{root} has '{extra}', which the manifest does not name{hint}")
            }));
        }
        Ok(names)
    }
}

/// Where a file is, the links to its directory resolved, those in its own name not.
fn place(path: &Path) -> Option<PathBuf> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::canonicalize(directory).ok()?.join(path.file_name()?))
}

/// What is told of names for which no file was given.
pub(crate) fn told(unused: &[String]) -> Option<String> {
    let first = unused.first()?;
    Some(match unused.len().saturating_sub(1) {
        0 => format!("the manifest also names '{first}', which was not given"),
        more => format!("the manifest also names '{first}' and {more} more, which were not given"),
    })
}

/// Refuses files without a manifest, where one is required. That they are refused is on record before this returns.
pub(crate) fn refuse_without(manager: &VramManager) -> Failure {
    let reason = "no manifest was given, and this daemon loads only what one approves; name it with --manifest";
    refuse(manager, None, &Refused::new(|_| reason.to_owned()))
}

/// Records a refusal, then tells of it.
fn refuse(manager: &VramManager, manifest: Option<Digest>, refused: &Refused) -> Failure {
    let Refused { told, recorded } = refused;
    match manager.record_refused_approval(manifest, recorded) {
        Ok(()) => Failure::integrity("approval", told),
        Err(error) => Failure::integrity("approval", format!("{told}; and {error}")),
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
