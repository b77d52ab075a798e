//! The driver itself, its devices, and the texts of its errors.

use std::ffi::c_char;

use super::abi::{Out, code, fill};
use super::calls::driver_calls;

driver_calls! {
    /// Starts the driver.
    fn cuInit(state, flags: u32) {
        if state.plan.init_code != 0 {
            return Err(state.plan.init_code);
        }
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        if state.devices.is_empty() {
            return Err(code::NO_DEVICE);
        }
        state.initialized = true;
        Ok(())
    }

    /// The driver's version.
    fn cuDriverGetVersion(state, version: Out<i32>) {
        version.set(state.plan.driver_version)
    }

    /// The name of a result.
    fn cuGetErrorName(state, error: u32, text: Out<*const c_char>) {
        let _ = state;
        let known = code::TEXTS.iter().find(|(number, ..)| *number == error);
        text.set(known.map_or(std::ptr::null(), |(_, name, _)| name.as_ptr().cast()))?;
        known.map(|_| ()).ok_or(code::INVALID_VALUE)
    }

    /// The words of a result.
    fn cuGetErrorString(state, error: u32, text: Out<*const c_char>) {
        let _ = state;
        let known = code::TEXTS.iter().find(|(number, ..)| *number == error);
        text.set(known.map_or(std::ptr::null(), |(.., words)| words.as_ptr().cast()))?;
        known.map(|_| ()).ok_or(code::INVALID_VALUE)
    }

    /// How many devices there are.
    fn cuDeviceGetCount(state, count: Out<i32>) {
        state.ready()?;
        count.set(i32::try_from(state.devices.len()).unwrap_or(i32::MAX))
    }

    /// The device of an ordinal.
    fn cuDeviceGet(state, device: Out<i32>, ordinal: i32) {
        state.ordinal(ordinal)?;
        device.set(ordinal)
    }

    /// A device's name.
    fn cuDeviceGetName(state, name: *mut c_char, room: i32, device: i32) {
        let index = state.ordinal(device)?;
        fill(name, usize::try_from(room).unwrap_or(0), &state.plan.devices[index].name)
    }

    /// The UUID of a whole GPU: of the one that a MIG instance is of.
    fn cuDeviceGetUuid(state, uuid: Out<[u8; 16]>, device: i32) {
        let index = state.ordinal(device)?;
        let plan = &state.plan.devices[index];
        uuid.set(plan.mig_of.unwrap_or(plan.uuid))
    }

    /// A device's UUID: its own, where it is a MIG instance.
    fn cuDeviceGetUuid_v2(state, uuid: Out<[u8; 16]>, device: i32) {
        let index = state.ordinal(device)?;
        uuid.set(state.plan.devices[index].uuid)
    }

    /// All of a device's memory, in bytes.
    fn cuDeviceTotalMem_v2(state, bytes: Out<usize>, device: i32) {
        let index = state.ordinal(device)?;
        bytes.set(usize::try_from(state.plan.devices[index].memory).unwrap_or(usize::MAX))
    }

    /// Where a device is on the PCI bus.
    fn cuDeviceGetPCIBusId(state, text: *mut c_char, room: i32, device: i32) {
        let index = state.ordinal(device)?;
        let place = format!("0000:{:02X}:00.0", state.plan.devices[index].pci_bus);
        fill(text, usize::try_from(room).unwrap_or(0), &place)
    }

    /// An attribute of a device.
    fn cuDeviceGetAttribute(state, value: Out<i32>, attribute: i32, device: i32) {
        let index = state.ordinal(device)?;
        let plan = &state.plan.devices[index];
        if let Some(&planned) = plan.attributes.get(&attribute) {
            return value.set(planned);
        }
        let truth = |holds: bool| i32::from(holds);
        value.set(match attribute {
            1..=3 => 1024,                        // threads in a block, and along x and y
            4 => 64,                              // threads along z
            5 => i32::MAX,                        // blocks along x
            6 | 7 => 65_535,                      // blocks along y, z
            8 => 48 << 10,                        // shared memory of a block
            9 => 64 << 10,                        // constant memory
            10 => 32,                             // lanes of a warp
            12 | 82 => 65_536,                    // registers
            13 => 1_980_000,                      // kHz
            16 => 132,                            // multiprocessors
            17 | 31 => truth(attribute == 31),    // no time limit; kernels side by side
            18 => truth(plan.integrated),
            19 | 41 | 78 | 83 | 89 => 1,          // host mapping, one address space, priorities, managed memory
            20 => plan.compute_mode,
            32 => 1,                              // ECC on
            33 => plan.pci_bus,
            34 | 35 | 50 | 84 | 88 => 0,
            36 => 3_201_000,                      // kHz
            37 => 6_144,                          // bits
            38 => 50 << 20,                       // L2
            39 => 2048,
            40 => 3,                              // copy engines
            75 => plan.compute_capability.0,
            76 => plan.compute_capability.1,
            81 => 228 << 10,
            97 => 227 << 10,
            102 | 103 => truth(plan.virtual_memory),
            110 | 116 => 1,                       // GPUDirect RDMA
            _ => return Err(code::INVALID_VALUE),
        })
    }
}
