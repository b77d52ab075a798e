//! Instructions that touch memory, other lanes or the flow of control.

use super::PtxError;
use super::ir::{Address, Atomic, Op, Reg, Shuffle, Slot, Space, Ty, Vote};
use super::lower::Lowering;
use super::select::type_named;
use super::text::{Instruction, Operand};

impl Lowering {
    pub(super) fn other(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        match instruction.parts[0].as_str() {
            "ld" | "st" | "ldu" => self.load_or_store(instruction),
            "atom" | "red" => self.atomic(instruction),
            "bra" => {
                let [Operand::Name(label)] = self.operands::<1>(instruction)? else {
                    return self.unknown(instruction);
                };
                self.branch(label);
                Ok(())
            }
            "ret" | "exit" => self.plain(instruction, &[], Op::Exit),
            "trap" => self.plain(instruction, &[], Op::Trap),
            "bar" | "barrier" => self.barrier(instruction),
            // One lane's accesses are done before the next instruction begins: nothing is left to order.
            "membar" | "fence" => {
                let known = ["cta", "gl", "sys", "gpu", "sc", "acq_rel"];
                self.plain(instruction, &known, Op::Nothing)
            }
            "nanosleep" | "prefetch" | "prefetchu" => {
                self.emit(Op::Nothing);
                Ok(())
            }
            "shfl" => self.shuffle(instruction),
            "vote" => self.vote(instruction),
            "activemask" => {
                let [d] = self.operands::<1>(instruction)?;
                let d = self.dn(d)?;
                self.emit(Op::ActiveMask(d));
                Ok(())
            }
            _ => self.unknown(instruction),
        }
    }

    fn plain(&mut self, instruction: &Instruction, suffixes: &[&str], op: Op) -> Result<(), PtxError> {
        let known = instruction.parts[1..].iter().all(|part| suffixes.contains(&part.as_str()) || part == "uni");
        if !known || !instruction.operands.is_empty() {
            return self.unknown(instruction);
        }
        self.emit(op);
        Ok(())
    }

    fn space(name: &str) -> Option<Space> {
        Some(match name {
            // Variables of .const are in device memory of the module.
            "global" | "const" => Space::Global,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            _ => return None,
        })
    }

    fn address(&mut self, operand: &Operand, space: Space) -> Result<Address, PtxError> {
        let Operand::Memory(base, offset) = operand else {
            return self.fail(format!("an address in brackets is expected, not {operand:?}"));
        };
        let (base, more) = self.base(base)?;
        Ok(Address { space, base, offset: offset.wrapping_add(more) })
    }

    fn load_or_store(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let (mut space, mut count, mut ty) = (Space::Generic, 1_u8, None);
        for part in &instruction.parts[1..] {
            match part.as_str() {
                // How a value is cached or ordered changes nothing where every access is done at once.
                "volatile"
                | "weak"
                | "relaxed"
                | "acquire"
                | "release"
                | "cta"
                | "gpu"
                | "sys"
                | "nc"
                | "ca"
                | "cg"
                | "cs"
                | "lu"
                | "cv"
                | "wb"
                | "wt"
                | "L1::evict_first"
                | "L1::evict_last"
                | "L1::no_allocate"
                | "L1::evict_normal"
                | "L1::evict_unchanged"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B" => {}
                "v2" => count = 2,
                "v4" => count = 4,
                name => match (Self::space(name), type_named(name)) {
                    (Some(named), _) => space = named,
                    (_, Some(named)) => ty = Some(named),
                    _ => return self.unknown(instruction),
                },
            }
        }
        let Some(ty) = ty else { return self.unknown(instruction) };
        let [first, second] = self.operands::<2>(instruction)?;
        let loads = instruction.parts[0] != "st";
        let (register, address) = if loads { (first, second) } else { (second, first) };
        let address = self.address(address, space)?;
        let registers = match (register, count) {
            (Operand::Vector(parts), _) if parts.len() == usize::from(count) => parts.as_slice(),
            (Operand::Vector(_), _) => return self.fail("the vector has another length"),
            (single, 1) => std::slice::from_ref(single),
            _ => return self.fail("a vector is expected"),
        };
        if usize::from(count) * ty.bytes() > 16 {
            return self.fail("more than 16 bytes at once");
        }
        let mut slots = [Reg::Nothing; 4];
        for (slot, register) in slots.iter_mut().zip(registers) {
            *slot = if loads { self.target(register)? } else { self.source(register, ty.bytes() == 8)? };
            let narrow = matches!(slot, Reg::Narrow(_));
            if narrow && ty.bytes() == 8 {
                return self.fail("64 bits do not fit this register");
            }
        }
        self.emit(if loads {
            Op::Load { ty, to: slots, count, address }
        } else {
            Op::Store { ty, from: slots, count, address }
        });
        Ok(())
    }

    fn atomic(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let (mut space, mut what, mut ty) = (Space::Generic, None, None);
        for part in &instruction.parts[1..] {
            match part.as_str() {
                "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys" => {}
                "add" => what = Some(Atomic::Add),
                "min" => what = Some(Atomic::Min),
                "max" => what = Some(Atomic::Max),
                "and" => what = Some(Atomic::And),
                "or" => what = Some(Atomic::Or),
                "xor" => what = Some(Atomic::Xor),
                "exch" => what = Some(Atomic::Exchange),
                "cas" => what = Some(Atomic::CompareSwap),
                "inc" => what = Some(Atomic::Inc),
                "dec" => what = Some(Atomic::Dec),
                name => match (Self::space(name), type_named(name)) {
                    (Some(named), _) => space = named,
                    (_, Some(named)) => ty = Some(named),
                    _ => return self.unknown(instruction),
                },
            }
        }
        let (Some(mut what), Some(ty)) = (what, ty) else { return self.unknown(instruction) };
        what = match (what, ty) {
            (Atomic::Add, Ty::F32) => Atomic::FAdd,
            (_, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) => what,
            _ => return self.unknown(instruction),
        };
        let wide = ty.bytes() == 8;
        let (d, rest) = match (instruction.parts[0].as_str(), instruction.operands.as_slice()) {
            ("atom", [d, rest @ ..]) => (self.target(d)?, rest),
            (_, rest) => (Reg::Nothing, rest),
        };
        let (address, b, c) = match rest {
            [address, b] if what != Atomic::CompareSwap => (address, b, None),
            [address, b, c] if what == Atomic::CompareSwap => (address, b, Some(c)),
            _ => return self.unknown(instruction),
        };
        let address = self.address(address, space)?;
        let b = self.source(b, wide)?;
        let c = c.map_or(Ok(Reg::Nothing), |c| self.source(c, wide))?;
        self.emit(Op::Atomic { what, ty, d, address, b, c });
        Ok(())
    }

    fn barrier(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        if let ["warp", "sync"] = parts.as_slice() {
            let [mask] = self.operands::<1>(instruction)?;
            let mask = self.n(mask)?;
            self.emit(Op::WarpSync(mask));
            return Ok(());
        }
        // Only the whole block at barrier 0.
        let whole =
            matches!(parts.as_slice(), ["sync"] | ["cta", "sync"] | ["sync", "aligned"] | ["cta", "sync", "aligned"]);
        match instruction.operands.as_slice() {
            [Operand::Number(0, _)] if whole => {}
            _ => return self.unknown(instruction),
        }
        self.barriers = true;
        self.emit(Op::Barrier);
        Ok(())
    }

    fn shuffle(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        let how = match parts.as_slice() {
            ["sync", "up", "b32"] => Shuffle::Up,
            ["sync", "down", "b32"] => Shuffle::Down,
            ["sync", "bfly", "b32"] => Shuffle::Butterfly,
            ["sync", "idx", "b32"] => Shuffle::Index,
            _ => return self.unknown(instruction),
        };
        let [d, a, b, c, mask] = self.operands::<5>(instruction)?;
        let (a, b, c, mask) = (self.n(a)?, self.n(b)?, self.n(c)?, self.n(mask)?);
        let (d, p): (Slot, Option<Slot>) = match d {
            Operand::Pair(d, p) => (self.dn(&Operand::Name(d.clone()))?, self.dp(p)?),
            other => (self.dn(other)?, None),
        };
        self.emit(Op::Shuffle { how, d, p, a, b, c, mask });
        Ok(())
    }

    fn vote(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        let what = match parts.as_slice() {
            ["sync", "all", "pred"] => Vote::All,
            ["sync", "any", "pred"] => Vote::Any,
            ["sync", "uni", "pred"] => Vote::Uniform,
            ["sync", "ballot", "b32"] => Vote::Ballot,
            _ => return self.unknown(instruction),
        };
        let [d, p, mask] = self.operands::<3>(instruction)?;
        let (p, negate) = self.predicate(p)?;
        let mask = self.n(mask)?;
        let d = match (what, d) {
            (Vote::Ballot, d) => self.dn(d)?,
            (_, Operand::Name(name)) => self.predicate_named(name)?,
            _ => return self.unknown(instruction),
        };
        self.emit(Op::Vote { what, d, p, negate, mask });
        Ok(())
    }
}
