//! The functions of the driver that are called, each looked up before the first call.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};

use libloading::Library;

use super::types::{
    AccessDescription, Address, AllocationProperties, Code, Location, Ordinal, RawContext, RawEvent, RawFunction,
    RawHandle, RawModule, RawStream,
};

/// Declares the table: the functions' types, and how they are looked up. At last those that a driver may lack.
macro_rules! table {
    (
        $($name:ident = $symbol:literal ($($argument:ty),*);)*
        ; may be missing:
        $($other:ident = $other_symbol:literal ($($other_argument:ty),*);)*
    ) => {
        /// Functions of a driver library that stays loaded.
        pub(super) struct Table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            $(pub(super) $other: Option<unsafe extern "C" fn($($other_argument),*) -> Code>,)*
        }

        impl Table {
            /// Looks every function up. The first that is missing is the error.
            pub(super) fn probe(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the symbol, where the library has it, is the documented function of this type; it is
                        // called only while the library is loaded, which is for ever.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> Code>($symbol) };
                        *found.map_err(|_| $symbol)?
                    },)*
                    $($other: {
                        // SAFETY: as above.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($other_argument),*) -> Code>($other_symbol) };
                        found.ok().map(|found| *found)
                    },)*
                })
            }

            /// The functions' types, to be held against `cuda.h`.
            #[cfg(feature = "gpu-check")]
            pub(super) fn declared() -> Vec<super::header::Function> {
                use super::header::{Described, Function};
                vec![
                    $(Function { symbol: $symbol, arguments: vec![$(<$argument>::described()),*] },)*
                    $(Function { symbol: $other_symbol, arguments: vec![$(<$other_argument>::described()),*] },)*
                ]
            }
        }
    };
}

table! {
    init = "cuInit"(c_uint);
    driver_version = "cuDriverGetVersion"(*mut c_int);
    error_name = "cuGetErrorName"(Code, *mut *const c_char);
    error_text = "cuGetErrorString"(Code, *mut *const c_char);

    device_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut Ordinal, c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, Ordinal);
    device_uuid = "cuDeviceGetUuid_v2"(*mut [u8; 16], Ordinal);
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, Ordinal);
    device_total_memory = "cuDeviceTotalMem_v2"(*mut usize, Ordinal);
    device_pci_bus_id = "cuDeviceGetPCIBusId"(*mut c_char, c_int, Ordinal);

    context_retain = "cuDevicePrimaryCtxRetain"(*mut RawContext, Ordinal);
    context_release = "cuDevicePrimaryCtxRelease_v2"(Ordinal);
    context_state = "cuDevicePrimaryCtxGetState"(Ordinal, *mut c_uint, *mut c_int);
    context_push = "cuCtxPushCurrent_v2"(RawContext);
    context_pop = "cuCtxPopCurrent_v2"(*mut RawContext);
    context_priorities = "cuCtxGetStreamPriorityRange"(*mut c_int, *mut c_int);
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);

    granularity = "cuMemGetAllocationGranularity"(*mut usize, *const AllocationProperties, c_int);
    create = "cuMemCreate"(*mut RawHandle, usize, *const AllocationProperties, c_ulonglong);
    release = "cuMemRelease"(RawHandle);
    reserve = "cuMemAddressReserve"(*mut Address, usize, usize, Address, c_ulonglong);
    unreserve = "cuMemAddressFree"(Address, usize);
    map = "cuMemMap"(Address, usize, usize, RawHandle, c_ulonglong);
    unmap = "cuMemUnmap"(Address, usize);
    set_access = "cuMemSetAccess"(Address, usize, *const AccessDescription, usize);
    get_access = "cuMemGetAccess"(*mut c_ulonglong, *const Location, Address);
    retain_handle = "cuMemRetainAllocationHandle"(*mut RawHandle, *mut c_void);
    handle_properties = "cuMemGetAllocationPropertiesFromHandle"(*mut AllocationProperties, RawHandle);
    export_handle = "cuMemExportToShareableHandle"(*mut c_void, RawHandle, c_int, c_ulonglong);
    import_handle = "cuMemImportFromShareableHandle"(*mut RawHandle, *mut c_void, c_int);
    pointer_attribute = "cuPointerGetAttribute"(*mut c_void, c_int, Address);

    alloc = "cuMemAlloc_v2"(*mut Address, usize);
    free = "cuMemFree_v2"(Address);
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost"(*mut c_void);
    to_device = "cuMemcpyHtoDAsync_v2"(Address, *const c_void, usize, RawStream);
    to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, Address, usize, RawStream);
    set = "cuMemsetD8Async"(Address, c_uchar, usize, RawStream);
    set_words = "cuMemsetD32Async"(Address, c_uint, usize, RawStream);

    stream_create = "cuStreamCreateWithPriority"(*mut RawStream, c_uint, c_int);
    stream_destroy = "cuStreamDestroy_v2"(RawStream);
    stream_synchronize = "cuStreamSynchronize"(RawStream);
    stream_wait = "cuStreamWaitEvent"(RawStream, RawEvent, c_uint);
    event_create = "cuEventCreate"(*mut RawEvent, c_uint);
    event_destroy = "cuEventDestroy_v2"(RawEvent);
    event_record = "cuEventRecord"(RawEvent, RawStream);
    event_synchronize = "cuEventSynchronize"(RawEvent);
    event_elapsed = "cuEventElapsedTime"(*mut f32, RawEvent, RawEvent);

    module_load = "cuModuleLoadDataEx"(*mut RawModule, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    module_unload = "cuModuleUnload"(RawModule);
    module_function = "cuModuleGetFunction"(*mut RawFunction, RawModule, *const c_char);
    module_global = "cuModuleGetGlobal_v2"(*mut Address, *mut usize, RawModule, *const c_char);
    launch = "cuLaunchKernel"(
        RawFunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, RawStream, *mut *mut c_void,
        *mut *mut c_void
    );

    ; may be missing:
    older_device_uuid = "cuDeviceGetUuid"(*mut [u8; 16], Ordinal);
}
