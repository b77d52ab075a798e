//! The daemon's signed word: made on request, checked offline, refused where there is nothing to sign for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use support::daemon::Daemon;
use support::{Home, Ran, events, text};

const NONCE: &str = "00112233445566778899aabbccddeeff";

/// A policy that names the daemon's two models, whatever memory this machine gives.
fn policy(home: &Home, daemon: &Daemon<'_>, key: &str, more: &str) -> String {
    let digests: Vec<&Value> =
        daemon.ready["shards"].as_array().unwrap().iter().map(|shard| &shard["digest"]).collect();
    let text = format!(
        "keys = [{key:?}]\ndigests = {}\nresidency = \"host-pageable\"\nprotection = \"advisory\"\nmax_age = \"10m\"\n{more}",
        json!(digests)
    );
    home.file("policy.toml", text.as_bytes()).to_str().unwrap().to_owned()
}

fn checked(home: &Home, arguments: &[&str]) -> Ran {
    Ran::from(home.command().args(["--json", "attest", "--check"]).args(arguments).output().unwrap())
}

#[test]
fn a_daemon_attests_and_anybody_with_the_key_can_check_it() {
    let home = Home::new();
    home.json(["audit", "keygen", "--origin", "example.org/log"]);
    let key = home.json(["attest", "--keygen"]);
    let file = home.state().join("attest.key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        std::fs::read_to_string(home.state().join("attest.pub")).unwrap().starts_with("-----BEGIN PUBLIC KEY-----")
    );
    Ran::from(home.command().args(["--json", "attest", "--keygen"]).output().unwrap()).failed(
        1,
        "key",
        &["nothing was changed"],
    );

    let mut daemon = Daemon::start(&home, &[]);
    let out = home.path("word.json");
    let word = out.to_str().unwrap().to_owned();
    let made = daemon.told(&["attest", "--nonce", NONCE, "-o", &word]);
    let policy = policy(
        &home,
        &daemon,
        key["public_key"].as_str().unwrap(),
        "complete = true\nlog_origins = [\"example.org/log\"]\n",
    );
    let ran = checked(&home, &[&word, "--policy", &policy, "--nonce", NONCE]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.object();
    let statement = &told["statement"];
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["subject"][0]["name"], "big.bin");
    let digest = format!("blake3:{}", text(&statement["subject"][0]["digest"]["blake3"]));
    assert_eq!(digest, text(&daemon.ready["shards"][0]["digest"]));
    let predicate = &statement["predicate"];
    let devices = predicate["devices"].as_array().unwrap();
    assert_eq!((devices.len(), &devices[0]["kind"]), (1, &json!("host")), "{devices:?}");
    assert!(predicate["shards"].as_array().unwrap().iter().all(|shard| shard["device"] == devices[0]["uuid"]));
    let log = &predicate["auditLog"];
    // The checkpoint covers the records of the verifications that were made for it.
    assert!(log["checkpoint"]["size"].as_u64() >= log["sequence"].as_u64(), "{log}");
    assert_eq!((&told["key"], &told["nonce_checked"]), (&key["key_id"], &json!(true)));
    let envelope = format!("blake3:{}", blake3::hash(&std::fs::read(&out).unwrap()));
    assert_eq!((&told["envelope"], &made["envelope"]), (&json!(envelope), &json!(envelope)), "BLAKE3 of the file");
    assert_eq!(made["log_signed"], true);

    // One shard, to standard output: the same bytes as in a file.
    let one = daemon.ask(&["attest", "--nonce", NONCE, "--shard", "small-bin"]);
    assert_eq!(one.code, 0, "{one:?}");
    let one_file = home.file("one.json", one.stdout.as_bytes());
    let ran = checked(&home, &[one_file.to_str().unwrap(), "--policy", &policy]);
    ran.failed(3, "attestation", &["must be resident and is not attested"]);

    // The wrong nonce, and a changed byte.
    let old = checked(&home, &[&word, "--policy", &policy, "--nonce", "ffffffffffffffff"]);
    old.failed(3, "attestation", &["is an old one"]);
    let changed = std::fs::read_to_string(&out).unwrap().replacen("payload\":\"e", "payload\":\"f", 1);
    let changed = home.file("changed.json", changed.as_bytes());
    checked(&home, &[changed.to_str().unwrap(), "--policy", &policy]).failed(3, "attestation", &["changed or forged"]);
    let stranger = home.json(["attest", "--keygen", "--attest-key", home.path("other.key").to_str().unwrap()]);
    let strange = self::policy(&home, &daemon, stranger["public_key"].as_str().unwrap(), "");
    checked(&home, &[&word, "--policy", &strange]).failed(3, "attestation", &["which the policy does not name"]);

    daemon.stop();
    let events = events(&home.audit());
    let attested: Vec<&Value> = events.iter().filter(|event| event["event"] == "AttestationMade").collect();
    assert_eq!(attested.len(), 2);
    assert_eq!(attested[0]["envelope"], made["envelope"], "the log knows it by its digest");
    assert!(text(&attested[0]["actor"]).starts_with("hmac-sha256:"), "and who asked, by commitment");
}

/// The published vector, whose two shards lie on two GPUs, checked as anybody would.
#[test]
fn each_device_is_shown_with_what_lies_on_it_and_the_policy_must_name_them_all() {
    const DEVICES: [&str; 2] = ["30313233-3435-3637-3839-616263646566", "6768696a-6b6c-6d6e-6f70-717273747576"];
    let home = Home::new();
    let vector = std::fs::read_to_string("../../docs/vectors/attestation.json").unwrap();
    let vector: Value = serde_json::from_str(&vector).unwrap();
    let word = home.file("word.json", text(&vector["envelope"]).as_bytes());
    let judged = |devices: &[&str], json: &[&str]| {
        let digests = [b"weights".as_slice(), b"more weights"].map(|bytes| format!("blake3:{}", blake3::hash(bytes)));
        let policy = format!(
            "keys = [{}]\ndigests = {}\nresidency = \"vram\"\nprotection = \"advisory\"\nmax_age = \"500000h\"\n\
             max_skew = \"500000h\"\ncomplete = true\ndevices = {}\n",
            vector["public_key"],
            json!(digests),
            json!(devices)
        );
        let policy = home.file("policy.toml", policy.as_bytes());
        let mut command = home.command();
        command.args(json).args(["attest", "--check"]).arg(&word).arg("--policy").arg(policy);
        Ran::from(command.output().unwrap())
    };
    let ran = judged(&DEVICES, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].ends_with("2 shards attested by worker-1 on 2 devices"), "{ran:?}");
    for (at, name, shown) in [
        (1, "model-00001-of-00002.safetensors", "7 bytes  vram, read-only"),
        (3, "model-00002-of-00002.safetensors", "12 bytes  vram, advisory"),
    ] {
        let device = format!("  cuda {}  1 shard, ", DEVICES[at / 2]);
        assert!(lines[at].starts_with(&device) && lines[at].ends_with("(NVIDIA CUDA 13.0, NVIDIA L4)"), "{ran:?}");
        assert!(lines[at + 1].starts_with(&format!("    {name}  {shown}  blake3:")), "{ran:?}");
    }
    assert_eq!(judged(&[DEVICES[1], DEVICES[0]], &["--json"]).code, 0, "a policy's list has no order");
    for (named, other) in [(DEVICES[0], DEVICES[1]), (DEVICES[1], DEVICES[0])] {
        judged(&[named], &["--json"]).failed(3, "attestation", &[other, "the policy does not name it"]);
    }
}

#[test]
fn nothing_is_attested_of_damaged_unsealed_or_unknown_shards() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    let attest = |more: &[&str]| {
        let mut arguments = vec!["attest", "--nonce", NONCE];
        arguments.extend(more);
        daemon.ask(&arguments)
    };
    attest(&[]).failed(1, "daemon", &["vram attest --keygen"]);
    home.json(["attest", "--keygen"]);
    let ran = attest(&[]);
    assert_eq!(ran.code, 0, "a key that was made meanwhile is used");
    assert!(ran.stderr.contains("the audit log is not signed"), "{ran:?}");
    attest(&["--shard", "nobody"]).failed(1, "unknown-shard", &["nobody"]);

    // Found by the attestation itself.
    daemon.told(&["drill", "small-bin"]);
    assert_eq!(attest(&[]).code, 3);
    daemon.until("it is quarantined", |status| {
        status["shards"].as_array().unwrap().iter().any(|shard| shard["state"] == "QUARANTINED")
    });
    let ran = attest(&["--shard", "small-bin"]);
    ran.failed(3, "verification", &["small-bin", "quarantined"]);
    assert_eq!(attest(&["--shard", "big-bin"]).code, 0, "the other is well");
    daemon.told(&["unseal", "big-bin", "--reason", "a test"]);
    attest(&["--shard", "big-bin"]).failed(3, "verification", &["big-bin", "not sealed"]);

    for shard in ["small-bin", "big-bin"] {
        daemon.told(&["release", shard]);
    }
    attest(&[]).failed(1, "no-shard", &["no shard is resident"]);

    // A second key is not made over the first, and how to change it is told.
    home.run(["attest", "--keygen", "--json"]).failed(1, "key", &["nothing was changed", "move both files away"]);

    // Somebody else can read the key.
    let key = home.state().join("attest.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    attest(&[]).failed(1, "daemon", &["the attestation key", "can be used by others", "chmod 600"]);
    drop(daemon);
    // That is told before anybody asks for an attestation.
    let daemon = Daemon::start(&home, &[]);
    let said = std::fs::read_to_string(home.path("stderr")).unwrap();
    assert!(said.contains("nothing can be attested") && said.contains("chmod 600"), "{said}");
    drop(daemon);
    home.run(["doctor", "--json"]).failed(1, "doctor", &["attest key"]);
}

#[test]
fn a_key_that_is_missing_is_made_where_the_daemon_looks_for_it() {
    let home = Home::new();
    let key = home.path("keys/attest.key");
    let mut command = home.command();
    command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--attest-key"]).arg(&key);
    let ran = Ran::from(command.output().unwrap());
    ran.failed(1, "key", &[&format!("vram attest --keygen --attest-key {}", key.display())]);
}

#[test]
fn a_daemon_that_loses_its_records_attests_nothing() {
    let home = Home::new();
    home.json(["attest", "--keygen"]);
    let nowhere = home.file("no-directory", b"");
    let daemon = Daemon::start(&home, &["--audit-dir", nowhere.to_str().unwrap()]);
    let ran = daemon.ask(&["attest", "--nonce", NONCE]);
    ran.failed(3, "verification", &["UNVERIFIED", "nothing is attested"]);
}

#[test]
fn over_http_it_takes_the_token() {
    let home = Home::new();
    home.json(["attest", "--keygen"]);
    let token = "t".repeat(40);
    let file = home.file("token", token.as_bytes());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = Daemon::start(&home, &["--token-file", file.to_str().unwrap()]);
    let body = format!("{{\"nonce\":\"{NONCE}\"}}");
    let ask = |authorization: &str, body: &str| {
        let length = body.len();
        let head = format!("{authorization}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        // The helper ends the head; what follows the body is not read.
        daemon.http("POST", "/v1/attest", &head)
    };
    assert_eq!(ask("", &body).status, 401);
    let shown = format!("Authorization: Bearer {token}\r\n");
    let answer = ask(&shown, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["payloadType"], "application/vnd.in-toto+json");
    assert!(answer.body.ends_with("}\n"), "as it was signed");
    assert_eq!(ask(&shown, "{\"nonce\":\"0\"}").status, 400);
    // Only the object that is described: neither its values in a list nor anything more.
    for other in [
        format!("[\"{NONCE}\"]"),
        format!("[\"{NONCE}\",[]]"),
        format!("{{\"nonce\":\"{NONCE}\",\"more\":1}}"),
        format!("{{\"nonce\":\"{NONCE}\",\"nonce\":\"{NONCE}\"}}"),
        format!("\"{NONCE}\""),
        "null".to_owned(),
    ] {
        let answer = ask(&shown, &other);
        assert_eq!((answer.status, &answer.json()["error"]["kind"]), (422, &"usage".into()), "{other}: {answer:?}");
    }
}
