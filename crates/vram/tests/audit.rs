//! `vram audit` and `vram doctor`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use support::{Home, Ran, safetensors, text};

/// A home whose log tells of two good seals and a refused one.
fn home_with_a_story() -> Home {
    let home = Home::new();
    for name in ["one", "two"] {
        let path = home.file(format!("{name}.safetensors"), &safetensors(["a", "b"], 10));
        home.json(["seal", path.to_str().unwrap(), "--shard-id", name]);
    }
    let path = home.path("one.safetensors");
    let wrong = format!("blake3:{}", "0".repeat(64));
    assert_eq!(home.run(["seal", path.to_str().unwrap(), "--expect", &wrong]).code, 3);
    home
}

fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn records_are_shown_and_chosen() {
    let home = home_with_a_story();
    let show = |options: &[&str]| {
        let ran = home.run(["audit", "show", "--json"].iter().chain(options));
        assert_eq!(ran.code, 0, "{ran:?}");
        lines(&ran)
    };
    let all = show(&[]);
    assert_eq!(all.len(), 4 + 4 + 3 + 6, "three openings and three ends beside the events");
    assert!(all.windows(2).all(|pair| pair[0]["seq"].as_u64() < pair[1]["seq"].as_u64()));
    let two = show(&["--shard", "two"]);
    assert_eq!(two.len(), 4);
    assert!(two.iter().all(|line| line["record"]["shard_id"] == "two" && line["kind"] == "event"));
    let violations = show(&["--event", "policyviolation"]);
    assert_eq!((violations.len(), &violations[0]["severity"]), (1, &"critical".into()));
    assert_eq!(violations[0]["record"]["policy"], "expected-digest");
    assert_eq!(show(&["--event", "VramSealed", "--last", "1"])[0]["record"]["shard_id"], "two");
    assert!(show(&["--severity", "routine"]).iter().all(|line| line["severity"] == "routine"));
    assert_eq!(show(&["--last", "2"]), all[all.len() - 2..]);
    assert_eq!(show(&["--shard", "nobody"]).len(), 0);

    let ran = home.run(["audit", "show", "--event", "PolicyViolation"]);
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    assert!(ran.stdout.contains("CRITICAL") && ran.stdout.contains("action=refused"), "{ran:?}");
}

#[test]
fn records_are_chosen_by_number_and_time() {
    let home = home_with_a_story();
    let show = |options: &[&str]| {
        let ran = home.run(["audit", "show", "--json"].iter().chain(options));
        assert_eq!(ran.code, 0, "{ran:?}");
        lines(&ran)
    };
    let all = show(&[]);
    assert_eq!(show(&["--seq", "3..5"]), all[2..5]);
    assert_eq!(show(&["--seq", "16.."]), all[15..]);
    assert_eq!(show(&["--seq", "..2", "--severity", "routine"]).len(), 1, "the opening is critical");
    assert_eq!(show(&["--event", "open"]).len(), 3);
    assert_eq!(show(&["--since", "1h"]), all);
    assert_eq!(show(&["--until", "1h"]).len(), 0);
    let middle = text(&all[8]["record"]["time"]);
    let (before, after) = (show(&["--until", &middle]), show(&["--since", &middle]));
    assert_eq!(before.len() + after.len(), all.len());
    assert!(after.contains(&all[8]) && !before.is_empty(), "{middle}");
    home.run(["audit", "show", "--json", "--since", "soon"]).failed(2, "usage", &["2026-11-25"]);
    home.run(["audit", "show", "--json", "--seq", "9..3"]).failed(2, "usage", &["above"]);
}

#[test]
fn an_export_has_each_record_and_its_place_and_says_the_same_in_both_formats() {
    let home = home_with_a_story();
    let export = |options: &[&str]| {
        let ran = home.run(["audit", "export", "--format"].iter().chain(options));
        assert_eq!(ran.code, 0, "{ran:?}");
        lines(&ran)
    };
    let (ocsf, plain) = (export(&["ocsf"]), export(&["ndjson"]));
    let shown = lines(&home.run(["audit", "show", "--json"]));
    assert_eq!((ocsf.len(), plain.len()), (17, 17));
    for (index, ((event, line), shown)) in ocsf.iter().zip(&plain).zip(&shown).enumerate() {
        let unmapped = &event["unmapped"];
        assert_eq!((&unmapped["tree_index"], &line["tree_index"]), (&index.into(), &index.into()));
        assert_eq!((&unmapped["seq"], &line["record"]), (&shown["seq"], &shown["record"]));
        assert_eq!(unmapped["leaf_hash"], line["leaf_hash"]);
        let record: Value = serde_json::from_str(unmapped["record"].as_str().unwrap()).unwrap();
        assert_eq!(record, shown["record"]);
        assert_ne!(event["class_uid"], 0, "{event}");
    }
    let violation = &export(&["ocsf", "--event", "PolicyViolation"])[0];
    assert_eq!((&violation["class_uid"], &violation["type_uid"]), (&2003.into(), &200_301.into()));
    assert_eq!(violation["compliance"]["control"], "expected-digest");
    assert_eq!(export(&["ndjson", "--seq", "4..6", "--shard", "one"]).len(), 2);

    damage(&home);
    let ran = home.run(["audit", "export", "--format", "ndjson"]);
    assert!(ran.code == 3 && ran.stderr.contains("not as it was written"), "{ran:?}");
    let good = lines(&ran);
    assert!(good.len() > 10 && good.last().unwrap()["tree_index"].is_null(), "a place that is not certain is not said");
}

#[test]
fn an_intact_log_is_said_to_be_intact_and_no_more() {
    let home = home_with_a_story();
    let verdict = home.json(["audit", "verify"]);
    assert_eq!((&verdict["intact"], &verdict["records"]), (&true.into(), &17.into()));
    assert_eq!((&verdict["clean_close"], &verdict["violations_total"]), (&true.into(), &0.into()));
    assert_eq!((&verdict["torn_tail"], &verdict["gaps"]), (&Value::Null, &Value::Array(vec![])));
    let ran = home.run(["audit", "verify", home.audit().to_str().unwrap()]);
    assert!(ran.code == 0 && ran.stdout.contains("ok every record") && ran.stdout.contains("forger"), "{ran:?}");
}

#[test]
fn what_is_said_of_an_unfinished_log_is_no_more_than_is_known() {
    let home = home_with_a_story();
    let mut segments: Vec<_> = fs::read_dir(home.audit()).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "wal"));
    segments.sort();
    // Behind the last record, a write that was not finished.
    let mut bytes = fs::read(&segments[0]).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(8) + 8;
    bytes[end..end + 40].fill(0xa5);
    fs::write(&segments[0], &bytes).unwrap();
    let torn = home.json(["audit", "verify"]);
    let ran = home.run(["audit", "verify"]);
    let said = format!("every kept record is as it was written; {} bytes of an unfinished", torn["torn_tail"]["bytes"]);
    assert!(ran.code == 0 && ran.stdout.contains(&said), "{torn} {ran:?}");
    assert!(!ran.stdout.contains("ok every record") && ran.stdout.contains("cut off at the end"), "{ran:?}");

    // Nothing but empty segments.
    bytes[64..].fill(0);
    fs::write(&segments[0], &bytes).unwrap();
    segments[1..].iter().for_each(|spare| fs::remove_file(spare).unwrap());
    let ran = home.run(["audit", "verify"]);
    assert!(ran.code == 0 && ran.stdout.contains("There are no records"), "{ran:?}");
    assert!(!ran.stdout.contains("as it was written"), "{ran:?}");
}

/// Flips a bit of a record in the first segment of the home's log, and says where.
fn damage(home: &Home) -> usize {
    let segment = fs::read_dir(home.audit()).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = segment.filter(|path| path.extension().is_some_and(|end| end == "wal")).collect();
    segments.sort();
    let mut bytes = fs::read(&segments[0]).unwrap();
    let place = bytes.windows(7).position(|window| window == b"\"bytes\"").unwrap();
    bytes[place + 9] ^= 1;
    fs::write(&segments[0], bytes).unwrap();
    place
}

#[test]
fn a_changed_byte_is_an_integrity_failure() {
    let home = home_with_a_story();
    let place = damage(&home);

    let ran = home.run(["audit", "verify", "--json"]);
    ran.failed(3, "audit", &["not as it was written"]);
    let verdict = ran.object();
    assert_eq!((&verdict["intact"], &verdict["violations_total"]), (&false.into(), &1.into()));
    let violation = &verdict["violations"][0];
    assert!(violation["offset"].as_u64().unwrap() <= place as u64 && violation["seq"].as_u64() > Some(0), "{verdict}");
    let ran = home.run(["audit", "verify"]);
    assert!(ran.code == 3 && ran.stdout.contains("VIOLATION") && ran.stdout.contains("at byte"), "{ran:?}");

    let ran = home.run(["audit", "show", "--json"]);
    ran.failed(3, "audit", &["evidence"]);
    let shown = lines(&ran);
    assert_eq!(shown.iter().filter(|line| !line["violation"].is_null()).count(), 1);
    assert!(shown.len() > 15, "what is good is shown all the same");
    // Nothing was repaired or made worse by looking.
    assert_eq!(home.run(["audit", "verify"]).code, 3);
}

#[test]
fn damage_of_an_earlier_run_is_told_by_every_command() {
    let home = home_with_a_story();
    damage(&home);
    let log = home.audit();
    let model = home.path("two.safetensors");
    let (log, model) = (log.to_str().unwrap(), model.to_str().unwrap());
    // The demo does not blame itself and leaves the log alone.
    home.run(["demo", "--size", "1", "--json", "--audit-dir", log]).failed(3, "audit", &["before this run", "record"]);
    let doctor = home.run(["doctor", "--json"]);
    doctor.failed(3, "doctor", &["records"]);
    assert!(text(&check(&doctor.object(), "records")["detail"]).contains("in segment 1 at byte"), "{doctor:?}");

    let ran = home.run(["seal", model, "--json"]);
    let audit = &ran.object()["audit"];
    assert_eq!((ran.code, &audit["health"]), (0, &"damaged".into()), "{ran:?}");
    let finding = text(&audit["finding"]);
    assert!(finding.contains("in segment 1 at byte") && finding.contains("record "), "{ran:?}");
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains(&finding), "{ran:?}");
    // It stays visible once the log has gone on behind it.
    home.run(["doctor", "--json"]).failed(3, "doctor", &["records"]);
    home.run(["demo", "--size", "1", "--json", "--audit-dir", log]).failed(3, "audit", &["before this run"]);
}

#[test]
fn where_records_are_required_a_damaged_log_is_refused() {
    let home = home_with_a_story();
    damage(&home);
    let model = home.path("two.safetensors");
    let ran = home.run(["seal", model.to_str().unwrap(), "--json", "--audit-required"]);
    ran.failed(3, "audit", &["before this run", "in segment 1 at byte", "nothing was begun", "--audit-dir"]);
    let told = home.run(["seal", home.path("one.safetensors").to_str().unwrap(), "--audit-required"]);
    assert!(!told.stderr.contains("report this defect"), "{told:?}");
}

#[test]
fn what_is_no_log_is_no_log() {
    let home = Home::new();
    for verb in ["show", "verify"] {
        home.run(["audit", verb, "--json"]).failed(
            1,
            "audit",
            &["nothing has been recorded yet in", "state/vram/audit"],
        );
        let empty = home.path("empty");
        fs::create_dir_all(&empty).unwrap();
        home.run(["audit", verb, "--json", empty.to_str().unwrap()]).failed(1, "audit", &["nothing has been recorded"]);
        home.run(["audit", verb, "--json", "/dev"]).failed(1, "audit", &["/dev", "no audit log"]);
    }
    assert!(!home.state().exists(), "looking makes nothing");
}

fn check(report: &Value, name: &str) -> Value {
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}")).clone()
}

#[test]
fn the_doctor_looks_at_everything_and_changes_nothing() {
    let home = Home::new();
    let report = home.json(["doctor"]);
    assert_eq!(report["ok"], true);
    for name in ["memory", "device", "conformance", "core dumps", "audit log", "fsync", "seal key"] {
        assert_ne!(check(&report, name)["state"], "problem", "{report}");
    }
    assert_eq!(check(&report, "cuda")["state"], "note");
    for check in report["checks"].as_array().unwrap() {
        assert!(check["state"] == "ok" || check["remedy"].is_string(), "no remedy: {check}");
    }
    assert!(!home.state().exists());
    let text = home.run(["doctor"]);
    assert!(text.code == 0 && text.stdout.contains("Everything that is needed works"), "{text:?}");
}

#[test]
fn the_doctor_names_what_does_not_work() {
    let home = Home::new();
    let key = home.file("state/vram/seal.key", &[1; 32]);
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let nowhere = home.file("a-file", b"x").join("audit");
    let ran = home.run(["doctor", "--json", "--audit-dir", nowhere.to_str().unwrap()]);
    ran.failed(1, "doctor", &["audit log", "seal key"]);
    let report = ran.object();
    assert_eq!(check(&report, "seal key")["state"], "problem");
    assert!(text(&check(&report, "seal key")["detail"]).contains("chmod 600"));
    assert!(text(&check(&report, "audit log")["remedy"]).contains("--audit-dir"));
}
