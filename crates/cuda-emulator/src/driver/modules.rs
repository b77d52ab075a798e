//! Modules: PTX text in, functions and variables out.

use std::collections::HashMap;
use std::ffi::c_char;
use std::sync::Arc;

use super::abi::{AllocationProp, In, Location, Out, code, fill, text};
use super::calls::driver_calls;
use super::{Origin, State};
use crate::ptx::{self, Kernel, PtxError};
use crate::report::Kind;

/// A loaded module.
#[derive(Debug)]
pub(crate) struct LoadedModule {
    pub(crate) origin: Origin,
    kernels: HashMap<String, (Arc<Kernel>, u64)>,
    /// Addresses and sizes of its variables.
    variables: HashMap<String, (u64, u64)>,
    /// Where its memory is mapped.
    mapped: Vec<u64>,
}

/// A kernel of a module.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) device: usize,
    pub(crate) module: u64,
    ptx_version: i32,
}

/// Numbers of `CUjit_option`.
const INFO_LOG: u32 = 3;
const INFO_LOG_BYTES: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

/// Where a log is wanted: the buffer, its size, and the place of the size among the options' values.
#[derive(Debug, Default, Clone, Copy)]
struct Log {
    buffer: u64,
    room: u64,
    size_at: Option<usize>,
}

impl State {
    fn compile(&mut self, device: usize, image: &str) -> Result<LoadedModule, (u32, PtxError)> {
        let at_start = |message: String| PtxError { line: 1, message };
        let invalid = |error| (code::INVALID_PTX, error);
        let parsed = ptx::parse(image).map_err(invalid)?;
        let ((major, minor), target) = parsed.needs();
        let newest = newest_ptx(self.plan.driver_version);
        if (major, minor) > newest {
            let message = format!("PTX {major}.{minor} is newer than {}.{}, the driver's", newest.0, newest.1);
            return Err((code::UNSUPPORTED_PTX_VERSION, at_start(message)));
        }
        let (own_major, own_minor) = self.plan.devices[device].compute_capability;
        if i64::from(target) > i64::from(own_major) * 10 + i64::from(own_minor) {
            let message = format!("the text is for sm_{target}, the device is sm_{own_major}{own_minor}");
            return Err((code::NO_BINARY_FOR_GPU, at_start(message)));
        }
        let mut variables = HashMap::new();
        let mut mapped = Vec::new();
        for (image, constant) in [(parsed.globals(), false), (parsed.constants(), true)] {
            if constant && image.bytes.len() > 64 << 10 {
                return Err(invalid(at_start("more than 64 KiB of .const".to_owned())));
            }
            if image.bytes.is_empty() {
                continue;
            }
            let start = self
                .map_image(device, &image.bytes)
                .map_err(|code| (code, at_start("no memory for the module's variables".to_owned())))?;
            mapped.push(start);
            variables.extend(image.places.into_iter().map(|(name, (at, bytes))| (name, (start + at, bytes))));
        }
        let addresses: HashMap<String, u64> =
            variables.iter().map(|(name, (address, _))| (name.clone(), *address)).collect();
        let kernels = match parsed.kernels(&addresses) {
            Ok(kernels) => kernels,
            Err(error) => {
                for start in mapped {
                    self.unmap(start);
                }
                return Err(invalid(error));
            }
        };
        let version = i32::try_from(major * 10 + minor).unwrap_or(0);
        let module = self.fresh_handle();
        let kernels = kernels
            .into_iter()
            .map(|kernel| {
                let handle = self.fresh_handle();
                let function = Function { kernel: Arc::clone(&kernel), device, module, ptx_version: version };
                self.functions.insert(handle, function);
                (kernel.name.clone(), (kernel, handle))
            })
            .collect();
        Ok(LoadedModule { origin: self.origin(device), kernels, variables, mapped })
    }

    /// Memory of a module, filled. The host may write to constants too.
    fn map_image(&mut self, device: usize, bytes: &[u8]) -> Result<u64, u32> {
        let location = Location { kind: 1, id: i32::try_from(device).unwrap_or(0) };
        let prop = AllocationProp { kind: 1, requested_handle_types: 0, location, win32: 0, flags: [0; 8] };
        let start = self.space.arena.take(bytes.len() as u64, 256)?;
        let id = self.new_piece(Kind::Module, device, bytes.len() as u64, prop)?;
        self.map_piece(start, id, 3);
        let piece = &self.space.pieces[&id];
        // SAFETY: a piece of just that size, which nobody else uses yet.
        unsafe { super::abi::copy(piece.pages.host, bytes.as_ptr(), bytes.len()) };
        Ok(start)
    }

    /// Lets a module's memory and functions go.
    pub(super) fn unload(&mut self, handle: u64) {
        let Some(module) = self.modules.remove(&handle) else { return };
        for start in module.mapped {
            self.unmap(start);
        }
        for (_, function) in module.kernels.values() {
            self.functions.remove(function);
        }
    }
}

/// The newest PTX that a driver of this version reads: 7.8 came with 11.8, 8.0 with 12.0, 9.0 with 13.0.
fn newest_ptx(driver: i32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    let minor = u32::try_from(minor).unwrap_or(0);
    match major {
        ..11 => (6, 5),
        // 7.0 came with 11.0, and each release added one.
        11 => (7, minor.min(8)),
        12 => (8, minor),
        13 => (9, minor),
        _ => (u32::MAX, 0),
    }
}

driver_calls! {
    /// Compiles and loads PTX text.
    fn cuModuleLoadDataEx(
        state, module: Out<u64>, image: *const c_char, count: u32, options: In<u32>, values: In<u64>,
    ) {
        let device = state.device()?;
        let (mut info, mut error) = (Log::default(), Log::default());
        for index in 0..count as usize {
            let value = values.at(index)?;
            match options.at(index)? {
                INFO_LOG => info.buffer = value,
                INFO_LOG_BYTES => (info.room, info.size_at) = (value & 0xffff_ffff, Some(index)),
                ERROR_LOG => error.buffer = value,
                ERROR_LOG_BYTES => (error.room, error.size_at) = (value & 0xffff_ffff, Some(index)),
                option if option <= 32 => {}
                _ => return Err(code::INVALID_VALUE),
            }
        }
        let image = text(image)?;
        if !image.contains(".version") {
            return Err(code::INVALID_IMAGE);
        }
        let say = |log: Log, words: &str| {
            if log.buffer != 0 && log.room > 0 {
                // The buffer and its size are the caller's.
                let _: super::Answer = fill(log.buffer as *mut c_char, log.room as usize, words);
            }
            if let Some(index) = log.size_at {
                let written = (words.len() as u64).min(log.room);
                Out(values.0.cast_mut().wrapping_add(index)).offer(written);
            }
        };
        match state.compile(device, &image) {
            Ok(loaded) => {
                say(info, "");
                say(error, "");
                let handle = state.fresh_handle();
                let functions: Vec<u64> = loaded.kernels.values().map(|(_, function)| *function).collect();
                for function in functions {
                    if let Some(function) = state.functions.get_mut(&function) {
                        function.module = handle;
                    }
                }
                state.modules.insert(handle, loaded);
                module.set(handle)
            }
            Err((code, PtxError { line, message })) => {
                say(info, "");
                say(error, &format!("ptx application ptx input, line {line}; error: {message}"));
                Err(code)
            }
        }
    }

    /// Unloads a module.
    fn cuModuleUnload(state, module: u64) release(module) {
        let device = state.device()?;
        if !state.modules.contains_key(&module) {
            return Err(state.unknown(module, Kind::Module, true));
        }
        // The driver waits for kernels that still run.
        for stream in state.streams_of(device) {
            state.drain(stream)?;
        }
        state.unload(module);
        state.gone.insert((Kind::Module, module));
        Ok(())
    }

    /// A kernel of a module.
    fn cuModuleGetFunction(state, function: Out<u64>, module: u64, name: *const c_char) {
        state.device()?;
        let name = text(name)?;
        let Some(known) = state.modules.get(&module) else {
            return Err(state.unknown(module, Kind::Module, false));
        };
        let (_, handle) = known.kernels.get(&name).ok_or(code::NOT_FOUND)?;
        function.set(*handle)
    }

    /// A variable of a module: its address and size.
    fn cuModuleGetGlobal_v2(state, address: Out<u64>, bytes: Out<usize>, module: u64, name: *const c_char) {
        state.device()?;
        let name = text(name)?;
        let Some(known) = state.modules.get(&module) else {
            return Err(state.unknown(module, Kind::Module, false));
        };
        let &(start, size) = known.variables.get(&name).ok_or(code::NOT_FOUND)?;
        address.offer(start);
        bytes.offer(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(())
    }

    /// An attribute of a kernel.
    fn cuFuncGetAttribute(state, value: Out<i32>, attribute: i32, function: u64) {
        state.device()?;
        let Some(function) = state.functions.get(&function) else {
            return Err(state.unknown(function, Kind::Module, false));
        };
        let kernel = &function.kernel;
        let most = kernel.max_threads.or(kernel.exact_threads).map_or(1024, |size| size.iter().product());
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        value.set(match attribute {
            0 => number(most),
            1 => number(kernel.shared_bytes),
            2 => 0,
            3 => number(kernel.local_bytes),
            // The emulated machine has no limit of registers to tell of.
            4 => 32,
            5 | 6 => function.ptx_version,
            _ => return Err(code::INVALID_VALUE),
        })
    }
}
