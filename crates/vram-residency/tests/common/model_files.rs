//! Builders of model files, sound and damaged, for the tests of the readers.
#![allow(dead_code, unreachable_pub, reason = "each test file includes it as a module and uses a part")]

use vram_residency::model::writer::{Layout, TensorSpec};
use vram_residency::model::{Dtype, Format, ModelError, Parsed, parse};

/// A safetensors file from the text of its header and the length of its data.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    safetensors_bytes(header.as_bytes(), data)
}

/// The same, for headers that are no text.
pub fn safetensors_bytes(header: &[u8], data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend((0..data).map(|at| (at % 251) as u8));
    file
}

/// A sound safetensors file through the public writer.
pub fn written(specs: Vec<TensorSpec>) -> Vec<u8> {
    let mut file = Vec::new();
    let layout = Layout::new(specs).unwrap();
    layout
        .write(&mut file, |_, offset, bytes| {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = ((offset + at as u64) % 251) as u8;
            }
        })
        .unwrap();
    assert_eq!(file.len() as u64, layout.file_len());
    file
}

/// A GGUF file, piece by piece. Every number can be wrong on purpose.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Instead of the true number of tensors.
    pub tensor_count: Option<u64>,
    /// Instead of the true number of entries.
    pub entry_count: Option<u64>,
    pub alignment: u64,
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: u64,
    /// Bytes of padding to leave out at the end of the file.
    pub cut: usize,
}

impl Default for Gguf {
    fn default() -> Self {
        Gguf {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
            data: 0,
            cut: 0,
        }
    }
}

/// A string as GGUF stores it.
pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl Gguf {
    pub fn new() -> Self {
        Self::default()
    }

    /// A metadata entry from its key, the number of its type and the bytes of its value.
    pub fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// A metadata entry whose bytes are all given.
    pub fn raw_entry(mut self, bytes: &[u8]) -> Self {
        self.entries.push(bytes.to_vec());
        self
    }

    /// States the alignment, and keeps to it.
    pub fn aligned(mut self, alignment: u32) -> Self {
        self.alignment = alignment.into();
        self.entry("general.alignment", 4, &alignment.to_le_bytes())
    }

    /// A tensor where it belongs: after the padding of the one before it.
    pub fn tensor(mut self, name: &str, dtype: Dtype, shape: &[u64]) -> Self {
        let bytes = dtype.bytes(shape.iter().product()).unwrap();
        let start = self.data;
        self.data = (start + bytes).next_multiple_of(self.alignment);
        self.tensor_at(name, dtype.to_ggml().unwrap(), shape, start)
    }

    /// A tensor description with any numbers in it. Adds no data.
    pub fn tensor_at(self, name: &str, kind: u32, shape: &[u64], start: u64) -> Self {
        self.tensor_ranked(name.as_bytes(), shape.len() as u32, kind, shape, start)
    }

    /// The same, with a number of dimensions of its own.
    pub fn tensor_ranked(mut self, name: &[u8], rank: u32, kind: u32, shape: &[u64], start: u64) -> Self {
        let mut bytes = string(name);
        bytes.extend(rank.to_le_bytes());
        shape.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    /// Bytes of data beyond what `tensor` added.
    pub fn data(mut self, bytes: u64) -> Self {
        self.data += bytes;
        self
    }

    /// Where the n-th metadata entry starts.
    pub fn entry_offset(&self, nth: usize) -> u64 {
        24 + self.entries[..nth].iter().map(|bytes| bytes.len() as u64).sum::<u64>()
    }

    /// Where the n-th tensor description starts.
    pub fn tensor_offset(&self, nth: usize) -> u64 {
        let before: usize = self.tensors[..nth].iter().map(Vec::len).sum();
        self.entry_offset(self.entries.len()) + before as u64
    }

    /// Where the data starts.
    pub fn data_start(&self) -> u64 {
        self.tensor_offset(self.tensors.len()).next_multiple_of(self.alignment)
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        file.extend(self.entries.concat());
        file.extend(self.tensors.concat());
        if self.data > 0 {
            file.resize(self.data_start() as usize, 0);
            file.extend((0..self.data).map(|at| (at % 251) as u8));
        }
        file.truncate(file.len() - self.cut);
        file
    }
}

/// A sound GGUF file with something of everything: two tensors, scalars, strings, arrays, its own alignment.
pub fn small_gguf() -> Gguf {
    let words = [&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &string(b"ab"), &string("\u{e9}".as_bytes())];
    let bools = [&7_u32.to_le_bytes()[..], &3_u64.to_le_bytes(), &[1, 0, 1]];
    Gguf::new()
        .entry("general.architecture", 8, &string(b"llama"))
        .aligned(64)
        .entry("llama.block_count", 4, &1_u32.to_le_bytes())
        .entry("llama.rope.scale", 12, &1.5_f64.to_le_bytes())
        .entry("tokenizer.ggml.tokens", 9, &words.concat())
        .entry("some.flags", 9, &bools.concat())
        .entry("some.flag", 7, &[1])
        .tensor("token_embd.weight", Dtype::Q8_0, &[32, 3])
        .tensor("output_norm.weight", Dtype::F32, &[5])
}

/// A sound safetensors file with an unaligned count of bytes, a scalar and metadata.
pub fn small_safetensors() -> Vec<u8> {
    let specs = vec![
        TensorSpec::new("embedding.weight", Dtype::BF16, [3, 4]),
        TensorSpec::new("norm.weight", Dtype::F32, [3]),
        TensorSpec::new("flags", Dtype::U8, [5]),
        TensorSpec::new("step", Dtype::I64, []),
    ];
    let layout = Layout::with_metadata(specs, &[("format", "pt"), ("made by", "a \"test\"")]).unwrap();
    let mut file = Vec::new();
    layout.write(&mut file, |_, _, bytes| bytes.fill(0x5a)).unwrap();
    file
}

/// What every accepted file must satisfy.
pub fn assert_sound(parsed: &Parsed, len: u64) {
    assert!(parsed.data_start <= len);
    let mut end = parsed.data_start;
    let mut names = std::collections::HashSet::new();
    for tensor in parsed.table.tensors() {
        assert!(tensor.start >= end, "{} overlaps", tensor.name);
        assert!(tensor.end >= tensor.start && tensor.end <= len, "{} leaves the file", tensor.name);
        assert!(names.insert(&tensor.name), "{} is there twice", tensor.name);
        assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes()));
        assert_eq!(parsed.table.get(&tensor.name), Some(tensor));
        end = tensor.end;
    }
    if parsed.format == Format::Safetensors {
        assert_eq!(end, len, "bytes that belong to nothing");
    }
}

/// The fault of a file that must be refused.
#[track_caller]
pub fn refused(file: &[u8], format: Format) -> ModelError {
    match parse(&file, Some(format)) {
        Ok(parsed) => panic!("accepted: {parsed:?}"),
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.is_empty() && !sentence.contains('\n') && sentence.len() < 1000, "{sentence}");
            error
        }
    }
}

/// The table of a file that must be accepted.
#[track_caller]
pub fn accepted(file: &[u8], format: Format) -> Parsed {
    let parsed = parse(&file, Some(format)).unwrap();
    assert_sound(&parsed, file.len() as u64);
    parsed
}
