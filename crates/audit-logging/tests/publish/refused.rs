//! Logs that are not what was signed, and records that are damaged or were given up.

use super::*;

/// A log that was published, changed in one way, and taken up again: the refusal.
fn refused(change: impl Fn(&MemVfs, &MemVfs)) -> Option<Refusal> {
    let vfs = MemVfs::default();
    make_key(&vfs);
    session(&vfs, 0, 300);
    let older = vfs.copy();
    session(&vfs, 1 << 20, 100);
    let signed = vfs.bytes(&tlog_dir().join("checkpoint"));
    change(&vfs, &older);
    let status = session(&vfs, 2 << 20, 5);
    if status.refused.is_some() {
        let now = vfs.names(&tlog_dir()).iter().any(|name| name == "checkpoint");
        assert!(
            !now || vfs.bytes(&tlog_dir().join("checkpoint")) == signed
                || vfs.bytes(&tlog_dir().join("checkpoint")) == older.bytes(&tlog_dir().join("checkpoint"))
        );
        let told = records(&vfs).into_iter().rfind(|record| record.kind == Kind::Publication);
        let told = String::from_utf8(told.expect("the log says so").leaf).unwrap();
        let word = if matches!(status.refused, Some(Refusal::Rollback { .. })) { "rollback" } else { "conflict" };
        assert!(told.starts_with(&format!("{{\"log\":\"{word}\"")), "{told}");
    }
    status.refused
}

fn put_back(vfs: &MemVfs, older: &MemVfs, what: &str) {
    for path in vfs.paths().into_iter().filter(|path| path.to_str().unwrap().contains(what)) {
        vfs.delete(&path);
    }
    for path in older.paths().into_iter().filter(|path| path.to_str().unwrap().contains(what)) {
        vfs.set_bytes(&path, &older.bytes(&path));
    }
}

#[test]
fn a_log_that_is_not_what_was_signed_is_refused_and_the_log_says_so() {
    assert_eq!(refused(|_, _| {}), None);
    let back = refused(|vfs, older| put_back(vfs, older, "segment-"));
    // It went on with an `open` record where another record had been published.
    assert_eq!(back, Some(Refusal::Rollback { found: 302, signed: 404 }));
    let all = refused(|vfs, older| {
        put_back(vfs, older, "segment-");
        put_back(vfs, older, "tlog/");
    });
    // Only the state beside the key remembers.
    assert!(matches!(all, Some(Refusal::Rollback { found: 303..=309, signed: 404 })), "{all:?}");
    // The published files alone put back to an earlier state: made anew from the log.
    assert_eq!(refused(|vfs, older| put_back(vfs, older, "tlog/")), None);
    let tile = refused(|vfs, _| vfs.flip(&tlog_dir().join("tile/0/000"), 77));
    assert_eq!(tile, Some(Refusal::File { file: "tile/0/000".into() }));
    let bundle = refused(|vfs, _| vfs.flip(&tlog_dir().join("tile/entries/000"), 3000));
    assert!(matches!(&bundle, Some(Refusal::Record { file, .. }) if file == "tile/entries/000"), "{bundle:?}");
    let partial = refused(|vfs, _| vfs.flip(&tlog_dir().join("tile/1/000.p/1"), 7));
    assert_eq!(partial, Some(Refusal::File { file: "tile/1/000.p/1".into() }));
    let rewritten = refused(|vfs, older| {
        // Everything but the key's memory belongs to another history of the same length.
        let other = older.copy();
        session(&other, 7 << 20, 100);
        put_back(vfs, &other, "segment-");
        put_back(vfs, &other, "tlog/tile");
    });
    assert_eq!(rewritten, Some(Refusal::Root { size: 404 }));
}

#[test]
fn damage_in_the_log_does_not_shorten_the_tree_and_is_reported() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    session(&vfs, 0, 300);
    let damaged = records(&vfs)[120].clone();
    vfs.flip(&segment(damaged.segment), damaged.offset as usize + 40);
    let status = session(&vfs, 1 << 20, 40);
    assert_eq!((status.refused, status.missing_in_log), (None, 1));
    assert_eq!(status.signed_size, 302 + 42 + 2, "two records tell of the damage");
    let report = verify(&vfs, &[key]);
    let whats: Vec<_> = report.violations.iter().map(|violation| (violation.what, violation.record)).collect();
    assert_eq!(whats, [(What::LogDamaged, Some(damaged.seq)), (What::RecordMissing, Some(damaged.seq))], "{report:?}");
    assert_eq!((report.ranges.signed, report.entries), (346, 346));
    // The cut tail of a log with damage elsewhere is still a rollback.
    let status = session(&vfs, 2 << 20, 1);
    assert_eq!(status.refused, None);
    let last = records_anyway(&vfs).pop().unwrap();
    let mut bytes = vfs.bytes(&segment(last.segment));
    bytes[last.offset as usize - 400..].fill(0);
    vfs.set_bytes(&segment(last.segment), &bytes);
    let status = session(&vfs, 3 << 20, 1);
    assert!(matches!(status.refused, Some(Refusal::Record { .. } | Refusal::Rollback { .. })), "{status:?}");
}

fn records_anyway(vfs: &MemVfs) -> Vec<Record> {
    reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().filter_map(Result::ok).collect()
}

#[test]
fn damage_beside_a_running_publisher_is_passed_over_and_stated() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let log = AuditLog::open(&dir(), options(&vfs, 1 << 20)).unwrap();
    for n in 0..50 {
        assert!(log.emit(Severity::Critical, &leaf(n, 100)).is_durable());
    }
    let hit = records(&vfs)[20].clone();
    vfs.flip(&segment(1), hit.offset as usize + 50);
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    until("it goes on behind the damage", || publisher.status().signed_size >= 50);
    assert!(log.emit(Severity::Critical, b"behind").is_durable());
    assert!(log.close(WAIT).is_durable());
    assert!(publisher.finish(WAIT).caught_up);
    let entries = published(&vfs, publisher.status().signed_size);
    let seqs: Vec<u64> = entries.iter().map(|bytes| Entry::parse(bytes).unwrap().seq).collect();
    assert!(!seqs.contains(&hit.seq) && seqs.contains(&(hit.seq + 1)));
    assert!(entries.iter().any(|bytes| bytes[10..].starts_with(b"{\"log\":\"conflict\"")), "the log says so");
    let report = verify(&vfs, &[key]);
    let whats: Vec<_> = report.violations.iter().map(|violation| (violation.what, violation.record)).collect();
    assert!(
        whats.contains(&(What::NumberMissing, Some(hit.seq))) && whats.contains(&(What::LogDamaged, Some(hit.seq))),
        "{whats:?}"
    );
}

#[test]
fn frames_of_a_segment_that_was_given_up_are_not_published() {
    // Records that reached the disk but not the log: the sync fails, then the spare, and the log states a gap.
    for span in [2, 3, 6] {
        let vfs = MemVfs::default();
        let key = make_key(&vfs);
        let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
        let publisher = Publisher::start(&log, publish_options()).unwrap();
        assert!(log.emit(Severity::Critical, b"before").is_durable());
        publisher.wait_beyond(1, WAIT).unwrap();
        vfs.seed(span);
        vfs.plan(["sync", "rename"].map(|name| Plan { at: 1, fault: Fault::Os(5), span, only: Some(name) }));
        let _ = log.emit(Severity::Routine, b"lost perhaps");
        let lost = log.emit(Severity::Critical, b"lost");
        until("it resumes", || log.status().degraded.is_none());
        assert!(log.emit(Severity::Critical, b"after").is_durable());
        vfs.plan([]);
        assert!(log.close(WAIT).is_durable());
        let finished = publisher.finish(WAIT);
        assert!(finished.caught_up, "{:?}", publisher.status());
        let published = published(&vfs, finished.size);
        let kept: Vec<Vec<u8>> = records(&vfs).iter().map(|record| Entry::of(record).to_bytes()).collect();
        assert_eq!(published, kept, "span {span}");
        let there = published.iter().any(|bytes| &bytes[10..] == b"lost");
        assert_eq!(there, lost.is_durable(), "span {span}: {lost:?}");
        let report = verify(&vfs, &[key]);
        assert!(report.is_intact(), "span {span}: {report:?}");
    }
}
