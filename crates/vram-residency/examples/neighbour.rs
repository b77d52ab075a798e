//! What a continuous check costs somebody who computes on the same processors: fixed work on every one of them, by turns
//! with the check at a budget of 1 % beside it and without. Prints the median of the paired ratios.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::arithmetic_side_effects)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vram_residency::audit::AuditTrail;
use vram_residency::device::{HostDevice, HostOptions};
use vram_residency::scrub::{Budget, ScrubOptions, Scrubber};
use vram_residency::seal::SealKey;
use vram_residency::{ManagerOptions, Policy, ShardId, VramManager};

const PAIRS: usize = 15;

fn main() {
    let log = std::env::args().nth(1).unwrap();
    let manager = VramManager::new(ManagerOptions {
        worker_id: "worker".into(),
        device: Arc::new(HostDevice::open(HostOptions::default()).unwrap()),
        key: SealKey::derive(&[7; 32], "worker").unwrap(),
        trail: AuditTrail::open(std::path::Path::new(&log)).unwrap(),
        policy: Policy::default(),
    })
    .unwrap();
    let shard = manager.seal_model(ShardId::new("shard").unwrap(), "model", &vec![1; 512 << 20]).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut options = ScrubOptions::default();
    // So short that the budget is what limits.
    (options.period, options.budget) = (Duration::from_millis(500), Budget::Share(0.01));
    fixed_work(threads);
    let (mut ratios, mut speeds) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut times = [0.0; 2];
        for turn in 0..2 {
            let with = usize::from((pair + turn) % 2 == 0);
            let scrubber = (with == 1).then(|| {
                let scrubber = Scrubber::start(&manager, options.clone()).unwrap();
                scrubber.watch(&shard, None);
                scrubber
            });
            let time = fixed_work(threads);
            if let Some(scrubber) = &scrubber {
                speeds.push(scrubber.status().bytes as f64 / time / 1e6);
            }
            if let Some(slot) = times.get_mut(with) {
                *slot = time;
            }
        }
        ratios.push(times[1] / times[0]);
    }
    ratios.sort_by(f64::total_cmp);
    speeds.sort_by(f64::total_cmp);
    let middle = |list: &[f64]| list.get(list.len() / 2).copied().unwrap_or(f64::NAN);
    let (low, high) = (ratios.first().unwrap(), ratios.last().unwrap());
    println!(
        "with the check at 1 %: {:.4} x the time without (median of {PAIRS} pairs; {low:.4} to {high:.4}), {threads} busy threads, \
         {:.0} MB/s checked",
        middle(&ratios),
        middle(&speeds)
    );
}

/// Seconds for the same work on every processor.
fn fixed_work(threads: usize) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut value = 1_u64;
                for round in 0..700_000_000_u64 {
                    value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round));
                }
                value
            });
        }
    });
    begun.elapsed().as_secs_f64()
}
