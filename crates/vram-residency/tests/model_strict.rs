//! What a safetensors header may not say, much of which the format's own library lets through: typed, with the place,
//! without a large allocation.
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
use common::{accepted, refused, safetensors, safetensors_bytes};
use vram_residency::model::{Format, ModelError, parse};

#[track_caller]
fn st(header: &str, data: usize) -> ModelError {
    refused_cheaply(&safetensors(header, data), Format::Safetensors)
}

const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn safetensors_good_one_is_accepted() {
    let _alone = alone();
    let parsed = accepted(&safetensors(GOOD, 8), Format::Safetensors);
    assert_eq!(parsed.data_start, 8 + GOOD.len() as u64);
    accepted(&safetensors("{}", 0), Format::Safetensors);
    accepted(&safetensors("{}   ", 0), Format::Safetensors);
    accepted(&safetensors(&GOOD.replace(':', " : \n"), 8), Format::Safetensors);
    accepted(&safetensors(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, 0), Format::Safetensors);
    accepted(&safetensors(r#"{"a":{"data_offsets":[0,1],"shape":[2],"dtype":"F4"}}"#, 1), Format::Safetensors);
}

#[test]
fn safetensors_duplicate_tensor() {
    let _alone = alone();
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let second = header.rfind("\"a\"").unwrap() as u64;
    assert_fault!(st(header, 2), ModelError::Duplicate { .. }, 8 + second + 3);
    // The same name in another spelling.
    let header = header.replacen("\"a\"", r#""\u0061""#, 1);
    let error = st(&header, 2);
    assert!(matches!(error, ModelError::Duplicate { .. }), "{error}");
}

#[test]
fn safetensors_duplicate_metadata() {
    let _alone = alone();
    let error = st(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0);
    assert_fault!(error, ModelError::Duplicate { .. }, 8 + 28);
    let error = st(r#"{"__metadata__":{},"__metadata__":{}}"#, 0);
    assert!(matches!(error, ModelError::Duplicate { .. }), "{error}");
    for header in [r#"{"__metadata__":{"k":1}}"#, r#"{"__metadata__":null}"#, r#"{"__metadata__":[["k","v"]]}"#] {
        let error = st(header, 0);
        assert!(matches!(error, ModelError::Json { .. }), "{error}");
    }
}

#[test]
fn safetensors_unknown_or_missing_field() {
    let _alone = alone();
    let error = st(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":0}}"#, 1);
    assert_fault!(error, ModelError::UnknownField { .. }, 8 + 55);
    for field in [r#""dtype":"F32","#, r#""shape":[2],"#, r#","data_offsets":[0,8]"#] {
        let error = st(&GOOD.replace(field, ""), 8);
        assert!(matches!(error, ModelError::MissingField { .. }), "{error}");
    }
    let error = st(&GOOD.replace(r#""shape":[2],"#, r#""shape":[2],"shape":[2],"#), 8);
    assert!(matches!(error, ModelError::Duplicate { .. }), "{error}");
}

#[test]
fn safetensors_names() {
    let _alone = alone();
    for name in ["", r"a\u0000", r"a\nb", r"\u001b[31m", r"\u009b"] {
        let error = st(&GOOD.replacen('a', name, 1), 8);
        assert!(matches!(error, ModelError::Name { .. }), "{error}");
        assert!(!error.to_string().contains('\x1b'));
        assert!(error.offset().is_some());
    }
    let error = st(&GOOD.replacen('a', &"n".repeat(4097), 1), 8);
    assert!(matches!(error, ModelError::Limit { .. }), "{error}");
    let error = refused_cheaply(&safetensors_bytes(b"{\"\xff\":{}}", 8), Format::Safetensors);
    assert!(matches!(error, ModelError::Json { .. }), "{error}");
    let error = st(&GOOD.replacen('a', r"\ud800", 1), 8);
    assert!(matches!(error, ModelError::Json { .. }), "{error}");
}

#[test]
fn safetensors_misaligned() {
    let _alone = alone();
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    assert_fault!(st(header, 5), ModelError::Misaligned { .. }, 8 + header.len() as u64 + 1);
}

#[test]
fn safetensors_overlap_hole_and_trailing_bytes() {
    let _alone = alone();
    let pair = |second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
        )
    };
    let data = |header: &str| 8 + header.len() as u64;
    let header = pair("[2,6]");
    assert_fault!(st(&header, 6), ModelError::Overlap { .. }, data(&header) + 2);
    let header = pair("[0,4]");
    assert_fault!(st(&header, 4), ModelError::Overlap { .. }, data(&header));
    let header = pair("[5,9]");
    assert_fault!(st(&header, 9), ModelError::Hole { .. }, data(&header) + 5);
    let header = pair("[4,8]");
    assert_fault!(st(&header, 9), ModelError::Trailing { .. }, data(&header) + 8);
    assert_fault!(st(&header, 7), ModelError::BeyondEnd { .. }, data(&header) + 4);
    accepted(&safetensors(&header, 8), Format::Safetensors);
    // A polyglot: nothing but an archive after an empty model.
    assert_fault!(st("{}", 64), ModelError::Trailing { .. }, 10);
}

#[test]
fn safetensors_unknown_type() {
    let _alone = alone();
    for text in [r#""F31""#, r#""f32""#, r#""Q4_0""#, r#""""#] {
        let error = st(&GOOD.replace(r#""F32""#, text), 8);
        assert!(matches!(error, ModelError::UnknownType { .. }), "{error}");
    }
    // JSON that other readers take for the same thing.
    let error = st(&GOOD.replace(r#""F32""#, r#"{"F32":null}"#), 8);
    assert!(matches!(error, ModelError::Json { .. }), "{error}");
    let error = st(r#"{"a":["F32",[2],[0,8]]}"#, 8);
    assert!(matches!(error, ModelError::Json { .. }), "{error}");
}

#[test]
fn safetensors_shapes_that_overflow_or_lie() {
    let _alone = alone();
    let shaped = |shape: &str| GOOD.replace("[2]", shape);
    for shape in ["[4294967296,4294967296,1]", "[9223372036854775807,3]", "[18446744073709551615]"] {
        let error = st(&shaped(shape), 8);
        assert!(matches!(error, ModelError::Shape { .. }), "{error}");
    }
    let ones = format!("[{}2]", "1,".repeat(32));
    assert!(matches!(st(&shaped(&ones), 8), ModelError::Shape { .. }));
    for shape in ["[1]", "[3]", "[]", "[0]", "[2,2]"] {
        let error = st(&shaped(shape), 8);
        assert!(matches!(error, ModelError::Size { .. }), "{error}");
    }
    for shape in ["[-2]", "[2.0]", "[2e0]", "[\"2\"]", "2", "null", "[18446744073709551616]", "[02]", "[2,]"] {
        let error = st(&shaped(shape), 8);
        assert!(matches!(error, ModelError::Json { .. }), "{shape}: {error}");
    }
    let error = st(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2);
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
}

#[test]
fn safetensors_offsets_that_lie() {
    let _alone = alone();
    let ranged = |range: &str| GOOD.replace("[0,8]", range);
    assert!(matches!(st(&ranged("[8,0]"), 8), ModelError::Shape { .. }));
    assert!(matches!(st(&ranged("[0,8,8]"), 8), ModelError::Shape { .. }));
    assert!(matches!(st(&ranged("[0]"), 8), ModelError::Json { .. }));
    assert!(matches!(st(&ranged("[]"), 8), ModelError::Json { .. }));
    assert!(matches!(st(&ranged("[-8,0]"), 8), ModelError::Json { .. }));
    assert!(matches!(st(&ranged("[18446744073709551607,18446744073709551615]"), 8), ModelError::BeyondEnd { .. }));
    assert!(matches!(st(&ranged("[0,7]"), 7), ModelError::Size { .. }));
    assert!(matches!(st(&ranged("[8,16]"), 16), ModelError::Hole { .. }));
}

#[test]
fn safetensors_header_length() {
    let _alone = alone();
    for length in [u64::MAX, 1 << 63, 100_000_001] {
        let mut file = safetensors(GOOD, 8);
        file[..8].copy_from_slice(&length.to_le_bytes());
        assert_fault!(refused_cheaply(&file, Format::Safetensors), ModelError::Limit { .. }, 0);
    }
    let mut file = safetensors(GOOD, 8);
    file[..8].copy_from_slice(&100_000_000_u64.to_le_bytes());
    assert_fault!(refused_cheaply(&file, Format::Safetensors), ModelError::Truncated { .. }, 8);
    file[..8].copy_from_slice(&0_u64.to_le_bytes());
    assert_fault!(refused_cheaply(&file, Format::Safetensors), ModelError::Json { .. }, 8);
    for len in 1..8 {
        assert_fault!(refused_cheaply(&file[..len], Format::Safetensors), ModelError::Truncated { .. }, 0);
    }
}

#[test]
fn safetensors_json_that_is_not_one_object() {
    let _alone = alone();
    for header in ["[]", "", " {}", "{}{}", "{}x", "{}\n", "{", "{\"a\"", "nul", "{\"a\":1}", "\u{feff}{}"] {
        let error = st(header, 0);
        assert!(matches!(error, ModelError::Json { .. }), "{header}: {error}");
        assert!(error.offset() >= Some(8), "{error}");
    }
    let error = st(&format!("{{\"a\":{}", "[".repeat(100_000)), 0);
    assert!(matches!(error, ModelError::Json { .. }), "{error}");
}

#[test]
fn safetensors_100_000_entries() {
    let _alone = alone();
    // The published proof of concept: many tiny entries. Sound, so it is accepted, and it costs what it may.
    let mut header = String::from("{");
    for n in 0..100_000 {
        header += &format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    }
    header.pop();
    header.push('}');
    let file = safetensors(&header, 0);
    let parsed = parse(&file, Some(Format::Safetensors)).unwrap();
    assert_eq!(parsed.table.len(), 100_000);

    let mut header = String::from(r#"{"__metadata__":{"#);
    for n in 0..70_000 {
        header += &format!(r#""{n}":"","#);
    }
    header.pop();
    header.push_str("}}");
    let error = refused(&safetensors(&header, 0), Format::Safetensors);
    assert!(matches!(error, ModelError::Limit { .. }), "{error}");
}

#[test]
fn content_announces_the_format() {
    let _alone = alone();
    let sound = common::small_safetensors();
    assert_eq!(parse(&sound, None).unwrap().format, Format::Safetensors);
    assert_eq!(parse(&common::small_gguf().build(), None).unwrap().format, Format::Gguf);
    let error = parse(&vec![7_u8; 100], None).unwrap_err();
    assert!(error.to_string().contains("--format raw"), "{error}");
    assert!(matches!(parse(&Vec::new(), None), Err(ModelError::Empty)));
    let raw = parse(&vec![7_u8; 100], Some(Format::Raw)).unwrap();
    assert_eq!((raw.data_start, raw.table.len()), (0, 0));
    assert_eq!(raw.header_digest, *blake3::hash(b"").as_bytes());
}
