//! Repair: name what differs, replace it from the source, read it back. Nothing unchecked is ever written.

use std::fmt::Display;

use zeroize::Zeroizing;

use super::{VramManager, Worker};
use crate::audit::{AuditEvent, Text};
use crate::damage::{BlockDamage, DamageKind, Difference, TensorsInBlock, kind_alone, search_budget};
use crate::device::DeviceError;
use crate::digest::{BLOCK_BYTES, BlockValue, block_range, block_value};
use crate::error::{Error, RepairFailure, VerifyFailure};
use crate::model::{Source, read_exact_at};
use crate::shard::{SealedShard, Shard, ShardState};

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
        let _alone = shard.inner.begin_check();
        self.worker.repair(&shard.inner, source)
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
        shard.inner.note_drill(byte / BLOCK_BYTES);
        region.rewrite(byte, &value)?;
        Ok(())
    }
}

/// A repair that has not come to its end.
struct Unfinished<'a> {
    worker: &'a Worker,
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
            self.shard.change_fault(|fault| fault.outcome = "repair failed");
            self.worker.metrics.repair_failures.increment(1);
        }
    }
}

impl Worker {
    /// Repairs a shard. The caller has begun a check.
    pub(crate) fn repair(&self, shard: &Shard, source: &dyn Source) -> Result<RepairReport, Error> {
        self.device_is_trusted()?;
        let shard_id = shard.statement.shard_id;
        let span = tracing::info_span!("repair", %shard_id);
        let _entered = span.enter();
        // Whatever ends this early, a panicking source included, leaves the shard failed.
        let unfinished = Unfinished { worker: self, shard, finished: false };
        self.examine_seal(shard).map_err(|cause| {
            self.record_repair_failure(shard, None, &cause);
            Error::SealVerificationFailed { shard_id: Box::new(shard_id), cause }
        })?;
        let mut damaged = Vec::new();
        self.find_damage(shard, &mut |block, _actual| damaged.push(block))
            .inspect_err(|error| self.record_repair_failure(shard, None, error))?;
        if let Some(&block) = damaged.first() {
            if !shard.state().is_damaged() {
                // Nobody had found it: that is a failure like any other.
                let _ = self.failed(shard, VerifyFailure::Block { block, tensors: shard.tensors_in(block) });
            }
            shard.set_state(ShardState::Repairing);
            // More may be damaged than was found first, and longer ago.
            let since = damaged.iter().map(|block| self.suspect_from_ns(shard, *block)).min();
            shard.change_fault(|fault| {
                fault.blocks = damaged.len() as u64;
                fault.suspect_from_ns = since.unwrap_or(fault.suspect_from_ns);
            });
        }
        let repaired = self.repair_blocks(shard, source, damaged)?;
        unfinished.finish();
        self.check(shard)?;
        shard.change_fault(|fault| {
            fault.outcome = "repaired";
            if let Some(damage) = repaired.iter().find(|damage| damage.block == fault.block) {
                fault.first_byte = Some(damage.first_byte);
                fault.differing_bytes = Some(damage.differing_bytes);
                fault.differing_bits = Some(damage.differing_bits);
                fault.kind = damage.kind;
                fault.tensor = damage.tensor.clone();
            }
        });
        Ok(RepairReport { repaired })
    }

    /// Says what can be said about a damaged block, and records it: with a source down to the bits.
    pub(crate) fn describe(&self, shard: &Shard, block: u64, source: Option<&dyn Source>) -> Result<(), Error> {
        let shard_id = &shard.statement.shard_id;
        let damage = source.and_then(|source| self.damage(shard, block, &self.good(shard, source, block).ok()?).ok());
        let kind = match &damage {
            Some(damage) => damage.kind,
            None => {
                let mut kind = DamageKind::Unknown;
                let range = block_range(shard.statement.bytes, block);
                shard.region()?.view(range, &mut |resident| {
                    kind = self.origin(shard, block, resident).unwrap_or_else(|| kind_alone(resident));
                })?;
                kind
            }
        };
        shard.change_fault(|fault| {
            fault.kind = kind;
            if let Some(damage) = &damage {
                fault.first_byte = Some(damage.first_byte);
                fault.differing_bytes = Some(damage.differing_bytes);
                fault.differing_bits = Some(damage.differing_bits);
                fault.tensor = damage.tensor.clone();
            }
        });
        let in_block = shard.tensors_in(block);
        let certain = in_block.as_deref().and_then(TensorsInBlock::only);
        self.record(&AuditEvent::DamageDescribed {
            shard_id,
            block,
            tensor: damage.as_ref().map_or(certain, |damage| damage.tensor.as_deref()),
            first_byte: damage.as_ref().map(|damage| damage.first_byte),
            differing_bytes: damage.as_ref().map(|damage| damage.differing_bytes),
            differing_bits: damage.as_ref().map(|damage| damage.differing_bits),
            damage: kind,
            suspect_from_ns: self.suspect_from_ns(shard, block),
            writable_since_ns: shard.writable.since_ns(),
        })?;
        Ok(())
    }

    /// The bytes of a block from the source, held against the seal.
    fn good(&self, shard: &Shard, source: &dyn Source, block: u64) -> Result<Zeroizing<Vec<u8>>, RepairFailure> {
        let bytes = shard.statement.bytes;
        let range = block_range(bytes, block);
        let sealed = shard.sealed_value(block).ok_or(RepairFailure::SourceDiffers)?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        // Weights stay nowhere but in their region.
        let mut good = Zeroizing::new(vec![0; length]);
        read_exact_at(source, range.start, &mut good).map_err(RepairFailure::Source)?;
        if block_value(bytes, block, &good) == Some(sealed) { Ok(good) } else { Err(RepairFailure::SourceDiffers) }
    }

    /// How a resident block differs from its good bytes.
    fn damage(&self, shard: &Shard, block: u64, good: &[u8]) -> Result<BlockDamage, DeviceError> {
        let range = block_range(shard.statement.bytes, block);
        let mut difference = Difference::default();
        let mut origin = None;
        let region = shard.region().map_err(|_| DeviceError::WorkerPanicked)?;
        region.view(range.clone(), &mut |resident| {
            difference = Difference::between(resident, good);
            // What differs in so few bits comes from nowhere else.
            if difference.bits > 64 {
                origin = self.origin(shard, block, resident);
            }
        })?;
        let first_byte = range.start.saturating_add(difference.first_byte);
        Ok(BlockDamage {
            block,
            tensor: shard.table.locate(first_byte).map(|tensor| tensor.name.clone()),
            first_byte,
            first_bit: difference.first_bit,
            differing_bytes: difference.bytes,
            differing_bits: difference.bits,
            kind: origin.unwrap_or_else(|| difference.kind()),
            suspect_from_ns: self.suspect_from_ns(shard, block),
        })
    }

    /// Where a whole block of bytes that do not belong here comes from, if it can be found with bounded effort.
    fn origin(&self, shard: &Shard, block: u64, resident: &[u8]) -> Option<DamageKind> {
        if self.past().had(&shard.statement.shard_id, block, resident) {
            return Some(DamageKind::Stale);
        }
        let mut budget = search_budget();
        if shard.known().has_any(block, resident, &mut budget) {
            return Some(DamageKind::Foreign);
        }
        let others = self.resident_shards();
        let foreign = others.iter().any(|other| other.known().has_any(block, resident, &mut budget));
        foreign.then_some(DamageKind::Foreign)
    }

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
        let good = self.good(shard, source, block).map_err(Refused::Repair)?;
        let region = shard.region().map_err(Refused::Other)?;
        let device = |error| Refused::Repair(RepairFailure::Device(error));
        let damage = self.damage(shard, block, &good).map_err(device)?;
        let first_byte = damage.first_byte;

        let shard_id = &shard.statement.shard_id;
        self.record(&AuditEvent::RepairStarted {
            shard_id,
            block,
            tensor: damage.tensor.as_deref(),
            first_byte,
            differing_bytes: damage.differing_bytes,
            differing_bits: damage.differing_bits,
            damage: damage.kind,
            suspect_from_ns: damage.suspect_from_ns,
            writable_since_ns: shard.writable.since_ns(),
        })
        .map_err(Refused::Other)?;
        region.rewrite(block_range(shard.statement.bytes, block).start, &good).map_err(device)?;
        let mut value = [BlockValue::UNKNOWN];
        region.hash_blocks(block, &mut value).map_err(device)?;
        if value.first().copied() != shard.sealed_value(block) {
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
