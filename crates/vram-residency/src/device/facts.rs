//! What is said of a device and of its memory: who it is, where bytes are, what stops a write, how much room there is.

use std::fmt;

/// Which kind of memory a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceKind {
    /// Main memory of this machine.
    Host,
    /// A GPU's own memory, through NVIDIA's driver.
    Cuda,
}

impl DeviceKind {
    /// Every kind.
    pub(crate) const ALL: [Self; 2] = [Self::Host, Self::Cuda];

    /// The name as configuration, seals and records spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// 128 bits that name one device for as long as it exists: of a MIG instance, the instance and not its GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceUuid(pub [u8; 16]);

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl serde::Serialize for DeviceUuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As it is printed.
impl<'de> serde::Deserialize<'de> for DeviceUuid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        crate::attest::uuid(&text).ok_or_else(|| serde::de::Error::custom("this is no UUID"))
    }
}

/// Whether a device is a whole GPU, or an instance of one (MIG): so much of its memory and processors, with a UUID of its own.
///
/// As JSON: `mig` (`no`, `of` or `by-name`) and, with `of`, `mig_of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "mig", content = "mig_of", rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "it is or it is not")]
pub enum Mig {
    /// Nothing says so.
    No,
    /// It is an instance of this GPU: the driver states another UUID for the GPU than for the device.
    Of(DeviceUuid),
    /// It is called one; of which GPU the driver does not state.
    ByName,
}

/// The end of a sentence, after a comma; nothing for a whole GPU.
impl fmt::Display for Mig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => Ok(()),
            Self::Of(gpu) => write!(f, ", a MIG instance of the GPU {gpu}"),
            Self::ByName => f.write_str(", by its name a MIG instance"),
        }
    }
}

/// Who a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// Which kind of memory it is.
    pub kind: DeviceKind,
    /// Which one it is.
    pub uuid: DeviceUuid,
}

/// Where a region's bytes physically are, as the kernel or the driver granted it, never as hoped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Residency {
    /// In main memory, locked: the kernel does not page it out.
    HostLocked,
    /// In main memory, but the kernel may page it out.
    HostPageable,
    /// In a GPU's own memory, pinned to it, as its driver states.
    Vram,
}

impl Residency {
    /// Every class.
    pub(crate) const ALL: [Self; 3] = [Self::HostLocked, Self::HostPageable, Self::Vram];

    /// The name as seals, records and reports spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HostLocked => "host-locked",
            Self::HostPageable => "host-pageable",
            Self::Vram => "vram",
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What stops a write to a sealed region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Protection {
    /// The MMU and the kernel, shown by the device's self-test.
    ReadOnly,
    /// Nothing that was shown to work: writes are a matter of good manners.
    Advisory,
}

impl Protection {
    /// Every class.
    pub(crate) const ALL: [Self; 2] = [Self::ReadOnly, Self::Advisory];

    /// Whether it stops as much as another.
    pub(crate) const fn is_at_least(self, other: Self) -> bool {
        matches!((self, other), (Self::ReadOnly, _) | (_, Self::Advisory))
    }

    /// The name as seals, records and reports spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Advisory => "advisory",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a driver states about a region and must not: the memory is another than the device's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Foreign {
    /// The device has no memory of its own.
    #[error("the GPU shares the processor's memory")]
    Integrated,
    /// Managed memory: the driver moves it to and fro.
    #[error("it is managed memory, which the driver moves to and fro")]
    Managed,
    /// It is no device's memory.
    #[error("it is not a GPU's memory")]
    NotOfDevice,
    /// The processor can address it.
    #[error("the processor can address it")]
    HostAddressable,
    /// It is on another device.
    #[error("it is on another GPU")]
    OtherDevice,
    /// It is not mapped as a whole.
    #[error("it is not mapped as a whole")]
    NotMapped,
    /// It is backed by other memory than when it was sealed.
    #[error("it is backed by other memory than when it was sealed")]
    BackingChanged,
    /// It is no allocation that is pinned to the device.
    #[error("it is not pinned to the GPU")]
    NotPinned,
}

/// Parts of a region that were read many times more slowly than most of it, also when they were read again: perhaps not in
/// the device's memory any more, whatever the driver states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[expect(clippy::exhaustive_structs, reason = "a place and a number of blocks")]
pub struct SuspectedPaged {
    /// The first of them.
    pub first_block: u64,
    /// How many blocks were in slow launches.
    pub blocks: u64,
}

/// What was found when a region's memory was asked about anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "devices make it")]
pub struct MemoryCheck {
    /// Where the bytes are.
    pub residency: Residency,
    /// What stops a write.
    pub protection: Protection,
    /// What the driver states and must not.
    pub foreign: Option<Foreign>,
    /// What the speed of the last scans makes one suspect.
    pub suspected_paged: Option<SuspectedPaged>,
}

/// A device's bytes: how many it may hold, and how many are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Capacity {
    /// Most bytes that may be reserved at one time.
    pub total_bytes: u64,
    /// Bytes reserved now, rounded up to whole pages of the device.
    pub used_bytes: u64,
}

impl Capacity {
    /// Bytes that can still be reserved.
    #[must_use]
    pub const fn available_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }
}
