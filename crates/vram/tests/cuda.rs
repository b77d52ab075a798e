//! The program on a machine with GPUs, which are emulated: the driver's library is found as any other would be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use cuda_emulator::{Fault, Plan};
use serde_json::{Value, json};
use support::attach::Raw;
use support::daemon::Daemon;
use support::{Home, events, safetensors, text};

fn model(home: &Home) -> String {
    home.file("model.safetensors", &safetensors(["a", "b"], 3000)).to_str().unwrap().to_owned()
}

#[test]
fn a_file_is_sealed_on_a_gpu_and_everything_is_given_back() {
    let home = Home::with_gpus(&Plan::default());
    let report = home.json(["seal", &model(&home), "--device", "cuda:0", "--require-vram", "--require-read-only"]);
    let [device] = report["devices"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&device["kind"], &device["name"]), (&json!("cuda"), &json!("cuda:0")));
    assert_eq!((&device["model"], &device["write_test"]), (&json!("Emulated GPU 0"), &json!("refused")));
    let shard = &report["shards"][0];
    assert_eq!((&shard["residency"], &shard["protection"]), (&json!("vram"), &json!("read-only")));
    assert_eq!((&shard["state"], &shard["device"]), (&json!("VERIFIED"), &json!("cuda:0")));
    assert_eq!(shard["device_uuid"], device["uuid"]);
    assert_eq!(home.events(), ["DeviceOpened", "VramAllocated", "VramSealed", "SealVerified", "VramDeallocated"]);
    let opened = &events(&home.audit())[0];
    let library = cuda_emulator::library().canonicalize().unwrap();
    assert_eq!((text(&opened["library"]), &opened["kernel_cache"]), (library.display().to_string(), &json!(false)));
    assert_eq!((&opened["write_test"], &shard["write_test"]), (&json!("refused"), &json!("refused")));
    assert!(text(&opened["write_test_detail"]).contains("700"), "{opened}");
    assert_eq!((&opened["driver"], &opened["name"]), (&json!("12.2"), &json!("Emulated GPU 0")));
    assert_eq!((&opened["mig"], opened.get("mig_of")), (&json!("no"), None));
    assert_eq!(home.driver_report().complaint(), None);
    let verified = home.run(["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

/// What is sealed names the instance; of which GPU that is, the record and the doctor say.
#[test]
fn weights_on_a_mig_instance_are_sealed_under_the_instances_uuid() {
    let mut plan = Plan::with_mig_instances(2);
    plan.devices[1].uuid = [0x1b; 16];
    plan.devices[1].mig_of = Some([0x2a; 16]);
    let spelled = |digit: &str| [8, 4, 4, 4, 12].map(|count| digit.repeat(count / 2)).join("-");
    let home = Home::with_gpus(&plan);
    let report = home.json(["seal", &model(&home), "--device", "cuda:1", "--require-read-only"]);
    let shard = &report["shards"][0];
    assert_eq!((&shard["device_uuid"], &shard["protection"]), (&json!(spelled("1b")), &json!("read-only")));
    let opened = &events(&home.audit())[0];
    assert_eq!((&opened["mig"], &opened["mig_of"]), (&json!("of"), &json!(spelled("2a"))), "{opened}");
    let doctor = home.run(["doctor"]);
    assert!(doctor.stdout.contains(&format!("a MIG instance of the GPU {}", spelled("2a"))), "{doctor:?}");
}

#[test]
fn auto_takes_the_roomiest_gpu_or_says_in_one_line_why_not() {
    let mut plan = Plan::with_devices(2);
    plan.devices[0].taken = 1 << 30;
    let home = Home::with_gpus(&plan);
    let ran = home.run(["seal", &model(&home)]);
    assert!(ran.stdout.starts_with("device: cuda:1 (Emulated GPU 1, "), "{ran:?}");
    assert_eq!(home.driver_report().complaint(), None);

    let mut integrated = Plan::default();
    integrated.devices[0].integrated = true;
    let stub = Plan { init_code: 34, ..Plan::default() };
    let old = Plan { driver_version: 11_040, ..Plan::default() };
    for (plan, words) in [(integrated, "cuda:0 shares it"), (stub, "stub"), (old, "11.8")] {
        let home = Home::with_gpus(&plan);
        let ran = home.run(["seal", &model(&home)]);
        let said: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("device: host (main memory; ")).collect();
        assert!(ran.code == 0 && said.len() == 1 && said[0].contains(words), "{ran:?}");
        assert_eq!(home.driver_report().complaint(), None);
    }
}

/// Somebody who asked for a GPU is given that, or a reason: never main memory.
#[test]
fn a_gpu_that_cannot_be_used_is_an_error_with_the_reason() {
    let no_such = Plan::default();
    let stub = Plan { init_code: 34, ..Plan::default() };
    let old = Plan { driver_version: 11_040, ..Plan::default() };
    let mut none = Plan::default();
    none.devices.clear();
    let mut busy = Plan::default();
    (busy.devices[0].compute_mode, busy.devices[0].occupied) = (3, true);
    let mut full = Plan::default();
    full.devices[0].taken = full.devices[0].memory;
    let cases = [
        (no_such, "cuda:3", "choose another"),
        (stub, "cuda:0", "stub"),
        (old, "cuda:0", "11.8"),
        (none, "cuda:0", "no GPU"),
        (busy, "cuda:0", "one process at a time"),
        (full, "cuda:0", "no memory left"),
    ];
    for (plan, device, words) in cases {
        let home = Home::with_gpus(&plan);
        home.run(["seal", &model(&home), "--json", "--device", device]).failed(1, "device", &[words]);
        assert!(!home.audit().exists(), "nothing was begun");
    }
    let home = Home::new();
    home.run(["seal", &model(&home), "--json", "--device", "cuda:0"]).failed(1, "device", &["cuda:0", "driver"]);
}

#[test]
fn files_of_a_model_are_spread_over_gpus() {
    let home = Home::with_gpus(&Plan::with_devices(2));
    for (name, size) in [("m/a.bin", 3 << 20), ("m/b.bin", 2 << 20), ("m/c.bin", 1 << 20)] {
        home.file(name, &vec![7; size]);
    }
    let names = ["a", "b", "c"].map(|name| home.path(format!("m/{name}.bin")));
    let names = names.each_ref().map(|path| path.to_str().unwrap());
    let report = home.json(["seal", "--format", "raw", "--device", "cuda:0,cuda:1", names[0], names[1], names[2]]);
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.iter().map(|device| text(&device["name"])).collect::<Vec<_>>(), ["cuda:0", "cuda:1"]);
    // The largest first, each to where most is left.
    for (shard, device) in report["shards"].as_array().unwrap().iter().zip([0, 1, 1]) {
        assert_eq!((&shard["device"], &shard["device_uuid"]), (&devices[device]["name"], &devices[device]["uuid"]));
    }
    assert_eq!(home.driver_report().complaint(), None);
    let opened = home.events().iter().filter(|event| *event == "DeviceOpened").count();
    assert_eq!(opened, 2);
    let said = home.run(["seal", "--format", "raw", "--device", "cuda:0,cuda:1", names[0], names[1]]).stdout;
    let places: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix("memory ")).map(str::trim).collect();
    assert_eq!(places, ["cuda:0, vram, read-only", "cuda:1, vram, read-only"], "{said}");
    // Not on both together, but each as a whole.
    let refused =
        home.run(["seal", "--json", "--format", "raw", "--device", "cuda:0,cuda:1", "--capacity", "2MiB", names[0]]);
    refused.failed(1, "memory", &["has 2097152 bytes free", "4194304 are needed"]);
}

#[test]
fn a_gpu_that_is_lost_ends_the_command_and_nothing_is_called_verified() {
    let plan = Plan::default().fault(Fault::lost("cuPointerGetAttribute", 30, 719));
    // In the middle of the verification, after everything was sealed.
    let home = Home::with_gpus(&plan);
    let ran = home.run(["seal", &model(&home), "--json", "--device", "cuda:0"]);
    ran.failed(1, "device", &["lost", "719", "Xid"]);
    assert!(home.events().contains(&"SealVerificationFailed".to_owned()));
    assert!(!home.events().contains(&"SealVerified".to_owned()));
    assert!(home.driver_report().leaks().is_empty());
}

#[test]
fn the_daemon_keeps_checks_and_repairs_weights_on_a_gpu_and_hands_none_out() {
    let home = Home::with_gpus(&Plan::default());
    let mut daemon =
        Daemon::start(&home, &["--device", "cuda:0", "--on-failure", "repair", "--allow-drill", "--require-vram"]);
    let passed =
        |status: &Value| status["shards"].as_array().unwrap().iter().all(|shard| shard["passes"].as_u64().unwrap() > 0);
    let status = daemon.until("both are through a pass", passed);
    assert_eq!(
        (&status["shards"][0]["residency"], &status["shards"][0]["state"]),
        (&json!("vram"), &json!("VERIFIED"))
    );
    assert_eq!(daemon.told(&["drill", "big-bin", "--byte", "1500000", "--bit", "3"])["block"], 1);
    daemon.until("it is repaired", |status| status["scrub"]["repairs"] == 1);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 2);
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("vram_device_capacity_bytes{device=\"cuda:0\"}"), "{metrics}");
    let status = daemon.told(&["status"]);
    assert_eq!(status["devices"][0]["write_test"], "refused", "{status}");
    assert_eq!(status["shards"][0]["protection"], "read-only");
    let mut raw = Raw::greeted(&daemon.attach());
    let refused = raw.ask(&json!({ "type": "attach", "shard": "big-bin" }));
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("device")), "{refused}");
    assert!(text(&refused["message"]).contains("GPU"), "{refused}");
    drop(raw);
    daemon.stop();
    assert_eq!(home.driver_report().complaint(), None);
}

#[test]
fn the_daemon_rechecks_fingerprints_beside_its_scrub_and_answers_damage_by_the_policy() {
    let home = Home::with_gpus(&Plan::default());
    let config = home.file("vram.toml", b"recheck = \"200ms\"\nrecheck_keys = 3\n");
    let flags = ["--device", "cuda:0", "--on-failure", "repair", "--allow-drill", "--budget", "unlimited"];
    let mut daemon = Daemon::start_every(&home, "30s", &[&flags[..], &["--config", config.to_str().unwrap()]].concat());
    let shards = |status: &Value| status["shards"].as_array().unwrap().clone();
    // More often than there were keys: a full verification came in between, and new ones.
    let status = daemon.until("both were re-checked five times", |status| {
        shards(status).iter().all(|shard| shard["rechecks"].as_u64().unwrap() >= 5)
    });
    assert_eq!((&status["scrub"]["recheck_seconds"], &status["ready"]), (&json!(0.2), &json!(true)));
    assert!(shards(&status).iter().all(|shard| shard["recheck_keys"].as_u64().unwrap() <= 3), "{status}");
    assert!(shards(&status).iter().all(|shard| shard["state"] == "VERIFIED"), "by the hash in between: {status}");
    assert_eq!(daemon.told(&["drill", "big-bin", "--byte", "1500000", "--bit", "3"])["block"], 1);
    // The scrub would take up to 20 s for that block.
    let status = daemon.until("it is repaired", |status| status["scrub"]["repairs"] == 1);
    let fault = shards(&status).iter().find(|shard| shard["shard_id"] == "big-bin").unwrap()["last_fault"].clone();
    assert_eq!((&fault["block"], &fault["differing_bits"]), (&json!(1), &json!(1)), "{fault}");
    let told = daemon.home.run(["status", "--socket", daemon.socket.to_str().unwrap()]).stdout;
    assert!(told.contains("every shard's fingerprint within 0.2 s"), "{told}");
    let metrics = daemon.get("/metrics").body;
    for name in ["vram_rechecks_total", "vram_shard_recheck_keys{shard=\"big-bin\"}"] {
        assert!(metrics.contains(name), "{metrics}");
    }
    daemon.stop();
    let exported = home.run(["audit", "export", "--format", "ocsf", "--event", "FingerprintMatched"]);
    let first: Value = serde_json::from_str(exported.stdout.lines().next().unwrap()).unwrap();
    assert_eq!((&first["type_uid"], &first["status"]), (&json!(100_499), &json!("Success")), "{first}");
    assert_eq!(first["metadata"]["event_code"], "FingerprintMatched");
    assert_eq!(home.driver_report().complaint(), None);
}

/// Who asks for re-checks and cannot have them is told, and nothing runs without.
#[test]
fn rechecks_that_cannot_be_are_refused_with_the_reason() {
    let home = Home::new();
    let refused = |flags: &[&str], words: &[&str]| {
        let ran = home.run([&["serve", "--json", "--listen", "127.0.0.1:0", "--device", "host"], flags].concat());
        assert!(ran.code != 0 && words.iter().all(|word| format!("{ran:?}").contains(word)), "{ran:?}");
    };
    refused(&["--recheck", "1s"], &["scrub recheck is 1s", "no faster check than hashing, such as host"]);
    refused(&["--recheck", "61s"], &["between 100 ms and the period"]);
    refused(&["--recheck", "99ms"], &["from 100ms"]);
    refused(&["--recheck-keys", "4"], &["without recheck"]);
    refused(&["--recheck", "1s", "--recheck-keys", "0"], &["recheck-keys"]);
    refused(&["--recheck", "1s", "--recheck-keys", "1025"], &["recheck_keys is 1025", "at most 1024"]);
}

#[test]
fn the_doctor_says_what_gpus_there_are() {
    let mut plan = Plan::with_devices(2);
    plan.devices[1].integrated = true;
    let home = Home::with_gpus(&plan);
    let report = home.json(["doctor"]);
    let checks = report["checks"].as_array().unwrap();
    let named = |name: &str| checks.iter().filter(|check| check["name"] == name).cloned().collect::<Vec<_>>();
    assert!(text(&named("cuda")[0]["detail"]).contains("CUDA 12.2"), "{report}");
    let [first, second] = named("gpu").try_into().unwrap();
    assert_eq!((&first["state"], &second["state"]), (&json!("ok"), &json!("note")), "{report}");
    assert!(text(&first["detail"]).contains("read-only: a store into sealed memory was refused"), "{first}");
    assert_eq!(home.driver_report().complaint(), None);

    let plan = Plan { init_code: 803, ..Plan::default() };
    let report = Home::with_gpus(&plan).json(["doctor"]);
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "cuda").unwrap().clone();
    assert_eq!(check["state"], "note");
    assert!(text(&check["detail"]).contains("803"), "{check}");
}

/// Its readings say that memory is read-only, and a store into it goes through: that is found out, and said everywhere.
#[test]
fn a_driver_that_lies_about_writes_is_found_out_before_anything_is_sealed() {
    let home = Home::with_gpus(&Plan::default().fault(Fault::SetAccessLies { readings_too: true }));
    let ran = home.run(["seal", &model(&home), "--json", "--device", "cuda:0"]);
    let (report, opened) = (ran.object(), &events(&home.audit())[0]);
    assert_eq!(report["shards"][0]["protection"], "advisory", "{ran:?}");
    assert_eq!(
        (&report["shards"][0]["write_test"], &opened["write_test"]),
        (&json!("went-through"), &json!("went-through"))
    );
    assert!(ran.stderr.starts_with("vram: warning: ") && ran.stderr.contains("went through"), "{ran:?}");
    let refused = home.run(["seal", &model(&home), "--json", "--device", "cuda:0", "--require-read-only"]);
    refused.failed(1, "policy", &["read-only"]);

    let report = home.json(["doctor"]);
    let gpu = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "gpu").unwrap().clone();
    assert_eq!(gpu["state"], "note", "{gpu}");
    assert!(text(&gpu["detail"]).contains("went through") && text(&gpu["remedy"]).contains("advisory"), "{gpu}");

    let mut daemon = Daemon::start(&home, &["--device", "cuda:0"]);
    let status = daemon.told(&["status"]);
    assert_eq!(
        (&status["devices"][0]["write_test"], &status["shards"][0]["protection"]),
        (&json!("went-through"), &json!("advisory"))
    );
    daemon.stop();
}

#[test]
fn without_the_write_test_nothing_is_stored_and_the_reason_is_said() {
    let home = Home::with_gpus(&Plan::default());
    let report = home.json(["seal", &model(&home), "--device", "cuda:0", "--no-write-test"]);
    let shard = &report["shards"][0];
    assert_eq!((&shard["protection"], &shard["write_test"]), (&json!("advisory"), &json!("not-run")));
    assert!(text(&shard["write_test_detail"]).contains("--no-write-test"), "{shard}");
    let report = home.json(["doctor", "--no-write-test"]);
    let gpu = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "gpu").unwrap().clone();
    assert!(text(&gpu["detail"]).contains("--no-write-test"), "{gpu}");

    // On a GPU that is shared by way of MPS it would end others' work.
    let folder = home.path("mps");
    std::fs::create_dir(&folder).unwrap();
    let _door = std::os::unix::net::UnixListener::bind(folder.join("control")).unwrap();
    let report = home.json(["seal", &model(&home), "--device", "cuda:0"]);
    assert!(text(&report["shards"][0]["write_test_detail"]).contains("MPS"), "{report}");

    let config = home.file("vram.toml", b"no_write_test = true\n");
    let mut daemon = Daemon::start(&home, &["--device", "cuda:0", "--config", config.to_str().unwrap()]);
    assert!(text(&daemon.told(&["status"])["devices"][0]["write_test_detail"]).contains("--no-write-test"));
    daemon.stop();
}
