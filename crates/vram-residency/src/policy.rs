//! What must be true before a shard counts as sealed, and what happens when a check fails.

use std::fmt;

use crate::device::{DeviceKind, Foreign, Protection, Residency};

/// Where bytes must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RequiredResidency {
    /// Anywhere; the seal says where.
    #[default]
    Any,
    /// Where the operating system cannot page them out.
    Locked,
    /// In a GPU's own memory.
    Vram,
}

/// What happens to a shard that fails a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnFailure {
    /// The shard is quarantined: its bytes are no longer lent out until it is repaired.
    #[default]
    FailClosed,
    /// As fail-closed; and the [scrubber](crate::scrub) replaces the damaged blocks at once, where it has a source.
    Repair,
    /// The failure is recorded and returned, and the shard stays in use as a suspect. For evaluation only.
    Log,
    /// As fail-closed; and the service that keeps the shards is asked to end, so that whatever runs it can decide.
    StopWorker,
}

impl OnFailure {
    const ALL: [Self; 4] = [Self::FailClosed, Self::Repair, Self::Log, Self::StopWorker];

    /// The name as configuration and records spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailClosed => "fail-closed",
            Self::Repair => "repair",
            Self::Log => "log",
            Self::StopWorker => "stop-worker",
        }
    }

    /// What happens to the shard, as records spell it.
    pub(crate) const fn action(self) -> &'static str {
        match self {
            Self::FailClosed | Self::Repair => "quarantined",
            Self::Log => "logged",
            Self::StopWorker => "quarantined, worker asked to stop",
        }
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no behaviour on failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a failed check is answered by fail-closed, repair, log or stop-worker; write one of these")]
pub struct UnknownOnFailure;

impl std::str::FromStr for OnFailure {
    type Err = UnknownOnFailure;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or(UnknownOnFailure)
    }
}

/// A manager's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Policy {
    /// Where bytes must be.
    pub residency: RequiredResidency,
    /// Whether memory must have been shown to be read-only.
    pub require_read_only: bool,
    /// What happens to a shard that fails a check.
    pub on_failure: OnFailure,
    /// Whether an operation fails when its record cannot be kept. Otherwise the failure is counted and shown.
    pub require_audit: bool,
}

/// A rule and how it was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The bytes are not in a GPU's memory.
    NotVram {
        /// Where they are.
        device: DeviceKind,
    },
    /// The bytes can be paged out.
    NotLocked {
        /// Where they are.
        residency: Residency,
    },
    /// The driver states that the memory is not the device's own.
    NotResident {
        /// What it states.
        foreign: Foreign,
    },
    /// Nothing was shown to stop writes.
    NotReadOnly,
    /// Whoever is handed the memory could write to it.
    HandedOutWritable,
    /// The bytes are not those that were expected.
    NotExpected,
    /// The bytes are not those that the manifest approves.
    NotApproved,
    /// The file was changed while it was loaded.
    SourceChanged,
}

impl Violation {
    /// The rule's name, as records spell it.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::NotVram { .. } => "vram-only",
            Self::NotLocked { .. } => "locked-memory",
            Self::NotResident { .. } => "residency",
            Self::NotReadOnly | Self::HandedOutWritable => "read-only-protection",
            Self::NotExpected => "expected-digest",
            Self::NotApproved => "approved-digest",
            Self::SourceChanged => "unchanged-source",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVram { device } => {
                write!(
                    f,
                    "the policy asks for a GPU's memory and the device is {device}; choose a GPU or relax the policy"
                )
            }
            Self::NotLocked { residency } => write!(
                f,
                "the policy asks for locked memory and the region is {residency}; raise the limit on locked memory \
                 (ulimit -l, or LimitMEMLOCK= in a service) or relax the policy"
            ),
            Self::NotResident { foreign } => write!(
                f,
                "the driver states of the region that {foreign}; choose a GPU with memory of its own, and memory of \
                 cuMemCreate or cuMemAlloc on it"
            ),
            Self::NotReadOnly => f.write_str(
                "the policy asks for read-only memory, and it was not shown that writes are stopped: use a kernel with \
                 sealable memory files (Linux 5.1 or newer), on a GPU let the write test run (vram doctor says what came \
                 of it), or relax the policy",
            ),
            Self::HandedOutWritable => f.write_str(
                "the policy asks for read-only memory, and who is handed a GPU's memory can write to it; keep the shard in \
                 main memory or relax the policy",
            ),
            Self::NotExpected => f.write_str("the bytes are not those that were expected; get the file again"),
            Self::NotApproved => {
                f.write_str("the bytes are not those that the manifest approves; get the file and the manifest again")
            }
            Self::SourceChanged => {
                f.write_str("the file was changed while it was loaded; load it again when it is at rest")
            }
        }
    }
}

impl Policy {
    /// Holds a device against the rules, before anything is loaded.
    ///
    /// # Errors
    /// [`Violation::NotVram`] where a GPU's memory is asked for and this is another.
    pub const fn admit_device(&self, device: DeviceKind) -> Result<(), Violation> {
        match (self.residency, device) {
            (RequiredResidency::Vram, DeviceKind::Host) => Err(Violation::NotVram { device }),
            (RequiredResidency::Vram, DeviceKind::Cuda) | (RequiredResidency::Any | RequiredResidency::Locked, _) => {
                Ok(())
            }
        }
    }

    /// Holds what a device gave against the rules.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn admit(&self, device: DeviceKind, residency: Residency, protection: Protection) -> Result<(), Violation> {
        self.admit_device(device)?;
        if self.residency == RequiredResidency::Locked && residency == Residency::HostPageable {
            return Err(Violation::NotLocked { residency });
        }
        if self.require_read_only && protection != Protection::ReadOnly {
            return Err(Violation::NotReadOnly);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_admits_just_what_it_names() {
        let host = |residency, read_only| Policy { residency, require_read_only: read_only, ..Policy::default() };
        let admit = |policy: Policy, residency, protection| policy.admit(DeviceKind::Host, residency, protection);
        use {Protection::*, Residency::*};
        assert_eq!(admit(Policy::default(), HostPageable, Advisory), Ok(()));
        assert_eq!(admit(host(RequiredResidency::Locked, true), HostLocked, ReadOnly), Ok(()));
        assert_eq!(
            admit(host(RequiredResidency::Locked, false), HostPageable, ReadOnly),
            Err(Violation::NotLocked { residency: HostPageable })
        );
        assert_eq!(admit(host(RequiredResidency::Any, true), HostLocked, Advisory), Err(Violation::NotReadOnly));
        assert_eq!(
            admit(host(RequiredResidency::Vram, false), HostLocked, ReadOnly),
            Err(Violation::NotVram { device: DeviceKind::Host })
        );
    }
}
