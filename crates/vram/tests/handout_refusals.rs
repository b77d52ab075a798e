//! Who is refused hears why, who holds something is on record, and the log has it, whatever comes between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use support::attach::{Raw, frame};
use support::daemon::Daemon;
use support::{Home, events};

#[test]
fn refusals_that_the_log_did_not_take_are_in_the_next_record_that_it_takes() {
    let home = Home::new();
    // The log cannot be opened until something is out of its way.
    let obstacle = home.file("state/vram/audit", b"no directory");
    let mut daemon = Daemon::start(&home, &[]);
    let mut raw = Raw::greeted(&daemon.attach());
    for _ in 0..300 {
        assert_eq!(raw.ask(&json!({ "type": "attach", "shard": "nobody" }))["code"], "unknown-shard");
    }
    std::fs::remove_file(obstacle).unwrap();
    daemon.until("the log is open", |status| status["audit"]["health"] == "good");
    for _ in 0..200 {
        assert_eq!(raw.ask(&json!({ "type": "attach", "shard": "nobody" }))["code"], "unknown-shard");
    }
    daemon.stop();
    let events = events(&home.audit());
    let refused = events.iter().filter(|event| event["event"] == "AttachRefused");
    assert_eq!(refused.map(|event| 1 + event["unrecorded"].as_u64().unwrap_or(0)).sum::<u64>(), 500, "{events:?}");
}

/// The record of a hand-out is lost behind the descriptor: a routine one, that nobody waits for. It is counted, whoever looks sees
/// it, the client is told not to rely on the bytes, and the log has it as soon as it takes records again.
#[test]
fn a_lease_whose_record_is_lost_is_told_of_and_recorded_again() {
    let home = Home::new();
    // No write succeeds beyond a limit that is set later, and none ends it.
    let mut daemon = Daemon::start_as(&home, home.command_after("trap '' XFSZ"), "1h", &[]);
    let files_may_have = |current: Option<u64>| {
        let pid = Pid::from_raw(i32::try_from(daemon.child.id()).unwrap());
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        prlimit(pid, Resource::Fsize, Rlimit { current, maximum }).unwrap();
    };
    let mut raw = Raw::greeted(&daemon.attach());
    assert_eq!(raw.ask(&json!({ "type": "watch" }))["type"], "watching");
    daemon.until("all is on disk", |status| status["audit"]["queued"] == 0);
    files_may_have(Some(0));
    let (attached, _memory) = raw.attach("big-bin");
    let lease = attached["lease"].as_u64().unwrap();
    let told = loop {
        let (told, _) = raw.receive();
        if told["state"] != "VERIFIED" {
            break told;
        }
    };
    // Somebody who does not read is dropped.
    let mut rest = raw.stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut rest, &mut std::io::sink()));
    assert_eq!((&told["type"], &told["state"]), (&json!("state"), &json!("UNVERIFIED")), "{told}");
    let status = daemon.until("it is seen", |status| status["handout"]["unrecorded"] == 1);
    let recorded = |status: &Value| status["handout"]["clients"][0]["leases"][0]["recorded"].clone();
    assert_eq!((recorded(&status), &told["lease"]), (json!(false), &json!(lease)));
    assert!(status["audit"]["lost"].as_u64().unwrap() >= 1, "{status}");
    let shown = home.command().args(["status", "--socket"]).arg(&daemon.socket).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("big-bin (its record may be lost)"), "{shown}");
    assert!(daemon.get("/metrics").body.contains("vram_handout_unrecorded_total 1"));

    files_may_have(getrlimit(Resource::Fsize).current);
    let status = daemon.until("it is recorded again", |status| status["handout"]["unrecorded"] == 0);
    assert_eq!(recorded(&status), true, "{status}");
    assert!(daemon.get("/metrics").body.contains("vram_handout_unrecorded_total 1"), "it happened once");
    daemon.stop();
    reading.join().unwrap().unwrap();
    let events = events(&home.audit());
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let (attached, ended) = (named("ShardAttached"), named("ShardDetached"));
    assert_eq!((attached.len(), ended.len()), (1, 1), "the first one is lost: {attached:?}");
    assert!(attached[0]["held_ns"].as_u64().unwrap() > 0 && attached[0]["writable"].is_null(), "{attached:?}");
    assert_eq!((&attached[0]["lease"], &attached[0]["shard_id"]), (&json!(lease), &json!("big-bin")));
    assert!(attached[0]["actor"].is_string() && attached[0]["actor"] == ended[0]["actor"], "{attached:?}");
}

/// A daemon that refuses at once has hung up before anything is asked.
#[test]
fn the_client_in_python_tells_of_a_refusal_that_came_before_its_question() {
    let home = Home::new();
    let socket = home.path("door");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let bye = json!({ "type": "bye", "reason": "x" });
        let error = json!({ "type": "error", "code": "forbidden-user", "message": "user 7 is not on the list" });
        for message in [bye, error] {
            stream.write_all(&frame(message.to_string().as_bytes())).unwrap();
        }
    });
    // As `Daemon` does it, with time to hang up in between.
    let script = "import socket, sys, time
sys.path.insert(0, sys.argv[1])
import attach
connect = socket.socket.connect
socket.socket.connect = lambda *to: (connect(*to), time.sleep(1))
try:
    attach.Daemon(sys.argv[2])
except OSError as error:
    sys.exit(str(error))
";
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let said = Command::new("python3").args(["-B", "-c", script]).arg(docs).arg(&socket).output().unwrap();
    daemon.join().unwrap();
    let told = String::from_utf8(said.stderr).unwrap();
    assert_eq!((said.status.code(), told.trim()), (Some(1), "forbidden-user: user 7 is not on the list"));
}
