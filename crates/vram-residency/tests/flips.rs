//! Every single bit matters: of the resident image and of the seal record.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use support::{host, id, key, manager_with};
use vram_residency::audit::AuditTrail;
use vram_residency::device::conformance::Pattern;
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::policy::OnFailure;
use vram_residency::seal::{SealKey, parse_record};
use vram_residency::{Error, Policy, SealedShard, ShardState, VerifyFailure, VramManager};

/// A manager that reports failures and goes on, so that one shard can be damaged many times.
fn reporting_manager() -> VramManager {
    let mut policy = Policy::default();
    policy.on_failure = OnFailure::Log;
    manager_with(host(64 << 20), AuditTrail::off(), policy)
}

/// The blocks that a verification calls damaged: how many, and the first.
fn damage(manager: &VramManager, shard: &SealedShard) -> Option<(u64, u64)> {
    match manager.verify_sealed(shard) {
        Ok(_) => None,
        Err(Error::SealVerificationFailed {
            cause: VerifyFailure::Damaged { damaged_blocks, first_block, expected, actual, .. },
            ..
        }) => {
            assert_ne!(expected, actual);
            Some((damaged_blocks, first_block))
        }
        Err(other) => panic!("{other}"),
    }
}

/// Flips a bit, looks, and flips it back.
fn found(manager: &VramManager, shard: &SealedShard, byte: u64, bit: u8) -> Option<(u64, u64)> {
    manager.inject_fault(shard, byte, bit).unwrap();
    let found = damage(manager, shard);
    assert_eq!(shard.state(), ShardState::Suspect);
    manager.inject_fault(shard, byte, bit).unwrap();
    found
}

#[test]
fn every_bit_of_a_64_kib_image_is_found_and_its_block_named() {
    const IMAGE: u64 = 64 << 10;
    let halves = [0..IMAGE / 2, IMAGE / 2..IMAGE];
    let tried: u64 = std::thread::scope(|scope| {
        let threads = halves.map(|bytes| {
            scope.spawn(move || {
                let manager = reporting_manager();
                let shard = manager.seal_model(id("image"), "image", &Pattern { seed: 1 }.bytes(IMAGE)).unwrap();
                let mut tried = 0;
                for (byte, bit) in bytes.flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
                    assert_eq!(found(&manager, &shard, byte, bit), Some((1, 0)), "byte {byte}, bit {bit}");
                    tried += 1;
                }
                assert_eq!(damage(&manager, &shard), None, "the image is whole again");
                tried
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(tried, 524_288);
}

/// The same for an image of several blocks: of two neighbours, the right one is named.
#[test]
fn a_flip_near_a_block_boundary_names_the_block_it_is_in() {
    let manager = reporting_manager();
    let bytes = 3 * BLOCK_BYTES + 1025;
    let shard = manager.seal_model(id("image"), "image", &Pattern { seed: 2 }.bytes(bytes)).unwrap();
    let near = |edge: u64| (edge.saturating_sub(40)..(edge + 40).min(bytes)).step_by(3);
    let edges = [0, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES, bytes];
    let mut tried = 0;
    for byte in edges.into_iter().flat_map(near) {
        let bit = (byte % 8) as u8;
        assert_eq!(found(&manager, &shard, byte, bit), Some((1, byte / BLOCK_BYTES)), "byte {byte}");
        tried += 1;
    }
    assert!(tried > 100);
    assert_eq!(damage(&manager, &shard), None);
}

#[test]
fn every_bit_of_the_seal_record_is_rejected() {
    let manager = reporting_manager();
    let shard = manager.seal_model(id("shard-1"), "some/model", b"weights").unwrap();
    let record = shard.seal_record();
    manager.verify_record(&shard, &record).unwrap();
    for bit in 0..record.len() * 8 {
        let mut forged = record.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let answer = manager.verify_record(&shard, &forged);
        assert!(matches!(answer, Err(Error::SealVerificationFailed { .. })), "bit {bit}: {answer:?}");
    }
    for length in 0..record.len() {
        assert!(manager.verify_record(&shard, &record[..length]).is_err(), "cut to {length} bytes");
    }
    let mut longer = record;
    longer.push(0);
    assert!(manager.verify_record(&shard, &longer).is_err());
}

#[test]
fn a_genuine_record_of_another_shard_or_worker_is_rejected() {
    let manager = reporting_manager();
    let first = manager.seal_model(id("first"), "model", b"weights").unwrap();
    let second = manager.seal_model(id("second"), "model", b"weights").unwrap();
    let cause = |answer| match answer {
        Err(Error::SealVerificationFailed { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(cause(manager.verify_record(&first, &second.seal_record())), VerifyFailure::OtherShard);

    let record = first.seal_record();
    let (statement, signature) = parse_record(&record).unwrap();
    assert!(key().verify(&statement, &signature));
    let forger = SealKey::derive(&[7; 32], support::WORKER).unwrap();
    let forged = statement.to_record(&forger.sign(&statement));
    assert_eq!(cause(manager.verify_record(&first, &forged)), VerifyFailure::Signature);
}
