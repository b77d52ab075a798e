//! From a kernel's statements to numbered registers and resolved branches.

use std::collections::HashMap;

use super::PtxError;
use super::ir::{Base, Inst, Kernel, Op, Param, Reg, Slot, Special};
use super::text::{Entry, Instruction, Operand, Statement, Variable, Written};

mod rotations;

/// Generic addresses of the spaces that are not device memory. No address of the host is that high.
pub(crate) const SHARED_WINDOW: u64 = 1 << 60;
pub(crate) const LOCAL_WINDOW: u64 = 1 << 61;
pub(crate) const PARAM_WINDOW: u64 = 1 << 62;

/// A declared register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Predicate(Slot),
    Narrow(Slot),
    Wide(Slot),
}

/// A declared name that stands for an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    pub(super) address: u64,
}

#[derive(Debug, Default)]
struct Scope {
    id: usize,
    names: HashMap<String, Register>,
    numbered: HashMap<String, (Register, u32)>,
    symbols: HashMap<String, Symbol>,
}

/// A branch whose label is not placed yet.
struct Pending {
    at: usize,
    label: String,
    scopes: Vec<usize>,
    line: u32,
}

/// The work in progress for one kernel.
pub(super) struct Lowering {
    scopes: Vec<Scope>,
    next_scope: usize,
    code: Vec<Inst>,
    narrow: Vec<Option<u32>>,
    wide: Vec<Option<u64>>,
    narrow_constants: HashMap<u32, Slot>,
    wide_constants: HashMap<u64, Slot>,
    predicates: Slot,
    labels: HashMap<(usize, String), usize>,
    pending: Vec<Pending>,
    shared_bytes: u64,
    local_bytes: u64,
    guard: Option<(Slot, bool)>,
    pub(super) line: u32,
    pub(super) barriers: bool,
    /// How often each narrow register is written, and with what where that is a number.
    writes: HashMap<Slot, (u32, Option<u32>)>,
}

/// Translates one kernel. `symbols` are the addresses of the module's variables.
pub(super) fn lower(
    entry: &Entry,
    symbols: &HashMap<String, u64>,
    module_shared: &[Variable],
) -> Result<Kernel, PtxError> {
    let mut lowering = Lowering {
        scopes: vec![Scope::default()],
        next_scope: 1,
        code: Vec::new(),
        narrow: Vec::new(),
        wide: Vec::new(),
        narrow_constants: HashMap::new(),
        wide_constants: HashMap::new(),
        predicates: 0,
        labels: HashMap::new(),
        pending: Vec::new(),
        shared_bytes: 0,
        local_bytes: 0,
        guard: None,
        line: entry.line,
        barriers: false,
        writes: HashMap::new(),
    };
    for (name, &address) in symbols {
        lowering.scopes[0].symbols.insert(name.clone(), Symbol { address });
    }
    let mut params = Vec::new();
    let mut param_bytes = 0_u64;
    for variable in &entry.params {
        param_bytes = param_bytes.next_multiple_of(variable.align);
        lowering.scopes[0].symbols.insert(variable.name.clone(), Symbol { address: param_bytes });
        params.push(Param { offset: param_bytes as usize, bytes: variable.bytes as usize });
        param_bytes += variable.bytes;
    }
    for variable in module_shared {
        lowering.shared(variable);
    }
    // What has no size of its own begins where the rest ends.
    for statement in &entry.body {
        lowering.statement(statement)?;
    }
    lowering.emit(Op::Exit);
    lowering.resolve_branches()?;
    lowering.find_rotations();
    Ok(Kernel {
        name: entry.name.clone(),
        params,
        param_bytes: param_bytes as usize,
        max_threads: entry.max_threads,
        exact_threads: entry.exact_threads,
        shared_bytes: u32::try_from(lowering.shared_bytes)
            .map_err(|_| PtxError::new(entry.line, "too much shared memory"))?,
        local_bytes: u32::try_from(lowering.local_bytes)
            .map_err(|_| PtxError::new(entry.line, "too much local memory"))?,
        code: lowering.code,
        narrow: lowering.narrow,
        wide: lowering.wide,
        predicates: lowering.predicates as usize,
        barriers: lowering.barriers,
    })
}

impl Lowering {
    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line, message))
    }

    fn shared(&mut self, variable: &Variable) {
        self.shared_bytes = self.shared_bytes.next_multiple_of(variable.align);
        let symbol = Symbol { address: self.shared_bytes };
        self.shared_bytes += variable.bytes;
        self.top().symbols.insert(variable.name.clone(), symbol);
    }

    fn top(&mut self) -> &mut Scope {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), PtxError> {
        match statement {
            Statement::Open => {
                self.scopes.push(Scope { id: self.next_scope, ..Scope::default() });
                self.next_scope += 1;
            }
            Statement::Close => {
                if self.scopes.len() > 1 {
                    self.scopes.pop();
                }
            }
            Statement::Label(name) => {
                let key = (self.top().id, name.clone());
                let here = self.code.len();
                if self.labels.insert(key, here).is_some() {
                    return self.fail(format!("the label {name} is there twice"));
                }
            }
            Statement::Register(kind, name, count) => self.register(kind, name, *count)?,
            Statement::Shared(variable) => self.shared(variable),
            Statement::Local(variable) => {
                self.local_bytes = self.local_bytes.next_multiple_of(variable.align);
                let symbol = Symbol { address: self.local_bytes };
                self.local_bytes += variable.bytes;
                self.top().symbols.insert(variable.name.clone(), symbol);
            }
            Statement::Run(instruction) => {
                self.line = instruction.line;
                self.guard = match &instruction.guard {
                    None => None,
                    Some((name, negated)) => Some((self.predicate_named(name)?, *negated)),
                };
                self.select(instruction)?;
                self.guard = None;
            }
        }
        Ok(())
    }

    fn register(&mut self, kind: &str, name: &str, count: Option<u32>) -> Result<(), PtxError> {
        let number = count.unwrap_or(1);
        let register = match kind {
            ".pred" => {
                let first = self.predicates;
                self.predicates += number;
                Register::Predicate(first)
            }
            ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".b32" | ".u32" | ".s32" | ".f32" => {
                let first = self.narrow.len() as Slot;
                self.narrow.resize(self.narrow.len() + number as usize, None);
                Register::Narrow(first)
            }
            ".b64" | ".u64" | ".s64" | ".f64" => {
                let first = self.wide.len() as Slot;
                self.wide.resize(self.wide.len() + number as usize, None);
                Register::Wide(first)
            }
            other => return self.fail(format!("registers of type {other} are not known")),
        };
        match count {
            None => {
                self.top().names.insert(name.to_owned(), register);
            }
            Some(count) => {
                self.top().numbered.insert(name.to_owned(), (register, count));
            }
        }
        Ok(())
    }

    pub(super) fn emit(&mut self, op: Op) {
        let (guard, line) = (self.guard, self.line);
        self.code.push(Inst { op, guard, line });
    }

    pub(super) fn branch(&mut self, label: &str) {
        let scopes = self.scopes.iter().rev().map(|scope| scope.id).collect();
        self.pending.push(Pending { at: self.code.len(), label: label.to_owned(), scopes, line: self.line });
        self.emit(Op::Branch(0));
    }

    fn resolve_branches(&mut self) -> Result<(), PtxError> {
        for pending in std::mem::take(&mut self.pending) {
            let target =
                pending.scopes.iter().find_map(|&scope| self.labels.get(&(scope, pending.label.clone())).copied());
            let Some(target) = target else {
                return Err(PtxError::new(pending.line, format!("no label {}", pending.label)));
            };
            self.code[pending.at].op = Op::Branch(target);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Register> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(name.len() - digits);
        let number: Option<u32> = number.parse().ok();
        self.scopes.iter().rev().find_map(|scope| {
            scope.names.get(name).copied().or_else(|| {
                let (first, count) = scope.numbered.get(prefix)?;
                let number = number.filter(|number| number < count)?;
                Some(match first {
                    Register::Predicate(slot) => Register::Predicate(slot + number),
                    Register::Narrow(slot) => Register::Narrow(slot + number),
                    Register::Wide(slot) => Register::Wide(slot + number),
                })
            })
        })
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.scopes.iter().rev().find_map(|scope| scope.symbols.get(name).copied())
    }

    pub(super) fn predicate_named(&self, name: &str) -> Result<Slot, PtxError> {
        match self.find(name) {
            Some(Register::Predicate(slot)) => Ok(slot),
            _ => self.fail(format!("{name} is no predicate")),
        }
    }

    /// A predicate operand, and whether its opposite is meant.
    pub(super) fn predicate(&mut self, operand: &Operand) -> Result<(Slot, bool), PtxError> {
        match operand {
            Operand::Name(name) => Ok((self.predicate_named(name)?, false)),
            Operand::Not(name) => Ok((self.predicate_named(name)?, true)),
            Operand::Number(bits, _) => {
                let slot = self.fresh_predicate();
                self.emit(Op::PSet(slot, *bits != 0));
                Ok((slot, false))
            }
            other => self.fail(format!("a predicate is expected, not {other:?}")),
        }
    }

    pub(super) fn fresh_predicate(&mut self) -> Slot {
        self.predicates += 1;
        self.predicates - 1
    }

    pub(super) fn fresh_narrow(&mut self) -> Slot {
        self.narrow.push(None);
        let slot = (self.narrow.len() - 1) as Slot;
        self.writes.insert(slot, (2, None));
        slot
    }

    pub(super) fn fresh_wide(&mut self) -> Slot {
        self.wide.push(None);
        (self.wide.len() - 1) as Slot
    }

    pub(super) fn constant(&mut self, value: u32) -> Slot {
        if let Some(&slot) = self.narrow_constants.get(&value) {
            return slot;
        }
        self.narrow.push(Some(value));
        let slot = (self.narrow.len() - 1) as Slot;
        self.narrow_constants.insert(value, slot);
        slot
    }

    pub(super) fn wide_constant(&mut self, value: u64) -> Slot {
        if let Some(&slot) = self.wide_constants.get(&value) {
            return slot;
        }
        self.wide.push(Some(value));
        let slot = (self.wide.len() - 1) as Slot;
        self.wide_constants.insert(value, slot);
        slot
    }

    /// A source of 32 bits or fewer.
    pub(super) fn n(&mut self, operand: &Operand) -> Result<Slot, PtxError> {
        match operand {
            Operand::Number(bits, Written::F64) => Ok(self.constant((f64::from_bits(*bits) as f32).to_bits())),
            Operand::Number(bits, _) => Ok(self.constant(*bits as u32)),
            Operand::Name(name) => match self.find(name) {
                Some(Register::Narrow(slot)) => Ok(slot),
                Some(other) => self.fail(format!("{name} is {other:?}, where 32 bits are expected")),
                None => {
                    if let Some(symbol) = self.symbol(name) {
                        return Ok(self.constant(symbol.address as u32));
                    }
                    let special = self.special(name)?;
                    let slot = self.fresh_narrow();
                    self.emit(Op::Read(special, Reg::Narrow(slot)));
                    Ok(slot)
                }
            },
            other => self.fail(format!("32 bits are expected, not {other:?}")),
        }
    }

    /// A source of 64 bits.
    pub(super) fn w(&mut self, operand: &Operand) -> Result<Slot, PtxError> {
        match operand {
            Operand::Number(bits, Written::F32) => {
                Ok(self.wide_constant(f64::from(f32::from_bits(*bits as u32)).to_bits()))
            }
            Operand::Number(bits, _) => Ok(self.wide_constant(*bits)),
            Operand::Name(name) => match self.find(name) {
                Some(Register::Wide(slot)) => Ok(slot),
                Some(other) => self.fail(format!("{name} is {other:?}, where 64 bits are expected")),
                None => {
                    if let Some(symbol) = self.symbol(name) {
                        return Ok(self.wide_constant(symbol.address));
                    }
                    let special = self.special(name)?;
                    let slot = self.fresh_wide();
                    self.emit(Op::Read(special, Reg::Wide(slot)));
                    Ok(slot)
                }
            },
            other => self.fail(format!("64 bits are expected, not {other:?}")),
        }
    }

    /// A target of 32 bits or fewer.
    pub(super) fn dn(&mut self, operand: &Operand) -> Result<Slot, PtxError> {
        match self.target(operand)? {
            Reg::Narrow(slot) => Ok(slot),
            Reg::Nothing => Ok(self.fresh_narrow()),
            Reg::Wide(_) => self.fail(format!("{operand:?} has 64 bits, where 32 are expected")),
        }
    }

    /// A target of 64 bits.
    pub(super) fn dw(&mut self, operand: &Operand) -> Result<Slot, PtxError> {
        match self.target(operand)? {
            Reg::Wide(slot) => Ok(slot),
            Reg::Nothing => Ok(self.fresh_wide()),
            Reg::Narrow(_) => self.fail(format!("{operand:?} has 32 bits, where 64 are expected")),
        }
    }

    /// A predicate target.
    pub(super) fn dp(&mut self, name: &str) -> Result<Option<Slot>, PtxError> {
        if name == "_" { Ok(None) } else { self.predicate_named(name).map(Some) }
    }

    /// A target of either width.
    pub(super) fn target(&mut self, operand: &Operand) -> Result<Reg, PtxError> {
        let Operand::Name(name) = operand else { return self.fail(format!("{operand:?} cannot be written")) };
        if name == "_" {
            return Ok(Reg::Nothing);
        }
        match self.find(name) {
            Some(Register::Narrow(slot)) => {
                self.writes.entry(slot).or_insert((0, None)).0 += 1;
                Ok(Reg::Narrow(slot))
            }
            Some(Register::Wide(slot)) => Ok(Reg::Wide(slot)),
            Some(Register::Predicate(_)) => self.fail(format!("{name} is a predicate")),
            None => self.fail(format!("{name} is not declared")),
        }
    }

    /// A register or number of either width; numbers are as wide as `wide` says.
    pub(super) fn source(&mut self, operand: &Operand, wide: bool) -> Result<Reg, PtxError> {
        if let Operand::Name(name) = operand {
            match self.find(name) {
                Some(Register::Narrow(slot)) => return Ok(Reg::Narrow(slot)),
                Some(Register::Wide(slot)) => return Ok(Reg::Wide(slot)),
                _ => {}
            }
        }
        if wide { self.w(operand).map(Reg::Wide) } else { self.n(operand).map(Reg::Narrow) }
    }

    /// Notes that a register holds a known number, if this is the only write to it.
    pub(super) fn holds(&mut self, slot: Slot, value: Option<u32>) {
        if self.guard.is_none() {
            self.writes.entry(slot).or_insert((0, None)).1 = value;
        }
    }

    /// What an address is built from: the number or name's address goes into the offset.
    pub(super) fn base(&mut self, operand: &Operand) -> Result<(Base, i64), PtxError> {
        match operand {
            Operand::Number(bits, _) => Ok((Base::None, *bits as i64)),
            Operand::Name(name) => match self.find(name) {
                Some(Register::Narrow(slot)) => Ok((Base::Narrow(slot), 0)),
                Some(Register::Wide(slot)) => Ok((Base::Wide(slot), 0)),
                Some(Register::Predicate(_)) => self.fail(format!("{name} is no address")),
                None => match self.symbol(name) {
                    Some(symbol) => Ok((Base::None, symbol.address as i64)),
                    None => self.fail(format!("{name} is not declared")),
                },
            },
            other => self.fail(format!("an address is expected, not {other:?}")),
        }
    }

    fn special(&self, name: &str) -> Result<Special, PtxError> {
        let axis = |text: &str| match text {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let special = match name {
            "%laneid" => Some(Special::Lane),
            "%warpid" => Some(Special::Warp),
            "%nwarpid" => Some(Special::Warps),
            "%smid" => Some(Special::Sm),
            "%nsmid" => Some(Special::Sms),
            "%clock" | "%clock64" | "%globaltimer" | "%clock_hi" => Some(Special::Clock),
            "%lanemask_eq" => Some(Special::MaskEq),
            "%lanemask_lt" => Some(Special::MaskLt),
            "%lanemask_le" => Some(Special::MaskLe),
            "%lanemask_gt" => Some(Special::MaskGt),
            "%lanemask_ge" => Some(Special::MaskGe),
            "%dynamic_smem_size" => Some(Special::DynamicShared),
            "%total_smem_size" => Some(Special::TotalShared),
            _ => name.rsplit_once('.').and_then(|(vector, part)| {
                let part = axis(part)?;
                match vector {
                    "%tid" => Some(Special::Tid(part)),
                    "%ntid" => Some(Special::Ntid(part)),
                    "%ctaid" => Some(Special::Ctaid(part)),
                    "%nctaid" => Some(Special::Nctaid(part)),
                    _ => None,
                }
            }),
        };
        special.map_or_else(|| self.fail(format!("{name} is not declared")), Ok)
    }

    pub(super) fn operands<'a, const N: usize>(
        &self,
        instruction: &'a Instruction,
    ) -> Result<&'a [Operand; N], PtxError> {
        match instruction.operands.as_slice().try_into() {
            Ok(operands) => Ok(operands),
            Err(_) => self.fail(format!("{} takes {N} operands", instruction.parts.join("."))),
        }
    }
}
