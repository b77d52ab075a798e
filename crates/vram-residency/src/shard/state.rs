//! Where a shard can stand.

/// Where a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
#[non_exhaustive]
pub enum ShardState {
    /// Resident and immutable; not yet verified since.
    Sealed,
    /// The last full verification, or the last round of the scrub, found every byte as sealed, and its record is kept.
    Verified,
    /// Nothing can be said: the last check is too long ago or could not be carried out, or its record or a later one was
    /// lost.
    Unverified,
    /// A check failed. It is being confirmed, or the policy only logs: only then are the bytes still lent out.
    Suspect,
    /// A check failed. The bytes are not lent out.
    Quarantined,
    /// Damaged blocks are being replaced.
    Repairing,
    /// A repair failed. The bytes are not lent out.
    Failed,
}

impl ShardState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Sealed,
        Self::Verified,
        Self::Unverified,
        Self::Suspect,
        Self::Quarantined,
        Self::Repairing,
        Self::Failed,
    ];

    /// Whether the bytes are not to be relied on for good reason: a first reading that is not confirmed yet is none.
    pub(super) const fn is_lapse(self) -> bool {
        matches!(self, Self::Unverified | Self::Quarantined | Self::Repairing | Self::Failed)
    }

    /// The name as reports and metrics spell it, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Verified => "verified",
            Self::Unverified => "unverified",
            Self::Suspect => "suspect",
            Self::Quarantined => "quarantined",
            Self::Repairing => "repairing",
            Self::Failed => "failed",
        }
    }

    /// Whether a check has failed and was not made good.
    #[must_use]
    pub const fn is_damaged(self) -> bool {
        matches!(self, Self::Suspect | Self::Quarantined | Self::Repairing | Self::Failed)
    }

    /// Whether nobody may check it: it is known to be damaged, and only a repair changes that.
    pub(crate) const fn is_out(self) -> bool {
        matches!(self, Self::Quarantined | Self::Repairing | Self::Failed)
    }

    pub(super) fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Unverified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_number() {
        assert!(ShardState::ALL.into_iter().all(|state| ShardState::of(state as u8) == state));
        assert_eq!(ShardState::of(200), ShardState::Unverified, "what cannot be is not called good");
    }
}
