//! Files under a manifest that cannot be loaded: refused, once there is a log to record that in.

use std::path::PathBuf;

use vram_residency::VramManager;
use vram_residency::digest::Digest;

use super::{Refused, Source, refuse};
use crate::exit::Failure;

/// A file that is there and cannot be loaded, to be refused once there is a log to record it in.
pub(crate) struct Unreadable {
    manifest: Option<Digest>,
    refused: Refused,
}

/// What became of reading headers. A file that is there and is no model cannot be loaded, whatever its manifest says of it.
/// Where the manifest cannot be used either, both are named.
pub(crate) fn readable<T: Default>(
    planned: Result<T, Failure>,
    arguments: &[PathBuf],
    source: &Source,
) -> Result<(T, Option<Unreadable>), Failure> {
    let (failure, path) = match (planned, &source.manifest) {
        (Err(failure), Some(path)) if failure.kind == "model" => (failure, path),
        (planned, _) => return Ok((planned?, None)),
    };
    let is_there = !failure.unread && arguments.iter().all(|file| file.exists());
    let both = |one: &str, other: &str| format!("{one}; and {other}");
    match source.read(path) {
        Err(other) => Err(Failure { message: both(&failure.message, &other.message), ..other }),
        Ok(Ok(_)) if !is_there => Err(failure),
        Ok(verdict) => {
            // The model's own words may name paths, which do not belong into the log.
            let words = match &failure.file {
                Some(name) => format!("'{name}' cannot be loaded: it is not there or no well-formed model"),
                None => "a file cannot be loaded: it is not there or no well-formed model".to_owned(),
            };
            let (manifest, refused) = match verdict {
                Ok(manifest) => {
                    let so = |words: &str| format!("{words}; so it is refused, whatever the manifest says of it");
                    let refused = Refused { told: so(&failure.message), recorded: so(&words) };
                    (Some(manifest.digest()), refused)
                }
                Err((digest, Refused { told, recorded })) => {
                    (digest, Refused { told: both(&told, &failure.message), recorded: both(&recorded, &words) })
                }
            };
            Ok((T::default(), Some(Unreadable { manifest, refused })))
        }
    }
}

/// Refuses what is no model. That it is refused is on record before this returns.
pub(crate) fn refuse_unreadable(manager: &VramManager, unreadable: Option<Unreadable>) -> Result<(), Failure> {
    let Some(Unreadable { manifest, refused }) = unreadable else { return Ok(()) };
    Err(refuse(manager, manifest, &refused))
}
