//! A node in a temporary directory: it publishes what a publisher would, from nothing but the tree and the note.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use audit_logging::Severity;
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{Entry, push};
use audit_logging::tlog::note::{SignedNote, SigningKey, VerifierKey};
use audit_logging::tlog::tree::{Tile, Tree, leaf_hash, tiles_between};
use audit_replication::{Node, Replication, Status};

pub(crate) struct TestNode {
    dir: PathBuf,
    pub(crate) key: SigningKey,
    pub(crate) witnesses: Vec<VerifierKey>,
    pub(crate) quorum: usize,
    size: AtomicU64,
    state: Mutex<State>,
    pub(crate) records: Mutex<Vec<(Severity, serde_json::Value)>>,
    pub(crate) cosigned: Mutex<Vec<(u64, usize)>>,
}

#[derive(Default)]
struct State {
    tree: Tree,
    entries: Vec<Vec<u8>>,
    full: BTreeMap<String, Vec<u8>>,
}

/// What the n-th record of the log with this seed is.
pub(crate) fn entry(seed: u64, index: u64) -> Vec<u8> {
    let leaf = format!("{{\"event\":\"test\",\"log\":{seed},\"number\":{index}}}");
    let entry =
        Entry { seq: index + 1, kind: audit_logging::Kind::Event, severity: Severity::Routine, leaf: leaf.as_bytes() };
    entry.to_bytes()
}

impl TestNode {
    pub(crate) fn new(dir: &Path, key: SigningKey) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        Self {
            dir: dir.to_owned(),
            key,
            witnesses: Vec::new(),
            quorum: 0,
            size: AtomicU64::new(0),
            state: Mutex::default(),
            records: Mutex::default(),
            cosigned: Mutex::default(),
        }
    }

    /// Appends records of this seed and publishes the checkpoint.
    pub(crate) fn grow(&self, seed: u64, by: u64) {
        let mut state = self.state.lock().unwrap();
        let old = state.tree.size();
        let State { tree, entries, full } = &mut *state;
        for index in old..old + by {
            let bytes = entry(seed, index);
            tree.push(leaf_hash(&bytes), &mut |tile, bytes| {
                full.insert(tile.path(), bytes.to_vec());
            })
            .unwrap();
            entries.push(bytes);
        }
        let partial: BTreeMap<String, Vec<u8>> =
            tree.partial_tiles().map(|(tile, bytes)| (tile.path(), bytes.to_vec())).collect();
        for tile in tiles_between(old, tree.size()) {
            let bytes = match tile.is_entries() {
                true => bundle(entries, tile),
                false => full.get(&tile.path()).or_else(|| partial.get(&tile.path())).unwrap().clone(),
            };
            self.write(&tile.path(), &bytes);
        }
        let checkpoint =
            Checkpoint { origin: self.key.verifier().name().to_owned(), size: tree.size(), root: tree.root() };
        self.size.store(checkpoint.size, SeqCst);
        self.write("checkpoint", &SignedNote::sign(&checkpoint.to_string(), &[&self.key]).to_bytes());
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let part = path.with_extension("part");
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(part, path).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(path)).unwrap()
    }

    /// The critical records of this kind.
    pub(crate) fn critical(&self, log: &str) -> usize {
        let records = self.records.lock().unwrap();
        records.iter().filter(|(severity, leaf)| *severity == Severity::Critical && leaf["log"] == log).count()
    }
}

fn bundle(entries: &[Vec<u8>], tile: Tile) -> Vec<u8> {
    let start = usize::try_from(tile.index() * 256).unwrap();
    let mut bytes = Vec::new();
    for entry in &entries[start..start + usize::from(tile.width())] {
        push(&mut bytes, entry);
    }
    bytes
}

impl Node for TestNode {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn signed_size(&self) -> u64 {
        self.size.load(SeqCst)
    }

    fn log_keys(&self) -> Vec<VerifierKey> {
        vec![self.key.verifier().clone()]
    }

    fn record(&self, severity: Severity, leaf: &[u8]) {
        assert!(leaf.starts_with(b"{\"log\":\"") && leaf.ends_with(b"}"));
        self.records.lock().unwrap().push((severity, serde_json::from_slice(leaf).unwrap()));
    }

    fn accept_cosigned(&self, note: &SignedNote) -> Result<(), String> {
        let (checkpoint, _) = Checkpoint::verify(&note.to_bytes(), &self.log_keys()).map_err(|e| e.to_string())?;
        let found = note.cosignatures(&self.witnesses).map_err(|error| error.to_string())?.len();
        if found < self.quorum {
            return Err(format!("{found} of {}", self.quorum));
        }
        self.cosigned.lock().unwrap().push((checkpoint.size, found));
        self.write("cosigned", &note.to_bytes());
        Ok(())
    }

    fn contradicted(&self, note: &[u8]) {
        Checkpoint::verify(note, &self.log_keys()).unwrap();
    }
}

/// Waits until the status is as wanted; generous, for a busy machine.
pub(crate) fn until(replication: &Replication, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    until_within(60, replication, what, wanted)
}

/// The same, with the seconds that it may take.
pub(crate) fn until_within(
    seconds: u64,
    replication: &Replication,
    what: &str,
    wanted: impl Fn(&Status) -> bool,
) -> Status {
    let begun = Instant::now();
    loop {
        let status = replication.status();
        if wanted(&status) {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}: {status:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
