//! Instructions that kernels seldom meet, out of the way of the hot loop.

use super::Trap;
use super::access_lanes::atomic;
use super::exec::{Block, Warp, lanes_of};
use super::ir::{Logic, Op, Reg, Special};
use super::lanes::{self, LANES};
use crate::report::Cause;

impl Block<'_> {
    #[inline(never)]
    pub(super) fn execute_rare(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Trap> {
        match *op {
            Op::Split(low, high, a) => {
                for lane in lanes_of(mask) {
                    let value = warp.wide[a as usize][lane];
                    warp.set_lane(low, lane, value & 0xffff_ffff);
                    warp.set_lane(high, lane, value >> 32);
                }
            }
            Op::Join(d, low, high) => {
                let value = lanes::map2(&warp.narrow[low as usize], &warp.narrow[high as usize], |low, high| {
                    (u64::from(high) << 32) | u64::from(low)
                });
                warp.set_wide(d, &value, mask);
            }
            Op::Carry { wide, subtract, takes, gives, d, a, b } => {
                let (d, a, b) = if wide {
                    (Reg::Wide(d), Reg::Wide(a), Reg::Wide(b))
                } else {
                    (Reg::Narrow(d), Reg::Narrow(a), Reg::Narrow(b))
                };
                for lane in lanes_of(mask) {
                    let (x, y) = (u128::from(warp.lane(a, lane)), u128::from(warp.lane(b, lane)));
                    let carry = u128::from(takes && warp.carry >> lane & 1 == 1);
                    let width = if wide { 64 } else { 32 };
                    let full = if subtract { x.wrapping_sub(y).wrapping_sub(carry) } else { x + y + carry };
                    warp.set_lane(d, lane, full as u64);
                    if gives {
                        let out = u32::from(full >> width & 1 == 1);
                        warp.carry = (warp.carry & !(1 << lane)) | (out << lane);
                    }
                }
            }
            Op::Convert { to, from, round, whole, d, a } => {
                for lane in lanes_of(mask) {
                    let value = lanes::convert(warp.lane(a, lane), to, from, round, whole);
                    warp.set_lane(d, lane, value);
                }
            }
            Op::Spread { d, p, float } => {
                let holds = warp.predicates[p as usize];
                let ones = if float { 1.0_f32.to_bits() } else { u32::MAX };
                let mut value = [0; LANES];
                for lane in lanes_of(holds) {
                    value[lane] = ones;
                }
                warp.set(d, &value, mask);
            }
            Op::PLogic(logic, d, a, b) => {
                let value = combine(logic, warp.predicates[a as usize], warp.predicates[b as usize]);
                warp.set_predicate(d, value, mask);
            }
            Op::PNot(d, a) => warp.set_predicate(d, !warp.predicates[a as usize], mask),
            Op::PMov(d, a) => warp.set_predicate(d, warp.predicates[a as usize], mask),
            Op::PSet(d, value) => warp.set_predicate(d, if value { u32::MAX } else { 0 }, mask),
            Op::Read(special, d) => {
                for lane in lanes_of(mask) {
                    let value = self.special(warp, special, lane);
                    warp.set_lane(d, lane, value);
                }
            }
            Op::Atomic { what, ty, d, address, b, c } => atomic(self, warp, what, ty, d, address, [b, c], mask)?,
            Op::Shuffle { .. } | Op::Vote { .. } | Op::WarpSync(_) => super::warp::together(warp, op, mask)?,
            Op::ActiveMask(d) => warp.set(d, &[mask; LANES], mask),
            Op::Trap => return Err(Trap::new(Cause::Trap, 0)),
            // The rest is done by `execute`.
            _ => {}
        }
        Ok(())
    }

    fn special(&self, warp: &Warp, special: Special, lane: usize) -> u64 {
        let [wide, high, _] = self.shape.block;
        let thread = warp.number * LANES as u32 + lane as u32;
        let one = 1_u64 << lane;
        let whole = u64::from(u32::MAX);
        match special {
            Special::Tid(0) => u64::from(thread % wide),
            Special::Tid(1) => u64::from(thread / wide % high),
            Special::Tid(_) => u64::from(thread / wide / high),
            Special::Ntid(axis) => u64::from(self.shape.block[axis]),
            Special::Ctaid(axis) => u64::from(self.index[axis]),
            Special::Nctaid(axis) => u64::from(self.shape.grid[axis]),
            Special::Lane => lane as u64,
            Special::Warp => u64::from(warp.number),
            Special::Warps => u64::from(self.shape.block.iter().product::<u32>().div_ceil(LANES as u32)),
            Special::Sm => 0,
            Special::Sms => 1,
            Special::Clock => self.executed,
            Special::MaskEq => one,
            Special::MaskLt => one - 1,
            Special::MaskLe => (one << 1) - 1,
            Special::MaskGt => whole & !((one << 1) - 1),
            Special::MaskGe => whole & !(one - 1),
            Special::DynamicShared => u64::from(self.shape.dynamic_shared),
            Special::TotalShared => self.shared.len() as u64,
        }
    }
}

/// Two predicates into one.
pub(super) fn combine(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
