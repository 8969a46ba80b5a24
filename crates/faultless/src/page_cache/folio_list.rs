//! The idle folios of an engine's files, in the order in which they became idle: what eviction takes pages from.
//!
//! A folio is idle while the page cache has the only reference to it. Mapped and pinned folios are not on the list, so a
//! fault that finds no memory does not look at them. The list has a reference of its own (LISTED in the folio's word).
//! The folio is then in one of three places:
//!
//! | place | how it comes there | who may take it out |
//! |---|---|---|
//! | arrivals, a stack | the last other reference goes ([`Engine::put`]), in any context: one compare-and-swap, no lock | whoever has the lock: all at once |
//! | linked | whoever has the lock links what has arrived | whoever has the lock: one at a time, O(1) |
//! | isolated | eviction unlinks it, and owns the list's reference | eviction: evicts it, lets it go, or pushes it again |
//!
//! A folio that comes into use again stays until eviction looks at it. Eviction lets it go then, and the folio comes back
//! when its last user leaves. So each look at a folio in use is paid for by one change from idle to used.
//!
//! **A page that is detached leaves at once.** Whoever detaches it calls [`FolioList::remove`] before it drops the page
//! cache's reference. `remove` clears the folio's file under the lock. If the folio is linked or has arrived, it goes from
//! the list in the same critical section. Otherwise somebody is about to push it or has isolated it. If the push's
//! compare-and-swap comes before the swap in `remove`, the swap finds the folio. If it comes later, the pusher finds that the
//! file is cleared, and takes the folio off itself. If somebody else has the lock at that moment, the frame stays until
//! the next call that takes the lock.
//!
//! **The file's pointer is valid under the lock.** A folio keeps it as long as its page is attached. A file's drop calls
//! `remove` for each attached page first. So while a folio has a pointer and the lock is held, the file's memory is there,
//! and [`Weak::upgrade_raw`] says whether the file is too.

use super::File;
use crate::engine::Engine;
use crate::frame::{Folio, ListPlace};
use crate::host::{Frame, Host};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Shared, Weak};
use core::ptr::{self, NonNull};

/// Arrivals from which on the pusher links them, if nobody has the lock: so critical sections stay short.
#[cfg(not(loom))]
const MANY: u64 = 64;
#[cfg(loom)]
const MANY: u64 = 2;

/// Bits of a word of `arrivals` for a frame's number plus one. The bits above count.
const NUMBER_BITS: u32 = Frame::COUNT.trailing_zeros() + 1;

/// In place of a neighbour: there is none. Zero says that the folio is not linked.
const END: u64 = u64::MAX;

fn number(frame: Frame) -> u64 {
    frame.get() + 1
}

fn frame_of(number: u64) -> Option<Frame> {
    number.checked_sub(1).and_then(Frame::new)
}

/// The list of idle folios: see the module.
pub(crate) struct FolioList {
    /// The number of the folio that came last, and how many have come since the last swap, as a hint. Each folio's `after`
    /// names the one that came before it. Atomic; AcqRel.
    arrivals: AtomicU64,
    linked: Mutex<Linked>,
}

/// Protected by its lock, with `before` of all folios, and `after` of those that are linked.
struct Linked {
    first: u64,
    last: u64,
    length: u64,
}

/// Folios taken off the list whose pages are detached, chained by `after`: the list's references are dropped without the
/// lock, by [`FolioList::let_go`].
#[must_use]
struct Detached(u64);

/// A folio that the caller has taken off the list, with the list's reference.
pub(super) struct Isolated<H: Host> {
    pub frame: Frame,
    pub file: Shared<File<H>>,
}

impl Default for FolioList {
    fn default() -> Self {
        Self { arrivals: AtomicU64::new(0), linked: Mutex::new(Linked { first: END, last: END, length: 0 }) }
    }
}

fn place<H: Host>(engine: &Engine<H>, number: u64) -> Option<&ListPlace> {
    frame_of(number).map(|frame| engine.folio(frame).place())
}

impl Linked {
    /// Takes out a folio that is linked.
    fn unlink<H: Host>(&mut self, engine: &Engine<H>, folio: &ListPlace) {
        let (before, after) =
            (folio.before.swap(0, Ordering::Relaxed), folio.after.swap(0, Ordering::Relaxed));
        match place(engine, before) {
            Some(before) => before.after.store(after, Ordering::Relaxed),
            None => self.first = after,
        }
        match place(engine, after) {
            Some(after) => after.before.store(before, Ordering::Relaxed),
            None => self.last = before,
        }
        self.length -= 1;
    }
}

impl FolioList {
    /// The folio begins a life as a page of the file that `file` is a handle of; `None`: of a file in memory, whose pages are
    /// never listed. The caller has the frame alone.
    pub(super) fn begin<H: Host>(folio: &Folio, file: Option<&Weak<File<H>>>) {
        let file = file.map_or(ptr::null_mut(), |file| file.as_raw().as_ptr());
        folio.place().file.store(file, Ordering::Relaxed);
    }

    /// Returns the number of folios on the list.
    pub(crate) fn length<H: Host>(&self, engine: &Engine<H>) -> u64 {
        let held = self.lock(engine);
        let length = held.0.length;
        self.unlock(engine, held);
        length
    }

    /// Puts a folio at the young end. The caller has the list's reference, which goes to the list. Waits for nothing: the
    /// caller may be in a section.
    pub(super) fn push<H: Host>(&self, engine: &Engine<H>, frame: Frame) {
        let place = engine.folio(frame).place();
        let mut head = self.arrivals.load(Ordering::Relaxed);
        let count = loop {
            place.after.store(head & ((1 << NUMBER_BITS) - 1), Ordering::Relaxed);
            let count = (head >> NUMBER_BITS) + 1;
            let new = (count << NUMBER_BITS) | number(frame);
            match self.arrivals.compare_exchange(head, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break count,
                Err(now) => head = now,
            }
        };
        // Partner: `remove`, as the module says.
        let is_detached = !mutant!("push_ignores_detach") && place.file.load(Ordering::Relaxed).is_null();
        if (count >= MANY || is_detached)
            && let Some(mut linked) = self.linked.try_lock()
        {
            let detached = self.link_arrivals(engine, &mut linked);
            self.unlock(engine, (linked, detached));
        }
    }

    /// The page of `frame` is detached: its folio leaves the list. The caller has the page cache's reference still.
    pub(super) fn remove<H: Host>(&self, engine: &Engine<H>, frame: Frame) {
        let place = engine.folio(frame).place();
        if place.file.load(Ordering::Relaxed).is_null() {
            // It has left before: the file is being dropped.
            return;
        }
        let mut linked = engine.lock(&self.linked);
        place.file.store(ptr::null_mut(), Ordering::Relaxed);
        let mut detached = self.link_arrivals(engine, &mut linked);
        if place.before.load(Ordering::Relaxed) != 0 {
            linked.unlink(engine, place);
            place.after.store(detached.0, Ordering::Relaxed);
            detached.0 = number(frame);
        }
        self.unlock(engine, (linked, detached));
    }

    /// Takes up to `batch.len()` of the oldest folios off the list. Returns how many; 0: the list is empty.
    pub(super) fn isolate<H: Host>(&self, engine: &Engine<H>, batch: &mut [Option<Isolated<H>>]) -> usize {
        let (mut linked, mut detached) = self.lock(engine);
        let mut count = 0;
        while count < batch.len()
            && let Some(frame) = frame_of(linked.first)
        {
            let place = engine.folio(frame).place();
            linked.unlink(engine, place);
            let file = NonNull::new(place.file.load(Ordering::Relaxed));
            // SAFETY: it came from a file of this engine, whose memory is there as long as the lock is held and the folio has
            // the pointer.
            if let Some(file) = file.and_then(|file| unsafe { Weak::upgrade_raw(file) }) {
                batch[count] = Some(Isolated { frame, file });
                count += 1;
            } else {
                // The file is being dropped: it comes for the page, and finds it gone from here.
                place.file.store(ptr::null_mut(), Ordering::Relaxed);
                place.after.store(detached.0, Ordering::Relaxed);
                detached.0 = number(frame);
            }
        }
        self.unlock(engine, (linked, detached));
        count
    }

    /// The lock, with everything linked that has arrived.
    fn lock<H: Host>(&self, engine: &Engine<H>) -> (MutexGuard<'_, Linked>, Detached) {
        let mut linked = engine.lock(&self.linked);
        let detached = self.link_arrivals(engine, &mut linked);
        (linked, detached)
    }

    /// Lets go of the lock, and then of what was detached.
    fn unlock<H: Host>(&self, engine: &Engine<H>, (linked, detached): (MutexGuard<'_, Linked>, Detached)) {
        drop(linked);
        let mut next = detached.0;
        while let Some(frame) = frame_of(next) {
            next = engine.folio(frame).place().after.swap(0, Ordering::Relaxed);
            engine.put_listed(frame);
        }
    }

    /// Links what has arrived at the young end, oldest first, without what was detached meanwhile.
    fn link_arrivals<H: Host>(&self, engine: &Engine<H>, linked: &mut Linked) -> Detached {
        // A swap in any case: it is what a push after it sees.
        let mut next = self.arrivals.swap(0, Ordering::AcqRel) & ((1 << NUMBER_BITS) - 1);
        let (mut detached, mut younger, last) = (Detached(0), END, linked.last);
        // The youngest comes first.
        while let Some(frame) = frame_of(next) {
            let arrived = engine.folio(frame).place();
            next = arrived.after.load(Ordering::Relaxed);
            if arrived.file.load(Ordering::Relaxed).is_null() {
                arrived.after.store(detached.0, Ordering::Relaxed);
                detached.0 = number(frame);
                continue;
            }
            match place(engine, younger) {
                Some(younger) => younger.before.store(number(frame), Ordering::Relaxed),
                None => linked.last = number(frame),
            }
            arrived.after.store(younger, Ordering::Relaxed);
            younger = number(frame);
            linked.length += 1;
        }
        if let Some(oldest) = place(engine, younger) {
            oldest.before.store(last, Ordering::Relaxed);
            match place(engine, last) {
                Some(last) => last.after.store(younger, Ordering::Relaxed),
                None => linked.first = younger,
            }
        }
        detached
    }
}
