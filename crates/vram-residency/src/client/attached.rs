//! A shard that is mapped.

use std::sync::Arc;

use super::ClientError;
use super::connection::{Connection, protocol, unexpected};
use super::watch::Watch;
use crate::device::mapping::Mapping;
use crate::device::{DeviceInfo, Protection, Residency};
use crate::digest::{BlockValue, Digest, block_count, block_range, block_value, merge};
use crate::handout::{Answer, Attached as Message, Request, ShardInfo, TensorInfo, unhex};
use crate::model::{Dtype, Tensor, TensorTable};
use crate::seal::parse_record;

/// A shard that is mapped read-only, and the lease of it. Dropping it unmaps it and gives the lease back.
#[derive(Debug)]
pub struct Attached {
    // Dropped in this order: what is given back is no longer mapped.
    mapping: Mapping,
    lease: Lease,
    table: TensorTable,
    info: ShardInfo,
    seal: Vec<u8>,
    sealed: Sealed,
}

/// What the seal says.
#[derive(Debug, Clone, Copy)]
struct Sealed {
    digest: Digest,
    device: DeviceInfo,
    residency: Residency,
    protection: Protection,
    sealed_at_ns: u64,
}

#[derive(Debug)]
struct Lease {
    connection: Arc<Connection>,
    number: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.forget(self.number);
        // The last one ends the connection, and that ends its leases.
        if Arc::strong_count(&self.connection) > 1 {
            let _ = self.connection.ask(&Request::Release { lease: self.number });
        }
    }
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
        let Message { lease, offset, shard: info, seal } = *attached;
        // From here on, whatever is wrong gives the lease back.
        let lease = Lease { connection: Arc::clone(connection), number: lease };
        let Answer::Tensors { tensors } = second.answer else { return Err(unexpected(&second.answer)) };
        let file = first.file.ok_or_else(|| protocol("no descriptor came with the shard"))?;
        let seal = unhex(&seal).ok_or_else(|| protocol("the seal is not in hex"))?;
        let (statement, _) = parse_record(&seal)?;
        let table = table_of(&tensors, info.bytes)?;
        let is_of_shard = statement.digest == info.digest
            && statement.bytes == info.bytes
            && statement.shard_id.as_str() == info.shard_id
            && statement.table_digest == Digest::from_bytes(table.digest());
        if !is_of_shard {
            return Err(protocol("the seal is not that of the shard"));
        }
        if let Request::Attach { digest: Some(digest), .. } = request
            && *digest != info.digest
        {
            return Err(protocol("another digest was asked for"));
        }
        let sealed = Sealed {
            digest: statement.digest,
            device: DeviceInfo { kind: statement.device_kind, uuid: statement.device_uuid },
            residency: statement.residency,
            protection: statement.protection,
            sealed_at_ns: statement.sealed_at_ns,
        };
        let mapping = Mapping::new(&file, offset, info.bytes).map_err(|source| ClientError::Map { source })?;
        Ok(Self { mapping, lease, table, info, seal, sealed })
    }

    /// Its id.
    #[must_use]
    pub fn shard_id(&self) -> &str {
        &self.info.shard_id
    }

    /// The model that it belongs to.
    #[must_use]
    pub fn model_ref(&self) -> &str {
        &self.info.model_ref
    }

    /// The sealed digest, what `b3sum` prints for the file. [`Attached::verify`] tells whether it is that of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.sealed.digest
    }

    /// The device that holds it.
    #[must_use]
    pub fn device(&self) -> DeviceInfo {
        self.sealed.device
    }

    /// Where the bytes were when they were sealed.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.sealed.residency
    }

    /// What stopped a write when they were sealed.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.sealed.protection
    }

    /// When they were sealed: nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn sealed_at_ns(&self) -> u64 {
        self.sealed.sealed_at_ns
    }

    /// The seal record, as [`SealKey`](crate::seal::SealKey) and `docs/format.md` have it.
    #[must_use]
    pub fn seal_record(&self) -> &[u8] {
        &self.seal
    }

    /// The whole shard: the file, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// The tensor table; empty for a raw file.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.table
    }

    /// A tensor by its name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.view(self.table.get(name)?)
    }

    /// Every tensor, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.table.tensors().iter().filter_map(|tensor| self.view(tensor))
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
        let (expected, actual) = (self.sealed.digest, digest_of(self.bytes()));
        if actual == expected { Ok(actual) } else { Err(ClientError::Mismatch { expected, actual }) }
    }

    /// Has the daemon tell from now on how the shard stands.
    ///
    /// # Errors
    /// [`ClientError::Lost`] and [`ClientError::Protocol`].
    pub fn watch(&self) -> Result<Watch, ClientError> {
        Watch::new(&self.lease.connection, self.lease.number, self.info.lapses)
    }
}

/// The table that was sent, checked as every table is.
fn table_of(tensors: &[TensorInfo], bytes: u64) -> Result<TensorTable, ClientError> {
    let tensor = |info: &TensorInfo| {
        let dtype = info.dtype.parse::<Dtype>().ok().filter(|_| info.start <= info.end && info.end <= bytes)?;
        let (name, shape) = (info.name.as_str().into(), info.shape.as_slice().into());
        Some(Tensor { name, dtype, shape, start: info.start, end: info.end })
    };
    let tensors = tensors.iter().map(tensor).collect::<Option<Vec<_>>>();
    let tensors = tensors.ok_or_else(|| protocol("a tensor is of an unknown type or outside of the shard"))?;
    TensorTable::new(tensors).map_err(|error| protocol(&error.to_string()))
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
