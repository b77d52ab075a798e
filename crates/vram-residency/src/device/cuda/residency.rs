//! Where memory is, as the driver states it: asked anew at each seal and at each full verification.
//!
//! These are a driver's statements and no proof against a driver that lies. The speed of a scan is evidence beside them.

use super::driver::types::{ALLOCATION_TYPE_PINNED, LOCATION_TYPE_DEVICE, MEMORY_TYPE_DEVICE};
use super::driver::{Access, Address, Context, CudaError, PointerAttribute};
use crate::device::Foreign;

/// A range of memory, as it was when it was sealed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) start: Address,
    pub(super) bytes: u64,
    /// Whether it is from `cuMemCreate`, by this process.
    pub(super) owned: bool,
    /// The numbers of what its first and its last byte are backed by, where the driver had them. Two, because a framework
    /// may map several allocations behind each other.
    pub(super) block_ids: [Option<u64>; 2],
}

impl Sealed {
    /// The first and the last byte.
    fn ends(&self) -> [Address; 2] {
        [self.start, self.start.plus(self.bytes.max(1).saturating_sub(1))]
    }
}

/// What the driver states about a range: the first thing that must not be so, if there is one.
pub(super) fn examine(context: &Context, sealed: &Sealed) -> Result<Option<Foreign>, CudaError> {
    for (address, block_id) in sealed.ends().into_iter().zip(sealed.block_ids) {
        if let Some(foreign) = examine_address(context, address, sealed.owned, block_id)? {
            return Ok(Some(foreign));
        }
    }
    Ok(None)
}

fn examine_address(
    context: &Context,
    address: Address,
    owned: bool,
    block_id: Option<u64>,
) -> Result<Option<Foreign>, CudaError> {
    use PointerAttribute::{
        DeviceOrdinal, HostPointer, IsManaged, Mapped, MemoryBlockId, MemoryType, RangeSize, RangeStart,
    };
    let ask = |attribute| context.ask(attribute, address);
    let here = u64::try_from(context.device()).ok();
    // Managed memory may call itself either, so it is asked about first.
    match ask(IsManaged)? {
        Some(0) => {}
        Some(_) => return Ok(Some(Foreign::Managed)),
        // The driver knows nothing of such an address.
        None => return Ok(Some(Foreign::NotMapped)),
    }
    if ask(MemoryType)? != Some(MEMORY_TYPE_DEVICE) {
        return Ok(Some(Foreign::NotOfDevice));
    }
    if ask(HostPointer)?.unwrap_or(0) != 0 {
        return Ok(Some(Foreign::HostAddressable));
    }
    if ask(DeviceOrdinal)? != here {
        return Ok(Some(Foreign::OtherDevice));
    }
    if ask(Mapped)? == Some(0) {
        return Ok(Some(Foreign::NotMapped));
    }
    let (Some(start), Some(size)) = (ask(RangeStart)?, ask(RangeSize)?) else { return Ok(Some(Foreign::NotMapped)) };
    if address.0 < start || address.0 >= start.saturating_add(size) {
        return Ok(Some(Foreign::NotMapped));
    }
    if block_id.is_some() && ask(MemoryBlockId)? != block_id {
        return Ok(Some(Foreign::BackingChanged));
    }
    let Some(allocation) = context.allocation_at(address)? else {
        // Memory that somebody else allocated may be of another kind than ours.
        return Ok(owned.then_some(Foreign::NotPinned));
    };
    let is_here = allocation.location.kind == LOCATION_TYPE_DEVICE && allocation.location.id == context.device();
    if !is_here {
        return Ok(Some(Foreign::OtherDevice));
    }
    Ok((allocation.kind != ALLOCATION_TYPE_PINNED).then_some(Foreign::NotPinned))
}

/// What the ends of a range are backed by.
pub(super) fn block_ids(context: &Context, sealed: &Sealed) -> Result<[Option<u64>; 2], CudaError> {
    let [first, last] = sealed.ends().map(|end| context.ask(PointerAttribute::MemoryBlockId, end));
    Ok([first?, last?])
}

/// Addresses in all that may be mapped by itself in a range: every mapping begins on a granule of `granularity` bytes.
fn pieces(sealed: &Sealed, granularity: u64) -> impl Iterator<Item = Address> {
    let [first, last] = sealed.ends();
    let granularity = granularity.max(1);
    let next = move |at: &Address| {
        let next = at.0.checked_div(granularity)?.checked_add(1)?.checked_mul(granularity)?;
        (next <= last.0).then_some(Address(next))
    };
    std::iter::successors(Some(first), next)
}

/// Whether the driver states that the device cannot write to any byte of a range, whatever it is mapped from.
pub(super) fn is_read_only_throughout(context: &Context, sealed: &Sealed, granularity: u64) -> Result<bool, CudaError> {
    for address in pieces(sealed, granularity) {
        if !is_read_only(context, address)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the driver states that the device cannot write to a byte.
pub(super) fn is_read_only(context: &Context, address: Address) -> Result<bool, CudaError> {
    Ok(context.ask(PointerAttribute::AccessFlags, address)? == Some(Access::Read as u64))
}

/// Whether the driver's answers leave open that somebody else has a range mapped too: it is no allocation whose kind can be
/// asked for, or one of which descriptors can be made. Of several allocations behind each other one such is enough.
pub(super) fn is_shareable(context: &Context, sealed: &Sealed, granularity: u64) -> Result<bool, CudaError> {
    for address in pieces(sealed, granularity) {
        if context.allocation_at(address)?.is_none_or(|allocation| allocation.handle_types != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}
