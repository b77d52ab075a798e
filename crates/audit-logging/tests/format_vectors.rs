//! The published vectors of the public format are what this code writes and accepts. `UPDATE_VECTORS=1` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Question};
use audit_logging::publish::{PublishOptions, Publisher, next_file};
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::entry::Entry;
use audit_logging::tlog::note::{SignedNote, SigningKey, VerifierKey};
use audit_logging::tlog::proof::{self, Proof};
use audit_logging::tlog::tree::{self, Hash, Tile, Tree};
use audit_logging::{AuditLog, Options, Severity, reader};
use common::{MemVfs, TestClock, dir, key_file, options, publish_options, source, tlog_dir};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/audit-format.json");
const WAIT: Duration = Duration::from_secs(20);

// Made for these vectors; they sign nothing else.
const KEY: &str = "PRIVATE+KEY+example.org/vram-audit/0a1b2c3d+6adfa20c+AX9PdjJC0X1f6I/5oDhBUB9l0sJWrVJnDVaTHqX7z755";
const NEXT: &str = "PRIVATE+KEY+example.org/vram-audit/0a1b2c3d+011f767b+AXE2qc1Fej0cC9ySYxwIb6tra9vy6zmtrmSNyA+EJtnJ";
const WITNESS: &str = "PRIVATE+KEY+witness.example.org/w1+a9d78d78+BOT0GWpUxR2K1vh+2yWrvHKgly5FOZqyf48mBgzlQrxs";
const NOW: u64 = 1_795_000_000;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r"))
}

fn keys() -> [SigningKey; 3] {
    [KEY, NEXT, WITNESS].map(|text| SigningKey::parse(text).unwrap())
}

/// Five records: opened, one event, the change of the key, another event, closed. Cosigned after the fourth.
fn log() -> MemVfs {
    let vfs = MemVfs::default();
    let [_, next, witness] = keys();
    vfs.set_bytes(&key_file(), format!("{KEY}\n").as_bytes());
    let clock = TestClock::new(NOW as i64);
    let log = AuditLog::open(&dir(), Options { clock, ..options(&vfs, 4096) }).unwrap();
    let options = PublishOptions { witnesses: vec![witness.verifier().clone()], ..publish_options() };
    let publisher = Publisher::start(&log, options).unwrap();
    assert!(log.emit(Severity::Critical, b"{\"event\":\"first\"}").is_durable());
    publisher.wait_beyond(1, WAIT).unwrap();
    vfs.set_bytes(&next_file(&key_file()), format!("{NEXT}\n").as_bytes());
    let start = Instant::now();
    while publisher.status().vkey != next.verifier().to_string() {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(log.emit(Severity::Critical, "\u{e9}".as_bytes()).is_durable());
    publisher.wait_beyond(3, WAIT).unwrap();
    let note = SignedNote::parse(&vfs.bytes(&tlog_dir().join("checkpoint"))).unwrap();
    let line = witness.sign(note.text(), NOW + 1);
    publisher.accept_cosigned(&note.with_signature_lines([line]).to_bytes()).unwrap();
    assert!(log.close(WAIT).is_durable());
    assert!(publisher.finish(WAIT).caught_up);
    vfs
}

fn numbers(size: u64) -> Tree {
    let mut tree = Tree::new();
    (0..size).for_each(|n| tree.push(tree::leaf_hash(&n.to_le_bytes()), &mut |_, _| {}).unwrap());
    tree
}

fn vectors() -> String {
    let vfs = log();
    let [key, next, witness] = keys();
    let mut out = String::from("{\n  \"format\": 1,\n  \"keys\": [\n");
    for (n, (name, text, key)) in
        [("log", KEY, &key), ("next", NEXT, &next), ("witness", WITNESS, &witness)].iter().enumerate()
    {
        let end = if n < 2 { "," } else { "" };
        writeln!(
            out,
            "    {{\"name\": \"{name}\", \"signer\": \"{text}\", \"verifier\": \"{}\"}}{end}",
            key.verifier()
        )
        .unwrap();
    }
    let records: Vec<_> = reader::records_on(Arc::new(vfs.clone()), &dir()).unwrap().map(Result::unwrap).collect();
    out.push_str("  ],\n  \"entries\": [\n");
    let mut tree = Tree::new();
    for (n, record) in records.iter().enumerate() {
        let entry = Entry::of(record);
        tree.push(entry.hash(), &mut |_, _| {}).unwrap();
        writeln!(
            out,
            "    {{\"index\": {n}, \"seq\": {}, \"kind\": {}, \"severity\": {}, \"leaf\": \"{}\", \"entry\": \"{}\", \"leaf_hash\": \"{}\", \"root_behind_it\": \"{}\"}}{}",
            record.seq, record.kind as u8, record.severity as u8, hex(&record.leaf), hex(&entry.to_bytes()), entry.hash(), tree.root(),
            if n + 1 < records.len() { "," } else { "" }
        )
        .unwrap();
    }
    out.push_str("  ],\n  \"files\": [\n");
    let names = ["tile/entries/000.p/5", "tile/0/000.p/5", "checkpoint", "cosigned", "rotation/3", "vkey"];
    for (n, name) in names.iter().enumerate() {
        let bytes = vfs.bytes(&tlog_dir().join(name));
        let content = match std::str::from_utf8(&bytes) {
            Ok(text) if !name.starts_with("tile") => format!("\"text\": {}", string(text)),
            _ => format!("\"bytes\": \"{}\"", hex(&bytes)),
        };
        writeln!(out, "    {{\"path\": \"{name}\", {content}}}{}", if n + 1 < names.len() { "," } else { "" }).unwrap();
    }
    let all = [key.verifier().clone(), next.verifier().clone()];
    let proof = proof::prove(&source(&vfs), &all, 1).unwrap().to_string();
    write!(out, "  ],\n  \"proof_of_entry_1\": {},\n", string(&proof)).unwrap();
    out.push_str("  \"trees_of_numbers\": [\n");
    let sizes = [0u64, 1, 2, 3, 4, 5, 7, 8, 255, 256, 257, 65_535, 65_536, 65_537, 70_000];
    for (n, size) in sizes.iter().enumerate() {
        let tiles: Vec<Tile> = tree::tiles_between(0, *size).collect();
        let paths: Vec<String> = tiles.iter().filter(|tile| !tile.is_full()).map(|tile| string(&tile.path())).collect();
        writeln!(
            out,
            "    {{\"size\": {size}, \"root\": \"{}\", \"files\": {}, \"partial\": [{}]}}{}",
            numbers(*size).root(),
            tiles.len(),
            paths.join(", "),
            if n + 1 < sizes.len() { "," } else { "" }
        )
        .unwrap();
    }
    out.push_str("  ],\n  \"refused\": [\n");
    let refused = refused(&vfs);
    for (n, (what, kind, text)) in refused.iter().enumerate() {
        let end = if n + 1 < refused.len() { "," } else { "" };
        writeln!(out, "    {{\"what\": \"{what}\", \"kind\": \"{kind}\", \"text\": {}}}{end}", string(text)).unwrap();
    }
    out.push_str("  ]\n}\n");
    out
}

/// Texts that must not be accepted under the keys above.
fn refused(vfs: &MemVfs) -> Vec<(&'static str, &'static str, String)> {
    let text = |name: &str| String::from_utf8(vfs.bytes(&tlog_dir().join(name))).unwrap();
    let [_, next, _] = keys();
    let checkpoint = text("checkpoint");
    let signed = |text: &str| String::from_utf8(SignedNote::sign(text, &[&next]).to_bytes()).unwrap();
    let body = SignedNote::parse(checkpoint.as_bytes()).unwrap().text().to_owned();
    let proof = proof::prove(&source(vfs), &[next.verifier().clone()], 1).unwrap().to_string();
    vec![
        ("another size under the same signature", "checkpoint", checkpoint.replacen("\n5\n", "\n6\n", 1)),
        ("a leading zero in the size", "checkpoint", signed(&body.replacen("\n5\n", "\n05\n", 1))),
        ("an extension line", "checkpoint", signed(&format!("{body}more\n"))),
        ("no signature", "checkpoint", format!("{body}\n")),
        ("no empty line before the signature", "checkpoint", checkpoint.replacen("\n\n", "\n", 1)),
        ("a carriage return", "checkpoint", checkpoint.replacen('\n', "\r\n", 1)),
        ("another index", "proof", proof.replacen("index 1", "index 2", 1)),
        (
            "a hash taken out",
            "proof",
            proof.split_inclusive('\n').enumerate().filter(|(n, _)| *n != 2).map(|(_, line)| line).collect(),
        ),
        ("a tile of width 0", "path", "tile/0/000.p/0".into()),
        ("a number with too many digits", "path", "tile/0/x000/001".into()),
        ("a level that no such tree has", "path", "tile/64/000".into()),
    ]
}

#[test]
fn the_published_vectors_are_what_the_code_writes() {
    let vectors = vectors();
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(FILE, &vectors).unwrap();
    }
    let published = std::fs::read_to_string(FILE).unwrap();
    assert!(
        published == vectors,
        "the format changed: if that is meant, raise its version and run with UPDATE_VECTORS=1"
    );
}

#[test]
fn the_published_log_verifies_and_what_is_to_be_refused_is() {
    let vfs = log();
    let [key, next, witness] = keys().map(|key| key.verifier().clone());
    let (source, witnesses) = (source(&vfs), [witness]);
    for trusted in [&key, &next] {
        let question = Question { witness_keys: &witnesses, ..Question::new(&source, std::slice::from_ref(trusted)) };
        let report = evidence::verify(&question).unwrap();
        assert!(report.is_intact(), "{report:#?}");
        assert_eq!((report.ranges.cosigned, report.ranges.signed), (4, 5));
    }
    let all = [key, next];
    let entry = common::published(&vfs, 5)[1].clone();
    for (what, kind, text) in refused(&vfs) {
        let accepted = match kind {
            "checkpoint" => Checkpoint::verify(text.as_bytes(), &all).is_ok(),
            "proof" => Proof::parse(text.as_bytes()).and_then(|proof| proof.check(&entry, &all, &[], 0)).is_ok(),
            _ => Tile::from_path(&text).is_some(),
        };
        assert!(!accepted, "{what}");
    }
    assert_eq!(numbers(0).root(), Hash::EMPTY_TREE);
    assert!(VerifierKey::parse("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k").is_ok());
}
