//! What of the daemon's log leaves the machine, as its operators meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::Home;
use support::daemon::Daemon;

const VKEY: &str = "witness.example.org/w1+af7ac9cb+BBCHTjVvcmoerhePTbYXxQrjjKM5y+ZWcYXcGCUdRdUM";

/// A configuration with a replica in a directory and a witness that does not answer.
fn config(home: &Home) -> (PathBuf, PathBuf) {
    let replica = home.path("replica");
    std::fs::create_dir_all(&replica).unwrap();
    let text = format!(
        "[[audit.replicas]]\nurl = \"file://{}\"\ninterval = \"100ms\"\n[[audit.witnesses]]\nurl = \
         \"http://127.0.0.1:9/\"\nvkey = \"{VKEY}\"\n",
        replica.display()
    );
    (home.file("vram.toml", text.as_bytes()), replica)
}

fn evidence(status: &Value) -> &Value {
    &status["audit"]["evidence"]
}

fn size(checkpoint: &Path) -> u64 {
    std::fs::read_to_string(checkpoint).unwrap().lines().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_log_is_copied_to_its_last_record_and_a_witness_that_is_down_holds_up_nothing() {
    let home = Home::new();
    home.json(["audit", "keygen"]);
    let (config, replica) = config(&home);
    let mut daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    let status = daemon.until("the replica has everything, and the witness is seen to be down", |status| {
        let evidence = evidence(status);
        evidence["replicas"][0]["state"] == "working"
            && evidence["replicas"][0]["lag_records"] == 0
            && evidence["signed_records"].as_u64() >= Some(3)
            && evidence["witnesses"][0]["state"] == "failing"
    });
    let evidence = evidence(&status);
    assert_eq!(evidence["replicas"][0]["probe"]["winners"], 1, "{evidence}");
    assert_eq!((&evidence["quorum"], &evidence["cosigned_records"]), (&1.into(), &0.into()));
    assert!(evidence["witnesses"][0]["last_error"].as_str().unwrap().contains("does not answer"), "{evidence}");
    let told = home.run(["status".as_ref(), "--socket".as_ref(), daemon.socket.as_os_str()]).stdout;
    for words in ["  signed  ", "  replica ", ": working, ", "  witness ", ": failing, ", "does not answer"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let page = daemon.get("/metrics").body;
    for name in [
        "vram_audit_signed_records",
        "vram_audit_signed_timestamp_seconds",
        "vram_audit_signing_refused",
        "vram_audit_sign_failures_total",
        "vram_audit_replica_lag_records",
        "vram_audit_replica_timestamp_seconds",
        "vram_audit_replica_failures_total",
        "vram_audit_replica_bytes_total",
        "vram_audit_replica_state",
        "vram_audit_witness_lag_records",
        "vram_audit_witness_timestamp_seconds",
        "vram_audit_witness_failures_total",
        "vram_audit_witness_state",
        "vram_audit_cosigned_records",
        "vram_audit_cosigned_timestamp_seconds",
    ] {
        assert!(page.lines().any(|line| line.starts_with(name)), "{name} is missing in {page}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
    daemon.stop();
    let published = home.audit().join("tlog");
    assert_eq!(
        std::fs::read(replica.join("checkpoint")).unwrap(),
        std::fs::read(published.join("checkpoint")).unwrap()
    );
    let report = audit_logging::reader::verify(&home.audit()).unwrap();
    assert!(report.clean_close);
    assert_eq!(size(&replica.join("checkpoint")), report.records, "the record of the end is on the replica");
}

#[test]
fn a_log_that_was_set_back_is_found_out_by_its_replica() {
    let home = Home::new();
    home.json(["audit", "keygen"]);
    let (config, replica) = config(&home);
    let arguments = ["--config", config.to_str().unwrap()];
    Daemon::start(&home, &arguments).stop();
    let copy = |from: &Path, to: &Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    copy(&home.state(), &home.path("backup"));
    Daemon::start(&home, &arguments).stop();
    let known = size(&replica.join("checkpoint"));
    std::fs::remove_dir_all(home.state()).unwrap();
    copy(&home.path("backup"), &home.state());

    let daemon = Daemon::start(&home, &arguments);
    let status = daemon.until("it is found out", |status| {
        evidence(status)["replicas"][0]["state"] == "rollback" && !evidence(status)["refused"].is_null()
    });
    assert!(evidence(&status)["refused"].as_str().unwrap().contains("put back"), "{status}");
    assert_eq!(size(&replica.join("checkpoint")), known, "what the replica knows is left alone");
    assert!(daemon.get("/metrics").body.contains("state=\"rollback\"} 1"));
}

#[test]
fn what_cannot_work_is_said_before_anything_is_loaded() {
    let home = Home::new();
    let witness = format!("[[audit.witnesses]]\nurl = \"http://127.0.0.1:9/\"\nvkey = \"{VKEY}\"\n");
    let cases = [
        ("[[audit.replicas]]\nurl = \"gs://bucket\"\n".to_owned(), "only s3://"),
        ("[[audit.replicas]]\nurl = \"s3://b\"\nendpont = \"x\"\n".to_owned(), "endpont"),
        (format!("[audit]\nquorum = 2\n{witness}"), "choose 1 to 1"),
        (format!("[audit]\nquorum = 0\n{witness}"), "choose 1 to 1"),
        ("[[audit.witnesses]]\nurl = \"http://127.0.0.1:9/\"\nvkey = \"x\"\n".to_owned(), "verifier key"),
    ];
    for (text, word) in cases {
        let config = home.file("bad.toml", text.as_bytes());
        let ran = home.run(["serve", "--json", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
        ran.failed(2, "usage", &[word]);
    }
    // A replica of a log that nobody signs.
    let (config, _) = config(&home);
    let socket = home.path("s");
    let arguments = ["serve", "--json", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap(), "--socket"];
    let ran = home.run(arguments.into_iter().chain([socket.to_str().unwrap()]));
    ran.failed(1, "audit-key", &["keygen"]);
}
