//! What the kernel says about this machine, beside what the library measures.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access, statfs};

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Transparent huge pages for shared memory, which regions are made of.
#[derive(Debug)]
pub(crate) struct ShmemHugePages {
    /// The word that is chosen, such as `never`.
    pub(crate) setting: String,
    /// Whether regions that ask for huge pages get them.
    pub(crate) available: bool,
}

impl ShmemHugePages {
    pub(crate) const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

    /// None where the kernel has no such setting.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string(Self::SETTING).ok()?;
        let setting = text.split_once('[')?.1.split_once(']')?.0.to_owned();
        let available = matches!(setting.as_str(), "always" | "within_size" | "advise" | "force");
        Some(Self { setting, available })
    }
}

/// Huge pages that an administrator reserved: size in KiB and number.
pub(crate) fn reserved_huge_pages() -> Vec<(u64, u64)> {
    let mut pages = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let number = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        if let (Some(size), Some(number)) = (size, number.and_then(|number| number.trim().parse().ok())) {
            pages.push((size, number));
        }
    }
    pages.sort_unstable();
    pages
}

/// The path itself, or the nearest directory above it that exists.
pub(crate) fn nearest_existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| path.exists());
    found.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Whether this process may make files there.
pub(crate) fn may_write(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Whether the directory lies in memory, where durability means nothing.
pub(crate) fn is_in_memory(directory: &Path) -> io::Result<bool> {
    let kind = statfs(directory)?.f_type as u64 & 0xffff_ffff;
    Ok(matches!(kind, TMPFS | RAMFS))
}

/// Bytes that an ordinary user may still write there.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(directory)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// How long it takes until a few KiB, appended to a pre-allocated file, are on disk; sorted.
pub(crate) fn sync_latencies(directory: &Path, rounds: usize) -> io::Result<Vec<Duration>> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    file.write_all(&vec![0; 1 << 20])?;
    file.sync_all()?;
    let mut latencies = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let started = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], (round as u64 & 0xff) << 12)?;
        file.sync_data()?;
        latencies.push(started.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// The value below which a part of sorted values lies: 0.5 gives the median.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<_> = (1..=1000).map(Duration::from_micros).collect();
        assert_eq!(quantile(&values, 0.5), Duration::from_micros(500));
        assert_eq!(quantile(&values, 0.99), Duration::from_micros(990));
        assert_eq!(quantile(&values, 0.999), Duration::from_micros(999));
        assert_eq!(quantile(&values[..1], 0.5), Duration::from_micros(1));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn the_nearest_directory_above_a_missing_path_is_found() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(&scratch.path().join("a/b/c")), scratch.path());
        assert_eq!(nearest_existing(Path::new("nothing-here/at/all")), Path::new("."));
        assert!(may_write(scratch.path()).is_ok());
        assert!(sync_latencies(scratch.path(), 3).unwrap().len() == 3);
    }
}
