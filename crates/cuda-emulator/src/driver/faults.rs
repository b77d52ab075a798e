//! The planned faults, armed and counted.

use std::collections::HashMap;

use super::State;
use super::memory::{Lie, SlowPart};
use crate::plan::{After, Fault, Memory};

/// Calls that answer even where a device is lost: they touch none.
const ALWAYS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxSetCurrent",
    "cuCtxGetCurrent",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxGetState",
];

/// A fault and the number of calls seen when it was set.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    since: HashMap<String, u64>,
    done: bool,
}

/// All faults, and the calls counted.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: Vec<Armed>,
    calls: HashMap<String, u64>,
    all: u64,
    lost: Option<u32>,
    executed: u64,
}

impl Faults {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let mut new = Self::default();
        new.add(faults.to_vec());
        new
    }

    /// Sets more faults; their calls count from now.
    pub(crate) fn add(&mut self, faults: Vec<Fault>) {
        for fault in faults {
            let mut since = self.calls.clone();
            since.insert("*".to_owned(), self.all);
            self.armed.push(Armed { fault, since, done: false });
        }
    }

    /// Takes all faults away; a lost device stays lost.
    pub(crate) fn clear(&mut self) {
        self.armed.clear();
    }

    pub(crate) fn count(&mut self, name: &str) {
        *self.calls.entry(name.to_owned()).or_default() += 1;
        self.all += 1;
    }

    fn seen(&self, armed: &Armed, call: &str) -> u64 {
        let now = if call == "*" { self.all } else { self.calls.get(call).copied().unwrap_or(0) };
        now - armed.since.get(call).copied().unwrap_or(0)
    }

    fn reached(&self, armed: &Armed, after: &After) -> bool {
        self.seen(armed, &after.call) >= after.nth
    }

    /// What the kernel that is executed now fails with.
    pub(crate) fn launch_fails(&mut self) -> Option<u32> {
        self.executed += 1;
        self.armed.iter().find_map(|armed| match armed.fault {
            Fault::Asynchronous { nth, code } if nth == self.executed => Some(code),
            _ => None,
        })
    }

    /// The slow parts of memory.
    pub(crate) fn slow_parts(&self) -> Vec<SlowPart> {
        let part = |armed: &Armed| match &armed.fault {
            Fault::Slow { memory, from, to, factor } => {
                Some(SlowPart { memory: memory.clone(), from: *from, to: *to, factor: *factor })
            }
            _ => None,
        };
        self.armed.iter().filter_map(part).collect()
    }

    /// Whether `cuMemSetAccess` to read-only lies, and whether the readings do so too.
    pub(crate) fn set_access_lies(&self) -> Option<bool> {
        self.armed.iter().find_map(|armed| match armed.fault {
            Fault::SetAccessLies { readings_too } => Some(readings_too),
            _ => None,
        })
    }

    /// The lies about a piece of memory that have begun.
    pub(crate) fn lies(&self, about: &Memory) -> Vec<Lie> {
        let lie = |armed: &Armed| match &armed.fault {
            Fault::Attribute { memory, attribute, value, after } if memory == about && self.reached(armed, after) => {
                Some(Lie::Attribute { attribute: *attribute, value: *value })
            }
            Fault::Properties { memory, allocation_type, location_type, location, after }
                if memory == about && self.reached(armed, after) =>
            {
                Some(Lie::Properties { kind: *allocation_type, location_kind: *location_type, location: *location })
            }
            _ => None,
        };
        self.armed.iter().filter_map(lie).collect()
    }
}

impl State {
    /// What a planned fault makes this call answer.
    pub(super) fn planned_answer(&mut self, name: &str) -> Option<u32> {
        let faults = &self.faults;
        let hit = |call: &str| call == name || call == "*";
        let fails = faults.armed.iter().find_map(|armed| match &armed.fault {
            Fault::Fail { call, nth, code, forever } if hit(call) => {
                let seen = faults.seen(armed, call);
                (seen == *nth || (*forever && seen > *nth)).then_some(*code)
            }
            _ => None,
        });
        let lost = faults.armed.iter().find_map(|armed| match &armed.fault {
            Fault::Lost { call, nth, code } if hit(call) && faults.seen(armed, call) >= *nth => Some(*code),
            _ => None,
        });
        if let Some(code) = lost {
            self.faults.lost.get_or_insert(code);
        }
        let touches = !ALWAYS.contains(&name);
        fails.or(self.faults.lost.filter(|_| touches || lost.is_some()))
    }

    /// Flips the bits whose moment has come.
    pub(super) fn flip_due_bits(&mut self) {
        let due: Vec<usize> = (0..self.faults.armed.len())
            .filter(|&index| {
                let armed = &self.faults.armed[index];
                matches!(&armed.fault, Fault::Flip { after, .. } if !armed.done && self.faults.reached(armed, after))
            })
            .collect();
        for index in due {
            let Fault::Flip { memory, offset, bit, .. } = self.faults.armed[index].fault.clone() else { continue };
            // A piece that is not there yet is waited for.
            self.faults.armed[index].done = self.flip(&memory, offset, bit);
        }
    }

    /// Flips one bit of a piece of memory; false when there is no such byte.
    pub(super) fn flip(&mut self, memory: &Memory, offset: u64, bit: u8) -> bool {
        let Some(piece) = self.space.piece_made_by(memory) else { return false };
        if offset >= piece.bytes {
            return false;
        }
        // SAFETY: inside the piece, whose pages live as long as it does.
        unsafe { *piece.pages.host.add(offset as usize) ^= 1 << (bit & 7) };
        true
    }
}
