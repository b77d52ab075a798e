//! An attestation may come from anywhere: it is read without a panic, has one text, and is not believed unless a key signed.
#![no_main]

use std::time::Duration;

use vram_residency::attest::envelope::Envelope;
use vram_residency::attest::statement::Statement;
use vram_residency::attest::{Policy, PublicKey, check};
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::{Digest, Expected};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(envelope.to_text().as_bytes(), bytes);
    }
    if let Ok(statement) = Statement::parse(bytes) {
        assert_eq!(statement.to_text(), bytes);
    }
    // The key of RFC 8410's example: nothing that a fuzzer finds is signed with it.
    let keys: Vec<PublicKey> = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=".parse().into_iter().collect();
    let policy = Policy {
        keys,
        digests: vec![Expected::Blake3(Digest::of(b"weights"))],
        complete: false,
        residency: Residency::HostPageable,
        protection: Protection::Advisory,
        max_age: Duration::MAX,
        max_skew: Duration::MAX,
        workers: Vec::new(),
        devices: Vec::new(),
        log_origins: Vec::new(),
    };
    assert!(check(bytes, &policy, None, 0).is_err(), "nobody here has that key");
});
