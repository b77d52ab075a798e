//! Attempts to write into memory that is mapped for reading only, each in a process of its own: what did the driver answer,
//! are the bytes as before, and does the context live?
//!
//! Each attempt is made twice. On memory of the attempting process's own, where a dead context takes the answer about the
//! bytes with it; and on memory that this process exported, maps writable, and looks at afterwards.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};
use vram_residency::device::cuda_measure::{Attempt, Gpu, Kernels, Memory, MemoryKind, Tried, answer_of, shared_by};

use super::Bench;
use crate::Cli;
use crate::children::again;

const ATTEMPTS: [(&str, Attempt); 4] = [
    ("kernel store", Attempt::KernelStore),
    ("cuMemcpyHtoD", Attempt::Copy),
    ("cuMemsetD8Async", Attempt::Fill),
    ("graph of a copy", Attempt::GraphCopy),
];
/// Not refused, if the facts that are known hold.
const LIFT: &str = "lift the protection";
const SECOND: &str = "second mapping";
/// Looks and does not write.
const LOOK: &str = "look";

const COLUMNS: [&str; 8] =
    ["attempt", "memory", "access flag before", "call", "wait", "afterwards", "context dead", "bytes changed"];

/// For one attempt.
const LIMIT: Duration = Duration::from_secs(15);

/// What the memory holds before. Attempts write ones.
const BEFORE: [u8; 8] = [0x5a; 8];

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let is_shared =
        bench.facts.attributes.iter().any(|(name, value)| *name == "mps" && value.is_some_and(|on| on != 0));
    if !bench.cli.writes_under_mps {
        let remedy = "end MPS, or take --writes-under-mps where nobody else is on this GPU";
        let why = format!("shared through MPS, where a refused write ends the work of other processes too; {remedy}");
        ensure!(!is_shared, "the driver says that this GPU is {why}");
        if let Some(control) = shared_by() {
            bail!("{} is there, so this GPU may be {why}", control.display());
        }
    }
    // Each row as soon as it is known.
    let say = |title: &str, row| bench.sink.table(title, &COLUMNS, vec![row]);
    let (mut tried, mut died, mut known, mut changed) = (0, 0, 0, 0);
    for (name, _) in ATTEMPTS {
        for handed in [false, true] {
            let outcome = if handed { handed_over(bench, name)? } else { child_of(bench.cli, name, None)? };
            tried += u64::from(outcome["error"].is_null());
            died += u64::from(outcome["context_dead"] == json!(true));
            known += u64::from(outcome["changed"].is_boolean());
            changed += u64::from(outcome["changed"] == json!(true));
            say("Writes into memory that is mapped for reading only", row(name, handed, &outcome));
        }
    }
    bench.sink.counted("attempts made, of 8", "attempts", tried, None);
    if tried > 0 {
        bench.sink.counted("attempts after which the bytes could be looked at", "attempts", known, None);
        bench.sink.counted("of these, attempts that changed a byte", "attempts", changed, None);
        bench.sink.counted("attempts after which the context was dead", "attempts", died, None);
    }

    for name in [LIFT, SECOND] {
        say("Ways round it, which are expected to be open", row(name, false, &child_of(bench.cli, name, None)?));
    }
    let looked = handed_over(bench, LOOK)?;
    let mut rows = vec![vec!["bytes are the exporter's".to_owned(), word(&looked["same"])]];
    for pair in looked["statements"].as_array().into_iter().flatten() {
        rows.push(vec![word(&pair[0]), word(&pair[1])]);
    }
    if let Some(error) = looked["error"].as_str() {
        rows.push(vec!["error".to_owned(), error.to_owned()]);
    }
    bench.sink.table("Memory of another process, imported and mapped for reading only", &["what", "stated"], rows);
    // A row that says only why nothing was tried is no answer.
    ensure!(looked["error"].is_null(), "imported memory cannot be looked at: {}", word(&looked["error"]));
    Ok(())
}

fn row(name: &str, handed: bool, outcome: &Value) -> Vec<String> {
    let memory = if handed { "imported" } else { "own" };
    if let Some(error) = outcome["error"].as_str() {
        let mut row = vec![name.to_owned(), memory.to_owned(), format!("not tried: {error}")];
        row.resize(8, String::from("-"));
        return row;
    }
    let answer =
        |key: &str| format!("{} {}", word(&outcome["tried"][key]["code"]), word(&outcome["tried"][key]["name"]));
    vec![
        name.to_owned(),
        memory.to_owned(),
        word(&outcome["access"]),
        answer("call"),
        answer("wait"),
        answer("after"),
        word(&outcome["context_dead"]),
        word(&outcome["changed"]),
    ]
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => String::from("not known"),
        Value::Bool(true) => String::from("yes"),
        Value::Bool(false) => String::from("no"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The attempt on memory of this process, which looks at it afterwards.
fn handed_over(bench: &Bench<'_>, name: &str) -> Result<Value> {
    let memory = fresh(&bench.gpu)?;
    let Some(descriptor) = memory.export()? else { return Ok(json!({"error": "this GPU exports no memory"})) };
    let mut outcome = child_of(bench.cli, name, Some((&descriptor, memory.bytes())))?;
    outcome["changed"] = json!(holds(&bench.gpu, &memory)? != BEFORE);
    Ok(outcome)
}

/// Runs an attempt in a process of its own.
fn child_of(cli: &Cli, name: &str, handed: Option<(&OwnedFd, u64)>) -> Result<Value> {
    let mut command = again(cli)?;
    command.args(["--attempt", name]);
    if let Some((descriptor, bytes)) = handed {
        // The child has the same number.
        fcntl_setfd(descriptor, FdFlags::empty())?;
        command.args(["--handed", &descriptor.as_raw_fd().to_string(), &bytes.to_string()]);
    }
    let found = answer_of(&mut command, LIMIT).and_then(|said| {
        let found = said.lines().find_map(|line| serde_json::from_str(line).ok());
        found.ok_or_else(|| String::from("its process said nothing of what came of it"))
    });
    Ok(found.unwrap_or_else(|why| json!({"error": why})))
}

/// One attempt, in the process that was started for it.
pub(crate) fn child(cli: &Cli, name: &str) -> Result<bool> {
    let (gpu, _) = super::open(cli)?;
    let memory = match cli.handed.as_deref() {
        Some([descriptor, bytes]) => gpu.import(&Inherited(i32::try_from(*descriptor)?), *bytes)?,
        _ => fresh(&gpu)?,
    };
    memory.set_writable(false)?;
    if name == LOOK {
        let same = holds(&gpu, &memory)? == BEFORE;
        println!("{}", json!({"same": same, "statements": gpu.statements(&memory)?}));
        return Ok(true);
    }
    let (kernels, _) = Kernels::compile(&gpu)?;
    let access = memory.access()?;
    let tried = match name {
        LIFT => {
            memory.set_writable(true)?;
            gpu.attempt(&kernels, &memory, Attempt::Fill)?
        }
        SECOND => gpu.attempt(&kernels, &memory.again()?, Attempt::Fill)?,
        _ => match ATTEMPTS.iter().find(|(known, _)| *known == name) {
            Some((_, attempt)) => gpu.attempt(&kernels, &memory, *attempt)?,
            None => bail!("there is no attempt `{name}`"),
        },
    };
    let changed = look(&gpu, &memory, &tried);
    let dead = tried.after.code != 0;
    println!("{}", json!({"access": access, "tried": tried, "context_dead": dead, "changed": changed}));
    // Giving things back to a dead context only makes noise.
    std::process::exit(0)
}

/// Whether the bytes changed; unknown where the context is dead.
fn look(gpu: &Gpu, memory: &Memory, tried: &Tried) -> Option<bool> {
    if tried.after.code != 0 {
        return None;
    }
    holds(gpu, memory).ok().map(|bytes| bytes != BEFORE)
}

fn fresh(gpu: &Gpu) -> Result<Memory> {
    let memory = gpu.allocate(MemoryKind::Virtual, 8)?;
    gpu.spread(&memory, BEFORE.len() as u64, &BEFORE)?;
    Ok(memory)
}

fn holds(gpu: &Gpu, memory: &Memory) -> Result<[u8; 8]> {
    let mut bytes = [0; 8];
    gpu.read(memory, &mut bytes)?;
    Ok(bytes)
}

/// A descriptor that this process was started with.
struct Inherited(i32);

impl std::os::fd::AsRawFd for Inherited {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}
