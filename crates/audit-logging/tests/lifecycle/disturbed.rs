//! Files that are taken away, cut or put in the way, and disks that are full.

use super::*;

/// Something happens to the files between two critical records; both must be in the log, and the log say so.
fn disturbed(name: &str, disturb: impl Fn(&Path)) -> Report {
    let scratch = disk_dir(name);
    let dir = scratch.path().join("log");
    let log = AuditLog::open(&dir, options()).unwrap();
    let before = log.emit(Severity::Critical, b"before").seq().unwrap();
    disturb(&dir);
    let outcome = log.emit(Severity::Critical, b"after");
    assert!(outcome.is_durable(), "{name}: {outcome:?}");
    assert!(log.close(WAIT).is_durable());
    let report = reader::verify(&dir).unwrap();
    let found = records(&dir);
    let storage = found.iter().find(|record| record.kind == Kind::Storage).unwrap();
    let text = String::from_utf8(storage.leaf.clone()).unwrap();
    assert!(text.contains("keeping a segment under its name"), "{name}: {text}");
    for (leaf, seq) in [(b"before".as_slice(), before), (b"after".as_slice(), outcome.seq().unwrap())] {
        assert!(found.iter().any(|record| record.leaf == leaf && record.seq == seq), "{name}: {found:?}");
    }
    assert!(AuditLog::open(&dir, options()).unwrap().status().recovered.is_none());
    report
}

#[test]
fn a_segment_unlinked_renamed_or_replaced_under_us_is_put_back() {
    let live = |dir: &Path| dir.join("segment-000000000001.wal");
    let report = disturbed("unlink", |dir| std::fs::remove_file(live(dir)).unwrap());
    assert!(report.is_intact(), "{report:?}");
    let report = disturbed("rename", |dir| std::fs::rename(live(dir), dir.join("elsewhere")).unwrap());
    assert!(report.is_intact(), "{report:?}");
    let report = disturbed("replace", |dir| {
        std::fs::rename(live(dir), dir.join("elsewhere")).unwrap();
        std::fs::write(live(dir), b"not a segment").unwrap();
    });
    assert!(report.is_intact(), "{report:?}");
}

#[test]
fn a_segment_cut_under_us_is_given_up_and_said_to_be() {
    for keep in [0, 700, 65_000] {
        let scratch = disk_dir("cut");
        let log = AuditLog::open(scratch.path(), options()).unwrap();
        assert!(log.emit(Severity::Critical, b"before").is_durable());
        let live =
            std::fs::OpenOptions::new().write(true).open(scratch.path().join("segment-000000000001.wal")).unwrap();
        live.set_len(keep).unwrap();
        let after = log.emit(Severity::Critical, b"after");
        assert!(after.is_durable(), "{after:?}");
        assert!(log.close(WAIT).is_durable());
        let report = reader::verify(scratch.path()).unwrap();
        assert_eq!(report.violations.first().map(|found| found.segment), Some(1), "{report:?}");
        let found: Vec<_> = reader::records(scratch.path()).unwrap().filter_map(Result::ok).collect();
        assert!(found.iter().any(|record| record.leaf == b"after" && Some(record.seq) == after.seq()));
        let told = found.iter().find(|record| record.kind == Kind::Storage).unwrap();
        assert!(String::from_utf8_lossy(&told.leaf).contains("keeping a segment whole"));
    }
}

#[test]
fn a_directory_removed_under_us_is_made_again() {
    let report = disturbed("rmdir", |dir| std::fs::remove_dir_all(dir).unwrap());
    assert!(report.is_intact(), "{report:?}");
    let report = disturbed("mvdir", |dir| std::fs::rename(dir, dir.with_extension("away")).unwrap());
    assert!(report.is_intact(), "{report:?}");
}

#[test]
fn what_cannot_be_read_is_one_violation_and_hangs_nobody() {
    type Make = fn(&Path);
    let scratch = disk_dir("unreadable");
    let make: [(&str, Make); 3] = [
        ("link", |path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap()),
        ("directory", |path| std::fs::create_dir(path).unwrap()),
        ("fifo", |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
    ];
    for (what, make) in make {
        // Segments 1 to 3 hold records, 4 is the spare; 6 is nothing that the log made.
        for index in [1, 2, 3, 4, 6] {
            let dir = scratch.path().join(format!("{what}-{index}"));
            // A spare from a thread of its own may come too late to be there when the log closes.
            let log = AuditLog::open(&dir, Options { spare_thread: false, ..options() }).unwrap();
            for n in 0..5 {
                assert!(log.emit(Severity::Critical, &leaf(n, 30_000)).is_durable());
            }
            assert!(log.close(WAIT).is_durable());
            let clean = intact(&dir);
            assert_eq!(clean.segments, 4);
            let path = dir.join(format!("segment-{index:012}.wal"));
            let _ = std::fs::remove_file(&path);
            make(&path);
            let check = || {
                let report = reader::verify(&dir).unwrap();
                let found: Vec<_> = report.violations.iter().map(|found| (found.what, found.segment)).collect();
                assert_eq!(found, [(What::Unreadable, index)], "{what}: {report:?}");
                let read = reader::records(&dir).unwrap();
                assert_eq!(read.filter(Result::is_ok).count() as u64, report.records, "{what} {index}");
                report
            };
            let before = check();
            assert!(before.records >= clean.records - 3, "{before:?}");
            let log = AuditLog::open(&dir, options()).unwrap();
            assert_eq!(log.status().recovered.is_some(), index > 2, "{what} {index}");
            assert!(log.emit(Severity::Critical, b"after").seq().unwrap() > clean.last_seq);
            assert!(log.close(WAIT).is_durable());
            assert!(check().records == before.records + 3, "{what} {index}");
        }
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_a_typed_error() {
    let scratch = disk_dir("notdir");
    let file = scratch.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let error = AuditLog::open(&file.join("log"), options()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }));
    assert!(error.to_string().contains("check the path"), "{error}");
    for (segment_bytes, queue_bytes) in [(100, 1 << 20), (1 << 40, 1 << 20), (8 << 20, 10)] {
        let error = AuditLog::open(scratch.path(), Options { segment_bytes, queue_bytes, ..options() });
        assert!(matches!(error, Err(OpenError::Option { .. })));
    }
    assert!(matches!(reader::verify(scratch.path()), Err(audit_logging::ReadError::NoLog { .. })));
}

/// A tiny file system, unmounted in the end.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_the_spare_and_not_the_log() {
    let full = |at| Plan { at, fault: Fault::Os(28), span: FOREVER, only: Some("rename") };
    for fresh in [true, false] {
        let vfs = MemVfs::default();
        if fresh {
            vfs.plan([full(2)]);
        } else {
            drop(AuditLog::open(&dir(), common::options(&vfs, 16384)).unwrap());
            vfs.delete(&common::segment(2));
            vfs.plan([full(1)]);
        }
        let log = AuditLog::open(&dir(), common::options(&vfs, 16384)).unwrap();
        assert!(log.emit(Severity::Critical, b"no room for a spare").is_durable());
        assert!(!log.status().spare_ready && log.status().segment == 1);
        vfs.plan([]);
        let start = Instant::now();
        while !log.status().spare_ready {
            assert!(start.elapsed() < WAIT);
            std::thread::sleep(Duration::from_millis(5));
            assert!(log.emit(Severity::Critical, b"room again").is_durable());
        }
        assert!(log.close(WAIT).is_durable());
        assert!(reader::verify_on(&vfs, &dir()).unwrap().is_intact());
    }
}

#[test]
fn a_really_full_disk_fails_typed_and_resumes_when_there_is_room() {
    let scratch = disk_dir("full");
    let point = scratch.path().join("tiny");
    std::fs::create_dir(&point).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs"])
        .arg(&point)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: no right to mount a small file system here; the simulated full disk is tested in faults.rs");
        return;
    }
    let mount = Mount(point.clone());
    let dir = point.join("log");
    let log = AuditLog::open(&dir, options()).unwrap();
    let ballast = point.join("ballast");
    std::fs::write(&ballast, vec![1u8; 200 << 10]).unwrap();
    let mut durable = 0u64;
    let failure = loop {
        match log.emit(Severity::Critical, &leaf(durable, 1000)) {
            Outcome::Durable { .. } => durable += 1,
            Outcome::Failed(failure) => break failure,
            other => panic!("{other:?}"),
        }
        assert!(durable < 10_000);
    };
    let Failure::Storage(fault) = failure else { panic!("{failure}") };
    assert_eq!(fault.kind, std::io::ErrorKind::StorageFull, "{failure}");
    assert!(failure.to_string().contains("free space"), "{failure}");
    // The spare was there when the disk filled up: records still fitted into it.
    assert!(durable > 100, "{durable}");
    assert_eq!((log.status().failures, log.status().critical_failures), (1, 1));
    std::fs::remove_file(&ballast).unwrap();
    let start = Instant::now();
    while log.status().degraded.is_some() {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(log.emit(Severity::Critical, b"room again").is_durable());
    assert!(log.close(WAIT).is_durable());
    let report = intact(&dir);
    assert_eq!(report.gaps.len(), 1, "{report:?}");
    println!("{durable} records before the disk was full, then: {failure}");
    drop(mount);
}
