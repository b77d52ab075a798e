//! A disk that fails under the audit log never stops sealing and verifying, and never goes unnoticed.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use audit_logging::Kind;
use support::moody::Moody;
use support::{disk_dir, host, id, manager_with};
use vram_residency::audit::{AuditTrail, TrailHealth};
use vram_residency::{Error, Policy, ShardState};

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Full disk, read-only file system, failing sync: the same story each time.
#[test]
fn work_goes_on_the_loss_is_counted_shown_and_recorded_as_a_gap() {
    for error in [libc::ENOSPC, libc::EROFS, libc::EIO] {
        let dir = disk_dir();
        let disk = Moody::default();
        let options = disk.log();
        let trail = AuditTrail::open_with(dir.path(), options).unwrap();
        let manager = manager_with(host(1 << 20), trail, Policy::default());
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        manager.verify_sealed(&shard).unwrap();
        manager.trail().flush(Duration::from_secs(30)).unwrap();
        assert_eq!(shard.state(), ShardState::Verified);

        manager.inject_fault(&shard, 0, 0).unwrap();
        disk.fails_with(error);
        let answer = manager.verify_sealed(&shard);
        assert!(matches!(answer, Err(Error::SealVerificationFailed { .. })), "errno {error}: {answer:?}");
        wait_for("the failing disk is noticed", || matches!(manager.trail().health(), TrailHealth::Failing(_)));
        let drill = manager.inject_fault(&shard, 0, 0);
        assert!(matches!(drill, Err(Error::Audit(_))), "no drill without its record: {drill:?}");
        manager.repair(&shard, &b"weights".as_slice()).unwrap();
        manager.verify_sealed(&shard).unwrap();
        assert_eq!(shard.state(), ShardState::Unverified, "what is not on record is not verified");
        let other = manager.seal_model(id("other"), "model", b"more weights").unwrap();
        let status = manager.trail().log_status().unwrap();
        assert!(status.failures >= 5 && status.critical_failures >= 3, "errno {error}: {status:?}");

        disk.fails_with(0);
        wait_for("the log resumes by itself", || {
            manager.verify_sealed(&other).unwrap();
            manager.trail().health() == TrailHealth::Good
        });
        assert_eq!(shard.state(), ShardState::Unverified, "its last check is not on record, well as the log is now");
        manager.verify_sealed(&shard).unwrap();
        manager.trail().flush(Duration::from_secs(30)).unwrap();
        assert_eq!(shard.state(), ShardState::Verified);
        drop((shard, other, manager));
        let report = audit_logging::reader::verify(dir.path()).unwrap();
        assert!(report.is_intact(), "errno {error}: {report:?}");
        let records = audit_logging::reader::records(dir.path()).unwrap().map(Result::unwrap);
        assert!(records.into_iter().any(|record| record.kind == Kind::Gap), "errno {error}: the loss is on record");
    }
}

/// A routine record is accepted first and lost afterwards: the check that it tells of does not count any more.
#[test]
fn a_check_whose_record_is_lost_after_the_call_does_not_count() {
    let dir = disk_dir();
    let disk = Moody::default();
    let options = disk.log();
    let trail = AuditTrail::open_with(dir.path(), options).unwrap();
    let manager = manager_with(host(1 << 20), trail, Policy::default());
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    manager.trail().flush(Duration::from_secs(30)).unwrap();

    disk.fails_with(libc::EIO);
    manager.verify_sealed(&shard).unwrap();
    wait_for("the record is lost", || manager.trail().log_status().unwrap().failures > 0);
    disk.fails_with(0);
    wait_for("the log resumes", || manager.trail().health() == TrailHealth::Good);
    assert_eq!(shard.state(), ShardState::Unverified);
    manager.verify_sealed(&shard).unwrap();
    manager.trail().flush(Duration::from_secs(30)).unwrap();
    assert_eq!(shard.state(), ShardState::Verified);
}
