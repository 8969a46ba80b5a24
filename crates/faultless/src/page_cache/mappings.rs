//! The spaces that may map a file, in the order of their numbers. For each there are bounds of its mappings of the
//! file.
//!
//! A space has two hulls here. One bounds the file's pages that it may show, the other the addresses at which it may
//! show them. Both only grow. A walk (truncation, a hole, reading anew, writeback) skips a space whose pages do not
//! overlap those of the walk. In any other space it visits only the mappings within the hull of addresses.
//!
//! An interval tree of mappings would be an exact reverse mapping. But then every change of a mapping of the file, by
//! any space, would take a lock of the file. Hulls change only when a space shows new pages, or shows pages at new
//! addresses. A split, a protect, an unmap and most forks change nothing. The price: a space that maps two distant
//! parts of a file is also visited for the part between them, and two mappings at distant addresses make a walk visit
//! all mappings between them.
//!
//! # Why no walk misses a mapping
//!
//! A hull grows under the list's lock, *before* the mapping is published. A walk reads it under the same lock, *after* it has
//! changed the state of the pages: they are detached, or under writeback. So either the walk sees the greater hull, or the
//! mapping is published after that change:
//!
//! * Truncation, a hole, reading anew. A fault in the later mapping finds no such page in the index.
//! * Writeback. A fault in the later mapping finds the folio under writeback, and gives no write right before that has ended.
//!
//! A mapping may also come with pages: by mremap or by fork.
//!
//! * mremap shows the same file pages, so the pages' hull covers them already. The new addresses may lie outside of the hull
//!   that a walk has read. So truncation reads the space's number of moves first, and the hull second. If a move was counted
//!   before that, its addresses are in the hull. If the number has changed at the end, truncation looks again, with the whole
//!   space taken. Writeback needs no second look: mremap takes the write right from the entries that it moves.
//! * fork gives a child only pages of its parent. The child has a higher number, and a walk goes upwards. It is listed with full
//!   hulls before it has its first page. fork has the parent's bit of a page until the child has it too. So if truncation finds a
//!   page gone from the parent, the child got it before that, and truncation comes to the child later. fork gives no write right.
//!
//! # Spaces that have stored
//!
//! Writeback needs to visit only spaces with a right to store. A space sets a bit in the file before it makes a page
//! dirty and gives itself such a right ([`FileMappings::note_store`]). There are 1,024 bits, indexed by the space's
//! number. Writeback skips spaces whose bit is not set. Either it sees the bit, which was set before the page's state
//! was read. Or the page was under writeback by then, and the space waits and gives no right. (Partners: the fence in
//! `note_store`, and the one before writeback's walk.) Bits are never cleared: of a file that more than a thousand
//! spaces have stored into, all spaces are visited.
//!
//! # Spaces that show nothing
//!
//! The converse also holds: no entry of a page of the file was ever outside of the hulls. So a skipped space has no
//! entry, no old translation and no claim that matters. Within a space, only claims within the hull of addresses
//! matter.
//!
//! # Spaces that are gone
//!
//! A walk that meets a dropped space removes all of them when it ends. So does registration, when the list has become
//! twice as long.

use super::MappedBy;
use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::host::{Host, OutOfMemory};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Weak, full_fence};
use alloc::vec::Vec;
use core::ops::Range;

/// The length below which registration does not look for dropped spaces. It looks for them when the list has become
/// twice as long as it was after the last time.
const FEW: usize = 16;

/// The number of spaces that a walk visits in one critical section.
const LOOKS: usize = 256;

/// The number of words for the bits of spaces that have stored.
#[cfg(not(loom))]
const STORED: usize = 16;
#[cfg(loom)]
const STORED: usize = 1;

pub(super) struct FileMappings<H: Host> {
    list: Mutex<List<dyn MappedBy<H>>>,
    /// The bit at `id` modulo their number says that the space may have a right to store. Atomic; set by faults, never
    /// cleared.
    stored: [AtomicU64; STORED],
}

/// Spaces of type `S`. Protected by its lock.
struct List<S: ?Sized> {
    /// The listed spaces, in the order of their numbers.
    spaces: Vec<Listed<S>>,
    /// The number of spaces when those that are gone were last taken out.
    living: usize,
}

struct Listed<S: ?Sized> {
    id: u64,
    space: Weak<S>,
    hull: Hull,
}

/// The bounds of the file's pages that a space may show, and of the addresses at which it may show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hull {
    /// Pages of the file.
    pages: Range<u64>,
    /// Pages of the space.
    addresses: Range<u64>,
}

/// The empty range, which grows to any range that it is made to cover.
const NO_PAGES: Range<u64> = Range { start: u64::MAX, end: 0 };

impl Hull {
    /// The hull of no mapping.
    pub const EMPTY: Self = Self { pages: NO_PAGES, addresses: NO_PAGES };

    /// Makes the hull of a mapping of `range` that begins with page `first` of the file.
    pub fn of(range: PageRange, first: u64) -> Self {
        let (start, end) = (range.start().get(), range.end().get());
        Self { pages: first..first.saturating_add(range.pages()), addresses: start..end }
    }

    fn grow(&mut self, other: &Self) {
        let grow = |ours: &mut Range<u64>, other: &Range<u64>| {
            *ours = ours.start.min(other.start)..ours.end.max(other.end);
        };
        grow(&mut self.pages, &other.pages);
        grow(&mut self.addresses, &other.addresses);
    }

    fn shows(&self, pages: &Range<u64>) -> bool {
        self.pages.start < pages.end && pages.start < self.pages.end
    }

    fn addresses(&self) -> Option<PageRange> {
        PageRange::new(PageNumber::new(self.addresses.start), PageNumber::new(self.addresses.end))
    }
}

/// The position of a walk.
#[derive(Default)]
struct Walk {
    /// The number of the last space that it has visited.
    last: Option<u64>,
    /// Tells whether the walk has met a space that is gone.
    has_met_gone: bool,
}

/// The result of one step of a walk, under the lock.
enum Step<S: ?Sized> {
    /// A space that may show the pages, and its number.
    Space(u64, Weak<S>),
    /// Only spaces that do not show the pages. The walk continues.
    Passed,
    End,
}

impl<H: Host> Default for FileMappings<H> {
    fn default() -> Self {
        Self { list: Mutex::new(List::default()), stored: core::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<S: ?Sized> Default for List<S> {
    fn default() -> Self {
        Self { spaces: Vec::new(), living: 0 }
    }
}

impl<H: Host> FileMappings<H> {
    /// Adds a space, if it is not there, and makes its hulls cover `hull`. New spaces have greater numbers, so most are
    /// added at the end.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the space is not added.
    pub fn register(
        &self,
        engine: &Engine<H>,
        id: u64,
        space: impl FnOnce() -> Weak<dyn MappedBy<H>>,
        hull: &Hull,
    ) -> Result<(), OutOfMemory> {
        let mut list = engine.lock(&self.list);
        if list.widen(id, hull) {
            return Ok(());
        }
        let before = list.room();
        let added = list.add(id, space(), hull.clone());
        account(engine, before, list.room());
        added
    }

    /// Makes the hulls of space `id`, which is registered, cover `hull`.
    pub fn widen(&self, engine: &Engine<H>, id: u64, hull: &Hull) {
        let is_listed = engine.lock(&self.list).widen(id, hull);
        debug_assert!(is_listed, "space {id} maps a file that does not list it");
    }

    /// Returns the number of bytes that the list has from the allocator.
    pub fn room(&self, engine: &Engine<H>) -> usize {
        engine.lock(&self.list).room()
    }

    fn bit(&self, id: u64) -> (&AtomicU64, u64) {
        (&self.stored[(id / 64) as usize % STORED], 1 << (id % 64))
    }

    /// Notes that space `id` is about to make a page dirty, and to get the right to store into it. Called before the
    /// space reads the page's state.
    pub fn note_store(&self, id: u64) {
        let (word, bit) = self.bit(id);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        // Partner: the fence before writeback's walk.
        full_fence();
    }

    /// Returns whether space `id` may have a right to store. Called after the pages were put under writeback, and after
    /// a fence.
    pub fn has_stored(&self, id: u64) -> bool {
        let (word, bit) = self.bit(id);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Calls `f` with the number of each space that may show one of `pages` and is `wanted`, in ascending order, until it
    /// returns false. The caller has changed the state of the pages before, or need not find all of them. No lock is held
    /// during `f`.
    pub fn each(
        &self,
        engine: &Engine<H>,
        pages: &Range<u64>,
        wanted: impl Fn(u64) -> bool,
        mut f: impl FnMut(u64, &dyn MappedBy<H>) -> bool,
    ) {
        let mut walk = Walk::default();
        loop {
            let step = engine.lock(&self.list).step(&mut walk, pages, &wanted);
            match step {
                Step::Space(id, space) => {
                    if let Some(space) = space.upgrade()
                        && !f(id, &*space)
                    {
                        break;
                    }
                }
                Step::Passed => {}
                Step::End => break,
            }
        }
        if walk.has_met_gone {
            let mut list = engine.lock(&self.list);
            let before = list.room();
            list.forget_gone();
            list.give_room_back();
            account(engine, before, list.room());
        }
    }

    /// Returns the present hull of the addresses at which space `id` may show the file.
    pub fn addresses(&self, engine: &Engine<H>, id: u64) -> Option<PageRange> {
        let list = engine.lock(&self.list);
        list.place(id).ok().and_then(|place| list.spaces[place].hull.addresses())
    }

    /// Returns the number of spaces that still exist.
    #[cfg(any(test, feature = "audit"))]
    pub fn living(&self, engine: &Engine<H>) -> usize {
        let list = engine.lock(&self.list);
        list.spaces.iter().filter(|listed| !listed.is_gone()).count()
    }
}

/// Charges the change of the list's size, in bytes, to the engine.
fn account<H: Host>(engine: &Engine<H>, before: usize, now: usize) {
    if now > before {
        engine.charge(now - before);
    } else if now < before {
        engine.uncharge(before - now);
    }
}

impl<S: ?Sized> Listed<S> {
    fn is_gone(&self) -> bool {
        self.space.strong_count() == 0
    }
}

impl<S: ?Sized> List<S> {
    fn room(&self) -> usize {
        self.spaces.capacity() * size_of::<Listed<S>>()
    }

    /// Makes the hulls of space `id` cover `hull`. Returns `false` if there is no such space.
    fn widen(&mut self, id: u64, hull: &Hull) -> bool {
        match self.place(id) {
            Ok(place) => {
                self.spaces[place].hull.grow(hull);
                true
            }
            Err(_) => false,
        }
    }

    /// Adds a space that is not on the list.
    fn add(&mut self, id: u64, space: Weak<S>, hull: Hull) -> Result<(), OutOfMemory> {
        if self.spaces.len() >= (2 * self.living).max(FEW) {
            self.forget_gone();
        }
        self.spaces.try_reserve(1).map_err(|_| OutOfMemory)?;
        if let Err(place) = self.place(id) {
            self.spaces.insert(place, Listed { id, space, hull });
        }
        Ok(())
    }

    fn step(&self, walk: &mut Walk, pages: &Range<u64>, wanted: &impl Fn(u64) -> bool) -> Step<S> {
        let last = walk.last;
        let place = last.map_or(0, |last| self.spaces.partition_point(|listed| listed.id <= last));
        let rest = &self.spaces[place..];
        for listed in rest.iter().take(LOOKS) {
            walk.last = Some(listed.id);
            if listed.is_gone() {
                walk.has_met_gone = true;
            } else if wanted(listed.id) && listed.hull.shows(pages) {
                return Step::Space(listed.id, listed.space.clone());
            }
        }
        if rest.len() > LOOKS { Step::Passed } else { Step::End }
    }

    fn forget_gone(&mut self) {
        self.spaces.retain(|listed| !listed.is_gone());
        self.living = self.spaces.len();
    }

    /// Frees the spare capacity of a list that was much longer. Without memory for the shorter list, the capacity
    /// stays.
    fn give_room_back(&mut self) {
        let wanted = 2 * self.spaces.len().max(FEW / 2);
        let mut spaces = Vec::new();
        if self.spaces.capacity() > 2 * wanted && spaces.try_reserve_exact(wanted).is_ok() {
            spaces.append(&mut self.spaces);
            self.spaces = spaces;
        }
    }

    fn place(&self, id: u64) -> Result<usize, usize> {
        // A child of fork registers once for each of its mappings, in a row, and is the youngest space then.
        match self.spaces.last() {
            Some(last) if last.id == id => Ok(self.spaces.len() - 1),
            Some(last) if last.id < id => Err(self.spaces.len()),
            _ => self.spaces.binary_search_by_key(&id, |listed| listed.id),
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Shared;

    struct Nobody;

    fn range(pages: Range<u64>) -> PageRange {
        PageRange::new(PageNumber::new(pages.start), PageNumber::new(pages.end)).unwrap()
    }

    /// Returns the spaces that a walk for `pages` visits, and the number of times that it takes the lock.
    fn walked(list: &List<Nobody>, pages: Range<u64>) -> (Vec<u64>, usize) {
        let (mut walk, mut ids, mut steps) = (Walk::default(), Vec::new(), 0);
        loop {
            steps += 1;
            match list.step(&mut walk, &pages, &|_| true) {
                Step::Space(id, _) => ids.push(id),
                Step::Passed => {}
                Step::End => return (ids, steps),
            }
        }
    }

    #[test]
    fn spaces_come_in_the_order_of_their_numbers_each_once() {
        let mut list = List::default();
        let space = Shared::try_new(Nobody).unwrap();
        for id in [5, 9, 9, 2, 5, 7, 11, 2] {
            if !list.widen(id, &Hull::of(range(0..1), id)) {
                list.add(id, Shared::downgrade(&space), Hull::of(range(0..1), id)).unwrap();
            }
        }
        assert_eq!(walked(&list, 0..u64::MAX).0, [2, 5, 7, 9, 11]);
        assert_eq!(walked(&list, 7..8).0, [7]);
        assert_eq!(walked(&list, 10..11).0, []);
    }

    /// ```text
    ///        addresses 10   14   20  23        file pages 2      5   30   33
    ///   a              [aaaa]                             [aaaa  ]
    ///   b                        [bbb]                            ...[bbb]
    ///   hull           [-----------]                      [--------------]
    /// ```
    #[test]
    fn hulls_cover_what_was_ever_shown() {
        let (a, b) = (Hull::of(range(10..14), 2), Hull::of(range(20..23), 30));
        let mut hull = Hull::EMPTY;
        assert!(!hull.shows(&(0..u64::MAX)) && hull.addresses().is_none());
        hull.grow(&a);
        assert_eq!(hull, a);
        hull.grow(&b);
        assert_eq!(hull, Hull { pages: 2..33, addresses: 10..23 });
        let both = hull.clone();
        for inside in [a, Hull::EMPTY, Hull::of(range(12..13), 32)] {
            hull.grow(&inside);
            assert_eq!(hull, both, "{inside:?} is inside");
        }
        let shows = |pages| hull.shows(&pages);
        assert!(shows(32..40) && shows(0..3) && shows(15..16) && shows(0..u64::MAX));
        assert!(!shows(0..2) && !shows(33..u64::MAX));
        assert_eq!(hull.addresses(), Some(range(10..23)));
    }

    #[test]
    fn a_walk_passes_over_many_spaces_with_one_taking_of_the_lock() {
        let mut list = List::default();
        let space = Shared::try_new(Nobody).unwrap();
        for id in 0..1000 {
            list.add(id, Shared::downgrade(&space), Hull::of(range(id..id + 1), id % 500)).unwrap();
        }
        let (ids, steps) = walked(&list, 321..322);
        assert_eq!(ids, [321, 821]);
        assert!(steps <= 2 + 1000 / LOOKS + 1, "{steps} takings of the lock");
    }

    #[test]
    fn spaces_that_are_gone_are_forgotten() {
        let mut list = List::default();
        let parent = Shared::try_new(Nobody).unwrap();
        list.add(0, Shared::downgrade(&parent), Hull::of(range(0..1), 0)).unwrap();
        for id in 1..10_000 {
            list.add(id, Shared::downgrade(&Shared::try_new(Nobody).unwrap()), Hull::EMPTY).unwrap();
            assert!(list.spaces.len() <= FEW, "one is left of {}", list.spaces.len());
        }
        assert_eq!(walked(&list, 0..1).0, [0]);
    }

    #[test]
    fn what_a_list_has_room_for_shrinks_with_it() {
        let mut list = List::default();
        let (stays, goes) = (Shared::try_new(Nobody).unwrap(), Shared::try_new(Nobody).unwrap());
        for id in 0..1000 {
            list.add(id, Shared::downgrade(if id % 100 == 0 { &stays } else { &goes }), Hull::EMPTY).unwrap();
        }
        drop(goes);
        let mut walk = Walk::default();
        while !matches!(list.step(&mut walk, &(0..1), &|_| true), Step::End) {}
        assert!(walk.has_met_gone);
        list.forget_gone();
        list.give_room_back();
        let ids: Vec<u64> = list.spaces.iter().map(|listed| listed.id).collect();
        assert_eq!(ids, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
        assert!(list.spaces.capacity() <= 2 * FEW, "room for {}", list.spaces.capacity());
    }
}
