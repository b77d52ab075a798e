//! A crew of threads that work through numbered tasks and allocate nothing while they do.
//!
//! Verification must not touch the heap, so the threads are started once and then only woken. The caller works too;
//! while the crew is busy with somebody else's tasks, the caller does its own alone.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// A task panicked. The others were finished or skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panicked;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Threads that wait for work. Dropping the crew ends them.
#[derive(Debug)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    /// Held by whoever the crew works for.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    finished: Condvar,
    /// The next task's number.
    next: AtomicUsize,
    panicked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    job: Option<Job>,
    /// Rises with every job, so that a thread takes each job once.
    round: u64,
    /// Threads that have not yet left the current job.
    active: usize,
    ending: bool,
}

/// A borrowed task whose lifetime has been erased.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    count: usize,
}

/// No addresses.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} tasks)", self.count)
    }
}

// SAFETY: the pointee is `Sync`, so it may be called from any thread, and `Crew::run` keeps it alive until every
// thread has left the job.
unsafe impl Send for Job {}

impl Crew {
    /// A crew in which `threads` threads work, the caller's included.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            start: Condvar::new(),
            finished: Condvar::new(),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let spawn = |index| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("vram-hash-{index}")).spawn(move || shared.work()).ok()
        };
        // A thread that cannot be started is one that does not help: the caller does its share.
        let threads = (1..threads).filter_map(spawn).collect();
        Self { shared, turn: Mutex::default(), threads }
    }

    /// Threads that work, the caller's included.
    pub(super) fn threads(&self) -> usize {
        self.threads.len().saturating_add(1)
    }

    /// Calls `task` once with each of `0..count`, in roughly ascending order, and returns when all are done.
    pub(super) fn run(&self, count: usize, task: &Task<'_>) -> Result<(), Panicked> {
        let turn = if count < 2 || self.threads.is_empty() {
            None
        } else {
            match self.turn.try_lock() {
                Ok(turn) => Some(turn),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        };
        let Some(_turn) = turn else {
            return calm(|| (0..count).for_each(task));
        };
        // SAFETY: only the lifetime changes. `Finish` below waits, also while unwinding, until every thread has left
        // the job, so nobody calls the task after this function ends.
        let task: &'static Task<'static> = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        let job = Job { task, count };
        {
            let mut state = lock(&self.shared.state);
            self.shared.next.store(0, Ordering::Relaxed);
            self.shared.panicked.store(false, Ordering::Relaxed);
            state.job = Some(job);
            state.round = state.round.wrapping_add(1);
            state.active = self.threads.len();
        }
        self.shared.start.notify_all();
        let finish = Finish(&self.shared);
        self.shared.take_tasks(job);
        drop(finish);
        if self.shared.panicked.load(Ordering::Relaxed) { Err(Panicked) } else { Ok(()) }
    }

    /// Calls `work` once with each item and its index, several at a time.
    pub(super) fn for_each_mut<T: Send>(
        &self,
        items: &mut [T],
        work: &(impl Fn(usize, &mut T) + Sync),
    ) -> Result<(), Panicked> {
        struct Base<T>(*mut T);
        // SAFETY: the pointer is only used to reach distinct items, and the items may be sent between threads.
        unsafe impl<T: Send> Sync for Base<T> {}
        impl<T> Base<T> {
            fn item(&self, index: usize) -> *mut T {
                self.0.wrapping_add(index)
            }
        }

        let count = items.len();
        let base = Base(items.as_mut_ptr());
        self.run(count, &|index| {
            // SAFETY: `run` hands out each index below `count` once, so this is the only reference to the item, and
            // `items` is borrowed until `run` has returned.
            let item = unsafe { &mut *base.item(index) };
            work(index, item);
        })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        lock(&self.shared.state).ending = true;
        self.shared.start.notify_all();
        for thread in self.threads.drain(..) {
            // Tasks' panics were caught; there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

/// Waits until every thread has left the job.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        while state.active > 0 {
            state = self.0.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
    }
}

impl Shared {
    /// A thread's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let job = {
                let mut state = lock(&self.state);
                loop {
                    if state.ending {
                        return;
                    }
                    match state.job {
                        Some(job) if state.round != seen => {
                            seen = state.round;
                            break job;
                        }
                        _ => state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            self.take_tasks(job);
            let mut state = lock(&self.state);
            state.active = state.active.saturating_sub(1);
            if state.active == 0 {
                self.finished.notify_all();
            }
        }
    }

    /// Takes tasks until none is left or one panics.
    fn take_tasks(&self, job: Job) {
        // SAFETY: `Crew::run` does not return before every thread has left the job, so the task is alive.
        let task = unsafe { &*job.task };
        let tasks = || {
            while !self.panicked.load(Ordering::Relaxed) {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= job.count {
                    break;
                }
                task(index);
            }
        };
        if calm(tasks).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

/// Calls `work` and stops a panic here.
fn calm(work: impl FnOnce()) -> Result<(), Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        // What was thrown may panic when it is dropped; this thread is still needed.
        std::mem::forget(payload);
        Panicked
    })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let crew = Crew::new(threads);
            for count in [0, 1, 2, 3, 100, 1000] {
                let mut items = vec![0; count];
                crew.for_each_mut(&mut items, &|index, item| *item += index + 1).unwrap();
                assert!(items.iter().enumerate().all(|(index, item)| *item == index + 1));
            }
        }
    }

    #[test]
    fn callers_at_the_same_time_all_get_their_work_done() {
        let crew = Crew::new(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut items = [0_u32; 17];
                        crew.for_each_mut(&mut items, &|_, item| *item += 1).unwrap();
                        assert_eq!(items, [1; 17]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panicking_task_is_reported_and_the_crew_stays_usable() {
        let crew = Crew::new(2);
        for count in [1, 50] {
            assert_eq!(crew.run(count, &|_| panic!("on purpose")), Err(Panicked));
        }
        assert_eq!(crew.run(50, &|_| ()), Ok(()));
    }
}
