//! Model signatures made by somebody else's program, and what is left of them after a byte was changed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use vram_residency::approval::{Form, Manifest, ManifestError, SignerKey, hash_like};
use vram_residency::digest::Expected;

/// Made by PyPI's model-signing 1.1.1 with `xtask/foreign/sign_model.py`.
fn signed(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../vram/tests/approved/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn key(name: &str) -> SignerKey {
    SignerKey::from_pem(std::str::from_utf8(&signed(name)).unwrap()).unwrap()
}

const KINDS: [&str; 2] = ["p256-sha256", "p384-blake3"];

#[test]
fn a_bundle_names_each_file_and_its_signer() {
    for kind in KINDS {
        let key = key(&format!("{kind}.pub"));
        let manifest = Manifest::parse(&signed(&format!("{kind}.sig")), Some(&key), None).unwrap();
        assert_eq!(manifest.names().collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
        assert_eq!((manifest.form(), manifest.signer()), (Form::ModelSigning, Some(key.id())));
        assert!(manifest.ignores(".git") && manifest.ignores(".git/config") && !manifest.ignores(".gitx"));
        for name in ["config.json", "model.safetensors"] {
            let expected = manifest.get(name).unwrap();
            let bytes = signed(&format!("model/{name}"));
            assert_eq!(hash_like(expected, &mut bytes.as_slice()).unwrap(), expected, "{kind} {name}");
            assert_eq!(matches!(expected, Expected::Sha256(_)), kind == "p256-sha256");
        }
    }
}

#[test]
fn no_byte_of_a_bundle_or_a_key_can_be_changed() {
    for kind in KINDS {
        let (bundle, pem) = (signed(&format!("{kind}.sig")), signed(&format!("{kind}.pub")));
        let key = key(&format!("{kind}.pub"));
        for at in 0..bundle.len() {
            // Every bit, and what JSON, base64 and hex could take for the same. P-384 is slow: one change a byte.
            let bits = if kind == "p256-sha256" { 8 } else { 1 };
            let same: &[u8] = if bits == 8 { b" \n\t=/+A0\"" } else { b"" };
            let others = (0..bits).map(|bit| bundle[at] ^ (1 << bit)).chain(same.iter().copied());
            for other in others.filter(|other| *other != bundle[at]) {
                let mut changed = bundle.clone();
                changed[at] = other;
                let read = Manifest::parse(&changed, Some(&key), None);
                assert!(read.is_err(), "{kind}: byte {at} as {other:02x}: {}", String::from_utf8_lossy(&changed));
            }
        }
        for at in 0..pem.len() - 1 {
            let mut changed = pem.clone();
            changed[at] ^= 1;
            let other = std::str::from_utf8(&changed).ok().and_then(|text| SignerKey::from_pem(text).ok());
            let read = other.map(|other| Manifest::parse(&bundle, Some(&other), None));
            assert!(read.is_none_or(|read| read.is_err()), "{kind}: byte {at} of the key");
        }
    }
}

#[test]
fn a_bundle_is_refused_without_its_key_and_beyond_what_is_understood() {
    let (bundle, key) = (signed("p256-sha256.sig"), key("p256-sha256.pub"));
    let text = String::from_utf8(bundle.clone()).unwrap();
    let read = |text: &str| Manifest::parse(text.as_bytes(), Some(&key), None);
    assert_eq!(Manifest::parse(&bundle, None, None).unwrap_err(), ManifestError::NoKey);
    let other = self::key("p384-blake3.pub");
    assert!(matches!(Manifest::parse(&bundle, Some(&other), None), Err(ManifestError::OtherKey { .. })));
    // The other key's name on it does not help.
    let renamed = text.replace(&key.id().to_string(), &other.id().to_string());
    assert!(matches!(Manifest::parse(renamed.as_bytes(), Some(&other), None), Err(ManifestError::Signature { .. })));
    for (from, to) in [
        ("\"tlogEntries\":[]", "\"tlogEntries\":[{}]"),
        ("\"tlogEntries\":[]", "\"certificate\":{}"),
        ("v0.3+json", "v0.2+json"),
        ("{\"mediaType\"", "{\"mediaType\":\"\",\"mediaType\""),
        ("\"keyid\":\"\"", "\"keyid\":\"x\""),
        ("\"publicKey\":{\"hint\"", "\"publicKey\":{\"rawBytes\":\"\",\"hint\""),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(matches!(read(&text.replace(from, to)), Err(ManifestError::Bundle { .. })), "{to}");
    }
    assert!(read(&(text.clone() + "{}")).is_err(), "nothing may follow");
    assert_eq!(Manifest::parse(b"", None, None).unwrap_err(), ManifestError::Empty);
    assert!(SignerKey::from_pem("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n").is_err());
}
