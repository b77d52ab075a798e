//! What this machine says about its memory and about itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::{DeviceError, DeviceKind, DeviceUuid};

/// Memory of this machine, in bytes, as the kernel states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryFacts {
    /// All of it.
    pub total_bytes: u64,
    /// What could be had without swapping, within the limit of this process's control group.
    pub available_bytes: u64,
}

impl MemoryFacts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`DeviceError::System`] where `/proc/meminfo` cannot be read or understood.
    pub fn measure() -> Result<Self, DeviceError> {
        MemoryMeter::open()?.measure()
    }

    /// What regions may take of it: all that is available but an eighth of that, or a sixteenth of the machine, or 1 GiB,
    /// whichever is least.
    #[must_use]
    pub fn usable_bytes(self) -> u64 {
        let headroom = (self.total_bytes >> 4).min(self.available_bytes >> 3).min(1 << 30);
        self.available_bytes.saturating_sub(headroom)
    }
}

/// The kernel's files about memory, kept open so that measuring again allocates nothing.
#[derive(Debug)]
pub(super) struct MemoryMeter {
    machine: File,
    groups: Vec<ControlGroup>,
}

/// A control group that this process is in, directly or through a group in it.
#[derive(Debug)]
struct ControlGroup {
    limit: File,
    used: File,
    statistics: File,
    names: &'static Names,
}

/// What a version of control groups calls its things.
#[derive(Debug)]
struct Names {
    /// How the line of `/proc/self/cgroup` with the group's path goes on behind its number.
    line: &'static str,
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Rows of `memory.stat`: cached files, and memory files among them.
    cached: &'static str,
    memory_files: &'static str,
}

const VERSION_1: Names = Names {
    line: ":memory:/",
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_cache ",
    memory_files: "total_shmem ",
};

const VERSION_2: Names = Names {
    line: "::/",
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    cached: "file ",
    memory_files: "shmem ",
};

impl MemoryMeter {
    pub(super) fn open() -> Result<Self, DeviceError> {
        let machine = File::open("/proc/meminfo").map_err(unreadable)?;
        Ok(Self { machine, groups: ControlGroup::all().unwrap_or_default() })
    }

    pub(super) fn measure(&self) -> Result<MemoryFacts, DeviceError> {
        let mut buffer = [0; 8192];
        let text = read(&self.machine, &mut buffer).map_err(unreadable)?;
        let field = |name: &str| {
            let kilobytes = row(text, name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
            kilobytes.checked_mul(1024)
        };
        let (Some(total_bytes), Some(available_bytes)) = (field("MemTotal:"), field("MemAvailable:")) else {
            return Err(unreadable(io::ErrorKind::InvalidData.into()));
        };
        let in_groups = self.groups.iter().filter_map(ControlGroup::available_bytes).min().unwrap_or(u64::MAX);
        Ok(MemoryFacts { total_bytes, available_bytes: available_bytes.min(in_groups) })
    }
}

impl ControlGroup {
    /// The process's own group and every one above it, of either version.
    fn all() -> Option<Vec<Self>> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path_of = |names: &Names| {
            let rest = groups
                .lines()
                .find_map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(names.line));
            rest.map(Path::new)
        };
        let found = [&VERSION_1, &VERSION_2].into_iter().filter_map(|names| Some((names, path_of(names)?)));
        Some(found.flat_map(|(names, path)| path.ancestors().filter_map(|path| Self::open(names, path))).collect())
    }

    /// A group, if it limits and counts memory.
    fn open(names: &'static Names, path: &Path) -> Option<Self> {
        let group = Path::new(names.root).join(path);
        let file = |name: &str| File::open(group.join(name)).ok();
        Some(Self { limit: file(names.limit)?, used: file(names.used)?, statistics: file("memory.stat")?, names })
    }

    /// What the group still allows, if it has a limit.
    fn available_bytes(&self) -> Option<u64> {
        let mut buffer = [0; 8192];
        let limit = read(&self.limit, &mut buffer).ok()?.trim().parse::<u64>().ok()?;
        let used = read(&self.used, &mut buffer).ok()?.trim().parse::<u64>().ok()?;
        let statistics = read(&self.statistics, &mut buffer).ok()?;
        let bytes = |name: &str| row(statistics, name)?.trim().parse::<u64>().ok();
        // Cached files can be dropped; memory files (counted as cached too) cannot.
        let droppable = bytes(self.names.cached)?.saturating_sub(bytes(self.names.memory_files)?);
        Some(limit.saturating_sub(used.saturating_sub(droppable)))
    }
}

fn unreadable(source: io::Error) -> DeviceError {
    DeviceError::System { device: DeviceKind::Host.as_str().into(), step: "read /proc/meminfo", source: source.into() }
}

/// The start of a small file of the kernel's, read afresh.
fn read<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let length = file.read_at(buffer, 0)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What follows `name` at the start of a line.
fn row<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// A name for this machine's memory: derived from its machine id, which itself should stay private, or from the boot
/// id where there is none.
pub(super) fn machine_uuid() -> DeviceUuid {
    let identity = ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"]
        .iter()
        .find_map(|path| fs::read(path).ok().filter(|text| !matches!(text.trim_ascii(), b"" | b"uninitialized")))
        .unwrap_or_default();
    let derived = blake3::derive_key("vram-residency 2026 host device uuid v1", identity.trim_ascii());
    let mut uuid = [0; 16];
    for (byte, derived) in uuid.iter_mut().zip(derived) {
        *byte = derived;
    }
    // Version 8 (custom) and the standard variant of RFC 9562.
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut uuid;
    *version = (*version & 0x0f) | 0x80;
    *variant = (*variant & 0x3f) | 0x80;
    DeviceUuid(uuid)
}
