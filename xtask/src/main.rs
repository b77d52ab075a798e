//! `cargo xtask`: every check that CI runs, as one command, and each of them as a command of its own.

mod alerts;
mod bench;
mod beside;
mod campaign;
mod candle;
mod ceph;
mod daemon;
mod debian;
mod deploy;
mod foreign;
mod fuzz;
mod gpu;
mod hot;
mod kernels;
mod model;
mod msrv;
mod page;
mod replica;
mod report;
mod shell;
mod signing;
mod soak;
mod steps;
mod strace;
mod tools;
mod unit;

use anyhow::Result;
use shell::{Ctx, Usage};
use std::process::ExitCode;

/// What was typed behind the verb: our own arguments, and those after `--` that go to `cargo test`.
pub struct Args {
    /// Before `--`.
    pub own: Vec<String>,
    /// After the first `--`.
    pub pass: Vec<String>,
}

impl Args {
    fn parse(mut words: Vec<String>) -> Self {
        let pass = match words.iter().position(|word| word == "--") {
            Some(at) => words.split_off(at).into_iter().skip(1).collect(),
            None => Vec::new(),
        };
        Self { own: words, pass }
    }

    /// Removes `flag` and says whether it was there.
    pub fn take_flag(&mut self, flag: &str) -> bool {
        let before = self.own.len();
        self.own.retain(|word| word != flag);
        self.own.len() != before
    }

    /// Removes `flag VALUE` and returns the value.
    pub fn take_number(&mut self, flag: &str) -> Result<Option<u64>> {
        let Some(at) = self.own.iter().position(|word| word == flag) else { return Ok(None) };
        let value = self.own.get(at + 1).and_then(|word| word.parse().ok());
        let Some(value) = value else { return Err(Usage::err(format!("{flag} needs a whole number"))) };
        self.own.drain(at..at + 2);
        Ok(Some(value))
    }

    /// Refuses what nobody took: a mistyped flag must not look like a passed check.
    pub fn finish(&self) -> Result<()> {
        match self.own.first() {
            None => Ok(()),
            Some(word) => Err(Usage::err(format!("`{word}` is not an argument of this verb"))),
        }
    }
}

fn help() {
    println!("cargo xtask VERB [ARGUMENTS] [-- ARGUMENTS OF cargo test]\n");
    println!("  {:<34} everything that CI runs, in this order:", "test [--quick] [--with-ceph] [--with-candle]");
    for step in steps::STEPS {
        let quick = if step.quick { "" } else { " (not with --quick)" };
        println!("    {:<32} {}{quick}", format!("{} {}", step.name, step.args), step.help);
    }
    println!("    {:<32} {} (only with --with-ceph)", steps::CEPH.name, steps::CEPH.help);
    println!("    {:<32} {} (only with --with-candle)", steps::CANDLE.name, steps::CANDLE.help);
    println!("\n  {:<34} {}", "bench [--save] [--rounds N]", bench::HELP);
    println!("  {:<34} {}", "gpu-check [--run]", gpu::HELP);
    println!("  {:<34} long runs that CI does not do:", "campaign NAME");
    for campaign in campaign::CAMPAIGNS {
        println!("    {:<32} {}", campaign.name, campaign.help);
    }
    println!("\nEach step of `test` is a verb of its own. Tools that a step needs are installed, at a pinned version,");
    println!("into `tools` in the target directory on first use. `soak` mostly waits: in `test` it runs beside the");
    println!("steps before it, and its seconds in the table are its own. Where CI is set, .ci/run builds without");
    println!("incremental compilation. Exit codes: 0 good, 1 failed, 2 wrong usage.");
}

/// What is said of one verb alone; none of those that are explained by the list of all.
fn help_of(verb: &str) -> Option<String> {
    let text = match verb {
        "gpu-check" => gpu::USAGE.to_owned(),
        "bench" => format!("cargo xtask bench [--save] [--rounds N]\n\n{}", bench::HELP),
        name => {
            let step = steps::STEPS.iter().chain([&steps::CEPH, &steps::CANDLE]).find(|step| step.name == name)?;
            format!("cargo xtask {} {}\n\n{}", step.name, step.args, step.help)
        }
    };
    Some(text)
}

fn dispatch(mut words: Vec<String>) -> Result<()> {
    let verb = if words.is_empty() { String::from("help") } else { words.remove(0) };
    if words.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h") {
        match help_of(&verb) {
            Some(text) => println!("{text}"),
            None => help(),
        }
        return Ok(());
    }
    if verb == beside::VERB {
        return beside::inside(&words);
    }
    let args = Args::parse(words);
    if !args.pass.is_empty() && !["test", "unit", "model"].contains(&verb.as_str()) {
        return Err(Usage::err(format!("`{verb}` runs no `cargo test` that the arguments after `--` could go to")));
    }
    let ctx = Ctx::new()?;
    match verb.as_str() {
        "help" | "--help" | "-h" => help(),
        "test" => steps::test(&ctx, args)?,
        "bench" => bench::run(&ctx, args)?,
        "gpu-check" => gpu::run_verb(&ctx, args)?,
        "campaign" => campaign::run(&ctx, args)?,
        name => match steps::STEPS.iter().chain([&steps::CEPH, &steps::CANDLE]).find(|step| step.name == name) {
            Some(step) => steps::run_list(&ctx, &[step], args)?,
            None => {
                return Err(Usage::err(format!("there is no verb `{name}`; `cargo xtask --help` lists them")));
            }
        },
    }
    Ok(())
}

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        Args::parse(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn help_for_a_verb_is_about_that_verb() {
        let told = help_of("gpu-check").unwrap_or_default();
        assert!(told.starts_with("cargo xtask gpu-check") && told.contains("--run"), "{told}");
        for step in steps::STEPS {
            assert!(help_of(step.name).is_some_and(|told| told.contains(step.help) && told.lines().count() < 9));
        }
        assert!(help_of("test").is_none() && help_of("no-such-verb").is_none());
    }

    #[test]
    fn only_the_first_double_dash_is_ours() {
        let args = args(&["--quick", "--", "name", "--", "--nocapture"]);
        assert_eq!(args.own, ["--quick"]);
        assert_eq!(args.pass, ["name", "--", "--nocapture"]);
    }

    #[test]
    fn flags_are_taken_and_leftovers_refused() -> Result<()> {
        let mut args = args(&["--seconds", "5", "gguf"]);
        assert_eq!(args.take_number("--seconds")?, Some(5));
        assert!(!args.take_flag("--quick"));
        assert_eq!(args.own, ["gguf"]);
        assert!(args.finish().is_err());
        Ok(())
    }
}
