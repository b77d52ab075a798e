//! Who commands the daemon is on record as a commitment, and in no other form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use support::daemon::Daemon;
use support::{Home, events, text};

#[test]
fn every_order_of_the_control_socket_is_on_record_with_who_gave_it() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--allow-drill"]);
    let more = home.file("more.bin", &[7; 5000]);
    daemon.told(&["load", "--format", "raw", more.to_str().unwrap()]);
    daemon.told(&["unseal", "more-bin", "--reason", "an update"]);
    daemon.told(&["reseal", "more-bin"]);
    daemon.told(&["release", "more-bin"]);
    daemon.told(&["drill", "small-bin"]);
    daemon.until("it is quarantined", |status| status["shards"].to_string().contains("QUARANTINED"));
    daemon.told(&["repair", "small-bin"]);
    assert_eq!(daemon.ask(&["release", "nobody"]).code, 1, "what is refused was ordered all the same");
    daemon.stop();

    let uid = rustix::process::geteuid().as_raw();
    let who = home.json(["audit", "subject", "--uid", &uid.to_string()]);
    let who = text(&who["actor"]);
    assert!(who.starts_with("hmac-sha256:") && who.len() == 12 + 64, "{who}");

    let events = events(&home.audit());
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let orders = of("OperatorCommand");
    let told: Vec<_> = orders.iter().map(|order| (text(&order["command"]), order["shard_id"].as_str())).collect();
    let expected = [
        ("load", None),
        ("unseal", Some("more-bin")),
        ("reseal", Some("more-bin")),
        ("release", Some("more-bin")),
        ("drill", Some("small-bin")),
        ("repair", Some("small-bin")),
        ("release", Some("nobody")),
    ];
    assert_eq!(told, expected.map(|(command, shard)| (command.to_owned(), shard)));
    for name in ["OperatorCommand", "ShardUnsealed", "ShardResealed", "FaultInjected", "BlockRepaired"] {
        let events = of(name);
        assert!(!events.is_empty() && events.iter().all(|event| event["actor"] == *who), "{name}: {events:?}");
    }
    // What the daemon does by itself is nobody's order.
    for name in ["ServiceStarted", "ScrubStarted", "SealVerificationFailed", "ServiceStopped"] {
        assert!(of(name).iter().all(|event| event["actor"] == Value::Null), "{name}");
    }
    // The key makes the commitments findable; it is this user's alone, and without it they say nothing.
    let shown = home.run(["audit", "show", "--actor", &who, "--json"]);
    assert_eq!(shown.stdout.matches("\"OperatorCommand\"").count(), 7, "{shown:?}");
    let key = home.state().join("subject.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(&key).unwrap();
    home.run(["audit", "subject", "--uid", "0", "--json"]).failed(1, "key", &["subject key", "erased"]);
    assert!(!key.exists(), "asking makes no new key");
}
