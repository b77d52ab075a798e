//! Rotations, as the compiler writes them for chips without an instruction of that name.

use super::super::ir::{F3, Op, Slot};
use super::Lowering;

impl Lowering {
    /// Finds shifts and byte selections that are rotations by a fixed number of bits: most of what BLAKE3 does.
    pub(super) fn find_rotations(&mut self) {
        let fixed = |slot: Slot| match self.writes.get(&slot) {
            None => self.narrow[slot as usize],
            Some((1, value)) => *value,
            Some(_) => None,
        };
        for inst in &mut self.code {
            let found = match inst.op {
                Op::N3(F3::ShfRWrap, d, [a, b, c]) if a == b => fixed(c).map(|c| (d, a, c & 31)),
                Op::N3(F3::ShfLWrap, d, [a, b, c]) if a == b => fixed(c).map(|c| (d, a, c.wrapping_neg() & 31)),
                Op::N3(F3::Prmt, d, [a, b, c]) => fixed(c).and_then(|selector| {
                    let first = selector & 7;
                    let source = if first < 4 { a } else { b };
                    let rotates = (0..4).all(|byte| {
                        let nibble = selector >> (4 * byte) & 15;
                        let from_a = nibble & 4 == 0;
                        let same = (if from_a { a } else { b }) == source;
                        nibble < 8 && same && nibble & 3 == (first + byte) & 3
                    });
                    rotates.then_some((d, source, 8 * (first & 3)))
                }),
                _ => None,
            };
            if let Some((d, a, by)) = found {
                inst.op = Op::Rotate(d, a, by);
            }
        }
    }
}
