//! The driver: one state for the process, behind one lock, and the exported calls that work on it.

pub(crate) mod abi;
mod calls;
mod contexts;
pub(crate) mod control;
pub mod declared;
mod devices;
mod faults;
mod graphs;
mod launches;
pub(crate) mod memory;
mod modules;
mod pointers;
mod queue;
mod streams;
mod transfers;
mod virtual_memory;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::code;
use faults::Faults;
use memory::Space;
use modules::{Function, LoadedModule};
use queue::{Event, Stream};

use crate::plan::Plan;
use crate::report::{Cause, Kind, Live, Report, Violation};

/// What a driver call answers: nothing, or a `CUresult`.
pub(crate) type Answer = Result<(), u32>;

/// A device as far as this process uses it.
#[derive(Debug, Default)]
pub(crate) struct DeviceState {
    /// The primary context, while it is retained.
    context: Option<u64>,
    retained: u32,
    /// Bytes taken by this process.
    bytes: u64,
    /// What every call on it answers since it failed.
    dead: Option<u32>,
}

/// A handle and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    device: usize,
    call: &'static str,
    nth: u64,
}

/// A graph: copies in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    work: Vec<queue::Work>,
}

/// Everything.
pub(crate) struct State {
    plan: Plan,
    /// Counts resets, so that what a thread remembers from before is not taken for something of now.
    epoch: u64,
    initialized: bool,
    faults: Faults,
    devices: Vec<DeviceState>,
    space: Space,
    next_handle: u64,
    contexts: BTreeMap<u64, Origin>,
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    modules: BTreeMap<u64, LoadedModule>,
    functions: HashMap<u64, Function>,
    graphs: BTreeMap<u64, (Origin, Graph)>,
    graph_execs: BTreeMap<u64, (Origin, Graph)>,
    /// Handles that were released, and what they were.
    gone: HashSet<(Kind, u64)>,
    /// Releases, and waits for streams, that a fault or a dead device refused: call and handle.
    refused: HashSet<(&'static str, u64)>,
    report: Report,
    current: (&'static str, u64),
}

/// The wait that has to come before what a stream's work uses is given back.
pub(crate) const WAIT: &str = "cuStreamSynchronize";

/// Whether a wait that answers so says nothing of the work. After the others, which end the context, nothing runs any more.
fn leaves_work(code: u32) -> bool {
    !matches!(code, 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 810)
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The state, made from `CUDA_EMULATOR_PLAN` when it is first needed.
pub(crate) fn lock() -> MutexGuard<'static, Option<State>> {
    let mut guard = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(control::first_state());
    }
    guard
}

/// What every exported call goes through: count it, let a planned fault answer for it, and remember a refused release.
pub(crate) fn call(name: &'static str, releases: Option<u64>, work: impl FnOnce(&mut State) -> Answer) -> u32 {
    let mut guard = lock();
    let Some(state) = guard.as_mut() else { return code::UNKNOWN };
    let nth = state.report.calls.entry(name.to_owned()).or_default();
    *nth += 1;
    state.current = (name, *nth);
    state.faults.count(name);
    let planned = state.planned_answer(name);
    let answer = match planned {
        Some(code) => Err(code),
        None => work(state),
    };
    if let (Some(handle), Err(code)) = (releases, answer)
        && if name == WAIT {
            leaves_work(code)
        } else {
            planned.is_some() || state.devices.iter().any(|device| device.dead == Some(code))
        }
    {
        state.refused.insert((name, handle));
    }
    state.flip_due_bits();
    answer.err().unwrap_or(0)
}

impl State {
    pub(crate) fn new(plan: Plan, epoch: u64) -> Self {
        let devices = plan.devices.iter().map(|_| DeviceState::default()).collect();
        Self {
            faults: Faults::new(&plan.faults),
            plan,
            epoch,
            initialized: false,
            devices,
            space: Space::new(),
            next_handle: 0x5eed_0000,
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: HashMap::new(),
            graphs: BTreeMap::new(),
            graph_execs: BTreeMap::new(),
            gone: HashSet::new(),
            refused: HashSet::new(),
            report: Report::default(),
            current: ("", 0),
        }
    }

    /// A handle that was never given before.
    fn fresh_handle(&mut self) -> u64 {
        self.next_handle += 16;
        self.next_handle
    }

    fn origin(&self, device: usize) -> Origin {
        Origin { device, call: self.current.0, nth: self.current.1 }
    }

    /// Fails unless `cuInit` was called.
    fn ready(&self) -> Answer {
        if self.initialized { Ok(()) } else { Err(code::NOT_INITIALIZED) }
    }

    /// The device of that ordinal, whatever state it is in.
    fn ordinal(&self, device: i32) -> Result<usize, u32> {
        self.ready()?;
        usize::try_from(device).ok().filter(|&index| index < self.devices.len()).ok_or(code::INVALID_DEVICE)
    }

    /// Fails with what a dead device answers.
    fn alive(&self, device: usize) -> Answer {
        self.devices[device].dead.map_or(Ok(()), Err)
    }

    /// The current context's device, if that is alive.
    fn device(&self) -> Result<usize, u32> {
        let (_, device) = self.context()?;
        self.alive(device)?;
        Ok(device)
    }

    /// What to answer for a handle that is not known: recorded when it was released before.
    fn unknown(&mut self, handle: u64, kind: Kind, release: bool) -> u32 {
        if self.gone.contains(&(kind, handle)) {
            let text = format!("{kind:?} {handle:#x} by {}", self.current.0);
            if release { self.report.double_frees.push(text) } else { self.report.uses_after_free.push(text) }
        }
        match kind {
            Kind::Context => code::INVALID_CONTEXT,
            Kind::Registered => code::NOT_REGISTERED,
            Kind::Handle | Kind::Reservation | Kind::Mapping | Kind::Allocation | Kind::Managed | Kind::Host => {
                code::INVALID_VALUE
            }
            _ => code::INVALID_HANDLE,
        }
    }

    /// Records an access that the hardware refused, and what it answers for it.
    fn violation(&mut self, cause: Cause, code: u32, address: u64, by: String) -> u32 {
        if cause == Cause::Released {
            self.report.uses_after_free.push(format!("memory at {address:#x} by {by}"));
        }
        self.report.violations.push(Violation { cause, code, address, by });
        code
    }

    /// The device is beyond use from here on.
    fn kill(&mut self, device: usize, code: u32) -> u32 {
        *self.devices[device].dead.get_or_insert(code)
    }

    /// The ledger as it stands.
    pub(crate) fn ledger(&self) -> Report {
        let mut report = self.report.clone();
        let waits = self.refused.iter().any(|(call, _)| *call == WAIT);
        let refused = |call: &'static str, handle: u64| waits || self.refused.contains(&(call, handle));
        for (index, device) in self.devices.iter().enumerate() {
            if let Some((handle, origin)) = device.context.and_then(|handle| self.contexts.get_key_value(&handle)) {
                let gone = refused("cuDevicePrimaryCtxRelease_v2", index as u64);
                report.live.push(origin.live(Kind::Context, *handle, 0, gone));
            }
        }
        report.live.extend(self.live_in_contexts(None));
        for piece in self.space.pieces.values() {
            if piece.kind == Kind::Handle && piece.references > 0 {
                report.live.push(Live {
                    kind: Kind::Handle,
                    handle: piece.handle,
                    bytes: piece.bytes,
                    made_by: piece.made_by.call.clone(),
                    nth: piece.made_by.nth,
                    release_refused: refused("cuMemRelease", piece.handle),
                });
            }
        }
        let held = |start: u64, bytes: u64| {
            waits || self.refused.iter().any(|&(call, at)| call == "cuMemUnmap" && at >= start && at - start < bytes)
        };
        for (&start, mapping) in &self.space.mappings {
            let piece = &self.space.pieces[&mapping.piece];
            if piece.kind != Kind::Handle {
                continue;
            }
            let around = self.space.reservation(start).map_or((start, 1), |(at, range)| (at, range.bytes));
            report.live.push(Live {
                kind: Kind::Mapping,
                handle: start,
                bytes: mapping.bytes,
                made_by: piece.made_by.call.clone(),
                nth: piece.made_by.nth,
                release_refused: held(around.0, around.1),
            });
        }
        for (&start, range) in &self.space.reservations {
            report.live.push(Live {
                kind: Kind::Reservation,
                handle: start,
                bytes: range.bytes,
                made_by: "cuMemAddressReserve".to_owned(),
                nth: range.nth,
                release_refused: refused("cuMemAddressFree", start) || held(start, range.bytes),
            });
        }
        report.pending = self.streams.values().map(|stream| stream.work.len() as u64).sum();
        report.device_bytes = self.devices.iter().map(|device| device.bytes).collect();
        report
    }

    /// What belongs to a device's context, or to any.
    fn live_in_contexts(&self, device: Option<usize>) -> Vec<Live> {
        let mut live = Vec::new();
        let wanted = |at: usize| device.is_none_or(|device| device == at);
        let waits = self.refused.iter().any(|(call, _)| *call == WAIT);
        let refused = |call: &'static str, handle: u64| waits || self.refused.contains(&(call, handle));
        for (&handle, stream) in self.streams.iter().filter(|(_, stream)| !stream.default && !stream.ended) {
            if wanted(stream.origin.device) {
                live.push(stream.origin.live(Kind::Stream, handle, 0, refused("cuStreamDestroy_v2", handle)));
            }
        }
        for (&handle, event) in self.events.iter().filter(|(_, event)| wanted(event.origin.device)) {
            live.push(event.origin.live(Kind::Event, handle, 0, refused("cuEventDestroy_v2", handle)));
        }
        for (&handle, module) in self.modules.iter().filter(|(_, module)| wanted(module.origin.device)) {
            live.push(module.origin.live(Kind::Module, handle, 0, refused("cuModuleUnload", handle)));
        }
        for (&handle, (origin, _)) in self.graphs.iter().filter(|(_, (origin, _))| wanted(origin.device)) {
            live.push(origin.live(Kind::Graph, handle, 0, refused("cuGraphDestroy", handle)));
        }
        for (&handle, (origin, _)) in self.graph_execs.iter().filter(|(_, (origin, _))| wanted(origin.device)) {
            live.push(origin.live(Kind::GraphExec, handle, 0, refused("cuGraphExecDestroy", handle)));
        }
        for (&start, mapping) in &self.space.mappings {
            let piece = &self.space.pieces[&mapping.piece];
            let release = match piece.kind {
                Kind::Allocation | Kind::Managed => "cuMemFree_v2",
                Kind::Host => "cuMemFreeHost",
                Kind::Registered => "cuMemHostUnregister",
                _ => continue,
            };
            if wanted(piece.device) {
                live.push(Live {
                    kind: piece.kind,
                    handle: start,
                    bytes: piece.bytes,
                    made_by: piece.made_by.call.clone(),
                    nth: piece.made_by.nth,
                    release_refused: refused(release, start),
                });
            }
        }
        live
    }
}

impl Origin {
    fn live(&self, kind: Kind, handle: u64, bytes: u64, release_refused: bool) -> Live {
        Live { kind, handle, bytes, made_by: self.call.to_owned(), nth: self.nth, release_refused }
    }
}
