//! Shards in the hands of other processes: mapped, checked, watched, given back, taken away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest as _;
use support::attach::Raw;
use support::daemon::{Daemon, WAIT};
use support::{Home, events, safetensors, text};
use vram_residency::client::{self, ClientError, Standing};
use vram_residency::handout::ErrorCode;
use vram_residency::model::Dtype;
use vram_residency::model::writer::{Layout, TensorSpec};

/// Set in a child that only tries to attach, as another user.
const STRANGER: &str = "VRAM_TEST_STRANGER";
/// Set in a child that attaches where the environment says.
const RELATIVE: &str = "VRAM_TEST_RELATIVE";

fn refused(answer: Result<client::Attached, ClientError>) -> (ErrorCode, String) {
    match answer {
        Err(ClientError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_is_mapped_by_name_id_or_digest_and_is_the_file_byte_for_byte() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let file = safetensors(["model.norm.weight", "lm_head.weight"], 300);
    let path = home.file("llama.safetensors", &file);
    daemon.told(&["load", path.to_str().unwrap()]);

    let client = client::connect_to(&daemon.attach()).unwrap();
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), 3);
    let model = client.attach("llama.safetensors").unwrap();
    assert!(model.bytes() == file, "the file, byte for byte");
    assert_eq!(model.verify().unwrap(), model.digest());
    let tensor = model.tensor("lm_head.weight").unwrap();
    assert_eq!((tensor.dtype.name(), tensor.shape, tensor.bytes.len()), ("BF16", &[300, 256][..], 300 * 256 * 2));
    assert!(file.ends_with(tensor.bytes) || file.windows(tensor.bytes.len()).any(|window| window == tensor.bytes));
    let first = model.tensors().next().unwrap();
    assert_eq!(first.bytes.as_ptr() as usize % 256, 0, "the first tensor is aligned");
    assert!(model.tensor("nobody").is_none());

    let by_id = client.attach("llama-safetensors").unwrap();
    let by_digest = client.attach(&model.digest().to_string()).unwrap();
    assert!(by_id.bytes() == file && by_digest.bytes() == file);
    let (code, message) = refused(client.attach("nobody"));
    assert!(code == ErrorCode::UnknownShard && message.contains("llama-safetensors"), "{code} {message}");
    let sha256 = refused(client.attach(&format!("sha256:{}", "0".repeat(64)))).1;
    assert!(sha256.contains("blake3:HEX"), "{sha256}");
    let unknown = format!("blake3:{}", "0".repeat(64));
    assert_eq!(refused(client.attach(&unknown)).0, ErrorCode::UnknownShard);

    // One region, however many clients.
    let status = daemon.told(&["status"]);
    assert_eq!((&status["handout"]["leases"], &status["handout"]["lingering_bytes"]), (&json!(3), &json!(0)));
    let regions = || daemon.descriptors().iter().filter(|to| to.to_string_lossy().contains("vram-region")).count();
    assert_eq!(regions(), 3, "a memory file for each shard, and none for a lease");
    let of = &status["handout"]["clients"][0];
    assert_eq!(of["pid"], std::process::id());
    assert_eq!(of["leases"][0]["shard_id"], "llama-safetensors");
    let public = daemon.get("/v1/status").json();
    assert_eq!((&public["handout"]["leases"], &public["handout"]["clients"][0]["pid"]), (&json!(3), &Value::Null));
}

/// The client in the documentation, in another language and without our code.
#[test]
fn the_client_in_python_sees_the_same() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let file = safetensors(["model.norm.weight", "lm_head.weight"], 300);
    daemon.told(&["load", home.file("llama.safetensors", &file).to_str().unwrap()]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/attach.py");
    let python = |shard: &str| Command::new("python3").arg(&script).arg(daemon.attach()).arg(shard).output().unwrap();
    let said = python("llama.safetensors");
    assert!(said.status.success(), "{said:?}");
    let sha256: String = sha2::Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected =
        format!("sha256 {sha256}\nlm_head.weight BF16 [300, 256] 153600\nmodel.norm.weight BF16 [300, 256] 153600\n");
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&String::from_utf8(said.stdout).unwrap()), sorted(&expected));
    let said = python("nobody");
    assert!(String::from_utf8(said.stderr).unwrap().contains("unknown-shard"));
    // What went wrong with the socket is said by both clients, and what to do.
    let nowhere = home.path("nowhere.sock");
    for (socket, words) in [(&nowhere, ["nowhere.sock", "vram serve"]), (&daemon.socket, ["HTTP", "attach socket"])] {
        let ours = client::connect_to(socket).unwrap_err().to_string();
        let said = Command::new("python3").arg(&script).arg(socket).arg("x").output().unwrap();
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        for told in [ours, String::from_utf8(said.stderr).unwrap()] {
            assert!(words.iter().all(|word| told.contains(word)) && !told.contains("Traceback"), "{told}");
        }
    }
    let wrong = client::connect_to(&daemon.socket).unwrap_err().to_string();
    assert!(wrong.contains(daemon.attach().to_str().unwrap()), "{wrong}");
}

#[test]
fn every_attach_and_release_is_on_record_with_who_it_was_and_counted() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    {
        // One who hangs up without a word, and one who says what he does.
        let mut raw = Raw::greeted(&daemon.attach());
        raw.attach("small-bin");
        let client = client::connect_to(&daemon.attach()).unwrap();
        drop(client.attach("big-bin").unwrap());
        assert!(client.attach("nobody").is_err());
    }
    daemon.until("nobody is connected", |status| status["handout"]["clients"] == json!([]));
    let held = client::connect_to(&daemon.attach()).unwrap().attach("small-bin").unwrap();
    let metrics = daemon.get("/metrics").body;
    for line in [
        "vram_handout_attaches_total{result=\"attached\"} 3",
        "vram_handout_attaches_total{result=\"unknown-shard\"} 1",
        "vram_handout_detaches_total{reason=\"released\"} 1",
        "vram_handout_detaches_total{reason=\"gone\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    daemon.stop();
    assert!(held.verify().is_ok(), "what is mapped stays mapped");

    let uid = rustix::process::geteuid().as_raw();
    let who = text(&home.json(["audit", "subject", "--uid", &uid.to_string()])["actor"]);
    let events = events(&home.audit());
    let ours: Vec<_> = events.iter().filter(|event| event["event"].as_str().unwrap().contains("ttach")).collect();
    let ours: Vec<_> =
        ours.into_iter().chain(events.iter().filter(|event| event["event"] == "ShardDetached")).collect();
    let brief = |event: &&Value| (text(&event["event"]), event["shard_id"].clone(), event["reason"].clone());
    let told: Vec<_> = ours.iter().map(brief).collect();
    let expected = [
        ("ShardAttached", json!("small-bin"), Value::Null),
        ("ShardAttached", json!("big-bin"), Value::Null),
        ("AttachRefused", Value::Null, json!("there is no such shard; there are: big-bin, small-bin")),
        ("ShardAttached", json!("small-bin"), Value::Null),
        ("ShardDetached", json!("big-bin"), json!("released")),
        ("ShardDetached", json!("small-bin"), json!("gone")),
        ("ShardDetached", json!("small-bin"), json!("stopped")),
    ];
    assert_eq!(told, expected.map(|(event, shard, reason)| (event.to_owned(), shard, reason)));
    assert!(ours.iter().all(|event| event["actor"] == *who), "{ours:?}");
    let (lent, back) = (&ours[0], &ours[5]);
    assert_eq!((&lent["client"], &lent["lease"]), (&back["client"], &back["lease"]), "they belong together");
}

#[test]
fn what_is_not_verified_is_not_handed_out_and_who_has_it_is_told() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &["--allow-drill"]);
    let client = client::connect_to(&daemon.attach()).unwrap();
    let attached = client.attach("small-bin").unwrap();
    let watch = attached.watch().unwrap();
    assert!(watch.is_verified(), "{}", watch.standing());
    let standing = watch.wait_while_verified(Duration::from_millis(1500));
    assert!(matches!(standing, Standing::Verified { oldest_age } if oldest_age < Duration::from_secs(2)), "{standing}");

    daemon.told(&["drill", "small-bin", "--byte", "5", "--bit", "1"]);
    let standing = watch.wait_while_verified(WAIT);
    assert!(matches!(standing, Standing::NotVerified { .. }), "{standing}");
    daemon.until("it is quarantined", |status| status.to_string().contains("QUARANTINED"));
    assert!(matches!(attached.verify(), Err(ClientError::Mismatch { .. })), "the client sees it himself");
    let (code, message) = refused(client.attach("small-bin"));
    assert!(code == ErrorCode::NotVerified && message.contains("quarantined"), "{code} {message}");
    assert!(client.attach("big-bin").is_ok(), "the others are well");

    daemon.told(&["repair", "small-bin"]);
    let standing = watch.wait_until_verified(WAIT);
    assert!(standing.is_verified(), "{standing}");
    attached.verify().expect("the repair is seen in place");

    // Unsealed: refused with the reason, however it is asked for.
    drop((attached, watch));
    daemon.told(&["unseal", "small-bin", "--reason", "an update"]);
    assert_eq!(refused(client.attach("small-bin")).0, ErrorCode::Unsealed);
}

#[test]
fn the_variable_may_name_a_socket_below_the_present_directory() {
    if std::env::var_os(RELATIVE).is_some() {
        println!("client: {}", client::connect().unwrap().attach("small-bin").unwrap().verify().unwrap());
        return;
    }
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let socket = daemon.attach();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["the_variable_may_name_a_socket_below_the_present_directory", "--exact", "--nocapture"]);
    command.env(RELATIVE, "1").env("VRAM_ATTACH_SOCKET", socket.file_name().unwrap());
    let said = command.current_dir(socket.parent().unwrap()).output().unwrap();
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("client: blake3:"), "{said:?}");
}

#[test]
fn a_file_of_a_directory_is_had_by_its_name_where_only_one_shard_has_it() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    for (dir, tensor) in [("m", "a"), ("n", "b")] {
        home.file(format!("{dir}/{tensor}.safetensors"), &safetensors([tensor, "x"], 3));
        home.file(format!("{dir}/same.safetensors"), &safetensors([tensor, "y"], 3));
        daemon.told(&["load", home.path(dir).to_str().unwrap()]);
    }
    let client = client::connect_to(&daemon.attach()).unwrap();
    for name in ["a.safetensors", "b.safetensors"] {
        let attached = client.attach(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(attached.tensor(&name[..1]).is_some(), "{name}");
    }
    let (code, message) = refused(client.attach("same.safetensors"));
    assert!(code == ErrorCode::Ambiguous && message.contains("same-safetensors-2"), "{code} {message}");
}

/// A repair is over before anybody has asked, so the client is told that there was something to repair.
#[test]
fn a_fault_that_is_repaired_at_once_is_not_missed_and_stays_until_it_is_accepted() {
    let home = Home::new();
    let daemon = Daemon::start(
        &home,
        &["--on-failure", "repair", "--repairs-per-day", "0", "--repeat-faults", "0", "--allow-drill"],
    );
    let client = client::connect_to(&daemon.attach()).unwrap();
    let attached = client.attach("big-bin").unwrap();
    let watch = attached.watch().unwrap();
    assert!(watch.is_verified(), "{}", watch.standing());
    // Until it is good again, every look at it says so: then that it was not.
    let lapsed = |times: u64| {
        let begun = std::time::Instant::now();
        while watch.standing() != (Standing::Lapsed { times }) {
            assert!(begun.elapsed() < WAIT && !watch.is_verified(), "{}", watch.standing());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    daemon.told(&["drill", "big-bin", "--byte", "5", "--bit", "1"]);
    let standing = watch.wait_while_verified(WAIT);
    assert!(matches!(standing, Standing::Lapsed { .. } | Standing::NotVerified { .. }), "{standing}");
    lapsed(1);
    attached.verify().expect("the repair is seen in place");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!watch.is_verified(), "a good state later does not make it undone: {}", watch.standing());
    watch.accept();
    assert!(watch.is_verified(), "{}", watch.standing());

    // Three more, each in a block of its own and each repaired before the next.
    for (times, block) in (1..).zip([0_u64, 1, 2]) {
        let byte = (block << 20) + 77;
        daemon.told(&["drill", "big-bin", "--byte", &byte.to_string(), "--bit", "6"]);
        let _ = watch.wait_while_verified(WAIT);
        lapsed(times);
    }
    assert!(watch.wait_until_verified(WAIT).is_verified(), "to wait is to accept");
    assert!(watch.is_verified());
}

#[test]
fn a_shard_that_is_in_use_is_given_up_by_force_only_and_its_memory_is_accounted_for() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    let client = client::connect_to(&daemon.attach()).unwrap();
    let attached = client.attach("big-bin").unwrap();
    let watch = attached.watch().unwrap();
    let before = daemon.told(&["status"])["devices"][0]["used_bytes"].as_u64().unwrap();
    daemon.ask(&["release", "big-bin"]).failed(1, "leased", &["big-bin", "1 lease", "--force"]);
    daemon.ask(&["unseal", "big-bin", "--reason", "x"]).failed(1, "leased", &["big-bin", "--force"]);
    assert!(watch.is_verified(), "refused is not half done");

    daemon.told(&["release", "big-bin", "--force"]);
    let standing = watch.wait_while_verified(WAIT);
    assert!(matches!(&standing, Standing::Unwatched { reason } if reason.contains("gave")), "{standing}");
    attached.verify().expect("the memory is the client's for as long as he likes");
    let status = daemon.told(&["status"]);
    assert_eq!((&status["handout"]["lingering_bytes"], &status["handout"]["leases"]), (&json!(5 << 19), &json!(0)));
    assert!(status["devices"][0]["used_bytes"].as_u64().unwrap() < before);
    let shown = home.command().args(["status", "--socket"]).arg(&daemon.socket).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("2.5 MiB given up and still in their memory") && shown.contains("(given up)"), "{shown}");

    // The same name may be loaded again at once, and is another region.
    daemon.told(&["load", "--format", "raw", home.path("big.bin").to_str().unwrap()]);
    let again = client.attach("big-bin").unwrap();
    assert!(again.watch().unwrap().is_verified() && !watch.is_verified());
    daemon.told(&["unseal", "big-bin", "--reason", "x", "--force"]);
    daemon.until("two regions linger", |status| status["handout"]["lingering_bytes"] == 5 << 20);
    drop((again, attached, watch, client));
    daemon.until("nothing lingers", |status| status["handout"]["lingering_bytes"] == 0);
    daemon.stop();
    let events = events(&home.audit());
    let revoked = events.iter().filter(|event| event["reason"] == "revoked").count();
    assert_eq!(revoked, 2);
}

#[test]
fn when_the_daemon_dies_clients_run_on_and_know_that_nobody_watches() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    let client = client::connect_to(&daemon.attach()).unwrap();
    let attached = client.attach("big-bin").unwrap();
    let watch = attached.watch().unwrap();
    assert!(watch.is_verified());
    daemon.signal("-KILL");
    daemon.end();
    let standing = watch.wait_while_verified(WAIT);
    assert!(matches!(standing, Standing::Unwatched { .. }), "{standing}");
    assert!(standing.to_string().contains("no longer watched"), "{standing}");
    attached.verify().expect("what is mapped stays as it was");
    assert!(matches!(client.attach("big-bin"), Err(ClientError::Lost { .. })));
    // One that is there and says nothing is as good as dead.
    let daemon = Daemon::start(&home, &[]);
    let attached = client::connect_to(&daemon.attach()).unwrap().attach("big-bin").unwrap();
    let watch = attached.watch().unwrap();
    daemon.signal("-STOP");
    let standing = watch.wait_while_verified(WAIT);
    daemon.signal("-CONT");
    assert!(standing.to_string().contains("has said nothing"), "{standing}");
}

#[test]
fn digests_that_are_on_no_list_and_versions_that_nobody_speaks_are_refused() {
    let home = Home::new();
    let good = blake3::hash(&home_bytes(70_000)).to_hex();
    let config = home.file("vram.toml", format!("[attach]\ndigests = [\"blake3:{good}\"]\n").as_bytes());
    let mut daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    let client = client::connect_to(&daemon.attach()).unwrap();
    client.attach("small-bin").unwrap().verify().unwrap();
    let (code, message) = refused(client.attach("big-bin"));
    assert!(code == ErrorCode::ForbiddenDigest && message.contains("[attach] digests"), "{code} {message}");
    let (code, message) = refused(client.attach("nobody"));
    assert!(code == ErrorCode::UnknownShard && !message.contains("big-bin"), "{code} {message}");
    let ids: Vec<_> = client.list().unwrap().into_iter().map(|shard| shard.shard_id).collect();
    assert_eq!(ids, ["small-bin"], "what nobody may have is not shown");
    let mut raw = Raw::connect(&daemon.attach());
    let answer = raw.ask(&json!({ "type": "hello", "version": 3 }));
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("version")));
    assert!(raw.is_hung_up(WAIT));
    // Nothing is handed out where that is not wanted.
    let config = home.file("off.toml", b"[attach]\nenabled = false\n");
    daemon.stop();
    let daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    assert_eq!(daemon.ready["attach"], Value::Null);
    assert!(!home.path("s-attach").exists());
}

/// As in the daemon's files.
fn home_bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8).collect()
}

#[test]
fn of_what_somebody_may_not_have_he_is_told_neither_name_nor_number() {
    let home = Home::new();
    let mine = safetensors(["mine", "x"], 3);
    let digest = blake3::hash(&mine).to_hex();
    let config = home.file("vram.toml", format!("[attach]\ndigests = [\"blake3:{digest}\"]\n").as_bytes());
    let daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    for (dir, bytes) in [("a", safetensors(["secret", "y"], 3)), ("b", mine), ("c", safetensors(["secret", "z"], 4))] {
        home.file(format!("{dir}/same.safetensors"), &bytes);
        home.file(format!("{dir}/{dir}.safetensors"), &safetensors([dir, "x"], 2));
        daemon.told(&["load", home.path(dir).to_str().unwrap()]);
    }
    let client = client::connect_to(&daemon.attach()).unwrap();
    let ids: Vec<_> = client.list().unwrap().into_iter().map(|shard| shard.shard_id).collect();
    let [only] = &ids[..] else { panic!("{ids:?}") };
    // Three are called so, and one of them is his.
    assert_eq!(client.attach("same.safetensors").unwrap().shard_id(), only);
    // Unsealed, and not his: as if it were not there, by file as well as by id.
    let hidden = "same-safetensors";
    assert_ne!(only, hidden);
    daemon.told(&["unseal", hidden, "--reason", "x"]);
    for name in [hidden, "same-safetensors-3"] {
        let (code, message) = refused(client.attach(name));
        assert!([ErrorCode::UnknownShard, ErrorCode::ForbiddenDigest].contains(&code), "{name}: {code}");
        assert!(!message.contains("same-safetensors-3") && !message.contains("'same-safetensors'"), "{message}");
    }
    assert_eq!(refused(client.attach(hidden)).0, ErrorCode::UnknownShard);
    // Only what is not his is called so.
    daemon.told(&["release", only]);
    let (code, message) = refused(client.attach("same.safetensors"));
    assert!(code == ErrorCode::UnknownShard && !message.contains("same-safetensors"), "{code} {message}");
}

#[test]
fn one_who_is_refused_again_and_again_does_not_fill_the_log_and_is_on_record() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    let mut raw = Raw::greeted(&daemon.attach());
    for _ in 0..1500 {
        assert_eq!(raw.ask(&json!({ "type": "attach", "shard": "nobody" }))["code"], "unknown-shard");
    }
    // Of another kind: at once.
    daemon.told(&["unseal", "small-bin", "--reason", "x"]);
    assert_eq!(raw.ask(&json!({ "type": "attach", "shard": "small-bin" }))["code"], "unsealed");
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("vram_handout_attaches_total{result=\"unknown-shard\"} 1500"), "{metrics}");
    daemon.stop();
    let events = events(&home.audit());
    let of = |code: &str| -> Vec<u64> {
        let records = events.iter().filter(|event| event["event"] == "AttachRefused" && event["code"] == code);
        records.map(|event| 1 + event["unrecorded"].as_u64().unwrap_or(0)).collect()
    };
    let unknown = of("unknown-shard");
    assert!((6..20).contains(&unknown.len()), "{unknown:?}");
    assert_eq!((unknown[..5].to_vec(), unknown.iter().sum::<u64>()), (vec![1; 5], 1500), "every one is accounted for");
    assert_eq!(of("unsealed"), [1]);
}

#[test]
fn a_table_that_fits_into_no_message_is_told_of_when_it_is_loaded_and_when_it_is_asked_for() {
    let home = Home::new();
    let daemon = Daemon::start_every(&home, "30s", &[]);
    let specs = |count: u32| {
        let name = |number| format!("{number:0>4000}");
        (0..count).map(|number| TensorSpec::new(name(number), Dtype::U8, [1])).collect::<Vec<_>>()
    };
    let file = |count: u32| {
        let mut file = Vec::new();
        Layout::new(specs(count)).unwrap().write(&mut file, |_, _, piece| piece.fill(1)).unwrap();
        file
    };
    daemon.told(&["load", home.file("fits.safetensors", &file(15_000)).to_str().unwrap()]);
    daemon.told(&["load", home.file("huge.safetensors", &file(17_000)).to_str().unwrap()]);
    let status = daemon.told(&["status"]);
    let shards = status["shards"].as_array().unwrap();
    let problem = |id: &str| shards.iter().find(|one| one["shard_id"] == id).unwrap()["not_attachable"].clone();
    assert_eq!(problem("fits-safetensors"), Value::Null);
    let told = text(&problem("huge-safetensors"));
    assert!(told.contains("67108864") && told.contains("split the model"), "{told}");
    let client = client::connect_to(&daemon.attach()).unwrap();
    assert_eq!(client.attach("fits-safetensors").unwrap().tensors().count(), 15_000);
    let begun = std::time::Instant::now();
    for _ in 0..50 {
        let (code, message) = refused(client.attach("huge-safetensors"));
        assert!(code == ErrorCode::Device && message.contains(&told), "{code} {message}");
    }
    // One table takes longer than that to write out.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    client.attach("fits-safetensors").unwrap();
    assert_eq!(daemon.ask(&["verify", "huge-safetensors"]).code, 0, "it is as well watched as any");
}

#[test]
fn another_user_is_refused_unless_he_is_on_the_list() {
    if let Some(socket) = std::env::var_os(STRANGER) {
        let answer = client::connect_to(Path::new(&socket)).and_then(|client| client.attach("small-bin"));
        let said = match answer {
            Ok(attached) => attached.verify().unwrap().to_string(),
            Err(error) => error.to_string(),
        };
        println!("stranger: {said}");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user; the rule itself is tested beside it");
        return;
    }
    // Where another user can get at both the program and the socket.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, socket) = (open.path().join("test"), open.path().join("attach.sock"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_user = |uid: u32| {
        use std::os::unix::process::CommandExt;
        let name = "another_user_is_refused_unless_he_is_on_the_list";
        let mut command = Command::new(&program);
        command.args([name, "--exact", "--nocapture"]).env(STRANGER, &socket).uid(uid).gid(uid).current_dir("/");
        let output = command.output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        out.split("stranger: ").nth(1).unwrap_or_else(|| panic!("{out}")).lines().next().unwrap().to_owned()
    };
    let home = Home::new();
    let config = format!("[attach]\nsocket = {:?}\nuids = [64001]\n", socket.to_str().unwrap());
    let config = home.file("vram.toml", config.as_bytes());
    let mut daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    assert!(as_user(64_001).starts_with("blake3:"), "who is on the list has it");
    for _ in 0..20 {
        let said = as_user(64_002);
        assert!(said.contains("forbidden-user") && said.contains("[attach] uids"), "{said}");
    }
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("vram_handout_attaches_total{result=\"forbidden-user\"} 20"), "{metrics}");
    daemon.stop();
    let events = events(&home.audit());
    let refused: Vec<_> = events.iter().filter(|event| event["event"] == "AttachRefused").collect();
    assert!((10..20).contains(&refused.len()), "the log is not flooded: {}", refused.len());
    let who = text(&home.json(["audit", "subject", "--uid", "64002"])["actor"]);
    assert!(refused.iter().all(|event| event["actor"] == *who && event["code"] == "forbidden-user"));
}
