//! One group: its limits and its counts.

use crate::host::GroupId;
use crate::sync::plain::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// The number of pages that a charge takes for a stock at most.
pub(super) const MOST_STOCK: u64 = 64;

/// The state of a record in the table of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// No group has had the record yet.
    New,
    /// A thread takes the record for a new group.
    Taken,
    /// A [`MemoryLimit`](super::MemoryLimit) names the group.
    Live,
    /// Nothing names the group but the pages that it still pays for. It has no limits of its own.
    Ended,
}

/// An event or an amount that is counted for a group and for all groups above it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A charge went over high.
    High,
    /// A charge would have gone over max.
    Max,
    /// A fault or a call failed for lack of memory.
    OutOfMemory,
    /// A page came back after reclaim had freed its frame.
    Refault,
    /// Reclaim looked at a page.
    Scanned,
    /// Reclaim took a page out of all entries.
    Reclaimed,
}

const EVENTS: usize = Event::Reclaimed as usize + 1;

/// The counts of a group. Memory that was never used is a group without pages, which has no limits yet.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// The pages that the group and those below it pay for, with the pages in stocks. Atomic.
    usage: CachePadded<AtomicU64>,
    /// Atomic. Written by [`Group::set`].
    high: AtomicU64,
    /// Atomic. Written by [`Group::set`].
    max: AtomicU64,
    /// The number of the group above; 0 for none. Written by the thread that takes the record; immutable until it is taken again.
    parent: AtomicU32,
    /// A [`State`]. Atomic.
    state: AtomicU8,
    /// The number of stocks of this group and of those below it. Atomic.
    stocks: AtomicU32,
    /// The slots of swap space of this group and of those below it. Atomic.
    swap: AtomicU64,
    /// The evictions of the group's own pages: the clock of its refaults. Atomic.
    evictions: AtomicU64,
    events: [AtomicU64; EVENTS],
}

impl Group {
    pub fn usage(&self) -> u64 {
        self.usage.load(Ordering::Relaxed)
    }

    pub fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    pub fn high(&self) -> u64 {
        self.high.load(Ordering::Relaxed)
    }

    pub fn parent(&self) -> GroupId {
        GroupId::new(self.parent.load(Ordering::Relaxed))
    }

    pub fn swap(&self) -> u64 {
        self.swap.load(Ordering::Relaxed)
    }

    pub fn count(&self, event: Event) -> u64 {
        self.events[event as usize].load(Ordering::Relaxed)
    }

    pub fn evictions(&self) -> &AtomicU64 {
        &self.evictions
    }

    pub(super) fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }

    /// Takes the record for a new group, if no group has it. Returns false if one does.
    pub(super) fn take(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let is_unused = state == State::New as u8
            || state == State::Ended as u8
                && self.usage() == 0
                && self.swap() == 0
                && self.stocks.load(Ordering::Acquire) == 0;
        let taken = State::Taken as u8;
        is_unused && self.state.compare_exchange(state, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Begins the life of a group whose record the caller has taken.
    pub(super) fn begin(&self, parent: GroupId, high: u64, max: u64) {
        self.parent.store(parent.get(), Ordering::Relaxed);
        self.set(high, max);
        self.evictions.store(0, Ordering::Relaxed);
        self.events.iter().for_each(|event| event.store(0, Ordering::Relaxed));
        // Release, partner: `is`.
        self.state.store(State::Live as u8, Ordering::Release);
    }

    /// Ends the group. The group above already counts its pages.
    pub(super) fn end(&self) {
        self.set(u64::MAX, u64::MAX);
        self.state.store(State::Ended as u8, Ordering::Release);
    }

    pub(super) fn set(&self, high: u64, max: u64) {
        self.high.store(high, Ordering::Relaxed);
        self.max.store(max, Ordering::Relaxed);
    }

    /// Returns the number of pages that a stock may take at once. Over high it is 1.
    pub(super) fn share(&self) -> u64 {
        let slots = u64::from(self.stocks.load(Ordering::Relaxed)).max(1);
        (self.max().min(self.high()).saturating_sub(self.usage()) / (2 * slots)).clamp(1, MOST_STOCK)
    }

    /// Counts `pages` more if that does not pass max. Returns whether high is passed, or `None`.
    pub(super) fn try_add(&self, pages: u64) -> Option<bool> {
        let max = self.max();
        let add = |usage: u64| usage.checked_add(pages).filter(|sum| *sum <= max);
        let before = self.usage.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(before + pages > self.high())
    }

    /// Release: the thread that takes the record again sees the use of the pages before.
    pub(super) fn subtract(&self, pages: u64) {
        let before = self.usage.fetch_sub(pages, Ordering::Release);
        debug_assert!(before >= pages, "a group pays for {before} pages and gives {pages} back");
    }

    pub(super) fn add_stock(&self) {
        self.stocks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn subtract_stock(&self) {
        self.stocks.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn add_swap(&self) {
        self.swap.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn subtract_swap(&self) {
        self.swap.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn note(&self, event: Event, count: u64) {
        self.events[event as usize].fetch_add(count, Ordering::Relaxed);
    }
}
