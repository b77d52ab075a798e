//! PTX: the text compiled to a register machine, and the machine.

mod access;
mod access_lanes;
mod arithmetic;
mod exec;
mod ir;
mod lanes;
mod lower;
mod rare;
mod select;
mod text;
mod tokens;
mod view;
mod warp;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use exec::{Shape, run};
pub(crate) use ir::Kernel;
pub(crate) use view::{Range, View};

use crate::report::Cause;
use text::{Text, Variable};

/// A text that does not compile: the line, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PtxError {
    pub(crate) line: u32,
    pub(crate) message: String,
}

impl PtxError {
    fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Why a launch was stopped.
#[derive(Debug, Clone)]
pub(crate) struct Trap {
    pub(crate) cause: Cause,
    pub(crate) address: u64,
    /// Line of the PTX text.
    pub(crate) line: u32,
}

impl Trap {
    fn new(cause: Cause, address: u64) -> Self {
        Self { cause, address, line: 0 }
    }

    fn at_line(mut self, line: u32) -> Self {
        self.line = line;
        self
    }
}

/// A module's text, read but without addresses.
#[derive(Debug)]
pub(crate) struct Parsed(Text);

/// Variables of one space in a row: bytes, and where each begins.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) places: HashMap<String, (u64, u64)>,
}

/// Reads a module's text.
pub(crate) fn parse(text: &str) -> Result<Parsed, PtxError> {
    text::parse(text).map(Parsed)
}

impl Parsed {
    /// PTX version, and number of the target (`sm_70` is 70).
    pub(crate) fn needs(&self) -> ((u32, u32), u32) {
        (self.0.version, self.0.target)
    }

    /// The variables of `.global`.
    pub(crate) fn globals(&self) -> Image {
        image(&self.0.globals)
    }

    /// The variables of `.const`.
    pub(crate) fn constants(&self) -> Image {
        image(&self.0.constants)
    }

    /// The kernels, with the addresses of the variables known.
    pub(crate) fn kernels(&self, symbols: &HashMap<String, u64>) -> Result<Vec<Arc<Kernel>>, PtxError> {
        self.0.entries.iter().map(|entry| lower::lower(entry, symbols, &self.0.shared).map(Arc::new)).collect()
    }
}

fn image(variables: &[Variable]) -> Image {
    let mut image = Image::default();
    for variable in variables {
        let start = image.bytes.len().next_multiple_of(variable.align as usize);
        image.bytes.resize(start, 0);
        image.bytes.extend(&variable.init);
        image.bytes.resize(start + variable.bytes as usize, 0);
        image.places.insert(variable.name.clone(), (start as u64, variable.bytes));
    }
    image
}
