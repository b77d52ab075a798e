//! Any leaf comes back as it was; any bytes are read without a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::{AuditLog, Kind, Severity, reader};
use common::{MemVfs, Rng, dir, options, segment};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leaves_come_back_verbatim(
        leaves in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..2500)), 1..40),
    ) {
        let vfs = MemVfs::default();
        let log = AuditLog::open(&dir(), options(&vfs, 4096)).unwrap();
        for (critical, leaf) in &leaves {
            let severity = if *critical { Severity::Critical } else { Severity::Routine };
            prop_assert!(log.emit(severity, leaf).seq().is_some());
        }
        prop_assert!(log.close(Duration::from_secs(20)).is_durable());
        let read: Vec<(bool, Vec<u8>)> = reader::records_on(Arc::new(vfs), &dir())
            .unwrap()
            .map(Result::unwrap)
            .filter(|record| record.kind == Kind::Event)
            .map(|record| (record.severity == Severity::Critical, record.leaf))
            .collect();
        prop_assert_eq!(read, leaves);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let report = reader::scan(&bytes);
        prop_assert!(!report.is_intact());
    }
}

#[test]
fn a_valid_segment_changed_at_random_is_read_without_a_panic_and_opened_again() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
    for n in 0..25 {
        assert!(log.emit(Severity::Critical, &common::leaf(n, 150)).is_durable());
    }
    drop(log);
    let good = vfs.bytes(&segment(1));
    let mut rng = Rng(11);
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(6) {
            let at = rng.below(bytes.len() as u64) as usize;
            let n = (rng.below(64) as usize).min(bytes.len() - at);
            match rng.below(4) {
                0 => bytes[at..at + n].fill(0),
                1 => bytes[at..at + n].fill_with(|| rng.next() as u8),
                2 => bytes.copy_within(at..at + n, (at + 8 * n).min(good.len() - n)),
                _ => bytes[at] ^= 1 << rng.below(8),
            }
        }
        let report = reader::scan(&bytes);
        assert!(bytes == good || !report.is_intact() || report.torn_tail.is_some(), "round {round}");
        if round % 10 == 0 {
            let vfs = vfs.copy();
            vfs.set_bytes(&segment(1), &bytes);
            let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
            assert!(log.emit(Severity::Critical, b"on").is_durable());
            assert!(log.close(Duration::from_secs(20)).is_durable());
            let after = reader::verify_on(&vfs, &dir()).unwrap();
            assert_eq!(after.is_intact(), report.is_intact(), "round {round}: {report:?} {after:?}");
        }
    }
}

#[test]
fn the_worst_bytes_that_came_to_mind_are_read_in_bounded_time() {
    // Headers that claim the largest leaf at every place where a frame could start, and a segment full of ones.
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 4 << 20)).unwrap();
    assert!(log.emit(Severity::Critical, &[1; 65_525]).is_durable());
    let image = vfs.bytes(&segment(1));
    drop(log);
    let frame = image[64..].windows(2).position(|pair| pair == [1, 1]).unwrap() + 64 - 24;
    let mut bytes = image.clone();
    let header: Vec<u8> = image[frame..frame + 32].to_vec();
    for at in (frame + 32..bytes.len() - 32).step_by(32) {
        bytes[at..at + 32].copy_from_slice(&header);
    }
    assert_eq!(image[frame + 24..frame + 28], [1, 1, 0, 0]);
    let ones = vec![0xff; 4 << 20];
    for bytes in [&bytes, &ones] {
        let start = Instant::now();
        let report = reader::scan(bytes);
        assert!(!report.is_intact() || report.torn_tail.is_some());
        assert!(report.violations.len() <= 1000);
        println!("{} violations in {:?}", report.violations_total, start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}
