//! The protocol's published vectors are what this code sends and understands.
//!
//! `UPDATE_VECTORS=1 cargo test -p vram-residency --test protocol` writes them anew; what changes an old one needs a new
//! version of the protocol first.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use serde_json::{Value, json};
use vram_residency::client::{self, ClientError};
use vram_residency::handout::{
    Answer, ErrorCode, Incoming, MAX_ANSWER, MAX_REQUEST, Request, VERSION, encode, hex, unhex,
};

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
        json!({"type": "hello", "version": 2}),
        json!({"type": "attach-cuda", "shard": "llama-safetensors"}),
        json!({"type": "attach-cuda", "digest": digest()}),
    ]
}

fn answers() -> Vec<Value> {
    let shard = json!({"shard_id": "llama-safetensors", "model_ref": "/srv/models/llama.safetensors", "shard_index": 0,
        "shard_count": 1, "bytes": 4096, "digest": digest(), "residency": "host-locked", "protection": "read-only",
        "state": "VERIFIED", "oldest_age_ns": 1_500_000_000_u64, "lapses": 2});
    let mut on_gpu = shard.clone();
    (on_gpu["residency"], on_gpu["protection"]) = ("vram".into(), "advisory".into());
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
        json!({"type": "hello", "version": 2, "software": "0.1.0", "worker_id": "worker-1", "period_ns": 60_000_000_000_u64}),
        json!({"type": "attached-cuda", "lease": 7, "device": "5b1f0f0e-5a0c-4a56-9f0e-0c1d2e3f4a5b",
            "allocation_bytes": 2 << 20, "offset": 168, "shard": on_gpu, "seal": "16000000"}),
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
    let published = json!({"version": VERSION, "max_request": MAX_REQUEST, "max_answer": MAX_ANSWER, "codes": codes,
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

/// One that speaks the first version only, and says so as it always did.
#[test]
fn a_client_speaks_with_a_daemon_of_the_first_version_and_is_told_what_that_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        let hello = json!({"type": "hello", "version": 1, "software": "0", "worker_id": "w", "period_ns": 1});
        let refused = json!({"type": "error", "code": "version", "message": "version 2 is not spoken here; 1 is"});
        for (version, answer) in [(2, refused), (1, hello)] {
            let mut stream = listener.accept().unwrap().0;
            let mut frame = vec![0; 4];
            stream.read_exact(&mut frame).unwrap();
            frame.resize(u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, 0);
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(Request::parse(&frame).unwrap(), Request::Hello { version });
            stream.write_all(&encode(&answer).unwrap()).unwrap();
            if version == 1 {
                let _ = stream.read(&mut frame);
            }
        }
    });
    let client = client::connect_to(&socket).unwrap();
    let refused = client.attach_cuda("shard").unwrap_err();
    assert!(matches!(refused, ClientError::OldDaemon) && refused.to_string().contains("update"), "{refused}");
    drop(client);
    daemon.join().unwrap();
}
