//! Where a log lies: the directory in which it is written, the files that are published of it, or both.

use std::path::{Path, PathBuf};

use audit_logging::tlog::source::{DirSource, Source};
use audit_replication::{RemoteSource, StoreOptions};

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
    let source = open_remote(url)?;
    Ok(Found { shown: source.shown, wal: None, published: Some(source.source) })
}

/// A published log in a directory or at a URL.
pub(super) struct Remote {
    pub(super) shown: String,
    pub(super) source: Box<dyn Source>,
}

/// Opens the published log of a copy: a directory, or a URL.
pub(super) fn open_copy(named: &str) -> Result<Remote, Failure> {
    if named.contains("://") {
        return open_remote(named);
    }
    let dir = Path::new(named);
    let dir = if is_published(dir) { dir.to_owned() } else { dir.join(PUBLISHED) };
    if !is_published(&dir) {
        return Err(Failure::new("audit", format!("no signed log is published in {named}; check the path")));
    }
    Ok(Remote { shown: named.to_owned(), source: Box::new(DirSource::new(&dir)) })
}

fn open_remote(url: &str) -> Result<Remote, Failure> {
    let source =
        RemoteSource::open(url, &StoreOptions::default()).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(Remote { shown: url.to_owned(), source: Box::new(source) })
}
