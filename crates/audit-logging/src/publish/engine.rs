//! One round of publishing: follow the log, write files, sign. Every step may fail and is then done again.
//!
//! The order in which things become durable: entry bundles, tiles of hashes, their directories; what is about to be
//! signed, beside the key; the checkpoint. After a crash at any point the next start finds what was signed last, or less
//! visible than signed, and never a checkpoint whose tiles are not there.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::growth::{Growth, TileFile};
use super::keyfile::SignedState;
use super::prune::{self, Pruner};
use super::replay::{Replay, Trouble};
use super::store::Store;
use super::tail::{Piece, Reached, Tail};
use super::{Refusal, json, keyfile};
use crate::control;
use crate::finding::{Violation, What};
use crate::floor::Floor;
use crate::frame::{Frame, Kind};
use crate::outcome::Severity;
use crate::queue::Shared;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::entry::Entry;
use crate::tlog::note::{SignedNote, SigningKey, VerifierKey};
use crate::tlog::tree::{Hash, root_of};

/// Records and bytes that one checkpoint takes in at most, so that memory stays bounded.
const MAX_RECORDS: u64 = 1 << 15;
const MAX_BYTES: usize = 8 << 20;

/// The key that is to sign from some entry on.
struct Rotation {
    next: SigningKey,
    /// The number of the record that states it, once it was emitted.
    seq: Option<u64>,
    /// The size right behind that record, once it is in the tree.
    at: Option<u64>,
}

/// What is the case after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Whether a checkpoint was made.
    pub(crate) signed: bool,
    /// Whether there is more to do at once.
    pub(crate) more: bool,
    /// Whether something odd has to be looked at again.
    pub(crate) odd: bool,
}

pub(crate) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Store,
    key_file: PathBuf,
    key: SigningKey,
    /// Every key that signed for this log, as far as its records tell.
    pub(crate) keys: Vec<VerifierKey>,
    pub(super) tail: Tail,
    growth: Growth,
    pub(super) replay: Option<Replay>,
    /// What replay starts from, if it has to be done again.
    signed_before: Vec<Checkpoint>,
    pub(super) pruner: Pruner,
    /// Full files not yet written.
    files: Vec<TileFile>,
    /// The largest state that was signed, durably noted beside the key.
    pub(crate) signed: Checkpoint,
    /// What is kept beside the key.
    kept: Option<SignedState>,
    /// Size and root of the checkpoint that can be seen.
    pub(crate) visible: u64,
    pub(crate) visible_root: Hash,
    pub(crate) cosigned: u64,
    /// The size whose partial tiles are written.
    written: u64,
    rotation: Option<Rotation>,
    /// What is wrong with the next key, if one is there.
    pub(crate) key_trouble: Option<String>,
    pub(crate) missing: u64,
    damage_told: bool,
    /// When the newest record was seen, by the monotonic clock.
    heard: Duration,
}

/// What the start of a publisher found.
pub(crate) struct Found {
    pub(crate) key: SigningKey,
    /// What was signed, newest last.
    pub(crate) signed: Vec<Checkpoint>,
    /// What is kept beside the key of that.
    pub(crate) kept: Option<SignedState>,
    pub(crate) visible: Option<Checkpoint>,
    /// Where the log begins, if it was pruned.
    pub(crate) floor: Option<Floor>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, store: Store, key_file: PathBuf, found: Found) -> Self {
        let origin = found.key.verifier().name().to_owned();
        let none = Checkpoint { origin, size: 0, root: Hash::EMPTY_TREE };
        let signed = found.signed.iter().max_by_key(|signed| signed.size).cloned().unwrap_or(none);
        let heard = shared.clock.monotonic();
        let pruner = Pruner::new(found.floor);
        Self {
            tail: Tail::new(Arc::clone(&shared.vfs), &shared.dir, pruner.floor()),
            keys: vec![found.key.verifier().clone()],
            key: found.key,
            rotation: None,
            replay: Some(Replay::new(found.signed.clone(), pruner.minimum())),
            signed_before: found.signed,
            pruner,
            growth: Growth::default(),
            files: Vec::new(),
            signed,
            kept: found.kept,
            visible: found.visible.as_ref().map_or(0, |visible| visible.size),
            visible_root: found.visible.map_or(Hash::EMPTY_TREE, |visible| visible.root),
            cosigned: 0,
            written: 0,
            key_trouble: None,
            missing: 0,
            damage_told: false,
            heard,
            shared,
            store,
            key_file,
        }
    }

    /// Published entries below this place were pruned.
    pub(crate) fn minimum(&self) -> u64 {
        self.pruner.minimum()
    }

    /// Of these, how many still stand in segments.
    pub(crate) fn in_segments(&self) -> u64 {
        self.pruner.minimum().saturating_sub(self.pruner.first_index())
    }

    pub(crate) fn size(&self) -> u64 {
        self.growth.size()
    }

    pub(crate) fn key(&self) -> &VerifierKey {
        self.key.verifier()
    }

    /// Whether everything that is durable now is covered by the checkpoint that can be seen.
    pub(crate) fn is_caught_up(&self) -> bool {
        let settled = self.tail.settled() >= self.shared.durable.load(SeqCst);
        self.replay.is_none() && settled && self.visible == self.size() && self.size() > 0
    }

    pub(crate) fn round(&mut self) -> Result<Round, Trouble> {
        self.look_for_next_key();
        let done = self.gather();
        if self.replay.is_some() && matches!(done, Err(Trouble::Retry(_))) {
            // What was read may have been lost half-way: from the beginning.
            self.begin_again();
        }
        let reached = done?;
        let mut round = Round { signed: false, more: reached == Reached::Stopped, odd: reached == Reached::Odd };
        if self.replay.is_none() && (self.growth.size() > self.visible || self.is_rotating()) {
            self.commit()?;
            round.signed = true;
        }
        if self.replay.is_none() {
            self.clean()?;
        }
        Ok(round)
    }

    fn begin_again(&mut self) {
        self.tail = prune::tail(self);
        self.pruner.begin_again();
        self.growth = Growth::default();
        self.files.clear();
        self.replay = Some(Replay::new(self.signed_before.clone(), self.pruner.minimum()));
        if let Some(rotation) = &mut self.rotation {
            rotation.at = None;
        }
    }

    /// Reads new records into the tree, unless those read before are not published yet.
    fn gather(&mut self) -> Result<Reached, Trouble> {
        if self.replay.is_none() && (self.growth.size() > self.visible || self.is_rotating()) {
            return Ok(Reached::Stopped);
        }
        if let Some(replay) = self.replay.as_ref().filter(|_| self.growth.size() == 0) {
            self.growth = self.pruner.base(replay.target(), &self.store)?;
        }
        let bound = self.shared.durable.load(SeqCst);
        let idle = prune::tail(self);
        let mut tail = std::mem::replace(&mut self.tail, idle);
        let (mut bytes, mut entry, mut trouble, mut records) = (0usize, Vec::new(), None, 0u64);
        let before = tail.settled();
        let reached = tail.poll(bound, &mut |piece| {
            match piece {
                Piece::Damage(violation) => {
                    if let Some(error) = self.lost_beginning(&violation) {
                        trouble = Some(error);
                        return ControlFlow::Break(());
                    }
                    self.damage(&violation);
                }
                Piece::Record(frame, segment) => {
                    records = records.saturating_add(1);
                    bytes = bytes.saturating_add(frame.leaf.len());
                    if let Err(error) = self.take(frame, segment, &mut entry) {
                        trouble = Some(error);
                        return ControlFlow::Break(());
                    }
                    if self.is_rotating() || records >= MAX_RECORDS || bytes >= MAX_BYTES {
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        self.tail = tail;
        if self.tail.settled() > before {
            self.heard = self.shared.clock.monotonic();
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let reached = reached.map_err(|error| Trouble::Retry(error.to_string()))?;
        if let Some(mut replay) = self.replay.take() {
            let done = self.end_replay(&mut replay, reached);
            if !matches!(done, Ok(true)) {
                self.replay = Some(replay);
            }
            done?;
        }
        Ok(reached)
    }

    fn end_replay(&mut self, replay: &mut Replay, reached: Reached) -> Result<bool, Trouble> {
        if reached == Reached::Bound {
            replay.end(&mut self.growth, &self.store, &mut self.files)?;
        }
        if self.growth.size() < replay.target() {
            return Ok(false);
        }
        self.replayed(replay)?;
        Ok(true)
    }

    /// A record of the log goes into the tree.
    fn take(&mut self, frame: &Frame<'_>, segment: u64, entry: &mut Vec<u8>) -> Result<(), Trouble> {
        entry.clear();
        let Frame { seq, kind, severity, leaf, .. } = *frame;
        Entry { seq, kind, severity, leaf }.write(entry);
        match &mut self.replay {
            Some(replay) => replay.record(entry, segment, &mut self.growth, &self.store, &mut self.files)?,
            None => {
                let files = &mut self.files;
                let pushed = self.growth.push(entry, &mut |file| files.push(file));
                pushed.map_err(|error| Trouble::Retry(error.to_string()))?;
            }
        }
        let size = self.growth.size();
        let signed = self.replay.as_ref().is_some_and(|replay| size <= replay.target());
        self.pruner.saw(frame, segment, size, signed);
        if control::states_key(kind, leaf) {
            self.key_record(leaf);
        }
        Ok(())
    }

    fn key_record(&mut self, leaf: &[u8]) {
        for name in ["old", "new"] {
            let key = key_in(leaf, name).and_then(|text| VerifierKey::parse(text).ok());
            if let Some(key) = key.filter(|key| !self.keys.contains(key)) {
                self.keys.push(key);
            }
        }
        if let Some(rotation) = &mut self.rotation
            && key_in(leaf, "new").is_some_and(|text| *text == rotation.next.verifier().to_string())
            && self.growth.size() >= self.signed.size
        {
            rotation.at = Some(self.growth.size());
        }
    }

    /// Whether the tree ends with the record that states the next key.
    fn is_rotating(&self) -> bool {
        self.rotation.as_ref().is_some_and(|rotation| rotation.at == Some(self.growth.size()))
    }

    /// A log without its beginning, and without the file that says so, of which other files say that it was pruned.
    fn lost_beginning(&self, violation: &Violation) -> Option<Trouble> {
        let begins = self.growth.size() == 0 && violation.what == What::SegmentMissing && self.pruner.floor().is_none();
        let pruned = begins && matches!(self.store.read("minimum-index"), Ok(Some(_)));
        pruned.then(|| Trouble::Refuse(Refusal::Beginning { dir: self.shared.dir.clone() }))
    }

    /// Something durable in the log is not as it was written. The log goes on with what is there, and so does this.
    fn damage(&mut self, violation: &Violation) {
        if let Some(replay) = &mut self.replay {
            replay.damage(violation);
        }
        if !std::mem::replace(&mut self.damage_told, true) {
            let Violation { segment, offset, seq, what } = violation;
            let what = what.as_str();
            self.tell(&format!(
                r#""log":"conflict","what":"{what}","segment":{segment},"offset":{offset},"seq":{seq}"#
            ));
        }
    }

    /// What was signed before is what the log gives.
    fn replayed(&mut self, replay: &Replay) -> Result<(), Trouble> {
        self.pruner.check()?;
        self.written = replay.target();
        self.missing = replay.missing;
        if replay.missing > 0 {
            let (seq, count) = (replay.first_missing, replay.missing);
            self.tell(&format!(r#""log":"conflict","what":"published records missing","seq":{seq},"count":{count}"#));
        }
        let bytes = self.store.read("cosigned")?;
        if let Some((cosigned, _)) = bytes.and_then(|bytes| Checkpoint::verify(&bytes, &self.keys).ok()) {
            if cosigned.size > self.signed.size {
                return Err(Trouble::Refuse(Refusal::Ahead { seen: cosigned.size, signed: self.signed.size }));
            }
            if root_of(self.store.source(), cosigned.size, self.signed.size).is_ok_and(|root| root != cosigned.root) {
                return Err(Trouble::Refuse(Refusal::Root { size: cosigned.size }));
            }
            self.cosigned = cosigned.size;
        }
        Ok(())
    }

    /// Writes and signs the tree as it is.
    fn commit(&mut self) -> Result<(), Trouble> {
        let (size, root) = (self.growth.size(), self.growth.root());
        // Signing anything that contradicts what was signed before is what a log must never do.
        if size < self.signed.size {
            return Err(Trouble::Refuse(Refusal::Rollback { found: size, signed: self.signed.size }));
        }
        if size == self.signed.size && root != self.signed.root {
            return Err(Trouble::Refuse(Refusal::Root { size }));
        }
        if self.kept.is_none() && self.visible == 0 {
            // From here on files without a checkpoint are the beginning of a first publication, and nothing else.
            self.keep(&Checkpoint { size: 0, root: Hash::EMPTY_TREE, ..self.signed.clone() })?;
        }
        let partial = self.growth.partial(self.written);
        let files: Vec<(String, &[u8])> =
            self.files.iter().chain(&partial).map(|(tile, bytes)| (tile.path(), bytes.as_slice())).collect();
        self.store.write_all(&files)?;
        let checkpoint = Checkpoint { origin: self.signed.origin.clone(), size, root };
        if size > self.signed.size {
            self.keep(&checkpoint)?;
            self.signed = checkpoint.clone();
        }
        let text = checkpoint.to_string();
        let note = match self.rotation.as_ref().filter(|_| self.is_rotating()) {
            Some(rotation) => {
                let note = SignedNote::sign(&text, &[&self.key, &rotation.next]).to_bytes();
                self.store.replace(&format!("rotation/{size}"), &note)?;
                note
            }
            None => SignedNote::sign(&text, &[&self.key]).to_bytes(),
        };
        self.store.replace("checkpoint", &note)?;
        (self.visible, self.visible_root) = (size, root);
        self.written = size;
        if self.kept.as_ref().is_some_and(|kept| !kept.seen) {
            self.keep(&checkpoint)?;
        }
        if self.is_rotating() {
            self.turn()?;
        }
        for (tile, _) in std::mem::take(&mut self.files) {
            self.store.remove_partial(tile);
        }
        Ok(())
    }

    /// Keeps beside the key what is signed, before it can be seen.
    fn keep(&mut self, signed: &Checkpoint) -> Result<(), Trouble> {
        let state = SignedState { checkpoint: signed.clone(), seen: self.visible > 0 };
        state.write(&*self.shared.vfs, &self.key_file)?;
        self.kept = Some(state);
        Ok(())
    }

    /// The next key becomes the key.
    fn turn(&mut self) -> Result<(), Trouble> {
        let Some(rotation) = self.rotation.take() else { return Ok(()) };
        let vkey = rotation.next.verifier().clone();
        if let Err(error) = keyfile::take_next(&*self.shared.vfs, &self.key_file, &vkey) {
            let gone = self.shared.vfs.identity(&keyfile::next_file(&self.key_file)).is_err();
            if !gone {
                self.rotation = Some(rotation);
                return Err(error.into());
            }
        }
        self.key = rotation.next;
        if !self.keys.contains(&vkey) {
            self.keys.push(vkey.clone());
        }
        self.show_key()
    }

    /// The public key beside the checkpoint, for convenience.
    pub(crate) fn show_key(&mut self) -> Result<(), Trouble> {
        let text = format!("{}\n", self.key.verifier());
        if self.store.read("vkey")?.as_deref() != Some(text.as_bytes()) {
            self.store.replace("vkey", text.as_bytes())?;
        }
        Ok(())
    }

    /// If a next key was put beside the key, the log states it.
    fn look_for_next_key(&mut self) {
        if self.rotation.is_none() {
            match keyfile::read_next(&*self.shared.vfs, &self.key_file, &self.signed.origin) {
                // The present key once more is no change.
                Ok(Some(next)) if next.verifier() == self.key.verifier() => {
                    let next = keyfile::next_file(&self.key_file);
                    self.key_trouble = Some(format!("{} holds the present key: remove it", next.display()));
                }
                Ok(next) => {
                    self.key_trouble = None;
                    self.rotation = next.map(|next| Rotation { next, seq: None, at: None });
                }
                Err(error) => self.key_trouble = Some(error.to_string()),
            }
        }
        let Some(rotation) = &self.rotation else { return };
        let lost = rotation.seq.is_some_and(|seq| seq < self.tail.settled());
        if self.replay.is_none() && rotation.at.is_none() && (rotation.seq.is_none() || lost) {
            let (old, new) = (self.key.verifier().to_string(), rotation.next.verifier().to_string());
            let told = self.tell(&format!(r#""log":"key","old":"{}","new":"{}""#, json(&old), json(&new)));
            let seq = told.map(|(seq, _)| seq);
            if let Some(rotation) = &mut self.rotation {
                rotation.seq = seq;
            }
        }
    }

    /// Writes a heartbeat if the log was silent for so long.
    pub(crate) fn heartbeat(&mut self, after: Duration) {
        let now = self.shared.clock.monotonic();
        if self.replay.is_none() && now.saturating_sub(self.heard) >= after {
            self.heard = now;
            let size = self.signed.size;
            self.tell(&format!(r#""log":"heartbeat","size":{size}"#));
        }
    }

    /// States in the log why nothing is published any more.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let text = match refusal {
            Refusal::Rollback { found, signed } => format!(r#""log":"rollback","found":{found},"signed":{signed}"#),
            Refusal::Ahead { seen, signed } => format!(r#""log":"rollback","found":{signed},"signed":{seen}"#),
            Refusal::Record { seq, file } => {
                format!(r#""log":"conflict","what":"record","seq":{seq},"file":"{}""#, json(file))
            }
            Refusal::File { file } => format!(r#""log":"conflict","what":"file","file":"{}""#, json(file)),
            Refusal::Unannounced { segment } => {
                format!(r#""log":"conflict","what":"pruned","segment":{segment}"#)
            }
            Refusal::Beginning { .. } => r#""log":"conflict","what":"pruned file missing""#.to_owned(),
            Refusal::Records { file } => format!(r#""log":"conflict","what":"records","file":"{}""#, json(file)),
            Refusal::Irreplaceable { file } => {
                format!(r#""log":"conflict","what":"file pruned","file":"{}""#, json(file))
            }
            Refusal::Root { size } => format!(r#""log":"conflict","what":"root","size":{size}"#),
        };
        self.tell(&text);
    }

    /// Has the log sync, by which it also notices a segment that lost its name, and puts it back.
    pub(crate) fn nudge(&self) {
        let _ = self.shared.flush(Duration::from_secs(1));
    }

    pub(super) fn tell(&self, text: &str) -> Option<(u64, String)> {
        // A log that is closed, or closing, takes no more; asked all the same, it would count a record as lost.
        if self.shared.lock().closing {
            return None;
        }
        let leaf = format!(r#"{{{text},"time_unix_ms":{}}}"#, self.shared.now_ms());
        let seq = self.shared.emit(Kind::Publication, Severity::Critical, leaf.as_bytes()).seq()?;
        Some((seq, leaf))
    }
}

/// The text of a key in a `key` record.
pub(crate) fn key_in<'a>(leaf: &'a [u8], name: &str) -> Option<&'a str> {
    control::long_text(leaf, name)
}
