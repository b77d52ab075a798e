//! Which memory weights become resident in: main memory, or one or several GPUs'.

use std::sync::Arc;

use serde::Serialize;
use vram_residency::VramManager;
use vram_residency::device::{
    self, CudaDevice, CudaError, CudaOptions, Device, DeviceInfo, HugePages, Survey, WriteTest,
};

use crate::cli::{DeviceChoice, Host};
use crate::exit::Failure;
use crate::output::{Out, size};
use crate::session;
use crate::write_test::Pending;

/// What is told of a device, wherever one is told of.
#[derive(Debug, Serialize)]
pub(crate) struct About {
    #[serde(flatten)]
    info: DeviceInfo,
    /// Such as `cuda:0`.
    name: String,
    /// A GPU's, as its driver has it.
    model: Option<String>,
    /// What a store into its sealed memory came to, where it is a GPU.
    #[serde(flatten)]
    write_test: Option<WriteTest>,
}

impl About {
    pub(crate) fn of(manager: &VramManager) -> Self {
        let facts = manager.cuda_facts();
        Self {
            info: manager.device(),
            name: manager.device_name(),
            model: facts.map(|facts| facts.name.clone()),
            write_test: facts.map(|facts| facts.write_test.clone()),
        }
    }
}

/// What was chosen, and that it is there.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Numbers of GPUs, and what is being found out about each; none for main memory.
    gpus: Vec<(u32, Pending)>,
    /// What is said about it, in one line, where the choice was the program's.
    pub(crate) note: Option<String>,
}

/// Finds the devices that were asked for, and begins their write test where that is wanted. Somebody who asked for a GPU is
/// not given anything else.
///
/// To be called before the program has threads, so that kernels are compiled for this run alone.
pub(crate) fn choose(choice: &DeviceChoice, write_test: bool) -> Result<Chosen, Failure> {
    if *choice != DeviceChoice::Host {
        device::disable_kernel_cache();
    }
    match choice {
        DeviceChoice::Host => Ok(Chosen { gpus: Vec::new(), note: None }),
        DeviceChoice::Auto => Ok(automatic(write_test)),
        DeviceChoice::Cuda(numbers) => {
            let shown: Vec<_> = numbers.iter().map(|number| format!("cuda:{number}")).collect();
            let refused = |why: &str| Failure::new("device", format!("{} cannot be used: {why}", shown.join(",")));
            let survey = Survey::take(None).map_err(|error| refused(&error.to_string()))?;
            let there = survey.devices.len();
            if let Some(missing) = numbers.iter().find(|number| **number as usize >= there) {
                let why = format!(
                    "the driver shows {there} and the first is cuda:0, so there is no cuda:{missing}; choose another"
                );
                return Err(refused(&why));
            }
            let gpus = numbers.iter().map(|number| (*number, Pending::begin(*number, write_test))).collect();
            Ok(Chosen { gpus, note: None })
        }
    }
}

/// The GPU with most free memory, else main memory.
fn automatic(write_test: bool) -> Chosen {
    let host = |why: String| Chosen { gpus: Vec::new(), note: Some(format!("device: host (main memory; {why})")) };
    let survey = match Survey::take(None) {
        Ok(survey) => survey,
        // What most machines are like needs no more words.
        Err(CudaError::NoLibrary { .. }) => return host("no NVIDIA driver was found".to_owned()),
        Err(error) => return host(error.to_string()),
    };
    if let Some(gpu) = survey.roomiest() {
        let free = gpu.free_bytes.as_ref().copied().unwrap_or(0);
        let note = format!("device: cuda:{} ({}{}, {} free)", gpu.ordinal, gpu.name, gpu.mig, size(free));
        return Chosen { gpus: vec![(gpu.ordinal, Pending::begin(gpu.ordinal, write_test))], note: Some(note) };
    }
    host(match survey.devices.first().map(|gpu| (&gpu.free_bytes, gpu.ordinal)) {
        Some((Err(error), _)) => error.to_string(),
        Some((Ok(_), ordinal)) => format!("cuda:{ordinal} shares it with the processor and has none of its own"),
        None => "the driver shows no GPU".to_owned(),
    })
}

impl Chosen {
    /// Opens the devices, in the order in which they were named. Says where protection is no more than advisory, and why.
    pub(crate) fn open(&mut self, host: &Host, out: &Out) -> Result<Vec<Arc<dyn Device>>, Failure> {
        if self.gpus.is_empty() {
            return Ok(vec![Arc::new(session::host_device(host, HugePages::Ask)?)]);
        }
        // All of them first: some GPUs take one process at a time.
        let tested = std::mem::take(&mut self.gpus).into_iter().map(|(number, test)| (number, test.outcome()));
        let tested: Vec<_> = tested.collect();
        let open = |(number, write_test)| -> Result<Arc<dyn Device>, Failure> {
            let mut options = CudaOptions::default();
            options.ordinal = number;
            options.write_test = write_test;
            options.capacity_bytes = host.capacity.map(|capacity| capacity.0);
            options.threads = host.threads.map(usize::from);
            let device = CudaDevice::open(&options)?;
            if !device.facts().write_test.is_refused() {
                let (name, why) = (device.name(), &device.facts().write_test);
                out.warn(format_args!("warning: what is sealed on {name} is protected in an advisory way only: {why}"));
            }
            Ok(Arc::new(device))
        };
        tested.into_iter().map(open).collect()
    }
}

/// Says for each size which of several rooms it goes to: the largest first, each to where most is left. None where they do
/// not fit so.
pub(crate) fn spread(sizes: &[u64], rooms: &[u64]) -> Option<Vec<usize>> {
    let mut left = rooms.to_vec();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(sizes.get(*index)));
    let mut places = vec![0; sizes.len()];
    for index in order {
        // Of equal rooms the first.
        let (room, bytes) = left.iter_mut().enumerate().rev().max_by_key(|(_, bytes)| **bytes)?;
        *bytes = bytes.checked_sub(*sizes.get(index)?)?;
        *places.get_mut(index)? = room;
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_to_where_most_is_left() {
        assert_eq!(spread(&[1, 10, 5, 6], &[11, 12]), Some(vec![1, 1, 0, 0]));
        assert_eq!(spread(&[10, 5, 5], &[10, 10]), Some(vec![0, 1, 1]));
        assert_eq!(spread(&[10, 5, 6], &[10, 10]), None, "nothing is half placed");
        assert_eq!(spread(&[3, 3, 3], &[100]), Some(vec![0, 0, 0]));
        assert_eq!(spread(&[], &[]), Some(vec![]));
        assert_eq!(spread(&[0], &[]), None);
    }
}
