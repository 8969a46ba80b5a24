//! The page table of a software MMU: a radix tree of atomic words, as x86-64 has it. A leaf table may hang in several
//! trees ([`share`]).

mod block;
#[cfg(debug_assertions)]
mod cached;
mod share;
mod upper;

use block::{Block, Reserve};
#[cfg(debug_assertions)]
pub(crate) use cached::{Caches, Processors};
use faultless::address::{PageNumber, PageRange};
use faultless::host::{Entry, LeafRecord, OutOfMemory, PageTable, PlaceWord, Stable, Unsupported};
use faultless::mutant;
#[cfg(not(loom))]
use faultless::sync::RetiredKind;
use faultless::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use faultless::sync::{Life, Retired, Sections, plain};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use upper::{Upper, Walk, get_or_make};

/// Nine bits a level, as on x86-64; one under loom, so that a model reaches the second leaf and the second table.
#[cfg(not(loom))]
const LEVEL_BITS: u32 = 9;
#[cfg(loom)]
const LEVEL_BITS: u32 = 1;
/// Entries of one table.
const FAN: usize = 1 << LEVEL_BITS;

#[cfg(not(loom))]
type Root = Upper<Upper<Upper<LeafTable>>>;
#[cfg(loom)]
type Root = Upper<LeafTable>;

/// A table of one level.
///
/// # Safety
/// Except under loom, all bytes zero are a value: the empty table.
unsafe trait Table: Sized {
    /// Pages that it covers.
    const SPAN: u64;
    /// For the back-ends whose atomics are not plain words.
    #[cfg(loom)]
    fn empty() -> Self;

    /// Frees a table.
    ///
    /// # Safety
    /// From [`make`], or, of a leaf, from a block; used by nobody, and freed once.
    unsafe fn free(table: NonNull<Self>) {
        // SAFETY: by the contract above, for what is no leaf.
        drop(unsafe { Box::from_raw(table.as_ptr()) });
    }
}

/// An empty table, or nothing if there is no memory.
fn make<T: Table>() -> Result<Box<T>, OutOfMemory> {
    #[cfg(loom)]
    return faultless::sync::try_box(T::empty());
    #[cfg(not(loom))]
    {
        let layout = std::alloc::Layout::new::<T>();
        const { assert!(size_of::<T>() != 0) };
        // SAFETY: the layout has a size; zeros are a value of T; a Box of that very layout takes the pointer unless
        // it is null.
        unsafe {
            let memory = std::alloc::alloc_zeroed(layout).cast::<T>();
            if memory.is_null() { Err(OutOfMemory) } else { Ok(Box::from_raw(memory)) }
        }
    }
}

/// The lowest level: the entries.
struct LeafTable {
    /// Atomic; who writes what is said at [`PageTable`]'s methods.
    entries: [AtomicU64; FAN],
    /// Which space has the table, or who shares it. The engine's.
    record: LeafRecord,
    /// The block that the table's memory is a part of; null if it is from a Box. Written by the thread that has the table alone.
    block: plain::AtomicPtr<Block>,
    life: Life,
}

impl LeafTable {
    /// The block that its memory is a part of; null if it is from a Box.
    fn block(&self) -> *mut Block {
        self.block.load(plain::Ordering::Relaxed)
    }
}

// SAFETY: zeros are empty entries, and a table that nobody shares; `Life` has no bytes outside loom.
unsafe impl Table for LeafTable {
    const SPAN: u64 = FAN as u64;
    #[cfg(loom)]
    fn empty() -> Self {
        let entries = std::array::from_fn(|_| AtomicU64::new(0));
        let block = plain::AtomicPtr::new(ptr::null_mut());
        Self { entries, record: LeafRecord::new(), block, life: Life::new() }
    }

    unsafe fn free(table: NonNull<Self>) {
        // SAFETY: by the same contract.
        unsafe { block::free(table) };
    }
}

impl Drop for LeafTable {
    fn drop(&mut self) {
        self.record.end();
        #[cfg(all(debug_assertions, not(loom)))]
        cached::assert_leaf_forgotten(self);
        self.life.end();
    }
}

/// Under loom an unhooked leaf ends but is not deallocated, so that a use after it is reported and does not crash.
#[cfg(loom)]
struct Ghost(&'static LeafTable);

#[cfg(loom)]
impl Drop for Ghost {
    fn drop(&mut self) {
        self.0.record.end();
        self.0.life.end();
    }
}

/// A four-level page table: 2^36 pages, leaves of 512.
pub struct RadixTable {
    root: Box<Root>,
    /// Immutable.
    tag: Tag,
    /// For what fork shares with this table.
    reserve: Reserve,
    /// The access sections of all processors; [`PageTable::invalidate`] waits for the older ones. Immutable.
    sections: Arc<Sections>,
    /// The processors' caches, on a machine that has them. Immutable.
    #[cfg(debug_assertions)]
    processors: Option<Arc<Processors>>,
}

/// A leaf table and the place where it hangs.
#[derive(Clone, Copy)]
pub struct Leaf<'s> {
    /// The pointer that was found at the place, with its marks ([`PlaceWord`]); not null.
    found: *mut LeafTable,
    place: &'s AtomicPtr<LeafTable>,
}

impl<'s> Leaf<'s> {
    /// The word by which it was found.
    #[inline]
    fn word(self) -> PlaceWord {
        PlaceWord::from_raw(self.found.cast())
    }

    /// Returns whether the place refuses all stores, whatever the entries allow.
    #[inline]
    pub(crate) fn is_shared(self) -> bool {
        self.word().is_shared()
    }

    #[inline]
    fn table(self) -> &'s LeafTable {
        // SAFETY: from a Box; the proof that it was found with keeps it. A section keeps every leaf, a range taken those
        // that are not shared, and callers look at no others then.
        let table = unsafe { &*self.word().leaf().cast::<LeafTable>() };
        table.life.touch();
        table
    }

    #[inline]
    fn entry(self, page: PageNumber) -> &'s AtomicU64 {
        &self.table().entries[page.get() as usize % FAN]
    }
}

/// How processors name the pages of a table: the upper bits of what an access section says that it accesses. Other tables' may be the
/// same, which costs a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// Returns the subject of an access section to `page`.
    #[inline]
    pub(crate) fn subject(self, page: PageNumber) -> u64 {
        self.0 | (page.get() & (RadixTable::PAGES - 1))
    }
}

/// Pages of a table, for [`Soft::invalidate_all`](crate::Soft). A later table may have the same tag, which costs a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// [`RadixTable::subject`] of the first page.
    first: u64,
    pages: u64,
}

impl Stale {
    /// Returns whether an access with this `subject` is to one of these pages.
    #[inline]
    fn is_of(self, subject: u64) -> bool {
        subject.wrapping_sub(self.first) < self.pages
    }

    /// Waits for the accesses in `sections` to any of `batch`: what a machine of these tables does in
    /// [`Host::invalidate_all`](faultless::host::Host::invalidate_all).
    pub fn wait_for_all(sections: &Sections, batch: &[Self], wait: impl FnMut(u32)) {
        if !mutant!("no_invalidate") {
            sections.grace_of(|subject| batch.iter().any(|stale| stale.is_of(subject)), wait);
        }
    }
}

/// Tags of tables, never the last one: no access is to [`u64::MAX`].
fn next_tag() -> Tag {
    static NEXT: plain::AtomicU64 = plain::AtomicU64::new(0);
    const TAGS: u64 = (1 << (64 - RadixTable::PAGES.trailing_zeros())) - 1;
    Tag((NEXT.fetch_add(1, plain::Ordering::Relaxed) % TAGS) * RadixTable::PAGES)
}

impl RadixTable {
    /// Pages that it can address.
    pub const PAGES: u64 = Root::SPAN;

    /// Returns the subject of an access section to `page`.
    #[inline]
    pub(crate) fn subject(&self, page: PageNumber) -> u64 {
        self.tag.subject(page)
    }

    /// An empty table. `sections` are those in which processors access memory through it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(sections: Arc<Sections>) -> Result<Self, OutOfMemory> {
        let root = make::<Root>()?;
        sections.charge(size_of::<Root>());
        Ok(Self {
            root,
            tag: next_tag(),
            reserve: Reserve::default(),
            sections,
            #[cfg(debug_assertions)]
            processors: None,
        })
    }

    /// The entry as a processor's walk finds it. Acquire, partner: [`PageTable::install`]: what was written into the
    /// frame before it was mapped is seen.
    pub fn translate(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        Entry::from_bits(leaf.entry(page).load(Ordering::Acquire))
    }

    /// Clears `bits` of a host's own in an entry.
    ///
    /// # Safety
    /// The caller has announced the entry. No processor walks this table, or `bits` mean nothing to one.
    pub unsafe fn clear(&self, leaf: Leaf<'_>, page: PageNumber, bits: u64) {
        leaf.entry(page).fetch_and(!bits, Ordering::Relaxed);
    }

    /// A processor sets `bits` of [`Entry::HARDWARE`], if the entry is still `seen`, announced or not. AcqRel, as the
    /// walk; partners: let_go, install and exchange, each of which takes these bits along or fails.
    ///
    /// # Errors
    /// The entry that is there instead. The processor uses that one.
    pub(crate) fn set_hardware(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        bits: u64,
    ) -> Result<(), Entry> {
        debug_assert!(bits & !Entry::HARDWARE == 0, "a processor sets accessed and dirty, nothing else");
        swap_if(leaf.entry(page), seen, seen.with(bits))
    }
}

impl Drop for RadixTable {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        if let Some(processors) = &self.processors {
            processors.assert_unloaded(self.tag.0);
        }
        self.sections.uncharge(self.root.charged());
    }
}

/// AcqRel, and Acquire where it fails: what is there was perhaps installed just now.
fn swap_if(entry: &AtomicU64, seen: Entry, new: Entry) -> Result<(), Entry> {
    match entry.compare_exchange(seen.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(now) => Err(Entry::from_bits(now)),
    }
}

/// A mutant: stores what `new` makes of what an earlier load saw. Returns what the load saw.
fn store_late(entry: &AtomicU64, new: impl Fn(Entry) -> Entry) -> Entry {
    let old = Entry::from_bits(entry.load(Ordering::Relaxed));
    // A processor needs this time to set its bit.
    (0..50).for_each(|_| std::hint::spin_loop());
    // A swap whose result is not used: loom lets a plain store go before another thread's read-modify-write that it did
    // not see.
    entry.swap(new(old).bits(), Ordering::Release);
    old
}

// SAFETY: entries are single atomic words changed as the methods say; leaves are freed by whoever gets them from `unhook`,
// after a grace period; translations end with the access sections that `invalidate` waits for.
unsafe impl PageTable for RadixTable {
    type Leaf<'s> = Leaf<'s>;

    type Root<'s> = Tag;
    type Stale = Stale;
    type Sharing = Self;
    type Following = Unsupported;
    type Refusing = Unsupported;

    const LEAF_PAGES: u64 = LeafTable::SPAN;
    /// Of the frames of its [`PhysicalMemory`](crate::PhysicalMemory), whoever has them.
    const MAPS_FOREIGN: bool = true;

    fn pages(&self) -> PageRange {
        PageRange::new(PageNumber::new(0), PageNumber::new(Self::PAGES)).expect("it has pages")
    }

    #[inline]
    fn root(&self) -> Tag {
        self.tag
    }

    #[inline]
    fn sharing(&self) -> Option<&Self> {
        Some(self)
    }

    #[inline]
    fn following(&self) -> Option<&Unsupported> {
        None
    }

    #[inline]
    fn refusing(&self) -> Option<&Unsupported> {
        None
    }

    fn leaf<'s>(&'s self, _proof: &'s impl Stable, page: PageNumber) -> Option<Leaf<'s>> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.leaf_place(page)?;
        let found = place.load(Ordering::Acquire);
        (!found.is_null()).then_some(Leaf { found, place })
    }

    fn make_leaf<'s>(&'s self, _proof: &'s impl Stable, page: PageNumber) -> Result<Leaf<'s>, OutOfMemory> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.make_leaf_place(page, &self.sections)?;
        Ok(Leaf { found: get_or_make(place, &self.sections)?, place })
    }

    fn hangs(&self, leaf: Leaf<'_>) -> bool {
        // While the proof lasts the leaf is not freed, so the same pointer is the same leaf.
        !leaf.is_shared() && ptr::eq(leaf.place.load(Ordering::Acquire), leaf.found)
    }

    fn load(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        Entry::from_bits(leaf.entry(page).load(Ordering::Relaxed))
    }

    fn try_announce(&self, leaf: Leaf<'_>, page: PageNumber, seen: Entry) -> bool {
        debug_assert!(!seen.is_announced());
        let new = seen.with(Entry::ANNOUNCED).bits();
        // Acquire, partner: the Release of who let go or installed before.
        leaf.entry(page).compare_exchange(seen.bits(), new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        if mutant!("install_loses_dirty") {
            store_late(leaf.entry(page), |old| old.without(Entry::ANNOUNCED));
            return;
        }
        // A read-modify-write, so that a bit set by a processor meanwhile stays. Release, partner: the next
        // announcement and range work's exchange.
        let old = leaf.entry(page).fetch_and(!Entry::ANNOUNCED, Ordering::Release);
        debug_assert!(Entry::from_bits(old).is_announced(), "let go of an entry that is not announced");
    }

    unsafe fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        let (entry, new) = (leaf.entry(page), new.without(Entry::ANNOUNCED));
        let with_kept_bits = |old: Entry| {
            let keeps_frame = new.mapped_frame().is_some() && new.mapped_frame() == old.mapped_frame();
            new.with(if keeps_frame { old.bits() & Entry::HARDWARE } else { 0 })
        };
        if mutant!("install_loses_dirty") {
            return Ok(store_late(entry, with_kept_bits).without(Entry::ANNOUNCED));
        }
        // One step: between a swap and a later "or" of the old bits others could have changed the entry already.
        // Release, partner: `translate`; Acquire: what processors did through the old entry is seen.
        let mut old = Entry::from_bits(entry.load(Ordering::Relaxed));
        loop {
            debug_assert!(old.is_announced(), "install over an entry that is not announced");
            match swap_if(entry, old, with_kept_bits(old)) {
                Ok(()) => return Ok(old.without(Entry::ANNOUNCED)),
                Err(now) => old = now,
            }
        }
    }

    unsafe fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        debug_assert!(self.load(leaf, page) == Entry::EMPTY, "filled over something");
        // Release, partner: `translate`.
        leaf.entry(page).store(new.bits(), Ordering::Release);
    }

    unsafe fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        debug_assert!(!seen.is_announced() && !new.is_announced());
        swap_if(leaf.entry(page), seen, new)
    }

    #[inline]
    fn record<'s>(&'s self, leaf: Leaf<'s>) -> &'s LeafRecord {
        &leaf.table().record
    }

    fn next_leaf(&self, _proof: &impl Stable, range: PageRange) -> Option<PageNumber> {
        debug_assert!(range.end().get() <= Self::PAGES);
        self.root.next_leaf(range.start().get(), range.end().get()).map(PageNumber::new)
    }

    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.leaf_place(page)?;
        // Release, partner: `hangs`; Acquire, partner: who made the leaf.
        let table = place.swap(ptr::null_mut(), Ordering::AcqRel);
        debug_assert!(!PlaceWord::from_raw(table.cast()).is_shared(), "unhooked while others have it");
        let table = NonNull::new(table)?;
        #[cfg(loom)]
        // SAFETY: from a Box or a block, and never freed.
        return Some(Retired::new(Box::new(Ghost(unsafe { table.as_ref() }))));
        #[cfg(not(loom))]
        {
            /// # Safety
            /// A leaf table that was taken out of its only place, once.
            unsafe fn free(table: NonNull<()>) {
                // SAFETY: by the contract above.
                unsafe { LeafTable::free(table.cast()) };
            }
            const fn kind(is_charged: bool) -> RetiredKind {
                RetiredKind { free, bytes: size_of::<LeafTable>(), is_charged, retired: None }
            }
            const OWN: RetiredKind = kind(true);
            // Its block is charged as a whole.
            const OF_BLOCK: RetiredKind = kind(false);
            // SAFETY: whoever frees it comes after this.
            let is_own = unsafe { table.as_ref() }.block().is_null();
            // SAFETY: taken out of its only place just now; tables go from thread to thread.
            Some(unsafe { Retired::from_raw(table.cast(), if is_own { &OWN } else { &OF_BLOCK }) })
        }
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        // The mutant (CVE-2018-18281): a processor may go on with the old translation.
        if mutant!("no_invalidate") {
            return;
        }
        // A translation lives as long as its access, which says what it is of.
        let stale = self.stale(range);
        self.sections.grace_of(|subject| stale.is_of(subject), wait);
        #[cfg(debug_assertions)]
        if let Some(processors) = &self.processors {
            processors.forget(stale);
        }
    }

    #[inline]
    fn stale(&self, range: PageRange) -> Stale {
        Stale { first: self.subject(range.start()), pages: range.pages() }
    }

    fn unload(&self, _wait: impl FnMut(u32)) {
        // An access holds a handle of its space, so none is under way.
        #[cfg(debug_assertions)]
        if let Some(processors) = &self.processors {
            processors.forget_all(self.tag.0);
        }
    }
}

#[cfg(test)]
impl RadixTable {
    pub(crate) fn sections(&self) -> &Sections {
        &self.sections
    }
}

/// A section of the calling thread, for the tests of this crate.
#[cfg(test)]
pub(crate) fn section(sections: &Sections) -> faultless::sync::Section<'_> {
    use faultless::host::{FenceBarrier, StdSlots};
    // SAFETY: no two living threads have the same slot; models give their threads different ones.
    unsafe { sections.enter(StdSlots.current(), &FenceBarrier) }
}

/// As `section`, for an access of the calling thread.
#[cfg(test)]
pub(crate) fn access_section(table: &RadixTable, page: PageNumber) -> faultless::sync::AccessSection<'_> {
    use faultless::host::StdSlots;
    // SAFETY: as above.
    unsafe { table.sections.enter_access(StdSlots.current(), table.subject(page)) }
}

/// Frees what was unhooked, after a grace period, for the models.
#[cfg(all(test, loom))]
pub(crate) fn free_retired(retired: Retired) {
    // SAFETY: the caller has unhooked it and waited for a grace period; if not, the model says so.
    unsafe { retired.free() }
}

#[cfg(all(test, not(loom)))]
mod tests;
