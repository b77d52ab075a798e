//! Where a log lies: the directory in which it is written, the files that are published of it, or both.

use std::path::{Path, PathBuf};

use audit_logging::tlog::source::{DirSource, Source};

use crate::cli::Global;
use crate::exit::Failure;
use crate::state;

/// Where the published files lie below the directory of the log.
pub(super) const PUBLISHED: &str = "tlog";

/// A log, found.
pub(super) struct Found {
    /// What was named.
    pub(super) shown: String,
    /// The directory with the segments.
    pub(super) wal: Option<PathBuf>,
    /// The published files.
    pub(super) published: Option<Box<dyn Source>>,
}

/// Finds what was named: a log's directory, a published directory, a URL; else the default log.
pub(super) fn find(named: Option<&str>, global: &Global) -> Result<Found, Failure> {
    let dir = match named {
        Some(named) if named.contains("://") => return remote(named),
        Some(named) => PathBuf::from(named),
        None => state::audit_dir(global)?,
    };
    let shown = dir.to_string_lossy().into_owned();
    let published = |dir: &Path| Some(Box::new(DirSource::new(dir)) as Box<dyn Source>);
    let has_segments = has_segments(&dir);
    if !has_segments && is_published(&dir) {
        return Ok(Found { shown, wal: None, published: published(&dir) });
    }
    let below = dir.join(PUBLISHED);
    let published = if is_published(&below) { published(&below) } else { None };
    Ok(Found { shown, wal: Some(dir), published })
}

fn is_published(dir: &Path) -> bool {
    dir.join("checkpoint").exists() || dir.join("tile").is_dir()
}

fn has_segments(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "wal"))
}

fn remote(url: &str) -> Result<Found, Failure> {
    Err(Failure::usage(format!("{url} cannot be read: this build reads directories")))
}
