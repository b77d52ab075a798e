//! The published test vectors are what this code does, and what a second implementation in Python makes of them.
//!
//! `UPDATE_VECTORS=1 cargo test -p vram-residency --test vectors` writes them anew; a format that changes needs a new
//! version first.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use vram_residency::ShardId;
use vram_residency::attest::AttestKey;
use vram_residency::attest::envelope::{Envelope, PAYLOAD_TYPE, pae};
use vram_residency::attest::statement::{
    CheckpointFacts, DeviceFacts, Digests, Driver, LogPosition, Predicate, ShardFacts, Software,
    Statement as Statement1, Subject,
};
use vram_residency::device::{DeviceKind, DeviceUuid, Protection, Residency};
use vram_residency::digest::{BLOCK_BYTES, Digest, block_count, block_range, block_value, merge};
use vram_residency::model::writer::{Layout, TensorSpec};
use vram_residency::model::{self, Dtype};
use vram_residency::seal::{SealKey, Statement, parse_record};

fn vectors_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares with the published file, or writes it where that is asked for.
fn agree(name: &str, vectors: &Value) {
    let path = vectors_dir().join(name);
    let text = serde_json::to_string_pretty(vectors).unwrap() + "\n";
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(&path, text).unwrap();
    } else {
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{}", path.display());
    }
}

fn statement(shard_id: &str, model_ref: &str, bytes: u64, residency: Residency) -> Statement<String> {
    Statement {
        shard_id: ShardId::new(shard_id).unwrap(),
        worker_id: "worker-1".into(),
        device_kind: DeviceKind::Host,
        device_uuid: DeviceUuid(*b"0123456789abcdef"),
        bytes,
        digest: Digest::of(b"weights"),
        table_digest: Digest::of(b"table"),
        model_ref: model_ref.into(),
        shard_index: 1,
        shard_count: 3,
        sealed_at_ns: 1_795_000_000_123_456_789,
        residency,
        protection: Protection::ReadOnly,
    }
}

#[test]
fn seal_records_are_as_published() {
    let secret: Vec<u8> = (0..32).collect();
    let key = SealKey::derive(&secret, "worker-1").unwrap();
    let statements = [
        statement("model-00002-of-00003", "meta/llama", 4_976_698_672, Residency::HostLocked),
        statement("a", "modèle", 0, Residency::HostPageable),
    ];
    let records = statements.map(|statement| {
        let signature = key.sign(&statement);
        let record = statement.to_record(&signature);
        let (parsed, parsed_signature) = parse_record(&record).unwrap();
        assert!(key.verify(&parsed, &parsed_signature));
        json!({
            "shard_id": statement.shard_id,
            "worker_id": statement.worker_id,
            "device_kind": statement.device_kind,
            "device_uuid": hex(&statement.device_uuid.0),
            "bytes": statement.bytes,
            "digest": hex(statement.digest.as_bytes()),
            "table_digest": hex(statement.table_digest.as_bytes()),
            "model_ref": statement.model_ref,
            "shard_index": statement.shard_index,
            "shard_count": statement.shard_count,
            "sealed_at_ns": statement.sealed_at_ns,
            "residency": statement.residency,
            "protection": statement.protection,
            "signature": hex(signature.as_bytes()),
            "record": hex(&record),
        })
    });
    agree("seal.json", &json!({ "secret": hex(&secret), "key_id": hex(&key.id()), "records": records }));
}

#[test]
fn digests_and_block_values_are_as_published() {
    // The byte at offset i is i modulo 251, as in the official vectors of BLAKE3.
    let lengths = [0, 1, 1024, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 5 * BLOCK_BYTES - 1];
    let cases = lengths.map(|length| {
        let bytes: Vec<u8> = (0..length).map(|offset| (offset % 251) as u8).collect();
        let values: Vec<_> = (0..block_count(length))
            .map(|index| {
                let range = block_range(length, index);
                block_value(length, index, &bytes[range.start as usize..range.end as usize]).unwrap()
            })
            .collect();
        let digest = merge(&values).unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        let values: Vec<_> = values.iter().map(|value| hex(value.as_bytes())).collect();
        json!({ "bytes": length, "digest": hex(digest.as_bytes()), "block_values": values })
    });
    agree("blocks.json", &json!({ "block_bytes": BLOCK_BYTES, "cases": cases }));
}

#[test]
fn tensor_table_digests_are_as_published() {
    let tensors = vec![
        TensorSpec::new("embed.weight", Dtype::BF16, [32, 8]),
        TensorSpec::new("norm.weight", Dtype::F32, [8]),
        TensorSpec::new("scale", Dtype::F32, []),
    ];
    let mut file = Vec::new();
    Layout::new(tensors).unwrap().write(&mut file, |_, _, bytes| bytes.fill(0)).unwrap();
    let parsed = model::parse(&file, None).unwrap();
    let tensors: Vec<_> = parsed
        .table
        .tensors()
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "dtype": tensor.dtype.to_string(),
                "shape": tensor.shape,
                "start": tensor.start,
                "end": tensor.end,
            })
        })
        .collect();
    agree("tensor-table.json", &json!({ "tensors": tensors, "digest": hex(&parsed.table.digest()) }));
}

#[test]
fn a_second_implementation_agrees() {
    let checker = vectors_dir().join("check_seal.py");
    let output = Command::new("python3").arg(&checker).arg(vectors_dir().join("seal.json")).output();
    let output = output.expect("the check in Python needs python3, which `cargo xtask test` needs anyway");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("2 records agree"), "{said}");
}

#[test]
fn attestations_are_as_published() {
    let key = AttestKey::of(&[7; 32]).unwrap();
    let gpus = [DeviceUuid(*b"0123456789abcdef"), DeviceUuid(*b"ghijklmnopqrstuv")];
    let statement = Statement1 {
        statement_type: "https://in-toto.io/Statement/v1".into(),
        subject: vec![
            Subject {
                name: "model-00001-of-00002.safetensors".into(),
                digest: Digests { blake3: Digest::of(b"weights"), sha256: Some([0xab; 32]) },
            },
            Subject {
                name: "model-00002-of-00002.safetensors".into(),
                digest: Digests { blake3: Digest::of(b"more weights"), sha256: None },
            },
        ],
        predicate_type: "urn:vram-residency:attestation:v2".into(),
        predicate: Predicate {
            nonce: "00112233445566778899aabbccddeeff".parse().unwrap(),
            attested_at: 1_795_000_000_123_456_789,
            worker_id: "worker-1".into(),
            software: Software { name: "vram".into(), version: "0.1.0".into() },
            devices: gpus
                .map(|uuid| DeviceFacts {
                    kind: DeviceKind::Cuda,
                    uuid,
                    driver: Driver { name: "NVIDIA CUDA".into(), version: "13.0".into(), machine: "NVIDIA L4".into() },
                })
                .to_vec(),
            shards: vec![
                ShardFacts {
                    shard_id: ShardId::new("model-00001-of-00002").unwrap(),
                    model_ref: "org/model".into(),
                    shard_index: 0,
                    shard_count: 2,
                    bytes: 7,
                    tensor_table: Digest::of(b"table"),
                    device: gpus[0],
                    residency: Residency::Vram,
                    protection: Protection::ReadOnly,
                    sealed_at: 1_794_999_000_000_000_000,
                    verified_at: 1_795_000_000_100_000_000,
                },
                ShardFacts {
                    shard_id: ShardId::new("model-00002-of-00002").unwrap(),
                    model_ref: "org/model".into(),
                    shard_index: 1,
                    shard_count: 2,
                    bytes: 12,
                    tensor_table: Digest::of(b"another table"),
                    device: gpus[1],
                    residency: Residency::Vram,
                    protection: Protection::Advisory,
                    sealed_at: 1_794_999_001_000_000_000,
                    verified_at: 1_795_000_000_123_000_000,
                },
            ],
            audit_log: Some(LogPosition {
                sequence: 42,
                checkpoint: Some(CheckpointFacts { origin: "example.org/log".into(), size: 43, root: [0xcd; 32] }),
            }),
        },
    };
    let text = statement.to_text();
    assert_eq!(Statement1::parse(&text).unwrap(), statement);
    let envelope = Envelope::sign(text.clone(), &key);
    let vectors = json!({
        "seed": hex(&[7; 32]),
        "public_key": key.public().to_string(),
        "public_pem": key.public().to_pem(),
        "key_id": key.public().id().to_string(),
        "statement": String::from_utf8(text.clone()).unwrap(),
        "signed": String::from_utf8(pae(PAYLOAD_TYPE, &text)).unwrap(),
        "envelope": envelope.to_text(),
        "envelope_digest": Digest::of(envelope.to_text().as_bytes()).to_string(),
    });
    agree("attestation.json", &vectors);
    let again = Envelope::parse(envelope.to_text().as_bytes()).unwrap();
    assert_eq!(again.verified(&[key.public().clone()]).unwrap(), text);
}
