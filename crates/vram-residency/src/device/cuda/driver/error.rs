//! What can go wrong with a CUDA driver and its devices. Each text is one sentence with the remedy.

use super::types::{Code, Ordinal, code};
use crate::device::DeviceUuid;

/// The oldest release of CUDA whose driver takes the kernels' text (PTX 7.8), as [`Version`].
pub const MINIMUM_DRIVER: Version = Version(11_080);

/// A release of CUDA, as a driver states it: 12040 is 12.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// Which of the driver's devices it was, where it was one: `cuda:0`, else `the GPU`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a number")]
pub struct Which(pub Option<i32>);

impl Which {
    fn driver(self) -> String {
        self.0.map_or_else(|| "the NVIDIA driver".to_owned(), |ordinal| format!("the NVIDIA driver of cuda:{ordinal}"))
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ordinal) => write!(f, "cuda:{ordinal}"),
            None => f.write_str("the GPU"),
        }
    }
}

/// A CUDA driver or device could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver library was found.
    #[error(
        "no NVIDIA driver library was found (tried {tried}: {reason}); install the NVIDIA driver, or start the container \
         with the GPU (--gpus all), or use --device host"
    )]
    NoLibrary {
        /// The names that were tried.
        tried: Box<str>,
        /// What the loader said of the last one.
        reason: Box<str>,
    },
    /// The library is the one that programs are linked with, not a driver.
    #[error(
        "{library} is a stub for linking and no driver; take its directory off LD_LIBRARY_PATH, or install the driver"
    )]
    StubLibrary {
        /// The library's path.
        library: Box<str>,
    },
    /// The library lacks a function.
    #[error(
        "{library} has no {symbol}, so it is no NVIDIA driver of CUDA {MINIMUM_DRIVER} or newer; update the driver, and see \
         that LD_LIBRARY_PATH names no stub"
    )]
    MissingSymbol {
        /// The library's path.
        library: Box<str>,
        /// The function.
        symbol: &'static str,
    },
    /// The driver is too old for the kernels.
    #[error(
        "the driver {library} is of CUDA {found} and {MINIMUM_DRIVER} is the oldest that will do; update the NVIDIA driver"
    )]
    OldDriver {
        /// The library's path.
        library: Box<str>,
        /// Its release.
        found: Version,
    },
    /// The driver cannot start.
    #[error(
        "the NVIDIA driver {library} could not start: {name} ({code}), {text}; see that nvidia-smi works, that the nvidia and \
         nvidia-uvm modules are loaded and of the library's version, and that nvidia-fabricmanager runs where NVSwitch joins \
         the GPUs"
    )]
    NotStarted {
        /// The library's path.
        library: Box<str>,
        /// The result's number.
        code: Code,
        /// Its name.
        name: Box<str>,
        /// Its text.
        text: Box<str>,
    },
    /// There is a driver and no device.
    #[error(
        "the NVIDIA driver {library} shows no GPU; see nvidia-smi, CUDA_VISIBLE_DEVICES and the container's devices, and \
         where MIG is on, that an instance was made (nvidia-smi mig -lgi)"
    )]
    NoDevice {
        /// The library's path.
        library: Box<str>,
    },
    /// There are devices, and not that one.
    #[error("there is no cuda:{ordinal}: the driver shows {count}, counted from cuda:0; choose one of them")]
    NoSuchDevice {
        /// The one that was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// There are devices, and none that is so called.
    #[error(
        "of the GPUs that this process is shown ({count}) none is {uuid}, which holds the shard; see CUDA_VISIBLE_DEVICES and \
         the container's devices"
    )]
    NoSuchUuid {
        /// The one that is needed.
        uuid: DeviceUuid,
        /// How many there are.
        count: u32,
    },
    /// What another process hands out does not fit together.
    #[error("what the other process says of its memory does not fit together; are both of the same version?")]
    Offer,
    /// Memory of another process cannot be mapped for reading only.
    #[error(
        "this driver does not map another process's memory for reading only, so it is not mapped at all; update the driver"
    )]
    NotReadOnly,
    /// Another process has the device for itself.
    #[error(
        "cuda:{ordinal} takes one process at a time and another one has it; end that one, or have an administrator run \
         nvidia-smi -c DEFAULT"
    )]
    ExclusiveProcess {
        /// The device.
        ordinal: Ordinal,
    },
    /// The device takes no work.
    #[error("cuda:{ordinal} is in the compute mode 'prohibited'; have an administrator run nvidia-smi -c DEFAULT")]
    Prohibited {
        /// The device.
        ordinal: Ordinal,
    },
    /// The device lacks something that is needed.
    #[error(
        "{device} has no {what}; choose another GPU, or a virtual machine or vGPU type that has it, or --device host"
    )]
    Unsupported {
        /// The device, with its name.
        device: Box<str>,
        /// What it lacks.
        what: &'static str,
    },
    /// The device's memory is full.
    #[error("{gpu} has no memory left to {step}; end other processes on it (nvidia-smi), or choose another GPU")]
    OutOfMemory {
        /// The device.
        gpu: Which,
        /// What was being done.
        step: &'static str,
    },
    /// The driver does not take the kernels.
    #[error(
        "{} refused the kernels '{module}' ({reason}): {log}; update the NVIDIA driver, and report this", gpu.driver()
    )]
    Kernels {
        /// The device.
        gpu: Which,
        /// Which text.
        module: &'static str,
        /// The result's name.
        reason: Box<str>,
        /// What its compiler said.
        log: Box<str>,
    },
    /// The device's context is dead: nothing on the device can be read or proven any more by this process.
    #[error(
        "{gpu} was lost while it was to {step}: {name} ({code}), {text}; see the kernel's log for NVRM Xid, then restart \
         this process, and reset or replace the GPU if it happens again"
    )]
    Lost {
        /// The device.
        gpu: Which,
        /// What was being done.
        step: &'static str,
        /// The result's number.
        code: Code,
        /// Its name.
        name: Box<str>,
        /// Its text.
        text: Box<str>,
    },
    /// Nobody can tell whether the device is still at work, because its driver refuses to wait for it. So nothing on it is read or
    /// proven any more by this process, and nothing that its work may use is given back before it was waited for.
    #[error(
        "{gpu} was to {step} and cannot be waited for: {name} ({code}), {text}; what it may use stays taken until it can be, or \
         this process ends; see the kernel's log for NVRM Xid, then restart this process, and reset or replace the GPU if it \
         happens again"
    )]
    Unsettled {
        /// The device.
        gpu: Which,
        /// What was being done.
        step: &'static str,
        /// The result's number.
        code: Code,
        /// Its name.
        name: Box<str>,
        /// Its text.
        text: Box<str>,
    },
    /// The driver refused a step.
    #[error("{} could not {step}: {name} ({code}), {text}; vram doctor shows what this machine lacks", gpu.driver())]
    Refused {
        /// The device, where it is one's.
        gpu: Which,
        /// What was being done.
        step: &'static str,
        /// The result's number.
        code: Code,
        /// Its name.
        name: Box<str>,
        /// Its text.
        text: Box<str>,
    },
}

impl CudaError {
    /// The result's number, where the driver gave one that has no meaning of its own here.
    #[must_use]
    pub const fn code(&self) -> Option<i32> {
        match self {
            Self::Lost { code, .. }
            | Self::Unsettled { code, .. }
            | Self::NotStarted { code, .. }
            | Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether this process can use the device no more: its context is dead, or was given up.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Unsettled { .. })
    }
}

/// Whether nothing works any more after such a result.
pub(super) fn is_sticky(found: Code) -> bool {
    code::STICKY.contains(&found)
}
