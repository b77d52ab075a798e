//! The daemon's answers: as described, without secrets, and given whatever others send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use support::Home;
use support::daemon::{Daemon, WAIT, whole};

/// Holds a value against the part of JSON Schema that the document uses.
fn holds(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return holds(document, schema, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null()).unwrap();
        return holds(document, choice, value, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    assert!(kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number")), "{at}: {value} is no {kinds:?}");
    for item in value.as_array().into_iter().flatten() {
        holds(document, &schema["items"], item, at);
    }
    if let Some(object) = value.as_object() {
        for required in schema["required"].as_array().unwrap() {
            assert!(object.contains_key(required.as_str().unwrap()), "{at} lacks {required}");
        }
        if schema["additionalProperties"] == true {
            return;
        }
        let properties = schema["properties"].as_object().unwrap();
        for (name, value) in object {
            let property = properties.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
            holds(document, property, value, &format!("{at}.{name}"));
        }
    }
}

#[test]
fn every_answer_is_as_the_document_says() {
    let home = Home::new();
    // Signed, with a replica and a witness: their part of the status is described as well.
    home.json(["audit", "keygen"]);
    let config = format!(
        "[[audit.replicas]]\nurl = \"file://{}\"\n[[audit.witnesses]]\nurl = \"http://127.0.0.1:9/\"\nvkey = \
         \"witness.example.org/w1+af7ac9cb+BBCHTjVvcmoerhePTbYXxQrjjKM5y+ZWcYXcGCUdRdUM\"\n",
        home.path("").display()
    );
    let config = home.file("vram.toml", config.as_bytes());
    let arguments = ["--on-failure", "repair", "--allow-drill", "--config", config.to_str().unwrap()];
    let daemon = Daemon::start(&home, &arguments);
    daemon.told(&["drill", "big-bin"]);
    daemon.until("a fault is known", |status| status["scrub"]["repairs"] == 1);
    daemon.until("its store is known", |status| status["audit"]["evidence"]["replicas"][0]["probe"].is_object());
    let document = daemon.get("/v1/openapi.json").json();
    let mut checked = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" || path == "/v1/events" {
                continue;
            }
            for id in ["big-bin", "nobody", "%20"] {
                let answer = daemon.http(&method.to_uppercase(), &path.replace("{id}", id).replace("{block}", "0"), "");
                let described = &operation["responses"][answer.status.to_string()];
                assert!(described.is_object(), "{method} {path} answers {}, which is not described", answer.status);
                let response = match described["$ref"].as_str() {
                    Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
                    None => described,
                };
                let (kind, content) = response["content"].as_object().unwrap().iter().next().unwrap();
                assert!(answer.head.contains(kind.as_str()), "{path}: {}", answer.head);
                if content["schema"].is_object() {
                    holds(&document, &content["schema"], &answer.json(), path);
                }
                checked.insert((path.clone(), answer.status));
            }
        }
    }
    assert!(checked.len() >= 10, "{checked:?}");
    for (method, path, status) in [("GET", "/nowhere", 404), ("PUT", "/v1/shards", 405), ("GET", "/../etc/passwd", 404)]
    {
        let answer = daemon.http(method, path, "");
        assert_eq!(answer.status, status);
        holds(&document, &document["components"]["schemas"]["Error"], &answer.json(), path);
    }
}

#[test]
fn every_metric_of_the_library_is_there() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    daemon.until("a pass is through", |status| status["scrub"]["blocks"].as_u64().unwrap() > 4);
    let page = daemon.get("/metrics").body;
    for name in [
        "vram_audit_emits_total",
        "vram_audit_emit_failures_total",
        "vram_audit_critical_emit_failures_total",
        "vram_audit_late_total",
        "vram_audit_durable_seconds_bucket",
        "vram_audit_queue_records",
        "vram_audit_records",
        "vram_seals_total",
        "vram_attestations_total",
        "vram_seal_sha256_bytes_total",
        "vram_seal_failures_total",
        "vram_verifications_total",
        "vram_verification_failures_total",
        "vram_verify_duration_seconds_bucket",
        "vram_policy_violations_total",
        "vram_blocks_repaired_total",
        "vram_repair_failures_total",
        "vram_device_capacity_bytes",
        "vram_device_used_bytes",
        "vram_device_available_bytes",
        "vram_device_quarantined",
        "vram_scrub_bytes_total",
        "vram_scrub_blocks_total",
        "vram_scrub_faults_total",
        "vram_scrub_unconfirmed_total",
        "vram_scrub_errors_total",
        "vram_scrub_period_seconds",
        "vram_scrub_throughput_bytes_per_second",
        "vram_scrub_alive",
        "vram_scrub_restarts_total",
        "vram_scrub_passes_total",
        "vram_rechecks_total",
        "vram_rechecks_unconfirmed_total",
        "vram_shard_recheck_keys",
        "vram_scrub_oldest_seconds",
        "vram_shard_state",
        "vram_shard_bytes",
        "vram_shard_residency",
        "vram_shard_protection",
        "vram_build_info",
        "vram_shards",
    ] {
        let is_there =
            page.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        assert!(is_there, "{name} is not in {page}");
    }
    assert!(page.contains("vram_shard_state{shard=\"big-bin\",state=\"verified\"} 1"), "{page}");
    assert!(page.contains("vram_shards{device=\"host\"} 2"));
}

#[test]
fn records_are_streamed_as_they_are_made() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--allow-drill"]);
    let (mut stream, mut seen) = daemon.events();
    let mut buffer = [0; 4096];
    daemon.told(&["drill", "big-bin"]);
    while !seen.contains("SealVerificationFailed") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.contains("FaultInjected") && seen.contains("id: "), "{seen}");
    // A stream does not keep the daemon from ending, and its reader sees the end.
    daemon.stop();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
}

#[test]
fn garbage_on_both_doors_leaves_it_serving() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--max-connections", "16"]);
    let mut seed = 20_261_124_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let heads: [&str; 8] = [
        "GET ",
        "POST /v1/shards HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n{",
        "\r\n\r\n",
        "\0\0\0\0",
        "POST /v1/shards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
        "POST /v1/shards/big-bin/drill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "DELETE /v1/shards/%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    for round in 0..150 {
        let mut bytes = heads[round % heads.len()].as_bytes().to_vec();
        for _ in 0..next() % 300 {
            let byte = next() as u8;
            match next() % 3 {
                0 => bytes.push(byte),
                1 if !bytes.is_empty() => {
                    let at = next() as usize % bytes.len();
                    bytes[at] = byte;
                }
                _ => bytes.truncate(bytes.len().saturating_sub(1)),
            }
        }
        daemon.raw_port(&bytes);
        daemon.raw_socket(&bytes);
    }
    let huge = format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let back = String::from_utf8_lossy(&daemon.raw_port(huge.as_bytes())).into_owned();
    assert!(!back.contains("200 OK"), "{back}");
    let body = "a".repeat(70_000);
    let large = format!(
        "POST /v1/shards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let back = String::from_utf8_lossy(&daemon.raw_socket(large.as_bytes())).into_owned();
    // The daemon hangs up without reading it all; whether its answer is still seen is a race.
    assert!(back.is_empty() || back.starts_with("HTTP/1.1 413"), "{back}");

    // Streams of events take half of the places, and no more.
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(&daemon.address).unwrap();
            write!(stream, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200");
            stream
        })
        .collect();
    assert_eq!(daemon.get("/v1/events").status, 503);
    assert_eq!(daemon.get("/readyz").status, 200);
    drop(streams);

    // A crowd that says nothing takes the places of the port, and not those of the control socket.
    let crowd: Vec<_> = (0..40).map(|_| TcpStream::connect(&daemon.address).unwrap()).collect();
    assert_eq!(daemon.told(&["status"])["ready"], true);
    drop(crowd);
    let begun = std::time::Instant::now();
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| daemon.get("/readyz").status)).ok() != Some(200) {
        assert!(begun.elapsed() < WAIT, "the port does not come back");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(daemon.get("/v1/status").json()["ready"], true);
}

#[test]
fn clients_that_do_not_read_or_do_not_ask_shut_nobody_out() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--max-connections", "8"]);
    let mut crowd = Vec::new();
    for number in 0..24 {
        let mut stream = TcpStream::connect(&daemon.address).unwrap();
        match number % 3 {
            0 => {
                for _ in 0..200 {
                    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
                }
            }
            1 => stream.write_all(b"GET /me").unwrap(),
            _ => {}
        }
        crowd.push(stream);
        assert_eq!(daemon.get("/healthz").status, 200, "beside {} others", crowd.len());
    }
    assert_eq!(daemon.told(&["status"])["ready"], true);
}

#[test]
fn a_local_port_answers_only_to_this_machines_names() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    for host in ["localhost", "LocalHost:9810", "127.0.0.1", "127.0.0.1:1", "[::1]:9810", "[::1]"] {
        assert_eq!(daemon.get_from(host, "/v1/status").status, 200, "{host}");
    }
    for host in ["evil.example.com", "localhost.example.com", "127.0.0.1.example.com:9810", "10.0.0.1"] {
        let answer = daemon.get_from(host, "/v1/status");
        assert!(answer.status == 421 && !answer.body.contains("worker_id"), "{host}: {answer:?}");
    }
}

#[test]
fn a_request_that_names_no_host_or_two_is_refused_as_everything_is() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let answers = |head: &str| {
        let request = format!("{head}Connection: close\r\n\r\n");
        let port = TcpStream::connect(&daemon.address).unwrap();
        [whole(port, &request), whole(UnixStream::connect(&daemon.socket).unwrap(), &request)]
    };
    for good in [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        "GET http://localhost:9810/healthz HTTP/1.1\r\nHost: LocalHost:9810\r\n",
        "GET /healthz HTTP/1.0\r\nHost: localhost\r\n",
    ] {
        assert!(answers(good).iter().all(|back| back.contains(" 200 OK\r\n")), "{good}: {:?}", answers(good));
    }
    for bad in [
        "GET /healthz HTTP/1.1\r\n",
        "GET /healthz HTTP/1.0\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n",
        "GET http://localhost/healthz HTTP/1.1\r\nHost: evil.example\r\n",
        "GET http://localhost/healthz HTTP/1.1\r\n",
        "GET http://user@localhost/healthz HTTP/1.1\r\nHost: localhost\r\n",
        "GET /nowhere HTTP/1.1\r\nHost: \r\n",
        "GET / HTTP/1.1\r\nHost: local host\r\n",
    ] {
        for back in answers(bad) {
            assert!(back.starts_with("HTTP/1.1 400") || back.starts_with("HTTP/1.0 400"), "{bad}: {back}");
            assert!(back.contains(r#""kind":"host""#), "{bad}: {back}");
        }
    }
}

/// Whatever is refused by this program, as JSON and with the headers that all answers have.
#[test]
fn every_refusal_is_json_and_has_the_headers_of_all_answers() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    for (method, path, status) in [
        ("GET", "/audit/%ff", 400),
        ("GET", "/v1/shards/%ff", 400),
        ("GET", "/v1/shards/big-bin/blocks/%ff", 400),
        ("GET", "/v1/shards/%ff/blocks/0", 400),
        ("GET", "/v1/shards/big-bin/blocks/+1", 400),
        ("GET", "/v1/shards/big-bin/blocks/01", 400),
        ("GET", "/v1/shards/big-bin/blocks/00", 400),
        ("GET", "/v1/shards/big-bin/blocks/", 404),
        ("GET", "/v1/shards/nobody", 404),
        ("GET", "/%ff", 404),
        ("PUT", "/healthz", 405),
        ("OPTIONS", "/", 405),
        ("POST", "/v1/attest", 403),
    ] {
        let answer = daemon.http(method, path, "");
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.json()["error"]["message"].is_string(), "{path}: {answer:?}");
        let head = answer.head.to_lowercase();
        for header in [
            "content-type: application/json",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{path}: {header}: {head}");
        }
    }
    assert_eq!(daemon.get("/v1/shards/big-bin/blocks/0").status, 200);
    // On the other door, the bodies of orders as well.
    let order = |body: &str, kind: &str| {
        let length = body.len();
        let head =
            format!("POST /v1/shards HTTP/1.1\r\nHost: vram\r\nConnection: close\r\n{kind}Content-Length: {length}");
        whole(UnixStream::connect(&daemon.socket).unwrap(), &format!("{head}\r\n\r\n{body}"))
    };
    for (body, kind, status) in [
        ("{", "Content-Type: application/json\r\n", 400),
        ("{}", "Content-Type: application/json\r\n", 422),
        ("{\"files\":[]}", "", 415),
    ] {
        let back = order(body, kind);
        assert!(back.starts_with(&format!("HTTP/1.1 {status}")) && back.contains("{\"error\":{"), "{body}: {back}");
    }
}

/// What says something of a manifest and names none is no manifest, and nobody should take it for one.
#[test]
fn what_belongs_to_a_manifest_is_refused_without_one() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    for (name, value) in [("manifest_hash", "sha256"), ("manifest_key", "/k.pem")] {
        let file = home.path("small.bin");
        let body = format!(r#"{{"files":[{file:?}],"format":"raw","{name}":"{value}"}}"#);
        let length = body.len();
        let request = format!(
            "POST /v1/shards HTTP/1.1\r\nHost: vram\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let back = whole(UnixStream::connect(&daemon.socket).unwrap(), &request);
        assert!(back.starts_with("HTTP/1.1 400") && back.contains(name) && back.contains("manifest"), "{back}");
    }
    assert_eq!(daemon.told(&["status"])["shards"].as_array().unwrap().len(), 2, "nothing was loaded");
    daemon.stop();
    let file = home.path("small.bin");
    for (key, flags) in [("manifest_hash = \"sha256\"", false), ("manifest_hash = \"sha256\"", true)] {
        for text in [key.to_owned(), format!("[[models]]\nfiles = [{file:?}]\n{key}")] {
            let config = home.file("vram.toml", text.as_bytes());
            let mut command = home.command();
            command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--config"]).arg(config);
            command.arg("--socket").arg(home.path("t"));
            if flags {
                // A manifest on the command line is another one: what the file says would still be passed over.
                command.arg("--manifest").arg(home.file("SHA256SUMS", b"")).arg(&file);
            }
            let ran = support::Ran::from(command.output().unwrap());
            ran.failed(2, "usage", &["manifest_hash", "without a manifest"]);
        }
    }
}

#[test]
fn requests_bent_by_chance_leave_the_daemon_serving() {
    const GOOD: [&[u8]; 4] = [
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /v1/shards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"files\":[\"/\"]}",
        b"POST /v1/shards/big-bin/drill HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"DELETE /v1/shards/nobody HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ];
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    // xorshift64: a seed, so that what fails can be done again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    for round in 0..400 {
        let mut bytes = GOOD[below(4)].to_vec();
        for _ in 0..=below(6) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] = below(256) as u8,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, below(256) as u8),
                _ => bytes.extend_from_within(at..),
            }
        }
        if round % 2 == 0 {
            daemon.raw_port(&bytes)
        } else {
            daemon.raw_socket(&bytes)
        };
    }
    let status = daemon.told(&["status"]);
    assert_eq!((&status["ready"], status["shards"].as_array().unwrap().len()), (&true.into(), 2), "{status}");
    assert_eq!(daemon.get("/healthz").status, 200);
}
