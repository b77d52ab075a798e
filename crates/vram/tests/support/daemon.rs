//! A running `vram serve`, on small models, ended whatever happens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Home, Ran};

/// Longer than anything takes on a busy machine; nothing waits for it where all is well.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

pub(crate) struct Daemon<'a> {
    pub(crate) home: &'a Home,
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) socket: PathBuf,
    pub(crate) ready: Value,
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl<'a> Daemon<'a> {
    /// The stream of events, and what was read of it: its head at least, so that it has begun.
    pub(crate) fn events(&self) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while !seen.contains("\r\n\r\n") {
            let count = stream.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        (stream, seen)
    }

    /// Serves two raw models of 2.5 MiB and 70 kB, checked every second.
    pub(crate) fn start(home: &'a Home, arguments: &[&str]) -> Self {
        Self::start_every(home, "1s", arguments)
    }

    /// The same, checked in another period.
    pub(crate) fn start_every(home: &'a Home, period: &str, arguments: &[&str]) -> Self {
        Self::start_as(home, home.command(), period, arguments)
    }

    /// The same with a command of the caller's.
    pub(crate) fn start_as(home: &'a Home, mut command: Command, period: &str, arguments: &[&str]) -> Self {
        let bytes = |count: u32| (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8).collect::<Vec<_>>();
        let (big, small) = (home.file("big.bin", &bytes(5 << 19)), home.file("small.bin", &bytes(70_000)));
        command.args(["serve", "--json", "--format", "raw", "--listen", "127.0.0.1:0", "--period", period, "--socket"]);
        let socket = home.path("s");
        command.arg(&socket).args(arguments).arg(big).arg(small).env_remove("NOTIFY_SOCKET");
        // Into a file: nobody reads along, and a full pipe would stop the daemon.
        let said = home.path("stderr");
        let stderr = std::fs::File::create(&said).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line} {}", std::fs::read_to_string(&said).unwrap()));
        let address = ready["listen"].as_str().unwrap().to_owned();
        Self { home, child, address, socket, ready }
    }

    /// `vram ARGUMENTS --json` against this daemon.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Ran {
        let mut command = self.home.command();
        Ran::from(command.args(arguments).arg("--json").arg("--socket").arg(&self.socket).output().unwrap())
    }

    /// The same, expecting success and one value.
    pub(crate) fn told(&self, arguments: &[&str]) -> Value {
        let ran = self.ask(arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        serde_json::from_str(ran.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// Where shards are handed out.
    pub(crate) fn attach(&self) -> PathBuf {
        PathBuf::from(self.ready["attach"].as_str().unwrap())
    }

    /// Descriptors that the daemon has open.
    pub(crate) fn descriptors(&self) -> Vec<PathBuf> {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok()).collect()
    }

    pub(crate) fn http(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").unwrap();
        answer(stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.http("GET", path, "")
    }

    /// A question to the port by another name than `localhost`.
    pub(crate) fn get_from(&self, host: &str, path: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        answer(stream)
    }

    /// Sends bytes as they are on the control socket and hangs up; reads what still comes back, if anything: a server may
    /// leave a question unanswered whose asker is gone.
    pub(crate) fn raw_socket(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(bytes);
        let mut back = Vec::new();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut back);
        back
    }

    /// The same on the port.
    pub(crate) fn raw_port(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(bytes);
        let mut back = Vec::new();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut back);
        back
    }

    /// Waits until something holds of the status.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.get("/v1/status").json();
            if holds(&status) {
                return status;
            }
            assert!(begun.elapsed() < WAIT, "waited for: {what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Asks it to end, and expects that it does, well.
    pub(crate) fn stop(&mut self) {
        self.signal("-TERM");
        let status = self.end();
        assert!(status.success(), "{status}");
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < WAIT, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(mut stream: impl Read) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Asks, and reads until the daemon hangs up.
pub(crate) fn whole(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    back
}
