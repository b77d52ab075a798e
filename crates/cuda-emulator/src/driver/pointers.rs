//! What the driver says of a pointer.

use super::State;
use super::abi::{In, Out, code};
use super::calls::driver_calls;
use super::memory::Lie;
use crate::report::Kind;

impl State {
    /// An attribute's value and its size in bytes; `None` where the pointer has none.
    fn attribute(&self, device: usize, attribute: i32, address: u64) -> Result<(u64, usize), u32> {
        let wide = match attribute {
            1 | 3 | 4 | 7 | 11 | 12 | 14 | 17..=20 => 8,
            2 | 6 | 8 | 9 | 10 | 13 | 15 | 16 => 4,
            _ => return Err(code::INVALID_VALUE),
        };
        let found = self.space.mapping(address);
        let around = self.space.reservation(address);
        let Some((start, mapping)) = found else {
            // Reserved addresses are known to the driver, mapped or not.
            let (start, range) = around.ok_or(code::INVALID_VALUE)?;
            let value = match attribute {
                11 => start,
                12 => range.bytes,
                13 => 0,
                _ => return Err(code::INVALID_VALUE),
            };
            return Ok((value, wide));
        };
        let piece = &self.space.pieces[&mapping.piece];
        for lie in self.faults.lies(&piece.made_by) {
            if let Lie::Attribute { attribute: about, value } = lie
                && about == attribute
            {
                return Ok((value, wide));
            }
        }
        let (range_start, range_bytes) = around.map_or((start, mapping.bytes), |(at, range)| (at, range.bytes));
        let truth = |holds: bool| u64::from(holds);
        let value = match attribute {
            1 => self.devices[piece.device].context.filter(|_| piece.kind != Kind::Handle).unwrap_or(0),
            2 => match piece.kind {
                kind if kind.is_host() => 1,
                _ => 2,
            },
            3 => address,
            4 if piece.kind.is_host() || piece.kind == Kind::Managed => address,
            7 | 20 => piece.pages.block(),
            6 | 15 => 0,
            8 => truth(piece.kind == Kind::Managed),
            9 => piece.device as u64,
            10 => truth(piece.kind == Kind::Allocation),
            11 => range_start,
            12 => range_bytes,
            13 => 1,
            14 => u64::from(piece.prop.requested_handle_types),
            16 => u64::from(mapping.claimed[device]),
            17 => 0,
            18 => piece.bytes,
            19 => start - mapping.offset,
            _ => return Err(code::INVALID_VALUE),
        };
        Ok((value, wide))
    }
}

/// Writes the low bytes of a value.
fn write(out: u64, value: u64, bytes: usize) -> Result<(), u32> {
    if bytes == 4 { Out(out as *mut u32).set(value as u32) } else { Out(out as *mut u64).set(value) }
}

driver_calls! {
    /// One attribute of a pointer.
    fn cuPointerGetAttribute(state, data: u64, attribute: i32, address: u64) {
        let device = state.device()?;
        let (value, bytes) = state.attribute(device, attribute, address)?;
        write(data, value, bytes)
    }

    /// Several attributes of a pointer; zero for those that it has not.
    fn cuPointerGetAttributes(state, count: u32, attributes: In<i32>, data: In<u64>, address: u64) {
        let device = state.device()?;
        for index in 0..count as usize {
            let attribute = attributes.at(index)?;
            if !(1..=20).contains(&attribute) || attribute == 5 {
                return Err(code::INVALID_VALUE);
            }
            let wide = if matches!(attribute, 2 | 6 | 8 | 9 | 10 | 13 | 15 | 16) { 4 } else { 8 };
            // A pointer that is nobody's has device -2 and otherwise nothing.
            let absent = if attribute == 9 { 0xffff_fffe } else { 0 };
            let (value, bytes) = state.attribute(device, attribute, address).unwrap_or((absent, wide));
            write(data.at(index)?, value, bytes)?;
        }
        Ok(())
    }
}
