//! The published vectors are what this code writes and reads. `UPDATE_VECTORS=1` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::reader::{self, Report};
use audit_logging::{AuditLog, Options, Severity};
use common::{MemVfs, TestClock, dir, options, segment};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/audit-log.json");
const SEGMENT: u64 = 4096;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Two routine records that share a sync with a critical one, a large one that needs a second segment, a clean close.
fn log() -> MemVfs {
    let vfs = MemVfs::default();
    let clock = TestClock::new(1_795_000_000);
    let log = AuditLog::open(&dir(), Options { clock, ..options(&vfs, SEGMENT) }).unwrap();
    assert!(log.emit(Severity::Critical, b"first").is_durable());
    assert!(log.emit(Severity::Critical, b"").is_durable());
    assert!(log.emit(Severity::Critical, "{\"eight\":8}\u{e9}".as_bytes()).is_durable());
    assert!(log.emit(Severity::Critical, &[0xab; 3000]).is_durable());
    assert!(log.emit(Severity::Critical, &[0xcd; 1000]).is_durable());
    assert!(log.close(Duration::from_secs(20)).is_durable());
    vfs
}

fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(64, |last| (last + 1).next_multiple_of(8))
}

fn verdict(report: &Report) -> String {
    if let Some(violation) = report.violations.first() {
        let what = violation.what.as_str();
        return format!(
            r#""verdict": "violation", "what": "{what}", "offset": {}, "seq": {}"#,
            violation.offset, violation.seq
        );
    }
    match report.torn_tail {
        Some(torn) => {
            format!(r#""verdict": "torn tail", "offset": {}, "bytes": {}"#, torn.offset, torn.bytes)
        }
        None => {
            format!(r#""verdict": "intact", "records": {}, "closed": {}"#, report.records, report.clean_close)
        }
    }
}

fn vectors() -> String {
    let vfs = log();
    let mut out = String::from("{\n  \"format\": 1,\n");
    out.push_str("  \"crc32c\": {\"ascii\": \"123456789\", \"value\": \"e3069283\"},\n");
    let records: Vec<_> = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap).collect();
    out.push_str("  \"segments\": [\n");
    for index in 1..=2 {
        let bytes = vfs.bytes(&segment(index));
        let used = &bytes[..used(&bytes)];
        writeln!(
            out,
            "    {{\"file\": \"segment-{index:012}.wal\", \"length\": {}, \"bytes\": \"{}\"}}{}",
            bytes.len(),
            hex(used),
            if index == 1 { "," } else { "" }
        )
        .unwrap();
    }
    out.push_str("  ],\n  \"records\": [\n");
    for (n, record) in records.iter().enumerate() {
        writeln!(
            out,
            "    {{\"segment\": {}, \"offset\": {}, \"seq\": {}, \"durable\": {}, \"kind\": \"{}\", \"kind_byte\": {}, \"severity\": {}, \"leaf\": \"{}\"}}{}",
            record.segment,
            record.offset,
            record.seq,
            record.durable,
            record.kind.as_str(),
            record.kind as u8,
            record.severity as u8,
            hex(&record.leaf),
            if n + 1 < records.len() { "," } else { "" }
        )
        .unwrap();
    }
    out.push_str("  ],\n  \"changes_to_segment_1_alone\": [\n");
    let bytes = vfs.bytes(&segment(1));
    let at = |n: usize| records[n].offset as usize;
    let last = records.iter().rposition(|record| record.segment == 1).unwrap();
    let end = used(&bytes);
    let changes: [(&str, usize, Vec<u8>); 8] = [
        ("nothing changed", 0, vec![]),
        ("one bit in the magic", 0, vec![bytes[0] ^ 1]),
        ("one bit in the leaf of record 2", at(1) + 32, vec![bytes[at(1) + 32] ^ 0x10]),
        ("one bit in the number of record 2", at(1) + 8, vec![bytes[at(1) + 8] ^ 1]),
        ("record 3 set to zero", at(2), vec![0; at(3) - at(2)]),
        ("last record of the segment set to zero", at(last), vec![0; end - at(last)]),
        ("one bit in the last record of the segment", at(last) + 40, vec![bytes[at(last) + 40] ^ 0x80]),
        ("garbage behind the last record", end, vec![0x55; 24]),
    ];
    for (n, (name, offset, new)) in changes.iter().enumerate() {
        let mut changed = bytes.clone();
        changed[*offset..*offset + new.len()].copy_from_slice(new);
        writeln!(
            out,
            "    {{\"change\": \"{name}\", \"at\": {offset}, \"new_bytes\": \"{}\", {}}}{}",
            hex(new),
            verdict(&reader::scan(&changed)),
            if n + 1 < changes.len() { "," } else { "" }
        )
        .unwrap();
    }
    out.push_str("  ]\n}\n");
    out
}

#[test]
fn the_published_vectors_are_what_the_code_writes() {
    let vectors = vectors();
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(FILE).parent().unwrap()).unwrap();
        std::fs::write(FILE, &vectors).unwrap();
    }
    let published = std::fs::read_to_string(FILE).unwrap();
    assert!(
        published == vectors,
        "the format changed: if that is meant, raise its version and run with UPDATE_VECTORS=1"
    );
}

#[test]
fn the_published_bytes_are_read_as_published() {
    let published = std::fs::read_to_string(FILE).unwrap();
    let vfs = MemVfs::default();
    for (index, part) in published.split("\"file\": ").skip(1).enumerate() {
        let text = part.split("\"bytes\": \"").nth(1).unwrap().split('"').next().unwrap();
        let mut bytes = unhex(text);
        bytes.resize(SEGMENT as usize, 0);
        vfs.set_bytes(&segment(index as u64 + 1), &bytes);
    }
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(report.is_intact() && report.clean_close, "{report:?}");
    let leaves: Vec<String> = reader::records_on(Arc::new(vfs), &dir())
        .unwrap()
        .map(|record| format!("\"leaf\": \"{}\"", hex(&record.unwrap().leaf)))
        .collect();
    assert_eq!(leaves.len(), 7);
    for leaf in leaves {
        assert!(published.contains(&leaf));
    }
}
