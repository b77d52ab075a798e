//! Many shards verified in one call, on the host device and on one that is wrapped: each has its own outcome, record and
//! state, and nobody waits in a circle.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used
)]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use support::{disk_dir, events, host, id, manager, manager_with, small_log};
use vram_residency::audit::AuditTrail;
use vram_residency::device::{
    Capacity, Device, DeviceError, DeviceInfo, Export, Fill, HostDevice, HostOptions, Protection, Region, Residency,
    StagedRegion,
};
use vram_residency::digest::{BLOCK_BYTES, BlockValue};
use vram_residency::model::Source;
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::{Error, ManagerOptions, Policy, SealedShard, ShardState, Verified, VerifyFailure, VramManager};

/// Longer than anything takes on a busy machine.
const WAIT: Duration = Duration::from_secs(120);

fn weights(index: usize) -> Vec<u8> {
    vec![index as u8; [0, 5, 2 * BLOCK_BYTES as usize + 1, 4096][index % 4]]
}

fn seal(manager: &VramManager, count: usize) -> Vec<SealedShard> {
    (0..count).map(|n| manager.seal_model(id(&format!("s{n}")), "model", &weights(n)).unwrap()).collect()
}

fn outcomes(
    shards: &[SealedShard],
    verify: impl FnOnce(&[SealedShard], &mut dyn FnMut(usize, Result<Verified, Error>)),
) -> Vec<Result<Verified, Error>> {
    let mut outcomes = BTreeMap::new();
    verify(shards, &mut |index, outcome| assert!(outcomes.insert(index, outcome).is_none(), "told twice"));
    assert!(outcomes.keys().copied().eq(0..shards.len()), "each is told of once");
    outcomes.into_values().collect()
}

/// More shards than a sweep takes; damaged, quarantined and foreign ones, and one named twice, among them.
#[test]
fn each_shard_has_its_own_outcome_record_and_state() {
    let (dir, elsewhere) = (disk_dir(), disk_dir());
    let (ours, others) = (manager(dir.path(), 256 << 20), manager(elsewhere.path(), 1 << 20));
    let mut shards = seal(&ours, 140);
    let foreign = others.seal_model(id("foreign"), "model", b"theirs").unwrap();
    shards.insert(3, foreign.clone());
    shards.push(shards[0].clone());
    // Places are one on from the third.
    ours.inject_fault(&shards[7], 2 * BLOCK_BYTES, 3).unwrap();
    ours.inject_fault(&shards[139], 0, 0).unwrap();
    ours.inject_fault(&shards[131], 9, 1).unwrap();
    ours.verify_sealed(&shards[131]).unwrap_err();

    let found = outcomes(&shards, |shards, told| ours.verify_all(shards, told));
    for (index, (shard, outcome)) in shards.iter().zip(&found).enumerate() {
        match (index, outcome) {
            (3, Err(Error::ForeignShard { .. })) => assert_eq!(shard.state(), ShardState::Sealed),
            (131, Err(Error::Quarantined { .. })) => assert_eq!(shard.state(), ShardState::Quarantined),
            (7 | 139, Err(Error::SealVerificationFailed { cause, .. })) => {
                let VerifyFailure::Damaged { damaged_blocks: 1, first_block, .. } = cause else { panic!("{cause}") };
                assert_eq!((*first_block, shard.state()), (if index == 7 { 2 } else { 0 }, ShardState::Quarantined));
            }
            (_, Ok(verified)) => {
                assert_eq!((verified.bytes, verified.digest), (shard.bytes(), shard.digest()));
                assert_eq!((shard.state(), shard.last_verified_ns() >= verified.at_ns), (ShardState::Verified, true));
            }
            (_, Err(error)) => panic!("{index}: {error}"),
        }
    }
    assert_eq!(outcomes(&[], |shards, told| ours.verify_all(shards, told)).len(), 0);
    drop((shards, ours));
    let events = events(dir.path());
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("SealVerified"), count("SealVerificationFailed")), (138, 3));
    assert_eq!(others.list()[0].state(), ShardState::Sealed);
}

#[test]
fn calls_that_name_the_same_shards_in_opposite_orders_end_beside_a_scrubber_and_repairs() {
    // Who waits in a circle cannot be joined.
    let (end, ended) = mpsc::channel();
    std::thread::spawn(move || {
        sweep_in_opposite_orders();
        end.send(()).unwrap();
    });
    ended.recv_timeout(WAIT).expect("it ends, well");
}

fn sweep_in_opposite_orders() {
    let dir = disk_dir();
    let trail = AuditTrail::open_with(dir.path(), small_log()).unwrap();
    let manager = manager_with(host(256 << 20), trail, Policy::default());
    let shards = seal(&manager, 24);
    let backwards: Vec<_> = shards.iter().rev().cloned().collect();
    let mut options = ScrubOptions::default();
    options.period = Duration::from_millis(100);
    let scrubber = Scrubber::manual(&manager, options).unwrap();
    for shard in &shards {
        scrubber.watch(shard, None);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (manager, shards, backwards, done) = (&manager, &shards, &backwards, &done);
        let verifiers: Vec<_> = [shards, backwards, shards, backwards]
            .map(|shards| {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let found = outcomes(shards, |shards, told| manager.verify_all(shards, told));
                        assert!(found.iter().all(Result::is_ok));
                    }
                })
            })
            .into_iter()
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                scrubber.tick();
            }
        });
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                manager.repair(&shards[2], &weights(2).as_slice()).unwrap();
            }
        });
        verifiers.into_iter().for_each(|verifier| verifier.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    assert!(shards.iter().all(|shard| shard.state() == ShardState::Verified));
}

/// Who is told of a failure may repair at once, and the policy of a scrubber does so before it tells.
#[test]
fn what_is_found_damaged_can_be_repaired_by_who_is_told() {
    let dir = disk_dir();
    let trail = AuditTrail::open_with(dir.path(), small_log()).unwrap();
    let mut policy = Policy::default();
    policy.on_failure = OnFailure::Repair;
    let manager = manager_with(host(256 << 20), trail, policy);
    let shards = seal(&manager, 8);
    let damage = || [2, 5].iter().for_each(|index| manager.inject_fault(&shards[*index], 1, 7).unwrap());
    damage();
    let mut repaired = 0;
    manager.verify_all(&shards, &mut |index, outcome| {
        if outcome.is_err() {
            repaired += manager.repair(&shards[index], &weights(index).as_slice()).unwrap().repaired.len();
        }
    });
    assert_eq!(repaired, 2);
    damage();
    let scrubber = Scrubber::manual(&manager, ScrubOptions::default()).unwrap();
    for (index, shard) in shards.iter().enumerate() {
        scrubber.watch(shard, Some(std::sync::Arc::new(weights(index))));
    }
    let mut told = Vec::new();
    scrubber.verify_all_now(shards.clone(), &mut |index, _, outcome| {
        assert_eq!(shards[index].state(), ShardState::Verified, "{index}");
        told.push((index, outcome.is_ok()));
    });
    // Those that are as sealed are not kept waiting by the repairs of the others.
    assert_eq!(told[6..], [(2, false), (5, false)]);
    assert!(told[..6].iter().all(|(_, is_ok)| *is_ok));
}

/// Where a device hashes one after the other, nobody waits for the rest of them.
#[test]
fn each_is_told_of_before_the_next_is_hashed_where_they_are_not_hashed_together() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 256 << 20);
    let shards = seal(&manager, 12);
    let verified = || shards.iter().filter(|shard| shard.state() == ShardState::Verified).count();
    let mut told = 0;
    manager.verify_all(&shards, &mut |index, outcome| {
        told += 1;
        outcome.unwrap();
        assert_eq!((shards[index].state(), verified()), (ShardState::Verified, told));
    });
    assert_eq!(told, shards.len());
}

/// Weights that are read when the test says so.
struct Held {
    bytes: Vec<u8>,
    asked: Mutex<mpsc::Sender<()>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Source for Held {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let _ = self.asked.lock().unwrap().send(());
        let _ = self.go.lock().unwrap().recv_timeout(WAIT);
        self.bytes.read_at(offset, buffer)
    }
}

/// While one shard is repaired, for as long as that takes, the others are at their owner's disposal.
#[test]
fn shards_that_were_told_of_are_unsealed_and_released_while_another_is_repaired() {
    let dir = disk_dir();
    let trail = AuditTrail::open_with(dir.path(), small_log()).unwrap();
    let mut policy = Policy::default();
    policy.on_failure = OnFailure::Repair;
    let manager = manager_with(host(256 << 20), trail, policy);
    let mut shards = seal(&manager, 6);
    manager.inject_fault(&shards[1], 1, 7).unwrap();
    let scrubber = Scrubber::manual(&manager, ScrubOptions::default()).unwrap();
    let (asked, is_asked) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let source = Held { bytes: weights(1), asked: Mutex::new(asked), go: Mutex::new(may_go) };
    scrubber.watch(&shards[1], Some(Arc::new(source)));
    let swept = shards.clone();
    std::thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            let mut failed = Vec::new();
            scrubber.verify_all_now(swept, &mut |_, shard, outcome| {
                failed.extend(outcome.is_err().then(|| (*shard.shard_id(), shard.state())));
            });
            failed
        });
        is_asked.recv_timeout(WAIT).expect("a repair begins");
        let used = manager.capacity().used_bytes;
        let (big, other) = (shards.remove(2), shards.remove(2));
        let freed = big.bytes();
        manager.release(big);
        assert!(manager.capacity().used_bytes <= used - freed, "its memory is given back at once");
        let unsealed = manager.unseal(other, "an update").expect("nobody else has it");
        drop(unsealed);
        go.send(()).unwrap();
        drop(go);
        assert_eq!(verifying.join().unwrap(), [(id("s1"), ShardState::Verified)]);
    });
}

/// A device that hashes together, and whose bytes are read a second time when the test says so.
#[derive(Debug)]
struct Pausing<T> {
    inner: T,
    pause: Arc<Pause>,
}

#[derive(Debug)]
struct Pause {
    armed: AtomicBool,
    asked: Mutex<mpsc::Sender<()>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Device for Pausing<HostDevice> {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
    fn hashes_together(&self) -> bool {
        true
    }
    fn allocate(&self, bytes: u64, lead: u8) -> Result<Box<dyn StagedRegion>, DeviceError> {
        Ok(Box::new(Pausing { inner: self.inner.allocate(bytes, lead)?, pause: Arc::clone(&self.pause) }))
    }
}

impl StagedRegion for Pausing<Box<dyn StagedRegion>> {
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        self.inner.fill(source, values)
    }
    fn protect(self: Box<Self>) -> Result<Box<dyn Region>, DeviceError> {
        Ok(Box::new(Pausing { inner: self.inner.protect()?, pause: self.pause }))
    }
}

impl Region for Pausing<Box<dyn Region>> {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
    fn residency(&self) -> Residency {
        self.inner.residency()
    }
    fn protection(&self) -> Protection {
        self.inner.protection()
    }
    fn hash_blocks(&self, first: u64, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        self.inner.hash_blocks(first, values)
    }
    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        if self.pause.armed.swap(false, Ordering::AcqRel) {
            let _ = self.pause.asked.lock().unwrap().send(());
            let _ = self.pause.go.lock().unwrap().recv_timeout(WAIT);
        }
        self.inner.view(range, look)
    }
    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.rewrite(offset, bytes)
    }
    fn export(&self) -> Result<Export, DeviceError> {
        self.inner.export()
    }
}

/// Of a sweep, a shard that is as sealed is free for others as soon as that is known, and not after the damage of another was
/// read again.
#[test]
fn a_shard_of_a_sweep_is_free_as_soon_as_it_is_judged() {
    let dir = disk_dir();
    let ((asked, is_asked), (go, may_go)) = (mpsc::channel(), mpsc::channel());
    let pause = Pause { armed: AtomicBool::new(false), asked: Mutex::new(asked), go: Mutex::new(may_go) };
    let pause = Arc::new(pause);
    let mut options = HostOptions::default();
    options.capacity_bytes = Some(64 << 20);
    let device = Pausing { inner: HostDevice::open(options).unwrap(), pause: Arc::clone(&pause) };
    let trail = AuditTrail::open_with(dir.path(), small_log()).unwrap();
    let worker_id = support::WORKER.into();
    let (device, key, policy) = (Arc::new(device), support::key(), Policy::default());
    let manager = Arc::new(VramManager::new(ManagerOptions { worker_id, device, key, trail, policy }).unwrap());
    let shards = seal(&manager, 4);
    manager.inject_fault(&shards[1], 1, 7).unwrap();
    pause.armed.store(true, Ordering::Release);
    let (sweeping, swept) = (Arc::clone(&manager), shards.clone());
    let sweep = std::thread::spawn(move || outcomes(&swept, |shards, told| sweeping.verify_all(shards, told)));
    is_asked.recv_timeout(WAIT).expect("the damage is read again");
    let (end, ended) = mpsc::channel();
    let (verifying, shard) = (Arc::clone(&manager), shards[3].clone());
    std::thread::spawn(move || end.send(verifying.verify_sealed(&shard).is_ok()));
    assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(true), "nobody waits for the damage of another");
    go.send(()).unwrap();
    let found = sweep.join().unwrap();
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
}
