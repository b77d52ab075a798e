//! Streams and events.

use super::abi::{Out, code};
use super::calls::driver_calls;
use super::queue::{Event, Stream, Work};
use super::{Answer, State, WAIT};
use crate::report::Kind;

impl State {
    /// The event of a handle in the current context.
    fn event(&mut self, handle: u64, release: bool) -> Result<&mut Event, u32> {
        let device = self.device()?;
        if self.events.get(&handle).is_none_or(|event| event.origin.device != device) {
            return Err(self.unknown(handle, Kind::Event, release));
        }
        self.events.get_mut(&handle).ok_or(code::INVALID_HANDLE)
    }
}

driver_calls! {
    /// Makes a stream. Flag 1: it does not wait for the default stream.
    fn cuStreamCreateWithPriority(state, stream: Out<u64>, flags: u32, priority: i32) {
        let device = state.device()?;
        // Priorities out of range are taken as the nearest, so none is refused.
        let _ = priority;
        if flags > 1 || stream.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = state.fresh_handle();
        let origin = state.origin(device);
        state.streams.insert(handle, Stream::new(origin, flags == 0));
        stream.set(handle)
    }

    /// Lets a stream go, without a wait. Its work is done when somebody waits for the device, or for an event in it.
    fn cuStreamDestroy_v2(state, stream: u64) release(stream) {
        if matches!(stream, 0 | 1) || state.gone.contains(&(Kind::Stream, stream)) {
            return Err(state.unknown(stream, Kind::Stream, true));
        }
        let handle = state.stream(stream)?;
        match state.streams.get_mut(&handle) {
            Some(stream) if !stream.work.is_empty() => stream.ended = true,
            _ => drop(state.streams.remove(&handle)),
        }
        state.gone.insert((Kind::Stream, handle));
        Ok(())
    }

    /// Waits until all work of a stream is done. Where that was refused, nothing may be given back before it is waited for.
    fn cuStreamSynchronize(state, stream: u64) release(stream) {
        let handle = state.stream(stream)?;
        if state.streams[&handle].default { state.drain_default(handle)? } else { state.drain(handle)? }
        state.refused.remove(&(WAIT, stream));
        Ok(())
    }

    /// Whether all work of a stream is done. Some is done for each question.
    fn cuStreamQuery(state, stream: u64) {
        let handle = state.stream(stream)?;
        if state.step(handle)? { Err(code::NOT_READY) } else { Ok(()) }
    }

    /// Makes a stream wait for what was recorded in an event.
    fn cuStreamWaitEvent(state, stream: u64, event: u64, flags: u32) {
        if flags > 1 {
            return Err(code::INVALID_VALUE);
        }
        let handle = state.stream(stream)?;
        // An event of another device may be waited for.
        let Some(number) = state.events.get(&event).map(|event| event.recorded) else {
            return Err(state.unknown(event, Kind::Event, false));
        };
        state.enqueue(handle, Work::Wait { event, number })
    }

    /// Makes an event. Flag 1 blocking wait, 2 no times.
    fn cuEventCreate(state, event: Out<u64>, flags: u32) {
        let device = state.device()?;
        if flags > 3 || event.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = state.fresh_handle();
        let origin = state.origin(device);
        let timed = flags & 2 == 0;
        state.events.insert(handle, Event { origin, timed, recorded: 0, run: 0, at_us: 0.0 });
        event.set(handle)
    }

    /// Lets an event go.
    fn cuEventDestroy_v2(state, event: u64) release(event) {
        state.event(event, true)?;
        // Whoever waits for it still gets what was recorded.
        state.wait_for(event)?;
        state.events.remove(&event);
        state.gone.insert((Kind::Event, event));
        Ok(())
    }

    /// Records an event behind the work of a stream.
    fn cuEventRecord(state, event: u64, stream: u64) {
        let handle = state.stream(stream)?;
        let known = state.event(event, false)?;
        known.recorded += 1;
        let number = known.recorded;
        state.enqueue(handle, Work::Record { event, number })
    }

    /// Waits for what was last recorded.
    fn cuEventSynchronize(state, event: u64) {
        state.event(event, false)?;
        state.wait_for(event)
    }

    /// Whether what was last recorded is done. Some is done for each question.
    fn cuEventQuery(state, event: u64) {
        let known = state.event(event, false)?;
        if known.run >= known.recorded {
            return Ok(());
        }
        state.step_towards(event)?;
        Err(code::NOT_READY)
    }

    /// Time between two events on the simulated clock, in milliseconds.
    fn cuEventElapsedTime(state, milliseconds: Out<f32>, start: u64, end: u64) {
        let mut read = |handle: u64| -> Result<f64, u32> {
            let event = state.event(handle, false)?;
            let (timed, recorded, run, at) = (event.timed, event.recorded, event.run, event.at_us);
            let usable: Answer = if timed && recorded > 0 { Ok(()) } else { Err(code::INVALID_HANDLE) };
            usable?;
            if run >= recorded { Ok(at) } else { Err(code::NOT_READY) }
        };
        let (from, to) = (read(start)?, read(end)?);
        milliseconds.set(((to - from) / 1e3) as f32)
    }
}
