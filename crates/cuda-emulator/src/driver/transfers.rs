//! Memory without handles, memory of the host, copies and fills.

use super::abi::{AllocationProp, Location, Out, code};
use super::calls::driver_calls;
use super::memory::Pages;
use super::queue::{Place, Work};
use super::{Answer, State};
use crate::report::Kind;

impl State {
    fn plain_prop(device: usize) -> AllocationProp {
        let location = Location { kind: 1, id: i32::try_from(device).unwrap_or(0) };
        AllocationProp { kind: 1, requested_handle_types: 0, location, win32: 0, flags: [0; 8] }
    }

    /// Memory at device addresses of its own, readable and writable.
    fn allocate(&mut self, address: Out<u64>, bytes: u64) -> Answer {
        let device = self.device()?;
        if address.0.is_null() || bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let start = self.space.arena.take(bytes, GUARD)?;
        let id = self.new_piece(Kind::Allocation, device, bytes, Self::plain_prop(device))?;
        self.map_piece(start, id, 3);
        address.set(start)
    }

    /// Memory that host and device use at the same address.
    fn allocate_for_host(&mut self, bytes: u64, kind: Kind) -> Result<u64, u32> {
        let device = self.device()?;
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let id = self.new_piece(kind, device, bytes, Self::plain_prop(device))?;
        let start = self.space.pieces[&id].pages.host as u64;
        self.map_piece(start, id, 3);
        self.gone.remove(&(kind, start));
        Ok(start)
    }

    fn free(&mut self, address: u64, kinds: &[Kind]) -> Answer {
        let device = self.device()?;
        let found = self.space.mappings.get(&address).map(|mapping| self.space.pieces[&mapping.piece].kind);
        let Some(kind) = found.filter(|kind| kinds.contains(kind)) else {
            let kind = kinds.iter().copied().find(|kind| self.gone.contains(&(*kind, address))).unwrap_or(kinds[0]);
            return Err(self.unknown(address, kind, true));
        };
        // The driver waits for the device before it takes memory away.
        for stream in self.streams_of(device) {
            self.drain(stream)?;
        }
        self.unmap(address);
        self.gone.insert((kind, address));
        Ok(())
    }

    /// A copy that is done when the call returns.
    fn copy_now(&mut self, to: Place, from: Place, bytes: usize) -> Answer {
        let device = self.device()?;
        let (bytes, by) = (bytes as u64, self.current.0);
        self.check_places(device, &to, &from, bytes, by)?;
        let stream = self.stream(0)?;
        self.enqueue(stream, Work::Copy { to, from, bytes, by })
    }

    /// A copy in a stream. What the driver does not know of is read now, or waited for.
    fn copy_later(&mut self, to: Place, from: Place, bytes: usize, stream: u64) -> Answer {
        let device = self.device()?;
        let stream = self.stream(stream)?;
        let (bytes, by) = (bytes as u64, self.current.0);
        self.check_places(device, &to, &from, bytes, by)?;
        let waits = matches!(to, Place::Host(_));
        let from = match from {
            Place::Host(address) => Place::Taken(read(address, bytes)),
            other => other,
        };
        self.enqueue(stream, Work::Copy { to, from, bytes, by })?;
        if waits { self.drain(stream) } else { Ok(()) }
    }

    fn check_places(&mut self, device: usize, to: &Place, from: &Place, bytes: u64, by: &str) -> Answer {
        if [to, from].iter().any(|place| matches!(place, Place::Host(_))) {
            self.report.pageable_bytes += bytes;
        }
        for place in [to, from] {
            match place {
                Place::Known(address) => self.check_range(device, *address, bytes, by)?,
                Place::Host(0) if bytes > 0 => return Err(code::INVALID_VALUE),
                Place::Host(_) | Place::Taken(_) => {}
            }
        }
        Ok(())
    }

    /// An address of the host: known when it was pinned by the driver.
    fn host_place(&self, address: u64) -> Place {
        if self.space.mapping(address).is_some() { Place::Known(address) } else { Place::Host(address) }
    }

    fn set_later(&mut self, to: u64, value: [u8; 4], bytes: usize, stream: u64) -> Answer {
        let device = self.device()?;
        let stream = self.stream(stream)?;
        let (bytes, by) = (bytes as u64, self.current.0);
        self.check_range(device, to, bytes, by)?;
        self.enqueue(stream, Work::Set { to, value, bytes, by })
    }
}

/// Alignment of `cuMemAlloc_v2`.
const GUARD: u64 = 512;

/// The bytes of the caller's memory.
fn read(address: u64, bytes: u64) -> Vec<u8> {
    let mut taken = vec![0_u8; bytes as usize];
    // SAFETY: the caller of the driver call promises that many bytes there.
    unsafe { super::abi::copy(taken.as_mut_ptr(), address as *const u8, taken.len()) };
    taken
}

driver_calls! {
    /// Memory of the current device.
    fn cuMemAlloc_v2(state, address: Out<u64>, bytes: usize) {
        state.allocate(address, bytes as u64)
    }

    /// Frees it, or managed memory.
    fn cuMemFree_v2(state, address: u64) release(address) {
        state.free(address, &[Kind::Allocation, Kind::Managed])
    }

    /// Memory that moves between host and device.
    fn cuMemAllocManaged(state, address: Out<u64>, bytes: usize, flags: u32) {
        if !matches!(flags, 1 | 2) || address.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let start = state.allocate_for_host(bytes as u64, Kind::Managed)?;
        address.set(start)
    }

    /// Pinned memory of the host.
    fn cuMemHostAlloc(state, address: Out<u64>, bytes: usize, flags: u32) {
        if flags > 7 || address.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let start = state.allocate_for_host(bytes as u64, Kind::Host)?;
        address.set(start)
    }

    /// Frees it.
    fn cuMemFreeHost(state, address: u64) release(address) {
        state.free(address, &[Kind::Host])
    }

    /// Pins memory of the process, which stays the process's.
    fn cuMemHostRegister_v2(state, address: u64, bytes: usize, flags: u32) {
        let device = state.device()?;
        let bytes = bytes as u64;
        let end = address.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        if address == 0 || bytes == 0 || flags > 15 {
            return Err(code::INVALID_VALUE);
        }
        if state.space.mapping(address).is_some() || state.space.mappings.range(address..end).next().is_some() {
            return Err(code::ALREADY_REGISTERED);
        }
        let pages = Pages::registered(address, bytes)?;
        let prop = State::plain_prop(device);
        let id = state.add_piece(Kind::Registered, device, bytes, prop, pages, false);
        state.map_piece(address, id, 3);
        state.gone.remove(&(Kind::Registered, address));
        Ok(())
    }

    /// Undoes that.
    fn cuMemHostUnregister(state, address: u64) release(address) {
        state.free(address, &[Kind::Registered])
    }

    /// Where a device sees pinned memory: at the same address.
    fn cuMemHostGetDevicePointer_v2(state, device_address: Out<u64>, address: u64, flags: u32) {
        state.device()?;
        if flags != 0 || !state.is_host(address) {
            return Err(code::INVALID_VALUE);
        }
        device_address.set(address)
    }

    /// Copies to the device.
    fn cuMemcpyHtoD_v2(state, to: u64, from: u64, bytes: usize) {
        let from = state.host_place(from);
        state.copy_now(Place::Known(to), from, bytes)
    }

    /// Copies from the device.
    fn cuMemcpyDtoH_v2(state, to: u64, from: u64, bytes: usize) {
        let to = state.host_place(to);
        state.copy_now(to, Place::Known(from), bytes)
    }

    /// Copies to the device, in a stream.
    fn cuMemcpyHtoDAsync_v2(state, to: u64, from: u64, bytes: usize, stream: u64) {
        let from = state.host_place(from);
        state.copy_later(Place::Known(to), from, bytes, stream)
    }

    /// Copies from the device, in a stream.
    fn cuMemcpyDtoHAsync_v2(state, to: u64, from: u64, bytes: usize, stream: u64) {
        let to = state.host_place(to);
        state.copy_later(to, Place::Known(from), bytes, stream)
    }

    /// Copies within the device, in a stream.
    fn cuMemcpyDtoDAsync_v2(state, to: u64, from: u64, bytes: usize, stream: u64) {
        state.copy_later(Place::Known(to), Place::Known(from), bytes, stream)
    }

    /// Fills memory of the device.
    fn cuMemsetD8_v2(state, to: u64, value: u8, bytes: usize) {
        state.set_later(to, [value; 4], bytes, 0)
    }

    /// Fills memory of the device, in a stream.
    fn cuMemsetD8Async(state, to: u64, value: u8, bytes: usize, stream: u64) {
        state.set_later(to, [value; 4], bytes, stream)
    }

    /// Fills memory of the device with words, in a stream.
    fn cuMemsetD32Async(state, to: u64, value: u32, words: usize, stream: u64) {
        if !to.is_multiple_of(4) {
            return Err(code::INVALID_VALUE);
        }
        state.set_later(to, value.to_le_bytes(), words.saturating_mul(4), stream)
    }
}
