//! Device memory of our own: an allocation, a range of addresses, the one mapped at the other.
//!
//! Each is given back when it is dropped, in the right order, however far its making came.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::kept::{Gift, Of};
use super::table::Table;
use super::types::{
    Access, AccessDescription, Address, AllocationProperties, Code, DeviceAttribute, GRANULARITY_MINIMUM,
    HANDLE_TYPE_POSIX_FD, LOCATION_TYPE_DEVICE, Location, RawHandle, code,
};
use super::{Context, CudaError};

/// The size of which every allocation on a device is a multiple.
pub(in crate::device::cuda) fn granularity(context: &Context) -> Result<u64, CudaError> {
    let mut bytes = 0;
    let (answer, _) = with_properties(context, &mut |properties| {
        // SAFETY: writes one number to where the first pointer points, reads the properties behind the second.
        unsafe { (context.driver.table.granularity)(&raw mut bytes, properties, GRANULARITY_MINIMUM) }
    })?;
    context.check("state the size of its pages", answer)?;
    // Zero, or no power of two, is no page size.
    if bytes.is_power_of_two() {
        Ok(bytes as u64)
    } else {
        context.check("state the size of its pages", code::INVALID_VALUE).map(|()| 0)
    }
}

/// Calls with the properties of pinned memory: exportable where the device can, and again without that where the driver
/// says that this process may not have it, as in some sandboxes. Says whether it was exportable at last.
fn with_properties(
    context: &Context,
    call: &mut dyn FnMut(&AllocationProperties) -> Code,
) -> Result<(Code, bool), CudaError> {
    let exportable = context.driver.attribute(DeviceAttribute::PosixFileDescriptor, context.device())? == 1;
    let answer = call(&AllocationProperties::pinned_on(context.device(), exportable));
    if exportable && matches!(answer, code::NOT_PERMITTED | code::NOT_SUPPORTED) {
        return Ok((call(&AllocationProperties::pinned_on(context.device(), false)), false));
    }
    Ok((answer, exportable))
}

/// An allocation in the device's memory, pinned to it.
#[derive(Debug)]
struct Allocation {
    context: Arc<Context>,
    handle: RawHandle,
    exportable: bool,
}

impl Allocation {
    fn create(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut handle = 0;
        let (answer, exportable) = with_properties(context, &mut |properties| {
            // SAFETY: writes a handle to where the first pointer points, reads the properties behind the second.
            unsafe { (context.driver.table.create)(&raw mut handle, bytes, properties, 0) }
        })?;
        context.check("allocate a region", answer)?;
        Ok(Self { context: Arc::clone(context), handle, exportable })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: the handle is this value's, and no mapping of it is left: `Mapped` drops itself before its parts.
        let release = move |table: &Table| unsafe { (table.release)(handle) };
        self.context.give_back(Gift::new("release a region", Of::Process, release));
    }
}

/// A range of the device's address space.
#[derive(Debug)]
struct Addresses {
    context: Arc<Context>,
    start: Address,
    bytes: usize,
}

impl Addresses {
    fn reserve(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut start = Address(0);
        // SAFETY: writes an address to where the pointer points.
        let answer = unsafe { (context.driver.table.reserve)(&raw mut start, bytes, 0, Address(0), 0) };
        context.check("reserve addresses for a region", answer)?;
        Ok(Self { context: Arc::clone(context), start, bytes })
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        let (start, bytes) = (self.start, self.bytes);
        // SAFETY: the range is this value's, and nothing is mapped in it any more.
        let unreserve = move |table: &Table| unsafe { (table.unreserve)(start, bytes) };
        self.context.give_back(Gift::new("free a region's addresses", Of::Process, unreserve));
    }
}

/// An allocation that is mapped at a range of addresses.
#[derive(Debug)]
pub(in crate::device::cuda) struct Mapped {
    // Dropped in this order, after the mapping itself.
    addresses: Addresses,
    allocation: Allocation,
}

impl Mapped {
    /// An allocation of its own, readable and writable at first. `bytes` is a multiple of the granularity.
    pub(in crate::device::cuda) fn create(context: &Arc<Context>, bytes: u64) -> Result<Self, CudaError> {
        let too_large = || context.out_of_memory("address so large a region");
        let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
        let _current = context.enter()?;
        let allocation = Allocation::create(context, bytes)?;
        Self::map(context, allocation, bytes, Access::ReadWrite)
    }

    /// Maps the whole of an allocation; the context is entered.
    fn map(context: &Arc<Context>, allocation: Allocation, bytes: usize, access: Access) -> Result<Self, CudaError> {
        let addresses = Addresses::reserve(context, bytes)?;
        // SAFETY: the whole of a fresh range, and the whole of an allocation of the same size.
        let answer = unsafe { (context.driver.table.map)(addresses.start, bytes, 0, allocation.handle, 0) };
        context.check("map a region", answer)?;
        let mapped = Self { addresses, allocation };
        mapped.set_access(0, bytes as u64, access)?;
        Ok(mapped)
    }

    pub(in crate::device::cuda) fn start(&self) -> Address {
        self.addresses.start
    }

    pub(in crate::device::cuda) fn bytes(&self) -> u64 {
        self.addresses.bytes as u64
    }

    /// Says what the device may do with a part of the range; offset and length are multiples of the granularity.
    pub(in crate::device::cuda) fn set_access(&self, offset: u64, bytes: u64, access: Access) -> Result<(), CudaError> {
        let context = &self.addresses.context;
        let _current = context.enter()?;
        let description = AccessDescription { location: self.location(), flags: access as i32 };
        let start = self.addresses.start.plus(offset);
        let bytes = usize::try_from(bytes).unwrap_or(self.addresses.bytes);
        // SAFETY: the range is this value's own mapping, and whoever writes to it has asked for this.
        let answer = unsafe { (context.driver.table.set_access)(start, bytes, &raw const description, 1) };
        context.check("change what a mapping allows", answer)
    }

    /// Has the device only read from now on, in the whole of it.
    pub(in crate::device::cuda) fn seal(&self) -> Result<(), CudaError> {
        self.set_access(0, self.bytes(), Access::Read)
    }

    /// What the driver says that the device may do there: `None` where it cannot say.
    pub(in crate::device::cuda) fn access(&self, offset: u64) -> Result<Option<u64>, CudaError> {
        let context = &self.addresses.context;
        let _current = context.enter()?;
        let (mut flags, location) = (0, self.location());
        let at = self.addresses.start.plus(offset);
        // SAFETY: writes the flags to where the first pointer points, reads the location behind the second.
        let answer = unsafe { (context.driver.table.get_access)(&raw mut flags, &raw const location, at) };
        match answer {
            code::INVALID_VALUE | code::NOT_SUPPORTED => Ok(None),
            other => context.check("state what a mapping allows", other).map(|()| Some(flags)),
        }
    }

    /// A descriptor of the allocation for other processes: `None` where the device has no such thing.
    pub(in crate::device::cuda) fn export(&self) -> Result<Option<OwnedFd>, CudaError> {
        if !self.allocation.exportable {
            return Ok(None);
        }
        let context = &self.addresses.context;
        let _current = context.enter()?;
        let mut descriptor: libc::c_int = -1;
        let (handle, to) = (self.allocation.handle, (&raw mut descriptor).cast());
        // SAFETY: writes a descriptor, which is an int, to where the pointer points.
        let answer = unsafe { (context.driver.table.export_handle)(to, handle, HANDLE_TYPE_POSIX_FD, 0) };
        context.check("export a region", answer)?;
        if descriptor < 0 {
            return Ok(None);
        }
        // SAFETY: the driver has just made this descriptor, for the caller to keep.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Another mapping of the same allocation, readable and writable whatever this one is.
    #[cfg(feature = "gpu-check")]
    pub(in crate::device::cuda) fn again(&self) -> Result<Self, CudaError> {
        let context = &self.addresses.context;
        let _current = context.enter()?;
        let mut handle = 0;
        let start = usize::try_from(self.addresses.start.0).unwrap_or(usize::MAX);
        let pointer = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: writes a handle to where the first pointer points; the second is only looked at as an address.
        let answer = unsafe { (context.driver.table.retain_handle)(&raw mut handle, pointer) };
        context.check("find an allocation", answer)?;
        let allocation = Allocation { context: Arc::clone(context), handle, exportable: self.allocation.exportable };
        Self::map(context, allocation, self.addresses.bytes, Access::ReadWrite)
    }

    /// Maps an allocation that another process exported. The descriptor is not needed afterwards.
    pub(in crate::device::cuda) fn import(
        context: &Arc<Context>,
        descriptor: &impl AsRawFd,
        bytes: u64,
        access: Access,
    ) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let number = usize::try_from(descriptor.as_raw_fd()).unwrap_or(usize::MAX);
        let mut handle = 0;
        let from = std::ptr::without_provenance_mut(number);
        // SAFETY: writes a handle to where the first pointer points; the second is the descriptor itself, as documented.
        let answer = unsafe { (context.driver.table.import_handle)(&raw mut handle, from, HANDLE_TYPE_POSIX_FD) };
        context.check("import a region", answer)?;
        let allocation = Allocation { context: Arc::clone(context), handle, exportable: true };
        let bytes = usize::try_from(bytes).map_err(|_| context.out_of_memory("address so large a region"))?;
        Self::map(context, allocation, bytes, access)
    }

    fn location(&self) -> Location {
        Location { kind: LOCATION_TYPE_DEVICE, id: self.addresses.context.device() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Addresses { context, start, bytes } = &self.addresses;
        let (start, bytes) = (*start, *bytes);
        // SAFETY: this value's own mapping, which nobody uses any more: regions wait for their work before they go.
        let unmap = move |table: &Table| unsafe { (table.unmap)(start, bytes) };
        context.give_back(Gift::new("unmap a region", Of::Process, unmap));
    }
}
