//! Which GPUs there are, and what became of opening each.

use vram_residency::device::{
    CudaDevice, CudaOptions, Device, DeviceError, Protection, Survey, Surveyed, Tested, WriteTest,
};
use vram_residency::digest::BlockValue;

use super::Check;
use crate::output::size;
use crate::write_test::Pending;

const WITHOUT: &str = "weights become resident in main memory, and every seal says so; nothing pretends to be a GPU";

/// A driver with usable GPUs is good; without one the rest works as well.
pub(super) fn look(write_test: bool, checks: &mut Vec<Check>) {
    let survey = match Survey::take(None) {
        Ok(survey) => survey,
        Err(error) => return checks.push(Check::note("cuda", error.to_string(), WITHOUT)),
    };
    checks.push(Check::ok("cuda", format!("driver of CUDA {} in {}", survey.driver, survey.library.display())));
    // All at once, and only of those that are tried out below.
    let usable = |gpu: &Surveyed| !gpu.integrated && gpu.free_bytes.is_ok();
    let begin = |gpu| (gpu, usable(gpu).then(|| Pending::begin(gpu.ordinal, write_test)));
    let tests: Vec<_> = survey.devices.iter().map(begin).collect();
    // All ended, too: some GPUs take one process at a time.
    let tested: Vec<_> = tests.into_iter().map(|(gpu, test)| (gpu, test.map(Pending::outcome))).collect();
    checks.extend(tested.into_iter().map(|(which, test)| gpu(which, test.unwrap_or_default())));
}

fn gpu(gpu: &Surveyed, tested: Tested) -> Check {
    let (major, minor) = gpu.capability;
    let what = format!(
        "cuda:{} is {}, {}, of capability {major}.{minor}{}",
        gpu.ordinal,
        gpu.name,
        size(gpu.total_bytes),
        gpu.mig
    );
    if gpu.integrated {
        let remedy = "it shares its memory with the processor, and nothing is called resident in VRAM there";
        return Check::note("gpu", what, remedy);
    }
    let free = match &gpu.free_bytes {
        Ok(free) => size(*free),
        Err(error) => return Check::note("gpu", format!("{what}: {error}"), WITHOUT),
    };
    let advisory = "every seal on it says advisory, and --require-read-only refuses";
    match try_out(gpu.ordinal, tested) {
        Ok((Protection::ReadOnly, write_test, how)) => {
            Check::ok("gpu", format!("{what}, {free} free; sealed memory is read-only: {write_test}; {how}"))
        }
        Ok((_, write_test, how)) if write_test.is_refused() => Check::note(
            "gpu",
            format!("{what}, {free} free; this driver does not state that sealed memory is read-only; {how}"),
            format!("{advisory}; a newer driver may do it"),
        ),
        Ok((_, write_test, how)) => Check::note("gpu", format!("{what}, {free} free; {write_test}; {how}"), advisory),
        Err(error) => Check::problem("gpu", format!("{what}: {error}"), Some("use --device host meanwhile".to_owned())),
    }
}

/// Seals a few bytes there and says what protects them, and what the write test shows of this very GPU.
fn try_out(ordinal: u32, tested: Tested) -> Result<(Protection, WriteTest, String), DeviceError> {
    let mut options = CudaOptions::default();
    options.ordinal = ordinal;
    // As little as possible beside whatever else is on the GPU.
    options.launch_blocks = Some(64);
    options.threads = Some(1);
    options.write_test = tested;
    let device = CudaDevice::open(&options)?;
    let mut staged = device.allocate(8, 0)?;
    staged.fill(&[0; 8].as_slice(), &mut [BlockValue::UNKNOWN])?;
    let region = staged.protect()?;
    let check = region.check_memory()?;
    let place = match check.foreign {
        Some(foreign) => format!("the driver states that {foreign}"),
        None => "it states that the memory is the GPU's own".to_owned(),
    };
    let facts = device.facts();
    Ok((check.protection, facts.write_test.clone(), format!("{place}; hash kernels '{}'", facts.variant)))
}
