//! Loads, stores and atomic operations, lane by lane.

use super::Trap;
use super::exec::{Block, Warp, lanes_of};
use super::ir::{Address, Atomic, Base, Reg, Space, Ty};
use super::lower::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::report::Cause;

/// Where a lane's address leads for the host.
#[inline(always)]
fn place(
    block: &mut Block<'_>,
    warp: &Warp,
    address: Address,
    lane: usize,
    bytes: u64,
    write: bool,
) -> Result<*mut u8, Trap> {
    let base = match address.base {
        Base::None => 0,
        Base::Narrow(slot) => u64::from(warp.narrow[slot as usize][lane]),
        Base::Wide(slot) => warp.wide[slot as usize][lane],
    };
    let at = base.wrapping_add(address.offset.cast_unsigned());
    match address.space {
        Space::Global => block.view.at(at, bytes, write),
        Space::Generic if at < SHARED_WINDOW => block.view.at(at, bytes, write),
        Space::Generic if at < LOCAL_WINDOW => own(block, warp, Space::Shared, at - SHARED_WINDOW, lane, bytes, write),
        Space::Generic if at < PARAM_WINDOW => own(block, warp, Space::Local, at - LOCAL_WINDOW, lane, bytes, write),
        Space::Generic => own(block, warp, Space::Param, at.wrapping_sub(PARAM_WINDOW), lane, bytes, write),
        space => own(block, warp, space, at, lane, bytes, write),
    }
}

/// The same for memory of the block itself.
fn own(
    block: &mut Block<'_>,
    warp: &Warp,
    space: Space,
    at: u64,
    lane: usize,
    bytes: u64,
    write: bool,
) -> Result<*mut u8, Trap> {
    let outside = Trap::new(Cause::OutOfBounds, at);
    if at & (bytes - 1) != 0 {
        return Err(Trap::new(Cause::Misaligned, at));
    }
    let end = at.checked_add(bytes).ok_or(outside.clone())?;
    let (start, size) = match space {
        Space::Shared => (block.shared.as_mut_ptr(), block.shared.len()),
        Space::Local => {
            let thread = warp.number as usize * super::lanes::LANES + lane;
            let first = thread * block.local_bytes;
            let Some(part) = block.local.get_mut(first..first + block.local_bytes) else { return Err(outside) };
            (part.as_mut_ptr(), part.len())
        }
        _ if write => return Err(Trap::new(Cause::ReadOnly, at)),
        _ => (block.params.as_ptr().cast_mut(), block.params.len()),
    };
    if end > size as u64 {
        return Err(outside);
    }
    // SAFETY: inside the memory of that size.
    Ok(unsafe { start.add(at as usize) })
}

/// Reads a number, extended as its type says.
#[inline(always)]
fn read(from: *const u8, ty: Ty) -> u64 {
    // SAFETY: `place` checked that the number is there. Others may write at the same time, as on a device.
    unsafe {
        match ty {
            Ty::U8 => u64::from(from.read()),
            Ty::S8 => i64::from(from.cast::<i8>().read()).cast_unsigned(),
            Ty::U16 => u64::from(from.cast::<u16>().read_unaligned()),
            Ty::S16 => i64::from(from.cast::<i16>().read_unaligned()).cast_unsigned(),
            Ty::U32 | Ty::F32 => u64::from(from.cast::<u32>().read_unaligned()),
            Ty::S32 => i64::from(from.cast::<i32>().read_unaligned()).cast_unsigned(),
            Ty::U64 | Ty::S64 | Ty::F64 => from.cast::<u64>().read_unaligned(),
        }
    }
}

#[inline(always)]
fn write(to: *mut u8, ty: Ty, value: u64) {
    // SAFETY: as in `read`.
    unsafe {
        match ty.bytes() {
            1 => to.write(value as u8),
            2 => to.cast::<u16>().write_unaligned(value as u16),
            4 => to.cast::<u32>().write_unaligned(value as u32),
            _ => to.cast::<u64>().write_unaligned(value),
        }
    }
}

#[inline(always)]
pub(super) fn load(
    block: &mut Block<'_>,
    warp: &mut Warp,
    ty: Ty,
    to: &[Reg],
    address: Address,
    mask: u32,
) -> Result<(), Trap> {
    let bytes = ty.bytes();
    for lane in lanes_of(mask) {
        let from = place(block, warp, address, lane, (bytes * to.len()) as u64, false)?;
        for (index, &register) in to.iter().enumerate() {
            // SAFETY: `place` checked all of the vector.
            let value = read(unsafe { from.add(index * bytes) }, ty);
            warp.set_lane(register, lane, value);
        }
    }
    Ok(())
}

#[inline(always)]
pub(super) fn store(
    block: &mut Block<'_>,
    warp: &mut Warp,
    ty: Ty,
    from: &[Reg],
    address: Address,
    mask: u32,
) -> Result<(), Trap> {
    let bytes = ty.bytes();
    for lane in lanes_of(mask) {
        let to = place(block, warp, address, lane, (bytes * from.len()) as u64, true)?;
        for (index, &register) in from.iter().enumerate() {
            // SAFETY: `place` checked all of the vector.
            write(unsafe { to.add(index * bytes) }, ty, warp.lane(register, lane));
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the parts of one instruction")]
pub(super) fn atomic(
    block: &mut Block<'_>,
    warp: &mut Warp,
    what: Atomic,
    ty: Ty,
    d: Reg,
    address: Address,
    [b, c]: [Reg; 2],
    mask: u32,
) -> Result<(), Trap> {
    for lane in lanes_of(mask) {
        let at = place(block, warp, address, lane, ty.bytes() as u64, true)?;
        let (old, b, c) = (read(at, ty), warp.lane(b, lane), warp.lane(c, lane));
        let ordered = |value: u64| match ty {
            Ty::S32 => i64::from(value as i32),
            Ty::U32 => i64::from(value as u32),
            _ => value.cast_signed(),
        };
        // For u64 the sign bit turned makes signed order the unsigned one.
        let turn = if ty == Ty::U64 { i64::MIN } else { 0 };
        let less = (ordered(b) ^ turn) < (ordered(old) ^ turn);
        let own = |value: u64| if ty.bytes() == 4 { value & 0xffff_ffff } else { value };
        let new = match what {
            Atomic::Add => old.wrapping_add(b),
            Atomic::FAdd => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
            Atomic::Min => {
                if less {
                    b
                } else {
                    old
                }
            }
            Atomic::Max => {
                if less {
                    old
                } else {
                    b
                }
            }
            Atomic::And => old & b,
            Atomic::Or => old | b,
            Atomic::Xor => old ^ b,
            Atomic::Exchange => b,
            Atomic::CompareSwap => {
                if own(old) == own(b) {
                    c
                } else {
                    old
                }
            }
            Atomic::Inc => {
                if own(old) >= own(b) {
                    0
                } else {
                    old + 1
                }
            }
            Atomic::Dec => {
                if own(old) == 0 || own(old) > own(b) {
                    b
                } else {
                    old - 1
                }
            }
        };
        write(at, ty, new);
        warp.set_lane(d, lane, old);
    }
    Ok(())
}
