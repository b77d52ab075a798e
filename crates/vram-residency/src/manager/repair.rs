//! Repair: name what differs, replace it from the source, read it back. Nothing unchecked is ever written.

use std::fmt::Display;

use super::{VramManager, Worker, verify};
use crate::audit::{AuditEvent, Text};
use crate::digest::{BlockValue, block_range, block_value};
use crate::error::{Error, RepairFailure};
use crate::model::{Source, read_exact_at};
use crate::shard::{SealedShard, Shard, ShardState};

/// How one resident block differs from its source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct BlockDamage {
    /// The block's number, from 0.
    pub block: u64,
    /// The tensor that the first differing byte belongs to; none in a header or a raw file.
    pub tensor: Option<Box<str>>,
    /// The first differing byte, counted from the start of the shard.
    pub first_byte: u64,
    /// The lowest differing bit in that byte, 0 to 7.
    pub first_bit: u8,
    /// Bytes that differ.
    pub differing_bytes: u64,
    /// Bits that differ.
    pub differing_bits: u64,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The blocks that were replaced, in ascending order.
    pub repaired: Vec<BlockDamage>,
}

impl VramManager {
    /// Replaces every damaged block of a shard with the bytes of `source`, the file that it was sealed from, and lifts
    /// its quarantine. Each block of the source is held against the sealed block value *before* it is written, and
    /// read back afterwards.
    ///
    /// # Errors
    /// [`Error::RepairFailed`] where the source is not what was sealed or cannot be read, or the memory does not keep
    /// what is written; the shard is then [`ShardState::Failed`] and nothing unchecked was written. Any error of
    /// [`VramManager::verify_sealed`], which runs at the end.
    pub fn repair(&self, shard: &SealedShard, source: &dyn Source) -> Result<RepairReport, Error> {
        self.own(shard)?;
        let worker = &self.worker;
        let shard = &*shard.inner;
        let shard_id = shard.statement.shard_id;
        let span = tracing::info_span!("repair", %shard_id);
        let _entered = span.enter();
        let _alone = shard.begin_check();
        // Whatever ends this early, a panicking source included, leaves the shard failed.
        let unfinished = Unfinished { shard, finished: false };
        worker.examine_seal(shard).map_err(|cause| {
            worker.record_repair_failure(shard, None, &cause);
            Error::SealVerificationFailed { shard_id: Box::new(shard_id), cause }
        })?;
        let mut damaged = Vec::new();
        verify::find_damage(shard, &mut |block, _actual| damaged.push(block))
            .inspect_err(|error| worker.record_repair_failure(shard, None, error))?;
        if !damaged.is_empty() {
            shard.set_state(ShardState::Repairing);
        }
        let repaired = worker.repair_blocks(shard, source, damaged)?;
        unfinished.finish();
        worker.check(shard)?;
        Ok(RepairReport { repaired })
    }

    /// Damages one bit of a shard's resident bytes on purpose, to see that it is found. The record of it is written
    /// first, so a drill can always be told from an accident.
    ///
    /// # Errors
    /// [`Error::Bit`], [`Error::Device`] where the byte is not in the shard or the memory cannot be opened for writing,
    /// [`Error::Audit`] where the record is lost: nothing is damaged then.
    pub fn inject_fault(&self, shard: &SealedShard, byte: u64, bit: u8) -> Result<(), Error> {
        self.own(shard)?;
        if bit > 7 {
            return Err(Error::Bit { bit });
        }
        let _alone = shard.inner.begin_check();
        let region = shard.inner.region()?;
        let mut value = [0];
        region.view(byte..byte.saturating_add(1), &mut |bytes| {
            if let ([value], [resident]) = (&mut value, bytes) {
                *value = resident ^ (1 << bit);
            }
        })?;
        tracing::warn!(shard_id = %shard.shard_id(), byte, bit, "damaging a bit on purpose");
        self.worker.record_first(&AuditEvent::FaultInjected { shard_id: shard.shard_id(), byte, bit })?;
        region.rewrite(byte, &value)?;
        Ok(())
    }
}

/// A repair that has not come to its end.
struct Unfinished<'a> {
    shard: &'a Shard,
    finished: bool,
}

impl Unfinished<'_> {
    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.shard.set_state(ShardState::Failed);
        }
    }
}

impl Worker {
    fn repair_blocks(&self, shard: &Shard, source: &dyn Source, damaged: Vec<u64>) -> Result<Vec<BlockDamage>, Error> {
        let mut repaired = Vec::with_capacity(damaged.len());
        for block in damaged {
            let shard_id = Box::new(shard.statement.shard_id);
            let damage = self.repair_block(shard, source, block).map_err(|error| match error {
                Refused::Repair(cause) => {
                    self.record_repair_failure(shard, Some(block), &cause);
                    Error::RepairFailed { shard_id, block, cause }
                }
                Refused::Other(error) => error,
            })?;
            self.metrics.blocks_repaired.increment(1);
            repaired.push(damage);
        }
        Ok(repaired)
    }

    fn record_repair_failure(&self, shard: &Shard, block: Option<u64>, cause: &dyn Display) {
        tracing::error!(block, %cause, "repair failed");
        let shard_id = &shard.statement.shard_id;
        self.record_beside_failure(&AuditEvent::RepairFailed { shard_id, block, reason: Text(cause) });
    }

    fn repair_block(&self, shard: &Shard, source: &dyn Source, block: u64) -> Result<BlockDamage, Refused> {
        let bytes = shard.statement.bytes;
        let range = block_range(bytes, block);
        let sealed = usize::try_from(block).ok().and_then(|block| shard.values.get(block));
        let sealed = *sealed.ok_or(Refused::Repair(RepairFailure::SourceDiffers))?;
        let mut good = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
        read_exact_at(source, range.start, &mut good).map_err(|error| Refused::Repair(RepairFailure::Source(error)))?;
        if block_value(bytes, block, &good) != Some(sealed) {
            return Err(Refused::Repair(RepairFailure::SourceDiffers));
        }

        let region = shard.region().map_err(Refused::Other)?;
        let device = |error| Refused::Repair(RepairFailure::Device(error));
        let mut difference = Difference::default();
        region
            .view(range.clone(), &mut |resident| difference = Difference::between(resident, &good))
            .map_err(device)?;
        let first_byte = range.start.saturating_add(difference.first_byte);
        let tensor = shard.table.locate(first_byte).map(|tensor| tensor.name.clone());
        let damage = BlockDamage {
            block,
            tensor,
            first_byte,
            first_bit: difference.first_bit,
            differing_bytes: difference.bytes,
            differing_bits: difference.bits,
        };

        let shard_id = &shard.statement.shard_id;
        self.record(&AuditEvent::RepairStarted {
            shard_id,
            block,
            tensor: damage.tensor.as_deref(),
            first_byte,
            differing_bytes: damage.differing_bytes,
            differing_bits: damage.differing_bits,
        })
        .map_err(Refused::Other)?;
        region.rewrite(range.start, &good).map_err(device)?;
        let mut value = [BlockValue::UNKNOWN];
        region.hash_blocks(block, &mut value).map_err(device)?;
        if value != [sealed] {
            return Err(Refused::Repair(RepairFailure::ReadBack));
        }
        tracing::info!(block, first_byte, differing_bits = damage.differing_bits, "block repaired");
        self.record(&AuditEvent::BlockRepaired { shard_id, block }).map_err(Refused::Other)?;
        Ok(damage)
    }
}

/// Why a block was not repaired.
enum Refused {
    Repair(RepairFailure),
    Other(Error),
}

/// Where two blocks differ.
#[derive(Debug, Default)]
struct Difference {
    first_byte: u64,
    first_bit: u8,
    bytes: u64,
    bits: u64,
}

impl Difference {
    fn between(resident: &[u8], good: &[u8]) -> Self {
        let mut difference = Self::default();
        for (offset, (resident, good)) in (0_u64..).zip(resident.iter().zip(good)) {
            let bits = resident ^ good;
            if bits == 0 {
                continue;
            }
            if difference.bytes == 0 {
                difference.first_byte = offset;
                difference.first_bit = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
            }
            difference.bytes = difference.bytes.saturating_add(1);
            difference.bits = difference.bits.saturating_add(bits.count_ones().into());
        }
        difference
    }
}
