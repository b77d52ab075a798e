//! One run of `vram seal`, or `vram audit prune`, in which one system call goes wrong, and what must hold afterwards.

use super::calls::{Call, Counted, Fault, TRACED, count};
use crate::shell::{Ctx, capture, run};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A run takes a tenth of a second. Longer than this: it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Runs before the one that is disturbed. So many that a write of it lies behind the largest file the program needs.
const EARLIER: usize = 9;
/// Models of a run, where the log is to be long.
const MANY: usize = 100;

/// What a run finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// A signed log that was closed.
    Closed,
    /// A signed log whose last writer was killed.
    Killed,
    /// A key, and no log yet.
    NoLog,
    /// A signed log with records that are to go.
    Old,
}

impl Before {
    fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Killed => "killed",
            Self::NoLog => "no-log",
            Self::Old => "old",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "a signed log, closed",
            Self::Killed => "a signed log, its writer killed",
            Self::NoLog => "a key and no log yet",
            Self::Old => "a signed log, of which the first half is to be pruned",
        }
    }

    /// What is run.
    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Old => &["audit", "prune", "--before", "300", "--json"],
            _ => &SEAL,
        }
    }
}

/// How the disturbed run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Everything recorded and signed, without a word.
    Unharmed,
    /// What was asked for was done, and a warning says what is missing.
    Warned,
    /// One sentence and exit code 1 or 3.
    Refused,
    /// By our signal.
    Killed,
    /// The call did not occur this time: the threads' timing differs.
    NotMet,
}

impl End {
    pub const ALL: [Self; 5] = [Self::Unharmed, Self::Warned, Self::Refused, Self::Killed, Self::NotMet];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unharmed => "unharmed",
            Self::Warned => "warned",
            Self::Refused => "refused",
            Self::Killed => "killed",
            Self::NotMet => "not met",
        }
    }
}

/// Where one kind of start is prepared once and put back before every run.
pub struct Bench<'a> {
    ctx: &'a Ctx,
    vram: PathBuf,
    strace: &'a Path,
    home: PathBuf,
    before: Before,
    /// Records at the start, and those that an undisturbed run adds.
    records: u64,
    adds: u64,
}

impl<'a> Bench<'a> {
    pub fn prepare(ctx: &'a Ctx, strace: &'a Path, before: Before) -> Result<(Self, Counted)> {
        let home = ctx.target.join("tmp/strace").join(before.word());
        std::fs::create_dir_all(&home)?;
        // strace compares paths as the kernel gives them.
        let home = home.canonicalize()?;
        let vram = ctx.target.join("debug/vram");
        let mut bench = Self { ctx, vram, strace, home, before, records: 0, adds: 0 };
        bench.make_seed()?;
        bench.restore()?;
        let log = bench.home.join("trace");
        let mut command = bench.run_under(&["-s", "0", "-e", &format!("trace={TRACED}")], &log);
        capture(&mut command)?;
        let counted = count(&std::fs::read_to_string(&log)?, &bench.state().join("vram").to_string_lossy());
        bench.adds = number(&bench.verify(&[])?, "/records")? - bench.records;
        Ok((bench, counted))
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    fn seed(&self) -> PathBuf {
        self.home.join("seed")
    }

    fn make_seed(&mut self) -> Result<()> {
        let (state, seed) = (self.state(), self.seed());
        let _ = std::fs::remove_dir_all(&state);
        std::fs::write(self.home.join("small.bin"), [7; 300])?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state.join("vram"))?;
        // Made by hand, as the manual says: a name that strace could not know is used while vram makes it.
        let secret = state.join("vram/seal.key");
        std::fs::write(&secret, [9; 32])?;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
        capture(self.vram().args(["audit", "keygen", "--origin", "example.org/vram-audit/strace"]))?;
        if self.before != Before::NoLog {
            for _ in 0..EARLIER {
                capture(&mut self.seal())?;
            }
        }
        if self.before == Before::Old {
            let names: Vec<String> = (0..MANY).map(|number| format!("{number}.bin")).collect();
            for name in &names {
                std::fs::write(self.home.join(name), name)?;
            }
            for _ in 0..2 {
                capture(self.vram().args(["seal", "--format", "raw", "--json"]).args(&names))?;
            }
        }
        if self.before == Before::Killed {
            let log = self.home.join("trace");
            let segment = state.join("vram/audit/segment-000000000001.wal");
            let segment = segment.to_string_lossy();
            // How many writes a run makes depends on how many records wait for each.
            let killed =
                (1..=3).rev().map(|nth| format!("inject=pwrite64:signal=SIGKILL:when={nth}")).find_map(|kill| {
                    let run = self.run_under(&["-P", &segment, "-e", "trace=pwrite64", "-e", &kill], &log).output();
                    run.map(|output| is_killed(&output).then_some(output)).transpose()
                });
            killed.context("the writer that should be killed lives")??;
        }
        if self.before != Before::NoLog {
            self.records = number(&self.verify(&[])?, "/records")?;
        }
        let _ = std::fs::remove_dir_all(&seed);
        // With holes where zeros are: a segment is 8 MiB, and copied before every run.
        run(self.ctx.command("cp").args(["-a", "--sparse=always"]).args([&state, &seed]))
    }

    fn restore(&self) -> Result<()> {
        let _ = std::fs::remove_dir_all(self.state());
        capture(self.ctx.command("cp").arg("-a").args([self.seed(), self.state()]))?;
        Ok(())
    }

    fn vram(&self) -> Command {
        let mut command = self.ctx.command(&self.vram);
        command.env("XDG_STATE_HOME", self.state()).current_dir(&self.home);
        command
    }

    fn seal(&self) -> Command {
        let mut command = self.vram();
        command.args(SEAL);
        command
    }

    fn run_under(&self, options: &[&str], log: &Path) -> Command {
        let mut command = self.timed();
        command.arg(self.strace).args(["-f", "-q", "-y", "-o"]).arg(log).args(options);
        command.arg(&self.vram).args(self.before.command());
        command
    }

    /// With an end by force, of all threads and of strace.
    fn timed(&self) -> Command {
        let mut command = self.ctx.command("timeout");
        command.args(["-s", "KILL", &PATIENCE.as_secs().to_string()]);
        command.env("XDG_STATE_HOME", self.state()).current_dir(&self.home);
        command
    }

    /// One run with one fault, and all that must hold after it.
    pub fn try_one(&self, call: &Call, fault: Fault) -> Result<End> {
        self.restore()?;
        let start = Instant::now();
        let (output, met) = match call.injection(fault) {
            Some(injection) => self.inject(call, &injection)?,
            None => (self.cut(call.middle().context("a write without a middle")?)?, true),
        };
        ensure!(start.elapsed() < PATIENCE, "it hangs");
        let told = Told::of(&output, fault == Fault::Kill)?;
        if let Some(audit) = &told.audit {
            self.is_plausible(&told, audit)?;
        }
        self.check_log(told.audit.as_ref())?;
        Ok(if met || told.end == End::Killed { told.end } else { End::NotMet })
    }

    fn inject(&self, call: &Call, injection: &str) -> Result<(Output, bool)> {
        let log = self.home.join("trace");
        let trace = format!("trace={}", call.name);
        let output = self.run_under(&["-P", &call.path, "-e", &trace, "-e", injection], &log).output()?;
        let trace = std::fs::read_to_string(&log)?;
        Ok((output, trace.contains("(INJECTED)")))
    }

    /// The kernel takes the part of each write that lies below this size, and then no more.
    fn cut(&self, size: u64) -> Result<Output> {
        let mut command = self.timed();
        // Without the signal, which would end the program before it sees the error.
        command.args(["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh", "prlimit"]).arg(format!("--fsize={size}"));
        Ok(command.arg(&self.vram).args(self.before.command()).output()?)
    }

    /// A run that says that all is well must have added all.
    fn is_plausible(&self, told: &Told, audit: &Value) -> Result<()> {
        if told.end != End::Unharmed {
            return Ok(());
        }
        let records = number(audit, "/records")?;
        ensure!(audit["health"] == "good" && audit["lost"] == 0, "no warning, and the report says {audit}");
        ensure!(records >= self.records + self.adds, "no warning, and only {records} records");
        ensure!(audit["signed"]["complete"] == true, "no warning, and not all is signed: {audit}");
        Ok(())
    }

    /// The log as it was left, and as the next run leaves it.
    fn check_log(&self, said: Option<&Value>) -> Result<()> {
        let published = self.state().join("vram/audit/tlog/checkpoint");
        let earlier = self.seed().join("vram/audit/tlog/checkpoint");
        let mut held: Vec<PathBuf> = [earlier].into_iter().filter(|path| path.exists()).collect();
        let mut found = 0;
        if self.has_segments() {
            let verdict = self.verify(&held).context("verify, after the fault")?;
            found = number(&verdict, "/records")?;
            ensure!(found >= self.records, "{} records of {} are left", found, self.records);
            if let Some(said) = said {
                let (records, signed) = (number(said, "/records")?, said["signed"]["records"].as_u64().unwrap_or(0));
                ensure!(found >= records, "{records} records were said to be durable, and {found} are there");
                let kept = verdict.pointer("/published/ranges/signed").and_then(Value::as_u64).unwrap_or(0);
                ensure!(kept >= signed, "{signed} records were said to be signed, and {kept} are");
            }
        } else {
            ensure!(self.before == Before::NoLog, "the log is gone");
            ensure!(
                said.is_none_or(|said| said["records"] == 0),
                "records were said to be durable, and there is no log"
            );
        }
        if published.exists() {
            let kept = self.home.join("held-checkpoint");
            std::fs::copy(&published, &kept)?;
            held.push(kept);
        }
        let output = self.seal().output()?;
        let told = Told::of(&output, false).context("the next run")?;
        let report = told.audit.as_ref().filter(|_| told.end == End::Unharmed);
        let report = report.with_context(|| format!("the next run is not as usual: {}", shown(&output)))?;
        ensure!(report["signed"]["complete"] == true, "the next run does not sign all: {report}");
        let verdict = self.verify(&held).context("verify, after the next run")?;
        let (records, signed) = (number(&verdict, "/records")?, number(&verdict, "/published/ranges/signed")?);
        ensure!(records >= found + self.adds && records == signed, "after the next run: {verdict}");
        Ok(())
    }

    fn has_segments(&self) -> bool {
        let entries = std::fs::read_dir(self.state().join("vram/audit")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "wal"))
    }

    /// Against checkpoints that were seen before, so that nothing below them can be missing.
    fn verify(&self, held: &[PathBuf]) -> Result<Value> {
        let mut command = self.vram();
        command.args(["audit", "verify", "--json"]);
        for checkpoint in held {
            command.arg("--checkpoint").arg(checkpoint);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "{}", shown(&output));
        let verdict: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(verdict["intact"] == true, "a violation: {verdict}");
        Ok(verdict)
    }

    /// Keeps what a failed case left, and what strace saw of it.
    pub fn keep(&self, number: usize) -> Result<PathBuf> {
        let dir = self.home.join(format!("failed-{number}"));
        let _ = std::fs::remove_dir_all(&dir);
        capture(self.ctx.command("cp").arg("-a").args([self.state(), dir.clone()]))?;
        let _ = std::fs::copy(self.home.join("trace"), dir.join("trace"));
        Ok(dir)
    }
}

const SEAL: [&str; 5] = ["seal", "small.bin", "--format", "raw", "--json"];

/// What a run said.
struct Told {
    end: End,
    /// Of its audit log, where it got that far.
    audit: Option<Value>,
}

impl Told {
    fn of(output: &Output, may_be_killed: bool) -> Result<Self> {
        if is_killed(output) && may_be_killed {
            return Ok(Self { end: End::Killed, audit: None });
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let own_words = said.lines().all(|line| line.starts_with("vram: "));
        ensure!(own_words && !said.contains("panicked"), "it does not end in its own words: {}", shown(output));
        let report: Value = serde_json::from_slice(&output.stdout).with_context(|| shown(output))?;
        match output.status.code() {
            Some(0) => {
                let warned = said.contains("warning: ");
                ensure!(warned || said.is_empty(), "neither silent nor a warning: {}", shown(output));
                let end = if warned { End::Warned } else { End::Unharmed };
                Ok(Self { end, audit: report.get("audit").cloned() })
            }
            Some(1 | 3) => {
                ensure!(report["error"]["message"].is_string(), "no error in the report: {}", shown(output));
                Ok(Self { end: End::Refused, audit: None })
            }
            _ => bail!("{}", shown(output)),
        }
    }
}

fn is_killed(output: &Output) -> bool {
    output.status.signal() == Some(9) || output.status.code() == Some(128 + 9)
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no number {pointer} in {value}"))
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}: {} {}", output.status, text(&output.stderr), text(&output.stdout))
}
