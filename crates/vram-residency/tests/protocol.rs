//! The protocol's published vectors are what this code sends and understands.
//!
//! `UPDATE_VECTORS=1 cargo test -p vram-residency --test protocol` writes them anew; what changes an old one needs a new
//! version of the protocol first.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::path::PathBuf;

use serde_json::{Value, json};
use vram_residency::handout::{Answer, ErrorCode, Incoming, MAX_ANSWER, MAX_REQUEST, Request, encode, hex, unhex};

fn digest() -> String {
    format!("blake3:{}", "ab".repeat(32))
}

fn requests() -> Vec<Value> {
    vec![
        json!({"type": "hello", "version": 1}),
        json!({"type": "list"}),
        json!({"type": "attach", "shard": "llama-safetensors"}),
        json!({"type": "attach", "digest": digest()}),
        json!({"type": "watch"}),
        json!({"type": "release", "lease": 7}),
    ]
}

fn answers() -> Vec<Value> {
    let shard = json!({"shard_id": "llama-safetensors", "model_ref": "/srv/models/llama.safetensors", "shard_index": 0,
        "shard_count": 1, "bytes": 4096, "digest": digest(), "residency": "host-locked", "protection": "read-only",
        "state": "VERIFIED", "oldest_age_ns": 1_500_000_000_u64, "lapses": 2});
    vec![
        json!({"type": "hello", "version": 1, "software": "0.1.0", "worker_id": "worker-1", "period_ns": 60_000_000_000_u64}),
        json!({"type": "shards", "shards": [shard]}),
        json!({"type": "attached", "lease": 7, "offset": 168, "shard": shard, "seal": "16000000"}),
        json!({"type": "tensors", "tensors": [
            {"name": "model.norm.weight", "dtype": "BF16", "shape": [4, 8], "start": 88, "end": 152}]}),
        json!({"type": "watching"}),
        json!({"type": "state", "lease": 7, "state": "QUARANTINED", "oldest_age_ns": 250_000_000, "lapses": 3}),
        json!({"type": "released", "lease": 7}),
        json!({"type": "ended", "lease": 7, "reason": "an operator gave the shard up"}),
        json!({"type": "error", "code": "not-verified", "message": "'llama-safetensors' is not handed out: ..."}),
        json!({"type": "bye", "reason": "the daemon stops"}),
    ]
}

/// The body of a whole frame.
fn body(frame: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut incoming = Incoming::new(limit);
    let (head, rest) = frame.split_at(4);
    incoming.take(head).ok()?;
    incoming.take(rest).ok()?
}

#[test]
fn messages_are_as_published() {
    let mut vectors = Vec::new();
    for message in requests() {
        let request: Request = serde_json::from_value(message.clone()).unwrap();
        let frame = encode(&request).unwrap();
        assert_eq!(Request::parse(&body(&frame, MAX_REQUEST).unwrap()).unwrap(), request);
        assert_eq!(serde_json::to_value(&request).unwrap(), message);
        vectors.push(json!({"from": "client", "message": message, "frame": hex(&frame)}));
    }
    for message in answers() {
        let answer: Answer = serde_json::from_value(message.clone()).unwrap();
        let frame = encode(&answer).unwrap();
        assert_eq!(serde_json::from_slice::<Answer>(&body(&frame, MAX_ANSWER).unwrap()).unwrap(), answer);
        assert_eq!(serde_json::to_value(&answer).unwrap(), message);
        vectors.push(json!({"from": "daemon", "message": message, "frame": hex(&frame)}));
    }
    let codes: Vec<&str> = ErrorCode::ALL.into_iter().map(ErrorCode::as_str).collect();
    let published = json!({"version": 1, "max_request": MAX_REQUEST, "max_answer": MAX_ANSWER, "codes": codes,
        "frames": vectors, "refused": REFUSED.map(|(why, frame)| json!({"why": why, "frame": frame}))});
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors/protocol.json");
    let text = serde_json::to_string_pretty(&published).unwrap() + "\n";
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(&path, text).unwrap();
    } else {
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{}", path.display());
    }
}

/// What a daemon hangs up on, as a frame in hex.
const REFUSED: [(&str, &str); 6] = [
    ("an empty frame", "00000000"),
    ("more than is read", "01100000"),
    ("no JSON", "020000007878"),
    ("no type", "020000007b7d"),
    ("an unknown type", "100000007b2274797065223a227772697465227d"),
    ("a field that nobody knows", "180000007b2274797065223a226c697374222c226d6f7265223a317d"),
];

#[test]
fn what_is_no_request_is_refused() {
    for (why, frame) in REFUSED {
        let frame = unhex(frame).unwrap();
        let understood = body(&frame, MAX_REQUEST).is_some_and(|body| Request::parse(&body).is_ok());
        assert!(!understood, "{why}");
    }
    for wrong in [
        json!({"type": "attach", "shard": "a", "write": true}),
        json!({"type": "attach", "digest": "sha256:00"}),
        json!({"type": "list", "more": 1}),
        json!({"type": "hello", "version": -1}),
        json!({"type": "hello"}),
        json!({"type": "write"}),
        json!(["list"]),
    ] {
        assert!(Request::parse(wrong.to_string().as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn a_client_understands_a_daemon_that_knows_more() {
    let later =
        json!({"type": "state", "lease": 7, "state": "ENTANGLED", "oldest_age_ns": 1, "lapses": 0, "more": [1, 2]});
    let Answer::State { state, .. } = serde_json::from_value(later).unwrap() else { unreachable!() };
    assert_eq!(state, vram_residency::ShardState::Unverified, "what is not known is not relied on");
    let later = json!({"type": "error", "code": "of-another-version", "message": "m"});
    let Answer::Error { code, .. } = serde_json::from_value(later).unwrap() else { unreachable!() };
    assert_eq!(code, ErrorCode::Other);
}
