//! The scan of the JSON: one pass that accepts one spelling only and keeps what the tensors need.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::super::error::shown;
use super::super::limits::{self, Budget, NameSet, fault_in_name};
use super::super::{Dtype, ModelError, Tensor};
use super::PREFIX;

/// What one tensor costs at the peak beside its name and dimensions: table entry, set of names, the crate's copy.
/// `tests/model_memory.rs` measures that this is enough.
const TENSOR_COST: u64 = 352;
/// What one metadata key costs: 16 bytes in a set that grows by doubling.
const KEY_COST: u64 = 80;

/// The tensors that a header lists. Each agrees with itself and lies within the data; whether they tile it is for the
/// caller to check.
pub(super) fn tensors(header: &[u8], data_start: u64, data_len: u64) -> Result<Vec<Tensor>, ModelError> {
    let mut scan = Scan {
        budget: Budget::for_file(data_start.saturating_add(data_len)),
        names: NameSet::default(),
        tensors: Vec::new(),
        metadata_seen: false,
        data_start,
        data_len,
        fault: None,
    };
    let bytes = position(header.len());
    scan.budget.charge(bytes).map_err(|limit| ModelError::Memory { offset: PREFIX, limit })?;
    scan.run(header)?;
    Ok(scan.tensors)
}

pub(super) fn position(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}

/// A fault that still lacks its place: the JSON reader knows it only after the visitor has returned.
pub(in crate::model) type Fault = Box<dyn FnOnce(u64) -> ModelError>;

/// What the scan knows so far.
struct Scan {
    budget: Budget,
    names: NameSet,
    tensors: Vec<Tensor>,
    metadata_seen: bool,
    data_start: u64,
    data_len: u64,
    fault: Option<Fault>,
}

impl Scan {
    fn run(&mut self, header: &[u8]) -> Result<(), ModelError> {
        let mut reader = serde_json::Deserializer::from_slice(header);
        let outcome = HeaderSeed(self).deserialize(&mut reader).and_then(|()| reader.end());
        let Err(error) = outcome else { return Ok(()) };
        let offset = PREFIX.saturating_add(offset_of(&error, header));
        Err(match self.fault.take() {
            Some(fault) => fault(offset),
            None => ModelError::Json { offset, reason: reason_of(&error) },
        })
    }

    /// Keeps the typed fault and returns the error that makes the JSON reader stop.
    fn refuse<E: de::Error>(&mut self, fault: impl FnOnce(u64) -> ModelError + 'static) -> E {
        self.fault = Some(Box::new(fault));
        E::custom("refused")
    }

    fn charge<E: de::Error>(&mut self, bytes: u64) -> Result<(), E> {
        self.budget.charge(bytes).map_err(|limit| self.refuse(move |offset| ModelError::Memory { offset, limit }))
    }

    /// Refuses names that are empty, hold control characters, are too long or were there before.
    fn check_name<E: de::Error>(&mut self, what: &'static str, name: &str) -> Result<(), E> {
        let found = position(name.len());
        if found > limits::MAX_NAME {
            let limit = limits::MAX_NAME;
            let what = "the length of a name";
            return Err(self.refuse(move |offset| ModelError::Limit { what, offset, found, limit }));
        }
        if let Some(reason) = fault_in_name(name) {
            let name = shown(name);
            return Err(self.refuse(move |offset| ModelError::Name { what, name, offset, reason }));
        }
        if !self.names.insert(name) {
            let name = shown(name);
            return Err(self.refuse(move |offset| ModelError::Duplicate { what, name, offset }));
        }
        Ok(())
    }

    /// Adds a tensor whose own claims agree with each other and with the file.
    fn add<E: de::Error>(&mut self, name: String, entry: Entry) -> Result<(), E> {
        let Entry { dtype, shape, start, end } = entry;
        let quoted = shown(&name);
        let Some(declared) = end.checked_sub(start) else {
            let reason = "its data ends before it starts";
            return Err(self.refuse(move |offset| ModelError::Shape { name: quoted, offset, reason }));
        };
        let elements = shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
        let Some(elements) = elements else {
            let reason = "the number of elements overflows";
            return Err(self.refuse(move |offset| ModelError::Shape { name: quoted, offset, reason }));
        };
        let Some(computed) = dtype.bytes(elements) else {
            let reason = "its elements do not fill whole bytes, or their size overflows";
            return Err(self.refuse(move |offset| ModelError::Shape { name: quoted, offset, reason }));
        };
        if declared != computed {
            return Err(self.refuse(move |offset| ModelError::Size { name: quoted, offset, declared, computed }));
        }
        let (first, last) = (self.data_start.saturating_add(start), self.data_start.saturating_add(end));
        if end > self.data_len {
            let len = self.data_start.saturating_add(self.data_len);
            return Err(self.refuse(move |_| ModelError::BeyondEnd { name: quoted, offset: first, end: last, len }));
        }
        // Relative to the data, as every loader sees it: old writers did not align the header itself.
        let alignment = dtype.alignment();
        if declared != 0 && !start.is_multiple_of(alignment) {
            return Err(self.refuse(move |_| ModelError::Misaligned { name: quoted, offset: first, alignment }));
        }
        self.tensors.push(Tensor { name: name.into(), dtype, shape: shape.into(), start: first, end: last });
        Ok(())
    }
}

/// How many bytes the JSON reader had consumed when it gave up.
pub(in crate::model) fn offset_of(error: &serde_json::Error, header: &[u8]) -> u64 {
    let newlines_before = error.line().saturating_sub(1);
    let start_of_line = match newlines_before.checked_sub(1) {
        None => 0,
        Some(nth) => {
            let mut newlines = header.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            newlines.nth(nth).map_or(0, |(at, _)| at.saturating_add(1))
        }
    };
    position(start_of_line.saturating_add(error.column()).min(header.len()))
}

/// The JSON reader's complaint without its line and column: a header is one long line.
pub(in crate::model) fn reason_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}

/// The whole header: tensors by name, and at most one `__metadata__`.
struct HeaderSeed<'a>(&'a mut Scan);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let scan = self.0;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if scan.metadata_seen {
                    let (what, name) = ("the field", shown(&name));
                    return Err(scan.refuse(move |offset| ModelError::Duplicate { what, name, offset }));
                }
                scan.metadata_seen = true;
                map.next_value_seed(MetadataSeed(scan))?;
                continue;
            }
            scan.check_name("tensor", &name)?;
            let found = position(scan.tensors.len()).saturating_add(1);
            if found > limits::MAX_TENSORS {
                let (what, limit) = ("the number of tensors", limits::MAX_TENSORS);
                return Err(scan.refuse(move |offset| ModelError::Limit { what, offset, found, limit }));
            }
            scan.charge(TENSOR_COST.saturating_add(position(name.len()).saturating_mul(2)))?;
            let entry = map.next_value_seed(EntrySeed { scan, name: &name })?;
            scan.charge(position(entry.shape.len()).saturating_mul(16))?;
            scan.add(name, entry)?;
        }
        Ok(())
    }
}

/// `__metadata__`: text by name. Checked, not kept.
struct MetadataSeed<'a>(&'a mut Scan);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let scan = self.0;
        let mut keys = NameSet::default();
        let mut found = 0_u64;
        while let Some(key) = map.next_key::<String>()? {
            found = found.saturating_add(1);
            if found > limits::MAX_METADATA {
                let (what, limit) = ("the number of metadata entries", limits::MAX_METADATA);
                return Err(scan.refuse(move |offset| ModelError::Limit { what, offset, found, limit }));
            }
            scan.charge(KEY_COST)?;
            if !keys.insert(&key) {
                let (what, name) = ("metadata key", shown(&key));
                return Err(scan.refuse(move |offset| ModelError::Duplicate { what, name, offset }));
            }
            map.next_value::<String>()?;
        }
        Ok(())
    }
}

/// What a header says of one tensor.
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    start: u64,
    end: u64,
}

/// One tensor: an object with exactly the fields `dtype`, `shape` and `data_offsets`, each once.
struct EntrySeed<'a> {
    scan: &'a mut Scan,
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let Self { scan, name } = self;
        let (mut dtype, mut shape, mut range) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let twice = match field.as_str() {
                "dtype" => {
                    let text = map.next_value::<String>()?;
                    let Some(known) = Dtype::from_safetensors(&text) else {
                        let (name, found) = (shown(name), shown(&text));
                        return Err(scan.refuse(move |offset| ModelError::UnknownType { name, found, offset }));
                    };
                    dtype.replace(known).is_some()
                }
                "shape" => {
                    let list = map.next_value_seed(NumbersSeed { scan, name, most: limits::MAX_RANK })?;
                    shape.replace(list).is_some()
                }
                "data_offsets" => {
                    let list = map.next_value_seed(NumbersSeed { scan, name, most: 2 })?;
                    let [start, end] = list[..] else {
                        return Err(A::Error::custom("data_offsets holds one number, not two"));
                    };
                    range.replace((start, end)).is_some()
                }
                _ => {
                    let (name, field) = (shown(name), shown(&field));
                    return Err(scan.refuse(move |offset| ModelError::UnknownField { name, field, offset }));
                }
            };
            if twice {
                let (what, name) = ("the field", shown(&field));
                return Err(scan.refuse(move |offset| ModelError::Duplicate { what, name, offset }));
            }
        }
        let missing = match (&dtype, &shape, &range) {
            (None, _, _) => "dtype",
            (_, None, _) => "shape",
            _ => "data_offsets",
        };
        if let (Some(dtype), Some(shape), Some((start, end))) = (dtype, shape, range) {
            return Ok(Entry { dtype, shape, start, end });
        }
        let name = shown(name);
        Err(scan.refuse(move |offset| ModelError::MissingField { name, field: missing, offset }))
    }
}

/// A list of at most `most` whole numbers.
struct NumbersSeed<'a> {
    scan: &'a mut Scan,
    name: &'a str,
    most: usize,
}

impl<'de> DeserializeSeed<'de> for NumbersSeed<'_> {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for NumbersSeed<'_> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element::<u64>()? {
            if numbers.len() == self.most {
                let name = shown(self.name);
                let reason = "a list of numbers is longer than it may be";
                return Err(self.scan.refuse(move |offset| ModelError::Shape { name, offset, reason }));
            }
            numbers.push(number);
        }
        Ok(numbers)
    }
}
