//! A shard in a GPU's memory that is mapped.

use std::sync::Arc;

use super::ClientError;
use super::connection::{Connection, protocol, unexpected};
use super::handed::{Handed, Lease, descriptor};
use super::watch::Watch;
use crate::attest::uuid;
use crate::device::{DeviceInfo, ImportedRegion, Importer, Offered};
use crate::digest::Digest;
use crate::handout::{Answer, AttachedCuda as Message, Request};
use crate::model::{Dtype, Tensor, TensorTable};

/// A shard in a GPU's memory, mapped for reading only in the primary context of that GPU, and the lease of it. Dropping it
/// unmaps it and gives the lease back: work of yours on the GPU that reads it must be done by then.
///
/// This process cannot write through this mapping. Others that were handed the shard could, by a mapping of their own: the
/// daemon calls the shard's protection `advisory`, and checks it again and again.
#[derive(Debug)]
pub struct AttachedCuda {
    // Dropped in this order: what is given back is no longer mapped.
    region: ImportedRegion,
    handed: Handed,
}

/// A tensor in place.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CudaTensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions in the order in which the file lists them: slowest first in safetensors, fastest first in GGUF.
    pub shape: &'a [u64],
    /// Its first byte's address on the GPU. Valid for as long as the [`AttachedCuda`] lives.
    pub pointer: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl AttachedCuda {
    pub(super) fn new(connection: &Arc<Connection>, request: &Request) -> Result<Self, ClientError> {
        if connection.version() < 2 {
            return Err(ClientError::OldDaemon);
        }
        // First: from the moment that a descriptor leaves, the daemon calls the shard's protection advisory.
        let importer = Importer::new()?;
        let (first, second) = connection.ask_for_two(request)?;
        let Answer::AttachedCuda(attached) = first.answer else { return Err(unexpected(&first.answer)) };
        let Message { lease, device, allocation_bytes, offset, shard, seal } = *attached;
        let handed = Handed::new(Lease::new(connection, lease), request, shard, &seal, &second)?;
        let file = descriptor(first.file)?;
        let device = uuid(&device).filter(|device| *device == handed.sealed.device.uuid);
        let device = device.ok_or_else(|| protocol("the GPU is not the one that the seal names"))?;
        let offered = Offered { device, allocation_bytes, offset, bytes: handed.info.bytes };
        let region = ImportedRegion::open(importer, &file, offered)?;
        Ok(Self { region, handed })
    }

    /// Its id.
    #[must_use]
    pub fn shard_id(&self) -> &str {
        &self.handed.info.shard_id
    }

    /// The model that it belongs to.
    #[must_use]
    pub fn model_ref(&self) -> &str {
        &self.handed.info.model_ref
    }

    /// The sealed digest, what `b3sum` prints for the file. [`AttachedCuda::verify`] tells whether it is that of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.handed.sealed.digest
    }

    /// The GPU that holds it, by its UUID.
    #[must_use]
    pub fn device(&self) -> DeviceInfo {
        self.handed.sealed.device
    }

    /// The number that this process knows that GPU by, which need not be the daemon's.
    #[must_use]
    pub fn ordinal(&self) -> i32 {
        self.region.ordinal()
    }

    /// When the bytes were sealed: nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn sealed_at_ns(&self) -> u64 {
        self.handed.sealed.sealed_at_ns
    }

    /// The seal record, as [`SealKey`](crate::seal::SealKey) and `docs/format.md` have it.
    #[must_use]
    pub fn seal_record(&self) -> &[u8] {
        &self.handed.seal
    }

    /// The first byte's address on the GPU: of the primary context, which frameworks use too. Valid for as long as this lives.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.region.pointer()
    }

    /// The shard's length in bytes: that of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.region.bytes()
    }

    /// The tensor table; empty for a raw file.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.handed.table
    }

    /// A tensor by its name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<CudaTensorView<'_>> {
        self.handed.table.get(name).map(|tensor| self.view(tensor))
    }

    /// Every tensor, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = CudaTensorView<'_>> {
        self.handed.table.tensors().iter().map(|tensor| self.view(tensor))
    }

    fn view<'a>(&'a self, tensor: &'a Tensor) -> CudaTensorView<'a> {
        let pointer = self.pointer().wrapping_add(tensor.start);
        let bytes = tensor.end.saturating_sub(tensor.start);
        CudaTensorView { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape, pointer, bytes }
    }

    /// Copies bytes of the shard, from `offset` on, to main memory.
    ///
    /// # Errors
    /// [`ClientError::Device`] where they are not inside the shard, or the driver refuses.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), ClientError> {
        Ok(self.region.read(offset, to)?)
    }

    /// Hashes what is mapped, here and now, on the GPU, and holds it against the sealed digest: the daemon need not be
    /// believed. Whether the seal is that of an approved model is for the caller to compare.
    ///
    /// # Errors
    /// [`ClientError::Mismatch`], [`ClientError::Device`].
    pub fn verify(&self) -> Result<Digest, ClientError> {
        self.handed.compare(self.region.digest()?)
    }

    /// Has the daemon tell from now on how the shard stands.
    ///
    /// # Errors
    /// [`ClientError::Lost`] and [`ClientError::Protocol`].
    pub fn watch(&self) -> Result<Watch, ClientError> {
        self.handed.watch()
    }
}
