//! How the program ends: four exit codes, and one sentence for each thing that went wrong.

use audit_logging::{OpenError, ReadError};
use serde::Serialize;
use vram_residency::Error;
use vram_residency::audit::TrailError;
use vram_residency::device::{DeviceError, conformance};
use vram_residency::model::ModelError;

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything as asked.
    Good = 0,
    /// It could not be done.
    Failed = 1,
    /// It was asked wrongly.
    Usage = 2,
    /// A digest, a seal or the log is not as it must be.
    Integrity = 3,
}

/// Why the program ends early.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    pub(crate) exit: Exit,
    /// One word for programs.
    pub(crate) kind: &'static str,
    /// One sentence for people.
    pub(crate) message: String,
    /// Whether the object that was printed for programs has it already.
    #[serde(skip)]
    pub(crate) in_report: bool,
    /// Whether a file could not be read, so that nothing is known of what is in it.
    #[serde(skip)]
    pub(crate) unread: bool,
    /// The last part of the path of the file that is at fault.
    #[serde(skip)]
    pub(crate) file: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, kind, message: message.into(), in_report: false, unread: false, file: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, kind: "usage", message: message.into(), in_report: false, unread: false, file: None }
    }

    pub(crate) fn integrity(kind: &'static str, message: impl Into<String>) -> Self {
        Self { exit: Exit::Integrity, kind, message: message.into(), in_report: false, unread: false, file: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Device(device) => device_kind(device),
            Error::Model(_) => "model",
            Error::ShardId(_)
            | Error::Digest(_)
            | Error::Text { .. }
            | Error::ControlCharacter { .. }
            | Error::Bit { .. }
            | Error::Attestation { .. }
            | Error::Scrub { .. } => "usage",
            Error::DuplicateShard { .. } | Error::ForeignShard { .. } => "shard",
            Error::Secret(_) => "key",
            Error::Unexpected { .. } => "unexpected-digest",
            Error::SourceChanged { .. } => "source-changed",
            Error::Policy { .. } => "policy",
            Error::SealVerificationFailed { .. } => "verification",
            Error::Quarantined { .. } => "quarantined",
            Error::NotAttested { .. } => "not-attested",
            Error::RepairFailed { .. } => "repair",
            Error::Audit(_) => "audit",
            _ => "other",
        };
        let exit = match kind {
            "usage" => Exit::Usage,
            _ if error.is_integrity() => Exit::Integrity,
            _ => Exit::Failed,
        };
        Self { exit, kind, message: error.to_string(), in_report: false, unread: false, file: None }
    }
}

fn device_kind(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::InsufficientMemory { .. } => "memory",
        DeviceError::Source { .. } => "model",
        _ => "device",
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::new(device_kind(&error), error.to_string())
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        // What is not there cannot be read either, but then that is what is wrong with the model.
        let unread = match error.fault() {
            ModelError::Open { cause } => cause.kind() != std::io::ErrorKind::NotFound,
            fault => matches!(fault, ModelError::Read { .. }),
        };
        let file = match &error {
            ModelError::In { path, .. } => path.file_name(),
            _ => None,
        };
        let file = file.map(|name| name.to_string_lossy().replace(char::is_control, "\u{fffd}"));
        Self { unread, file, ..Self::new("model", error.to_string()) }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::new("audit", error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::new("audit", error.to_string())
    }
}

impl From<TrailError> for Failure {
    fn from(error: TrailError) -> Self {
        Self::new("audit", error.to_string())
    }
}

impl From<conformance::Failure> for Failure {
    fn from(failure: conformance::Failure) -> Self {
        Self::new("device", failure.to_string())
    }
}
