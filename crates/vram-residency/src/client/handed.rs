//! What a daemon says of a shard that it hands out, understood and held against its seal; and the lease of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ClientError;
use super::connection::{Connection, Reply, protocol, unexpected};
use super::watch::Watch;
use crate::device::{DeviceInfo, Protection, Residency};
use crate::digest::Digest;
use crate::handout::{Answer, Request, ShardInfo, TensorInfo, unhex};
use crate::model::{Dtype, Tensor, TensorTable};
use crate::seal::parse_record;

/// A shard that is handed out, but for its memory. Dropping it gives the lease back.
#[derive(Debug)]
pub(super) struct Handed {
    lease: Lease,
    pub(super) table: TensorTable,
    pub(super) info: ShardInfo,
    pub(super) seal: Vec<u8>,
    pub(super) sealed: Sealed,
}

/// What the seal says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) digest: Digest,
    pub(super) device: DeviceInfo,
    pub(super) residency: Residency,
    pub(super) protection: Protection,
    pub(super) sealed_at_ns: u64,
}

#[derive(Debug)]
pub(super) struct Lease {
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

impl Lease {
    pub(super) fn new(connection: &Arc<Connection>, number: u64) -> Self {
        Self { connection: Arc::clone(connection), number }
    }
}

impl Handed {
    /// Whatever is wrong gives the lease back.
    pub(super) fn new(
        lease: Lease,
        request: &Request,
        info: ShardInfo,
        seal: &str,
        tensors: &Reply,
    ) -> Result<Self, ClientError> {
        let Answer::Tensors { tensors } = &tensors.answer else { return Err(unexpected(&tensors.answer)) };
        let seal = unhex(seal).ok_or_else(|| protocol("the seal is not in hex"))?;
        let (statement, _) = parse_record(&seal)?;
        let table = table_of(tensors, info.bytes)?;
        let is_of_shard = statement.digest == info.digest
            && statement.bytes == info.bytes
            && statement.shard_id.as_str() == info.shard_id
            && statement.table_digest == Digest::from_bytes(table.digest());
        if !is_of_shard {
            return Err(protocol("the seal is not that of the shard"));
        }
        if let Request::Attach { digest: Some(digest), .. } | Request::AttachCuda { digest: Some(digest), .. } = request
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
        Ok(Self { lease, table, info, seal, sealed })
    }

    /// Whether a digest that was taken of the bytes is the sealed one.
    pub(super) fn compare(&self, actual: Digest) -> Result<Digest, ClientError> {
        let expected = self.sealed.digest;
        if actual == expected { Ok(actual) } else { Err(ClientError::Mismatch { expected, actual }) }
    }

    pub(super) fn watch(&self) -> Result<Watch, ClientError> {
        Watch::new(&self.lease.connection, self.lease.number, self.info.lapses)
    }
}

/// The descriptor that came along.
pub(super) fn descriptor(file: Option<OwnedFd>) -> Result<OwnedFd, ClientError> {
    file.ok_or_else(|| protocol("no descriptor came with the shard"))
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
