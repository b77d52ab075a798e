//! Witnesses: well and ill behaved ones, played by a small server, and a real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::{SignedNote, SigningKey};
use audit_logging::tlog::tree::{Hash, check_consistency};
use audit_replication::{Options, Replication, StartError, State, Status, Witness, WitnessError, WitnessOptions};
use common::{TestNode, until};

const ORIGIN: &str = "node.example/vram-audit/0a1b2c3d";

/// A request as a witness reads it.
struct Asked {
    old: u64,
    proof: Vec<Hash>,
    checkpoint: Checkpoint,
    note: SignedNote,
}

impl Asked {
    fn parse(body: &str) -> Self {
        let (head, note) = body.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let old = lines.next().unwrap().strip_prefix("old ").unwrap().parse().unwrap();
        let note = SignedNote::parse(note.as_bytes()).unwrap();
        let checkpoint = Checkpoint::parse(note.text()).unwrap();
        Self { old, proof: lines.map(|line| Hash::parse(line).unwrap()).collect(), checkpoint, note }
    }
}

type Answer = Box<dyn Fn(&Asked) -> (u16, String) + Send + Sync>;

/// A server that answers as it is told, for as long as the test runs.
struct Played {
    url: String,
    asked: Arc<Mutex<Vec<(u64, usize, u64)>>>,
}

fn play(answer: Answer) -> Played {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/w", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            std::thread::spawn(move || while serve(&stream, &log, &**answer).is_some() {});
        }
    });
    fn serve(
        stream: &std::io::Result<TcpStream>,
        log: &Mutex<Vec<(u64, usize, u64)>>,
        answer: &(dyn Fn(&Asked) -> (u16, String) + Send + Sync),
    ) -> Option<()> {
        let stream = stream.as_ref().ok()?;
        let mut reader = BufReader::new(stream);
        let (mut length, mut line) = (0, String::new());
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        assert!(line.starts_with("POST /w/add-checkpoint "), "{line}");
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let asked = Asked::parse(std::str::from_utf8(&body).unwrap());
        log.lock().unwrap().push((asked.old, asked.proof.len(), asked.checkpoint.size));
        let (status, text) = answer(&asked);
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len()).ok()
    }
    Played { url, asked }
}

/// What a witness does that keeps to the protocol.
fn honest(key: &SigningKey) -> Answer {
    let key = SigningKey::parse(&key.to_text()).unwrap();
    let last: Mutex<Option<Checkpoint>> = Mutex::new(None);
    Box::new(move |asked| {
        let mut last = last.lock().unwrap();
        let (size, root) = last.as_ref().map_or((0, Hash::EMPTY_TREE), |last| (last.size, last.root));
        if asked.old > asked.checkpoint.size {
            return (400, String::new());
        }
        if asked.old != size {
            return (409, format!("{size}\n"));
        }
        let continues = match size {
            0 => asked.proof.is_empty(),
            _ if size == asked.checkpoint.size => asked.proof.is_empty() && root == asked.checkpoint.root,
            _ => check_consistency(&asked.proof, size, root, asked.checkpoint.size, asked.checkpoint.root).is_ok(),
        };
        if !continues {
            return (422, String::new());
        }
        *last = Some(asked.checkpoint.clone());
        (200, key.sign(asked.note.text(), 1_764_000_000).to_string())
    })
}

fn cosigner(name: &str) -> SigningKey {
    SigningKey::generate_cosigner(name).unwrap()
}

fn node(dir: &tempfile::TempDir, keys: &[&SigningKey], quorum: usize) -> Arc<TestNode> {
    let mut node = TestNode::new(dir.path(), SigningKey::generate(ORIGIN).unwrap());
    node.witnesses = keys.iter().map(|key| key.verifier().clone()).collect();
    node.quorum = quorum;
    Arc::new(node)
}

fn options(witnesses: &[(&str, &SigningKey)], quorum: usize) -> WitnessOptions {
    let witnesses = witnesses.iter().map(|(url, key)| Witness::new(url, &key.verifier().to_string()).unwrap());
    WitnessOptions {
        witnesses: witnesses.collect(),
        quorum,
        interval: Duration::from_millis(50),
        patience: Duration::from_millis(500),
        timeout: Duration::from_millis(700),
        ..WitnessOptions::default()
    }
}

fn start(node: &Arc<TestNode>, witnesses: WitnessOptions) -> Replication {
    let options = Options { witnesses, ..Options::default() };
    Replication::start(Arc::clone(node) as Arc<dyn audit_replication::Node>, options).unwrap()
}

fn refused(answer: Answer) -> (Arc<TestNode>, Replication, Status, Played) {
    let dir = tempfile::tempdir().unwrap();
    let key = cosigner("w.example/1");
    let node = node(&dir, &[&key], 1);
    node.grow(0, 300);
    let played = play(answer);
    let replication = start(&node, options(&[(&played.url, &key)], 1));
    let status = until(&replication, "a failure", |status| status.witnesses[0].failures > 0);
    assert!(node.cosigned.lock().unwrap().is_empty());
    drop(dir);
    (node, replication, status, played)
}

#[test]
fn a_quorum_comes_about_although_one_witness_is_down_and_one_never_answers() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ["a", "b", "down", "mute"].map(cosigner);
    let all: Vec<&SigningKey> = keys.iter().collect();
    let node = node(&dir, &all, 2);
    let (a, b) = (play(honest(&keys[0])), play(honest(&keys[1])));
    let mute = play(Box::new(|_| {
        std::thread::sleep(Duration::from_secs(3600));
        (500, String::new())
    }));
    let gone = format!("http://{}/w", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let urls = [&a.url, &b.url, &gone, &mute.url];
    let list: Vec<(&str, &SigningKey)> = urls.iter().map(|url| url.as_str()).zip(all).collect();
    let replication = start(&node, options(&list, 2));
    for round in 1..=5 {
        node.grow(0, 400);
        let status = until(&replication, "two cosigned", |status| status.cosigned_size == round * 400);
        assert!(status.last_cosigned.is_some());
    }
    let status = until(&replication, "failures are counted", |status| {
        status.witnesses[2].failures > 0 && status.witnesses[3].failures > 0 && status.witnesses[2].lag == 2000
    });
    let states: Vec<State> = status.witnesses.iter().map(|witness| witness.state).collect();
    assert_eq!(states, [State::Working, State::Working, State::Failing, State::Failing]);
    assert_eq!(status.witnesses[2].size, 0);
    // Each proof was asked for once: nobody starts from nothing twice.
    assert_eq!(a.asked.lock().unwrap().iter().filter(|(old, ..)| *old == 0).count(), 1);
    node.grow(0, 1);
    let begun = Instant::now();
    let status = replication.finish(Duration::from_secs(5));
    assert_eq!(status.cosigned_size, 2001, "the end asked a last time");
    assert!(begun.elapsed() < Duration::from_secs(3), "and waited for nobody else: {:?}", begun.elapsed());
}

#[test]
fn a_restarted_node_learns_from_a_conflict_where_the_witness_stands() {
    let dir = tempfile::tempdir().unwrap();
    let key = cosigner("w.example/1");
    let node = node(&dir, &[&key], 1);
    let played = play(honest(&key));
    node.grow(0, 700);
    let first = start(&node, options(&[(&played.url, &key)], 1));
    until(&first, "the first", |status| status.cosigned_size == 700);
    drop(first);
    node.grow(0, 700);
    std::fs::remove_file(dir.path().join("cosigned")).unwrap();
    let second = start(&node, options(&[(&played.url, &key)], 1));
    let status = until(&second, "the second", |status| status.cosigned_size == 1400);
    assert_eq!(status.witnesses[0].failures, 0);
    let asked = played.asked.lock().unwrap().clone();
    assert_eq!(asked.first().unwrap(), &(0, 0, 700));
    assert_eq!(&asked[1], &(0, 0, 1400), "from nothing, answered with 409");
    assert!(asked[2].0 == 700 && asked[2].1 > 0, "{asked:?}");
}

#[test]
fn what_was_cosigned_in_an_earlier_run_saves_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let key = cosigner("w.example/1");
    let node = node(&dir, &[&key], 1);
    let played = play(honest(&key));
    node.grow(0, 700);
    let first = start(&node, options(&[(&played.url, &key)], 1));
    until(&first, "the first", |status| status.cosigned_size == 700);
    drop(first);
    node.grow(0, 1);
    let second = start(&node, options(&[(&played.url, &key)], 1));
    assert_eq!(second.status().witnesses[0].size, 700);
    until(&second, "the second", |status| status.cosigned_size == 701);
    assert_eq!(played.asked.lock().unwrap()[1].0, 700);
}

#[test]
fn an_idle_log_is_cosigned_anew() {
    let dir = tempfile::tempdir().unwrap();
    let key = cosigner("w.example/1");
    let node = node(&dir, &[&key], 1);
    let played = play(honest(&key));
    node.grow(0, 300);
    let witnesses = WitnessOptions { heartbeat: Duration::from_millis(300), ..options(&[(&played.url, &key)], 1) };
    let replication = start(&node, witnesses);
    until(&replication, "four times", |_| node.cosigned.lock().unwrap().len() >= 4);
    let asked = played.asked.lock().unwrap().clone();
    assert_eq!(asked[0], (0, 0, 300));
    assert!(asked[1..].iter().all(|asked| *asked == (300, 0, 300)), "{asked:?}");
}

#[test]
fn a_witness_that_knows_more_than_the_node_ever_signed_means_rollback() {
    let (node, replication, status, played) = refused(Box::new(|_| (409, String::from("301\n"))));
    assert_eq!(status.witnesses[0].state, State::Rollback);
    node.grow(0, 1000);
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(replication.status().witnesses[0].state, State::Rollback, "it was asked again");
    assert_eq!((played.asked.lock().unwrap().len(), node.critical("rollback")), (1, 1));
}

#[test]
fn a_witness_with_another_tree_is_on_record_once() {
    let (node, _replication, status, _) = refused(Box::new(|_| (422, String::new())));
    assert_eq!(status.witnesses[0].state, State::Refused);
    node.grow(0, 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(node.critical("conflict"), 1);
}

#[test]
fn refusals_say_what_to_do_and_are_no_evidence() {
    // Side by side: the end of each waits for its witness once more.
    let check = |status, body: &str, judge: &dyn Fn(&Status)| {
        let answer = (status, body.to_owned());
        let (node, _replication, status, _) = refused(Box::new(move |_| answer.clone()));
        judge(&status);
        assert!(node.records.lock().unwrap().is_empty());
    };
    std::thread::scope(|scope| {
        for (answer, word) in
            [(400, "malformed"), (403, "vkey"), (404, "register"), (503, "trouble"), (302, "no witness")]
        {
            scope.spawn(move || {
                check(answer, "", &|status| {
                    let error = status.witnesses[0].last_error.clone().unwrap();
                    assert!(error.contains(word), "{answer}: {error}");
                });
            });
        }
        for body in ["", "17", "-1\n", "300\n", "0\n"] {
            scope.spawn(move || {
                check(409, body, &|status| assert_eq!(status.witnesses[0].state, State::Failing, "{body:?}"));
            });
        }
    });
}

#[test]
fn what_is_no_cosignature_of_this_witness_counts_for_nothing() {
    let (key, other) = (cosigner("w.example/1"), cosigner("w.example/2"));
    let sign = |key: &SigningKey, text: &str, time| key.sign(text, time).to_string();
    let dir = tempfile::tempdir().unwrap();
    // Side by side: the end of each waits for its witness once more.
    std::thread::scope(|scope| {
        for kind in 0..6 {
            let (key, other) = (&key, &other);
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                let node = node(&dir, &[key], 1);
                node.grow(0, 300);
                let (key_again, other) =
                    (SigningKey::parse(&key.to_text()).unwrap(), SigningKey::parse(&other.to_text()).unwrap());
                let played = play(Box::new(move |asked| {
                    let text = asked.note.text();
                    let body = match kind {
                        0 => String::new(),
                        1 => String::from("nothing of the kind\n"),
                        2 => sign(&other, text, 1_764_000_000),
                        3 => sign(&key_again, text, 0),
                        4 => sign(&key_again, &text.replace("300", "301"), 1_764_000_000),
                        _ => "x".repeat(1 << 20),
                    };
                    (200, body)
                }));
                let replication = start(&node, options(&[(&played.url, key)], 1));
                let status = until(&replication, "a failure", |status| status.witnesses[0].failures > 0);
                assert_eq!((status.witnesses[0].state, status.cosigned_size), (State::Failing, 0), "kind {kind}");
                assert!(node.cosigned.lock().unwrap().is_empty(), "kind {kind}");
            });
        }
    });
    // Among lines of others, its own is found.
    let node = node(&dir, &[&key], 1);
    node.grow(0, 300);
    let (own, others) = (SigningKey::parse(&key.to_text()).unwrap(), other);
    let played = play(Box::new(move |asked| {
        let text = asked.note.text();
        (200, format!("{}{}", sign(&others, text, 5), sign(&own, text, 1_764_000_000)))
    }));
    let replication = start(&node, options(&[(&played.url, &key)], 1));
    until(&replication, "the quorum", |status| status.cosigned_size == 300);
}

#[test]
fn contradictions_in_the_configuration_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (cosigner("a"), cosigner("b"));
    let node = node(&dir, &[&a], 1);
    let try_with = |witnesses: &[(&str, &SigningKey)], quorum| {
        let options = Options { witnesses: options(witnesses, quorum), ..Options::default() };
        Replication::start(Arc::clone(&node) as Arc<dyn audit_replication::Node>, options).map(drop)
    };
    let url = "http://127.0.0.1:1/";
    assert!(matches!(try_with(&[(url, &a)], 0), Err(StartError::Quorum { .. })));
    assert!(matches!(try_with(&[(url, &a)], 2), Err(StartError::Quorum { .. })));
    assert!(matches!(try_with(&[], 1), Err(StartError::Quorum { .. })));
    assert!(matches!(try_with(&[(url, &a), (url, &a)], 2), Err(StartError::Twice { .. })));
    assert!(try_with(&[(url, &a), (url, &b)], 2).is_ok());
    let log = SigningKey::generate("log").unwrap().verifier().to_string();
    assert!(matches!(Witness::new(url, &log), Err(WitnessError::Kind { .. })));
    assert!(matches!(Witness::new(url, "x"), Err(WitnessError::Key { .. })));
    for url in ["", "w.example", "ftp://w.example/", "https://w.example/?a=b"] {
        assert!(matches!(Witness::new(url, &a.verifier().to_string()), Err(WitnessError::Url { .. })), "{url}");
    }
    let witness = Witness::new("https://w.example/prefix/", &a.verifier().to_string()).unwrap();
    assert_eq!(witness.url(), "https://w.example/prefix/add-checkpoint");
}

/// A real witness: PyPI's `aics-witness`, in the folder that the variable names. `cargo xtask replica` sets it.
struct Real {
    program: String,
    config: std::path::PathBuf,
    child: Child,
    vkey: String,
    url: String,
}

impl Real {
    fn start(dir: &std::path::Path, origin: &str, log: &str) -> Option<Self> {
        let Ok(program) = std::env::var("VRAM_TEST_WITNESS") else {
            assert!(std::env::var_os("VRAM_REQUIRE_STORES").is_none(), "VRAM_TEST_WITNESS is not set");
            eprintln!("no witness: run `cargo xtask replica`");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = dir.join("w.json");
        let run = |arguments: &[&str]| {
            let output = Command::new(&program).args(arguments).arg("-c").arg(&config).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let said = run(&["init", "--name", "witness.example.org/w1", "--listen", &address]);
        let vkey = said.split_whitespace().find(|word| word.starts_with("witness.example.org/w1+")).unwrap().to_owned();
        run(&["add-log", "--origin", origin, "--vkey", log]);
        let child = Self::serve(&program, &config, &address);
        Some(Self { program, config, child, vkey, url: format!("http://{address}") })
    }

    fn serve(program: &str, config: &std::path::Path, address: &str) -> Child {
        let mut serve = Command::new(program);
        serve.args(["serve", "-c"]).arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = serve.spawn().unwrap();
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the witness does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }

    fn again(&mut self) {
        self.child = Self::serve(&self.program, &self.config, self.url.strip_prefix("http://").unwrap());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_real_witness_cosigns_goes_down_comes_back_and_cosigns_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let mut node = TestNode::new(&home, SigningKey::generate(ORIGIN).unwrap());
    let Some(mut real) = Real::start(dir.path(), ORIGIN, &node.key.verifier().to_string()) else { return };
    let witness = Witness::new(&real.url, &real.vkey).unwrap();
    node.witnesses = vec![witness.key().clone()];
    node.quorum = 1;
    let node = Arc::new(node);
    let witnesses = WitnessOptions {
        witnesses: vec![witness],
        quorum: 1,
        interval: Duration::from_millis(100),
        ..WitnessOptions::default()
    };
    let replication = start(&node, witnesses.clone());
    for round in 1..=10 {
        node.grow(0, 333);
        until(&replication, "it cosigned", |status| status.cosigned_size == round * 333);
    }
    assert_eq!(replication.status().witnesses[0].failures, 0);
    real.kill();
    node.grow(0, 1000);
    let status = until(&replication, "that it is down", |status| status.witnesses[0].failures > 0);
    assert_eq!((status.witnesses[0].state, status.witnesses[0].lag), (State::Failing, 1000));
    real.again();
    until(&replication, "it cosigned again", |status| status.cosigned_size == 4330);
    drop(replication);

    // A node that forgot where the witness stands: 409, and then a proof.
    std::fs::remove_file(home.join("cosigned")).unwrap();
    node.grow(0, 1);
    let replication = start(&node, witnesses.clone());
    let status = until(&replication, "after a conflict", |status| status.cosigned_size == 4331);
    assert_eq!(status.witnesses[0].failures, 0);
    drop(replication);

    // A node that was set back, with the same key.
    let set_back = TestNode::new(&dir.path().join("set-back"), SigningKey::parse(&node.key.to_text()).unwrap());
    set_back.grow(0, 2000);
    let set_back = Arc::new(set_back);
    let replication = start(&set_back, witnesses.clone());
    until(&replication, "the rollback", |status| status.witnesses[0].state == State::Rollback);
    assert_eq!(set_back.critical("rollback"), 1);
    drop(replication);

    // Another past under the same key: the witness's answer is 422.
    let other = TestNode::new(&dir.path().join("other"), SigningKey::parse(&node.key.to_text()).unwrap());
    other.grow(7, 6000);
    let other = Arc::new(other);
    let replication = start(&other, witnesses);
    until(&replication, "the other tree", |status| status.witnesses[0].state == State::Refused);
    assert_eq!(other.critical("conflict"), 1);
}
