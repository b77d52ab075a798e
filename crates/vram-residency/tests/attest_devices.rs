//! One attestation of what lies on several devices: each under one manager, all of one worker.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod gpu;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::{Duration, SystemTime};

use audit_logging::{Clock, Options, SystemClock};
use cuda_emulator::{Emulator, Plan};
use support::moody::Moody;
use support::word::{NONCE, SECOND, attest, attest_key, believed_as_it_is_alone, fresh, nonce, policy};
use support::{WORKER, disk_dir, events, id, key, names, small_log};
use vram_residency::attest::envelope::Envelope;
use vram_residency::attest::statement::Statement;
use vram_residency::attest::{Fresh, Refusal, check};
use vram_residency::audit::AuditTrail;
use vram_residency::device::{CudaDevice, Device, DeviceKind, DeviceUuid, Protection, Residency};
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::{Error, ManagerOptions, Policy, SealedShard, ShardState, VramManager};

fn trail(dir: &Path) -> AuditTrail {
    AuditTrail::open_with(dir, Options { critical_deadline: Duration::from_secs(30), ..small_log() }).unwrap()
}

/// A manager of this worker, with a clone of the trail.
fn manager(device: Arc<dyn Device>, trail: &AuditTrail, policy: Policy) -> VramManager {
    let trail = trail.clone();
    VramManager::new(ManagerOptions { worker_id: WORKER.into(), device, key: key(), trail, policy }).unwrap()
}

fn gpu(ordinal: u32, trail: &AuditTrail) -> VramManager {
    let mut options = gpu::options();
    options.ordinal = ordinal;
    // As the write test of that GPU came out, and not that of the first.
    options.write_test.device = Some(DeviceUuid(Plan::with_devices(2).devices[ordinal as usize].uuid));
    manager(Arc::new(CudaDevice::open(&options).unwrap()), trail, Policy::default())
}

/// A shard on each of two GPUs, verified just now.
fn one_on_each(trail: &AuditTrail) -> ([VramManager; 2], [SealedShard; 2], [Fresh; 2]) {
    let managers = [gpu(0, trail), gpu(1, trail)];
    let [first, second] = &managers;
    let shards = [(first, "first"), (second, "second")]
        .map(|(manager, name)| manager.seal_model(id(name), "m", name.as_bytes()).unwrap());
    let verified = [fresh(first, &shards[0], "first"), fresh(second, &shards[1], "second")];
    (managers, shards, verified)
}

fn host(trail: &AuditTrail) -> VramManager {
    manager(support::host(1 << 22), trail, Policy::default())
}

fn made(dir: &Path) -> Vec<serde_json::Value> {
    events(dir).into_iter().filter(|event| event["event"] == "AttestationMade").collect()
}

#[test]
fn a_model_on_two_gpus_and_in_main_memory_is_attested_in_one_statement_that_says_what_lies_where() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let (one, two, main) = (gpu(0, &trail), gpu(1, &trail), host(&trail));
    let shards = [(&two, "a"), (&one, "b"), (&two, "c"), (&main, "d")]
        .map(|(manager, name)| (manager, manager.seal_model(id(name), "org/m", name.as_bytes()).unwrap()));
    let fresh = shards.each_ref().map(|(manager, shard)| fresh(manager, shard, shard.shard_id().as_str()));
    let whole = policy(&shards.each_ref().map(|(_, shard)| shard));
    let now = shards[0].1.last_verified_ns() + SECOND;
    let uuids = [&two, &one, &main].map(|manager| manager.device().uuid);

    // However they are named, and one of them twice.
    for managers in [vec![&one, &two, &main], vec![&main, &two, &one], vec![&two, &main, &two, &one]] {
        let word = attest(&managers, &fresh).unwrap();
        let checked = check(word.envelope.as_bytes(), &whole, Some(&nonce(NONCE)), now).unwrap();
        let predicate = &checked.statement.predicate;
        let listed: Vec<DeviceUuid> = predicate.devices.iter().map(|device| device.uuid).collect();
        assert_eq!(listed, uuids, "in the order in which the shards name them, each once");
        let told: Vec<&str> = predicate.devices.iter().map(|device| device.driver.machine.as_str()).collect();
        assert_eq!(told[..2], ["Emulated GPU 1", "Emulated GPU 0"]);
        assert_eq!(predicate.devices[2].driver.name, "Linux");
        for ((manager, shard), facts) in shards.iter().zip(&predicate.shards) {
            assert_eq!((facts.shard_id, facts.device), (*shard.shard_id(), manager.device().uuid));
            assert_eq!((facts.residency, facts.protection), (shard.residency(), shard.protection()));
        }
        assert_eq!(predicate.shards[0].residency, Residency::Vram);

        let judged = |devices: &[DeviceUuid]| {
            let policy = vram_residency::attest::Policy { devices: devices.to_vec(), ..whole.clone() };
            check(word.envelope.as_bytes(), &policy, None, now).map(|_| ())
        };
        assert_eq!(judged(&uuids), Ok(()));
        for left_out in uuids {
            let others: Vec<DeviceUuid> = uuids.into_iter().filter(|uuid| *uuid != left_out).collect();
            let refusal = judged(&others).unwrap_err();
            assert_eq!(refusal, Refusal::Device { found: left_out });
            assert!(refusal.to_string().contains(&left_out.to_string()), "{refusal}");
        }
    }
    // What lies on one of them is told without the others.
    let word = attest(&[&one, &two], &fresh[1..2]).unwrap();
    let statement = Envelope::parse(word.envelope.as_bytes()).unwrap();
    let statement = Statement::parse(statement.unverified()).unwrap();
    assert_eq!(statement.predicate.devices.iter().map(|device| device.uuid).collect::<Vec<_>>(), uuids[1..2]);
    let refusal = check(word.envelope.as_bytes(), &whole, None, now).unwrap_err();
    assert!(matches!(refusal, Refusal::Missing { .. }), "{refusal}");

    let made = made(dir.path());
    let told = made.iter().map(|event| (event["shards"].as_u64().unwrap(), event["device"]["uuid"].clone()));
    let (first, second) = (uuids[0].to_string(), uuids[1].to_string());
    let told: Vec<_> = told.collect();
    assert_eq!(told, [(4, first.clone().into()), (4, first.clone().into()), (4, first.into()), (1, second.into())]);
    assert_eq!(made[3]["envelope"], word.digest.to_string());
}

#[test]
fn every_change_of_an_attestation_of_two_devices_is_refused() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let (one, two) = (gpu(0, &trail), gpu(1, &trail));
    let shards =
        [&one, &two].map(|manager| manager.seal_model(id(&manager.device_name().replace(':', "-")), "m", b"w"));
    let [first, second] = shards.map(Result::unwrap);
    let word = attest(&[&one, &two], &[fresh(&one, &first, "one.bin"), fresh(&two, &second, "two.bin")]).unwrap();
    let now = first.last_verified_ns() + SECOND;
    believed_as_it_is_alone(word.envelope.as_bytes(), &policy(&[&first, &second]), now);
}

/// Signed by hand: the devices of a statement are those that its shards name, each once, in the order of the shards.
#[test]
fn for_some_shards_there_is_one_list_of_devices() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let (one, two) = (gpu(0, &trail), gpu(1, &trail));
    let shards = [(&one, "a"), (&two, "b"), (&one, "c")];
    let shards = shards.map(|(manager, name)| (manager, manager.seal_model(id(name), "m", name.as_bytes()).unwrap()));
    let fresh = shards.each_ref().map(|(manager, shard)| fresh(manager, shard, "file"));
    let now = shards[0].1.last_verified_ns() + SECOND;
    let policy = policy(&shards.each_ref().map(|(_, shard)| shard));
    let good = attest(&[&one, &two], &fresh).unwrap();
    let good = check(good.envelope.as_bytes(), &policy, None, now).unwrap().statement;
    let judged = |change: &dyn Fn(&mut Statement)| {
        let mut statement = good.clone();
        change(&mut statement);
        let envelope = Envelope::sign(statement.to_text(), &attest_key()).to_text();
        check(envelope.as_bytes(), &policy, None, now).map(|_| ())
    };
    let refused = |words: &[&str], change: &dyn Fn(&mut Statement)| match judged(change) {
        Err(Refusal::Statement { reason }) => assert!(words.iter().all(|word| reason.contains(word)), "{reason}"),
        other => panic!("{words:?}: {other:?}"),
    };
    assert_eq!(judged(&|_| ()), Ok(()));
    let (first, second) = (one.device().uuid.to_string(), two.device().uuid.to_string());
    let other = DeviceUuid([1; 16]);
    refused(&["'a' twice"], &|word| word.predicate.shards[2].shard_id = word.predicate.shards[0].shard_id);
    refused(&["main memory holds", "'a'"], &|word| word.predicate.devices[0].kind = DeviceKind::Host);
    let older = "urn:vram-residency:attestation:v1";
    refused(&[older, "reads urn:vram-residency:attestation:v2"], &|word| word.predicate_type = older.to_owned());
    refused(&["twice", &first], &|word| word.predicate.devices.push(word.predicate.devices[0].clone()));
    refused(&["twice", &second], &|word| word.predicate.devices[0] = word.predicate.devices[1].clone());
    refused(&["does not list", &second], &|word| drop(word.predicate.devices.pop()));
    refused(&["does not list", &first], &|word| word.predicate.devices.clear());
    refused(&["does not list", &other.to_string()], &|word| word.predicate.shards[2].device = other);
    refused(&["holds none", &other.to_string()], &|word| {
        let mut device = word.predicate.devices[0].clone();
        device.uuid = other;
        word.predicate.devices.push(device);
    });
    refused(&["holds none", &second], &|word| word.predicate.shards[1].device = word.predicate.shards[0].device);
    refused(&["order"], &|word| word.predicate.devices.swap(0, 1));
    refused(&["order"], &|word| {
        word.subject.swap(0, 1);
        word.predicate.shards.swap(0, 1);
    });
    refused(&["type"], &|word| word.predicate_type = word.predicate_type.replace(":v2", ":v1"));
    // The last two of the same device may stand in any order, which is the order of the subjects.
    let same = |word: &mut Statement| {
        word.subject.swap(0, 2);
        word.predicate.shards.swap(0, 2);
    };
    assert_eq!(judged(&same), Ok(()));
}

#[test]
fn what_is_not_theirs_is_not_signed_and_neither_is_what_two_workers_or_two_logs_say() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let (one, two, stranger) = (gpu(0, &trail), gpu(1, &trail), host(&trail));
    let shards = [&one, &two, &stranger]
        .map(|manager| (manager, manager.seal_model(id(&manager.device_name().replace(':', "-")), "m", b"w").unwrap()));
    let fresh = shards.each_ref().map(|(manager, shard)| fresh(manager, shard, "file"));
    for (managers, asked, foreign) in [
        (vec![&one, &two], &fresh[..], 2),
        (vec![&one, &stranger], &fresh[1..], 1),
        (vec![&one], &fresh[1..2], 1),
        (vec![], &fresh[..], 0),
    ] {
        let refused = attest(&managers, asked).unwrap_err();
        let Error::ForeignShard { shard_id } = &refused else { panic!("{refused}") };
        assert_eq!(**shard_id, *fresh[foreign].shard.shard_id());
    }
    assert!(matches!(attest(&[&one, &two], &[]), Err(Error::Attestation { .. })));

    // The same shards, with a manager beside theirs that speaks for somebody else or somewhere else.
    let elsewhere = disk_dir();
    let another = VramManager::new(ManagerOptions {
        worker_id: "another-worker".into(),
        device: support::host(1 << 20),
        key: key(),
        trail: trail.clone(),
        policy: Policy::default(),
    });
    let refused = attest(&[&one, &two, &another.unwrap()], &fresh[..2]).unwrap_err();
    let Error::TwoWorkers { one: first, other } = &refused else { panic!("{refused}") };
    assert_eq!((&**first, &**other), (WORKER, "another-worker"));
    let apart = host(&self::trail(elsewhere.path()));
    let refused = attest(&[&one, &two, &apart], &fresh[..2]).unwrap_err();
    let Error::TwoTrails { one: first, other } = &refused else { panic!("{refused}") };
    assert_eq!((&**first, &**other), ("cuda:1", "host"));
    assert!(made(dir.path()).is_empty() && made(elsewhere.path()).is_empty());
    assert!(attest(&[&one, &two], &fresh[..2]).is_ok());
}

#[test]
fn one_quarantined_gpu_among_two_has_nothing_attested_of_either_until_it_is_left_out() {
    let emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let ([well, ill], [first, second], fresh) = one_on_each(&trail);
    let mut options = ScrubOptions::default();
    options.repairs_per_day = 1;
    let scrubber = Scrubber::manual(&ill, options).unwrap();
    scrubber.watch(&second, Some(Arc::new(b"second".to_vec())));
    assert_eq!(emulator.read(&gpu::memory(2), 0, 6).unwrap(), b"second");
    assert!(emulator.flip(&gpu::memory(2), 0, 3));
    scrubber.repair_now(&second).unwrap();
    assert!(ill.device_quarantined().is_some() && well.device_quarantined().is_none());

    for shards in [&fresh[..], &fresh[..1]] {
        let refused = attest(&[&well, &ill], shards).unwrap_err();
        assert!(matches!(refused, Error::DeviceQuarantined { .. }) && refused.is_integrity(), "{refused}");
    }
    assert!(made(dir.path()).is_empty());
    let word = attest(&[&well], &fresh[..1]).unwrap();
    let now = first.last_verified_ns() + SECOND;
    assert!(check(word.envelope.as_bytes(), &policy(&[&first]), None, now).is_ok());
}

/// A shard that fails on one device has nothing attested of the other.
#[test]
fn damage_on_one_of_two_gpus_refuses_all_of_it() {
    let emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let ([one, two], [_first, second], fresh) = one_on_each(&trail);
    assert!(emulator.flip(&gpu::memory(2), 0, 3));
    assert!(two.verify_sealed(&second).is_err());
    let refused = attest(&[&one, &two], &fresh).unwrap_err();
    let Error::NotAttested { shard_id, state } = &refused else { panic!("{refused}") };
    assert_eq!((**shard_id, *state), (id("second"), ShardState::Quarantined));
    assert!(made(dir.path()).is_empty());
}

/// A clock at which one thread stops, once, when it asks for the time of day.
#[derive(Debug)]
struct Stops {
    clock: SystemClock,
    who: Mutex<Option<ThreadId>>,
    stopped: Barrier,
    goes_on: Barrier,
}

impl Clock for Stops {
    fn wall(&self) -> SystemTime {
        let is_meant = self.who.lock().unwrap().take_if(|who| *who == std::thread::current().id()).is_some();
        if is_meant {
            self.stopped.wait();
            self.goes_on.wait();
        }
        self.clock.wall()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

/// Stopped between the measurement and the record, at the time that the statement says: nobody can hand out a shard on either
/// GPU until that is on record.
#[test]
fn on_no_gpu_is_a_protection_lowered_between_its_measurement_and_the_record() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let (who, clock) = (Mutex::new(None), SystemClock::new());
    let clock = Arc::new(Stops { clock, who, stopped: Barrier::new(2), goes_on: Barrier::new(2) });
    let critical_deadline = Duration::from_secs(30);
    let options = Options { clock: Arc::clone(&clock) as _, critical_deadline, ..small_log() };
    let trail = AuditTrail::open_with(dir.path(), options).unwrap();
    let ([one, two], _, fresh) = one_on_each(&trail);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            *clock.who.lock().unwrap() = Some(std::thread::current().id());
            attest(&[&one, &two], &fresh).unwrap();
        });
        clock.stopped.wait();
        for (manager, fresh) in [&one, &two].into_iter().zip(&fresh) {
            scope.spawn(|| drop(manager.hand_out(&fresh.shard, 1, 1).unwrap()));
        }
        std::thread::sleep(Duration::from_millis(200));
        let told = fresh.each_ref().map(|fresh| fresh.shard.protection());
        clock.goes_on.wait();
        assert_eq!(told, [Protection::ReadOnly; 2]);
    });
    assert_eq!(fresh.each_ref().map(|fresh| fresh.shard.protection()), [Protection::Advisory; 2]);
    drop((fresh, one, two, trail));
    let events = events(dir.path());
    let at = |name: &str| names(&events).iter().position(|told| *told == name).unwrap();
    assert!(at("AttestationMade") < at("ProtectionLowered"), "{:?}", names(&events));
}

/// Two who attest what lies on two GPUs, naming them in opposite orders, beside two who hand it out: nobody waits in a circle,
/// and of each shard every attestation says what the log says of it at that place.
#[test]
fn whoever_attests_and_whoever_hands_out_on_two_gpus_end_and_agree_with_the_log() {
    const SHARDS: usize = 6;
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let dir = disk_dir();
    let trail = trail(dir.path());
    let managers = [gpu(0, &trail), gpu(1, &trail)];
    let mut shards = Vec::new();
    for (at, manager) in managers.iter().enumerate() {
        for number in 0..SHARDS {
            let shard = manager.seal_model(id(&format!("s-{at}-{number}")), "m", b"weights").unwrap();
            shards.push(fresh(manager, &shard, "file"));
        }
    }
    let shards: Arc<[Fresh]> = shards.into();
    let handing_out = Arc::new(AtomicUsize::new(managers.len()));
    let begun = Arc::new(Barrier::new(4));
    let (told, hears) = mpsc::channel();
    let mut threads = Vec::new();
    for reverse in [false, true] {
        let (mut managers, shards) = (managers.clone(), Arc::clone(&shards));
        let (handing_out, begun, told) = (Arc::clone(&handing_out), Arc::clone(&begun), told.clone());
        if reverse {
            managers.reverse();
        }
        threads.push(std::thread::spawn(move || {
            let mut said = Vec::new();
            loop {
                let is_last = handing_out.load(Ordering::SeqCst) == 0;
                let word = attest(&managers.each_ref(), &shards).unwrap();
                let statement = Envelope::parse(word.envelope.as_bytes()).unwrap();
                let facts = Statement::parse(statement.unverified()).unwrap().predicate.shards;
                let high = facts.into_iter().filter(|shard| shard.protection == Protection::ReadOnly);
                let high: BTreeSet<String> = high.map(|shard| shard.shard_id.to_string()).collect();
                assert!(!is_last || high.is_empty(), "all of them are others' too");
                said.push((word.digest.to_string(), high));
                if said.len() == 1 {
                    begun.wait();
                }
                if is_last {
                    break;
                }
            }
            let _ = told.send(said);
        }));
    }
    for (manager, own) in managers.iter().zip(shards.chunks(SHARDS)) {
        let (manager, own) = (manager.clone(), own.to_vec());
        let (handing_out, begun) = (Arc::clone(&handing_out), Arc::clone(&begun));
        threads.push(std::thread::spawn(move || {
            begun.wait();
            for (lease, fresh) in own.iter().enumerate() {
                drop(manager.hand_out(&fresh.shard, 1, lease as u64).unwrap());
            }
            handing_out.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    drop(told);
    let mut said = BTreeMap::new();
    for _ in 0..2 {
        said.extend(hears.recv_timeout(Duration::from_secs(300)).expect("nobody waits for ever"));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop((shards, managers, trail));

    let events = events(dir.path());
    let lowered = events.iter().enumerate().filter(|(_, event)| event["event"] == "ProtectionLowered");
    let lowered: BTreeMap<&str, usize> = lowered.map(|(at, event)| (event["shard_id"].as_str().unwrap(), at)).collect();
    assert_eq!(lowered.len(), 2 * SHARDS);
    let made: Vec<_> = events.iter().enumerate().filter(|(_, event)| event["event"] == "AttestationMade").collect();
    assert_eq!(made.len(), said.len());
    println!("{} attestations, {} of them of shards of either kind", made.len(), mixed(&said));
    for (at, event) in made {
        let high = &said[event["envelope"].as_str().unwrap()];
        for (shard, lowered_at) in &lowered {
            assert_eq!(high.contains(*shard), at < *lowered_at, "{shard}, lowered at {lowered_at}, attested at {at}");
        }
    }
}

fn mixed(said: &BTreeMap<String, BTreeSet<String>>) -> usize {
    let most = said.values().map(BTreeSet::len).max().unwrap_or(0);
    said.values().filter(|high| !high.is_empty() && high.len() < most).count()
}

/// Two managers of one device are one device of the statement, and the stricter of their rules counts.
#[test]
fn of_two_managers_that_attest_together_the_one_that_requires_the_record_has_its_way() {
    let dir = disk_dir();
    let disk = Moody::default();
    // Nobody waits for a critical record but who requires it.
    let options = Options { vfs: Arc::new(disk.clone()), critical_deadline: Duration::ZERO, ..small_log() };
    let trail = AuditTrail::open_with(dir.path(), options).unwrap();
    let mut strict = Policy::default();
    strict.require_audit = true;
    let (lax, strict) = (host(&trail), manager(support::host(1 << 22), &trail, strict));
    let (first, second) = (lax.seal_model(id("first"), "m", b"1"), strict.seal_model(id("second"), "m", b"2"));
    let (first, second) = (first.unwrap(), second.unwrap());
    let fresh = [fresh(&lax, &first, "first"), fresh(&strict, &second, "second")];
    let word = attest(&[&lax, &strict], &fresh).unwrap();
    let now = first.last_verified_ns() + SECOND;
    let found = check(word.envelope.as_bytes(), &policy(&[&first, &second]), None, now).unwrap();
    assert_eq!((found.statement.predicate.devices.len(), found.statement.predicate.shards.len()), (1, 2));
    trail.flush(Duration::from_secs(30)).unwrap();
    disk.refuses(Some("AttestationMade"));
    let refused = attest(&[&lax, &strict], &fresh).unwrap_err();
    assert!(matches!(refused, Error::Audit(_)), "{refused}");
    disk.refuses(None);
}
