//! What the emulated machine is, and what goes wrong on it: set by a test, carried to the library as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The machine and its faults. Every field has a default, so JSON names only what differs: `{"driver_version": 11040}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// The GPUs, in the order of their ordinals. One by default; none makes `cuInit` answer 100.
    pub devices: Vec<Device>,
    /// What `cuDriverGetVersion` says: 1000 × major + 10 × minor. It also limits the PTX version that is accepted.
    pub driver_version: i32,
    /// What `cuInit` answers. 34 is the stub library of a container image, 803 a mismatch with the kernel module.
    pub init_code: u32,
    /// Rate of the simulated clock for what a kernel reads and writes in device memory, in TB/s (10^12 bytes).
    pub memory_tb_s: f64,
    /// Rate of the simulated clock for copies between host and device, in TB/s.
    pub host_link_tb_s: f64,
    /// Simulated time that every operation takes on top, in microseconds.
    pub operation_us: f64,
    /// Instructions of warps after which a launch is stopped with 702, so that an endless loop ends a test.
    pub instruction_limit: u64,
    /// What goes wrong, each once unless it says otherwise.
    pub faults: Vec<Fault>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            devices: vec![Device::default()],
            driver_version: 12_020,
            init_code: 0,
            memory_tb_s: 4.0,
            host_link_tb_s: 0.05,
            operation_us: 2.0,
            instruction_limit: 2_000_000_000,
            faults: Vec::new(),
        }
    }
}

impl Plan {
    /// A machine with `count` GPUs, alike but for name, UUID and bus number.
    #[must_use]
    pub fn with_devices(count: u8) -> Self {
        Self { devices: (0..count).map(Device::numbered).collect(), ..Self::default() }
    }

    /// A machine with one GPU that is cut into `count` MIG instances, each named as NVIDIA names them.
    #[must_use]
    pub fn with_mig_instances(count: u8) -> Self {
        let mut plan = Self::with_devices(count);
        for device in &mut plan.devices {
            device.name = format!("{} MIG 1g.10gb", device.name);
            device.mig_of = Some(*b"emulated parent\0");
            device.pci_bus = 1;
        }
        plan
    }

    /// The same with one more fault.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// What `cuDeviceGetName` says. A MIG slice is told by `MIG 1g.10gb` or the like in it.
    pub name: String,
    /// What `cuDeviceGetUuid_v2` says.
    pub uuid: [u8; 16],
    /// The GPU that it is a MIG instance of, where it is one: what `cuDeviceGetUuid` says.
    pub mig_of: Option<[u8; 16]>,
    /// Memory in bytes. Only what is touched takes memory of the host.
    pub memory: u64,
    /// Bytes of it that others hold.
    pub taken: u64,
    /// Shares its memory with the host, like a laptop's or a Jetson's GPU.
    pub integrated: bool,
    /// 0 default, 2 prohibited (contexts are refused with 999), 3 exclusive process.
    pub compute_mode: i32,
    /// Another process has the device: with `compute_mode` 3, contexts are refused with 46.
    pub occupied: bool,
    /// Compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Has the calls `cuMemCreate` and its like; without it they answer 801.
    pub virtual_memory: bool,
    /// Number of the PCI bus.
    pub pci_bus: i32,
    /// `cuMemSetAccess` takes parts of a mapping in whole granules too: the documentation leaves open whether it does.
    pub access_in_parts: bool,
    /// Device attributes by number of `CUdevice_attribute`, over what the emulator would answer.
    pub attributes: BTreeMap<i32, i32>,
}

impl Default for Device {
    fn default() -> Self {
        Self::numbered(0)
    }
}

impl Device {
    fn numbered(ordinal: u8) -> Self {
        let mut uuid = *b"emulated GPU   \0";
        uuid[15] = ordinal;
        Self {
            name: format!("Emulated GPU {ordinal}"),
            uuid,
            mig_of: None,
            memory: 4 << 30,
            taken: 0,
            integrated: false,
            compute_mode: 0,
            occupied: false,
            compute_capability: (9, 0),
            virtual_memory: true,
            pci_bus: i32::from(ordinal) + 1,
            access_in_parts: false,
            attributes: BTreeMap::new(),
        }
    }
}

/// A moment: after the `nth` call (from 1) of a driver call with this name; 0 is at once. `*` counts every call.
///
/// Calls are counted from the moment when the fault is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Exported name, such as `cuMemSetAccess`, or `*`.
    pub call: String,
    /// Which one, from 1.
    pub nth: u64,
}

impl After {
    /// After the `nth` call (from 1) of this name.
    #[must_use]
    pub fn call(call: &str, nth: u64) -> Self {
        Self { call: call.to_owned(), nth }
    }

    /// From now on.
    #[must_use]
    pub fn now() -> Self {
        Self::call("*", 0)
    }
}

/// A piece of memory, named by the call that made it: the `nth` call (from 1, failed ones counted) of `call` since the
/// plan was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `cuMemCreate`, `cuMemAlloc_v2`, `cuMemAllocManaged`, `cuMemHostAlloc` or `cuMemImportFromShareableHandle`.
    pub call: String,
    /// Which one, from 1.
    pub nth: u64,
}

impl Memory {
    /// What the `nth` `cuMemCreate` made (from 1).
    #[must_use]
    pub fn created(nth: u64) -> Self {
        Self { call: "cuMemCreate".to_owned(), nth }
    }

    /// What the `nth` `cuMemAlloc_v2` made (from 1).
    #[must_use]
    pub fn allocated(nth: u64) -> Self {
        Self { call: "cuMemAlloc_v2".to_owned(), nth }
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The `nth` call (from 1) of this name answers `code` and does nothing; with `forever`, every later one too.
    Fail {
        /// Exported name, or `*` for any.
        call: String,
        /// Which one, from 1.
        nth: u64,
        /// A `CUresult`.
        code: u32,
        /// Every later one too.
        forever: bool,
    },
    /// From the `nth` call of this name on, every call that touches a device answers `code`: 214 uncorrectable ECC error, 719
    /// launch failed, 999 device lost (fallen off the bus).
    Lost {
        /// Exported name, or `*` for any.
        call: String,
        /// Which one, from 1.
        nth: u64,
        /// A `CUresult`.
        code: u32,
    },
    /// The `nth` kernel that is executed (from 1) fails: its work is not done, and the next synchronizing call answers `code`,
    /// as does everything after it. With `code` 0 its work is not done, and nobody is told.
    Asynchronous {
        /// Which one, from 1.
        nth: u64,
        /// A `CUresult`.
        code: u32,
    },
    /// One bit of a piece of memory flips.
    Flip {
        /// Where.
        memory: Memory,
        /// Byte in it.
        offset: u64,
        /// Bit of the byte, 0 to 7.
        bit: u8,
        /// When.
        after: After,
    },
    /// What kernels read and write in this part of a piece of memory counts `factor` times on the simulated clock.
    Slow {
        /// Where.
        memory: Memory,
        /// First byte of the part.
        from: u64,
        /// End of the part (exclusive).
        to: u64,
        /// How much slower.
        factor: f64,
    },
    /// `cuMemSetAccess` to read-only answers 0 and changes nothing. The readings say what is in force, or what was asked.
    SetAccessLies {
        /// The readings claim that it worked.
        readings_too: bool,
    },
    /// A pointer attribute of a piece of memory has another value.
    Attribute {
        /// Which memory.
        memory: Memory,
        /// Number of `CUpointer_attribute`: 2 memory type, 8 managed, 9 device, 16 access flags, 20 memory block.
        attribute: i32,
        /// The value it has.
        value: u64,
        /// From when.
        after: After,
    },
    /// `cuMemGetAllocationPropertiesFromHandle` says something else of a piece of memory.
    Properties {
        /// Which memory.
        memory: Memory,
        /// Allocation type: 1 pinned, 2 managed.
        allocation_type: u32,
        /// Location type: 1 device, 2 host.
        location_type: u32,
        /// Ordinal of the device.
        location: i32,
        /// From when.
        after: After,
    },
}

impl Fault {
    /// The `nth` call of this name answers `code`, once.
    #[must_use]
    pub fn fail_once(call: &str, nth: u64, code: u32) -> Self {
        Self::Fail { call: call.to_owned(), nth, code, forever: false }
    }

    /// The `nth` call of this name and every later one answer `code`.
    #[must_use]
    pub fn fail_forever(call: &str, nth: u64, code: u32) -> Self {
        Self::Fail { call: call.to_owned(), nth, code, forever: true }
    }

    /// The device is lost at the `nth` call of this name.
    #[must_use]
    pub fn lost(call: &str, nth: u64, code: u32) -> Self {
        Self::Lost { call: call.to_owned(), nth, code }
    }
}
