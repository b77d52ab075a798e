//! Runs a kernel: blocks one after the other, the warps of a block up to their barriers, 32 lanes in lock step.
//!
//! Lanes that go different ways form groups. The group with the lowest instruction runs first, and groups that meet at
//! an instruction become one again.

use super::Trap;
use super::access_lanes::{load, store};
use super::ir::{Cmp, Kernel, Op, Reg, Ty};
use super::lanes::{self, LANES, Narrow, Wide};
use super::rare::combine;
use super::view::View;
use crate::report::Cause;

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
}

/// Lanes that are at the same instruction.
#[derive(Debug, Clone, Copy)]
struct Group {
    at: usize,
    mask: u32,
}

/// Registers and lanes of one warp.
pub(super) struct Warp {
    pub(super) narrow: Vec<Narrow>,
    pub(super) wide: Vec<Wide>,
    pub(super) predicates: Vec<u32>,
    pub(super) carry: u32,
    groups: Vec<Group>,
    /// At the barrier, and where they go on.
    waiting: Vec<Group>,
    pub(super) number: u32,
    pub(super) lanes: u32,
}

/// What a block's warps share.
pub(super) struct Block<'a> {
    kernel: &'a Kernel,
    pub(super) shape: Shape,
    pub(super) index: [u32; 3],
    pub(super) params: &'a [u8],
    pub(super) shared: Vec<u8>,
    pub(super) local: Vec<u8>,
    pub(super) local_bytes: usize,
    pub(super) view: &'a mut View,
    budget: u64,
    pub(super) executed: u64,
}

/// What memory of a block holds before it is written.
const STALE: u8 = 0xa5;

/// Runs all blocks. Returns how many instructions warps executed.
pub(crate) fn run(kernel: &Kernel, shape: Shape, params: &[u8], view: &mut View, limit: u64) -> Result<u64, Trap> {
    let threads = shape.block.iter().product::<u32>();
    let shared = kernel.shared_bytes as usize + shape.dynamic_shared as usize;
    let local_bytes = kernel.local_bytes as usize;
    let mut block = Block {
        kernel,
        shape,
        index: [0; 3],
        params,
        shared: vec![STALE; shared],
        local: vec![STALE; local_bytes * threads as usize],
        local_bytes,
        view,
        budget: limit,
        executed: 0,
    };
    // Without barriers one warp's registers serve all.
    let warps = threads.div_ceil(LANES as u32);
    let kept = if kernel.barriers { warps } else { 1 };
    let mut files: Vec<Warp> = (0..kept).map(|_| Warp::new(kernel)).collect();
    for z in 0..shape.grid[2] {
        for y in 0..shape.grid[1] {
            for x in 0..shape.grid[0] {
                block.index = [x, y, z];
                block.shared.fill(STALE);
                if kernel.barriers {
                    for (number, warp) in (0..).zip(&mut files) {
                        warp.begin(kernel, number, threads);
                    }
                    block.run_side_by_side(&mut files)?;
                } else {
                    for number in 0..warps {
                        files[0].begin(kernel, number, threads);
                        block.go(&mut files[0])?;
                    }
                }
            }
        }
    }
    Ok(block.executed)
}

impl Warp {
    fn new(kernel: &Kernel) -> Self {
        Self {
            narrow: vec![[0; LANES]; kernel.narrow.len()],
            wide: vec![[0; LANES]; kernel.wide.len()],
            predicates: vec![0; kernel.predicates],
            carry: 0,
            groups: Vec::new(),
            waiting: Vec::new(),
            number: 0,
            lanes: 0,
        }
    }

    /// Registers as a new warp has them: constants in place, the rest stale.
    fn begin(&mut self, kernel: &Kernel, number: u32, threads: u32) {
        for (register, value) in self.narrow.iter_mut().zip(&kernel.narrow) {
            *register = [value.unwrap_or(0xa5a5_a5a5); LANES];
        }
        for (register, value) in self.wide.iter_mut().zip(&kernel.wide) {
            *register = [value.unwrap_or(0xa5a5_a5a5_a5a5_a5a5); LANES];
        }
        let left = threads - number * LANES as u32;
        self.lanes = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
        self.number = number;
        self.groups.clear();
        self.waiting.clear();
        self.groups.push(Group { at: 0, mask: self.lanes });
    }

    #[inline(always)]
    pub(super) fn set(&mut self, d: u32, value: &Narrow, mask: u32) {
        let target = &mut self.narrow[d as usize];
        if mask == u32::MAX {
            *target = *value;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 == 1 {
                    target[lane] = value[lane];
                }
            }
        }
    }

    #[inline(always)]
    pub(super) fn set_wide(&mut self, d: u32, value: &Wide, mask: u32) {
        let target = &mut self.wide[d as usize];
        if mask == u32::MAX {
            *target = *value;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 == 1 {
                    target[lane] = value[lane];
                }
            }
        }
    }

    pub(super) fn set_predicate(&mut self, d: u32, value: u32, mask: u32) {
        let target = &mut self.predicates[d as usize];
        *target = (*target & !mask) | (value & mask);
    }

    /// A register of either width, in 64 bits.
    pub(super) fn lane(&self, register: Reg, lane: usize) -> u64 {
        match register {
            Reg::Narrow(slot) => u64::from(self.narrow[slot as usize][lane]),
            Reg::Wide(slot) => self.wide[slot as usize][lane],
            Reg::Nothing => 0,
        }
    }

    pub(super) fn set_lane(&mut self, register: Reg, lane: usize, value: u64) {
        match register {
            Reg::Narrow(slot) => self.narrow[slot as usize][lane] = value as u32,
            Reg::Wide(slot) => self.wide[slot as usize][lane] = value,
            Reg::Nothing => {}
        }
    }
}

/// What an instruction does to the flow of control.
enum Flow {
    Next,
    Branch(usize),
    Exit,
    Wait,
}

impl Block<'_> {
    /// Runs the warps of a block, each to its barrier or end, until all are through.
    fn run_side_by_side(&mut self, warps: &mut [Warp]) -> Result<(), Trap> {
        loop {
            for warp in &mut *warps {
                self.go(warp)?;
            }
            let mut waits = false;
            for warp in &mut *warps {
                waits |= !warp.waiting.is_empty();
                std::mem::swap(&mut warp.groups, &mut warp.waiting);
            }
            if !waits {
                return Ok(());
            }
        }
    }

    /// Runs a warp until all its lanes have ended or wait at the barrier.
    fn go(&mut self, warp: &mut Warp) -> Result<(), Trap> {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature is there.
            return unsafe { self.go_avx2(warp) };
        }
        self.go_inner(warp)
    }

    /// The same, compiled for processors with 256-bit integers.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,fma")]
    unsafe fn go_avx2(&mut self, warp: &mut Warp) -> Result<(), Trap> {
        self.go_inner(warp)
    }

    #[inline(always)]
    fn go_inner(&mut self, warp: &mut Warp) -> Result<(), Trap> {
        while let Some(first) = (0..warp.groups.len()).min_by_key(|&index| warp.groups[index].at) {
            let mut group = warp.groups.swap_remove(first);
            let mut meets = warp.groups.iter().map(|group| group.at).min().unwrap_or(usize::MAX);
            loop {
                if group.at >= meets {
                    // Another group is here, or behind.
                    warp.groups.retain(|other| {
                        let same = other.at == group.at;
                        if same {
                            group.mask |= other.mask;
                        }
                        !same
                    });
                    meets = warp.groups.iter().map(|group| group.at).min().unwrap_or(usize::MAX);
                    if group.at > meets {
                        warp.groups.push(group);
                        break;
                    }
                }
                if self.executed >= self.budget {
                    return Err(Trap::new(Cause::Endless, 0).at_line(self.kernel.code[group.at].line));
                }
                let inst = &self.kernel.code[group.at];
                let mask = match inst.guard {
                    None => group.mask,
                    Some((slot, negated)) => {
                        let holds = warp.predicates[slot as usize];
                        group.mask & if negated { !holds } else { holds }
                    }
                };
                self.executed += 1;
                if mask == 0 {
                    group.at += 1;
                    continue;
                }
                let flow = match self.execute(warp, &inst.op, mask) {
                    Ok(flow) => flow,
                    Err(trap) => return Err(trap.at_line(inst.line)),
                };
                let rest = group.mask & !mask;
                match flow {
                    Flow::Next => group.at += 1,
                    Flow::Branch(target) if rest == 0 => group.at = target,
                    Flow::Branch(target) => {
                        warp.groups.push(Group { at: group.at + 1, mask: rest });
                        warp.groups.push(Group { at: target, mask });
                        break;
                    }
                    Flow::Exit | Flow::Wait => {
                        if matches!(flow, Flow::Wait) {
                            warp.waiting.push(Group { at: group.at + 1, mask });
                        } else {
                            warp.lanes &= !mask;
                        }
                        if rest == 0 {
                            break;
                        }
                        group = Group { at: group.at + 1, mask: rest };
                    }
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn execute(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<Flow, Trap> {
        macro_rules! n {
            ($slot:expr) => {
                &warp.narrow[$slot as usize]
            };
        }
        macro_rules! w {
            ($slot:expr) => {
                &warp.wide[$slot as usize]
            };
        }
        match *op {
            Op::N1(f, d, a) => {
                let value = lanes::narrow1(f, n!(a));
                warp.set(d, &value, mask);
            }
            Op::N2(f, d, a, b) => {
                let value = lanes::narrow2(f, n!(a), n!(b));
                warp.set(d, &value, mask);
            }
            Op::N3(f, d, [a, b, c]) => {
                let value = lanes::narrow3(f, n!(a), n!(b), n!(c));
                warp.set(d, &value, mask);
            }
            Op::Rotate(d, a, by) => {
                // Two shifts, so that the compiler sees vectors.
                let (right, left) = (by & 31, by.wrapping_neg() & 31);
                let value = lanes::map1(n!(a), |x| (x >> right) | (x << left));
                warp.set(d, &value, mask);
            }
            Op::Bfi(d, [a, b, c, e]) => {
                let mut value = [0; LANES];
                for lane in lanes_of(mask) {
                    value[lane] = lanes::bfi(n!(a)[lane], n!(b)[lane], n!(c)[lane], n!(e)[lane]);
                }
                warp.set(d, &value, mask);
            }
            Op::W1(f, d, a) => {
                let value = lanes::wide1(f, w!(a));
                warp.set_wide(d, &value, mask);
            }
            Op::W2(f, d, a, b) => {
                let value = lanes::wide2(f, w!(a), w!(b));
                warp.set_wide(d, &value, mask);
            }
            Op::W3(f, d, [a, b, c]) => {
                let value = lanes::wide3(f, w!(a), w!(b), w!(c));
                warp.set_wide(d, &value, mask);
            }
            Op::Shift64(f, d, a, b) => {
                let value = lanes::shift64(f, w!(a), n!(b));
                warp.set_wide(d, &value, mask);
            }
            Op::Count64(f, d, a) => {
                let value = lanes::count64(f, w!(a));
                warp.set(d, &value, mask);
            }
            Op::Wide { signed, d, a, b, c } => {
                let mut value = if signed {
                    lanes::map2(n!(a), n!(b), |x, y| (i64::from(x as i32) * i64::from(y as i32)).cast_unsigned())
                } else {
                    lanes::map2(n!(a), n!(b), |x, y| u64::from(x) * u64::from(y))
                };
                if let Some(c) = c {
                    value = lanes::map2(&value, w!(c), u64::wrapping_add);
                }
                warp.set_wide(d, &value, mask);
            }
            Op::WidenU(d, a) => {
                let value = lanes::map1(n!(a), u64::from);
                warp.set_wide(d, &value, mask);
            }
            Op::WidenS(d, a) => {
                let value = lanes::map1(n!(a), |x| i64::from(x as i32).cast_unsigned());
                warp.set_wide(d, &value, mask);
            }
            Op::Truncate(d, a) => {
                let value = lanes::map1(w!(a), |x| x as u32);
                warp.set(d, &value, mask);
            }
            Op::Select32 { d, a, b, p } => {
                let holds = warp.predicates[p as usize];
                let mut value = *n!(b);
                for lane in lanes_of(holds) {
                    value[lane] = n!(a)[lane];
                }
                warp.set(d, &value, mask);
            }
            Op::Select64 { d, a, b, p } => {
                let holds = warp.predicates[p as usize];
                let mut value = *w!(b);
                for lane in lanes_of(holds) {
                    value[lane] = w!(a)[lane];
                }
                warp.set_wide(d, &value, mask);
            }
            Op::Compare { cmp, ty, d, q, a, b, with } => {
                let plain = compare(warp, cmp, ty, a, b);
                let (mut first, mut second) = (plain, !plain);
                if let Some((logic, slot, negated)) = with {
                    let other = warp.predicates[slot as usize];
                    let other = if negated { !other } else { other };
                    first = combine(logic, first, other);
                    second = combine(logic, second, other);
                }
                if let Some(d) = d {
                    warp.set_predicate(d, first, mask);
                }
                if let Some(q) = q {
                    warp.set_predicate(q, second, mask);
                }
            }
            Op::Load { ty, to, count, address } => load(self, warp, ty, &to[..usize::from(count)], address, mask)?,
            Op::Store { ty, from, count, address } => {
                store(self, warp, ty, &from[..usize::from(count)], address, mask)?;
            }
            Op::Branch(target) => return Ok(Flow::Branch(target)),
            Op::Exit => return Ok(Flow::Exit),
            Op::Barrier => return Ok(Flow::Wait),
            _ => self.execute_rare(warp, op, mask)?,
        }
        Ok(Flow::Next)
    }
}

/// The lanes of a mask, lowest first.
pub(super) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
}

fn compare(warp: &Warp, cmp: Cmp, ty: Ty, a: u32, b: u32) -> u32 {
    if ty.bytes() == 8 {
        lanes::compare64(cmp, ty, &warp.wide[a as usize], &warp.wide[b as usize])
    } else {
        lanes::compare32(cmp, ty, &warp.narrow[a as usize], &warp.narrow[b as usize])
    }
}
