//! The spaces that may map a file, in the order of their numbers, each with bounds of what it may show of the file.
//!
//! A space has two hulls here: one of the file's pages that it may show, and one of the addresses at which it may show them.
//! Both only grow. A walk (truncation, a hole, reading anew, writeback) passes over a space whose pages do not overlap those
//! of the walk, and in any other looks only at the mappings within its addresses.
//!
//! Reverse mapping by an interval tree of mappings would be exact. It would also have every change of a mapping of the file,
//! by any space, take a lock of the file. Hulls change only where a space shows pages, or at addresses, that it never had: a
//! split, a protect, an unmap and most forks of a program change nothing. The price: a space that maps two distant parts of a
//! file is looked at for the part between them; two mappings at distant addresses bring all that is mapped between them.
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
//! * fork gives a child only pages of its parent. The child has a higher number, and a walk goes upwards. If fork took the
//!   parent before truncation finished with it, truncation waits for fork, and the child is listed with full hulls. If fork
//!   comes later, the parent has no such page left. fork gives no write right.
//!
//! # Spaces that have stored
//!
//! Writeback has only to come to spaces with a right to store. A space sets a bit in the file before it makes a page dirty and gives
//! itself such a right ([`FileMappings::note_store`]); 1,024 bits, by the space's number. Writeback passes over spaces whose bit is not
//! set. Either it sees the bit, which was set before the page's state was looked at; or the page was under writeback by then,
//! and the space waits and gives no right (the fence in `note_store`, and that before writeback's walk). Bits stay: of a file that more
//! than a thousand spaces have stored into, all are looked at.
//!
//! # Spaces that show nothing
//!
//! The other direction: no entry of a page of the file was ever outside of the hulls. So a space that is passed over has no
//! entry, no old translation and no claim that matters; within a space, only claims within the hull of addresses do.
//!
//! # Spaces that are gone
//!
//! A walk that meets one takes all of them out when it ends. So does registration, when the list has become twice as long.

use super::MappedBy;
use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::host::{Host, OutOfMemory};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Weak, full_fence};
use alloc::vec::Vec;
use core::ops::Range;

/// Registration looks for spaces that are gone when the list has become twice as long as it was after the last time, and
/// longer than this.
const FEW: usize = 16;

/// Spaces that a walk looks at with one taking of the lock.
const LOOKS: usize = 256;

/// Words of bits of spaces that have stored.
#[cfg(not(loom))]
const STORED: usize = 16;
#[cfg(loom)]
const STORED: usize = 1;

pub(super) struct FileMappings<H: Host> {
    list: Mutex<List<dyn MappedBy<H>>>,
    /// Bit `id` modulo their number: such a space may have a right to store. Atomic; bits are set by faults, never cleared.
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

/// Bounds of what a space may show of a file, and of the addresses at which it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hull {
    /// Pages of the file.
    pages: Range<u64>,
    /// Pages of the space.
    addresses: Range<u64>,
}

/// Grows to whatever it is made to cover.
const NO_PAGES: Range<u64> = Range { start: u64::MAX, end: 0 };

impl Hull {
    /// Nothing.
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
    /// The last space that it has looked at.
    last: Option<u64>,
    /// Tells whether the walk has met a space that is gone.
    has_met_gone: bool,
}

/// The result of one step of a walk, under the lock.
enum Step<S: ?Sized> {
    /// A space that may show the pages, and its number.
    Space(u64, Weak<S>),
    /// Only spaces that do not: the walk goes on.
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
    /// Adds a space, if it is not there, and makes its hulls cover `hull`. Numbers grow with each space made, so that most
    /// come last.
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

    /// Bytes that it has from the allocator.
    pub fn room(&self, engine: &Engine<H>) -> usize {
        engine.lock(&self.list).room()
    }

    fn bit(&self, id: u64) -> (&AtomicU64, u64) {
        (&self.stored[(id / 64) as usize % STORED], 1 << (id % 64))
    }

    /// Space `id` is about to make a page dirty, and to get the right to store into it. Before it looks at the page's state.
    pub fn note_store(&self, id: u64) {
        let (word, bit) = self.bit(id);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        // Partner: the fence before writeback's walk.
        full_fence();
    }

    /// Returns whether space `id` may have a right to store. Called after the pages are under writeback, and a fence.
    pub fn has_stored(&self, id: u64) -> bool {
        let (word, bit) = self.bit(id);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Calls `f` for each space that may show one of `pages` and is `wanted`, and its number, upwards. The caller has changed the state
    /// of the pages before. Nothing is held in `f`.
    pub fn each(
        &self,
        engine: &Engine<H>,
        pages: &Range<u64>,
        wanted: impl Fn(u64) -> bool,
        mut f: impl FnMut(u64, &dyn MappedBy<H>),
    ) {
        let mut walk = Walk::default();
        loop {
            let step = engine.lock(&self.list).step(&mut walk, pages, &wanted);
            match step {
                Step::Space(id, space) => {
                    if let Some(space) = space.upgrade() {
                        f(id, &*space);
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

    /// The addresses at which space `id` may show the file, as of now.
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

/// The engine counts the bytes of the list.
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

    /// False: there is no space `id`.
    fn widen(&mut self, id: u64, hull: &Hull) -> bool {
        match self.place(id) {
            Ok(place) => {
                self.spaces[place].hull.grow(hull);
                true
            }
            Err(_) => false,
        }
    }

    /// Adds a space that is not there.
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

    /// Gives back the room of a list that was much longer. Without memory for the shorter list, the room stays.
    fn give_room_back(&mut self) {
        let wanted = 2 * self.spaces.len().max(FEW / 2);
        let mut spaces = Vec::new();
        if self.spaces.capacity() > 2 * wanted && spaces.try_reserve_exact(wanted).is_ok() {
            spaces.append(&mut self.spaces);
            self.spaces = spaces;
        }
    }

    fn place(&self, id: u64) -> Result<usize, usize> {
        // A child of fork registers with each of its mappings, one after the other, and is the youngest then.
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

    /// The spaces that a walk for `pages` comes to, and how often it takes the lock.
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
