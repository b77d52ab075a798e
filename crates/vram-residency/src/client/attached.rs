//! A shard that is mapped.

use std::sync::Arc;

use super::ClientError;
use super::connection::{Connection, unexpected};
use super::handed::{Handed, Lease, descriptor};
use super::watch::Watch;
use crate::device::mapping::Mapping;
use crate::device::{DeviceInfo, Protection, Residency};
use crate::digest::{BlockValue, Digest, block_count, block_range, block_value, merge};
use crate::handout::{Answer, Attached as Message, Request};
use crate::model::{Dtype, Tensor, TensorTable};

/// A shard that is mapped read-only, and the lease of it. Dropping it unmaps it and gives the lease back.
#[derive(Debug)]
pub struct Attached {
    // Dropped in this order: what is given back is no longer mapped.
    mapping: Mapping,
    handed: Handed,
}

/// A tensor in place.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions in the order in which the file lists them: slowest first in safetensors, fastest first in GGUF.
    pub shape: &'a [u64],
    /// Its bytes, in the daemon's own memory. In safetensors files, the first tensor is aligned to 256 bytes.
    pub bytes: &'a [u8],
}

impl Attached {
    pub(super) fn new(connection: &Arc<Connection>, request: &Request) -> Result<Self, ClientError> {
        let (first, second) = connection.ask_for_two(request)?;
        let Answer::Attached(attached) = first.answer else { return Err(unexpected(&first.answer)) };
        let Message { lease, offset, shard, seal } = *attached;
        let handed = Handed::new(Lease::new(connection, lease), request, shard, &seal, &second)?;
        let file = descriptor(first.file)?;
        let mapping = Mapping::new(&file, offset, handed.info.bytes).map_err(|source| ClientError::Map { source })?;
        Ok(Self { mapping, handed })
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

    /// The sealed digest, what `b3sum` prints for the file. [`Attached::verify`] tells whether it is that of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.handed.sealed.digest
    }

    /// The device that holds it.
    #[must_use]
    pub fn device(&self) -> DeviceInfo {
        self.handed.sealed.device
    }

    /// Where the bytes were when they were sealed.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.handed.sealed.residency
    }

    /// What stopped a write when they were sealed.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.handed.sealed.protection
    }

    /// When they were sealed: nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn sealed_at_ns(&self) -> u64 {
        self.handed.sealed.sealed_at_ns
    }

    /// The seal record, as [`SealKey`](crate::seal::SealKey) and `docs/format.md` have it.
    #[must_use]
    pub fn seal_record(&self) -> &[u8] {
        &self.handed.seal
    }

    /// The whole shard: the file, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// The tensor table; empty for a raw file.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.handed.table
    }

    /// A tensor by its name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.view(self.handed.table.get(name)?)
    }

    /// Every tensor, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.handed.table.tensors().iter().filter_map(|tensor| self.view(tensor))
    }

    fn view<'a>(&'a self, tensor: &'a Tensor) -> Option<TensorView<'a>> {
        let (start, end) = (usize::try_from(tensor.start).ok()?, usize::try_from(tensor.end).ok()?);
        let bytes = self.bytes().get(start..end)?;
        Some(TensorView { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape, bytes })
    }

    /// Hashes what is mapped, here and now, with every processor, and holds it against the sealed digest: the daemon need
    /// not be believed. Whether the seal is that of an approved model is for the caller to compare.
    ///
    /// # Errors
    /// [`ClientError::Mismatch`].
    pub fn verify(&self) -> Result<Digest, ClientError> {
        self.handed.compare(digest_of(self.bytes()))
    }

    /// Has the daemon tell from now on how the shard stands.
    ///
    /// # Errors
    /// [`ClientError::Lost`] and [`ClientError::Protocol`].
    pub fn watch(&self) -> Result<Watch, ClientError> {
        self.handed.watch()
    }
}

/// BLAKE3, by as many threads as there are processors.
fn digest_of(bytes: &[u8]) -> Digest {
    let length = bytes.len() as u64;
    let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(length)).unwrap_or(0)];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = values.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (first, part) in (0_u64..).step_by(share).zip(values.chunks_mut(share)) {
            scope.spawn(move || {
                for (index, value) in (first..).zip(part) {
                    let range = block_range(length, index);
                    let place = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
                    let block = bytes.get(place(range.start)..place(range.end)).unwrap_or_default();
                    *value = block_value(length, index, block).unwrap_or(BlockValue::UNKNOWN);
                }
            });
        }
    });
    merge(&values).unwrap_or(Digest::from_bytes([0; 32]))
}
