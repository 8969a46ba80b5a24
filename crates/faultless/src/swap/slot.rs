//! One slot: the place of a page's bytes while no frame has them. Each step here changes one slot, in one word of it.

use crate::engine::MAX_SHARED_TABLES;
use crate::frame::MAX_SAME_PAGE;
use crate::host::{Frame, FrameUse, GENERATIONS, GroupId};
use crate::store::StoreError;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::plain;

/// A slot of swap space.
///
/// ```text
/// the word `state`
///  0–23 count: entries that name the slot, and transfers of its bytes that are under way
///  24 IN_CACHE: a folio is attached, or a thread attaches one or takes it out
///  25 WRITTEN: the location has the bytes      26 POISONED: the bytes cannot be had
///  27 PATTERN: `location` is the word that the page repeats      28 MOVED: an entry that names the slot was moved
///  29 AHEAD: the folio was read ahead, and no fault has used it yet
///  30 OF_FILE: the page is of a file without a store. The word of the file's index counts as the one entry that names the slot
///  32–43 generation: the number of lives of the slot so far, modulo 4,096
/// ```
/// The count and IN_CACHE are references. When both are gone, the slot is free. The thread that drops the last one gives the slot
/// back to the table.
///
/// IN_CACHE also guards `folio`: only the thread that has set or is about to clear it writes there. So a thread that attaches a
/// folio and one that takes another folio out never overwrite each other's number.
///
/// 32 bytes for each slot, 0.8 % of a page. Memory of zeros is a slot that was never used.
#[derive(Debug, Default)]
pub(crate) struct SwapSlot {
    /// See the type. Atomic.
    state: AtomicU64,
    /// The attached frame plus 1, or 0. In a free slot: [`IS_LINK`] and the next free slot. Atomic; written by the thread that
    /// has IN_CACHE to itself, or that has the free slot alone.
    folio: AtomicU64,
    /// A [`Location`] in bits, the repeated word, or 0 for neither. Atomic. Written by the thread that attaches the first folio,
    /// and by that of the write; both before the Release of `state` that makes it known.
    location: plain::AtomicU64,
    /// The checksum of the bytes. In a poisoned slot, the code of the error. Atomic. Written before WRITTEN or POISONED is set
    /// (Release), read after (Acquire).
    checksum: plain::AtomicU32,
    /// The number of the group in whose count of swap the slot is, 0 for the root. Atomic. Written by the thread that has the free
    /// slot alone.
    group: plain::AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<SwapSlot>() == 32);

const COUNT: u64 = (1 << 24) - 1;
const IN_CACHE: u64 = 1 << 24;
const WRITTEN: u64 = 1 << 25;
const POISONED: u64 = 1 << 26;
const PATTERN: u64 = 1 << 27;
const MOVED: u64 = 1 << 28;
const AHEAD: u64 = 1 << 29;
const OF_FILE: u64 = 1 << 30;
const REFERENCES: u64 = COUNT | IN_CACHE;
const GENERATION_SHIFT: u32 = 32;

/// The number of transfers of one slot that may be under way, with room to spare: a write, and a read after it.
const TRANSFERS: u64 = 16;
/// The count from which on only copies of shared tables count one more. The rest is for those copies, which cannot be refused
/// (see `engine/shared_tables.rs`), and for transfers.
pub(super) const COUNT_FULL: u64 = COUNT - MAX_SHARED_TABLES * MAX_SAME_PAGE - TRANSFERS;
const _: () = assert!(COUNT_FULL >= 1 << 22, "room for entries that are counted one by one");

/// Marks the number of the next free slot, so that it is never taken for a frame.
const IS_LINK: u64 = 1 << 63;
/// Marks the time of the folio's eviction, a count of evictions.
const IS_TIME: u64 = 1 << 62;

/// A value of the word of a slot, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u64);

impl State {
    /// Returns the number of entries that name the slot, and of transfers under way.
    pub fn count(self) -> u64 {
        self.0 & COUNT
    }

    /// Returns whether a folio is attached, or about to be, or on its way out.
    pub fn is_in_cache(self) -> bool {
        self.0 & IN_CACHE != 0
    }

    /// Returns whether the location, or the pattern, has the bytes.
    pub fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }

    /// Returns whether nothing has the bytes of an entry that names the slot by `generation`.
    pub fn is_lost(self, generation: u16) -> bool {
        self.count() == 0
            || self.generation() != generation
            || !self.is_in_cache() && !self.is_written() && !self.is_poisoned()
    }

    /// Returns whether the bytes cannot be had.
    pub fn is_poisoned(self) -> bool {
        self.0 & POISONED != 0
    }

    /// Returns whether the page is one repeated word.
    pub fn is_pattern(self) -> bool {
        self.0 & PATTERN != 0
    }

    /// Returns whether an entry that has the page was moved.
    pub fn is_moved(self) -> bool {
        self.0 & MOVED != 0
    }

    /// Returns the use for which a frame for the page is taken.
    pub fn purpose(self) -> FrameUse {
        if self.0 & OF_FILE != 0 { FrameUse::File } else { FrameUse::Anonymous }
    }

    /// Returns the generation, which is below [`GENERATIONS`].
    pub fn generation(self) -> u16 {
        ((self.0 >> GENERATION_SHIFT) as u16) % GENERATIONS
    }

    /// Returns whether the attached folio is the only reference: no entry wants the bytes.
    pub fn is_unwanted(self) -> bool {
        self.0 & REFERENCES == IN_CACHE
    }

    /// Returns whether the slot has no reference.
    pub fn is_free(self) -> bool {
        self.0 & REFERENCES == 0
    }
}

/// The place of a page on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    /// The number of the device, in the order in which devices were added.
    pub device: u8,
    /// The device's number for the place; below [`Location::PLACES`].
    pub place: u64,
}

impl Location {
    /// The number of places that a device can have.
    pub const PLACES: u64 = 1 << 48;
    /// The number of devices that an engine can have.
    pub const DEVICES: usize = 32;

    const PLACE_BITS: u32 = 48;

    /// Returns the place behind this one.
    pub fn next(self) -> Self {
        Self { place: self.place + 1, ..self }
    }

    fn bits(self) -> u64 {
        (u64::from(self.device) + 1) << Self::PLACE_BITS | self.place
    }

    fn from_bits(bits: u64) -> Option<Self> {
        let device = (bits >> Self::PLACE_BITS).checked_sub(1)? as u8;
        Some(Self { device, place: bits % Self::PLACES })
    }
}

/// The reason why a read of a slot's bytes was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotBegun {
    /// The slot has another generation by now, or no entry names it any more.
    Gone,
    /// A folio is attached, or another thread attaches one.
    InCache,
    /// The bytes cannot be had.
    Poisoned,
}

/// The outcome of dropping a slot's reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// No reference remains: the caller frees the slot.
    Nothing,
    /// Only the attached folio remains.
    Folio,
    /// Others remain.
    Others,
}

impl Left {
    fn of(state: u64) -> Self {
        match state & REFERENCES {
            0 => Self::Nothing,
            IN_CACHE => Self::Folio,
            _ => Self::Others,
        }
    }
}

impl SwapSlot {
    /// Returns the state. Acquire: the caller sees the location and the checksum that go with it.
    pub fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// Returns the attached frame. A thread with a reference of its own to the folio asks again to be sure. Acquire.
    pub fn attached(&self) -> Option<Frame> {
        let bits = self.folio.load(Ordering::Acquire);
        if bits & (IS_LINK | IS_TIME) != 0 { None } else { bits.checked_sub(1).and_then(Frame::new) }
    }

    // ---- the beginning and the end of a life

    /// Begins a life with `frame` attached and no entry yet. The caller has the free slot alone. Returns the generation.
    pub fn begin(&self, frame: Frame, location: Location) -> u16 {
        self.begin_as(frame, location, IN_CACHE)
    }

    /// Begins a life as [`SwapSlot::begin`] does, for a page of a file without a store. The file has one use of the slot.
    pub fn begin_of_file(&self, frame: Frame, location: Location) -> u16 {
        self.begin_as(frame, location, IN_CACHE | OF_FILE | 1)
    }

    fn begin_as(&self, frame: Frame, location: Location, state: u64) -> u16 {
        let generation = State(self.state.load(Ordering::Relaxed)).generation();
        self.location.store(location.bits(), Ordering::Relaxed);
        self.folio.store(frame.get() + 1, Ordering::Release);
        self.state.store(state | u64::from(generation) << GENERATION_SHIFT, Ordering::Release);
        generation
    }

    /// Ends a life: the next one has the next generation. The caller has dropped the last reference. Returns the location, which
    /// the caller gives back to its device.
    pub fn end(&self) -> Option<Location> {
        let state = State(self.state.load(Ordering::Relaxed));
        debug_assert!(state.is_free(), "a slot freed that is in use: {state:?}");
        let location = if state.is_pattern() { None } else { self.location() };
        self.location.store(0, Ordering::Relaxed);
        let next = (state.generation() + 1) % GENERATIONS;
        self.state.store(u64::from(next) << GENERATION_SHIFT, Ordering::Release);
        location
    }

    /// Sets the group in whose count the slot is. The caller has the free slot alone.
    pub fn set_group(&self, group: GroupId) {
        self.group.store(group.get(), Ordering::Relaxed);
    }

    /// Returns the group in whose count the slot is.
    pub fn group(&self) -> GroupId {
        GroupId::new(self.group.load(Ordering::Relaxed))
    }

    /// Sets the next free slot. The caller has the free slot alone.
    pub fn set_link(&self, next: u64) {
        self.folio.store(IS_LINK | next, Ordering::Relaxed);
    }

    /// Returns the next free slot, if this one is free. If it is not, the number means nothing, and the caller's next
    /// compare-and-swap fails.
    pub fn link(&self) -> u64 {
        self.folio.load(Ordering::Relaxed) & !IS_LINK
    }

    // ---- entries

    /// Counts one more entry, if the slot has this generation, is in use, and its count is not full. Returns whether it did. Acquire.
    pub fn try_count(&self, generation: u16) -> bool {
        let may =
            |state: State| state.generation() == generation && !state.is_free() && state.count() < COUNT_FULL;
        self.change(|state| may(state).then_some(state.0 + 1)).is_ok()
    }

    /// Counts one more entry for a copy of a shared table, which cannot be refused. Another entry names the slot meanwhile. Returns
    /// true if the count is now full for all but such copies.
    #[must_use]
    pub fn count_copy(&self) -> bool {
        let old = State(self.state.fetch_add(1, Ordering::Relaxed));
        debug_assert!(old.count() != 0 && old.count() < COUNT - TRANSFERS, "{old:?}");
        old.count() + 1 >= COUNT_FULL
    }

    /// Returns whether no more entries can be counted one by one.
    pub fn is_full(&self) -> bool {
        State(self.state.load(Ordering::Relaxed)).count() >= COUNT_FULL
    }

    /// Drops the reference of an entry or a transfer. AcqRel: the last one sees what the others did.
    pub fn put(&self) -> Left {
        let old = self.state.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(old & COUNT != 0, "a slot's count below zero: {:?}", State(old));
        Left::of(old - 1)
    }

    /// Notes that an entry that has the page was moved, while others have it too. Acquire and Release, partner: [`SwapSlot::state`].
    pub fn set_moved(&self) {
        if !mutant!("slot_moves_silently") {
            self.state.fetch_or(MOVED, Ordering::AcqRel);
        }
    }

    // ---- the folio

    /// Takes the place of the folio and a reference for a read, if the slot has this generation and no folio. If `is_ahead`, no fault
    /// needs the page yet. The caller then calls [`SwapSlot::publish`]. Acquire: the caller sees where the bytes are.
    ///
    /// # Errors
    /// [`NotBegun`]; nothing has changed.
    pub fn begin_read(&self, generation: u16, is_ahead: bool) -> Result<(), NotBegun> {
        let ahead = if is_ahead { AHEAD } else { 0 };
        let new = |state: State| (state.0 & !AHEAD | IN_CACHE | ahead) + 1;
        self.change(|state| self.may_read(state, generation).is_ok().then_some(new(state)))
            .map(|_| ())
            .map_err(|state| self.may_read(state, generation).err().unwrap_or(NotBegun::InCache))
    }

    /// Returns whether the folio was read ahead and this is the first use of it. One load, if it was not.
    pub fn is_first_use_of_ahead(&self) -> bool {
        self.state.load(Ordering::Relaxed) & AHEAD != 0
            && self.state.fetch_and(!AHEAD, Ordering::Relaxed) & AHEAD != 0
    }

    fn may_read(&self, state: State, generation: u16) -> Result<(), NotBegun> {
        if state.count() == 0 || state.generation() != generation {
            Err(NotBegun::Gone)
        } else if mutant!("reads_a_slot_twice") && state.is_written() {
            Ok(())
        } else if state.is_in_cache() && !(mutant!("reads_beside_an_eviction") && self.attached().is_none()) {
            Err(NotBegun::InCache)
        } else if state.is_poisoned() || !state.is_written() {
            Err(NotBegun::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Makes the folio of `frame` known as the attached one. The caller has set IN_CACHE. Release: a thread that finds the folio
    /// sees its word.
    pub fn publish(&self, frame: Frame) {
        debug_assert!(self.attached().is_none(), "two folios of one slot");
        self.folio.store(frame.get() + 1, Ordering::Release);
    }

    /// Attaches a folio again that was just taken out, though its bytes may have changed. Returns false if another thread has begun
    /// to read the slot into a folio of its own meanwhile. The caller has the bit of the only entry that names the slot.
    pub fn attach_again(&self, frame: Frame) -> bool {
        let new = |state: State| (!state.is_in_cache()).then_some((state.0 | IN_CACHE) & !WRITTEN);
        let is_attached = self.change(new).is_ok();
        if is_attached {
            self.publish(frame);
        }
        is_attached
    }

    /// Makes a slot without a folio one that was never written. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn lose_for_tests(&self) {
        let _ = self.change(|state| (!state.is_in_cache()).then_some(state.0 & !WRITTEN));
    }

    /// Returns the time of the last eviction, a count of evictions, if the folio was evicted and none is attached.
    pub fn evicted_at(&self) -> Option<u64> {
        let bits = self.folio.load(Ordering::Relaxed);
        (bits & (IS_LINK | IS_TIME) == IS_TIME).then_some(bits & !IS_TIME)
    }

    /// Takes the folio out. The caller owns that: it has cleared the folio's mark, or has the folio alone. If the folio is evicted,
    /// `evicted_at` is the time, a count of evictions.
    #[inline]
    pub fn leave_cache(&self, evicted_at: Option<u64>) -> Left {
        // Before the mark goes, which lets the next folio in.
        let left = evicted_at.map_or(0, |evictions| IS_TIME | evictions & !IS_LINK);
        self.folio.store(left, Ordering::Release);
        let old = self.state.fetch_sub(IN_CACHE, Ordering::AcqRel);
        debug_assert!(old & IN_CACHE != 0, "a folio taken out twice: {:?}", State(old));
        Left::of(old - IN_CACHE)
    }

    // ---- the write

    /// Takes a reference for a write of the attached folio, if the slot has this generation and an entry names it. Returns whether
    /// it did.
    pub fn begin_write(&self, generation: u16) -> bool {
        let is_same = |state: State| state.generation() == generation || mutant!("write_without_generation");
        let may = |state: State| state.count() != 0 && is_same(state) && !state.is_written();
        let counted = if mutant!("write_without_slot") { 0 } else { 1 };
        self.change(|state| may(state).then_some(state.0 + counted)).is_ok()
    }

    /// Notes where the write goes. The caller has a reference for the write, or keeps the folio from being written.
    pub fn set_location(&self, location: Option<Location>) {
        self.location.store(location.map_or(0, Location::bits), Ordering::Relaxed);
    }

    /// Notes that the page is one repeated word, and no device has it. The caller has a reference for the write, and has given the
    /// location back.
    pub fn set_pattern(&self, word: u64) {
        self.location.store(word, Ordering::Relaxed);
        self.state.fetch_or(PATTERN, Ordering::Relaxed);
    }

    /// Notes the checksum of the bytes that are written. The caller has a reference for the write.
    pub fn set_checksum(&self, checksum: u32) {
        self.checksum.store(checksum, Ordering::Relaxed);
    }

    /// Ends a write: drops its reference. If the write has succeeded and the folio is still attached, the slot is WRITTEN from now
    /// on. Release.
    pub fn end_write(&self, has_succeeded: bool) -> Left {
        let end = |state: State| {
            let written = if has_succeeded && state.is_in_cache() { WRITTEN } else { 0 };
            Some((state.0 | written) - if mutant!("write_without_slot") { 0 } else { 1 })
        };
        // `end` refuses nothing.
        let (Ok(new) | Err(State(new))) = self.change(end);
        Left::of(new)
    }

    /// Notes that no device has the bytes of the attached folio any more. The caller has a reference to the slot, and keeps the folio
    /// from being written or evicted. Returns whether a folio is attached; if not, nothing has changed. AcqRel.
    pub fn unwrite(&self, generation: u16) -> bool {
        let may =
            |state: State| state.generation() == generation && state.is_in_cache() && !state.is_pattern();
        self.change(|state| may(state).then_some(state.0 & !WRITTEN)).is_ok()
    }

    // ---- the bytes

    /// Returns where the bytes are, or go. The caller has a reference.
    pub fn location(&self) -> Option<Location> {
        Location::from_bits(self.location.load(Ordering::Relaxed))
    }

    /// Returns the word that the page repeats, if the state says [`State::is_pattern`].
    pub fn pattern(&self) -> u64 {
        self.location.load(Ordering::Relaxed)
    }

    /// Returns the checksum of the bytes. The caller has a reference to a slot that is WRITTEN and not poisoned.
    pub fn checksum(&self) -> u32 {
        self.checksum.load(Ordering::Relaxed)
    }

    /// Notes that the bytes cannot be had. The caller has the reference of the only read. Release.
    pub fn poison(&self, error: StoreError) {
        self.checksum.store(error.code().into(), Ordering::Relaxed);
        self.state.fetch_or(POISONED, Ordering::Release);
    }

    /// Returns why the bytes cannot be had, if so. The caller has a reference.
    pub fn error(&self) -> Option<StoreError> {
        let offset = || self.location().map_or(0, |location| location.place * crate::address::PAGE_SIZE);
        self.state()
            .is_poisoned()
            .then(|| StoreError::from_code(self.checksum.load(Ordering::Relaxed) as u8, offset()))
    }

    /// Changes the state as `new` says. Returns the new state, or the old one if `new` refuses. AcqRel.
    fn change(&self, new: impl Fn(State) -> Option<u64>) -> Result<u64, State> {
        let mut old = self.state.load(Ordering::Acquire);
        loop {
            let Some(changed) = new(State(old)) else { return Err(State(old)) };
            match self.state.compare_exchange(old, changed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(changed),
                Err(now) => old = now,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const FRAME: Frame = Frame::new(7).unwrap();
    const HERE: Location = Location { device: 2, place: 5 };

    /// Returns a slot that is written and evicted, with one entry.
    fn evicted() -> SwapSlot {
        let slot = SwapSlot::default();
        let generation = slot.begin(FRAME, HERE);
        assert!(slot.try_count(generation) && slot.begin_write(generation));
        assert_eq!((slot.end_write(true), slot.leave_cache(None)), (Left::Others, Left::Others));
        slot
    }

    #[test]
    fn a_life_of_a_slot() {
        let slot = evicted();
        let state = slot.state();
        assert!(state.is_written() && !state.is_in_cache() && !state.is_unwanted());
        assert_eq!((state.count(), slot.attached(), slot.location()), (1, None, Some(HERE)));
        assert_eq!(slot.begin_read(0, false), Ok(()));
        slot.publish(FRAME);
        assert_eq!((slot.begin_read(0, false), slot.attached()), (Err(NotBegun::InCache), Some(FRAME)));
        assert_eq!((slot.put(), slot.put()), (Left::Others, Left::Folio));
        assert!(slot.state().is_unwanted());
        assert_eq!((slot.leave_cache(None), slot.end()), (Left::Nothing, Some(HERE)));
        assert_eq!((slot.state().generation(), slot.state().is_written()), (1, false));
    }

    #[test]
    fn another_generation_is_refused() {
        let slot = evicted();
        assert!(!slot.try_count(1) && !slot.begin_write(1));
        assert_eq!(slot.begin_read(1, false), Err(NotBegun::Gone));
        assert_eq!(slot.put(), Left::Nothing);
        assert!(!slot.try_count(0), "it is free");
        assert_eq!(slot.begin_read(0, false), Err(NotBegun::Gone));
        slot.end();
        slot.begin(FRAME, HERE);
        assert!(!slot.try_count(0) && slot.try_count(1));
    }

    #[test]
    fn generations_begin_again_after_the_last() {
        let slot = SwapSlot::default();
        for life in 0..2 * GENERATIONS {
            assert_eq!(slot.begin(FRAME, HERE), life % GENERATIONS);
            assert_eq!((slot.leave_cache(None), slot.end()), (Left::Nothing, Some(HERE)));
        }
    }

    #[test]
    fn a_full_count_leaves_room_for_copies_and_transfers() {
        let slot = evicted();
        slot.state.fetch_add(COUNT_FULL - 2, Ordering::Relaxed);
        assert!(!slot.is_full() && slot.try_count(0));
        assert!(slot.is_full() && !slot.try_count(0));
        (0..MAX_SHARED_TABLES * MAX_SAME_PAGE).for_each(|_| assert!(slot.count_copy()));
        assert_eq!(slot.begin_read(0, false), Ok(()));
        assert_eq!(slot.state().count(), COUNT_FULL + MAX_SHARED_TABLES * MAX_SAME_PAGE + 1);
    }

    /// The bytes that a write has kept are those of the folio that left meanwhile.
    #[test]
    fn a_write_of_a_folio_that_has_left_counts_for_nothing() {
        let slot = SwapSlot::default();
        let generation = slot.begin(FRAME, HERE);
        assert!(!slot.begin_write(generation), "no entry wants it");
        assert!(slot.try_count(generation) && slot.begin_write(generation));
        assert_eq!((slot.leave_cache(None), slot.end_write(true)), (Left::Others, Left::Others));
        assert!(!slot.state().is_written());
        assert_eq!((slot.put(), slot.end()), (Left::Nothing, Some(HERE)));
    }

    #[test]
    fn a_location_is_none_or_comes_back() {
        let last = Location { device: 31, place: Location::PLACES - 1 };
        for location in [HERE, last, Location { device: 0, place: 0 }] {
            assert_eq!(Location::from_bits(location.bits()), Some(location));
        }
        assert_eq!(Location::from_bits(0), None);
    }

    #[test]
    fn a_pattern_has_no_location_and_an_error_stays() {
        let slot = SwapSlot::default();
        let generation = slot.begin(FRAME, HERE);
        assert!(slot.try_count(generation) && slot.begin_write(generation));
        slot.set_pattern(9);
        slot.end_write(true);
        slot.leave_cache(None);
        assert_eq!((slot.state().is_pattern(), slot.pattern(), slot.error()), (true, 9, None));
        assert_eq!((slot.put(), slot.end()), (Left::Nothing, None));
        let slot = evicted();
        let offset = HERE.place * crate::address::PAGE_SIZE;
        slot.poison(StoreError::WrongBytes { offset });
        assert_eq!(slot.begin_read(0, false), Err(NotBegun::Poisoned));
        assert_eq!(slot.error(), Some(StoreError::WrongBytes { offset }));
    }
}
