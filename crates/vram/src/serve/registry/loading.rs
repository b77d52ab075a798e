//! Files become shards: each on one device, those of several devices beside each other.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vram_residency::model::{Format, ModelFile};
use vram_residency::{Cancelled, Progress, SealedShard};

use super::{Held, Place, Registry};
use crate::approve::{self, Approved, Source};
use crate::exit::Failure;
use crate::jobs::{self, Job};
use crate::serve::handout::TableFrame;
use crate::serve::keepers::{Keeper, side_by_side};
use crate::serve::lock::lock;
use crate::serve::report::ShardView;

/// Files for one device, each with its number.
type Queue = Vec<(usize, Job)>;

impl Registry {
    /// Makes files resident and watches each from then on, unless it is told to stop or one fails.
    pub(in crate::serve) fn load(
        &self,
        jobs: Vec<Job>,
        progress: Progress<'_>,
        stop: Cancelled<'_>,
    ) -> Result<Vec<ShardView>, Failure> {
        self.on_each_device(jobs, stop, &|keeper, job, stop| {
            let (shard, hashed) = keeper.seal(&job, progress, stop).map_err(|failure| self.name(failure, keeper))?;
            Ok(self.keep(shard, &job.file, job.approved, hashed))
        })
    }

    /// Loads what files hold. A model is resident as a whole or not at all: nobody sees any of it before all of it is good.
    pub(in crate::serve) fn load_files(
        &self,
        files: &[PathBuf],
        format: Option<Format>,
        source: &Source,
    ) -> Result<Vec<ShardView>, Failure> {
        let _turn = self.changes.begin()?;
        let manager = self.manager();
        if self.require_approval && source.manifest.is_none() {
            return Err(approve::refuse_without(manager));
        }
        let planned = jobs::plan(files, format, None, None, &self.ids());
        let (mut jobs, unreadable) = approve::readable(planned, files, source)?;
        approve::refuse_unreadable(manager, unreadable)?;
        if let Some(approver) = source.open(manager, &self.audit_dir)? {
            drop(approver.approve(files, &mut jobs, manager)?);
        }
        let sealed = self.on_each_device(jobs, &|| self.changes.are_stopping(), &|keeper, job, stop| {
            let (shard, hashed) = keeper
                .seal(&job, &|_| (), stop)
                .map_err(|failure| self.name(failure, keeper))
                .map_err(|failure| Failure { message: format!("{}: {}", job.shard_id, failure.message), ..failure })?;
            Ok((shard, job, hashed))
        })?;
        Ok(sealed.into_iter().map(|(shard, job, hashed)| self.keep(shard, &job.file, job.approved, hashed)).collect())
    }

    /// Has work done for each file on the device that it goes to, one after the other on each device and all devices at
    /// once. The first failure ends the rest. The results are in the order of the files.
    fn on_each_device<T: Send>(
        &self,
        jobs: Vec<Job>,
        stop: Cancelled<'_>,
        work: &(dyn Fn(&Keeper, Job, Cancelled<'_>) -> Result<T, Failure> + Sync),
    ) -> Result<Vec<T>, Failure> {
        let places = self.keepers.places(&jobs)?;
        let mut queues: Vec<(Arc<Keeper>, Queue)> = Vec::new();
        for (job, keeper) in jobs.into_iter().enumerate().zip(places) {
            match queues.iter_mut().find(|(known, _)| Arc::ptr_eq(known, keeper)) {
                Some((_, queue)) => queue.push(job),
                None => queues.push((Arc::clone(keeper), vec![job])),
            }
        }
        let has_failed = AtomicBool::new(false);
        let (first_failure, done) = (Mutex::new(None), Mutex::new(Vec::new()));
        let stop = || has_failed.load(Ordering::Acquire) || stop();
        side_by_side(queues, &|keeper, queue| {
            for (index, job) in queue {
                match work(keeper, job, &stop) {
                    Ok(result) => lock(&done).push((index, result)),
                    Err(failure) => {
                        if !has_failed.swap(true, Ordering::AcqRel) {
                            *lock(&first_failure) = Some(failure);
                        }
                        return;
                    }
                }
            }
        });
        if let Some(failure) = lock(&first_failure).take() {
            return Err(failure);
        }
        let mut done = std::mem::take(&mut *lock(&done));
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// Shows a shard and watches it from now on.
    pub(super) fn keep(
        &self,
        shard: SealedShard,
        file: &ModelFile,
        approved: Option<Approved>,
        sha256_bytes: u64,
    ) -> ShardView {
        let keeper = Arc::clone(self.keepers.of(&shard));
        keeper.watch(&shard, file);
        let (path, format) = (file.path().to_owned(), file.format());
        let table = Arc::new(TableFrame::of(shard.table()));
        let place = Place { keeper, held: Held::Sealed(shard.clone()), path, format, approved, sha256_bytes, table };
        let view = self.view_with(&shard, place.about());
        lock(&self.places).insert(view.shard_id, place);
        view
    }
}
