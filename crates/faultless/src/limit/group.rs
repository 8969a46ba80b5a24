//! One group: its limits and its counts.

use crate::host::GroupId;
use crate::sync::plain::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
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
    /// A fault or a call found no memory, and nothing could be reclaimed.
    OutOfMemory,
    /// A space was ended for lack of memory.
    Victim,
    /// A page was read back from its slot after reclaim had freed its frame.
    Refault,
    /// Reclaim looked at a page.
    Scanned,
    /// Reclaim took a page out of all entries.
    Reclaimed,
    /// A fault had to wait for a read.
    MajorFault,
    /// A fault was served, and is not counted by a stock.
    Fault,
}

const EVENTS: usize = Event::Fault as usize + 1;

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
    /// The pages of files that this group and those below it pay for, without the counts that stocks have. Atomic; it wraps below 0,
    /// since a page may be counted in one stock and taken off in another.
    files: AtomicU64,
    /// The evictions of the group's own pages of each kind: the clocks of its refaults. They go on when the record serves another
    /// group. Atomic.
    evictions: [AtomicU64; 2],
    events: [AtomicU64; EVENTS],
    /// Whether the worker has looked at all pages of the group, and could take none. Used by the worker, and reset with a new life.
    is_hopeless: AtomicBool,
}

impl Group {
    /// Returns whether the worker's last work in the group was in vain.
    pub fn is_hopeless(&self) -> bool {
        self.is_hopeless.load(Ordering::Relaxed)
    }

    pub fn set_hopeless(&self, is_hopeless: bool) {
        self.is_hopeless.store(is_hopeless, Ordering::Relaxed);
    }

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

    /// Returns the pages of files, without the counts that stocks have.
    pub fn files(&self) -> i64 {
        self.files.load(Ordering::Relaxed).cast_signed()
    }

    pub fn count(&self, event: Event) -> u64 {
        self.events[event as usize].load(Ordering::Relaxed)
    }

    pub fn evictions(&self) -> &[AtomicU64; 2] {
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
        self.set_hopeless(false);
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

    /// Counts `pages` more if that does not pass max. Returns the new number, or `None`.
    pub(super) fn try_add(&self, pages: u64) -> Option<u64> {
        let max = self.max();
        let add = |usage: u64| usage.checked_add(pages).filter(|sum| *sum <= max);
        let before = self.usage.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(before + pages)
    }

    /// Returns whether `usage` is above high, or within a sixteenth below it. Then the background worker is called.
    pub(super) fn is_near_high(&self, usage: u64) -> bool {
        let high = self.high();
        usage > high - (high / 16).max(1).min(high) && high != u64::MAX
    }

    /// Returns the number of pages down to which the background worker reclaims: an eighth below high.
    pub fn low(&self) -> u64 {
        let high = self.high();
        high.saturating_sub((high / 8).max(1))
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

    pub(super) fn count_files(&self, change: i64) {
        self.files.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
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
