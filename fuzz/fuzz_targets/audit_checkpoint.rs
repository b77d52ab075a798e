//! A checkpoint may come from anywhere: whatever the bytes are, they are a note written in the one way it is written,
//! or refused; and nothing but a signature by the key makes them a checkpoint to be trusted.
#![no_main]

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::{SignedNote, SigningKey, VerifierKey};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = VerifierKey::parse("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k");
    let keys: Vec<VerifierKey> = key.into_iter().collect();
    if let Ok(note) = SignedNote::parse(bytes) {
        assert_eq!(note.to_bytes(), bytes, "one way to write a note");
        let _verified = note.verify(&keys);
        let _cosigned = note.cosignatures(&keys);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(checkpoint) = Checkpoint::parse(text) {
            assert_eq!(checkpoint.to_string(), text, "one way to write a checkpoint");
        }
        let _key = VerifierKey::parse(text);
        let _signer = SigningKey::parse(text);
    }
    assert!(Checkpoint::verify(bytes, &keys).is_err(), "nobody here has that key");
});
