//! Small helpers' memory: on the device, and pinned in main memory.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use zeroize::Zeroize;

use super::kept::{Gift, Of};
use super::table::Table;
use super::types::{Address, HostStart};
use super::{Context, CudaError, Stream};

/// Writable memory on the device, for scratch values; never for weights.
#[derive(Debug)]
pub(in crate::device::cuda) struct DeviceBuffer {
    context: Arc<Context>,
    start: Address,
    bytes: usize,
}

impl DeviceBuffer {
    /// Aligned to 256 bytes.
    pub(in crate::device::cuda) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut start = Address(0);
        // SAFETY: writes an address to where the pointer points.
        let answer = unsafe { (context.driver.table.alloc)(&raw mut start, bytes.max(1)) };
        context.check("allocate scratch memory", answer)?;
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    pub(in crate::device::cuda) fn start(&self) -> Address {
        self.start
    }

    pub(in crate::device::cuda) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let start = self.start;
        // SAFETY: this value's own, and its users have waited for their work.
        let free = move |table: &Table| unsafe { (table.free)(start) };
        self.context.give_back(Gift::new("free scratch memory", Of::Context, free));
    }
}

/// Pinned main memory: what the device's copy engines read and write. Zero at first, and wiped at the end.
pub(in crate::device::cuda) struct PinnedBuffer {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

/// No addresses.
impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

// SAFETY: plain memory of this value's own.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    pub(in crate::device::cuda) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes an address to where the pointer points.
        let answer = unsafe { (context.driver.table.host_alloc)(&raw mut start, bytes.max(1), 0) };
        context.check("pin main memory", answer)?;
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(context.out_of_memory("pin main memory"));
        };
        // SAFETY: so many bytes were just allocated.
        unsafe { std::ptr::write_bytes(start.as_ptr(), 0, bytes) };
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    pub(in crate::device::cuda) fn bytes(&self) -> &[u8] {
        // SAFETY: this value's own memory, set at first and for ever. Copies into it are waited for before it is looked
        // at: that is the contract of `Stream::copy_to_host`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub(in crate::device::cuda) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Copies the first `bytes` bytes to the device, in the order of the stream.
    ///
    /// # Safety
    /// The buffer is neither written nor dropped, and the device's memory neither unmapped nor otherwise used, until the
    /// stream has done it. `to` is writable memory of the device of that size.
    pub(in crate::device::cuda) unsafe fn copy_to(
        &self,
        to: Address,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: inside this buffer; for the rest the caller answers.
        unsafe { stream.copy_to_device(to, self.start.as_ptr().cast_const(), bytes.min(self.bytes)) }
    }

    /// Copies `bytes` bytes from the device to the start of the buffer, in the order of the stream.
    ///
    /// # Safety
    /// The buffer is neither used nor dropped until the stream has done it. `from` is readable memory of that size.
    pub(in crate::device::cuda) unsafe fn copy_from(
        &mut self,
        from: Address,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: inside this buffer; for the rest the caller answers.
        unsafe { stream.copy_to_host(self.start.as_ptr(), from, bytes.min(self.bytes)) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        let (start, bytes) = (HostStart::new(self.start.as_ptr()), self.bytes);
        // Not before copies from and to it are done.
        // SAFETY: this value's own memory, which is there until it is freed.
        let wipe = move || unsafe { std::slice::from_raw_parts_mut(start.get(), bytes) }.zeroize();
        // SAFETY: this value's own; its users have waited for their work.
        let free = move |table: &Table| unsafe { (table.host_free)(start.get().cast()) };
        self.context.give_back(Gift::new("unpin main memory", Of::Context, free).after(wipe));
    }
}
