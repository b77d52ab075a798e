//! Arithmetic instructions: products, sums, shifts, counts and fields of bits.

use super::PtxError;
use super::ir::{F1, F2, F3, Op, Slot, Ty};
use super::lower::Lowering;
use super::text::{Instruction, Operand};

impl Lowering {
    pub(super) fn multiply(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["lo", "hi", "wide", "cc", "rn"])?;
        let (ty, name) = (form.ty, instruction.parts[0].as_str());
        let has = |suffix: &str| form.suffixes.contains(&suffix);
        let operands = instruction.operands.as_slice();
        let (d, a, b, c) = match (operands, name) {
            ([d, a, b], "mul") => (d, a, b, None),
            ([d, a, b, c], "mad" | "madc" | "fma") => (d, a, b, Some(c)),
            _ => return self.unknown(instruction),
        };
        let (first, second) = (self.operand(a, ty)?, self.operand(b, ty)?);
        if ty.float() {
            return self.float_product(instruction, ty, d, [first, second], c);
        }
        if has("rn") || name == "fma" {
            return self.unknown(instruction);
        }
        if has("wide") {
            return self.wide_product(instruction, ty, d, [first, second], c);
        }
        let product = match (has("hi"), ty.signed()) {
            (false, _) => F2::Mul,
            (true, _) if ty.bytes() == 2 => return self.unknown(instruction),
            (true, true) => F2::MulHiS,
            (true, false) => F2::MulHiU,
        };
        let Some(c) = c else { return self.two(product, ty, d, first, second) };
        let third = self.operand(c, ty)?;
        let (takes, gives) = (name == "madc", has("cc"));
        if product == F2::Mul && ty.bytes() == 4 && !takes && !gives {
            let d = self.dn(d)?;
            self.emit(Op::N3(F3::Mad, d, [first, second, third]));
            return Ok(());
        }
        if Self::wide(ty) {
            let part = self.fresh_wide();
            self.emit(Op::W2(product, part, first, second));
            let d = self.dw(d)?;
            self.emit(Op::Carry { wide: true, subtract: false, takes, gives, d, a: part, b: third });
            return Ok(());
        }
        let part = self.fresh_narrow();
        self.emit(Op::N2(product, part, first, second));
        if takes || gives {
            let d = self.dn(d)?;
            self.emit(Op::Carry { wide: false, subtract: false, takes, gives, d, a: part, b: third });
            return Ok(());
        }
        self.two(F2::Add, ty, d, part, third)
    }

    fn float_product(
        &mut self,
        instruction: &Instruction,
        ty: Ty,
        d: &Operand,
        [a, b]: [Slot; 2],
        c: Option<&Operand>,
    ) -> Result<(), PtxError> {
        if instruction.parts[1..].iter().any(|part| matches!(part.as_str(), "lo" | "hi" | "wide" | "cc")) {
            return self.unknown(instruction);
        }
        let Some(c) = c else { return self.two(F2::FMul, ty, d, a, b) };
        let c = self.operand(c, ty)?;
        let op = if Self::wide(ty) {
            Op::W3(F3::FFma, self.dw(d)?, [a, b, c])
        } else {
            Op::N3(F3::FFma, self.dn(d)?, [a, b, c])
        };
        self.emit(op);
        Ok(())
    }

    fn wide_product(
        &mut self,
        instruction: &Instruction,
        ty: Ty,
        d: &Operand,
        [a, b]: [Slot; 2],
        c: Option<&Operand>,
    ) -> Result<(), PtxError> {
        match ty {
            Ty::U32 | Ty::S32 => {
                let c = c.map(|c| self.w(c)).transpose()?;
                let d = self.dw(d)?;
                self.emit(Op::Wide { signed: ty.signed(), d, a, b, c });
            }
            Ty::U16 | Ty::S16 => {
                let c = c.map(|c| self.n(c)).transpose()?;
                let d = self.dn(d)?;
                self.emit(match c {
                    None => Op::N2(F2::Mul, d, a, b),
                    Some(c) => Op::N3(F3::Mad, d, [a, b, c]),
                });
            }
            _ => return self.unknown(instruction),
        }
        Ok(())
    }

    pub(super) fn sum(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["cc", "rn"])?;
        let [d, a, b] = self.operands::<3>(instruction)?;
        let (a, b) = (self.operand(a, form.ty)?, self.operand(b, form.ty)?);
        let name = instruction.parts[0].as_str();
        let subtract = name.starts_with("sub");
        let (takes, gives) = (name.ends_with('c'), form.suffixes.contains(&"cc"));
        if form.ty.float() {
            if takes || gives {
                return self.unknown(instruction);
            }
            return self.two(if subtract { F2::FSub } else { F2::FAdd }, form.ty, d, a, b);
        }
        if takes || gives {
            let wide = Self::wide(form.ty);
            if form.ty.bytes() < 4 {
                return self.unknown(instruction);
            }
            let d = if wide { self.dw(d)? } else { self.dn(d)? };
            self.emit(Op::Carry { wide, subtract, takes, gives, d, a, b });
            return Ok(());
        }
        self.two(if subtract { F2::Sub } else { F2::Add }, form.ty, d, a, b)
    }

    pub(super) fn binary(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["rn", "lo", "NaN"])?;
        let [d, a, b] = self.operands::<3>(instruction)?;
        let ty = form.ty;
        let f = match (instruction.parts[0].as_str(), ty.float(), ty.signed()) {
            ("and", false, _) => F2::And,
            ("or", false, _) => F2::Or,
            ("xor", false, _) => F2::Xor,
            ("shl", false, _) => F2::Shl,
            ("shr", false, true) => F2::ShrS,
            ("shr", false, false) => F2::ShrU,
            ("min", false, true) => F2::MinS,
            ("min", false, false) => F2::MinU,
            ("max", false, true) => F2::MaxS,
            ("max", false, false) => F2::MaxU,
            ("div", false, true) => F2::DivS,
            ("div", false, false) => F2::DivU,
            ("rem", false, true) => F2::RemS,
            ("rem", false, false) => F2::RemU,
            ("mul24", false, false) if form.suffixes == ["lo"] => F2::Mul24,
            ("min", true, _) if form.suffixes.is_empty() => F2::FMin,
            ("max", true, _) if form.suffixes.is_empty() => F2::FMax,
            ("div", true, _) if form.suffixes == ["rn"] => F2::FDiv,
            _ => return self.unknown(instruction),
        };
        if matches!(f, F2::Shl | F2::ShrS | F2::ShrU) {
            // The distance has 32 bits whatever is shifted, and is not taken modulo anything.
            let value = self.operand(a, ty)?;
            let distance = self.n(b)?;
            if Self::wide(ty) {
                let d = self.dw(d)?;
                self.emit(Op::Shift64(f, d, value, distance));
                return Ok(());
            }
            return self.two(f, ty, d, value, distance);
        }
        let (a, b) = (self.operand(a, ty)?, self.operand(b, ty)?);
        self.two(f, ty, d, a, b)
    }

    pub(super) fn unary(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["shiftamt", "rn"])?;
        let [d, a] = self.operands::<2>(instruction)?;
        let (ty, amount) = (form.ty, form.suffixes.contains(&"shiftamt"));
        let f = match (instruction.parts[0].as_str(), ty.float()) {
            ("not", false) => F1::Not,
            ("neg", false) => F1::Neg,
            ("abs", false) => F1::Abs,
            ("cnot", false) => F1::Cnot,
            ("popc", false) => F1::Popc,
            ("clz", false) => F1::Clz,
            ("brev", false) => F1::Brev,
            ("bfind", false) => match (amount, ty.signed()) {
                (false, false) => F1::BfindU,
                (false, true) => F1::BfindS,
                (true, false) => F1::BfindShiftU,
                (true, true) => F1::BfindShiftS,
            },
            ("neg", true) => F1::FNeg,
            ("abs", true) => F1::FAbs,
            ("sqrt", true) if form.suffixes == ["rn"] => F1::FSqrt,
            ("rcp", true) if form.suffixes == ["rn"] => F1::FRcp,
            _ => return self.unknown(instruction),
        };
        let counts = matches!(f, F1::Popc | F1::Clz | F1::BfindU | F1::BfindS | F1::BfindShiftU | F1::BfindShiftS);
        let a = self.operand(a, ty)?;
        match ty.bytes() {
            8 if counts => {
                let d = self.dn(d)?;
                self.emit(Op::Count64(f, d, a));
            }
            8 => {
                let d = self.dw(d)?;
                self.emit(Op::W1(f, d, a));
            }
            4 => {
                let d = self.dn(d)?;
                self.emit(Op::N1(f, d, a));
            }
            2 if !counts && f != F1::Brev => {
                let d = self.dn(d)?;
                let full = self.fresh_narrow();
                self.emit(Op::N1(f, full, a));
                self.emit(Op::N1(F1::Zext16, d, full));
            }
            _ => return self.unknown(instruction),
        }
        Ok(())
    }

    pub(super) fn bits(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let form = self.form(instruction, &["l", "r", "wrap", "clamp"])?;
        let f = match (instruction.parts[0].as_str(), form.suffixes.as_slice(), form.ty) {
            ("bfi", [], Ty::U32) => {
                let [d, a, b, c, e] = self.operands::<5>(instruction)?;
                let sources = [self.n(a)?, self.n(b)?, self.n(c)?, self.n(e)?];
                let d = self.dn(d)?;
                self.emit(Op::Bfi(d, sources));
                return Ok(());
            }
            ("bfe", [], Ty::U64 | Ty::S64) => {
                let [d, a, b, c] = self.operands::<4>(instruction)?;
                let a = self.w(a)?;
                let (b, c) = (self.n(b)?, self.n(c)?);
                let (position, length) = (self.fresh_wide(), self.fresh_wide());
                self.emit(Op::WidenU(position, b));
                self.emit(Op::WidenU(length, c));
                let d = self.dw(d)?;
                let f = if form.ty.signed() { F3::BfeS } else { F3::BfeU };
                self.emit(Op::W3(f, d, [a, position, length]));
                return Ok(());
            }
            ("lop3", [], Ty::U32) => {
                let [d, a, b, c, table] = self.operands::<5>(instruction)?;
                let Operand::Number(table, _) = table else { return self.unknown(instruction) };
                let sources = [self.n(a)?, self.n(b)?, self.n(c)?];
                let d = self.dn(d)?;
                self.emit(Op::N3(F3::Lop3(table.to_le_bytes()[0]), d, sources));
                return Ok(());
            }
            ("prmt", [], Ty::U32) => F3::Prmt,
            ("shf", ["l", "wrap"], Ty::U32) => F3::ShfLWrap,
            ("shf", ["l", "clamp"], Ty::U32) => F3::ShfLClamp,
            ("shf", ["r", "wrap"], Ty::U32) => F3::ShfRWrap,
            ("shf", ["r", "clamp"], Ty::U32) => F3::ShfRClamp,
            ("bfe", [], Ty::U32) => F3::BfeU,
            ("bfe", [], Ty::S32) => F3::BfeS,
            ("sad", [], Ty::U32) => F3::SadU,
            ("sad", [], Ty::S32) => F3::SadS,
            _ => return self.unknown(instruction),
        };
        let [d, a, b, c] = self.operands::<4>(instruction)?;
        let sources = [self.n(a)?, self.n(b)?, self.n(c)?];
        let d = self.dn(d)?;
        self.emit(Op::N3(f, d, sources));
        Ok(())
    }
}
