//! Any bytes as a safetensors file: refused, or a table that keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vram_residency::model::{Format, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(parsed) = parse(&data, Some(Format::Safetensors)) else { return };
    let len = data.len() as u64;
    let table = &parsed.table;
    let mut end = parsed.data_start;
    for tensor in table.tensors() {
        // Sorted, and covering the data without hole or overlap.
        assert_eq!(tensor.start, end);
        assert!(tensor.end >= tensor.start && tensor.end <= len);
        assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes()));
        // A name that another tensor had too would lead to that one.
        assert!(std::ptr::eq(table.get(&tensor.name).unwrap(), tensor));
        if tensor.bytes() > 0 {
            assert!(std::ptr::eq(table.locate(tensor.start).unwrap(), tensor));
            assert!(std::ptr::eq(table.locate(tensor.end - 1).unwrap(), tensor));
        }
        end = tensor.end;
    }
    assert_eq!(end, len);
    assert_eq!(parsed.header_digest, *blake3::hash(&data[..parsed.data_start as usize]).as_bytes());
    // Whatever is accepted here, the format's own library accepts, and reads alike.
    let library = safetensors::SafeTensors::deserialize(data).unwrap();
    assert_eq!(library.len(), table.len());
    for (name, view) in library.iter() {
        let tensor = table.get(name).unwrap();
        assert_eq!(view.data(), &data[tensor.start as usize..tensor.end as usize]);
    }
});
