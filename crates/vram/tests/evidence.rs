//! What of the daemon's log leaves the machine, as its operators meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use audit_logging::publish::{PublishOptions, Publisher};
use audit_logging::{AuditLog, Clock, Severity, SystemClock};
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
        "vram_audit_pruned_records",
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
        ("[audit]\nkeep = \"4d0\"\n".to_owned(), "whole number"),
        ("[audit]\nkeep = \"400s\"\n".to_owned(), "400d"),
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

/// A clock that is so far behind, and stands still.
#[derive(Debug)]
struct Behind(Duration);

impl Clock for Behind {
    fn wall(&self) -> SystemTime {
        SystemClock::new().wall() - self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// Writes and signs so many records that are two days old.
fn write_old(home: &Home, count: u64) {
    let clock = Arc::new(Behind(Duration::from_secs(48 * 3600)));
    let options = audit_logging::Options { clock: clock.clone(), segment_bytes: 1 << 16, ..Default::default() };
    let log = AuditLog::open(&home.audit(), options).unwrap();
    let publisher = Publisher::start(&log, PublishOptions::new(home.state().join("audit.key"))).unwrap();
    let ms = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    for n in 0..count {
        let leaf = format!(r#"{{"event":"Old","n":{n},"time_unix_ms":{ms},"rest":"{}"}}"#, "x".repeat(200));
        let _ = log.emit(Severity::Routine, leaf.as_bytes());
    }
    let wait = Duration::from_secs(60);
    assert!(log.close(wait).is_durable());
    assert!(publisher.finish(wait).caught_up);
}

fn bundle(home: &Home, number: u64) -> PathBuf {
    home.audit().join(format!("tlog/tile/entries/{number:03}"))
}

#[test]
fn old_records_are_given_up_by_hand_and_the_rest_is_proven_as_before() {
    let home = Home::new();
    let vkey = home.json(["audit", "keygen"])["vkey"].as_str().unwrap().to_owned();
    write_old(&home, 1500);
    let model = home.file("one.bin", &[7; 100_000]);
    home.json(["seal", "--format", "raw", model.to_str().unwrap()]);
    let old = home.path("old.tlog-proof");
    home.json(["audit", "prove", "700", "--vkey", &vkey, "-o", old.to_str().unwrap()]);
    let replica = home.path("replica");
    let copied = std::process::Command::new("cp").arg("-a").arg(home.audit().join("tlog")).arg(&replica).status();
    assert!(copied.unwrap().success());
    let verify = || {
        let verdict = home.json(["audit", "verify", "--vkey", &vkey, "--replica", replica.to_str().unwrap()]);
        assert_eq!(verdict["intact"], true, "{verdict}");
        verdict
    };
    assert_eq!(verify()["pruned"], 0);

    // Which records must be said, and of what.
    assert_eq!(home.run(["audit", "prune"]).code, 2);
    assert_eq!(home.run(["audit", "prune", "--before", "9", "--older-than", "1d"]).code, 2);
    let none = home.path("nothing-here");
    let ran = home.run(["audit", "prune", "--json", "--before", "9", "--audit-dir", none.to_str().unwrap()]);
    ran.failed(1, "audit", &["nothing has been recorded"]);
    assert!(!none.exists());
    assert_eq!(home.json(["audit", "prune", "--older-than", "3d"])["pruned"], 0, "none is as old as that");

    let kept = home.run(["audit", "export", "--format", "ndjson", "--seq", "700"]).stdout;
    let kept = home.file("700.json", kept.as_bytes());
    let looked = home.json(["audit", "prune", "--before", "800", "--dry-run"]);
    assert!(looked["dry_run"] == true && looked["pruned"] == 768 && bundle(&home, 0).exists(), "{looked}");
    let pruned = home.json(["audit", "prune", "--before", "800", "--replica", replica.to_str().unwrap()]);
    assert_eq!((&pruned["pruned"], &pruned["minimum_index"], &pruned["kept"]), (&768.into(), &768.into(), &0.into()));
    assert!(pruned["in_segments"].as_u64() < Some(300), "a segment has some hundred of these: {pruned}");
    assert!(!bundle(&home, 0).exists() && bundle(&home, 3).exists());
    let verdict = verify();
    assert!(verdict["pruned"].as_u64() > Some(0) && verdict["pruned"].as_u64() <= Some(768), "{verdict}");
    let announced = &verdict["published"]["prunings"][0];
    assert_eq!((&announced["minimum_index"], &verdict["published"]["pruned"]), (&768.into(), &768.into()), "{verdict}");
    let record = home.json(["audit", "show", "--event", "pruned"]);
    assert_eq!((&record["seq"], &record["record"]["before"]), (&announced["record"], &pruned["first_seq"]));
    assert!(record["record"]["actor"].as_str().unwrap().starts_with("hmac-sha256:"), "{record}");
    // The rest goes too, up to what was written today, as far as the copy has it.
    let lost = replica.join("tile/entries/004");
    let bytes = std::fs::read(&lost).unwrap();
    std::fs::remove_file(&lost).unwrap();
    let as_far = home.json(["audit", "prune", "--older-than", "1d", "--replica", replica.to_str().unwrap()]);
    assert_eq!(as_far["minimum_index"], 1024, "{as_far}");
    std::fs::write(&lost, bytes).unwrap();
    let pruned = home.json(["audit", "prune", "--older-than", "1d"]);
    assert!(pruned["first_seq"].as_u64() > Some(1200), "{pruned}");
    verify();
    let told = home.run(["audit", "verify", "--vkey", &vkey]).stdout;
    assert!(told.contains("that were pruned") && told.contains("their hashes are kept"), "{told}");
    home.json(["audit", "check-proof", old.to_str().unwrap(), "--vkey", &vkey]);
    let proof = home.path("p");
    let prove = |place: &str| {
        home.run(["audit", "prove", "700", place, "--vkey", &vkey, "--json", "-o", proof.to_str().unwrap()])
    };
    prove(home.audit().to_str().unwrap()).failed(1, "audit", &["was pruned", "replica"]);
    let mine = home.json(["audit", "prove", "700", "--record", kept.to_str().unwrap(), "-o", proof.to_str().unwrap()]);
    assert_eq!(mine["tree_index"], 699);
    home.json(["audit", "check-proof", proof.to_str().unwrap(), "--vkey", &vkey]);
    home.run(["audit", "prove", "701", "--json", "--record", kept.to_str().unwrap()]).failed(
        2,
        "usage",
        &["record 700"],
    );
    let changed = std::fs::read_to_string(&kept).unwrap().replace("xxxx", "xxxy");
    std::fs::write(&kept, changed).unwrap();
    home.run(["audit", "prove", "700", "--json", "--record", kept.to_str().unwrap()]).failed(3, "proof", &["changed"]);
    assert_eq!(prove(replica.to_str().unwrap()).code, 0);
    // What is exported knows its place.
    let line = home.run(["audit", "export", "--format", "ndjson"]).stdout.lines().last().unwrap().to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    let index = line["tree_index"].as_u64().unwrap();
    let proven =
        home.json(["audit", "prove", &line["seq"].to_string(), "--vkey", &vkey, "-o", proof.to_str().unwrap()]);
    assert_eq!(proven["tree_index"], index);
    assert_eq!(home.json(["audit", "verify", replica.to_str().unwrap(), "--vkey", &vkey])["intact"], true);
    // The log itself is no copy.
    let own = home.audit();
    for itself in [own.clone(), own.join("tlog"), PathBuf::from(format!("file://{}", own.join("tlog").display()))] {
        let ran = home.run(["audit", "prune", "--json", "--before", "1400", "--replica", itself.to_str().unwrap()]);
        ran.failed(2, "usage", &["no copy"]);
    }
    // Nor does a checkpoint without end, or a state file that is none, fool anybody.
    let zeros = home.run(["audit", "verify", "--json", "--vkey", &vkey, "--checkpoint", "/dev/zero"]);
    zeros.failed(1, "file", &["/dev/zero", "a device"]);
    let state = home.state().join("audit.key.state");
    let kept = std::fs::read(&state).unwrap();
    std::fs::write(&state, "nonsense").unwrap();
    home.run(["audit", "verify", "--json", "--vkey", &vkey]).failed(3, "audit", &[]);
    std::fs::write(&state, kept).unwrap();
    // A copy that contradicts the log stops everything; one that is behind keeps what it lacks.
    let other = Home::new();
    other.json(["audit", "keygen"]);
    write_old(&other, 10);
    let theirs = other.audit().join("tlog");
    let ran = home.run(["audit", "prune", "--json", "--before", "1400", "--replica", theirs.to_str().unwrap()]);
    ran.failed(3, "audit", &[]);
}

#[test]
fn the_daemon_keeps_records_as_long_as_it_is_told_and_its_replicas_have_them() {
    let home = Home::new();
    home.json(["audit", "keygen"]);
    write_old(&home, 1000);
    let (config, replica) = config(&home);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("[audit]\nkeep = \"1d\"\n{text}")).unwrap();
    let mut daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    home.run(["audit", "prune", "--json", "--before", "500"]).failed(1, "audit", &["process"]);
    daemon.until("old records are given up", |status| evidence(status)["pruned_records"] == 768);
    assert!(!bundle(&home, 2).exists());
    daemon.until("the metrics say so", |_| daemon.get("/metrics").body.contains("vram_audit_pruned_records 768"));
    // The copy that was complete before goes on.
    daemon.until("the replica has everything", |status| {
        evidence(status)["replicas"][0]["lag_records"] == 0 && evidence(status)["replicas"][0]["state"] == "working"
    });
    daemon.stop();
    assert!(replica.join("tile/entries/000").exists());
    let verdict = home.json(["audit", "verify", "--replica", replica.to_str().unwrap()]);
    assert_eq!((&verdict["intact"], &verdict["published"]["violations_total"]), (&true.into(), &0.into()), "{verdict}");
}

#[test]
fn a_log_that_opens_after_the_start_is_signed_and_copied_too() {
    let home = Home::new();
    let vkey = home.json(["audit", "keygen"])["vkey"].as_str().unwrap().to_owned();
    std::fs::write(home.audit(), "in the way").unwrap();
    let (config, replica) = config(&home);
    let mut daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    let status = daemon.get("/v1/status").json();
    assert!(evidence(&status).is_null() && status["audit"]["health"] == "failing", "{status}");
    std::fs::remove_file(home.audit()).unwrap();
    daemon.until("it is signed and copied", |status| {
        evidence(status)["signed_records"].as_u64() > Some(0) && evidence(status)["replicas"][0]["lag_records"] == 0
    });
    daemon.stop();
    let verdict = home.json(["audit", "verify", "--vkey", &vkey, "--replica", replica.to_str().unwrap()]);
    let ranges = &verdict["published"]["ranges"];
    assert_eq!((&verdict["intact"], &ranges["replicated"]), (&true.into(), &ranges["unsigned"]), "{verdict}");
}

#[test]
fn who_has_only_a_copy_reads_it_like_the_log_itself() {
    let home = Home::new();
    home.json(["audit", "keygen"]);
    write_old(&home, 600);
    let copy = home.path("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(home.audit().join("tlog")).arg(&copy).status();
    assert!(copied.unwrap().success());
    let copy = copy.to_str().unwrap();
    let lines = |arguments: &[&str]| home.run(arguments.iter().copied()).stdout;
    let strip = |text: &str| -> Vec<Value> {
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|mut row| {
            row.as_object_mut().unwrap().retain(|name, _| name != "segment" && name != "offset");
            row
        })
        .collect()
    };
    for arguments in
        [&["show", "--json", "--seq", "100..400"][..], &["export", "--format", "ndjson", "--severity", "critical"]]
    {
        let own = lines(&[&["audit"], arguments].concat());
        let theirs = lines(&[&["audit"], arguments, &[copy]].concat());
        assert!(!own.is_empty());
        assert_eq!(strip(&own), strip(&theirs));
    }
    assert_eq!(lines(&["audit", "show", "--last", "3"]), lines(&["audit", "show", "--last", "3", copy]));
    // What is not there any more is said, and what is no record is named.
    std::fs::remove_file(home.path("copy/tile/entries/000")).unwrap();
    let ran = home.run(["audit", "show", "--seq", "9", copy]);
    assert!(ran.stderr.contains("256 published records are not there"), "{ran:?}");
    std::fs::write(home.path("copy/tile/entries/001"), "nonsense").unwrap();
    let ran = home.run(["audit", "export", "--format", "ocsf", copy]);
    assert!(ran.code == 3 && ran.stderr.contains("tile/entries/001"), "{ran:?}");
    let nothing = home.path("nothing");
    assert_eq!(home.run(["audit", "show", nothing.to_str().unwrap()]).code, 1);
}
