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

/// Results that are told apart; every other one is passed on with its name and text.
pub(in crate::device::cuda) mod code {
    use super::Code;

    pub(in crate::device::cuda) const SUCCESS: Code = 0;
    pub(in crate::device::cuda) const INVALID_VALUE: Code = 1;
    pub(in crate::device::cuda) const OUT_OF_MEMORY: Code = 2;
    pub(in crate::device::cuda) const STUB_LIBRARY: Code = 34;
    pub(in crate::device::cuda) const DEVICE_UNAVAILABLE: Code = 46;
    pub(in crate::device::cuda) const NO_DEVICE: Code = 100;
    pub(in crate::device::cuda) const INVALID_DEVICE: Code = 101;
    pub(in crate::device::cuda) const ILLEGAL_ADDRESS: Code = 700;
    pub(in crate::device::cuda) const INVALID_ADDRESS_SPACE: Code = 717;
    pub(in crate::device::cuda) const LAUNCH_FAILED: Code = 719;
    pub(in crate::device::cuda) const NOT_SUPPORTED: Code = 801;

    /// Errors after which the device's context answers nothing any more: uncorrectable memory (ECC, 214; NVLink, 220),
    /// kernels that failed or were killed (the driver logs an Xid), a device that is gone, and errors that nobody can name.
    pub(in crate::device::cuda) const STICKY: [Code; 15] =
        [4, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];
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
}

/// A device that takes one process at a time.
pub(super) const COMPUTE_MODE_EXCLUSIVE_PROCESS: c_int = 3;
/// A device that takes none.
pub(super) const COMPUTE_MODE_PROHIBITED: c_int = 2;

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

/// Memory of a device, as [`PointerAttribute::MemoryType`] says it.
pub(in crate::device::cuda) const MEMORY_TYPE_DEVICE: u64 = 2;

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(in crate::device::cuda) enum Access {
    Read = 1,
    ReadWrite = 3,
}

pub(super) const HANDLE_TYPE_POSIX_FD: c_int = 1;
pub(in crate::device::cuda) const ALLOCATION_TYPE_PINNED: c_int = 1;
pub(in crate::device::cuda) const LOCATION_TYPE_DEVICE: c_int = 1;
pub(super) const GRANULARITY_MINIMUM: c_int = 0;
/// A stream that does not wait for the default one.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// Options of the just-in-time compiler: where its errors go, and how many bytes fit there.
pub(super) const JIT_ERROR_LOG: c_int = 5;
pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6;

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

// As the C compiler lays them out.
const _: () = assert!(size_of::<AllocationProperties>() == 32 && size_of::<AccessDescription>() == 12);
