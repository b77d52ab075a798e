//! Memory of the emulated devices: pages of a memfd behind addresses that the host cannot touch.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::abi::{AllocationProp, code};
use crate::plan::Memory;
use crate::report::{Cause, Kind};

/// Size and alignment of `cuMemCreate`, `cuMemMap` and `cuMemAddressReserve`: 2 MiB.
pub(crate) const GRANULARITY: u64 = 2 << 20;
/// Addresses that the emulated devices share: 8 TiB of the process, never touched.
const ARENA_BYTES: u64 = 8 << 40;
/// What fresh memory holds, as far as it is filled: not zero, because a device's is not either.
const STALE: u8 = 0xa5;
/// How much of fresh memory is filled with [`STALE`], so that large ones take no memory of the host.
const STALE_BYTES: usize = 4 << 20;

/// Pages of a memfd, mapped for the emulator's own use.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) file: OwnedFd,
    pub(crate) host: *mut u8,
    pub(crate) bytes: usize,
    /// Not the process's own memory under another name.
    ours: bool,
}

// SAFETY: the pages belong to the process, not to a thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Fresh pages. `name` is what another process reads of it.
    pub(crate) fn new(bytes: u64, name: &str) -> Result<Self, u32> {
        let name = std::ffi::CString::new(name).map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: a NUL-terminated name; the result is checked.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(code::OPERATING_SYSTEM);
        }
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = i64::try_from(bytes).map_err(|_| code::OUT_OF_MEMORY)?;
        // SAFETY: an open descriptor.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size) } != 0 {
            return Err(code::OUT_OF_MEMORY);
        }
        let pages = Self::map(file, bytes)?;
        // SAFETY: fresh pages of that size, which nobody else knows.
        unsafe { pages.host.write_bytes(STALE, pages.bytes.min(STALE_BYTES)) };
        Ok(pages)
    }

    /// Memory that the process has already. A file stands for it, to tell it from other memory.
    pub(crate) fn registered(host: u64, bytes: u64) -> Result<Self, u32> {
        let bytes = usize::try_from(bytes).map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: a NUL-terminated name; the result is checked.
        let fd = unsafe { libc::memfd_create(c"registered".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(code::OPERATING_SYSTEM);
        }
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { file, host: host as *mut u8, bytes, ours: false })
    }

    /// Pages of a file that another process made.
    pub(crate) fn map(file: OwnedFd, bytes: u64) -> Result<Self, u32> {
        let bytes = usize::try_from(bytes).map_err(|_| code::OUT_OF_MEMORY)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel likes.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(code::OUT_OF_MEMORY);
        }
        Ok(Self { file, host: host.cast(), bytes, ours: true })
    }

    /// What tells these pages from others, in every process: the number of the file.
    pub(crate) fn block(&self) -> u64 {
        // SAFETY: all zeros is a value of this structure of numbers.
        let mut facts: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor and a structure of the right type.
        unsafe { libc::fstat(self.file.as_raw_fd(), &raw mut facts) };
        facts.st_ino
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.ours {
            // SAFETY: mapped by `map` with this length, and this is the only owner.
            unsafe { libc::munmap(self.host.cast(), self.bytes) };
        }
    }
}

/// The addresses handed out as device addresses: mapped without access, so that a host that follows one faults.
#[derive(Debug)]
pub(crate) struct Arena {
    base: u64,
    next: u64,
}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self { base: 0, next: 0 }
    }

    /// Addresses that were never handed out since the last reset. A gap follows, so that an overrun hits nothing.
    pub(crate) fn take(&mut self, bytes: u64, alignment: u64) -> Result<u64, u32> {
        if self.base == 0 {
            // SAFETY: a new mapping without access wherever the kernel likes.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    usize::try_from(ARENA_BYTES).map_err(|_| code::OUT_OF_MEMORY)?,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                return Err(code::OUT_OF_MEMORY);
            }
            self.base = base as u64;
            self.next = self.base;
        }
        let start = self.next.checked_next_multiple_of(alignment).ok_or(code::OUT_OF_MEMORY)?;
        let end = start.checked_add(bytes).and_then(|end| end.checked_add(GRANULARITY)).ok_or(code::OUT_OF_MEMORY)?;
        if end > self.base + ARENA_BYTES {
            return Err(code::OUT_OF_MEMORY);
        }
        self.next = end;
        Ok(start)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.base;
    }
}

/// A piece of memory, however it was made.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    pub(crate) device: usize,
    pub(crate) pages: Pages,
    pub(crate) bytes: u64,
    pub(crate) made_by: Memory,
    /// Handle of `cuMemCreate` and how often it is held.
    pub(crate) handle: u64,
    pub(crate) references: u32,
    pub(crate) mappings: u32,
    pub(crate) prop: AllocationProp,
    /// Counted against its device's memory: not what was imported.
    pub(crate) counted: bool,
}

/// Memory at addresses.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    pub(crate) bytes: u64,
    pub(crate) piece: u64,
    /// Where in the piece it begins: not at 0 behind a place where access changes.
    pub(crate) offset: u64,
    /// Access by device: 0, 1 read, 3 read and write.
    pub(crate) access: Vec<u8>,
    /// What the readings say where `cuMemSetAccess` lies.
    pub(crate) claimed: Vec<u8>,
}

/// Addresses that `cuMemAddressReserve` gave.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) bytes: u64,
    pub(crate) nth: u64,
}

/// A slow part of a piece.
#[derive(Debug, Clone)]
pub(crate) struct SlowPart {
    pub(crate) memory: Memory,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) factor: f64,
}

/// A lie about a piece.
#[derive(Debug, Clone)]
pub(crate) enum Lie {
    Attribute { attribute: i32, value: u64 },
    Properties { kind: u32, location_kind: u32, location: i32 },
}

/// All memory and all addresses of the process.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) arena: Arena,
    pub(crate) pieces: BTreeMap<u64, Piece>,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
    pub(crate) reservations: BTreeMap<u64, Reservation>,
    /// What was mapped once and is no more: start and bytes.
    pub(crate) released: Vec<(u64, u64)>,
}

impl Space {
    pub(crate) const fn new() -> Self {
        Self {
            arena: Arena::new(),
            pieces: BTreeMap::new(),
            mappings: BTreeMap::new(),
            reservations: BTreeMap::new(),
            released: Vec::new(),
        }
    }

    /// The mapping around an address, with its start.
    pub(crate) fn mapping(&self, address: u64) -> Option<(u64, &Mapping)> {
        let (&start, mapping) = self.mappings.range(..=address).next_back()?;
        (address - start < mapping.bytes).then_some((start, mapping))
    }

    /// The reservation around an address, with its start.
    pub(crate) fn reservation(&self, address: u64) -> Option<(u64, &Reservation)> {
        let (&start, reservation) = self.reservations.range(..=address).next_back()?;
        (address - start < reservation.bytes).then_some((start, reservation))
    }

    /// Starts of the mappings that make up exactly this range.
    pub(crate) fn exactly(&self, start: u64, bytes: u64) -> Option<Vec<u64>> {
        let end = start.checked_add(bytes).filter(|_| bytes > 0)?;
        let (mut at, mut starts) = (start, Vec::new());
        while at < end {
            let mapping = self.mappings.get(&at)?;
            starts.push(at);
            at += mapping.bytes;
        }
        (at == end).then_some(starts)
    }

    /// The same for a range that need not begin and end where mappings do: they are cut there. What is mapped to what, and
    /// what is allowed, stays.
    pub(crate) fn cut(&mut self, start: u64, bytes: u64) -> Option<Vec<u64>> {
        let end = start.checked_add(bytes)?;
        for at in [start, end] {
            let Some((first, mapping)) = self.mapping(at).filter(|(first, _)| *first != at) else { continue };
            let (mut front, mut back) = (mapping.clone(), mapping.clone());
            front.bytes = at - first;
            back.bytes -= front.bytes;
            back.offset += front.bytes;
            self.pieces.get_mut(&front.piece)?.mappings += 1;
            self.mappings.insert(first, front);
            self.mappings.insert(at, back);
        }
        self.exactly(start, bytes)
    }

    /// Whether these mappings are all of each piece that they map, from its first byte to its last.
    pub(crate) fn are_whole(&self, starts: &[u64]) -> bool {
        let mut from = 0;
        for start in starts {
            let mapping = &self.mappings[start];
            if mapping.offset != from {
                return false;
            }
            from = mapping.offset + mapping.bytes;
            if from == self.pieces[&mapping.piece].bytes {
                from = 0;
            }
        }
        from == 0
    }

    /// Where the bytes of a range are for the host, in pieces, if this device may access them so.
    pub(crate) fn resolve(
        &self,
        device: usize,
        address: u64,
        bytes: u64,
        write: bool,
    ) -> Result<Vec<(*mut u8, usize)>, (Cause, u64)> {
        let (mut at, mut left, mut parts) = (address, bytes, Vec::new());
        while left > 0 {
            let Some((start, mapping)) = self.mapping(at) else { return Err((self.why_absent(at), at)) };
            let access = mapping.access.get(device).copied().unwrap_or(0);
            match (access, write) {
                (0, _) => return Err((Cause::NoAccess, at)),
                (1, true) => return Err((Cause::ReadOnly, at)),
                _ => {}
            }
            let piece = &self.pieces[&mapping.piece];
            let offset = at - start;
            let length = left.min(mapping.bytes - offset);
            // SAFETY: inside the piece, whose pages are mapped as long as it lives.
            parts.push((unsafe { piece.pages.host.add((mapping.offset + offset) as usize) }, length as usize));
            at += length;
            left -= length;
        }
        Ok(parts)
    }

    /// Why there is no memory at an address.
    pub(crate) fn why_absent(&self, address: u64) -> Cause {
        let gone = self.released.iter().any(|&(start, bytes)| address >= start && address - start < bytes);
        if gone { Cause::Released } else { Cause::OutOfBounds }
    }

    /// Takes a mapping away, and its piece with it when nothing holds that any more. Returns the device and the bytes
    /// that it gives back.
    pub(crate) fn unmap(&mut self, start: u64) -> Option<(usize, u64)> {
        let mapping = self.mappings.remove(&start)?;
        self.released.push((start, mapping.bytes));
        let piece = self.pieces.get_mut(&mapping.piece)?;
        piece.mappings -= 1;
        self.drop_if_free(mapping.piece)
    }

    /// Lets go of a piece that has neither handle nor mapping.
    pub(crate) fn drop_if_free(&mut self, id: u64) -> Option<(usize, u64)> {
        let piece = self.pieces.get(&id)?;
        if piece.references > 0 || piece.mappings > 0 {
            return None;
        }
        let freed = piece.counted.then_some((piece.device, piece.bytes));
        self.pieces.remove(&id);
        freed
    }

    /// The piece that a call made.
    pub(crate) fn piece_made_by(&self, memory: &Memory) -> Option<&Piece> {
        self.pieces.values().find(|piece| piece.made_by == *memory)
    }
}
