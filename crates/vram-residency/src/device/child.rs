//! Another process's answer: waited for no longer, and kept no longer, than it may be.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};

/// Most bytes that it may say.
const MOST: usize = 64 << 10;
/// How often it is looked at.
const AGAIN: Duration = Duration::from_millis(5);
/// How long the end of a process that was killed is waited for here.
const END: Duration = Duration::from_secs(1);

/// Runs a process and returns what it wrote to its standard output, if it ended with success.
///
/// Whatever comes of it, the process is ended and nothing of it stays: not later than `limit` and a second from now. One
/// that the kernel does not end, because it waits for a driver that hangs, is waited for by a thread of its own.
///
/// # Errors
/// Why there is no answer, as the end of a sentence: it cannot be started, failed, took longer than `limit`, or said more
/// than 64 KiB.
pub(in crate::device) fn answer_of(command: &mut Command, limit: Duration) -> Result<String, String> {
    let began = Instant::now();
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = started.map_err(|error| format!("its process cannot be started: {error}"))?;
    let mut said = Pipe::new(process.stdout.take());
    let mut told = Pipe::new(process.stderr.take());
    let ended = loop {
        // In this order: what it said before its end is there when its end is known.
        let status = process.try_wait();
        said.drain();
        told.drain();
        match status {
            Ok(Some(status)) => break Ok(status),
            Err(error) => break Err(format!("its process cannot be waited for: {error}")),
            Ok(None) if said.bytes.len() > MOST || told.bytes.len() > MOST => {
                break Err(too_much());
            }
            Ok(None) if began.elapsed() >= limit => {
                let seconds = limit.as_secs_f64();
                break Err(format!("its process gave no answer within {seconds} s and was ended"));
            }
            Ok(None) => std::thread::sleep(AGAIN),
        }
    };
    match ended {
        Ok(status) if status.success() && said.bytes.len() <= MOST => Ok(said.text()),
        Ok(status) if status.success() => Err(too_much()),
        Ok(status) => Err(Failed { status, told: told.text() }.to_string()),
        Err(why) => {
            end(process);
            Err(why)
        }
    }
}

fn too_much() -> String {
    format!("its process said more than {} KiB", MOST >> 10)
}

/// Ends a process, and has nothing of it left behind.
fn end(mut process: Child) {
    let _ = process.kill();
    let began = Instant::now();
    while began.elapsed() < END {
        if !matches!(process.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(AGAIN);
    }
    // Where there is no thread to be had, it stays until this process ends.
    let _ = std::thread::Builder::new().spawn(move || process.wait());
}

/// How a process failed.
struct Failed {
    status: ExitStatus,
    told: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its process ended with {}", self.status)?;
        match self.told.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => write!(f, ": {}", line.trim()),
            None => Ok(()),
        }
    }
}

/// What comes out of a pipe, without waiting for it.
struct Pipe<R> {
    from: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(from: Option<R>) -> Self {
        // A pipe that would make us wait is not read.
        let from = from.filter(|from| fcntl_setfl(from, OFlags::NONBLOCK).is_ok());
        Self { from, bytes: Vec::new() }
    }

    /// Takes what is there, and a little more than may be at most.
    fn drain(&mut self) {
        let Some(from) = &mut self.from else { return };
        let mut piece = [0; 4096];
        while self.bytes.len() <= MOST {
            match from.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => self.bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<String, String> {
        answer_of(Command::new("sh").args(["-c", script]), limit)
    }

    /// Children of this thread that nobody has waited for.
    fn children() -> Vec<String> {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        children.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_answer_comes_back_or_one_reason_and_no_process_is_left() {
        let long = Duration::from_secs(60);
        assert_eq!(shell("echo yes; echo no >&2", long), Ok("yes\n".to_owned()));
        let cases = [
            ("echo yes; echo what >&2; exit 3", long, "exit status: 3: what"),
            ("kill -SEGV $$", long, "signal: 11"),
            ("exec sleep 60", Duration::from_millis(100), "no answer within 0.1 s"),
            // Its grandchild keeps the pipe open.
            ("sleep 2 & exit 1", long, "exit status: 1"),
            ("exec cat /dev/zero", long, "more than 64 KiB"),
            ("exec cat /dev/zero >&2", long, "more than 64 KiB"),
        ];
        for (script, limit, words) in cases {
            let began = Instant::now();
            let why = shell(script, limit).unwrap_err();
            assert!(why.contains(words) && !why.contains('\n'), "{script}: {why}");
            assert!(began.elapsed() < Duration::from_secs(30), "{script}");
        }
        let why = answer_of(&mut Command::new("/nowhere/at/all"), long).unwrap_err();
        assert!(why.contains("cannot be started"), "{why}");
        assert_eq!(children(), Vec::<String>::new(), "ended or not, none is left");
    }
}
