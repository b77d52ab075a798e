//! From PTX text to statements: words, names, declarations, instructions with their line numbers.

use super::PtxError;
pub(super) use super::tokens::Written;
use super::tokens::{Token, tokens};

/// An operand of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// Register, special register, variable or label.
    Name(String),
    /// Bits; negative numbers in two's complement of 64 bits.
    Number(u64, Written),
    /// `[base + offset]`.
    Memory(Box<Operand>, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `!p`.
    Not(String),
    /// `a|p`.
    Pair(String, String),
}

/// An instruction.
#[derive(Debug, Clone)]
pub(super) struct Instruction {
    pub(super) line: u32,
    /// Predicate, and whether its opposite is meant.
    pub(super) guard: Option<(String, bool)>,
    /// The opcode's parts, as in `mad.lo.u32`.
    pub(super) parts: Vec<String>,
    pub(super) operands: Vec<Operand>,
}

/// A variable in memory.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) align: u64,
    pub(super) bytes: u64,
    pub(super) init: Vec<u8>,
}

/// A statement of a kernel's body.
#[derive(Debug, Clone)]
pub(super) enum Statement {
    Open,
    Close,
    Label(String),
    /// Type, name, count where names are numbered.
    Register(String, String, Option<u32>),
    Shared(Variable),
    Local(Variable),
    Run(Instruction),
}

/// A kernel.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) line: u32,
    pub(super) params: Vec<Variable>,
    pub(super) max_threads: Option<[u32; 3]>,
    pub(super) exact_threads: Option<[u32; 3]>,
    pub(super) body: Vec<Statement>,
}

/// A module's text.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) version: (u32, u32),
    pub(super) target: u32,
    pub(super) globals: Vec<Variable>,
    pub(super) constants: Vec<Variable>,
    pub(super) shared: Vec<Variable>,
    pub(super) entries: Vec<Entry>,
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
}

/// Reads a module.
pub(super) fn parse(text: &str) -> Result<Text, PtxError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut module = Text::default();
    while parser.at < parser.tokens.len() {
        parser.top(&mut module)?;
    }
    if module.version == (0, 0) {
        return Err(PtxError::new(1, "no .version directive"));
    }
    Ok(module)
}

impl Parser {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.1)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|token| &token.0)
    }

    fn next(&mut self) -> Result<Token, PtxError> {
        let Some((token, _)) = self.tokens.get(self.at) else { return self.fail("the text ends in the middle") };
        self.at += 1;
        Ok(token.clone())
    }

    fn mark(&mut self, mark: char) -> bool {
        let there = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(there);
        there
    }

    fn need(&mut self, mark: char) -> Result<(), PtxError> {
        if self.mark(mark) { Ok(()) } else { self.fail(format!("'{mark}' is expected here, not {:?}", self.peek())) }
    }

    fn word(&mut self) -> Result<String, PtxError> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => self.fail(format!("a name is expected here, not {other:?}")),
        }
    }

    fn integer(&mut self) -> Result<u64, PtxError> {
        let negative = self.mark('-');
        match self.next()? {
            Token::Number(bits, _) => Ok(if negative { bits.wrapping_neg() } else { bits }),
            other => self.fail(format!("a number is expected here, not {other:?}")),
        }
    }

    fn skip_to(&mut self, mark: char) -> Result<(), PtxError> {
        while self.next()? != Token::Mark(mark) {}
        Ok(())
    }

    fn top(&mut self, module: &mut Text) -> Result<(), PtxError> {
        let line = self.line();
        let word = self.word()?;
        match word.as_str() {
            ".version" => {
                let version = self.integer()?;
                module.version = ((version >> 32) as u32, version as u32);
            }
            ".target" => {
                let target = self.word()?;
                let number = target.trim_start_matches("sm_").trim_end_matches('a').parse();
                module.target = number.or_else(|_| self.fail(format!("the target {target} is not known")))?;
                while self.mark(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.integer()? != 64 {
                    return Err(PtxError::new(line, "only addresses of 64 bits"));
                }
            }
            ".visible" | ".weak" | ".extern" => {}
            ".global" => module.globals.extend(self.variables()?),
            ".const" => module.constants.extend(self.variables()?),
            ".shared" => module.shared.extend(self.variables()?),
            ".entry" => module.entries.push(self.entry()?),
            ".file" => {
                self.integer()?;
                self.next()?;
                while self.mark(',') {
                    self.integer()?;
                }
            }
            ".section" => self.skip_to('}')?,
            ".pragma" => self.skip_to(';')?,
            other => return Err(PtxError::new(line, format!("'{other}' is not known here"))),
        }
        Ok(())
    }

    /// `.align 4 .b8 name[16] = {1, 2}, other;` after its space.
    fn variables(&mut self) -> Result<Vec<Variable>, PtxError> {
        let mut align = None;
        let kind = loop {
            let word = self.word()?;
            match word.as_str() {
                ".align" => align = Some(self.integer()?),
                ".volatile" => {}
                _ => break word,
            }
        };
        let unit = self.unit(&kind)?;
        let mut variables = Vec::new();
        loop {
            let mut variable = self.variable(align, unit)?;
            if self.mark('=') {
                variable.init = self.values(unit)?;
                variable.init.resize(variable.init.len().max(variable.bytes as usize), 0);
                variable.bytes = variable.init.len() as u64;
            }
            variables.push(variable);
            if !self.mark(',') {
                break;
            }
        }
        self.need(';')?;
        Ok(variables)
    }

    fn variable(&mut self, align: Option<u64>, unit: u64) -> Result<Variable, PtxError> {
        let name = self.word()?;
        let mut bytes = unit;
        while self.mark('[') {
            let count = if self.peek() == Some(&Token::Mark(']')) { 0 } else { self.integer()? };
            bytes =
                bytes.checked_mul(count).filter(|bytes| *bytes < 1 << 40).map_or_else(|| self.fail("too large"), Ok)?;
            self.need(']')?;
        }
        Ok(Variable { name, align: align.unwrap_or(unit).max(1), bytes, init: Vec::new() })
    }

    fn values(&mut self, unit: u64) -> Result<Vec<u8>, PtxError> {
        if !self.mark('{') {
            let value = self.integer()?;
            return Ok(value.to_le_bytes()[..unit as usize].to_vec());
        }
        let mut bytes = Vec::new();
        while !self.mark('}') {
            bytes.extend(self.values(unit)?);
            self.mark(',');
        }
        Ok(bytes)
    }

    fn unit(&self, kind: &str) -> Result<u64, PtxError> {
        match kind {
            ".b8" | ".u8" | ".s8" => Ok(1),
            ".b16" | ".u16" | ".s16" => Ok(2),
            ".b32" | ".u32" | ".s32" | ".f32" => Ok(4),
            ".b64" | ".u64" | ".s64" | ".f64" => Ok(8),
            other => self.fail(format!("the type {other} is not known")),
        }
    }

    fn entry(&mut self) -> Result<Entry, PtxError> {
        let line = self.line();
        let name = self.word()?;
        let mut entry =
            Entry { name, line, params: Vec::new(), max_threads: None, exact_threads: None, body: Vec::new() };
        if self.mark('(') {
            while !self.mark(')') {
                self.parameter(&mut entry)?;
                self.mark(',');
            }
        }
        while !self.mark('{') {
            match self.word()?.as_str() {
                ".maxntid" => entry.max_threads = Some(self.three()?),
                ".reqntid" => entry.exact_threads = Some(self.three()?),
                ".minnctapersm" | ".maxnreg" => {
                    self.integer()?;
                }
                ".pragma" => self.skip_to(';')?,
                other => return self.fail(format!("'{other}' is not known here")),
            }
        }
        let mut depth = 1;
        while depth > 0 {
            if self.mark('{') {
                depth += 1;
                entry.body.push(Statement::Open);
            } else if self.mark('}') {
                depth -= 1;
                entry.body.push(Statement::Close);
            } else {
                self.statement(&mut entry.body)?;
            }
        }
        Ok(entry)
    }

    fn parameter(&mut self, entry: &mut Entry) -> Result<(), PtxError> {
        let (mut align, mut unit) = (None, None);
        loop {
            let word = self.word()?;
            match word.as_str() {
                ".param" | ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                ".align" => {
                    let value = self.integer()?;
                    // After a type it tells of what a pointer points to.
                    if unit.is_none() {
                        align = Some(value);
                    }
                }
                kind if kind.starts_with('.') => unit = Some(self.unit(kind)?),
                _ => {
                    self.at -= 1;
                    break;
                }
            }
        }
        let Some(unit) = unit else { return self.fail("a parameter without a type") };
        let parameter = self.variable(align, unit)?;
        entry.params.push(parameter);
        Ok(())
    }

    fn three(&mut self) -> Result<[u32; 3], PtxError> {
        let mut sizes = [1_u32; 3];
        for size in &mut sizes {
            *size = u32::try_from(self.integer()?).or_else(|_| self.fail("too large"))?;
            if !self.mark(',') {
                break;
            }
        }
        Ok(sizes)
    }

    fn statement(&mut self, body: &mut Vec<Statement>) -> Result<(), PtxError> {
        let line = self.line();
        if self.mark('@') {
            let negated = self.mark('!');
            let name = self.word()?;
            let mut instruction = self.instruction(line)?;
            instruction.guard = Some((name, negated));
            body.push(Statement::Run(instruction));
            return Ok(());
        }
        let word = self.word()?;
        if self.mark(':') {
            body.push(Statement::Label(word));
            return Ok(());
        }
        match word.as_str() {
            ".reg" => self.registers(body)?,
            ".shared" => body.extend(self.variables()?.into_iter().map(Statement::Shared)),
            ".local" => body.extend(self.variables()?.into_iter().map(Statement::Local)),
            ".loc" => {
                // Ends with its line: nothing closes it.
                while self.at < self.tokens.len() && self.line() == line {
                    self.at += 1;
                }
            }
            ".pragma" => self.skip_to(';')?,
            other if other.starts_with('.') => return Err(PtxError::new(line, format!("'{other}' is not known here"))),
            _ => {
                self.at -= 1;
                let instruction = self.instruction(line)?;
                body.push(Statement::Run(instruction));
            }
        }
        Ok(())
    }

    fn registers(&mut self, body: &mut Vec<Statement>) -> Result<(), PtxError> {
        let kind = self.word()?;
        loop {
            let name = self.word()?;
            let mut count = None;
            if self.mark('<') {
                count = Some(u32::try_from(self.integer()?).or_else(|_| self.fail("too large"))?);
                self.need('>')?;
            }
            body.push(Statement::Register(kind.clone(), name, count));
            if !self.mark(',') {
                break;
            }
        }
        self.need(';')
    }

    fn instruction(&mut self, line: u32) -> Result<Instruction, PtxError> {
        let opcode = self.word()?;
        let parts = opcode.split('.').map(str::to_owned).collect();
        let mut operands = Vec::new();
        while !self.mark(';') {
            operands.push(self.operand()?);
            if !self.mark(',') {
                self.need(';')?;
                break;
            }
        }
        Ok(Instruction { line, guard: None, parts, operands })
    }

    fn operand(&mut self) -> Result<Operand, PtxError> {
        if self.mark('{') {
            let mut parts = Vec::new();
            while !self.mark('}') {
                parts.push(self.operand()?);
                self.mark(',');
            }
            return Ok(Operand::Vector(parts));
        }
        if self.mark('[') {
            let base = self.operand()?;
            let mut offset = 0_i64;
            while self.mark('+') {
                offset = offset.wrapping_add(self.integer()? as i64);
            }
            if self.peek() == Some(&Token::Mark('-')) {
                offset = offset.wrapping_add(self.integer()? as i64);
            }
            self.need(']')?;
            return Ok(Operand::Memory(Box::new(base), offset));
        }
        if self.mark('!') {
            return Ok(Operand::Not(self.word()?));
        }
        if self.mark('-') {
            return Ok(Operand::Number(self.integer()?.wrapping_neg(), Written::Integer));
        }
        match self.next()? {
            Token::Number(bits, written) => Ok(Operand::Number(bits, written)),
            Token::Word(word) if self.mark('|') => Ok(Operand::Pair(word, self.word()?)),
            Token::Word(word) => Ok(Operand::Name(word)),
            other => self.fail(format!("an operand is expected here, not {other:?}")),
        }
    }
}
