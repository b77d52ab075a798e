//! Runs the program as its users do: the built binary, with a state directory of its own.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod attach;
pub(crate) mod cuda_client;
pub(crate) mod daemon;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use audit_logging::{Kind, reader};
use serde_json::Value;
use tempfile::TempDir;
use vram_residency::model::Dtype;
use vram_residency::model::writer::{Layout, TensorSpec};

/// A user with an empty home.
pub(crate) struct Home {
    scratch: TempDir,
    /// What every run of this user's has in its environment.
    environment: Vec<(&'static str, OsString)>,
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        // No GPU, also where there is one: what is tested here is the same on every machine.
        let environment = vec![("CUDA_VISIBLE_DEVICES", OsString::new())];
        Self { scratch: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), environment }
    }

    /// The same, on a machine with this driver and these GPUs, which are emulated.
    pub(crate) fn with_gpus(plan: &cuda_emulator::Plan) -> Self {
        let mut home = Self::new();
        let folder = home.path("driver");
        std::fs::create_dir(&folder).unwrap();
        cuda_emulator::link_into(&folder).unwrap();
        home.environment.push(("LD_LIBRARY_PATH", folder.into()));
        home.environment.push(("CUDA_EMULATOR_PLAN", serde_json::to_string(plan).unwrap().into()));
        home.environment.push(("CUDA_EMULATOR_REPORT", home.path("report.json").into()));
        // As on a machine where nothing shares GPUs among processes.
        home.environment.push(("CUDA_MPS_PIPE_DIRECTORY", home.path("mps").into()));
        home
    }

    /// What the emulated driver saw of the last run.
    pub(crate) fn driver_report(&self) -> cuda_emulator::Report {
        serde_json::from_slice(&std::fs::read(self.path("report.json")).unwrap()).unwrap()
    }

    /// A path that only this user's test uses.
    pub(crate) fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.scratch.path().join(Path::new(name.as_ref()))
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state/vram")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.state().join("audit")
    }

    /// A file with these bytes.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vram"));
        for name in ["RUST_LOG", "NO_COLOR", "TMPDIR"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("XDG_STATE_HOME", self.path("state")).env("HOME", self.path("home")).stdin(Stdio::null());
        command
    }

    /// The program after something that a shell does, such as to set a limit for itself.
    pub(crate) fn command_after(&self, shell: &str) -> Command {
        let program = self.command();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")]).arg(program.get_program());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        Ran::from(self.command().args(arguments).output().unwrap())
    }

    /// Runs with `--json` and expects success and just one object.
    pub(crate) fn json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Value {
        let ran = Ran::from(self.command().args(arguments).arg("--json").output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.object()
    }

    /// The same, of a log that is perhaps not there yet or being written.
    pub(crate) fn events_so_far(&self) -> Vec<String> {
        let records = reader::records(&self.audit()).into_iter().flatten().filter_map(Result::ok);
        records
            .filter(|record| record.kind == Kind::Event)
            .filter_map(|record| serde_json::from_slice::<Value>(&record.leaf).ok())
            .map(|event| text(&event["event"]))
            .collect()
    }

    /// The names of the events in the default log, oldest first.
    pub(crate) fn events(&self) -> Vec<String> {
        events(&self.audit()).iter().map(|event| text(&event["event"])).collect()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let ran = Self {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        ran
    }
}

impl Ran {
    /// The one object on stdout.
    pub(crate) fn object(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks how a run failed: its code, the kind for programs, and one sentence for people with all these words.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, kind: &str, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        let last = self.stdout.lines().last().unwrap_or_default();
        let object: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(object["error"]["kind"], kind, "{self:?}");
        let message = text(&object["error"]["message"]);
        let told = self.stderr.lines().last().unwrap_or_default();
        assert_eq!(told, format!("vram: {message}"), "stderr says the same");
        for word in words {
            assert!(message.contains(word), "'{word}' is missing in: {message}");
        }
    }
}

/// The events of a log that is intact.
pub(crate) fn events(dir: &Path) -> Vec<Value> {
    let report = reader::verify(dir).unwrap();
    assert!(report.is_intact() && report.clean_close, "{report:?}");
    let records = reader::records(dir).unwrap().map(Result::unwrap);
    records
        .filter(|record| record.kind == Kind::Event)
        .map(|record| serde_json::from_slice(&record.leaf).unwrap())
        .collect()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// A safetensors file with two tensors of so many rows each.
pub(crate) fn safetensors(names: [&str; 2], rows: u64) -> Vec<u8> {
    let specs = names.map(|name| TensorSpec::new(name, Dtype::BF16, [rows, 256]));
    let mut file = Vec::new();
    let fill = |_: &_, offset: u64, piece: &mut [u8]| {
        for (index, byte) in (offset..).zip(piece) {
            *byte = (index % 251) as u8;
        }
    };
    Layout::new(specs.to_vec()).unwrap().write(&mut file, fill).unwrap();
    file
}

/// A GGUF file with one tensor of eight floats.
pub(crate) fn gguf() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend([1_u64, 0].map(u64::to_le_bytes).concat());
    file.extend(6_u64.to_le_bytes());
    file.extend(b"tensor");
    file.extend(1_u32.to_le_bytes());
    file.extend(8_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([1.5_f32; 8].map(f32::to_le_bytes).concat());
    file
}

/// How a path stands in records: a user's home directory is not named.
pub(crate) fn nameless(path: &str) -> String {
    match path.strip_prefix("/home/").and_then(|rest| rest.split_once('/')) {
        Some((_, rest)) => format!("/home/*/{rest}"),
        None => path.to_owned(),
    }
}

/// Bytes from hex digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
