//! From an instruction's opcode to operations. An opcode or suffix that is not known here is refused.

use super::PtxError;
use super::ir::{Cmp, F1, F2, Logic, Op, Reg, Round, Slot, Ty};
use super::lower::{LOCAL_WINDOW, Lowering, PARAM_WINDOW, SHARED_WINDOW};
use super::text::{Instruction, Operand};

/// An instruction's type, and the suffixes between opcode and type.
pub(super) struct Form<'a> {
    pub(super) ty: Ty,
    pub(super) suffixes: Vec<&'a str>,
}

pub(super) fn type_named(name: &str) -> Option<Ty> {
    Some(match name {
        "u8" | "b8" => Ty::U8,
        "s8" => Ty::S8,
        "u16" | "b16" => Ty::U16,
        "s16" => Ty::S16,
        "u32" | "b32" => Ty::U32,
        "s32" => Ty::S32,
        "u64" | "b64" => Ty::U64,
        "s64" => Ty::S64,
        "f32" => Ty::F32,
        "f64" => Ty::F64,
        _ => return None,
    })
}

impl Lowering {
    /// Translates one instruction.
    pub(super) fn select(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        match instruction.parts[0].as_str() {
            "mov" => self.mov(instruction),
            "cvta" => self.cvta(instruction),
            "cvt" => self.cvt(instruction),
            "setp" => self.setp(instruction),
            "set" => self.set(instruction),
            "selp" => self.selp(instruction),
            "and" | "or" | "xor" | "not" if instruction.parts.last().is_some_and(|part| part == "pred") => {
                self.predicates_op(instruction)
            }
            "mul" | "mad" | "madc" | "fma" => self.multiply(instruction),
            "add" | "sub" | "addc" | "subc" => self.sum(instruction),
            "and" | "or" | "xor" | "shl" | "shr" | "min" | "max" | "div" | "rem" | "mul24" => self.binary(instruction),
            "not" | "neg" | "abs" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "sqrt" | "rcp" => {
                self.unary(instruction)
            }
            "lop3" | "prmt" | "shf" | "bfe" | "bfi" | "sad" => self.bits(instruction),
            _ => self.other(instruction),
        }
    }

    /// The type at the end and the suffixes before it, all of which must be among `allowed`.
    pub(super) fn form<'a>(&self, instruction: &'a Instruction, allowed: &[&str]) -> Result<Form<'a>, PtxError> {
        let parts = &instruction.parts;
        let Some(ty) = parts.last().and_then(|part| type_named(part)) else { return self.unknown(instruction) };
        let suffixes: Vec<&str> = parts[1..parts.len() - 1].iter().map(String::as_str).collect();
        if suffixes.iter().all(|suffix| allowed.contains(suffix)) {
            Ok(Form { ty, suffixes })
        } else {
            self.unknown(instruction)
        }
    }

    pub(super) fn unknown<T>(&self, instruction: &Instruction) -> Result<T, PtxError> {
        self.fail(format!("the instruction {} is not known", instruction.parts.join(".")))
    }

    /// A source of an operation of this type; 16 bits are extended by sign where the type has one.
    pub(super) fn operand(&mut self, operand: &Operand, ty: Ty) -> Result<Slot, PtxError> {
        match ty {
            Ty::U64 | Ty::S64 | Ty::F64 => self.w(operand),
            Ty::U16 | Ty::S16 => {
                let operand = match operand {
                    Operand::Number(bits, written) => Operand::Number(bits & 0xffff, *written),
                    other => other.clone(),
                };
                let slot = self.n(&operand)?;
                if ty == Ty::U16 {
                    return Ok(slot);
                }
                let extended = self.fresh_narrow();
                self.emit(Op::N1(F1::Sext16, extended, slot));
                Ok(extended)
            }
            _ => self.n(operand),
        }
    }

    pub(super) fn wide(ty: Ty) -> bool {
        ty.bytes() == 8
    }

    /// Emits an operation with two sources, for whatever width the type has.
    pub(super) fn two(&mut self, f: F2, ty: Ty, d: &Operand, a: Slot, b: Slot) -> Result<(), PtxError> {
        match ty.bytes() {
            8 => {
                let d = self.dw(d)?;
                self.emit(Op::W2(f, d, a, b));
            }
            4 => {
                let d = self.dn(d)?;
                self.emit(Op::N2(f, d, a, b));
            }
            2 => {
                let d = self.dn(d)?;
                let full = self.fresh_narrow();
                self.emit(Op::N2(f, full, a, b));
                self.emit(Op::N1(F1::Zext16, d, full));
            }
            _ => return self.fail("8 bits cannot be calculated with"),
        }
        Ok(())
    }

    fn mov(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let [d, a] = self.operands::<2>(instruction)?;
        if instruction.parts.len() == 2 && instruction.parts[1] == "pred" {
            let Operand::Name(name) = d else { return self.unknown(instruction) };
            let d = self.predicate_named(name)?;
            let (a, negated) = self.predicate(a)?;
            self.emit(if negated { Op::PNot(d, a) } else { Op::PMov(d, a) });
            return Ok(());
        }
        let ty = self.form(instruction, &[])?.ty;
        match (d, a) {
            (Operand::Vector(parts), _) => self.split(ty, parts, a),
            (_, Operand::Vector(parts)) => self.join(ty, d, parts),
            _ if Self::wide(ty) => {
                let a = self.w(a)?;
                let d = self.dw(d)?;
                self.emit(Op::W1(F1::Mov, d, a));
                Ok(())
            }
            _ => {
                let value = match a {
                    Operand::Number(bits, _) => Some(*bits as u32),
                    _ => None,
                };
                let a = self.n(a)?;
                let d = self.dn(d)?;
                self.holds(d, value);
                self.emit(Op::N1(F1::Mov, d, a));
                Ok(())
            }
        }
    }

    fn split(&mut self, ty: Ty, parts: &[Operand], a: &Operand) -> Result<(), PtxError> {
        let [low, high] = parts else { return self.fail("only two parts can be moved") };
        if Self::wide(ty) {
            let a = self.w(a)?;
            let (low, high) = (self.target(low)?, self.target(high)?);
            self.emit(Op::Split(low, high, a));
            return Ok(());
        }
        let a = self.n(a)?;
        let sixteen = self.constant(16);
        let (low, high) = (self.dn(low)?, self.dn(high)?);
        let copy = self.fresh_narrow();
        self.emit(Op::N1(F1::Mov, copy, a));
        self.emit(Op::N1(F1::Zext16, low, copy));
        self.emit(Op::N2(F2::ShrU, high, copy, sixteen));
        Ok(())
    }

    fn join(&mut self, ty: Ty, d: &Operand, parts: &[Operand]) -> Result<(), PtxError> {
        let [low, high] = parts else { return self.fail("only two parts can be moved") };
        let (low, high) = (self.n(low)?, self.n(high)?);
        if Self::wide(ty) {
            let d = self.dw(d)?;
            self.emit(Op::Join(d, low, high));
            return Ok(());
        }
        let sixteen = self.constant(16);
        let d = self.dn(d)?;
        let shifted = self.fresh_narrow();
        self.emit(Op::N2(F2::Shl, shifted, high, sixteen));
        self.emit(Op::N2(F2::Or, d, shifted, low));
        Ok(())
    }

    fn cvta(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["to", "global", "const", "shared", "local", "param"])?;
        let [d, a] = self.operands::<2>(instruction)?;
        if form.ty != Ty::U64 {
            return self.unknown(instruction);
        }
        let a = self.w(a)?;
        let d = self.dw(d)?;
        let window = match form.suffixes.last() {
            Some(&"shared") => SHARED_WINDOW,
            Some(&"local") => LOCAL_WINDOW,
            Some(&"param") => PARAM_WINDOW,
            _ => 0,
        };
        let window = self.wide_constant(window);
        let f = if form.suffixes.first() == Some(&"to") { F2::Sub } else { F2::Add };
        self.emit(Op::W2(f, d, a, window));
        Ok(())
    }

    fn cvt(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        let [suffixes @ .., to, from] = parts.as_slice() else { return self.unknown(instruction) };
        let (Some(to), Some(from)) = (type_named(to), type_named(from)) else { return self.unknown(instruction) };
        let (mut round, mut whole) = (Round::Nearest, false);
        for suffix in suffixes {
            (round, whole) = match *suffix {
                "rn" => (Round::Nearest, whole),
                "rz" => (Round::Zero, whole),
                "rm" => (Round::Down, whole),
                "rp" => (Round::Up, whole),
                "rni" => (Round::Nearest, true),
                "rzi" => (Round::Zero, true),
                "rmi" => (Round::Down, true),
                "rpi" => (Round::Up, true),
                _ => return self.unknown(instruction),
            };
        }
        let [d, a] = self.operands::<2>(instruction)?;
        let a = self.source(a, Self::wide(from))?;
        let d = self.target(d)?;
        let op = match (to, from, d, a) {
            (Ty::U64 | Ty::S64, Ty::U32, Reg::Wide(d), Reg::Narrow(a)) => Op::WidenU(d, a),
            (Ty::U64 | Ty::S64, Ty::S32, Reg::Wide(d), Reg::Narrow(a)) => Op::WidenS(d, a),
            (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64, Reg::Narrow(d), Reg::Wide(a)) => Op::Truncate(d, a),
            _ => Op::Convert { to, from, round, whole, d, a },
        };
        self.emit(op);
        Ok(())
    }

    fn comparison(&self, name: &str, ty: Ty) -> Option<Cmp> {
        Some(match name {
            "eq" => Cmp::Eq,
            "ne" => Cmp::Ne,
            "lt" | "lo" => Cmp::Lt,
            "le" | "ls" => Cmp::Le,
            "gt" | "hi" => Cmp::Gt,
            "ge" | "hs" => Cmp::Ge,
            "equ" if ty.float() => Cmp::Equ,
            "neu" if ty.float() => Cmp::Neu,
            "ltu" if ty.float() => Cmp::Ltu,
            "leu" if ty.float() => Cmp::Leu,
            "gtu" if ty.float() => Cmp::Gtu,
            "geu" if ty.float() => Cmp::Geu,
            "num" if ty.float() => Cmp::Num,
            "nan" if ty.float() => Cmp::Nan,
            _ => return None,
        })
    }

    fn setp(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        let (name, logic, ty) = match parts.as_slice() {
            [name, ty] => (*name, None, *ty),
            [name, logic, ty] => (*name, Some(*logic), *ty),
            _ => return self.unknown(instruction),
        };
        let Some(ty) = type_named(ty) else { return self.unknown(instruction) };
        let Some(cmp) = self.comparison(name, ty) else { return self.unknown(instruction) };
        let (d, a, b, c) = match (instruction.operands.as_slice(), logic) {
            ([d, a, b], None) => (d, a, b, None),
            ([d, a, b, c], Some(_)) => (d, a, b, Some(c)),
            _ => return self.unknown(instruction),
        };
        let with = match (logic, c) {
            (Some(logic), Some(c)) => {
                let logic = match logic {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    "xor" => Logic::Xor,
                    _ => return self.unknown(instruction),
                };
                let (slot, negated) = self.predicate(c)?;
                Some((logic, slot, negated))
            }
            _ => None,
        };
        let (d, q) = match d {
            Operand::Name(d) => (self.dp(d)?, None),
            Operand::Pair(d, q) => (self.dp(d)?, self.dp(q)?),
            _ => return self.unknown(instruction),
        };
        let (a, b) = (self.operand(a, ty)?, self.operand(b, ty)?);
        self.emit(Op::Compare { cmp, ty, d, q, a, b, with });
        Ok(())
    }

    fn set(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let parts: Vec<&str> = instruction.parts[1..].iter().map(String::as_str).collect();
        let [name, to, ty] = parts.as_slice() else { return self.unknown(instruction) };
        let (Some(to), Some(ty)) = (type_named(to), type_named(ty)) else { return self.unknown(instruction) };
        let Some(cmp) = self.comparison(name, ty) else { return self.unknown(instruction) };
        if to.bytes() != 4 {
            return self.unknown(instruction);
        }
        let [d, a, b] = self.operands::<3>(instruction)?;
        let (a, b) = (self.operand(a, ty)?, self.operand(b, ty)?);
        let p = self.fresh_predicate();
        self.emit(Op::Compare { cmp, ty, d: Some(p), q: None, a, b, with: None });
        let d = self.dn(d)?;
        self.emit(Op::Spread { d, p, float: to == Ty::F32 });
        Ok(())
    }

    fn selp(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let ty = self.form(instruction, &[])?.ty;
        let [d, a, b, p] = self.operands::<4>(instruction)?;
        let (p, negated) = self.predicate(p)?;
        let (mut a, mut b) = if Self::wide(ty) { (self.w(a)?, self.w(b)?) } else { (self.n(a)?, self.n(b)?) };
        if negated {
            std::mem::swap(&mut a, &mut b);
        }
        let op = if Self::wide(ty) {
            Op::Select64 { d: self.dw(d)?, a, b, p }
        } else {
            Op::Select32 { d: self.dn(d)?, a, b, p }
        };
        self.emit(op);
        Ok(())
    }

    fn predicates_op(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let positive = |lowering: &mut Self, operand: &Operand| -> Result<Slot, PtxError> {
            let (slot, negated) = lowering.predicate(operand)?;
            if !negated {
                return Ok(slot);
            }
            let fresh = lowering.fresh_predicate();
            lowering.emit(Op::PNot(fresh, slot));
            Ok(fresh)
        };
        let Some(Operand::Name(d)) = instruction.operands.first() else { return self.unknown(instruction) };
        let d = self.predicate_named(d)?;
        let logic = match instruction.parts[0].as_str() {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            _ => {
                let [_, a] = self.operands::<2>(instruction)?;
                let a = positive(self, a)?;
                self.emit(Op::PNot(d, a));
                return Ok(());
            }
        };
        let [_, a, b] = self.operands::<3>(instruction)?;
        let (a, b) = (positive(self, a)?, positive(self, b)?);
        self.emit(Op::PLogic(logic, d, a, b));
        Ok(())
    }
}
