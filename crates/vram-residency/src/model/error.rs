//! Why a file was refused: one closed set of reasons, each with the place.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a model file, or the index of a sharded model, was refused.
///
/// Offsets count bytes from the start of the file. Names come from the file: they are shown escaped and shortened.
/// The cause of an operating system error is part of the sentence, so it is not repeated as a `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the sentence of each variant names")]
pub enum ModelError {
    /// The fault, and the file it was found in.
    #[error("{}: {fault}", path.display())]
    In { path: PathBuf, fault: Box<ModelError> },

    /// The file cannot be opened or examined.
    #[error("cannot be opened: {cause}{}", remedy(cause))]
    Open { cause: io::Error },

    /// A pipe, a device or a socket.
    #[error("is not a regular file; copy the model into one first")]
    NotAFile,

    /// A directory where one file was expected.
    #[error("is a directory; name one model file in it")]
    IsADirectory,

    /// No byte in the file.
    #[error("is empty; download or copy the model again")]
    Empty,

    /// The operating system reported an error, or the file became shorter while it was read.
    #[error("cannot be read at byte {offset}: {cause}")]
    Read { offset: u64, cause: io::Error },

    /// Neither format is recognised from the content.
    #[error(
        "starts like neither a safetensors nor a GGUF file; \
         if it is meant to be something else, seal its bytes as they are with --format raw"
    )]
    Unrecognized,

    /// What Git leaves in place of a large file that was not fetched.
    #[error("is a Git LFS pointer, not the model; fetch the model with git lfs pull")]
    LfsPointer,

    /// The first four bytes are not those of every GGUF file.
    #[error("is not a GGUF file: the bytes at byte {offset} are not GGUF; leave out --format to have its kind found")]
    NotGguf { offset: u64 },

    /// Something needs more bytes than the file has left.
    #[error("{what} at byte {offset} needs {needed} bytes, but the file has {left} left; it is cut short or damaged")]
    Truncated { what: &'static str, offset: u64, needed: u64, left: u64 },

    /// A number in the file is larger than any honest file needs.
    #[error(
        "{what} at byte {offset} is {found}, more than the limit of {limit}; the file is damaged, or of another kind (raw bytes: --format raw)"
    )]
    Limit { what: &'static str, offset: u64, found: u64, limit: u64 },

    /// Reading this header would take more memory than a file of this size may claim.
    #[error("reading on at byte {offset} would take more than {limit} bytes of memory, the limit for this file's size")]
    Memory { offset: u64, limit: u64 },

    /// The machine has no memory for the header.
    #[error("there is no memory for the {bytes} bytes at byte {offset}")]
    OutOfMemory { offset: u64, bytes: u64 },

    /// The JSON of the header or of the index is malformed.
    #[error("the JSON is malformed at byte {offset}: {reason}")]
    Json { offset: u64, reason: String },

    /// The same name twice: two readers could each take another one.
    #[error("{what} {name} appears a second time at byte {offset}")]
    Duplicate { what: &'static str, name: String, offset: u64 },

    /// A name that is empty or holds characters that nothing should print.
    #[error("{what} {name} at byte {offset} is not acceptable: {reason}")]
    Name { what: &'static str, name: String, offset: u64, reason: &'static str },

    /// A field that the format does not define.
    #[error("tensor {name} has the unknown field {field} before byte {offset}")]
    UnknownField { name: String, field: String, offset: u64 },

    /// A field that the format demands is not there.
    #[error("tensor {name} lacks the field {field} before byte {offset}")]
    MissingField { name: String, field: &'static str, offset: u64 },

    /// An element type that the format does not define, or no longer does.
    #[error("tensor {name} has the unknown element type {found} at byte {offset}")]
    UnknownType { name: String, found: String, offset: u64 },

    /// Dimensions that cannot be.
    #[error("tensor {name} has an impossible shape at byte {offset}: {reason}")]
    Shape { name: String, offset: u64, reason: &'static str },

    /// The byte range is not as long as shape and element type say.
    #[error("tensor {name} spans {declared} bytes at byte {offset}, but its shape and type make {computed}")]
    Size { name: String, offset: u64, declared: u64, computed: u64 },

    /// Data starts where its element type, or the file's own alignment, does not allow it.
    #[error(
        "the data of tensor {name} starts at byte {offset}, which is not aligned to {alignment} bytes as it must be"
    )]
    Misaligned { name: String, offset: u64, alignment: u64 },

    /// Two tensors share bytes.
    #[error("tensor {name} starts at byte {offset}, inside the tensor before it, which ends at {previous_end}")]
    Overlap { name: String, offset: u64, previous_end: u64 },

    /// Bytes that belong to no tensor.
    #[error("bytes {expected} to {offset} before tensor {name} belong to no tensor")]
    Hole { name: String, offset: u64, expected: u64 },

    /// A tensor ends after the file does.
    #[error("tensor {name} spans bytes {offset} to {end}, but the file has {len}; it is cut short or damaged")]
    BeyondEnd { name: String, offset: u64, end: u64, len: u64 },

    /// The file goes on after everything it describes.
    #[error("{bytes} bytes at byte {offset} follow the last tensor and belong to nothing")]
    Trailing { offset: u64, bytes: u64 },

    /// A GGUF version that is not read.
    #[error("GGUF version {found} at byte {offset} is not supported, only 2 and 3; convert the file")]
    Version { found: u32, offset: u64 },

    /// A GGUF file for big-endian machines.
    #[error("the GGUF file is big-endian (its version at byte {offset} is byte-swapped); convert it to little-endian")]
    BigEndian { offset: u64 },

    /// `general.alignment` is unusable.
    #[error("general.alignment at byte {offset} is {found}, not a power of two from 8 to 1048576")]
    Alignment { found: u64, offset: u64 },

    /// A GGUF metadata value breaks the format.
    #[error("the metadata value at byte {offset} is malformed: {reason}")]
    Value { offset: u64, reason: &'static str },

    /// Padding between header and data is not zero.
    #[error("the padding between header and tensor data is not zero at byte {offset}")]
    Padding { offset: u64 },

    /// The format's own library refuses what the checks here accepted.
    #[error("the safetensors library refuses the header: {reason}")]
    Library { reason: String },

    /// The index names a shard in a way that could leave its directory.
    #[error("the shard name {name} is refused: {reason}")]
    ShardName { name: String, reason: &'static str },

    /// A shard file lacks tensors that the index places in it.
    #[error("the index places tensor {name} in {shard}, which does not hold it")]
    MissingTensor { name: String, shard: String },

    /// A shard file holds tensors that the index does not place in it.
    #[error("{shard} holds tensor {name}, which the index does not place there")]
    ExtraTensor { name: String, shard: String },

    /// A directory without anything to seal.
    #[error("holds no model.safetensors.index.json, *.safetensors or *.gguf file; name the model file itself")]
    NoModels,
}

/// What to do about an error of the operating system, where there is something to do.
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; give this user the right to read it",
        _ => "",
    }
}

impl ModelError {
    /// Where in the file the fault is, if it has a place there.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::In { fault, .. } => fault.offset(),
            Self::Read { offset, .. }
            | Self::Truncated { offset, .. }
            | Self::Limit { offset, .. }
            | Self::Memory { offset, .. }
            | Self::OutOfMemory { offset, .. }
            | Self::Json { offset, .. }
            | Self::Duplicate { offset, .. }
            | Self::Name { offset, .. }
            | Self::UnknownField { offset, .. }
            | Self::MissingField { offset, .. }
            | Self::UnknownType { offset, .. }
            | Self::Shape { offset, .. }
            | Self::Size { offset, .. }
            | Self::Misaligned { offset, .. }
            | Self::Overlap { offset, .. }
            | Self::Hole { offset, .. }
            | Self::BeyondEnd { offset, .. }
            | Self::Trailing { offset, .. }
            | Self::Version { offset, .. }
            | Self::BigEndian { offset }
            | Self::NotGguf { offset }
            | Self::Alignment { offset, .. }
            | Self::Value { offset, .. }
            | Self::Padding { offset } => Some(*offset),
            Self::Open { .. }
            | Self::NotAFile
            | Self::IsADirectory
            | Self::Empty
            | Self::Unrecognized
            | Self::LfsPointer
            | Self::Library { .. }
            | Self::ShardName { .. }
            | Self::MissingTensor { .. }
            | Self::ExtraTensor { .. }
            | Self::NoModels => None,
        }
    }

    /// The fault itself, without the path around it.
    #[must_use]
    pub fn fault(&self) -> &ModelError {
        match self {
            Self::In { fault, .. } => fault.fault(),
            fault => fault,
        }
    }

    /// The same fault, with the file it was found in.
    pub(super) fn within(self, path: &Path) -> Self {
        match self {
            inside @ Self::In { .. } => inside,
            fault => Self::In { path: path.to_owned(), fault: Box::new(fault) },
        }
    }
}

/// A name from a file as it may be printed: quoted, escaped, at most 80 characters of it.
pub(super) fn shown(name: &str) -> String {
    struct Quoted<'a>(&'a str);
    impl fmt::Display for Quoted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0.char_indices().nth(80) {
                Some((end, _)) => write!(f, "{:?}...", self.0.get(..end).unwrap_or_default()),
                None => write!(f, "{:?}", self.0),
            }
        }
    }
    Quoted(name).to_string()
}
