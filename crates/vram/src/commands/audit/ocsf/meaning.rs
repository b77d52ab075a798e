//! What each record means to a SIEM: class, activity and severity.

use audit_logging::Kind;

/// A class of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Of which nothing is known.
    Base = 0,
    Memory = 1004,
    EventLog = 1008,
    Compliance = 2003,
    Detection = 2004,
    Lifecycle = 6002,
}

impl Class {
    pub(super) fn names(self) -> (u32, &'static str, &'static str) {
        match self {
            Self::Base => (0, "Uncategorized", "Base Event"),
            Self::Memory => (1, "System Activity", "Memory Activity"),
            Self::EventLog => (1, "System Activity", "Event Log Activity"),
            Self::Compliance => (2, "Findings", "Compliance Finding"),
            Self::Detection => (2, "Findings", "Detection Finding"),
            Self::Lifecycle => (6, "Application Activity", "Application Lifecycle"),
        }
    }

    pub(super) fn is_finding(self) -> bool {
        matches!(self, Self::Compliance | Self::Detection)
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    Well,
    Badly,
    /// Neither, or nobody knows.
    Open,
}

/// What a record means to a SIEM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meaning {
    pub(super) class: Class,
    /// The class's activity; 99 for one that the schema has no number for.
    pub(super) activity: u32,
    pub(super) name: &'static str,
    pub(super) severity: u32,
    pub(super) went: Went,
    pub(super) title: &'static str,
}

impl Meaning {
    pub(super) fn of(kind: Kind, name: &str) -> Self {
        use Class::{Base, Compliance, Detection, EventLog, Lifecycle, Memory};
        use Went::{Badly, Open, Well};
        let (class, activity, activity_name, severity, went, title) = match (kind, name) {
            (Kind::Event, "DeviceOpened") => (Lifecycle, 3, "Start", 1, Well, "A GPU was opened"),
            (Kind::Event, "VramAllocated") => (Memory, 1, "Allocate Page", 1, Well, "Memory was reserved for a shard"),
            (Kind::Event, "VramAllocationFailed") => {
                (Memory, 1, "Allocate Page", 3, Badly, "Memory for a shard could not be reserved")
            }
            (Kind::Event, "VramDeallocated") => (Memory, 3, "Delete Page", 1, Well, "A shard's memory was given back"),
            (Kind::Event, "VramSealed") => (Memory, 99, "Seal", 1, Well, "A shard was sealed"),
            (Kind::Event, "SealVerified") => (Memory, 99, "Verify", 1, Well, "Every byte of a shard is as sealed"),
            (Kind::Event, "ShardApproved") => (Memory, 99, "Approve", 1, Well, "A file is what a manifest approves"),
            (Kind::Event, "AttestationMade") => {
                (Lifecycle, 99, "Attest", 1, Well, "The worker signed for what it holds")
            }
            (Kind::Event, "ApprovalRefused") => {
                (Compliance, 1, "Create", 4, Badly, "A manifest approves nothing, or not this")
            }
            (Kind::Event, "ScrubPassed") => (Memory, 99, "Verify", 1, Well, "Every block of a shard is as sealed"),
            (Kind::Event, "MismatchNotConfirmed") => {
                (Memory, 99, "Verify", 2, Open, "A block was read wrongly once, and as sealed when read again")
            }
            (Kind::Event, "FingerprintMatched") => {
                (Memory, 99, "Verify", 1, Well, "A shard's fingerprint is as when its bytes were trusted")
            }
            (Kind::Event, "FingerprintNotConfirmed") => {
                (Memory, 99, "Verify", 2, Open, "A shard's fingerprint was another once, and every byte as sealed")
            }
            (Kind::Event, "RepairStarted") => (Memory, 2, "Modify Page", 3, Open, "A damaged block is being repaired"),
            (Kind::Event, "BlockRepaired") => (Memory, 2, "Modify Page", 2, Well, "A damaged block was repaired"),
            (Kind::Event, "RepairFailed") => (Memory, 2, "Modify Page", 5, Badly, "A damaged block cannot be repaired"),
            (Kind::Event, "FaultInjected") => {
                (Memory, 2, "Modify Page", 4, Open, "A bit is damaged on purpose: a drill")
            }
            (Kind::Event, "ShardUnsealed") => (Memory, 99, "Unseal", 3, Well, "A shard's seal was given up on purpose"),
            (Kind::Event, "ShardResealed") => {
                (Memory, 99, "Reseal", 3, Well, "A shard was sealed again with other bytes")
            }
            (Kind::Event, "SealVerificationFailed") => (Detection, 1, "Create", 5, Open, "A shard is not as sealed"),
            (Kind::Event, "DamageDescribed") => (Detection, 2, "Update", 5, Open, "What is known of a damaged block"),
            (Kind::Event, "DeviceQuarantined") => {
                (Detection, 1, "Create", 5, Open, "Faults keep coming back; nothing on the device is trusted")
            }
            (Kind::Event, "PolicyViolation") => (Compliance, 1, "Create", 4, Badly, "A rule was broken"),
            (Kind::Event, "VerificationLate") => (Compliance, 1, "Create", 4, Badly, "A shard was not checked in time"),
            (Kind::Event, "VerificationResumed") => {
                (Compliance, 3, "Close", 1, Well, "A shard is checked in time again")
            }
            (Kind::Event, "ServiceStarted") => (Lifecycle, 3, "Start", 1, Well, "The service began its work"),
            (Kind::Event, "ServiceStopped") => (Lifecycle, 4, "Stop", 1, Well, "The service ended in good order"),
            (Kind::Event, "ScrubStarted") => (Lifecycle, 6, "Enable", 1, Well, "The continuous check began"),
            (Kind::Event, "ScrubStopped") => (Lifecycle, 7, "Disable", 3, Open, "The continuous check ended"),
            (Kind::Event, "OperatorCommand") => (Lifecycle, 99, "Command", 3, Open, "An operator ordered something"),
            (Kind::Event, "ShardAttached") => {
                (Memory, 99, "Attach", 1, Well, "A shard's memory was handed to another process")
            }
            (Kind::Event, "ProtectionLowered") => {
                (Compliance, 1, "Create", 4, Badly, "Others can write to a shard's memory from now on")
            }
            (Kind::Event, "ShardDetached") => {
                (Memory, 99, "Detach", 1, Well, "A process has no lease of a shard any more")
            }
            (Kind::Event, "AttachRefused") => {
                (Memory, 99, "Attach", 3, Badly, "A process was refused a shard's memory")
            }
            (Kind::Event, "RecordsLost") => {
                (EventLog, 99, "Gap", 4, Badly, "Records were lost while the log could not be opened")
            }
            (Kind::Open, _) => (EventLog, 6, "Start", 1, Well, "The audit log was opened"),
            (Kind::Close, _) => (EventLog, 7, "Stop", 1, Well, "The audit log was closed"),
            (Kind::Recovered, _) => {
                (EventLog, 8, "Restart", 2, Well, "The audit log was opened again after an unclean end")
            }
            (Kind::Gap, _) => (EventLog, 99, "Gap", 4, Badly, "Records were lost, and the log says which"),
            (Kind::Finding, _) => (EventLog, 99, "Finding", 5, Badly, "The audit log is not as it was written"),
            (Kind::Clock, _) => (EventLog, 99, "Clock", 2, Open, "The time of day jumped"),
            (Kind::Storage, _) => {
                (EventLog, 99, "Storage", 3, Badly, "A file of the audit log was given up; nothing is lost")
            }
            (Kind::Publication, "heartbeat") => (EventLog, 99, "Heartbeat", 1, Well, "The audit log is alive"),
            (Kind::Publication, "key") => (EventLog, 99, "Key", 3, Well, "The audit log's key was rotated"),
            (Kind::Publication, "rollback") => {
                (EventLog, 99, "Rollback", 5, Badly, "The audit log was set back to an earlier state")
            }
            (Kind::Publication, "conflict") => {
                (EventLog, 99, "Conflict", 5, Badly, "What is published of the audit log is not what was recorded")
            }
            (Kind::Publication, "probe") => (EventLog, 99, "Probe", 1, Open, "What a store of copies can do was tried"),
            (Kind::Publication, "pruned") => (EventLog, 2, "Delete", 3, Well, "Old records were pruned on purpose"),
            (Kind::Publication, _) => (EventLog, 99, "Publication", 2, Open, "Something about the published audit log"),
            // An event of a later version: shown as what it is, a record.
            _ => (Base, 99, "Record", 0, Open, "A record that this program does not know"),
        };
        Self { class, activity, name: activity_name, severity, went, title }
    }
}
