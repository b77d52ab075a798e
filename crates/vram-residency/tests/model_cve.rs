//! Every published defect of a GGUF header reader, as a file that ours must refuse: typed, with the place, without a
//! large allocation. A test bears the number of the CVE, or of the pull request, that reported the defect.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "common/cheaply.rs"]
mod cheaply;
#[path = "common/model_files.rs"]
mod common;

use cheaply::{alone, refused_cheaply};
use common::{Gguf, accepted, refused, string};
use vram_residency::model::{Dtype, Format, ModelError};

#[track_caller]
fn gguf(file: &Gguf) -> ModelError {
    refused_cheaply(&file.build(), Format::Gguf)
}

#[test]
fn cve_2024_21802_dimension_overflow() {
    let _alone = alone();
    // The product of the dimensions wraps to a small number.
    let file = Gguf::new().tensor_at("t", 0, &[1 << 32, 1 << 32, 1, 4], 0).data(64);
    let second_dimension = file.tensor_offset(0) + 9 + 4 + 8;
    assert_fault!(gguf(&file), ModelError::Shape { .. }, second_dimension);
}

#[test]
fn cve_2024_21825_array_and_string_length() {
    let _alone = alone();
    let array = [&8_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    let file = Gguf::new().entry("k", 9, &array).data(64);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, file.entry_offset(0) + 9 + 4 + 4);

    // (2^61 + 1) * 8 wraps to 8.
    let array = [&10_u32.to_le_bytes()[..], &((1_u64 << 61) + 1).to_le_bytes(), &[0; 8]].concat();
    let file = Gguf::new().entry("k", 9, &array).data(64);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, file.entry_offset(0) + 9 + 4 + 4);

    let file = Gguf::new().entry("k", 8, &u64::MAX.to_le_bytes()).data(64);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, file.entry_offset(0) + 9 + 4);
}

#[test]
fn cve_2024_21836_tensor_count_overflow() {
    let _alone = alone();
    for count in [u64::MAX, u64::MAX / 100, 1 << 61, 1 << 19, 3] {
        let file = Gguf { tensor_count: Some(count), ..Gguf::new().tensor("t", Dtype::F32, &[4]) };
        assert_fault!(gguf(&file), ModelError::Limit { .. }, 8);
    }
}

#[test]
fn cve_2024_23496_string_length_overflow() {
    let _alone = alone();
    // A length of 2^64 - 1 becomes 0 when one is added for a terminator.
    for length in [u64::MAX, u64::MAX - 1, 1 << 63, 65_536] {
        let file = Gguf::new().raw_entry(&length.to_le_bytes()).data(64);
        assert_fault!(gguf(&file), ModelError::Limit { .. }, 24);
    }
    let file = Gguf::new().raw_entry(&500_u64.to_le_bytes()).data(64);
    assert_fault!(gguf(&file), ModelError::Truncated { .. }, 32);
}

#[test]
fn cve_2024_23605_entry_count_overflow() {
    let _alone = alone();
    for count in [u64::MAX, u64::MAX / 40, 1 << 60, 1 << 17, 40] {
        let file = Gguf { entry_count: Some(count), ..Gguf::new().entry("k", 4, &[0; 4]) };
        assert_fault!(gguf(&file), ModelError::Limit { .. }, 16);
    }
}

#[test]
fn cve_2024_25664_set_count_of_entries_beyond_the_entries() {
    let _alone = alone();
    // One entry more than there is: the tensor is read as the entry t = int8, what follows it as a tensor.
    let file = Gguf { entry_count: Some(1), ..Gguf::new().tensor("t", Dtype::F32, &[4]) };
    assert_fault!(gguf(&file), ModelError::Name { .. }, 24 + 9 + 4 + 1);
}

#[test]
fn ggml_709_too_many_dimensions() {
    let _alone = alone();
    for rank in [0, 5, 100, u32::MAX] {
        let file = Gguf::new().tensor_ranked(b"t", rank, 0, &[1; 5], 0).data(64);
        assert_fault!(gguf(&file), ModelError::Shape { .. }, file.tensor_offset(0) + 9);
    }
}

#[test]
fn ggml_709_unknown_type() {
    let _alone = alone();
    for kind in [4, 5, 31, 33, 36, 38, 43, 0x8000_0000, u32::MAX] {
        let file = Gguf::new().tensor_at("t", kind, &[32], 0).data(64);
        assert_fault!(gguf(&file), ModelError::UnknownType { .. }, file.tensor_offset(0) + 9 + 4 + 8);
    }
    for kind in [13, 255, u32::MAX] {
        let file = Gguf::new().entry("k", kind, &[0; 16]).data(64);
        assert_fault!(gguf(&file), ModelError::Value { .. }, 24 + 9);
        let array = [&kind.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 8]].concat();
        let file = Gguf::new().entry("k", 9, &array).data(64);
        assert_fault!(gguf(&file), ModelError::Value { .. }, 24 + 9 + 4);
    }
}

#[test]
fn cve_2024_32878_failure_in_the_middle_of_metadata() {
    let _alone = alone();
    // Giving up between two entries must not leave anything half made: every cut is a plain refusal.
    let file = common::small_gguf();
    let bytes = file.build();
    for len in 1..file.data_start() as usize {
        let error = refused(&bytes[..len], Format::Gguf);
        assert!(error.offset().is_some(), "{error}");
    }
}

#[test]
fn cve_2024_34359_template_in_metadata_is_data() {
    let _alone = alone();
    // A chat template is passed over, never interpreted, and it cannot reach the table.
    let template = string(b"{{ ''.__class__.__mro__[1].__subclasses__() }}");
    let file = Gguf::new().entry("tokenizer.chat_template", 8, &template).tensor("t", Dtype::F32, &[4]).build();
    let parsed = accepted(&file, Format::Gguf);
    assert!(!format!("{parsed:?}").contains("__class__"));
}

#[test]
fn cve_2024_41130_empty_and_nameless_entries() {
    let _alone = alone();
    assert_fault!(gguf(&Gguf::new().entry("", 4, &[0; 4]).data(64)), ModelError::Name { .. }, 24);
    let file = Gguf::new().tensor_ranked(b"", 1, 0, &[4], 0).data(64);
    assert_fault!(gguf(&file), ModelError::Name { .. }, 24);
    for len in 1..24 {
        let error = refused_cheaply(&Gguf::new().build()[..len], Format::Gguf);
        assert!(matches!(error, ModelError::Truncated { .. }), "{error}");
    }
}

#[test]
fn cve_2025_49847_length_that_is_negative_as_i32() {
    let _alone = alone();
    // A token of 2^31 bytes is -2^31 to a reader that narrows the length.
    let words = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &(1_u64 << 31).to_le_bytes()].concat();
    let file = Gguf::new().entry("tokenizer.ggml.tokens", 9, &words).data(64);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, 24 + 8 + 21 + 4 + 4 + 8);
}

#[test]
fn cve_2025_53630_sum_of_sizes_overflows() {
    let _alone = alone();
    // Each size fits into 64 bits, their sum does not.
    let huge = 1_u64 << 60;
    let file = Gguf::new()
        .tensor_at("a", 0, &[huge], 0)
        .tensor_at("b", 0, &[huge], huge * 4)
        .tensor_at("c", 0, &[huge], huge * 8)
        .data(64);
    assert_fault!(gguf(&file), ModelError::BeyondEnd { .. }, file.data_start());
}

#[test]
fn cve_2026_27940_sum_wraps_by_padding() {
    let _alone = alone();
    // The size just fits; rounding it up to the alignment wraps.
    let file = Gguf::new().tensor_at("a", 24, &[i64::MAX as u64], 0).tensor_at("b", 24, &[64], 0).data(64);
    assert_fault!(gguf(&file), ModelError::BeyondEnd { .. }, file.data_start());
    let file = Gguf::new().tensor_at("a", 24, &[64], u64::MAX - 31).data(64);
    let error = gguf(&file);
    assert!(matches!(error, ModelError::BeyondEnd { .. }), "{error}");
}

#[test]
fn cve_2026_33298_bytes_of_a_tensor_overflow() {
    let _alone = alone();
    // The number of elements fits into 63 bits, the number of bytes does not fit into 64.
    let file = Gguf::new().tensor_at("t", 0, &[1 << 31, 1 << 31], 0).data(64);
    assert_fault!(gguf(&file), ModelError::Shape { .. }, file.tensor_offset(0) + 9 + 4 + 16);
    let file = Gguf::new().tensor_at("t", 15, &[1 << 31, 1 << 31, 2], 0).data(64);
    let error = gguf(&file);
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
}

#[test]
fn cve_2026_7482_tensor_beyond_the_file() {
    let _alone = alone();
    let file = Gguf::new().tensor_at("t", 0, &[1 << 20], 0).data(64);
    assert_fault!(gguf(&file), ModelError::BeyondEnd { .. }, file.data_start());
    let file = Gguf::new().tensor_at("t", 0, &[16], 1 << 20).data(64);
    assert_fault!(gguf(&file), ModelError::BeyondEnd { .. }, file.data_start() + (1 << 20));
    // One byte too short.
    let mut file = Gguf::new().tensor("t", Dtype::F32, &[16]).build();
    file.pop();
    let error = refused_cheaply(&file, Format::Gguf);
    assert!(matches!(error, ModelError::BeyondEnd { .. }), "{error}");
}

#[test]
fn cve_2024_39719_and_39720_files_that_are_too_short_to_be_one() {
    let _alone = alone();
    for len in 0..4 {
        let error = refused_cheaply(&b"GGUF"[..len], Format::Gguf);
        assert!(matches!(error, ModelError::Empty | ModelError::Truncated { .. }), "{error}");
    }
    assert_fault!(refused_cheaply(b"GGUF", Format::Gguf), ModelError::Truncated { .. }, 4);
}

#[test]
fn oss_sec_2026_05_15_alignment() {
    let _alone = alone();
    for alignment in [0, 1, 2, 4, 3, 33, 48, (1 << 20) + 1, 1 << 21, 1 << 30, 1 << 31, u32::MAX] {
        let mut file = Gguf::new().aligned(alignment).data(64);
        file.alignment = 32;
        assert_fault!(gguf(&file), ModelError::Alignment { .. }, 24 + 8 + 17 + 4);
    }
    for (kind, bytes) in [(5, 4), (10, 8), (2, 2), (6, 4)] {
        let file = Gguf::new().entry("general.alignment", kind, &32_u64.to_le_bytes()[..bytes]).data(64);
        assert_fault!(gguf(&file), ModelError::Value { .. }, 24 + 8 + 17);
    }
    for alignment in [8, 16, 64, 4096, 1 << 20] {
        accepted(
            &Gguf::new().aligned(alignment).tensor("t", Dtype::F32, &[3]).tensor("u", Dtype::I8, &[1]).build(),
            Format::Gguf,
        );
    }
}

#[test]
fn oss_sec_2026_05_15_rows_that_do_not_fill_blocks() {
    let _alone = alone();
    for (kind, row) in [(2, 31), (8, 33), (12, 128), (39, 16)] {
        let file = Gguf::new().tensor_at("t", kind, &[row, 256], 0).data(64);
        assert_fault!(gguf(&file), ModelError::Shape { .. }, file.tensor_offset(0) + 9 + 4 + 16);
    }
    let file = Gguf::new().tensor_at("t", 0, &[4, 0], 0).data(64);
    assert_fault!(gguf(&file), ModelError::Shape { .. }, file.tensor_offset(0) + 9 + 4 + 8);
}

#[test]
fn llama_cpp_26690_array_shorter_than_its_type_says() {
    let _alone = alone();
    // 1500 bytes of floats are declared, 500 are there.
    let array = [&6_u32.to_le_bytes()[..], &375_u64.to_le_bytes(), &[0; 500]].concat();
    let file = Gguf::new().entry("tokenizer.ggml.scores", 9, &array);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, 24 + 8 + 21 + 4 + 4);
}

#[test]
fn llama_cpp_25969_hostile_tokens_are_not_interpreted() {
    let _alone = alone();
    let words = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &string(b"<0x-1>")].concat();
    let file = Gguf::new().entry("tokenizer.ggml.tokens", 9, &words).tensor("t", Dtype::F32, &[4]);
    accepted(&file.build(), Format::Gguf);
}

#[test]
fn llama_cpp_27188_43_bytes_that_hang() {
    let _alone = alone();
    let array = [&8_u32.to_le_bytes()[..], &(1_u64 << 63).to_le_bytes()].concat();
    let file = Gguf::new().entry("ab", 9, &array[..]);
    let mut bytes = file.build();
    bytes.resize(50, 0);
    assert_fault!(refused_cheaply(&bytes, Format::Gguf), ModelError::Limit { .. }, 24 + 10 + 4 + 4);
    assert_fault!(refused_cheaply(&bytes[..43], Format::Gguf), ModelError::Truncated { .. }, 24 + 10 + 4 + 4);
}

#[test]
fn ggml_1516_160_bytes_that_allocate_a_gibibyte() {
    let _alone = alone();
    let array = [&9_u32.to_le_bytes()[..], &(1_u64 << 27).to_le_bytes(), &[0; 64]].concat();
    let mut file = Gguf::new().entry("k", 9, &array).build();
    file.resize(160, 0);
    assert_fault!(refused_cheaply(&file, Format::Gguf), ModelError::Limit { .. }, 24 + 9 + 4 + 4);
}

#[test]
fn llama_cpp_26318_padding_into_the_neighbour() {
    let _alone = alone();
    // The second tensor starts inside the padding, inside the first tensor, or after a gap.
    let pair = |start| Gguf::new().tensor_at("a", 0, &[9], 0).tensor_at("b", 0, &[8], start).data(128);
    assert_fault!(gguf(&pair(36)), ModelError::Misaligned { .. }, pair(36).data_start() + 36);
    assert_fault!(gguf(&pair(32)), ModelError::Overlap { .. }, pair(32).data_start() + 32);
    assert_fault!(gguf(&pair(0)), ModelError::Overlap { .. }, pair(0).data_start());
    assert_fault!(gguf(&pair(96)), ModelError::Hole { .. }, pair(96).data_start() + 96);
    let first = Gguf::new().tensor_at("a", 0, &[8], 32).data(64);
    assert_fault!(gguf(&first), ModelError::Hole { .. }, first.data_start() + 32);
}

#[test]
fn gguf_nested_arrays_are_bounded() {
    let _alone = alone();
    let nested = |depth: usize| {
        let mut value = Vec::new();
        for _ in 1..depth {
            value.extend([&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat());
        }
        value.extend([&4_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 4]].concat());
        Gguf::new().entry("k", 9, &value).data(32)
    };
    let trailing = gguf(&nested(64));
    assert!(matches!(trailing, ModelError::Trailing { .. }), "the depth itself is allowed: {trailing}");
    assert_fault!(gguf(&nested(65)), ModelError::Limit { .. }, 24 + 9 + 4 + 64 * 12);
    assert_fault!(gguf(&nested(100_000)), ModelError::Limit { .. }, 24 + 9 + 4 + 64 * 12);
}

#[test]
fn gguf_duplicates() {
    let _alone = alone();
    let file = Gguf::new().entry("k", 4, &[0; 4]).entry("k", 4, &[1; 4]).data(64);
    assert_fault!(gguf(&file), ModelError::Duplicate { .. }, file.entry_offset(1));
    let file = Gguf::new().tensor("t", Dtype::F32, &[4]).tensor("t", Dtype::F32, &[4]);
    assert_fault!(gguf(&file), ModelError::Duplicate { .. }, file.tensor_offset(1));
}

#[test]
fn gguf_names() {
    let _alone = alone();
    for name in [&b"a\0b"[..], b"a\nb", b"\x1b[31m", b"\xff\xfe", b"\xc3"] {
        let file = Gguf::new().tensor_ranked(name, 1, 0, &[4], 0).data(64);
        let error = gguf(&file);
        assert!(!error.to_string().contains('\x1b'));
        assert_fault!(error, ModelError::Name { .. }, 24);
    }
    let long = "n".repeat(5000);
    let file = Gguf::new().tensor_at(&long, 0, &[4], 0).data(64);
    assert_fault!(gguf(&file), ModelError::Limit { .. }, 24);
}

#[test]
fn gguf_versions() {
    let _alone = alone();
    for version in [0, 1, 4, 5, u32::MAX] {
        let file = Gguf { version, ..common::small_gguf() };
        assert_fault!(gguf(&file), ModelError::Version { .. }, 4);
    }
    for version in [1_u32, 2, 3] {
        let file = Gguf { version: version.swap_bytes(), ..common::small_gguf() };
        assert_fault!(gguf(&file), ModelError::BigEndian { .. }, 4);
    }
    for magic in [*b"GGML", *b"ggjt", *b"FUGG", [0; 4]] {
        assert_fault!(gguf(&Gguf { magic, ..common::small_gguf() }), ModelError::NotGguf { .. }, 0);
    }
    for version in [2, 3] {
        accepted(&Gguf { version, ..common::small_gguf() }.build(), Format::Gguf);
    }
}

#[test]
fn gguf_bytes_that_belong_to_nothing() {
    let _alone = alone();
    let sound = common::small_gguf();
    let len = sound.build().len() as u64;
    let mut longer = sound.build();
    longer.push(0);
    assert_fault!(refused_cheaply(&longer, Format::Gguf), ModelError::Trailing { .. }, len);
    let error = gguf(&sound.clone().data(64));
    assert_fault!(error, ModelError::Trailing { .. }, len);

    // The padding between header and data holds something.
    let header_end = sound.tensor_offset(1) + 8 + 18 + 4 + 8 + 4 + 8;
    assert!(header_end < sound.data_start());
    let mut dirty = sound.build();
    dirty[header_end as usize] = 1;
    assert_fault!(refused_cheaply(&dirty, Format::Gguf), ModelError::Padding { .. }, header_end);

    // A boolean that is neither.
    let file = Gguf::new().entry("k", 7, &[2]).data(32);
    assert_fault!(gguf(&file), ModelError::Value { .. }, 24 + 9 + 4);
}

#[test]
fn gguf_without_tensors_may_end_with_its_metadata() {
    let _alone = alone();
    let file = Gguf::new().entry("general.architecture", 8, &string(b"llama"));
    let mut bytes = file.build();
    let parsed = accepted(&bytes, Format::Gguf);
    assert!(parsed.table.is_empty());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    accepted(&bytes, Format::Gguf);
    bytes.push(0);
    refused(&bytes, Format::Gguf);
}
