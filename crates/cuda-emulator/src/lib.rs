//! A `libcuda.so.1` over host memory, for tests of code that drives GPUs on machines that have none.
//!
//! **Test only.** Nothing that is shipped may depend on this crate.
//!
//! ```text
//!  code under test ── dlopen ──▶ libcuda_emulator.so ◀── Emulator (this crate, in the test)
//!        cuMemCreate, cuLaunchKernel, …      │                 plan: machine and faults
//!                                            │                 report: ledger, violations
//!                                  memfd pages, PTX machine
//! ```
//!
//! # What is emulated
//!
//! * The driver calls that `vram-residency` uses, with the types and numbers of `cuda.h` 12: devices, primary contexts and
//!   their stack by thread, virtual memory management, plain, managed, pinned and registered memory, copies and fills,
//!   streams, events, modules from PTX text, launches, graphs of copies. A test holds them against NVIDIA's header.
//! * **Device addresses** are addresses of the process that the host cannot touch, handed out once, with gaps. Memory is a
//!   memfd: exported descriptors work in other processes. Memory is exactly as large as asked for, so that an overrun by
//!   one byte is found; fresh memory is not zero; `cuMemGetInfo` counts what is created.
//! * **Access** by kernels, copies, fills and graphs is checked against what `cuMemSetAccess` said. A refusal is error 700
//!   (716 for a misaligned address), it stays for the device, and the report names address, kernel and line of the PTX.
//! * **PTX is executed**: the text is compiled to a register machine, 32 lanes at a time, with divergence, barriers, shared,
//!   local, constant and global memory, atomic operations, shuffles and votes. No kernel is known by name. An instruction
//!   or suffix that is not known is refused with 218 and a log that names the line.
//! * **Work is lazy.** A stream's work runs when somebody waits for it, or piece by piece when somebody asks, so that a
//!   missing wait shows: results that nobody waited for are not there, pinned memory that is reused too early gives wrong
//!   bytes, memory that is unmapped too early is a violation. Errors of work come at the next call that waits.
//! * **Events tell the time of a simulated clock**, which follows from bytes and the rates of the [`Plan`], so that slow
//!   memory can be planned and found without measuring.
//! * **The ledger** knows every handle and mapping: [`Report`]. A release that a planned fault refused is no leak, nor
//!   what is kept because the wait that has to come before was refused.
//!
//! # What is not
//!
//! * Data races. Blocks run one after the other, lanes in lock step, and every store is seen at once: a missing fence, a
//!   missing `__syncthreads` between lanes of one warp, or two blocks that race are **not** found. Groups of lanes that
//!   diverged run lowest instruction first and meet again where they reach the same instruction; a lane that spins for
//!   another lane of its warp may run into the limit of instructions (702).
//! * Streams never run side by side, and the order between them is the order in which they are waited for.
//! * Caches, their hints, and the time of anything but bytes: instructions are free on the simulated clock.
//! * `call`, functions, recursion, textures, surfaces, `cp.async`, tensor cores, `f16`, barriers other than 0 for the whole
//!   block, `brx.idx`, `.ftz` and approximate functions: refused with 218. `cuFuncGetAttribute` invents registers.
//! * Peer access: a device sees the memory of another only through `cuMemSetAccess`.
//! * Copies that the driver would do asynchronously from pageable memory take their bytes when they are asked for; copies
//!   to pageable memory wait. The default stream works at once.
//! * What a driver does beyond its documentation. Where NVIDIA's behaviour is not known, the emulator is strict.
//!
//! # How a test uses it
//!
//! ```no_run
//! use cuda_emulator::{Emulator, Fault, Plan};
//!
//! let emulator = Emulator::lock(Plan::default().fault(Fault::fail_once("cuMemMap", 2, 2)));
//! let library = cuda_emulator::library(); // what to dlopen as libcuda.so.1
//! // … run the code under test on `library` …
//! assert_eq!(emulator.report().calls_of("cuMemMap"), 2);
//! // When the guard goes, a ledger that is not empty fails the test.
//! ```
//!
//! A whole process finds the library as `libcuda.so.1` in a folder of [`link_into`] through `LD_LIBRARY_PATH`, its plan as
//! JSON in `CUDA_EMULATOR_PLAN`, and leaves its report as JSON in the file `CUDA_EMULATOR_REPORT`.
#![allow(
    unsafe_code,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::multiple_unsafe_ops_per_block,
    clippy::panic,
    reason = "test only: a C library over raw memory, whose own bugs may end the test"
)]

#[allow(non_snake_case, unreachable_pub, reason = "the driver's names, exported by the library and not by the crate")]
mod driver;
mod emulator;
mod plan;
mod ptx;
mod report;

pub use driver::declared;
pub use emulator::{Emulator, library, library_without, link_into};
pub use plan::{After, Device, Fault, Memory, Plan};
pub use report::{Cause, Kind, Live, Report, Violation};
