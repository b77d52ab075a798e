//! What decides about an approval is approved itself, whatever is given in its place is named and waited for by nobody, and
//! a refusal's record holds no directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest as _;
use support::{Home, Ran, events, safetensors, text};

/// A model and signatures of it, made by PyPI's model-signing 1.1.1 with `xtask/foreign/sign_model.py`.
const SIGNED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/approved");
const INDEX: &str = "model.safetensors.index.json";

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `vram seal --json --manifest ARGUMENTS`
fn seal(home: &Home, arguments: &[&Path]) -> Ran {
    Ran::from(home.command().args(["--json", "seal", "--manifest"]).args(arguments).output().unwrap())
}

fn key_flag() -> &'static Path {
    Path::new("--manifest-key")
}

fn refusals(home: &Home) -> Vec<Value> {
    let events = if home.audit().exists() { events(&home.audit()) } else { Vec::new() };
    events.into_iter().filter(|event| event["event"] == "ApprovalRefused").collect()
}

/// It was refused with these words, and one critical record more says so, with the first of them.
#[track_caller]
fn refused(home: &Home, arguments: &[&Path], words: &[&str]) {
    let before = refusals(home).len();
    seal(home, arguments).failed(3, "approval", words);
    let refusals = refusals(home);
    let last = refusals.last().unwrap();
    assert_eq!((refusals.len(), &last["severity"]), (before + 1, &json!("critical")));
    assert!(text(&last["reason"]).contains(words[0]), "{last}");
    assert!(!home.events().contains(&"VramSealed".to_owned()), "nothing became resident");
}

/// A directory with two shards, and the list of all its files.
fn sharded(home: &Home) -> (PathBuf, String) {
    let parts = [("one.safetensors", safetensors(["a", "b"], 50)), ("two.safetensors", safetensors(["c", "d"], 60))];
    let index =
        br#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors","d":"two.safetensors"}}"#;
    let mut list = format!("{}  {INDEX}\n", sha256(index));
    home.file(format!("m/{INDEX}"), index);
    for (name, bytes) in parts {
        home.file(format!("m/{name}"), &bytes);
        list += &format!("{}  {name}\n", sha256(&bytes));
    }
    (home.path("m"), list)
}

#[test]
fn an_index_decides_nothing_that_is_not_approved() {
    let home = Home::new();
    let (model, list) = sharded(&home);
    let index = model.join(INDEX);
    let good = std::fs::read(&index).unwrap();
    let whole = home.file("SHA256SUMS", list.as_bytes());
    let shards_only: String = list.lines().skip(1).map(|line| format!("{line}\n")).collect();
    let shards_only = home.file("shards.sha256", shards_only.as_bytes());
    // Consistent with the shards that it names, and of one shard less.
    let fewer = br#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors"}}"#;
    // The same shards in other words.
    let spaced = [good.as_slice(), b"\n"].concat();
    for named in [&model, &index] {
        let add = ["decides which files make the model", "does not name it; add its line to the list"];
        refused(&home, &[&shards_only, named], &add);
        for other in [fewer.as_slice(), &spaced] {
            std::fs::write(&index, other).unwrap();
            let is = format!("'{INDEX}' is sha256:{} and sha256:{} is approved", sha256(other), sha256(&good));
            refused(&home, &[&whole, named], &[&is]);
        }
        std::fs::write(&index, &good).unwrap();
    }
    // Without it, other files would be the model: it is missing then.
    std::fs::remove_file(&index).unwrap();
    refused(&home, &[&whole, &model], &[&format!("names '{INDEX}'"), "is not in"]);
    std::fs::write(&index, &good).unwrap();
    for named in [&model, &index] {
        let report = Home::new();
        let ran = seal(&report, &[&whole, named]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.object()["shards"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_file_that_the_index_names_and_that_is_not_there_is_refused_on_record() {
    let home = Home::new();
    let (model, list) = sharded(&home);
    let whole = home.file("SHA256SUMS", list.as_bytes());
    let (two, away) = (model.join("two.safetensors"), model.join("Two.safetensors"));
    for named in [&model, &model.join(INDEX)] {
        std::fs::rename(&two, &away).unwrap();
        let before = refusals(&home).len();
        let ran = seal(&home, &[&whole, named]);
        assert_eq!((ran.code, refusals(&home).len()), (3, before + 1), "{ran:?}");
        std::fs::remove_file(&away).unwrap();
        std::os::unix::fs::symlink("nowhere", &two).unwrap();
        let ran = seal(&home, &[&whole, named]);
        assert_eq!((ran.code, refusals(&home).len()), (3, before + 2), "{ran:?}");
        std::fs::remove_file(&two).unwrap();
        home.file("m/two.safetensors", &safetensors(["c", "d"], 60));
    }
    // What is not there at all was never held against anything.
    let ran = seal(&home, &[&whole, &home.path("nothing")]);
    assert_eq!((ran.code, refusals(&home).len()), (1, 4), "{ran:?}");
}

#[test]
fn another_name_of_the_manifest_is_another_file() {
    let home = Home::new();
    let file = home.file("m/w.safetensors", &safetensors(["a", "b"], 10));
    let list = format!("{}  w.safetensors\n", sha256(&std::fs::read(&file).unwrap()));
    let list = home.file("m/SHA256SUMS", list.as_bytes());
    let model = home.path("m");
    std::fs::hard_link(&list, model.join("zz.py")).unwrap();
    refused(&home, &[&list, &model], &["has 'zz.py', which the manifest does not name"]);
    std::fs::remove_file(model.join("zz.py")).unwrap();
    assert_eq!(seal(&home, &[&list, &model]).code, 0);
}

/// The model of the signatures, in a directory of its own.
fn signed_model(home: &Home) -> (PathBuf, PathBuf, PathBuf) {
    for name in ["model.safetensors", "config.json"] {
        home.file(format!("model/{name}"), &std::fs::read(format!("{SIGNED}/model/{name}")).unwrap());
    }
    (home.path("model"), format!("{SIGNED}/p256-sha256.sig").into(), format!("{SIGNED}/p256-sha256.pub").into())
}

#[test]
fn a_signature_must_cover_the_index_and_every_file_of_the_directory() {
    let home = Home::new();
    let (model, bundle, key) = signed_model(&home);
    let weights = std::fs::read(model.join("model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..end]).unwrap();
    let tensors = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: Value =
        tensors.map(|name| (name.clone(), json!("model.safetensors"))).collect::<serde_json::Map<_, _>>().into();
    let index = home.file(format!("model/{INDEX}"), json!({ "weight_map": map }).to_string().as_bytes());
    for named in [&model, &index] {
        let words = ["decides which files make the model", "have it signed together with the model"];
        refused(&home, &[&bundle, key_flag(), &key, named], &words);
    }
    std::fs::remove_file(&index).unwrap();
    // Fewer files than were signed are another model.
    let config = model.join("config.json");
    std::fs::remove_file(&config).unwrap();
    refused(&home, &[&bundle, key_flag(), &key, &model], &["names 'config.json'", "is not in"]);
}

#[test]
fn each_way_to_write_a_bundle_has_a_digest_of_its_own_on_record() {
    let home = Home::new();
    let (model, bundle, key) = signed_model(&home);
    let compact = std::fs::read(&bundle).unwrap();
    let spaced = serde_json::to_vec_pretty(&serde_json::from_slice::<Value>(&compact).unwrap()).unwrap();
    assert_ne!(compact, spaced);
    for bytes in [&compact, &spaced] {
        let bundle = home.file("bundle.sig", bytes);
        assert_eq!(seal(&home, &[&bundle, key_flag(), &key, &model]).code, 0);
    }
    let events = events(&home.audit());
    let approved: Vec<_> = events.iter().filter(|event| event["event"] == "ShardApproved").collect();
    let digests = [&compact, &spaced].map(|bytes| format!("blake3:{}", blake3::hash(bytes)));
    assert_eq!([&approved[0]["manifest"], &approved[1]["manifest"]], [&digests[0], &digests[1]]);
    assert_eq!(approved[0]["signer"], approved[1]["signer"]);
}

/// A directory's name that occurs nowhere by chance, and could be a person's.
const CANARY: &str = "ada-lovelace-canary";

#[test]
fn no_refusal_puts_a_directory_on_record() {
    let home = Home::new();
    let at = |name: &str| format!("{CANARY}/{name}");
    let weights = safetensors(["a", "b"], 50);
    let file = home.file(at("m/w.safetensors"), &weights);
    let (m, hash) = (home.path(at("m")), sha256(&weights));
    let one = format!("{hash}  w.safetensors\n");
    let list = |name: &str, text: &str| home.file(at(name), text.as_bytes());
    let good = list("good.sha256", &one);
    let file_again = home.file(at(&format!("m/{CANARY}/more.bin")), b"more");
    let with_more = format!("{one}{hash}  {CANARY}/more.bin\n");
    let absolute = format!("{hash}  {}\n", file.display());
    let outside = format!("{hash}  {CANARY}/m/w.safetensors\n");
    let mut cases: Vec<(Vec<PathBuf>, &str)> = vec![
        (vec![good.clone(), m.clone()], "'more.bin'"),
        (vec![list("more.sha256", &with_more), m.clone()], "'more.bin' is"),
        (vec![list("absolute.sha256", &absolute), file.clone()], "starts at the root"),
        (vec![list("twice.sha256", &(with_more.clone() + &with_more)), m.clone()], "\"w.safetensors\" twice"),
        (vec![list("outside.sha256", &outside), file.clone()], "it names 'w.safetensors'"),
        (vec![list("missing.sha256", &format!("{with_more}{hash}  {CANARY}/z\n")), m.clone()], "names 'z'"),
        (vec![list("garbled.sha256", CANARY), m.clone()], "another form"),
    ];
    let huge = home.path(at("huge.sha256"));
    std::fs::File::create(&huge).unwrap().set_len(1 << 30).unwrap();
    cases.push((vec![huge, m.clone()], "too large"));
    let key = home.file(at("key.pub"), &std::fs::read(format!("{SIGNED}/p256-sha256.pub")).unwrap());
    let bundle = std::fs::read_to_string(format!("{SIGNED}/p256-sha256.sig")).unwrap();
    for (from, to) in [
        ("{\"mediaType\"", format!("{{\"{CANARY}\":1,\"mediaType\"")),
        ("{\"publicKey\"", format!("\"/home/{CANARY}\",{{\"publicKey\"")),
        ("\"hint\":\"", format!("\"hint\":\"/home/{CANARY}")),
    ] {
        let bad = list(&format!("{}.sig", cases.len()), &bundle.replacen(from, &to, 1));
        cases.push((vec![bad, key_flag().into(), key.clone(), m.clone()], "no model signature"));
    }
    let text_only = home.file(at("t/w.safetensors"), b"no model");
    cases.push((
        vec![good.clone(), text_only.clone()],
        "'w.safetensors' cannot be loaded: it is not there or no well-formed model; so it is refused",
    ));
    cases.push((vec![list("both.sha256", &absolute), text_only], "and 'w.safetensors' cannot be loaded"));
    for (arguments, word) in &cases {
        let arguments: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
        let ran = seal(&home, &arguments);
        assert_eq!(ran.code, 3, "{arguments:?} {ran:?}");
        let reason = text(&refusals(&home).last().unwrap()["reason"]);
        assert!(reason.contains(word) && !reason.contains(CANARY), "{arguments:?}: {reason}");
    }
    assert_eq!(refusals(&home).len(), cases.len(), "each is on record");
    // Of weights that are others', too.
    std::fs::remove_dir_all(file_again.parent().unwrap()).unwrap();
    home.file(at("m/w.safetensors"), &safetensors(["a", "c"], 50));
    seal(&home, &[&good, &m]).failed(3, "unexpected-digest", &["w.safetensors is not what"]);
    for event in events(&home.audit()) {
        assert!(!event.to_string().contains(CANARY), "{event}");
    }
}

/// A public key on P-521, made with OpenSSL.
const P521: &[u8] = b"-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQB/EkTMUJ6i3WqwOfHFhWA2vGtaa1w
NtuW3UDjrXtI12BToC34/gM5OlwsOuFnArZ8OP496gGIJ7SLUATe8poLnQUAr0g8
mbRrtQYgoDTVl+dUiXDnFZFQUHMxaLUg0ajTjTW1Cch51rLnpIEIdoPlizroei4N
YDdXzIzg50kVW7qv0eA=
-----END PUBLIC KEY-----
";

#[test]
fn what_was_taken_for_something_else_is_told_with_what_to_do() {
    let home = Home::new();
    let (model, bundle, key) = signed_model(&home);
    let other = home.file("p521.pub", P521);
    let words = ["no public key on P-256 or P-384", "prime256v1", "-pubout"];
    seal(&home, &[&bundle, key_flag(), &other, &model]).failed(1, "key", &words);
    for arguments in [vec![&*key, &model], vec![&*key, key_flag(), &key, &model]] {
        refused(&home, &arguments, &["this is a key in PEM and no manifest", "--manifest-key"]);
    }
    let list = home.file("blank.sha256", format!("{}  model.safetensors\n\n", "0".repeat(64)).as_bytes());
    refused(&home, &[&list, &model], &["line 2 of the manifest", "blank"]);
    let report = Ran::from(
        home.command().args(["seal", "--manifest"]).args([&*bundle, key_flag(), &key, &model]).output().unwrap(),
    );
    assert!(report.stdout.contains("by the model-signing bundle that the key"), "{report:?}");
}

#[test]
fn manifest_and_model_that_cannot_be_read_are_both_named() {
    let home = Home::new();
    let bad = home.file("bad.safetensors", b"no model");
    let (no_list, no_file) = (home.path("no-list.sha256"), home.path("no-file.safetensors"));
    let list = home.file("good.sha256", format!("{}  bad.safetensors\n", sha256(b"no model")).as_bytes());
    seal(&home, &[&no_list, &bad]).failed(1, "file", &["bad.safetensors", "no-list.sha256 cannot be read"]);
    seal(&home, &[&no_list, &no_file]).failed(1, "file", &["no-file.safetensors", "no-list.sha256 cannot be read"]);
    seal(&home, &[&list, &no_file]).failed(1, "model", &["no-file.safetensors", "check the path"]);
    assert!(refusals(&home).is_empty(), "what cannot be read is not refused by a manifest");
    let broken = home.file("broken.sha256", b"words\n");
    refused(&home, &[&broken, &bad], &["line 1 of the manifest", "bad.safetensors", "broken.sha256"]);
    refused(&home, &[&list, &bad], &["so it is refused, whatever the manifest says", "bad.safetensors"]);
    // The record tells which manifest and which file, without any directory.
    let last = refusals(&home).pop().unwrap();
    let digest = format!("blake3:{}", blake3::hash(&std::fs::read(&list).unwrap()).to_hex());
    assert_eq!(last["manifest"], digest, "{last}");
    assert!(text(&last["reason"]).contains("'bad.safetensors' cannot be loaded"), "{last}");
    // A directory in which nothing can be read says nothing about what is in it.
    if !rustix::process::geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o000)).unwrap();
        seal(&home, &[&list, &bad]).failed(1, "model", &["bad.safetensors", "ermission"]);
    }
}

/// Runs it, and ends it where it waits for somebody.
fn at_once(home: &Home, arguments: &[&Path]) -> Ran {
    let mut command = home.command();
    command.arg("--json").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut running, started) = (command.spawn().unwrap(), Instant::now());
    while running.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            running.kill().unwrap();
            panic!("{arguments:?} waits for somebody to write");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ran::from(running.wait_with_output().unwrap())
}

#[test]
fn a_file_that_is_something_else_is_named_and_not_waited_for() {
    let home = Home::new();
    home.json(["attest", "--keygen"]);
    home.json(["audit", "keygen", "--origin", "example.org/log"]);
    let vkey = home.state().join("audit.vkey");
    let weights = safetensors(["a", "b"], 10);
    let file = home.file("w.safetensors", &weights);
    let list = home.file("good.sha256", format!("{}  w.safetensors\n", sha256(&weights)).as_bytes());
    let word = home.file("word.json", b"{}");
    let policy = format!(
        "keys = [{:?}]\ndigests = [\"sha256:{}\"]\nresidency = \"host-pageable\"\nprotection = \"advisory\"\nmax_age = \"1h\"",
        std::fs::read_to_string(home.state().join("attest.pub")).unwrap(),
        sha256(&weights)
    );
    let policy = home.file("policy.toml", policy.as_bytes());
    let pipe = home.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let link = home.path("link");
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    let directory = home.path("directory");
    std::fs::create_dir(&directory).unwrap();
    let zero = PathBuf::from("/dev/zero");
    // A log, for who verifies it.
    assert_eq!(seal(&home, &[&list, &file]).code, 0);
    let (flag, log) = (Path::new, home.audit());
    for (odd, what) in [(&pipe, "a pipe"), (&link, "a pipe"), (&directory, "a directory"), (&zero, "a device")] {
        let commands: [(&str, &[&Path]); 9] = [
            ("manifest", &[flag("seal"), flag("--manifest"), odd, &file]),
            ("manifest key", &[flag("seal"), flag("--manifest"), &list, key_flag(), odd, &file]),
            ("seal key", &[flag("seal"), flag("--key-file"), odd, &file]),
            ("attestation", &[flag("attest"), flag("--check"), odd, flag("--policy"), &policy]),
            ("policy", &[flag("attest"), flag("--check"), &word, flag("--policy"), odd]),
            ("configuration", &[flag("serve"), flag("--listen"), flag("127.0.0.1:0"), flag("--config"), odd]),
            ("attestation key", &[flag("serve"), flag("--listen"), flag("127.0.0.1:0"), flag("--attest-key"), odd]),
            ("--vkey", &[flag("audit"), flag("verify"), flag("--vkey"), odd, &log]),
            ("", &[flag("audit"), flag("check-proof"), odd, flag("--vkey"), &vkey]),
        ];
        for (named, arguments) in commands {
            let ran = at_once(&home, arguments);
            let told = ran.stderr.lines().last().unwrap_or_default();
            assert!(matches!(ran.code, 1 | 2), "{arguments:?} {ran:?}");
            let shown = odd.to_str().unwrap();
            for word in [named, shown, what, "not a regular file"] {
                assert!(told.contains(word), "'{word}' is missing: {arguments:?} {ran:?}");
            }
        }
    }
}
