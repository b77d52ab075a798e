//! A manifest comes with a model: whatever it holds, it is read without a panic, names only paths below a directory, and
//! is no signed one unless the key signed it.
#![no_main]

use vram_residency::approval::{Algorithm, Form, Manifest, SignerKey};

const KEY: &str = include_str!("../../crates/vram/tests/approved/p256-sha256.pub");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes, None, Some(Algorithm::Sha256)) {
        assert_eq!(manifest.form(), Form::List);
        for name in manifest.names() {
            assert!(!name.starts_with('/') && !name.split('/').any(|part| matches!(part, "" | "." | "..")));
            assert!(manifest.get(name).is_some());
        }
    }
    if let Ok(key) = SignerKey::from_pem(KEY)
        && let Ok(manifest) = Manifest::parse(bytes, Some(&key), None)
    {
        // White space between the tokens is all that can be other than in the one bundle that was signed.
        assert_eq!(manifest.signer(), Some(key.id()));
        assert_eq!(manifest.names().count(), 2);
    }
});
