//! One daemon that keeps weights on several GPUs, which are emulated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use cuda_emulator::{Fault, Plan};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::{Home, events, text};

const BOTH: [&str; 4] = ["--device", "cuda:0,cuda:1", "--on-failure", "repair"];

fn shard(status: &Value, id: &str) -> Value {
    status["shards"].as_array().unwrap().iter().find(|one| one["shard_id"] == id).unwrap().clone()
}

/// The device that has a name.
fn device(status: &Value, name: &str) -> Value {
    status["devices"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
}

#[test]
fn a_daemon_keeps_checks_repairs_and_verifies_weights_on_each_of_its_gpus() {
    let home = Home::with_gpus(&Plan::with_devices(2));
    let mut daemon = Daemon::start(&home, &[&BOTH[..], &["--allow-drill", "--require-vram"]].concat());
    let passed =
        |status: &Value| status["shards"].as_array().unwrap().iter().all(|shard| shard["passes"].as_u64().unwrap() > 0);
    let status = daemon.until("both are through a pass", passed);
    // The largest first, each to where most is left.
    let places = ["big-bin", "small-bin"].map(|id| shard(&status, id)["device"].clone());
    assert_eq!(places, [json!("cuda:0"), json!("cuda:1")], "{status}");
    let names: Vec<_> = status["devices"].as_array().unwrap().iter().map(|one| text(&one["name"])).collect();
    assert_eq!(names, ["cuda:0", "cuda:1"]);
    for (id, name) in [("big-bin", "cuda:0"), ("small-bin", "cuda:1")] {
        let (held, about) = (shard(&status, id), device(&status, name));
        assert!(about["used_bytes"].as_u64() >= held["bytes"].as_u64(), "{status}");
        assert_eq!((&about["scrub"]["alive"], &about["write_test"]), (&json!(true), &json!("refused")), "{about}");
        assert!(about["scrub"]["blocks"].as_u64().unwrap() > 0, "each is checked by a scrub of its own: {about}");
    }
    let sum: u64 =
        ["cuda:0", "cuda:1"].map(|name| device(&status, name)["scrub"]["blocks"].as_u64().unwrap()).iter().sum();
    assert_eq!(status["scrub"]["blocks"], sum);

    // What breaks on one is found, repaired and counted there.
    assert_eq!(daemon.told(&["drill", "small-bin", "--byte", "69999", "--bit", "3"])["block"], 0);
    let status = daemon.until("it is repaired", |status| status["scrub"]["repairs"] == 1);
    let faults = ["cuda:0", "cuda:1"].map(|name| device(&status, name)["scrub"]["faults"].clone());
    assert_eq!(faults, [json!(0), json!(1)], "{status}");
    let verified = daemon.told(&["verify"]);
    let states: Vec<_> =
        verified.as_array().unwrap().iter().map(|one| (text(&one["device"]), text(&one["state"]))).collect();
    assert_eq!(states, [("cuda:0".into(), "VERIFIED".into()), ("cuda:1".into(), "VERIFIED".into())]);

    // One attestation names both GPUs, and says which shard lies where.
    home.json(["attest", "--keygen"]);
    let word = home.path("word.json");
    daemon.told(&["attest", "--nonce", "00112233445566778899aabbccddeeff", "-o", word.to_str().unwrap()]);
    let envelope: Value = serde_json::from_slice(&std::fs::read(&word).unwrap()).unwrap();
    let payload =
        base64::prelude::Engine::decode(&base64::prelude::BASE64_STANDARD, text(&envelope["payload"])).unwrap();
    let predicate = serde_json::from_slice::<Value>(&payload).unwrap()["predicate"].clone();
    let uuids = ["cuda:0", "cuda:1"].map(|name| device(&status, name)["uuid"].clone());
    for (at, uuid) in uuids.iter().enumerate() {
        assert_eq!(
            (&predicate["devices"][at]["uuid"], &predicate["shards"][at]["device"]),
            (uuid, uuid),
            "{predicate}"
        );
    }

    // A model that comes later goes to where most is left, and what was released makes room there.
    let later = home.file("later.bin", &vec![5; 1 << 20]);
    let loaded = daemon.told(&["load", "--format", "raw", later.to_str().unwrap()]);
    assert_eq!(loaded[0]["device"], "cuda:1", "{loaded}");
    daemon.told(&["release", "big-bin"]);
    let next = home.file("next.bin", &vec![6; 3 << 20]);
    assert_eq!(daemon.told(&["load", "--format", "raw", next.to_str().unwrap()])[0]["device"], "cuda:0");
    // Unsealed and sealed again, it stays where it is.
    daemon.told(&["unseal", "later-bin", "--reason", "a test"]);
    assert_eq!(daemon.told(&["reseal", "later-bin"])["device"], "cuda:1");

    let metrics = daemon.get("/metrics").body;
    for line in [
        "vram_device_capacity_bytes{device=\"cuda:0\"}",
        "vram_device_capacity_bytes{device=\"cuda:1\"}",
        "vram_scrub_alive{device=\"cuda:0\"} 1",
        "vram_scrub_alive{device=\"cuda:1\"} 1",
        "vram_shards{device=\"cuda:0\"} 1",
        "vram_shards{device=\"cuda:1\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let told = home.run(["status", "--socket", daemon.socket.to_str().unwrap()]).stdout;
    for words in ["device  cuda:0 (Emulated GPU 0)", "device  cuda:1 (Emulated GPU 1)", "on cuda:1"] {
        assert!(told.contains(words), "{told}");
    }
    daemon.stop();
    assert_eq!(home.driver_report().complaint(), None);
    // Each record names the device that it is about.
    let events = events(&home.audit());
    for (id, uuid) in [("big-bin", &uuids[0]), ("small-bin", &uuids[1]), ("later-bin", &uuids[1])] {
        let about = || events.iter().filter(|one| one["shard_id"] == id);
        assert!(about().any(|one| one["event"] == "VramSealed") && about().any(|one| one["event"] == "SealVerified"));
        let elsewhere: Vec<_> = about().filter(|one| one["device"]["uuid"] != *uuid).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    }
    assert!(events.iter().any(|one| one["event"] == "OperatorCommand" && one["device"]["uuid"] == uuids[1]));
    assert_eq!(events.iter().filter(|one| one["event"] == "ServiceStarted").count(), 1);
    assert_eq!(home.run(["audit", "verify"]).code, 0);
}

/// One GPU is enough for the daemon to be not ready, and the other's weights are checked and verified as before.
#[test]
fn a_gpu_that_is_lost_takes_nothing_with_it_but_its_own_weights() {
    // The kernel that fails is one of the scrubs', after everything is loaded.
    let plan = Plan { faults: vec![Fault::Asynchronous { nth: 60, code: 719 }], ..Plan::with_devices(2) };
    let home = Home::with_gpus(&plan);
    let mut daemon = Daemon::start(&home, &BOTH);
    let is_lost = |device: &Value| !device["lost"].is_null();
    let status = daemon.until("one is lost", |status| status["devices"].as_array().unwrap().iter().any(is_lost));
    let devices = status["devices"].as_array().unwrap();
    let (lost, left) = if is_lost(&devices[0]) { ("cuda:0", "cuda:1") } else { ("cuda:1", "cuda:0") };
    assert!(!is_lost(&device(&status, left)), "{status}");
    let held_by = |status: &Value, name: &str| {
        let held = status["shards"].as_array().unwrap().iter().find(|one| one["device"] == name).unwrap().clone();
        (text(&held["shard_id"]), text(&held["state"]), held["passes"].as_u64().unwrap())
    };
    let before = held_by(&status, left).2;
    let status = daemon.until("what it held is not vouched for, and the other is checked on", |status| {
        held_by(status, lost).1 == "UNVERIFIED" && held_by(status, left).2 > before + 1
    });
    assert_eq!((held_by(&status, left).1, &status["ready"]), ("VERIFIED".to_owned(), &json!(false)));
    let reasons = status["not_ready"].to_string();
    assert!(reasons.contains(&format!("\"{lost} was lost")), "{reasons}");
    assert!(!reasons.contains(&held_by(&status, left).0), "{reasons}");
    assert_eq!(daemon.told(&["verify", &held_by(&status, left).0])[0]["state"], "VERIFIED");
    // Whatever is loaded now goes to the one that is left.
    let next = home.file("next.bin", &vec![6; 3 << 20]);
    assert_eq!(daemon.told(&["load", "--format", "raw", next.to_str().unwrap()])[0]["device"], left);
    let told = home.run(["status", "--socket", daemon.socket.to_str().unwrap()]).stdout;
    assert!(told.contains(&format!("LOST: {lost} was lost")), "{told}");
    daemon.stop();
}

#[test]
fn what_does_not_fit_on_the_gpus_is_refused_before_the_first_byte() {
    let home = Home::with_gpus(&Plan::with_devices(2));
    let file = home.file("m.bin", &vec![7; 3 << 20]);
    let flags =
        ["serve", "--json", "--format", "raw", "--listen", "127.0.0.1:0", "--device", "cuda:0,cuda:1", "--capacity"];
    let socket = home.path("s");
    let mut command = home.command();
    command.args(flags).args(["4MiB", "--socket"]).arg(&socket).arg(&file).env_remove("NOTIFY_SOCKET");
    // What a file takes is counted in whole granules: a small one takes 2 MiB, and has no room beside the others.
    for (name, size) in [("n.bin", 3 << 20), ("o.bin", 900_000)] {
        command.arg(home.file(name, &vec![7; size]));
    }
    let ran = support::Ran::from(command.output().unwrap());
    ran.failed(1, "memory", &["3 files need 10485760 bytes", "cuda:0 has 4194304", "cuda:1 has 4194304"]);
    assert!(!home.audit().exists(), "nothing was begun");
    assert_eq!(home.driver_report().complaint(), None);

    let mut daemon = Daemon::start(&home, &[&BOTH[..], &["--capacity", "4MiB"]].concat());
    let large = home.file("large.bin", &vec![7; 5 << 20]);
    let refused = daemon.ask(&["load", "--format", "raw", large.to_str().unwrap()]);
    refused.failed(1, "daemon", &["cuda:1", "6291456 are needed"]);
    assert_eq!(daemon.told(&["status"])["shards"].as_array().unwrap().len(), 2);
    daemon.stop();
    assert!(home.events().contains(&"VramAllocationFailed".to_owned()), "the device refused it, on record");
    assert_eq!(home.driver_report().complaint(), None);
}

/// What others hold of a GPU is not there for weights, whatever the capacity says.
#[test]
fn files_go_to_where_the_driver_says_that_there_is_room() {
    let mut plan = Plan::with_devices(2);
    plan.devices[0].taken = plan.devices[0].memory - (200 << 20);
    let home = Home::with_gpus(&plan);
    let mut daemon = Daemon::start(&home, &[&BOTH[..], &["--capacity", "1GiB"]].concat());
    let large = home.file("large.bin", &vec![7; 3 << 20]);
    assert_eq!(daemon.told(&["load", "--format", "raw", large.to_str().unwrap()])[0]["device"], "cuda:1");
    let places = ["big-bin", "small-bin"].map(|id| shard(&daemon.told(&["status"]), id)["device"].clone());
    assert_eq!(places, [json!("cuda:1"), json!("cuda:1")]);
    daemon.stop();
    assert_eq!(home.driver_report().complaint(), None);
}

/// What is being loaded is given back, and what waits for its turn is not begun.
#[test]
fn a_daemon_that_is_to_stop_ends_its_loads_and_leaves_a_whole_record() {
    let home = Home::with_gpus(&Plan::with_devices(2));
    let mut daemon = Daemon::start(&home, &BOTH);
    let used = |status: &Value| -> u64 {
        status["devices"].as_array().unwrap().iter().map(|one| one["used_bytes"].as_u64().unwrap()).sum()
    };
    let before = used(&daemon.told(&["status"]));
    // Minutes of work for an emulated GPU.
    let large = home.path("large.bin");
    std::fs::File::create(&large).unwrap().set_len(1 << 30).unwrap();
    let begun = std::thread::scope(|scope| {
        let load = |path: std::path::PathBuf| {
            let daemon = &daemon;
            scope.spawn(move || daemon.ask(&["load", "--format", "raw", path.to_str().unwrap()]))
        };
        let first = load(large.clone());
        daemon.until("it has its memory", |status| used(status) > before + (1 << 29));
        let loads = [first, load(home.file("waits.bin", &[3; 5000]))];
        let begun = std::time::Instant::now();
        daemon.signal("-TERM");
        for load in loads {
            let ran = load.join().unwrap();
            assert_eq!(ran.code, 1, "{ran:?}");
        }
        begun
    });
    assert!(daemon.end().success());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "as systemd gives it 30 s: {:?}", begun.elapsed());
    let events = home.events();
    let count = |name: &str| events.iter().filter(|event| *event == name).count();
    assert_eq!(count("VramAllocated"), count("VramDeallocated"), "{events:?}");
    assert_eq!(events.last().map(String::as_str), Some("ServiceStopped"));
    assert_eq!(home.driver_report().complaint(), None);
}
