//! Kernels: a text that the driver compiles, and the functions in it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::sync::Arc;

use super::kept::{Gift, Of};
use super::table::Table;
use super::types::{Address, Handle, JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES, RawFunction, RawModule};
use super::{Context, CudaError, Stream};

/// Bytes kept of what the driver's compiler says.
const LOG_BYTES: usize = 4096;

/// A text of kernels, compiled for the device.
pub(in crate::device::cuda) struct Module {
    pub(super) context: Arc<Context>,
    pub(super) raw: RawModule,
    name: &'static str,
}

/// No addresses.
impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.name)
    }
}

// SAFETY: a module may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: and by several at once.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver compile a text of PTX.
    pub(in crate::device::cuda) fn load(
        context: &Arc<Context>,
        name: &'static str,
        text: &str,
    ) -> Result<Arc<Self>, CudaError> {
        let refused = |reason: &str, log: &str| context.kernels_refused(name, reason, log);
        let text = CString::new(text).map_err(|_| refused("a zero byte", "the text ends early"))?;
        let _current = context.enter()?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options: [c_int; 2] = [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let (mut raw, count) = (std::ptr::null_mut(), 2);
        let (image, keys, values) = (text.as_ptr().cast(), options.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: the text ends with a zero; two options are given, with a buffer and its length.
        let answer = unsafe { (context.driver.table.module_load)(&raw mut raw, image, count, keys, values) };
        match context.check("compile the kernels", answer) {
            Ok(()) => Ok(Arc::new(Self { context: Arc::clone(context), raw, name })),
            Err(CudaError::Refused { name: reason, text, .. }) => {
                let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
                let log = log.split_whitespace().collect::<Vec<_>>().join(" ");
                Err(refused(&reason, if log.is_empty() { &text } else { &log }))
            }
            Err(other) => Err(other),
        }
    }

    /// Finds a kernel.
    pub(in crate::device::cuda) fn function(self: &Arc<Self>, name: &'static CStr) -> Result<Function, CudaError> {
        let _current = self.context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a function to where the pointer points; the name ends with a zero.
        let answer = unsafe { (self.context.driver.table.module_function)(&raw mut raw, self.raw, name.as_ptr()) };
        self.context.check("find a kernel", answer)?;
        Ok(Function { module: Arc::clone(self), raw })
    }

    /// Finds a variable: where it is on the device, and its length in bytes. It lives as long as the module.
    pub(in crate::device::cuda) fn global(&self, name: &'static CStr) -> Result<(Address, usize), CudaError> {
        let _current = self.context.enter()?;
        let (mut start, mut bytes) = (Address(0), 0);
        let find = self.context.driver.table.module_global;
        // SAFETY: writes an address and a length to where the pointers point; the name ends with a zero.
        let answer = unsafe { find(&raw mut start, &raw mut bytes, self.raw, name.as_ptr()) };
        self.context.check("find a kernel's variable", answer).map(|()| (start, bytes))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let raw = Handle(self.raw);
        // SAFETY: the module is this value's, and its functions hold it.
        let unload = move |table: &Table| unsafe { (table.module_unload)(raw.get()) };
        self.context.give_back(Gift::new("unload the kernels", Of::Context, unload));
    }
}

/// A kernel.
pub(in crate::device::cuda) struct Function {
    module: Arc<Module>,
    pub(super) raw: RawFunction,
}

/// No addresses.
impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("module", &self.module).finish_non_exhaustive()
    }
}

// SAFETY: a function may be launched from any thread.
unsafe impl Send for Function {}
// SAFETY: and by several at once.
unsafe impl Sync for Function {}

impl Function {
    /// Has `blocks` groups of `threads` threads run it, in the order of the stream. The context is entered.
    ///
    /// # Safety
    /// `parameters` point to values of the kernel's parameters, in order; what the kernel reads and writes is there, and
    /// nobody else uses it, until the stream has done it.
    pub(in crate::device::cuda) unsafe fn launch(
        &self,
        stream: &Stream,
        blocks: u32,
        threads: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let context = &self.module.context;
        let (launch, values, none) = (context.driver.table.launch, parameters.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the caller's; the driver copies the parameters before it returns.
        let answer = unsafe { launch(self.raw, blocks, 1, 1, threads, 1, 1, 0, stream.raw, values, none) };
        context.check("start a kernel", answer)
    }
}
