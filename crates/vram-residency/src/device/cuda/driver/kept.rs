//! What is not given back yet, because nobody could wait for work that may still use it.
//!
//! A driver that refuses a wait says nothing about the work: a kernel may be under way, or start later. So nothing that this
//! process has of the device is given back from then on, until that work was waited for, or its context is gone.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Context;
use super::table::Table;
use super::types::{Code, Handle, RawStream, code};

/// With whom a thing goes, where nobody gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// With the context.
    Context,
    /// With the process.
    Process,
}

/// Something to be given back, and how.
pub(super) struct Gift<F> {
    step: &'static str,
    of: Of,
    /// Done once, before it is given back.
    before: Option<Box<dyn FnOnce() + Send>>,
    call: F,
}

impl<F: Fn(&Table) -> Code + Send + 'static> Gift<F> {
    pub(super) fn new(step: &'static str, of: Of, call: F) -> Self {
        Self { step, of, before: None, call }
    }

    pub(super) fn after(self, before: impl FnOnce() + Send + 'static) -> Self {
        Self { before: Some(Box::new(before)), ..self }
    }

    /// As it is kept: only then is memory allocated for it.
    fn boxed(self) -> KeptGift {
        Gift { step: self.step, of: self.of, before: self.before, call: Box::new(self.call) }
    }
}

type KeptGift = Gift<Box<dyn Fn(&Table) -> Code + Send>>;

/// What waits, and what for.
#[derive(Default)]
pub(super) struct Kept {
    /// Whether there is a stream in the list; looked at without its lock.
    unsettled: AtomicBool,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// Streams whose work nobody could wait for.
    streams: Vec<Handle>,
    /// In the order in which they are to be given back.
    gifts: Vec<KeptGift>,
}

impl Context {
    /// Whether there may be work on the device that nobody could wait for.
    pub(in crate::device::cuda) fn is_unsettled(&self) -> bool {
        self.kept.unsettled.load(Ordering::Acquire)
    }

    /// The work of a stream could not be waited for.
    pub(super) fn unsettle(&self, stream: RawStream) {
        let mut list = self.kept.list.lock();
        let stream = Handle(stream);
        if !list.streams.contains(&stream) {
            list.streams.push(stream);
        }
        self.kept.unsettled.store(true, Ordering::Release);
    }

    /// The work of a stream was waited for.
    pub(super) fn waited_for(&self, stream: RawStream) {
        if self.is_unsettled() {
            let mut list = self.kept.list.lock();
            list.streams.retain(|unsettled| unsettled.get() != stream);
            self.give_all_back(&mut list);
        }
    }

    /// Tries once more to wait for what could not be waited for, and gives back what was kept until then.
    pub(in crate::device::cuda) fn settle(&self) {
        if self.is_unsettled() {
            self.try_to_settle(&mut self.kept.list.lock());
        }
    }

    fn try_to_settle(&self, list: &mut List) -> bool {
        list.streams.retain(|stream| !self.is_done(stream.get()));
        self.give_all_back(list)
    }

    /// Whether all of it is given back, as there is no stream left to wait for.
    fn give_all_back(&self, list: &mut List) -> bool {
        if list.streams.is_empty() {
            let gifts = std::mem::take(&mut list.gifts);
            if !gifts.is_empty() {
                tracing::warn!(
                    device = self.device(),
                    count = gifts.len(),
                    "the GPU's work is done; what it used is given back"
                );
            }
            gifts.into_iter().for_each(|gift| self.give(gift));
            self.kept.unsettled.store(false, Ordering::Release);
        }
        list.streams.is_empty()
    }

    /// Whether a stream's work is done, or was ended together with all of its context's.
    fn is_done(&self, stream: RawStream) -> bool {
        let _current = self.push();
        // SAFETY: a stream is destroyed as the last thing of its own, and not while it is in the list.
        let answer = unsafe { (self.driver.table.stream_synchronize)(stream) };
        answer == code::SUCCESS || code::ends_all_work(answer)
    }

    /// Gives something back, with a call that may fail, when nothing that could not be waited for may use it any more. The call is
    /// tried twice; what then stays is the driver's affair, ends with the process, and is said.
    pub(super) fn give_back<F: Fn(&Table) -> Code + Send + 'static>(&self, gift: Gift<F>) {
        if self.is_unsettled() {
            let mut list = self.kept.list.lock();
            if !self.try_to_settle(&mut list) {
                tracing::error!(
                    device = self.device(),
                    step = gift.step,
                    "put off: the GPU's work cannot be waited for"
                );
                list.gifts.push(gift.boxed());
                return;
            }
        }
        self.give(gift);
    }

    /// Has something done when what was dropped before is given back.
    pub(in crate::device::cuda) fn when_given_back(&self, step: &'static str, action: impl Fn() + Send + 'static) {
        if self.is_unsettled() {
            self.give_back(Gift::new(step, Of::Process, move |_| {
                action();
                code::SUCCESS
            }));
        } else {
            action();
        }
    }

    fn give<F: Fn(&Table) -> Code>(&self, gift: Gift<F>) {
        if let Some(before) = gift.before {
            before();
        }
        // A lost context has to be entered too: the driver is told what is given up in it. Where that fails, the driver is
        // asked all the same, and says so.
        let attempt = || {
            let _current = self.push();
            self.check(gift.step, (gift.call)(&self.driver.table))
        };
        if let Err(error) = attempt().or_else(|_| attempt()) {
            tracing::error!(%error, "something of the GPU's could not be given back");
        }
    }

    /// Before the context is released: what of the host's memory is to be wiped, is.
    pub(super) fn before_release(&self) {
        self.settle();
        let mut list = self.kept.list.lock();
        list.gifts.iter_mut().filter_map(|gift| gift.before.take()).for_each(|before| before());
    }

    /// After the context was released: where it is gone with all of its work, what is of the process is given back.
    pub(super) fn after_release(&self, is_gone: bool) {
        let mut list = self.kept.list.lock();
        let gifts = std::mem::take(&mut list.gifts).into_iter().filter(|gift| gift.of == Of::Process);
        let mut stay = 0_usize;
        for gift in gifts {
            let attempt = || is_gone && (gift.call)(&self.driver.table) == code::SUCCESS;
            if !attempt() && !attempt() {
                stay = stay.saturating_add(1);
            }
        }
        if stay > 0 {
            tracing::error!(device = self.device(), stay, "what the GPU's work may use stays until this process ends");
        }
    }
}
