//! A clock, a device and a source that do as a simulation says.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_logging::Clock;
use vram_residency::audit::AuditTrail;
use vram_residency::device::{
    Capacity, Device, DeviceError, DeviceInfo, Export, Fill, HostDevice, Protection, Region, Residency, StagedRegion,
};
use vram_residency::digest::{BlockValue, block_range, block_value};
use vram_residency::fingerprint::{Fingerprint, FingerprintKey, KEYS_BYTES, WORDS_BYTES};
use vram_residency::model::Source;
use vram_residency::policy::OnFailure;
use vram_residency::{ManagerOptions, Policy, VramManager};

use crate::common::{self, MemVfs, Rng};
use crate::support::{WORKER, host, key};

/// A manager in main memory of 64 MiB whose clock, file system and device do as a simulation says.
pub(crate) fn manager(clock: &Arc<SimClock>, vfs: &MemVfs, rules: &Arc<Rules>, on_failure: OnFailure) -> VramManager {
    let mut policy = Policy::default();
    policy.on_failure = on_failure;
    let log = audit_logging::Options { clock: Arc::clone(clock) as _, ..common::options(vfs, 1 << 20) };
    VramManager::new(ManagerOptions {
        worker_id: WORKER.into(),
        device: Arc::new(SimDevice { inner: host(64 << 20), rules: Arc::clone(rules) }),
        key: key(),
        trail: AuditTrail::open_with(&common::dir(), log).unwrap(),
        policy,
    })
    .unwrap()
}

/// Time goes on when the test says so.
#[derive(Debug)]
pub(crate) struct SimClock(AtomicU64);

impl SimClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_000_000_000)))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

impl Clock for SimClock {
    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.now()
    }

    fn monotonic(&self) -> Duration {
        self.now()
    }
}

/// What goes wrong next.
#[derive(Debug, Default)]
struct Planned {
    /// Hash calls that fail.
    errors: u32,
    /// Hash calls that give a wrong answer.
    lies: u32,
    /// Time that the next hash call takes.
    slow: Duration,
    /// Writes that damage another byte as well.
    second_faults: u32,
    /// Writes that are not kept.
    stuck: u32,
}

type Regions = BTreeMap<u64, Weak<dyn Region>>;

/// What the device does, and a way to its memory behind everybody's back.
#[derive(Debug)]
pub(crate) struct Rules {
    clock: Arc<SimClock>,
    planned: Mutex<Planned>,
    /// By the order in which they were made.
    regions: Mutex<Regions>,
    made: AtomicU64,
    written: AtomicBool,
    lies: AtomicU64,
    /// What keys and fingerprints the device was shown and answered.
    fingerprints: Mutex<Vec<Vec<u8>>>,
    /// Bytes that it was asked about.
    read: AtomicU64,
}

impl Rules {
    pub(crate) fn new(clock: Arc<SimClock>) -> Self {
        let (planned, regions) = (Mutex::default(), Mutex::default());
        Self {
            clock,
            planned,
            regions,
            made: AtomicU64::new(0),
            written: AtomicBool::new(false),
            lies: AtomicU64::new(0),
            fingerprints: Mutex::default(),
            read: AtomicU64::new(0),
        }
    }

    pub(crate) fn plan(&self, rng: &mut Rng) {
        let mut planned = self.planned.lock().unwrap();
        match rng.below(5) {
            0 => planned.errors = 1 + rng.below(3) as u32,
            1 => planned.lies = 1,
            2 => planned.slow = Duration::from_secs(rng.below(90)),
            3 => planned.second_faults = 1,
            _ => planned.stuck = 1,
        }
    }

    /// The start of each key that was used so far, the key of its tag, and the tag.
    pub(crate) fn fingerprints(&self) -> Vec<Vec<u8>> {
        self.fingerprints.lock().unwrap().clone()
    }

    /// Bytes that the device was asked to hash or to fingerprint, whatever came of it.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::SeqCst)
    }

    pub(crate) fn fail_once(&self) {
        self.planned.lock().unwrap().errors = 1;
    }

    pub(crate) fn lie_once(&self) {
        self.planned.lock().unwrap().lies = 1;
    }

    pub(crate) fn lie_for_ever(&self) {
        self.planned.lock().unwrap().lies = u32::MAX;
    }

    pub(crate) fn heal(&self) {
        *self.planned.lock().unwrap() = Planned::default();
    }

    /// Whether a region was written since the truth was last looked at.
    pub(crate) fn has_written(&self) -> bool {
        self.written.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) {
        self.written.store(false, Ordering::SeqCst);
    }

    /// The number of the region that is made next.
    pub(crate) fn next_number(&self) -> u64 {
        self.made.load(Ordering::SeqCst) + 1
    }

    /// The region of a shard: shards are called `shard-N`, and the N-th that was made is theirs.
    fn region(&self, name: &str) -> Arc<dyn Region> {
        let number: u64 = name.strip_prefix("shard-").unwrap().parse().unwrap();
        self.regions.lock().unwrap()[&number].upgrade().unwrap()
    }

    pub(crate) fn read(&self, name: &str, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        self.region(name).view(0..bytes as u64, &mut |bytes| read = bytes.to_vec()).unwrap();
        read
    }

    pub(crate) fn equals(&self, name: &str, range: Range<usize>, good: &[u8]) -> bool {
        let mut equal = false;
        self.region(name).view(range.start as u64..range.end as u64, &mut |bytes| equal = bytes == good).unwrap();
        equal
    }

    pub(crate) fn change(&self, name: &str, from: usize, to: usize, change: impl Fn(&mut [u8])) {
        let region = self.region(name);
        let mut bytes = Vec::new();
        region.view(from as u64..to as u64, &mut |resident| bytes = resident.to_vec()).unwrap();
        change(&mut bytes);
        region.rewrite(from as u64, &bytes).unwrap();
    }

    /// The device is asked about bytes: takes the time that was planned. Whether the answer is a lie.
    fn asked(&self, bytes: u64) -> Result<bool, DeviceError> {
        self.read.fetch_add(bytes, Ordering::SeqCst);
        let mut planned = self.planned.lock().unwrap();
        if planned.errors > 0 {
            planned.errors -= 1;
            return Err(planned_error());
        }
        let lie = planned.lies > 0;
        planned.lies = planned.lies.saturating_sub(1);
        self.clock.advance(std::mem::take(&mut planned.slow));
        Ok(lie)
    }

    fn register(&self, region: &Arc<dyn Region>, number: u64) {
        self.regions.lock().unwrap().insert(number, Arc::downgrade(region));
    }
}

/// Main memory that fails as planned.
#[derive(Debug)]
pub(crate) struct SimDevice {
    pub(crate) inner: Arc<HostDevice>,
    pub(crate) rules: Arc<Rules>,
}

struct Staged {
    inner: Box<dyn StagedRegion>,
    rules: Arc<Rules>,
    number: u64,
}

#[derive(Debug)]
struct Resident {
    inner: Arc<dyn Region>,
    rules: Arc<Rules>,
}

impl Device for SimDevice {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn allocate(&self, bytes: u64, lead: u8) -> Result<Box<dyn StagedRegion>, DeviceError> {
        let inner = self.inner.allocate(bytes, lead)?;
        let number = self.rules.made.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Box::new(Staged { inner, rules: Arc::clone(&self.rules), number }))
    }
}

impl StagedRegion for Staged {
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        self.inner.fill(source, values)
    }

    fn protect(self: Box<Self>) -> Result<Box<dyn Region>, DeviceError> {
        let inner: Arc<dyn Region> = Arc::from(self.inner.protect()?);
        self.rules.register(&inner, self.number);
        Ok(Box::new(Resident { inner, rules: self.rules }))
    }
}

fn planned_error() -> DeviceError {
    DeviceError::System {
        device: "host".into(),
        step: "do what was planned",
        source: io::Error::other("planned").into(),
    }
}

impl Region for Resident {
    fn export(&self) -> Result<Export, DeviceError> {
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

    /// Another function of key and bytes than a GPU's: nobody but the device itself knows what it is.
    fn fingerprint(&self, key: &FingerprintKey) -> Result<Option<Fingerprint>, DeviceError> {
        let lie = self.rules.asked(self.inner.bytes())?;
        let mut keys = [0; KEYS_BYTES];
        key.expand(&mut keys);
        let mut hasher = blake3::Hasher::new_keyed(keys[WORDS_BYTES..].try_into().unwrap());
        self.inner.view(0..self.inner.bytes(), &mut |bytes| {
            hasher.update(bytes);
        })?;
        if lie {
            hasher.update(&self.rules.lies.fetch_add(1, Ordering::SeqCst).to_le_bytes());
        }
        let tag = *hasher.finalize().as_bytes();
        let secrets = [keys[..32].to_vec(), keys[WORDS_BYTES..].to_vec(), tag.to_vec()];
        self.rules.fingerprints.lock().unwrap().extend(secrets);
        Ok(Some(Fingerprint::from_bytes(tag)))
    }

    fn hash_blocks(&self, first: u64, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        let end = block_range(self.inner.bytes(), first + values.len() as u64 - 1).end;
        let lie = self.rules.asked(end - block_range(self.inner.bytes(), first).start)?;
        self.inner.hash_blocks(first, values)?;
        if lie {
            // Another value each time: no device gives the same wrong answer at the seal and at the check of other bytes.
            let nonce = self.rules.lies.fetch_add(1, Ordering::SeqCst).to_le_bytes();
            values[0] = block_value(8, 0, &nonce).unwrap();
        }
        Ok(())
    }

    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        self.inner.view(range, look)
    }

    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.rules.written.store(true, Ordering::SeqCst);
        let (second, stuck) = {
            let mut planned = self.rules.planned.lock().unwrap();
            (std::mem::take(&mut planned.second_faults) > 0, std::mem::take(&mut planned.stuck) > 0)
        };
        if !stuck {
            self.inner.rewrite(offset, bytes)?;
        }
        if second {
            let last = self.inner.bytes() - 1;
            let mut byte = [0];
            self.inner.view(last..last + 1, &mut |bytes| byte[0] = bytes[0] ^ 0x10)?;
            self.inner.rewrite(last, &byte)?;
        }
        Ok(())
    }
}

/// How a source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Good,
    Missing,
    Changed,
    Short,
    Slow,
}

/// The file that a shard was sealed from.
#[derive(Debug)]
pub(crate) struct SimSource {
    bytes: Mutex<Vec<u8>>,
    mode: Mutex<Mode>,
    clock: Arc<SimClock>,
}

impl SimSource {
    pub(crate) fn new(bytes: Vec<u8>, clock: Arc<SimClock>) -> Self {
        Self { bytes: Mutex::new(bytes), mode: Mutex::new(Mode::Good), clock }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub(crate) fn replace(&self, bytes: Vec<u8>) {
        *self.bytes.lock().unwrap() = bytes;
    }
}

impl Source for SimSource {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Missing => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
            Mode::Short if offset + buffer.len() as u64 > self.len() / 2 => return Ok(0),
            Mode::Slow => self.clock.advance(Duration::from_secs(45)),
            _ => {}
        }
        let count = Source::read_at(&*self.bytes.lock().unwrap(), offset, buffer)?;
        if mode == Mode::Changed && count > 0 {
            buffer[count / 2] ^= 1;
        }
        Ok(count)
    }
}
