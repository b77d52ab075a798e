//! The daemon as its operators meet it: started, asked, broken, repaired, stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use serde_json::{Value, json};
use support::Home;
use support::daemon::Daemon;

fn state<'a>(status: &'a Value, shard: &str) -> &'a str {
    let shards = status["shards"].as_array().unwrap();
    shards.iter().find(|known| known["shard_id"] == shard).map_or("-", |known| known["state"].as_str().unwrap())
}

#[test]
fn it_starts_watches_and_stops_and_all_of_that_is_on_record() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    assert_eq!(daemon.ready["shards"].as_array().unwrap().len(), 2);
    let status = daemon.until("both are through a pass", |status| {
        status["shards"].as_array().unwrap().iter().all(|shard| shard["passes"].as_u64().unwrap() > 1)
    });
    assert_eq!((state(&status, "big-bin"), state(&status, "small-bin")), ("VERIFIED", "VERIFIED"));
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.get("/healthz").status, 200);
    assert_eq!(daemon.told(&["status"])["ready"], true);
    assert_eq!(daemon.told(&["status", "big-bin"])["bytes"], 5 << 19);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 2);
    daemon.stop();
    assert!(!daemon.socket.exists());
    let events = home.events();
    for event in ["ServiceStarted", "ScrubStarted", "ScrubPassed", "ScrubStopped", "ServiceStopped"] {
        assert!(events.iter().any(|known| known == event), "{event}: {events:?}");
    }
    assert_eq!(events.last().map(String::as_str), Some("ServiceStopped"));
    assert_eq!(home.run(["audit", "verify"]).code, 0);
    // A restart proves everything anew.
    let mut again = Daemon::start(&home, &[]);
    again.until("ready again", |status| status["ready"] == true);
    again.signal("-INT");
    assert!(again.end().success());
}

#[test]
fn a_broken_bit_is_found_named_repaired_and_told() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--on-failure", "repair", "--allow-drill"]);
    let drilled = daemon.told(&["drill", "big-bin", "--byte", "1500000", "--bit", "3"]);
    assert_eq!(drilled["block"], 1);
    let status = daemon.until("it is repaired", |status| status["scrub"]["repairs"] == 1);
    let shard = status["shards"].as_array().unwrap().iter().find(|shard| shard["shard_id"] == "big-bin").unwrap();
    let fault = &shard["last_fault"];
    let wanted = json!([1, 1_500_000, 1, 1, "single-bit", "repaired"]);
    let names = ["block", "first_byte", "differing_bytes", "differing_bits", "kind", "outcome"];
    assert_eq!(names.map(|name| fault[name].clone()).to_vec(), *wanted.as_array().unwrap());
    assert!(fault["suspect_from_ns"].as_u64().unwrap() < fault["found_ns"].as_u64().unwrap());
    daemon.until("it is ready", |status| status["ready"] == true);
    daemon.stop();
    let told: Vec<String> = home.events();
    let place = |name: &str| told.iter().position(|event| event == name).unwrap_or_else(|| panic!("{name}: {told:?}"));
    let order = ["FaultInjected", "SealVerificationFailed", "RepairStarted", "BlockRepaired"].map(place);
    assert!(order.is_sorted(), "{told:?}");
}

#[test]
fn fail_closed_refuses_until_somebody_repairs() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    daemon.told(&["drill", "small-bin"]);
    let status = daemon.until("it is quarantined", |status| state(status, "small-bin") == "QUARANTINED");
    assert_eq!((&status["ready"], state(&status, "big-bin")), (&json!(false), "VERIFIED"));
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("small-bin"), "{ready:?}");
    assert_eq!(daemon.get("/healthz").status, 200, "the daemon itself is well");
    assert_eq!(daemon.ask(&["status"]).code, 3);
    let verified = daemon.ask(&["verify", "small-bin"]);
    assert_eq!(verified.code, 3, "{verified:?}");
    assert_eq!(daemon.told(&["repair", "small-bin"])["repaired"].as_array().unwrap().len(), 1);
    daemon.until("it is ready", |status| status["ready"] == true);
    assert_eq!(daemon.ask(&["status"]).code, 0);
}

#[test]
fn drills_and_faults_that_are_only_logged_do_not_cost_the_device() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    for _ in 0..4 {
        daemon.told(&["drill", "small-bin"]);
        daemon.until("it is quarantined", |status| state(status, "small-bin") == "QUARANTINED");
        daemon.told(&["repair", "small-bin"]);
    }
    assert_eq!(daemon.told(&["status"])["devices"][0]["quarantined"], Value::Null);
    drop(daemon);
    let daemon = Daemon::start(&home, &["--allow-drill", "--on-failure", "log"]);
    daemon.told(&["drill", "small-bin"]);
    let status = daemon.until("it was found in three passes", |status| status["scrub"]["faults"].as_u64() > Some(3));
    assert_eq!((state(&status, "small-bin"), state(&status, "big-bin")), ("SUSPECT", "VERIFIED"));
    assert_eq!(status["devices"][0]["quarantined"], Value::Null);
}

#[test]
fn a_signal_is_heard_while_models_are_loaded() {
    let home = Home::new();
    let model = home.path("large.bin");
    std::fs::File::create(&model).unwrap().set_len(3 << 30).unwrap();
    let mut command = home.command();
    command.args(["serve", "--format", "raw", "--listen", "127.0.0.1:0", "--socket"]).arg(home.path("s")).arg(&model);
    let mut child = Ended(command.env_remove("NOTIFY_SOCKET").stdout(std::process::Stdio::null()).spawn().unwrap());
    let begun = std::time::Instant::now();
    while !home.events_so_far().iter().any(|event| event == "VramAllocated") {
        assert!(begun.elapsed() < support::daemon::WAIT);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let status = std::process::Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert!(child.0.wait().unwrap().success());
    assert_eq!(home.events().last().map(String::as_str), Some("ServiceStopped"));
    assert!(!home.path("s").exists());
}

#[test]
fn one_socket_has_one_daemon_even_if_somebody_removes_it() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    std::fs::remove_file(&daemon.socket).unwrap();
    let other = Home::new();
    let second = other.run([
        "serve".as_ref(),
        "--listen".as_ref(),
        "127.0.0.1:0".as_ref(),
        "--socket".as_ref(),
        daemon.socket.as_os_str(),
    ]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("another daemon has"), "{second:?}");
    // What somebody else puts there is not taken away.
    std::fs::write(&daemon.socket, "not ours").unwrap();
    daemon.stop();
    assert_eq!(std::fs::read(home.path("s")).unwrap(), b"not ours");
}

#[test]
fn a_log_that_could_not_be_opened_is_opened_when_it_can_be() {
    let home = Home::new();
    // Something is in its way.
    let obstacle = home.file("state/vram/audit", b"no directory");
    let mut daemon = Daemon::start(&home, &[]);
    let status = daemon.told(&["status"]);
    assert_eq!((&status["ready"], &status["audit"]["health"]), (&json!(false), &json!("failing")));
    assert!(status["audit"]["lost"].as_u64() > Some(0), "{status}");
    std::fs::remove_file(obstacle).unwrap();
    daemon.until("it is kept and ready", |status| status["ready"] == true && status["audit"]["health"] == "good");
    daemon.stop();
    let lost = home.events().iter().position(|event| event == "RecordsLost");
    assert!(lost.is_some_and(|place| place < 2), "{:?}", home.events());
    assert_eq!(home.run(["audit", "verify"]).code, 0);
}

#[test]
fn stop_worker_ends_the_daemon_with_the_exit_code_of_integrity() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--on-failure", "stop-worker", "--allow-drill"]);
    daemon.told(&["drill", "big-bin"]);
    assert_eq!(daemon.end().code(), Some(3));
    assert!(home.events().iter().any(|event| event == "SealVerificationFailed"));
}

#[test]
fn shards_come_go_and_change_at_run_time() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    assert_eq!(daemon.ask(&["drill", "big-bin"]).code, 1, "without --allow-drill");
    let more = home.file("more.bin", &[7; 5000]);
    let loaded = daemon.told(&["load", "--format", "raw", more.to_str().unwrap()]);
    assert_eq!(loaded[0]["shard_id"], "more-bin");
    assert_eq!(daemon.ask(&["load", "--format", "raw", "/nowhere"]).code, 1);
    let twice = daemon.told(&["load", "--format", "raw", more.to_str().unwrap()]);
    assert_eq!(twice[0]["shard_id"], "more-bin-2");
    daemon.told(&["release", "more-bin-2"]);
    assert_eq!(daemon.ask(&["release", "more-bin-2"]).code, 1);

    // A reason that cannot be recorded is no way to lose a model.
    for reason in ["", "two\nlines", &"x".repeat(4097)] {
        let refused = daemon.ask(&["unseal", "more-bin", "--reason", reason]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert_eq!(daemon.told(&["verify", "more-bin"])[0]["shard_id"], "more-bin");
    }
    daemon.told(&["unseal", "more-bin", "--reason", "an update"]);
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(daemon.ask(&["reseal", "big-bin"]).code, 1, "it is sealed");
    std::fs::remove_file(&more).unwrap();
    assert_eq!(daemon.ask(&["reseal", "more-bin"]).code, 1, "there is no file");
    assert_eq!(daemon.told(&["status"])["unsealed"][0]["shard_id"], "more-bin", "and it is still there");
    home.file("more.bin", &[8; 6000]);
    let resealed = daemon.told(&["reseal", "more-bin"]);
    assert_eq!(resealed["digest"], format!("blake3:{}", blake3::hash(&[8; 6000]).to_hex()));
    daemon.until("ready with the new bytes", |status| status["ready"] == true);

    // What is no model leaves the shard unsealed, and that can be given up.
    daemon.told(&["unseal", "more-bin", "--reason", "another update"]);
    std::fs::remove_file(&more).unwrap();
    assert_eq!(daemon.ask(&["reseal", "more-bin"]).code, 1);
    assert_eq!(daemon.told(&["release", "more-bin"])["reason"], "another update");
    daemon.until("ready without it", |status| status["ready"] == true);
    let shown = daemon.get("/metrics").body;
    let of_it: Vec<_> = shown.lines().filter(|line| line.contains("shard=\"more-bin\"")).collect();
    assert!(of_it.iter().all(|line| line.ends_with(" 0")), "nothing of it looks as if it were there: {of_it:?}");
    daemon.stop();
    let events = home.events();
    assert!(events.iter().any(|event| event == "ShardUnsealed") && events.iter().any(|event| event == "ShardResealed"));
}

#[test]
fn verifying_everything_names_what_is_not_sealed_and_what_is_not_there() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let more = home.file("more.bin", &[7; 5000]);
    daemon.told(&["load", "--format", "raw", more.to_str().unwrap()]);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 3);
    daemon.told(&["release", "small-bin"]);
    daemon.told(&["unseal", "more-bin", "--reason", "an update"]);
    // The others are verified nevertheless.
    let ran = daemon.ask(&["verify"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let reports = ran.object();
    assert_eq!((&reports[0]["shard_id"], &reports[0]["state"]), (&json!("big-bin"), &json!("VERIFIED")));
    assert_eq!((&reports[1]["shard_id"], &reports[1]["error"]["kind"]), (&json!("more-bin"), &json!("unsealed")));
    for words in ["'more-bin' is not sealed (an update)", "reseal it"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    daemon.told(&["release", "big-bin"]);
    let alone = daemon.ask(&["verify"]);
    assert_eq!((alone.code, alone.object().as_array().unwrap().len()), (1, 1), "{alone:?}");
    daemon.told(&["release", "more-bin"]);
    daemon.ask(&["verify"]).failed(1, "no-shard", &["no shard is resident", "vram load"]);
}

#[test]
fn verifying_everything_names_what_is_damaged_and_verifies_the_others() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    daemon.told(&["drill", "big-bin", "--byte", "5", "--bit", "1"]);
    let ran = daemon.ask(&["verify"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let reports = ran.object();
    assert_eq!((&reports[0]["shard_id"], &reports[0]["integrity"]), (&json!("big-bin"), &json!(true)));
    assert!(reports[0]["error"]["message"].as_str().unwrap().contains("big-bin"), "{reports}");
    assert_eq!((&reports[1]["shard_id"], &reports[1]["state"]), (&json!("small-bin"), &json!("VERIFIED")));
    assert_eq!(daemon.told(&["repair", "big-bin"])["repaired"].as_array().unwrap().len(), 1);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 2);
}

#[test]
fn only_this_user_and_root_may_command_it() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: another user can be played only by root");
        return;
    }
    // Even where somebody opened the file to everybody.
    std::fs::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(b'GET /v1/status HTTP/1.0\\r\\nHost: vram\\r\\n\\r\\n')\nsys.stdout.buffer.write(s.recv(100))";
    let dir = daemon.socket.parent().unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ask_as = |user: u32| {
        let mut python = std::process::Command::new("python3");
        python.args(["-c", script]).arg(&daemon.socket).uid(user).output().unwrap()
    };
    let root = ask_as(0);
    assert!(root.stdout.starts_with(b"HTTP/1.0 200") || root.stdout.starts_with(b"HTTP/1.1 200"), "{root:?}");
    let stranger = ask_as(65_534);
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(stranger.stdout.is_empty(), "{stranger:?}");
    if said.contains("PermissionError") {
        eprintln!("a directory above the checkout keeps other users out already: who stopped this one is not known");
    }
    assert_eq!(daemon.told(&["status"])["ready"], true);
}

#[test]
fn what_costs_work_needs_the_token() {
    let home = Home::new();
    let path = "/v1/shards/big-bin/verify";
    {
        let daemon = Daemon::start(&home, &[]);
        assert_eq!(daemon.http("POST", path, "").status, 403, "there is no token");
    }
    let token = "0123456789abcdef0123456789abcdef";
    let file = home.file("token", format!("{token}\n").as_bytes());
    let shown = file.to_str().unwrap().to_owned();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = home.run(["serve", "--token-file", &shown]);
    assert!(refused.code == 1 && refused.stderr.contains("the token"), "{refused:?}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = Daemon::start(&home, &["--token-file", &shown]);
    assert_eq!(daemon.http("POST", path, "").status, 401);
    assert_eq!(daemon.http("POST", path, "Authorization: Bearer 0123456789abcdef0123456789abcdeg\r\n").status, 401);
    assert_eq!(daemon.http("POST", path, "Authorization: Basic 0123\r\n").status, 401);
    let verified = daemon.http("POST", path, &format!("Authorization: Bearer {token}\r\n"));
    assert_eq!((verified.status, &verified.json()["state"]), (200, &json!("VERIFIED")));
    for path in ["/v1/shards/big-bin", "/v1/shards"] {
        let posted = daemon.http("DELETE", path, &format!("Authorization: Bearer {token}\r\n"));
        assert_eq!(posted.status, 405, "the port changes nothing");
    }
}

#[test]
fn what_cannot_start_says_why() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let socket = daemon.socket.to_str().unwrap().to_owned();
    let taken = home.run(["serve", "--socket", &socket, "--listen", "127.0.0.1:0"]);
    assert!(taken.code == 1 && taken.stderr.contains("another daemon has"), "{taken:?}");
    // Everything of the other's: the daemon is what he should hear of, not the port.
    let same = home.run(["serve", "--socket", &socket, "--listen", &daemon.address]);
    assert!(same.code == 1 && same.stderr.contains("another daemon has"), "{same:?}");
    let port = home.run(["serve", "--socket", "/tmp/vram-test-unused", "--listen", &daemon.address]);
    assert!(port.code == 1 && port.stderr.contains("--listen"), "{port:?}");
    let config = home.file("vram.toml", b"period = \"5s\"\nperiodd = 5\n");
    let wrong = home.run(["serve", "--config", config.to_str().unwrap()]);
    assert!(wrong.code == 2 && wrong.stderr.contains("vram.toml:2"), "{wrong:?}");
    let endless = home.run(["serve", "--config", "/dev/zero"]);
    assert!(endless.code == 1 && endless.stderr.contains("regular file"), "{endless:?}");
    for period in ["5 parsecs", "0s"] {
        let wrong = home.run(["serve", "--period", period]);
        assert!(wrong.code == 2 && wrong.stderr.contains("100ms"), "{wrong:?}");
    }
    // White space at the end does not make it long.
    let token = home.file("token", format!("a{}", "\n".repeat(39)).as_bytes());
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let short = home.run(["serve", "--listen", "127.0.0.1:0", "--token-file", token.to_str().unwrap()]);
    assert!(short.code == 1 && short.stderr.contains("32 or more printable characters"), "{short:?}");
    let nobody = home.run(["status", "--socket", "/tmp/vram-test-unused"]);
    assert!(nobody.code == 1 && nobody.stderr.contains("vram serve"), "{nobody:?}");
}

#[test]
fn a_killed_daemon_leaves_nothing_in_the_way() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    daemon.signal("-KILL");
    daemon.end();
    assert!(daemon.socket.exists());
    let again = Daemon::start(&home, &[]);
    again.until("ready", |status| status["ready"] == true);
    drop(again);
    let verified = home.run(["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

/// A program that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_that_it_is_ready_lives_and_stops() {
    let home = Home::new();
    let notify = home.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(support::daemon::WAIT)).unwrap();
    let model = home.file("model.bin", &[5; 9000]);
    // As systemd does it: the watchdog is for this process and no other.
    let home_vram = home.command();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "export WATCHDOG_PID=$$; exec \"$0\" \"$@\""]).arg(home_vram.get_program());
    command.args(["serve", "--format", "raw", "--listen", "127.0.0.1:0", "--period", "1s", "--socket"]);
    command.arg(home.path("s")).arg(&model).env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "600000");
    command.env("XDG_STATE_HOME", home.path("state")).stdout(std::process::Stdio::null());
    let mut child = Ended(command.spawn().unwrap());
    let mut told = String::new();
    let mut until = |wanted: &str| {
        let mut buffer = [0; 512];
        while !told.contains(wanted) {
            let count = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}: {told}"));
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
            told.push('\n');
        }
    };
    until("READY=1");
    until("WATCHDOG=1");
    let status = std::process::Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status().unwrap();
    assert!(status.success());
    until("STOPPING=1");
    assert!(child.0.wait().unwrap().success());
}
