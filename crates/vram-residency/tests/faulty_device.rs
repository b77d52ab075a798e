//! A device that fails at its N-th call, for every N: nothing leaks, nothing half-sealed is visible, and a shard whose
//! check could not be carried out is never called verified.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use support::{WORKER, disk_dir, events, host, id, key, small_log};
use vram_residency::audit::AuditTrail;
use vram_residency::device::{
    Capacity, Device, DeviceError, DeviceInfo, Export, Fill, HostDevice, Protection, Region, Residency, StagedRegion,
};
use vram_residency::digest::BlockValue;
use vram_residency::{Error, ManagerOptions, Policy, SealedShard, ShardState, VramManager};

/// Counts calls down; at zero one call fails, or from then on all of them.
#[derive(Debug)]
struct Plan {
    left: AtomicI64,
    for_ever: bool,
}

impl Plan {
    fn call(&self) -> Result<(), DeviceError> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left == 0 || (left < 0 && self.for_ever) {
            let source = io::Error::from_raw_os_error(libc::EIO);
            return Err(DeviceError::System {
                device: "host".into(),
                step: "do what was planned",
                source: source.into(),
            });
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Faulty<T> {
    inner: T,
    plan: Arc<Plan>,
}

impl Device for Faulty<Arc<HostDevice>> {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
    fn allocate(&self, bytes: u64, lead: u8) -> Result<Box<dyn StagedRegion>, DeviceError> {
        self.plan.call()?;
        let inner = self.inner.allocate(bytes, lead)?;
        Ok(Box::new(Faulty { inner, plan: Arc::clone(&self.plan) }))
    }
}

impl StagedRegion for Faulty<Box<dyn StagedRegion>> {
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        self.plan.call()?;
        self.inner.fill(source, values)
    }
    fn protect(self: Box<Self>) -> Result<Box<dyn Region>, DeviceError> {
        self.plan.call()?;
        Ok(Box::new(Faulty { inner: self.inner.protect()?, plan: self.plan }))
    }
}

impl Region for Faulty<Box<dyn Region>> {
    fn export(&self) -> Result<Export, DeviceError> {
        self.plan.call()?;
        self.inner.export()
    }

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
        self.plan.call()?;
        self.inner.hash_blocks(first, values)
    }
    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        // Not planned: it is how the test sees what is there.
        self.inner.view(range, look)
    }
    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.plan.call()?;
        self.inner.rewrite(offset, bytes)
    }
}

const WEIGHTS: &[u8] = &[0x33; 3 << 20];

/// Never verified with bytes that are not the sealed ones.
fn honest(shard: &SealedShard) {
    if shard.state() == ShardState::Verified {
        assert!(shard.with_bytes(0..WEIGHTS.len() as u64, |bytes| bytes == WEIGHTS).unwrap());
    }
}

/// A shard's life with two accidents. Stops at the first call that does not even leave a shard.
fn life(manager: &VramManager) -> Result<(), Error> {
    let shard = manager.seal_model(id("shard"), "model", WEIGHTS)?;
    for byte in [0, (2 << 20) + 77] {
        let _ = manager.verify_sealed(&shard).inspect_err(|error| match error {
            Error::Device(_) => assert_eq!(shard.state(), ShardState::Unverified, "the check was not carried out"),
            Error::Quarantined { .. } => {}
            other => panic!("{other}"),
        });
        honest(&shard);
        let _ = manager.inject_fault(&shard, byte, 3);
        let found = manager.verify_sealed(&shard);
        let whole = found.is_ok();
        honest(&shard);
        let repaired = manager.repair(&shard, &WEIGHTS);
        honest(&shard);
        if repaired.is_ok() {
            assert_eq!(shard.state(), ShardState::Verified);
        } else {
            assert_ne!(shard.state(), ShardState::Verified, "whole: {whole}");
        }
    }
    Ok(())
}

#[test]
fn failing_at_every_call_once_and_for_ever() {
    for for_ever in [false, true] {
        let mut calls = 0;
        for n in 0.. {
            let dir = disk_dir();
            let device = host(8 << 20);
            let plan = Arc::new(Plan { left: AtomicI64::new(n), for_ever });
            let faulty = Faulty { inner: Arc::clone(&device), plan: Arc::clone(&plan) };
            let manager = VramManager::new(ManagerOptions {
                worker_id: WORKER.into(),
                device: Arc::new(faulty),
                key: key(),
                trail: AuditTrail::open_with(dir.path(), small_log()).unwrap(),
                policy: Policy::default(),
            })
            .unwrap();
            let sealed = life(&manager);
            assert_eq!(
                (device.capacity().used_bytes, manager.list().len()),
                (0, 0),
                "call {n}: everything is given back"
            );
            drop(manager);
            let recorded = events(dir.path());
            let count = |name: &str| recorded.iter().filter(|event| event["event"] == name).count();
            assert_eq!(count("VramAllocated"), count("VramDeallocated"), "call {n}: the record balances");
            assert_eq!(count("VramSealed"), usize::from(sealed.is_ok()), "call {n}");
            if plan.left.load(Ordering::SeqCst) >= 0 {
                break;
            }
            calls = n + 1;
        }
        assert!(calls >= 10, "{calls} calls were made to fail");
    }
}
