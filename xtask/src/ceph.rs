//! The `ceph` step: replication into a real distributed store, while parts of it are killed.
//!
//! One monitor, one manager, three stores of data (OSDs) and the S3 gateway of Ceph, from Debian's packages, all on the
//! loopback interface and below the target directory. Two copies must be there for a write to be accepted, so that one OSD
//! may die and two may not. Everything that is started here is ended here, by its process id.

use crate::Args;
use crate::replica::{moto, with_credentials};
use crate::shell::{Ctx, capture, run, say};
use crate::steps::Count;
use anyhow::{Context, Result, bail, ensure};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PACKAGES: [&str; 5] = ["ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "ceph-common"];
const OSDS: u32 = 3;
/// Sparse: what is not written takes no room.
const OSD_BYTES: u64 = 4 << 30;

/// `cargo xtask ceph`, or `cargo xtask test --with-ceph`.
pub fn step(ctx: &Ctx, args: &mut Args) -> Result<String> {
    args.finish()?;
    install(ctx)?;
    let moto = moto(ctx)?;
    // Built before anything runs: two processors are not enough for both.
    let mut build = ctx.cargo();
    run(build.args(["test", "--workspace", "--test", "s3", "--no-run"]))?;
    let begun = Instant::now();
    let ceph = Ceph::start(ctx)?;
    let ready = begun.elapsed().as_secs_f64();
    say(&format!("ceph answers at {} after {ready:.1} s", ceph.endpoint));
    let mut count = Count::default();
    let mut test = ctx.cargo();
    test.args(["test", "--workspace", "--test", "s3", "--", "--nocapture", "distributed"]);
    with_credentials(&mut test).env("VRAM_TEST_MOTO", moto).env("VRAM_REQUIRE_STORES", "1");
    test.env("VRAM_TEST_CEPH", &ceph.home).env("VRAM_TEST_CEPH_ENDPOINT", &ceph.endpoint);
    count.run(&mut test)?;
    ensure!(count.passed > 0, "no test was executed");
    drop(ceph);
    Ok(format!("{count}; the store took {ready:.0} s to start"))
}

fn install(ctx: &Ctx) -> Result<()> {
    let there = |program: &str| capture(Command::new(program).arg("--version")).is_ok();
    if ["ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "ceph-authtool"].into_iter().all(there) {
        return Ok(());
    }
    let mut apt = ctx.command("apt-get");
    apt.args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut apt).with_context(|| {
        format!(
            "this step needs Ceph: as root, apt-get update && apt-get install --no-install-recommends {}",
            PACKAGES.join(" ")
        )
    })
}

/// A running store. Ends with this, whatever happens.
struct Ceph {
    home: PathBuf,
    endpoint: String,
}

impl Ceph {
    fn start(ctx: &Ctx) -> Result<Self> {
        let home = ctx.target.join("tmp/ceph");
        if home.exists() {
            stop(&home);
            std::fs::remove_dir_all(&home)?;
        }
        for part in ["run", "mon", "mgr", "osd.0", "osd.1", "osd.2", "rgw"] {
            std::fs::create_dir_all(home.join(part))?;
        }
        let (monitor, gateway) = (free_port()?, free_port()?);
        let fsid = uuid()?;
        std::fs::write(home.join("ceph.conf"), config(&home, &fsid, monitor, gateway))?;
        let ceph = Self { home, endpoint: format!("http://127.0.0.1:{gateway}") };
        ceph.bring_up(&fsid, monitor)?;
        wait_for(gateway)?;
        Ok(ceph)
    }

    fn bring_up(&self, fsid: &str, monitor: u16) -> Result<()> {
        let (keyring, map) = (self.home.join("keyring"), self.home.join("monmap"));
        let mut keys = self.tool("ceph-authtool");
        capture(keys.args(["--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"]).arg(&keyring))?;
        let mut keys = self.tool("ceph-authtool");
        keys.arg(&keyring).args(["--gen-key", "-n", "client.admin"]);
        for part in ["mon", "osd", "mgr", "mds"] {
            keys.args(["--cap", part, "allow *"]);
        }
        capture(&mut keys)?;
        let address = format!("[v1:127.0.0.1:{monitor}]");
        capture(self.tool("monmaptool").args(["--create", "--fsid", fsid, "--addv", "a", &address]).arg(&map))?;
        let mut make = self.tool("ceph-mon");
        capture(make.args(["--mkfs", "-i", "a", "--monmap"]).arg(&map).arg("--keyring").arg(&keyring))?;
        capture(self.tool("ceph-mon").args(["-i", "a"]))?;
        self.ask("ceph-mgr", &["-i", "x"])?;
        for number in 0..OSDS {
            let (osd, id) = (number.to_string(), uuid()?);
            self.ask("ceph", &["osd", "new", &id, &osd])?;
            capture(self.tool("ceph-osd").args(["-i", &osd, "--mkfs", "--osd-uuid", &id]))?;
            let (name, host) = (format!("osd.{number}"), format!("host=h{number}"));
            self.ask("ceph", &["osd", "crush", "add", &name, "1.0", "root=default", &host])?;
            self.ask("ceph-osd", &["-i", &osd])?;
        }
        self.ask("radosgw", &["-n", "client.rgw"])?;
        let user = ["user", "create", "--uid=vram", "--display-name=vram"];
        let keys = ["--access-key=VRAMTEST", "--secret-key=vram-test-secret"];
        self.ask("radosgw-admin", &[&user[..], &keys[..]].concat())?;
        Ok(())
    }

    /// Runs a tool that talks to the monitor. On a busy machine it may ask before it knows the cluster's name, and is
    /// refused: what is asked here may be asked again.
    fn ask(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut said = capture(self.tool(program).args(arguments));
        for _ in 0..4 {
            if said.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_secs(2));
            said = capture(self.tool(program).args(arguments));
        }
        said.map(|_| ())
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CEPH_CONF", self.home.join("ceph.conf"))
            .current_dir(&self.home)
            .stdin(std::process::Stdio::null());
        command
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        stop(&self.home);
    }
}

/// Ends whatever left its process id there, and waits for it.
fn stop(home: &Path) {
    let files = std::fs::read_dir(home.join("run")).into_iter().flatten().flatten();
    let pids: Vec<String> = files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|file| Some(std::fs::read_to_string(file.path()).ok()?.trim().to_owned()))
        .filter(|pid| is_ours(pid, home))
        .collect();
    for signal in ["-TERM", "-KILL"] {
        for pid in &pids {
            let _ = capture(Command::new("kill").args([signal, pid]));
        }
        let begun = Instant::now();
        while pids.iter().any(|pid| is_ours(pid, home)) && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A process id may have been given to somebody else meanwhile: ours has our configuration in its environment.
fn is_ours(pid: &str, home: &Path) -> bool {
    let environment = std::fs::read(Path::new("/proc").join(pid).join("environ")).unwrap_or_default();
    let mark = format!("CEPH_CONF={}", home.join("ceph.conf").display());
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

fn config(home: &Path, fsid: &str, monitor: u16, gateway: u16) -> String {
    let home = home.display();
    let mut text = format!(
        "[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{monitor}]
public addr = 127.0.0.1
ms bind ipv4 = true
auth cluster required = none
auth service required = none
auth client required = none
run dir = {home}/run
log file = {home}/run/$name.log
pid file = {home}/run/$name.pid
admin socket = {home}/run/$name.asok
keyring = {home}/keyring
osd objectstore = bluestore
bluestore block size = {OSD_BYTES}
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
osd pool default size = 3
osd pool default min size = 2
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail warn = 1
[mon.a]
mon data = {home}/mon
mon addr = 127.0.0.1:{monitor}
[mgr.x]
mgr data = {home}/mgr
[client.rgw]
rgw data = {home}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw dns name = localhost
"
    );
    for number in 0..OSDS {
        text.push_str(&format!("[osd.{number}]\nosd data = {home}/osd.{number}\n"));
    }
    text
}

fn uuid() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for(port: u16) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("the gateway does not listen after 120 s; its log is in target/tmp/ceph/run");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
