//! Sealing: allocate, fill, protect, check, sign, record. In that order, and nothing half-done stays.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Recorded, VramManager, Worker, check_text};
use crate::approval::Approval;
use crate::attest::KeyId;
use crate::audit::{AuditEvent, Text};
use crate::device::{DeviceError, DeviceKind, Fill, MemoryCheck, Region, StagedRegion};
use crate::digest::{BlockValue, Digest, Expected, block_count, merge};
use crate::error::Error;
use crate::loader::{Cancelled, Loader, OrderedSha256, Progress};
use crate::model::{self, ModelFile, TensorTable};
use crate::policy::Violation;
use crate::seal::{Signature, Statement};
use crate::shard::{Home, SealedShard, Shard, ShardState, Writable};
use crate::shard_id::ShardId;

/// What is to be sealed, beside the bytes.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct SealRequest<'a> {
    /// The shard's name.
    pub shard_id: ShardId,
    /// Which model it belongs to: 1 to 4096 bytes.
    pub model_ref: &'a str,
    /// Which of the model's shards it is, from 0.
    pub shard_index: u32,
    /// How many shards the model has.
    pub shard_count: u32,
    /// What the publisher says the file's hash is.
    pub expect: Option<Expected>,
    /// The manifest that approves the file, and what it says of it.
    pub approval: Option<Approval<'a>>,
    /// Told of bytes that arrived.
    pub progress: Option<Progress<'a>>,
    /// Asked whether to stop while a file is read, and after each fingerprint for re-checks; it is then given up and nothing
    /// of it stays resident.
    pub cancelled: Option<Cancelled<'a>>,
}

impl<'a> SealRequest<'a> {
    /// A request for the only shard of a model, with nothing expected.
    #[must_use]
    pub const fn new(shard_id: ShardId, model_ref: &'a str) -> Self {
        Self {
            shard_id,
            model_ref,
            shard_index: 0,
            shard_count: 1,
            expect: None,
            approval: None,
            progress: None,
            cancelled: None,
        }
    }

    /// The same for one of several shards.
    #[must_use]
    pub const fn part(self, shard_index: u32, shard_count: u32) -> Self {
        Self { shard_index, shard_count, ..self }
    }

    /// The same with an expected hash.
    #[must_use]
    pub const fn expecting(self, expect: Expected) -> Self {
        Self { expect: Some(expect), ..self }
    }

    /// The same, for a file that a manifest approves. That is recorded, and refused where the bytes are others.
    #[must_use]
    pub const fn approved(self, approval: Approval<'a>) -> Self {
        Self { approval: Some(approval), ..self }
    }

    /// What the bytes are compared with, and which rule that is.
    fn comparisons(&self) -> impl Iterator<Item = (Expected, Violation)> {
        let expect = self.expect.map(|expected| (expected, Violation::NotExpected));
        let approval = self.approval.map(|approval| (approval.compared(), Violation::NotApproved));
        expect.into_iter().chain(approval)
    }

    /// The same, told of progress.
    #[must_use]
    pub const fn reporting(self, progress: Progress<'a>) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// The same, given up where `cancelled` says so while a file is loaded.
    #[must_use]
    pub const fn unless(self, cancelled: Cancelled<'a>) -> Self {
        Self { cancelled: Some(cancelled), ..self }
    }
}

/// Which part of which model a shard is.
pub(super) struct Part {
    pub(super) shard_id: ShardId,
    pub(super) model_ref: Arc<str>,
    pub(super) index: u32,
    pub(super) count: u32,
    /// Since when others can write to its memory, where it is sealed in place once more.
    pub(super) writable_since_ns: Option<u64>,
}

/// What a shard is made of.
struct Contents<'a> {
    bytes: u64,
    fill: &'a dyn Fill,
    table: TensorTable,
    /// Where the tensor data starts.
    data_start: u64,
    /// The file, where there is one.
    file: Option<&'a ModelFile>,
    sha256: Option<&'a OrderedSha256>,
}

impl VramManager {
    /// Seals bytes from memory, as raw bytes without tensors.
    ///
    /// # Errors
    /// [`Error::Device`] where they do not fit, [`Error::DuplicateShard`], [`Error::Text`], [`Error::Policy`], and
    /// [`Error::Audit`] where the policy requires records. Nothing stays resident then.
    pub fn seal_model(&self, shard_id: ShardId, model_ref: &str, bytes: &[u8]) -> Result<SealedShard, Error> {
        let contents = Contents {
            bytes: bytes.len() as u64,
            fill: &bytes,
            table: TensorTable::empty(),
            data_start: 0,
            file: None,
            sha256: None,
        };
        self.worker.seal(contents, &SealRequest::new(shard_id, model_ref))
    }

    /// Seals a model file: one pass from the file to the device, hashed on the way.
    ///
    /// # Errors
    /// As [`VramManager::seal_model`]; also [`Error::Unexpected`] where the bytes are not those expected and
    /// [`Error::SourceChanged`] where header, length or modification time of the file changed meanwhile. Nothing stays resident then.
    pub fn seal_file(&self, file: &ModelFile, request: &SealRequest<'_>) -> Result<SealedShard, Error> {
        let mut comparisons = request.comparisons();
        let is_needed = comparisons.any(|(expected, _)| matches!(expected, Expected::Sha256(_)));
        let sha256 = is_needed.then(OrderedSha256::default);
        let loader = Loader {
            source: file.source(),
            // Main memory is not where it goes to, and need not keep a copy.
            once: self.worker.device.info().kind != DeviceKind::Host,
            progress: request.progress,
            sha256: sha256.as_ref(),
            cancelled: request.cancelled,
        };
        let contents = Contents {
            bytes: file.len(),
            fill: &loader,
            table: file.table().clone(),
            data_start: file.data_start(),
            file: Some(file),
            sha256: sha256.as_ref(),
        };
        let sealed = self.worker.seal(contents, request);
        let hashed = sha256.map_or(0, |sha256| sha256.bytes());
        self.worker.sha256_bytes.fetch_add(hashed, Ordering::Relaxed);
        self.worker.metrics.sha256_bytes.increment(hashed);
        sealed
    }
}

impl Worker {
    fn seal(self: &Arc<Self>, contents: Contents<'_>, request: &SealRequest<'_>) -> Result<SealedShard, Error> {
        let span = tracing::info_span!("seal", shard_id = %request.shard_id, bytes = contents.bytes);
        let _entered = span.enter();
        let answer = self.try_seal(contents, request);
        match &answer {
            Ok(shard) => {
                self.metrics.seals.increment(1);
                tracing::info!(digest = %shard.digest(), residency = %shard.residency(), "sealed");
            }
            Err(error) => {
                self.metrics.seal_failures.increment(1);
                tracing::warn!(%error, "not sealed");
            }
        }
        self.show_capacity();
        answer
    }

    fn try_seal(self: &Arc<Self>, contents: Contents<'_>, request: &SealRequest<'_>) -> Result<SealedShard, Error> {
        check_text("model reference", request.model_ref)?;
        let (index, count) = (request.shard_index, request.shard_count);
        if index >= count {
            return Err(Error::Part { index, count });
        }
        self.admitted(self.policy.admit_device(self.device.info().kind), request.shard_id)?;
        self.device_is_trusted()?;
        let claim = self.claim(request.shard_id)?;
        let staged = self.allocate(&contents, request.shard_id)?;
        // Whatever fails from here on, the memory goes back and that is recorded.
        let allocated = Allocated { worker: self, shard_id: request.shard_id, bytes: contents.bytes, kept: false };
        let hashed_ns = self.now_ns();
        let (values, region) = fill(staged, &contents)?;
        let digest = merge(&values).ok_or(DeviceError::WorkerPanicked)?;
        self.check_expectation(request, digest, &contents)?;
        self.check_source(region.as_ref(), &contents, request.shard_id)?;
        self.admit_region(region.as_ref(), request.shard_id, &Writable::default())?;
        let spares = self.first_spares(region.as_ref(), &values, request.cancelled)?;

        let sha256 = known_sha256(request, &contents);
        self.record_approval(request, &contents, digest, sha256)?;
        let model_ref = Arc::from(request.model_ref);
        let part = Part { shard_id: request.shard_id, model_ref, index, count, writable_since_ns: None };
        let mut shard = self.sign(part, contents.table, values, digest, region, hashed_ns)?;
        shard.sha256 = sha256;
        shard.spares = spares;
        self.device_is_trusted()?;
        let inner = Arc::new(shard);
        claim.keep(&inner);
        allocated.keep();
        Ok(SealedShard { inner })
    }

    /// Signs for what is resident, and records that.
    pub(super) fn sign(
        self: &Arc<Self>,
        part: Part,
        table: TensorTable,
        values: Box<[BlockValue]>,
        digest: Digest,
        region: Box<dyn Region>,
        hashed_ns: u64,
    ) -> Result<Shard, Error> {
        let device = self.device.info();
        let writable = Writable::carried(part.writable_since_ns);
        let statement = Statement {
            shard_id: part.shard_id,
            worker_id: Arc::clone(&self.worker_id),
            device_kind: device.kind,
            device_uuid: device.uuid,
            bytes: region.bytes(),
            digest,
            table_digest: Digest::from_bytes(table.digest()),
            model_ref: part.model_ref,
            shard_index: part.index,
            shard_count: part.count,
            sealed_at_ns: self.trail.wall_ns(),
            residency: region.residency(),
            protection: writable.lowers(region.protection()),
        };
        let signature = self.key.sign(&statement);
        let lost_before = self.trail.lost_records();
        let recorded = self.record_seal(&statement, &signature)?;
        let home = Arc::clone(self) as _;
        let mut shard = Shard::new(home, statement, signature, values, table, region, hashed_ns);
        shard.writable = writable;
        match recorded {
            Recorded::Kept => shard.set_recorded_state(ShardState::Sealed, lost_before),
            Recorded::Lost => shard.set_state(ShardState::Unverified),
        }
        Ok(shard)
    }

    fn allocate(&self, contents: &Contents<'_>, shard_id: ShardId) -> Result<Box<dyn StagedRegion>, Error> {
        let lead = model::lead_bytes(contents.data_start);
        let requested_bytes = contents.bytes;
        let staged = self.device.allocate(requested_bytes, lead);
        let capacity = self.device.capacity();
        let (used_bytes, available_bytes) = (capacity.used_bytes, capacity.available_bytes());
        let shard_id = &shard_id;
        match staged {
            Ok(staged) => {
                tracing::debug!(requested_bytes, used_bytes, available_bytes, "allocated");
                self.record(&AuditEvent::VramAllocated { shard_id, requested_bytes, used_bytes, available_bytes })?;
                Ok(staged)
            }
            Err(error) => {
                let reason = Text(&error);
                let available_bytes = match &error {
                    DeviceError::InsufficientMemory { available_bytes, .. } => *available_bytes,
                    _ => available_bytes,
                };
                let event = AuditEvent::VramAllocationFailed { shard_id, requested_bytes, available_bytes, reason };
                self.record_beside_failure(&event);
                Err(error.into())
            }
        }
    }

    fn check_expectation(
        &self,
        request: &SealRequest<'_>,
        digest: Digest,
        contents: &Contents<'_>,
    ) -> Result<(), Error> {
        let shard_id = request.shard_id;
        for (expected, violation) in request.comparisons() {
            let actual = match (expected, contents.sha256) {
                (Expected::Sha256(_), Some(sha256)) => Expected::Sha256(sha256.finish()),
                _ => Expected::Blake3(digest),
            };
            if actual != expected {
                let error = Error::Unexpected { shard_id: Box::new(shard_id), expected, actual };
                match (violation, request.approval) {
                    (Violation::NotApproved, Some(approval)) => {
                        let words = format!("{error}; {}", approved_words(&approval, contents.file));
                        self.violated(shard_id, violation, &words);
                    }
                    _ => self.violated(shard_id, violation, &error),
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Records by which manifest bytes are approved that were just compared with it.
    fn record_approval(
        &self,
        request: &SealRequest<'_>,
        contents: &Contents<'_>,
        digest: Digest,
        sha256: Option<[u8; 32]>,
    ) -> Result<(), Error> {
        let Some(Approval { manifest, remembered, .. }) = request.approval else { return Ok(()) };
        let pair = sha256.map(|sha256| KeyId(self.key.pair_tag(&sha256, &digest, contents.bytes)));
        let sha256 = sha256.map(Expected::Sha256);
        let signer = manifest.signer();
        self.record(&AuditEvent::ShardApproved {
            shard_id: &request.shard_id,
            manifest: manifest.digest(),
            form: manifest.form().as_str(),
            signer: signer.as_ref().map(|signer| Text(signer)),
            bytes: contents.bytes,
            digest,
            sha256: sha256.as_ref().map(|sha256| Text(sha256)),
            pair: pair.as_ref().map(|pair| Text(pair)),
            remembered: remembered.is_some(),
        })
        .map(|_| ())
    }

    /// Shows that the resident header is the one that the tensor table was read from, and that the file's length and
    /// modification time are still the same. Who sets that time back is found out only by an expected hash.
    fn check_source(&self, region: &dyn Region, contents: &Contents<'_>, shard_id: ShardId) -> Result<(), Error> {
        let Some(file) = contents.file else { return Ok(()) };
        let mut header = None;
        region.view(0..contents.data_start, &mut |bytes| header = Some(Digest::of(bytes)))?;
        if header == Some(Digest::from_bytes(file.header_digest())) && file.is_unchanged() {
            return Ok(());
        }
        let error = Error::SourceChanged { shard_id: Box::new(shard_id) };
        self.violated(shard_id, Violation::SourceChanged, &error);
        Err(error)
    }

    /// Holds what a device gave, what it states of it, and who else can write to it, against the rules.
    pub(super) fn admit_region(
        &self,
        region: &dyn Region,
        shard_id: ShardId,
        writable: &Writable,
    ) -> Result<(), Error> {
        let MemoryCheck { residency, protection, foreign, .. } = region.check_memory()?;
        let verdict = match foreign {
            Some(foreign) => Err(Violation::NotResident { foreign }),
            None => self.policy.admit(self.device.info().kind, residency, writable.lowers(protection)),
        };
        self.admitted(verdict, shard_id)
    }

    pub(super) fn admitted(&self, verdict: Result<(), Violation>, shard_id: ShardId) -> Result<(), Error> {
        tracing::debug!(admitted = verdict.is_ok(), "policy asked");
        verdict.map_err(|violation| {
            let error = Error::Policy { shard_id: Box::new(shard_id), violation };
            self.violated(shard_id, violation, &error);
            error
        })
    }

    fn violated(&self, shard_id: ShardId, violation: Violation, error: &dyn fmt::Display) {
        self.metrics.policy_violations.increment(1);
        self.record_beside_failure(&AuditEvent::PolicyViolation {
            shard_id: &shard_id,
            policy: violation.rule(),
            violation: Text(error),
            action: "refused",
        });
    }

    fn record_seal(&self, statement: &Statement<Arc<str>>, signature: &Signature) -> Result<Recorded, Error> {
        self.record(&AuditEvent::VramSealed {
            shard_id: &statement.shard_id,
            model_ref: &statement.model_ref,
            shard_index: statement.shard_index,
            shard_count: statement.shard_count,
            bytes: statement.bytes,
            digest: statement.digest,
            table_digest: statement.table_digest,
            residency: statement.residency,
            protection: statement.protection,
            seal: Text(&statement.record_hex(signature)),
        })
    }
}

/// Which manifest approves what of which file: in the manifest's own words, and with the last part of the file's path.
fn approved_words(approval: &Approval<'_>, file: Option<&ModelFile>) -> String {
    let name = file.and_then(|file| file.path().file_name()).unwrap_or_default();
    let name = name.to_string_lossy().replace(char::is_control, "\u{fffd}");
    format!("the manifest {} approves '{name}' as {}", approval.manifest.digest(), approval.expected)
}

/// SHA-256 of the bytes, where it was computed just now or belongs to their digest as far as is remembered.
fn known_sha256(request: &SealRequest<'_>, contents: &Contents<'_>) -> Option<[u8; 32]> {
    match (contents.sha256, request.approval) {
        (Some(sha256), _) => Some(sha256.finish()),
        (None, Some(Approval { expected: Expected::Sha256(sha256), remembered: Some(_), .. })) => Some(sha256),
        (None, _) => None,
    }
}

/// Fills the region and makes it read-only.
#[expect(clippy::type_complexity, reason = "two parts of a shard that is still to be made")]
fn fill(
    mut staged: Box<dyn StagedRegion>,
    contents: &Contents<'_>,
) -> Result<(Box<[BlockValue]>, Box<dyn Region>), Error> {
    let blocks = usize::try_from(block_count(contents.bytes)).unwrap_or(usize::MAX);
    let mut values = vec![BlockValue::UNKNOWN; blocks].into_boxed_slice();
    staged.fill(contents.fill, &mut values)?;
    Ok((values, staged.protect()?))
}

/// Memory that no shard holds yet.
struct Allocated<'a> {
    worker: &'a Worker,
    shard_id: ShardId,
    bytes: u64,
    kept: bool,
}

impl Allocated<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Allocated<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.worker.gave_back(&self.shard_id, self.bytes);
        }
    }
}
