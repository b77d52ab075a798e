//! Strict reading of a safetensors header.
//!
//! The file is `u64` header length, a JSON object, then the tensors' bytes. JSON leaves room for two readers to see
//! two different models in one file (a name twice, a list where an object is expected, an enum written as an object),
//! so the scan here accepts one spelling only; the `safetensors` crate then validates the result by its own rules.

mod scan;

use super::error::shown;
use super::limits;
use super::source::read_exact_at;
use super::{Format, ModelError, Parsed, Source, TensorTable};

pub(super) use scan::{Fault, offset_of, reason_of};

/// Bytes before the header.
const PREFIX: u64 = 8;

pub(super) fn parse(source: &dyn Source) -> Result<Parsed, ModelError> {
    let len = source.len();
    let Some(left) = len.checked_sub(PREFIX) else {
        return Err(ModelError::Truncated { what: "the header's length", offset: 0, needed: PREFIX, left: len });
    };
    let mut prefix = [0; 8];
    read_exact_at(source, 0, &mut prefix)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > limits::MAX_SAFETENSORS_HEADER {
        let limit = limits::MAX_SAFETENSORS_HEADER;
        return Err(ModelError::Limit { what: "the header's length", offset: 0, found: header_len, limit });
    }
    let Some(data_len) = left.checked_sub(header_len) else {
        return Err(ModelError::Truncated { what: "the header", offset: PREFIX, needed: header_len, left });
    };
    let data_start = len.saturating_sub(data_len);

    let header = read_header(source, header_len)?;
    let tensors = scan::tensors(&header, data_start, data_len)?;
    let table = TensorTable::new(tensors)?;
    check_coverage(&table, data_start, len)?;
    ask_the_library(&table, data_start)?;
    let header_digest = *blake3::Hasher::new().update(&prefix).update(&header).finalize().as_bytes();
    Ok(Parsed { format: Format::Safetensors, table, data_start, header_digest })
}

/// Reads the header, which is at most as long as the file.
fn read_header(source: &dyn Source, len: u64) -> Result<Vec<u8>, ModelError> {
    let out_of_memory = || ModelError::OutOfMemory { offset: PREFIX, bytes: len };
    let count = usize::try_from(len).map_err(|_| out_of_memory())?;
    let mut header = Vec::new();
    header.try_reserve_exact(count).map_err(|_| out_of_memory())?;
    header.resize(count, 0);
    read_exact_at(source, PREFIX, &mut header)?;

    if header.first() != Some(&b'{') {
        return Err(ModelError::Json { offset: PREFIX, reason: "the header does not begin with '{'".into() });
    }
    // After the object only spaces are allowed: the format's padding.
    let end = header.iter().rposition(|byte| *byte == b'}').map_or(0, |at| at.saturating_add(1));
    let padding = header.get(end..).unwrap_or_default();
    if let Some(at) = padding.iter().position(|byte| *byte != b' ') {
        let offset = PREFIX.saturating_add(scan::position(end)).saturating_add(scan::position(at));
        return Err(ModelError::Json { offset, reason: "only spaces may follow the header's object".into() });
    }
    Ok(header)
}

/// The tensors must cover the data without hole or remainder.
fn check_coverage(table: &TensorTable, data_start: u64, len: u64) -> Result<(), ModelError> {
    let mut expected = data_start;
    for tensor in table.tensors() {
        if tensor.start > expected {
            return Err(ModelError::Hole { name: shown(&tensor.name), offset: tensor.start, expected });
        }
        expected = tensor.end;
    }
    match len.saturating_sub(expected) {
        0 => Ok(()),
        bytes => Err(ModelError::Trailing { offset: expected, bytes }),
    }
}

/// Has the `safetensors` crate validate the same tensors by its own rules.
///
/// It gets them as values, not as JSON: its own deserializer took 11 times the header's size in memory for 150,000 tiny
/// entries (measured with version 0.8.0), and would read leniently what was just read strictly. The tests make sure
/// that it accepts the JSON of whatever is accepted here.
fn ask_the_library(table: &TensorTable, data_start: u64) -> Result<(), ModelError> {
    let refuse = |reason: String| ModelError::Library { reason };
    let narrow = |number: u64| usize::try_from(number).map_err(|_| refuse("a number exceeds this machine's".into()));
    let mut tensors = Vec::with_capacity(table.len());
    for tensor in table.tensors() {
        let dtype = tensor.dtype.to_safetensors().ok_or_else(|| refuse("unknown element type".into()))?;
        let mut shape = Vec::with_capacity(tensor.shape.len());
        for dimension in &tensor.shape {
            shape.push(narrow(*dimension)?);
        }
        let start = narrow(tensor.start.saturating_sub(data_start))?;
        let end = narrow(tensor.end.saturating_sub(data_start))?;
        let info = safetensors::tensor::TensorInfo { dtype, shape, data_offsets: (start, end) };
        tensors.push((tensor.name.to_string(), info));
    }
    safetensors::tensor::Metadata::new(None, tensors).map_err(|error| refuse(error.to_string()))?;
    Ok(())
}
