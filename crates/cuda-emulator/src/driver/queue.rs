//! Streams: work is kept and runs when somebody waits for it or asks for it, so that what nobody waited for is missed.
//!
//! A stream runs in its order; a wait for an event runs the stream of that event as far as needed. A query runs one piece
//! of work and says "not ready" for it. Work on the default stream runs at once, after that of the blocking streams.

use std::collections::VecDeque;

use super::launches::Launch;
use super::{Answer, Origin, State, abi, code};
use crate::report::{Cause, Kind};

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) origin: Origin,
    /// The context's own stream, whose handle is 0.
    pub(crate) default: bool,
    /// Destroyed, and still with work.
    pub(crate) ended: bool,
    /// Waits for the default stream, and the other way round.
    pub(crate) blocking: bool,
    pub(crate) work: VecDeque<Work>,
    /// Where the stream is on the simulated clock, in microseconds.
    pub(crate) clock_us: f64,
}

/// An event: how often it was recorded, how many of those have run, and when on the simulated clock.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) origin: Origin,
    pub(crate) timed: bool,
    pub(crate) recorded: u64,
    pub(crate) run: u64,
    pub(crate) at_us: f64,
}

/// One end of a copy.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Memory that the driver knows, wherever it is.
    Known(u64),
    /// Memory of the host that the driver does not know. Only while the call lasts that names it.
    Host(u64),
    /// Bytes taken from there when the copy was asked for.
    Taken(Vec<u8>),
}

/// A piece of work.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Launch(Box<Launch>),
    Copy {
        to: Place,
        from: Place,
        bytes: u64,
        by: &'static str,
    },
    /// The value again and again, cut where the bytes end.
    Set {
        to: u64,
        value: [u8; 4],
        bytes: u64,
        by: &'static str,
    },
    Record {
        event: u64,
        number: u64,
    },
    Wait {
        event: u64,
        number: u64,
    },
}

impl Stream {
    pub(crate) fn new(origin: Origin, blocking: bool) -> Self {
        Self { origin, default: false, ended: false, blocking, work: VecDeque::new(), clock_us: 0.0 }
    }

    pub(crate) fn default_of(origin: Origin) -> Self {
        Self { default: true, ..Self::new(origin, true) }
    }
}

impl State {
    /// The handles of a device's streams, the default one too.
    pub(super) fn streams_of(&self, device: usize) -> Vec<u64> {
        self.streams.iter().filter(|(_, stream)| stream.origin.device == device).map(|(&handle, _)| handle).collect()
    }

    /// The stream that a handle means in the current context: 0 is the default one.
    pub(super) fn stream(&mut self, handle: u64) -> Result<u64, u32> {
        let device = self.device()?;
        let wanted = match handle {
            // CU_STREAM_LEGACY
            0 | 1 => self
                .streams
                .iter()
                .find(|(_, stream)| stream.default && stream.origin.device == device)
                .map(|(&handle, _)| handle),
            _ => Some(handle)
                .filter(|handle| self.streams.get(handle).is_some_and(|stream| !stream.default && !stream.ended)),
        };
        let Some(handle) = wanted else { return Err(self.unknown(handle, Kind::Stream, false)) };
        if self.streams[&handle].origin.device == device { Ok(handle) } else { Err(code::INVALID_HANDLE) }
    }

    /// Adds work to a stream. On the default stream it runs at once.
    pub(super) fn enqueue(&mut self, stream: u64, work: Work) -> Answer {
        let Some(target) = self.streams.get_mut(&stream) else { return Err(code::INVALID_HANDLE) };
        target.work.push_back(work);
        if target.default { self.drain_default(stream) } else { Ok(()) }
    }

    /// Runs the default stream, after the blocking streams of its device.
    pub(super) fn drain_default(&mut self, stream: u64) -> Answer {
        let device = self.streams[&stream].origin.device;
        for other in self.streams_of(device) {
            if self.streams[&other].blocking {
                self.drain(other)?;
            }
        }
        self.drain(stream)
    }

    /// Runs all of a stream.
    pub(super) fn drain(&mut self, stream: u64) -> Answer {
        while self.step(stream)? {}
        if self.streams.get(&stream).is_some_and(|stream| stream.ended) {
            self.streams.remove(&stream);
        }
        Ok(())
    }

    /// Runs a stream until an event has been recorded so often.
    fn drain_until(&mut self, event: u64, number: u64) -> Answer {
        while self.events.get(&event).is_some_and(|known| known.run < number) {
            if !self.step_towards(event)? {
                break;
            }
        }
        Ok(())
    }

    /// Runs one piece of work of the stream in which an event is recorded; false when it is recorded in none.
    pub(super) fn step_towards(&mut self, event: u64) -> Result<bool, u32> {
        let recorded_in = |work: &Work| matches!(work, Work::Record { event: at, .. } if *at == event);
        let stream = self.streams.iter().find(|(_, stream)| stream.work.iter().any(recorded_in));
        let Some(handle) = stream.map(|(&handle, _)| handle) else { return Ok(false) };
        self.step(handle)
    }

    /// Runs everything before the last record of an event.
    pub(super) fn wait_for(&mut self, event: u64) -> Answer {
        let Some(number) = self.events.get(&event).map(|event| event.recorded) else { return Ok(()) };
        self.drain_until(event, number)
    }

    /// Runs the first piece of work of a stream; false when there is none. The device's own failure is the answer.
    pub(super) fn step(&mut self, stream: u64) -> Result<bool, u32> {
        let Some(target) = self.streams.get_mut(&stream) else { return Ok(false) };
        let device = target.origin.device;
        let work = target.work.pop_front();
        if let Some(code) = self.devices[device].dead {
            return Err(code);
        }
        let Some(work) = work else { return Ok(false) };
        let result = match work {
            Work::Launch(launch) => self.run_launch(device, &launch),
            Work::Copy { to, from, bytes, by } => self.run_copy(device, &to, &from, bytes, by),
            Work::Set { to, value, bytes, by } => self.run_set(device, to, value, bytes, by),
            Work::Record { event, number } => {
                let now = self.streams[&stream].clock_us;
                if let Some(event) = self.events.get_mut(&event) {
                    event.run = event.run.max(number);
                    event.at_us = now;
                }
                Ok(0.0)
            }
            Work::Wait { event, number } => {
                self.drain_until(event, number)?;
                let at = self.events.get(&event).map_or(0.0, |event| event.at_us);
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.clock_us = stream.clock_us.max(at);
                }
                Ok(0.0)
            }
        };
        match result {
            Ok(took_us) => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.clock_us += took_us;
                }
                Ok(true)
            }
            Err(code) => {
                for stream in self.streams.values_mut().filter(|stream| stream.origin.device == device) {
                    stream.work.clear();
                }
                Err(self.kill(device, code))
            }
        }
    }

    /// Where the bytes of a known place are, or the refusal, recorded.
    fn reach(
        &mut self,
        device: usize,
        address: u64,
        bytes: u64,
        write: bool,
        by: &str,
    ) -> Result<Vec<(*mut u8, usize)>, u32> {
        match self.space.resolve(device, address, bytes, write) {
            Ok(parts) => Ok(parts),
            Err((cause, at)) => Err(self.violation(cause, code::ILLEGAL_ADDRESS, at, by.to_owned())),
        }
    }

    fn run_copy(&mut self, device: usize, to: &Place, from: &Place, bytes: u64, by: &str) -> Result<f64, u32> {
        let whole = bytes as usize;
        let host_end = !matches!((to, from), (Place::Known(_), Place::Known(_)))
            || [to, from].iter().any(|place| matches!(place, Place::Known(address) if self.is_host(*address)));
        let source = match from {
            Place::Known(address) => self.reach(device, *address, bytes, false, by)?,
            Place::Host(address) => vec![(*address as *mut u8, whole)],
            Place::Taken(bytes) => vec![(bytes.as_ptr().cast_mut(), whole)],
        };
        let target = match to {
            Place::Known(address) => self.reach(device, *address, bytes, true, by)?,
            Place::Host(address) => vec![(*address as *mut u8, whole)],
            Place::Taken(_) => return Err(code::INVALID_VALUE),
        };
        for (to, from, length) in pair_up(&target, &source) {
            // SAFETY: both ends were resolved to that many bytes just now, or are the caller's of this very call.
            unsafe { abi::copy(to, from, length) };
        }
        let rate = if host_end { self.plan.host_link_tb_s } else { self.plan.memory_tb_s };
        Ok(self.plan.operation_us + bytes as f64 / rate / 1e6)
    }

    fn run_set(&mut self, device: usize, to: u64, value: [u8; 4], bytes: u64, by: &str) -> Result<f64, u32> {
        let mut values = value.iter().cycle();
        for (start, length) in self.reach(device, to, bytes, true, by)? {
            if value == [value[0]; 4] {
                // SAFETY: resolved to that many bytes just now.
                unsafe { start.write_bytes(value[0], length) };
                continue;
            }
            for (at, value) in (0..length).zip(&mut values) {
                // SAFETY: as above.
                unsafe { start.add(at).write(*value) };
            }
        }
        Ok(self.plan.operation_us + bytes as f64 / self.plan.memory_tb_s / 1e6)
    }

    /// Whether the driver knows the address as pinned memory of the host.
    pub(super) fn is_host(&self, address: u64) -> bool {
        self.space.mapping(address).is_some_and(|(_, mapping)| self.space.pieces[&mapping.piece].kind.is_host())
    }

    /// Refuses a range that has no memory, as the driver does when it is asked, before anything runs.
    pub(super) fn check_range(&mut self, device: usize, address: u64, bytes: u64, by: &str) -> Answer {
        match self.space.resolve(device, address, bytes, false) {
            Err((cause @ (Cause::OutOfBounds | Cause::Released), at)) => {
                Err(self.violation(cause, code::INVALID_VALUE, at, by.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Cuts two lists of parts of the same total length into pairs of equal length.
fn pair_up(to: &[(*mut u8, usize)], from: &[(*mut u8, usize)]) -> Vec<(*mut u8, *const u8, usize)> {
    let (mut pairs, mut to, mut from) = (Vec::new(), to.iter().copied(), from.iter().copied());
    let (mut left, mut right) = (to.next(), from.next());
    while let (Some((write, wide)), Some((read, long))) = (left, right) {
        let length = wide.min(long);
        pairs.push((write, read.cast_const(), length));
        // SAFETY: `length` is at most the length of both parts.
        let (write, read) = unsafe { (write.add(length), read.add(length)) };
        left = if wide > length { Some((write, wide - length)) } else { to.next() };
        right = if long > length { Some((read, long - length)) } else { from.next() };
    }
    pairs
}
