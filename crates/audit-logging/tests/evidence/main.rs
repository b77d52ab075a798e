//! Attacks on a published log: each is found, called what it is, with the record and the file named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

#[path = "../common/mod.rs"]
mod common;
mod held;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Held, Question, Report, What};
use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::{SignedNote, SigningKey, VerifierKey};
use audit_logging::tlog::source::{DirSource, Source, SourceError};
use audit_logging::tlog::tree::{Hash, Tree, leaf_hash};
use audit_logging::{AuditLog, Kind, Severity, Vfs, reader};
use common::{MemVfs, ORIGIN, dir, key_file, leaf, make_key, options, publish_options, segment, tlog_dir};

const WAIT: Duration = Duration::from_secs(20);

/// A published log of 702 entries, cosigned at some size above 200, with a replica from some size above 450.
struct Scene {
    vfs: MemVfs,
    key: VerifierKey,
    witness: SigningKey,
    cosigned: u64,
    replica: MemVfs,
    replicated: u64,
}

fn scene() -> Scene {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let witness = SigningKey::generate_cosigner("witness.example/w1").unwrap();
    let log = AuditLog::open(&dir(), options(&vfs, 16384)).unwrap();
    let options = PublishOptions { witnesses: vec![witness.verifier().clone()], ..publish_options() };
    let publisher = Publisher::start(&log, options).unwrap();
    let emit = |from: u64, to: u64| {
        for n in from..to {
            assert!(log.emit(Severity::Critical, &leaf(n, 60)).is_durable());
        }
        publisher.wait_beyond(to, WAIT).unwrap()
    };
    emit(0, 200);
    let note = SignedNote::parse(&vfs.bytes(&tlog_dir().join("checkpoint"))).unwrap();
    let line = witness.sign(note.text(), 1_795_000_000);
    let cosigned = publisher.accept_cosigned(&note.with_signature_lines([line]).to_bytes()).unwrap();
    let replicated = emit(200, 450);
    let replica = vfs.copy();
    emit(450, 700);
    assert!(log.close(WAIT).is_durable());
    assert!(publisher.finish(WAIT).caught_up);
    Scene { vfs, key, witness, cosigned, replica, replicated }
}

struct Ask {
    wal: bool,
    held: bool,
    keys: Vec<VerifierKey>,
    now: Option<u64>,
}

impl Scene {
    fn ask(&self) -> Ask {
        Ask { wal: false, held: false, keys: vec![self.key.clone()], now: Some(1_795_000_100) }
    }

    fn report(&self, ask: &Ask) -> Report {
        let (source, replica, dir) = (common::source(&self.vfs), common::source(&self.replica), dir());
        let witnesses = [self.witness.verifier().clone()];
        let wal: (Arc<dyn Vfs>, _) = (Arc::new(self.vfs.clone()), dir.as_path());
        let question = Question {
            witness_keys: &witnesses,
            wal: ask.wal.then_some(wal),
            held: if ask.held { vec![("replica".to_owned(), Held::Replica(&replica))] } else { vec![] },
            now: ask.now,
            expected_origin: Some(ORIGIN),
            ..Question::new(&source, &ask.keys)
        };
        evidence::verify(&question).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        tlog_dir().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.vfs.bytes(&self.path(name))
    }

    fn set(&self, name: &str, bytes: &[u8]) {
        self.vfs.set_bytes(&self.path(name), bytes);
    }

    fn entries(&self, name: &str) -> Vec<Vec<u8>> {
        entry::split(&self.bytes(name)).unwrap().into_iter().map(<[u8]>::to_vec).collect()
    }

    fn set_entries(&self, name: &str, entries: &[Vec<u8>]) {
        let mut bundle = Vec::new();
        entries.iter().for_each(|entry| entry::push(&mut bundle, entry));
        self.set(name, &bundle);
    }

    /// Writes all tiles and the checkpoint anew for these entries, as somebody with the key can.
    fn rewrite(&self, entries: &[Vec<u8>], signer: Option<&SigningKey>) {
        for path in self.vfs.paths().iter().filter(|path| path.starts_with(self.path("tile"))) {
            self.vfs.delete(path);
        }
        let mut tree = Tree::new();
        for bytes in entries {
            tree.push(leaf_hash(bytes), &mut |tile, bytes| self.set(&tile.path(), bytes)).unwrap();
        }
        for (tile, bytes) in tree.partial_tiles() {
            self.set(&tile.path(), bytes);
        }
        for (n, some) in entries.chunks(256).enumerate() {
            let tile = audit_logging::tlog::tree::Tile::entries(n as u64, some.len() as u16).unwrap();
            self.set_entries(&tile.path(), some);
        }
        if let Some(signer) = signer {
            self.sign(tree.size(), tree.root(), signer);
        }
    }

    fn sign(&self, size: u64, root: Hash, signer: &SigningKey) {
        let text = Checkpoint { origin: signer.verifier().name().into(), size, root }.to_string();
        self.set("checkpoint", &SignedNote::sign(&text, &[signer]).to_bytes());
    }

    fn signer(&self) -> SigningKey {
        publish::read_signer(&self.vfs, &key_file()).unwrap()
    }

    fn all(&self) -> Vec<Vec<u8>> {
        common::published(&self.vfs, 702)
    }
}

fn seq(entry: &[u8]) -> u64 {
    Entry::parse(entry).unwrap().seq
}

fn whats(report: &Report) -> Vec<(What, Option<u64>)> {
    report.violations.iter().map(|violation| (violation.what, violation.record)).collect()
}

/// The attack, the verdict that must be among those given, and the record that it must name.
fn attack(name: &str, scene: &Scene, ask: &Ask, what: What, record: Option<u64>) -> Report {
    let report = scene.report(ask);
    assert!(whats(&report).contains(&(what, record)), "{name}: {:#?}", report.violations);
    for violation in &report.violations {
        assert!(violation.to_string().contains(&violation.file) && !violation.file.is_empty(), "{violation:?}");
    }
    report
}

#[test]
fn what_was_left_alone_is_intact_in_four_ranges() {
    let scene = scene();
    let report = scene.report(&Ask { wal: true, held: true, ..scene.ask() });
    assert!(report.is_intact(), "{report:#?}");
    let ranges = report.ranges;
    assert_eq!(
        (ranges.cosigned, ranges.replicated, ranges.signed, ranges.unsigned),
        (scene.cosigned, scene.replicated, 702, 702)
    );
    assert_eq!((report.vouched(), report.entries, report.compared), (scene.replicated, 702, 702));
    assert_eq!(report.cosignatures[0].time, Some(1_795_000_000));
    assert!(report.statement().contains(&format!("first {} entries", scene.replicated)), "{}", report.statement());
    let log = AuditLog::open(&dir(), options(&scene.vfs, 16384)).unwrap();
    assert!(log.emit(Severity::Critical, b"not signed yet").is_durable());
    let report = scene.report(&Ask { wal: true, ..scene.ask() });
    assert!(report.is_intact(), "{report:#?}");
    assert_eq!((report.ranges.signed, report.ranges.unsigned), (702, 704));
}

#[test]
fn changes_of_a_bundle_are_told_apart() {
    let scene = scene();
    let name = "tile/entries/001";
    let good = scene.entries(name);
    let other = scene.entries("tile/entries/000");
    let ask = scene.ask();
    let record = Some(seq(&good[100]));
    let mut changes: Vec<(&str, What, Vec<Vec<u8>>)> = Vec::new();
    let mut edited = good.clone();
    edited[100][20] ^= 1;
    changes.push(("edit", What::EntryEdited, edited));
    let mut number = good.clone();
    number[100][0] ^= 64;
    changes.push(("edit of the number", What::EntryEdited, number));
    let mut deleted = good.clone();
    deleted.remove(100);
    changes.push(("delete", What::EntryDeleted, deleted));
    let mut inserted = good.clone();
    inserted.insert(
        100,
        Entry { seq: seq(&good[100]), kind: Kind::Event, severity: Severity::Routine, leaf: b"new" }.to_bytes(),
    );
    changes.push(("insert", What::EntryInserted, inserted));
    let mut doubled = good.clone();
    doubled.insert(100, good[101].clone());
    let mut swapped = good.clone();
    swapped.swap(100, 200);
    for (name_of, what, entries) in changes {
        scene.set_entries(name, &entries);
        let report = attack(name_of, &scene, &ask, what, record);
        assert_eq!((report.violations_total, report.violations[0].file.as_str()), (1, name), "{name_of}: {report:#?}");
        assert_eq!(report.violations[0].index, Some(356));
    }
    scene.set_entries(name, &doubled);
    attack("duplicate", &scene, &ask, What::EntryDuplicated, Some(seq(&good[101])));
    scene.set_entries(name, &swapped);
    attack("reorder", &scene, &ask, What::EntriesReordered, Some(seq(&good[200])));
    scene.set_entries(name, &other);
    attack("bundle of another place", &scene, &ask, What::BundleForeign, Some(seq(&other[0])));
    scene.set(name, &scene.bytes(name)[..7000]);
    attack("cut bundle", &scene, &ask, What::BundleDamaged, None);
    scene.vfs.delete(&scene.path(name));
    let report = attack("bundle removed", &scene, &Ask { wal: true, ..scene.ask() }, What::BundleMissing, None);
    assert_eq!(report.ranges.unsigned, 702, "what cannot be compared is no longer tail");
    scene.set_entries(name, &good);
    assert!(scene.report(&ask).is_intact());
}

#[test]
fn tiles_that_were_changed_swapped_or_removed_are_named() {
    let scene = scene();
    let ask = scene.ask();
    let good: Vec<(&str, Vec<u8>)> =
        ["tile/0/000", "tile/0/001", "tile/0/002.p/190", "tile/1/000.p/2"].map(|name| (name, scene.bytes(name))).into();
    for (name, bytes) in &good {
        for at in [0, 17, bytes.len() - 1] {
            scene.vfs.flip(&scene.path(name), at);
            let report = attack(name, &scene, &ask, What::TileChanged, None);
            assert_eq!((report.violations_total, report.violations[0].file.as_str()), (1, *name), "{report:#?}");
            scene.set(name, bytes);
        }
        scene.vfs.delete(&scene.path(name));
        let report = attack(name, &scene, &ask, What::TileMissing, None);
        assert!(report.violations.iter().any(|violation| violation.file == *name));
        scene.set(name, &bytes[..bytes.len() - 32]);
        attack(name, &scene, &ask, What::TileChanged, None);
        scene.set(name, bytes);
    }
    scene.set("tile/0/000", &good[1].1);
    scene.set("tile/0/001", &good[0].1);
    let report = attack("tiles swapped", &scene, &ask, What::TileChanged, None);
    let files: Vec<&str> = report.violations.iter().map(|violation| violation.file.as_str()).collect();
    assert_eq!(files, ["tile/0/000", "tile/0/001"]);
    let (one, two) = (scene.bytes("tile/entries/000"), scene.bytes("tile/entries/001"));
    scene.set("tile/entries/000", &two);
    scene.set("tile/entries/001", &one);
    let report = scene.report(&ask);
    assert!(
        whats(&report).iter().any(|(what, _)| *what == What::RootMismatch),
        "tiles and bundles swapped: {report:#?}"
    );
}

#[test]
fn checkpoints_that_nobody_should_trust_are_told_apart() {
    let scene = scene();
    let ask = scene.ask();
    let good = scene.bytes("checkpoint");
    let text = SignedNote::parse(&good).unwrap().text().to_owned();
    let root = Checkpoint::parse(&text).unwrap().root;
    for unsigned in [text.clone(), format!("{text}\n")] {
        scene.set("checkpoint", unsigned.as_bytes());
        let report = attack("unsigned", &scene, &ask, What::Unsigned, None);
        assert_eq!(report.ranges.signed, scene.cosigned, "what a witness saw is signed all the same");
    }
    let stranger = SigningKey::generate(ORIGIN).unwrap();
    scene.sign(702, root, &stranger);
    attack("wrong key", &scene, &ask, What::WrongKey, None);
    let other = SigningKey::generate("another/log").unwrap();
    scene.sign(702, root, &other);
    attack(
        "wrong origin",
        &scene,
        &Ask { keys: vec![scene.key.clone(), other.verifier().clone()], ..scene.ask() },
        What::WrongOrigin,
        None,
    );
    attack("wrong origin, unknown key", &scene, &ask, What::WrongOrigin, None);
    scene.sign(702, Hash([9; 32]), &scene.signer());
    attack("another root", &scene, &ask, What::RootMismatch, None);
    let mut forged = good.clone();
    let at = forged.len() - 10;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    scene.set("checkpoint", &forged);
    attack("forged signature", &scene, &ask, What::SignatureInvalid, None);
    for size in [703, 1000, 100_000, 1 << 39] {
        scene.sign(size, root, &scene.signer());
        let start = Instant::now();
        let report = attack("from the future", &scene, &ask, What::FutureCheckpoint, None);
        assert!(report.violations.len() < 10 && start.elapsed() < Duration::from_secs(5), "{size}");
    }
    scene.set("checkpoint", b"\xff\x00");
    attack("no checkpoint", &scene, &ask, What::CheckpointDamaged, None);
    scene.vfs.delete(&scene.path("checkpoint"));
    attack("checkpoint removed", &scene, &ask, What::NoCheckpoint, None);
    for path in scene.vfs.paths().iter().filter(|path| path.starts_with(tlog_dir())) {
        scene.vfs.delete(path);
    }
    let report = attack("everything removed", &scene, &Ask { held: true, ..scene.ask() }, What::NoCheckpoint, None);
    assert!(whats(&report).iter().any(|(what, _)| *what == What::HeldAhead), "{report:#?}");
}

#[test]
fn numbers_that_do_not_fit_are_found_even_if_all_is_signed() {
    let base = scene();
    let entries = base.all();
    let signer = base.signer();
    let check = |name: &str, entries: Vec<Vec<u8>>, what: What, record: u64| {
        for path in base.vfs.paths().iter().filter(|path| path.ends_with("cosigned")) {
            base.vfs.delete(path);
        }
        base.rewrite(&entries, Some(&signer));
        let report = attack(name, &base, &base.ask(), what, Some(record));
        assert_eq!(report.violations_total, 1, "{name}: {report:#?}");
    };
    let mut changed = entries.clone();
    changed.remove(300);
    check("delete", changed, What::NumberMissing, seq(&entries[300]));
    let mut changed = entries.clone();
    changed.insert(300, entries[299].clone());
    check("duplicate", changed, What::NumberDoubled, seq(&entries[299]));
    let mut changed = entries.clone();
    let moved = changed.remove(100);
    changed.push(moved);
    base.rewrite(&changed, Some(&signer));
    attack("reorder", &base, &base.ask(), What::NumberOutOfOrder, Some(seq(&entries[100])));
    // Two logs in one.
    let second = scene();
    let other =
        AuditLog::open(&dir(), audit_logging::Options { log_id: Some([7; 16]), ..options(&MemVfs::default(), 16384) });
    drop(other);
    let mut changed = entries[..400].to_vec();
    for (n, bytes) in second.all()[..200].iter().enumerate() {
        let mut bytes = bytes.clone();
        if n == 0 {
            let text = String::from_utf8(bytes[10..].to_vec()).unwrap().replace("30313233", "41414141");
            bytes.truncate(10);
            bytes.extend_from_slice(text.as_bytes());
        }
        let number = seq(&entries[399]) + 1 + n as u64;
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        changed.push(bytes);
    }
    check("splice", changed, What::Spliced, seq(&entries[399]) + 1);
}

#[test]
fn a_log_that_was_cut_edited_or_continued_is_told_apart() {
    let scene = scene();
    let ask = Ask { wal: true, ..scene.ask() };
    let records: Vec<_> =
        reader::records_on(Arc::new(scene.vfs.clone()), &dir()).unwrap().map(Result::unwrap).collect();
    let newest = records.last().unwrap().segment;
    let first = records.iter().find(|record| record.segment == newest).unwrap();
    // Cut: the tail of the last segment is set to zero.
    let cut = records
        .iter()
        .rfind(|record| record.segment == newest && record.seq + 5 <= records.last().unwrap().seq)
        .unwrap();
    assert!(cut.seq > first.seq);
    let mut bytes = scene.vfs.bytes(&segment(newest));
    bytes[cut.offset as usize..].fill(0);
    let whole = scene.vfs.bytes(&segment(newest));
    scene.vfs.set_bytes(&segment(newest), &bytes);
    attack("cut", &scene, &ask, What::LogShorter, Some(cut.seq));
    // ... and continued.
    let log = AuditLog::open(&dir(), options(&scene.vfs, 16384)).unwrap();
    assert!(log.emit(Severity::Critical, b"after the cut").is_durable());
    drop(log);
    attack("cut and continued", &scene, &ask, What::LogCutAndContinued, Some(cut.seq));
    scene.vfs.set_bytes(&segment(newest), &whole);
    // A durable record damaged.
    let hit = &records[350];
    scene.vfs.flip(&segment(hit.segment), hit.offset as usize + 40);
    let report = attack("damaged", &scene, &ask, What::LogDamaged, Some(hit.seq));
    assert!(whats(&report).contains(&(What::RecordMissing, Some(hit.seq))), "{report:#?}");
    scene.vfs.flip(&segment(hit.segment), hit.offset as usize + 40);
    assert!(scene.report(&ask).is_intact());
    // A segment removed.
    let gone = records[350].segment;
    let lost = records.iter().find(|record| record.segment == gone).unwrap().seq;
    scene.vfs.delete(&segment(gone));
    let report = attack("segment removed", &scene, &ask, What::RecordMissing, Some(lost));
    assert!(whats(&report).iter().any(|(what, _)| *what == What::LogDamaged));
}

/// Any byte of any published file, changed in any way: never intact, never a panic.
#[test]
fn no_changed_byte_of_any_published_file_goes_unnoticed() {
    let scene = scene();
    let ask = Ask { held: false, wal: false, ..scene.ask() };
    let mut rng = common::Rng(9);
    let files: Vec<PathBuf> = scene.vfs.paths().into_iter().filter(|path| path.starts_with(tlog_dir())).collect();
    let used = [
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/190",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/190",
        "checkpoint",
        "cosigned",
    ];
    let mut changes = 0;
    for path in files {
        let name = path.strip_prefix(tlog_dir()).unwrap().to_str().unwrap().to_owned();
        if !used.contains(&name.as_str()) {
            continue;
        }
        let good = scene.vfs.bytes(&path);
        for _ in 0..12 {
            let mut bytes = good.clone();
            match rng.below(4) {
                0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
                1 => bytes.extend_from_slice(&[rng.next() as u8; 3]),
                _ => {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << rng.below(8);
                }
            }
            scene.vfs.set_bytes(&path, &bytes);
            let report = scene.report(&ask);
            assert!(!report.is_intact(), "{name}");
            changes += 1;
        }
        scene.vfs.set_bytes(&path, &good);
    }
    assert!(changes == 108 && scene.report(&ask).is_intact(), "{changes}");
}

struct Failing;

impl Source for Failing {
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        Err(SourceError::new(path, "the network is down"))
    }
}

#[test]
fn a_source_that_cannot_be_read_is_an_error_and_no_accusation() {
    let error = evidence::verify(&Question::new(&Failing, &[])).unwrap_err();
    assert!(error.to_string().contains("the network is down"));
    let scratch = common::disk_dir("empty");
    let empty = DirSource::new(scratch.path());
    let report = evidence::verify(&Question::new(&empty, &[])).unwrap();
    assert_eq!(whats(&report), [(What::NoCheckpoint, None)]);
    for path in ["../checkpoint", "/etc/passwd", "tile//0", ".hidden", "a\0b", ""] {
        assert!(empty.get(path).is_err(), "{path:?}");
    }
}
