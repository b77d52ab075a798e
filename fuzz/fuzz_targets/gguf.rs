//! Any bytes as a GGUF file: refused, or a table that keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vram_residency::model::{Format, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(parsed) = parse(&data, Some(Format::Gguf)) else { return };
    let len = data.len() as u64;
    let table = &parsed.table;
    assert!(parsed.data_start <= len);
    let mut end = parsed.data_start;
    for tensor in table.tensors() {
        // Sorted, within the file, apart by padding only.
        assert!(tensor.start >= end && tensor.start - end < 1 << 20);
        assert!((tensor.start - parsed.data_start) % 8 == 0);
        assert!(tensor.end > tensor.start && tensor.end <= len);
        assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes()));
        // A name that another tensor had too would lead to that one.
        assert!(std::ptr::eq(table.get(&tensor.name).unwrap(), tensor));
        assert!(std::ptr::eq(table.locate(tensor.start).unwrap(), tensor));
        assert!(std::ptr::eq(table.locate(tensor.end - 1).unwrap(), tensor));
        end = tensor.end;
    }
    assert!(len - end < 1 << 20);
    assert_eq!(parsed.header_digest, *blake3::hash(&data[..parsed.data_start as usize]).as_bytes());
});
