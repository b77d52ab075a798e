//! What follows from a confirmed fault: the policy's answer, repair, and the end of trust in a device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, Job};
use crate::audit::{AuditEvent, Text};
use crate::error::{Error, VerifyFailure};
use crate::manager::{RepairReport, Verified};
use crate::model::Source;
use crate::policy::OnFailure;
use crate::shard::{Home, SealedShard, Shard};

impl Core {
    /// The scrub found a damaged block. The caller has begun a check.
    pub(super) fn found_damage(&self, job: &Job, block: u64) {
        let shard = &job.shard;
        // Refused from here on, and on record before anything is written.
        let _ = self.worker.failed(shard, VerifyFailure::Block { block, tensors: shard.tensors_in(block) });
        self.respond(shard, block, job.source.as_deref());
    }

    pub(super) fn verify_now(&self, shard: &SealedShard) -> Result<Verified, Error> {
        let verified = self.worker.verify_own(shard);
        self.answer(shard, &verified);
        verified
    }

    pub(super) fn verify_all_now(
        &self,
        shards: impl Iterator<Item = SealedShard>,
        told: &mut dyn FnMut(usize, SealedShard, Result<Verified, Error>),
    ) {
        let mut failed = Vec::new();
        self.worker.verify_all(shards, &mut |index, shard, outcome| match outcome {
            Ok(_) => told(index, shard, outcome),
            // A repair takes its time, and the others are not to wait for it.
            Err(_) => failed.push((index, shard, outcome)),
        });
        for (index, shard, outcome) in failed {
            self.answer(&shard, &outcome);
            told(index, shard, outcome);
        }
    }

    /// Does what the policy says about damage that a full verification found.
    fn answer(&self, shard: &SealedShard, verified: &Result<Verified, Error>) {
        if let Err(Error::SealVerificationFailed { cause, .. }) = verified
            && let Some((block, _)) = cause.first_block()
        {
            let source = self.lanes().of(&shard.inner).and_then(|lane| lane.source.clone());
            let _alone = shard.inner.begin_check();
            // Somebody else may have seen to it meanwhile.
            if shard.inner.state().is_damaged() {
                self.respond(&shard.inner, block, source.as_deref());
            }
        }
    }

    pub(super) fn repair_now(&self, shard: &SealedShard) -> Result<RepairReport, Error> {
        let source = self.lanes().of(&shard.inner).and_then(|lane| lane.source.clone());
        let source = source.ok_or_else(|| Error::NoSource { shard_id: Box::new(*shard.shard_id()) })?;
        self.worker.is_own(shard)?;
        let _alone = shard.inner.begin_check();
        self.repair(&shard.inner, &*source)
    }

    /// Does what the policy says about a fault that is on record. The caller has begun a check.
    pub(super) fn respond(&self, shard: &Arc<Shard>, block: u64, source: Option<&dyn Source>) {
        let shard_id = shard.statement.shard_id;
        let too_often = self.count_fault(shard, block);
        match (self.worker.policy.on_failure, source) {
            (OnFailure::Repair, Some(source)) => {
                // What goes wrong is on record and in the shard's state.
                let _ = self.repair(shard, source);
            }
            (OnFailure::Repair, None) => {
                let _ = self.worker.describe(shard, block, None);
                let reason = Error::NoSource { shard_id: Box::new(shard_id) };
                let event = AuditEvent::RepairFailed { shard_id: &shard_id, block: Some(block), reason: Text(&reason) };
                self.worker.record_beside_failure(&event);
            }
            (OnFailure::FailClosed | OnFailure::Log, _) => {
                let _ = self.worker.describe(shard, block, source);
            }
            (OnFailure::StopWorker, _) => {
                let _ = self.worker.describe(shard, block, source);
                let _ = self.stop_requested.set(format!("block {block} of '{shard_id}' is damaged").into());
            }
        }
        if let Some(reason) = too_often {
            self.worker.quarantine_device(&reason);
        }
    }

    /// A block was found damaged. Says why the device should be given up, if so.
    fn count_fault(&self, shard: &Arc<Shard>, block: u64) -> Option<String> {
        self.totals.faults.fetch_add(1, Ordering::Relaxed);
        self.metrics.faults.increment(1);
        if let Some(lane) = self.lanes().of(shard) {
            lane.faults = lane.faults.saturating_add(1);
        }
        // A drill says nothing about the hardware.
        if shard.is_drilled(block) { None } else { self.ledger().fault(shard.statement.shard_id, block, &self.options) }
    }

    /// Repairs, and counts what was repaired but for blocks that were damaged on purpose.
    fn repair(&self, shard: &Arc<Shard>, source: &dyn Source) -> Result<RepairReport, Error> {
        let known = shard.state().is_damaged().then(|| shard.last_fault_block()).flatten();
        let report = self.worker.repair(shard, source)?;
        // Those that were found by the repair alone.
        let others = report.repaired.iter().map(|damage| damage.block).filter(|block| Some(*block) != known);
        for reason in others.filter_map(|block| self.count_fault(shard, block)) {
            self.worker.quarantine_device(&reason);
        }
        self.totals.repairs.fetch_add(report.repaired.len() as u64, Ordering::Relaxed);
        if let Some(lane) = self.lanes().of(shard) {
            lane.repairs = lane.repairs.saturating_add(report.repaired.len() as u64);
        }
        let accidents = report.repaired.iter().filter(|damage| !shard.is_drilled(damage.block)).count();
        for damage in &report.repaired {
            self.is_well(shard, damage.block);
        }
        let too_many = self.ledger().repairs(accidents, self.worker.now_ns(), &self.options);
        if let Some(reason) = too_many.filter(|_| accidents > 0) {
            self.worker.quarantine_device(&reason);
        }
        Ok(report)
    }

    /// A block is as sealed: whatever is found in it later is another fault.
    pub(super) fn is_well(&self, shard: &Shard, block: u64) {
        shard.end_drill(block);
        self.ledger().well(shard.statement.shard_id, block);
    }
}
