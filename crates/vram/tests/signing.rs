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

use serde_json::Value;
use support::daemon::Daemon;
use support::{Home, Ran, events, safetensors};

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
    assert_eq!(text.trim(), "accepted 2 subjects, urn:vram-residency:attestation:v1");
    let envelope = std::fs::read_to_string(&word).unwrap();
    for (from, to) in [("payload\":\"eyJfd", "payload\":\"eyJfe"), ("\"sig\":\"", "\"sig\":\"AAAA")] {
        let other = home.file("changed.json", envelope.replacen(from, to, 1).as_bytes());
        let said = judged(&other);
        assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("REJECTED"), "{said:?}");
    }
    home.file("small.bin", b"other bytes");
    assert!(!judged(&word).status.success(), "a file that is another than the subject");
}
