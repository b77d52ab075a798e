//! A device's primary context: what makes a device usable by this process, shared with everybody else in it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::error::is_sticky;
use super::kept::{Gift, Kept, Of};
use super::table::Table;
use super::types::{self, Address, Code, Handle, Ordinal, PointerAttribute, RawStream, code};
use super::{CudaError, Driver, Which};

/// A device that this process may use.
pub(in crate::device::cuda) struct Context {
    pub(super) driver: Arc<Driver>,
    pub(super) raw: Handle,
    device: Ordinal,
    /// The result with which the context died; 0 while it lives.
    lost: AtomicI32,
    pub(super) kept: Kept,
}

/// No addresses.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Context {
    /// Opens a device.
    pub(in crate::device::cuda) fn open(driver: Arc<Driver>, device: Ordinal) -> Result<Arc<Self>, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes the context to where the pointer points.
        let answer = unsafe { (driver.table.context_retain)(&raw mut raw, device) };
        if answer != code::SUCCESS {
            return Err(driver.context_refused(device, answer));
        }
        Ok(Arc::new(Self { driver, raw: Handle(raw), device, lost: AtomicI32::new(0), kept: Kept::default() }))
    }

    pub(in crate::device::cuda) fn device(&self) -> Ordinal {
        self.device
    }

    /// What the device is called.
    pub(in crate::device::cuda) fn name(&self) -> Box<str> {
        Which(Some(self.device)).to_string().into()
    }

    /// Makes the context the current one of this thread, until the guard is dropped. Every call about streams, buffers and
    /// kernels needs that.
    ///
    /// # Errors
    /// [`CudaError::Lost`] from the moment that any call found the context dead: without asking the driver again.
    pub(in crate::device::cuda) fn enter(&self) -> Result<Current<'_>, CudaError> {
        match self.lost() {
            None => self.push(),
            Some(error) => Err(error),
        }
    }

    /// Whether the context died, or cannot be waited for.
    pub(in crate::device::cuda) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) != 0
    }

    /// How the context died, where it did.
    pub(in crate::device::cuda) fn lost(&self) -> Option<CudaError> {
        match self.lost.load(Ordering::Acquire) {
            0 => None,
            code if self.is_unsettled() => Some(self.driver.unsettled(self.device, "finish its work", code)),
            code => Some(self.driver.lost(self.device, "be used", code)),
        }
    }

    /// What is said of a failure: where the device could not be waited for after it, that.
    pub(in crate::device::cuda) fn told(&self, error: CudaError) -> CudaError {
        if self.is_unsettled() { self.lost().unwrap_or(error) } else { error }
    }

    pub(super) fn push(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: the context is retained until `self` is dropped, which the guard outlasts by no means.
        let answer = unsafe { (self.driver.table.context_push)(self.raw.get()) };
        self.check("use a GPU", answer)?;
        Ok(Current { context: self, _this_thread: PhantomData })
    }

    /// An error for every result but success. A dead context is remembered.
    pub(in crate::device::cuda) fn check(&self, step: &'static str, answer: Code) -> Result<(), CudaError> {
        if is_sticky(answer) && self.lost.compare_exchange(0, answer, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            tracing::error!(device = self.device, step, code = answer, "the GPU's context is dead");
        }
        self.driver.check_on(self.device, step, answer)
    }

    /// Nothing on the device is used any more from now on, as nobody can tell what a stream still does. Nothing is given back
    /// either, unless the driver's answer is that all work has ended.
    pub(super) fn give_up(&self, step: &'static str, error: CudaError, stream: RawStream) -> CudaError {
        let found = error.code().unwrap_or(code::OUT_OF_MEMORY);
        let _ = self.lost.compare_exchange(0, found, Ordering::AcqRel, Ordering::Relaxed);
        tracing::error!(device = self.device, step, %error, "the GPU's work cannot be waited for; the context is given up");
        if code::ends_all_work(found) {
            return error;
        }
        self.unsettle(stream);
        self.driver.unsettled(self.device, step, found)
    }

    /// There is no memory left on it, or none of that size at all.
    pub(in crate::device::cuda) fn out_of_memory(&self, step: &'static str) -> CudaError {
        CudaError::OutOfMemory { gpu: Which(Some(self.device)), step }
    }

    /// Its driver, or what it computes, is none to use these kernels with.
    pub(in crate::device::cuda) fn kernels_refused(&self, module: &'static str, reason: &str, log: &str) -> CudaError {
        CudaError::Kernels { gpu: Which(Some(self.device)), module, reason: reason.into(), log: log.into() }
    }

    /// Free and total bytes of the device's memory.
    pub(in crate::device::cuda) fn memory(&self) -> Result<(u64, u64), CudaError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers to where the pointers point.
        let answer = unsafe { (self.driver.table.memory_info)(&raw mut free, &raw mut total) };
        self.check("state its free memory", answer).map(|()| (free as u64, total as u64))
    }

    /// The numbers of the lowest and the highest priority that a stream may have. The context is entered.
    pub(in crate::device::cuda) fn priorities(&self) -> Result<(i32, i32), CudaError> {
        let (mut lowest, mut highest) = (0, 0);
        // SAFETY: writes two numbers to where the pointers point.
        let answer = unsafe { (self.driver.table.context_priorities)(&raw mut lowest, &raw mut highest) };
        self.check("state its priorities", answer).map(|()| (lowest, highest))
    }

    /// What the driver says about an address: `None` where it says that the question has no answer.
    pub(in crate::device::cuda) fn ask(
        &self,
        attribute: PointerAttribute,
        address: Address,
    ) -> Result<Option<u64>, CudaError> {
        let _current = self.enter()?;
        // Attributes are of 1, 4 and 8 bytes; what is not written stays zero.
        let mut value = [0_u8; 8];
        let pointer = value.as_mut_ptr().cast();
        // SAFETY: writes at most 8 bytes for every attribute of the list.
        let answer = unsafe { (self.driver.table.pointer_attribute)(pointer, attribute as i32, address) };
        match answer {
            code::INVALID_VALUE | code::NOT_SUPPORTED => Ok(None),
            other => self.check("state where memory is", other).map(|()| Some(u64::from_le_bytes(value))),
        }
    }

    /// What kind of allocation is mapped at an address: `None` where it is none of `cuMemCreate`.
    pub(in crate::device::cuda) fn allocation_at(
        &self,
        address: Address,
    ) -> Result<Option<types::AllocationProperties>, CudaError> {
        let _current = self.enter()?;
        let table = &self.driver.table;
        let mut handle = 0;
        let pointer = std::ptr::with_exposed_provenance_mut(usize::try_from(address.0).unwrap_or(usize::MAX));
        // SAFETY: writes a handle to where the first pointer points; the second is only looked at as an address.
        let answer = unsafe { (table.retain_handle)(&raw mut handle, pointer) };
        match answer {
            // Memory of a pool, and some of other processes, has a handle that nobody is given.
            code::INVALID_VALUE | code::NOT_PERMITTED | code::NOT_SUPPORTED => return Ok(None),
            other => self.check("find an allocation", other)?,
        }
        let mut properties = types::AllocationProperties::EMPTY;
        // SAFETY: writes the properties to where the pointer points; the handle is held.
        let answer = unsafe { (table.handle_properties)(&raw mut properties, handle) };
        // SAFETY: the handle was retained above, once.
        let release = move |table: &Table| unsafe { (table.release)(handle) };
        self.give_back(Gift::new("release an allocation", Of::Process, release));
        self.check("state what an allocation is", answer).map(|()| Some(properties))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.before_release();
        let release = || {
            // SAFETY: retained once, by `open`; a release that failed has not happened.
            let answer = unsafe { (self.driver.table.context_release)(self.device) };
            self.check("close a GPU", answer)
        };
        let released = release().or_else(|_| release());
        if let Err(error) = &released {
            tracing::error!(%error, "a GPU's context could not be given back");
        }
        if self.is_unsettled() {
            let (mut flags, mut active) = (0, 0);
            // SAFETY: writes two numbers to where the pointers point.
            let answer = unsafe { (self.driver.table.context_state)(self.device, &raw mut flags, &raw mut active) };
            // Others in this process may have it too, and then its work goes on.
            self.after_release(released.is_ok() && answer == code::SUCCESS && active == 0);
        }
    }
}

/// A context that is the current one of this thread.
#[derive(Debug)]
pub(in crate::device::cuda) struct Current<'a> {
    context: &'a Context,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: writes a context to where the pointer points; it is the one that `enter` pushed on this thread.
        let _ = unsafe { (self.context.driver.table.context_pop)(&raw mut popped) };
    }
}
