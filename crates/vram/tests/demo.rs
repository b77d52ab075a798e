//! `vram demo` and `vram bench`: the main job, from a user who types one command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Home, Ran, text};

#[test]
fn the_demo_ends_with_one_object_in_which_everything_holds() {
    let home = Home::new();
    let mut targets = Vec::new();
    for seed in ["0", "1", "2", "77", "18446744073709551615"] {
        let ran = home.run(["demo", "--size", "32", "--json", "--seed", seed]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        let report = ran.object();
        for holds in ["detected", "repaired", "audit_verified"] {
            assert_eq!(report[holds], true, "{report}");
        }
        let number = |name: &str| report[name].as_u64().unwrap();
        assert_eq!(number("block"), number("byte") >> 20);
        assert!(number("bit") < 8 && number("byte") < number("bytes"));
        assert!(number("bytes").abs_diff(32 << 20) < 4 << 20, "{report}");
        assert!(text(&report["tensor"]).ends_with(".weight"));
        assert_eq!(report["seed"].to_string(), seed);
        assert!(report["gb_per_s"]["verify"].as_f64().unwrap() > 0.0);
        targets.push((number("byte"), number("bit"), text(&report["digest"])));
    }
    assert!(targets.windows(2).all(|pair| pair[0].0 != pair[1].0), "seeds choose different bytes: {targets:?}");
    assert!(targets.windows(2).all(|pair| pair[0].2 == pair[1].2), "the model is always the same");
    let again = home.json(["demo", "--size", "32", "--seed", "77"]);
    assert_eq!(again["byte"].as_u64(), Some(targets[3].0));
    assert!(!home.state().exists(), "the demo leaves nothing in the user's state directory");
}

#[test]
fn people_are_told_tensor_block_byte_and_bit() {
    let home = Home::new();
    let target = home.json(["demo", "--size", "2", "--seed", "5"]);
    let ran = home.run(["demo", "--size", "2", "--seed", "5"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let named = format!(
        "tensor {}, block {}, byte {}, bit {}",
        text(&target["tensor"]),
        target["block"],
        target["byte"],
        target["bit"]
    );
    for words in [&*named, "DAMAGED", "quarantined", "seed 5", "GB/s", "records verified"] {
        assert!(ran.stdout.contains(words), "'{words}' is missing in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\x1b'));
}

#[test]
fn the_demo_cleans_up_and_keeps_the_log_where_asked() {
    let home = Home::new();
    let dir = home.path("work");
    std::fs::create_dir(&dir).unwrap();
    let log = home.path("log");
    let report =
        home.json(["demo", "--size", "1", "--dir", dir.to_str().unwrap(), "--audit-dir", log.to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    let events = support::events(&log);
    let fault = events.iter().find(|event| event["event"] == "FaultInjected").unwrap();
    assert_eq!((&fault["byte"], &fault["bit"]), (&report["byte"], &report["bit"]));
    let failure = events.iter().find(|event| event["event"] == "SealVerificationFailed").unwrap();
    assert_eq!((&failure["severity"], &failure["first_block"]), (&"critical".into(), &report["block"]));
    // The same log again: the story is looked for behind what was there before.
    let again =
        home.json(["demo", "--size", "1", "--dir", dir.to_str().unwrap(), "--audit-dir", log.to_str().unwrap()]);
    assert_eq!(again["audit_verified"], true);
    assert_eq!(support::events(&log).len(), 2 * events.len());

    let missing = home.run(["demo", "--size", "1", "--json", "--dir", home.path("missing").to_str().unwrap()]);
    missing.failed(1, "io", &["missing: entity not found; name another one with --dir"]);
    home.run(["demo", "--size", "4", "--json", "--capacity", "1MiB"]).failed(1, "memory", &["1048576"]);
}

#[test]
fn the_model_of_the_demo_can_be_kept_and_overwrites_nothing() {
    let home = Home::new();
    let kept = home.path("llama.safetensors");
    let demo = ["demo", "--size", "1", "--json", "--keep", kept.to_str().unwrap()];
    let report = home.run(demo).object();
    let bytes = std::fs::read(&kept).unwrap();
    assert_eq!(report["digest"], format!("blake3:{}", blake3::hash(&bytes).to_hex()));
    std::fs::write(&kept, b"somebody's").unwrap();
    home.run(demo).failed(1, "file", &["llama.safetensors", "--keep"]);
    assert_eq!(std::fs::read(&kept).unwrap(), b"somebody's");
    // What fails leaves no file behind that looks like a model.
    std::fs::remove_file(&kept).unwrap();
    assert_ne!(home.run(demo.iter().chain(&["--capacity", "1KiB"])).code, 0);
    assert!(!kept.exists());
}

#[test]
fn what_has_no_room_is_refused_before_anything_is_written() {
    let home = Home::new();
    let dir = home.path("work");
    std::fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    let started = Instant::now();
    for command in ["demo", "bench"] {
        home.run([command, "--size", "1048576", "--json", "--dir", dir]).failed(1, "disk", &[dir, "--size", "--dir"]);
        let small = home.run([command, "--size", "512", "--json", "--capacity", "1MiB", "--dir", dir]);
        small.failed(1, "memory", &["1048576", "--capacity", "--size"]);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "nothing of it was written");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let home = Home::new();
    let dir = home.path("work");
    std::fs::create_dir(&dir).unwrap();
    let entries = || std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut command = home.command();
    command.args(["demo", "--size", "1024", "--dir"]).arg(&dir).stdout(Stdio::null());
    let mut running = command.spawn().unwrap();
    while !entries().iter().any(|path| path.join("model.safetensors").exists()) {
        assert_eq!(running.try_wait().unwrap(), None, "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Beside a run that goes on, nothing of it is removed.
    home.json(["demo", "--size", "1", "--dir", dir.to_str().unwrap()]);
    assert!(running.try_wait().unwrap().is_some() || entries().len() == 1);
    running.kill().unwrap();
    running.wait().unwrap();
    home.json(["demo", "--size", "1", "--dir", dir.to_str().unwrap()]);
    assert_eq!(entries().len(), 0, "{:?}", entries());
}

#[test]
fn the_bench_reports_every_figure() {
    let home = Home::new();
    let model = home.file("model.bin", &vec![3; 5 << 20]);
    let dir = home.path("work");
    std::fs::create_dir(&dir).unwrap();
    let mut command = home.command();
    command.args(["bench", "--json", "--rounds", "2", "--file"]).arg(&model).arg("--dir").arg(&dir);
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.object();
    let positive = |pointer: &str| {
        let value = report.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {report}"));
        assert!(value.as_f64().unwrap() > 0.0, "{pointer} is {value}");
    };
    for times in ["/verify/seconds", "/seal/seconds", "/seal/floor_seconds"] {
        assert_eq!(report.pointer(times).unwrap().as_array().unwrap().len(), 2);
        positive(&format!("{times}/1"));
    }
    for figure in
        ["/verify/bytes", "/verify/gb_per_s", "/seal/bytes", "/compare_ns/digest", "/compare_ns/signature", "/threads"]
    {
        positive(figure);
    }
    for part in ["page_clearing", "copy", "hash"] {
        positive(&format!("/seal/breakdown/{part}"));
    }
    if report["audit"].is_null() {
        assert!(ran.stderr.contains("lies in memory"), "{ran:?}");
    } else {
        for figure in [
            "critical/p50_us",
            "critical/p99_us",
            "critical/p999_us",
            "critical/max_us",
            "rates/1",
            "rates/16",
            "rates/64",
        ] {
            positive(&format!("/audit/{figure}"));
        }
    }
    assert_eq!(report["huge_pages"]["available"].as_bool().unwrap(), !report["huge_pages"]["seal_seconds"].is_null());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}
