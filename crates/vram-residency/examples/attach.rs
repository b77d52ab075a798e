//! What it costs to attach a shard that a daemon holds: time, and this process's own memory.
//!
//! ```console
//! $ cargo run --release -p vram-residency --example attach -- /run/user/1000/vram-attach.sock big-bin
//! ```
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::path::Path;
use std::time::{Duration, Instant};

use vram_residency::client;

/// Kibibytes of this process: neither shared nor of files; and those of the mapped memory that it has touched.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("RssAnon:"), field("RssShmem:"))
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, shard] = arguments.as_slice() else {
        return Err("usage: attach SOCKET SHARD".into());
    };
    let (own, _) = memory();
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        let attached = client::connect_to(Path::new(socket))?.attach(shard)?;
        times.push(begun.elapsed());
        drop(attached);
    }
    times.sort();
    println!(
        "connect and attach, 200 times: median {:.3?}, 99 of 100 within {:.3?}, longest {:.3?}",
        times[100], times[198], times[199]
    );
    let begun = Instant::now();
    let attached = client::connect_to(Path::new(socket))?.attach(shard)?;
    let took = begun.elapsed();
    let sum = attached.bytes().iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    let (own_now, shared) = memory();
    println!(
        "attached {} bytes in {took:.3?}; every page read (sum {sum}): own memory {} KiB more, shared {shared} KiB",
        attached.bytes().len(),
        own_now.saturating_sub(own)
    );
    let begun = Instant::now();
    println!("verified {} in {:.3?}", attached.verify()?, begun.elapsed());
    Ok(())
}
