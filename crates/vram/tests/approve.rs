//! Only what a manifest approves becomes resident: lists of the usual programs, and model signatures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::Digest as _;
use support::daemon::Daemon;
use support::{Home, Ran, events, safetensors, text};

/// A model and signatures of it, made by PyPI's model-signing 1.1.1 with `xtask/foreign/sign_model.py`.
const SIGNED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/approved");

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blake3(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

fn model() -> Vec<u8> {
    safetensors(["a", "b"], 700)
}

/// `vram seal --json ARGUMENTS`
fn seal(home: &Home, arguments: &[&Path]) -> Ran {
    Ran::from(home.command().args(["--json", "seal", "--manifest"]).args(arguments).output().unwrap())
}

fn sealed(home: &Home, arguments: &[&Path]) -> Value {
    let ran = seal(home, arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.object()
}

/// It was refused, nothing became resident, and a critical record says why.
#[track_caller]
fn refused(home: &Home, ran: &Ran, words: &[&str]) {
    ran.failed(3, "approval", words);
    let events = events(&home.audit());
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["severity"]), (&json!("ApprovalRefused"), &json!("critical")), "{last}");
    assert!(text(&last["reason"]).contains(words[0]), "{last}");
    assert!(!events.iter().any(|event| event["event"] == "VramAllocated"));
}

/// The same, after others of the same user have become resident.
#[track_caller]
fn refused_late(home: &Home, ran: &Ran, words: &[&str]) {
    ran.failed(3, "approval", words);
    let events = events(&home.audit());
    assert_eq!(events.last().unwrap()["event"], "ApprovalRefused");
}

/// The model of the signatures, in a directory of its own.
fn signed_model(home: &Home) -> PathBuf {
    for name in ["model.safetensors", "config.json"] {
        home.file(format!("model/{name}"), &std::fs::read(format!("{SIGNED}/model/{name}")).unwrap());
    }
    home.path("model")
}

fn key_flag() -> &'static Path {
    Path::new("--manifest-key")
}

#[test]
fn a_directory_that_a_list_names_in_full_is_sealed_and_that_is_on_record() {
    let home = Home::new();
    let (weights, config) = (model(), b"{}".as_slice());
    home.file("m/w.safetensors", &weights);
    home.file("m/sub/config.json", config);
    let list = format!("{}  ./w.safetensors\n{} *sub/config.json\n", blake3(&weights), blake3(config));
    // Inside the directory as well: a manifest need not name itself.
    let manifest = home.file("m/B3SUMS", list.as_bytes());
    let report = sealed(&home, &[&manifest, &home.path("m")]);
    let approval = &report["shards"][0]["approval"];
    assert_eq!(approval["approved"], format!("blake3:{}", blake3(&weights)));
    assert_eq!((&approval["form"], &approval["signer"]), (&json!("list"), &Value::Null));
    let events = events(&home.audit());
    let approved = events.iter().find(|event| event["event"] == "ShardApproved").unwrap();
    assert_eq!(approved["manifest"], format!("blake3:{}", blake3(list.as_bytes())), "the manifest's own digest");
    assert_eq!((&approved["shard_id"], &approved["sha256"]), (&json!("w-safetensors"), &Value::Null));
}

#[test]
fn a_directory_must_match_its_list_exactly() {
    let home = Home::new();
    let weights = model();
    let hash = sha256(&weights);
    home.file("m/w.safetensors", &weights);
    let list = |name: &str, text: &str| home.file(name, text.as_bytes());
    let one = format!("{hash}  w.safetensors\n");
    let m = home.path("m");
    let missing = list("missing.sha256", &format!("{one}{hash}  x.safetensors\n"));
    refused(&home, &seal(&home, &[&missing, &m]), &["'x.safetensors'", "is not in"]);
    home.file("m/README", b"words");
    let sums = list("SHA256SUMS", &one);
    refused(&home, &seal(&home, &[&sums, &m]), &["'README'", "does not name"]);
    let other = list("other.sha256", &format!("{one}{}  README\n", sha256(b"other words")));
    refused(&home, &seal(&home, &[&other, &m]), &["'README' is", "is approved"]);
    let outside = list("outside.sha256", &format!("{hash}  m/w.safetensors\n"));
    let words = ["make the list in the directory", "it names 'm/w.safetensors'"];
    std::fs::rename(m.join("README"), home.path("README")).unwrap();
    refused(&home, &seal(&home, &[&outside, &m]), &words);
    refused(&home, &seal(&home, &[&outside, &m.join("w.safetensors")]), &words);
    std::fs::rename(home.path("README"), m.join("README")).unwrap();
    let whole = list("whole.sha256", &format!("{one}SHA256 (README) = {}\n", sha256(b"words")));
    sealed(&home, &[&whole, &m]);
    // How it is to be read is asked, not guessed; what nobody signed is not checked with a key.
    let plain = list("sums.txt", &one);
    seal(&home, &[&plain, &m]).failed(2, "usage", &["--manifest-hash"]);
}

/// The record of a violation names the manifest, the file, and what is approved as the list has it.
#[track_caller]
fn says_which(violation: &Value, manifest: &[u8], approved: &[u8]) {
    let manifest = format!("the manifest blake3:{}", blake3::hash(manifest).to_hex());
    let approved = format!("approves 'w.safetensors' as sha256:{}", sha256(approved));
    let said = violation["violation"].as_str().unwrap();
    assert!(said.contains(&manifest) && said.contains(&approved), "{said}");
}

#[test]
fn single_files_must_be_named_and_the_rest_is_told() {
    let home = Home::new();
    let weights = model();
    let file = home.file("m/w.safetensors", &weights);
    let list = format!("{}  w.safetensors\n{}  z.safetensors\n", sha256(&weights), sha256(b"z"));
    let manifest = home.file("SHA256SUMS", list.as_bytes());
    let ran = Ran::from(home.command().args(["seal", "--manifest"]).arg(&manifest).arg(&file).output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("also names 'z.safetensors', which was not given"), "{ran:?}");
    assert!(ran.stdout.contains("SHA-256 computed while it was loaded"), "{ran:?}");
    let stranger = home.file("m/stranger.safetensors", &weights);
    let ran = seal(&home, &[&manifest, &stranger]);
    ran.failed(3, "approval", &["does not name 'stranger.safetensors'"]);
    // The wrong bytes under the right name: found while they are loaded, on record before it is told.
    home.file("m/w.safetensors", &safetensors(["a", "c"], 700));
    let ran = seal(&home, &[&manifest, &file]);
    ran.failed(3, "unexpected-digest", &["w.safetensors is not what", "SHA256SUMS approves (sha256:"]);
    let events = events(&home.audit());
    let violation = events.iter().rfind(|event| event["event"] == "PolicyViolation").unwrap();
    assert_eq!((&violation["policy"], &violation["severity"]), (&json!("approved-digest"), &json!("critical")));
    says_which(violation, list.as_bytes(), &weights);
}

#[test]
fn the_second_load_of_an_approved_sha256_computes_none() {
    let home = Home::new();
    let weights = model();
    let file = home.file("w.safetensors", &weights);
    let manifest = home.file("SHA256SUMS", format!("{}  w.safetensors\n", sha256(&weights)).as_bytes());
    let load = || sealed(&home, &[&manifest, &file])["shards"][0]["approval"].clone();
    let first = load();
    assert_eq!((&first["sha256_bytes"], &first["remembered"]), (&json!(weights.len()), &json!(false)));
    let second = load();
    assert_eq!((&second["sha256_bytes"], &second["remembered"]), (&json!(0), &json!(true)));
    // Other bytes are still refused, without any SHA-256.
    home.file("w.safetensors", &safetensors(["a", "c"], 700));
    let approved = format!("SHA256SUMS approves (sha256:{})", sha256(&weights));
    seal(&home, &[&manifest, &file]).failed(3, "unexpected-digest", &["w.safetensors is not what", &approved]);
    let events = events(&home.audit());
    let violation = events.iter().rfind(|event| event["event"] == "PolicyViolation").unwrap();
    says_which(violation, &std::fs::read(&manifest).unwrap(), &weights);
    home.file("w.safetensors", &weights);

    // Another worker, and another key, remember nothing.
    let mut arguments = vec!["--json", "seal", "--worker-id", "another", "--manifest"];
    arguments.extend([manifest.to_str().unwrap(), file.to_str().unwrap()]);
    let other = Ran::from(home.command().args(&arguments).output().unwrap()).object();
    assert_eq!(other["shards"][0]["approval"]["remembered"], false);
    let secret = home.state().join("seal.key");
    let kept = std::fs::read(&secret).unwrap();
    std::fs::write(&secret, [9; 32]).unwrap();
    assert_eq!(load()["remembered"], false, "a pair that another key vouches for does not count");
    std::fs::write(&secret, kept).unwrap();
    assert_eq!(load()["remembered"], true);

    // Nor does anybody whose log is damaged.
    let named = |bytes: &[u8]| bytes.windows(13).position(|part| part == b"ShardApproved");
    let files = std::fs::read_dir(home.audit()).unwrap().map(|entry| entry.unwrap().path());
    let mut segments = files.filter(|path| path.is_file() && named(&std::fs::read(path).unwrap()).is_some());
    let segment = segments.next().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = named(&bytes).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(load()["remembered"], false, "a log that is not intact is not believed");
}

#[test]
fn a_signed_model_is_sealed_with_its_publishers_key_alone() {
    for (kind, hash) in [("p256-sha256", "sha256"), ("p384-blake3", "blake3")] {
        let home = Home::new();
        let model = signed_model(&home);
        let bundle = PathBuf::from(format!("{SIGNED}/{kind}.sig"));
        let key = PathBuf::from(format!("{SIGNED}/{kind}.pub"));
        let report = sealed(&home, &[&bundle, key_flag(), &key, &model]);
        let approval = &report["shards"][0]["approval"];
        assert_eq!(approval["form"], "model-signing");
        assert_eq!(approval["signer"], sha256(&std::fs::read(&key).unwrap()), "the key as model-signing names it");
        assert!(text(&approval["approved"]).starts_with(hash));

        let fresh = Home::new();
        let model = signed_model(&fresh);
        refused(&fresh, &seal(&fresh, &[&bundle, &model]), &["no key was given"]);
        let other = if kind == "p256-sha256" { "p384-blake3" } else { "p256-sha256" };
        let other = PathBuf::from(format!("{SIGNED}/{other}.pub"));
        refused(&fresh, &seal(&fresh, &[&bundle, key_flag(), &other, &model]), &["names the key"]);
        let list = fresh.file("SHA256SUMS", format!("{}  a\n", "ab".repeat(32)).as_bytes());
        refused(&fresh, &seal(&fresh, &[&list, key_flag(), &key, &model]), &["which nobody signed"]);
        let unsigned = std::fs::read_to_string(&bundle).unwrap();
        let start = unsigned.find("\"signatures\":[").unwrap();
        let unsigned = fresh.file("unsigned.sig", format!("{}\"signatures\":[]}}}}", &unsigned[..start]).as_bytes());
        refused(&fresh, &seal(&fresh, &[&unsigned, key_flag(), &key, &model]), &["just one signature"]);
    }
}

#[test]
fn a_changed_byte_of_a_signed_model_is_refused() {
    let home = Home::new();
    let model = signed_model(&home);
    let bundle = PathBuf::from(format!("{SIGNED}/p256-sha256.sig"));
    let key = PathBuf::from(format!("{SIGNED}/p256-sha256.pub"));
    let run = || seal(&home, &[&bundle, key_flag(), &key, &model]);
    home.file("model/config.json", b"{\"model_type\":\"smaller\"}\n");
    refused(&home, &run(), &["'config.json' is"]);
    let config = std::fs::read(format!("{SIGNED}/model/config.json")).unwrap();
    home.file("model/config.json", &config);
    home.file("model/extra.bin", b"more");
    refused(&home, &run(), &["has 'extra.bin'"]);
    std::fs::remove_file(home.path("model/extra.bin")).unwrap();
    let link = home.path("model/config.json");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(home.file("elsewhere.json", &config), &link).unwrap();
    refused(&home, &run(), &["symbolic link"]);
    std::fs::remove_file(&link).unwrap();
    home.file("model/config.json", &config);
    let mut weights = std::fs::read(home.path("model/model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    home.file("model/model.safetensors", &weights);
    let ran = run();
    ran.failed(3, "unexpected-digest", &["model.safetensors is not what", "p256-sha256.sig approves (sha256:"]);
    // Where the changed byte makes it no model at all, that is no other kind of answer.
    weights[9] ^= 4;
    home.file("model/model.safetensors", &weights);
    refused_late(&home, &run(), &["it is refused, whatever the manifest says"]);
    assert!(events(&home.audit()).iter().any(|event| event["policy"] == "approved-digest"));
}

#[test]
fn a_daemon_loads_what_its_manifests_approve() {
    let home = Home::new();
    home.json(["attest", "--keygen"]);
    let model = signed_model(&home);
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let more = home.file("more/more.safetensors", &support::safetensors(["x", "y"], 3));
    let list =
        home.file("SHA256SUMS", format!("{}  more.safetensors\n", sha256(&std::fs::read(&more).unwrap())).as_bytes());
    let config = format!(
        "[[models]]\nfiles = [{model:?}]\nmanifest = \"{SIGNED}/p256-sha256.sig\"\nmanifest_key = \"{SIGNED}/p256-sha256.pub\"\n"
    );
    let config = home.file("vram.toml", config.as_bytes());
    let daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    daemon.until("it is there", |status| status["shards"].as_array().unwrap().len() == 3);
    let (list, more) = (list.to_str().unwrap(), more.to_str().unwrap());
    daemon.told(&["load", "--manifest", list, more]);
    let wrong = home.file("wrong/more.safetensors", &support::safetensors(["x", "z"], 3));
    let wrong = wrong.to_str().unwrap();
    let differs = "wrong/more.safetensors is not what";
    daemon.ask(&["load", "--manifest", list, wrong]).failed(3, "unexpected-digest", &[differs, "SHA256SUMS approves"]);
    // An approved shard is sealed again only with the bytes that were approved.
    daemon.told(&["unseal", "more-safetensors", "--reason", "test"]);
    let resealed = daemon.ask(&["reseal", "more-safetensors", wrong]);
    resealed.failed(3, "unexpected-digest", &[differs, "release it and load it with its new manifest"]);
    daemon.told(&["reseal", "more-safetensors"]);
    // Loaded again, it is known, and that is shown.
    daemon.told(&["release", "more-safetensors"]);
    daemon.told(&["load", "--manifest", list, more]);
    let approval = daemon.get("/v1/shards/more-safetensors").json()["approval"].clone();
    assert_eq!((&approval["remembered"], &approval["sha256_bytes"]), (&json!(true), &json!(0)));

    // What is attested carries the SHA-256 that was approved, for others' tools.
    let word = daemon.ask(&["attest", "--nonce", "0011223344556677", "--shard", "model-safetensors"]);
    let file = home.file("word.json", word.stdout.as_bytes());
    let key = std::fs::read_to_string(home.state().join("attest.pub")).unwrap();
    let policy = format!(
        "keys = ['''{key}''']\ndigests = [\"sha256:{}\"]\nresidency = \"host-pageable\"\nprotection = \"advisory\"\nmax_age = \"1h\"",
        sha256(&bytes)
    );
    let policy = home.file("policy.toml", policy.as_bytes());
    let (file, policy) = (file.to_str().unwrap(), policy.to_str().unwrap());
    home.json(["attest", "--check", file, "--policy", policy]);
}

#[test]
fn another_manifest_by_flag_still_needs_the_signature_that_the_configuration_demands() {
    let home = Home::new();
    let weights = model();
    let file = home.file("m/w.safetensors", &weights);
    let list = home.file("SHA256SUMS", format!("{}  w.safetensors\n", sha256(&weights)).as_bytes());
    let text = format!("manifest = \"{SIGNED}/p256-sha256.sig\"\nmanifest_key = \"{SIGNED}/p256-sha256.pub\"\n");
    let config = home.file("vram.toml", text.as_bytes());
    let mut command = home.command();
    command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--socket"]).arg(home.path("s"));
    let ran = Ran::from(command.arg("--config").arg(config).arg("--manifest").args([list, file]).output().unwrap());
    ran.failed(3, "approval", &["SHA256SUMS"]);
    assert!(!events(&home.audit()).iter().any(|event| event["event"] == "VramAllocated"));
}

#[test]
fn a_daemon_that_requires_approval_takes_nothing_else() {
    let home = Home::new();
    let weights = model();
    let file = home.file("m/w.safetensors", &weights);
    let list = home.file("SHA256SUMS", format!("{}  w.safetensors\n", sha256(&weights)).as_bytes());
    let serve = |more: &[&str]| {
        let mut command = home.command();
        command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--require-approval", "--socket"]);
        Ran::from(command.arg(home.path("s")).args(more).output().unwrap())
    };
    // How often something is refused on record.
    let refusals = || home.events_so_far().iter().filter(|event| *event == "ApprovalRefused").count();
    serve(&[file.to_str().unwrap()]).failed(3, "approval", &["no manifest was given", "--manifest"]);
    assert_eq!(refusals(), 1);
    let events = events(&home.audit());
    let refusal = events.iter().find(|event| event["event"] == "ApprovalRefused").unwrap();
    assert!(text(&refusal["reason"]).contains("no manifest was given"), "{refusal}");
    assert!(!events.iter().any(|event| event["event"] == "VramAllocated"));
    let wrong = home.file("wrong.sha256", format!("{}  w.safetensors\n", "ab".repeat(32)).as_bytes());
    let ran = serve(&["--manifest", wrong.to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(ran.code, 3, "{ran:?}");

    let socket = home.path("t");
    let mut command = home.command();
    command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--require-approval", "--socket"]);
    command.arg(&socket).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = Ended(command.env_remove("NOTIFY_SOCKET").spawn().unwrap());
    let mut line = String::new();
    use std::io::BufRead as _;
    std::io::BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ask = |more: &[&Path]| {
        let mut command = home.command();
        command.args(["--json", "load", "--socket"]).arg(&socket).args(more);
        Ran::from(command.output().unwrap())
    };
    ask(&[&file]).failed(3, "approval", &["no manifest was given", "--manifest"]);
    assert_eq!(refusals(), 2, "on record before the answer");
    // What there is to read does not matter then.
    ask(&[&home.path("nothing")]).failed(3, "approval", &["no manifest was given"]);
    let approved = ask(&[Path::new("--manifest"), &list, &file]).object();
    let approval = &approved[0]["approval"];
    assert_eq!((&approval["form"], &approval["remembered"]), (&json!("list"), &json!(false)));
    assert_eq!(approval["manifest"], format!("blake3:{}", blake3(&std::fs::read(&list).unwrap())));
    assert_eq!(approval["approved"], format!("sha256:{}", sha256(&weights)));
    let told = |more: &[&str]| {
        let mut command = home.command();
        command.args(["status", "--socket"]).arg(&socket).args(more);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let (all, one) = (told(&[]), told(&["w-safetensors"]));
    assert!(all.contains("only what a manifest approves is loaded"), "{all}");
    for shown in [all, one] {
        assert!(shown.contains(&format!("sha256:{} by the list blake3:", sha256(&weights))), "{shown}");
    }
}

/// Ended whatever happens.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
