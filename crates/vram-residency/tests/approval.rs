//! Model signatures made by somebody else's program, and what is left of them after a byte was changed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, Engine as _};
use serde_json::{Value, json};
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
        ("{\"publicKey\"", "{\"more\":0,\"publicKey\""),
        ("\"payloadType\"", "\"payload\":\"\",\"payloadType\""),
        ("{\"sig\"", "{\"cert\":\"\",\"sig\""),
        // The same letter, written otherwise.
        ("\"payload\"", "\"p\\u0061yload\""),
        ("application/vnd.in-toto", "application\\/vnd.in-toto"),
        (key.id().to_string().as_str(), key.id().to_string().to_uppercase().as_str()),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(
            matches!(read(&text.replace(from, to)), Err(ManifestError::Bundle { .. } | ManifestError::Json { .. })),
            "{to}"
        );
    }
    assert!(read(&(text.clone() + "{}")).is_err(), "nothing may follow");
    assert_eq!(Manifest::parse(b"", None, None).unwrap_err(), ManifestError::Empty);
    assert!(SignerKey::from_pem("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n").is_err());
}

/// The parts of a bundle: its fields, by which every way to write it can be tried.
fn parts(bundle: &[u8]) -> (Value, Vec<u8>, Vec<u8>) {
    let whole: Value = serde_json::from_slice(bundle).unwrap();
    let decoded = |text: &Value| BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
    let envelope = &whole["dsseEnvelope"];
    let (payload, signature) = (decoded(&envelope["payload"]), decoded(&envelope["signatures"][0]["sig"]));
    (whole, payload, signature)
}

#[test]
fn no_object_of_a_bundle_may_be_a_list_of_its_values() {
    let (bundle, key) = (signed("p256-sha256.sig"), key("p256-sha256.pub"));
    let (whole, ..) = parts(&bundle);
    let values = |object: &Value, names: &[&str]| names.iter().map(|name| object[*name].clone()).collect::<Vec<_>>();
    for (at, names) in [
        ("", &["mediaType", "verificationMaterial", "dsseEnvelope"][..]),
        ("/verificationMaterial", &["publicKey", "tlogEntries"]),
        ("/verificationMaterial/publicKey", &["hint"]),
        ("/dsseEnvelope", &["payload", "payloadType", "signatures"]),
        ("/dsseEnvelope/signatures/0", &["sig", "keyid"]),
    ] {
        let mut changed = whole.clone();
        let object = changed.pointer_mut(at).unwrap();
        *object = values(object, names).into();
        // A list at the top is taken for no bundle at all.
        let read = Manifest::parse(changed.to_string().as_bytes(), Some(&key), None);
        assert!(matches!(read, Err(ManifestError::Json { .. } | ManifestError::Unsigned)), "{at}: {read:?}");
    }
}

#[test]
fn base64_has_one_form_and_a_signature_two_values() {
    for kind in KINDS {
        let (bundle, key) = (signed(&format!("{kind}.sig")), key(&format!("{kind}.pub")));
        let (whole, payload, signature) = parts(&bundle);
        let good = Manifest::parse(&bundle, Some(&key), None).unwrap();
        let with = |payload: String, signature: String| {
            let mut changed = whole.clone();
            changed["dsseEnvelope"]["payload"] = payload.into();
            changed["dsseEnvelope"]["signatures"][0]["sig"] = signature.into();
            Manifest::parse(changed.to_string().as_bytes(), Some(&key), None)
        };
        let plain = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        assert!(with(plain(&payload), plain(&signature)).is_ok());
        for other in [
            format!("{} ", plain(&payload)),
            plain(&payload).trim_end_matches('=').to_owned() + "===",
            plain(&payload) + "AAAA",
        ] {
            assert!(with(other.clone(), plain(&signature)).is_err(), "{kind}: {other}");
        }
        for other in [BASE64_STANDARD_NO_PAD.encode(&signature), BASE64_URL_SAFE.encode(&signature)] {
            assert!(other == plain(&signature) || with(plain(&payload), other.clone()).is_err(), "{kind}: {other}");
        }
        // Both (r, s) and (r, n-s) are signatures of the same text, and model-signing makes either.
        let twin = if kind == "p256-sha256" {
            let (r, s) = p256::ecdsa::Signature::from_der(&signature).unwrap().split_scalars();
            p256::ecdsa::Signature::from_scalars(r, -s).unwrap().to_der().as_bytes().to_vec()
        } else {
            let (r, s) = p384::ecdsa::Signature::from_der(&signature).unwrap().split_scalars();
            p384::ecdsa::Signature::from_scalars(r, -s).unwrap().to_der().as_bytes().to_vec()
        };
        assert_ne!(twin, signature);
        let read = with(plain(&payload), plain(&twin)).unwrap();
        let named = |manifest: &Manifest| {
            manifest.names().map(|name| (name.to_owned(), manifest.get(name))).collect::<Vec<_>>()
        };
        assert_eq!(
            (named(&read), read.signer()),
            (named(&good), good.signer()),
            "the same is approved by the same key"
        );
        assert_ne!(read.digest(), good.digest(), "and what is on record shows that it is another file");
        // The same number, written with a zero in front: no DER.
        let mut longer = signature.clone();
        longer[1] += 1;
        longer[3] += 1;
        longer.insert(4, 0);
        assert!(with(plain(&payload), plain(&longer)).is_err(), "{kind}");
    }
}

#[test]
fn what_may_be_written_otherwise_changes_what_is_on_record_and_nothing_else() {
    let (bundle, key) = (signed("p256-sha256.sig"), key("p256-sha256.pub"));
    let good = Manifest::parse(&bundle, Some(&key), None).unwrap();
    let (whole, ..) = parts(&bundle);
    let mut short = whole.clone();
    short["verificationMaterial"].as_object_mut().unwrap().remove("tlogEntries");
    short["dsseEnvelope"]["signatures"][0].as_object_mut().unwrap().remove("keyid");
    let other_order = json!({
        "dsseEnvelope": whole["dsseEnvelope"],
        "verificationMaterial": whole["verificationMaterial"],
        "mediaType": whole["mediaType"],
    });
    let text = String::from_utf8(bundle.clone()).unwrap();
    for other in [
        serde_json::to_string_pretty(&whole).unwrap(),
        format!(" {text}\r\n\t"),
        short.to_string(),
        serde_json::to_string(&other_order).unwrap(),
    ] {
        assert_ne!(other, text);
        let read =
            Manifest::parse(other.as_bytes(), Some(&key), None).unwrap_or_else(|error| panic!("{error}: {other}"));
        assert!(read.names().eq(good.names()) && read.names().all(|name| read.get(name) == good.get(name)));
        assert_eq!(read.signer(), good.signer());
        assert_ne!(read.digest(), good.digest());
    }
}
