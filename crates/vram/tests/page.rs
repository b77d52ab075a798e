//! What people see: the page and what it is made of, and the published log beside it. A real browser is driven by
//! `cargo xtask page`; here is what can be told without one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};
use support::Home;
use support::daemon::{Answer, Daemon, WAIT};

/// The value of a header.
fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).unwrap().1.split_once(to).unwrap().0
}

#[test]
fn a_browser_runs_the_pages_own_script_and_nothing_else() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let page = daemon.get("/");
    assert_eq!((page.status, header(&page, "content-type")), (200, "text/html; charset=utf-8"));
    let policy = header(&page, "content-security-policy");
    for (kind, from, to) in [("script", "<script>", "</script>"), ("style", "<style>", "</style>")] {
        let hash = BASE64_STANDARD.encode(Sha256::digest(between(&page.body, from, to)));
        assert!(policy.contains(&format!("{kind}-src 'sha256-{hash}'")), "{kind}: {policy}");
    }
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
    ] {
        assert_eq!(header(&page, name), value, "{name}");
    }
    // Everything else is answered as before: nothing runs, nothing is framed, nothing is kept.
    let status = daemon.get("/v1/status");
    assert_eq!(header(&status, "content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
    assert_eq!(header(&status, "cache-control"), "no-store");
    assert!(daemon.get("/runbook.md").body.contains("## VramIntegrityFailure"));
    for path in ["/", "/runbook.md", "/audit/checkpoint"] {
        assert_eq!(daemon.get_from("evil.example.com", path).status, 421, "{path}");
    }
}

#[test]
fn the_map_tells_of_each_block_and_costs_the_same_for_many() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--on-failure", "repair", "--allow-drill", "--repeat-faults", "0"]);
    let map = || daemon.get("/v1/shards/big-bin/blocks").json();
    let first = map();
    assert_eq!((&first["blocks"], &first["bytes"]), (&3.into(), &2_621_440.into()));
    let ages = BASE64_STANDARD.decode(first["ages"].as_str().unwrap()).unwrap();
    assert!(
        ages.len() == 3 && ages.iter().all(|age| *age <= 200),
        "within two periods, in hundredths of one: {ages:?}"
    );
    assert_eq!(first["unit_seconds"], 0.01);

    // Whoever asks within a quarter of the period gets what the one before got.
    let begun = Instant::now();
    let times: Vec<_> = (0..40).map(|_| map()["time"].to_string()).collect();
    let made = times.iter().collect::<std::collections::BTreeSet<_>>().len();
    let most = begun.elapsed().as_millis() / 250 + 2;
    assert!(made as u128 <= most, "{made} maps were made in {:?}", begun.elapsed());

    daemon.told(&["drill", "big-bin", "--byte", "2097153"]);
    let begun = Instant::now();
    let mark = loop {
        let block = daemon.get("/v1/shards/big-bin/blocks/2").json();
        if block["mark"]["state"] == "repaired" {
            break block["mark"].clone();
        }
        assert!(begun.elapsed() < WAIT, "{block}");
        std::thread::sleep(Duration::from_millis(20));
    };
    // A map of before is not served any more, though its time is not over.
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(map()["marks"][0]["block"], 2);
    let records = daemon.get("/v1/records").json();
    let named = records.as_array().unwrap().iter().find(|one| one["seq"] == mark["seq"]).unwrap();
    assert_eq!((&named["record"]["event"], &named["record"]["block"]), (&"BlockRepaired".into(), &2.into()));
    let status = daemon.get("/v1/status").json();
    assert!(status["audit"]["last_record_at"].is_string() && status["ready_since"].is_string());
    for (block, code) in [("3", 400), ("-1", 400), ("x", 400), ("99999999999999999999", 400), ("1", 200)] {
        assert_eq!(daemon.get(&format!("/v1/shards/big-bin/blocks/{block}")).status, code, "{block}");
    }
    assert_eq!(daemon.get("/v1/shards/nobody/blocks").status, 404);
    // Given back, and nothing is said of its blocks any more.
    daemon.told(&["release", "big-bin"]);
    assert_eq!(daemon.get("/v1/shards/big-bin/blocks").status, 404);
}

#[test]
fn a_map_is_not_older_than_the_verification_that_the_status_tells_of() {
    let home = Home::new();
    // A map serves a second here, and every block is looked at once in some seven.
    let daemon = Daemon::start_every(&home, "10s", &[]);
    let ages = |map: &serde_json::Value| BASE64_STANDARD.decode(map["ages"].as_str().unwrap()).unwrap();
    let map = || daemon.get("/v1/shards/big-bin/blocks").json();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        let before = map();
        daemon.told(&["verify", "big-bin"]);
        let status = daemon.get("/v1/status").json();
        let after = map();
        assert_ne!(before["time"], after["time"], "a map of before the verification is served after it");
        let shards = status["shards"].as_array().unwrap();
        let shard = shards.iter().find(|shard| shard["shard_id"] == "big-bin").unwrap();
        // In tenths of a second, and the map was asked for a little later.
        let oldest = shard["oldest_age_seconds"].as_f64().unwrap() * 10.0;
        let told = ages(&after);
        assert!(told.iter().all(|age| f64::from(*age) <= oldest + 5.0), "{told:?}, and the status says {oldest}");
        let verified = shard["last_verified_at"].as_str().unwrap();
        assert!(after["time"].as_str().unwrap() > verified, "{} {verified}", after["time"]);
    }
}

#[test]
fn since_when_is_said_and_holds() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    let well = daemon.until("all is verified", |status| status["shards"][0]["state"] == "VERIFIED");
    std::thread::sleep(Duration::from_millis(300));
    let later = daemon.get("/v1/status").json();
    assert_eq!((&later["ready_since"], later["ready"].as_bool()), (&well["ready_since"], Some(true)));
    assert_eq!(later["shards"][0]["state_since"], well["shards"][0]["state_since"]);
    assert!(later["time"].as_str() > well["time"].as_str());
    daemon.told(&["drill", "big-bin"]);
    let bad = daemon.until("it is quarantined", |status| status["shards"][0]["state"] == "QUARANTINED");
    assert!(bad["ready_since"].as_str() > well["ready_since"].as_str());
    assert!(bad["shards"][0]["state_since"].as_str() > well["time"].as_str(), "{bad}");
}

#[test]
fn a_running_daemons_log_is_verified_from_its_port() {
    let home = Home::new();
    home.json(["audit", "keygen"]);
    let daemon = Daemon::start(&home, &["--allow-drill", "--on-failure", "repair"]);
    daemon.told(&["drill", "big-bin"]);
    daemon.until("the repair is signed", |status| {
        status["scrub"]["repairs"] == 1 && status["audit"]["evidence"]["signed_records"] == status["audit"]["records"]
    });
    let vkey = home.state().join("audit.vkey");
    let url = format!("http://{}/audit", daemon.address);
    let verdict = home.json(["audit", "verify", &url, "--vkey", vkey.to_str().unwrap()]);
    assert!(verdict["published"]["ranges"]["signed"].as_u64().unwrap() > 8, "{verdict}");

    let checkpoint = daemon.get("/audit/checkpoint");
    assert_eq!((checkpoint.status, header(&checkpoint, "cache-control")), (200, "no-cache"));
    assert_eq!(header(&checkpoint, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(header(&daemon.get("/audit/vkey"), "cache-control"), "no-cache");
    // What lies beside it, above it, or nowhere in a published log is not there, however it is written.
    let published = home.audit().join("tlog");
    std::fs::write(published.join("secret"), "s").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", published.join("cosigned")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(published.join("minimum-index")).unwrap();
    let fifo = published.join("rotation");
    std::fs::create_dir_all(&fifo).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, fifo.join("7"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    for path in ["/audit/minimum-index", "/audit/rotation/7"] {
        assert_eq!(daemon.get(path).status, 404, "{path}");
    }
    for path in [
        "/audit",
        "/audit/",
        "/audit/lock",
        "/audit/secret",
        "/audit/tile",
        "/audit/tile/",
        "/audit/tile/0/",
        "/audit/cosigned",
        "/audit/../audit.key",
        "/audit/..%2faudit.key",
        "/audit/%2e%2e/audit.key",
        "/audit/tile/0/..%2f..%2f..%2faudit.key",
        "/audit//etc/passwd",
        "/audit/%2fetc%2fpasswd",
        "/audit/checkpoint%00",
        "/audit/checkpoint/",
        "/audit/./checkpoint",
        "/audit/tile/0/999",
        "/audit/rotation/1",
        "/audit/checkpoint.tmp",
        "/audit/%ff",
    ] {
        let answer = daemon.get(path);
        assert!((400..405).contains(&answer.status), "{path}: {answer:?}");
        assert!(!answer.body.contains("root:") && !answer.body.contains("vram-audit-key"), "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(daemon.http(method, "/audit/checkpoint", "").status, 405, "{method}");
    }
    assert_eq!(daemon.get("/v1/status").json()["ready"], true);
}

/// Who restarts a daemon after a fault, or finds it restarted, sees the fault.
#[test]
fn the_last_events_outlive_the_daemon_and_the_marks_of_its_memory_do_not() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--on-failure", "repair", "--allow-drill"]);
    daemon.told(&["drill", "big-bin"]);
    daemon.until("it is repaired", |status| status["scrub"]["repairs"] == 1);
    let find = |daemon: &Daemon<'_>| {
        let records = daemon.get("/v1/records").json();
        records.as_array().unwrap().iter().find(|one| one["record"]["event"] == "BlockRepaired").cloned()
    };
    let repaired = find(&daemon).unwrap();
    daemon.stop();
    let daemon = Daemon::start(&home, &[]);
    assert_eq!(find(&daemon), Some(repaired), "the same record, with its number");
    let records = daemon.get("/v1/records").json();
    let numbers: Vec<_> = records.as_array().unwrap().iter().map(|one| one["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next) && numbers.len() <= 96, "each once, in order: {numbers:?}");
    assert_eq!(daemon.get("/v1/shards/big-bin/blocks").json()["marks"], serde_json::json!([]), "new memory");
    drop(daemon);
    // A log that cannot be read is told of elsewhere, and is no reason not to start.
    for segment in std::fs::read_dir(home.audit()).unwrap().map(|entry| entry.unwrap().path()) {
        if segment.extension().is_some_and(|name| name == "wal") {
            let length = std::fs::metadata(&segment).unwrap().len();
            std::fs::write(&segment, vec![0x5a; length as usize]).unwrap();
        }
    }
    let daemon = Daemon::start(&home, &[]);
    assert_eq!((find(&daemon), daemon.get("/healthz").status), (None, 200));
}

#[test]
fn without_a_key_there_is_no_published_log() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let answer = daemon.get("/audit/checkpoint");
    assert_eq!((answer.status, &answer.json()["error"]["kind"]), (404, &"not-found".into()));
}
