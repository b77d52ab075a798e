//! A signed log as its auditors meet it: keys, what verification says and on whose word, proofs of one record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use audit_logging::tlog::note::{SignedNote, SigningKey};
use serde_json::Value;
use support::{Home, Ran, safetensors, text};

/// Makes a key and seals twice. Returns the key that verifies.
fn signed_home() -> (Home, String) {
    let home = Home::new();
    let made = home.json(["audit", "keygen", "--origin", "example.org/vram-audit/1"]);
    seal(&home, "one");
    seal(&home, "two");
    (home, text(&made["vkey"]))
}

fn seal(home: &Home, name: &str) -> Value {
    let path = home.file(format!("{name}.safetensors"), &safetensors(["a", "b"], 10));
    home.json(["seal", path.to_str().unwrap(), "--shard-id", name])
}

fn published(home: &Home) -> PathBuf {
    home.audit().join("tlog")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(fs::copy(entry.path(), target))
        }
    }
}

fn ranges(verdict: &Value) -> [u64; 4] {
    ["cosigned", "replicated", "signed", "unsigned"].map(|name| verdict["published"]["ranges"][name].as_u64().unwrap())
}

#[test]
fn a_key_is_made_once_for_its_owner_alone_and_never_overwritten() {
    let home = Home::new();
    let ran = home.run(["audit", "keygen"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let vkey = ran.stdout.lines().next().unwrap();
    assert_eq!(vkey.matches('+').count() >= 2, vkey.contains("/vram-audit/"), "{vkey}");
    let key = home.state().join("audit.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(home.state().join("audit.vkey")).unwrap().trim(), vkey);
    let before = fs::read(&key).unwrap();
    home.run(["audit", "keygen", "--json"]).failed(1, "key", &["exists", "nothing was changed", "--rotate"]);
    assert_eq!(fs::read(&key).unwrap(), before);
    // Of many at once, one wins, and what it printed is what is there.
    let elsewhere = home.path("logs/x");
    let made: Vec<Ran> = std::thread::scope(|scope| {
        let run = || home.run(["audit", "keygen", "--audit-dir", elsewhere.to_str().unwrap()]);
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let winners: Vec<_> = made.iter().filter(|ran| ran.code == 0).collect();
    assert_eq!(winners.len(), 1, "{made:?}");
    let kept = fs::read_to_string(home.path("logs/x.vkey")).unwrap();
    assert!(winners[0].stdout.starts_with(kept.trim()), "{made:?}");

    let refused = |words: &[&str]| home.run(["audit", "keygen", "--json"].iter().chain(words));
    refused(&["--origin", "a name", "--audit-dir", "y"]).failed(2, "usage", &["--origin", "space"]);
    refused(&["--origin", "a\"b", "--audit-dir", "y"]).failed(2, "usage", &["--origin"]);
    refused(&["--key-file", "y"]).failed(2, "usage", &["--audit-key"]);
    refused(&["--rotate", "--audit-dir", "y"]).failed(1, "key", &["keygen"]);
}

#[test]
fn a_log_without_a_key_says_how_to_get_one() {
    let home = Home::new();
    seal(&home, "one");
    let verdict = home.json(["audit", "verify"]);
    assert_eq!((&verdict["intact"], &verdict["signed"]), (&true.into(), &false.into()));
    assert!(home.run(["audit", "verify"]).stdout.contains("vram audit keygen"));
    home.run(["audit", "prove", "3", "--json"]).failed(1, "unsigned", &["vram audit keygen"]);
    // Who says that it must be signed is not told that all is well.
    let (other, vkey) = signed_home();
    drop(other);
    let ran = home.run(["audit", "verify", "--json", "--vkey", &vkey]);
    ran.failed(3, "audit", &["not as it was written"]);
    assert_eq!(ran.object()["published"]["violations"][0]["what"], "there is no checkpoint");
}

#[test]
fn every_record_of_a_run_is_signed_at_its_end_and_verify_says_on_whose_word() {
    let (home, vkey) = signed_home();
    let sealed = seal(&home, "three");
    let signed = &sealed["audit"]["signed"];
    assert_eq!((&signed["complete"], &signed["records"]), (&true.into(), &18.into()), "{sealed}");
    assert_eq!(text(&signed["vkey"]), vkey);

    let verdict = home.json(["audit", "verify", "--vkey", &vkey]);
    assert_eq!((ranges(&verdict), &verdict["records"]), ([0, 0, 18, 18], &18.into()), "{verdict}");
    assert_eq!((&verdict["signed"], &verdict["published"]["key"]["from"]), (&true.into(), &"given".into()));
    assert_eq!(verdict["published"]["origin"], "example.org/vram-audit/1");
    // On its own machine, with its own key.
    let own = home.json(["audit", "verify"]);
    assert_eq!(own["published"]["key"]["from"], "state", "{own}");
    // Elsewhere, with nothing but what lies with it: whole, and whose it is stays open.
    let auditor = Home::new();
    copy(&home.audit(), &auditor.path("copy"));
    for dir in ["copy", "copy/tlog"] {
        let dir = auditor.path(dir);
        let verdict = auditor.json(["audit", "verify", dir.to_str().unwrap()]);
        assert_eq!((ranges(&verdict)[2], &verdict["published"]["key"]["from"]), (18, &"log-itself".into()));
        let told = auditor.run(["audit", "verify", dir.to_str().unwrap()]).stdout;
        assert!(told.contains("only a key that you got on another way") && told.contains("cannot be seen"), "{told}");
        let given = auditor.run(["audit", "verify", dir.to_str().unwrap(), "--vkey", &vkey]);
        assert!(given.code == 0 && !given.stdout.contains("another way"), "{given:?}");
    }
    assert!(!auditor.state().exists(), "looking makes nothing");
    let (_, other) = signed_home();
    let ran = home.run(["audit", "verify", "--json", "--vkey", &other]);
    ran.failed(3, "audit", &[]);
    assert_eq!(ran.object()["published"]["violations"][0]["file"], "checkpoint");
    assert!(ran.stdout.contains("or the key that is trusted is another log's"), "{ran:?}");
    home.run(["audit", "verify", "--json", "--vkey", &vkey, "--origin", "another"]).failed(3, "audit", &[]);
    home.run(["audit", "verify", "--json", "--vkey", "nonsense"]).failed(
        2,
        "usage",
        &["there is no such file, and it is no key"],
    );
    home.run(["audit", "verify", "--json", "--witness", &vkey]).failed(2, "usage", &["not the key of a witness"]);
}

#[test]
fn whatever_is_changed_is_found_with_record_and_file() {
    let (home, vkey) = signed_home();
    let verify = || {
        let ran = home.run(["audit", "verify", "--json", "--vkey", &vkey]);
        (ran.code, ran.object())
    };
    assert_eq!(verify().0, 0);
    for file in ["tile/entries/000.p/12", "tile/0/000.p/12", "checkpoint"] {
        let path = published(&home).join(file);
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        // In a bundle, inside a record: a length that is another makes the rest unreadable.
        let inside = bytes.windows(7).position(|window| window == b"\"bytes\"").map(|at| at + 9);
        changed[inside.unwrap_or(bytes.len() / 2)] ^= 1;
        fs::write(&path, changed).unwrap();
        let (code, verdict) = verify();
        assert_eq!(code, 3, "{file}");
        let violations = verdict["published"]["violations"].as_array().unwrap();
        assert!(violations.iter().any(|violation| violation["file"] == file), "{file}: {verdict}");
        if file.starts_with("tile/entries") {
            assert!(violations.iter().any(|violation| violation["record"].is_u64()), "{verdict}");
        }
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(verify().0, 0);
    // The published files are gone altogether: this machine knows that there were some.
    fs::rename(published(&home), home.path("gone")).unwrap();
    assert_eq!(home.run(["audit", "verify", "--json"]).code, 3);
    assert_eq!(verify().0, 3);
}

#[test]
fn an_end_that_was_cut_off_is_found_by_what_others_hold_and_else_said_to_be_open() {
    let (home, vkey) = signed_home();
    let older = home.path("older");
    copy(&home.audit(), &older);
    let replica = home.path("replica");
    seal(&home, "three");
    copy(&published(&home), &replica);
    let kept = home.path("kept-checkpoint");
    fs::copy(published(&home).join("checkpoint"), &kept).unwrap();
    let (older, replica, kept) = (older.to_str().unwrap(), replica.to_str().unwrap(), kept.to_str().unwrap());

    let auditor = Home::new();
    let verify = |words: &[&str]| {
        let ran = auditor.run(["audit", "verify", older, "--json", "--vkey", &vkey].iter().chain(words));
        (ran.code, ran.object())
    };
    let (code, verdict) = verify(&[]);
    assert_eq!(code, 0);
    assert!(text(&verdict["published"]["statement"]).contains("cannot be seen"), "{verdict}");
    for held in [["--replica", replica], ["--checkpoint", kept]] {
        let (code, verdict) = verify(&held);
        assert_eq!(code, 3, "{held:?}");
        let violation = &verdict["published"]["violations"][0];
        assert_eq!(violation["what"], "somebody else holds more of this log than is here");
        assert!(text(&violation["file"]).contains(held[1]), "{violation}");
    }
    // The whole log, held against the same: replicated to its end.
    let now = home.json(["audit", "verify", "--vkey", &vkey, "--replica", replica]);
    assert_eq!(ranges(&now), [0, 18, 18, 18]);
    assert!(text(&now["published"]["statement"]).contains("first 18 entries cannot have been cut off"), "{now}");
    // Put back to the older state, the log's own machine finds it by itself, and signs nothing more.
    fs::remove_dir_all(home.audit()).unwrap();
    copy(Path::new(older), &home.audit());
    let ran = home.run(["audit", "verify", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("audit.key.state"), "{ran:?}");
    let sealed = seal(&home, "four");
    assert_eq!(sealed["audit"]["signed"]["complete"], false, "{sealed}");
    assert!(text(&sealed["audit"]["signed"]["reason"]).contains("put back"), "{sealed}");
    let path = home.path("four.safetensors");
    home.run(["seal", path.to_str().unwrap(), "--audit-required", "--json"]).failed(3, "audit", &["signed"]);
}

#[test]
fn what_witnesses_saw_is_cosigned_and_a_quorum_of_them_is_asked_for() {
    let (home, vkey) = signed_home();
    let names = ["witness.example.org/w1", "witness.example.org/w2"];
    let [one, two] = names.map(|name| SigningKey::generate_cosigner(name).unwrap());
    let note = SignedNote::parse(&fs::read(published(&home).join("checkpoint")).unwrap()).unwrap();
    let now = jiff::Timestamp::now().as_second().unsigned_abs();
    let cosigned = note.with_signature_lines([one.sign(note.text(), now)]);
    fs::write(published(&home).join("cosigned"), cosigned.to_bytes()).unwrap();
    seal(&home, "three");
    let [one, two] = [one, two].map(|witness| witness.verifier().to_string());
    let verify = |words: &[&str]| {
        let ran = home.run(["audit", "verify", "--json", "--vkey", &vkey].iter().chain(words));
        (ran.code, ran.object())
    };
    let (code, verdict) = verify(&["--witness", &one, "--max-age", "1h"]);
    assert_eq!((code, ranges(&verdict)), (0, [12, 12, 18, 18]), "{verdict}");
    assert_eq!(verdict["published"]["cosigned_by"][0]["name"], "witness.example.org/w1");
    assert!(
        text(&verdict["published"]["statement"]).contains("first 12 entries cannot have been cut off"),
        "{verdict}"
    );
    assert_eq!(verify(&["--witness", &one, "--witness", &two, "--quorum", "1"]).0, 0);
    assert_eq!(verify(&["--witness", &one, "--witness", &two]).0, 3, "both were asked for");
    assert_eq!(verify(&["--witness", &two]).0, 3);
    // A proof carries the cosignatures of the checkpoint that it is under.
    let proof = home.path("p");
    let proof = proof.to_str().unwrap();
    home.json(["audit", "prove", "4", "-o", proof]);
    let checked = home.json(["audit", "check-proof", proof, "--vkey", &vkey, "--witness", &one]);
    assert_eq!(checked["cosigned_by"][0]["time"], now);
    let ran = home.run(["audit", "check-proof", proof, "--vkey", &vkey, "--witness", &two, "--json"]);
    ran.failed(3, "proof", &["0 of the known witnesses"]);
}

#[test]
fn entries_that_are_gone_are_missing_whatever_an_unsigned_file_says() {
    let home = Home::new();
    let vkey = text(&home.json(["audit", "keygen"])["vkey"]);
    let models = home.path("models");
    for number in 0..70 {
        home.file(format!("models/{number}.safetensors"), &safetensors(["a", "b"], 1));
    }
    home.json(["seal", models.to_str().unwrap()]);
    let verify = || home.run(["audit", "verify", "--vkey", &vkey, "--json"]);
    assert_eq!(verify().code, 0);
    fs::remove_file(published(&home).join("tile/entries/000")).unwrap();
    assert_eq!(verify().code, 3);
    fs::write(published(&home).join("minimum-index"), "256\n").unwrap();
    let ran = verify();
    ran.failed(3, "audit", &[]);
    assert_eq!(ran.object()["published"]["violations"][0]["file"], "tile/entries/000");
    assert_eq!(ran.object()["published"]["violations"][1]["file"], "minimum-index");
}

#[test]
fn how_old_a_log_may_be_is_the_auditors_choice() {
    let (home, vkey) = signed_home();
    home.json(["audit", "verify", "--vkey", &vkey, "--max-age", "1h"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    home.run(["audit", "verify", "--vkey", &vkey, "--max-age", "1s", "--json"]).failed(3, "stale", &["1 s old"]);
    home.run(["audit", "verify", "--max-age", "soon", "--json"]).failed(2, "usage", &["an age"]);
}

#[test]
fn a_record_is_proven_to_others_by_one_small_file() {
    let (home, vkey) = signed_home();
    let proof = home.path("p.tlog-proof");
    let proof = proof.to_str().unwrap();
    let auditor = Home::new();
    let check = |words: &[&str]| auditor.run(["audit", "check-proof", proof, "--json"].iter().chain(words));
    let shown = home.run(["audit", "show", "--json"]);
    for (index, line) in shown.stdout.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        let seq = line["seq"].to_string();
        let made = home.json(["audit", "prove", &seq, "-o", proof]);
        assert_eq!((&made["tree_index"], &made["tree_size"]), (&index.into(), &12.into()));
        assert!(fs::metadata(proof).unwrap().len() <= 2048);
        let mut given: Vec<Vec<String>> = Vec::new();
        if made["carries_record"] == true {
            given.push(vec![]);
        }
        for format in ["ocsf", "ndjson"] {
            let row = home.run(["audit", "export", "--format", format, "--seq", &seq]);
            let row = home.file(format!("row.{format}"), row.stdout.as_bytes());
            given.push(vec!["--record".to_owned(), row.to_str().unwrap().to_owned()]);
        }
        for record in given {
            let mut words = vec!["--vkey", &vkey];
            words.extend(record.iter().map(String::as_str));
            let checked = check(&words);
            assert_eq!(checked.code, 0, "{record:?}: {checked:?}");
            let object = checked.object();
            assert_eq!((&object["valid"], &object["record"]["record"]), (&true.into(), &line["record"]), "{seq}");
        }
    }
    let told = auditor.run(["audit", "check-proof", proof, "--vkey", &vkey]);
    assert!(told.stdout.contains("entry 11 of the 12") && told.stdout.contains("close"), "{told:?}");

    // Another record, another key, a changed proof, no key.
    let other = home.run(["audit", "export", "--format", "ndjson", "--seq", "3"]);
    let other = home.file("other", other.stdout.as_bytes());
    check(&["--vkey", &vkey, "--record", other.to_str().unwrap()]).failed(3, "proof", &[]);
    let (_, stranger) = signed_home();
    check(&["--vkey", &stranger]).failed(3, "proof", &["not signed by any key that is trusted"]);
    check(&[]).failed(2, "usage", &["--vkey"]);
    check(&["--vkey", &vkey, "--quorum", "1"]).failed(2, "usage", &["--witness"]);
    let bytes = fs::read(proof).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(proof, &changed).unwrap();
        let ran = check(&["--vkey", &vkey]);
        assert_ne!(ran.code, 0, "byte {at} of {}", String::from_utf8_lossy(&changed));
    }
    home.run(["audit", "prove", "99", "-o", proof, "--json"]).failed(1, "audit", &["record 99", "not published"]);
}

/// Serves a directory as any web server does, until the test ends. Returns its address.
fn serve_files(dir: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, dir) = (stream.unwrap(), dir.clone());
            std::thread::spawn(move || {
                let mut head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let path = head.next().and_then(|line| Some(line.split(' ').nth(1)?.to_owned())).unwrap_or_default();
                let _ = head.find(|line| line.is_empty());
                let (status, body) = match fs::read(dir.join(path.trim_start_matches('/'))) {
                    Ok(bytes) => ("200 OK", bytes),
                    Err(_) => ("404 Not Found", Vec::new()),
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn a_log_is_verified_and_its_records_proven_over_the_network() {
    let (home, vkey) = signed_home();
    let url = serve_files(published(&home));
    let auditor = Home::new();
    let verdict = auditor.json(["audit", "verify", &url, "--vkey", &vkey]);
    assert_eq!((ranges(&verdict)[2], &verdict["records"]), (12, &Value::Null), "{verdict}");
    let proof = auditor.path("p");
    auditor.json(["audit", "prove", "4", &url, "--vkey", &vkey, "-o", proof.to_str().unwrap()]);
    auditor.json(["audit", "check-proof", proof.to_str().unwrap(), "--vkey", &vkey]);
    // A replica is read in the same way, and what it has more is found.
    let older = auditor.path("older");
    copy(&published(&home), &older);
    seal(&home, "three");
    let older = older.to_str().unwrap();
    let ran = auditor.run(["audit", "verify", older, "--vkey", &vkey, "--replica", &url, "--json"]);
    ran.failed(3, "audit", &[]);
    assert!(text(&ran.object()["published"]["violations"][0]["file"]).contains(&url), "{ran:?}");
    let bundle = published(&home).join("tile/entries/000.p/18");
    let mut bytes = fs::read(&bundle).unwrap();
    bytes[40] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    auditor.run(["audit", "verify", &url, "--vkey", &vkey, "--json"]).failed(3, "audit", &["evidence"]);
    auditor.run(["audit", "verify", "gopher://x/y", "--vkey", &vkey, "--json"]).failed(2, "usage", &["gopher"]);
    // Where nobody answers, nothing is known of a key either.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/audit");
    let words = ["the log at", url.as_str(), "cannot be read", "refused", "check the address"];
    auditor.run(["audit", "verify", &url, "--json"]).failed(1, "audit", &words);
    auditor.run(["audit", "prove", "1", &url, "--json"]).failed(1, "audit", &words);
}

#[test]
fn a_log_changes_to_its_next_key_and_stays_one_log() {
    let (home, first) = signed_home();
    let early = home.path("early");
    fs::copy(published(&home).join("checkpoint"), &early).unwrap();
    let made = home.json(["audit", "keygen", "--rotate"]);
    let second = text(&made["vkey"]);
    assert_ne!(first, second);
    home.run(["audit", "keygen", "--rotate", "--json"]).failed(1, "key", &["not carried out yet"]);
    let sealed = seal(&home, "three");
    assert_eq!(text(&sealed["audit"]["signed"]["vkey"]), second, "{sealed}");
    assert_eq!((&sealed["audit"]["health"], &sealed["audit"]["signed"]["complete"]), (&"good".into(), &true.into()));
    assert!(!home.state().join("audit.key.next").exists());
    assert_eq!(fs::read_to_string(home.state().join("audit.vkey")).unwrap().trim(), second);
    let rotated = home.run(["audit", "show", "--event", "key", "--json"]);
    assert_eq!(rotated.stdout.lines().count(), 1, "{rotated:?}");
    // Who knows only the first key can follow; who knows the second needs no other.
    for vkey in [&first, &second] {
        let verdict = home.json(["audit", "verify", "--vkey", vkey]);
        assert_eq!(ranges(&verdict)[2], 19, "{verdict}");
    }
    home.json(["audit", "keygen", "--rotate"]);
    seal(&home, "four");
    assert_eq!(home.run(["audit", "verify", "--vkey", &first]).code, 0, "across two changes");
    // And back: what others kept from before both changes is still this log's.
    let verdict = home.json(["audit", "verify", "--checkpoint", early.to_str().unwrap()]);
    assert_eq!(verdict["published"]["keys"].as_array().unwrap().len(), 3, "{verdict}");
    let mode = fs::metadata(home.state().join("audit.vkey")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "as when it was first made");
}

#[test]
fn a_log_that_was_put_back_and_a_next_key_that_is_none_are_told_of() {
    let (home, vkey) = signed_home();
    let earlier = home.path("earlier");
    copy(&home.audit(), &earlier);
    seal(&home, "three");
    fs::remove_dir_all(home.audit()).unwrap();
    copy(&earlier, &home.audit());
    for arguments in [&["audit", "verify", "--json"][..], &["audit", "verify", "--json", "--vkey", &vkey]] {
        let ran = home.run(arguments.iter().copied());
        ran.failed(3, "audit", &[]);
        assert!(ran.stdout.contains("more of this log was signed on this machine"), "{ran:?}");
    }
    let (home, vkey) = signed_home();
    let next = home.state().join("audit.key.next");
    fs::write(&next, "nonsense").unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
    let path = home.file("three.safetensors", &safetensors(["a", "b"], 10));
    let ran = home.run(["seal", path.to_str().unwrap()]);
    assert!(ran.code == 0 && ran.stderr.contains("keeps its present key"), "{ran:?}");
    home.run(["audit", "keygen", "--rotate", "--json"]).failed(1, "key", &["cannot be used", "remove it"]);
    home.json(["audit", "verify", "--vkey", &vkey]);
}

#[test]
fn a_running_daemon_signs_as_it_goes() {
    let home = Home::new();
    let vkey = text(&home.json(["audit", "keygen"])["vkey"]);
    let mut daemon = support::daemon::Daemon::start(&home, &["--allow-drill"]);
    daemon.told(&["drill", "small-bin"]);
    daemon.until("the drill and what followed are signed", |status| {
        status["audit"]["evidence"]["signed_records"].as_u64() >= Some(10)
    });
    let live = home.json(["audit", "verify", "--vkey", &vkey]);
    assert!(ranges(&live)[2] >= 10, "{live}");
    daemon.stop();
    let closed = home.json(["audit", "verify", "--vkey", &vkey]);
    assert_eq!((ranges(&closed)[2], ranges(&closed)[3]), (closed["records"].as_u64().unwrap(), ranges(&closed)[2]));
}

#[test]
fn a_process_that_ends_between_signing_and_publishing_leaves_no_violation() {
    let (home, _) = signed_home();
    let checkpoint = published(&home).join("checkpoint");
    let before = fs::read(&checkpoint).unwrap();
    seal(&home, "three");
    // As a kill leaves it: what was signed is on record beside the key, and its checkpoint is not there yet.
    fs::write(&checkpoint, before).unwrap();
    let verdict = home.json(["audit", "verify"]);
    assert_eq!(ranges(&verdict), [0, 0, 12, 18], "{verdict}");
    // The same record beside the key, and a log that does not have what was signed.
    let state = home.state().join("audit.key.state");
    let signed = fs::read_to_string(&state).unwrap();
    let root = signed.lines().nth(2).unwrap();
    fs::write(&state, signed.replace(root, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")).unwrap();
    home.run(["audit", "verify", "--json"]).failed(3, "audit", &["not as it was written"]);
    fs::write(&state, signed).unwrap();
    seal(&home, "four");
    assert_eq!(ranges(&home.json(["audit", "verify"])), [0, 0, 24, 24]);
}

#[test]
fn a_key_that_cannot_be_reached_is_not_taken_for_none() {
    let (home, _) = signed_home();
    let key = home.state().join("audit.key");
    fs::rename(&key, home.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(home.path("not-mounted/audit.key"), &key).unwrap();
    let path = home.file("three.safetensors", &safetensors(["a", "b"], 10));
    let ran = home.run(["seal", path.to_str().unwrap()]);
    assert!(ran.code == 0 && ran.stderr.contains("the audit log is not signed"), "{ran:?}");
}
