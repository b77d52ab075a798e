//! Crowds and rogues at the attach socket: nothing is left behind, and the check goes on in time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Home;
use support::attach::{Raw, frame};
use support::daemon::{Daemon, WAIT};
use vram_residency::client;

/// Set in a child that attaches as often as it can, as another user.
const CROWDER: &str = "VRAM_TEST_CROWDER";
/// Set in a child that attaches and waits to be killed.
const VICTIM: &str = "VRAM_TEST_VICTIM";

/// The tests of this file count what a process has: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kibibytes of a process's own memory: neither shared nor of files.
fn private_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sockets and memory files that the daemon has open: what clients could leave behind.
fn kept(daemon: &Daemon<'_>) -> Vec<String> {
    let all = daemon.descriptors().into_iter().map(|to| to.to_string_lossy().into_owned());
    all.filter(|to| to.starts_with("socket:") || to.contains("vram-region")).collect()
}

/// Waits until no more of these are open than before.
fn are_closed(daemon: &Daemon<'_>, before: usize) {
    let begun = Instant::now();
    while kept(daemon).len() > before {
        assert!(begun.elapsed() < WAIT, "{before} before, and now {:?}", daemon.descriptors());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_empty(status: &Value) -> bool {
    let handout = &status["handout"];
    handout["clients"] == json!([]) && handout["leases"] == 0 && handout["lingering_bytes"] == 0
}

#[test]
fn a_thousand_attaches_and_releases_leave_nothing_behind() {
    let _alone = alone();
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let cycle = |client: &client::Client| {
        let attached = client.attach("big-bin").unwrap();
        assert_eq!(attached.bytes().len(), 5 << 19);
    };
    // Once around, so that what is made once is there.
    cycle(&client::connect_to(&daemon.attach()).unwrap());
    daemon.until("the first is gone", is_empty);
    let (files, memory) = (kept(&daemon).len(), private_kib(daemon.child.id()));
    let used = daemon.told(&["status"])["devices"][0]["used_bytes"].clone();
    let ours = (std::fs::read_dir("/proc/self/fd").unwrap().count(), private_kib(std::process::id()));
    let one = client::connect_to(&daemon.attach()).unwrap();
    for _ in 0..500 {
        cycle(&one);
        cycle(&client::connect_to(&daemon.attach()).unwrap());
    }
    drop(one);
    let status = daemon.until("all are gone", is_empty);
    assert_eq!(status["devices"][0]["used_bytes"], used);
    are_closed(&daemon, files);
    let grown = private_kib(daemon.child.id()).saturating_sub(memory);
    eprintln!("the daemon's own memory grew by {grown} KiB");
    assert!(grown < 8 << 10, "the daemon's own memory grew by {grown} KiB");
    assert_eq!(std::fs::read_dir("/proc/self/fd").unwrap().count(), ours.0);
    let grown = private_kib(std::process::id()).saturating_sub(ours.1);
    assert!(grown < 4 << 10, "the client's own memory grew by {grown} KiB");
    let events = home.events_so_far();
    let count = |name: &str| events.iter().filter(|event| *event == name).count();
    assert!(count("ShardAttached") > 900, "they are on record: {}", count("ShardAttached"));
}

/// A process that holds a shard.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_hundred_clients_that_are_killed_leave_nothing_behind() {
    if let Some(socket) = std::env::var_os(VICTIM) {
        let attached = client::connect_to(Path::new(&socket)).unwrap().attach("big-bin").unwrap();
        println!("holding {}", attached.shard_id());
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }
    let _alone = alone();
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let (files, memory) = (kept(&daemon).len(), private_kib(daemon.child.id()));
    let start = || {
        let name = "two_hundred_clients_that_are_killed_leave_nothing_behind";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]).env(VICTIM, daemon.attach());
        Victim(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    };
    let mut victims: Vec<Victim> = (0..200).map(|_| start()).collect();
    for victim in &mut victims {
        let said = BufReader::new(victim.0.stdout.take().unwrap());
        assert!(said.lines().any(|line| line.unwrap().contains("holding big-bin")));
    }
    let status = daemon.until("all hold it", |status| status["handout"]["leases"] == 200);
    assert_eq!(status["handout"]["clients"].as_array().unwrap().len(), 200);
    let regions = daemon.descriptors().iter().filter(|to| to.to_string_lossy().contains("vram-region")).count();
    assert_eq!(regions, 2, "one region for all of them");
    drop(victims);
    daemon.until("nobody holds it", is_empty);
    are_closed(&daemon, files);
    let grown = private_kib(daemon.child.id()).saturating_sub(memory);
    eprintln!("the daemon's own memory grew by {grown} KiB");
    assert!(grown < 16 << 10, "the daemon's own memory grew by {grown} KiB");
    daemon.told(&["release", "big-bin"]);
}

/// How long the oldest block of any shard waited, at most, while something went on.
fn worst_age(daemon: &Daemon<'_>, done: &AtomicBool) -> f64 {
    let mut worst: f64 = 0.0;
    while !done.load(Ordering::Relaxed) {
        let status = daemon.get("/v1/status").json();
        for shard in status["shards"].as_array().unwrap() {
            worst = worst.max(shard["oldest_age_seconds"].as_f64().unwrap());
            assert_ne!(shard["state"], "UNVERIFIED", "{status}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    worst
}

#[test]
fn rogues_neither_slow_the_check_nor_shut_others_out() {
    let _alone = alone();
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let socket = daemon.attach();
    let (files, memory) = (kept(&daemon).len(), private_kib(daemon.child.id()));
    // What it is like on this machine while nobody bothers it.
    let done = AtomicBool::new(false);
    let quiet = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| worst_age(&daemon, &done));
        std::thread::sleep(Duration::from_secs(3));
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    done.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| worst_age(&daemon, &done));
        // Garbage and lengths that cannot be: an error, and the line is dead.
        let huge = [u32::MAX.to_le_bytes().as_slice(), &[b'x'; 100]].concat();
        let garbage = [
            huge,
            vec![0; 4],
            frame(b"{}"),
            frame(b"\xff\xfe"),
            frame(&[b'['; 4096]),
            frame(b"{\"type\":\"attach\",\"shard\":\"big-bin\"}"),
            frame(b"{\"type\":\"hello\",\"version\":1,\"more\":1}"),
            frame(b"{\"type\":\"hello\",\"version\":-1}"),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ];
        for bytes in &garbage {
            let mut raw = Raw::connect(&socket);
            let _ = raw.stream.write_all(bytes);
            let (said, none) = raw.receive();
            assert!(said["code"] == "malformed" && none.is_none(), "{bytes:?}: {said}");
            assert!(raw.is_hung_up(WAIT));
        }
        // Descriptors are closed before the daemon has them.
        let file = std::fs::File::open("/dev/zero").unwrap();
        for _ in 0..100 {
            let mut raw = Raw::connect(&socket);
            raw.send_with(&frame(b"{\"type\":\"list\"}"), file.as_fd());
            assert_eq!(raw.receive().0["code"], "descriptor");
        }
        // More connections than there are places, each with half a request or none; one holds a shard and stays.
        let mut holder = Raw::greeted(&socket);
        holder.attach("big-bin");
        let mut open = Vec::new();
        for number in 0..1000 {
            let mut stream = UnixStream::connect(&socket).unwrap();
            if number % 2 == 0 {
                let _ = stream.write_all(&[200, 0, 0, 0, b'{']);
            }
            open.push(stream);
            if number % 100 == 99 {
                let attached = client::connect_to(&socket).unwrap().attach("big-bin").unwrap();
                attached.verify().unwrap();
            }
        }
        let status = daemon.get("/v1/status").json();
        assert!(status["handout"]["clients"].as_array().unwrap().len() <= 256, "one user has half of the places");
        assert_eq!(holder.ask(&json!({ "type": "list" }))["type"], "shards", "who holds something stays");
        // Who asks for everything and reads nothing.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.write_all(&frame(b"{\"type\":\"hello\",\"version\":1}"));
            for _ in 0..500 {
                if stream.write_all(&frame(b"{\"type\":\"list\"}")).is_err() {
                    break;
                }
            }
            open.push(stream);
        }
        // Those who said nothing in time are gone by themselves.
        std::thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
        let worst = watcher.join().unwrap();
        eprintln!("oldest block: {quiet:.2} s before, {worst:.2} s meanwhile, of a period of 1 s");
        assert!(worst < 1.0_f64.max(quiet * 1.5), "every block within its period of 1 s, also now: {quiet}, {worst}");
        drop(open);
        drop(holder);
    });
    daemon.until("they are gone", is_empty);
    are_closed(&daemon, files);
    let grown = private_kib(daemon.child.id()).saturating_sub(memory);
    eprintln!("the daemon's own memory grew by {grown} KiB");
    assert!(grown < 32 << 10, "the daemon's own memory grew by {grown} KiB");
    let attached = client::connect_to(&socket).unwrap().attach("big-bin").unwrap();
    attached.verify().unwrap();
}

/// Two users who take all that they get, a third, root and the daemon's own user (who are one here).
#[test]
fn users_of_the_list_lock_neither_each_other_nor_root_out() {
    if let Some(socket) = std::env::var_os(CROWDER) {
        let connect = || client::connect_to(Path::new(&socket)).and_then(|client| client.attach("small-bin"));
        let held: Vec<_> = (0..20).map_while(|_| connect().ok()).collect();
        println!("crowder: {}", held.len());
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become other users; the rule itself is tested beside it");
        return;
    }
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, socket) = (open.path().join("test"), open.path().join("attach.sock"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let home = Home::new();
    let config = format!("[attach]\nsocket = {socket:?}\nuids = [64001, 64002, 64003]\nmax_clients = 16\n");
    let config = home.file("vram.toml", config.as_bytes());
    let _daemon = Daemon::start(&home, &["--config", config.to_str().unwrap()]);
    let mut victims = Vec::new();
    let mut crowd = |uid: u32| -> usize {
        let name = "users_of_the_list_lock_neither_each_other_nor_root_out";
        let mut command = Command::new(&program);
        command.args([name, "--exact", "--nocapture"]).env(CROWDER, &socket).uid(uid).gid(uid).current_dir("/");
        let mut victim = Victim(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let said = BufReader::new(victim.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let count = said.filter_map(|line| line.split("crowder: ").nth(1)?.parse().ok()).next().unwrap();
        victims.push(victim);
        count
    };
    // Two places are kept for the daemon's user and root, and one for each who has none.
    assert_eq!(crowd(64_001), 7, "half of what is not kept");
    assert_eq!(crowd(64_002), 6, "all but the third user's place");
    assert_eq!(crowd(64_003), 1);
    let own: Vec<_> = (0..2).map(|_| client::connect_to(&socket).unwrap().attach("big-bin").unwrap()).collect();
    let refused = client::connect_to(&socket).and_then(|client| client.attach("big-bin"));
    assert!(refused.unwrap_err().to_string().contains("16 places"), "now they are taken");
    assert!(own.iter().all(|attached| attached.verify().is_ok()));
    let events = || home.events_so_far().iter().filter(|event| *event == "AttachRefused").count();
    let begun = Instant::now();
    while events() < 4 {
        assert!(begun.elapsed() < WAIT, "who found no place is on record: {}", events());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn who_says_nothing_or_only_half_is_not_waited_for() {
    let _alone = alone();
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let mut silent = Raw::connect(&daemon.attach());
    let mut slow = Raw::greeted(&daemon.attach());
    slow.stream.write_all(&[100, 0, 0, 0, b'{']).unwrap();
    let begun = Instant::now();
    for raw in [&mut silent, &mut slow] {
        assert_eq!(raw.receive().0["code"], "timeout");
        assert!(raw.is_hung_up(WAIT));
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "nobody is hurried");
    daemon.until("they are gone", is_empty);
}
