//! The command line, as its users see it: what is printed, what is recorded, how it ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use sha2::{Digest, Sha256};
use support::{Home, Ran, events, gguf, nameless, safetensors, text, unhex};
use vram_residency::seal::{SealKey, parse_record};

fn blake3_of(bytes: &[u8]) -> String {
    format!("blake3:{}", blake3::hash(bytes).to_hex())
}

fn sha256_of(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// Whoever copies an example shows his own users what went wrong in words, and not as `Error: Refused { code: … }`.
#[test]
fn no_example_that_somebody_may_copy_shows_errors_as_only_a_programmer_reads_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut shown: Vec<_> = files("docs").chain(files("crates/vram-residency/examples")).collect();
    shown.extend(files("crates/audit-logging/examples").chain([root.join("README.md")]));
    shown.retain(|path| path.extension().is_some_and(|end| end == "md" || end == "rs"));
    assert!(shown.len() > 15, "{shown:?}");
    for path in shown {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("fn main() -> Result<"), "{}", path.display());
    }
}

#[test]
fn a_sealed_file_is_reported_in_full() {
    let home = Home::new();
    let bytes = safetensors(["embed.weight", "head.weight"], 3000);
    let path = home.file("model.safetensors", &bytes);
    let report = home.json([OsStr::new("seal"), path.as_os_str(), OsStr::new("--device"), OsStr::new("host")]);

    let [device] = report["devices"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((text(&device["kind"]), text(&device["name"])), ("host".to_owned(), "host".to_owned()));
    assert_eq!((text(&device["uuid"]).len(), device["model"].is_null()), (36, true));
    let [shard] = report["shards"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(shard["shard_id"], "model-safetensors");
    assert_eq!((&shard["device"], &shard["device_uuid"]), (&device["name"], &device["uuid"]));
    assert_eq!(shard["model_ref"], nameless(path.to_str().unwrap()));
    assert_eq!(shard["bytes"], bytes.len());
    assert_eq!(shard["digest"], blake3_of(&bytes));
    assert_eq!((&shard["tensors"], &shard["format"]), (&2.into(), &"safetensors".into()));
    assert_eq!((&shard["verified"], &shard["state"]), (&true.into(), &"VERIFIED".into()));
    assert!(["host-locked", "host-pageable"].contains(&text(&shard["residency"]).as_str()));
    assert!(["read-only", "advisory"].contains(&text(&shard["protection"]).as_str()));
    assert!(text(&shard["sealed_at"]).parse::<jiff::Timestamp>().is_ok());
    assert!(shard["seal_seconds"].as_f64().unwrap() > 0.0 && shard["verify_gb_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(report["audit"]["dir"], home.audit().to_str().unwrap());
    assert_eq!(report["audit"]["health"], "good");
    assert_eq!(home.events(), ["VramAllocated", "VramSealed", "SealVerified", "VramDeallocated"]);
    // Those, one for the opening and one for the end.
    assert_eq!(report["audit"]["records"], 6);
    // The seal is the one that the log has, and the key in the state directory made it.
    let sealed = &events(&home.audit())[1];
    assert_eq!(sealed["seal"], shard["seal"]);
    let secret = fs::read(home.state().join("seal.key")).unwrap();
    let record = unhex(&text(&shard["seal"]));
    let (statement, signature) = parse_record(&record).unwrap();
    assert_eq!((secret.len(), statement.worker_id), (32, text(&report["worker_id"]).as_str()));
    assert!(SealKey::derive(&secret, statement.worker_id).unwrap().verify(&statement, &signature));
    assert_eq!(fs::metadata(home.state().join("seal.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn people_get_text_and_no_colours_where_nobody_looks() {
    let home = Home::new();
    let bytes = safetensors(["a", "b"], 100);
    let path = home.file("model.safetensors", &bytes);
    let ran = home.run([OsStr::new("seal"), path.as_os_str()]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    for words in ["model-safetensors", &blake3_of(&bytes), "2 tensors", "GB/s", "verified", "device: host"] {
        assert!(ran.stdout.contains(words), "'{words}' is missing in {ran:?}");
    }
    assert!(!ran.stdout.contains('\x1b'), "{ran:?}");
}

#[test]
fn every_format_is_sealed_as_its_bytes() {
    let home = Home::new();
    let raw: Vec<u8> = (0..3_000_001_u32).map(|index| (index % 253) as u8).collect();
    let cases = [("a.gguf", gguf(), 1, "gguf", None), ("b.bin", raw, 0, "raw", Some("raw"))];
    for (name, bytes, tensors, format, asked) in cases {
        let path = home.file(name, &bytes);
        let mut arguments = vec!["seal", path.to_str().unwrap()];
        arguments.extend(asked.iter().flat_map(|format| ["--format", format]));
        let shard = &home.json(arguments)["shards"][0];
        assert_eq!((&shard["digest"], &shard["tensors"]), (&blake3_of(&bytes).into(), &tensors.into()), "{shard}");
        assert_eq!(shard["format"], format);
    }
    let bytes = safetensors(["a", "b"], 10);
    let path = home.file("c.safetensors", &bytes);
    let shard = &home.json(["seal", path.to_str().unwrap(), "--format", "raw"])["shards"][0];
    assert_eq!((&shard["digest"], &shard["tensors"]), (&blake3_of(&bytes).into(), &0.into()));
}

#[test]
fn a_directory_with_an_index_is_one_model_of_several_shards() {
    let home = Home::new();
    let parts = [safetensors(["a", "b"], 50), safetensors(["c", "d"], 60)];
    for (number, bytes) in (1..).zip(&parts) {
        home.file(format!("llama/model-{number:05}-of-00002.safetensors"), bytes);
    }
    let index = r#"{"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors",
        "c":"model-00002-of-00002.safetensors","d":"model-00002-of-00002.safetensors"}}"#;
    let index = home.file("llama/model.safetensors.index.json", index.as_bytes());
    for named in [home.path("llama"), index.clone()] {
        let named = named.to_str().unwrap();
        let report = home.json(["seal", named, "--worker-id", "worker-7"]);
        let shards = report["shards"].as_array().unwrap();
        assert_eq!((shards.len(), &report["worker_id"]), (2, &"worker-7".into()));
        for (number, (shard, bytes)) in shards.iter().zip(&parts).enumerate() {
            assert_eq!(shard["digest"], blake3_of(bytes));
            assert_eq!((&shard["shard_index"], &shard["shard_count"]), (&number.into(), &2.into()));
            assert_eq!(shard["model_ref"], nameless(named));
        }
        assert_eq!(shards[1]["shard_id"], "model-00002-of-00002-safetensors");
    }
    fs::write(&index, r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#).unwrap();
    let ran = home.run(["seal", "--json", index.to_str().unwrap()]);
    ran.failed(1, "model", &["model.safetensors.index.json", "\"b\""]);
}

#[test]
fn files_of_one_name_get_ids_of_their_own() {
    let home = Home::new();
    let bytes = safetensors(["a", "b"], 10);
    let paths = ["x", "y", "z"].map(|dir| home.file(format!("{dir}/model.safetensors"), &bytes));
    let mut arguments = vec![OsStr::new("seal")];
    arguments.extend(paths.iter().map(|path| path.as_os_str()));
    let report = home.json(arguments);
    let ids: Vec<_> = report["shards"].as_array().unwrap().iter().map(|shard| text(&shard["shard_id"])).collect();
    assert_eq!(ids, ["model-safetensors", "model-safetensors-2", "model-safetensors-3"]);
}

#[test]
fn a_name_that_is_no_text_is_no_obstacle() {
    let home = Home::new();
    let path = home.file(OsStr::from_bytes(b"w\xff\x1b[31mx.safetensors"), &safetensors(["a", "b"], 10));
    let report = home.json([OsStr::new("seal"), path.as_os_str()]);
    assert_eq!(report["shards"][0]["shard_id"], "w---31mx-safetensors");
    let ran = home.run([OsStr::new("seal"), path.as_os_str()]);
    assert!(ran.code == 0 && !ran.stdout.contains('\x1b'), "{ran:?}");
}

#[test]
fn no_name_reaches_the_terminal_raw() {
    let home = Home::new();
    let evil = "x\x1b]0;owned\x07\x1b[2K\ny";
    let model = home.file(format!("{evil}.safetensors"), &safetensors(["a", "b"], 10));
    let model = model.to_str().unwrap();
    let log = home.path(format!("log{evil}"));
    let log = log.to_str().unwrap();
    let missing = home.path(format!("{evil}.missing"));
    let missing = missing.to_str().unwrap();
    let unused = format!("--{evil}");
    let file = home.file("a-file", b"x").join(evil);
    let cases: [&[&str]; 12] = [
        &["seal", model, "--audit-dir", log, "--worker-id", "me\x1b[31m"],
        &["seal", model, "--audit-dir", log, "--model-ref", evil],
        &["seal", model, "--audit-dir", file.to_str().unwrap()],
        &["seal", model, "--key-file", missing],
        &["seal", missing],
        &["seal", model, &unused],
        &["seal", model, "--device", evil],
        &["audit", "verify", log],
        &["audit", "show", log],
        &["audit", "verify", missing],
        &["doctor", "--audit-dir", log, "--key-file", missing],
        &["demo", "--size", "1", "--dir", missing],
    ];
    for arguments in cases {
        let ran = home.run(arguments);
        let printed = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!printed.contains(|c: char| c.is_control() && c != '\n'), "{arguments:?}: {ran:?}");
        assert!(!printed.lines().any(|line| line.starts_with('y')), "a line of its own: {ran:?}");
    }
    let made = home.path(format!("made{evil}"));
    fs::create_dir(&made).unwrap();
    let ran = home.run(["demo", "--size", "1", "--dir", made.to_str().unwrap()]);
    assert!(ran.code == 0 && !ran.stdout.contains(['\x1b', '\x07']), "{ran:?}");
}

#[test]
fn what_the_publisher_states_is_checked() {
    let home = Home::new();
    let bytes = safetensors(["a", "b"], 5000);
    let path = home.file("model.safetensors", &bytes);
    let path = path.to_str().unwrap();
    for good in [sha256_of(&bytes), blake3_of(&bytes)] {
        let report = home.json(["seal", path, "--expect", &good, "--shard-id", "mine", "--model-ref", "acme/llama"]);
        let shard = &report["shards"][0];
        assert_eq!((&shard["expected"], &shard["shard_id"]), (&good.into(), &"mine".into()));
        assert_eq!(shard["model_ref"], "acme/llama");
    }
    let other = safetensors(["a", "b"], 5001);
    for bad in [sha256_of(&other), blake3_of(&other)] {
        let before = home.events().len();
        let ran = home.run(["seal", path, "--json", "--expect", &bad]);
        ran.failed(3, "unexpected-digest", &["model-safetensors", &bad, "nothing stays resident"]);
        assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
        let events = events(&home.audit()).split_off(before);
        let names: Vec<_> = events.iter().map(|event| text(&event["event"])).collect();
        assert_eq!(names, ["VramAllocated", "PolicyViolation", "VramDeallocated"]);
        assert_eq!((&events[1]["severity"], &events[1]["policy"]), (&"critical".into(), &"expected-digest".into()));
        assert_eq!(events[2]["used_bytes"], 0);
    }
}

#[test]
fn what_cannot_be_sealed_is_refused_in_one_sentence() {
    let home = Home::new();
    let good = safetensors(["a", "b"], 100);
    fs::create_dir_all(home.path("no-models")).unwrap();
    home.file("no-models/readme.txt", b"nothing");
    let cases = [
        (home.path("missing.safetensors"), "missing.safetensors"),
        (home.file("empty.safetensors", b""), "is empty"),
        (home.path("no-models"), "no-models"),
        (home.file("short.safetensors", &good[..20]), "short.safetensors"),
        (home.file("cut.safetensors", &good[..good.len() - 1]), "cut.safetensors"),
        (home.file("words.bin", b"neither format"), "--format raw"),
        (Path::new("/dev/null").to_owned(), "/dev/null"),
    ];
    for (path, words) in cases {
        let ran = home.run([OsStr::new("seal"), OsStr::new("--json"), path.as_os_str()]);
        ran.failed(1, "model", &[words]);
        assert_eq!(ran.stderr.lines().count(), 1, "one sentence: {ran:?}");
    }
    // Nothing was begun, so there is neither a log nor a key.
    assert!(!home.state().exists());
}

#[test]
fn what_may_not_be_read_is_refused() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    home.run(["seal", "--json", path.to_str().unwrap()]).failed(1, "model", &["model.safetensors", "ermission"]);
}

#[test]
fn too_little_memory_names_the_limit_and_is_recorded() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 4000));
    let path = path.to_str().unwrap();
    let ran = home.run(["seal", path, "--json", "--capacity", "1MiB"]);
    ran.failed(1, "memory", &["1048576", "raise the capacity"]);
    assert_eq!(home.events(), ["VramAllocationFailed"]);
    // Of a model that does not fit as a whole, nothing is begun.
    home.run(["seal", path, path, "--json", "--capacity", "5MiB"]).failed(1, "memory", &["2 files", "5242880"]);
    assert_eq!(home.json(["seal", path, "--capacity", "5MiB", "--threads", "3"])["shards"][0]["verified"], true);
}

#[test]
fn rules_are_kept() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let path = path.to_str().unwrap();
    home.run(["seal", path, "--json", "--require-vram"]).failed(1, "policy", &["model-safetensors", "GPU"]);
    assert_eq!(home.events(), ["PolicyViolation"], "refused before anything is loaded");
    let cuda = home.run(["seal", path, "--json", "--device", "cuda:63"]);
    cuda.failed(1, "device", &["cuda:63 cannot be used", "driver"]);
    let report = home.json(["seal", path]);
    let read_only = report["shards"][0]["protection"] == "read-only";
    let locked = report["shards"][0]["residency"] == "host-locked";
    for (rule, kept) in [("--require-read-only", read_only), ("--require-locked", locked)] {
        assert_eq!(home.run(["seal", path, rule]).code, if kept { 0 } else { 1 });
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    let home = Home::new();
    let one = home.file("one.safetensors", &safetensors(["a", "b"], 10));
    let two = home.file("two.safetensors", &safetensors(["a", "b"], 10));
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    let digest = format!("sha256:{}", "0".repeat(64));
    let cases: [&[&str]; 16] = [
        &[],
        &["seal"],
        &["frobnicate"],
        &["seal", one, "--jsn"],
        &["seal", one, "--device", "gpu"],
        &["seal", one, "--device", "cuda:x"],
        &["seal", one, "--format", "pickle"],
        &["seal", one, "--expect", "md5:00"],
        &["seal", one, "--expect", "sha256:12"],
        &["seal", one, "--shard-id", "../x"],
        &["seal", one, "--capacity", "lots"],
        &["seal", one, "--threads", "0"],
        &["seal", one, two, "--expect", &digest],
        &["seal", one, two, "--shard-id", "x"],
        &["demo", "--size", "0"],
        &["audit", "show", "--last", "0"],
    ];
    for arguments in cases {
        let ran = home.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("vram") && !ran.stderr.contains("error:"), "{ran:?}");
        let with_json: Vec<_> = std::iter::once(&"--json").chain(arguments).collect();
        let ran = home.run(with_json);
        assert_eq!((ran.code, ran.object()["error"]["kind"].as_str()), (2, Some("usage")), "{ran:?}");
    }
    assert!(!home.state().exists());
    let long = "x".repeat(4097);
    for name in ["--worker-id", "--model-ref"] {
        home.run(["seal", one, "--json", name, ""]).failed(2, "usage", &["0 bytes", "4096"]);
        home.run(["seal", one, "--json", name, &long]).failed(2, "usage", &["4097 bytes", "4096"]);
    }
    // The arguments that it is about are named, in JSON as in text.
    let named: [(&[&str], &[&str]); 5] = [
        (&["seal"], &["required arguments were not provided: <FILE>..."]),
        (&["bench", "--size", "1", "--file", one], &["'--size <MIB>'", "'--file <FILE>'"]),
        (&["seal", one, "--jsn"], &["'--jsn'", "'--json'"]),
        (&["audit", "show", "--severity", "x"], &["'x'", "'--severity <SEVERITY>'", "critical, routine"]),
        (&["audit"], &["a command is missing", "--help"]),
    ];
    for (arguments, words) in named {
        let ran = home.run(std::iter::once(&"--json").chain(arguments));
        ran.failed(2, "usage", words);
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
    for good in ["--help", "--version", "help"] {
        let ran = home.run([good]);
        assert!(ran.code == 0 && ran.stdout.contains("vram"), "{ran:?}");
    }
}

#[test]
fn without_a_home_the_flags_are_named() {
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let homeless = |arguments: &[&str]| {
        let mut command = home.command();
        command.env_remove("HOME").env_remove("XDG_STATE_HOME").args(["seal", "--json"]).arg(&model).args(arguments);
        Ran::from(command.output().unwrap())
    };
    homeless(&[]).failed(1, "state", &["XDG_STATE_HOME", "HOME", "--key-file"]);
    let key = home.file("own.key", &[9; 32]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let key = key.to_str().unwrap();
    homeless(&["--key-file", key]).failed(1, "state", &["--audit-dir"]);
    let log = home.path("log");
    assert_eq!(homeless(&["--key-file", key, "--audit-dir", log.to_str().unwrap()]).code, 0);
    assert_eq!(events(&log).len(), 4);
}

#[test]
fn readers_that_go_away_are_no_reason_to_panic() {
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let model = model.to_str().unwrap();
    for arguments in
        [["seal", model, "-vv"], ["seal", model, "--json"], ["audit", "show", "-v"], ["audit", "verify", "-v"]]
    {
        // Whoever reads is gone before the first word, on stdout and on stderr.
        let mut running = home.command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(running.stdout.take());
        let ran = Ran::from(running.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        let mut running = home.command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((running.stdout.take(), running.stderr.take()));
        assert_eq!(running.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
    // A disk that is full is not a reader that had enough.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = home.command().args(["audit", "verify"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ran = Ran::from(output.wait_with_output().unwrap());
    assert!(ran.code == 1 && ran.stderr.contains("standard output"), "{ran:?}");
}
