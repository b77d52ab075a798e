//! The `host` device keeps every promise that the rest of the crate relies on.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic)]

use std::sync::Barrier;

use vram_residency::device::{
    Device, DeviceError, HostDevice, HostOptions, HugePages, Locking, Protection, Residency, conformance,
};

fn host(capacity_bytes: u64, set: impl FnOnce(&mut HostOptions)) -> HostDevice {
    let mut options = HostOptions::default();
    options.capacity_bytes = Some(capacity_bytes);
    set(&mut options);
    HostDevice::open(options).unwrap()
}

#[test]
fn the_conformance_suite_passes_with_every_setting() {
    for threads in [1, 2, 4] {
        for (locking, huge_pages) in [(Locking::WhereAllowed, HugePages::Ask), (Locking::Never, HugePages::Never)] {
            let device = host(64 << 20, |options| {
                options.threads = Some(threads);
                options.locking = locking;
                options.huge_pages = huge_pages;
            });
            let summary = conformance::check(&device).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(summary.regions, 88);
        }
    }
}

#[test]
fn the_self_test_shows_read_only_memory_on_this_kernel() {
    let device = host(1 << 20, |_| ());
    assert_eq!(device.protection(), Protection::ReadOnly);
    let staged = device.allocate(10, 0).unwrap();
    assert_eq!(staged.protect().unwrap().protection(), Protection::ReadOnly);
}

#[test]
fn unlocked_memory_is_called_pageable() {
    let device = host(1 << 20, |options| options.locking = Locking::Never);
    let region = device.allocate(10, 0).unwrap().protect().unwrap();
    assert_eq!(region.residency(), Residency::HostPageable);
}

/// Many threads want more than fits: what is granted never exceeds the capacity, and something is always granted.
#[test]
fn two_reservations_never_both_pass_a_check_that_only_one_fits() {
    let page = 4096_u64;
    let device = host(10 * page, |options| options.locking = Locking::Never);
    for _round in 0..200 {
        let barrier = Barrier::new(8);
        let granted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let staged = device.allocate(3 * page, 0);
                        barrier.wait();
                        match staged {
                            Ok(_) => 1,
                            Err(DeviceError::InsufficientMemory { needed_bytes, total_bytes, .. }) => {
                                assert_eq!((needed_bytes, total_bytes), (3 * page, 10 * page));
                                0
                            }
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 3);
        assert_eq!(device.capacity().used_bytes, 0);
    }
}

/// The same with the default capacity, which is what the machine has free: what was promised and not yet filled is not
/// free any more, whatever the kernel says.
#[test]
fn memory_that_is_promised_is_not_promised_again() {
    let device = HostDevice::open(HostOptions::default()).unwrap();
    let total = device.capacity().total_bytes;
    let most = device.allocate(total / 10 * 6, 0).unwrap();
    let second = device.allocate(total / 10 * 6, 0).map(drop);
    assert!(matches!(second, Err(DeviceError::InsufficientMemory { .. })), "{second:?}");
    drop(most);
    drop(device.allocate(total / 10 * 6, 0).unwrap());
}
