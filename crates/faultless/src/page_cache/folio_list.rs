//! The idle folios of an engine's files, in the order in which they became idle. Eviction takes pages from this list.
//!
//! A folio is idle while the page cache has the only reference to it. Mapped and pinned folios are not on the list, so a
//! fault that finds no memory does not look at them. The list has a reference of its own (LISTED in the folio's word).
//! The folio is then in one of three places:
//!
//! | place | added by | removed by |
//! |---|---|---|
//! | arrivals, a stack | the thread that drops the last other reference ([`Engine::put`]), in any context: one compare-and-swap, no lock | the holder of the lock, all at once |
//! | linked | the holder of the lock, from the arrivals | the holder of the lock, one at a time, O(1) |
//! | isolated | eviction, which unlinks it and owns the list's reference | eviction, which evicts it, lets it go, or pushes it again |
//!
//! A folio that comes into use again stays until eviction checks it. Eviction then lets it go, and it returns when its
//! last user leaves. So each check of a folio in use is paid for by one change from idle to used.
//!
//! **A page that is detached leaves at once.** The thread that detaches it calls [`FolioList::remove`] before it drops
//! the page cache's reference. `remove` clears the folio's file under the lock. If the folio is linked or has arrived,
//! it is removed in the same critical section. Otherwise another thread is about to push it or has isolated it. If the
//! push's compare-and-swap comes before the swap in `remove`, the swap finds the folio. If it comes later, the pusher
//! finds that the file is cleared, and removes the folio itself. If another thread has the lock at that moment, the
//! frame stays until the next call that takes the lock.
//!
//! **The file's pointer is valid under the lock.** A folio keeps it as long as its page is attached. A file's drop
//! first calls `remove` for each attached page. So while a folio has a pointer and the lock is held, the file's memory
//! is valid, and [`Weak::upgrade_raw`] tells whether the file is alive. Reclaim comes from a mapped folio to its file in the
//! same way. A page may be up to date before it is attached. The thread that gives up such a page calls `remove` too.

use super::File;
use crate::engine::Engine;
use crate::frame::{Folio, ListPlace};
use crate::host::{Frame, Host};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Shared, Weak};
use core::ptr::{self, NonNull};

/// The number of arrivals from which on the pusher links them, if the lock is free. It keeps critical sections short.
#[cfg(not(loom))]
const MANY: u64 = 64;
#[cfg(loom)]
const MANY: u64 = 2;

/// The number of bits in a word of `arrivals` for a frame's number plus one. The bits above are a count.
const NUMBER_BITS: u32 = Frame::COUNT.trailing_zeros() + 1;

/// Marks that there is no neighbour. Zero means that the folio is not linked.
const END: u64 = u64::MAX;

fn number(frame: Frame) -> u64 {
    frame.get() + 1
}

fn frame_of(number: u64) -> Option<Frame> {
    number.checked_sub(1).and_then(Frame::new)
}

/// The list of idle folios: see the module.
pub(crate) struct FolioList {
    /// The number of the folio that came last, and, as a hint, the count of arrivals since the last swap. Each folio's
    /// `after` names the one that came before it. Atomic; AcqRel.
    arrivals: AtomicU64,
    linked: Mutex<Linked>,
}

/// Protected by its lock, with `before` of all folios, and `after` of those that are linked.
struct Linked {
    first: u64,
    last: u64,
    length: u64,
}

/// Folios taken off the list whose pages are detached, chained by `after`. [`FolioList::let_go`] drops the list's
/// references without the lock.
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
    /// Removes a linked folio.
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
    /// Begins a folio's life as a page of the file that `file` refers to; `None` for a file in memory, whose pages are
    /// never listed. The caller owns the frame alone.
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

    /// Puts a folio at the young end. The caller's reference of the list goes to the list. Waits for nothing: the
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
        // Partner: `remove`, see the module.
        let is_detached = !mutant!("push_ignores_detach") && place.file.load(Ordering::Relaxed).is_null();
        if (count >= MANY || is_detached)
            && let Some(mut linked) = self.linked.try_lock()
        {
            let detached = self.link_arrivals(engine, &mut linked);
            self.unlock(engine, (linked, detached));
        }
    }

    /// Removes the folio of `frame`, whose page is detached. The caller still has the page cache's reference.
    pub(super) fn remove<H: Host>(&self, engine: &Engine<H>, frame: Frame) {
        let place = engine.folio(frame).place();
        if place.file.load(Ordering::Relaxed).is_null() {
            // It was removed before: the file is being dropped.
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

    /// Takes up to `batch.len()` of the oldest folios off the list. Returns their number; 0 if the list is empty.
    pub(super) fn isolate<H: Host>(&self, engine: &Engine<H>, batch: &mut [Option<Isolated<H>>]) -> usize {
        let (mut linked, mut detached) = self.lock(engine);
        let mut count = 0;
        while count < batch.len()
            && let Some(frame) = frame_of(linked.first)
        {
            let place = engine.folio(frame).place();
            linked.unlink(engine, place);
            let file = NonNull::new(place.file.load(Ordering::Relaxed));
            // SAFETY: the pointer came from a file of this engine, whose memory is valid as long as the lock is held
            // and the folio has the pointer.
            if let Some(file) = file.and_then(|file| unsafe { Weak::upgrade_raw(file) }) {
                batch[count] = Some(Isolated { frame, file });
                count += 1;
            } else {
                // The file is being dropped. When its drop reaches this page, the folio is removed already.
                place.file.store(ptr::null_mut(), Ordering::Relaxed);
                place.after.store(detached.0, Ordering::Relaxed);
                detached.0 = number(frame);
            }
        }
        self.unlock(engine, (linked, detached));
        count
    }

    /// Returns the file of `frame`, whose folio the caller has isolated as that of a file. Returns `None` if the page is detached, or
    /// if the file has no store or is being dropped.
    pub(super) fn file_of<H: Host>(&self, engine: &Engine<H>, frame: Frame) -> Option<Shared<File<H>>> {
        let place = engine.folio(frame).place();
        let _linked = engine.lock(&self.linked);
        let file = NonNull::new(place.file.load(Ordering::Relaxed))?;
        // SAFETY: the page was up to date when it was isolated, so it was attached then, or about to be. The pin keeps it from being
        // evicted. A thread that detaches it, or gives it up before it is attached, clears the pointer under the lock, while it holds
        // the file. So the file's memory is valid as long as the lock is held.
        unsafe { Weak::upgrade_raw(file) }
    }

    /// Takes the lock, and links all arrivals.
    fn lock<H: Host>(&self, engine: &Engine<H>) -> (MutexGuard<'_, Linked>, Detached) {
        let mut linked = engine.lock(&self.linked);
        let detached = self.link_arrivals(engine, &mut linked);
        (linked, detached)
    }

    /// Releases the lock, and then drops the references to detached folios.
    fn unlock<H: Host>(&self, engine: &Engine<H>, (linked, detached): (MutexGuard<'_, Linked>, Detached)) {
        drop(linked);
        let mut next = detached.0;
        while let Some(frame) = frame_of(next) {
            next = engine.folio(frame).place().after.swap(0, Ordering::Relaxed);
            engine.put_listed(frame);
        }
    }

    /// Links the arrivals at the young end, oldest first, except those that were detached meanwhile.
    fn link_arrivals<H: Host>(&self, engine: &Engine<H>, linked: &mut Linked) -> Detached {
        // A swap even if there is nothing: a later push synchronises with it.
        let mut next = self.arrivals.swap(0, Ordering::AcqRel) & ((1 << NUMBER_BITS) - 1);
        let (mut detached, mut younger, last) = (Detached(0), END, linked.last);
        // The chain begins with the youngest.
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
