//! The page table of a software MMU: a radix tree of atomic words, as on x86-64. Several trees can share a leaf table
//! ([`share`]).

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

/// Nine bits for each level, as on x86-64. One bit under loom, so that a model reaches the second leaf and the second
/// table.
#[cfg(not(loom))]
const LEVEL_BITS: u32 = 9;
#[cfg(loom)]
const LEVEL_BITS: u32 = 1;
/// The number of entries of a table.
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
    /// The number of pages that it covers.
    const SPAN: u64;
    /// Makes an empty table, for loom, whose atomics are not plain words.
    #[cfg(loom)]
    fn empty() -> Self;

    /// Frees a table.
    ///
    /// # Safety
    /// The table is from [`make`], or, if it is a leaf, from a block. No code uses it, and it is freed once.
    unsafe fn free(table: NonNull<Self>) {
        // SAFETY: by the contract above, for a table that is not a leaf.
        drop(unsafe { Box::from_raw(table.as_ptr()) });
    }
}

/// Makes an empty table. Fails if there is no memory.
fn make<T: Table>() -> Result<Box<T>, OutOfMemory> {
    #[cfg(loom)]
    return faultless::sync::try_box(T::empty());
    #[cfg(not(loom))]
    {
        let layout = std::alloc::Layout::new::<T>();
        const { assert!(size_of::<T>() != 0) };
        // SAFETY: the layout has a size; zeros are a value of T; the pointer, if not null, was allocated with the
        // layout of a Box<T>.
        unsafe {
            let memory = std::alloc::alloc_zeroed(layout).cast::<T>();
            if memory.is_null() { Err(OutOfMemory) } else { Ok(Box::from_raw(memory)) }
        }
    }
}

/// A table of the lowest level, which has the entries.
struct LeafTable {
    /// Atomic. Each method of [`PageTable`] states who may write.
    entries: [AtomicU64; FAN],
    /// Records the space that has the table, or the spaces that share it. The engine's.
    record: LeafRecord,
    /// The block that contains the table; null if it is from a Box. Written by the thread that makes the table.
    block: plain::AtomicPtr<Block>,
    life: Life,
}

impl LeafTable {
    /// Returns the block that contains the table; null if it is from a Box.
    fn block(&self) -> *mut Block {
        self.block.load(plain::Ordering::Relaxed)
    }
}

// SAFETY: zeros are empty entries and a table that is not shared; `Life` has no bytes outside loom.
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

/// An unhooked leaf, under loom. It ends but is not deallocated, so that a later use is reported and does not crash.
#[cfg(loom)]
struct Ghost(&'static LeafTable);

#[cfg(loom)]
impl Drop for Ghost {
    fn drop(&mut self) {
        self.0.record.end();
        self.0.life.end();
    }
}

/// A four-level page table of 2^36 pages, with 512 pages for each leaf.
pub struct RadixTable {
    root: Box<Root>,
    /// Immutable.
    tag: Tag,
    /// Memory for the leaf tables that fork shares with this table.
    reserve: Reserve,
    /// The access sections of all processors; [`PageTable::invalidate`] waits for the older ones. Immutable.
    sections: Arc<Sections>,
    /// The processors' caches, on a machine that has them. Immutable.
    #[cfg(debug_assertions)]
    processors: Option<Arc<Processors>>,
}

/// A leaf table, and the place in an upper table that points to it.
#[derive(Clone, Copy)]
pub struct Leaf<'s> {
    /// The pointer that was found at the place, with its marks ([`PlaceWord`]); not null.
    found: *mut LeafTable,
    place: &'s AtomicPtr<LeafTable>,
}

impl<'s> Leaf<'s> {
    /// Returns the word by which the leaf was found.
    #[inline]
    fn word(self) -> PlaceWord {
        PlaceWord::from_raw(self.found.cast())
    }

    /// Returns whether the place forbids all stores, regardless of the entries.
    #[inline]
    pub(crate) fn is_shared(self) -> bool {
        self.word().is_shared()
    }

    #[inline]
    fn table(self) -> &'s LeafTable {
        // SAFETY: the table is from a Box or a block, and the proof with which it was found keeps it. A section keeps
        // every leaf. A taken range keeps those that are not shared, and its callers then access no others.
        let table = unsafe { &*self.word().leaf().cast::<LeafTable>() };
        table.life.touch();
        table
    }

    #[inline]
    fn entry(self, page: PageNumber) -> &'s AtomicU64 {
        &self.table().entries[page.get() as usize % FAN]
    }
}

/// The name of a table's pages for processors: the upper bits of the subject of an access section. Two tables may have
/// the same tag; that only costs a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// Returns the subject of an access section to `page`.
    #[inline]
    pub(crate) fn subject(self, page: PageNumber) -> u64 {
        self.0 | (page.get() & (RadixTable::PAGES - 1))
    }
}

/// Pages of a table, for [`Soft::invalidate_all`](crate::Soft). A later table may have the same tag; that only costs a
/// wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The number of the first page.
    first: u64,
    pages: u64,
    /// The table. `None`: every table of the machine.
    tag: Option<Tag>,
}

impl Stale {
    /// Returns whether an access with this `subject` is to one of these pages.
    #[inline]
    fn is_of(self, subject: u64) -> bool {
        let page = subject & (RadixTable::PAGES - 1);
        // The last number is the subject of a slot that has made no access yet.
        page.wrapping_sub(self.first) < self.pages
            && match self.tag {
                Some(tag) => subject & !(RadixTable::PAGES - 1) == tag.0,
                // The mutant leaves every second table out.
                None => !mutant!("one_sharer_invalidated") || (subject / RadixTable::PAGES).is_multiple_of(2),
            }
            && subject != u64::MAX
    }

    /// Waits for the accesses in `sections` to any of `batch`. A machine with these tables calls it in
    /// [`Host::invalidate_all`](faultless::host::Host::invalidate_all).
    pub fn wait_for_all(sections: &Sections, batch: &[Self], wait: impl FnMut(u32)) {
        if !mutant!("no_invalidate") {
            sections.grace_of(|subject| batch.iter().any(|stale| stale.is_of(subject)), wait);
        }
    }
}

/// Returns the tag of a new table. It is never the last one, so no access has the subject [`u64::MAX`].
fn next_tag() -> Tag {
    static NEXT: plain::AtomicU64 = plain::AtomicU64::new(0);
    const TAGS: u64 = (1 << (64 - RadixTable::PAGES.trailing_zeros())) - 1;
    Tag((NEXT.fetch_add(1, plain::Ordering::Relaxed) % TAGS) * RadixTable::PAGES)
}

impl RadixTable {
    /// The number of pages that it can address.
    pub const PAGES: u64 = Root::SPAN;

    /// Returns the subject of an access section to `page`.
    #[cfg(any(test, debug_assertions))]
    #[inline]
    pub(crate) fn subject(&self, page: PageNumber) -> u64 {
        self.tag.subject(page)
    }

    /// Makes an empty table. `sections` are those in which processors access memory through it.
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

    /// Returns the entry as a processor's walk finds it. Acquire, partner: [`PageTable::install`], so that the walk
    /// sees the bytes that were written to the frame before it was mapped.
    pub fn translate(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        Entry::from_bits(leaf.entry(page).load(Ordering::Acquire))
    }

    /// Clears `bits` in an entry; they must be the host's own.
    ///
    /// # Safety
    /// The caller has announced the entry. No processor walks this table, or `bits` have no meaning for processors.
    pub unsafe fn clear(&self, leaf: Leaf<'_>, page: PageNumber, bits: u64) {
        leaf.entry(page).fetch_and(!bits, Ordering::Relaxed);
    }

    /// Sets `bits` of [`Entry::HARDWARE`] as a processor does, if the entry is still `seen`, announced or not. AcqRel,
    /// as in a walk. Partners: let_go, install and exchange, each of which keeps these bits or fails.
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
        debug_assert!(bits & !Entry::HARDWARE == 0, "a processor sets only accessed and dirty");
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

/// Replaces the entry if it is `seen`. AcqRel, and Acquire if it fails: the present entry may have just been installed.
fn swap_if(entry: &AtomicU64, seen: Entry, new: Entry) -> Result<(), Entry> {
    match entry.compare_exchange(seen.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(now) => Err(Entry::from_bits(now)),
    }
}

/// Stores, for a mutant, `new` of an entry that was loaded earlier. Returns the loaded entry.
fn store_late(entry: &AtomicU64, new: impl Fn(Entry) -> Entry) -> Entry {
    let old = Entry::from_bits(entry.load(Ordering::Relaxed));
    // Gives a processor the time to set its bit.
    (0..50).for_each(|_| std::hint::spin_loop());
    // A swap whose result is not used: loom lets a plain store go before another thread's read-modify-write that it did
    // not see.
    entry.swap(new(old).bits(), Ordering::Release);
    old
}

// SAFETY: entries are single atomic words that change as the methods state. The caller of `unhook` frees a leaf after a
// grace period. Translations end with the access sections that `invalidate` waits for.
unsafe impl PageTable for RadixTable {
    type Leaf<'s> = Leaf<'s>;

    type Root<'s> = Tag;
    type Stale = Stale;
    type Sharing = Self;
    type Following = Unsupported;
    type Refusing = Unsupported;

    const LEAF_PAGES: u64 = LeafTable::SPAN;
    /// The frames of its [`PhysicalMemory`](crate::PhysicalMemory), regardless of their owner.
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
        // Acquire, partner: the Release of the `let_go` or `install` before.
        leaf.entry(page).compare_exchange(seen.bits(), new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        if mutant!("install_loses_dirty") {
            store_late(leaf.entry(page), |old| old.without(Entry::ANNOUNCED));
            return;
        }
        // A read-modify-write, so that a bit that a processor sets meanwhile is kept. Release, partner: the next
        // announcement and range work's exchange.
        let old = leaf.entry(page).fetch_and(!Entry::ANNOUNCED, Ordering::Release);
        debug_assert!(Entry::from_bits(old).is_announced(), "let_go of an entry that is not announced");
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
        // One step: between a swap and a later "or" of the old bits another thread could have changed the entry.
        // Release, partner: `translate`. Acquire: the effects of processors through the old entry are visible.
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
        debug_assert!(self.load(leaf, page) == Entry::EMPTY, "fill over an entry that is not empty");
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

    fn age(&self, leaf: Leaf<'_>, page: PageNumber) -> bool {
        let place = leaf.entry(page);
        let is_used = |entry: Entry| entry.has(Entry::MAPPED | Entry::ACCESSED);
        // The first look writes nothing: most pages of a large memory are not in use.
        is_used(Entry::from_bits(place.load(Ordering::Relaxed)))
            && is_used(Entry::from_bits(place.fetch_and(!Entry::ACCESSED, Ordering::Relaxed)))
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
        // Release, partner: `hangs`. Acquire, partner: the thread that made the leaf.
        let table = place.swap(ptr::null_mut(), Ordering::AcqRel);
        debug_assert!(
            !PlaceWord::from_raw(table.cast()).is_shared(),
            "unhook of a leaf that other tables share"
        );
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
            // The block is charged as a whole.
            const OF_BLOCK: RetiredKind = kind(false);
            // SAFETY: it is freed only after this.
            let is_own = unsafe { table.as_ref() }.block().is_null();
            // SAFETY: just taken out of its only place; tables may be sent to other threads.
            Some(unsafe { Retired::from_raw(table.cast(), if is_own { &OWN } else { &OF_BLOCK }) })
        }
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        // The mutant (CVE-2018-18281): a processor may continue to use the old translation.
        if mutant!("no_invalidate") {
            return;
        }
        // A translation lives as long as its access, whose subject names the page.
        let stale = self.stale(range);
        self.sections.grace_of(|subject| stale.is_of(subject), wait);
        #[cfg(debug_assertions)]
        if let Some(processors) = &self.processors {
            processors.forget(stale);
        }
    }

    #[inline]
    fn stale(&self, range: PageRange) -> Stale {
        Stale { first: range.start().get(), pages: range.pages(), tag: Some(self.tag) }
    }

    fn unload(&self, _wait: impl FnMut(u32)) {
        // An access holds a handle of its space, so none is under way.
        #[cfg(debug_assertions)]
        if let Some(processors) = &self.processors {
            processors.forget_all(self.tag);
        }
    }
}

#[cfg(test)]
impl RadixTable {
    pub(crate) fn sections(&self) -> &Sections {
        &self.sections
    }
}

/// Enters a section of the calling thread, for the tests of this crate.
#[cfg(test)]
pub(crate) fn section(sections: &Sections) -> faultless::sync::Section<'_> {
    use faultless::host::{FenceBarrier, StdSlots};
    // SAFETY: no two live threads have the same slot; models give their threads different ones.
    unsafe { sections.enter(StdSlots.current(), &FenceBarrier) }
}

/// Enters an access section of the calling thread, for the tests of this crate.
#[cfg(test)]
pub(crate) fn access_section(table: &RadixTable, page: PageNumber) -> faultless::sync::AccessSection<'_> {
    use faultless::host::StdSlots;
    // SAFETY: as above.
    unsafe { table.sections.enter_access(StdSlots.current(), table.subject(page)) }
}

/// Frees an unhooked leaf after a grace period, for the models.
#[cfg(all(test, loom))]
pub(crate) fn free_retired(retired: Retired) {
    // SAFETY: the caller has unhooked it and waited for a grace period; if it has not, the model reports that.
    unsafe { retired.free() }
}

#[cfg(all(test, not(loom)))]
mod tests;
