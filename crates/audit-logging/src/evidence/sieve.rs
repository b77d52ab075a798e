//! What bears a published file's name and is none, is a finding and no reason to stop.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Report, Violation, What};
use crate::tlog::source::{Source, SourceError};

/// A published log in which such things count as missing, and are remembered.
pub(super) struct Sieve<'a> {
    source: &'a dyn Source,
    found: Mutex<BTreeMap<String, String>>,
}

impl<'a> Sieve<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, found: Mutex::default() }
    }

    /// Says what was found.
    pub(super) fn tell(&self, report: &mut Report) {
        for (file, detail) in &*self.found.lock().unwrap_or_else(PoisonError::into_inner) {
            let (what, file, detail) = (What::NoFile, file.clone(), detail.clone());
            report.add(Violation { what, record: None, index: None, file, detail });
        }
    }
}

impl Source for Sieve<'_> {
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        match self.source.get(path) {
            Err(SourceError { path, source, misfit: true }) => {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.len() < super::MAX_LISTED {
                    found.insert(path, source.to_string());
                }
                Ok(None)
            }
            other => other,
        }
    }
}
