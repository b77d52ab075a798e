//! Arithmetic on all 32 lanes of a warp at once.

use super::ir::{Cmp, F1, F2, F3, Round, Ty};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// A register of 32 bits in all lanes.
pub(crate) type Narrow = [u32; LANES];
/// A register of 64 bits in all lanes.
pub(crate) type Wide = [u64; LANES];

#[inline(always)]
pub(super) fn map1<A: Copy, D: Copy + Default>(a: &[A; LANES], f: impl Fn(A) -> D) -> [D; LANES] {
    let mut out = [D::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
pub(super) fn map2<A: Copy, B: Copy, D: Copy + Default>(
    a: &[A; LANES],
    b: &[B; LANES],
    f: impl Fn(A, B) -> D,
) -> [D; LANES] {
    let mut out = [D::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn map3<A: Copy + Default>(a: &[A; LANES], b: &[A; LANES], c: &[A; LANES], f: impl Fn(A, A, A) -> A) -> [A; LANES] {
    let mut out = [A::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

fn float(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn double(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// The canonical NaN that the hardware answers.
const NAN: u32 = 0x7fff_ffff;

fn quiet(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

fn shift(distance: u32) -> u32 {
    distance.min(32)
}

/// Position of the highest bit that differs from the sign.
fn bfind_s(x: u32) -> u32 {
    let x = if x.cast_signed() < 0 { !x } else { x };
    bfind_u(x)
}

fn bfind_u(x: u32) -> u32 {
    31_u32.wrapping_sub(x.leading_zeros())
}

#[inline(always)]
pub(super) fn narrow1(f: F1, a: &Narrow) -> Narrow {
    match f {
        F1::Mov => *a,
        F1::Not => map1(a, |x| !x),
        F1::Neg => map1(a, u32::wrapping_neg),
        F1::Abs => map1(a, |x| x.cast_signed().wrapping_abs().cast_unsigned()),
        F1::Cnot => map1(a, |x| u32::from(x == 0)),
        F1::Popc => map1(a, u32::count_ones),
        F1::Clz => map1(a, u32::leading_zeros),
        F1::Brev => map1(a, u32::reverse_bits),
        F1::BfindU => map1(a, bfind_u),
        F1::BfindS => map1(a, bfind_s),
        F1::BfindShiftU => map1(a, |x| if x == 0 { u32::MAX } else { x.leading_zeros() }),
        F1::BfindShiftS => map1(a, |x| match bfind_s(x) {
            u32::MAX => u32::MAX,
            position => 31 - position,
        }),
        F1::Sext16 => map1(a, |x| i32::from(x as i16).cast_unsigned()),
        F1::Zext16 => map1(a, |x| x & 0xffff),
        F1::FNeg => map1(a, |x| x ^ 0x8000_0000),
        F1::FAbs => map1(a, |x| x & 0x7fff_ffff),
        F1::FSqrt => map1(a, |x| quiet(float(x).sqrt())),
        F1::FRcp => map1(a, |x| quiet(1.0 / float(x))),
    }
}

#[inline(always)]
pub(super) fn narrow2(f: F2, a: &Narrow, b: &Narrow) -> Narrow {
    match f {
        F2::Add => map2(a, b, u32::wrapping_add),
        F2::Sub => map2(a, b, u32::wrapping_sub),
        F2::Mul => map2(a, b, u32::wrapping_mul),
        F2::MulHiU => map2(a, b, |x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
        F2::MulHiS => map2(a, b, |x, y| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32),
        F2::DivU => map2(a, b, |x, y| x.checked_div(y).unwrap_or(u32::MAX)),
        F2::DivS => map2(a, b, |x, y| match y {
            0 => u32::MAX,
            _ => (x as i32).wrapping_div(y as i32).cast_unsigned(),
        }),
        F2::RemU => map2(a, b, |x, y| x.checked_rem(y).unwrap_or(x)),
        F2::RemS => map2(a, b, |x, y| match y {
            0 => x,
            _ => (x as i32).wrapping_rem(y as i32).cast_unsigned(),
        }),
        F2::MinU => map2(a, b, |x: u32, y| x.min(y)),
        F2::MinS => map2(a, b, |x, y| (x as i32).min(y as i32).cast_unsigned()),
        F2::MaxU => map2(a, b, |x: u32, y| x.max(y)),
        F2::MaxS => map2(a, b, |x, y| (x as i32).max(y as i32).cast_unsigned()),
        F2::And => map2(a, b, |x, y| x & y),
        F2::Or => map2(a, b, |x, y| x | y),
        F2::Xor => map2(a, b, |x, y| x ^ y),
        F2::Shl => map2(a, b, |x, y| x.checked_shl(y).unwrap_or(0)),
        F2::ShrU => map2(a, b, |x, y| x.checked_shr(y).unwrap_or(0)),
        F2::ShrS => map2(a, b, |x, y| ((x as i32) >> y.min(31)).cast_unsigned()),
        F2::Mul24 => map2(a, b, |x, y| (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff)),
        F2::FAdd => map2(a, b, |x, y| quiet(float(x) + float(y))),
        F2::FSub => map2(a, b, |x, y| quiet(float(x) - float(y))),
        F2::FMul => map2(a, b, |x, y| quiet(float(x) * float(y))),
        F2::FDiv => map2(a, b, |x, y| quiet(float(x) / float(y))),
        F2::FMin => map2(a, b, |x, y| quiet(float(x).min(float(y)))),
        F2::FMax => map2(a, b, |x, y| quiet(float(x).max(float(y)))),
    }
}

#[inline(always)]
pub(super) fn narrow3(f: F3, a: &Narrow, b: &Narrow, c: &Narrow) -> Narrow {
    match f {
        F3::Mad => map3(a, b, c, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        F3::Lop3(table) => lop3(table, a, b, c),
        F3::Prmt => map3(a, b, c, prmt),
        F3::ShfLWrap => map3(a, b, c, |x, y, z| funnel_left(x, y, z & 31)),
        F3::ShfLClamp => map3(a, b, c, |x, y, z| funnel_left(x, y, shift(z))),
        F3::ShfRWrap => map3(a, b, c, |x, y, z| funnel_right(x, y, z & 31)),
        F3::ShfRClamp => map3(a, b, c, |x, y, z| funnel_right(x, y, shift(z))),
        F3::BfeU => map3(a, b, c, |x, y, z| bfe(u64::from(x), y & 255, z & 255, 32, false) as u32),
        F3::BfeS => map3(a, b, c, |x, y, z| bfe(u64::from(x), y & 255, z & 255, 32, true) as u32),
        F3::SadU => map3(a, b, c, |x, y, z| x.abs_diff(y).wrapping_add(z)),
        F3::SadS => map3(a, b, c, |x, y, z| (x as i32).abs_diff(y as i32).wrapping_add(z)),
        F3::FFma => map3(a, b, c, |x, y, z| quiet(float(x).mul_add(float(y), float(z)))),
    }
}

fn funnel_left(low: u32, high: u32, distance: u32) -> u32 {
    let both = (u64::from(high) << 32) | u64::from(low);
    ((both << distance) >> 32) as u32
}

fn funnel_right(low: u32, high: u32, distance: u32) -> u32 {
    let both = (u64::from(high) << 32) | u64::from(low);
    (both >> distance) as u32
}

/// Any function of three bits, by its table of eight.
#[inline(always)]
fn lop3(table: u8, a: &Narrow, b: &Narrow, c: &Narrow) -> Narrow {
    // The two that hashes live on.
    match table {
        0x96 => return map3(a, b, c, |x, y, z| x ^ y ^ z),
        0xca => return map3(a, b, c, |x, y, z| (x & y) | (!x & z)),
        _ => {}
    }
    map3(a, b, c, |x, y, z| {
        let mut out = 0;
        for row in 0..8_u32 {
            if table >> row & 1 == 1 {
                let x = if row & 4 != 0 { x } else { !x };
                let y = if row & 2 != 0 { y } else { !y };
                let z = if row & 1 != 0 { z } else { !z };
                out |= x & y & z;
            }
        }
        out
    })
}

/// Four bytes picked from eight; the high bit of a pick spreads the byte's sign.
fn prmt(low: u32, high: u32, picks: u32) -> u32 {
    let both = (u64::from(high) << 32) | u64::from(low);
    let mut out = 0;
    for byte in 0..4 {
        let pick = picks >> (4 * byte) & 15;
        let value = (both >> (8 * (pick & 7))) as u8;
        let value = if pick & 8 == 0 { value } else { ((value as i8) >> 7) as u8 };
        out |= u32::from(value) << (8 * byte);
    }
    out
}

/// Bits of a field, zero- or sign-extended.
fn bfe(x: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    if length == 0 {
        return 0;
    }
    let top = width - 1;
    let sign_at = (position + length - 1).min(top);
    let sign = signed && (x >> sign_at) & 1 == 1;
    let field = x.checked_shr(position).unwrap_or(0);
    let kept = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    // Above the value's own bits a field has its sign.
    let own = width.saturating_sub(position);
    let own_bits = if own >= 64 { u64::MAX } else { (1 << own) - 1 };
    let field = field & kept & own_bits;
    if sign { field | !(kept & own_bits) } else { field }
}

pub(super) fn bfi(value: u32, base: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 255, length & 255);
    if position > 31 || length == 0 {
        return base;
    }
    let ones = if length >= 32 { u32::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    (base & !mask) | ((value << position) & mask)
}

#[inline(always)]
pub(super) fn wide1(f: F1, a: &Wide) -> Wide {
    match f {
        F1::Not => map1(a, |x| !x),
        F1::Neg => map1(a, u64::wrapping_neg),
        F1::Abs => map1(a, |x| x.cast_signed().wrapping_abs().cast_unsigned()),
        F1::Cnot => map1(a, |x| u64::from(x == 0)),
        F1::Brev => map1(a, u64::reverse_bits),
        F1::FNeg => map1(a, |x| x ^ (1 << 63)),
        F1::FAbs => map1(a, |x| x & !(1 << 63)),
        F1::FSqrt => map1(a, |x| double(x).sqrt().to_bits()),
        F1::FRcp => map1(a, |x| (1.0 / double(x)).to_bits()),
        _ => *a,
    }
}

/// Counts in 64 bits, answered in 32.
pub(super) fn count64(f: F1, a: &Wide) -> Narrow {
    let top = |x: u64| 63_u32.wrapping_sub(x.leading_zeros());
    let unsigned = |x: u64| if x.cast_signed() < 0 { !x } else { x };
    let amount = |position: u32| if position == u32::MAX { position } else { 63 - position };
    match f {
        F1::Popc => map1(a, u64::count_ones),
        F1::Clz => map1(a, u64::leading_zeros),
        F1::BfindU => map1(a, top),
        F1::BfindS => map1(a, |x| top(unsigned(x))),
        F1::BfindShiftU => map1(a, |x| amount(top(x))),
        _ => map1(a, |x| amount(top(unsigned(x)))),
    }
}

#[inline(always)]
pub(super) fn wide2(f: F2, a: &Wide, b: &Wide) -> Wide {
    match f {
        F2::Add => map2(a, b, u64::wrapping_add),
        F2::Sub => map2(a, b, u64::wrapping_sub),
        F2::Mul => map2(a, b, u64::wrapping_mul),
        F2::MulHiU => map2(a, b, |x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
        F2::MulHiS => map2(a, b, |x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64),
        F2::DivU => map2(a, b, |x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        F2::DivS => map2(a, b, |x, y| match y {
            0 => u64::MAX,
            _ => (x as i64).wrapping_div(y as i64).cast_unsigned(),
        }),
        F2::RemU => map2(a, b, |x, y| x.checked_rem(y).unwrap_or(x)),
        F2::RemS => map2(a, b, |x, y| match y {
            0 => x,
            _ => (x as i64).wrapping_rem(y as i64).cast_unsigned(),
        }),
        F2::MinU => map2(a, b, |x: u64, y| x.min(y)),
        F2::MinS => map2(a, b, |x, y| (x as i64).min(y as i64).cast_unsigned()),
        F2::MaxU => map2(a, b, |x: u64, y| x.max(y)),
        F2::MaxS => map2(a, b, |x, y| (x as i64).max(y as i64).cast_unsigned()),
        F2::And => map2(a, b, |x, y| x & y),
        F2::Or => map2(a, b, |x, y| x | y),
        F2::Xor => map2(a, b, |x, y| x ^ y),
        F2::FAdd => map2(a, b, |x, y| (double(x) + double(y)).to_bits()),
        F2::FSub => map2(a, b, |x, y| (double(x) - double(y)).to_bits()),
        F2::FMul => map2(a, b, |x, y| (double(x) * double(y)).to_bits()),
        F2::FDiv => map2(a, b, |x, y| (double(x) / double(y)).to_bits()),
        F2::FMin => map2(a, b, |x, y| double(x).min(double(y)).to_bits()),
        F2::FMax => map2(a, b, |x, y| double(x).max(double(y)).to_bits()),
        // Shifts of 64 bits have a distance of 32 (`shift64`); mul24 has no 64-bit form.
        F2::Shl | F2::ShrU | F2::ShrS | F2::Mul24 => *a,
    }
}

#[inline(always)]
pub(super) fn shift64(f: F2, a: &Wide, b: &Narrow) -> Wide {
    match f {
        F2::Shl => map2(a, b, |x, y| x.checked_shl(y).unwrap_or(0)),
        F2::ShrS => map2(a, b, |x, y: u32| ((x as i64) >> y.min(63)).cast_unsigned()),
        _ => map2(a, b, |x, y| x.checked_shr(y).unwrap_or(0)),
    }
}

pub(super) fn wide3(f: F3, a: &Wide, b: &Wide, c: &Wide) -> Wide {
    match f {
        F3::FFma => map3(a, b, c, |x, y, z| double(x).mul_add(double(y), double(z)).to_bits()),
        F3::BfeS => map3(a, b, c, |x, y, z| bfe(x, y as u32 & 255, z as u32 & 255, 64, true)),
        _ => map3(a, b, c, |x, y, z| bfe(x, y as u32 & 255, z as u32 & 255, 64, false)),
    }
}

/// Whether a comparison holds, for values as their type has them.
fn holds<T: PartialOrd>(cmp: Cmp, x: T, y: T) -> bool {
    let unordered = x.partial_cmp(&y).is_none();
    match cmp {
        Cmp::Eq => x == y,
        Cmp::Ne => !unordered && x != y,
        Cmp::Lt => x < y,
        Cmp::Le => x <= y,
        Cmp::Gt => x > y,
        Cmp::Ge => x >= y,
        Cmp::Equ => unordered || x == y,
        Cmp::Neu => x != y,
        Cmp::Ltu => unordered || x < y,
        Cmp::Leu => unordered || x <= y,
        Cmp::Gtu => unordered || x > y,
        Cmp::Geu => unordered || x >= y,
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}

#[inline(always)]
fn bits<A: Copy>(a: &[A; LANES], b: &[A; LANES], f: impl Fn(A, A) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..LANES {
        out |= u32::from(f(a[lane], b[lane])) << lane;
    }
    out
}

/// Lanes in which a comparison of 32 bits holds.
pub(super) fn compare32(cmp: Cmp, ty: Ty, a: &Narrow, b: &Narrow) -> u32 {
    match ty {
        Ty::F32 => bits(a, b, |x, y| holds(cmp, float(x), float(y))),
        ty if ty.signed() => bits(a, b, |x, y| holds(cmp, x as i32, y as i32)),
        _ => bits(a, b, |x, y| holds(cmp, x, y)),
    }
}

/// Lanes in which a comparison of 64 bits holds.
pub(super) fn compare64(cmp: Cmp, ty: Ty, a: &Wide, b: &Wide) -> u32 {
    match ty {
        Ty::F64 => bits(a, b, |x, y| holds(cmp, double(x), double(y))),
        Ty::S64 => bits(a, b, |x, y| holds(cmp, x as i64, y as i64)),
        _ => bits(a, b, |x, y| holds(cmp, x, y)),
    }
}

fn rounded(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

/// `f64` to `f32` toward zero, or to the nearest.
fn narrowed(value: f64, round: Round) -> f32 {
    let near = value as f32;
    let over = f64::from(near);
    let step_down = match round {
        Round::Nearest => return near,
        Round::Zero => over.abs() > value.abs(),
        Round::Down => over > value,
        Round::Up => over < value,
    };
    if !step_down || near.is_nan() {
        return near;
    }
    match round {
        Round::Zero => f32::from_bits(near.to_bits() - 1),
        Round::Down => near.next_down(),
        _ => near.next_up(),
    }
}

/// Converts one value. Integers come and go in 64 bits, extended as their type says; `f32` in the low 32.
pub(super) fn convert(value: u64, to: Ty, from: Ty, round: Round, whole: bool) -> u64 {
    let integer: i128 = match from {
        Ty::U8 => i128::from(value as u8),
        Ty::S8 => i128::from(value as i8),
        Ty::U16 => i128::from(value as u16),
        Ty::S16 => i128::from(value as i16),
        Ty::U32 => i128::from(value as u32),
        Ty::S32 => i128::from(value as i32),
        Ty::U64 => i128::from(value),
        Ty::S64 => i128::from(value as i64),
        Ty::F32 | Ty::F64 => {
            let number = if from == Ty::F32 { f64::from(float(value as u32)) } else { double(value) };
            if !to.float() {
                return saturated(rounded(number, round), to);
            }
            let number = if whole { rounded(number, round) } else { number };
            return match to {
                Ty::F32 => u64::from(quiet(narrowed(number, round))),
                _ => number.to_bits(),
            };
        }
    };
    match to {
        Ty::U8 => u64::from(integer as u8),
        Ty::S8 => (integer as i8) as u64,
        Ty::U16 => u64::from(integer as u16),
        Ty::S16 => (integer as i16) as u64,
        Ty::U32 => u64::from(integer as u32),
        Ty::S32 => (integer as i32) as u64,
        Ty::U64 | Ty::S64 => integer as u64,
        Ty::F32 => {
            // Direct for what is nearest; via f64 it would be rounded twice.
            let value = if round == Round::Nearest { integer as f32 } else { narrowed(integer as f64, round) };
            u64::from(value.to_bits())
        }
        Ty::F64 => (integer as f64).to_bits(),
    }
}

/// To an integer, held at the type's ends; NaN is 0.
fn saturated(number: f64, to: Ty) -> u64 {
    match to {
        Ty::U8 => u64::from(number as u8),
        Ty::S8 => (number as i8) as u64,
        Ty::U16 => u64::from(number as u16),
        Ty::S16 => (number as i16) as u64,
        Ty::U32 => u64::from(number as u32),
        Ty::S32 => (number as i32) as u64,
        Ty::U64 => number as u64,
        _ => (number as i64) as u64,
    }
}
