//! Who says what about the log: its own checkpoint, the cosigned one, those that others hold, and the keys.

use std::collections::BTreeMap;

use super::verify::MAX_UNTRUSTED;
use super::{EvidenceError, Held, Question, Report, Violation, What, bundle};
use crate::publish::key_in;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::entry::{self, Entry};
use crate::tlog::note::{NoteError, SignedNote, VerifierKey};
use crate::tlog::source::Source;
use crate::tlog::tree::{Hash, read_tile};

/// Cosignatures may be so many seconds ahead of the clock.
const SKEW: u64 = 600;

/// Who a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Own,
    Cosigned,
    Held,
}

/// A checkpoint that somebody claims, not verified yet.
struct Claim<'a> {
    from: From,
    file: String,
    checkpoint: Checkpoint,
    /// `None`: it bears no signature.
    note: Option<SignedNote>,
    replica: Option<&'a dyn Source>,
}

/// Everything that is claimed.
pub(super) struct Claims<'a> {
    claims: Vec<Claim<'a>>,
}

/// A record of the log that names another key, and the root of the tree right behind it.
pub(super) struct KeyRecord {
    pub(super) seq: u64,
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) leaf: Vec<u8>,
}

fn parse(bytes: &[u8]) -> Option<(Checkpoint, Option<SignedNote>)> {
    if let Ok(note) = SignedNote::parse(bytes) {
        return Some((Checkpoint::parse(note.text()).ok()?, Some(note)));
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.split_once("\n\n").map_or_else(|| text.to_owned(), |(text, _)| format!("{text}\n"));
    Some((Checkpoint::parse(&text).ok()?, None))
}

impl<'a> Claims<'a> {
    /// Collects what is claimed; the log's own checkpoint last, so that it is not older than what others were given.
    pub(super) fn gather(question: &Question<'a>, report: &mut Report) -> Result<Self, EvidenceError> {
        let mut claims = Vec::new();
        let mut add = |from, file: String, bytes: Option<Vec<u8>>, replica, broken: What, report: &mut Report| {
            let Some(bytes) = bytes else { return false };
            match parse(&bytes) {
                Some((checkpoint, note)) => claims.push(Claim { from, file, checkpoint, note, replica }),
                None => report.violation(broken, file, ""),
            }
            true
        };
        for (name, held) in &question.held {
            match held {
                Held::Checkpoint(bytes) => {
                    add(From::Held, name.clone(), Some(bytes.clone()), None, What::HeldInvalid, report);
                }
                Held::Replica(source) => {
                    let cosigned = source.get("cosigned")?;
                    add(
                        From::Cosigned,
                        format!("cosigned of {name}"),
                        cosigned,
                        Some(*source),
                        What::HeldInvalid,
                        report,
                    );
                    let newest = source.get("checkpoint")?;
                    let file = format!("checkpoint of {name}");
                    add(From::Held, file, newest, Some(*source), What::HeldInvalid, report);
                }
            }
        }
        let cosigned = question.source.get("cosigned")?;
        add(From::Cosigned, "cosigned".to_owned(), cosigned, None, What::CosignedInvalid, report);
        let own = question.source.get("checkpoint")?;
        if !add(From::Own, "checkpoint".to_owned(), own, None, What::CheckpointDamaged, report) {
            report.violation(What::NoCheckpoint, "checkpoint", "");
        }
        Ok(Self { claims })
    }

    fn own(&self) -> Option<&Claim<'a>> {
        self.claims.iter().find(|claim| claim.from == From::Own)
    }

    /// Size and root of the newest state of this log that is claimed by its own files.
    pub(super) fn newest(&self) -> Option<&Checkpoint> {
        let own = self.own().or_else(|| self.claims.iter().find(|claim| claim.file == "cosigned"));
        own.map(|claim| &claim.checkpoint)
    }

    /// The size of a tree that is larger than anybody is believed whose key is not trusted yet.
    pub(super) fn too_large_to_believe(&self, keys: &[VerifierKey]) -> Option<u64> {
        let own = self.own().or_else(|| self.claims.iter().find(|claim| claim.file == "cosigned"))?;
        let trusted = own.note.as_ref().is_some_and(|note| note.verify(keys).is_ok());
        (!trusted && own.checkpoint.size > MAX_UNTRUSTED).then_some(own.checkpoint.size)
    }

    /// The sizes at which a root is needed.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u64> {
        self.claims.iter().map(|claim| claim.checkpoint.size)
    }

    /// Judges every claim by the roots that the entries give. `suspect`: the first entry of the first bundle that does not
    /// fit the tiles above it.
    pub(super) fn judge(
        &self,
        question: &Question<'_>,
        roots: &BTreeMap<u64, Hash>,
        keys: &Keys,
        suspect: Option<u64>,
        report: &mut Report,
    ) {
        let size = self.newest().map_or(0, |newest| newest.size);
        for claim in &self.claims {
            let Claim { from, file, checkpoint, note, .. } = claim;
            let known = keys.trusted.iter().any(|key| key.key.name() == checkpoint.origin);
            let origin = question.expected_origin.is_none_or(|expected| expected == checkpoint.origin) && known;
            let broken = match from {
                From::Held => What::HeldInvalid,
                From::Cosigned => What::CosignedInvalid,
                From::Own => What::WrongOrigin,
            };
            if !origin {
                report.violation(broken, file, format!("it is of the log {:?}", checkpoint.origin));
                continue;
            }
            let Some(note) = note else {
                let what = if *from == From::Own { What::Unsigned } else { broken };
                report.violation(what, file, "it bears no signature");
                continue;
            };
            if let Err((what, detail)) = keys.verify(note, checkpoint) {
                report.violation(if *from == From::Own { what } else { broken }, file, detail);
                continue;
            }
            if checkpoint.size > size {
                let detail = format!("it has {}, and here are {size}", entries(checkpoint.size));
                let (what, index) = (What::HeldAhead, Some(size));
                report.add(Violation { what, record: None, index, file: file.clone(), detail });
                continue;
            }
            let good = match roots.get(&checkpoint.size) {
                Some(root) if *root == checkpoint.root => true,
                Some(_) => {
                    report.add(self.contradiction(claim, question, suspect));
                    false
                }
                None => false,
            };
            if good {
                self.count(claim, note, question, report);
            }
        }
        let ranges = &mut report.ranges;
        ranges.replicated = ranges.replicated.max(ranges.cosigned);
        ranges.signed = ranges.signed.max(ranges.replicated);
    }

    /// A claim that holds counts for its range.
    fn count(&self, claim: &Claim<'_>, note: &SignedNote, question: &Question<'_>, report: &mut Report) {
        let size = claim.checkpoint.size;
        match claim.from {
            From::Own => report.ranges.signed = report.ranges.signed.max(size),
            From::Held => report.ranges.replicated = report.ranges.replicated.max(size),
            From::Cosigned if claim.replica.is_some() => {
                report.ranges.replicated = report.ranges.replicated.max(size);
            }
            From::Cosigned => {}
        }
        let cosigned = match note.cosignatures(question.witness_keys) {
            Ok(cosigned) => cosigned,
            Err(error) => {
                report.violation(What::CosignedInvalid, &claim.file, error.to_string());
                return;
            }
        };
        let late = |time: u64| question.now.is_some_and(|now| time > now.saturating_add(SKEW));
        if let Some(early) = cosigned.iter().find(|line| line.time.is_some_and(late)) {
            let detail = format!("{} says {}", early.name, early.time.unwrap_or(0));
            report.violation(What::CosignatureFromFuture, &claim.file, detail);
        }
        let quorum = question.quorum.max(1);
        if cosigned.len() >= quorum {
            if size >= report.ranges.cosigned {
                report.ranges.cosigned = size;
                report.cosignatures = cosigned;
            }
        } else if claim.from == From::Cosigned && !question.witness_keys.is_empty() {
            let detail = format!("{} of the known witnesses cosigned, {quorum} are asked for", cosigned.len());
            report.violation(What::CosignedInvalid, &claim.file, detail);
        }
    }

    /// The tree is not the one that was signed. Where a replica is at hand, the first record that differs is named.
    fn contradiction(&self, claim: &Claim<'_>, question: &Question<'_>, suspect: Option<u64>) -> Violation {
        let what = if claim.from == From::Own { What::RootMismatch } else { What::HeldContradicts };
        let size = claim.checkpoint.size;
        let mut detail = format!("of its {}", entries(size));
        let mut index = suspect.filter(|&suspect| suspect < size);
        if let Some(index) = index {
            detail = format!("the first bundle that does not fit begins with entry {index}");
        }
        let replicas = claim.replica.into_iter().chain(self.claims.iter().filter_map(|claim| claim.replica));
        for replica in replicas {
            if let Some(first) = first_difference(question.source, replica, size) {
                index = Some(first);
                detail = format!("entry {first} is the first that differs from the replica");
                break;
            }
        }
        let record = index.and_then(|index| record_at(question.source, size, index));
        Violation { what, record, index, file: claim.file.clone(), detail }
    }
}

/// The first entry in which two copies differ, by their tiles.
fn first_difference(one: &dyn Source, other: &dyn Source, size: u64) -> Option<u64> {
    for number in 0..size.div_ceil(256) {
        let (tile, _) = super::blocks::place(size, number)?;
        let (Ok(one), Ok(other)) = (read_tile(one, tile), read_tile(other, tile)) else { continue };
        if one != other {
            let (one, other) = (bundle::hashes(&one), bundle::hashes(&other));
            let at = one.iter().zip(&other).position(|(one, other)| one != other)?;
            return Some(tile.start().saturating_add(at as u64));
        }
    }
    None
}

/// The number of the record at a place.
fn record_at(source: &dyn Source, size: u64, index: u64) -> Option<u64> {
    let (_, bundle) = super::blocks::place(size, index / 256)?;
    let bytes = super::bundle::read(source, bundle).ok()??;
    let entries = entry::split(&bytes).ok()?;
    let entry = Entry::parse(entries.get(usize::try_from(index % 256).ok()?)?).ok()?;
    Some(entry.seq)
}

/// A key that is trusted, and until which size it may sign.
struct Trusted {
    key: VerifierKey,
    until: Option<u64>,
}

/// The keys that speak for the log.
pub(super) struct Keys {
    trusted: Vec<Trusted>,
}

impl Keys {
    /// Follows the changes of key that the log's records state, from the keys that are trusted.
    pub(super) fn follow(
        question: &Question<'_>,
        records: &[KeyRecord],
        report: &mut Report,
    ) -> Result<Self, EvidenceError> {
        let trusted = question.log_keys.iter().map(|key| Trusted { key: key.clone(), until: None });
        let mut keys = Self { trusted: trusted.collect() };
        // From a key that is trusted both ways: to those that came after it, and to those before. Each change that is linked
        // to may link to another one, so those that are not yet are looked at again.
        let mut left: Vec<&KeyRecord> = records.iter().collect();
        loop {
            let before = left.len();
            let mut unlinked = Vec::new();
            for record in left {
                if !keys.take(question, record, report)? {
                    unlinked.push(record);
                }
            }
            left = unlinked;
            if left.len() == before {
                break;
            }
        }
        report.keys = keys.trusted.iter().map(|trusted| trusted.key.to_string()).collect();
        Ok(keys)
    }

    fn trusts(&self, key: &VerifierKey) -> bool {
        self.trusted.iter().any(|trusted| trusted.key == *key)
    }

    /// Follows one change of key. Whether it is dealt with: it is not where neither of its keys is trusted.
    fn take(
        &mut self,
        question: &Question<'_>,
        record: &KeyRecord,
        report: &mut Report,
    ) -> Result<bool, EvidenceError> {
        let file = format!("rotation/{}", record.size);
        let named = |name| key_in(&record.leaf, name).and_then(|text| VerifierKey::parse(text).ok());
        let (Some(old), Some(new)) = (named("old"), named("new")) else { return Ok(true) };
        if old == new {
            return Ok(true);
        }
        if !self.trusts(&old) && !self.trusts(&new) {
            return Ok(false);
        }
        let Some(bytes) = question.source.get(&file)? else {
            // A change that was stated and never made leaves nothing; one that was made, leaves this.
            if self.trusts(&new) {
                let (what, index) = (What::RotationInvalid, record.size.checked_sub(1));
                let detail = "it is missing".to_owned();
                report.add(Violation { what, record: Some(record.seq), index, file, detail });
            }
            return Ok(true);
        };
        let signed = Checkpoint::verify(&bytes, std::slice::from_ref(&old))
            .and_then(|_| Checkpoint::verify(&bytes, std::slice::from_ref(&new)));
        let right = signed.as_ref().is_ok_and(|(signed, _)| (signed.size, signed.root) == (record.size, record.root));
        if !right || old.name() != new.name() {
            let detail =
                signed.err().map_or_else(|| "it is of another state of the log".to_owned(), |error| error.to_string());
            let (what, index) = (What::RotationInvalid, record.size.checked_sub(1));
            report.add(Violation { what, record: Some(record.seq), index, file, detail });
            return Ok(true);
        }
        for trusted in &mut self.trusted {
            if trusted.key == old {
                trusted.until = Some(record.size);
            }
        }
        if !self.trusts(&new) {
            self.trusted.push(Trusted { key: new, until: None });
        }
        if !self.trusts(&old) {
            self.trusted.push(Trusted { key: old, until: Some(record.size) });
        }
        Ok(true)
    }

    fn verify(&self, note: &SignedNote, checkpoint: &Checkpoint) -> Result<(), (What, String)> {
        let keys: Vec<VerifierKey> = self.trusted.iter().map(|trusted| trusted.key.clone()).collect();
        let verified = note.verify(&keys).map_err(|error| match error {
            NoteError::Unknown { .. } => (What::WrongKey, error.to_string()),
            _ => (What::SignatureInvalid, error.to_string()),
        })?;
        let mut retired = None;
        for trusted in &self.trusted {
            let signed =
                verified.iter().any(|line| (line.name.as_str(), line.id) == (trusted.key.name(), trusted.key.id()));
            if !signed || trusted.key.name() != checkpoint.origin {
                continue;
            }
            match trusted.until {
                Some(until) if until < checkpoint.size => retired = Some(until),
                _ => return Ok(()),
            }
        }
        match retired {
            Some(until) => Err((What::RetiredKey, format!("that key was given up at entry {until}"))),
            None => Err((What::WrongOrigin, format!("the key is not named {:?}", checkpoint.origin))),
        }
    }
}

/// As in *1 entry* or *2 entries*.
fn entries(count: u64) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}
