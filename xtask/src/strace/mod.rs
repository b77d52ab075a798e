//! Faults at every system call: `vram seal`, or `vram audit prune`, is run again and again under strace, and each time another call on the files of
//! its log fails or is its last. Whatever the call and the fault, the log must then hold all that was said to be in it, and
//! `vram audit verify` must find no violation where nobody violated anything.

mod calls;
mod case;

use crate::Args;
use crate::debian;
use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, anyhow, bail, ensure};
use calls::{Call, Fault};
use case::{Before, Bench, End};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// For the form that CI runs.
const QUICK: Duration = Duration::from_secs(45);
/// Fewer are no check, however slow the machine.
const LEAST: usize = 20;
/// More say nothing new.
const MOST_FAILURES: usize = 20;

/// `cargo xtask strace [--all] [--save]`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    let all = args.take_flag("--all");
    let save = args.take_flag("--save");
    args.finish()?;
    let strace = debian::program(ctx, "strace", "usr/bin/strace")?;
    // The program as the tests have it, which step `unit` left: whatever of a package's is tested, its programs are built.
    run(ctx.cargo().args(["test", "--workspace", "--test", "actors", "--no-run"]))?;
    ensure!(is_disk(ctx)?, "the target directory is in memory, where no sync can fail; set CARGO_TARGET_DIR to a disk");
    let starts = [Before::Closed, Before::Killed, Before::NoLog, Before::Old];
    let begun = Instant::now();
    let strace = strace.as_path();
    let tables = std::thread::scope(|scope| {
        let threads = starts.map(|before| scope.spawn(move || try_all(ctx, strace, before, (!all).then_some(QUICK))));
        let tables =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread of the suite panicked"))?);
        tables.collect::<Result<Vec<Table>>>()
    })?;
    let texts: Vec<String> = tables.iter().map(Table::markdown).collect();
    texts.iter().for_each(|text| say(text));
    let failures: Vec<&String> = tables.iter().flat_map(|table| &table.failures).collect();
    if save {
        keep(ctx, all, begun.elapsed(), &texts)?;
    }
    if !failures.is_empty() {
        failures.iter().for_each(|failure| say(failure));
        bail!("{} injected faults did harm", failures.len());
    }
    for table in &tables {
        let (tried, not_met) = (table.tried(), table.ended(End::NotMet));
        ensure!(
            not_met * 10 <= tried,
            "{not_met} of {tried} faults were not met by the run: strace does not inject them"
        );
    }
    let tried: usize = tables.iter().map(|table| table.tried()).sum();
    let of: usize = tables.iter().map(|table| table.cases).sum();
    Ok(format!("{tried} of {of} faults injected, no record lost, no false alarm"))
}

/// Every case of one start, or those that fit into the time.
fn try_all(ctx: &Ctx, strace: &Path, before: Before, time: Option<Duration>) -> Result<Table> {
    let (bench, counted) = Bench::prepare(ctx, strace, before).with_context(|| before.name())?;
    let mut table = Table::new(before, &counted);
    let cases: Vec<(&Call, Fault)> =
        counted.calls.iter().flat_map(|call| call.faults().into_iter().map(move |fault| (call, fault))).collect();
    say(&format!("{}: {} calls, {} cases", before.name(), counted.totals.values().sum::<usize>(), cases.len()));
    let begun = Instant::now();
    for (done, at) in scattered(cases.len()).enumerate() {
        let out_of_time = time.is_some_and(|time| done >= LEAST && begun.elapsed() > time);
        if out_of_time || table.failures.len() >= MOST_FAILURES {
            break;
        }
        let (call, fault) = cases[at];
        table.add(call, fault, bench.try_one(call, fault), &bench)?;
    }
    Ok(table)
}

/// Whether what is synced there reaches a disk.
fn is_disk(ctx: &Ctx) -> Result<bool> {
    let kind = capture(ctx.command("stat").args(["-f", "-c", "%T"]).arg(&ctx.target))?;
    Ok(!["tmpfs", "ramfs"].contains(&kind.trim()))
}

/// Every index once, so that whatever number comes first is spread over all of them.
fn scattered(count: usize) -> impl Iterator<Item = usize> {
    // Near the golden ratio, the multiples of a step leave no large hole.
    let near = (count as f64 * 0.618) as usize;
    let divisor = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let step = (near.max(1)..).find(|step| divisor(*step, count) == 1).unwrap_or(1);
    (0..count).map(move |at| at * step % count)
}

/// What was tried, and how it ended.
struct Table {
    before: Before,
    totals: BTreeMap<String, usize>,
    shadowed: usize,
    paths: usize,
    cases: usize,
    tried: BTreeMap<(String, Fault), usize>,
    ends: BTreeMap<(String, End), usize>,
    failed: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Table {
    fn new(before: Before, counted: &calls::Counted) -> Self {
        Self {
            before,
            totals: counted.totals.clone(),
            shadowed: calls::shadowed(&counted.calls),
            paths: calls::paths(&counted.calls).len(),
            cases: counted.calls.iter().map(|call| call.faults().len()).sum(),
            tried: BTreeMap::new(),
            ends: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    fn add(&mut self, call: &Call, fault: Fault, outcome: Result<End>, bench: &Bench) -> Result<()> {
        *self.tried.entry((call.name.clone(), fault)).or_default() += 1;
        match outcome {
            Ok(end) => *self.ends.entry((call.name.clone(), end)).or_default() += 1,
            Err(error) => {
                *self.failed.entry(call.name.clone()).or_default() += 1;
                let kept = bench.keep(self.failures.len())?;
                let Call { name, path, nth, .. } = call;
                let before = self.before.name();
                let failure = format!(
                    "FAILED: {before}: {} at call {nth} of {name} on {path}: {error:#}; kept in {}",
                    fault.name(),
                    kept.display()
                );
                say(&failure);
                self.failures.push(failure);
            }
        }
        Ok(())
    }

    fn tried(&self) -> usize {
        self.tried.values().sum()
    }

    fn ended(&self, end: End) -> usize {
        self.ends.iter().filter(|((_, of), _)| *of == end).map(|(_, count)| *count).sum()
    }

    fn markdown(&self) -> String {
        let faults = Fault::ALL.map(Fault::name).join(" | ");
        let ends = End::ALL.map(End::name).join(" | ");
        let mut lines = vec![
            format!(
                "Before the run: {}. {} calls on {} paths, {} of {} cases tried, {} failed.",
                self.before.name(),
                self.totals.values().sum::<usize>(),
                self.paths,
                self.tried(),
                self.cases,
                self.failures.len()
            ),
            format!(
                "{} calls are made by a second thread, too, and share the other's cases, except that no kill meets them.",
                self.shadowed
            ),
            String::new(),
            format!("| call | made | {faults} | {ends} | FAILED |"),
            format!("|---|{}", "---:|".repeat(2 + Fault::ALL.len() + End::ALL.len())),
        ];
        for (name, made) in &self.totals {
            let count = |count: Option<&usize>| count.map_or_else(|| "–".to_owned(), ToString::to_string);
            let tried = Fault::ALL.map(|fault| count(self.tried.get(&(name.clone(), fault)))).join(" | ");
            let ended = End::ALL.map(|end| count(self.ends.get(&(name.clone(), end)))).join(" | ");
            let failed = self.failed.get(name).copied().unwrap_or(0);
            lines.push(format!("| {name} | {made} | {tried} | {ended} | {failed} |"));
        }
        let injected = |fault| self.tried.iter().filter(|((_, of), _)| *of == fault).map(|(_, count)| *count).sum();
        let tried = Fault::ALL.map(|fault| usize::to_string(&injected(fault))).join(" | ");
        let ended = End::ALL.map(|end| self.ended(end).to_string()).join(" | ");
        let made: usize = self.totals.values().sum();
        lines.push(format!("| all | {made} | {tried} | {ended} | {} |", self.failures.len()));
        lines.join("\n") + "\n"
    }
}

/// Writes the result to `docs/measurements`.
fn keep(ctx: &Ctx, all: bool, time: Duration, tables: &[String]) -> Result<()> {
    let date = capture(ctx.command("date").args(["-u", "+%F"]))?.trim().to_owned();
    let form = if all { " --all" } else { "" };
    let text = format!(
        "# Faults at every system call, {date}\n\nBy `cargo xtask strace{form} --save` in {} s, on two cores of a virtual \
         machine, ext4. {ABOUT}\n{}",
        time.as_secs(),
        tables.join("\n")
    );
    let path = ctx.root.join(format!("docs/measurements/syscall-faults-{date}.md"));
    std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    say(&format!("written: {}", path.display()));
    Ok(())
}

const ABOUT: &str = "`vram seal`, or `vram audit prune` where old records are to go, runs once under\n\
    strace, which counts the calls on everything in its state directory; then once for each of them and each fault that it can\n\
    meet. After each run `vram audit verify` must find no violation, all records that were there before or that the run said\n\
    were durable, and the checkpoints seen so far to be part of the log; one more plain run must then be recorded and signed\n\
    completely.\n\n\
    - *EIO*, *ENOSPC*, *EINTR*: the call is not performed and reports this. *takes 0*: a write that takes nothing.\n\
    - *short*: the kernel takes a part of the write (a limit on the size of files, in its middle) and then refuses with EFBIG;\n\
    \x20 possible for writes beyond 12 KiB in a file. strace itself cannot have a part of a call performed.\n\
    - *SIGKILL*: the process dies in place of the call.\n\
    - *unharmed*: no warning, and everything recorded and signed; *warned*: the warning says what is not; *refused*: one\n\
    \x20 sentence, exit code 1 or 3; *not met*: the threads' timing differed and the call did not occur. Each is checked alike.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_comes_once_and_the_first_ones_are_spread() {
        for count in [0, 1, 2, 7, 100, 701] {
            let mut order: Vec<usize> = scattered(count).collect();
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count), "{count}");
        }
        let mut first: Vec<usize> = scattered(700).take(100).collect();
        first.sort_unstable();
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] < 28), "{first:?}");
    }
}
