//! The steps of `cargo xtask test`: a table, one function each, and the loop that runs them.

use crate::beside::{self, Beside};
use crate::shell::{Ctx, read, run, run_and_read, say};
use crate::{
    Args, alerts, candle, ceph, deploy, foreign, fuzz, hot, kernels, model, msrv, page, replica, signing, soak, strace,
    tools, unit,
};
use anyhow::{Context, Result, anyhow, bail};
use std::process::Command;
use std::time::Instant;

/// One check. It returns what it has to say for itself in the closing table.
pub struct Step {
    pub name: &'static str,
    pub args: &'static str,
    pub help: &'static str,
    /// Part of `test --quick`.
    pub quick: bool,
    run: fn(&Ctx, &mut Args) -> Result<String>,
}

impl Step {
    pub fn run(&self, ctx: &Ctx, args: &mut Args) -> Result<String> {
        (self.run)(ctx, args)
    }
}

/// A step that mostly waits, and the one with which it starts: what is between them in the table waits too, or computes
/// little. It needs nothing but the program, which step `demo` builds.
const BESIDE: (&str, &str) = ("soak", "replica");

/// Cheap ones first: a missing space must not cost ten minutes.
pub const STEPS: &[Step] = &[
    Step { name: "fmt", args: "", help: "formatting, of fuzz/ too", quick: true, run: fmt },
    Step { name: "clippy", args: "", help: "lints, warnings are errors", quick: true, run: clippy },
    Step { name: "doc", args: "", help: "documentation builds without a warning", quick: true, run: doc },
    Step {
        name: "msrv",
        args: "",
        help: "one rust-version, and no dependency wants a newer one",
        quick: true,
        run: msrv::step,
    },
    Step { name: "deny", args: "", help: "licences, bans and sources", quick: false, run: deny },
    Step { name: "unit", args: "", help: "unit, integration and documentation tests", quick: true, run: unit::step },
    Step { name: "model", args: "", help: "seals a real, published model", quick: false, run: model::step },
    Step { name: "demo", args: "", help: "vram demo finds and repairs the flipped bit", quick: false, run: demo },
    Step { name: "hot", args: "", help: "instructions of the hot path", quick: false, run: hot::step },
    Step {
        name: "kernels",
        args: "",
        help: "the GPU kernels: PTX rebuilt, assembled, within budget, right on a CPU; NVIDIA's header as we take it",
        quick: false,
        run: kernels::step,
    },
    Step {
        name: "replica",
        args: "",
        help: "an S3 server and a witness that others wrote, killed and restarted",
        quick: false,
        run: replica::step,
    },
    Step {
        name: "signing",
        args: "",
        help: "what model-signing signs is accepted here, and what is attested here is by in-toto's own tools",
        quick: false,
        run: signing::step,
    },
    Step {
        name: "alerts",
        args: "",
        help: "Prometheus judges rules, dashboard and metrics, and its alert fires on a broken bit",
        quick: false,
        run: alerts::step,
    },
    Step {
        name: "deploy",
        args: "",
        help: "systemd and Kubernetes' schemas judge the service files",
        quick: false,
        run: deploy::step,
    },
    Step {
        name: "soak",
        args: "[--seconds N] [--save]",
        help: "a bit a second flipped, found, repaired and on record; 60 s unless told otherwise",
        quick: false,
        run: soak::step,
    },
    Step {
        name: "page",
        args: "[--save]",
        help: "the status page in a real browser: all well, damaged, repaired, gone",
        quick: false,
        run: page::step,
    },
    Step {
        name: "foreign",
        args: "",
        help: "a signed log of 70,000 records, judged by verifiers that are not ours",
        quick: false,
        run: foreign::step,
    },
    Step {
        name: "strace",
        args: "[--all] [--save]",
        help: "system calls on the audit log fail, one after the other: 45 s of them unless --all",
        quick: false,
        run: strace::step,
    },
    Step {
        name: "fuzz",
        args: "[--seconds N] [TARGET]",
        help: "each fuzz target, 10 or 20 s unless told otherwise; `campaign fuzz` is the long one",
        quick: false,
        run: fuzz::step,
    },
];

/// Not in CI: it installs a distributed store on the machine.
pub const CEPH: Step = Step {
    name: "ceph",
    args: "",
    help: "replication into Ceph with 3 OSDs, of which one and then two are killed",
    quick: false,
    run: ceph::step,
};

/// Not in CI: building candle takes as long as the rest of a step's work many times over.
pub const CANDLE: Step = Step {
    name: "candle",
    args: "",
    help: "a candle model runs on weights that a daemon holds, without a copy",
    quick: false,
    run: candle::step,
};

/// `cargo xtask test [--quick] [--with-ceph] [--with-candle] [-- ARGUMENTS OF cargo test]`.
pub fn test(ctx: &Ctx, mut args: Args) -> Result<()> {
    let quick = args.take_flag("--quick");
    let with_ceph = args.take_flag("--with-ceph");
    let with_candle = args.take_flag("--with-candle");
    args.finish()?;
    let mut chosen: Vec<&Step> = STEPS.iter().filter(|step| step.quick || !quick).collect();
    chosen.extend(with_ceph.then_some(&CEPH));
    chosen.extend(with_candle.then_some(&CANDLE));
    run_list(ctx, &chosen, args)
}

/// Runs the steps up to the first that fails, then says what happened to each.
pub fn run_list(ctx: &Ctx, steps: &[&Step], mut args: Args) -> Result<()> {
    let begun = Instant::now();
    let mut table = Vec::new();
    let mut failed = None;
    let (mut beside, mut is_ended): (Option<Beside>, bool) = (None, false);
    for step in steps {
        if failed.is_some() {
            let word = if is_ended && step.name == BESIDE.0 { "ended" } else { "not run" };
            table.push(format!("{:<8} {word:<8}", step.name));
            continue;
        }
        if step.name == BESIDE.1
            && let Some(other) = steps.iter().find(|other| other.name == BESIDE.0)
        {
            say(&format!("\nStep `{}` runs beside the next ones; what it says comes in its turn.", other.name));
            beside = Some(Beside::step(ctx, other)?);
        }
        say(&format!("\n===== {}: {} =====", step.name, step.help));
        let start = Instant::now();
        let started = if step.name == BESIDE.0 { beside.take() } else { None };
        let (outcome, seconds) = match started {
            Some(started) => turn(started)?,
            None => (step.run(ctx, &mut args), start.elapsed().as_secs_f64()),
        };
        let (word, note) = match outcome {
            Ok(note) => ("ok", note),
            Err(error) => {
                failed = Some((step.name, error));
                is_ended = beside.take().is_some();
                ("FAILED", String::new())
            }
        };
        table.push(format!("{:<8} {word:<8} {seconds:>8.1}  {note}", step.name));
    }
    say(&format!("\n{:<8} {:<8} {:>8}", "step", "result", "seconds"));
    for line in &table {
        say(line.trim_end());
    }
    if steps.len() > 1 {
        say(&format!("{:<17} {:>8.1}", "all of it took", begun.elapsed().as_secs_f64()));
    }
    match failed {
        None => Ok(()),
        Some((name, error)) => Err(error.context(format!("step `{name}` failed; `cargo xtask {name}` runs it alone"))),
    }
}

/// The turn of a step that ran beside others: waits for its end and shows what it said. Its seconds are its own.
fn turn(mut beside: Beside) -> Result<(Result<String>, f64)> {
    let is_well = beside.wait()?;
    let (said, seconds, note) = beside::split(&beside.said()?);
    say(&said);
    let outcome = if is_well { Ok(format!("{note} (beside the steps before it)")) } else { Err(anyhow!("see above")) };
    Ok((outcome, seconds))
}

fn fmt(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    run(ctx.cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in ["fuzz/Cargo.toml", "examples/attach-candle/Cargo.toml"] {
        run(ctx.cargo().args(["fmt", "--check", "--manifest-path", manifest]))?;
    }
    Ok(String::new())
}

fn clippy(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    run(ctx.cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    Ok(String::new())
}

fn doc(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    run(ctx.cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(String::new())
}

/// Advisories are left out on purpose: their database is fetched from outside the package registries, which a
/// build without open network cannot reach, and a check that passes because it saw no data would be worse.
fn deny(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let deny = tools::cargo_deny(ctx)?;
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml", "examples/attach-candle/Cargo.toml"] {
        run(ctx
            .command(&deny)
            .args(["--manifest-path", manifest, "--config", "deny.toml", "--locked", "check"])
            .arg("--hide-inclusion-graph")
            .args(["licenses", "bans", "sources"]))?;
    }
    Ok(String::new())
}

/// The demo must say of itself that it found the flipped bit, repaired it and verified the log.
fn demo(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let lines = run_and_read(ctx.cargo().args(["run", "--release", "-p", "vram", "--", "demo", "--json"]))?;
    let last = lines.iter().rev().find(|line| !line.trim().is_empty()).context("the demo printed nothing")?;
    demo_outcome(last)?;
    Ok(String::from("detected, repaired, audit verified"))
}

fn demo_outcome(line: &str) -> Result<()> {
    let object: serde_json::Value =
        serde_json::from_str(line).with_context(|| format!("the demo's last line is not JSON: {line}"))?;
    for field in ["detected", "repaired", "audit_verified"] {
        if object.get(field) != Some(&serde_json::Value::Bool(true)) {
            bail!("the demo's last line must say \"{field}\":true, and it is {line}");
        }
    }
    Ok(())
}

/// Sums up the `test result:` lines of several runs of `cargo test`.
#[derive(Default)]
pub struct Count {
    /// Summaries that say so.
    pub good: u64,
    pub passed: u64,
    ignored: u64,
}

impl Count {
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        for line in run_and_read(command)? {
            self.add(&line);
        }
        Ok(())
    }

    /// The same, without saying what is run.
    pub fn run_as_it_is(&mut self, command: &mut Command) -> Result<()> {
        for line in read(command)? {
            self.add(&line);
        }
        Ok(())
    }

    pub fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |what: &str| -> u64 {
            let part = rest.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(what));
            part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        self.good += u64::from(rest.starts_with("ok"));
        self.passed += number(" passed");
        self.ignored += number(" ignored");
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} tests passed", self.passed)?;
        if self.ignored > 0 { write!(out, ", {} ignored", self.ignored) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_add_up() {
        let mut count = Count::default();
        count.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        count.add("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1s");
        count.add("test a_test_result ... ok");
        assert_eq!(count.to_string(), "15 tests passed, 1 ignored");
    }

    #[test]
    fn the_demo_has_to_claim_all_three() {
        assert!(demo_outcome(r#"{"detected":true,"repaired":true,"audit_verified":true,"bit":3}"#).is_ok());
        assert!(demo_outcome(r#"{"detected":true,"repaired":true,"audit_verified":false}"#).is_err());
        assert!(demo_outcome(r#"{"detected":true,"repaired":true}"#).is_err());
        assert!(demo_outcome("done").is_err());
    }

    #[test]
    fn step_names_are_unique() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(STEPS.iter().skip(at + 1).all(|other| other.name != step.name), "{}", step.name);
        }
    }
}
