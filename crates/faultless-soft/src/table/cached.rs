//! The caches of processors, as in hardware: each has a TLB and a cache of upper entries. They are used outside of
//! sections.
//!
//! ```text
//!   access ──► translation kept, with the right ───────────────────────────────► frame      the entry is not read
//!         └──► leaf table kept ──► entry: set accessed, dirty; keep it ────────► frame      the upper entries are not read
//!         └──► upper entries ──► leaf table: keep it ──► entry: the same ──────► frame
//! ```
//! A translation is kept until `invalidate`, `unload`, a fault at its page, or until another one takes its place. A
//! processor whose access faults forgets its entries for the page and walks the upper tables again, as hardware may do
//! at any time by speculation. So a frame or a table that is freed or unhooked without a later invalidation is still
//! reached from here. Outside loom, freeing it while a cache names it ends the test. Under loom its next use does.

use super::{FAN, Leaf, LeafTable, RadixTable, Stale, Tag};
use faultless::address::PageNumber;
use faultless::host::{Entry, Frame, PageTable, StdSlots};
use faultless::sync::atomic::AtomicPtr;
use faultless::sync::{AccessSection, Mutex, MutexGuard};
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::Weak;

/// The number of processors with caches. If there are more slots, they share them, as threads of one core do.
#[cfg(not(loom))]
const PROCESSORS: usize = 16;
#[cfg(loom)]
const PROCESSORS: usize = 3;
/// The number of translations, and of leaf tables, that a processor keeps; direct mapped.
#[cfg(not(loom))]
const PLACES: usize = 8;
#[cfg(loom)]
const PLACES: usize = 1;

/// The caches of all processors of a machine.
pub(crate) struct Processors(Box<[Mutex<Caches>]>);

/// The caches of one processor. The lock is held for the whole access. So a thread that removes an entry under the lock
/// has waited for the access that used it.
#[derive(Default)]
pub(crate) struct Caches {
    translations: [Option<Translation>; PLACES],
    leaves: [Option<KeptLeaf>; PLACES],
}

/// A translation, as it was when the processor walked the table.
#[derive(Clone, Copy)]
struct Translation {
    /// [`RadixTable::subject`] of its page.
    subject: u64,
    frame: Frame,
    /// Rights as in [`Entry`]. The write right is included only if the entry was dirty: the first store walks, to set
    /// that bit.
    rights: u64,
}

/// A leaf table, as an upper entry named it.
#[derive(Clone, Copy)]
struct KeptLeaf {
    /// [`RadixTable::subject`] of its first page.
    subject: u64,
    /// The pointer with the marks that it was found with.
    found: *mut LeafTable,
    place: NonNull<AtomicPtr<LeafTable>>,
}

// SAFETY: all threads use tables and their places.
unsafe impl Send for KeptLeaf {}

fn first_of_leaf(subject: u64) -> u64 {
    subject & !(FAN as u64 - 1)
}

fn place_of(number: u64) -> usize {
    number as usize % PLACES
}

impl RadixTable {
    /// Returns this table with processors that keep its translations in these caches.
    pub(crate) fn cached_by(mut self, processors: Option<Arc<Processors>>) -> Self {
        self.processors = processors;
        self
    }

    /// Returns the caches of processors that access memory through this table.
    pub(crate) fn processors(&self) -> Option<&Processors> {
        self.processors.as_deref()
    }
}

impl Processors {
    pub fn new() -> Arc<Self> {
        let new = Arc::new(Self((0..PROCESSORS).map(|_| Mutex::new(Caches::default())).collect()));
        #[cfg(not(loom))]
        {
            let mut all = MACHINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            all.retain(|machine| machine.strong_count() != 0);
            all.push(Arc::downgrade(&new));
        }
        new
    }

    /// Locks the caches of the calling thread's processor.
    pub fn current(&self) -> MutexGuard<'_, Caches> {
        self.0[StdSlots.current().get() as usize % PROCESSORS].lock()
    }

    /// Removes the cached entries for these pages. When it returns, no access uses them.
    pub(crate) fn forget(&self, stale: Stale) {
        self.forget_from(stale);
    }

    /// Removes all cached entries for the table with this tag.
    pub(super) fn forget_all(&self, tag: Tag) {
        self.forget_from(Stale { first: 0, pages: RadixTable::PAGES, tag: Some(tag) });
    }

    fn forget_from(&self, stale: Stale) {
        let Stale { first, pages, tag } = stale;
        for caches in &self.0 {
            let mut caches = caches.lock();
            caches
                .translations
                .iter_mut()
                .for_each(|kept| _ = kept.take_if(|kept| stale.is_of(kept.subject)));
            let overlaps = |leaf: &KeptLeaf| {
                let start = leaf.subject & (RadixTable::PAGES - 1);
                start < first + pages
                    && first < start + FAN as u64
                    && tag.is_none_or(|tag| leaf.subject & !(RadixTable::PAGES - 1) == tag.0)
            };
            caches.leaves.iter_mut().for_each(|kept| _ = kept.take_if(|kept| overlaps(kept)));
        }
    }

    /// Panics if a processor has cached entries for a table that is about to be dropped.
    pub(super) fn assert_unloaded(&self, tag: u64) {
        let is_of = |subject: u64| subject & !(RadixTable::PAGES - 1) == tag;
        let keeps = |caches: &Caches| {
            caches.translations.iter().flatten().any(|kept| is_of(kept.subject))
                || caches.leaves.iter().flatten().any(|kept| is_of(kept.subject))
        };
        if let Some(processor) = self.find(keeps) {
            panic!(
                "invariant 15: a page table is dropped while processor {processor} has cached entries of it"
            );
        }
    }

    /// Panics if a processor keeps a translation to a frame that is about to be freed.
    #[cfg(not(loom))]
    pub fn assert_forgotten(&self, frame: Frame) {
        let keeps = |caches: &Caches| caches.translations.iter().flatten().any(|kept| kept.frame == frame);
        if let Some(processor) = self.find(keeps) {
            panic!("invariant 3: {frame:?} is freed while processor {processor} keeps a translation to it");
        }
    }

    /// Returns the number of a processor whose caches are `wanted`.
    fn find(&self, wanted: impl Fn(&Caches) -> bool) -> Option<usize> {
        self.0.iter().position(|caches| wanted(&caches.lock()))
    }
}

/// All machines with caches. A table that is freed does not know its machine.
#[cfg(not(loom))]
static MACHINES: std::sync::Mutex<Vec<Weak<Processors>>> = std::sync::Mutex::new(Vec::new());

/// Panics if a processor keeps a leaf table that is about to be freed.
#[cfg(not(loom))]
pub(super) fn assert_leaf_forgotten(table: &LeafTable) {
    use faultless::host::PlaceWord;
    let all = MACHINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let all: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
    let is_it = |leaf: &KeptLeaf| std::ptr::eq(PlaceWord::from_raw(leaf.found.cast()).leaf().cast(), table);
    for machine in all {
        if let Some(processor) = machine.find(|caches| caches.leaves.iter().flatten().any(is_it)) {
            panic!("invariant 15: a leaf table is freed while processor {processor} keeps it");
        }
    }
}

impl Caches {
    /// Returns the frame of a cached translation that gives `right`.
    pub fn frame(&self, subject: u64, right: u64) -> Option<Frame> {
        let kept = self.translations[place_of(subject)].as_ref()?;
        (kept.subject == subject && kept.rights & right == right).then_some(kept.frame)
    }

    /// Returns the leaf table over `page` with which a walk continues: the cached one, or the present one, which is
    /// then cached.
    pub fn leaf<'s>(
        &mut self,
        section: &'s AccessSection<'_>,
        table: &'s RadixTable,
        page: PageNumber,
    ) -> Option<Leaf<'s>> {
        let subject = first_of_leaf(table.subject(page));
        let place = &mut self.leaves[place_of(subject / FAN as u64)];
        if let Some(kept) = place.filter(|kept| kept.subject == subject) {
            // SAFETY: `subject` is of this table, whose places live as long as it does.
            return Some(Leaf { found: kept.found, place: unsafe { kept.place.as_ref() } });
        }
        let leaf = table.leaf(section, page)?;
        *place = Some(KeptLeaf { subject, found: leaf.found, place: NonNull::from(leaf.place) });
        Some(leaf)
    }

    /// Caches `entry` of `leaf`, which maps `frame` and has its accessed bit.
    pub fn keep(&mut self, subject: u64, leaf: Leaf<'_>, (frame, entry): (Frame, Entry)) {
        let mut rights = entry.bits() & (Entry::READ | Entry::WRITE | Entry::EXECUTE);
        if !entry.has(Entry::DIRTY) || leaf.is_shared() {
            rights &= !Entry::WRITE;
        }
        self.translations[place_of(subject)] = Some(Translation { subject, frame, rights });
    }

    /// Handles a fault of an access to `page`: removes its cached entries, and walks the upper tables again.
    pub fn faulted(&mut self, section: &AccessSection<'_>, table: &RadixTable, page: PageNumber) {
        let subject = table.subject(page);
        self.translations[place_of(subject)].take_if(|kept| kept.subject == subject);
        let first = first_of_leaf(subject);
        self.leaves[place_of(first / FAN as u64)].take_if(|kept| kept.subject == first);
        let _ = self.leaf(section, table, page);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::{Cpu, Soft};
    use faultless::address::{PAGE_SIZE, PageRange, VirtAddr};
    use faultless::design::Faultless;
    use faultless::host::{Entry, PageTable};
    use faultless::{AddressSpace, Engine, Limits, MapRequest};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    type Space = AddressSpace<Soft, Faultless>;

    /// Makes a space with one page, to which a processor has stored.
    fn stored() -> (Arc<Engine<Soft>>, Space, VirtAddr) {
        let engine = Engine::new(Soft::with_caches(16).unwrap(), Limits::default()).unwrap();
        let space = Space::new(&engine).unwrap();
        let page = space.map(MapRequest::anonymous(PAGE_SIZE)).unwrap();
        space.store_u64(page, 5).unwrap();
        (engine, space, page)
    }

    /// Replaces the entry of `page` by `new`, and returns the old entry.
    fn take_entry(engine: &Arc<Engine<Soft>>, space: &Space, page: VirtAddr, new: Entry) -> Entry {
        // SAFETY: the test restores the entry before the engine uses it.
        let (section, table) = unsafe { (engine.enter_section(), space.table()) };
        let leaf = table.leaf(&section, page.page()).unwrap();
        let seen = table.load(leaf, page.page());
        // SAFETY: no other thread works on the page.
        unsafe { table.exchange(leaf, page.page(), seen, new) }.unwrap();
        seen
    }

    #[test]
    fn a_translation_is_used_until_it_is_invalidated() {
        let (engine, space, page) = stored();
        let entry = take_entry(&engine, &space, page, Entry::EMPTY);
        assert_eq!(space.try_load_u64(page), Ok(5), "the entry is not read");
        assert_eq!(space.try_store_u64(page, 6), Ok(()), "nor for a store to a dirty page");
        // SAFETY: invalidates, and changes nothing.
        unsafe { space.table() }.invalidate(PageRange::single(page.page()), |_| {});
        assert!(space.try_load_u64(page).is_err(), "the translation was removed");
        take_entry(&engine, &space, page, entry);
        assert_eq!(space.try_load_u64(page), Ok(6));
    }

    #[test]
    fn a_frame_that_is_freed_while_a_translation_is_kept_is_seen() {
        let (engine, space, page) = stored();
        // SAFETY: changes nothing.
        let processors = unsafe { space.table() }.processors().unwrap();
        let entry = take_entry(&engine, &space, page, Entry::EMPTY);
        let frame = entry.mapped_frame().unwrap();
        let check = || catch_unwind(AssertUnwindSafe(|| processors.assert_forgotten(frame)));
        let said = check().unwrap_err();
        assert!(said.downcast_ref::<String>().unwrap().starts_with("invariant 3"));
        // SAFETY: invalidates, and changes nothing.
        unsafe { space.table() }.invalidate(PageRange::single(page.page()), |_| {});
        assert!(check().is_ok());
        take_entry(&engine, &space, page, entry);
    }
}
