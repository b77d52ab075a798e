//! A daemon's weights in a GPU's memory, in the hands of other processes: GPUs and driver are emulated, processes real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use cuda_emulator::{Fault, Plan, Report};
use serde_json::{Value, json};
use sha2::Digest as _;
use support::attach::Raw;
use support::cuda_client::{Client, SOCKET, memory, named, python};
use support::daemon::{Daemon, WAIT};
use support::{Home, Ran, events, safetensors, text};
use vram_residency::client::{self, AttachedCuda, ClientError};
use vram_residency::handout::ErrorCode;

const TRUSTING: [&str; 4] = ["--device", "cuda:0", "--attach-gpu", "trust-clients"];

#[test]
#[ignore = "a child process that the other tests of this file start: cargo test -p vram --test cuda_handout"]
fn child_that_is_a_client() {
    let client = client::connect_to(Path::new(&std::env::var_os(SOCKET).unwrap())).unwrap();
    let (mut held, mut watch) = (None::<AttachedCuda>, None);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let said = match line.split_once(' ').unwrap_or((&line, "")) {
            ("attach", name) => match client.attach_cuda(name) {
                Ok(attached) => {
                    let said = format!("cuda:{} {} bytes", attached.ordinal(), attached.bytes());
                    held = Some(attached);
                    said
                }
                Err(error) => error.to_string(),
            },
            ("verify", _) => {
                held.as_ref().unwrap().verify().map_or_else(|error| error.to_string(), |it| it.to_string())
            }
            ("read", _) => {
                let attached = held.as_ref().unwrap();
                let mut bytes = vec![0; attached.bytes() as usize];
                attached.read(0, &mut bytes).unwrap();
                assert!(attached.read(1, &mut bytes).is_err(), "not beyond its end");
                blake3::hash(&bytes).to_string()
            }
            ("tensors", _) => {
                let attached = held.as_ref().unwrap();
                attached.tensors().fold(String::new(), |mut all, tensor| {
                    write!(all, "{} at {} for {};", tensor.name, tensor.pointer - attached.pointer(), tensor.bytes)
                        .unwrap();
                    all
                })
            }
            ("watch", _) => {
                watch = Some(held.as_ref().unwrap().watch().unwrap());
                "it is told".to_owned()
            }
            ("wait", _) => watch.as_ref().unwrap().wait_while_verified(WAIT).to_string(),
            ("release", _) => {
                held = None;
                "released".to_owned()
            }
            _ => panic!("{line}"),
        };
        println!("client: {said}");
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (ErrorCode, String) {
    match answer {
        Err(ClientError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

fn shard(status: &Value, id: &str) -> Value {
    status["shards"].as_array().unwrap().iter().find(|one| one["shard_id"] == id).unwrap().clone()
}

#[test]
fn a_gpus_memory_stays_where_it_is_unless_the_operator_says_otherwise() {
    let home = Home::with_gpus(&Plan::default());
    let mut daemon = Daemon::start(&home, &["--device", "cuda:0"]);
    let note = text(&daemon.ready["attach_note"]);
    assert!(note.contains("not handed out") && note.contains("--attach-gpu trust-clients"), "{note}");
    let (code, of_host) = refused(client::connect_to(&daemon.attach()).unwrap().attach("big-bin"));
    assert_eq!(code, ErrorCode::Device);
    let mut client = Client::start(&daemon, &Plan::default());
    for message in [of_host, client.ask("attach big-bin")] {
        for words in ["[attach] gpu = \"trust-clients\"", "can write", "--device host"] {
            assert!(message.contains(words), "{message}");
        }
    }
    // The new request is not for conversations of the first version.
    let mut raw = Raw::greeted(&daemon.attach());
    let answer = raw.ask(&json!({ "type": "attach-cuda", "shard": "big-bin" }));
    assert_eq!((&answer["code"], raw.is_hung_up(WAIT)), (&json!("malformed"), true), "{answer}");
    let status = daemon.told(&["status"]);
    let big = shard(&status, "big-bin");
    assert_eq!((&big["protection"], &big["writable_since"]), (&json!("read-only"), &Value::Null));
    assert_eq!(status["handout"]["leases"], 0);
    drop(client);
    daemon.stop();
    let events = events(&home.audit());
    let told = named(&events, "AttachRefused");
    assert!(told.len() == 2 && told.iter().all(|event| event["code"] == "device"), "{told:?}");
    assert!(named(&events, "ShardAttached").is_empty() && named(&events, "ProtectionLowered").is_empty());
    assert_eq!(home.driver_report().complaint(), None);
}

#[test]
fn it_is_mapped_in_place_by_a_process_that_numbers_gpus_otherwise_and_called_advisory_from_then_on() {
    let mut plan = Plan::with_devices(2);
    let home = Home::with_gpus(&plan);
    let mut daemon = Daemon::start(&home, &["--device", "cuda:1", "--attach-gpu", "trust-clients"]);
    assert!(text(&daemon.ready["attach_note"]).contains("advisory"), "{}", daemon.ready);
    let file = safetensors(["model.norm.weight", "lm_head.weight"], 3000);
    let path = home.file("llama.safetensors", &file);
    daemon.told(&["load", path.to_str().unwrap()]);
    let id = "llama-safetensors";
    assert_eq!(shard(&daemon.told(&["status"]), id)["protection"], "read-only");
    let (code, message) = refused(client::connect_to(&daemon.attach()).unwrap().attach(id));
    assert!(code == ErrorCode::Device && message.contains("attach_cuda"), "{code} {message}");
    // This process has no driver: it does not even ask.
    let error = client::connect_to(&daemon.attach()).unwrap().attach_cuda(id).unwrap_err();
    assert!(matches!(error, ClientError::Device(_)), "{error}");
    assert_eq!(shard(&daemon.told(&["status"]), id)["protection"], "read-only", "refused is not handed out");

    // CUDA_VISIBLE_DEVICES=1,0
    plan.devices.reverse();
    let before = memory(&daemon);
    let mut client = Client::start(&daemon, &plan);
    assert_eq!(client.ask("attach llama.safetensors"), format!("cuda:0 {} bytes", file.len()));
    assert_eq!(client.ask("read"), blake3::hash(&file).to_string(), "the file, byte for byte");
    assert_eq!(client.ask("verify"), format!("blake3:{}", blake3::hash(&file)), "hashed on the GPU");
    let tensors = client.ask("tensors");
    let first = file.len() as u64 - 2 * 3000 * 256 * 2;
    for (name, at) in [("lm_head.weight", 0), ("model.norm.weight", 3000 * 256 * 2)] {
        let places = [first + at, first + 3000 * 256 * 2 - at];
        assert!(places.iter().any(|at| tensors.contains(&format!("{name} at {at} for 1536000;"))), "{tensors}");
    }
    let status = daemon.told(&["status"]);
    assert_eq!(status["handout"]["leases"], 1);
    assert_eq!(status["handout"]["clients"][0]["pid"], client.child.id());
    client.ask("release");
    let report = client.end();
    assert_eq!(report.complaint(), None, "everything of the client's is given back");

    // The lease is over, and the descriptor may have been kept.
    daemon.until("nobody is connected", |status| status["handout"]["clients"] == json!([]));
    assert_eq!(memory(&daemon), before, "no descriptor of a GPU's memory stays with the daemon");
    let passes = |status: &Value| shard(status, id)["passes"].as_u64().unwrap();
    let passed = passes(&daemon.get("/v1/status").json());
    let status = daemon.until("the check goes on", |status| passes(status) > passed + 1);
    let handed = shard(&status, id);
    assert_eq!((&handed["protection"], &handed["state"]), (&json!("advisory"), &json!("VERIFIED")));
    assert!(text(&handed["writable_since"]) > text(&handed["sealed_at"]), "{handed}");
    assert_eq!(daemon.told(&["verify", id])[0]["protection"], "advisory");
    assert_eq!(shard(&status, "big-bin")["protection"], "read-only", "the others are as they were");
    let metrics = daemon.get("/metrics").body;
    for (id, class, value) in
        [(id, "advisory", 1), (id, "read-only", 0), ("big-bin", "advisory", 0), ("big-bin", "read-only", 1)]
    {
        let line = format!("vram_shard_protection{{shard=\"{id}\",protection=\"{class}\"}} {value}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let shown = home.command().args(["status", "--socket"]).arg(&daemon.socket).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("handed to clients that can write to it since "), "{shown}");
    // Loaded anew it is other memory.
    daemon.told(&["release", id]);
    daemon.told(&["load", path.to_str().unwrap()]);
    let anew = shard(&daemon.told(&["status"]), id);
    assert_eq!((&anew["protection"], &anew["writable_since"]), (&json!("read-only"), &Value::Null));
    daemon.stop();
    let events = events(&home.audit());
    let (lowered, attached) = (named(&events, "ProtectionLowered"), named(&events, "ShardAttached"));
    assert_eq!((lowered.len(), attached.len()), (1, 1));
    assert_eq!((&attached[0]["writable"], &attached[0]["shard_id"]), (&json!(true), &json!(id)));
    let uid = rustix::process::geteuid().as_raw();
    let who = text(&home.json(["audit", "subject", "--uid", &uid.to_string()])["actor"]);
    assert!(lowered[0]["actor"] == *who && attached[0]["actor"] == *who, "who was handed it: {lowered:?}");
    assert_eq!(home.driver_report().complaint(), None);
}

/// The client that the documentation shows, and one made of it that breaks its word.
#[test]
fn a_client_that_writes_is_found_and_it_is_on_record_that_it_could() {
    let plan = Plan::default();
    let home = Home::with_gpus(&plan);
    // So long that a busy machine makes no difference.
    let period = Duration::from_secs(10);
    let daemon = Daemon::start_every(&home, "10s", &TRUSTING);
    let file = safetensors(["model.norm.weight", "lm_head.weight"], 300);
    daemon.told(&["load", home.file("llama.safetensors", &file).to_str().unwrap()]);
    let socket = daemon.attach();
    let socket = socket.to_str().unwrap();
    let (well, out, err) = python(&daemon, &plan, &["attach_cuda.py", socket, "llama.safetensors"]);
    assert!(well, "{err}");
    let sha256: String = sha2::Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
    let device = text(&daemon.ready["devices"][0]["uuid"]);
    for line in [format!("gpu {device} is 0 here"), format!("sha256 {sha256}"), "lm_head.weight BF16".to_owned()] {
        assert!(out.contains(&line), "{out}");
    }
    let report: Report = serde_json::from_slice(&std::fs::read(home.path("client.json")).unwrap()).unwrap();
    assert_eq!(report.complaint(), None);
    let (well, _, err) = python(&daemon, &plan, &["attach.py", socket, "big-bin"]);
    assert!(!well && err.contains("docs/attach_cuda.py") && !err.contains("Traceback"), "{err}");

    let mut honest = Client::start(&daemon, &plan);
    assert!(honest.ask("attach llama.safetensors").starts_with("cuda:0"));
    let script = "import ctypes, sys, time
import attach_cuda
class Writing(attach_cuda.Mapped):
    access = 3
weights, attached, _ = attach_cuda.Daemon(sys.argv[1]).attach('llama.safetensors', Writing)
print(time.time_ns())
weights.driver('cuMemcpyHtoD_v2', weights.pointer + 4096, ctypes.create_string_buffer(b'\\x55' * 64, 64), 64)
time.sleep(0.3)
weights.close()
";
    honest.ask("watch");
    let (well, out, err) = python(&daemon, &plan, &["-c", script, socket]);
    assert!(well, "{err}");
    let standing = honest.ask("wait");
    assert!(standing.contains("do not rely on the bytes"), "the others are told: {standing}");
    assert!(honest.ask("verify").contains("do not use them"), "and see it themselves");
    let status =
        daemon.until("it is quarantined", |status| shard(status, "llama-safetensors")["state"] == "QUARANTINED");
    assert_eq!(shard(&status, "big-bin")["state"], "VERIFIED");
    drop(honest);
    let written: u64 = out.trim().parse().unwrap();
    let mut daemon = daemon;
    daemon.stop();
    let events = events(&home.audit());
    let longest = named(&events, "ShardDetached").iter().filter_map(|event| event["held_ns"].as_u64()).max();
    assert!(longest >= Some(300_000_000), "a mapping keeps its lease, also where nothing else keeps the connection");
    let failed = named(&events, "SealVerificationFailed")[0];
    assert_eq!((&failed["shard_id"], &failed["first_block"]), (&json!("llama-safetensors"), &json!(0)));
    // By the daemon's own clock, from the client's write to the record of it; that the answers in between are suspect is on record.
    let found = Duration::from_nanos(failed["time_ns"].as_u64().unwrap() - written);
    assert!(found <= period * 2, "{found:?}");
    assert!(failed["suspect_from_ns"].as_u64().unwrap() <= written, "{failed}");
    // Since when it could be, and who had it until then.
    let since = failed["writable_since_ns"].as_u64().unwrap();
    let lowered = named(&events, "ProtectionLowered")[0]["time_ns"].as_u64().unwrap();
    assert!(since <= lowered && lowered < written, "{since} {lowered} {written}");
    let had = named(&events, "ShardAttached").into_iter().filter(|event| event["writable"] == true);
    assert_eq!(had.filter(|event| event["shard_id"] == "llama-safetensors").count(), 3);
    assert_eq!(home.driver_report().complaint(), None);
}

#[test]
fn clients_and_daemons_that_are_killed_leave_nothing_and_memory_that_stays_is_accounted_for() {
    let plan = Plan::default();
    let home = Home::with_gpus(&plan);
    let mut daemon = Daemon::start(&home, &TRUSTING);
    let before = memory(&daemon);
    for _ in 0..3 {
        let mut client = Client::start(&daemon, &plan);
        assert!(client.ask("attach big-bin").starts_with("cuda:0"));
        client.child.kill().unwrap();
        client.child.wait().unwrap();
        daemon.until("its lease is over", |status| status["handout"]["clients"] == json!([]));
    }
    assert_eq!(memory(&daemon), before, "no descriptor of a GPU's memory stays with the daemon");

    let mut client = Client::start(&daemon, &plan);
    for _ in 0..25 {
        assert!(client.ask("attach big-bin").starts_with("cuda:0"));
        client.ask("release");
    }
    assert_eq!(client.end().complaint(), None);
    daemon.until("no lease is left", |status| status["handout"]["clients"] == json!([]));
    assert_eq!(memory(&daemon), before, "nor after many leases");

    // Given up by force, it is the client's for as long as he likes.
    let mut client = Client::start(&daemon, &plan);
    assert!(client.ask("attach big-bin").starts_with("cuda:0"));
    let used = daemon.told(&["status"])["devices"][0]["used_bytes"].as_u64().unwrap();
    daemon.ask(&["release", "big-bin"]).failed(1, "leased", &["big-bin", "--force"]);
    client.ask("watch");
    daemon.told(&["release", "big-bin", "--force"]);
    assert!(client.ask("wait").contains("gave the shard up"));
    let status = daemon.told(&["status"]);
    assert_eq!((&status["handout"]["lingering_bytes"], &status["handout"]["leases"]), (&json!(5 << 19), &json!(0)));
    assert!(status["devices"][0]["used_bytes"].as_u64().unwrap() < used);
    assert!(client.ask("verify").starts_with("blake3:"), "it is as it was");
    assert_eq!(client.end().complaint(), None);
    daemon.until("nothing lingers", |status| status["handout"]["lingering_bytes"] == 0);

    // Of a daemon that dies, clients keep what they have, and know that nobody checks it.
    let mut client = Client::start(&daemon, &plan);
    assert!(client.ask("attach small-bin").starts_with("cuda:0"));
    client.ask("watch");
    daemon.signal("-KILL");
    daemon.end();
    let standing = client.ask("wait");
    assert!(standing.contains("no longer watched"), "{standing}");
    assert!(client.ask("verify").starts_with("blake3:"));
    assert_eq!(client.end().complaint(), None);
}

/// Never writable, whatever the driver does.
#[test]
fn a_client_whose_driver_does_not_map_for_reading_only_maps_nothing() {
    let home = Home::with_gpus(&Plan::default());
    let daemon = Daemon::start(&home, &TRUSTING);
    let mut elsewhere = Plan::default();
    elsewhere.devices[0].uuid = [7; 16];
    let cases = [
        (Plan::default().fault(Fault::SetAccessLies { readings_too: false }), "for reading only"),
        (Plan::default().fault(Fault::fail_once("cuMemSetAccess", 1, 801)), "change what a mapping allows"),
        (Plan::default().fault(Fault::fail_once("cuMemMap", 1, 2)), "no memory left"),
        (Plan::default().fault(Fault::fail_once("cuMemImportFromShareableHandle", 1, 999)), "lost"),
        (elsewhere, "CUDA_VISIBLE_DEVICES"),
    ];
    for (plan, words) in cases {
        let mut client = Client::start(&daemon, &plan);
        let said = client.ask("attach big-bin");
        assert!(said.contains(words), "{words}: {said}");
        let report = client.end();
        assert_eq!(report.complaint(), None, "{words}");
    }
    daemon.until("no lease is left", |status| status["handout"]["leases"] == 0);
}

/// Each call of the client's driver failing once, one after the other: those of attaching, and those of giving back.
#[test]
fn whatever_call_of_its_driver_fails_a_client_says_so_and_leaves_nothing() {
    let home = Home::with_gpus(&Plan::default());
    let daemon = Daemon::start_every(&home, "60s", &TRUSTING);
    for nth in 1.. {
        let plan = Plan::default().fault(Fault::fail_once("*", nth, 1));
        let mut client = Client::start(&daemon, &plan);
        let said = client.ask("attach small-bin");
        let report = client.end();
        assert_eq!(report.complaint(), None, "call {nth}: {said}");
        assert!(report.violations.is_empty(), "call {nth}: {report:?}");
        if report.calls.values().sum::<u64>() < nth {
            assert!(nth > 20 && said.starts_with("cuda:0"), "none failed of {nth}: {said}");
            break;
        }
    }
    daemon.until("no lease is left", |status| status["handout"]["clients"] == json!([]));
}

#[test]
fn an_attestation_calls_it_advisory_and_a_policy_that_asks_for_more_refuses_it() {
    const NONCE: &str = "00112233445566778899aabbccddeeff";
    let plan = Plan::default();
    let home = Home::with_gpus(&plan);
    let key = text(&home.json(["attest", "--keygen"])["public_key"]);
    let mut daemon = Daemon::start(&home, &TRUSTING);
    let digests: Vec<_> =
        daemon.ready["shards"].as_array().unwrap().iter().map(|shard| shard["digest"].clone()).collect();
    let judged = |protection: &str, file: &str| {
        let policy = format!(
            "keys = [{key:?}]\ndigests = {}\nresidency = \"vram\"\nprotection = {protection:?}\nmax_age = \"10m\"\n",
            json!(digests)
        );
        let policy = home.file(format!("{protection}.toml"), policy.as_bytes());
        let mut command = home.command();
        command.args(["--json", "attest", "--check", file, "--nonce", NONCE, "--policy"]).arg(policy);
        Ran::from(command.output().unwrap())
    };
    let attest = |name: &str| {
        let out = home.path(name).to_str().unwrap().to_owned();
        daemon.told(&["attest", "--nonce", NONCE, "-o", &out]);
        out
    };
    let before = attest("before.json");
    assert_eq!(judged("read-only", &before).code, 0);
    let mut client = Client::start(&daemon, &plan);
    assert!(client.ask("attach big-bin").starts_with("cuda:0"));
    client.ask("release");
    drop(client);
    let after = attest("after.json");
    judged("read-only", &after).failed(3, "attestation", &["protection of 'big.bin' is advisory", "read-only"]);
    let ran = judged("advisory", &after);
    assert_eq!(ran.code, 0, "{ran:?}");
    let shards = &ran.object()["statement"]["predicate"]["shards"];
    assert_eq!((&shards[0]["protection"], &shards[1]["protection"]), (&json!("advisory"), &json!("read-only")));
    daemon.stop();
}

#[test]
fn an_operator_who_requires_read_only_memory_hands_none_of_a_gpus_out() {
    let home = Home::with_gpus(&Plan::default());
    let config = home.file("vram.toml", b"require_read_only = true\n[attach]\ngpu = \"trust-clients\"\n");
    let mut daemon = Daemon::start(&home, &["--device", "cuda:0", "--config", config.to_str().unwrap()]);
    assert!(text(&daemon.ready["attach_note"]).contains("--require-read-only"), "{}", daemon.ready);
    let mut client = Client::start(&daemon, &Plan::default());
    let message = client.ask("attach big-bin");
    assert!(message.contains("(device)") && message.contains("asks for read-only memory"), "{message}");
    assert_eq!(shard(&daemon.told(&["status"]), "big-bin")["protection"], "read-only");
    assert_eq!(daemon.told(&["status"])["handout"]["leases"], 0);
    drop(client);
    daemon.stop();
    let config = home.file("vram.toml", b"[attach]\ngpu = \"trust\"\n");
    let ran = home.run(["serve", "--json", "--config", config.to_str().unwrap()]);
    ran.failed(2, "usage", &["refuse", "trust-clients"]);
    // In main memory there is nothing of this.
    let daemon = Daemon::start(&home, &["--device", "host", "--attach-gpu", "trust-clients"]);
    assert_eq!(daemon.ready["attach_note"], Value::Null);
    let message = Client::start(&daemon, &Plan::default()).ask("attach big-bin");
    assert!(message.contains("(device)") && message.contains("main memory"), "{message}");
}

/// Where nothing was shown to stop writes anyway, there is nothing to lower, and clients are trusted as much.
#[test]
fn memory_that_is_advisory_already_is_handed_out_all_the_same() {
    let home = Home::with_gpus(&Plan::default());
    let mut daemon = Daemon::start(&home, &[&TRUSTING[..], &["--no-write-test"]].concat());
    let mut client = Client::start(&daemon, &Plan::default());
    assert!(client.ask("attach big-bin").starts_with("cuda:0"));
    assert!(client.ask("verify").starts_with("blake3:"));
    let status = daemon.told(&["status"]);
    for (id, handed) in [("big-bin", true), ("small-bin", false)] {
        let shard = shard(&status, id);
        assert_eq!(
            (&shard["protection"], shard["writable_since"].is_string()),
            (&json!("advisory"), handed),
            "{shard}"
        );
    }
    assert_eq!(client.end().complaint(), None);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 2);
    daemon.stop();
    let events = events(&home.audit());
    assert!(named(&events, "ProtectionLowered").is_empty());
    assert_eq!(named(&events, "ShardAttached")[0]["writable"], true);
}

#[test]
fn what_is_handed_out_of_one_gpu_lowers_nothing_on_another() {
    let plan = Plan::with_devices(2);
    let home = Home::with_gpus(&plan);
    let mut daemon = Daemon::start(&home, &["--device", "cuda:0,cuda:1", "--attach-gpu", "trust-clients"]);
    let mut client = Client::start(&daemon, &plan);
    assert!(client.ask("attach small-bin").starts_with("cuda:1 70000"), "the GPU that holds it");
    assert!(client.ask("verify").contains("blake3:"));
    let status = daemon.told(&["status"]);
    let protections = ["big-bin", "small-bin"].map(|id| shard(&status, id)["protection"].clone());
    assert_eq!(protections, [json!("read-only"), json!("advisory")], "{status}");
    assert_eq!(client.ask("release"), "released");
    assert!(client.ask("attach big-bin").starts_with("cuda:0 2621440"));
    assert_eq!(client.end().complaint(), None);
    assert_eq!(daemon.told(&["verify"]).as_array().unwrap().len(), 2);
    daemon.stop();
    let events = events(&home.audit());
    let lowered = named(&events, "ProtectionLowered");
    let devices: Vec<_> = lowered.iter().map(|event| text(&event["device"]["uuid"])).collect();
    assert!(devices.len() == 2 && devices[0] != devices[1], "{lowered:?}");
    assert_eq!(home.driver_report().complaint(), None);
}
