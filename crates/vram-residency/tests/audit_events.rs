//! What is recorded, what it costs when it cannot be, and what the counters say.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde_json::json;
use support::{WORKER, disk_dir, events, host, id, key, manager, manager_with, names, small_log};
use vram_residency::audit::{AuditTrail, TrailHealth};
use vram_residency::model::writer::{Layout, TensorSpec};
use vram_residency::model::{Dtype, ModelFile};
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::{Error, ManagerOptions, Policy, SealRequest, ShardState, VramManager};

/// Runs `work` with a recorder of its own and gives the counters afterwards.
fn counted(work: impl FnOnce(&Snapshotter)) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || work(&snapshotter));
}

fn counters(snapshotter: &Snapshotter) -> HashMap<String, u64> {
    let values = snapshotter.snapshot().into_vec().into_iter();
    let counters = values.filter_map(|(key, _, _, value)| match value {
        DebugValue::Counter(value) => Some((key.key().name().to_owned(), value)),
        _ => None,
    });
    counters.collect()
}

#[test]
fn every_step_of_a_shards_life_is_recorded_by_whom_where_and_what() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 20);
    let shard = manager.seal_model(id("shard-1"), "org/model", b"weights").unwrap();
    let (digest, record) = (shard.digest().to_string(), shard.seal_record());
    manager.verify_sealed(&shard).unwrap();
    drop(shard);
    manager.trail().flush(Duration::from_secs(5)).unwrap();

    let events = events(dir.path());
    assert_eq!(names(&events), ["VramAllocated", "VramSealed", "SealVerified", "VramDeallocated"]);
    for event in &events {
        assert_eq!(
            (&event["v"], &event["worker_id"], &event["shard_id"]),
            (&1.into(), &WORKER.into(), &"shard-1".into())
        );
        assert_eq!(event["device"]["kind"], "host");
        assert_eq!(event["device"]["uuid"], manager.device().uuid.to_string());
        assert!(event["time"].as_str().unwrap().ends_with('Z') && event["time_ns"].as_u64().unwrap() > 0);
    }
    assert_eq!(events[0]["requested_bytes"], 7);
    assert_eq!((&events[1]["digest"], &events[1]["bytes"]), (&digest.clone().into(), &7.into()));
    let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(events[1]["seal"], hex, "the whole seal record is in the log");
    assert_eq!(events[2]["digest"], digest);
    assert_eq!(events[3]["freed_bytes"], 7);
}

/// The record of a failed check is on disk before the caller hears of it: read back without any flush.
#[test]
fn test_seal_verification_failure_flushes_immediately() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 20);
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    manager.inject_fault(&shard, 3, 5).unwrap();
    let before = manager.trail().log_status().unwrap().durable;
    let answer = manager.verify_sealed(&shard);
    let after = manager.trail().log_status().unwrap().durable;
    assert!(after > before, "durable went from {before} to {after}");
    assert!(matches!(answer, Err(Error::SealVerificationFailed { .. })));

    let events = events(dir.path());
    let failed = events.last().unwrap();
    assert_eq!((&failed["event"], &failed["severity"]), (&"SealVerificationFailed".into(), &"critical".into()));
    assert_eq!((&failed["damaged_blocks"], &failed["first_block"]), (&1.into(), &0.into()));
    assert_eq!((&failed["expected"], &failed["action"]), (&shard.digest().to_string().into(), &"quarantined".into()));
    assert_ne!(failed["actual"], failed["expected"]);
    assert_eq!(shard.state(), ShardState::Quarantined);

    // A forged seal is the same kind of event.
    let mut forged = shard.seal_record();
    *forged.last_mut().unwrap() ^= 1;
    assert!(manager.verify_record(&shard, &forged).is_err());
    let events = support::events(dir.path());
    let failed = events.last().unwrap();
    assert_eq!(failed["event"], "SealVerificationFailed");
    assert!(failed["reason"].as_str().unwrap().contains("signature"));
}

/// Before a source was read nobody knows which of a block's tensors is damaged, and no record says that it is this one. Where the
/// whole block is of one, both records name it.
#[test]
fn the_records_of_a_damage_name_the_same_tensor_or_say_which_it_may_be() {
    let specs = ["a", "b", "c"].map(|name| TensorSpec::new(name, Dtype::U8, [300 << 10]));
    let large = TensorSpec::new("large", Dtype::U8, [3 << 20]);
    let mut file = Vec::new();
    Layout::new([&specs[..], &[large]].concat()).unwrap().write(&mut file, |_, _, piece| piece.fill(7)).unwrap();
    let (dir, files) = (disk_dir(), disk_dir());
    let path = files.path().join("model.safetensors");
    std::fs::write(&path, file).unwrap();
    let opened = ModelFile::open(&path, None).unwrap();
    for (byte_of, source, tensor, whole) in [
        ("c", true, Some("c"), false),
        ("c", false, None, false),
        ("large", true, Some("large"), true),
        ("large", false, Some("large"), true),
    ] {
        let manager = manager(dir.path(), 8 << 20);
        let shard = manager.seal_file(&opened, &SealRequest::new(id("shard"), "model")).unwrap();
        let scrubber = Scrubber::manual(&manager, ScrubOptions::default()).unwrap();
        scrubber.watch(&shard, source.then(|| opened.shared_source()));
        let place = shard.table().tensors().iter().find(|tensor| &*tensor.name == byte_of).unwrap();
        manager.inject_fault(&shard, place.end - 5, 2).unwrap();
        let error = scrubber.verify_now(&shard).unwrap_err().to_string();
        assert_eq!(shard.last_fault().unwrap().tensor.as_deref(), tensor, "{byte_of} {source}");
        drop((scrubber, shard, manager));
        let events = events(dir.path());
        let last = |name: &str| events.iter().rev().find(|event| event["event"] == name).unwrap().clone();
        let (failed, described) = (last("SealVerificationFailed"), last("DamageDescribed"));
        assert_eq!(failed["first_block"], described["block"]);
        assert_eq!(described["tensor"].as_str(), tensor, "{described}");
        if whole {
            assert_eq!(failed["tensor"], described["tensor"]);
            assert_eq!(failed["tensors"], json!({ "count": 1, "first": "large", "last": "large" }));
            assert!(error.contains("which holds bytes of tensor 'large'"), "{error}");
        } else {
            assert!(failed["tensor"].is_null(), "{failed}");
            let tensors = &failed["tensors"];
            assert_eq!((&tensors["first"], &tensors["count"]), (&json!("a"), &json!(4)), "{failed}");
            assert!(error.contains("which holds bytes of 4 tensors, 'a' to 'large'"), "{error}");
        }
    }
}

/// The log's directory cannot be made, because its parent is a file: sealing and verifying go on, every event is
/// counted as lost, and nothing is called verified.
#[test]
fn test_audit_failure_metric_emitted() {
    counted(|snapshotter| {
        let dir = disk_dir();
        let file = dir.path().join("file");
        std::fs::write(&file, b"in the way").unwrap();
        let trail = AuditTrail::open_or_degraded(&file.join("audit"), small_log());
        let manager = manager_with(host(1 << 20), trail, Policy::default());
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        manager.verify_sealed(&shard).unwrap();
        assert!(matches!(manager.trail().health(), TrailHealth::Failing(_)));
        assert_eq!(shard.state(), ShardState::Unverified);

        let counts = counters(snapshotter);
        assert_eq!(counts["vram.audit.emits"], 3);
        assert_eq!(counts["vram.audit.emit_failures"], 3);
        assert_eq!(counts["vram.audit.critical_emit_failures"], 0);
        assert!(manager.verify_record(&shard, b"forged").is_err());
        let drill = manager.inject_fault(&shard, 0, 0);
        assert!(matches!(drill, Err(Error::Audit(_))), "no drill without its record: {drill:?}");
        assert!(shard.with_bytes(0..7, |bytes| bytes == b"weights").unwrap());
        let counts = counters(snapshotter);
        assert_eq!((counts["vram.audit.emits"], counts["vram.audit.emit_failures"]), (2, 2), "two more of each");
        assert_eq!(counts["vram.audit.critical_emit_failures"], 2);
        assert_eq!(counts["vram.verification_failures"], 1);
    });
}

#[test]
fn where_the_policy_requires_records_an_operation_fails_without_them() {
    let dir = disk_dir();
    let file = dir.path().join("file");
    std::fs::write(&file, b"in the way").unwrap();
    let mut policy = Policy::default();
    policy.require_audit = true;
    for trail in [AuditTrail::open_or_degraded(&file.join("audit"), small_log()), AuditTrail::off()] {
        let options = ManagerOptions { worker_id: WORKER.into(), device: host(1 << 20), key: key(), trail, policy };
        assert!(matches!(VramManager::new(options), Err(Error::Audit(_))));
    }
    // A log that is lost later: each record is waited for, so its loss is known before the call returns.
    let manager = manager_with(host(1 << 20), AuditTrail::open(&dir.path().join("audit")).unwrap(), policy);
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    let status = manager.trail().log_status().unwrap();
    assert_eq!(status.queued, 0, "the record of the seal is durable: {status:?}");
    manager.trail().close(Duration::from_secs(30)).unwrap();
    assert!(matches!(manager.verify_sealed(&shard), Err(Error::Audit(_))));
    assert_eq!(shard.state(), ShardState::Unverified);
    assert!(matches!(manager.seal_model(id("other"), "model", b"weights"), Err(Error::Audit(_))));
    assert_eq!(manager.list().len(), 1);
}

/// Dropping the manager and its shards, without any runtime, leaves a log that was closed in good order.
#[test]
fn test_drop_flushes_audit_logger() {
    let dir = disk_dir();
    {
        let manager = manager(dir.path(), 1 << 20);
        for n in 0..50 {
            let shard = manager.seal_model(id(&format!("shard-{n}")), "model", &[n; 100]).unwrap();
            manager.verify_sealed(&shard).unwrap();
        }
    }
    let report = audit_logging::reader::verify(dir.path()).unwrap();
    assert!(report.is_intact() && report.clean_close, "{report:?}");
    assert_eq!(events(dir.path()).len(), 50 * 4);
}

#[test]
fn counters_follow_what_happens() {
    counted(|snapshotter| {
        let dir = disk_dir();
        let manager = manager(dir.path(), 1 << 20);
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        manager.verify_sealed(&shard).unwrap();
        manager.inject_fault(&shard, 0, 0).unwrap();
        assert!(manager.verify_sealed(&shard).is_err());
        manager.repair(&shard, &b"weights".as_slice()).unwrap();
        assert!(manager.seal_model(id("shard"), "model", b"x").is_err());
        manager.trail().flush(Duration::from_secs(5)).unwrap();
        let counts = counters(snapshotter);
        let expected = [
            ("vram.seals", 1),
            ("vram.seal_failures", 1),
            ("vram.verifications", 2),
            ("vram.verification_failures", 1),
            ("vram.blocks_repaired", 1),
            ("vram.policy_violations", 0),
            ("vram.audit.emits", 8),
            ("vram.audit.emit_failures", 0),
        ];
        for (name, value) in expected {
            assert_eq!(counts[name], value, "{name}");
        }
    });
}

#[test]
fn a_repair_is_recorded_before_and_after_and_refused_from_a_wrong_source() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 20);
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    manager.inject_fault(&shard, 2, 7).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    for source in [b"WEIGHTS".as_slice(), b"weight", b""] {
        let answer = manager.repair(&shard, &source);
        assert!(matches!(answer, Err(Error::RepairFailed { block: 0, .. })), "{answer:?}");
        assert_eq!(shard.state(), ShardState::Failed);
    }
    let report = manager.repair(&shard, &b"weights".as_slice()).unwrap();
    assert_eq!((report.repaired[0].first_byte, report.repaired[0].first_bit), (2, 7));
    assert!(shard.with_bytes(0..7, |bytes| bytes == b"weights").unwrap());
    manager.trail().flush(Duration::from_secs(5)).unwrap();
    let events = events(dir.path());
    let tail = ["RepairFailed", "RepairFailed", "RepairFailed", "RepairStarted", "BlockRepaired", "SealVerified"];
    assert_eq!(names(&events)[4..], tail);
}
