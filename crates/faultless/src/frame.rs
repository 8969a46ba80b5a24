//! Folios. The counts and the state of a frame are in one atomic word, so that one compare-and-swap decides whether a page is
//! exclusive, free, or in use.

pub(crate) use isolated::Isolation;
pub(crate) use outcome::{Refused, Remaining, Share};
pub(crate) use place::NUMBER;
pub(crate) use swap_cache::Alone;

use crate::engine::MAX_SHARED_TABLES;
use crate::store::StoreError;
use crate::sync::Life;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use crate::sync::plain;
use crate::tables::Home;

/// The counts and the state of one frame. A host makes folios and reads them; only the engine changes them:
///
/// ```compile_fail,E0624
/// # use faultless::frame::Folio;
/// fn free_what_is_mapped(folio: &Folio) {
///     let _ = folio.put_cached();
/// }
/// ```
///
/// ```text
///  0–23 mappings      24–37 short pins (a fault's, a read's)      38–49 pins for I/O into user data
///  50 CACHED: the reference of the page cache, or of the swap cache in an anonymous folio
///  51 EXCLUSIVE: anonymous, one mapping, written in place        52 UPTODATE   53 READING   54 FAILED
///  55 REFERENCED: of a file's folio, found by a lookup since reclaim looked last; of an anonymous one see 62
///  56 LOCKED: a file system works on it
///  57 DIRTY: the store does not have its bytes                58 WRITEBACK: a write of it is under way
///  59 unused
///  60 ANONYMOUS: of no file, so that home is of an anonymous folio
///  61 ISOLATED: a reclaimer has it in its batch
///  62 USED2: the high bit of a count of uses, above REFERENCED in an anonymous folio, above 63 in a file's
///  63 LAZY: of an anonymous folio, after MADV_FREE, not stored to since; of a file's folio see 62
/// ```
///
/// Bits 0 to 50 are references. When all are gone the frame is free. If a word has no references, only the thread
/// that has the frame alone changes it.
///
/// A folio has 32 bytes: 0.8 % of a page, half of Linux's struct page. Two share a cache line, so faults on
/// neighbouring frames write a common line. A host that gives frames to threads in batches of neighbours has few such pairs.
///
/// | bytes | |
/// |--:|---|
/// | 8 | the word |
/// | 8 | home: of a file's folio the file, of an anonymous one the table entry that maps it (docs/home.md) |
/// | 8 | the page of the file, or with CACHED in an anonymous folio the swap slot; the group of the memory limit that pays; why a read failed |
/// | 8 | link: the place in a queue of reclaim (`reclaim/queue.rs`). It outlives the page |
///
/// Memory of zeros is the folio of a free frame: a kernel's array of folios needs no initialization but zeroing.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(align(32)))]
pub struct Folio {
    /// The counts and the state. Atomic. Each method states who may write.
    word: AtomicU64,
    /// A [`Home`]. Atomic. In a file's folio, the thread that has the frame alone writes it. In an anonymous folio, the
    /// thread that has the entry which it names, or the only mapping, writes it (rule H2 of docs/home.md). That of an anonymous
    /// folio is followed in sections, that of a file's folio under a lock (rule H7).
    home: AtomicU64,
    /// The page's number in its file; in an anonymous folio with CACHED, the number of its slot; with the group that pays for the page, and
    /// the code of the error with which a read failed (`frame/place.rs`). Atomic. One thread changes it at a time: the one that has the frame
    /// alone, that ends its read, or that attaches the folio to a slot. The error is written before FAILED is set (Release), and read
    /// after (Acquire).
    place: AtomicU64,
    /// The frame's place in reclaim's stacks and queues, which the frame keeps when it is freed. Atomic. `reclaim/queue.rs`
    /// states who may write.
    link: AtomicU64,
    /// The number of the record by which an anonymous page came. Only for `audit`.
    #[cfg(loom)]
    record: plain::AtomicU64,
    life: Life,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Folio>() == 32);

const MAPPING: u64 = 1;
const PIN: u64 = 1 << 24;
const IO_PIN: u64 = 1 << 38;
const CACHED: u64 = 1 << 50;
const EXCLUSIVE: u64 = 1 << 51;
const UPTODATE: u64 = 1 << 52;
const READING: u64 = 1 << 53;
const FAILED: u64 = 1 << 54;
const REFERENCED: u64 = 1 << 55;
const LOCKED: u64 = 1 << 56;
const DIRTY: u64 = 1 << 57;
const WRITEBACK: u64 = 1 << 58;
const ANONYMOUS: u64 = 1 << 60;
const ISOLATED: u64 = 1 << 61;
const USED2: u64 = 1 << 62;
const LAZY: u64 = 1 << 63;

const MAPPINGS: u64 = PIN - 1;
/// The number of mappings from which on only [`Folio::count_copy`] counts one more. The rest is for the tables that are
/// shared now, each of which may be copied and counted. From this number on, no further table with the page is shared.
pub(crate) const MAPPINGS_FULL: u64 = MAPPINGS - MAX_SHARED_TABLES * MAX_SAME_PAGE;
const PINS: u64 = IO_PIN - PIN;
const IO_PINS: u64 = CACHED - IO_PIN;
/// The full count of pins for I/O. It is small in models, which fill the count.
#[cfg(not(loom))]
const IO_PINS_FULL: u64 = IO_PINS;
#[cfg(loom)]
const IO_PINS_FULL: u64 = 2 * IO_PIN;
const REFERENCES: u64 = EXCLUSIVE - 1;
const _: () = assert!((ISOLATED | USED2) & (REFERENCES | WRITEBACK) == 0);

/// The number of times that a shared leaf table may have one page. A table that has a page more often has several mappings of
/// one file.
pub(crate) const MAX_SAME_PAGE: u64 = 8;

const _: () = assert!(MAPPINGS_FULL >= 1 << 22, "room for mappings that are counted one by one");

/// The count that a reference belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// A page-table entry that names the frame.
    Mapping,
    /// A fault or a read under way.
    Pin,
    /// I/O into user data. fork copies a page with such a pin for the child.
    IoPin,
}

impl Reference {
    const fn unit(self) -> u64 {
        match self {
            Self::Mapping => MAPPING,
            Self::Pin => PIN,
            Self::IoPin => IO_PIN,
        }
    }

    const fn mask(self) -> u64 {
        match self {
            Self::Mapping => MAPPINGS,
            Self::Pin => PINS,
            Self::IoPin => IO_PINS,
        }
    }

    /// Returns whether the count of a folio with this `word` has reached its maximum.
    const fn is_full(self, word: u64) -> bool {
        match self {
            Self::Mapping => word & MAPPINGS >= MAPPINGS_FULL,
            Self::Pin => word & PINS == PINS,
            Self::IoPin => word & IO_PINS >= IO_PINS_FULL,
        }
    }

    /// Returns whether [`Folio::try_get`] refuses one more reference to a folio with this `word`, which is not free.
    const fn is_refused(self, word: u64) -> bool {
        const { assert!(ANONYMOUS > MAPPINGS) }
        match self {
            // Full, or anonymous: one comparison for both.
            Self::Mapping => word & (MAPPINGS | ANONYMOUS) >= MAPPINGS_FULL,
            Self::Pin | Self::IoPin => self.is_full(word),
        }
    }
}

impl Folio {
    /// Makes the folio of a free frame: all its bytes are zero.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            home: AtomicU64::new(0),
            place: AtomicU64::new(0),
            link: AtomicU64::new(0),
            life: Life::new(),
        }
    }

    /// Makes the folio of a free frame.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the mark by which loom checks the frame's life. The frame source calls it.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Begins a life as page `index` of the file that `home` names, being read, with `pins` pins: one for the read, the rest for
    /// the caller. The caller has the frame alone, and publishes it afterwards (Release).
    pub(crate) fn begin_reading(&self, home: Home, index: u64, pins: u64) {
        self.begin_cached(home, index, READING | (pins * PIN));
    }

    /// Begins a life as page `index` of the file that `home` names, with zeros that the store does not have. The page is up to
    /// date and dirty, with one `reference`. A page of a file without a store stays dirty. The caller has the frame alone, and
    /// publishes it afterwards (Release).
    pub(crate) fn begin_dirty(&self, home: Home, index: u64, reference: Reference) {
        self.begin_cached(home, index, UPTODATE | DIRTY | reference.unit());
    }

    /// Release, twice; the partners are in [`Folio::cached_home`]. A thread that sees this life's word sees this home, or a later
    /// one. A thread that has seen the word of an earlier life, and reads this home, sees the file that it names.
    fn begin_cached(&self, home: Home, index: u64, word: u64) {
        self.home.store(home.bits(), Ordering::Release);
        self.set_index(index, Ordering::Relaxed);
        self.word.store(CACHED | REFERENCED | word, Ordering::Release);
    }

    /// Begins a life like [`Folio::begin_anonymous`], with `mappings` mappings.
    #[cfg(all(test, loom))]
    pub(crate) fn begin_mapped(&self, mappings: u64) {
        self.word.store(mappings * MAPPING | UPTODATE, Ordering::Relaxed);
    }

    /// Gives up a life that [`Folio::begin_dirty`] began and that was not published. Returns true if the caller frees the
    /// frame, as [`Folio::cancel_anonymous`] does.
    #[must_use]
    pub(crate) fn cancel_dirty(&self, reference: Reference) -> bool {
        self.drop_references(CACHED + reference.unit())
    }

    /// Gives up a life as an anonymous page that was not mapped. Returns true if the caller frees the frame, as
    /// [`Folio::put`] does. A thread that looked up an older life of the frame may have a reference for a moment, and is the
    /// last one then.
    #[must_use]
    pub(crate) fn cancel_anonymous(&self) -> bool {
        self.drop_references(MAPPING)
    }

    /// Gives up a life that [`Folio::begin_reading`] began and that was not published. Returns true if the caller frees the
    /// frame, as [`Folio::cancel_anonymous`] does.
    #[must_use]
    pub(crate) fn cancel_reading(&self, pins: u64) -> bool {
        self.drop_references(CACHED + pins * PIN)
    }

    /// Adds a reference, unless the frame is free or the count is full. Acquire: the caller sees the effects of the last
    /// owner. A caller without a reference of its own checks afterwards that the frame is still the one that it meant.
    ///
    /// Only pages of files get mappings in this way. A look-up in a file that comes to an anonymous page has found the frame in
    /// its next life, and adds none: a thread that follows the page's home would take the mapping for an entry's (rule H1 of
    /// docs/home.md).
    ///
    /// # Errors
    /// [`Refused`]; the count is as before.
    pub(crate) fn try_get(&self, reference: Reference) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & REFERENCES == 0 {
                return Err(Refused::Free);
            }
            if reference.is_refused(word) {
                let is_another = reference == Reference::Mapping && word & ANONYMOUS != 0;
                return Err(if is_another { Refused::Free } else { Refused::Full });
            }
            // Uses of anonymous pages are counted by reclaim, whose own pins are none.
            const { assert!(ANONYMOUS == REFERENCED << 5) }
            let new = (word + reference.unit()) | ((!word & ANONYMOUS) >> 5);
            let order = if mutant!("pin_relaxed") { Ordering::Relaxed } else { Ordering::Acquire };
            match self.word.compare_exchange(word, new, order, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Returns whether the folio's count of `reference` has reached its maximum.
    pub(crate) fn is_full(&self, reference: Reference) -> bool {
        reference.is_full(self.word.load(Ordering::Relaxed))
    }

    /// Drops a pin. Returns the references that remain, and whether a thread may be waiting for a lower count
    /// ([`crate::Engine`]'s `wait_for_place`).
    pub(crate) fn put_pin(&self, reference: Reference) -> (Remaining, bool) {
        let (left, old) = self.release_units(reference.unit());
        // This asks for less than "was full": pins of page work come and go without a wake-up, and may be the ones that make
        // the count full.
        let full = if reference == Reference::IoPin { IO_PINS_FULL } else { reference.mask() };
        let many = full - full / 16;
        (left, old & reference.mask() >= many)
    }

    /// Drops a reference. Returns true if it was the last one; the caller then frees the frame. Release, and Acquire by the
    /// last one, so that all use of the frame happens before its next life.
    #[must_use]
    pub(crate) fn put(&self, reference: Reference) -> bool {
        self.drop_references(reference.unit())
    }

    /// Drops a reference as [`Folio::put`] does. Returns the references that remain, so that the caller knows whether the
    /// folio's slot is the last to have it.
    pub(crate) fn release(&self, reference: Reference) -> Remaining {
        self.release_units(reference.unit()).0
    }

    /// Drops the page cache's reference, as [`Folio::put`] drops another.
    #[must_use]
    pub(crate) fn put_cached(&self) -> bool {
        self.drop_references(CACHED)
    }

    /// Makes the page cache's reference a pin of the caller's, who drops the file and writes the page once more. So the page is no
    /// longer attached (rule H7 of docs/home.md).
    pub(crate) fn keep_for_write(&self) {
        let old = self.word.fetch_add(PIN.wrapping_sub(CACHED), Ordering::Release);
        debug_assert!(old & CACHED != 0 && old & PINS != PINS, "a page that is not attached: {old:#x}");
    }

    fn drop_references(&self, unit: u64) -> bool {
        self.release_units(unit).0 == Remaining::Nothing
    }

    /// Drops references. Returns the references that remain, and the earlier word.
    fn release_units(&self, unit: u64) -> (Remaining, u64) {
        let old = self.word.fetch_sub(unit, Ordering::Release);
        debug_assert!(
            old & REFERENCES >= unit,
            "a reference dropped that was not held: {old:#x} - {unit:#x}"
        );
        let left = match (old & REFERENCES) - unit {
            0 => {
                fence(Ordering::Acquire);
                #[cfg(tsan)]
                self.word.load(Ordering::Acquire);
                Remaining::Nothing
            }
            CACHED if old & ANONYMOUS != 0 => Remaining::InSlot,
            _ => Remaining::Others,
        };
        (left, old)
    }

    /// Tries to make the page exclusive for copy-on-write, so that the read-only mapping may become writable in place. Called
    /// under the entry's bit. Returns true if the page is exclusive already, or if this mapping is its only reference: no
    /// other mapping, no pin, no page cache. Acquire: the caller sees all effects of threads that dropped their references.
    ///
    /// A file's page that has left the page cache becomes an anonymous page. Its home still names the file until the caller changes
    /// it. The kind in home says so, and a thread that follows home meanwhile finds no entry.
    pub(crate) fn try_reuse(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let counted = if mutant!("reuse_ignores_pins") { MAPPINGS | CACHED } else { REFERENCES };
            let alone = word & counted == MAPPING;
            if !alone && word & EXCLUSIVE == 0 {
                return false;
            }
            let lazy = if mutant!("store_leaves_lazy") { 0 } else { LAZY };
            let new = (word | EXCLUSIVE | ANONYMOUS) & !lazy;
            match self.word.compare_exchange(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Counts a child's mapping of one page for fork, and ends exclusivity. Called under the entry's bit.
    pub(crate) fn try_share(&self) -> Share {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & EXCLUSIVE != 0 && word & IO_PINS != 0 {
                return Share::Pinned;
            }
            if Reference::Mapping.is_full(word) {
                return Share::Full;
            }
            let new = (word + MAPPING) & !EXCLUSIVE;
            match self.word.compare_exchange(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Share::Shared,
                Err(now) => word = now,
            }
        }
    }

    /// Counts one more mapping, and ends exclusivity. Called when a shared leaf table that has the page is copied. There is
    /// room for the mapping ([`Folio::is_mapping_full`]), and no I/O into the page is under way through an exclusive mapping.
    /// Returns true if the count is now full for all but copies.
    #[must_use]
    pub(crate) fn count_copy(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & MAPPINGS != MAPPINGS && (word & EXCLUSIVE == 0 || word & IO_PINS == 0));
            let new = (word + MAPPING) & !EXCLUSIVE;
            match self.word.compare_exchange(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Reference::Mapping.is_full(new),
                Err(now) => word = now,
            }
        }
    }

    /// Returns whether no more mappings can be counted one by one, so that no further table with the page may be shared.
    /// [`SharedTables`](crate::engine::SharedTables) says why copies of tables never make the count overflow.
    pub(crate) fn is_mapping_full(&self) -> bool {
        Reference::Mapping.is_full(self.word.load(Ordering::Relaxed))
    }

    /// Returns whether a read of the page is under way. Acquire: if not, the caller sees the bytes that were read.
    pub fn is_reading(&self) -> bool {
        self.word.load(Ordering::Acquire) & READING != 0
    }

    /// Tries to lock the folio. The caller has a reference. Acquire. Returns false if another thread has locked it.
    pub(crate) fn try_lock(&self) -> bool {
        self.word.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }

    /// Unlocks the folio. Release. The caller wakes the threads that wait for it.
    pub(crate) fn unlock(&self) {
        self.word.fetch_and(!LOCKED, Ordering::Release);
    }

    /// Returns whether the folio is locked. Acquire.
    pub fn is_locked(&self) -> bool {
        self.word.load(Ordering::Acquire) & LOCKED != 0
    }

    /// Makes the folio dirty before a store into it, if no write of it is under way. Returns `None` if one is, `Some(true)`
    /// if the folio became dirty, and `Some(false)` if it was dirty before. AcqRel; partner: [`Folio::begin_writeback`].
    pub(crate) fn try_dirty(&self) -> Option<bool> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & WRITEBACK != 0 {
                return None;
            }
            if word & DIRTY != 0 {
                return Some(false);
            }
            match self.word.compare_exchange(word, word | DIRTY, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(true),
                Err(now) => word = now,
            }
        }
    }

    /// Begins a write of the folio, if it is dirty and none is under way. Returns whether it did. From then on it cannot
    /// become dirty until the write ends. The caller takes the write rights away before it reads the bytes. AcqRel: in this
    /// way it finds each thread that made the folio dirty before, and has a write right or is about to give one.
    pub(crate) fn begin_writeback(&self) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        while word & (DIRTY | WRITEBACK) == DIRTY {
            let new = word & !DIRTY | WRITEBACK;
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Ends the write. With `dirty`, the folio is dirty again: the write has failed, or the page has changed meanwhile.
    /// Release.
    pub(crate) fn end_writeback(&self, dirty: bool) {
        if dirty {
            self.word.fetch_or(DIRTY, Ordering::Relaxed);
        }
        self.word.fetch_and(!WRITEBACK, Ordering::Release);
    }

    /// Returns whether the folio holds bytes that the store does not have. Acquire.
    pub fn is_dirty(&self) -> bool {
        self.word.load(Ordering::Acquire) & DIRTY != 0
    }

    /// Returns whether a write of the folio is under way. Acquire.
    pub fn is_writeback(&self) -> bool {
        self.word.load(Ordering::Acquire) & WRITEBACK != 0
    }

    /// Returns whether the page is pinned for I/O into it, so that it may be written at any time. Acquire.
    pub fn is_pinned_for_io(&self) -> bool {
        self.word.load(Ordering::Acquire) & IO_PINS != 0
    }

    /// Returns whether the page holds the file's bytes. Acquire: if so, the caller sees them.
    pub fn is_uptodate(&self) -> bool {
        self.word.load(Ordering::Acquire) & UPTODATE != 0
    }

    /// Ends the read with success. Release: a thread that sees the page up to date sees its bytes.
    pub(crate) fn finish_read(&self) {
        // One step: READING is set and UPTODATE is not, so adding the difference swaps them.
        self.word.fetch_add(UPTODATE.wrapping_sub(READING), Ordering::Release);
    }

    /// Ends the read with an error, which stays until the last pin is dropped.
    pub(crate) fn fail_read(&self, error: StoreError) {
        self.set_error_code(error.code());
        self.word.fetch_add(FAILED.wrapping_sub(READING), Ordering::Release);
    }

    /// Returns the error with which the read failed, if it did. `offset` is the page's place in the file, in bytes, for the
    /// error.
    pub fn read_error(&self, offset: u64) -> Option<StoreError> {
        (self.word.load(Ordering::Acquire) & FAILED != 0)
            .then(|| StoreError::from_code(self.error_code(), offset))
    }

    /// Returns the number of entries that map the page.
    pub fn mappings(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & MAPPINGS
    }

    /// Returns whether the page is anonymous and belongs to one mapping alone.
    pub fn is_exclusive(&self) -> bool {
        self.word.load(Ordering::Relaxed) & EXCLUSIVE != 0
    }

    /// Returns whether one mapping is the only reference to the page. The answer is certain while the mapping's entry is
    /// announced: a thread comes to the page only through that entry.
    pub fn has_one_mapping_only(&self) -> bool {
        self.word.load(Ordering::Relaxed) & REFERENCES == MAPPING
    }

    /// Returns whether there is no reference to the frame.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) & REFERENCES == 0
    }
}

mod evict;
mod file_in_memory;
mod group;
mod home;
mod isolated;
mod outcome;
mod place;
mod swap_cache;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(any(test, feature = "audit"))]
mod uncounted;
mod uses;
