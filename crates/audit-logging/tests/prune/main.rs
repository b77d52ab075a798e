//! Pruning: old records go, every proof stays, and nobody can make records go by saying that they were pruned.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod accused;
#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Question, Report, What};
use audit_logging::publish::{self, PruneError, PruneOptions, Pruned, Publisher, Refusal};
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::{SignedNote, VerifierKey};
use audit_logging::tlog::proof::{self, Proof};
use audit_logging::tlog::source::Source as _;
use audit_logging::tlog::tree::tiles_between;
use audit_logging::{AuditLog, Kind, Severity, reader};
use common::{FOREVER, Fault, MemVfs, Plan};
use common::{dir, key_file, leaf, make_key, options, publish_options, published, segment, source, tlog_dir, verify};

const WAIT: Duration = Duration::from_secs(20);

struct Session {
    vfs: MemVfs,
    log: AuditLog,
    publisher: Publisher,
    tag: u64,
}

impl Session {
    fn open(vfs: &MemVfs, tag: u64) -> Session {
        let log = AuditLog::open(&dir(), options(vfs, 8192)).unwrap();
        let publisher = Publisher::start(&log, publish_options()).unwrap();
        Session { vfs: vfs.clone(), log, publisher, tag }
    }

    fn write(&mut self, count: u64) {
        let mut last = None;
        for _ in 0..count {
            self.tag += 1;
            let outcome = self.log.emit(Severity::Critical, &leaf(self.tag, (self.tag % 200) as usize));
            assert!(outcome.is_durable());
            last = outcome.seq();
        }
        until("it is published, or refused", || {
            last_published(&self.vfs) >= last || self.publisher.status().refused.is_some()
        });
    }

    fn prune(&self, before: u64) -> Result<Pruned, PruneError> {
        self.publisher.prune(PruneOptions::before(before), WAIT)
    }

    fn close(self) -> publish::PublishStatus {
        let _ = self.log.close(WAIT);
        self.publisher.finish(WAIT);
        self.publisher.status()
    }
}

/// The number of the last record under the checkpoint.
fn last_published(vfs: &MemVfs) -> Option<u64> {
    let bytes = source(vfs).get("checkpoint").unwrap()?;
    let size = Checkpoint::parse(SignedNote::parse(&bytes).unwrap().text()).unwrap().size;
    let tile = tiles_between(0, size).filter(|tile| tile.is_entries()).last()?;
    let bundle = source(vfs).get(&tile.path()).unwrap()?;
    Some(Entry::parse(entry::split(&bundle).unwrap().last()?).unwrap().seq)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WAIT, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Numbers and leaves of the records that the log has.
fn records(vfs: &MemVfs) -> BTreeMap<u64, Vec<u8>> {
    let records = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap);
    records.map(|record| (record.seq, record.leaf)).collect()
}

/// The numbers of the bundles that are there, of the first hundred.
fn bundles(vfs: &MemVfs) -> Vec<u64> {
    let names = vfs.names(&tlog_dir().join("tile/entries"));
    let mut found: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    found.sort_unstable();
    found
}

fn is_good(vfs: &MemVfs, key: &VerifierKey) -> Report {
    let log = reader::verify_on(vfs, &dir()).unwrap();
    assert!(log.is_intact(), "{log:?}");
    let report = verify(vfs, std::slice::from_ref(key));
    assert!(report.is_intact(), "{report:?}");
    report
}

fn whats(report: &Report) -> Vec<What> {
    report.violations.iter().map(|violation| violation.what).collect()
}

/// The text of a floor for another segment, in the log's own form.
fn forge(segment: u64, last_seq: u64) -> String {
    let minimum = last_seq.div_ceil(256) * 256;
    format!(
        r#"{{"log":"pruned","before":{},"minimum_index":{minimum},"segment":{segment},"last_seq":{last_seq},"index":{last_seq},"keys":0,"time_unix_ms":1}}"#,
        last_seq + 1
    )
}

#[test]
fn old_records_go_and_every_proof_stays() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1500);
    let entries = published(&vfs, 1280);
    let all = records(&vfs);
    let old = vfs.bytes(&tlog_dir().join("checkpoint"));
    let early = proof::prove(&source(&vfs), std::slice::from_ref(&key), 100).unwrap().to_string();

    let pruned = session.prune(700).unwrap();
    assert_eq!((pruned.minimum_index, pruned.entries), (512, 512));
    assert!(pruned.first_seq <= 700 && pruned.first_segment > 1, "{pruned:?}");
    assert_eq!(session.publisher.status().minimum_index, 512);
    assert_eq!(bundles(&vfs)[0], 2);
    assert!(!vfs.paths().contains(&segment(1)));
    assert_eq!(vfs.bytes(&tlog_dir().join("minimum-index")), b"512\n");
    // Nothing younger is gone, in either place.
    let left = records(&vfs);
    assert!(all.range(pruned.first_seq..).all(|(seq, leaf)| left.get(seq) == Some(leaf)));
    assert!(left.len() < 1100, "and most of what is older is: {}", left.len());
    let report = is_good(&vfs, &key);
    assert_eq!(report.pruned, 512);
    assert!(report.compared as usize >= left.len() - 10, "{} of {}", report.compared, left.len());

    // Again, with nothing to do, and further.
    assert_eq!(session.prune(700).unwrap().entries, 0);
    session.write(300);
    assert_eq!(session.prune(1100).unwrap().minimum_index, 1024);
    is_good(&vfs, &key);
    // It goes on after a restart, which checks everything anew.
    assert_eq!(session.close().refused, None);
    let mut session = Session::open(&vfs, 1 << 20);
    session.write(40);
    assert_eq!(session.publisher.status().minimum_index, 1024);
    assert_eq!(session.prune(u64::MAX).unwrap().minimum_index % 256, 0);
    let status = session.close();
    assert_eq!(status.refused, None);
    assert!(is_good(&vfs, &key).pruned >= 1536, "{status:?}");
    assert!(bundles(&vfs).iter().all(|&bundle| bundle >= status.minimum_index / 256));

    // Proofs of what was given up hold, those made before and those made now by whoever has the record.
    let keys = [key];
    Proof::parse(early.as_bytes()).unwrap().check(&entries[100], &keys, &[], 0).unwrap();
    for index in [0, 255, 256, 700, 1279] {
        let proof = proof::prove(&source(&vfs), &keys, index as u64).unwrap();
        proof.check(&entries[index], &keys, &[], 0).unwrap();
        assert!(proof.check(&entries[index + 1 - 2 * (index & 1)], &keys, &[], 0).is_err());
    }
    // And the tree is the one that was signed before.
    let session = Session::open(&vfs, 2 << 20);
    assert!(session.publisher.compare_seen(&old).is_ok());
}

#[test]
fn what_replicas_do_not_have_yet_stays() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1000);
    assert_eq!(
        session.publisher.prune(PruneOptions { limit: 400, ..PruneOptions::before(900) }, WAIT).unwrap().minimum_index,
        256
    );
    assert_eq!(
        session.publisher.prune(PruneOptions { limit: 0, ..PruneOptions::before(900) }, WAIT).unwrap().entries,
        0
    );
    assert_eq!(bundles(&vfs)[0], 1);
}

#[test]
fn the_keys_can_still_be_followed() {
    let vfs = MemVfs::default();
    let first = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(300);
    publish::generate(&vfs, &publish::next_file(&key_file()), first.name()).unwrap();
    session.publisher.publish_now();
    until("the key is changed", || session.publisher.status().vkey != first.to_string());
    session.write(800);
    assert_eq!(session.prune(900).unwrap().minimum_index, 768);
    assert_eq!(bundles(&vfs)[..2], [1, 3], "the bundle with the change of key is kept");
    let report = is_good(&vfs, &first);
    assert_eq!((report.pruned, report.keys.len()), (512, 2));
    session.close();
    let mut session = Session::open(&vfs, 1 << 20);
    session.write(10);
    assert_eq!(session.close().refused, None);
    is_good(&vfs, &first);
}

#[test]
fn wherever_it_is_interrupted_nothing_else_is_lost_and_nobody_is_accused() {
    let base = MemVfs::default();
    let key = make_key(&base);
    let mut session = Session::open(&base, 0);
    session.write(1100);
    session.close();
    let (mut interrupted, mut begun) = (0, 0);
    for call in 1.. {
        // The power goes, or one call fails, at every call there is.
        let mut done = 0;
        for fault in [Fault::PowerCut, Fault::Os(5)] {
            let vfs = base.copy();
            let mut session = Session::open(&vfs, 1 << 20);
            session.write(3);
            let before = records(&vfs);
            let span = if fault == Fault::PowerCut { FOREVER } else { 1 };
            vfs.plan([Plan { at: call, fault, span, only: None }]);
            let pruned = loop {
                let pruned = session.publisher.prune(PruneOptions::before(800), Duration::from_millis(50));
                if pruned != Err(PruneError::Pending) || vfs.is_cut() {
                    break pruned;
                }
            };
            done += u64::from(pruned.is_ok() && vfs.calls() < call);
            drop(session.publisher);
            drop(session.log);
            let vfs = if fault == Fault::PowerCut { vfs.after_power_cut(call) } else { vfs.copy() };
            vfs.plan([]);
            interrupted += 1;
            let left = records(&vfs);
            assert!(before.range(800..).all(|(seq, leaf)| left.get(seq) == Some(leaf)), "call {call}, {fault:?}");
            is_good(&vfs, &key);
            let mut session = Session::open(&vfs, 2 << 20);
            session.write(3);
            let status = session.publisher.status();
            assert_eq!(status.refused, None, "call {call}, {fault:?}");
            begun += u64::from(status.minimum_index > 0);
            until("it is cleaned up", || status.minimum_index == 0 || bundles(&vfs)[0] == status.minimum_index / 256);
            session.prune(800).unwrap();
            assert_eq!(session.close().minimum_index, 768);
            assert_eq!(is_good(&vfs, &key).pruned, 768);
        }
        if done == 2 {
            break;
        }
    }
    println!("{interrupted} interruptions, {begun} after the point of no return");
    assert!(interrupted > 20 && begun > 5, "{interrupted}, {begun}");
}

#[test]
fn without_a_publisher_a_pruned_log_is_a_log() {
    let vfs = MemVfs::default();
    make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1200);
    session.prune(800).unwrap();
    let copy = vfs.copy();
    // A clean end, and none at all: what was not proven durable may be torn.
    session.close();
    for vfs in [vfs.clone(), copy.after_power_cut(7)] {
        let before = records(&vfs);
        let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
        assert!(log.status().recovered.is_none_or(|recovery| recovery.finding.is_none()));
        assert!(log.emit(Severity::Critical, b"behind").is_durable());
        assert!(log.close(WAIT).is_durable());
        let after = records(&vfs);
        assert!(before.iter().all(|(seq, leaf)| after.get(seq) == Some(leaf)));
        let report = reader::verify_on(&vfs, &dir()).unwrap();
        assert!(report.is_intact() && report.clean_close, "{report:?}");
    }
    // Its numbers and counts go on where they were.
    let last = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap).last().unwrap();
    assert_eq!(last.kind, Kind::Close);
    let text = String::from_utf8(last.leaf).unwrap();
    let count: u64 = text.split("\"records\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(count + 1 >= last.seq - 2 && count > 1200, "{text} {}", last.seq);
    assert!(source(&vfs).get("tile/0/000").unwrap().is_some());
}

#[test]
fn a_key_that_was_given_up_stays_given_up_whatever_is_taken_away() {
    let vfs = MemVfs::default();
    let old = make_key(&vfs);
    let thief = publish::read_signer(&vfs, &key_file()).unwrap();
    let mut session = Session::open(&vfs, 0);
    session.write(300);
    let new = publish::generate(&vfs, &publish::next_file(&key_file()), old.name()).unwrap();
    session.publisher.publish_now();
    until("the key is changed", || session.publisher.status().vkey == new.to_string());
    session.write(800);
    session.prune(900).unwrap();
    session.write(1);
    let status = session.close();
    let keys = [old, new];
    let intact = |vfs: &MemVfs| evidence::verify(&Question::new(&source(vfs), &keys)).unwrap();
    assert!(intact(&vfs).is_intact(), "{:?}", intact(&vfs));
    let checkpoint =
        Checkpoint { origin: keys[0].name().to_owned(), size: status.signed_size, root: status.signed_root };
    vfs.set_bytes(&tlog_dir().join("checkpoint"), &SignedNote::sign(&checkpoint.to_string(), &[&thief]).to_bytes());
    assert_eq!(whats(&intact(&vfs)), [What::RetiredKey]);
    let copy = vfs.copy();
    copy.delete(&tlog_dir().join("tile/entries/001"));
    assert!(whats(&intact(&copy)).contains(&What::KeysMissing), "{:?}", intact(&copy));
    let rotation = vfs.names(&tlog_dir().join("rotation"))[0].clone();
    vfs.delete(&tlog_dir().join("rotation").join(rotation));
    assert!(whats(&intact(&vfs)).contains(&What::RotationInvalid), "{:?}", intact(&vfs));
}

#[test]
fn a_record_that_nobody_signed_vouches_for_nothing_also_after_the_next_start() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let mut session = Session::open(&vfs, 0);
    session.write(1000);
    session.close();
    // Written behind the end by somebody who knows the format and has no key: a log that nobody publishes takes it.
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    let all = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap);
    let first = all.filter(|record| record.segment == 3).map(|record| record.seq).min().unwrap();
    let forged = forge(3, first - 1);
    assert!(log.emit_publication(Severity::Critical, forged.as_bytes()).is_durable());
    assert!(log.close(WAIT).is_durable());
    vfs.set_bytes(&dir().join("pruned"), forged.as_bytes());
    vfs.delete(&segment(1));
    vfs.delete(&segment(2));
    vfs.delete(&tlog_dir().join("tile/entries/000"));
    let session = Session::open(&vfs, 1 << 20);
    until("it is refused", || session.publisher.status().refused.is_some());
    assert_eq!(session.publisher.status().refused, Some(Refusal::Unannounced { segment: 3 }));
    session.close();
    assert!(whats(&verify(&vfs, &[key])).contains(&What::PruningUnannounced));
}

#[test]
fn the_present_key_is_no_next_one() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let same = vfs.bytes(&key_file());
    let mut session = Session::open(&vfs, 0);
    session.write(3);
    vfs.set_bytes(&publish::next_file(&key_file()), &same);
    session.write(3);
    until("it is told", || session.publisher.status().last_failure.is_some_and(|told| told.contains("present key")));
    session.close();
    assert_eq!(is_good(&vfs, &key).keys.len(), 1);
}
