//! Sealed shards: cheap clones of one resident region and its seal.

mod lending;
mod state;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crate::damage::{Fault, Known, TensorsInBlock};
use crate::device::{DeviceInfo, Region, Residency};
use crate::digest::{BlockValue, Digest, block_range};
use crate::error::Error;
use crate::fingerprint::Spares;
use crate::freshness::{Freshness, NotFresh};
use crate::model::TensorTable;
use crate::seal::{Signature, Statement};
use crate::shard_id::ShardId;

pub(crate) use self::lending::{Lowered, Writable};
pub use self::state::ShardState;

/// A shard that is resident, immutable and signed for.
///
/// Clones share one region. When the last one is dropped, the memory is given back and that is recorded; no runtime
/// is needed and nothing panics.
#[derive(Clone)]
pub struct SealedShard {
    pub(crate) inner: Arc<Shard>,
}

/// Where a shard comes from and goes back to: its manager, as far as a shard needs to know it.
pub(crate) trait Home: Send + Sync {
    /// The last clone was dropped and its memory is gone.
    fn released(&self, shard_id: &ShardId, freed_bytes: u64);

    /// Records lost so far. Allocates nothing.
    fn lost_records(&self) -> u64;

    /// Whether records are being lost now. Waits for nobody.
    fn is_losing_records(&self) -> bool;

    /// Nanoseconds on the monotonic clock.
    fn now_ns(&self) -> u64;

    /// Nanoseconds since 1970-01-01 UTC by the wall clock.
    fn wall_ns(&self) -> u64;

    /// Whether nothing on the device is trusted any more.
    fn is_quarantined(&self) -> bool;

    /// Whether nothing on the device can be read any more. Allocates nothing.
    fn is_lost(&self) -> bool;

    /// Whether suspects stay in use.
    fn lends_suspects(&self) -> bool;

    /// Whether memory may be handed to somebody who can write to it.
    fn lends_writable(&self) -> bool;
}

/// The state behind the clones.
pub(crate) struct Shard {
    pub(crate) home: Arc<dyn Home>,
    pub(crate) statement: Statement<Arc<str>>,
    pub(crate) signature: Signature,
    /// The sealed value of every block.
    pub(crate) values: Box<[BlockValue]>,
    pub(crate) table: TensorTable,
    /// There until the shard is dropped.
    pub(crate) region: Option<Box<dyn Region>>,
    /// Held by whoever verifies or repairs: a check must not judge a block that is just being replaced.
    checking: Mutex<()>,
    state: AtomicU8,
    /// How often it turned from good to a state in which the bytes are not to be relied on.
    lapses: AtomicU64,
    /// Nanoseconds since 1970-01-01 UTC: the last time at which every byte was as sealed.
    last_verified_ns: AtomicU64,
    /// Records lost before the one that tells of this state.
    lost_records: AtomicU64,
    pub(crate) freshness: Freshness,
    last_fault: Mutex<Option<Box<Fault>>>,
    /// SHA-256 of the bytes, where it was computed while they were loaded or is remembered from such a load.
    pub(crate) sha256: Option<[u8; 32]>,
    /// Blocks that were damaged on purpose and were not well since.
    drilled: Mutex<Vec<u64>>,
    /// Whether others can write to the memory.
    pub(crate) writable: Writable,
    /// Fingerprints to compare with.
    pub(crate) spares: Spares,
}

impl Shard {
    pub(crate) fn new(
        home: Arc<dyn Home>,
        statement: Statement<Arc<str>>,
        signature: Signature,
        values: Box<[BlockValue]>,
        table: TensorTable,
        region: Box<dyn Region>,
        hashed_ns: u64,
    ) -> Self {
        let last_verified_ns = AtomicU64::new(statement.sealed_at_ns);
        let state = AtomicU8::new(ShardState::Sealed as u8);
        let lost_records = AtomicU64::new(u64::MAX);
        Self {
            home,
            statement,
            signature,
            values,
            table,
            region: Some(region),
            checking: Mutex::new(()),
            state,
            lapses: AtomicU64::new(0),
            last_verified_ns,
            lost_records,
            freshness: Freshness::new(hashed_ns),
            last_fault: Mutex::new(None),
            sha256: None,
            drilled: Mutex::new(Vec::new()),
            writable: Writable::default(),
            spares: Spares::default(),
        }
    }

    /// Waits until nobody else verifies or repairs the shard.
    pub(crate) fn begin_check(&self) -> MutexGuard<'_, ()> {
        self.checking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, where nobody does at present.
    pub(crate) fn try_begin_check(&self) -> Option<MutexGuard<'_, ()>> {
        match self.checking.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn state(&self) -> ShardState {
        if self.home.is_quarantined() {
            return ShardState::Quarantined;
        }
        ShardState::of(self.state.load(Ordering::Acquire))
    }

    /// Whether the last word about it cannot be relied on: its record is lost, or the memory that it is about.
    fn is_in_doubt(&self) -> bool {
        self.has_lost_records() || self.home.is_lost()
    }

    /// Where it stands, as far as can be said now.
    pub(crate) fn stands(&self) -> ShardState {
        match self.state() {
            ShardState::Sealed | ShardState::Verified
                if self.is_in_doubt() || self.freshness.is_late(|| self.home.now_ns()) =>
            {
                ShardState::Unverified
            }
            state => state,
        }
    }

    /// Whether its bytes may be lent out.
    fn lends(&self) -> bool {
        match self.state() {
            ShardState::Suspect => self.home.lends_suspects(),
            state => !state.is_out(),
        }
    }

    /// The values of its blocks, to recognise bytes by.
    pub(crate) fn known(&self) -> Known<'_> {
        Known { region_bytes: self.statement.bytes, values: &self.values }
    }

    /// A block is damaged on purpose.
    pub(crate) fn note_drill(&self, block: u64) {
        self.drilled.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }

    /// Whether a block was damaged on purpose and not well since.
    pub(crate) fn is_drilled(&self, block: u64) -> bool {
        self.drilled.lock().unwrap_or_else(PoisonError::into_inner).contains(&block)
    }

    /// A block is as sealed, so no drill is left in it.
    pub(crate) fn end_drill(&self, block: u64) {
        self.drilled.lock().unwrap_or_else(PoisonError::into_inner).retain(|drilled| *drilled != block);
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(fault));
    }

    /// The block that was found damaged last.
    pub(crate) fn last_fault_block(&self) -> Option<u64> {
        self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|fault| fault.block)
    }

    pub(crate) fn change_fault(&self, change: impl FnOnce(&mut Fault)) {
        if let Some(fault) = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(fault);
        }
    }

    pub(crate) fn set_state(&self, state: ShardState) {
        let before = ShardState::of(self.state.swap(state as u8, Ordering::AcqRel));
        if state.is_lapse() && !before.is_lapse() {
            self.lapses.fetch_add(1, Ordering::AcqRel);
        }
        if !matches!(state, ShardState::Sealed | ShardState::Verified) {
            self.spares.doubt();
        }
    }

    /// Sets a state whose record was given to the log after so many others had been lost. Any loss from then on may be
    /// its own.
    pub(crate) fn set_recorded_state(&self, state: ShardState, lost_before: u64) {
        self.lost_records.store(lost_before, Ordering::Release);
        self.set_state(state);
    }

    /// Whether records were lost since the state was set, or are being lost.
    fn has_lost_records(&self) -> bool {
        self.home.is_losing_records() || self.home.lost_records() != self.lost_records.load(Ordering::Acquire)
    }

    pub(crate) fn last_verified_ns(&self) -> u64 {
        self.last_verified_ns.load(Ordering::Acquire)
    }

    pub(crate) fn set_last_verified(&self, at_ns: u64) {
        self.last_verified_ns.store(at_ns, Ordering::Release);
    }

    /// The region, which is there as long as anybody can call this.
    pub(crate) fn region(&self) -> Result<&dyn Region, Error> {
        let gone = || Error::ForeignShard { shard_id: Box::new(self.statement.shard_id) };
        self.region.as_deref().ok_or_else(gone)
    }

    /// What the seal says of a block.
    pub(crate) fn sealed_value(&self, block: u64) -> Option<BlockValue> {
        usize::try_from(block).ok().and_then(|block| self.values.get(block)).copied()
    }

    /// The tensors that have bytes in a block; none in a header or a raw file.
    pub(crate) fn tensors_in(&self, block: u64) -> Option<Box<TensorsInBlock>> {
        TensorsInBlock::of(self.table.tensors(), &block_range(self.statement.bytes, block)).map(Box::new)
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // Gone already where the shard was unsealed: its memory lives on.
        if let Some(region) = self.region.take() {
            let freed_bytes = region.bytes();
            drop(region);
            self.home.released(&self.statement.shard_id, freed_bytes);
        }
    }
}

impl SealedShard {
    /// Its name.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.inner.statement.shard_id
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.statement.bytes
    }

    /// The sealed digest: what `b3sum` prints for the file.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.inner.statement.digest
    }

    /// SHA-256 of the same bytes, where it was computed while they were loaded, or in an earlier load that was approved.
    #[must_use]
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.inner.sha256
    }

    /// Which model it belongs to, as the caller called it.
    #[must_use]
    pub fn model_ref(&self) -> &str {
        &self.inner.statement.model_ref
    }

    /// Which of the model's shards it is, from 0.
    #[must_use]
    pub fn shard_index(&self) -> u32 {
        self.inner.statement.shard_index
    }

    /// How many shards the model has.
    #[must_use]
    pub fn shard_count(&self) -> u32 {
        self.inner.statement.shard_count
    }

    /// When it was sealed: nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn sealed_at_ns(&self) -> u64 {
        self.inner.statement.sealed_at_ns
    }

    /// The device that holds it.
    #[must_use]
    pub fn device(&self) -> DeviceInfo {
        DeviceInfo { kind: self.inner.statement.device_kind, uuid: self.inner.statement.device_uuid }
    }

    /// Where the bytes were when they were sealed.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.inner.statement.residency
    }

    /// Its tensors: names, types, shapes, places. Empty for raw bytes.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.inner.table
    }

    /// Where it stands. [`ShardState::Unverified`] from the moment that any record is lost until the next check whose
    /// record is kept, and while a watched shard's oldest block waits for longer than two periods.
    #[must_use]
    pub fn state(&self) -> ShardState {
        self.inner.stands()
    }

    /// How often it turned out not to be as sealed, or nobody could tell, since it was sealed: also where that was mended
    /// within milliseconds, so that no look at [`SealedShard::state`] would have seen it.
    #[must_use]
    pub fn lapses(&self) -> u64 {
        self.inner.lapses.load(Ordering::Acquire)
    }

    /// Whether every block was found as sealed within `max_age`, that is on record, and nothing speaks against it. For
    /// hot paths: takes no lock, touches no heap.
    ///
    /// # Errors
    /// [`NotFresh`] says what is wrong; work on the shard should then be refused.
    pub fn ensure_fresh(&self, max_age: Duration) -> Result<(), NotFresh> {
        let shard = &*self.inner;
        let state = match shard.state() {
            ShardState::Sealed | ShardState::Verified if shard.is_in_doubt() => ShardState::Unverified,
            state => state,
        };
        if !matches!(state, ShardState::Sealed | ShardState::Verified) {
            return Err(NotFresh::State { state });
        }
        let age = self.oldest_age();
        if age > max_age { Err(NotFresh::Stale { age, max_age }) } else { Ok(()) }
    }

    /// Time since the last check of the block that was not checked for longest.
    #[must_use]
    pub fn oldest_age(&self) -> Duration {
        self.inner.freshness.oldest_age(self.inner.home.now_ns())
    }

    /// Time since the last check of each block, in order; empty while no [scrubber](crate::scrub) watches the shard.
    #[must_use]
    pub fn block_ages(&self) -> Vec<Duration> {
        self.inner.freshness.ages(self.inner.home.now_ns())
    }

    /// The same in whole units and one byte a block, for maps of many blocks: 255 stands for 255 units and more.
    #[must_use]
    pub fn block_ages_in(&self, unit: Duration) -> Vec<u8> {
        self.inner.freshness.ages_in(unit, self.inner.home.now_ns())
    }

    /// Time since the last check of one block; none where the shard has no such block.
    #[must_use]
    pub fn block_age(&self, block: u64) -> Option<Duration> {
        let shard = &*self.inner;
        shard.sealed_value(block)?;
        Some(Duration::from_nanos(shard.home.now_ns().saturating_sub(shard.freshness.block_ns(block))))
    }

    /// The last fault that was found and confirmed.
    #[must_use]
    pub fn last_fault(&self) -> Option<Fault> {
        self.inner.last_fault.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// The last time at which every byte was as sealed: nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn last_verified_ns(&self) -> u64 {
        self.inner.last_verified_ns()
    }

    /// Keys that are left for [`VramManager::recheck`](crate::VramManager::recheck).
    #[must_use]
    pub fn recheck_keys(&self) -> u32 {
        self.inner.spares.left()
    }

    /// The seal as a record: what others keep and present again to
    /// [`VramManager::verify_record`](crate::VramManager::verify_record).
    #[must_use]
    pub fn seal_record(&self) -> Vec<u8> {
        self.inner.statement.to_record(&self.inner.signature)
    }

    /// Lends the bytes of a tensor, in place. No repair runs meanwhile, so `look` should be short, and must not ask for a
    /// repair itself. It may look at other tensors.
    ///
    /// # Errors
    /// [`Error::Quarantined`] after a failed check, [`Error::Device`] where the processor cannot address the memory.
    /// `None` where there is no such tensor.
    pub fn with_tensor<T>(&self, name: &str, look: impl FnOnce(&[u8]) -> T) -> Option<Result<T, Error>> {
        let tensor = self.inner.table.get(name)?;
        Some(self.with_bytes(tensor.start..tensor.end, look))
    }

    /// Lends a range of the shard's bytes, in place. No repair runs meanwhile, so `look` should be short, and must
    /// not ask for a repair itself. It may look at other ranges.
    ///
    /// # Errors
    /// As [`SealedShard::with_tensor`], and [`Error::Device`] where the range is not inside the shard.
    pub fn with_bytes<T>(&self, range: Range<u64>, look: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let shard = &self.inner;
        let mut look = Some(look);
        let mut seen = None;
        // Asked while a repair is kept out: before that, the answer could be old.
        shard.region()?.view(range, &mut |bytes| {
            if shard.lends() {
                seen = look.take().map(|look| look(bytes));
            }
        })?;
        seen.ok_or_else(|| Error::Quarantined { shard_id: Box::new(*self.shard_id()) })
    }
}

/// Neither bytes nor addresses.
impl fmt::Debug for SealedShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedShard")
            .field("shard_id", self.shard_id())
            .field("bytes", &self.bytes())
            .field("digest", &self.digest())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
