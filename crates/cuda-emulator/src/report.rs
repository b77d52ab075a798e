//! What the library saw: every call, everything alive, everything that should not have happened.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The ledger since the plan was set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Driver calls by exported name.
    pub calls: BTreeMap<String, u64>,
    /// Kernels executed, by name.
    pub launches: BTreeMap<String, u64>,
    /// What has been made and not released.
    pub live: Vec<Live>,
    /// What was not released before its context went: the driver frees it then, but nobody asked for that.
    pub left_to_context: Vec<Live>,
    /// Releases of what had been released.
    pub double_frees: Vec<String>,
    /// Uses of what had been released.
    pub uses_after_free: Vec<String>,
    /// Accesses that the hardware would refuse.
    pub violations: Vec<Violation>,
    /// Operations that are in a stream and have not run, because nobody waited for them.
    pub pending: u64,
    /// Bytes of each device's memory that are taken by this process.
    pub device_bytes: Vec<u64>,
    /// Bytes that kernels read or wrote in device and pinned memory.
    pub kernel_bytes: u64,
    /// Bytes copied between a device and memory of the host that the driver does not know: through memory of its own.
    pub pageable_bytes: u64,
    /// Instructions that warps executed.
    pub warp_instructions: u64,
}

impl Report {
    /// What is alive although nobody was refused its release: leaks.
    #[must_use]
    pub fn leaks(&self) -> Vec<&Live> {
        self.live.iter().chain(&self.left_to_context).filter(|live| !live.release_refused).collect()
    }

    /// What has been made by a call of this name and not released.
    #[must_use]
    pub fn live_of(&self, kind: Kind) -> Vec<&Live> {
        self.live.iter().filter(|live| live.kind == kind).collect()
    }

    /// How often a driver call was made.
    #[must_use]
    pub fn calls_of(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }

    /// None when nothing is alive or pending and nothing was refused by the hardware; else what is wrong, a line each.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.live.iter().map(|live| format!("alive: {live}")));
        lines.extend(self.left_to_context.iter().map(|live| format!("freed only with its context: {live}")));
        lines.extend(self.double_frees.iter().map(|text| format!("freed twice: {text}")));
        lines.extend(self.uses_after_free.iter().map(|text| format!("used after its release: {text}")));
        lines.extend(self.violations.iter().map(|violation| format!("violation: {violation}")));
        if self.pending > 0 {
            lines.push(format!("{} operations that nobody waited for", self.pending));
        }
        if lines.is_empty() { None } else { Some(lines.join("\n")) }
    }
}

/// Something made and not released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// What it is.
    pub kind: Kind,
    /// Its handle or address.
    pub handle: u64,
    /// Bytes of memory or addresses in it; 0 for what has none.
    pub bytes: u64,
    /// The call that made it.
    pub made_by: String,
    /// Which call of that name made it, from 1.
    pub nth: u64,
    /// Somebody asked for its release, and a planned fault or a lost device refused; or refused the wait that has to come before.
    pub release_refused: bool,
}

impl std::fmt::Display for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} {:#x}, {} bytes, made by {} number {}",
            self.kind, self.handle, self.bytes, self.made_by, self.nth
        )?;
        if self.release_refused { f.write_str(", its release was refused") } else { Ok(()) }
    }
}

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A retained primary context.
    Context,
    /// A handle of `cuMemCreate` or of an import.
    Handle,
    /// A range of `cuMemAddressReserve`.
    Reservation,
    /// Memory mapped in such a range.
    Mapping,
    /// Memory of `cuMemAlloc_v2`.
    Allocation,
    /// Memory of `cuMemAllocManaged`.
    Managed,
    /// Pinned memory of `cuMemHostAlloc`.
    Host,
    /// Memory of the process under `cuMemHostRegister_v2`.
    Registered,
    /// A stream.
    Stream,
    /// An event.
    Event,
    /// A module.
    Module,
    /// A graph.
    Graph,
    /// An instantiated graph.
    GraphExec,
}

impl Kind {
    /// Main memory that a device addresses.
    pub(crate) fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::Registered)
    }
}

/// An access that the hardware refused, or a launch that it stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Why.
    pub cause: Cause,
    /// What was told: a `CUresult`.
    pub code: u32,
    /// Device address; 0 where there is none.
    pub address: u64,
    /// The driver call or kernel, and where in it.
    pub by: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:#x} by {} (error {})", self.cause, self.address, self.by, self.code)
    }
}

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A write to what is mapped read-only.
    ReadOnly,
    /// Mapped, but the device has no access yet.
    NoAccess,
    /// No memory there, and none there before.
    OutOfBounds,
    /// The memory there was released.
    Released,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A launch ran over the plan's limit of instructions.
    Endless,
    /// A trap, or something that the emulated hardware cannot do.
    Trap,
}
