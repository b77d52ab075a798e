//! Others' programs, as they are today: PyPI's `model-signing` signs models that are to be approved, and
//! `securesystemslib` and `in-toto-attestation` judge attestations.
//!
//! `VRAM_TEST_SIGNING_PYTHON` names a Python that has them; `cargo xtask signing` makes one. Without it the tests say that
//! they did nothing, unless `VRAM_REQUIRE_SIGNING=1` makes that a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::daemon::Daemon;
use support::{Home, Ran, events, safetensors};
use vram_residency::approval::{Manifest, SignerKey};

fn python(script: &str) -> Option<Command> {
    let Ok(python) = std::env::var("VRAM_TEST_SIGNING_PYTHON") else {
        assert!(
            std::env::var("VRAM_REQUIRE_SIGNING").is_err(),
            "VRAM_TEST_SIGNING_PYTHON is not set, and it is required"
        );
        // Not captured by the test harness, unlike `eprintln!`.
        let word = "\n>>> SKIPPED: VRAM_TEST_SIGNING_PYTHON is not set, so others' programs were not tried <<<\n";
        let _ = std::io::stderr().write_all(word.as_bytes());
        return None;
    };
    let mut command = Command::new(python);
    command.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../xtask/foreign").join(script));
    Some(command)
}

/// A changed copy of bytes: at a place that the number chooses.
fn changed(bytes: &[u8], number: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let at = (number.wrapping_mul(0x9e37_79b9) >> 3) % bytes.len();
    changed[at] ^= 1 << (number % 7);
    changed
}

fn seal(home: &Home, signature: &Path, key: &Path, model: &Path) -> Ran {
    let mut command = home.command();
    command.args(["--json", "seal", "--manifest"]).arg(signature).arg("--manifest-key").arg(key).arg(model);
    Ran::from(command.output().unwrap())
}

#[test]
fn what_model_signing_signs_is_approved_and_nothing_else() {
    for (curve, hash) in [("P-256", "sha256"), ("P-256", "blake3"), ("P-384", "sha256"), ("P-384", "blake3")] {
        let Some(mut sign) = python("sign_model.py") else { return };
        let home = Home::new();
        let weights = safetensors(["a", "b"], 700);
        let file = home.file("m/w.safetensors", &weights);
        home.file("m/tokenizer/vocab.txt", b"a\nb\n");
        let (model, signature, key) = (home.path("m"), home.path("m/model.sig"), home.path("key.pub"));
        let status = sign.args([curve, hash]).arg(&model).arg(&signature).arg(&key).status().unwrap();
        assert!(status.success());
        let good = seal(&home, &signature, &key, &model);
        assert_eq!(good.code, 0, "{curve} {hash}: {good:?}");
        let approval = &good.object()["shards"][0]["approval"];
        assert_eq!(approval["form"], "model-signing");
        assert_eq!(approval["sha256_bytes"].as_u64().unwrap() > 0, hash == "sha256");

        let bundle = std::fs::read(&signature).unwrap();
        for number in 0..25 {
            home.file("m/model.sig", &changed(&bundle, number));
            let ran = seal(&home, &signature, &key, &model);
            assert_eq!(ran.code, 3, "{curve} {hash}, bundle {number}: {ran:?}");
        }
        std::fs::write(&signature, &bundle).unwrap();
        for number in 0..25 {
            std::fs::write(&file, changed(&weights, number)).unwrap();
            let ran = seal(&home, &signature, &key, &model);
            assert_eq!(ran.code, 3, "{curve} {hash}, model {number}: {ran:?}");
        }
        let events = events(&home.audit());
        let is_refusal = |event: &&Value| event["event"] == "ApprovalRefused" || event["policy"] == "approved-digest";
        let refusals = events.iter().filter(is_refusal);
        assert_eq!(refusals.clone().count(), 50, "each is on record");
        assert!(refusals.clone().all(|refusal| refusal["severity"] == "critical"));
    }
}

/// How many changes of one byte were tried, and how many of them changed only white space between the parts.
#[derive(Debug, Default)]
struct Changes {
    tried: usize,
    refused: usize,
    white_space: usize,
}

/// Every byte of a bundle replaced, left out, and another put in front of it. What is read nevertheless must differ in white
/// space alone, hold the same payload, signature and key, and have another digest on record.
fn every_change(bundle: &[u8], key: &SignerKey, values: &[u8], bits: u32) -> Changes {
    const WHITE: &[u8] = b" \t\n\r";
    let good = Manifest::parse(bundle, Some(key), None).unwrap();
    let meaning: Value = serde_json::from_slice(bundle).unwrap();
    let mut changes = Changes::default();
    let mut attempt = |changed: &[u8], bytes: &[u8], what: &dyn Fn() -> String| {
        changes.tried += 1;
        let Ok(read) = Manifest::parse(changed, Some(key), None) else {
            changes.refused += 1;
            return;
        };
        changes.white_space += 1;
        assert!(bytes.iter().all(|byte| WHITE.contains(byte)), "{} is accepted", what());
        assert_eq!(serde_json::from_slice::<Value>(changed).unwrap(), meaning, "payload, signature, key: {}", what());
        assert!(read.names().eq(good.names()) && read.signer() == good.signer(), "{}", what());
        assert!(read.names().all(|name| read.get(name) == good.get(name)), "{}", what());
        assert_ne!(read.digest(), good.digest(), "{}", what());
    };
    for at in 0..=bundle.len() {
        let (before, rest) = bundle.split_at(at);
        for other in values {
            let what = || format!("{other:#04x} before byte {at}");
            attempt(&[before, &[*other], rest].concat(), &[*other], &what);
        }
        let Some((old, behind)) = rest.split_first() else { continue };
        let mut others: Vec<u8> = (0..bits).map(|bit| old ^ (1 << bit)).chain(values.iter().copied()).collect();
        others.sort_unstable();
        others.dedup();
        for other in others.iter().filter(|other| *other != old) {
            let what = || format!("{other:#04x} for byte {at}, {old:#04x},");
            attempt(&[before, &[*other], behind].concat(), &[*old, *other], &what);
        }
        attempt(&[before, behind].concat(), &[*old], &|| format!("leaving out byte {at}, {old:#04x},"));
    }
    changes
}

#[test]
fn every_change_of_one_byte_of_a_bundle_is_refused_or_white_space() {
    for (curve, hash) in [("P-256", "sha256"), ("P-256", "blake3"), ("P-384", "sha256")] {
        let Some(mut sign) = python("sign_model.py") else { return };
        let home = Home::new();
        home.file("m/w.safetensors", &safetensors(["a", "b"], 7));
        let (model, signature, key) = (home.path("m"), home.path("model.sig"), home.path("key.pub"));
        assert!(sign.args([curve, hash]).arg(&model).arg(&signature).arg(&key).status().unwrap().success());
        let key = SignerKey::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
        let written = std::fs::read(&signature).unwrap();
        let spaced = serde_json::to_vec_pretty(&serde_json::from_slice::<Value>(&written).unwrap()).unwrap();
        // What JSON, base64 and hex could take for the same, and more. P-384 is slow.
        let (values, bits): (&[u8], _) =
            if curve == "P-256" { (b" \t\n\r=/+-_A0f\"\\,:{[\0\x80", 8) } else { (b" \n=A", 1) };
        for (form, bundle) in [("as written", written), ("with white space", spaced)] {
            let changes = every_change(&bundle, &key, values, bits);
            assert_eq!(changes.tried, changes.refused + changes.white_space);
            let told = format!("\n{curve} {hash}, {form}, {} bytes: {changes:?}\n", bundle.len());
            let _ = std::io::stderr().write_all(told.as_bytes());
        }
    }
}

#[test]
fn an_index_is_signed_with_its_shards_or_decides_nothing() {
    const INDEX: &str = "model.safetensors.index.json";
    let Some(mut sign) = python("sign_model.py") else { return };
    let home = Home::new();
    home.file("m/one.safetensors", &safetensors(["a", "b"], 50));
    home.file("m/two.safetensors", &safetensors(["c", "d"], 60));
    let map = json!({ "a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors" });
    let index = home.file(format!("m/{INDEX}"), json!({ "weight_map": map }).to_string().as_bytes());
    let (model, signature, key) = (home.path("m"), home.path("model.sig"), home.path("key.pub"));
    assert!(sign.args(["P-256", "sha256"]).arg(&model).arg(&signature).arg(&key).status().unwrap().success());
    for named in [&model, &index] {
        let ran = seal(&home, &signature, &key, named);
        assert_eq!((ran.code, ran.object()["shards"].as_array().unwrap().len()), (0, 2), "{ran:?}");
    }
    let fewer = json!({ "weight_map": { "a": "one.safetensors", "b": "one.safetensors" } });
    home.file(format!("m/{INDEX}"), fewer.to_string().as_bytes());
    for named in [&model, &index] {
        seal(&home, &signature, &key, named).failed(3, "approval", &[INDEX, "is approved"]);
    }
}

#[test]
fn what_is_attested_is_accepted_by_in_totos_own_tools() {
    if python("attestation.py").is_none() {
        return;
    }
    let home = Home::new();
    home.json(["attest", "--keygen"]);
    let daemon = Daemon::start(&home, &[]);
    let word = home.path("word.json");
    daemon.told(&["attest", "--nonce", "00112233445566778899aabbccddeeff", "-o", word.to_str().unwrap()]);
    let judged = |word: &Path| -> Output {
        let mut judge = python("attestation.py").unwrap();
        judge.arg(word).arg(home.state().join("attest.pub")).arg(home.path("big.bin")).arg(home.path("small.bin"));
        judge.output().unwrap()
    };
    let said = judged(&word);
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(text.trim(), "accepted 2 subjects (devices: 1), urn:vram-residency:attestation:v2");
    let envelope = std::fs::read_to_string(&word).unwrap();
    for (from, to) in [("payload\":\"eyJfd", "payload\":\"eyJfe"), ("\"sig\":\"", "\"sig\":\"AAAA")] {
        let other = home.file("changed.json", envelope.replacen(from, to, 1).as_bytes());
        let said = judged(&other);
        assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("REJECTED"), "{said:?}");
    }
    home.file("small.bin", b"other bytes");
    assert!(!judged(&word).status.success(), "a file that is another than the subject");
}
