//! Publishing: what is durable is published, signed and provable; what was signed is never taken back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

#[path = "../common/mod.rs"]
mod common;
mod refused;

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Question, What};
use audit_logging::publish::{
    self, AcceptError, KeyFileError, PublishError, PublishOptions, Publisher, Refusal, SignedState,
};
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::Entry;
use audit_logging::tlog::note::{SignedNote, SigningKey, VerifierKey};
use audit_logging::tlog::proof;
use audit_logging::tlog::source::Source;
use audit_logging::tlog::tree::{Hash, root_of};
use audit_logging::{AuditLog, Disk, Kind, Record, Severity, reader};
use common::{Fault, MemVfs, ORIGIN, Plan, Rng};
use common::{
    dir, disk_dir, key_file, leaf, make_key, options, publish_options, published, segment, source, tlog_dir, verify,
};

const WAIT: Duration = Duration::from_secs(20);

fn records(vfs: &MemVfs) -> Vec<Record> {
    reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap).collect()
}

/// Opens, writes so many critical records, publishes everything, closes. The status at the end.
fn session(vfs: &MemVfs, tag: u64, count: u64) -> publish::PublishStatus {
    let log = AuditLog::open(&dir(), options(vfs, 8192)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    for n in 0..count {
        assert!(log.emit(Severity::Critical, &leaf(tag + n, (n % 300) as usize)).is_durable());
    }
    until("it is published, or refused", || publisher.status().caught_up || publisher.status().refused.is_some());
    assert!(log.close(WAIT).is_durable());
    publisher.finish(WAIT);
    publisher.status()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn checkpoint(vfs: &MemVfs, key: &VerifierKey) -> Checkpoint {
    let bytes = source(vfs).get("checkpoint").unwrap().unwrap();
    Checkpoint::verify(&bytes, std::slice::from_ref(key)).unwrap().0
}

#[test]
fn what_is_durable_is_published_signed_and_provable() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let status = session(&vfs, 0, 700);
    assert!(status.caught_up && status.refused.is_none(), "{status:?}");
    let records = records(&vfs);
    assert_eq!((records.len(), status.signed_size, status.size), (702, 702, 702));
    let entries = published(&vfs, 702);
    for (record, entry) in records.iter().zip(&entries) {
        let mut bytes = record.seq.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[record.kind as u8, record.severity as u8]);
        bytes.extend_from_slice(&record.leaf);
        assert_eq!(*entry, bytes);
    }
    let signed = checkpoint(&vfs, &key);
    assert_eq!((signed.size, signed.origin.as_str(), signed.root), (702, ORIGIN, status.signed_root));
    assert_eq!(publish::read_signed(&vfs, &key_file()).unwrap(), Some(SignedState { checkpoint: signed, seen: true }));
    assert_eq!(vfs.bytes(&tlog_dir().join("vkey")), format!("{key}\n").into_bytes());
    for index in [0, 255, 256, 701] {
        let proof = proof::prove(&source(&vfs), std::slice::from_ref(&key), index).unwrap();
        proof.check(&entries[index as usize], std::slice::from_ref(&key), &[], 0).unwrap();
    }
    let report = verify(&vfs, &[key]);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.ranges.signed, report.ranges.unsigned, report.entries, report.compared), (702, 702, 702, 702));
    assert_eq!(report.vouched(), 0);
}

#[test]
fn a_log_is_taken_up_where_it_was_left_and_what_is_missing_is_made_anew() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut size = 0;
    for round in 0..6 {
        let status = session(&vfs, round << 20, 150);
        size += 152;
        assert_eq!((status.signed_size, status.refused, status.failures), (size, None, 0));
        assert!(verify(&vfs, std::slice::from_ref(&key)).is_intact());
        match round {
            0 => vfs.delete(&tlog_dir().join("checkpoint")),
            1 => vfs.delete(&tlog_dir().join("tile/0/000")),
            2 => vfs.delete(&tlog_dir().join("tile/entries/000")),
            3 => {
                for tile in
                    ["tile/entries/001", "tile/0/001", "tile/entries/002.p/96", "tile/0/002.p/96", "tile/1/000.p/2"]
                {
                    vfs.delete(&tlog_dir().join(tile));
                }
            }
            4 => vfs.delete(&key_file().with_file_name("audit.key.state")),
            _ => {}
        }
    }
}

#[test]
fn partial_tiles_of_older_sizes_stay_until_the_full_one_replaces_them() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let log = AuditLog::open(&dir(), options(&vfs, 1 << 20)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    let mut size = publisher.wait_beyond(0, WAIT).unwrap();
    let mut older = Vec::new();
    while size < 250 {
        older.push((size, publisher.status().signed_root));
        assert!(log.emit(Severity::Critical, b"x").is_durable());
        size = publisher.wait_beyond(size, WAIT).unwrap();
    }
    for (size, root) in &older {
        // Without help from the full tile: it is not there yet.
        assert_eq!(root_of(publisher.source(), *size, *size).unwrap(), *root);
    }
    assert!(!vfs.names(&tlog_dir().join("tile/0/000.p")).is_empty());
    for _ in 0..20 {
        assert!(log.emit(Severity::Critical, b"x").is_durable());
    }
    until("the full tile replaces them", || vfs.names(&tlog_dir().join("tile/0/000.p")).is_empty());
    until("the full bundle, too", || vfs.names(&tlog_dir().join("tile/entries/000.p")).is_empty());
    for (size, root) in &older {
        assert_eq!(root_of(publisher.source(), *size, *size).unwrap(), *root);
    }
    drop((log, publisher));
    assert!(verify(&vfs, &[key]).is_intact());
}

#[test]
fn a_key_is_changed_by_a_record_and_a_checkpoint_that_both_sign() {
    let vfs = MemVfs::default();
    let old = make_key(&vfs);
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    for n in 0..30 {
        assert!(log.emit(Severity::Critical, &leaf(n, 50)).is_durable());
    }
    let new = publish::generate(&vfs, &publish::next_file(&key_file()), ORIGIN).unwrap();
    until("the key changes", || publisher.status().vkey == new.to_string());
    assert!(log.emit(Severity::Critical, b"under the new key").is_durable());
    assert!(log.close(WAIT).is_durable());
    assert!(publisher.finish(WAIT).caught_up);
    assert_eq!(publisher.keys(), [old.clone(), new.clone()]);
    let rotation = vfs.names(&tlog_dir().join("rotation"));
    assert_eq!(rotation.len(), 1);
    let size: u64 = rotation[0].parse().unwrap();
    let bytes = vfs.bytes(&tlog_dir().join("rotation").join(&rotation[0]));
    for key in [&old, &new] {
        assert_eq!(Checkpoint::verify(&bytes, std::slice::from_ref(key)).unwrap().0.size, size);
    }
    let stated = &published(&vfs, size)[size as usize - 1];
    let expected = format!("{{\"log\":\"key\",\"old\":\"{old}\",\"new\":\"{new}\",\"time_unix_ms\":");
    assert!(stated[10..].starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(stated));
    assert!(Checkpoint::verify(&source(&vfs).get("checkpoint").unwrap().unwrap(), std::slice::from_ref(&old)).is_err());
    for trusted in [&old, &new] {
        let report = verify(&vfs, std::slice::from_ref(trusted));
        assert!(report.is_intact() && report.keys.len() == 2, "{report:?}");
    }
    assert_eq!(publish::read_signer(&vfs, &key_file()).unwrap().verifier(), &new);
    assert_eq!(publish::read_verifier(&vfs, &publish::verifier_file(&key_file())).unwrap(), new);
    // And it goes on with the new one.
    assert_eq!(session(&vfs, 1 << 20, 10).refused, None);
    assert!(verify(&vfs, &[old]).is_intact());
}

#[test]
fn a_next_key_that_does_not_fit_stops_nothing_and_is_told() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    publish::generate(&vfs, &publish::next_file(&key_file()), "another/name").unwrap();
    let status = session(&vfs, 0, 10);
    assert!(status.caught_up && status.last_failure.unwrap().contains("another/name"));
    assert_eq!(status.vkey, key.to_string());
    assert!(verify(&vfs, &[key]).is_intact());
}

fn cosigned(vfs: &MemVfs, witnesses: &[&SigningKey], time: u64) -> Vec<u8> {
    let note = SignedNote::parse(&source(vfs).get("checkpoint").unwrap().unwrap()).unwrap();
    let lines: Vec<_> = witnesses.iter().map(|witness| witness.sign(note.text(), time)).collect();
    note.with_signature_lines(lines).to_bytes()
}

#[test]
fn a_cosigned_checkpoint_is_taken_if_it_is_this_logs_and_a_quorum_signed() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let [one, two, stranger] = ["w/1", "w/2", "w/3"].map(|name| SigningKey::generate_cosigner(name).unwrap());
    let witnesses = vec![one.verifier().clone(), two.verifier().clone()];
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let options = PublishOptions { witnesses: witnesses.clone(), quorum: 2, ..publish_options() };
    let publisher = Publisher::start(&log, options.clone()).unwrap();
    let mut size = publisher.wait_beyond(0, WAIT).unwrap();
    let few = publisher.accept_cosigned(&cosigned(&vfs, &[&one, &stranger], 7));
    assert!(matches!(few, Err(AcceptError::Quorum { found: 1, quorum: 2 })), "{few:?}");
    let first = cosigned(&vfs, &[&one, &two], 7);
    assert_eq!(publisher.accept_cosigned(&first).unwrap(), size);
    assert!(log.emit(Severity::Critical, b"more").is_durable());
    size = publisher.wait_beyond(size, WAIT).unwrap();
    let second = cosigned(&vfs, &[&one, &two], 8);
    assert_eq!(publisher.accept_cosigned(&second).unwrap(), size);
    assert_eq!(vfs.bytes(&tlog_dir().join("cosigned")), second);
    assert!(matches!(publisher.accept_cosigned(&first), Err(AcceptError::Older { .. })));
    assert_eq!(
        publisher.accept_cosigned(&cosigned(&vfs, &[&one, &two], 9)).unwrap(),
        size,
        "a fresh time at the same size"
    );
    let mut forged = second.clone();
    let at = forged.len() - 8;
    forged[at] ^= 1;
    assert!(matches!(publisher.accept_cosigned(&forged), Err(AcceptError::Checkpoint(_))));
    assert_eq!((publisher.status().cosigned_size, publisher.status().refused), (size, None));
    let source = source(&vfs);
    let mut question = audit_logging::evidence::Question::new(&source, std::slice::from_ref(&key));
    (question.witness_keys, question.quorum) = (&witnesses, 2);
    let report = audit_logging::evidence::verify(&question).unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.ranges.cosigned, report.vouched(), report.cosignatures.len()), (size, size, 2));
    assert!(log.close(WAIT).is_durable());
    publisher.finish(WAIT);
    drop((log, publisher));

    // It is remembered over a restart, and one that is larger than the log means that the log was put back.
    let log = AuditLog::open(&dir(), common::options(&vfs, 8192)).unwrap();
    let publisher = Publisher::start(&log, options).unwrap();
    until("it is remembered", || publisher.status().cosigned_size == size);
    let larger = Checkpoint { origin: ORIGIN.into(), size: 1_000_000, root: Hash([7; 32]) }.to_string();
    let signer = publish::read_signer(&vfs, &key_file()).unwrap();
    let ahead =
        SignedNote::sign(&larger, &[&signer]).with_signature_lines([one.sign(&larger, 9), two.sign(&larger, 9)]);
    let refused = publisher.accept_cosigned(&ahead.to_bytes());
    assert!(matches!(refused, Err(AcceptError::Refused(Refusal::Ahead { seen: 1_000_000, .. }))), "{refused:?}");
    until("nothing is published any more", || publisher.status().refused.is_some());
    until("the log says so", || records(&vfs).iter().any(|record| record.leaf.starts_with(b"{\"log\":\"rollback\"")));
    let size = publisher.status().signed_size;
    assert!(log.emit(Severity::Critical, b"not published").is_durable());
    assert_eq!(publisher.wait_beyond(size, Duration::from_millis(50)), None);
}

#[test]
fn a_checkpoint_of_another_history_seen_elsewhere_ends_the_publishing() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    session(&vfs, 0, 20);
    let other = vfs.copy();
    session(&other, 1 << 20, 20);
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    for n in 0..40 {
        assert!(log.emit(Severity::Critical, &leaf(n, 5)).is_durable());
    }
    publisher.wait_beyond(60, WAIT).unwrap();
    publisher.compare_seen(&vfs.bytes(&tlog_dir().join("checkpoint"))).unwrap();
    let seen = publisher.compare_seen(&other.bytes(&tlog_dir().join("checkpoint")));
    assert!(matches!(seen, Err(AcceptError::Refused(Refusal::Root { size: 44 }))), "{seen:?}");
    until("refused", || publisher.status().refused.is_some());
}

#[test]
fn a_critical_record_is_published_at_once_and_silence_is_broken_by_a_heartbeat() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    let clock = common::TestClock::new(1_795_000_000);
    let log = AuditLog::open(&dir(), audit_logging::Options { clock: clock.clone(), ..options(&vfs, 8192) }).unwrap();
    let slow = PublishOptions {
        interval: Duration::from_secs(2),
        least_interval: Duration::from_millis(1),
        heartbeat: Duration::from_secs(3600),
        ..PublishOptions::new(key_file())
    };
    let publisher = Publisher::start(&log, slow).unwrap();
    let mut size = publisher.wait_beyond(0, WAIT).unwrap();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(30));
        let start = Instant::now();
        assert!(log.emit(Severity::Critical, b"urgent").is_durable());
        size = publisher.wait_beyond(size, WAIT).unwrap();
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    }
    {
        let mut now = clock.now.lock().unwrap();
        *now = (now.0 + 3601, now.1 + 3_601_000);
    }
    publisher.publish_now();
    publisher.wait_beyond(size, WAIT).unwrap();
    let last = records(&vfs).pop().unwrap();
    assert!(last.kind == Kind::Publication && last.leaf.starts_with(b"{\"log\":\"heartbeat\",\"size\":6,"), "{last:?}");
}

/// As whoever verifies on the log's own machine does it, with what is kept beside the key.
fn verify_at_home(vfs: &MemVfs, key: &VerifierKey) -> Vec<What> {
    let (source, dir, keys) = (source(vfs), dir(), [key.clone()]);
    let mut question = Question::new(&source, &keys);
    question.wal = Some((Arc::new(vfs.clone()), &dir));
    let state = publish::read_signed(vfs, &key_file()).unwrap();
    question.last_signed = state.map(|state| ("audit.key.state".to_owned(), state));
    evidence::verify(&question).unwrap().violations.into_iter().map(|violation| violation.what).collect()
}

#[test]
fn a_first_publication_may_end_anywhere_and_a_checkpoint_that_was_seen_is_missed() {
    let base = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&base, 8192)).unwrap();
    for n in 0..700 {
        let _ = log.emit(Severity::Routine, &leaf(n, 100));
    }
    assert!(log.close(WAIT).is_durable());
    let key = make_key(&base);
    let (mut without, mut done) = (0, false);
    for call in (1..).step_by(3) {
        let vfs = base.copy();
        let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
        vfs.plan([Plan { at: call, fault: Fault::PowerCut, span: u64::MAX, only: None }]);
        let publisher = Publisher::start(&log, publish_options());
        until("it is cut, or done", || {
            done = publisher.as_ref().is_ok_and(|publisher| publisher.status().caught_up);
            done || vfs.is_cut()
        });
        drop((publisher, log));
        if done {
            break;
        }
        for left in [vfs.after_power_cut(call), vfs.copy()] {
            let begun = left.paths().iter().any(|path| path.starts_with(tlog_dir().join("tile")));
            let signed = left.paths().contains(&tlog_dir().join("checkpoint"));
            if begun || signed {
                without += u64::from(!signed);
                assert_eq!(verify_at_home(&left, &key), [], "call {call}");
            }
        }
    }
    assert!(done && without > 5, "{without}");
    session(&base, 1 << 20, 3);
    assert_eq!(verify_at_home(&base, &key), []);
    base.delete(&tlog_dir().join("checkpoint"));
    assert_eq!(verify_at_home(&base, &key)[0], What::NoCheckpoint);
    base.delete(&publish::state_file(&key_file()));
    assert_eq!(verify_at_home(&base, &key)[0], What::NoCheckpoint);
}

#[test]
fn one_directory_has_one_publisher_and_one_key() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    publisher.wait_beyond(0, WAIT).unwrap();
    assert!(matches!(Publisher::start(&log, publish_options()), Err(PublishError::Locked { .. })));
    drop(publisher);
    let other = PublishOptions { key_file: "/other/audit.key".into(), ..publish_options() };
    publish::generate(&vfs, &other.key_file, ORIGIN).unwrap();
    let foreign = Publisher::start(&log, other);
    assert!(matches!(foreign, Err(PublishError::Foreign { .. })), "{foreign:?}");
    assert!(Publisher::start(&log, publish_options()).is_ok(), "the lock was given back");
}

#[test]
fn a_key_that_others_can_read_is_refused_and_so_is_a_link() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let scratch = disk_dir("key");
    let path = scratch.path().join("state/audit.key");
    let vkey = publish::generate(&Disk, &path, ORIGIN).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert!(matches!(publish::generate(&Disk, &path, ORIGIN), Err(KeyFileError::Exists { .. })));
    assert_eq!(publish::read_signer(&Disk, &path).unwrap().verifier(), &vkey);
    assert_eq!(publish::read_verifier(&Disk, &scratch.path().join("state/audit.vkey")).unwrap(), vkey);
    for bits in [0o640, 0o604, 0o620, 0o777] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bits)).unwrap();
        assert!(matches!(publish::read_signer(&Disk, &path), Err(KeyFileError::Exposed { .. })), "{bits:o}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    publish::read_signer(&Disk, &path).unwrap();
    let link = scratch.path().join("link.key");
    symlink(&path, &link).unwrap();
    assert!(matches!(publish::read_signer(&Disk, &link), Err(KeyFileError::Io { .. })));
    std::fs::write(link.with_extension("txt"), "PRIVATE+KEY+x").unwrap();
    std::fs::set_permissions(link.with_extension("txt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(publish::read_signer(&Disk, &link.with_extension("txt")), Err(KeyFileError::Key { .. })));
    let origin = publish::default_origin().unwrap();
    assert!(origin.contains("/vram-audit/") && SigningKey::generate(&origin).is_ok(), "{origin}");
}

#[test]
fn publishing_on_a_real_disk_beside_many_threads() {
    let scratch = disk_dir("publish");
    let (dir, key_file) = (scratch.path().join("log"), scratch.path().join("audit.key"));
    let key = publish::generate(&Disk, &key_file, ORIGIN).unwrap();
    let options = audit_logging::Options { segment_bytes: 256 << 10, critical_deadline: WAIT, ..Default::default() };
    let log = AuditLog::open(&dir, options).unwrap();
    let quick = PublishOptions {
        interval: Duration::from_millis(20),
        least_interval: Duration::from_millis(5),
        ..PublishOptions::new(&key_file)
    };
    let publisher = Publisher::start(&log, quick).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let log = log.clone();
            scope.spawn(move || {
                for n in 0..400 {
                    let severity = if n % 3 == 0 { Severity::Critical } else { Severity::Routine };
                    let length = Rng(thread << 32 | n).below(900) as usize;
                    assert!(log.emit(severity, &leaf(thread << 32 | n, length)).seq().is_some());
                }
            });
        }
    });
    assert!(log.close(WAIT).is_durable());
    let finished = publisher.finish(WAIT);
    assert_eq!((finished.size, finished.caught_up), (1602, true));
    let source = publisher.source().clone();
    let mut question = audit_logging::evidence::Question::new(&source, std::slice::from_ref(&key));
    question.wal = Some((Arc::new(Disk), &dir));
    let report = audit_logging::evidence::verify(&question).unwrap();
    assert!(report.is_intact() && report.compared == 1602, "{report:?}");
}

#[test]
fn verifying_beside_a_busy_writer_and_publisher_raises_no_false_alarm() {
    let scratch = disk_dir("publish-live");
    let (dir, key_file) = (scratch.path().join("log"), scratch.path().join("audit.key"));
    let key = publish::generate(&Disk, &key_file, ORIGIN).unwrap();
    let options = audit_logging::Options { segment_bytes: 64 << 10, critical_deadline: WAIT, ..Default::default() };
    let log = AuditLog::open(&dir, options).unwrap();
    let quick = PublishOptions {
        interval: Duration::from_millis(10),
        least_interval: Duration::from_millis(1),
        ..PublishOptions::new(&key_file)
    };
    let publisher = Publisher::start(&log, quick).unwrap();
    publisher.wait_beyond(0, WAIT).unwrap();
    let writing = std::sync::atomic::AtomicBool::new(true);
    let failed = std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (log, writing) = (log.clone(), &writing);
            scope.spawn(move || {
                let mut n = thread << 32;
                while writing.load(std::sync::atomic::Ordering::Relaxed) {
                    n += 1;
                    let _ = log.emit(Severity::Critical, &leaf(n, 300));
                }
            });
        }
        let start = Instant::now();
        let (mut rounds, mut failed) = (0, None);
        while start.elapsed() < Duration::from_millis(1500) && failed.is_none() {
            let mut question = audit_logging::evidence::Question::new(publisher.source(), std::slice::from_ref(&key));
            question.wal = Some((Arc::new(Disk), &dir));
            let report = audit_logging::evidence::verify(&question);
            rounds += 1;
            failed = Some(report).filter(|report| !report.as_ref().is_ok_and(|report| report.is_intact()));
        }
        writing.store(false, std::sync::atomic::Ordering::Relaxed);
        println!("{rounds} rounds beside {} entries", publisher.status().signed_size);
        failed
    });
    assert!(failed.is_none(), "{failed:#?}");
}
