//! Writing a safetensors file: the same bytes for the same tensors, streamed, aligned.

use std::io::{self, Write};

use super::error::shown;
use super::limits::{self, NameSet, fault_in_name};
use super::{Dtype, ModelError, Tensor, TensorTable};

/// Data is produced and written in pieces of this size.
const PIECE: usize = 1 << 20;

/// One tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    name: Box<str>,
    dtype: Dtype,
    shape: Box<[u64]>,
}

impl TensorSpec {
    /// A tensor with this name, element type and dimensions.
    pub fn new(name: impl Into<Box<str>>, dtype: Dtype, shape: impl Into<Box<[u64]>>) -> Self {
        TensorSpec { name: name.into(), dtype, shape: shape.into() }
    }
}

/// Where everything goes in a safetensors file that is about to be written.
///
/// The header is padded with spaces, so that the data starts on a multiple of 8. Tensors keep their order, except
/// that types with wider elements come first, so that each is aligned.
#[derive(Debug, Clone)]
pub struct Layout {
    header: Vec<u8>,
    table: TensorTable,
    len: u64,
}

impl Layout {
    /// Lays out the tensors.
    ///
    /// # Errors
    /// A name, type or shape that the reader would refuse.
    pub fn new(specs: Vec<TensorSpec>) -> Result<Self, ModelError> {
        Self::with_metadata(specs, &[])
    }

    /// Lays out the tensors, with entries for the header's `__metadata__`.
    ///
    /// # Errors
    /// A name, type or shape that the reader would refuse.
    pub fn with_metadata(mut specs: Vec<TensorSpec>, metadata: &[(&str, &str)]) -> Result<Self, ModelError> {
        specs.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.alignment()));
        let mut keys = NameSet::default();
        if let Some((key, _)) = metadata.iter().find(|(key, _)| !keys.insert(key)) {
            return Err(ModelError::Duplicate { what: "metadata key", name: shown(key), offset: 0 });
        }
        let mut json = String::from("{");
        if !metadata.is_empty() {
            json.push_str("\"__metadata__\":");
            push_list(&mut json, '{', '}', metadata, |json, (key, value)| {
                json.push_str(&quote(key));
                json.push(':');
                json.push_str(&quote(value));
            });
        }
        let mut tensors = Vec::with_capacity(specs.len());
        let mut end = 0_u64;
        for spec in specs {
            let start = end;
            end = check(&spec).and_then(|size| start.checked_add(size).ok_or_else(|| impossible(&spec.name)))?;
            if json.len() > 1 {
                json.push(',');
            }
            json.push_str(&quote(&spec.name));
            json.push_str(":{\"dtype\":\"");
            json.push_str(spec.dtype.name());
            json.push_str("\",\"shape\":");
            push_list(&mut json, '[', ']', &spec.shape, |json, size| json.push_str(&size.to_string()));
            json.push_str(&format!(",\"data_offsets\":[{start},{end}]}}"));
            tensors.push(Tensor { name: spec.name, dtype: spec.dtype, shape: spec.shape, start, end });
        }
        json.push('}');
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }

        let header_len = u64::try_from(json.len()).unwrap_or(u64::MAX);
        if header_len > limits::MAX_SAFETENSORS_HEADER {
            let (what, limit) = ("the header's length", limits::MAX_SAFETENSORS_HEADER);
            return Err(ModelError::Limit { what, offset: 0, found: header_len, limit });
        }
        let mut header = header_len.to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        let data_start = header_len.saturating_add(8);
        for tensor in &mut tensors {
            let last = tensor.end.checked_add(data_start).ok_or_else(|| impossible(&tensor.name))?;
            (tensor.start, tensor.end) = (tensor.start.saturating_add(data_start), last);
        }
        Ok(Layout { header, table: TensorTable::new(tensors)?, len: data_start.saturating_add(end) })
    }

    /// The length prefix and the header: everything before the data.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where each tensor will be in the file.
    #[must_use]
    pub fn table(&self) -> &TensorTable {
        &self.table
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Writes the file. `fill` is called with a tensor, an offset in its data and the piece of data to fill in,
    /// zeroed, at most 1 MiB and in the order of the file.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write<W: Write + ?Sized>(
        &self,
        out: &mut W,
        mut fill: impl FnMut(&Tensor, u64, &mut [u8]),
    ) -> io::Result<()> {
        out.write_all(&self.header)?;
        let mut piece = Vec::new();
        for tensor in self.table.tensors() {
            let mut done = 0_u64;
            while done < tensor.bytes() {
                let left = tensor.bytes().saturating_sub(done);
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                piece.clear();
                piece.resize(count, 0);
                fill(tensor, done, &mut piece);
                out.write_all(&piece)?;
                done = done.saturating_add(u64::try_from(count).unwrap_or(left));
            }
        }
        Ok(())
    }
}

/// Refuses what the reader would refuse; returns the size of the data.
fn check(spec: &TensorSpec) -> Result<u64, ModelError> {
    let name = || shown(&spec.name);
    let what = "tensor";
    if let Some(reason) = fault_in_name(&spec.name) {
        return Err(ModelError::Name { what, name: name(), offset: 0, reason });
    }
    if &*spec.name == "__metadata__" {
        let reason = "the format reserves it";
        return Err(ModelError::Name { what, name: name(), offset: 0, reason });
    }
    if u64::try_from(spec.name.len()).unwrap_or(u64::MAX) > limits::MAX_NAME {
        return Err(ModelError::Name { what, name: name(), offset: 0, reason: "it is too long" });
    }
    if spec.dtype.to_safetensors().is_none() {
        return Err(ModelError::UnknownType { name: name(), found: spec.dtype.to_string(), offset: 0 });
    }
    let elements = spec.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
    elements
        .filter(|_| spec.shape.len() <= limits::MAX_RANK)
        .and_then(|elements| spec.dtype.bytes(elements))
        .ok_or_else(|| impossible(&spec.name))
}

fn impossible(name: &str) -> ModelError {
    ModelError::Shape { name: shown(name), offset: 0, reason: "it has too many dimensions or elements" }
}

/// A JSON string.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn push_list<T>(json: &mut String, open: char, close: char, items: &[T], item: impl Fn(&mut String, &T)) {
    json.push(open);
    for (at, entry) in items.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        item(json, entry);
    }
    json.push(close);
}
