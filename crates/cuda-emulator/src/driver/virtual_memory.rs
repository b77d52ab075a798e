//! Physical memory by handle, reserved addresses, mappings and their access.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use super::abi::{AccessDesc, AllocationProp, In, Location, Out, code};
use super::calls::driver_calls;
use super::memory::{GRANULARITY, Lie, Mapping, Pages, Piece, Reservation};
use super::{Answer, State};
use crate::plan::Memory;
use crate::report::Kind;

/// What the memfd of a piece is called, before its device's UUID and its size: how an import knows them, in a process that
/// may number the devices otherwise.
const NAME: &str = "cuda-emulator";
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const POSIX_FD: u32 = 1;

/// A UUID as text.
fn hex(uuid: &[u8; 16]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    /// Bytes of a device's memory that are still free.
    pub(super) fn free_bytes(&self, device: usize) -> u64 {
        let plan = &self.plan.devices[device];
        plan.memory.saturating_sub(plan.taken).saturating_sub(self.devices[device].bytes)
    }

    /// A new piece of memory of a device, counted against it unless it is the host's.
    pub(super) fn new_piece(
        &mut self,
        kind: Kind,
        device: usize,
        bytes: u64,
        prop: AllocationProp,
    ) -> Result<u64, u32> {
        let counted = !kind.is_host();
        if counted && bytes > self.free_bytes(device) {
            return Err(code::OUT_OF_MEMORY);
        }
        let pages = Pages::new(bytes, &format!("{NAME}:{}:{bytes}", hex(&self.plan.devices[device].uuid)))?;
        if counted {
            self.devices[device].bytes += bytes;
        }
        Ok(self.add_piece(kind, device, bytes, prop, pages, counted))
    }

    pub(super) fn add_piece(
        &mut self,
        kind: Kind,
        device: usize,
        bytes: u64,
        prop: AllocationProp,
        pages: Pages,
        counted: bool,
    ) -> u64 {
        let id = self.fresh_handle();
        let made_by = Memory { call: self.current.0.to_owned(), nth: self.current.1 };
        let references = u32::from(kind == Kind::Handle);
        let piece = Piece { kind, device, pages, bytes, made_by, handle: id, references, mappings: 0, prop, counted };
        self.space.pieces.insert(id, piece);
        id
    }

    /// Maps a piece at an address. `access` is for the piece's own device; the host's memory is everybody's.
    pub(super) fn map_piece(&mut self, start: u64, id: u64, access: u8) {
        let Some(piece) = self.space.pieces.get_mut(&id) else { return };
        piece.mappings += 1;
        let everybody = piece.kind.is_host() || piece.kind == Kind::Managed;
        let rights: Vec<u8> =
            (0..self.devices.len()).map(|at| if at == piece.device || everybody { access } else { 0 }).collect();
        let bytes = piece.bytes;
        self.space
            .mappings
            .insert(start, Mapping { bytes, piece: id, offset: 0, claimed: rights.clone(), access: rights });
    }

    /// The piece of a handle that is held.
    fn held(&mut self, handle: u64, release: bool) -> Result<&mut Piece, u32> {
        self.ready()?;
        let held = self.space.pieces.get(&handle).is_some_and(|piece| piece.references > 0);
        if !held {
            return Err(self.unknown(handle, Kind::Handle, release));
        }
        let device = self.space.pieces[&handle].device;
        self.alive(device)?;
        self.space.pieces.get_mut(&handle).ok_or(code::INVALID_VALUE)
    }

    fn device_of_prop(&self, prop: AllocationProp) -> Result<usize, u32> {
        if prop.kind != 1 || prop.location.kind != 1 || prop.win32 != 0 {
            return Err(code::INVALID_VALUE);
        }
        let device = self.ordinal(prop.location.id)?;
        self.alive(device)?;
        if !self.plan.devices[device].virtual_memory {
            return Err(code::NOT_SUPPORTED);
        }
        if prop.requested_handle_types & !POSIX_FD != 0 {
            return Err(code::NOT_SUPPORTED);
        }
        Ok(device)
    }

    /// Fails with what a dead device answers, if any piece in the range is of one.
    fn alive_at(&self, starts: &[u64]) -> Answer {
        starts.iter().try_for_each(|start| self.alive(self.space.pieces[&self.space.mappings[start].piece].device))
    }

    fn set_access(&mut self, start: u64, bytes: u64, desc: AccessDesc) -> Answer {
        if desc.location.kind != 1 || !matches!(desc.flags, 0 | 1 | 3) {
            return Err(code::INVALID_VALUE);
        }
        let device = self.ordinal(desc.location.id)?;
        let parts = self.plan.devices[device].access_in_parts;
        let granules = start.is_multiple_of(GRANULARITY) && bytes.is_multiple_of(GRANULARITY);
        let starts = if parts && granules { self.space.cut(start, bytes) } else { self.space.exactly(start, bytes) };
        let starts = starts.ok_or(code::INVALID_VALUE)?;
        self.alive_at(&starts)?;
        if !parts && !self.space.are_whole(&starts) {
            return Err(code::INVALID_VALUE);
        }
        if starts.iter().any(|start| self.space.pieces[&self.space.mappings[start].piece].kind != Kind::Handle) {
            return Err(code::INVALID_VALUE);
        }
        let lie = self.faults.set_access_lies().filter(|_| desc.flags == 1);
        for start in starts {
            let Some(mapping) = self.space.mappings.get_mut(&start) else { continue };
            let flags = desc.flags.to_le_bytes()[0];
            if lie.is_none() {
                mapping.access[device] = flags;
            }
            if lie != Some(false) {
                mapping.claimed[device] = flags;
            }
        }
        Ok(())
    }
}

driver_calls! {
    /// Size that allocations and addresses are multiples of.
    fn cuMemGetAllocationGranularity(state, granularity: Out<usize>, prop: In<AllocationProp>, option: u32) {
        state.device_of_prop(prop.get()?)?;
        if option > 1 {
            return Err(code::INVALID_VALUE);
        }
        granularity.set(GRANULARITY as usize)
    }

    /// Makes physical memory.
    fn cuMemCreate(state, handle: Out<u64>, bytes: usize, prop: In<AllocationProp>, flags: u64) {
        let prop = prop.get()?;
        let device = state.device_of_prop(prop)?;
        let bytes = bytes as u64;
        if handle.0.is_null() || flags != 0 || bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(code::INVALID_VALUE);
        }
        let id = state.new_piece(Kind::Handle, device, bytes, prop)?;
        handle.set(id)
    }

    /// Lets go of a handle; the memory stays while it is mapped.
    fn cuMemRelease(state, handle: u64) release(handle) {
        let piece = state.held(handle, true)?;
        piece.references -= 1;
        if piece.references == 0 {
            state.gone.insert((Kind::Handle, handle));
            if let Some((device, bytes)) = state.space.drop_if_free(handle) {
                state.devices[device].bytes -= bytes;
            }
        }
        Ok(())
    }

    /// Reserves addresses.
    fn cuMemAddressReserve(state, address: Out<u64>, bytes: usize, alignment: usize, wish: u64, flags: u64) {
        state.ready()?;
        let _ = wish;
        let (bytes, alignment) = (bytes as u64, alignment as u64);
        let aligned = alignment == 0 || alignment.is_power_of_two();
        if address.0.is_null() || flags != 0 || bytes == 0 || !bytes.is_multiple_of(GRANULARITY) || !aligned {
            return Err(code::INVALID_VALUE);
        }
        let start = state.space.arena.take(bytes, alignment.max(GRANULARITY))?;
        let nth = state.current.1;
        state.space.reservations.insert(start, Reservation { bytes, nth });
        address.set(start)
    }

    /// Gives addresses back: all of a reservation, with nothing mapped in it.
    fn cuMemAddressFree(state, address: u64, bytes: usize) release(address) {
        state.ready()?;
        let bytes = bytes as u64;
        if state.space.reservations.get(&address).is_none_or(|range| range.bytes != bytes) {
            return Err(state.unknown(address, Kind::Reservation, true));
        }
        if state.space.mappings.range(address..address + bytes).next().is_some() {
            return Err(code::INVALID_VALUE);
        }
        state.space.reservations.remove(&address);
        state.gone.insert((Kind::Reservation, address));
        Ok(())
    }

    /// Maps all of an allocation at reserved addresses. Nobody has access yet.
    fn cuMemMap(state, address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let bytes = bytes as u64;
        let piece = state.held(handle, false)?;
        if flags != 0 || offset != 0 || bytes != piece.bytes || !address.is_multiple_of(GRANULARITY) {
            return Err(code::INVALID_VALUE);
        }
        let end = address.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        if state.space.reservation(address).is_none_or(|(start, range)| end > start + range.bytes) {
            return Err(state.unknown(address, Kind::Reservation, false));
        }
        let taken = state.space.mapping(address).is_some() || state.space.mappings.range(address..end).next().is_some();
        if taken {
            return Err(code::INVALID_VALUE);
        }
        state.map_piece(address, handle, 0);
        state.gone.remove(&(Kind::Mapping, address));
        Ok(())
    }

    /// Takes whole mappings away.
    fn cuMemUnmap(state, address: u64, bytes: usize) release(address) {
        state.ready()?;
        let Some(starts) = state.space.exactly(address, bytes as u64) else {
            return Err(state.unknown(address, Kind::Mapping, true));
        };
        state.alive_at(&starts)?;
        if !state.space.are_whole(&starts) {
            return Err(code::INVALID_VALUE);
        }
        if starts.iter().any(|start| state.space.pieces[&state.space.mappings[start].piece].kind != Kind::Handle) {
            return Err(code::INVALID_VALUE);
        }
        for start in starts {
            state.unmap(start);
            state.gone.insert((Kind::Mapping, start));
        }
        Ok(())
    }

    /// Sets who may do what with whole mappings.
    fn cuMemSetAccess(state, address: u64, bytes: usize, descs: In<AccessDesc>, count: usize) {
        state.ready()?;
        if count == 0 {
            return Err(code::INVALID_VALUE);
        }
        for index in 0..count {
            state.set_access(address, bytes as u64, descs.at(index)?)?;
        }
        Ok(())
    }

    /// What a device may do with the memory at an address.
    fn cuMemGetAccess(state, flags: Out<u64>, location: In<Location>, address: u64) {
        let location = location.get()?;
        if location.kind != 1 {
            return Err(code::INVALID_VALUE);
        }
        let device = state.ordinal(location.id)?;
        state.alive(device)?;
        let (_, mapping) = state.space.mapping(address).ok_or(code::INVALID_VALUE)?;
        // It belongs to `cuMemSetAccess`: of other memory there is nothing to tell.
        if state.space.pieces[&mapping.piece].kind != Kind::Handle {
            return Err(code::INVALID_VALUE);
        }
        flags.set(u64::from(mapping.claimed[device]))
    }

    /// Another hold on the handle of what is mapped at an address.
    fn cuMemRetainAllocationHandle(state, handle: Out<u64>, address: u64) {
        state.ready()?;
        let (_, mapping) = state.space.mapping(address).ok_or(code::INVALID_VALUE)?;
        let id = mapping.piece;
        let piece = state.space.pieces.get_mut(&id).ok_or(code::INVALID_VALUE)?;
        if piece.kind != Kind::Handle || handle.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let device = piece.device;
        state.alive(device)?;
        if let Some(piece) = state.space.pieces.get_mut(&id) {
            piece.references += 1;
        }
        state.gone.remove(&(Kind::Handle, id));
        handle.set(id)
    }

    /// How a handle's memory was made.
    fn cuMemGetAllocationPropertiesFromHandle(state, prop: Out<AllocationProp>, handle: u64) {
        let piece = state.held(handle, false)?;
        let (mut answer, made_by) = (piece.prop, piece.made_by.clone());
        for lie in state.faults.lies(&made_by) {
            if let Lie::Properties { kind, location_kind, location } = lie {
                answer.kind = kind;
                answer.location = Location { kind: location_kind, id: location };
            }
        }
        prop.set(answer)
    }

    /// A file descriptor for a handle's memory.
    fn cuMemExportToShareableHandle(state, shareable: Out<i32>, handle: u64, kind: u32, flags: u64) {
        let piece = state.held(handle, false)?;
        if flags != 0 || kind != POSIX_FD || piece.prop.requested_handle_types & POSIX_FD == 0 || shareable.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let copy = piece.pages.file.try_clone().map_err(|_| code::OPERATING_SYSTEM)?;
        shareable.set(copy.into_raw_fd())
    }

    /// A handle for the memory of a file descriptor, which stays the caller's.
    fn cuMemImportFromShareableHandle(state, handle: Out<u64>, shareable: u64, kind: u32) {
        state.ready()?;
        if kind != POSIX_FD || handle.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let fd = i32::try_from(shareable).map_err(|_| code::INVALID_VALUE)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| code::INVALID_VALUE)?;
        let name = link.to_string_lossy().into_owned();
        let mut parts = name.trim_start_matches("/memfd:").split([':', ' ']);
        let (Some(NAME), Some(device), Some(bytes)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(code::INVALID_VALUE);
        };
        let device = state.plan.devices.iter().position(|known| hex(&known.uuid) == device).ok_or(code::INVALID_DEVICE)?;
        state.alive(device)?;
        let bytes: u64 = bytes.parse().map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: the call above found it open, and the caller keeps it open during this one.
        let file = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(|_| code::OPERATING_SYSTEM)?;
        debug_assert!(file.as_raw_fd() != fd, "a copy of its own");
        let pages = Pages::map(file, bytes)?;
        let location = Location { kind: 1, id: i32::try_from(device).unwrap_or(0) };
        let prop =
            AllocationProp { kind: 1, requested_handle_types: POSIX_FD, location, win32: 0, flags: [0; 8] };
        let id = state.add_piece(Kind::Handle, device, bytes, prop, pages, false);
        handle.set(id)
    }
}
