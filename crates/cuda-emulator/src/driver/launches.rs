//! Launches: checked when they are asked for, run when their stream runs.

use std::sync::Arc;

use super::State;
use super::abi::{In, code};
use super::calls::driver_calls;
use super::queue::Work;
use crate::ptx::{self, Kernel, Range, Shape, View};
use crate::report::{Cause, Kind};

/// A kernel with its shape and its parameters' bytes.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    kernel: Arc<Kernel>,
    module: u64,
    shape: Shape,
    params: Vec<u8>,
}

/// Ends the list of `extra`, names the buffer and its size in it.
const EXTRA_END: u64 = 0;
const EXTRA_BUFFER: u64 = 1;
const EXTRA_SIZE: u64 = 2;

impl State {
    /// Runs a kernel; its time on the simulated clock in microseconds.
    pub(super) fn run_launch(&mut self, device: usize, launch: &Launch) -> Result<f64, u32> {
        let name = &launch.kernel.name;
        if !self.modules.contains_key(&launch.module) {
            return Err(self.violation(Cause::Released, code::ILLEGAL_ADDRESS, 0, format!("kernel {name}, unloaded")));
        }
        *self.report.launches.entry(name.clone()).or_default() += 1;
        if let Some(code) = self.faults.launch_fails() {
            // 0 is no error: the work is not done, and nobody is told.
            return if code == 0 { Ok(self.plan.operation_us) } else { Err(code) };
        }
        let mut view = self.view(device);
        let ran = ptx::run(&launch.kernel, launch.shape, &launch.params, &mut view, self.plan.instruction_limit);
        self.report.kernel_bytes += view.bytes;
        match ran {
            Ok(instructions) => {
                self.report.warp_instructions += instructions;
                let bytes = view.bytes as f64 + view.extra;
                Ok(self.plan.operation_us + bytes / self.plan.memory_tb_s / 1e6)
            }
            Err(trap) => {
                let cause = match trap.cause {
                    Cause::OutOfBounds => self.space.why_absent(trap.address),
                    other => other,
                };
                let code = match cause {
                    Cause::Misaligned => code::MISALIGNED_ADDRESS,
                    Cause::Endless => code::LAUNCH_TIMEOUT,
                    Cause::Trap => code::LAUNCH_FAILED,
                    _ => code::ILLEGAL_ADDRESS,
                };
                let by = format!("kernel {name}, line {}", trap.line);
                Err(self.violation(cause, code, trap.address, by))
            }
        }
    }

    /// Memory as a device sees it.
    fn view(&self, device: usize) -> View {
        let slow = self.faults.slow_parts();
        let ranges = self.space.mappings.iter().map(|(&start, mapping)| {
            let piece = &self.space.pieces[&mapping.piece];
            let slow = slow
                .iter()
                .filter(|part| part.memory == piece.made_by)
                .map(|part| {
                    let inside = |at: u64| at.saturating_sub(mapping.offset);
                    (inside(part.from), inside(part.to), part.factor)
                })
                .collect();
            let access = mapping.access.get(device).copied().unwrap_or(0);
            // SAFETY: the offset is inside the piece, whose pages are mapped as long as it lives.
            let host = unsafe { piece.pages.host.add(mapping.offset as usize) };
            Range { start, bytes: mapping.bytes, host, access, slow }
        });
        View::new(ranges.collect())
    }
}

/// The bytes of all parameters, from a list of pointers to them.
fn gather(kernel: &Kernel, pointers: In<u64>) -> Result<Vec<u8>, u32> {
    let mut params = vec![0_u8; kernel.param_bytes];
    for (index, param) in kernel.params.iter().enumerate() {
        let from = pointers.at(index)?;
        for byte in 0..param.bytes {
            params[param.offset + byte] = In(from as *const u8).at(byte)?;
        }
    }
    Ok(params)
}

/// The same from one buffer, which must have just the right size.
fn unpack(kernel: &Kernel, extra: In<u64>) -> Result<Vec<u8>, u32> {
    let (mut buffer, mut size, mut at) = (0, 0, 0);
    loop {
        match extra.at(at)? {
            EXTRA_END => break,
            EXTRA_BUFFER => buffer = extra.at(at + 1)?,
            EXTRA_SIZE => size = In(extra.at(at + 1)? as *const usize).get()?,
            _ => return Err(code::INVALID_VALUE),
        }
        at += 2;
    }
    if size != kernel.param_bytes {
        return Err(code::INVALID_VALUE);
    }
    (0..size).map(|byte| In(buffer as *const u8).at(byte)).collect()
}

driver_calls! {
    /// Launches a kernel in a stream.
    fn cuLaunchKernel(
        state, function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: u64, pointers: In<u64>, extra: In<u64>,
    ) {
        let stream = state.stream(stream)?;
        let device = state.device()?;
        let Some(known) = state.functions.get(&function).cloned() else {
            return Err(state.unknown(function, Kind::Module, false));
        };
        if known.device != device {
            return Err(code::INVALID_HANDLE);
        }
        let kernel = known.kernel;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().try_fold(1_u32, |product, &size| product.checked_mul(size)).unwrap_or(u32::MAX);
        let fits = grid.iter().zip([i32::MAX.cast_unsigned(), 65_535, 65_535]).all(|(&size, most)| size > 0 && size <= most)
            && block.iter().zip([1024, 1024, 64]).all(|(&size, most)| size > 0 && size <= most)
            && threads <= 1024
            && kernel.max_threads.is_none_or(|most| threads <= most.iter().product())
            && kernel.exact_threads.is_none_or(|exact| block == exact)
            && kernel.shared_bytes.checked_add(shared).is_some_and(|bytes| bytes <= 48 << 10);
        if !fits {
            return Err(code::INVALID_VALUE);
        }
        let params = match (pointers.0.is_null(), extra.0.is_null()) {
            (true, true) if kernel.params.is_empty() => Vec::new(),
            (false, true) => gather(&kernel, pointers)?,
            (true, false) => unpack(&kernel, extra)?,
            _ => return Err(code::INVALID_VALUE),
        };
        let shape = Shape { grid, block, dynamic_shared: shared };
        let launch = Launch { kernel, module: known.module, shape, params };
        state.enqueue(stream, Work::Launch(Box::new(launch)))
    }
}
