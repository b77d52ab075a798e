//! Keys, weights and addresses never show: not in text forms of anything public, not in tracing, not in records.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

#[path = "../../audit-logging/tests/common/mod.rs"]
mod common;
mod sim;
mod support;

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{SECRET, disk_dir, host, id, key, manager};
use vram_residency::audit::AuditTrail;
use vram_residency::device::Device;
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::{Error, ManagerOptions, Policy, Rechecked, VramManager};

/// Everything that tracing has to say, at every level.
#[derive(Clone, Default)]
struct Everything(Arc<Mutex<String>>);

impl tracing::Subscriber for Everything {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.note(span);
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        self.note(values);
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.note(event);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

impl Everything {
    fn note(&self, said: &dyn Debug) {
        writeln!(self.0.lock().unwrap(), "{said:?}").unwrap();
    }
}

/// The ways in which bytes could be printed.
fn spellings(bytes: &[u8]) -> Vec<String> {
    let decimal: Vec<String> = bytes.iter().map(u8::to_string).collect();
    vec![
        String::from_utf8_lossy(bytes).into_owned(),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        decimal.join(", "),
        decimal.join(","),
    ]
}

#[test]
fn nothing_that_is_printed_logged_or_recorded_holds_a_secret_or_an_address() {
    const WEIGHTS: &[u8] = b"canary weights: 0123456789abcdef";
    let dir = disk_dir();
    let everything = Everything::default();
    let said = tracing::subscriber::with_default(everything.clone(), || {
        let manager = manager(dir.path(), 1 << 20);
        let shard = manager.seal_model(id("shard"), "model", WEIGHTS).unwrap();
        manager.verify_sealed(&shard).unwrap();
        manager.inject_fault(&shard, 1, 1).unwrap();
        let error = manager.verify_sealed(&shard).unwrap_err();
        let refused = manager.repair(&shard, &b"not the weights".as_slice()).unwrap_err();
        let report = manager.repair(&shard, &WEIGHTS).unwrap();
        let lent = shard.with_bytes(0..WEIGHTS.len() as u64, |bytes| bytes.as_ptr() as usize).unwrap();
        let wrong: Error = vram_residency::seal::SealKey::derive(&SECRET[..31], "w").unwrap_err().into();
        let mut said = String::new();
        let device = host(1 << 20);
        let region = device.allocate(WEIGHTS.len() as u64, 0).unwrap().protect().unwrap();
        region
            .view(0..1, &mut |bytes| {
                let page = format!("{:x}", bytes.as_ptr() as usize & !0xfff);
                assert!(!format!("{region:?} {device:?}").contains(&page), "an address");
            })
            .unwrap();
        let shown: [&dyn Debug; 11] = [
            &manager,
            &shard,
            &error,
            &refused,
            &report,
            &key(),
            &manager.trail(),
            &manager.list(),
            &wrong,
            &device,
            &region,
        ];
        for shown in shown {
            writeln!(said, "{shown:?} {shown:#?}").unwrap();
        }
        writeln!(said, "{error} {refused} {wrong}").unwrap();
        manager.trail().close(Duration::from_secs(5)).unwrap();
        assert!(!said.contains(&format!("{lent:x}")) && !said.contains(&lent.to_string()), "an address: {said}");
        let region = lent & !0xfff;
        let told = everything.0.lock().unwrap().clone();
        assert!(!told.contains(&format!("{region:x}")[..6]), "an address: {told}");
        said
    });
    let told = everything.0.lock().unwrap().clone();
    assert!(told.contains("sealed") && told.contains("verification failed"), "tracing says what happens: {told}");
    let records: Vec<u8> = std::fs::read_dir(dir.path())
        .unwrap()
        .flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    let records = String::from_utf8_lossy(&records);
    assert!(records.contains("SealVerified"));
    for (place, text) in [("text forms", &*said), ("tracing", &*told), ("records", &*records)] {
        // Eight bytes in a row are enough to recognize.
        for window in SECRET.windows(8).chain(WEIGHTS.windows(8)) {
            for spelling in spellings(window) {
                assert!(!text.contains(&spelling), "{spelling} in {place}");
            }
        }
    }
}

/// Keys and fingerprints of re-checks, whatever comes of one.
#[test]
fn no_key_and_no_fingerprint_is_printed_logged_or_recorded() {
    let dir = disk_dir();
    let everything = Everything::default();
    let rules = Arc::new(sim::Rules::new(sim::SimClock::new()));
    let said = tracing::subscriber::with_default(everything.clone(), || {
        let manager = VramManager::new(ManagerOptions {
            worker_id: support::WORKER.into(),
            device: Arc::new(sim::SimDevice { inner: host(1 << 20), rules: Arc::clone(&rules) }),
            key: key(),
            trail: AuditTrail::open_with(dir.path(), support::small_log()).unwrap(),
            policy: Policy::default(),
        })
        .unwrap();
        manager.keep_recheck_keys(4).unwrap();
        let shard = manager.seal_model(id("shard-1"), "model", b"canary weights").unwrap();
        let mut options = ScrubOptions::default();
        options.recheck = Some(options.period);
        let scrubber = Scrubber::manual(&manager, options).unwrap();
        scrubber.watch(&shard, None);
        let matched = manager.recheck(&shard).unwrap();
        rules.lie_once();
        let unconfirmed = manager.recheck(&shard).unwrap();
        assert_eq!(unconfirmed, Rechecked::NotConfirmed);
        rules.change("shard-1", 3, 4, |bytes| bytes[0] ^= 1);
        let error = manager.recheck(&shard).unwrap_err();
        let mut said = format!("{manager:?} {shard:?} {scrubber:?} {matched:?} {error:?} {error}");
        said += &serde_json::to_string(&scrubber.status()).unwrap();
        said += &serde_json::to_string(&scrubber.shard_status(&shard).unwrap()).unwrap();
        drop(scrubber);
        manager.trail().close(Duration::from_secs(5)).unwrap();
        said
    });
    let told = everything.0.lock().unwrap().clone();
    assert!(told.contains("was not confirmed"), "tracing says what happens: {told}");
    let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let records = String::from_utf8_lossy(&files.flatten().collect::<Vec<u8>>()).into_owned();
    assert!(records.contains("FingerprintMatched") && records.contains("FingerprintNotConfirmed"));
    let secrets = rules.fingerprints();
    assert_eq!(secrets.len(), 3 * (4 + 3), "four keys of the seal, and three of them used");
    for text in [&said, &told, &records] {
        for window in secrets.iter().flat_map(|secret| secret.windows(8)) {
            for spelling in spellings(window) {
                assert!(!text.contains(&spelling), "{spelling} in {text}");
            }
        }
    }
}
