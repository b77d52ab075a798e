//! Model files: strict, bounded readers that turn a header into a tensor table.
//!
//! A seal binds names to bytes. So a header that two programs could read differently is refused here, with the
//! offset of the fault, before a single byte of the model becomes resident: names that appear twice, ranges that
//! overlap or leave holes, counts that the file cannot hold, sizes that overflow, types that nobody knows, bytes that
//! belong to nothing. Only the header is read, never a tensor. What reading it may allocate is bounded by the
//! [`limits`] and by the size of the file, not by any number in the file.
//!
//! ```
//! use vram_residency::model::{self, Dtype, Format, writer::{Layout, TensorSpec}};
//!
//! let layout = Layout::new(vec![TensorSpec::new("embedding.weight", Dtype::BF16, [4, 8])])?;
//! let mut file = Vec::new();
//! layout.write(&mut file, |_tensor, _offset, bytes| bytes.fill(7)).expect("a Vec takes every byte");
//!
//! let parsed = model::parse(&file, None)?;
//! assert_eq!(parsed.format, Format::Safetensors);
//! let tensor = parsed.table.get("embedding.weight").expect("it was written");
//! assert_eq!(tensor.bytes(), 4 * 8 * 2);
//! assert_eq!(parsed.table.locate(tensor.start), Some(tensor));
//! # Ok::<(), model::ModelError>(())
//! ```
#![forbid(unsafe_code)]

mod cursor;
mod discover;
mod dtype;
mod error;
mod gguf;
pub mod limits;
mod safetensors;
mod source;
mod table;
pub mod writer;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};

pub use discover::{Found, ShardIndex, discover, find};
pub use dtype::{Dtype, UnknownDtype};
pub use error::ModelError;
pub(crate) use source::read_once_exact_at;
pub use source::{Source, read_exact_at};
pub use table::{Tensor, TensorTable};

/// How a model file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A JSON header, then the tensors.
    Safetensors,
    /// Binary metadata, then the tensors, each aligned.
    Gguf,
    /// Bytes without a structure: no tensors are named.
    Raw,
}

impl Format {
    /// The name by which the command line and records know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Gguf => "gguf",
            Format::Raw => "raw",
        }
    }

    /// The format that the first bytes announce. It says nothing about whether the rest is sound.
    fn of_content(source: &dyn Source) -> Result<Option<Format>, ModelError> {
        let mut start = [0; 9];
        let count = usize::try_from(source.len()).unwrap_or(usize::MAX).min(start.len());
        read_exact_at(source, 0, start.get_mut(..count).unwrap_or_default())?;
        Ok(match start {
            _ if start.starts_with(&gguf::MAGIC) => Some(Format::Gguf),
            [.., b'{'] => Some(Format::Safetensors),
            _ => None,
        })
    }

    /// The format that the file's name announces.
    fn of_name(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "safetensors" => Some(Format::Safetensors),
            "gguf" => Some(Format::Gguf),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names none of the formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown format; one of safetensors, gguf, raw")]
pub struct UnknownFormat;

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "safetensors" => Ok(Format::Safetensors),
            "gguf" => Ok(Format::Gguf),
            "raw" => Ok(Format::Raw),
            _ => Err(UnknownFormat),
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The format it was read as.
    pub format: Format,
    /// The tensors; none for raw bytes.
    pub table: TensorTable,
    /// Where the tensors' bytes start; 0 for raw bytes.
    pub data_start: u64,
    /// BLAKE3 of the bytes before `data_start`, taken of the very bytes that were parsed.
    pub header_digest: [u8; 32],
}

/// Reads the header of a model, as `format` or as what its content announces.
///
/// # Errors
/// The first fault found, with its offset; [`ModelError::Unrecognized`] if no format was given and the content
/// announces none.
pub fn parse(source: &dyn Source, format: Option<Format>) -> Result<Parsed, ModelError> {
    if source.is_empty() {
        return Err(ModelError::Empty);
    }
    let format = match format {
        Some(format) => format,
        None => Format::of_content(source)?.ok_or(ModelError::Unrecognized)?,
    };
    match format {
        Format::Safetensors => safetensors::parse(source),
        Format::Gguf => gguf::parse(source),
        Format::Raw => Ok(Parsed {
            format,
            table: TensorTable::empty(),
            data_start: 0,
            header_digest: blake3::Hasher::new().finalize().into(),
        }),
    }
}

/// A model file whose header has been read and found sound. The file stays open: its tensors are read from the same
/// file even if another takes its name.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    file: Arc<File>,
    len: u64,
    modified: Option<SystemTime>,
    parsed: Parsed,
}

impl ModelFile {
    /// Opens a file and reads its header, as `format` or as what its content announces.
    ///
    /// # Errors
    /// [`ModelError::In`] with the path and the reason: it is not there, not a file, empty, or its header is refused.
    pub fn open(path: &Path, format: Option<Format>) -> Result<ModelFile, ModelError> {
        Self::open_file(path, format).map_err(|fault| fault.within(path))
    }

    fn open_file(path: &Path, format: Option<Format>) -> Result<ModelFile, ModelError> {
        let (file, metadata) = open_regular(path)?;
        let len = metadata.len();
        if format != Some(Format::Raw) && starts_with(&file, LFS_POINTER)? {
            return Err(ModelError::LfsPointer);
        }
        let parsed = match parse(&Fixed { file: &file, len }, format) {
            // The name promises a format that the content does not begin like: say what is wrong with it.
            Err(ModelError::Unrecognized) if Format::of_name(path).is_some() => {
                parse(&Fixed { file: &file, len }, Format::of_name(path))?
            }
            outcome => outcome?,
        };
        Ok(ModelFile { path: path.to_owned(), file: Arc::new(file), len, modified: metadata.modified().ok(), parsed })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: an empty file is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The format it was read as.
    #[must_use]
    pub fn format(&self) -> Format {
        self.parsed.format
    }

    /// Its tensors.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.parsed.table
    }

    /// Where the tensors' bytes start; 0 for raw bytes.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.parsed.data_start
    }

    /// How far behind a 256-byte boundary the file's first byte lies in memory, so that its tensors start on one.
    #[must_use]
    pub fn lead_bytes(&self) -> u8 {
        lead_bytes(self.parsed.data_start)
    }

    /// BLAKE3 of the bytes before [`data_start`](ModelFile::data_start), taken of the very bytes that were parsed.
    ///
    /// A file may be changed between the reading of its header and the copying of its bytes. Whoever holds the copy
    /// hashes its first `data_start` bytes and compares: only if they agree does the table describe the copy.
    #[must_use]
    pub fn header_digest(&self) -> [u8; 32] {
        self.parsed.header_digest
    }

    /// Whether the file still has the length and the modification time that it had when it was opened.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        let now = self.file.metadata();
        now.is_ok_and(|now| now.len() == self.len && now.modified().ok() == self.modified)
    }

    /// The open file. Its length is what the file system says now, not what it said when it was opened.
    #[must_use]
    pub fn source(&self) -> &dyn Source {
        &*self.file
    }

    /// The open file, for whoever needs it longer than this: repairs come from there, whatever happens to the path.
    #[must_use]
    pub fn shared_source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.file) as _
    }
}

/// How Git LFS begins the small text that stands for a large file.
const LFS_POINTER: &[u8; 24] = b"version https://git-lfs.";

fn starts_with<const N: usize>(source: &dyn Source, text: &[u8; N]) -> Result<bool, ModelError> {
    let mut start = [0; N];
    if source.len() < u64::try_from(N).unwrap_or(u64::MAX) {
        return Ok(false);
    }
    read_exact_at(source, 0, &mut start)?;
    Ok(start == *text)
}

/// Opens a regular file with bytes in it, and waits for nobody where the name is that of something else.
fn open_regular(path: &Path) -> Result<(File, fs::Metadata), ModelError> {
    let cannot = |cause| ModelError::Open { cause };
    // Before it is opened, because opening a device may do something; and after, because the name may have changed hands.
    check_kind(&fs::metadata(path).map_err(cannot)?)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| cannot(error.into()))?);
    let metadata = file.metadata().map_err(cannot)?;
    check_kind(&metadata)?;
    Ok((file, metadata))
}

/// Refuses what is not a regular file with bytes in it.
fn check_kind(metadata: &fs::Metadata) -> Result<(), ModelError> {
    match metadata {
        _ if metadata.is_dir() => Err(ModelError::IsADirectory),
        _ if !metadata.is_file() => Err(ModelError::NotAFile),
        _ if metadata.len() == 0 => Err(ModelError::Empty),
        _ => Ok(()),
    }
}

/// A file as long as it was when it was opened, so that one header is judged by one length.
struct Fixed<'a> {
    file: &'a File,
    len: u64,
}

impl Source for Fixed<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        Source::read_at(self.file, offset, buf)
    }
}

/// See [`ModelFile::lead_bytes`].
pub(crate) fn lead_bytes(data_start: u64) -> u8 {
    const BOUNDARY: u64 = 256;
    let over = data_start % BOUNDARY;
    u8::try_from(BOUNDARY.saturating_sub(over) % BOUNDARY).unwrap_or(0)
}
