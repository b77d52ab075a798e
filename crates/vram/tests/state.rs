//! The state directory: the log that others may hold, and the key that nobody else may read or make.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use audit_logging::{AuditLog, Options};
use serde_json::Value;
use support::{Home, Ran, safetensors, text, unhex};
use vram_residency::seal::{SealKey, parse_record};

const MAKE_KEY: &str = "head -c 32 /dev/urandom > FILE; chmod 600 FILE";

#[test]
fn sealing_goes_on_without_a_log_and_says_so() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let path = path.to_str().unwrap();
    let file = home.file("a-file", b"x");
    let nowhere = file.join("audit");
    let nowhere = nowhere.to_str().unwrap();
    let ran = home.run(["seal", path, "--json", "--audit-dir", nowhere]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.object();
    assert_eq!((&report["audit"]["health"], &report["audit"]["records"]), (&"failing".into(), &0.into()));
    assert!(text(&report["audit"]["reason"]).contains(nowhere));
    let shard = &report["shards"][0];
    assert_eq!((&shard["verified"], &shard["state"]), (&true.into(), &"UNVERIFIED".into()));
    let [warning] = ran.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ran:?}") };
    for word in [nowhere, "--audit-dir", "--audit-required"] {
        assert!(warning.contains(word), "'{word}' is missing in: {warning}");
    }
    let ran = home.run(["seal", path, "--json", "--audit-dir", nowhere, "--audit-required"]);
    ran.failed(1, "audit", &[nowhere]);
}

#[test]
fn a_log_in_use_does_not_make_a_second_seal_useless() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let path = path.to_str().unwrap();
    let held = AuditLog::open(&home.audit(), Options::default()).unwrap();
    let ran = home.run(["seal", path, "--json"]);
    assert_eq!((ran.code, &ran.object()["audit"]["health"]), (0, &"failing".into()), "{ran:?}");
    assert!(ran.stderr.contains("--audit-dir") && ran.stderr.contains(&std::process::id().to_string()), "{ran:?}");
    home.run(["seal", path, "--json", "--audit-required"]).failed(1, "audit", &["one writer"]);
    let elsewhere = home.path("elsewhere");
    let report = home.json(["seal", path, "--audit-dir", elsewhere.to_str().unwrap()]);
    assert_eq!(report["audit"]["health"], "good");
    // The demo has a log of its own.
    assert_eq!(home.json(["demo", "--size", "1"])["detected"], true);
    drop(held);
}

#[test]
fn short_runs_wait_for_their_turn_at_the_log() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let held = AuditLog::open(&home.audit(), Options::default()).unwrap();
    for options in [&["--json"][..], &["--json", "--audit-required"]] {
        let mut command = home.command();
        command.args(["seal", path.to_str().unwrap()]).args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        assert!(running.try_wait().unwrap().is_none(), "it does not go on without the log at once");
        running.kill().unwrap();
        running.wait().unwrap();
    }
    let start = || {
        let mut command = home.command();
        command.args(["seal", "--json", path.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(|_| start()).collect();
    std::thread::sleep(Duration::from_millis(300));
    drop(held);
    for running in running {
        let ran = Ran::from(running.wait_with_output().unwrap());
        assert_eq!((ran.code, &ran.object()["audit"]["health"]), (0, &"good".into()), "{ran:?}");
    }
    assert_eq!(home.events().len(), 3 * 4);
}

#[test]
fn first_starts_at_the_same_moment_agree_on_the_key() {
    let home = Home::new();
    let path = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let start = || {
        let mut command = home.command();
        command.args(["seal", "--json", path.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let running: Vec<_> = (0..8).map(|_| start()).collect();
    let reports: Vec<Value> = running
        .into_iter()
        .map(|running| {
            let ran = Ran::from(running.wait_with_output().unwrap());
            assert_eq!(ran.code, 0, "{ran:?}");
            ran.object()
        })
        .collect();
    let secret = fs::read(home.state().join("seal.key")).unwrap();
    for report in &reports {
        let record = unhex(&text(&report["shards"][0]["seal"]));
        let (statement, signature) = parse_record(&record).unwrap();
        assert!(SealKey::derive(&secret, statement.worker_id).unwrap().verify(&statement, &signature));
    }
    assert!(reports.iter().any(|report| report["audit"]["health"] == "good"));
    let mut left: Vec<_> = fs::read_dir(home.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["audit", "seal.key"]);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let seal = |key: &Path| home.run(["seal", model.to_str().unwrap(), "--json", "--key-file", key.to_str().unwrap()]);
    let key = |name: &str, length: usize, mode| {
        let path = home.file(name, &vec![5; length]);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    for mode in [0o644, 0o640, 0o604, 0o620] {
        let path = key("open.key", 32, mode);
        seal(&path).failed(1, "key", &["open.key", &format!("{mode:04o}"), "chmod 600"]);
    }
    for length in [0, 31, 1025, 100_000] {
        let ran = seal(&key("odd.key", length, 0o600));
        ran.failed(1, "key", &["odd.key", &format!("{length} bytes"), "32 to 1024", MAKE_KEY]);
    }
    for length in [32, 33, 1024] {
        assert_eq!(seal(&key("good.key", length, 0o400)).code, 0);
        fs::remove_file(home.path("good.key")).unwrap();
    }
    seal(&home.path("missing.key")).failed(1, "key", &["missing.key", MAKE_KEY]);
    seal(&home.path("")).failed(1, "key", &["not a regular file"]);
    assert!(!home.state().join("seal.key").exists(), "a key that was named is never replaced by another");
}

#[test]
fn a_key_that_is_a_pipe_is_refused_at_once() {
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    fs::create_dir_all(home.state()).unwrap();
    let pipe = home.state().join("seal.key");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap().success());
    for arguments in [&["seal", "--json", model.to_str().unwrap()][..], &["doctor", "--json"]] {
        let mut running = home.command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while running.try_wait().unwrap().is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                running.kill().unwrap();
                panic!("{arguments:?} waits for somebody to write");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let ran = Ran::from(running.wait_with_output().unwrap());
        assert!(ran.code == 1 && ran.stdout.contains("not a regular file"), "{ran:?}");
    }
    // A link to a key is a way to keep it elsewhere.
    let key = home.file("elsewhere.key", &[3; 32]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&pipe).unwrap();
    std::os::unix::fs::symlink(&key, &pipe).unwrap();
    home.json(["seal", model.to_str().unwrap()]);
}

#[test]
fn a_key_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let key = home.file("key", &[3; 32]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&key, Some(4321), None).unwrap();
    let ran = home.run(["seal", model.to_str().unwrap(), "--json", "--key-file", key.to_str().unwrap()]);
    ran.failed(1, "key", &["belongs to another user", "4321"]);
}

#[test]
fn directories_that_others_can_write_are_told() {
    let home = Home::new();
    let model = home.file("model.safetensors", &safetensors(["a", "b"], 10));
    let model = model.to_str().unwrap();
    home.json(["seal", model]);
    let chmod = |dir: &Path, mode| fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
    for dir in [home.state(), home.audit()] {
        for (mode, told) in [(0o777, true), (0o770, true), (0o755, false), (0o700, false)] {
            chmod(&dir, mode);
            let ran = home.run(["seal", model, "--json"]);
            let warning = format!("vram: warning: {} can be written by others (mode {mode:04o}); run: ", dir.display());
            assert_eq!((ran.code, ran.stderr.contains(&warning)), (0, told), "{ran:?}");
            assert_eq!(ran.stderr.is_empty(), !told, "{ran:?}");
            let doctor = home.run(["doctor"]);
            assert_eq!(doctor.stdout.contains("chmod go-w"), told, "{doctor:?}");
        }
    }
}
