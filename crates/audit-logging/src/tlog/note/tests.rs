use super::*;
use proptest::prelude::*;

/// The example of C2SP signed-note.
const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

#[test]
fn the_example_of_the_specification_verifies_and_no_changed_byte_does() {
    let key = VerifierKey::parse(VKEY).unwrap();
    assert_eq!((key.name(), key.id(), key.to_string().as_str()), ("example.com/foo", 0x530d_903a, VKEY));
    let note = SignedNote::parse(NOTE.as_bytes()).unwrap();
    assert_eq!(note.to_bytes(), NOTE.as_bytes());
    assert_eq!(
        note.verify(std::slice::from_ref(&key)).unwrap(),
        [Verified { name: key.name().into(), id: key.id(), time: None }]
    );
    for at in 0..NOTE.len() {
        for bit in 0..8 {
            let mut changed = NOTE.as_bytes().to_vec();
            changed[at] ^= 1 << bit;
            let verified = SignedNote::parse(&changed).and_then(|note| note.verify(std::slice::from_ref(&key)));
            assert!(verified.is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn keys_that_prove_nothing_are_refused() {
    // The neutral element, and a point of order 8.
    let order_8 = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    for public in [neutral, order_8] {
        let id = key_id("w", Algorithm::Ed25519, &public);
        let text = format!("w+{id:08x}+{}", BASE64_STANDARD.encode([&[1u8][..], &public].concat()));
        assert_eq!(VerifierKey::parse(&text), Err(KeyError::Weak { name: "w".into() }));
    }
    let long = "n".repeat(256);
    for name in ["", "a b", "a+b", "a\nb", "a\u{7f}", long.as_str()] {
        assert!(matches!(SigningKey::generate(name), Err(KeyError::Name { .. })), "{name:?}");
    }
    for text in [
        "",
        "+",
        "++",
        "x",
        "example.com/foo+530d903a",
        "example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ] {
        assert!(VerifierKey::parse(text).is_err(), "{text}");
    }
    let pq = format!("w+00000000+{}", BASE64_STANDARD.encode([6u8; 33]));
    assert!(matches!(VerifierKey::parse(&pq), Err(KeyError::Algorithm { algorithm: 6, .. })));
    let other = VKEY.replace("530d903a", "530d903b");
    assert!(matches!(VerifierKey::parse(&other), Err(KeyError::Id { .. })));
}

#[test]
fn a_key_comes_back_from_its_text_and_its_debug_text_is_silent() {
    let key = SigningKey::generate("node-7/vram-audit/0a1b2c3d").unwrap();
    let text = key.to_text();
    let again = SigningKey::parse(&format!("{}\n", *text)).unwrap();
    assert_eq!(again.verifier(), key.verifier());
    // Base64 has a + of its own now and then.
    let secret = text.splitn(5, '+').last().unwrap();
    assert!(secret.len() > 40, "all of it");
    assert!(!format!("{key:?}").contains(secret));
    let (SigningKey { verifier, .. }, text) = (again, "x\n");
    assert_eq!(SignedNote::sign(text, &[&key]).verify(&[verifier]).unwrap().len(), 1);
}

#[test]
fn a_known_signature_that_fails_rejects_the_note_and_unknown_ones_are_passed_over() {
    let [log, other, stranger] = ["log", "other", "stranger"].map(|name| SigningKey::generate(name).unwrap());
    let text = "log\n7\nx\n";
    let note = SignedNote::sign(text, &[&log, &stranger]);
    assert_eq!(note.verify(&[log.verifier().clone(), other.verifier().clone()]).unwrap().len(), 1);
    assert!(matches!(note.verify(&[other.verifier().clone()]), Err(NoteError::Unknown { .. })));
    let mut forged = other.sign(text, 0);
    forged.signature[3] ^= 1;
    let note = note.with_signature_lines([forged]);
    let both = [log.verifier().clone(), other.verifier().clone()];
    assert_eq!(note.verify(&both), Err(NoteError::Signature { name: "other".into() }));
    let mended = note.with_signature_lines([other.sign(text, 0)]);
    assert_eq!((mended.verify(&both).unwrap().len(), mended.lines().len()), (2, 3));
}

#[test]
fn a_cosignature_binds_text_and_time() {
    let log = SigningKey::generate("log").unwrap();
    let witness = SigningKey::generate_cosigner("witness.example/w1").unwrap();
    let key = VerifierKey::parse(&witness.verifier().to_string()).unwrap();
    let note = SignedNote::sign("log\n1\nroot\n", &[&log]);
    assert!(note.cosignatures(std::slice::from_ref(&key)).unwrap().is_empty());
    let mut line = witness.sign(note.text(), 1_679_315_147);
    let cosigned = note.with_signature_lines([line.clone()]);
    assert_eq!(cosigned.cosignatures(std::slice::from_ref(&key)).unwrap()[0].time, Some(1_679_315_147));
    line.signature[7] ^= 1;
    let other_time = note.with_signature_lines([line]);
    assert!(matches!(other_time.cosignatures(std::slice::from_ref(&key)), Err(NoteError::Signature { .. })));
    assert_ne!(key_id("x", Algorithm::Ed25519, &[7; 32]), key_id("x", Algorithm::Cosignature, &[7; 32]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_note_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        text in "([ -~\u{e9}]{0,20}\n){0,4}(\n)?(\u{2014} [a-z ]{0,6} [A-Za-z0-9+/=]{0,40}\n){0,3}",
        cut in any::<prop::sample::Index>(),
        key in "[a-zP+]{0,20}[+][0-9a-f]{0,9}[+][A-Za-z0-9+/=]{0,50}",
    ) {
        let mut spliced = NOTE.as_bytes()[..cut.index(NOTE.len())].to_vec();
        spliced.extend_from_slice(&bytes);
        for bytes in [&bytes, text.as_bytes(), &spliced] {
            if let Ok(note) = SignedNote::parse(bytes) {
                prop_assert_eq!(note.to_bytes(), bytes);
                prop_assert!(note.verify(&[VerifierKey::parse(VKEY).unwrap()]).is_err());
            }
        }
        prop_assert!(VerifierKey::parse(&key).is_err());
        prop_assert!(SigningKey::parse(&key).is_err());
    }
}
