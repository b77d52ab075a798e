//! A log that `vram` wrote and signed, judged by verifiers that are not ours: one in Python, one in Go. Both must accept it,
//! and reject it when one bit of a bundle, a tile or the checkpoint is another.

use crate::Args;
use crate::debian;
use crate::shell::{Ctx, capture, run, run_with_input, say};
use crate::tools;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const TLOG: &str = "aics-tlog==0.2.1";
const OCSF: &str = "py-ocsf-models==0.10.0";
const GO: [&str; 3] = ["golang-1.19-go", "golang-1.19-src", "golang-golang-x-mod-dev"];
/// Shards that one run seals: each is an open file, and a process may have 1024.
const SHARDS: u64 = 900;
/// Each run leaves a checkpoint. Each shard leaves four records, or a gap that says how many the disk was too slow for.
const RUNS: u64 = 24;
/// A log that is worth the name.
const LEAST: u64 = 70_000;

/// `cargo xtask foreign`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
    let python = tools::modern_python(ctx, &[TLOG, OCSF])?;
    let go = build(ctx)?;
    let log = Log::write(ctx)?;
    let judges = [
        Judge { name: "aics-tlog", program: vec![python.clone(), ctx.root.join("xtask/foreign/verify.py")] },
        Judge { name: "golang.org/x/mod", program: vec![go] },
    ];
    for judge in &judges {
        let start = Instant::now();
        let said = judge.judge(ctx, &log).map_err(|said| anyhow::anyhow!("{} rejects the log: {said}", judge.name))?;
        let all = format!("accepted {} entries", log.records);
        ensure!(said.contains(&all), "{} is to say that it {all}, and said: {said}", judge.name);
        say(&format!("{}: {} in {:.2} s", judge.name, said.trim(), start.elapsed().as_secs_f64()));
    }
    let changes = log.changes()?;
    for change in &changes {
        for judge in &judges {
            let said = change.with(|| judge.judge(ctx, &log))?;
            let said = said
                .err()
                .with_context(|| format!("{} accepts {} with {}", judge.name, change.what(), "a bit changed"))?;
            say(&format!("{}: one bit of {} changed: {}", judge.name, change.what(), said.trim()));
        }
        ensure!(
            !change.with(|| log.is_accepted_by_us(ctx))?,
            "vram audit verify accepts {} with a bit changed",
            change.what()
        );
    }
    ensure!(log.is_accepted_by_us(ctx), "vram audit verify rejects what it wrote");
    let events = events(ctx, &python, &log)?;
    Ok(format!(
        "{} records accepted by 2 foreign verifiers, {} changes of a bit rejected by both; {events}",
        log.records,
        changes.len()
    ))
}

/// Builds the Go program with Debian's packages, without any network.
fn build(ctx: &Ctx) -> Result<PathBuf> {
    let root = debian::together(ctx, "go", &GO)?;
    let home = ctx.target.join("tmp/foreign");
    std::fs::create_dir_all(&home)?;
    let program = home.join("verify-go");
    let goroot = root.join("usr/lib/go-1.19");
    let mut command = ctx.command(goroot.join("bin/go"));
    command.env("GOROOT", &goroot).env("GOPATH", root.join("usr/share/gocode")).env("GO111MODULE", "off");
    command.env("GOCACHE", home.join("go-cache")).env("GOFLAGS", "").env("CGO_ENABLED", "0");
    run(command.args(["build", "-o"]).arg(&program).arg("xtask/foreign/verify.go"))?;
    Ok(program)
}

/// A log of many short runs.
struct Log {
    vram: PathBuf,
    state: PathBuf,
    published: PathBuf,
    vkey: PathBuf,
    older: Vec<PathBuf>,
    records: u64,
}

impl Log {
    fn write(ctx: &Ctx) -> Result<Self> {
        let home = ctx.target.join("tmp/foreign/log");
        let _ = std::fs::remove_dir_all(&home);
        let models = home.join("models");
        std::fs::create_dir_all(&models)?;
        for number in 0..SHARDS {
            std::fs::write(models.join(format!("{number:04}.safetensors")), smallest_model())?;
        }
        let state = home.join("state");
        let mut log = Self {
            vram: ctx.target.join("release/vram"),
            published: state.join("vram/audit/tlog"),
            vkey: state.join("vram/audit.vkey"),
            state,
            older: Vec::new(),
            records: 0,
        };
        run(log.vram(ctx).args(["audit", "keygen", "--origin", "example.org/vram-audit/foreign"]))?;
        let start = Instant::now();
        for number in 0..RUNS {
            capture(log.vram(ctx).arg("seal").arg(&models))?;
            let kept = home.join(format!("checkpoint-{number:02}"));
            std::fs::copy(log.published.join("checkpoint"), &kept).context("vram seal left no checkpoint")?;
            log.older.push(kept);
        }
        say(&format!("{RUNS} runs of vram seal wrote and signed the log in {:.1} s", start.elapsed().as_secs_f64()));
        let verdict = capture(log.vram(ctx).args(["audit", "verify", "--json", "--vkey"]).arg(&log.vkey))?;
        let verdict: serde_json::Value = serde_json::from_str(&verdict)?;
        log.records = verdict["published"]["ranges"]["signed"].as_u64().context("no signed range")?;
        ensure!(verdict["records"] == log.records && log.records >= LEAST, "not all of {LEAST} are signed: {verdict}");
        Ok(log)
    }

    fn vram(&self, ctx: &Ctx) -> Command {
        let mut command = ctx.command(&self.vram);
        command.env("XDG_STATE_HOME", &self.state);
        command
    }

    fn is_accepted_by_us(&self, ctx: &Ctx) -> bool {
        let verify = || self.vram(ctx).args(["audit", "verify", "--vkey"]).arg(&self.vkey).output();
        verify().is_ok_and(|output| output.status.success())
    }

    /// One bit in the middle of a full bundle, a full tile, the last partial ones, and the newest checkpoint's root.
    fn changes(&self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for part in ["tile/entries/003", "tile/0/003", "tile/1/000"] {
            changes.push(Change::of(&self.published, part)?);
        }
        let (whole, rest) = (self.records / 256, self.records % 256);
        if rest > 0 {
            changes.push(Change::of(&self.published, &format!("tile/entries/{whole:03}.p/{rest}"))?);
            changes.push(Change::of(&self.published, &format!("tile/0/{whole:03}.p/{rest}"))?);
        }
        changes.push(Change::of(&self.published, "checkpoint")?);
        Ok(changes)
    }
}

/// A safetensors file of one tensor with one byte.
fn smallest_model() -> Vec<u8> {
    let header = br#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.push(1);
    file
}

/// A file that gets one bit changed for a while.
struct Change {
    path: PathBuf,
    shown: String,
    bytes: Vec<u8>,
}

impl Change {
    fn of(dir: &Path, shown: &str) -> Result<Self> {
        let path = dir.join(shown);
        let bytes = std::fs::read(&path).with_context(|| format!("{shown} is not published"))?;
        Ok(Self { path, shown: shown.to_owned(), bytes })
    }

    fn what(&self) -> &str {
        &self.shown
    }

    fn with<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let mut changed = self.bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        std::fs::write(&self.path, changed)?;
        let value = work();
        std::fs::write(&self.path, &self.bytes)?;
        Ok(value)
    }
}

struct Judge {
    name: &'static str,
    program: Vec<PathBuf>,
}

impl Judge {
    /// What it says where it accepts, or why it rejects.
    fn judge(&self, ctx: &Ctx, log: &Log) -> std::result::Result<String, String> {
        let mut command = ctx.command(&self.program[0]);
        command.args(&self.program[1..]).arg(&log.published).arg(&log.vkey).args(&log.older);
        let output = command.output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// A story with findings in it, exported, and judged.
fn events(ctx: &Ctx, python: &Path, log: &Log) -> Result<String> {
    let home = log.state.join("story");
    let dir = home.join("audit");
    let vram = || {
        let mut command = log.vram(ctx);
        command.arg("--audit-dir").arg(&dir);
        command
    };
    run(vram().args(["demo", "--size", "1", "--json"]).stdout(std::process::Stdio::null()))?;
    std::fs::write(home.join("m.safetensors"), smallest_model())?;
    let wrong = format!("blake3:{}", "0".repeat(64));
    let refused = vram().args(["seal", "--expect", &wrong]).arg(home.join("m.safetensors")).output()?;
    ensure!(refused.status.code() == Some(3), "a wrong hash is not refused");
    let exported = capture(vram().args(["audit", "export", "--format", "ocsf"]))?;
    run_with_input(ctx.command(python).arg("xtask/foreign/ocsf.py"), &exported)?;
    Ok(format!("{} OCSF events", exported.lines().count()))
}
