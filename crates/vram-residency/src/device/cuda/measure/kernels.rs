//! The kernels by themselves: compiled, asked what they take, and timed over memory.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::kernels::{SCRATCH_PER_BLOCK, SEGMENT_BYTES, Segment, VALUE_BYTES};
use super::super::write_test::{self, PROBE, STORE};
use super::{Address, CudaError, DeviceBuffer, Gpu, Memory, PinnedBuffer, Stream};
use crate::device::cuda::driver::types::numbers;
use crate::device::cuda::driver::{Function, Module, code};
use crate::digest::block_count;

/// The kernels' texts that are built in, by name.
pub const TEXTS: [(&str, &str); 3] = [
    ("blake3", include_str!("../../../../../../kernels/ptx/blake3.ptx")),
    ("fingerprint", include_str!("../../../../../../kernels/ptx/fingerprint.ptx")),
    ("probe", PROBE),
];

/// Bytes of the fingerprint's tiles of a block.
const TILES_BYTES: u64 = 8192;
/// Words of the fingerprint's first key.
const KEY_WORDS: usize = 1030;
/// The initial value of BLAKE3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// The mode of keyed BLAKE3.
const KEYED: u64 = 16;

numbers! {
    /// Attributes of a kernel, and one of a device.
    const LOCAL_BYTES: i32 = 3, "CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES";
    const REGISTERS: i32 = 4, "CU_FUNC_ATTRIBUTE_NUM_REGS";
    const MULTIPROCESSORS: i32 = 16, "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT";
}

/// Which kernels a sweep runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// BLAKE3 as the compiler makes it.
    Plain,
    /// BLAKE3 with its additions on the multipliers.
    Mad,
    /// The fingerprint's tiles.
    Fingerprint,
}

/// A sweep over memory from its first byte on.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "what a sweep is told")]
pub struct Sweep<'a> {
    /// Which kernels.
    pub kind: Kind,
    /// The key of keyed BLAKE3; none: unkeyed.
    pub key: Option<&'a [u8; 32]>,
    /// Length of the region.
    pub bytes: u64,
    /// Blocks of 1 MiB for each launch.
    pub launch_blocks: u32,
}

/// What a text became.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Compiled {
    /// Which text.
    pub text: &'static str,
    /// How long it took until all of its kernels were found, in milliseconds: a driver may put work off until then.
    pub milliseconds: f64,
    /// Kernels of it: name, registers for each thread, bytes of local memory (spills) for each thread.
    pub kernels: Vec<(String, Option<i32>, Option<i32>)>,
}

/// The work beside which a scan is measured.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "two kinds of limits: arithmetic and memory")]
pub enum Foreground<'a> {
    /// A multiplication of square matrices of 32-bit numbers in one memory: a, b and the result one behind the other.
    Multiply(&'a Memory, u32),
    /// A plain read of all of a memory.
    Read(&'a Memory),
}

/// The compiled kernels.
#[derive(Debug)]
pub struct Kernels {
    plain: Function,
    mad: Function,
    parents: Function,
    tiles: Function,
    store: Function,
    read: Function,
    multiply: Function,
    fingerprint: Arc<Module>,
    /// The initial value, and room for a key.
    key: DeviceBuffer,
    sink: DeviceBuffer,
    foreground: Stream,
}

const STEP: &str = "run a kernel";

impl Kernels {
    /// Has the driver compile all texts, and says how long that took and what the kernels take.
    ///
    /// # Errors
    /// The driver refuses a text.
    pub fn compile(gpu: &Gpu) -> Result<(Self, Vec<Compiled>), CudaError> {
        let [blake3, fingerprint, probe] = TEXTS;
        let (blake3, a) = compile(gpu, blake3)?;
        let (fingerprint, b) = compile(gpu, fingerprint)?;
        let (probe, c) = compile(gpu, probe)?;
        let mut compiled = vec![a, b, c];
        let mut find = |module: &Arc<Module>, of: usize, name: &'static CStr| {
            let began = Instant::now();
            let function = module.function(name)?;
            let took = began.elapsed().as_secs_f64() * 1000.0;
            let attribute = |number| gpu.extra.function_attribute(number, &function).ok();
            let takes = (name.to_string_lossy().into_owned(), attribute(REGISTERS), attribute(LOCAL_BYTES));
            if let Some(text) = compiled.get_mut(of) {
                text.milliseconds += took;
                text.kernels.push(takes);
            }
            Ok::<_, CudaError>(function)
        };
        let kernels = Self {
            plain: find(&blake3, 0, c"vram_blake3_chunks_plain")?,
            mad: find(&blake3, 0, c"vram_blake3_chunks_mad")?,
            parents: find(&blake3, 0, c"vram_blake3_parents")?,
            tiles: find(&fingerprint, 1, c"vram_nh_tiles")?,
            store: find(&probe, 2, STORE)?,
            read: find(&probe, 2, c"vram_probe_read")?,
            multiply: find(&probe, 2, c"vram_probe_matmul")?,
            fingerprint,
            key: DeviceBuffer::new(gpu.context(), 32)?,
            sink: DeviceBuffer::new(gpu.context(), 4)?,
            foreground: Stream::with_priority(gpu.context(), 0)?,
        };
        Ok((kernels, compiled))
    }

    /// Sets the fingerprint's first key.
    ///
    /// # Errors
    /// The driver refuses, or the variable is another than documented.
    pub fn set_fingerprint_key(&self, gpu: &Gpu, key: &[u32; KEY_WORDS]) -> Result<(), CudaError> {
        let (start, bytes) = self.fingerprint.global(c"vram_nh_key")?;
        let words: Vec<u8> = key.iter().flat_map(|word| word.to_le_bytes()).collect();
        if bytes != words.len() {
            return Err(CudaError::Unsupported { device: "the kernels' text".into(), what: "a key of 1030 words" });
        }
        gpu.put(start, &words)
    }

    /// Sweeps over memory. Says how long the device took, from the first launch to the end of the last, and returns what
    /// the kernels wrote for the last launch: values of 32 bytes, or tiles of 8192 bytes, for each of its blocks.
    ///
    /// # Errors
    /// The memory is shorter than the region, or the driver refuses.
    pub fn sweep(&self, gpu: &Gpu, memory: &Memory, sweep: Sweep<'_>) -> Result<(Duration, Vec<u8>), CudaError> {
        let Sweep { kind, key, bytes, launch_blocks } = sweep;
        if bytes > memory.bytes() {
            return Err(gpu.context().out_of_memory("sweep over more memory than there is"));
        }
        let (blocks, most) = (block_count(bytes), u64::from(launch_blocks.max(1)));
        let launches = blocks.div_ceil(most);
        let buffer = |each: u64| {
            let length = most.min(blocks).saturating_mul(each);
            DeviceBuffer::new(gpu.context(), usize::try_from(length).unwrap_or(usize::MAX))
        };
        let scratch = buffer(SCRATCH_PER_BLOCK as u64)?;
        let each = if kind == Kind::Fingerprint { TILES_BYTES } else { VALUE_BYTES as u64 };
        let values = buffer(each)?;
        // One entry of the table for each launch.
        let mut table = Vec::new();
        let mut counts = Vec::new();
        for launch in 0..launches {
            let first_block = launch.saturating_mul(most);
            let end = blocks.saturating_sub(first_block).min(most);
            let segment = Segment { address: memory.start(), region_bytes: bytes, first_block, end };
            table.extend_from_slice(&segment.to_bytes());
            counts.push(end);
        }
        let segments = DeviceBuffer::new(gpu.context(), table.len())?;
        let words =
            key.map_or_else(|| INITIAL.iter().flat_map(|word| word.to_le_bytes()).collect(), |key| key.to_vec());
        gpu.put(segments.start(), &table)?;
        gpu.put(self.key.start(), &words)?;
        let mode = if key.is_some() { KEYED } else { 0 };
        let took = gpu.timed(&gpu.stream, STEP, &|| {
            let mut entry = segments.start();
            for count in &counts {
                let answer = self.launch(gpu, kind, [entry.0, *count, mode, scratch.start().0, values.start().0]);
                if answer != 0 {
                    return answer;
                }
                entry = entry.plus(SEGMENT_BYTES as u64);
            }
            0
        })?;
        let last = counts.last().copied().unwrap_or(0).saturating_mul(each);
        let length = usize::try_from(last).unwrap_or(0);
        let mut wrote = PinnedBuffer::new(gpu.context(), length)?;
        let _current = gpu.context().enter()?;
        // SAFETY: the buffer is at most as long as a whole launch's values, and the copy is waited for; where that is refused,
        // the buffer's end is put off.
        let asked = unsafe { wrote.copy_from(values.start(), length, &gpu.stream) };
        let waited = gpu.stream.wait(STEP);
        asked.and(waited).map(|()| (took, wrote.bytes().to_vec()))
    }

    /// Asks for one launch. The context is entered, and everything named is there: `sweep` alone calls this.
    fn launch(&self, gpu: &Gpu, kind: Kind, [segments, blocks, mode, scratch, values]: [u64; 5]) -> i32 {
        let (count, key) = (u32::try_from(blocks).unwrap_or(0), self.key.start().0);
        let stream = &gpu.stream;
        let chunks = match kind {
            Kind::Plain => &self.plain,
            Kind::Mad => &self.mad,
            Kind::Fingerprint => {
                // SAFETY: the kernel's parameters; the table and the values have room for so many blocks.
                return unsafe {
                    gpu.extra.launch(&self.tiles, stream, (count, 1), (256, 1), &mut [segments, 1, blocks, values])
                };
            }
        };
        let mut arguments = [segments, 1, blocks, key, mode, 1, scratch];
        let grid = (count.saturating_mul(4), 1);
        // SAFETY: the kernel's parameters; table and scratch memory have room for so many blocks.
        let answer = unsafe { gpu.extra.launch(chunks, stream, grid, (256, 1), &mut arguments) };
        if answer != 0 {
            return answer;
        }
        let mut arguments = [segments, 1, blocks, key, mode, scratch, values];
        // SAFETY: as above, and the values have room.
        unsafe { gpu.extra.launch(&self.parents, stream, (count, 1), (512, 1), &mut arguments) }
    }

    /// Time of a plain read of the first bytes of a memory by `groups` groups of 256 threads.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn read_time(&self, gpu: &Gpu, memory: &Memory, bytes: u64, groups: u32) -> Result<Duration, CudaError> {
        let bytes = bytes.min(memory.bytes());
        gpu.timed(&gpu.stream, STEP, &|| self.read(gpu, &gpu.stream, memory, bytes, groups))
    }

    fn read(&self, gpu: &Gpu, stream: &Stream, memory: &Memory, bytes: u64, groups: u32) -> i32 {
        let mut arguments = [memory.start().0, bytes, self.sink.start().0];
        // SAFETY: the kernel's parameters; it reads inside the memory; every caller waits.
        unsafe { gpu.extra.launch(&self.read, stream, (groups.max(1), 1), (256, 1), &mut arguments) }
    }

    /// Time of the foreground's work, `times` times over, on a stream of the default priority.
    ///
    /// # Errors
    /// The memory is too small for the matrices, or the driver refuses.
    pub fn foreground_time(&self, gpu: &Gpu, work: &Foreground<'_>, times: u32) -> Result<Duration, CudaError> {
        let stream = &self.foreground;
        let ask: Box<dyn Fn() -> i32 + '_> = match work {
            Foreground::Read(memory) => {
                let groups = gpu
                    .extra
                    .device_attribute(MULTIPROCESSORS)
                    .ok()
                    .and_then(|count| u32::try_from(count).ok())
                    .unwrap_or(1);
                Box::new(move || self.read(gpu, stream, memory, memory.bytes(), groups.saturating_mul(8)))
            }
            Foreground::Multiply(memory, n) => {
                let matrix = u64::from(*n).saturating_mul(u64::from(*n)).saturating_mul(4);
                if *n == 0 || !n.is_multiple_of(32) || matrix.saturating_mul(3) > memory.bytes() {
                    return Err(gpu.context().out_of_memory("multiply matrices larger than their memory"));
                }
                let a = memory.start();
                let (b, c) = (a.plus(matrix), a.plus(matrix.saturating_mul(2)));
                let groups = (n / 32, n / 32);
                Box::new(move || {
                    let mut arguments = [a.0, b.0, c.0, u64::from(*n)];
                    // SAFETY: the kernel's parameters; three matrices are in the memory; `timed` waits.
                    unsafe { gpu.extra.launch(&self.multiply, stream, groups, (32, 32), &mut arguments) }
                })
            }
        };
        gpu.timed(stream, STEP, &|| (0..times).map(|_| ask()).find(|answer| *answer != 0).unwrap_or(0))
    }

    /// Has one thread store a word of ones. The context is entered, the address is of a memory, and the caller waits.
    pub(super) fn store(&self, gpu: &Gpu, to: Address) -> i32 {
        // SAFETY: the memory has a word, and stays.
        match unsafe { write_test::store(&self.store, &gpu.stream, to, u32::MAX) } {
            Ok(()) => code::SUCCESS,
            Err(error) => error.code().unwrap_or(code::OUT_OF_MEMORY),
        }
    }
}

fn compile(gpu: &Gpu, (name, text): (&'static str, &str)) -> Result<(Arc<Module>, Compiled), CudaError> {
    let began = Instant::now();
    let module = Module::load(gpu.context(), name, text)?;
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    Ok((module, Compiled { text: name, milliseconds, kernels: Vec::new() }))
}
