//! What keeps shards, one for each device: a manager, and the continuous check of what it holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use vram_residency::actor::{Acting, acting};
use vram_residency::device::{Device, DeviceKind};
use vram_residency::model::ModelFile;
use vram_residency::scrub::{Budget, ScrubOptions, ScrubStatus, Scrubber};
use vram_residency::{Cancelled, Error, Progress, SealedShard, VramManager};

use super::lock::lock;
use super::report::DeviceView;
use crate::devices::About;
use crate::exit::Failure;
use crate::jobs::{self, Job, Target};
use crate::output::size;

/// The manager of one device and the check of its shards.
pub(super) struct Keeper {
    device: Arc<dyn Device>,
    pub(super) manager: VramManager,
    pub(super) scrubber: Scrubber,
    /// One verification that somebody asked for at a time.
    verifying: Mutex<()>,
    /// Bytes verified in a second, as last seen.
    speed: Mutex<f64>,
}

/// One for each device, in the order in which the devices were named: at least one.
pub(super) struct Keepers {
    first: Arc<Keeper>,
    more: Vec<Arc<Keeper>>,
}

impl Keepers {
    /// Begins to check what the managers are going to hold. All are of one worker and write one audit log.
    pub(super) fn start(
        managers: impl Iterator<Item = (Arc<dyn Device>, VramManager)>,
        options: &ScrubOptions,
    ) -> Result<Self, Failure> {
        let keepers = managers.map(|(device, manager)| {
            let scrubber = Scrubber::start(&manager, options.clone())?;
            Ok(Arc::new(Keeper { device, manager, scrubber, verifying: Mutex::default(), speed: Mutex::new(0.0) }))
        });
        let mut keepers = keepers.collect::<Result<Vec<_>, Failure>>()?.into_iter();
        let first = keepers.next().ok_or_else(|| Failure::usage("no device was named; name one with --device"))?;
        Ok(Self { first, more: keepers.collect() })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Keeper>> + Clone {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// Whether there are several devices, so that it must be said which is meant.
    pub(super) fn are_several(&self) -> bool {
        !self.more.is_empty()
    }

    /// The one whose device holds a shard. Of a shard that is nobody's, the first refuses whatever is asked.
    pub(super) fn of(&self, shard: &SealedShard) -> &Arc<Keeper> {
        self.iter().find(|keeper| keeper.manager.holds(shard)).unwrap_or(&self.first)
    }

    /// The one for what is about no device in particular.
    pub(super) fn first(&self) -> &Arc<Keeper> {
        &self.first
    }

    /// Where each file goes. All find a place, or none is begun.
    pub(super) fn places(&self, jobs: &[Job]) -> Result<Vec<&Arc<Keeper>>, Failure> {
        let targets: Vec<_> = self.iter().map(|keeper| keeper.target()).collect();
        let places = jobs::places(jobs, &targets)?;
        let places: Vec<_> = places.into_iter().map(|place| self.iter().nth(place).unwrap_or(&self.first)).collect();
        for (job, place) in jobs.iter().zip(&places) {
            // What was released is still there while it is verified, say: with one name for two, records would be about either.
            let is_elsewhere =
                |keeper: &Arc<Keeper>| !Arc::ptr_eq(keeper, place) && keeper.manager.has_name(&job.shard_id);
            if self.iter().any(is_elsewhere) {
                return Err(Error::DuplicateShard { shard_id: Box::new(job.shard_id) }.into());
            }
        }
        Ok(places)
    }

    /// Nobody else verifies on any device until this is dropped.
    pub(super) fn begin_verifying(&self) -> Result<Vec<MutexGuard<'_, ()>>, Failure> {
        self.iter().map(|keeper| keeper.begin_verifying()).collect()
    }

    /// How all of the checks are doing, taken together.
    pub(super) fn scrub_status(&self) -> ScrubStatus {
        let mut all = self.first.scrubber.status();
        for more in self.more.iter().map(|keeper| keeper.scrubber.status()) {
            all.alive &= more.alive;
            for (sum, more) in [
                (&mut all.throughput_bytes_per_second, more.throughput_bytes_per_second),
                (&mut all.bytes, more.bytes),
                (&mut all.blocks, more.blocks),
                (&mut all.rechecks, more.rechecks),
                (&mut all.faults, more.faults),
                (&mut all.repairs, more.repairs),
            ] {
                *sum = sum.saturating_add(more);
            }
            all.device_quarantined = all.device_quarantined.or(more.device_quarantined);
            all.stop_requested = all.stop_requested.or(more.stop_requested);
        }
        all
    }

    /// Which devices only a restart can use again.
    pub(super) fn lost(&self) -> impl Iterator<Item = String> {
        self.iter().filter_map(|keeper| keeper.manager.device_lost())
    }

    /// Which devices are not trusted any more.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = String> {
        self.iter().filter_map(|keeper| {
            let reason = keeper.manager.device_quarantined()?;
            Some(format!("the device {} is quarantined: {reason}", keeper.name()))
        })
    }

    /// Which devices' budgets cannot keep the period, in words; none where all can.
    pub(super) fn budget_warnings(&self) -> Vec<String> {
        self.iter().filter_map(|keeper| keeper.budget_warning(self.are_several())).collect()
    }
}

impl Keeper {
    /// What the device is called, such as `cuda:1`.
    pub(super) fn name(&self) -> String {
        self.manager.device_name()
    }

    /// Seals a file and verifies it, unless it is told to stop. The shard, and how many bytes its SHA-256 was computed of.
    pub(super) fn seal(
        &self,
        job: &Job,
        progress: Progress<'_>,
        stop: Cancelled<'_>,
    ) -> Result<(SealedShard, u64), Failure> {
        let request = job.request().reporting(progress).unless(stop);
        let hashed = self.manager.sha256_bytes();
        let shard = self.manager.seal_file(&job.file, &request).map_err(|error| job.retell(error))?;
        let hashed = self.manager.sha256_bytes().saturating_sub(hashed);
        if stop() {
            return Err(Failure::new("stopped", format!("'{}' was not verified: a stop was asked for", job.shard_id)));
        }
        let verified = self.manager.verify_sealed(&shard)?;
        self.note_speed(verified.bytes, verified.duration);
        Ok((shard, hashed))
    }

    /// Checks a shard from now on.
    pub(super) fn watch(&self, shard: &SealedShard, file: &ModelFile) {
        self.scrubber.watch(shard, Some(file.shared_source()));
    }

    /// How much was verified in which time. The crew hashes with every thread; the scrub with one.
    pub(super) fn note_speed(&self, bytes: u64, duration: Duration) {
        let crew = match self.manager.device().kind {
            DeviceKind::Host => std::thread::available_parallelism().map_or(1.0, |threads| threads.get() as f64),
            _ => 1.0,
        };
        let seconds = duration.as_secs_f64();
        // Too short to say anything.
        if seconds > 0.001 {
            *self.speed() = bytes as f64 / seconds / crew;
        }
    }

    pub(super) fn view(&self) -> DeviceView {
        let (manager, capacity) = (&self.manager, self.manager.capacity());
        DeviceView {
            about: About::of(manager),
            total_bytes: capacity.total_bytes,
            used_bytes: capacity.used_bytes,
            available_bytes: capacity.available_bytes(),
            quarantined: manager.device_quarantined().map(str::to_owned),
            lost: manager.device_lost(),
            scrub: self.scrubber.status(),
        }
    }

    /// Nobody else verifies here until this is dropped.
    pub(super) fn begin_verifying(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        match self.verifying.try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new("busy", "another verification runs; ask again when it is through"))
            }
        }
    }

    fn target(&self) -> Target<'_> {
        let is_usable = self.manager.device_quarantined().is_none() && !self.device.is_lost();
        Target { device: &*self.device, is_usable }
    }

    fn budget_warning(&self, several: bool) -> Option<String> {
        let status = self.scrubber.status();
        let sealed = self.manager.list().iter().map(SealedShard::bytes).fold(0, u64::saturating_add);
        let wanted = sealed as f64 / (status.period.as_secs_f64() / 1.5);
        let speed = *self.speed();
        let can = match status.budget {
            Budget::Share(share) => speed * share,
            Budget::BytesPerSecond(bytes) => bytes.get() as f64,
            _ => speed,
        };
        let which = if several { format!(" on {}", self.name()) } else { String::new() };
        (can > 0.0 && wanted > can).then(|| {
            format!(
                "the budget {} allows about {}/s{which} and a period of {:?} takes {}/s; shards will be late and called \
                 UNVERIFIED; raise --budget or --period",
                status.budget,
                size(can as u64),
                status.period,
                size(wanted as u64)
            )
        })
    }

    fn speed(&self) -> MutexGuard<'_, f64> {
        lock(&self.speed)
    }
}

/// Has work done for several keepers at once, here and on threads of its own, for whom this thread works. Where the system
/// gives no thread, it is done here as well.
pub(super) fn side_by_side<T: Send>(work: Vec<(Arc<Keeper>, T)>, run: &(dyn Fn(&Keeper, T) + Sync)) {
    let actor = acting();
    let work: Vec<_> = work.into_iter().map(|(keeper, input)| (keeper, Mutex::new(Some(input)))).collect();
    let take = |(keeper, input): &(Arc<Keeper>, Mutex<Option<T>>)| {
        let input = input.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(input) = input {
            run(keeper, input);
        }
    };
    std::thread::scope(|scope| {
        for one in work.iter().skip(1) {
            let take = &take;
            let thread = std::thread::Builder::new().name("vram-device".to_owned());
            // What no thread takes is taken below.
            let _ = thread.spawn_scoped(scope, move || {
                let _acting = Acting::begin(actor);
                take(one);
            });
        }
        work.iter().for_each(take);
    });
}
