//! The calls beside the driver's own, through which a test sets the plan and reads the report.

use std::ffi::c_int;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::{STATE, State, lock};
use crate::plan::{Fault, Memory, Plan};

/// What a test can ask of the library, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Forget everything and take this plan.
    Configure(Plan),
    /// The ledger.
    Report,
    /// More faults, counted from now.
    AddFaults(Vec<Fault>),
    /// No more planned faults. A lost or dead device stays so.
    ClearFaults,
    /// Flip one bit now.
    Flip { memory: Memory, offset: u64, bit: u8 },
    /// The bytes of a piece of memory, whoever has access to it.
    Read { memory: Memory, offset: u64, bytes: u64 },
}

/// The state of a process that nobody has configured: the plan of `CUDA_EMULATOR_PLAN`, and a report at exit where
/// `CUDA_EMULATOR_REPORT` names a file.
pub(crate) fn first_state() -> State {
    let plan = match std::env::var("CUDA_EMULATOR_PLAN") {
        Err(_) => Plan::default(),
        Ok(text) => match serde_json::from_str(&text) {
            Ok(plan) => plan,
            Err(error) => {
                // A test that asked for faults must not pass because none came.
                eprintln!("cuda-emulator: CUDA_EMULATOR_PLAN is no plan: {error}");
                std::process::abort();
            }
        },
    };
    if std::env::var_os("CUDA_EMULATOR_REPORT").is_some() {
        // SAFETY: a function of this library, which glibc calls before it unloads it.
        unsafe { libc::atexit(write_report) };
    }
    State::new(plan, 1)
}

extern "C" fn write_report() {
    let Some(path) = std::env::var_os("CUDA_EMULATOR_REPORT") else { return };
    let guard = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(state) = guard.as_ref() else { return };
    let text = serde_json::to_string_pretty(&state.ledger()).unwrap_or_default();
    if let Err(error) = std::fs::write(&path, text) {
        eprintln!("cuda-emulator: the report cannot be written: {error}");
    }
}

/// Forgets all memory, handles and counts.
fn replace(old: &mut State, plan: Plan) {
    let epoch = old.epoch + 1;
    let mut fresh = State::new(plan, epoch);
    fresh.space.arena = std::mem::replace(&mut old.space.arena, super::memory::Arena::new());
    fresh.space.arena.reset();
    *old = fresh;
}

fn answer(state: &mut State, ask: Ask) -> serde_json::Value {
    let done = serde_json::Value::Bool(true);
    match ask {
        Ask::Configure(plan) => {
            replace(state, plan);
            done
        }
        Ask::Report => serde_json::to_value(state.ledger()).unwrap_or_default(),
        Ask::AddFaults(faults) => {
            state.faults.add(faults);
            state.flip_due_bits();
            done
        }
        Ask::ClearFaults => {
            state.faults.clear();
            done
        }
        Ask::Flip { memory, offset, bit } => serde_json::Value::Bool(state.flip(&memory, offset, bit)),
        Ask::Read { memory, offset, bytes } => {
            let Some(piece) = state.space.piece_made_by(&memory) else { return serde_json::Value::Null };
            if offset.checked_add(bytes).is_none_or(|end| end > piece.bytes) {
                return serde_json::Value::Null;
            }
            // SAFETY: inside the piece, whose pages live as long as it does; nothing runs while the lock is held.
            let bytes = unsafe { std::slice::from_raw_parts(piece.pages.host.add(offset as usize), bytes as usize) };
            serde_json::to_value(bytes).unwrap_or_default()
        }
    }
}

/// Takes a question in JSON and hands the answer in JSON to `sink`. 0 when the question was understood.
///
/// # Safety
/// `question` is valid for `bytes` bytes; `sink` may be called once, with its `context`, during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_emulator_ask(
    question: *const u8,
    bytes: usize,
    context: *mut u8,
    sink: extern "C" fn(*mut u8, *const u8, usize),
) -> c_int {
    // SAFETY: the caller's promise.
    let question = unsafe { std::slice::from_raw_parts(question, bytes) };
    let Ok(ask) = serde_json::from_slice(question) else { return 1 };
    let mut guard = lock();
    let Some(state) = guard.as_mut() else { return 2 };
    let text = serde_json::to_vec(&answer(state, ask)).unwrap_or_default();
    drop(guard);
    sink(context, text.as_ptr(), text.len());
    0
}
