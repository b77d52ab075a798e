//! A proof may come from anywhere: it is read without a panic, and proves nothing unless a key signed it.
#![no_main]

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::VerifierKey;
use audit_logging::tlog::proof::Proof;
use audit_logging::tlog::tree;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = VerifierKey::parse("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k");
    let keys: Vec<VerifierKey> = key.into_iter().collect();
    if let Ok(proof) = Proof::parse(bytes) {
        assert!(proof.check(b"entry", &keys, &keys, 0).is_err(), "nobody here has that key");
        if let Ok(checkpoint) = Checkpoint::parse(proof.checkpoint.text()) {
            let leaf = tree::leaf_hash(b"entry");
            let _held = tree::check_inclusion(&proof.hashes, checkpoint.size, checkpoint.root, proof.index, leaf);
            let _held = tree::check_consistency(&proof.hashes, proof.index, leaf, checkpoint.size, checkpoint.root);
        }
    }
});
