//! Queues of work on a device, and marks in them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::kept::{Gift, Of};
use super::table::Table;
use super::types::{Address, Handle, RawEvent, RawStream, STREAM_NON_BLOCKING};
use super::{Context, CudaError};

/// A queue of work. All of its calls need the context to be entered.
pub(in crate::device::cuda) struct Stream {
    pub(super) context: Arc<Context>,
    pub(super) raw: RawStream,
}

/// No addresses.
impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

// SAFETY: a stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: and by several at once.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the lowest priority that the device has.
    pub(in crate::device::cuda) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let current = context.enter()?;
        let (priority, _) = context.priorities()?;
        drop(current);
        Self::with_priority(context, priority)
    }

    /// A stream of a priority: the lower the number, the higher the priority; 0 is what streams have by default.
    pub(in crate::device::cuda) fn with_priority(context: &Arc<Context>, priority: i32) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a stream to where the pointer points.
        let answer = unsafe { (context.driver.table.stream_create)(&raw mut raw, STREAM_NON_BLOCKING, priority) };
        context.check("make a stream", answer)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Waits until all that was asked for is done.
    ///
    /// After an error as well: what is under way uses memory that its owner gives back next. Where it cannot be waited for,
    /// the context is given up, and nothing of it is given back before it could be.
    pub(in crate::device::cuda) fn wait(&self, step: &'static str) -> Result<(), CudaError> {
        // Entered here too, since a context that is lost is entered by nobody else.
        let _current = self.context.push();
        let ask = || {
            // SAFETY: the stream is this value's.
            let answer = unsafe { (self.context.driver.table.stream_synchronize)(self.raw) };
            self.context.check(step, answer)
        };
        let first = ask();
        if first.is_err() {
            ask().map_err(|error| self.context.give_up(step, error, self.raw))?;
        }
        self.context.waited_for(self.raw);
        first
    }

    /// What is asked for from now on waits for a mark in another stream.
    pub(in crate::device::cuda) fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both are alive; the driver keeps what it needs of the event.
        let answer = unsafe { (self.context.driver.table.stream_wait)(self.raw, event.raw, 0) };
        self.context.check("wait for a copy", answer)
    }

    /// Copies to the device.
    ///
    /// # Safety
    /// `from` is readable until the stream has done it, `to` is writable memory of the device of that size.
    pub(in crate::device::cuda) unsafe fn copy_to_device(
        &self,
        to: Address,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        let answer = unsafe { (self.context.driver.table.to_device)(to, from.cast(), bytes, self.raw) };
        self.context.check("copy to the GPU", answer)
    }

    /// Copies from the device.
    ///
    /// # Safety
    /// `to` is writable, and nobody looks at it, until the stream has done it; `from` is readable memory of that size.
    pub(in crate::device::cuda) unsafe fn copy_to_host(
        &self,
        to: *mut u8,
        from: Address,
        bytes: usize,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        let answer = unsafe { (self.context.driver.table.to_host)(to.cast(), from, bytes, self.raw) };
        self.context.check("copy from the GPU", answer)
    }

    /// Fills the device's memory with a word, again and again. `start` is a multiple of 4, and of a last piece of less than 4
    /// bytes nothing is written.
    ///
    /// # Safety
    /// As for `wipe`.
    pub(in crate::device::cuda) unsafe fn fill(
        &self,
        start: Address,
        bytes: usize,
        word: u32,
    ) -> Result<(), CudaError> {
        let words = bytes.checked_div(size_of::<u32>()).unwrap_or(0);
        if words == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        let answer = unsafe { (self.context.driver.table.set_words)(start, word, words, self.raw) };
        self.context.check("fill memory of the GPU", answer)
    }

    /// Overwrites the device's memory with zeros.
    ///
    /// # Safety
    /// `start` is writable memory of that size, which nobody else uses, until the stream has done it.
    pub(in crate::device::cuda) unsafe fn wipe(&self, start: Address, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        let answer = unsafe { (self.context.driver.table.set)(start, 0, bytes, self.raw) };
        self.context.check("wipe memory of the GPU", answer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let raw = Handle(self.raw);
        // SAFETY: the stream is this value's; the driver finishes what is under way.
        let destroy = move |table: &Table| unsafe { (table.stream_destroy)(raw.get()) };
        self.context.give_back(Gift::new("end a stream", Of::Context, destroy));
    }
}

/// A mark in a stream, with its time.
pub(in crate::device::cuda) struct Event {
    context: Arc<Context>,
    raw: RawEvent,
}

/// No addresses.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: and by several at once.
unsafe impl Sync for Event {}

impl Event {
    pub(in crate::device::cuda) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes an event to where the pointer points.
        let answer = unsafe { (context.driver.table.event_create)(&raw mut raw, 0) };
        context.check("make an event", answer)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Sets the mark behind all that was asked of the stream.
    pub(in crate::device::cuda) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are alive.
        let answer = unsafe { (self.context.driver.table.event_record)(self.raw, stream.raw) };
        self.context.check("mark a stream", answer)
    }

    /// Waits until the mark is reached.
    pub(in crate::device::cuda) fn wait(&self, step: &'static str) -> Result<(), CudaError> {
        // SAFETY: the event is this value's.
        let answer = unsafe { (self.context.driver.table.event_synchronize)(self.raw) };
        self.context.check(step, answer)
    }

    /// Time on the device from an earlier mark to this one; both were reached.
    pub(in crate::device::cuda) fn since(&self, earlier: &Self) -> Result<Duration, CudaError> {
        let mut milliseconds = 0.0_f32;
        // SAFETY: writes a number to where the pointer points; both events are alive.
        let answer = unsafe { (self.context.driver.table.event_elapsed)(&raw mut milliseconds, earlier.raw, self.raw) };
        self.context.check("state how long a scan took", answer)?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1000.0).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let raw = Handle(self.raw);
        // SAFETY: the event is this value's.
        let destroy = move |table: &Table| unsafe { (table.event_destroy)(raw.get()) };
        self.context.give_back(Gift::new("end an event", Of::Context, destroy));
    }
}
