//! The C side: arguments by pointer, structures of `cuda.h`, result numbers.

use std::ffi::{CStr, c_char};

use super::Answer;

/// Result numbers of `cuda.h` that the emulator gives.
#[allow(missing_docs, reason = "the names are those of cuda.h without their prefix")]
pub(crate) mod code {
    pub(crate) const INVALID_VALUE: u32 = 1;
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const NOT_INITIALIZED: u32 = 3;
    pub(crate) const DEVICE_UNAVAILABLE: u32 = 46;
    pub(crate) const NO_DEVICE: u32 = 100;
    pub(crate) const INVALID_DEVICE: u32 = 101;
    pub(crate) const INVALID_IMAGE: u32 = 200;
    pub(crate) const INVALID_CONTEXT: u32 = 201;
    pub(crate) const INVALID_PTX: u32 = 218;
    pub(crate) const UNSUPPORTED_PTX_VERSION: u32 = 222;
    pub(crate) const NO_BINARY_FOR_GPU: u32 = 209;
    pub(crate) const OPERATING_SYSTEM: u32 = 304;
    pub(crate) const INVALID_HANDLE: u32 = 400;
    pub(crate) const NOT_FOUND: u32 = 500;
    pub(crate) const NOT_READY: u32 = 600;
    pub(crate) const ILLEGAL_ADDRESS: u32 = 700;
    pub(crate) const LAUNCH_TIMEOUT: u32 = 702;
    pub(crate) const ILLEGAL_INSTRUCTION: u32 = 715;
    pub(crate) const ALREADY_REGISTERED: u32 = 712;
    pub(crate) const NOT_REGISTERED: u32 = 713;
    pub(crate) const MISALIGNED_ADDRESS: u32 = 716;
    pub(crate) const LAUNCH_FAILED: u32 = 719;
    pub(crate) const NOT_SUPPORTED: u32 = 801;
    pub(crate) const UNKNOWN: u32 = 999;

    /// Number, name and words of `cuGetErrorName` and `cuGetErrorString`.
    pub(crate) const TEXTS: &[(u32, &str, &str)] = &[
        (0, "CUDA_SUCCESS\0", "no error\0"),
        (INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE\0", "an argument is out of range\0"),
        (OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY\0", "no memory left on the device\0"),
        (NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED\0", "cuInit was not called\0"),
        (34, "CUDA_ERROR_STUB_LIBRARY\0", "this libcuda is a stub\0"),
        (DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE\0", "another process has the device\0"),
        (NO_DEVICE, "CUDA_ERROR_NO_DEVICE\0", "no device found\0"),
        (INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE\0", "no such device\0"),
        (INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE\0", "the image is no PTX text\0"),
        (INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT\0", "no context is current, or it is gone\0"),
        (NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU\0", "the image is for newer hardware\0"),
        (214, "CUDA_ERROR_ECC_UNCORRECTABLE\0", "memory has an error that ECC cannot correct\0"),
        (INVALID_PTX, "CUDA_ERROR_INVALID_PTX\0", "the PTX text does not compile\0"),
        (UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION\0", "the PTX text is newer than the driver\0"),
        (OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM\0", "a call of the operating system failed\0"),
        (INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE\0", "no such handle\0"),
        (NOT_FOUND, "CUDA_ERROR_NOT_FOUND\0", "no such name\0"),
        (NOT_READY, "CUDA_ERROR_NOT_READY\0", "not done yet\0"),
        (ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS\0", "an access to memory was refused\0"),
        (LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT\0", "the launch took too long\0"),
        (ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED\0", "the memory is registered already\0"),
        (NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED\0", "the memory is not registered\0"),
        (ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION\0", "an illegal instruction was met\0"),
        (MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS\0", "a misaligned address was met\0"),
        (LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED\0", "the launch failed\0"),
        (NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED\0", "not supported\0"),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY\0", "the system is not yet started\0"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH\0", "library and kernel module differ\0"),
        (UNKNOWN, "CUDA_ERROR_UNKNOWN\0", "unknown error\0"),
    ];
}

/// A pointer through which a call answers. Null, or valid for one `T`: that is what the caller of a driver call promises.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(pub(crate) *mut T);

impl<T> Out<T> {
    /// Writes the answer; null is an invalid value.
    pub(crate) fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: not null, and the ABI makes the caller promise that it can be written.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the answer where one is wanted.
    pub(crate) fn offer(self, value: T) {
        let _: Answer = self.set(value);
    }
}

/// A pointer to arguments. Null, or valid for as many `T` as the call's other arguments say.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct In<T>(pub(crate) *const T);

impl<T: Copy> In<T> {
    /// The only argument, or the first.
    pub(crate) fn get(self) -> Result<T, u32> {
        self.at(0)
    }

    /// Argument `index`: the caller of the driver call promised that there are so many.
    pub(crate) fn at(self, index: usize) -> Result<T, u32> {
        if self.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: not null, and the ABI makes the caller promise that `index` is inside.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

/// The bytes of a C string, copied.
pub(crate) fn text(pointer: *const c_char) -> Result<String, u32> {
    if pointer.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: not null, and the ABI makes the caller promise a string that ends in NUL.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(str::to_owned).map_err(|_| code::INVALID_IMAGE)
}

/// Writes a C string into a buffer of `room` bytes, cut to fit, always with its NUL.
pub(crate) fn fill(buffer: *mut c_char, room: usize, text: &str) -> Answer {
    let Some(most) = room.checked_sub(1) else { return Err(code::INVALID_VALUE) };
    if buffer.is_null() {
        return Err(code::INVALID_VALUE);
    }
    let length = text.len().min(most);
    // SAFETY: not null, `length` is less than `room`, and the caller promises `room` bytes.
    unsafe { copy(buffer.cast(), text.as_ptr(), length) };
    // SAFETY: `length` is less than `room`.
    unsafe { buffer.add(length).write(0) };
    Ok(())
}

/// Copies bytes that may overlap.
///
/// # Safety
/// `to` is valid for writes and `from` for reads of `bytes` bytes.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, bytes) }
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// 1 device, 2 host.
    pub kind: u32,
    /// Ordinal.
    pub id: i32,
}

/// `CUmemAllocationProp`, 32 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AllocationProp {
    /// 1 pinned.
    pub kind: u32,
    /// 0 none, 1 POSIX file descriptor.
    pub requested_handle_types: u32,
    /// Where.
    pub location: Location,
    /// Null on Linux.
    pub win32: u64,
    /// Compression, RDMA, usage, reserved.
    pub flags: [u8; 8],
}

/// `CUmemAccessDesc`, 12 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AccessDesc {
    /// For whom.
    pub location: Location,
    /// 0 none, 1 read, 3 read and write.
    pub flags: u32,
}

/// `CUDA_MEMCPY3D`, 200 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Memcpy3d {
    /// X in bytes, Y, Z, level of detail.
    pub src_place: [usize; 4],
    /// 1 host, 2 device.
    pub src_memory_type: u32,
    /// Host address.
    pub src_host: u64,
    /// Device address.
    pub src_device: u64,
    /// Array; reserved.
    pub src_array: [u64; 2],
    /// Pitch, height.
    pub src_pitch: [usize; 2],
    /// X in bytes, Y, Z, level of detail.
    pub dst_place: [usize; 4],
    /// 1 host, 2 device.
    pub dst_memory_type: u32,
    /// Host address.
    pub dst_host: u64,
    /// Device address.
    pub dst_device: u64,
    /// Array; reserved.
    pub dst_array: [u64; 2],
    /// Pitch, height.
    pub dst_pitch: [usize; 2],
    /// Bytes.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Slices.
    pub depth: usize,
}

const _: () = assert!(
    size_of::<AllocationProp>() == 32 && size_of::<AccessDesc>() == 12 && size_of::<Memcpy3d>() == 200,
    "sizes of cuda.h"
);
