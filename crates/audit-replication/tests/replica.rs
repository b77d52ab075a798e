//! Replicas: what order things arrive in, what is never overwritten, what happens while a store fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::{SignedNote, SigningKey};
use audit_logging::tlog::tree::tiles_between;
use audit_replication::{Location, Lock, Options, ReplicaOptions, Replication, State, StoreOptions};
use bytes::Bytes;
use common::{TestNode, until};
use faulty::{Faulty, Mode};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

const ORIGIN: &str = "node.example/vram-audit/0a1b2c3d";

fn key() -> SigningKey {
    SigningKey::generate(ORIGIN).unwrap()
}

/// Far more often than in use, so that the tests take no longer than they must.
fn quick(location: Location) -> ReplicaOptions {
    ReplicaOptions { interval: Duration::from_millis(10), ..ReplicaOptions::new(location) }
}

fn replicate(node: &Arc<TestNode>, store: &Arc<Faulty>) -> Replication {
    let location = Location::of("memory", Arc::clone(store) as Arc<dyn ObjectStore>);
    start(node, quick(location))
}

fn start(node: &Arc<TestNode>, replica: ReplicaOptions) -> Replication {
    let options = Options { replicas: vec![replica], ..Options::default() };
    Replication::start(Arc::clone(node) as Arc<dyn audit_replication::Node>, options).unwrap()
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn put(store: &Faulty, path: &str, bytes: &[u8]) {
    block(store.inner.put(&path.into(), PutPayload::from(bytes.to_vec()))).unwrap();
}

fn get(store: &Faulty, path: &str) -> Option<Bytes> {
    block(async { Some(store.inner.get(&path.into()).await.ok()?.bytes().await.unwrap()) })
}

fn size_of(note: &[u8]) -> u64 {
    Checkpoint::parse(SignedNote::parse(note).unwrap().text()).unwrap().size
}

/// After every single write: whatever checkpoint is there, everything that it covers is there too.
fn check_order(writes: &[(String, Bytes)]) -> usize {
    let mut there = BTreeSet::new();
    let mut checkpoints = 0;
    for (path, bytes) in writes {
        if path == "checkpoint" || path.starts_with("checkpoints/") {
            checkpoints += 1;
            for tile in tiles_between(0, size_of(bytes)) {
                assert!(there.contains(&tile.path()), "{path} of {} before {tile}", size_of(bytes));
            }
        }
        there.insert(path.clone());
    }
    checkpoints
}

/// Everything that the node's newest checkpoint covers is there, byte for byte.
fn check_copy(node: &TestNode, store: &Faulty) {
    let checkpoint = node.read("checkpoint");
    assert_eq!(get(store, "checkpoint").unwrap(), checkpoint);
    let size = size_of(&checkpoint);
    assert_eq!(get(store, &format!("checkpoints/{size:013}")).unwrap(), checkpoint);
    for tile in tiles_between(0, size) {
        assert_eq!(get(store, &tile.path()).unwrap(), node.read(&tile.path()), "{tile}");
    }
}

#[test]
fn a_checkpoint_is_there_only_after_everything_that_it_covers() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    node.grow(0, 1);
    let replication = replicate(&node, &store);
    for by in [1, 253, 1, 1, 255, 700, 66_000] {
        let size = audit_replication::Node::signed_size(&*node);
        until(&replication, "the last one arrived", |status| status.replicas[0].size == size);
        node.grow(0, by);
    }
    let status = replication.finish(Duration::from_secs(30));
    assert_eq!((status.replicas[0].size, status.replicas[0].lag), (67_212, 0), "the end waited for the last one");
    assert!(check_order(&store.writes.lock().unwrap()) >= 14);
    check_copy(&node, &store);
    let probe = status.replicas[0].probe.unwrap();
    assert!(probe.conditional_create && probe.winners == 1 && probe.object_lock == Lock::NotTried);
    assert!(store.most.load(SeqCst) <= 4, "{} objects in memory at once", store.most.load(SeqCst));
    let records = node.records.lock().unwrap();
    assert_eq!(records.iter().filter(|(_, leaf)| leaf["log"] == "probe" && leaf["winners"] == 1).count(), 1);
}

#[test]
fn whatever_fails_in_between_the_copy_is_whole_in_the_end_and_in_order_always() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let node = Arc::new(TestNode::new(dir.path(), key()));
        let store = Faulty::new(seed);
        node.grow(0, 300);
        let replication = replicate(&node, &store);
        until(&replication, "the start", |status| status.replicas[0].size == 300);
        store.set(Mode::Flaky);
        node.grow(0, 520);
        until(&replication, "failures are counted", |status| status.replicas[0].failures > 0);
        node.grow(0, 1);
        store.set(Mode::Good);
        let status = until(&replication, "it catches up", |status| status.replicas[0].size == 821);
        assert_eq!((status.replicas[0].state, status.replicas[0].last_error.clone()), (State::Working, None));
        check_order(&store.writes.lock().unwrap());
        check_copy(&node, &store);
    }
}

#[test]
fn a_store_that_is_down_costs_a_few_requests_and_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    store.set(Mode::Down);
    node.grow(0, 10);
    let begun = Instant::now();
    let replication = replicate(&node, &store);
    assert!(begun.elapsed() < Duration::from_secs(1), "starting waited for a store that is down");
    for _ in 0..30 {
        node.grow(0, 1000);
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = until(&replication, "the lag is told", |status| status.replicas[0].lag == 30_010);
    assert_eq!(status.replicas[0].state, State::Failing);
    let tried = status.replicas[0].failures;
    assert!((2..=16).contains(&tried), "{tried} attempts in about 3 s: waits do not double");
    assert!(store.requests.load(SeqCst) <= 40, "{} requests", store.requests.load(SeqCst));
    store.set(Mode::Good);
    until(&replication, "it catches up", |status| status.replicas[0].lag == 0);
    check_order(&store.writes.lock().unwrap());
    check_copy(&node, &store);
}

#[test]
fn a_store_that_never_answers_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let (hangs, works) = (Faulty::new(1), Faulty::new(2));
    node.grow(0, 10);
    let at = |name: &str, store: &Arc<Faulty>| quick(Location::of(name, Arc::clone(store) as Arc<dyn ObjectStore>));
    let options = Options { replicas: vec![at("hangs", &hangs), at("works", &works)], ..Options::default() };
    hangs.set(Mode::Hangs);
    let replication = Replication::start(Arc::clone(&node) as Arc<dyn audit_replication::Node>, options).unwrap();
    node.grow(0, 5000);
    until(&replication, "the other one goes on", |status| status.replicas[1].size == 5010);
    let begun = Instant::now();
    let status = replication.finish(Duration::from_millis(300));
    assert!(begun.elapsed() < Duration::from_secs(2), "the end waited {:?}", begun.elapsed());
    assert_eq!((status.replicas[0].size, status.replicas[0].lag), (0, 5010));
}

#[test]
fn other_bytes_in_the_place_of_a_tile_are_a_conflict_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    put(&store, "tile/0/000", b"not a tile");
    node.grow(0, 1000);
    let replication = replicate(&node, &store);
    let status = until(&replication, "the conflict", |status| status.replicas[0].state == State::Conflict);
    assert!(status.replicas[0].last_error.as_ref().unwrap().contains("tile/0/000"), "{status:?}");
    node.grow(0, 1000);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(replication.status().replicas[0].state, State::Conflict, "it went on");
    assert_eq!(get(&store, "tile/0/000").unwrap(), &b"not a tile"[..]);
    assert_eq!(get(&store, "checkpoint"), None);
    assert_eq!(node.critical("conflict"), 1, "once");
}

/// The log is replicated, then the node goes on from somewhere else.
fn after(
    dir: &tempfile::TempDir,
    first: u64,
    then: impl FnOnce(&Path, &Faulty) -> TestNode,
) -> (Arc<TestNode>, Arc<Faulty>, Replication) {
    let key = key();
    let text = key.to_text();
    let node = Arc::new(TestNode::new(&dir.path().join("before"), key));
    let store = Faulty::new(1);
    node.grow(0, first);
    let status = replicate(&node, &store).finish(Duration::from_secs(20));
    assert_eq!(status.replicas[0].size, first);
    let next = dir.path().join("after");
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join("key"), text.as_bytes()).unwrap();
    let node = Arc::new(then(&next, &store));
    let replication = replicate(&node, &store);
    until(&replication, "something", |status| !matches!(status.replicas[0].state, State::Starting | State::Failing));
    (node, store, replication)
}

fn same_key(dir: &Path) -> SigningKey {
    SigningKey::parse(&std::fs::read_to_string(dir.join("key")).unwrap()).unwrap()
}

#[test]
fn a_node_that_was_set_back_finds_out_and_touches_nothing() {
    let (node, store, replication) = after(&tempfile::tempdir().unwrap(), 3000, |dir, _| {
        let node = TestNode::new(dir, same_key(dir));
        node.grow(0, 1000);
        node
    });
    assert_eq!(replication.status().replicas[0].state, State::Rollback);
    assert_eq!(node.critical("rollback"), 1);
    assert_eq!(size_of(&get(&store, "checkpoint").unwrap()), 3000);
}

#[test]
fn setting_the_replicas_newest_checkpoint_back_too_does_not_help() {
    let (node, store, replication) = after(&tempfile::tempdir().unwrap(), 3000, |dir, store| {
        let node = TestNode::new(dir, same_key(dir));
        node.grow(0, 1000);
        put(store, "checkpoint", &node.read("checkpoint"));
        node
    });
    assert_eq!(replication.status().replicas[0].state, State::Rollback, "the kept checkpoint of 3000 was not seen");
    assert_eq!(node.critical("rollback"), 1);
    assert!(get(&store, "checkpoints/0000000003000").is_some());
}

#[test]
fn another_past_under_the_same_key_is_a_rollback_and_under_another_key_a_conflict() {
    let (node, _, replication) = after(&tempfile::tempdir().unwrap(), 3000, |dir, _| {
        let node = TestNode::new(dir, same_key(dir));
        node.grow(7, 5000);
        node
    });
    assert_eq!(replication.status().replicas[0].state, State::Rollback);
    assert_eq!(node.critical("rollback"), 1);
    let (node, store, replication) = after(&tempfile::tempdir().unwrap(), 3000, |dir, _| {
        let node = TestNode::new(dir, key());
        node.grow(7, 5000);
        node
    });
    assert_eq!(replication.status().replicas[0].state, State::Conflict);
    assert_eq!((node.critical("conflict"), node.critical("rollback")), (1, 0));
    assert_eq!(size_of(&get(&store, "checkpoint").unwrap()), 3000);
}

#[test]
fn a_restart_goes_on_where_it_was_and_writes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (node, store, replication) = after(&dir, 70_000, |dir, _| {
        let node = TestNode::new(dir, same_key(dir));
        node.grow(0, 70_000);
        node.grow(0, 5);
        node
    });
    let status = replication.finish(Duration::from_secs(20));
    assert_eq!((status.replicas[0].state, status.replicas[0].size), (State::Working, 70_005));
    assert!(status.replicas[0].objects <= 6, "{} objects for five records", status.replicas[0].objects);
    check_copy(&node, &store);
}

#[test]
fn a_conflict_of_requests_in_which_nothing_was_written_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    store.set(Mode::Liar);
    node.grow(0, 600);
    let replication = replicate(&node, &store);
    let status = until(&replication, "everything arrived", |status| status.replicas[0].size == 600);
    assert_eq!(status.replicas[0].failures, 0);
    check_copy(&node, &store);
}

#[test]
fn a_store_that_ignores_conditions_is_told_of_and_refused_where_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    store.set(Mode::Lax);
    node.grow(0, 600);
    let location = Location::of("lax", Arc::clone(&store) as Arc<dyn ObjectStore>);
    let strict = ReplicaOptions { require_conditional_create: true, ..quick(location) };
    let replication = start(&node, strict);
    let status = until(&replication, "the refusal", |status| status.replicas[0].state == State::Refused);
    assert_eq!(status.replicas[0].probe.unwrap().winners, 32);
    assert_eq!((node.critical("probe"), get(&store, "checkpoint")), (1, None));
    drop(replication);

    put(&store, "tile/entries/001", b"somebody else's");
    let replication = replicate(&node, &store);
    until(&replication, "looked at before written", |status| status.replicas[0].state == State::Conflict);
    assert_eq!(get(&store, "tile/entries/001").unwrap(), &b"somebody else's"[..]);
}

#[test]
fn a_directory_is_a_replica_too_and_one_that_is_missing_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(&dir.path().join("node"), key()));
    let home = dir.path().join("replica");
    node.grow(0, 600);
    let location = Location::parse(&format!("file://{}", home.display())).unwrap();
    let replication = start(&node, quick(location.clone()));
    until(&replication, "the missing directory is counted", |status| status.replicas[0].failures > 0);
    assert!(!home.exists(), "a directory was made where something should have been mounted");
    std::fs::create_dir(&home).unwrap();
    until(&replication, "it arrived", |status| status.replicas[0].size == 600);
    assert_eq!(std::fs::read(home.join("tile/entries/002.p/88")).unwrap(), node.read("tile/entries/002.p/88"));

    // Unmounted, and mounted again.
    std::fs::rename(&home, dir.path().join("away")).unwrap();
    node.grow(0, 1);
    until(&replication, "that it is gone", |status| status.replicas[0].state == State::Failing);
    std::fs::rename(dir.path().join("away"), &home).unwrap();
    until(&replication, "it caught up", |status| status.replicas[0].size == 601);

    use audit_logging::tlog::source::Source;
    let source = audit_replication::RemoteSource::open(&location.to_string(), &StoreOptions::default()).unwrap();
    assert_eq!(source.get("checkpoint").unwrap().unwrap(), node.read("checkpoint"));
    assert_eq!(source.get("tile/0/009").unwrap(), None);
    assert!(source.get("../node/checkpoint").is_err());
}

#[test]
fn keys_change_and_partial_tiles_give_way_while_it_copies() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(TestNode::new(dir.path(), key()));
    let store = Faulty::new(1);
    store.set(Mode::Down);
    node.grow(0, 17);
    let replication = replicate(&node, &store);
    // The publisher removes partial tiles once the full ones are there.
    node.grow(0, 400);
    node.write("rotation/17", &node.read("checkpoint"));
    for path in ["tile/0/000.p/17", "tile/entries/000.p/17"] {
        std::fs::remove_file(dir.path().join(path)).unwrap();
    }
    store.set(Mode::Good);
    until(&replication, "the newer one", |status| status.replicas[0].size == 417);
    assert!(get(&store, "rotation/17").is_some());
    let writes = store.writes.lock().unwrap();
    let position = |name: &str| writes.iter().position(|(path, _)| path == name).unwrap();
    assert!(position("rotation/17") < position("checkpoint"));
}
