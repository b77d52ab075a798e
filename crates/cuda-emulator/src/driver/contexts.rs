//! Primary contexts, and which one is current in a thread.

use std::cell::RefCell;

use super::State;
use super::abi::{Out, code};
use super::calls::driver_calls;
use crate::report::Kind;

thread_local! {
    /// The thread's contexts, the current one last, with the epoch they are of.
    static STACK: RefCell<(u64, Vec<u64>)> = const { RefCell::new((0, Vec::new())) };
}

impl State {
    fn with_stack<T>(&self, work: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        STACK.with_borrow_mut(|(epoch, stack)| {
            if *epoch != self.epoch {
                *epoch = self.epoch;
                stack.clear();
            }
            work(stack)
        })
    }

    /// The current context and its device.
    pub(super) fn context(&self) -> Result<(u64, usize), u32> {
        self.ready()?;
        let handle = self.with_stack(|stack| stack.last().copied()).ok_or(code::INVALID_CONTEXT)?;
        match self.contexts.get(&handle) {
            Some(origin) => Ok((handle, origin.device)),
            None => Err(709),
        }
    }

    /// Frees all that belongs to the context of a device.
    fn destroy_context(&mut self, device: usize) {
        self.report.left_to_context.extend(self.live_in_contexts(Some(device)));
        let of = |at: usize| at == device;
        self.streams.retain(|_, stream| !of(stream.origin.device));
        self.events.retain(|_, event| !of(event.origin.device));
        self.graphs.retain(|_, (origin, _)| !of(origin.device));
        self.graph_execs.retain(|_, (origin, _)| !of(origin.device));
        self.functions.retain(|_, function| !of(function.device));
        let modules: Vec<u64> =
            self.modules.iter().filter(|(_, module)| of(module.origin.device)).map(|(&handle, _)| handle).collect();
        for module in modules {
            self.unload(module);
        }
        let starts: Vec<u64> = self
            .space
            .mappings
            .iter()
            .filter(|(_, mapping)| {
                let piece = &self.space.pieces[&mapping.piece];
                of(piece.device) && piece.kind != Kind::Handle
            })
            .map(|(&start, _)| start)
            .collect();
        for start in starts {
            self.unmap(start);
        }
    }

    /// Takes a mapping away and gives its memory back to the device.
    pub(super) fn unmap(&mut self, start: u64) {
        if let Some((device, bytes)) = self.space.unmap(start) {
            self.devices[device].bytes -= bytes;
        }
    }
}

driver_calls! {
    /// Retains a device's primary context.
    fn cuDevicePrimaryCtxRetain(state, context: Out<u64>, device: i32) {
        let index = state.ordinal(device)?;
        state.alive(index)?;
        let plan = &state.plan.devices[index];
        match plan.compute_mode {
            2 => return Err(code::UNKNOWN),
            3 if plan.occupied => return Err(code::DEVICE_UNAVAILABLE),
            _ => {}
        }
        if context.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = match state.devices[index].context {
            Some(handle) => handle,
            None => {
                let handle = state.fresh_handle();
                let origin = state.origin(index);
                state.contexts.insert(handle, origin.clone());
                state.devices[index].context = Some(handle);
                let stream = super::queue::Stream::default_of(origin);
                let default = state.fresh_handle();
                state.streams.insert(default, stream);
                handle
            }
        };
        state.devices[index].retained += 1;
        context.set(handle)
    }

    /// Releases it; the last release frees what belongs to it.
    fn cuDevicePrimaryCtxRelease_v2(state, device: i32) release(device) {
        let index = state.ordinal(device)?;
        let Some(handle) = state.devices[index].context else {
            state.report.double_frees.push(format!("primary context of device {index}"));
            return Err(code::INVALID_CONTEXT);
        };
        state.devices[index].retained -= 1;
        if state.devices[index].retained == 0 {
            let waiting: Vec<u64> = state.streams_of(index);
            for stream in waiting {
                // What fails now has nobody left to be told.
                let _: super::Answer = state.drain(stream);
            }
            state.destroy_context(index);
            // Nothing of it is under way any more, whoever could not wait for it.
            state.refused.retain(|(call, _)| *call != super::WAIT);
            state.contexts.remove(&handle);
            state.gone.insert((Kind::Context, handle));
            state.devices[index].context = None;
        }
        Ok(())
    }

    /// Whether it is retained by anybody.
    fn cuDevicePrimaryCtxGetState(state, device: i32, flags: Out<u32>, active: Out<i32>) {
        let index = state.ordinal(device)?;
        flags.set(0)?;
        active.set(i32::from(state.devices[index].context.is_some()))
    }

    /// Makes a context current, over the one that was.
    fn cuCtxPushCurrent_v2(state, context: u64) {
        state.ready()?;
        if !state.contexts.contains_key(&context) {
            return Err(state.unknown(context, Kind::Context, false));
        }
        state.with_stack(|stack| stack.push(context));
        Ok(())
    }

    /// Makes the one before current again.
    fn cuCtxPopCurrent_v2(state, context: Out<u64>) {
        state.ready()?;
        let handle = state.with_stack(Vec::pop).ok_or(code::INVALID_CONTEXT)?;
        context.offer(handle);
        Ok(())
    }

    /// Makes a context current in place of the one that was; 0 makes none current.
    fn cuCtxSetCurrent(state, context: u64) {
        state.ready()?;
        if context != 0 && !state.contexts.contains_key(&context) {
            return Err(state.unknown(context, Kind::Context, false));
        }
        state.with_stack(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    /// The current context, or 0.
    fn cuCtxGetCurrent(state, context: Out<u64>) {
        state.ready()?;
        context.set(state.with_stack(|stack| stack.last().copied()).unwrap_or(0))
    }

    /// Waits for all streams of the current context.
    fn cuCtxSynchronize(state) {
        let device = state.device()?;
        for stream in state.streams_of(device) {
            state.drain(stream)?;
        }
        Ok(())
    }

    /// The priorities that streams can have: the lowest, the highest.
    fn cuCtxGetStreamPriorityRange(state, least: Out<i32>, greatest: Out<i32>) {
        state.device()?;
        least.offer(0);
        greatest.offer(-5);
        Ok(())
    }

    /// Free and total memory of the current context's device, in bytes.
    fn cuMemGetInfo_v2(state, free: Out<usize>, total: Out<usize>) {
        let device = state.device()?;
        let all = state.plan.devices[device].memory;
        let left = state.free_bytes(device);
        free.set(usize::try_from(left).unwrap_or(usize::MAX))?;
        total.set(usize::try_from(all).unwrap_or(usize::MAX))
    }
}
