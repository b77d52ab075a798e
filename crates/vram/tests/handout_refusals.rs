//! Who is refused hears why, and the log has it, whatever comes between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::json;
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
