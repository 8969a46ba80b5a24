//! The page table of a software MMU: a radix tree of atomic words, as x86-64 has it.

use faultless::address::{PageNumber, PageRange};
use faultless::host::{Entry, OutOfMemory, PageTable, Stable};
use faultless::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use faultless::sync::{Life, Retired, Sections, plain};
use std::ptr;
use std::sync::Arc;

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
/// Except under loom and shuttle, all bytes zero are a value: the empty table.
unsafe trait Table: Sized {
    /// Pages that it covers.
    const SPAN: u64;
    /// For the back-ends whose atomics are not plain words.
    #[cfg(any(loom, shuttle))]
    fn empty() -> Self;
}

/// An empty table, or nothing if there is no memory.
fn make<T: Table>() -> Result<Box<T>, OutOfMemory> {
    #[cfg(any(loom, shuttle))]
    return faultless::sync::try_box(T::empty());
    #[cfg(not(any(loom, shuttle)))]
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
    life: Life,
}

// SAFETY: zeros are empty entries; `Life` has no bytes outside loom.
unsafe impl Table for LeafTable {
    const SPAN: u64 = FAN as u64;
    #[cfg(any(loom, shuttle))]
    fn empty() -> Self {
        Self { entries: std::array::from_fn(|_| AtomicU64::new(0)), life: Life::new() }
    }
}

impl Drop for LeafTable {
    fn drop(&mut self) {
        self.life.end();
    }
}

/// Under loom an unhooked leaf ends but is not deallocated, so that a use after it is reported and does not crash.
#[cfg(loom)]
struct Ghost(&'static LeafTable);

#[cfg(loom)]
impl Drop for Ghost {
    fn drop(&mut self) {
        self.0.life.end();
    }
}

/// A table of tables, which live until it is dropped, or of leaves, which come and go.
struct Upper<C> {
    /// Null, or a table from a Box. Set by compare-and-swap (Release), followed by Acquire loads: whoever finds a
    /// table finds it empty or later. A leaf's place is set back to null by `unhook`.
    places: [AtomicPtr<C>; FAN],
    life: Life,
}

// SAFETY: zeros are null pointers; `Life` has no bytes outside loom.
unsafe impl<C: Table> Table for Upper<C> {
    const SPAN: u64 = FAN as u64 * C::SPAN;
    #[cfg(any(loom, shuttle))]
    fn empty() -> Self {
        Self { places: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())), life: Life::new() }
    }
}

impl<C: Table> Upper<C> {
    fn place(&self, page: PageNumber) -> &AtomicPtr<C> {
        self.life.touch();
        &self.places[(page.get() / C::SPAN) as usize % FAN]
    }
}

impl<C> Drop for Upper<C> {
    fn drop(&mut self) {
        for place in &self.places {
            let child = place.load(Ordering::Relaxed);
            if !child.is_null() {
                // SAFETY: `&mut self`: nobody else is here; the pointer came from a Box and is dropped once.
                drop(unsafe { Box::from_raw(child) });
            }
        }
        self.life.end();
    }
}

/// What hangs at `place`, made where it is missing; of two makers the second takes the first one's.
fn get_or_make<C: Table>(place: &AtomicPtr<C>) -> Result<*const C, OutOfMemory> {
    let found = place.load(Ordering::Acquire);
    if !found.is_null() {
        return Ok(found);
    }
    let new = Box::into_raw(make::<C>()?);
    // Release, partner: the Acquire loads of whoever walks here.
    match place.compare_exchange(ptr::null_mut(), new, Ordering::Release, Ordering::Acquire) {
        Ok(_) => Ok(new),
        Err(theirs) => {
            // SAFETY: `new` came from a Box just now and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
            Ok(theirs)
        }
    }
}

/// The way from an upper table down to the places where leaves hang.
trait Walk: Table {
    /// The place of the leaf over `page`, if the tables above it exist.
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>>;
    /// The same, made where it is missing.
    fn make_leaf_place(&self, page: PageNumber) -> Result<&AtomicPtr<LeafTable>, OutOfMemory>;
    /// The first page in `from..end`, as far as this table goes, whose leaf exists. `from` lies in this table.
    fn next_leaf(&self, from: u64, end: u64) -> Option<u64>;
}

/// The first answer of `at` for one of the pages `from`, and then the starts of `step`-sized blocks, before `end`.
fn each_block(from: u64, end: u64, step: u64, mut at: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
    let mut page = from;
    while page < end {
        if let Some(found) = at(page) {
            return Some(found);
        }
        page = (page | (step - 1)) + 1;
    }
    None
}

impl Walk for Upper<LeafTable> {
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>> {
        Some(self.place(page))
    }

    fn make_leaf_place(&self, page: PageNumber) -> Result<&AtomicPtr<LeafTable>, OutOfMemory> {
        Ok(self.place(page))
    }

    fn next_leaf(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min((from | (Self::SPAN - 1)) + 1);
        each_block(from, end, LeafTable::SPAN, |page| {
            let leaf = self.place(PageNumber::new(page)).load(Ordering::Acquire);
            (!leaf.is_null()).then_some(page)
        })
    }
}

impl<C: Walk> Upper<C> {
    fn child(&self, page: PageNumber) -> Option<&C> {
        let child = self.place(page).load(Ordering::Acquire);
        // SAFETY: null, or from a Box; `C` is no leaf, so it lives until `self` is dropped.
        unsafe { child.as_ref() }
    }
}

impl<C: Walk> Walk for Upper<C> {
    fn leaf_place(&self, page: PageNumber) -> Option<&AtomicPtr<LeafTable>> {
        self.child(page)?.leaf_place(page)
    }

    fn make_leaf_place(&self, page: PageNumber) -> Result<&AtomicPtr<LeafTable>, OutOfMemory> {
        let child = get_or_make(self.place(page))?;
        // SAFETY: as in `child`, and not null.
        unsafe { &*child }.make_leaf_place(page)
    }

    fn next_leaf(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min((from | (Self::SPAN - 1)) + 1);
        each_block(from, end, C::SPAN, |page| self.child(PageNumber::new(page))?.next_leaf(page, end))
    }
}

/// A four-level page table: 2^36 pages, leaves of 512.
pub struct RadixTable {
    root: Box<Root>,
    /// The upper bits of what accesses through this table call their page; other tables' may be the same, which costs a
    /// wait. Immutable.
    tag: u64,
    /// The access sections of all processors; [`PageTable::invalidate`] waits for the older ones. Immutable.
    sections: Arc<Sections>,
}

/// A leaf table and the place where it hangs.
#[derive(Clone, Copy)]
pub struct Leaf<'s> {
    table: &'s LeafTable,
    place: &'s AtomicPtr<LeafTable>,
}

impl<'s> Leaf<'s> {
    fn entry(self, page: PageNumber) -> &'s AtomicU64 {
        self.table.life.touch();
        &self.table.entries[page.get() as usize % FAN]
    }
}

/// Tags of tables, never the last one: no access is to [`u64::MAX`].
fn next_tag() -> u64 {
    static NEXT: plain::AtomicU64 = plain::AtomicU64::new(0);
    const TAGS: u64 = (1 << (64 - RadixTable::PAGES.trailing_zeros())) - 1;
    (NEXT.fetch_add(1, plain::Ordering::Relaxed) % TAGS) * RadixTable::PAGES
}

impl RadixTable {
    /// Pages that it can address.
    pub const PAGES: u64 = Root::SPAN;

    /// What an access section of `page` is said to access.
    #[inline]
    pub(crate) fn subject(&self, page: PageNumber) -> u64 {
        self.tag | (page.get() & (Self::PAGES - 1))
    }

    /// An empty table. `sections` are those in which processors access memory through it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(sections: Arc<Sections>) -> Result<Self, OutOfMemory> {
        Ok(Self { root: make()?, tag: next_tag(), sections })
    }

    /// The entry as a processor's walk finds it. Acquire, partner: [`PageTable::install`]: what was written into the
    /// frame before it was mapped is seen.
    pub fn translate(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        Entry::from_bits(leaf.entry(page).load(Ordering::Acquire))
    }

    /// Clears `bits` of a host's own in an entry that the caller has announced.
    pub fn clear(&self, leaf: Leaf<'_>, page: PageNumber, bits: u64) {
        leaf.entry(page).fetch_and(!bits, Ordering::Relaxed);
    }

    /// A processor sets `bits` of [`Entry::HARDWARE`], if the entry is still `seen`, announced or not. AcqRel, as the
    /// walk; partners: let_go, install and exchange, each of which takes these bits along or fails.
    ///
    /// # Errors
    /// What is there instead: the processor goes by that.
    pub fn set_hardware(
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

/// AcqRel, and Acquire where it fails: what is there was perhaps installed just now.
fn swap_if(entry: &AtomicU64, seen: Entry, new: Entry) -> Result<(), Entry> {
    match entry.compare_exchange(seen.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(now) => Err(Entry::from_bits(now)),
    }
}

/// Gives a processor the time that the mutant needs.
#[cfg(mutant = "install_loses_dirty")]
fn linger() {
    (0..50).for_each(|_| std::hint::spin_loop());
}

// SAFETY: entries are single atomic words changed as the methods say; leaves are freed by whoever gets them from `unhook`,
// after a grace period; translations end with the access sections that `invalidate` waits for.
unsafe impl PageTable for RadixTable {
    type Leaf<'s> = Leaf<'s>;

    const LEAF_PAGES: u64 = LeafTable::SPAN;

    fn pages(&self) -> u64 {
        Self::PAGES
    }

    fn leaf<'s>(&'s self, _proof: &'s impl Stable, page: PageNumber) -> Option<Leaf<'s>> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.leaf_place(page)?;
        let table = place.load(Ordering::Acquire);
        // SAFETY: null, or from a Box; the proof keeps what hangs, or has hung since it began, from being freed.
        let table = unsafe { table.as_ref() }?;
        Some(Leaf { table, place })
    }

    fn make_leaf<'s>(&'s self, _proof: &'s impl Stable, page: PageNumber) -> Result<Leaf<'s>, OutOfMemory> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.make_leaf_place(page)?;
        let table = get_or_make(place)?;
        // SAFETY: as in `leaf`, and not null.
        Ok(Leaf { table: unsafe { &*table }, place })
    }

    fn hangs(&self, leaf: Leaf<'_>) -> bool {
        // While the proof lasts the leaf is not freed, so the same pointer is the same leaf.
        ptr::eq(leaf.place.load(Ordering::Acquire), leaf.table)
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

    #[cfg(not(mutant = "install_loses_dirty"))]
    fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        // A read-modify-write, so that a bit set by a processor meanwhile stays. Release, partner: the next
        // announcement and range work's exchange.
        let old = leaf.entry(page).fetch_and(!Entry::ANNOUNCED, Ordering::Release);
        debug_assert!(Entry::from_bits(old).is_announced(), "let go of an entry that is not announced");
    }

    #[cfg(not(mutant = "install_loses_dirty"))]
    fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        let (entry, new) = (leaf.entry(page), new.without(Entry::ANNOUNCED));
        // One step: between a swap and a later "or" of the old bits others could have changed the entry already.
        // Release, partner: `translate`; Acquire: what processors did through the old entry is seen.
        let mut old = Entry::from_bits(entry.load(Ordering::Relaxed));
        loop {
            debug_assert!(old.is_announced(), "install over an entry that is not announced");
            let keeps_frame = new.frame().is_some() && new.frame() == old.frame();
            let kept = if keeps_frame { old.bits() & Entry::HARDWARE } else { 0 };
            match swap_if(entry, old, new.with(kept)) {
                Ok(()) => return Ok(old.without(Entry::ANNOUNCED)),
                Err(now) => old = now,
            }
        }
    }

    /// The mutant: a store of what an earlier load saw. (A swap whose result is not used: loom lets a plain store go
    /// before another thread's read-modify-write that it did not see.)
    #[cfg(mutant = "install_loses_dirty")]
    fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        let old = self.load(leaf, page);
        linger();
        leaf.entry(page).swap(old.without(Entry::ANNOUNCED).bits(), Ordering::Release);
    }

    /// The mutant: a store of what an earlier load saw.
    #[cfg(mutant = "install_loses_dirty")]
    fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        let old = self.load(leaf, page);
        let keeps_frame = new.frame().is_some() && new.frame() == old.frame();
        let kept = if keeps_frame { old.bits() & Entry::HARDWARE } else { 0 };
        linger();
        leaf.entry(page).swap(new.without(Entry::ANNOUNCED).with(kept).bits(), Ordering::Release);
        Ok(old.without(Entry::ANNOUNCED))
    }

    fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        debug_assert!(self.load(leaf, page) == Entry::EMPTY, "filled over something");
        // Release, partner: `translate`.
        leaf.entry(page).store(new.bits(), Ordering::Release);
    }

    fn exchange(&self, leaf: Leaf<'_>, page: PageNumber, seen: Entry, new: Entry) -> Result<(), Entry> {
        debug_assert!(!seen.is_announced() && !new.is_announced());
        swap_if(leaf.entry(page), seen, new)
    }

    fn next_leaf(&self, _proof: &impl Stable, range: PageRange) -> Option<PageNumber> {
        debug_assert!(range.end().get() <= Self::PAGES);
        self.root.next_leaf(range.start().get(), range.end().get()).map(PageNumber::new)
    }

    fn unhook(&self, page: PageNumber) -> Option<Retired> {
        debug_assert!(page.get() < Self::PAGES);
        let place = self.root.leaf_place(page)?;
        // Release, partner: `hangs`; Acquire, partner: who made the leaf.
        let table = place.swap(ptr::null_mut(), Ordering::AcqRel);
        if table.is_null() {
            return None;
        }
        // SAFETY: from a Box, and taken out of its only place just now: nobody else makes a Box of it.
        let table = unsafe { Box::from_raw(table) };
        #[cfg(loom)]
        let table = Box::new(Ghost(Box::leak(table)));
        Some(Retired::new(table))
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        // The mutant (CVE-2018-18281): a processor may go on with the old translation.
        if cfg!(mutant = "no_invalidate") {
            return;
        }
        // A translation lives as long as its access, which says what it is of.
        let first = self.subject(range.start());
        let of_range = |subject: u64| subject.wrapping_sub(first) < range.pages();
        self.sections.grace_of(of_range, wait);
    }
}

/// A section of the calling thread, for the tests of this crate.
#[cfg(all(test, not(shuttle)))]
pub(crate) fn section(sections: &Sections) -> faultless::sync::Section<'_> {
    use faultless::host::{FenceBarrier, Slots, StdSlots};
    // SAFETY: no two living threads have the same slot; models give their threads different ones.
    unsafe { sections.enter(StdSlots.current(), &FenceBarrier) }
}

/// As `section`, for an access of the calling thread.
#[cfg(all(test, not(shuttle)))]
pub(crate) fn access_section<'a>(
    sections: &'a Sections,
    table: &RadixTable,
    page: PageNumber,
) -> faultless::sync::AccessSection<'a> {
    use faultless::host::{Slots, StdSlots};
    // SAFETY: as above.
    unsafe { sections.enter_access(StdSlots.current(), table.subject(page)) }
}

/// Frees what was unhooked, after a grace period, for the models.
#[cfg(all(test, loom))]
pub(crate) fn free_retired(retired: Retired) {
    // SAFETY: the caller has unhooked it and waited for a grace period; if not, the model says so.
    unsafe { retired.free() }
}

#[cfg(all(test, not(loom), not(shuttle)))]
mod tests;
