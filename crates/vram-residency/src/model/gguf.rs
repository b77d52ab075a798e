//! Strict reading of a GGUF header, versions 2 and 3, little-endian.
//!
//! Magic, version, two counts, metadata, tensor descriptions, padding up to `general.alignment`, then the tensors'
//! bytes, each padded likewise. Metadata is checked and skipped; no length in the file decides what is allocated.

use super::cursor::Cursor;
use super::error::shown;
use super::limits::{self, Budget, NameSet, fault_in_name};
use super::{Dtype, Format, ModelError, Parsed, Source, Tensor, TensorTable};

/// The first bytes of every GGUF file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of a file that does not state one.
const DEFAULT_ALIGNMENT: u32 = 32;
/// Fewest bytes of a metadata entry: key length, a key of one byte, type, a value of one byte.
const LEAST_ENTRY: u64 = 14;
/// Fewest bytes of a tensor description: name length, a name of one byte, rank, one dimension, type, offset.
const LEAST_TENSOR: u64 = 33;
/// What one tensor costs at the peak beside its name and dimensions: table entry, and a set of names.
const TENSOR_COST: u64 = 256;
/// What one metadata key costs: 16 bytes in a set that grows by doubling.
const KEY_COST: u64 = 80;

/// Types of metadata values, by their numbers in the file.
mod value {
    pub(super) const U32: u32 = 4;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;

    /// Bytes of a value that has a fixed size.
    pub(super) fn size(kind: u32) -> Option<u64> {
        match kind {
            0 | 1 | BOOL => Some(1),
            2 | 3 => Some(2),
            U32 | 5 | 6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }
}

pub(super) fn parse(source: &dyn Source) -> Result<Parsed, ModelError> {
    let mut cursor = Cursor::new(source, limits::MAX_GGUF_HEADER);
    let mut budget = Budget::for_file(cursor.len());
    let (tensor_count, entry_count) = read_start(&mut cursor)?;
    let alignment = read_metadata(&mut cursor, &mut budget, entry_count)?;

    let mut names = NameSet::default();
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(read_tensor(&mut cursor, &mut budget, &mut names)?);
    }
    drop(names);

    let data_start = read_padding(&mut cursor, alignment, tensor_count)?;
    let len = cursor.len();
    let header_digest = cursor.finish();
    place(&mut tensors, data_start, alignment, len)?;
    Ok(Parsed { format: Format::Gguf, table: TensorTable::new(tensors)?, data_start, header_digest })
}

/// Magic, version and the two counts.
fn read_start(cursor: &mut Cursor<'_>) -> Result<(u64, u64), ModelError> {
    let magic: [u8; 4] = cursor.array("the magic")?;
    if magic != MAGIC {
        return Err(ModelError::NotGguf { offset: 0 });
    }
    let offset = cursor.position();
    match cursor.u32("the version")? {
        2 | 3 => {}
        swapped if matches!(swapped.swap_bytes(), 1..=3) => return Err(ModelError::BigEndian { offset }),
        found => return Err(ModelError::Version { found, offset }),
    }
    let tensors = read_count(cursor, "the number of tensors", limits::MAX_TENSORS, LEAST_TENSOR)?;
    let entries = read_count(cursor, "the number of metadata entries", limits::MAX_METADATA, LEAST_ENTRY)?;
    Ok((tensors, entries))
}

/// A count that is neither above the limit nor more than the rest of the file can hold.
fn read_count(cursor: &mut Cursor<'_>, what: &'static str, limit: u64, least: u64) -> Result<u64, ModelError> {
    let offset = cursor.position();
    let found = cursor.u64(what)?;
    let limit = limit.min(cursor.left().checked_div(least).unwrap_or_default());
    if found > limit {
        return Err(ModelError::Limit { what, offset, found, limit });
    }
    Ok(found)
}

/// A name or key: bounded, UTF-8, printable.
fn read_name(cursor: &mut Cursor<'_>, what: &'static str, limit: u64) -> Result<(String, u64), ModelError> {
    let offset = cursor.position();
    let found = cursor.u64(what)?;
    if found > limit {
        return Err(ModelError::Limit { what: "the length of a name", offset, found, limit });
    }
    let bytes = cursor.bytes(what, found)?;
    let name = match String::from_utf8(bytes) {
        Ok(name) => name,
        Err(error) => {
            let name = shown(&String::from_utf8_lossy(error.as_bytes()));
            return Err(ModelError::Name { what, name, offset, reason: "it is not UTF-8" });
        }
    };
    match fault_in_name(&name) {
        Some(reason) => Err(ModelError::Name { what, name: shown(&name), offset, reason }),
        None => Ok((name, offset)),
    }
}

/// Every metadata entry; returns the alignment.
fn read_metadata(cursor: &mut Cursor<'_>, budget: &mut Budget, entries: u64) -> Result<u64, ModelError> {
    let mut keys = NameSet::default();
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..entries {
        let what = "metadata key";
        let (key, offset) = read_name(cursor, what, limits::MAX_KEY)?;
        budget.charge(KEY_COST).map_err(|limit| ModelError::Memory { offset, limit })?;
        if !keys.insert(&key) {
            return Err(ModelError::Duplicate { what, name: shown(&key), offset });
        }
        let offset = cursor.position();
        let kind = cursor.u32("the type of a metadata value")?;
        if key != "general.alignment" {
            skip_value(cursor, kind, offset, 0)?;
            continue;
        }
        if kind != value::U32 {
            return Err(ModelError::Value { offset, reason: "general.alignment is not a 32-bit unsigned number" });
        }
        let offset = cursor.position();
        alignment = cursor.u32("general.alignment")?;
        if !alignment.is_power_of_two() || !(8..=limits::MAX_ALIGNMENT).contains(&alignment) {
            return Err(ModelError::Alignment { found: alignment.into(), offset });
        }
    }
    Ok(alignment.into())
}

/// Passes one metadata value. `offset` is where its type stands.
fn skip_value(cursor: &mut Cursor<'_>, kind: u32, offset: u64, depth: u32) -> Result<(), ModelError> {
    match kind {
        value::ARRAY => skip_array(cursor, depth),
        value::STRING => skip_string(cursor),
        value::BOOL => skip_bools(cursor, 1),
        _ => match value::size(kind) {
            Some(size) => cursor.skip("a metadata value", size),
            None => Err(ModelError::Value { offset, reason: "its type is unknown" }),
        },
    }
}

fn skip_string(cursor: &mut Cursor<'_>) -> Result<(), ModelError> {
    let offset = cursor.position();
    let found = cursor.u64("the length of a string")?;
    if found > limits::MAX_GGUF_ITEMS {
        let (what, limit) = ("the length of a string", limits::MAX_GGUF_ITEMS);
        return Err(ModelError::Limit { what, offset, found, limit });
    }
    cursor.skip("a string", found)
}

fn skip_bools(cursor: &mut Cursor<'_>, count: u64) -> Result<(), ModelError> {
    match cursor.first_misfit("a boolean", count, |byte| byte <= 1)? {
        Some(offset) => Err(ModelError::Value { offset, reason: "a boolean is neither 0 nor 1" }),
        None => Ok(()),
    }
}

fn skip_array(cursor: &mut Cursor<'_>, depth: u32) -> Result<(), ModelError> {
    let offset = cursor.position();
    let depth = depth.saturating_add(1);
    if depth > limits::MAX_NESTING {
        let (what, limit) = ("the nesting of arrays", limits::MAX_NESTING.into());
        return Err(ModelError::Limit { what, offset, found: depth.into(), limit });
    }
    let kind = cursor.u32("the element type of an array")?;
    let least = match kind {
        value::ARRAY => 12,
        value::STRING => 8,
        _ => value::size(kind).ok_or(ModelError::Value { offset, reason: "the type of its elements is unknown" })?,
    };
    let count = read_count(cursor, "the length of an array", limits::MAX_GGUF_ITEMS, least)?;
    match kind {
        value::BOOL => skip_bools(cursor, count),
        value::STRING | value::ARRAY => (0..count).try_for_each(|_| skip_value(cursor, kind, offset, depth)),
        // `read_count` made sure that the file has as many bytes, so the product fits.
        _ => cursor.skip("an array", count.saturating_mul(least)),
    }
}

/// One tensor description. `start` is still relative to the data, `end` is `start` plus the size.
fn read_tensor(cursor: &mut Cursor<'_>, budget: &mut Budget, names: &mut NameSet) -> Result<Tensor, ModelError> {
    let what = "tensor";
    let (name, offset) = read_name(cursor, what, limits::MAX_NAME)?;
    let cost = TENSOR_COST.saturating_add(u64::try_from(name.len()).unwrap_or(u64::MAX));
    budget.charge(cost).map_err(|limit| ModelError::Memory { offset, limit })?;
    if !names.insert(&name) {
        return Err(ModelError::Duplicate { what, name: shown(&name), offset });
    }
    let impossible = |offset, reason| ModelError::Shape { name: shown(&name), offset, reason };

    let offset = cursor.position();
    let rank = cursor.u32("the number of dimensions")?;
    if !(1..=limits::MAX_GGUF_RANK).contains(&rank) {
        return Err(impossible(offset, "it has no dimension or more than four"));
    }
    let mut shape = Vec::with_capacity(4);
    let mut elements = 1_u64;
    for _ in 0..rank {
        let offset = cursor.position();
        let dimension = cursor.u64("a dimension")?;
        if dimension == 0 {
            return Err(impossible(offset, "a dimension is 0"));
        }
        let product = elements.checked_mul(dimension).filter(|product| i64::try_from(*product).is_ok());
        elements = product.ok_or_else(|| impossible(offset, "the number of elements overflows"))?;
        shape.push(dimension);
    }

    let offset = cursor.position();
    let number = cursor.u32("the element type")?;
    let Some(dtype) = Dtype::from_ggml(number) else {
        return Err(ModelError::UnknownType { name: shown(&name), found: number.to_string(), offset });
    };
    let row = shape.first().copied().unwrap_or_default();
    if !row.is_multiple_of(dtype.block_elements()) {
        return Err(impossible(offset, "the first dimension does not fill whole blocks of its type"));
    }
    let size = dtype.bytes(elements).ok_or_else(|| impossible(offset, "its size overflows"))?;

    let start = cursor.u64("a data offset")?;
    Ok(Tensor { name: name.into(), dtype, shape: shape.into(), start, end: start.saturating_add(size) })
}

/// The zeros between header and data; returns where the data starts.
fn read_padding(cursor: &mut Cursor<'_>, alignment: u64, tensors: u64) -> Result<u64, ModelError> {
    let header_end = cursor.position();
    let aligned = header_end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    // A file without tensors, such as one that holds a vocabulary only, may end right here.
    let data_start = if tensors == 0 { aligned.min(cursor.len()) } else { aligned };
    let padding = data_start.saturating_sub(header_end);
    match cursor.first_misfit("the padding before the data", padding, |byte| byte == 0)? {
        Some(offset) => Err(ModelError::Padding { offset }),
        None => Ok(data_start),
    }
}

/// Turns relative ranges into ranges of the file, each directly after the padding of the one before it.
fn place(tensors: &mut [Tensor], data_start: u64, alignment: u64, len: u64) -> Result<(), ModelError> {
    let mut expected = data_start;
    let mut previous_end = data_start;
    for tensor in tensors {
        let offset = data_start.saturating_add(tensor.start);
        let end = data_start.saturating_add(tensor.end);
        let name = || shown(&tensor.name);
        if !tensor.start.is_multiple_of(alignment) {
            return Err(ModelError::Misaligned { name: name(), offset, alignment });
        }
        if end > len || end == u64::MAX {
            return Err(ModelError::BeyondEnd { name: name(), offset, end, len });
        }
        if offset < previous_end {
            return Err(ModelError::Overlap { name: name(), offset, previous_end });
        }
        if offset != expected {
            return Err(ModelError::Hole { name: name(), offset, expected });
        }
        (tensor.start, tensor.end) = (offset, end);
        previous_end = end;
        let data = end.saturating_sub(data_start).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        expected = data_start.saturating_add(data);
    }
    // The padding of the last tensor may be missing or cut, but nothing may follow it.
    match len.saturating_sub(expected) {
        0 => Ok(()),
        bytes => Err(ModelError::Trailing { offset: expected, bytes }),
    }
}
