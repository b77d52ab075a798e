//! The ledger and the enforcement: what a program does wrong is refused and told.
#![allow(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "calls of a C library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "test")]

mod common;

use common::{Driver, prop};
use cuda_emulator::{After, Cause, Emulator, Fault, Kind, Memory, Plan, library};

const PAGE: u64 = 2 << 20;

fn driver() -> Driver {
    Driver::load(&library())
}

#[test]
fn memory_is_made_mapped_filled_sealed_and_released() {
    let emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let (mut free, mut total) = (0_u64, 0_u64);
    let info = |free: &mut u64, total: &mut u64| {
        driver.ok("cuMemGetInfo_v2", &[std::ptr::from_mut(free) as u64, std::ptr::from_mut(total) as u64]);
    };
    info(&mut free, &mut total);
    assert_eq!((free, total), (4 << 30, 4 << 30));
    let (handle, address) = driver.map(2 * PAGE);
    info(&mut free, &mut total);
    assert_eq!(free, total - 2 * PAGE);
    assert_eq!(driver.access(address, 2 * PAGE, 3), 0);
    let bytes: Vec<u8> = (0..2 * PAGE).map(|i| (i % 251) as u8).collect();
    driver.ok("cuMemcpyHtoD_v2", &[address, bytes.as_ptr() as u64, 2 * PAGE]);
    assert_eq!(driver.access(address, 2 * PAGE, 1), 0);
    assert_eq!(driver.download(address, bytes.len()), bytes);
    let mut flags = 0_u32;
    driver.ok("cuPointerGetAttribute", &[(&raw mut flags) as u64, 16, address + 5]);
    assert_eq!(flags, 1);
    assert_eq!(emulator.report().live_of(Kind::Mapping).len(), 1);
    driver.unmap(handle, address, 2 * PAGE);
    driver.stop();
}

/// The documentation of `cuMemSetAccess` leaves open what it takes, so both kinds of driver are there.
#[test]
fn access_changes_in_parts_where_the_driver_takes_parts() {
    for parts in [false, true] {
        let mut plan = Plan::default();
        plan.devices[0].access_in_parts = parts;
        let _emulator = Emulator::lock(plan);
        let driver = driver();
        driver.start();
        let (handle, address) = driver.map(3 * PAGE);
        assert_eq!(driver.access(address, 3 * PAGE, 3), 0);
        driver.ok("cuMemsetD8_v2", &[address, 1, 3 * PAGE]);
        assert_eq!(driver.access(address, 3 * PAGE, 1), 0);
        let opened = driver.access(address + PAGE, PAGE, 3);
        assert_eq!(opened, if parts { 0 } else { 1 });
        assert_ne!(driver.access(address + PAGE, PAGE / 2, 3), 0, "half a granule");
        assert_ne!(driver.access(address + PAGE, 3 * PAGE, 3), 0, "more than is mapped");
        let mut flags = 0_u64;
        let location = [1_u32, 0];
        let read = |flags: &mut u64, at: u64| {
            let to = std::ptr::from_mut(flags) as u64;
            driver.call("cuMemGetAccess", &[to, location.as_ptr() as u64, at])
        };
        let expected = if parts { [1, 3, 1] } else { [1, 1, 1] };
        for (page, expected) in (0..).zip(expected) {
            assert_eq!(read(&mut flags, address + page * PAGE), 0);
            assert_eq!(flags, expected, "page {page}, parts: {parts}");
        }
        if parts {
            driver.ok("cuMemsetD8_v2", &[address + PAGE, 2, PAGE]);
            assert_eq!(driver.download(address + PAGE - 1, 2), [1, 2]);
            assert_eq!(driver.download(address + 2 * PAGE - 1, 2), [2, 1]);
        }
        assert_ne!(driver.call("cuMemUnmap", &[address, PAGE]), 0, "a part of a mapping");
        assert_ne!(driver.call("cuMemUnmap", &[address + PAGE, 2 * PAGE]), 0, "a part of a mapping");
        let plain = driver.get("cuMemAlloc_v2", &[8]);
        assert_ne!(read(&mut flags, plain), 0, "memory whose access nobody set");
        driver.ok("cuMemFree_v2", &[plain]);
        driver.unmap(handle, address, 3 * PAGE);
        driver.stop();
    }
}

#[test]
fn registered_memory_of_the_process_is_told_and_stays_its_own() {
    let mut emulator = Emulator::lock(Plan::default());
    // The second release below is meant.
    emulator.leaves();
    let driver = driver();
    driver.start();
    let mut bytes = vec![7_u8; 5000];
    let address = bytes.as_mut_ptr() as u64;
    driver.ok("cuMemHostRegister_v2", &[address, 5000, 0]);
    assert_eq!(driver.call("cuMemHostRegister_v2", &[address + 100, 8, 0]), 712);
    let mut kind = 0_u32;
    driver.ok("cuPointerGetAttribute", &[(&raw mut kind) as u64, 2, address + 1]);
    assert_eq!((kind, emulator.report().live_of(Kind::Registered).len()), (1, 1));
    driver.ok("cuMemHostUnregister", &[address]);
    assert_eq!(driver.call("cuMemHostUnregister", &[address]), 713);
    assert!(bytes.iter().all(|byte| *byte == 7));
    assert_eq!(emulator.report().double_frees.len(), 1);
    driver.stop();
}

#[test]
fn released_memory_stays_while_it_is_mapped() {
    let emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let (handle, address) = driver.map(PAGE);
    driver.ok("cuMemRelease", &[handle]);
    assert_eq!(emulator.report().device_bytes, [PAGE]);
    assert_eq!(driver.access(address, PAGE, 3), 0);
    driver.ok("cuMemsetD8_v2", &[address, 7, PAGE]);
    assert_eq!(driver.download(address, 4), [7; 4]);
    assert_ne!(driver.call("cuMemAddressFree", &[address, PAGE]), 0, "something is mapped there");
    driver.ok("cuMemUnmap", &[address, PAGE]);
    assert_eq!(emulator.report().device_bytes, [0]);
    driver.ok("cuMemAddressFree", &[address, PAGE]);
    driver.stop();
}

#[test]
fn the_driver_refuses_what_the_real_one_refuses() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    let mut context = 0_u64;
    assert_eq!(driver.call("cuDevicePrimaryCtxRetain", &[(&raw mut context) as u64, 0]), 3, "before cuInit");
    driver.ok("cuInit", &[0]);
    let mut out = 0_u64;
    let out_at = (&raw mut out) as u64;
    assert_eq!(driver.call("cuMemAlloc_v2", &[out_at, 64]), 201, "without a context");
    driver.start();
    let made = prop();
    let prop_at = made.as_ptr() as u64;
    assert_eq!(driver.call("cuMemCreate", &[out_at, PAGE + 4096, prop_at, 0]), 1, "no multiple of the granularity");
    assert_eq!(driver.call("cuMemCreate", &[out_at, 5 << 30, prop_at, 0]), 2, "more than there is");
    let handle = driver.get("cuMemCreate", &[2 * PAGE, prop_at, 0]);
    let address = driver.get("cuMemAddressReserve", &[4 * PAGE, 0, 0, 0]);
    assert_eq!(driver.call("cuMemMap", &[address, PAGE, 0, handle, 0]), 1, "a part of the allocation");
    assert_eq!(driver.call("cuMemMap", &[address, PAGE, PAGE, handle, 0]), 1, "from its middle");
    assert_eq!(driver.call("cuMemMap", &[address + 4096, 2 * PAGE, 0, handle, 0]), 1, "misaligned");
    assert_eq!(driver.call("cuMemMap", &[address + 3 * PAGE, 2 * PAGE, 0, handle, 0]), 1, "over the reservation's end");
    assert_eq!(driver.access(address, 2 * PAGE, 3), 1, "not mapped");
    driver.ok("cuMemMap", &[address, 2 * PAGE, 0, handle, 0]);
    assert_eq!(driver.call("cuMemMap", &[address, 2 * PAGE, 0, handle, 0]), 1, "mapped already");
    assert_eq!(driver.access(address, PAGE, 3), 1, "half of a mapping");
    assert_eq!(driver.call("cuMemUnmap", &[address, PAGE]), 1, "half of a mapping");
    assert_eq!(driver.call("cuMemRetainAllocationHandle", &[out_at, address + 3 * PAGE]), 1, "nothing there");
}

/// A violation of access as the report and the later calls tell it.
fn refused(flags: Option<u32>, call: &str, cause: Cause) {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    driver.start();
    let (_, address) = driver.map(PAGE);
    if let Some(flags) = flags {
        assert_eq!(driver.access(address, PAGE, flags), 0);
    }
    let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
    let bytes = [1_u8; 16];
    let arguments = match call {
        "cuMemsetD8Async" => vec![address + 64, 0, 16, stream],
        _ => vec![address + 64, bytes.as_ptr() as u64, 16, stream],
    };
    driver.ok(call, &arguments);
    assert_eq!(driver.call("cuStreamSynchronize", &[stream]), 700, "told by the next call that waits");
    assert_eq!(driver.call("cuMemUnmap", &[address, PAGE]), 700, "and by every call after it");
    assert_eq!(driver.call("cuCtxSynchronize", &[]), 700);
    let report = emulator.report();
    assert_eq!(report.violations.len(), 1);
    assert_eq!((report.violations[0].cause, report.violations[0].address), (cause, address + 64));
    assert!(report.violations[0].by.contains(call), "{report:?}");
    assert!(report.live_of(Kind::Mapping)[0].release_refused, "a refused release is no leak");
}

#[test]
fn a_write_into_a_read_only_mapping_is_refused_and_told() {
    refused(Some(1), "cuMemcpyHtoDAsync_v2", Cause::ReadOnly);
    refused(Some(1), "cuMemsetD8Async", Cause::ReadOnly);
}

#[test]
fn memory_without_access_is_refused_and_told() {
    refused(None, "cuMemcpyHtoDAsync_v2", Cause::NoAccess);
    refused(Some(0), "cuMemsetD8Async", Cause::NoAccess);
}

#[test]
fn a_graph_of_a_copy_into_a_read_only_mapping_is_refused() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    let context = driver.start();
    let (_, address) = driver.map(PAGE);
    let source = driver.upload(&[9; 64]);
    let graph = driver.get("cuGraphCreate", &[0]);
    let mut copy = [0_u64; 25];
    (copy[4], copy[6], copy[15], copy[17]) = (2, source, 2, address);
    (copy[22], copy[23], copy[24]) = (64, 1, 1);
    driver.get("cuGraphAddMemcpyNode", &[graph, 0, 0, copy.as_ptr() as u64, context]);
    let exec = driver.get("cuGraphInstantiateWithFlags", &[graph, 0]);
    let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
    assert_eq!(driver.access(address, PAGE, 3), 0);
    driver.ok("cuGraphLaunch", &[exec, stream]);
    driver.ok("cuStreamSynchronize", &[stream]);
    assert_eq!(driver.download(address, 64), [9; 64]);
    assert_eq!(driver.access(address, PAGE, 1), 0);
    driver.ok("cuGraphLaunch", &[exec, stream]);
    assert_eq!(driver.call("cuStreamSynchronize", &[stream]), 700);
    assert_eq!(emulator.report().violations[0].cause, Cause::ReadOnly);
}

#[test]
fn leaks_are_listed_with_the_call_that_made_them() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    driver.start();
    driver.map(PAGE);
    driver.get("cuMemAlloc_v2", &[100]);
    driver.get("cuMemHostAlloc", &[100, 0]);
    driver.get("cuStreamCreateWithPriority", &[1, 0]);
    driver.get("cuEventCreate", &[0]);
    driver.stop();
    let report = emulator.report();
    let mut kinds: Vec<Kind> = report.leaks().iter().map(|live| live.kind).collect();
    kinds.sort();
    let expected =
        [Kind::Handle, Kind::Reservation, Kind::Mapping, Kind::Allocation, Kind::Host, Kind::Stream, Kind::Event];
    assert_eq!(kinds, expected);
    assert!(report.leaks().iter().any(|live| live.made_by == "cuMemAlloc_v2" && live.nth == 1 && live.bytes == 100));
    assert!(report.complaint().unwrap().contains("freed only with its context: Stream"));
}

#[test]
fn double_frees_and_uses_after_free_are_listed() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    driver.start();
    let (handle, address) = driver.map(PAGE);
    driver.unmap(handle, address, PAGE);
    assert_ne!(driver.call("cuMemRelease", &[handle]), 0);
    assert_ne!(driver.call("cuMemUnmap", &[address, PAGE]), 0);
    let event = driver.get("cuEventCreate", &[0]);
    driver.ok("cuEventDestroy_v2", &[event]);
    assert_eq!(driver.call("cuEventDestroy_v2", &[event]), 400);
    let plain = driver.get("cuMemAlloc_v2", &[64]);
    driver.ok("cuMemFree_v2", &[plain]);
    assert_ne!(driver.call("cuMemFree_v2", &[plain]), 0);
    assert_eq!(emulator.report().double_frees.len(), 4, "{:?}", emulator.report().double_frees);
    assert_eq!(emulator.report().uses_after_free.len(), 0);
    assert_eq!(driver.call("cuEventRecord", &[event, 0]), 400);
    assert_ne!(driver.call("cuMemsetD8_v2", &[plain, 0, 4]), 0);
    assert_eq!(emulator.report().uses_after_free.len(), 2, "{:?}", emulator.report().uses_after_free);
}

#[test]
fn what_nobody_waited_for_is_not_done() {
    let emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let pinned = driver.get("cuMemHostAlloc", &[64, 0]);
    let memory = driver.upload(&[0; 64]);
    let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
    let event = driver.get("cuEventCreate", &[2]);
    // SAFETY: 64 bytes that the driver gave.
    unsafe { (pinned as *mut u8).write_bytes(1, 64) };
    driver.ok("cuMemcpyHtoDAsync_v2", &[memory, pinned, 64, stream]);
    driver.ok("cuEventRecord", &[event, stream]);
    // The staging buffer is used again before the copy is done: the copy has the new bytes.
    // SAFETY: as above.
    unsafe { (pinned as *mut u8).write_bytes(2, 64) };
    assert_eq!(emulator.report().pending, 2);
    assert_eq!(driver.download(memory, 1), [0], "a stream that does not wait for the default one");
    assert_eq!(driver.call("cuEventQuery", &[event]), 600);
    assert_eq!(driver.call("cuEventQuery", &[event]), 600);
    assert_eq!(driver.call("cuEventQuery", &[event]), 0);
    assert_eq!(driver.download(memory, 64), [2; 64]);
    // Bytes of pageable memory are taken at once.
    let mut own = [3_u8; 64];
    driver.ok("cuMemcpyHtoDAsync_v2", &[memory, own.as_ptr() as u64, 64, stream]);
    own.fill(4);
    driver.ok("cuStreamSynchronize", &[stream]);
    assert_eq!(driver.download(memory, 64), [3; 64]);
    driver.ok("cuMemFreeHost", &[pinned]);
    driver.ok("cuMemFree_v2", &[memory]);
    driver.ok("cuEventDestroy_v2", &[event]);
    driver.ok("cuStreamDestroy_v2", &[stream]);
    driver.stop();
}

/// The header says that the call returns at once: who gives memory back behind it has waited for nothing.
#[test]
fn a_stream_that_is_destroyed_still_has_its_work() {
    for waits in [true, false] {
        let mut emulator = Emulator::lock(Plan::default());
        let driver = driver();
        driver.start();
        let (handle, address) = driver.map(PAGE);
        assert_eq!(driver.access(address, PAGE, 3), 0);
        let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
        driver.ok("cuMemsetD8Async", &[address, 5, PAGE, stream]);
        driver.ok("cuStreamDestroy_v2", &[stream]);
        assert_eq!(emulator.report().pending, 1);
        assert_eq!(driver.call("cuStreamSynchronize", &[stream]), 400, "it cannot be named any more");
        if waits {
            driver.ok("cuCtxSynchronize", &[]);
            assert_eq!(driver.download(address, 4), [5; 4]);
        }
        driver.unmap(handle, address, PAGE);
        assert_eq!(driver.call("cuCtxSynchronize", &[]), if waits { 0 } else { 700 });
        assert_eq!(emulator.report().violations.len(), usize::from(!waits));
        // What it was told is meant.
        emulator.leaves();
    }
}

#[test]
fn a_stream_that_waits_for_an_event_of_another_sees_its_work() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let memory = driver.upload(&[0; 8]);
    let (first, second) =
        (driver.get("cuStreamCreateWithPriority", &[1, 0]), driver.get("cuStreamCreateWithPriority", &[1, 0]));
    let event = driver.get("cuEventCreate", &[0]);
    let copy = driver.get("cuMemAlloc_v2", &[8]);
    driver.ok("cuMemsetD8Async", &[memory, 5, 8, first]);
    driver.ok("cuEventRecord", &[event, first]);
    driver.ok("cuStreamWaitEvent", &[second, event, 0]);
    driver.ok("cuMemcpyDtoDAsync_v2", &[copy, memory, 8, second]);
    driver.ok("cuStreamSynchronize", &[second]);
    assert_eq!(driver.download(copy, 8), [5; 8]);
    for stream in [first, second] {
        driver.ok("cuStreamDestroy_v2", &[stream]);
    }
    driver.ok("cuEventDestroy_v2", &[event]);
    driver.ok("cuMemFree_v2", &[copy]);
    driver.ok("cuMemFree_v2", &[memory]);
    driver.stop();
}

#[test]
fn planned_failures_come_at_their_call_once_or_for_ever() {
    let plan = Plan::default().fault(Fault::fail_once("cuMemAlloc_v2", 2, 2)).fault(Fault::fail_forever(
        "cuEventCreate",
        2,
        999,
    ));
    let mut emulator = Emulator::lock(plan);
    emulator.leaves();
    let driver = driver();
    driver.start();
    let mut out = 0_u64;
    let at = (&raw mut out) as u64;
    let answers: Vec<u32> = (0..3).map(|_| driver.call("cuMemAlloc_v2", &[at, 8])).collect();
    assert_eq!(answers, [0, 2, 0]);
    let answers: Vec<u32> = (0..3).map(|_| driver.call("cuEventCreate", &[at, 0])).collect();
    assert_eq!(answers, [0, 999, 999]);
    emulator.add_faults(vec![Fault::fail_once("cuMemAlloc_v2", 1, 3)]);
    assert_eq!(driver.call("cuMemAlloc_v2", &[at, 8]), 3, "counted from when it was set");
    emulator.clear_faults();
    driver.ok("cuEventCreate", &[at, 0]);
}

#[test]
fn a_lost_device_stays_lost() {
    let mut emulator = Emulator::lock(Plan::default().fault(Fault::lost("cuCtxSynchronize", 2, 214)));
    emulator.leaves();
    let driver = driver();
    driver.start();
    let memory = driver.upload(&[1; 8]);
    driver.ok("cuCtxSynchronize", &[]);
    assert_eq!(driver.call("cuCtxSynchronize", &[]), 214);
    assert_eq!(driver.call("cuMemsetD8_v2", &[memory, 0, 8]), 214);
    assert_eq!(driver.call("cuMemFree_v2", &[memory]), 214);
    assert!(emulator.report().leaks().iter().all(|live| live.kind == Kind::Context));
    driver.stop();
    assert_eq!(emulator.report().leaks(), Vec::<&cuda_emulator::Live>::new());
}

#[test]
fn bits_flip_when_planned_and_when_asked() {
    let flip =
        Fault::Flip { memory: Memory::allocated(1), offset: 3, bit: 7, after: After::call("cuMemcpyHtoD_v2", 1) };
    let emulator = Emulator::lock(Plan::default().fault(flip));
    let driver = driver();
    driver.start();
    let memory = driver.upload(&[0; 8]);
    assert_eq!(driver.download(memory, 8), [0, 0, 0, 128, 0, 0, 0, 0]);
    assert!(emulator.flip(&Memory::allocated(1), 0, 0));
    assert!(!emulator.flip(&Memory::allocated(1), 8, 0), "outside");
    assert_eq!(driver.download(memory, 8), [1, 0, 0, 128, 0, 0, 0, 0]);
    assert_eq!(emulator.read(&Memory::allocated(1), 0, 4), Some(vec![1, 0, 0, 128]));
    driver.ok("cuMemFree_v2", &[memory]);
    driver.stop();
}

#[test]
fn the_driver_can_lie_about_access_attributes_and_properties() {
    let lie = |attribute, value| Fault::Attribute { memory: Memory::created(1), attribute, value, after: After::now() };
    let plan =
        Plan::default().fault(Fault::SetAccessLies { readings_too: true }).fault(lie(8, 1)).fault(Fault::Properties {
            memory: Memory::created(1),
            allocation_type: 2,
            location_type: 2,
            location: 0,
            after: After::call("cuMemGetInfo_v2", 1),
        });
    let _emulator = Emulator::lock(plan);
    let driver = driver();
    driver.start();
    let (handle, address) = driver.map(PAGE);
    assert_eq!(driver.access(address, PAGE, 3), 0);
    assert_eq!(driver.access(address, PAGE, 1), 0);
    let attributes = [2_i32, 8, 9, 16, 4];
    let mut values = [0_u64; 5];
    let places: Vec<u64> = values.iter_mut().map(|value| std::ptr::from_mut(value) as u64).collect();
    let ask = [5, attributes.as_ptr() as u64, places.as_ptr() as u64, address];
    driver.ok("cuPointerGetAttributes", &ask);
    assert_eq!(values, [2, 1, 0, 1, 0], "read-only, it says");
    driver.ok("cuMemsetD8_v2", &[address, 1, 16]);
    let held = driver.get("cuMemRetainAllocationHandle", &[address]);
    assert_eq!(held, handle);
    let mut prop = [0_u32; 8];
    driver.ok("cuMemGetAllocationPropertiesFromHandle", &[prop.as_mut_ptr() as u64, handle]);
    assert_eq!(prop[..4], [1, 1, 1, 0]);
    let (mut free, mut total) = (0_u64, 0_u64);
    driver.ok("cuMemGetInfo_v2", &[(&raw mut free) as u64, (&raw mut total) as u64]);
    driver.ok("cuMemGetAllocationPropertiesFromHandle", &[prop.as_mut_ptr() as u64, handle]);
    assert_eq!(prop[..4], [2, 1, 2, 0]);
    driver.ok("cuMemRelease", &[held]);
    driver.unmap(handle, address, PAGE);
    driver.stop();
}

#[test]
fn exported_memory_is_the_same_memory_where_it_is_imported() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let (handle, address) = driver.map(PAGE);
    assert_eq!(driver.access(address, PAGE, 3), 0);
    driver.ok("cuMemsetD8_v2", &[address, 42, PAGE]);
    let mut fd = 0_i32;
    driver.ok("cuMemExportToShareableHandle", &[(&raw mut fd) as u64, handle, 1, 0]);
    let imported = driver.get("cuMemImportFromShareableHandle", &[fd as u64, 1]);
    // SAFETY: the descriptor that the export made, closed once.
    unsafe { libc::close(fd) };
    let other = driver.get("cuMemAddressReserve", &[PAGE, 0, 0, 0]);
    driver.ok("cuMemMap", &[other, PAGE, 0, imported, 0]);
    assert_eq!(driver.access(other, PAGE, 1), 0);
    assert_eq!(driver.download(other, 3), [42; 3]);
    let block = |at: u64| {
        let mut value = 0_u64;
        driver.ok("cuPointerGetAttribute", &[(&raw mut value) as u64, 20, at]);
        value
    };
    assert_eq!(block(address), block(other));
    driver.unmap(imported, other, PAGE);
    driver.unmap(handle, address, PAGE);
    driver.stop();
}

#[test]
fn a_library_can_lack_calls() {
    let folder = tempfile::tempdir().unwrap();
    let path = cuda_emulator::library_without(folder.path(), &["cuMemSetAccess"]).unwrap();
    let driver = Driver::load(&path);
    assert!(driver.symbol("cuMemSetAccess").is_null());
    assert!(!driver.symbol("cuMemGetAccess").is_null());
    assert!(Emulator::attach(&path).unwrap().report().calls.is_empty());
    assert!(cuda_emulator::library_without(folder.path(), &["cuNoSuchCall"]).is_err());
}
