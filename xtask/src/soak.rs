//! The soak: a daemon with eight shards, one bit flipped every second under `repair`, for as long as wanted. Every flip
//! must be found within two periods, located, repaired and on record, and nothing else may be called damaged.

use crate::Args;
use crate::daemon::{Daemon, Random};
use crate::shell::{Ctx, capture, say};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Sizes of the shards in MiB.
const SIZES: &[u64] = &[1, 2, 3, 8, 16, 24, 32, 48];
const PERIOD: Duration = Duration::from_secs(5);
/// Flips by which everything that is kept in bounded number is kept in full: 64 critical records, of which each leaves four.
const WARM: u64 = 20;
const BLOCK: u64 = 1 << 20;

/// `cargo xtask soak [--seconds N] [--save]`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    let seconds = args.take_number("--seconds")?.unwrap_or(60);
    let save = args.take_flag("--save");
    args.finish()?;
    let lines = soak(ctx, Duration::from_secs(seconds))?;
    for line in &lines {
        say(line);
    }
    if save {
        keep(ctx, seconds, &lines)?;
    }
    Ok(lines.first().cloned().unwrap_or_default())
}

/// Writes the result to `docs/measurements`.
fn keep(ctx: &Ctx, seconds: u64, lines: &[String]) -> Result<()> {
    let date = capture(ctx.command("date").args(["-u", "+%F"]))?.trim().to_owned();
    let text = format!(
        "# Soak, {date}\n\nBy `cargo xtask soak --seconds {seconds} --save`: `vram serve --on-failure repair --period 5s` with {} \
         shards of {SIZES:?} MiB\non the `host` device, one bit flipped every second at a random place; the log is read \
         afterwards and every flip is looked\nup in it. Linux on x86-64, two cores of a virtual machine.\n\n- {}\n",
        SIZES.len(),
        lines.join("\n- ")
    );
    let path = ctx.root.join(format!("docs/measurements/soak-{date}.md"));
    std::fs::write(&path, text)?;
    say(&format!("written: {}", path.display()));
    Ok(())
}

fn soak(ctx: &Ctx, time: Duration) -> Result<Vec<String>> {
    let period = format!("{}s", PERIOD.as_secs());
    let mut daemon = Daemon::start(ctx, "soak", SIZES, &["--on-failure", "repair", "--period", &period])?;
    let mut random = Random(20_261_124);
    // What a process grows into at its start is no leak.
    std::thread::sleep(PERIOD);
    let mut memory = Vec::new();
    let begun = Instant::now();
    let mut flips = 0_u64;
    while begun.elapsed() < time {
        let number = usize::try_from(random.next() % daemon.shards.len() as u64)?;
        let (shard, bytes) = daemon.shards.get(number).context("no shard")?.clone();
        let (byte, bit) = (random.next() % bytes, random.next() % 8);
        match daemon.ask(&["drill", &shard, "--byte", &byte.to_string(), "--bit", &bit.to_string()]) {
            Ok(_) => flips += 1,
            Err(error) => say(&format!("a flip was refused: {error:#}")),
        }
        // Nor is the list of the last records that the status page shows, until it is full.
        if flips >= WARM && flips.is_multiple_of(10) {
            memory.push(daemon.use_of_memory()?);
        }
        let next = Duration::from_secs(flips).saturating_sub(begun.elapsed());
        std::thread::sleep(next);
    }
    let took = begun.elapsed();
    std::thread::sleep(PERIOD * 2);
    let status = daemon.ask(&["status"])?;
    ensure!(status["ready"] == Value::Bool(true), "not ready at the end: {}", status["not_ready"]);
    memory.push(daemon.use_of_memory()?);
    daemon.stop()?;
    daemon.log_is_intact()?;
    let judged = judge(&daemon.records()?)?;
    judged.report(flips, took, &memory)
}

/// What the log says.
#[derive(Default)]
struct Judged {
    /// Seconds from each flip to its repair.
    latencies: Vec<f64>,
    false_alarms: u64,
    open: usize,
    wrong_windows: u64,
    passes: u64,
    blocks: u64,
}

fn judge(records: &[Value]) -> Result<Judged> {
    let mut judged = Judged::default();
    let mut open: HashMap<(String, u64), Vec<u64>> = HashMap::new();
    for record in records.iter().map(|record| &record["record"]) {
        let shard = || record["shard_id"].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| record[name].as_u64();
        let time = number("time_ns").unwrap_or(0);
        match record["event"].as_str().unwrap_or_default() {
            "FaultInjected" => {
                let block = number("byte").context("no byte")? / BLOCK;
                open.entry((shard(), block)).or_default().push(time);
            }
            "SealVerificationFailed" => {
                let block = number("first_block").context("no block")?;
                match open.get(&(shard(), block)).and_then(|flips| flips.first()) {
                    None => judged.false_alarms += 1,
                    // The flip's record comes just before the flip itself.
                    Some(flip) => {
                        let from = number("suspect_from_ns").context("no window")?;
                        judged.wrong_windows += u64::from(from > flip + 50_000_000 || time < *flip);
                    }
                }
            }
            "BlockRepaired" => {
                let flips = open.remove(&(shard(), number("block").context("no block")?)).unwrap_or_default();
                if flips.is_empty() {
                    judged.false_alarms += 1;
                }
                judged.latencies.extend(flips.iter().map(|flip| time.saturating_sub(*flip) as f64 / 1e9));
            }
            "ScrubPassed" => {
                judged.passes += 1;
                judged.blocks += number("blocks").unwrap_or(0);
            }
            "VerificationLate" | "RepairFailed" | "DeviceQuarantined" => bail!("the log has a {record}"),
            _ => {}
        }
    }
    judged.open = open.values().map(Vec::len).sum();
    judged.latencies.sort_by(f64::total_cmp);
    Ok(judged)
}

impl Judged {
    fn report(&self, flips: u64, took: Duration, memory: &[(u64, usize)]) -> Result<Vec<String>> {
        let at = |part: f64| {
            let place = (self.latencies.len() as f64 * part) as usize;
            self.latencies.get(place.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        let worst = at(1.0);
        let limit = (PERIOD * 2).as_secs_f64();
        let (least, most) =
            memory.iter().fold((u64::MAX, 0), |(least, most), (rss, _)| (least.min(*rss), most.max(*rss)));
        let spread = (most - least) as f64 / least as f64 * 100.0;
        let descriptors: Vec<usize> = memory.iter().map(|(_, count)| *count).collect();
        let (first, last) = (descriptors.first().copied().unwrap_or(0), descriptors.last().copied().unwrap_or(0));
        let lines = vec![
            format!(
                "{flips} flips in {:.0} s, {} found and repaired, {} false alarms",
                took.as_secs_f64(),
                self.latencies.len(),
                self.false_alarms
            ),
            format!(
                "flip to repair: median {:.2} s, p99 {:.2} s, worst {worst:.2} s; limit {limit} s (two periods)",
                at(0.5),
                at(0.99)
            ),
            format!("suspect windows that do not hold their flip: {}", self.wrong_windows),
            format!("{} clean passes, {} clean block checks", self.passes, self.blocks),
            format!(
                "resident memory {least} to {most} kB, spread {spread:.2} %; descriptors {first} at the start, {last} at the end"
            ),
        ];
        ensure!(
            flips > 0 && self.latencies.len() as u64 == flips && self.open == 0,
            "not every flip was repaired: {lines:?}"
        );
        ensure!(self.false_alarms == 0, "false alarms: {lines:?}");
        ensure!(worst <= limit, "found too late: {lines:?}");
        ensure!(self.wrong_windows == 0, "a suspect window does not hold its flip: {lines:?}");
        ensure!(spread <= 2.0, "resident memory is not flat within 1 % to either side: {lines:?}");
        ensure!(last <= first + 2, "descriptors leak: {lines:?}");
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(event: Value) -> Value {
        json!({ "record": event })
    }

    #[test]
    fn the_judge_sees_what_is_missing() -> Result<()> {
        let flip = record(json!({"event":"FaultInjected","shard_id":"a","byte":5,"time_ns":1_000_000_000_u64}));
        let found = record(
            json!({"event":"SealVerificationFailed","shard_id":"a","first_block":0,"time_ns":2_000_000_000_u64,"suspect_from_ns":900_000_000_u64}),
        );
        let repaired = record(json!({"event":"BlockRepaired","shard_id":"a","block":0,"time_ns":3_000_000_000_u64}));
        let judged = judge(&[flip.clone(), found.clone(), repaired.clone()])?;
        assert_eq!((judged.latencies.clone(), judged.false_alarms, judged.open), (vec![2.0], 0, 0));
        let memory = [(1000, 20), (1005, 20)];
        assert!(judged.report(1, Duration::from_secs(9), &memory).is_ok());
        assert!(judged.report(2, Duration::from_secs(9), &memory).is_err(), "a flip is missing");
        assert!(judged.report(1, Duration::from_secs(9), &[(1000, 20), (1100, 20)]).is_err(), "memory grows");
        assert!(judged.report(1, Duration::from_secs(9), &[(1000, 20), (1000, 30)]).is_err(), "descriptors leak");
        assert_eq!(judge(&[found, repaired])?.false_alarms, 2);
        assert_eq!(judge(&[flip])?.open, 1);
        Ok(())
    }
}
