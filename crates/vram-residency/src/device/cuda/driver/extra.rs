//! Functions of the driver that only `gpu-check` calls. A driver may lack any of them: the answer then says so.

use std::ffi::{c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::Arc;

use libloading::Library;

use super::kept::{Gift, Of};
use super::table::Table;
use super::types::{Address, Code, HostStart, RawFunction, RawStream, code};
use super::{Context, CudaError, Driver, Function, Stream};

type RawGraph = *mut c_void;
type RawNode = *mut c_void;
type RawGraphExec = *mut c_void;

/// Declares functions that may be missing, and how they are looked up.
macro_rules! optional {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Functions {
            $($name: Option<unsafe extern "C" fn($($argument),*) -> Code>,)*
        }

        impl Functions {
            fn probe(library: &Library) -> Self {
                Self {
                    $($name: {
                        // SAFETY: the symbol, where the library has it, is the documented function of this type; the
                        // library stays loaded for ever.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> Code>($symbol) };
                        found.ok().map(|function| *function)
                    },)*
                }
            }
        }

        /// The functions' types, to be held against `cuda.h`.
        pub(super) fn declared() -> Vec<super::header::Function> {
            use super::header::{Described, Function};
            vec![$(Function { symbol: $symbol, arguments: vec![$(<$argument>::described()),*] }),*]
        }
    };
}

optional! {
    to_device = "cuMemcpyHtoD_v2"(Address, *const c_void, usize);
    on_device = "cuMemcpyDtoDAsync_v2"(Address, Address, usize, RawStream);
    set = "cuMemsetD8Async"(Address, c_uchar, usize, RawStream);
    alloc_managed = "cuMemAllocManaged"(*mut Address, usize, c_uint);
    register = "cuMemHostRegister_v2"(*mut c_void, usize, c_uint);
    unregister = "cuMemHostUnregister"(*mut c_void);
    function_attribute = "cuFuncGetAttribute"(*mut c_int, c_int, RawFunction);
    graph_create = "cuGraphCreate"(*mut RawGraph, c_uint);
    graph_destroy = "cuGraphDestroy"(RawGraph);
    graph_add_copy = "cuGraphAddMemcpyNode"(
        *mut RawNode, RawGraph, *const RawNode, usize, *const Copy3d, *mut c_void
    );
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut RawGraphExec, RawGraph, c_ulonglong);
    graph_exec_destroy = "cuGraphExecDestroy"(RawGraphExec);
    graph_launch = "cuGraphLaunch"(RawGraphExec, RawStream);
}

super::types::numbers! {
    /// Managed memory that any stream may use.
    const MANAGED_GLOBAL: c_uint = 1, "CU_MEM_ATTACH_GLOBAL";
    /// Ends of a copy.
    const HOST: c_uint = 1, "CU_MEMORYTYPE_HOST";
    const DEVICE: c_uint = 2, "CU_MEMORYTYPE_DEVICE";
    /// A missing function, in the numbers of the driver: it is what a driver answers that knows the function and lacks it.
    const NOT_FOUND: Code = 500, "CUDA_ERROR_NOT_FOUND";
}

/// `CUDA_MEMCPY3D`
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Copy3d {
    from_place: [usize; 4],
    from_type: c_uint,
    from_host: *const c_void,
    from_device: Address,
    from_array: *mut c_void,
    from_reserved: *mut c_void,
    from_pitch: [usize; 2],
    to_place: [usize; 4],
    to_type: c_uint,
    to_host: *mut c_void,
    to_device: Address,
    to_array: *mut c_void,
    to_reserved: *mut c_void,
    to_pitch: [usize; 2],
    width: usize,
    height: usize,
    depth: usize,
}

// As the C compiler lays it out.
const _: () = assert!(size_of::<Copy3d>() == 200);

/// What it is in `cuda.h`.
pub(super) fn structure() -> super::header::Structure {
    super::header::structure!(Copy3d = "CUDA_MEMCPY3D" {
        from_place = "srcXInBytes..srcLOD": [usize; 4],
        from_type = "srcMemoryType": c_uint,
        from_host = "srcHost": *const c_void,
        from_device = "srcDevice": Address,
        from_array = "srcArray": *mut c_void,
        from_reserved = "reserved0": *mut c_void,
        from_pitch = "srcPitch..srcHeight": [usize; 2],
        to_place = "dstXInBytes..dstLOD": [usize; 4],
        to_type = "dstMemoryType": c_uint,
        to_host = "dstHost": *mut c_void,
        to_device = "dstDevice": Address,
        to_array = "dstArray": *mut c_void,
        to_reserved = "reserved1": *mut c_void,
        to_pitch = "dstPitch..dstHeight": [usize; 2],
        width = "WidthInBytes": usize,
        height = "Height": usize,
        depth = "Depth": usize,
    })
}

/// The functions, and the context in which they are called.
pub(in crate::device::cuda) struct Extra {
    functions: Functions,
    pub(in crate::device::cuda) context: Arc<Context>,
}

impl Driver {
    /// A result's name in the driver's words.
    pub(in crate::device::cuda) fn name_of(&self, answer: Code) -> Box<str> {
        if answer == code::SUCCESS { "CUDA_SUCCESS".into() } else { self.describe(answer, self.table.error_name) }
    }
}

impl Extra {
    pub(in crate::device::cuda) fn new(context: &Arc<Context>) -> Self {
        Self { functions: Functions::probe(&context.driver._library), context: Arc::clone(context) }
    }

    pub(in crate::device::cuda) fn driver(&self) -> &Driver {
        &self.context.driver
    }

    fn check(&self, step: &'static str, answer: Code) -> Result<(), CudaError> {
        self.context.check(step, answer)
    }

    /// An attribute of a device by its number in `cuda.h`.
    pub(in crate::device::cuda) fn device_attribute(&self, number: c_int) -> Result<i32, CudaError> {
        let mut value = 0;
        let driver = self.driver();
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (driver.table.device_attribute)(&raw mut value, number, self.context.device()) };
        self.check("state what a GPU can do", answer).map(|()| value)
    }

    /// An attribute of a kernel by its number in `cuda.h`.
    pub(in crate::device::cuda) fn function_attribute(&self, number: c_int, of: &Function) -> Result<i32, CudaError> {
        let _current = self.context.enter()?;
        let mut value = 0;
        let answer = self.functions.function_attribute.map_or(NOT_FOUND, |call| {
            // SAFETY: writes one number to where the pointer points; the function is loaded.
            unsafe { call(&raw mut value, number, of.raw) }
        });
        self.check("state what a kernel takes", answer).map(|()| value)
    }

    /// Managed memory; given back with [`Self::free`].
    pub(in crate::device::cuda) fn managed(&self, bytes: usize) -> Result<Address, CudaError> {
        let _current = self.context.enter()?;
        let mut start = Address(0);
        let answer = self.functions.alloc_managed.map_or(NOT_FOUND, |call| {
            // SAFETY: writes an address to where the pointer points.
            unsafe { call(&raw mut start, bytes, MANAGED_GLOBAL) }
        });
        self.check("allocate managed memory", answer).map(|()| start)
    }

    /// # Safety
    /// The address is of [`Self::managed`], and nobody uses it any more.
    pub(in crate::device::cuda) unsafe fn free(&self, start: Address) {
        // SAFETY: the caller's.
        let free = move |table: &Table| unsafe { (table.free)(start) };
        self.context.give_back(Gift::new("free managed memory", Of::Context, free));
    }

    /// Pins memory of this process; undone with [`Self::unregister`].
    pub(in crate::device::cuda) fn register(&self, memory: &mut [u8]) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        let answer = self.functions.register.map_or(NOT_FOUND, |call| {
            // SAFETY: the memory is there; the driver pins its pages and writes nothing.
            unsafe { call(memory.as_mut_ptr().cast(), memory.len(), 0) }
        });
        self.check("register main memory", answer)
    }

    pub(in crate::device::cuda) fn unregister(&self, memory: &mut [u8]) {
        let Some(call) = self.functions.unregister else { return };
        let start = HostStart::new(memory.as_mut_ptr());
        // SAFETY: registered before, and no work uses it.
        let unregister = move |_: &Table| unsafe { call(start.get().cast()) };
        self.context.give_back(Gift::new("unregister main memory", Of::Context, unregister));
    }

    /// Copies on the device, in the order of the stream. The context is entered.
    ///
    /// # Safety
    /// Both are memory of the device of that size, and stay until the stream has done it.
    pub(in crate::device::cuda) unsafe fn copy_on_device(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
        stream: &Stream,
    ) -> Code {
        // SAFETY: the caller's.
        self.functions.on_device.map_or(NOT_FOUND, |call| unsafe { call(to, from, bytes, stream.raw) })
    }

    /// Fills memory of the device with a byte, in the order of the stream. The context is entered.
    ///
    /// # Safety
    /// It is memory of the device of that size, and stays until the stream has done it.
    pub(in crate::device::cuda) unsafe fn set(&self, to: Address, byte: u8, bytes: usize, stream: &Stream) -> Code {
        // SAFETY: the caller's.
        self.functions.set.map_or(NOT_FOUND, |call| unsafe { call(to, byte, bytes, stream.raw) })
    }

    /// Copies to the device. The context is entered. The bytes are no longer needed when this returns; that they have
    /// arrived only [`Self::settle`] says.
    ///
    /// # Safety
    /// It is memory of the device of that size, and stays until then.
    pub(in crate::device::cuda) unsafe fn copy_now(&self, to: Address, from: &[u8]) -> Code {
        // SAFETY: the caller's; the bytes are there.
        self.functions.to_device.map_or(NOT_FOUND, |call| unsafe { call(to, from.as_ptr().cast(), from.len()) })
    }

    /// Starts a kernel. The context is entered. Each argument is handed over as 8 bytes, of which a kernel takes the low
    /// ones that it declares: processors on which this runs store the low bytes first.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what it reads and writes stays until the stream has done it.
    pub(in crate::device::cuda) unsafe fn launch(
        &self,
        kernel: &Function,
        stream: &Stream,
        (grid_x, grid_y): (u32, u32),
        (block_x, block_y): (u32, u32),
        arguments: &mut [u64],
    ) -> Code {
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
        let (launch, values, none) = (self.driver().table.launch, pointers.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the caller's; the driver copies the arguments before it returns.
        unsafe { launch(kernel.raw, grid_x, grid_y, 1, block_x, block_y, 1, 0, stream.raw, values, none) }
    }

    /// Waits for the copies of [`Self::copy_now`] and passes on what the driver answers. The context is entered.
    pub(in crate::device::cuda) fn settle(&self) -> Code {
        // SAFETY: null is the default stream, which every context has.
        unsafe { (self.driver().table.stream_synchronize)(std::ptr::null_mut()) }
    }

    /// Waits for a stream and passes on what the driver answers.
    pub(in crate::device::cuda) fn wait(&self, stream: &Stream) -> Code {
        // SAFETY: the stream is alive.
        unsafe { (self.driver().table.stream_synchronize)(stream.raw) }
    }

    /// Asks for the device's free memory: what a dead context refuses.
    pub(in crate::device::cuda) fn ask_something(&self) -> Code {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers to where the pointers point.
        unsafe { (self.driver().table.memory_info)(&raw mut free, &raw mut total) }
    }

    /// Runs a graph of one copy to the device, and passes on the first answer that is no success. The context is entered.
    ///
    /// # Safety
    /// It is memory of the device of that size. Both stay until the stream has done it.
    pub(in crate::device::cuda) unsafe fn graph_copy(&self, to: Address, from: &[u8], stream: &Stream) -> Code {
        let f = &self.functions;
        let (Some(create), Some(destroy), Some(add), Some(instantiate), Some(exec_destroy), Some(launch)) = (
            f.graph_create,
            f.graph_destroy,
            f.graph_add_copy,
            f.graph_instantiate,
            f.graph_exec_destroy,
            f.graph_launch,
        ) else {
            return NOT_FOUND;
        };
        let null = std::ptr::null_mut();
        let copy = Copy3d {
            from_place: [0; 4],
            from_type: HOST,
            from_host: from.as_ptr().cast(),
            from_device: Address(0),
            from_array: null,
            from_reserved: null,
            from_pitch: [from.len(), 1],
            to_place: [0; 4],
            to_type: DEVICE,
            to_host: null,
            to_device: to,
            to_array: null,
            to_reserved: null,
            to_pitch: [from.len(), 1],
            width: from.len(),
            height: 1,
            depth: 1,
        };
        let (mut graph, mut node, mut exec) = (null, null, null);
        // SAFETY: writes a graph to where the pointer points.
        let mut answer = unsafe { create(&raw mut graph, 0) };
        if answer != code::SUCCESS {
            return answer;
        }
        // SAFETY: writes a node to where the pointer points, reads the copy; it depends on no other node.
        answer = unsafe { add(&raw mut node, graph, std::ptr::null(), 0, &raw const copy, self.context.raw.get()) };
        if answer == code::SUCCESS {
            // SAFETY: writes an executable graph to where the pointer points.
            answer = unsafe { instantiate(&raw mut exec, graph, 0) };
        }
        if answer == code::SUCCESS {
            // SAFETY: both are alive; the caller waits.
            answer = unsafe { launch(exec, stream.raw) };
            // SAFETY: an executable graph that runs is let go when it is done, as documented.
            let _ = unsafe { exec_destroy(exec) };
        }
        // SAFETY: the graph is this function's.
        let _ = unsafe { destroy(graph) };
        answer
    }
}
