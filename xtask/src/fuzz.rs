//! The `fuzz` step: libFuzzer on every reader of foreign bytes, two targets side by side.
//!
//! The instrumentation is switched on by flags that belong to the nightly compiler. `RUSTC_BOOTSTRAP=1` lets the stable one
//! accept them, and it ships AddressSanitizer's runtime, so one stable toolchain is all it takes. The flags are those of
//! cargo-fuzz, which can be used on `fuzz/` by hand; it does not need to be there.

use crate::Args;
use crate::shell::{Ctx, Usage, capture, run, say, shown};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

struct Target {
    name: &'static str,
    /// Longest input. Headers and records are small; a longer input makes runs slower, not deeper.
    max_len: u32,
    /// How long it is fuzzed where nobody says otherwise, in seconds.
    seconds: u64,
}

const TARGETS: &[Target] = &[
    Target { name: "safetensors", max_len: 16 << 10, seconds: 20 },
    Target { name: "gguf", max_len: 16 << 10, seconds: 20 },
    Target { name: "audit_record", max_len: 64 << 10, seconds: 20 },
    Target { name: "audit_checkpoint", max_len: 4 << 10, seconds: 10 },
    Target { name: "audit_proof", max_len: 8 << 10, seconds: 10 },
    Target { name: "audit_bundle", max_len: 16 << 10, seconds: 10 },
    Target { name: "attestation", max_len: 8 << 10, seconds: 10 },
    Target { name: "manifest", max_len: 8 << 10, seconds: 10 },
];

/// One allocation may never be larger than this, whatever the input asks for.
const MALLOC_LIMIT_MB: u32 = 64;
/// Against leaks. AddressSanitizer keeps some hundred MiB of freed memory by itself.
const RSS_LIMIT_MB: u32 = 2048;
/// A single input that takes longer is a hang.
const TIMEOUT_S: u32 = 10;

/// What makes a program of ours one that libFuzzer can steer: every branch and comparison counted, addresses watched, our
/// own assertions on. One codegen unit: what is instrumented is not inlined across them.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
    "-Cllvm-args=-sanitizer-coverage-stack-depth",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
];

/// What libFuzzer said about its run.
#[derive(Debug, Default, PartialEq)]
struct Summary {
    runs: u64,
    seconds: Option<u64>,
    peak_rss_mb: u64,
    artefact: Option<String>,
}

pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    let seconds = args.take_number("--seconds")?;
    let chosen = if args.own.is_empty() { None } else { Some(args.own.remove(0)) };
    args.finish()?;
    campaign(ctx, seconds, chosen.as_deref())
}

/// Fuzzes one target, or each of them, for so many seconds, or as long as each one is worth.
pub fn campaign(ctx: &Ctx, seconds: Option<u64>, chosen: Option<&str>) -> Result<String> {
    let targets: Vec<&Target> = TARGETS.iter().filter(|target| chosen.is_none_or(|name| name == target.name)).collect();
    if targets.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        return Err(Usage::err(format!("no such fuzz target; there are {}", names.join(", "))));
    }
    let logs = ctx.target.join("fuzz/logs");
    std::fs::create_dir_all(&logs)?;
    let programs = build(ctx, chosen)?;

    let queue = Mutex::new(targets.iter());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(target) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let result = one(ctx, &programs, &logs, target, seconds.unwrap_or(target.seconds));
                    if let Ok(mut results) = results.lock() {
                        results.push((target.name, result));
                    }
                }
            });
        }
    });

    let mut failed = Vec::new();
    let mut runs = 0;
    let results = results.into_inner().unwrap_or_default();
    for (name, result) in &results {
        match result {
            // One that tries nothing finds nothing.
            Ok(summary) if summary.runs == 0 => failed.push(*name),
            Ok(summary) => runs += summary.runs,
            Err(error) => {
                say(&format!("{name}: {error:#}"));
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() || results.len() != targets.len() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(format!("{} targets, {runs} runs", targets.len()))
}

/// Builds one target or all of them, and returns the folder in which they lie.
fn build(ctx: &Ctx, chosen: Option<&str>) -> Result<PathBuf> {
    let compiler = capture(ctx.command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV"))?;
    let triple = compiler.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target = ctx.target.join("fuzz");
    let mut build = ctx.cargo();
    // With a target named, build scripts and procedural macros are built as ever.
    build.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", triple, "--target-dir"]);
    build.arg(&target);
    match chosen {
        Some(name) => build.args(["--bin", name]),
        None => build.arg("--bins"),
    };
    run(build.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS.join(" ")))?;
    Ok(target.join(triple).join("release"))
}

/// A target's program, with what it finds kept where one can repeat it.
fn program(ctx: &Ctx, programs: &Path, name: &str) -> Result<Command> {
    let artefacts = ctx.root.join("fuzz/artifacts").join(name);
    std::fs::create_dir_all(&artefacts)?;
    let mut command = ctx.command(programs.join(name));
    // The same global in several codegen units is none of ours to mend.
    command.env("ASAN_OPTIONS", "detect_odr_violation=0");
    command.arg(format!("-artifact_prefix={}/", artefacts.display()));
    Ok(command)
}

/// What an input may cost. Needed again to see the same failure again.
fn limits() -> [String; 3] {
    [
        format!("-timeout={TIMEOUT_S}"),
        format!("-rss_limit_mb={RSS_LIMIT_MB}"),
        format!("-malloc_limit_mb={MALLOC_LIMIT_MB}"),
    ]
}

fn one(ctx: &Ctx, programs: &Path, logs: &Path, target: &Target, seconds: u64) -> Result<Summary> {
    let name = target.name;
    let corpus = PathBuf::from("fuzz/corpus").join(name);
    std::fs::create_dir_all(ctx.root.join(&corpus))?;
    let mut command = program(ctx, programs, name)?;
    command.arg(&corpus); // libFuzzer adds what it finds to the first directory
    let seeds = PathBuf::from("fuzz/seeds").join(name);
    if ctx.root.join(&seeds).is_dir() {
        command.arg(&seeds);
    }
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={}", target.max_len),
        String::from("-print_final_stats=1"),
    ]);
    command.args(limits());
    let log = logs.join(format!("{name}.log"));
    say(&format!("$ {}  # log: {}", shown(&command), log.display()));
    let file = File::create(&log).with_context(|| log.display().to_string())?;
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;

    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let summary = summarize(&text);
    let tail = if status.success() { 12 } else { 80 };
    let lines: Vec<&str> = text.lines().collect();
    let mut report = String::new();
    for line in lines.iter().skip(lines.len().saturating_sub(tail)) {
        report.push_str(&format!("{name} | {line}\n"));
    }
    let took = summary.seconds.map_or_else(|| String::from("?"), |seconds| seconds.to_string());
    report.push_str(&format!(
        "{name}: {} runs in {took} s, peak rss {} MiB, {}",
        summary.runs,
        summary.peak_rss_mb,
        if status.success() { "no crash" } else { "FAILED" }
    ));
    say(&report);
    if status.success() {
        return Ok(summary);
    }
    let Some(artefact) = &summary.artefact else {
        bail!("ended with {status} and left no input; the whole log is {}", log.display());
    };
    let repeat = shown(program(ctx, programs, name)?.arg(artefact).args(limits()));
    bail!("the failing input is {artefact}\n  again: {repeat}")
}

fn summarize(log: &str) -> Summary {
    let stat = |key: &str| -> u64 {
        let value = log.lines().find_map(|line| line.trim().strip_prefix(key));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    // `Done 1234 runs in 61 second(s)` comes only at the end of a run without a crash.
    let done = log.lines().find_map(|line| line.strip_prefix("Done ")?.split_once(" runs in "));
    Summary {
        runs: stat("stat::number_of_executed_units:"),
        seconds: done.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()),
        peak_rss_mb: stat("stat::peak_rss_mb:"),
        artefact: log
            .lines()
            .find_map(|line| line.split_once("Test unit written to "))
            .map(|(_, path)| path.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_run_is_summarized() {
        let log = "#1\tINITED\nDone 1234 runs in 61 second(s)\nstat::number_of_executed_units: 1234\n\
                   stat::average_exec_per_sec:     20\nstat::peak_rss_mb:              135\n";
        let expected = Summary { runs: 1234, seconds: Some(61), peak_rss_mb: 135, artefact: None };
        assert_eq!(summarize(log), expected);
    }

    #[test]
    fn a_crash_names_its_input() {
        let log = "artifact_prefix='/x/'; Test unit written to /x/crash-12\nstat::number_of_executed_units: 7\n";
        let summary = summarize(log);
        assert_eq!(summary.artefact.as_deref(), Some("/x/crash-12"));
        assert_eq!((summary.runs, summary.seconds), (7, None));
    }

    #[test]
    fn the_table_and_the_fuzz_manifest_name_the_same_targets() {
        let manifest = include_str!("../../fuzz/Cargo.toml");
        let names: Vec<&str> = manifest
            .lines()
            .skip_while(|line| *line != "[[bin]]")
            .filter_map(|line| line.strip_prefix("name = "))
            .map(|name| name.trim_matches('"'))
            .collect();
        assert_eq!(names, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
    }
}
