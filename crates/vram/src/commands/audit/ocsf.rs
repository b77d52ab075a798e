//! A record as an event of the Open Cybersecurity Schema Framework, for a SIEM.
//!
//! Derived from the one stored record, which travels along verbatim: with its number, kind and severity it makes the
//! log's entry again, so a row of a SIEM alone can be proven against a checkpoint. `docs/format.md` has the table.

mod meaning;

use std::collections::BTreeMap;

use audit_logging::{Kind, Record};
use serde::Serialize;
use serde_json::Value;

use self::meaning::{Class, Meaning, Went};
use super::{Leaf, Place, word};
use crate::output::hex;

/// The schema's version that events are written for. Later ones gave `metadata.uid` another meaning.
pub(super) const VERSION: &str = "1.5.0";

/// Fields of every record, which are no evidence by themselves.
const ENVELOPE: [&str; 10] =
    ["v", "time", "time_ns", "monotonic_ns", "time_unix_ms", "worker_id", "device", "severity", "event", "log"];

const SEVERITIES: [&str; 6] = ["Unknown", "Informational", "Low", "Medium", "High", "Critical"];

/// An event, in the schema's own names.
#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    activity_id: u32,
    activity_name: &'a str,
    category_uid: u32,
    category_name: &'static str,
    class_uid: u32,
    class_name: &'static str,
    type_uid: u32,
    type_name: String,
    severity_id: u32,
    severity: &'static str,
    /// Milliseconds since 1970.
    time: i64,
    message: String,
    status_id: u32,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_detail: Option<&'a str>,
    metadata: Metadata<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Device<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<Product>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_provider: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding_info: Option<FindingInfo<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compliance: Option<Compliance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidences: Option<[Evidence<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<[Resource<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_alert: Option<bool>,
    unmapped: Unmapped<'a>,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    version: &'static str,
    product: Product,
    log_name: &'static str,
    log_provider: &'static str,
    event_code: &'a str,
    sequence: u64,
    uid: &'a str,
    profiles: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct Product {
    name: &'static str,
    vendor_name: &'static str,
    version: &'static str,
}

const PRODUCT: Product = Product { name: "vram", vendor_name: "vram-residency", version: env!("CARGO_PKG_VERSION") };
const LOG_NAME: &str = "vram audit log";

#[derive(Debug, Serialize)]
struct Actor<'a> {
    app_name: &'static str,
    process: Process<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
}

/// A commitment, never a name.
#[derive(Debug, Serialize)]
struct User<'a> {
    uid: &'a str,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Process<'a> {
    name: &'static str,
    uid: &'a str,
}

#[derive(Debug, Serialize)]
struct Device<'a> {
    type_id: u32,
    uid: &'a str,
    name: &'a str,
}

#[derive(Debug, Serialize)]
struct FindingInfo<'a> {
    uid: String,
    title: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    desc: Option<&'a str>,
    created_time: i64,
}

#[derive(Debug, Serialize)]
struct Compliance<'a> {
    control: &'a str,
    standards: [&'static str; 1],
    status_id: u32,
    status: &'static str,
}

#[derive(Debug, Serialize)]
struct Evidence<'a> {
    data: BTreeMap<&'a str, &'a Value>,
}

#[derive(Debug, Serialize)]
struct Resource<'a> {
    name: &'a str,
    uid: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// What makes the log's entry again: number, kind and severity in front, then the record.
#[derive(Debug, Serialize)]
struct Unmapped<'a> {
    seq: u64,
    /// The entry's place in the tree; null where damage before it makes that uncertain.
    tree_index: Option<u64>,
    /// RFC 6962 hash of the entry, in base64.
    leaf_hash: &'a str,
    kind: &'static str,
    kind_byte: u8,
    severity: &'static str,
    severity_byte: u8,
    /// The record's own bytes, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a str>,
    /// The same in hex, where they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_hex: Option<String>,
}

/// Gives a record's event to `use_it`.
pub(super) fn event<T>(record: &Record, place: &Place, use_it: impl FnOnce(&Event<'_>) -> T) -> T {
    let leaf = Leaf::of(record);
    let code = match record.kind {
        Kind::Event => leaf.text("event"),
        kind if leaf.text("log").is_empty() => kind.as_str(),
        _ => leaf.text("log"),
    };
    let meaning = Meaning::of(record.kind, code);
    let Meaning { class, activity, severity, .. } = meaning;
    let (category_uid, category_name, class_name) = class.names();
    let class_uid = class as u32;
    let activity_name = match leaf.text("command") {
        command if meaning.name == "Command" && !command.is_empty() => command,
        _ => meaning.name,
    };
    let time = leaf.time_ns().and_then(|time| i64::try_from(time.div_euclid(1_000_000)).ok()).unwrap_or(0);
    let present = |field: &'static str| Some(leaf.text(field)).filter(|text| !text.is_empty());
    let (shard, worker) = (present("shard_id"), leaf.text("worker_id"));
    let reason = present("reason").or(present("violation"));
    let process = Process { name: "vram", uid: if worker.is_empty() { "unknown" } else { worker } };
    let user = present("actor").map(|uid| User { uid });
    let of_process = class == Class::Memory || user.is_some();
    let (status_id, status) = status(class, meaning.went);
    let text = std::str::from_utf8(&record.leaf).ok();
    let own = || leaf.fields().filter(|(name, value)| !ENVELOPE.contains(&name.as_str()) && !value.is_null());
    use_it(&Event {
        activity_id: activity,
        activity_name,
        category_uid,
        category_name,
        class_uid,
        class_name,
        type_uid: class_uid.saturating_mul(100).saturating_add(activity),
        type_name: format!("{class_name}: {activity_name}"),
        severity_id: severity,
        severity: SEVERITIES.get(severity as usize).copied().unwrap_or("Unknown"),
        time,
        message: shard.map_or_else(|| meaning.title.to_owned(), |shard| format!("{}: {shard}", meaning.title)),
        status_id,
        status,
        status_detail: reason,
        metadata: Metadata {
            version: VERSION,
            product: PRODUCT,
            log_name: LOG_NAME,
            log_provider: "vram",
            event_code: code,
            sequence: record.seq,
            uid: &place.leaf_hash,
            profiles: if user.is_some() && class != Class::Memory { &["host"] } else { &[] },
        },
        actor: of_process.then_some(Actor { app_name: "vram", process, user }),
        device: (class == Class::Memory).then(|| Device { type_id: 0, uid: device_uuid(&leaf), name: process.uid }),
        process: (class == Class::Memory).then_some(process),
        size: ["requested_bytes", "freed_bytes", "bytes"]
            .iter()
            .find_map(|field| u64::try_from(leaf.number(field)?).ok())
            .filter(|_| class == Class::Memory),
        app: (class == Class::Lifecycle).then_some(PRODUCT),
        log_name: (class == Class::EventLog).then_some(LOG_NAME),
        log_provider: (class == Class::EventLog).then_some("vram"),
        finding_info: class.is_finding().then(|| FindingInfo {
            uid: finding_uid(code, &leaf, record.seq),
            title: meaning.title,
            desc: reason,
            created_time: time,
        }),
        compliance: (class == Class::Compliance).then(|| Compliance {
            control: present("policy").unwrap_or(match code {
                "ProtectionLowered" => "read-only-protection",
                _ => "verification-period",
            }),
            standards: ["vram policy"],
            status_id: if meaning.went == Went::Well { 1 } else { 3 },
            status: if meaning.went == Went::Well { "Pass" } else { "Fail" },
        }),
        evidences: class
            .is_finding()
            .then(|| [Evidence { data: own().map(|(name, value)| (name.as_str(), value)).collect() }]),
        resources: shard
            .filter(|_| class.is_finding())
            .map(|shard| [Resource { name: shard, uid: format!("{worker}/{shard}"), kind: "model shard" }]),
        is_alert: (class == Class::Detection).then_some(true),
        unmapped: Unmapped {
            seq: record.seq,
            tree_index: place.index,
            leaf_hash: &place.leaf_hash,
            kind: record.kind.as_str(),
            kind_byte: record.kind as u8,
            severity: word(record.severity),
            severity_byte: record.severity as u8,
            record: text,
            record_hex: text.is_none().then(|| hex(&record.leaf)),
        },
    })
}

/// Findings have a life of their own; activities went well or not.
fn status(class: Class, went: Went) -> (u32, &'static str) {
    match (class.is_finding(), went) {
        (true, Went::Well) => (4, "Resolved"),
        (true, _) => (1, "New"),
        (false, Went::Well) => (1, "Success"),
        (false, Went::Badly) => (2, "Failure"),
        (false, Went::Open) => (0, "Unknown"),
    }
}

/// Records about the same trouble have the same one.
fn finding_uid(code: &str, leaf: &Leaf, seq: u64) -> String {
    let (worker, shard) = (leaf.text("worker_id"), leaf.text("shard_id"));
    let block = leaf.number("first_block").or_else(|| leaf.number("block"));
    match (code, block) {
        ("SealVerificationFailed" | "DamageDescribed", Some(block)) => format!("damage/{worker}/{shard}/{block}"),
        ("SealVerificationFailed" | "DamageDescribed", None) => format!("damage/{worker}/{shard}"),
        ("VerificationLate" | "VerificationResumed", _) => format!("late/{worker}/{shard}"),
        _ => format!("{code}/{worker}/{seq}"),
    }
}

fn device_uuid(leaf: &Leaf) -> &str {
    let uuid = || leaf.0.as_ref()?.get("device")?.get("uuid")?.as_str();
    uuid().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use audit_logging::Severity;
    use serde_json::json;

    use super::*;

    /// What an event must have, by class, in version 1.5.0 of the schema: repository ocsf/ocsf-schema at commit
    /// f0c227b4383ba64f223c3c9d82a2936ee96e7f04, files `events/base_event.json`, `events/system/{system,memory_activity,
    /// event_log_activity}.json`, `events/findings/{finding,compliance_finding}.json`,
    /// `events/application/application_lifecycle.json` (requirement `required`), and the constraints `at_least_one` of
    /// the objects in it.
    const BASE: &str = "activity_id category_uid class_uid metadata.product metadata.version severity_id time type_uid";
    const REQUIRED: [(u64, &str); 6] = [
        (0, ""),
        (1004, "actor device.type_id process process.uid actor.app_name device.uid"),
        (1008, "log_name"),
        (2003, "finding_info.uid compliance"),
        (2004, "finding_info.uid"),
        (6002, "app app.name"),
    ];
    /// The activities that the schema has a number for.
    const ACTIVITIES: [(u64, u64); 6] = [(0, 0), (1004, 9), (1008, 10), (2003, 3), (2004, 3), (6002, 8)];

    fn record(kind: Kind, leaf: &Value) -> Record {
        let leaf = leaf.to_string().into_bytes();
        Record { seq: 7, severity: Severity::Critical, kind, durable: 0, leaf, segment: 1, offset: 64 }
    }

    fn exported(record: &Record) -> Value {
        let place = Place::of(record, Some(6));
        event(record, &place, |event| serde_json::to_value(event).unwrap())
    }

    fn check(event: &Value) {
        let class = event["class_uid"].as_u64().unwrap();
        let required = REQUIRED.iter().find(|(uid, _)| *uid == class).unwrap().1;
        for path in BASE.split(' ').chain(required.split(' ').filter(|path| !path.is_empty())) {
            let found = path.split('.').try_fold(event, |value, name| value.get(name));
            assert!(found.is_some_and(|value| !value.is_null()), "{path} is missing: {event}");
        }
        let activity = event["activity_id"].as_u64().unwrap();
        let highest = ACTIVITIES.iter().find(|(uid, _)| *uid == class).unwrap().1;
        assert!(activity == 99 || (1..=highest).contains(&activity), "{event}");
        assert_eq!(
            event["type_uid"].as_u64(),
            class.checked_mul(100).and_then(|type_uid| type_uid.checked_add(activity))
        );
        assert_eq!(event["category_uid"], class / 1000);
        assert!(event["severity_id"].as_u64().unwrap() <= 5);
        assert_eq!(event["metadata"]["version"], VERSION);
    }

    /// The names of all events that there are, out of the source in which they are defined.
    fn all_events() -> Vec<&'static str> {
        let source = include_str!("../../../../vram-residency/src/audit/event.rs");
        let body = source.split("pub enum AuditEvent").nth(1).unwrap().split("\n}").next().unwrap();
        let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
        let names = lines.filter(|line| line.starts_with(char::is_uppercase));
        names.map(|line| line.split([' ', '{']).next().unwrap()).collect()
    }

    #[test]
    fn every_event_is_what_the_schema_requires() {
        let names = all_events();
        assert!(names.len() >= 24, "{names:?}");
        for name in names {
            let leaf = json!({"v": 1, "time": "2026-11-25T08:00:00Z", "time_ns": 1_764_057_600_000_000_000_u64,
                "worker_id": "w", "device": {"kind": "host", "uuid": "u"}, "severity": "critical", "event": name,
                "shard_id": "s", "reason": "why", "block": 3, "command": "unseal", "actor": "hmac-sha256:00"});
            let event = exported(&record(Kind::Event, &leaf));
            check(&event);
            assert_ne!(event["class_uid"], 0, "{name} has no class");
            assert_eq!(event["time"], 1_764_057_600_000_u64);
        }
    }

    /// A numbered cell of the documentation, for one of the row's events: a number for each of them, or one for all.
    fn numbered(cell: &str, at: usize) -> u64 {
        let starts = |part: &str| part.trim().split(' ').next().unwrap().parse().ok();
        let numbers: Vec<u64> = cell.split(',').filter_map(starts).collect();
        *numbers.get(at).unwrap_or(&numbers[0])
    }

    #[test]
    fn the_documentation_lists_every_event_with_its_fields_and_what_it_is_to_a_siem() {
        let document = include_str!("../../../../../docs/format.md");
        let [fields, export] = ["## 4. Audit records", "## 6. Export to a SIEM"].map(|title| {
            let section = document.split(title).nth(1).unwrap().split("\n## ").next().unwrap();
            let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
            rows.map(|row| row.split(" | ").collect::<Vec<_>>()).collect::<Vec<_>>()
        });
        for name in all_events() {
            assert!(fields.iter().any(|row| row[0].strip_suffix('`') == Some(name)), "{name} has no row in section 4");
            let place = |row: &Vec<&str>| {
                row[0].split(['`', ',', ' ']).filter(|word| !word.is_empty()).position(|word| word == name)
            };
            let (row, at) = export
                .iter()
                .find_map(|row| Some((row, place(row)?)))
                .unwrap_or_else(|| panic!("{name} is not in section 6"));
            let event = exported(&record(Kind::Event, &json!({ "event": name, "command": "load" })));
            for (cell, field) in [(1, "class_uid"), (2, "activity_id"), (3, "severity_id")] {
                assert_eq!(event[field], numbered(row[cell], at), "{name}: {field}");
            }
        }
    }

    #[test]
    fn every_record_of_the_log_itself_is_too() {
        let own = [Kind::Open, Kind::Close, Kind::Gap, Kind::Recovered, Kind::Finding, Kind::Clock, Kind::Storage];
        for kind in own {
            let event = exported(&record(kind, &json!({"log": kind.as_str(), "time_unix_ms": 1_764_057_600_123_u64})));
            check(&event);
            assert_eq!((&event["class_uid"], &event["time"]), (&json!(1008), &json!(1_764_057_600_123_u64)));
        }
    }

    #[test]
    fn what_the_log_says_of_its_publication_is_too() {
        for name in ["heartbeat", "key", "rollback", "conflict", "probe", "pruned", "of another version"] {
            let event = exported(&record(Kind::Publication, &json!({"log": name, "time_unix_ms": 5})));
            check(&event);
            assert_eq!((&event["class_uid"], &event["metadata"]["event_code"]), (&json!(1008), &json!(name)));
        }
    }

    #[test]
    fn what_is_not_known_is_shown_all_the_same_and_makes_the_entry_again() {
        let mut unknown = record(Kind::Event, &json!({"event": "OfAnotherVersion"}));
        check(&exported(&unknown));
        unknown.leaf = vec![0xff, 0, b'\n'];
        let event = exported(&unknown);
        check(&event);
        assert_eq!(event["unmapped"]["record_hex"], "ff000a");

        let known = record(Kind::Event, &json!({"event": "ShardUnsealed", "reason": "ż\n\"x\"", "b": 1, "a": 2}));
        let unmapped = &exported(&known)["unmapped"];
        assert_eq!(unmapped["record"].as_str().unwrap().as_bytes(), known.leaf, "verbatim");
        let again = Record { seq: unmapped["seq"].as_u64().unwrap(), ..known.clone() };
        assert_eq!(unmapped["leaf_hash"], Place::of(&again, None).leaf_hash);
        assert_eq!((&unmapped["kind_byte"], &unmapped["severity_byte"]), (&json!(1), &json!(1)));
    }

    #[test]
    fn memory_that_others_can_write_to_is_a_finding_about_the_rule_that_it_no_longer_keeps() {
        let leaf = json!({"event": "ProtectionLowered", "worker_id": "w", "shard_id": "s", "from": "read-only",
            "to": "advisory", "reason": "why", "actor": "hmac-sha256:00"});
        let event = exported(&record(Kind::Event, &leaf));
        check(&event);
        assert_eq!((&event["severity"], &event["compliance"]["status"]), (&json!("High"), &json!("Fail")));
        assert_eq!(event["compliance"]["control"], "read-only-protection");
        assert_eq!((&event["resources"][0]["name"], &event["status_detail"]), (&json!("s"), &json!("why")));
        assert_eq!(event["evidences"][0]["data"]["to"], "advisory");
    }

    #[test]
    fn how_a_lease_ended_is_told_also_where_it_came_to_nothing() {
        let leaf = json!({"event": "ShardDetached", "worker_id": "w", "shard_id": "s", "digest": "blake3:00", "client": 1,
            "lease": 2, "held_ns": 0, "reason": "not-lent"});
        let event = exported(&record(Kind::Event, &leaf));
        check(&event);
        assert_eq!((&event["activity_name"], &event["status_detail"]), (&json!("Detach"), &json!("not-lent")));
    }

    #[test]
    fn a_finding_and_what_becomes_of_it_share_a_name() {
        let late = |event: &str| {
            let leaf = json!({"event": event, "worker_id": "w", "shard_id": "s"});
            exported(&record(Kind::Event, &leaf))
        };
        let (begun, ended) = (late("VerificationLate"), late("VerificationResumed"));
        assert_eq!(begun["finding_info"]["uid"], ended["finding_info"]["uid"]);
        assert_eq!((&begun["activity_name"], &ended["activity_name"]), (&json!("Create"), &json!("Close")));
        assert_eq!((&begun["compliance"]["status"], &ended["compliance"]["status"]), (&json!("Fail"), &json!("Pass")));
    }
}
