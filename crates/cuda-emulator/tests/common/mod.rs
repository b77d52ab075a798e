//! The driver's calls as a C program sees them, from the emulator's library.
#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::{CString, c_void};
use std::path::Path;

/// The library, loaded.
#[derive(Clone, Copy)]
pub(crate) struct Driver(*mut c_void);

// SAFETY: a handle of the loader, good in every thread.
unsafe impl Send for Driver {}
// SAFETY: the same.
unsafe impl Sync for Driver {}

impl Driver {
    /// Loads the library.
    pub(crate) fn load(path: &Path) -> Self {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated path.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "{}", path.display());
        Self(library)
    }

    /// The address of a call, or null.
    pub(crate) fn symbol(self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: an open library and a NUL-terminated name.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }

    /// Calls with integers and pointers, each in a register or on the stack as 64 bits.
    pub(crate) fn call(self, name: &str, arguments: &[u64]) -> u32 {
        let symbol = self.symbol(name);
        assert!(!symbol.is_null(), "{name}");
        let mut a = [0_u64; 12];
        a[..arguments.len()].copy_from_slice(arguments);
        type Call = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u32;
        // SAFETY: a call of the driver; arguments beyond its own are ignored by the C convention.
        unsafe {
            let call: Call = std::mem::transmute(symbol);
            call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11])
        }
    }

    /// Calls and expects success.
    pub(crate) fn ok(self, name: &str, arguments: &[u64]) {
        assert_eq!(self.call(name, arguments), 0, "{name} {arguments:x?}");
    }

    /// Calls with a place for one answer in front of the arguments.
    pub(crate) fn get(self, name: &str, arguments: &[u64]) -> u64 {
        let mut answer = 0_u64;
        let all: Vec<u64> = std::iter::once((&raw mut answer) as u64).chain(arguments.iter().copied()).collect();
        self.ok(name, &all);
        answer
    }

    /// Starts, and makes the primary context of device 0 current.
    pub(crate) fn start(self) -> u64 {
        self.ok("cuInit", &[0]);
        let context = self.get("cuDevicePrimaryCtxRetain", &[0]);
        self.ok("cuCtxSetCurrent", &[context]);
        context
    }

    /// Ends what `start` began.
    pub(crate) fn stop(self) {
        self.ok("cuCtxSetCurrent", &[0]);
        self.ok("cuDevicePrimaryCtxRelease_v2", &[0]);
    }

    /// Makes, reserves and maps `bytes`, without access yet: handle and address.
    pub(crate) fn map(self, bytes: u64) -> (u64, u64) {
        let handle = self.get("cuMemCreate", &[bytes, prop().as_ptr() as u64, 0]);
        let address = self.get("cuMemAddressReserve", &[bytes, 0, 0, 0]);
        self.ok("cuMemMap", &[address, bytes, 0, handle, 0]);
        (handle, address)
    }

    /// Sets access: 0, 1 or 3.
    pub(crate) fn access(self, address: u64, bytes: u64, flags: u32) -> u32 {
        let desc = [1_u32, 0, flags];
        self.call("cuMemSetAccess", &[address, bytes, desc.as_ptr() as u64, 1])
    }

    /// Undoes `map`.
    pub(crate) fn unmap(self, handle: u64, address: u64, bytes: u64) {
        self.ok("cuMemUnmap", &[address, bytes]);
        self.ok("cuMemAddressFree", &[address, bytes]);
        self.ok("cuMemRelease", &[handle]);
    }

    /// Memory of the device with these bytes in it.
    pub(crate) fn upload(self, bytes: &[u8]) -> u64 {
        let address = self.get("cuMemAlloc_v2", &[bytes.len() as u64]);
        self.ok("cuMemcpyHtoD_v2", &[address, bytes.as_ptr() as u64, bytes.len() as u64]);
        address
    }

    /// Bytes of the device.
    pub(crate) fn download(self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.ok("cuMemcpyDtoH_v2", &[out.as_mut_ptr() as u64, address, bytes as u64]);
        out
    }

    /// Loads a module, or gives the error and its log.
    pub(crate) fn module(self, text: &str) -> Result<u64, (u32, String)> {
        let image = CString::new(text).unwrap();
        let mut log = vec![0_u8; 4096];
        let (options, values) = ([5_u32, 6], [log.as_mut_ptr() as u64, log.len() as u64]);
        let mut module = 0_u64;
        let code = self.call(
            "cuModuleLoadDataEx",
            &[(&raw mut module) as u64, image.as_ptr() as u64, 2, options.as_ptr() as u64, values.as_ptr() as u64],
        );
        let end = log.iter().position(|&byte| byte == 0).unwrap();
        let words = String::from_utf8_lossy(&log[..end]).into_owned();
        if code == 0 { Ok(module) } else { Err((code, words)) }
    }

    /// A kernel of a module.
    pub(crate) fn function(self, module: u64, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        self.get("cuModuleGetFunction", &[module, name.as_ptr() as u64])
    }

    /// Launches with parameters of at most 64 bits each.
    pub(crate) fn launch(self, function: u64, grid: u32, block: u32, stream: u64, params: &[u64]) -> u32 {
        let pointers: Vec<u64> = params.iter().map(|param| std::ptr::from_ref(param) as u64).collect();
        let (grid, block) = (u64::from(grid), u64::from(block));
        self.call("cuLaunchKernel", &[function, grid, 1, 1, block, 1, 1, 0, stream, pointers.as_ptr() as u64, 0])
    }
}

/// Properties of pinned memory of device 0 that can be exported.
pub(crate) fn prop() -> [u32; 8] {
    [1, 1, 1, 0, 0, 0, 0, 0]
}

/// `.entry` around instructions: a header, parameters `out` and `in`, registers by number.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_70\n.address_size 64\n.visible .entry test(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %rd<40>; .reg .f64 %fd<20>;\n\
         ld.param.u64 %rd38, [out]; ld.param.u64 %rd39, [in];\n{body}\nret;\n}}\n"
    )
}
