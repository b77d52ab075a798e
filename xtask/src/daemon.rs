//! A running `vram serve` on models made for the purpose, ended whatever happens.

use crate::shell::{Ctx, capture, run, say};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Daemon {
    child: Child,
    /// A directory of its own: models, state, socket.
    pub home: PathBuf,
    vram: PathBuf,
    pub address: String,
    pub shards: Vec<(String, u64)>,
}

impl Daemon {
    /// Makes raw models of so many MiB each, and serves them with these arguments.
    pub fn start(ctx: &Ctx, name: &str, sizes_mib: &[u64], arguments: &[&str]) -> Result<Self> {
        run(ctx.cargo().args(["build", "--release", "-p", "vram"]))?;
        let home = ctx.target.join("tmp").join(name);
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(&home)?;
        let mut files = Vec::new();
        for (number, mib) in sizes_mib.iter().enumerate() {
            let path = home.join(format!("model-{number}.bin"));
            make(&path, *mib << 20, number as u64 + 1)?;
            files.push(path);
        }
        let vram = ctx.target.join("release/vram");
        let mut command = ctx.command(&vram);
        command.args(["serve", "--json", "--format", "raw", "--listen", "127.0.0.1:0", "--allow-drill"]);
        command.arg("--socket").arg(home.join("s")).args(arguments).args(&files);
        command.env("XDG_STATE_HOME", home.join("state")).env_remove("NOTIFY_SOCKET");
        let mut child = command.stdout(Stdio::piped()).spawn().context("vram serve could not be started")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("vram serve said: {line}"))?;
        let address = ready["listen"].as_str().context("no address")?.to_owned();
        let shards = ready["shards"].as_array().context("no shards")?;
        let shards = shards
            .iter()
            .map(|shard| Some((shard["shard_id"].as_str()?.to_owned(), shard["bytes"].as_u64()?)))
            .collect::<Option<Vec<_>>>()
            .context("a shard without a name")?;
        say(&format!("vram serve answers at {address} with {} shards", shards.len()));
        Ok(Self { child, home, vram, address, shards })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `vram ARGUMENTS --json` against this daemon.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.vram);
        command.args(arguments).arg("--json").arg("--socket").arg(self.home.join("s")).stdin(Stdio::null());
        Ok(serde_json::from_str(&capture(&mut command)?)?)
    }

    /// The log's records, oldest first.
    pub fn records(&self) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.vram);
        command.args(["audit", "show", "--json"]).arg(self.home.join("state/vram/audit")).stdin(Stdio::null());
        capture(&mut command)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Whether the log is intact, as `vram audit verify` says.
    pub fn log_is_intact(&self) -> Result<()> {
        let mut command = Command::new(&self.vram);
        command.args(["audit", "verify"]).arg(self.home.join("state/vram/audit")).stdin(Stdio::null());
        capture(&mut command).map(|_| ())
    }

    /// The body of `GET path`.
    pub fn get(&self, path: &str) -> Result<String> {
        get(&self.address, path)
    }

    /// Kilobytes resident, sealed memory included, and open descriptors.
    pub fn use_of_memory(&self) -> Result<(u64, usize)> {
        let pid = self.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).context("no VmRSS")?;
        Ok((rss, std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
    }

    /// Asks it to end, and expects that it does, well.
    pub fn stop(&mut self) -> Result<()> {
        run(Command::new("kill").arg("-TERM").arg(self.pid().to_string()))?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { bail!("vram serve ended with {status}") };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("vram serve did not end within 30 s of SIGTERM")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of `GET path` at an address.
pub fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.to_owned())
}

/// SplitMix64: bytes and choices that a seed gives again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn make(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for _ in 0..bytes / 8 {
        file.write_all(&random.next().to_le_bytes())?;
    }
    Ok(file.flush()?)
}
