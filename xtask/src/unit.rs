//! The `unit` step: every test of the workspace. The test programs run one after the other, each with all the processors, but
//! for those that leave processors idle and do not care how long a thing takes: these run beside each other.

use crate::Args;
use crate::beside::Beside;
use crate::shell::{Ctx, capture, run, say, shown};
use crate::steps::Count;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Package and test. They compute on one processor: two at a time. No test here has a limit of less than many seconds. The
/// longest first.
const ON_ONE_PROCESSOR: &[(&str, &str)] = &[
    ("vram-residency", "flips"),
    ("vram-residency", "cuda_sweep"),
    ("vram-residency", "cuda_fingerprint"),
    ("vram-residency", "cuda_device"),
    ("vram-residency", "cuda_faults"),
    ("audit-logging", "power_cut"),
    ("vram-residency", "cuda_allocations"),
    ("gpu-check", "emulated"),
    ("audit-logging", "publish_faults"),
    ("vram-residency", "approval"),
];

/// They wait for disks, ends of processes and limits of time, and compute next to nothing: one at a time, beside the others.
const WAITING: &[(&str, &str)] = &[
    ("vram", "evidence"),
    ("vram", "serve_doors"),
    ("audit-logging", "kill"),
    ("audit-logging", "prune"),
    ("audit-logging", "publish_kill"),
];

/// Longer than any of them takes on a machine that is ten times as slow.
const HANGS: Duration = Duration::from_secs(1200);

/// One test program.
#[derive(Debug)]
struct Program {
    package: String,
    name: String,
    /// Its source within its package.
    source: String,
    /// Where its package is, in which it runs.
    dir: PathBuf,
    path: PathBuf,
}

/// `cargo xtask unit [-- ARGUMENTS OF cargo test]`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    let mut count = Count::default();
    if args.pass.is_empty() {
        let mut programs = build(ctx)?;
        let queues = vec![(2, take(&mut programs, ON_ONE_PROCESSOR)?), (1, take(&mut programs, WAITING)?)];
        for program in &programs {
            alone(ctx, program, &mut count)?;
        }
        beside_each_other(ctx, queues, &mut count)?;
    } else {
        count.run(ctx.cargo().args(["test", "--workspace", "--all-targets"]).args(&args.pass))?;
    }
    count.run(ctx.cargo().args(["test", "--workspace", "--doc"]).args(&args.pass))?;
    // With a filter, zero may be what was asked for; without one it means that nothing was tested.
    if count.passed == 0 && args.pass.is_empty() {
        bail!("no test was executed");
    }
    Ok(count.to_string())
}

/// Builds every test, and says where each is.
fn build(ctx: &Ctx) -> Result<Vec<Program>> {
    let mut build = ctx.cargo();
    build.args(["test", "--workspace", "--all-targets", "--no-run"]);
    run(&mut build)?; // for people
    let said = capture(build.arg("--message-format=json"))?;
    let messages = said.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str::<Value>);
    let mut programs = Vec::new();
    for message in messages {
        programs.extend(Program::parse(ctx, &message?)?);
    }
    if programs.is_empty() { bail!("`{}` names no test", shown(&build)) } else { Ok(programs) }
}

impl Program {
    /// Out of what cargo says of one thing that it built, if that is a test.
    fn parse(ctx: &Ctx, message: &Value) -> Result<Option<Self>> {
        let Some(path) = message["executable"].as_str().map(PathBuf::from) else { return Ok(None) };
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return Ok(None);
        }
        // A test that is not understood is not left out.
        let told =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("what test is {message}?"));
        let (manifest, source) = (told(&message["manifest_path"])?, told(&message["target"]["src_path"])?);
        let dir = Path::new(&manifest).parent().context("a manifest lies in a folder")?.to_path_buf();
        let package = dir.file_name().context("a package has a name")?.to_string_lossy().into_owned();
        let source = Path::new(&source).strip_prefix(&dir).unwrap_or(Path::new(&source)).display().to_string();
        let source = if source.starts_with("tests/") { source } else { format!("unittests {source}") };
        let path = path.strip_prefix(&ctx.root).map(Path::to_path_buf).unwrap_or(path);
        Ok(Some(Self { package, name: told(&message["target"]["name"])?, source, dir, path }))
    }

    /// As cargo names it.
    fn heading(&self) -> String {
        format!("     Running {} ({})\n", self.source, self.path.display())
    }

    /// Where it is, seen from anywhere.
    fn program(&self, ctx: &Ctx) -> PathBuf {
        ctx.root.join(&self.path)
    }

    /// One that ended well must have said so, too: a test can end its whole program.
    fn has_reported(&self, said_so: bool) -> Result<()> {
        if said_so { Ok(()) } else { bail!("{} ended without its summary: what ended it?", self.source) }
    }

    /// What cargo tells a test when it runs.
    fn environment(&self) -> [(&'static str, &OsStr); 1] {
        [("CARGO_MANIFEST_DIR", self.dir.as_os_str())]
    }
}

/// Takes these out of all, in this order.
fn take(programs: &mut Vec<Program>, names: &[(&str, &str)]) -> Result<VecDeque<Program>> {
    let one = |(package, name): &(&str, &str)| {
        let is_it = |program: &Program| program.package == *package && program.name == *name;
        let at = programs.iter().position(is_it);
        at.map(|at| programs.remove(at)).with_context(|| format!("{package} has no test {name} any more: see unit.rs"))
    };
    names.iter().map(one).collect()
}

/// Runs one.
fn alone(ctx: &Ctx, program: &Program, count: &mut Count) -> Result<()> {
    say(&program.heading());
    let mut command = ctx.command(program.program(ctx));
    let before = count.good;
    count.run_as_it_is(command.current_dir(&program.dir).envs(program.environment()))?;
    program.has_reported(count.good > before)
}

/// Runs the programs of each queue one after the other, so many at a time, beside those of the other queues. What each says
/// is shown when it ended; the first that fails ends all.
fn beside_each_other(ctx: &Ctx, queues: Vec<(usize, VecDeque<Program>)>, count: &mut Count) -> Result<()> {
    let all: usize = queues.iter().map(|(_, queue)| queue.len()).sum();
    say(&format!("     Running {all} tests beside each other\n"));
    let mut queues: Vec<_> = queues.into_iter().map(|(lanes, queue)| (lanes, queue, Vec::new())).collect();
    while queues.iter().any(|(_, queue, running)| !queue.is_empty() || !running.is_empty()) {
        for (lanes, queue, running) in &mut queues {
            while running.len() < *lanes {
                let Some(program) = queue.pop_front() else { break };
                let name = format!("{}-{}", program.package, program.name);
                let started = Beside::program(ctx, &name, &program.program(ctx), &program.dir, &program.environment())?;
                running.push((program, started, Instant::now()));
            }
            let mut still = Vec::new();
            for (program, mut started, begun) in running.drain(..) {
                let is_well = match started.ended()? {
                    None if begun.elapsed() < HANGS => {
                        still.push((program, started, begun));
                        continue;
                    }
                    is_well => is_well,
                };
                say(&program.heading());
                let (said, before) = (started.said()?, count.good);
                said.lines().for_each(|line| count.add(line));
                say(&said);
                match is_well {
                    Some(true) => program.has_reported(count.good > before)?,
                    Some(false) => bail!("{} failed; `{}` runs it alone", program.source, program.path.display()),
                    None => bail!("{} hangs: it runs for {HANGS:?}, and is ended", program.source),
                }
            }
            *running = still;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn artifact(test: bool, source: &str) -> Value {
        json!({"reason":"compiler-artifact","manifest_path":"/r/crates/vram/Cargo.toml","profile":{"test":test},
               "executable":"/r/target/debug/deps/serve-1","target":{"name":"serve","src_path":source}})
    }

    fn parsed(ctx: &Ctx, message: &Value) -> Option<Program> {
        Program::parse(ctx, message).unwrap()
    }

    #[test]
    fn a_test_that_is_not_understood_is_an_error() {
        let ctx = Ctx { root: PathBuf::from("/r"), target: PathBuf::from("/r/target") };
        let mut strange = artifact(true, "/elsewhere/serve.rs");
        assert_eq!(parsed(&ctx, &strange).unwrap().source, "unittests /elsewhere/serve.rs");
        strange["target"]["name"] = Value::Null;
        assert!(Program::parse(&ctx, &strange).is_err());
    }

    #[test]
    fn tests_are_told_from_what_else_is_built() {
        let ctx = Ctx { root: PathBuf::from("/r"), target: PathBuf::from("/r/target") };
        let found = parsed(&ctx, &artifact(true, "/r/crates/vram/tests/serve.rs")).unwrap();
        assert_eq!((found.package.as_str(), found.name.as_str()), ("vram", "serve"));
        assert_eq!(found.heading(), "     Running tests/serve.rs (target/debug/deps/serve-1)\n");
        assert_eq!(found.program(&ctx), Path::new("/r/target/debug/deps/serve-1"));
        assert!(parsed(&ctx, &artifact(false, "/r/crates/vram/src/main.rs")).is_none());
        let own = parsed(&ctx, &artifact(true, "/r/crates/vram/src/main.rs")).unwrap();
        assert_eq!(own.source, "unittests src/main.rs");
    }

    #[test]
    fn what_was_renamed_is_missed() {
        let ctx = Ctx { root: PathBuf::from("/r"), target: PathBuf::from("/r/target") };
        let all = || vec![parsed(&ctx, &artifact(true, "/r/crates/vram/tests/serve.rs")).unwrap()];
        assert_eq!(take(&mut all(), &[("vram", "serve")]).unwrap().len(), 1);
        assert!(take(&mut all(), &[("vram", "served")]).is_err());
    }
}
