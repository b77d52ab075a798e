//! Running other programs: what is run is printed, what it says is seen, and a failure names it.

use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Wrong usage: exit code 2 instead of 1.
#[derive(Debug)]
pub struct Usage(String);

impl Usage {
    pub fn err(text: impl Into<String>) -> anyhow::Error {
        anyhow!(Self(text.into()))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Where things are.
pub struct Ctx {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

impl Ctx {
    pub fn new() -> Result<Self> {
        // Cargo sets it at run time too: worktrees that share a target directory then each find their own root.
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = here.parent().context("xtask lies directly below the repository's root")?.to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A command in the repository's root, without standard input: nothing here may wait for an answer.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// The cargo that runs us, without what it told us about our own package: a build script that looks at these variables
    /// (ring's does) would run again, and all that depends on it, whenever cargo is called by hand and by us in turn.
    pub fn cargo(&self) -> Command {
        let mut cargo = self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        cargo
    }
}

/// The command as one could type it.
pub fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", key.to_string_lossy(), quoted(&value.to_string_lossy())));
        }
    }
    // Cargo hands us the full path of itself, which nobody types; a tool's path is needed to find it.
    let program = Path::new(command.get_program());
    let program = if program.ends_with("cargo") { Path::new("cargo") } else { program };
    words.push(quoted(&program.to_string_lossy()));
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// Runs it with its output going straight through.
pub fn run(command: &mut Command) -> Result<()> {
    say(&format!("$ {}", shown(command)));
    let status = command.status().with_context(|| format!("`{}` could not be started", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs it, shows its standard output line by line as it comes, and returns the lines.
pub fn run_and_read(command: &mut Command) -> Result<Vec<String>> {
    say(&format!("$ {}", shown(command)));
    read(command)
}

/// The same, without saying what is run.
pub fn read(command: &mut Command) -> Result<Vec<String>> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("`{}` could not be started", shown(command)))?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            say(&line);
            lines.push(line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(lines)
}

/// Runs it silently and returns its standard output; its standard error is shown only if it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("`{}` could not be started", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same, with its standard error behind its standard output.
pub fn capture_both(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("`{}` could not be started", shown(command)))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if !output.status.success() {
        bail!("`{}` failed ({}): {}", shown(command), output.status, said.trim());
    }
    Ok(said)
}

/// Runs a command with this text as its input; fails where it fails.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<()> {
    say(&format!("$ {} < …", shown(command)));
    let started = command.stdin(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("`{}` could not be started", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// One line to standard output. A reader that went away (`| head`) must not become a panic.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "a b", ""]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(shown(&command), "RUSTDOCFLAGS='-D warnings' cargo doc 'a b' ''");
    }

    #[test]
    fn a_failure_names_the_command() {
        let mut command = Command::new("false");
        let text = run(&mut command).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(text.contains("`false` failed"), "{text}");
    }
}
