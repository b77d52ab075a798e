//! Replicas in S3-compatible stores that are really there: `cargo xtask replica` starts the quick one (PyPI's `moto`), and
//! `cargo xtask test --with-ceph` a distributed one. Without them these tests say so and do nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;
#[path = "common/published.rs"]
mod published;

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::source::{DirSource, Source};
use audit_logging::tlog::tree::tiles_between;
use audit_replication::{Location, Lock, Options, RemoteSource, ReplicaOptions, State, Status, StoreOptions};
use common::{until, until_within};
use published::Log;

/// PyPI's moto: S3 in one process, in memory. Ends with the test.
struct Moto {
    home: PathBuf,
    address: String,
    child: Child,
}

impl Moto {
    fn start() -> Option<Self> {
        let Ok(home) = std::env::var("VRAM_TEST_MOTO") else {
            assert!(std::env::var_os("VRAM_REQUIRE_STORES").is_none(), "VRAM_TEST_MOTO is not set");
            eprintln!("no store: run `cargo xtask replica`");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let home = PathBuf::from(home);
        let child = Self::serve(&home, &address);
        Some(Self { home, address, child })
    }

    fn serve(home: &Path, address: &str) -> Child {
        let (host, port) = address.split_once(':').unwrap();
        let mut server = Command::new(home.join("bin/moto_server"));
        server.args(["-H", host, "-p", port]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = server.spawn().unwrap();
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "moto does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }

    fn options(&self) -> StoreOptions {
        StoreOptions { endpoint: Some(format!("http://{}", self.address)), region: None, allow_http: true }
    }

    /// A few lines for boto3, which knows all of S3.
    fn python(&self, lines: &str) {
        boto(&self.home, &format!("http://{}", self.address), lines);
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.kill();
    }
}

fn boto(home: &Path, endpoint: &str, lines: &str) {
    let script =
        format!("import boto3\ns3 = boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1')\n{lines}\n");
    let output = Command::new(home.join("bin/python")).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
}

fn replica(url: &str, store: StoreOptions) -> ReplicaOptions {
    let location = Location::parse(url).unwrap();
    ReplicaOptions { store, interval: Duration::from_millis(100), ..ReplicaOptions::new(location) }
}

fn options(replica: ReplicaOptions) -> Options {
    Options { replicas: vec![replica], ..Options::default() }
}

/// Everything that the replica's newest checkpoint covers is there, byte for byte as here. Returns its size.
fn check_copy(dir: &Path, url: &str, store: &StoreOptions) -> u64 {
    let theirs = RemoteSource::open(url, store).unwrap();
    let ours = DirSource::new(dir);
    let checkpoint = theirs.get("checkpoint").unwrap().unwrap();
    let note = audit_logging::tlog::note::SignedNote::parse(&checkpoint).unwrap();
    let size = Checkpoint::parse(note.text()).unwrap().size;
    for tile in tiles_between(0, size) {
        let (there, here) = (theirs.get(&tile.path()).unwrap().unwrap(), ours.get(&tile.path()).unwrap());
        // The node may have gone on meanwhile, and have replaced a partial tile.
        assert!(here.is_none_or(|here| here == there), "{tile}");
    }
    size
}

fn is_current(status: &Status, size: u64) -> bool {
    status.replicas[0].size >= size && status.replicas[0].state == State::Working
}

#[test]
fn what_a_store_can_do_is_found_out() {
    let Some(moto) = Moto::start() else { return };
    moto.python(
        "s3.create_bucket(Bucket='plain')
s3.create_bucket(Bucket='versions')
s3.put_bucket_versioning(Bucket='versions', VersioningConfiguration={'Status': 'Enabled'})
s3.create_bucket(Bucket='locked', ObjectLockEnabledForBucket=True)
s3.put_object_lock_configuration(Bucket='locked', ObjectLockConfiguration={'ObjectLockEnabled': 'Enabled',
    'Rule': {'DefaultRetention': {'Mode': 'COMPLIANCE', 'Days': 1}}})",
    );
    for (bucket, lock) in [("plain", Lock::NoVersions), ("versions", Lock::Deleted), ("locked", Lock::Denied)] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), |_| {});
        log.emit(1);
        let replica = ReplicaOptions { object_lock: true, ..replica(&format!("s3://{bucket}/a/b"), moto.options()) };
        let replication = log.replicate(options(replica));
        let status = until(&replication, "the probe", |status| status.replicas[0].probe.is_some());
        let probe = status.replicas[0].probe.unwrap();
        assert_eq!((probe.conditional_create, probe.winners, probe.object_lock), (true, 1, lock), "{bucket}");
        let size = log.signed();
        until(&replication, "the copy", |status| is_current(status, size));
    }
    let plain = replica("s3://locked/c", StoreOptions { allow_http: false, ..moto.options() });
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), |_| {});
    let replication = log.replicate(options(plain));
    let status = until(&replication, "the refusal", |status| status.replicas[0].failures > 0);
    assert!(status.replicas[0].last_error.as_ref().unwrap().contains("without TLS"), "{status:?}");
}

#[test]
fn a_log_is_copied_while_its_store_hangs_dies_and_loses_everything() {
    let Some(mut moto) = Moto::start() else { return };
    let create = "s3.create_bucket(Bucket='logs')";
    moto.python(create);
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), |_| {});
    log.emit(1000);
    let url = "s3://logs/node-7";
    let replication = log.replicate(options(replica(url, moto.options())));
    let size = log.signed();
    until(&replication, "the first thousand", |status| is_current(status, size));

    moto.signal("-STOP");
    log.emit(1000);
    let size = log.signed();
    assert!(replication.status().replicas[0].size < size);
    moto.signal("-CONT");
    until(&replication, "the second thousand", |status| is_current(status, size));

    moto.kill();
    log.emit(1000);
    let size = log.signed();
    let status = until(&replication, "failures are counted, and the lag is told", |status| {
        status.replicas[0].failures >= 3 && status.replicas[0].lag >= 1000
    });
    assert_eq!(status.replicas[0].state, State::Failing);
    // It comes back with nothing: what was there has to go there again.
    moto.child = Moto::serve(&moto.home, &moto.address);
    moto.python(create);
    until(&replication, "the third thousand", |status| is_current(status, size));
    assert!(check_copy(log.publisher.dir(), url, &moto.options()) >= size);
    log.emit(500);
    println!("longest emit meanwhile: {:?}", log.worst);
    assert!(log.worst < Duration::from_secs(1), "a record waited for the store");
    let home = log.publisher.dir().to_owned();
    let status = log.close(replication);
    assert_eq!(status.replicas[0].lag, 0, "{status:?}");
    let size = check_copy(&home, url, &moto.options());
    assert_eq!(size, status.signed_size);
    println!("{size} records, {} objects, {} bytes", status.replicas[0].objects, status.replicas[0].bytes);
}

#[test]
fn a_node_that_was_set_back_and_a_stranger_in_the_bucket_are_found() {
    let Some(moto) = Moto::start() else { return };
    moto.python("s3.create_bucket(Bucket='logs')");
    let dir = tempfile::tempdir().unwrap();
    let (first, back) = (dir.path().join("first"), dir.path().join("back"));
    std::fs::create_dir(&first).unwrap();
    let mut log = Log::open(&first, |_| {});
    log.emit(300);
    let url = "s3://logs/node-7";
    let replication = log.replicate(options(replica(url, moto.options())));
    let status = log.close(replication);
    assert_eq!((status.replicas[0].lag, status.replicas[0].state), (0, State::Working));
    assert!(Command::new("cp").arg("-a").arg(&first).arg(&back).status().unwrap().success());
    let mut log = Log::open(&first, |_| {});
    log.emit(300);
    let replication = log.replicate(options(replica(url, moto.options())));
    assert_eq!(log.close(replication).replicas[0].lag, 0);

    // The whole machine, as it was a day ago: log, key and state.
    let log = Log::open(&back, |_| {});
    let replication = log.replicate(options(replica(url, moto.options())));
    until(&replication, "the rollback", |status| status.replicas[0].state == State::Rollback);
    let begun = Instant::now();
    while log.publisher.status().refused.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the publisher goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(replication);

    moto.python("s3.put_object(Bucket='logs', Key='stranger/tile/entries/000', Body=b'mine')");
    let third = dir.path().join("third");
    std::fs::create_dir(&third).unwrap();
    let mut log = Log::open(&third, |_| {});
    log.emit(300);
    let replication = log.replicate(options(replica("s3://logs/stranger", moto.options())));
    until(&replication, "the conflict", |status| status.replicas[0].state == State::Conflict);
    moto.python("assert s3.get_object(Bucket='logs', Key='stranger/tile/entries/000')['Body'].read() == b'mine'");
}

/// Ceph, started by `cargo xtask ceph`, which also ends it.
struct Ceph {
    home: PathBuf,
    endpoint: String,
}

impl Ceph {
    fn found() -> Option<Self> {
        let (home, endpoint) = (std::env::var("VRAM_TEST_CEPH").ok()?, std::env::var("VRAM_TEST_CEPH_ENDPOINT").ok()?);
        Some(Self { home: PathBuf::from(home), endpoint })
    }

    fn kill(&self, osd: u32) {
        let pid = std::fs::read_to_string(self.home.join(format!("run/osd.{osd}.pid"))).unwrap();
        assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    }

    fn start(&self, osd: u32) {
        let begin = || {
            let mut command = Command::new("ceph-osd");
            command.args(["-i", &osd.to_string()]).env("CEPH_CONF", self.home.join("ceph.conf"));
            command.stdout(Stdio::null()).status().unwrap().success()
        };
        // It may ask the monitor before it knows the cluster's name, and is refused then.
        assert!((0..5).any(|_| begin() || {
            std::thread::sleep(Duration::from_secs(2));
            false
        }));
    }
}

fn told(probe: audit_replication::Probe) -> String {
    let honoured = if probe.conditional_create { "honoured" } else { "ignored" };
    let (winners, lock) = (probe.winners, probe.object_lock.as_str());
    format!(
        "conditional create {honoured}, {winners} of 32 racing writers told that they won, deleting a version: {lock}"
    )
}

/// Where versions are kept, this store may ignore conditions (radosgw 16 does). Then it is flagged, and copied to all the
/// same: what would be overwritten stays as a version that nobody can delete.
fn locked_bucket(store: &StoreOptions) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut log = Log::open(dir.path(), |_| {});
    log.emit(1000);
    let size = log.signed();
    let url = "s3://locked/node-7";
    let replication = log.replicate(options(ReplicaOptions { object_lock: true, ..replica(url, store.clone()) }));
    let status = until_within(180, &replication, "the locked copy", |status| is_current(status, size));
    let probe = status.replicas[0].probe.unwrap();
    println!("bucket with object lock: {}", told(probe));
    assert_eq!(probe.object_lock, Lock::Denied);
    let home = log.publisher.dir().to_owned();
    assert_eq!(log.close(replication).replicas[0].lag, 0);
    println!("{} records compared with the copy under object lock, byte for byte", check_copy(&home, url, store));
}

#[test]
fn a_distributed_store_loses_one_part_and_then_two_and_nobody_waits() {
    let Some(ceph) = Ceph::found() else {
        eprintln!("no distributed store: run `cargo xtask ceph`");
        return;
    };
    let boto3 = PathBuf::from(std::env::var("VRAM_TEST_MOTO").unwrap());
    boto(
        &boto3,
        &ceph.endpoint,
        "s3.create_bucket(Bucket='audit')
s3.create_bucket(Bucket='locked', ObjectLockEnabledForBucket=True)
s3.put_object_lock_configuration(Bucket='locked', ObjectLockConfiguration={'ObjectLockEnabled': 'Enabled',
    'Rule': {'DefaultRetention': {'Mode': 'COMPLIANCE', 'Days': 1}}})",
    );
    let store = StoreOptions { endpoint: Some(ceph.endpoint.clone()), region: None, allow_http: true };
    locked_bucket(&store);

    let url = "s3://audit/node-7";
    let interval = Duration::from_secs(1);
    let demanding = ReplicaOptions { require_conditional_create: true, interval, ..replica(url, store.clone()) };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut log = Log::open(dir.path(), |_| {});
    log.emit(20_000);
    let size = log.signed();
    let begun = Instant::now();
    let replication = log.replicate(options(demanding));
    let status = until_within(180, &replication, "the first copy", |status| is_current(status, size));
    let (copy, probe) = (&status.replicas[0], status.replicas[0].probe.unwrap());
    println!("bucket without versions: {}", told(probe));
    assert!(probe.conditional_create && probe.winners == 1);
    println!(
        "copied {} records, {} objects, {} bytes in {:.1} s, the probe included",
        copy.size,
        copy.objects,
        copy.bytes,
        begun.elapsed().as_secs_f64()
    );

    let more = |log: &mut Log, records: u64| {
        log.worst = Duration::ZERO;
        log.emit(records);
        log.signed()
    };
    ceph.kill(0);
    let begun = Instant::now();
    let size = more(&mut log, 2000);
    let status = until_within(180, &replication, "the copy with one part gone", |status| is_current(status, size));
    println!(
        "one OSD killed: 2000 records more copied in {:.1} s, {} failed attempts, longest emit {:.1} ms",
        begun.elapsed().as_secs_f64(),
        status.replicas[0].failures,
        log.worst.as_secs_f64() * 1e3
    );

    let before = status.replicas[0].failures;
    ceph.kill(1);
    let begun = Instant::now();
    let size = more(&mut log, 2000);
    let published = begun.elapsed();
    let worst = log.worst;
    let status = until_within(240, &replication, "failures are counted, and the lag is told", |status| {
        status.replicas[0].failures >= before + 2 && status.replicas[0].lag >= 2000
    });
    assert_eq!(status.replicas[0].state, State::Failing);
    assert!(worst < Duration::from_secs(1), "a record waited for the store: {worst:?}");
    println!(
        "two OSDs killed: 2000 records on disk and signed in {:.1} s, longest emit {:.1} ms; after {:.0} s {} failed \
         attempts, {} records behind: {}",
        published.as_secs_f64(),
        worst.as_secs_f64() * 1e3,
        begun.elapsed().as_secs_f64(),
        status.replicas[0].failures - before,
        status.replicas[0].lag,
        status.replicas[0].last_error.as_deref().unwrap()
    );

    let begun = Instant::now();
    ceph.start(0);
    ceph.start(1);
    until_within(300, &replication, "it catches up", |status| is_current(status, size));
    println!("both started again: caught up after {:.1} s", begun.elapsed().as_secs_f64());
    let home = log.publisher.dir().to_owned();
    let status = log.close(replication);
    assert_eq!((status.replicas[0].lag, status.replicas[0].state), (0, State::Working));
    println!("{} records compared with the copy, byte for byte", check_copy(&home, url, &store));
}
