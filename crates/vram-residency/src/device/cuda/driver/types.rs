//! Types and numbers of the driver's interface, as `cuda.h` 12 has them.

use std::ffi::{c_int, c_uint, c_ushort, c_void};
use std::fmt;

/// What every call answers: 0, or an error's number.
pub(in crate::device::cuda) type Code = c_int;
pub(in crate::device::cuda) type Ordinal = c_int;
pub(super) type RawContext = *mut c_void;
pub(super) type RawStream = *mut c_void;
pub(super) type RawEvent = *mut c_void;
pub(super) type RawModule = *mut c_void;
pub(super) type RawFunction = *mut c_void;
pub(super) type RawHandle = u64;

/// A handle of the driver's to a context, a stream, an event or a module, for whichever thread comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle(pub(super) *mut c_void);

// SAFETY: a name that only the driver follows, and it takes a handle from any thread.
unsafe impl Send for Handle {}
// SAFETY: and from several at once.
unsafe impl Sync for Handle {}

impl Handle {
    /// For closures, which so keep the whole and not the pointer alone.
    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}

/// The start of memory of the host's that its user has given up: what is left is to wipe it and to hand it to the driver.
#[derive(Clone, Copy)]
pub(super) struct HostStart(*mut u8);

// SAFETY: nobody else has it any more, and neither the wiping nor the driver's call depends on the thread.
unsafe impl Send for HostStart {}

impl HostStart {
    pub(super) fn new(start: *mut u8) -> Self {
        Self(start)
    }

    pub(super) fn get(self) -> *mut u8 {
        self.0
    }
}

/// An address in a device's address space. Never printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(in crate::device::cuda) struct Address(pub(in crate::device::cuda) u64);

impl Address {
    /// So many bytes further on.
    pub(in crate::device::cuda) const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// No addresses.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}

/// Declares numbers of `cuda.h`, each with its name there, so that a test can hold them against the file itself.
macro_rules! numbers {
    ($($(#[$doc:meta])* $visible:vis const $name:ident: $kind:ty = $value:literal, $theirs:literal;)*) => {
        $($(#[$doc])* $visible const $name: $kind = $value;)*

        /// The numbers by their names in `cuda.h`.
        #[cfg(feature = "gpu-check")]
        pub(in crate::device::cuda) const NUMBERS: &[(&str, i64)] = &[$(($theirs, $name as i64)),*];
    };
}
#[cfg(feature = "gpu-check")]
pub(in crate::device::cuda) use numbers;

/// Results that are told apart; every other one is passed on with its name and text.
pub(in crate::device::cuda) mod code {
    use super::Code;

    numbers! {
        pub(in crate::device::cuda) const SUCCESS: Code = 0, "CUDA_SUCCESS";
        pub(in crate::device::cuda) const INVALID_VALUE: Code = 1, "CUDA_ERROR_INVALID_VALUE";
        pub(in crate::device::cuda) const OUT_OF_MEMORY: Code = 2, "CUDA_ERROR_OUT_OF_MEMORY";
        const DEINITIALIZED: Code = 4, "CUDA_ERROR_DEINITIALIZED";
        pub(in crate::device::cuda) const STUB_LIBRARY: Code = 34, "CUDA_ERROR_STUB_LIBRARY";
        pub(in crate::device::cuda) const DEVICE_UNAVAILABLE: Code = 46, "CUDA_ERROR_DEVICE_UNAVAILABLE";
        pub(in crate::device::cuda) const NO_DEVICE: Code = 100, "CUDA_ERROR_NO_DEVICE";
        pub(in crate::device::cuda) const INVALID_DEVICE: Code = 101, "CUDA_ERROR_INVALID_DEVICE";
        const ECC_UNCORRECTABLE: Code = 214, "CUDA_ERROR_ECC_UNCORRECTABLE";
        const NVLINK_UNCORRECTABLE: Code = 220, "CUDA_ERROR_NVLINK_UNCORRECTABLE";
        const CONTAINED: Code = 226, "CUDA_ERROR_CONTAINED";
        pub(in crate::device::cuda) const ILLEGAL_ADDRESS: Code = 700, "CUDA_ERROR_ILLEGAL_ADDRESS";
        const LAUNCH_TIMEOUT: Code = 702, "CUDA_ERROR_LAUNCH_TIMEOUT";
        const CONTEXT_IS_DESTROYED: Code = 709, "CUDA_ERROR_CONTEXT_IS_DESTROYED";
        const ASSERT: Code = 710, "CUDA_ERROR_ASSERT";
        const HARDWARE_STACK_ERROR: Code = 714, "CUDA_ERROR_HARDWARE_STACK_ERROR";
        const ILLEGAL_INSTRUCTION: Code = 715, "CUDA_ERROR_ILLEGAL_INSTRUCTION";
        const MISALIGNED_ADDRESS: Code = 716, "CUDA_ERROR_MISALIGNED_ADDRESS";
        pub(in crate::device::cuda) const INVALID_ADDRESS_SPACE: Code = 717, "CUDA_ERROR_INVALID_ADDRESS_SPACE";
        const INVALID_PC: Code = 718, "CUDA_ERROR_INVALID_PC";
        pub(in crate::device::cuda) const LAUNCH_FAILED: Code = 719, "CUDA_ERROR_LAUNCH_FAILED";
        const TENSOR_MEMORY_LEAK: Code = 721, "CUDA_ERROR_TENSOR_MEMORY_LEAK";
        pub(in crate::device::cuda) const NOT_PERMITTED: Code = 800, "CUDA_ERROR_NOT_PERMITTED";
        pub(in crate::device::cuda) const NOT_SUPPORTED: Code = 801, "CUDA_ERROR_NOT_SUPPORTED";
        const MPS_CLIENT_TERMINATED: Code = 810, "CUDA_ERROR_MPS_CLIENT_TERMINATED";
        const EXTERNAL_DEVICE: Code = 911, "CUDA_ERROR_EXTERNAL_DEVICE";
        pub(in crate::device::cuda) const UNKNOWN: Code = 999, "CUDA_ERROR_UNKNOWN";
    }

    /// Errors after which the device's context answers nothing any more: those of which `cuda.h` says that the process
    /// must end, uncorrectable memory and links, a driver or a context that is gone, and errors that nobody can name.
    pub(in crate::device::cuda) const STICKY: [Code; 18] = [
        DEINITIALIZED,
        ECC_UNCORRECTABLE,
        NVLINK_UNCORRECTABLE,
        CONTAINED,
        ILLEGAL_ADDRESS,
        LAUNCH_TIMEOUT,
        CONTEXT_IS_DESTROYED,
        ASSERT,
        HARDWARE_STACK_ERROR,
        ILLEGAL_INSTRUCTION,
        MISALIGNED_ADDRESS,
        INVALID_ADDRESS_SPACE,
        INVALID_PC,
        LAUNCH_FAILED,
        TENSOR_MEMORY_LEAK,
        MPS_CLIENT_TERMINATED,
        EXTERNAL_DEVICE,
        UNKNOWN,
    ];

    /// Whether the driver says with it that the device does nothing more for the context. Of the others after which the
    /// context answers nothing that is not known: the process has to end, and what the device does until then is not said.
    pub(in crate::device::cuda) fn ends_all_work(found: Code) -> bool {
        const UNSETTLED: [Code; 5] = [DEINITIALIZED, ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, EXTERNAL_DEVICE, UNKNOWN];
        STICKY.contains(&found) && !UNSETTLED.contains(&found)
    }
}

/// Attributes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(in crate::device::cuda) enum DeviceAttribute {
    Integrated = 18,
    ComputeMode = 20,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    VirtualMemoryManagement = 102,
    PosixFileDescriptor = 103,
    /// Since CUDA 12.4.
    MpsEnabled = 133,
}

/// Attributes of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(in crate::device::cuda) enum PointerAttribute {
    MemoryType = 2,
    HostPointer = 4,
    IsManaged = 8,
    DeviceOrdinal = 9,
    RangeStart = 11,
    RangeSize = 12,
    Mapped = 13,
    AccessFlags = 16,
    MemoryBlockId = 20,
}

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(in crate::device::cuda) enum Access {
    Read = 1,
    ReadWrite = 3,
}

numbers! {
    /// A device that takes no process.
    pub(super) const COMPUTE_MODE_PROHIBITED: c_int = 2, "CU_COMPUTEMODE_PROHIBITED";
    /// A device that takes one process at a time.
    pub(super) const COMPUTE_MODE_EXCLUSIVE_PROCESS: c_int = 3, "CU_COMPUTEMODE_EXCLUSIVE_PROCESS";
    /// Memory of a device, as [`PointerAttribute::MemoryType`] says it.
    pub(in crate::device::cuda) const MEMORY_TYPE_DEVICE: u64 = 2, "CU_MEMORYTYPE_DEVICE";
    pub(super) const HANDLE_TYPE_POSIX_FD: c_int = 1, "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR";
    pub(in crate::device::cuda) const ALLOCATION_TYPE_PINNED: c_int = 1, "CU_MEM_ALLOCATION_TYPE_PINNED";
    pub(in crate::device::cuda) const LOCATION_TYPE_DEVICE: c_int = 1, "CU_MEM_LOCATION_TYPE_DEVICE";
    pub(super) const GRANULARITY_MINIMUM: c_int = 0, "CU_MEM_ALLOC_GRANULARITY_MINIMUM";
    /// A stream that does not wait for the default one.
    pub(super) const STREAM_NON_BLOCKING: c_uint = 1, "CU_STREAM_NON_BLOCKING";
    /// Options of the just-in-time compiler: where its errors go, and how many bytes fit there.
    pub(super) const JIT_ERROR_LOG: c_int = 5, "CU_JIT_ERROR_LOG_BUFFER";
    pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6, "CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES";
}

/// The enumerations' numbers by their names in `cuda.h`.
#[cfg(feature = "gpu-check")]
pub(super) const ENUMERATIONS: &[(&str, i64)] = &[
    ("CU_DEVICE_ATTRIBUTE_INTEGRATED", DeviceAttribute::Integrated as i64),
    ("CU_DEVICE_ATTRIBUTE_COMPUTE_MODE", DeviceAttribute::ComputeMode as i64),
    ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", DeviceAttribute::ComputeCapabilityMajor as i64),
    ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR", DeviceAttribute::ComputeCapabilityMinor as i64),
    ("CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", DeviceAttribute::VirtualMemoryManagement as i64),
    ("CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED", DeviceAttribute::PosixFileDescriptor as i64),
    ("CU_DEVICE_ATTRIBUTE_MPS_ENABLED", DeviceAttribute::MpsEnabled as i64),
    ("CU_POINTER_ATTRIBUTE_MEMORY_TYPE", PointerAttribute::MemoryType as i64),
    ("CU_POINTER_ATTRIBUTE_HOST_POINTER", PointerAttribute::HostPointer as i64),
    ("CU_POINTER_ATTRIBUTE_IS_MANAGED", PointerAttribute::IsManaged as i64),
    ("CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL", PointerAttribute::DeviceOrdinal as i64),
    ("CU_POINTER_ATTRIBUTE_RANGE_START_ADDR", PointerAttribute::RangeStart as i64),
    ("CU_POINTER_ATTRIBUTE_RANGE_SIZE", PointerAttribute::RangeSize as i64),
    ("CU_POINTER_ATTRIBUTE_MAPPED", PointerAttribute::Mapped as i64),
    ("CU_POINTER_ATTRIBUTE_ACCESS_FLAGS", PointerAttribute::AccessFlags as i64),
    ("CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID", PointerAttribute::MemoryBlockId as i64),
    ("CU_MEM_ACCESS_FLAGS_PROT_READ", Access::Read as i64),
    ("CU_MEM_ACCESS_FLAGS_PROT_READWRITE", Access::ReadWrite as i64),
];

/// `CUmemLocation`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(in crate::device::cuda) struct Location {
    pub(in crate::device::cuda) kind: c_int,
    pub(in crate::device::cuda) id: c_int,
}

/// `CUmemAllocationProp`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(in crate::device::cuda) struct AllocationProperties {
    pub(in crate::device::cuda) kind: c_int,
    pub(in crate::device::cuda) handle_types: c_int,
    pub(in crate::device::cuda) location: Location,
    pub(super) windows: *mut c_void,
    pub(super) compression: u8,
    pub(super) rdma_capable: u8,
    pub(super) usage: c_ushort,
    pub(super) reserved: [u8; 4],
}

impl AllocationProperties {
    pub(in crate::device::cuda) const EMPTY: Self = Self {
        kind: 0,
        handle_types: 0,
        location: Location { kind: 0, id: 0 },
        windows: std::ptr::null_mut(),
        compression: 0,
        rdma_capable: 0,
        usage: 0,
        reserved: [0; 4],
    };

    /// Memory of a device, pinned to it.
    pub(in crate::device::cuda) const fn pinned_on(device: Ordinal, exportable: bool) -> Self {
        let handle_types = if exportable { HANDLE_TYPE_POSIX_FD } else { 0 };
        let location = Location { kind: LOCATION_TYPE_DEVICE, id: device };
        Self { kind: ALLOCATION_TYPE_PINNED, handle_types, location, ..Self::EMPTY }
    }
}

/// `CUmemAccessDesc`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AccessDescription {
    pub(super) location: Location,
    pub(super) flags: c_int,
}

/// What the structures are in `cuda.h`.
#[cfg(feature = "gpu-check")]
pub(super) fn structures() -> Vec<super::header::Structure> {
    use super::header::structure;
    vec![
        structure!(Location = "CUmemLocation" { kind = "type": c_int, id = "id": c_int }),
        structure!(AllocationProperties = "CUmemAllocationProp" {
            kind = "type": c_int,
            handle_types = "requestedHandleTypes": c_int,
            location = "location": Location,
            windows = "win32HandleMetaData": *mut c_void,
            compression = "allocFlags.compressionType": u8,
            rdma_capable = "allocFlags.gpuDirectRDMACapable": u8,
            usage = "allocFlags.usage": c_ushort,
            reserved = "allocFlags.reserved": [u8; 4],
        }),
        structure!(AccessDescription = "CUmemAccessDesc" { location = "location": Location, flags = "flags": c_int }),
    ]
}

// As the C compiler lays them out.
const _: () = assert!(size_of::<AllocationProperties>() == 32 && size_of::<AccessDescription>() == 12);
