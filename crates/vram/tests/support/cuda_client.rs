//! Clients of a daemon whose shards are in a GPU's memory, each a process with a driver of its own.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use cuda_emulator::{Plan, Report};
use serde_json::Value;

use super::Home;
use super::daemon::Daemon;

/// Set in a child that is a client: where it attaches.
pub(crate) const SOCKET: &str = "VRAM_TEST_CUDA_CLIENT";

/// A process with a driver of its own.
pub(crate) struct Client<'a> {
    home: &'a Home,
    pub(crate) child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl<'a> Client<'a> {
    pub(crate) fn start(daemon: &Daemon<'a>, plan: &Plan) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child_that_is_a_client", "--exact", "--ignored", "--nocapture"]);
        with_driver(&mut command, daemon.home, plan).env(SOCKET, daemon.attach());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { home: daemon.home, child, orders, answers }
    }

    pub(crate) fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    pub(crate) fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the client is gone");
            if let Some((_, said)) = line.trim_end().split_once("client: ") {
                return said.to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.hear()
    }

    /// Ends it, in good order, and gives what its driver saw.
    pub(crate) fn end(mut self) -> Report {
        drop(self.orders.take());
        assert!(self.child.wait().unwrap().success());
        serde_json::from_slice(&std::fs::read(self.home.path("client.json")).unwrap()).unwrap()
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With the emulated driver, in a process that is not the program.
fn with_driver<'c>(command: &'c mut Command, home: &Home, plan: &Plan) -> &'c mut Command {
    command
        .env("LD_LIBRARY_PATH", home.path("driver"))
        .env("CUDA_EMULATOR_PLAN", serde_json::to_string(plan).unwrap())
        .env("CUDA_EMULATOR_REPORT", home.path("client.json"))
}

/// A Python program, in the folder of the documentation: whether it ended well, and what it said.
pub(crate) fn python(daemon: &Daemon<'_>, plan: &Plan, arguments: &[&str]) -> (bool, String, String) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut command = Command::new("python3");
    with_driver(&mut command, daemon.home, plan).arg("-B").current_dir(docs).args(arguments);
    let said = command.output().unwrap();
    (said.status.success(), String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap())
}

/// Descriptors of GPUs' memory that the daemon has open.
pub(crate) fn memory(daemon: &Daemon<'_>) -> usize {
    daemon.descriptors().iter().filter(|to| to.to_string_lossy().contains("cuda-emulator")).count()
}

pub(crate) fn named<'e>(events: &'e [Value], name: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}
