//! Device memory as one launch sees it: what is where, what may be done with it, and what it costs.

use super::Trap;
use crate::report::Cause;

/// A mapped range.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) host: *mut u8,
    /// 0 none, 1 read, 3 read and write.
    pub(crate) access: u8,
    /// Slow parts: from, to, factor.
    pub(crate) slow: Vec<(u64, u64, f64)>,
}

/// All ranges of a device, by address.
#[derive(Debug)]
pub(crate) struct View {
    ranges: Vec<Range>,
    last: usize,
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// What slow parts cost on top, in bytes.
    pub(crate) extra: f64,
}

impl View {
    /// `ranges` are sorted by their start.
    pub(crate) fn new(ranges: Vec<Range>) -> Self {
        Self { ranges, last: 0, bytes: 0, extra: 0.0 }
    }

    /// Where an access goes for the host. `bytes` is a power of two, and the address must be a multiple of it.
    #[inline(always)]
    pub(crate) fn at(&mut self, address: u64, bytes: u64, write: bool) -> Result<*mut u8, Trap> {
        if address & (bytes - 1) != 0 {
            return Err(Trap::new(Cause::Misaligned, address));
        }
        let mut range = match self.ranges.get(self.last) {
            Some(range) if address.wrapping_sub(range.start) < range.bytes => range,
            _ => {
                let after = self.ranges.partition_point(|range| range.start <= address);
                let Some(index) = after.checked_sub(1) else { return Err(Trap::new(Cause::OutOfBounds, address)) };
                self.last = index;
                &self.ranges[index]
            }
        };
        let offset = address.wrapping_sub(range.start);
        if offset >= range.bytes || range.bytes - offset < bytes {
            return Err(Trap::new(Cause::OutOfBounds, address));
        }
        if range.access & 1 == 0 {
            return Err(Trap::new(Cause::NoAccess, address));
        }
        if write && range.access & 2 == 0 {
            return Err(Trap::new(Cause::ReadOnly, address));
        }
        self.bytes += bytes;
        if !range.slow.is_empty() {
            let extra: f64 =
                range.slow.iter().filter(|part| offset >= part.0 && offset < part.1).map(|part| part.2 - 1.0).sum();
            self.extra += extra * bytes as f64;
            range = &self.ranges[self.last];
        }
        // SAFETY: the offset is inside the range, whose pages stay mapped while the launch runs.
        Ok(unsafe { range.host.add(offset as usize) })
    }
}
