//! Instructions in which the lanes of a warp exchange values.

use super::Trap;
use super::exec::{Warp, lanes_of};
use super::ir::{Op, Shuffle, Vote};
use super::lanes::LANES;
use crate::report::Cause;

/// Fails unless the lanes named are those that are here: every lane that lives and is named.
fn gathered(warp: &Warp, named: u32, mask: u32) -> Result<(), Trap> {
    let here = lanes_of(mask).all(|lane| {
        let names = warp.narrow[named as usize][lane];
        names >> lane & 1 == 1 && names & warp.lanes & !mask == 0
    });
    // Others of the named lanes are elsewhere and cannot come: the hardware would wait for ever, or answer anything.
    if here { Ok(()) } else { Err(Trap::new(Cause::Trap, 0)) }
}

/// A shuffle, a vote or a meeting of lanes.
pub(super) fn together(warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Trap> {
    match *op {
        Op::WarpSync(named) => gathered(warp, named, mask),
        Op::Vote { what, d, p, negate, mask: named } => {
            gathered(warp, named, mask)?;
            let holds = warp.predicates[p as usize];
            let holds = (if negate { !holds } else { holds }) & mask;
            let all = holds == mask;
            match what {
                Vote::Ballot => warp.set(d, &[holds; LANES], mask),
                Vote::All => warp.set_predicate(d, if all { mask } else { 0 }, mask),
                Vote::Any => warp.set_predicate(d, if holds != 0 { mask } else { 0 }, mask),
                Vote::Uniform => warp.set_predicate(d, if all || holds == 0 { mask } else { 0 }, mask),
            }
            Ok(())
        }
        Op::Shuffle { how, d, p, a, b, c, mask: named } => {
            gathered(warp, named, mask)?;
            let source = warp.narrow[a as usize];
            let (mut value, mut valid) = (source, 0);
            for lane in lanes_of(mask) {
                let by = warp.narrow[b as usize][lane] & 31;
                let limits = warp.narrow[c as usize][lane];
                let (clamp, segment) = (limits & 31, limits >> 8 & 31);
                let own = lane as u32;
                let most = (own & segment) | (clamp & !segment);
                let least = own & segment;
                let (from, inside) = match how {
                    Shuffle::Up => (own.wrapping_sub(by), own >= most + by),
                    Shuffle::Down => (own + by, own + by <= most),
                    Shuffle::Butterfly => (own ^ by, (own ^ by) <= most),
                    Shuffle::Index => {
                        let from = least | (by & !segment);
                        (from, from <= most)
                    }
                };
                if inside {
                    value[lane] = source[(from & 31) as usize];
                    valid |= 1 << lane;
                }
            }
            warp.set(d, &value, mask);
            if let Some(p) = p {
                warp.set_predicate(p, valid, mask);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
