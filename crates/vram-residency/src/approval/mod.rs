//! Approvals: a publisher's or an operator's list of which files with which digests may become resident.
//!
//! Two kinds are read: lists as `sha256sum` and `b3sum` write them, which are as good as the way by which they came, and
//! OpenSSF Model Signing bundles, which a key signed. `docs/approvals.md` tells what each proves.
//!
//! ```
//! use vram_residency::approval::{Algorithm, Manifest};
//!
//! let list = format!("{}  model.safetensors\n", "ab".repeat(32));
//! let manifest = Manifest::parse(list.as_bytes(), None, Some(Algorithm::Sha256))?;
//! assert!(manifest.get("model.safetensors").is_some());
//! # Ok::<(), vram_residency::approval::ManifestError>(())
//! ```
#![forbid(unsafe_code)]

mod bundle;
mod list;
mod remembered;
mod signer;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

pub use remembered::Remembered;
pub use signer::{SignerKey, SignerKeyError};

use sha2::{Digest as _, Sha256};

use crate::attest::KeyId;
use crate::digest::{Digest, Expected};

/// Most bytes of a manifest.
pub const MAX_MANIFEST: usize = 16 << 20;
/// Most files that a manifest may name.
pub const MAX_FILES: usize = 100_000;
/// Most bytes of a file's name.
pub const MAX_NAME: usize = 4096;

/// A hash that manifests are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are what is computed while a model is loaded")]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// BLAKE3.
    Blake3,
}

/// The text names no such hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a manifest's hash is sha256 or blake3; write one of these")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "blake3" => Ok(Self::Blake3),
            _ => Err(UnknownAlgorithm),
        }
    }
}

impl Algorithm {
    /// The name as manifests and options spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }

    const fn expecting(self, hash: [u8; 32]) -> Expected {
        match self {
            Self::Sha256 => Expected::Sha256(hash),
            Self::Blake3 => Expected::Blake3(Digest::from_bytes(hash)),
        }
    }
}

/// What kind of manifest it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// Lines of digests and names.
    List,
    /// An OpenSSF Model Signing bundle, signed with a key.
    ModelSigning,
}

impl Form {
    /// The name as records and reports spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::ModelSigning => "model-signing",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which files with which digests are approved, and by whom.
#[derive(Debug, Clone)]
pub struct Manifest {
    digest: Digest,
    form: Form,
    signer: Option<KeyId>,
    files: BTreeMap<String, Expected>,
    ignored: Vec<String>,
    allows_links: bool,
}

/// What a seal request is approved by.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "all of it must be chosen")]
pub struct Approval<'a> {
    /// The manifest that names the file.
    pub manifest: &'a Manifest,
    /// What it says of the file.
    pub expected: Expected,
    /// The digest that this worker found beside that SHA-256 before.
    pub remembered: Option<Digest>,
}

impl Approval<'_> {
    /// What is compared: the digest itself where it is known which one belongs to the SHA-256.
    #[must_use]
    pub fn compared(&self) -> Expected {
        match (self.expected, self.remembered) {
            (Expected::Sha256(_), Some(digest)) => Expected::Blake3(digest),
            (expected, _) => expected,
        }
    }
}

/// Why a manifest approves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is longer than any that is read.
    #[error("the manifest has {bytes} bytes and at most {MAX_MANIFEST} are read; split it")]
    TooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// It names too many files.
    #[error("the manifest names more than {MAX_FILES} files; split it")]
    TooMany,
    /// It names none.
    #[error("the manifest names no file; make it with sha256sum, b3sum or model-signing")]
    Empty,
    /// A line is not as the programs write it.
    #[error(
        "line {line} of the manifest is not as sha256sum or b3sum write it: {reason}; make it again with one of them"
    )]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Both hashes look alike in such a list.
    #[error("line {line} of the manifest does not say which hash it is; use --tag lists, or say --manifest-hash")]
    Algorithm {
        /// Its number, from 1.
        line: usize,
    },
    /// A name that no file of a model can have.
    #[error("the manifest names {name:?}, which {reason}; names are paths below the model's directory")]
    Name {
        /// The name.
        name: Box<str>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name that is there twice.
    #[error("the manifest names {name:?} twice; make it again")]
    Duplicate {
        /// The name.
        name: Box<str>,
    },
    /// A key was given in the place of the manifest.
    #[error(
        "this is a key in PEM and no manifest; name the signed bundle here, and the public key with --manifest-key"
    )]
    IsKey,
    /// A list cannot be checked with a key.
    #[error("a key was given and the manifest is a list, which nobody signed; give the signed bundle, or no key")]
    Unsigned,
    /// A bundle was given without a key.
    #[error(
        "the manifest is a signed bundle and no key was given; name the publisher's public key with --manifest-key"
    )]
    NoKey,
    /// It is no bundle that is understood.
    #[error("the manifest is no model signature that is understood: {reason}; sign the model again with a key")]
    Bundle {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Its JSON, or that of what was signed, is not that of a model signature.
    #[error("the manifest is no model signature that is understood: {reason}; sign the model again with a key")]
    Json {
        /// What is wrong with it, in words that may hold some of it.
        reason: Box<str>,
        /// Where, from 1.
        line: usize,
        /// Where in that line.
        column: usize,
    },
    /// Another key signed it.
    #[error("the manifest names the key {found} and the given one is {given}; get the right key, or refuse the model")]
    OtherKey {
        /// The key that it names.
        found: KeyId,
        /// The key that was given.
        given: KeyId,
    },
    /// The signature does not hold.
    #[error("the manifest's signature is not that of the key {key}: it was changed or forged; do not use the model")]
    Signature {
        /// The key that was given.
        key: KeyId,
    },
}

impl ManifestError {
    /// The same for a log that is kept for long: without what the manifest's text may say of directories and persons. Of a
    /// name its last part is left.
    #[must_use]
    pub fn for_the_record(&self) -> Self {
        let last = |name: &str| name.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().into();
        match self {
            Self::Name { name, reason } => Self::Name { name: last(name), reason },
            Self::Duplicate { name } => Self::Duplicate { name: last(name) },
            Self::Json { line, column, .. } => {
                let reason = format!("its JSON is wrong at line {line} column {column}").into();
                Self::Json { reason, line: *line, column: *column }
            }
            other => other.clone(),
        }
    }
}

impl Manifest {
    /// Reads a manifest: a bundle where it begins like JSON, else a list. `key` is the publisher's, whom a bundle must be
    /// signed by. `algorithm` is for lists whose lines do not name one.
    ///
    /// # Errors
    /// [`ManifestError`]: nothing of a manifest that is not understood in full is used.
    pub fn parse(bytes: &[u8], key: Option<&SignerKey>, algorithm: Option<Algorithm>) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST {
            return Err(ManifestError::TooLong { bytes: bytes.len() });
        }
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") {
            return Err(ManifestError::IsKey);
        }
        let looks_signed = bytes.trim_ascii_start().starts_with(b"{");
        let manifest = match (looks_signed, key) {
            (true, Some(key)) => bundle::parse(bytes, key)?,
            (true, None) => return Err(ManifestError::NoKey),
            (false, Some(_)) => return Err(ManifestError::Unsigned),
            (false, None) => Self {
                digest: Digest::of(bytes),
                form: Form::List,
                signer: None,
                files: list::parse(bytes, algorithm)?,
                ignored: Vec::new(),
                allows_links: true,
            },
        };
        if manifest.files.is_empty() { Err(ManifestError::Empty) } else { Ok(manifest) }
    }

    /// BLAKE3 of the manifest's own bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// What kind it is.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// The key that signed it, where one did.
    #[must_use]
    pub const fn signer(&self) -> Option<KeyId> {
        self.signer
    }

    /// What it says of a file, by its path below the model's directory, with `/` between the parts.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Expected> {
        self.files.get(name).copied()
    }

    /// The files that it names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether it leaves out a path, so that what is there does not matter.
    #[must_use]
    pub fn ignores(&self, name: &str) -> bool {
        let is_in = |path: &String| {
            name.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.ignored.iter().any(is_in)
    }

    /// Whether a file may be a symbolic link.
    #[must_use]
    pub const fn allows_links(&self) -> bool {
        self.allows_links
    }
}

/// The hash of a source, of the kind that is expected of it: for files beside a model that do not become resident.
///
/// # Errors
/// Whatever the source answers.
pub fn hash_like(expected: Expected, source: &mut dyn Read) -> io::Result<Expected> {
    let mut sha256 = Sha256::new();
    let mut blake3 = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else { break };
        match expected {
            Expected::Sha256(_) => sha256.update(part),
            Expected::Blake3(_) => {
                blake3.update(part);
            }
        }
    }
    Ok(match expected {
        Expected::Sha256(_) => Expected::Sha256(sha256.finalize().into()),
        Expected::Blake3(_) => Expected::Blake3(Digest::from_bytes(blake3.finalize().into())),
    })
}

/// Adds a file, if its name is a path below a directory that is not there yet.
fn add(files: &mut BTreeMap<String, Expected>, name: &str, expected: Expected) -> Result<(), ManifestError> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let refuse = |reason| {
        let name = name.chars().take(MAX_NAME).collect::<String>().into();
        Err(ManifestError::Name { name, reason })
    };
    if name.is_empty() || name.len() > MAX_NAME {
        return refuse("is empty or too long");
    }
    if name.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    if name.starts_with('/') {
        return refuse("starts at the root");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("has an empty part, or . or ..");
    }
    if files.len() >= MAX_FILES {
        return Err(ManifestError::TooMany);
    }
    match files.insert(name.to_owned(), expected) {
        None => Ok(()),
        Some(_) => Err(ManifestError::Duplicate { name: name.into() }),
    }
}
