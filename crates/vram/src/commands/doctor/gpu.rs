//! Which GPUs there are, and what became of opening each.

use vram_residency::device::{CudaDevice, CudaOptions, Device, DeviceError, Protection, Survey, Surveyed};
use vram_residency::digest::BlockValue;

use super::Check;
use crate::output::size;

const WITHOUT: &str = "weights become resident in main memory, and every seal says so; nothing pretends to be a GPU";

/// A driver with usable GPUs is good; without one the rest works as well.
pub(super) fn look(checks: &mut Vec<Check>) {
    let survey = match Survey::take(None) {
        Ok(survey) => survey,
        Err(error) => return checks.push(Check::note("cuda", error.to_string(), WITHOUT)),
    };
    checks.push(Check::ok("cuda", format!("driver of CUDA {} in {}", survey.driver, survey.library.display())));
    checks.extend(survey.devices.iter().map(gpu));
}

fn gpu(gpu: &Surveyed) -> Check {
    let (major, minor) = gpu.capability;
    let what =
        format!("cuda:{} is {}, {}, of capability {major}.{minor}", gpu.ordinal, gpu.name, size(gpu.total_bytes));
    if gpu.integrated {
        let remedy = "it shares its memory with the processor, and nothing is called resident in VRAM there";
        return Check::note("gpu", what, remedy);
    }
    let free = match &gpu.free_bytes {
        Ok(free) => size(*free),
        Err(error) => return Check::note("gpu", format!("{what}: {error}"), WITHOUT),
    };
    match try_out(gpu.ordinal) {
        Ok((Protection::ReadOnly, how)) => {
            Check::ok("gpu", format!("{what}, {free} free; sealed memory is read-only by the driver's word; {how}"))
        }
        Ok((_, how)) => Check::note(
            "gpu",
            format!("{what}, {free} free; this driver does not make memory read-only; {how}"),
            "every seal on it says advisory, and --require-read-only refuses; a newer driver may do it",
        ),
        Err(error) => Check::problem("gpu", format!("{what}: {error}"), Some("use --device host meanwhile".to_owned())),
    }
}

/// Seals a few bytes there and says what protects them.
fn try_out(ordinal: u32) -> Result<(Protection, String), DeviceError> {
    let mut options = CudaOptions::default();
    options.ordinal = ordinal;
    // As little as possible beside whatever else is on the GPU.
    options.launch_blocks = Some(64);
    options.threads = Some(1);
    let device = CudaDevice::open(&options)?;
    let mut staged = device.allocate(8, 0)?;
    staged.fill(&[0; 8].as_slice(), &mut [BlockValue::UNKNOWN])?;
    let region = staged.protect()?;
    let check = region.check_memory()?;
    let place = match check.foreign {
        Some(foreign) => format!("the driver states that {foreign}"),
        None => "it states that the memory is the GPU's own".to_owned(),
    };
    Ok((check.protection, format!("{place}; hash kernels '{}'", device.facts().variant)))
}
