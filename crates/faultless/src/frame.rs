//! Folios: the counts and the state of one frame in one atomic word, so that one compare-and-swap decides whether a
//! page is exclusive, free, or in use.

pub(crate) use outcome::{Eviction, Refused, Remaining, Share};

use crate::engine::MAX_SHARED_TABLES;
use crate::store::StoreError;
use crate::sync::Life;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::plain;
use crate::tables::Home;

/// Counts and state of one frame. A host makes them and looks at them; only the engine changes them:
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
///  50 CACHED: the page cache's reference
///  51 EXCLUSIVE: anonymous, one mapping, written in place        52 UPTODATE   53 READING   54 FAILED
///  55 REFERENCED: used since the clock hand passed            56 LOCKED: a file system works on it
///  57 DIRTY: the store has not what it holds                  58 WRITEBACK: a write of it is under way
///  59 LISTED: the list of idle folios has a reference
///  60 ANONYMOUS: of no file, so that home is of an anonymous folio
///  reserved for reclaim, which is not there yet, and zero:
///  61 ISOLATED: a reclaimer has it in its batch   62 USED2: the high bit of a count of uses, above REFERENCED
///  63 LAZY: after MADV_FREE, not stored to since
/// ```
/// Reclaim's queues will take the place of the list of idle folios, so QUEUED needs no bit beside LISTED.
///
/// Bits 0 to 50 and bit 59 are references: when all are gone the frame is free. A word without references is changed only
/// by whoever has the frame alone.
///
/// A folio is one cache line of 64 bytes: 1.6 % of a page, as in Linux. Faults on neighbouring frames write no line in
/// common:
///
/// | bytes | | state |
/// |--:|---|---|
/// | 8 | the word | used |
/// | 8 | home: of a file's folio the file, of an anonymous one the table entry that maps it (docs/home.md) | used |
/// | 8 | of a file's folio the page of the file; of an anonymous one the swap slot | used; reserved |
/// | 4 | why a read failed | used |
/// | 4 | the memory limit that pays for it | reserved |
/// | 24 | the place in the list of idle folios | used |
/// | 8 | | free |
///
/// Memory of zeros is the folio of a free frame: a kernel's array of folios needs no initialization but zeroing.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(align(64)))]
pub struct Folio {
    /// Atomic. Each method states who may write.
    word: AtomicU64,
    /// A [`Home`]. Of a file's folio written by whoever has the frame alone; of an anonymous one by whoever has the entry that it
    /// names, or has the only mapping (rule H2 of docs/home.md). Read in sections.
    home: AtomicU64,
    /// The page's number in its file; of an anonymous folio unused. Written by whoever has the frame alone.
    index: plain::AtomicU64,
    /// Why the read failed: the error's code. Written before FAILED is set (Release), read after (Acquire).
    error: plain::AtomicU32,
    /// Its file, and its neighbours in the list of idle folios. See the type.
    place: ListPlace,
    /// The number of the record by which an anonymous page came, for `audit`.
    #[cfg(loom)]
    record: plain::AtomicU64,
    life: Life,
}

/// A folio's place in the list of idle folios. `page_cache/folio_list.rs` says who reads and writes it when.
#[derive(Debug, Default)]
pub(crate) struct ListPlace {
    /// The file whose page it is, as the memory of a handle's counts; null: none, a file in memory, or the page is detached.
    /// Written by whoever has the frame alone; cleared, and used, under the list's lock.
    pub(crate) file: plain::AtomicPtr<()>,
    /// The next older folio. Protected by the list's lock.
    pub(crate) before: plain::AtomicU64,
    /// The next younger folio, protected by the list's lock; among arrivals the next older one, written by who pushes.
    pub(crate) after: plain::AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Folio>() == 64 && size_of::<ListPlace>() <= 24);

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
const LISTED: u64 = 1 << 59;
const ANONYMOUS: u64 = 1 << 60;
/// ISOLATED, USED2, LAZY: see the type.
const RESERVED: u64 = 0x7 << 61;

const MAPPINGS: u64 = PIN - 1;
/// Mappings at which nobody but [`Folio::count_copy`] counts one more: the rest is for the tables that are shared now, of
/// which each may come to be counted apart. From there on no further table with the page is shared.
pub(crate) const MAPPINGS_FULL: u64 = MAPPINGS - MAX_SHARED_TABLES * MAX_SAME_PAGE;
const PINS: u64 = IO_PIN - PIN;
const IO_PINS: u64 = CACHED - IO_PIN;
/// As many pins for I/O as are counted. Few in models, which fill the count.
#[cfg(not(loom))]
const IO_PINS_FULL: u64 = IO_PINS;
#[cfg(loom)]
const IO_PINS_FULL: u64 = 2 * IO_PIN;
const REFERENCES: u64 = (EXCLUSIVE - 1) | LISTED;
const _: () = assert!(RESERVED == !0 << 61 && RESERVED & (REFERENCES | WRITEBACK) == 0);

/// How often a leaf table that is shared may have one page. A table with more has several mappings of one file.
pub(crate) const MAX_SAME_PAGE: u64 = 8;

const _: () = assert!(MAPPINGS_FULL >= 1 << 22, "room for mappings that are counted one by one");

/// Which count a reference is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// An entry names the frame.
    Mapping,
    /// A fault or a read under way.
    Pin,
    /// I/O into user data: fork copies such a page for the child.
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

    /// Whether the count of a folio with this `word` is as high as it may be.
    const fn is_full(self, word: u64) -> bool {
        match self {
            Self::Mapping => word & MAPPINGS >= MAPPINGS_FULL,
            Self::Pin => word & PINS == PINS,
            Self::IoPin => word & IO_PINS >= IO_PINS_FULL,
        }
    }
}

impl Folio {
    /// The folio of a frame that is free: all its bytes are zero.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            home: AtomicU64::new(0),
            index: plain::AtomicU64::new(0),
            error: plain::AtomicU32::new(0),
            place: ListPlace {
                file: plain::AtomicPtr::new(core::ptr::null_mut()),
                before: plain::AtomicU64::new(0),
                after: plain::AtomicU64::new(0),
            },
            life: Life::new(),
        }
    }

    /// The folio of a frame that is free.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// The mark by which loom checks the frame's life; the frame source calls it.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Begins a life as page `index` of a file's cache, being read, with so many `pins`: one for the read, and those of the
    /// caller. The caller has the frame alone and publishes it afterwards (Release).
    pub(crate) fn begin_reading(&self, file: u64, index: u64, pins: u64) {
        self.home.store(Home::of_file(file).bits(), Ordering::Relaxed);
        self.index.store(index, Ordering::Relaxed);
        self.word.store(CACHED | READING | REFERENCED | (pins * PIN), Ordering::Relaxed);
    }

    /// Begins a life as page `index` of a file, of zeros that the store does not have: up to date and dirty, with one
    /// `reference`. A page of a file without a store stays dirty, so that nobody evicts it. The caller has the frame alone
    /// and publishes it afterwards (Release).
    pub(crate) fn begin_dirty(&self, file: u64, index: u64, reference: Reference) {
        self.home.store(Home::of_file(file).bits(), Ordering::Relaxed);
        self.index.store(index, Ordering::Relaxed);
        self.word.store(CACHED | UPTODATE | DIRTY | REFERENCED | reference.unit(), Ordering::Relaxed);
    }

    /// As [`Folio::begin_anonymous`], with so many mappings.
    #[cfg(all(test, loom))]
    pub(crate) fn begin_mapped(&self, mappings: u64) {
        self.word.store(mappings * MAPPING | UPTODATE, Ordering::Relaxed);
    }

    /// Gives up a life begun by [`Folio::begin_dirty`] that was not published after all; as the next.
    #[must_use]
    pub(crate) fn cancel_dirty(&self, reference: Reference) -> bool {
        self.drop_references(CACHED + reference.unit())
    }

    /// Gives up a life begun as an anonymous page that was not mapped after all. As [`Folio::put`]: somebody who looked
    /// an older life of the frame up may have a reference for a moment, and is the last then.
    #[must_use]
    pub(crate) fn cancel_anonymous(&self) -> bool {
        self.drop_references(MAPPING)
    }

    /// Gives up a life begun by [`Folio::begin_reading`] that was not published after all. As above.
    #[must_use]
    pub(crate) fn cancel_reading(&self, pins: u64) -> bool {
        self.drop_references(CACHED + pins * PIN)
    }

    /// The page's number in its file.
    pub(crate) fn index(&self) -> u64 {
        self.index.load(Ordering::Relaxed)
    }

    /// Its place in the list of idle folios.
    pub(crate) fn place(&self) -> &ListPlace {
        &self.place
    }

    /// Adds a reference unless the frame is free or the count is full. Acquire: what the last owner did is seen. A caller
    /// without a reference of its own checks afterwards that the frame is still the one it meant.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn try_get(&self, reference: Reference) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & REFERENCES == 0 {
                return Err(Refused::Free);
            }
            if reference.is_full(word) {
                return Err(Refused::Full);
            }
            let new = (word + reference.unit()) | REFERENCED;
            match self.word.compare_exchange(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Whether its count of `reference` is as high as it may be.
    pub(crate) fn is_full(&self, reference: Reference) -> bool {
        reference.is_full(self.word.load(Ordering::Relaxed))
    }

    /// Drops a pin. Returns what is left, and whether somebody may be waiting ([`crate::Engine`]'s `wait_for_place`) until
    /// there are fewer.
    pub(crate) fn put_pin(&self, reference: Reference) -> (Remaining, bool) {
        let (left, old) = self.release_units(reference.unit());
        // In place of "was full": pins of page work come and go without a word, and may be the ones that make it full.
        let full = if reference == Reference::IoPin { IO_PINS_FULL } else { reference.mask() };
        let many = full - full / 16;
        (left, old & reference.mask() >= many)
    }

    /// Drops a reference. True: it was the last, and the caller frees the frame. Release, and Acquire by the last,
    /// so that all use of the frame happens before its next life.
    #[must_use]
    pub(crate) fn put(&self, reference: Reference) -> bool {
        self.drop_references(reference.unit())
    }

    /// As [`Folio::put`], and says whether the folio has become idle.
    pub(crate) fn release(&self, reference: Reference) -> Remaining {
        self.release_units(reference.unit()).0
    }

    /// Drops the page cache's reference; as [`Folio::put`].
    #[must_use]
    pub(crate) fn put_cached(&self) -> bool {
        self.drop_references(CACHED)
    }

    /// The list of idle folios gets a reference, if the page cache's is the only one. Acquire: what others did before they
    /// dropped theirs is seen. True: the caller puts the folio on the list. Needs no reference: whichever life of the frame
    /// this meets, a cached folio in no use belongs on the list.
    pub(crate) fn try_list(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & REFERENCES == CACHED {
            match self.word.compare_exchange(word, word | LISTED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Drops the reference of the list of idle folios; as [`Folio::release`].
    pub(crate) fn release_listed(&self) -> Remaining {
        self.release_units(LISTED).0
    }

    fn drop_references(&self, unit: u64) -> bool {
        self.release_units(unit).0 == Remaining::Nothing
    }

    /// Drops references. Returns what is left, and the word as it was.
    fn release_units(&self, unit: u64) -> (Remaining, u64) {
        let old = self.word.fetch_sub(unit, Ordering::Release);
        debug_assert!(
            old & REFERENCES >= unit,
            "a reference dropped that was not held: {old:#x} - {unit:#x}"
        );
        let left = match (old & REFERENCES) - unit {
            0 => {
                fence(Ordering::Acquire);
                Remaining::Nothing
            }
            CACHED => Remaining::Idle,
            _ => Remaining::Others,
        };
        (left, old)
    }

    /// Copy-on-write's question, asked under the entry's bit: may the one who maps it read-only write in place? Yes
    /// if it is exclusive already, or if nobody but this mapping has it: no other mapping, no pin, not the cache.
    /// Acquire: everything that others did with it before they let go is seen.
    ///
    /// A file's page that has left the cache is an anonymous page from then on. Its home names the file until the caller changes it,
    /// and says so: who follows it meanwhile finds no entry.
    pub(crate) fn try_reuse(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            #[cfg(not(mutant = "reuse_ignores_pins"))]
            let alone = word & REFERENCES == MAPPING;
            #[cfg(mutant = "reuse_ignores_pins")]
            let alone = word & (MAPPINGS | CACHED) == MAPPING;
            if !alone && word & EXCLUSIVE == 0 {
                return false;
            }
            let new = word | EXCLUSIVE | ANONYMOUS;
            match self.word.compare_exchange(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// fork's share of one page, under the entry's bit.
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

    /// One more mapping, exclusive no longer: a leaf table with the page, shared until now, is copied. There is room for that
    /// ([`Folio::is_mapping_full`]), and nobody does I/O into the page by a mapping that is exclusive. True: the count is full
    /// now for everybody else.
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

    /// Whether it is mapped as often as can be counted one by one, so that no table with it may be shared once more. Why a
    /// count never runs over by copies of tables: [`SharedTables`](crate::engine::SharedTables).
    pub(crate) fn is_mapping_full(&self) -> bool {
        Reference::Mapping.is_full(self.word.load(Ordering::Relaxed))
    }

    /// Eviction's step, by who has the list's reference and keeps others from detaching the page: takes the frame if the
    /// page cache has the only other reference, and the page is up to date and clean. Acquire, as the last put.
    /// `second_chance`: a page used since the last look is given another round instead.
    pub(crate) fn try_evict(&self, second_chance: bool) -> Eviction {
        const IDLE: u64 = CACHED | LISTED;
        let word = self.word.load(Ordering::Relaxed);
        if word & REFERENCES != IDLE {
            return Eviction::InUse;
        }
        if second_chance && word & REFERENCED != 0 {
            self.word.fetch_and(!REFERENCED, Ordering::Relaxed);
            return Eviction::Used;
        }
        #[cfg(not(mutant = "evicts_dirty"))]
        let ignored = REFERENCED;
        #[cfg(mutant = "evicts_dirty")]
        let ignored = REFERENCED | DIRTY | WRITEBACK;
        if word & !ignored == IDLE | UPTODATE
            && self.word.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Eviction::Taken;
        }
        if word & DIRTY != 0 { Eviction::Dirty } else { Eviction::InUse }
    }

    /// Whether its read is under way. Acquire: when it is not, what was read is seen.
    pub fn is_reading(&self) -> bool {
        self.word.load(Ordering::Acquire) & READING != 0
    }

    /// Locks it, for whoever has a reference. Acquire. False: somebody else has.
    pub(crate) fn try_lock(&self) -> bool {
        self.word.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }

    /// Unlocks it. Release. The caller wakes who waits.
    pub(crate) fn unlock(&self) {
        self.word.fetch_and(!LOCKED, Ordering::Release);
    }

    /// Whether somebody has locked it. Acquire.
    pub fn is_locked(&self) -> bool {
        self.word.load(Ordering::Acquire) & LOCKED != 0
    }

    /// Somebody is about to store into it: makes it dirty, if no write of it is under way. `None`: one is. `Some(false)`:
    /// it was dirty before. AcqRel; partner: [`Folio::begin_writeback`].
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

    /// Begins a write of it, if it is dirty and none is under way: from now on nobody makes it dirty. The caller takes
    /// the write rights away before it reads the bytes. AcqRel: who made it dirty before, and has a right or is about to
    /// give one, is found by that.
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

    /// Ends the write; `dirty`: it has failed, or the page has changed meanwhile. Release.
    pub(crate) fn end_writeback(&self, dirty: bool) {
        if dirty {
            self.word.fetch_or(DIRTY, Ordering::Relaxed);
        }
        self.word.fetch_and(!WRITEBACK, Ordering::Release);
    }

    /// Whether the store has not what it holds. Acquire.
    pub fn is_dirty(&self) -> bool {
        self.word.load(Ordering::Acquire) & DIRTY != 0
    }

    /// Whether a write of it is under way. Acquire.
    pub fn is_writeback(&self) -> bool {
        self.word.load(Ordering::Acquire) & WRITEBACK != 0
    }

    /// Whether somebody has it pinned for I/O into it, and may write it at any time.
    pub fn is_pinned_for_io(&self) -> bool {
        self.word.load(Ordering::Acquire) & IO_PINS != 0
    }

    /// Whether it holds what the file has. Acquire, as above.
    pub fn is_uptodate(&self) -> bool {
        self.word.load(Ordering::Acquire) & UPTODATE != 0
    }

    /// Ends the read well. Release: the bytes are seen by whoever sees it up to date.
    pub(crate) fn finish_read(&self) {
        // One step: READING is set and UPTODATE is not, so adding the difference swaps them.
        self.word.fetch_add(UPTODATE.wrapping_sub(READING), Ordering::Release);
    }

    /// Ends the read with an error, which stays until the last pin goes.
    pub(crate) fn fail_read(&self, error: StoreError) {
        self.error.store(error.code(), Ordering::Relaxed);
        self.word.fetch_add(FAILED.wrapping_sub(READING), Ordering::Release);
    }

    /// Why the read failed, if it did.
    pub fn read_error(&self, offset: u64) -> Option<StoreError> {
        (self.word.load(Ordering::Acquire) & FAILED != 0)
            .then(|| StoreError::from_code(self.error.load(Ordering::Relaxed), offset))
    }

    /// How many entries map it.
    pub fn mappings(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & MAPPINGS
    }

    /// Whether it is anonymous and this mapping's alone.
    pub fn is_exclusive(&self) -> bool {
        self.word.load(Ordering::Relaxed) & EXCLUSIVE != 0
    }

    /// Whether it is anonymous and one entry is all that refers to it. Certain while that entry is announced: nobody comes
    /// to the page but through it.
    pub fn has_one_mapping_only(&self) -> bool {
        self.word.load(Ordering::Relaxed) & REFERENCES == MAPPING
    }

    /// For tests: counts one more mapping, which no entry has. False: the count is full.
    ///
    /// # Safety
    /// An entry maps the frame, and each such mapping is taken back, by [`Folio::put_uncounted`], before that goes.
    #[cfg(any(test, feature = "audit"))]
    pub unsafe fn get_uncounted(&self) -> bool {
        self.try_get(Reference::Mapping).is_ok()
    }

    /// For tests: takes one back.
    ///
    /// # Safety
    /// It was had by [`Folio::get_uncounted`].
    #[cfg(any(test, feature = "audit"))]
    pub unsafe fn put_uncounted(&self) {
        let is_last = self.put(Reference::Mapping);
        debug_assert!(!is_last, "an entry maps the frame");
    }

    /// Whether nobody has any reference.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) & REFERENCES == 0
    }
}

mod home;
mod outcome;
#[cfg(all(test, not(loom)))]
mod tests;
