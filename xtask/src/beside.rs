//! A program beside others: in a process group of its own, with all that it says in a file, so that it can be shown whole when
//! its turn comes. It ends with us, whatever ends us.

use crate::Args;
use crate::shell::{Ctx, Usage, say};
use crate::steps::{self, Step};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// The verb of the process between us and the program. Nobody types it: it ends with its input.
pub const VERB: &str = "beside";

/// A program that runs, or ran.
pub struct Beside {
    /// What is between us and it, and leads the group.
    child: Child,
    /// Our end of its input. When this is closed, by us or by our end, the group ends.
    input: Option<ChildStdin>,
    log: PathBuf,
}

impl Beside {
    /// Starts `xtask beside WORDS` with these variables, and a log of this name below the target directory.
    fn start(ctx: &Ctx, name: &str, words: &[&OsStr], dir: &Path, env: &[(&str, &OsStr)]) -> Result<Self> {
        let home = ctx.target.join("tmp/beside");
        std::fs::create_dir_all(&home)?;
        let log = home.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new("/proc/self/exe"); // also where a build replaced the file meanwhile
        command.arg(VERB).args(words).current_dir(dir).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let input = child.stdin.take(); // who waits for a child closes its input first
        Ok(Self { child, input, log })
    }

    /// A program with a folder to be in and variables, and its output in a log of this name.
    pub fn program(ctx: &Ctx, name: &str, program: &Path, dir: &Path, env: &[(&str, &OsStr)]) -> Result<Self> {
        Self::start(ctx, name, &["run".as_ref(), program.as_os_str()], dir, env)
    }

    /// A step, without arguments.
    pub fn step(ctx: &Ctx, step: &Step) -> Result<Self> {
        let words = ["step", step.name].map(OsStr::new);
        Self::start(ctx, step.name, &words, &ctx.root, &[])
    }

    /// Whether it ended well, if it ended.
    pub fn ended(&mut self) -> Result<Option<bool>> {
        Ok(self.child.try_wait()?.map(|status| status.success()))
    }

    /// Waits for its end; whether that was a good one.
    pub fn wait(&mut self) -> Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// All that it said.
    pub fn said(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.input.take());
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Also what a program that ended well left behind.
        end_group(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends every process of a group. Every shell can; there may be no program for it.
fn end_group(leader: u32) {
    let kill = format!("kill -s KILL -- -{leader} 2>/dev/null"); // in the words of POSIX
    let _ = Command::new("/bin/sh").args(["-c", &kill]).stdin(Stdio::null()).status();
}

/// `xtask beside run PROGRAM` and `xtask beside step NAME`: in the group's first process.
pub fn inside(words: &[String]) -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end_group(std::process::id());
    });
    match words {
        [how, program] if how == "run" => {
            let status = Command::new(program).stdin(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { bail!("{program} failed ({status})") }
        }
        [how, name] if how == "step" => {
            let step = steps::STEPS.iter().find(|step| step.name == name).context("no such step")?;
            let (start, mut args) = (Instant::now(), Args::parse(Vec::new()));
            let outcome = step.run(&Ctx::new()?, &mut args);
            let note = outcome.as_ref().map(String::as_str).unwrap_or_default();
            say(&format!("{}{} {note}", DONE, start.elapsed().as_secs_f64()));
            outcome.map(|_| ())
        }
        _ => Err(Usage::err("this verb is for the others' own use")),
    }
}

/// Begins the last line of a step that ran beside others: then its seconds and its note follow.
const DONE: &str = "beside: done in ";

/// What a step said, without that last line; its seconds, and its note.
pub fn split(said: &str) -> (String, f64, String) {
    let lines: Vec<&str> = said.lines().collect();
    let last = lines.iter().rev().find_map(|line| line.strip_prefix(DONE)).unwrap_or_default();
    let (seconds, note) = last.split_once(' ').unwrap_or_default();
    let rest: Vec<&str> = lines.into_iter().filter(|line| !line.starts_with(DONE)).collect();
    (rest.join("\n"), seconds.parse().unwrap_or(f64::NAN), note.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;

    /// Lines of a shell that a child runs beside us.
    const LINES: &str = "XTASK_TEST_BESIDE";

    #[test]
    #[ignore = "a child process that other tests of this file start: cargo test -p xtask"]
    fn child() -> Result<()> {
        inside(&[String::from("run"), std::env::var(LINES)?])
    }

    fn start(program: &Path) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["beside::tests::child", "--exact", "--ignored", "--nocapture"]).env(LINES, program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(command.process_group(0).spawn()?)
    }

    fn script(name: &str, lines: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("xtask-beside-{name}-{}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh\n{lines}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Whether a process is there, and not only waited for.
    fn lives(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    #[test]
    fn a_program_and_all_that_it_started_end_when_nobody_holds_its_input() -> Result<()> {
        let program = script("family", "sleep 600 &\necho started $!\nwait")?;
        let mut child = start(&program)?;
        let said = BufReader::new(child.stdout.take().context("no output")?);
        let started = said.lines().find_map(|line| Some(line.ok()?.strip_prefix("started ")?.to_owned()));
        let grandchild = started.context("it did not start")?;
        assert!(lives(&grandchild) && child.try_wait()?.is_none(), "it runs as long as its input is held");
        drop(child.stdin.take());
        assert_eq!(child.wait()?.signal(), Some(9));
        let begun = Instant::now();
        while lives(&grandchild) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{grandchild} is left behind");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(std::fs::remove_file(program)?)
    }

    #[test]
    fn how_a_program_ends_is_passed_on() -> Result<()> {
        for (lines, is_well) in [("exit 0", true), ("exit 7", false)] {
            let program = script(if is_well { "well" } else { "ill" }, lines)?;
            let mut child = start(&program)?;
            let _held = child.stdin.take(); // who waits for a child closes its input first
            assert_eq!(child.wait_with_output()?.status.success(), is_well);
            std::fs::remove_file(program)?;
        }
        Ok(())
    }

    #[test]
    fn a_steps_last_line_is_its_time_and_its_note() {
        let (said, seconds, note) = split("$ vram\nbeside: done in 3.5 all is well\nxtask: no\n");
        assert_eq!((said.as_str(), seconds, note.as_str()), ("$ vram\nxtask: no", 3.5, "all is well"));
        assert!(split("$ vram").1.is_nan());
    }
}
