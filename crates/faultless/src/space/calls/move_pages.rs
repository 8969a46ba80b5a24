//! Moving pages within a space, without a copy (userfaultfd's UFFDIO_MOVE).
//!
//! ```text
//!   ask the design, take both ranges      no fork, munmap, mprotect or other move comes between; faults and reclaim do
//!   each source page, under its bit: the entry becomes KEPT       a fault restores it; reclaim passes it over
//!   invalidate the source          from here on no processor uses the pages
//!   each page, under both bits, taken in address order:
//!     the source is still KEPT, and the target is empty           otherwise the source is restored, and the call ends
//!     home, the target's entry, then the source's entry
//! ```
//! A page in swap space moves with its slot, and needs the invalidation too: reclaim may have taken it just now (rule S1).

use crate::address::{PAGE_SIZE, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::frame::Reference;
use crate::host::{Entry, EntryKind, Frame, Host, OutOfMemory, PageTable, Slot};
use crate::protection::{Protection, Sharing};
use crate::space::calls::isolate::Owners;
use crate::space::change::range_change::RangeChange;
use crate::space::fault::shared_table::LeafOf;
use crate::space::{AddressSpace, Space};
use crate::swap::Cached;
#[cfg(loom)]
use crate::vma::{AnonId, AnonRecord};
use crate::vma::{Backing, Mapping, MappingFlags, Vma};

/// The number of pages that are invalidated together. Each step of a model counts.
const BATCH: usize = if cfg!(loom) { 2 } else { 32 };

/// The number of times that the move of a page in swap space is tried while reclaim has the page.
const LOOKS: u32 = 8;

/// A request to [`AddressSpace::move_pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveRequest {
    /// The first address of the pages. A multiple of the page size.
    pub source: VirtAddr,
    /// The address to which the first page moves. A multiple of the page size.
    pub target: VirtAddr,
    /// The number of bytes. It is rounded up to whole pages, and must not be zero.
    pub length: u64,
    /// Whether a place of the source without a page counts as moved (UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES). Otherwise it is an error.
    pub allow_holes: bool,
}

impl MoveRequest {
    /// Makes a request to move the pages of `length` bytes at `source` to `target`. A place of the source without a page is an error.
    pub fn new(source: VirtAddr, length: u64, target: VirtAddr) -> Self {
        Self { source, target, length, allow_holes: false }
    }
}

/// The error of [`AddressSpace::move_pages`]: the reason why not all pages were moved, and the number of bytes that were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("after {moved} bytes: {cause}")]
pub struct MoveError {
    /// The number of bytes that were moved before, from the start on (Linux: the field `move`). The other pages are where they were.
    pub moved: u64,
    /// The reason.
    pub cause: MoveCause,
}

/// The reason why a page was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveCause {
    /// An address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address` (ENOENT).
    #[error("nothing is mapped at {address}")]
    Hole {
        /// The first address of the source or of the target.
        address: VirtAddr,
    },
    /// The source and the target do not go together (EINVAL). Each must lie in one mapping. Both mappings must be private,
    /// anonymous and writable, with the same rights, and both locked or both not locked. A host with mappings of its own
    /// ([`FollowRanges`](crate::host::FollowRanges)) does not support moves.
    #[error("the mappings at {source_at} and {target_at} do not go together")]
    Kind {
        /// The first address of the source.
        source_at: VirtAddr,
        /// The first address of the target.
        target_at: VirtAddr,
    },
    /// The source has no page at `address` (ENOENT).
    #[error("there is no page at {address}")]
    Empty {
        /// The address of the page in the source.
        address: VirtAddr,
    },
    /// The source has a guard page at `address` (EFAULT).
    #[error("{address} is a guard page")]
    Guard {
        /// The address of the page in the source.
        address: VirtAddr,
    },
    /// The target has a page or a guard page at `address` (EEXIST).
    #[error("there is a page at {address} already")]
    Occupied {
        /// The address of the page in the target.
        address: VirtAddr,
    },
    /// Another space has the page at `address` too, or the page is pinned for I/O (EBUSY).
    #[error("the page at {address} is shared or pinned")]
    Busy {
        /// The address of the page in the source.
        address: VirtAddr,
    },
    /// The page at `address` was used or reclaimed meanwhile, or a device reads or writes it, and it stays where it was (EAGAIN). The
    /// caller may try again.
    #[error("the page at {address} was used meanwhile")]
    Changed {
        /// The address of the page in the source.
        address: VirtAddr,
    },
    /// There is no memory for a page table (ENOMEM).
    #[error("out of memory to move the page at {address}")]
    OutOfMemory {
        /// The address of the page in the source.
        address: VirtAddr,
    },
    /// The space has exited (ESRCH).
    #[error("the space has exited")]
    Exited,
}

impl MoveError {
    /// Returns Linux's error number. After some pages have moved it is EAGAIN, whatever the cause.
    pub fn errno(&self) -> i32 {
        if self.moved != 0 {
            return errno::EAGAIN;
        }
        match self.cause {
            MoveCause::Range(_) | MoveCause::Kind { .. } => errno::EINVAL,
            MoveCause::Hole { .. } | MoveCause::Empty { .. } => errno::ENOENT,
            MoveCause::Guard { .. } => errno::EFAULT,
            MoveCause::Occupied { .. } => errno::EEXIST,
            MoveCause::Busy { .. } => errno::EBUSY,
            MoveCause::Changed { .. } => errno::EAGAIN,
            MoveCause::OutOfMemory { .. } => errno::ENOMEM,
            MoveCause::Exited => errno::ESRCH,
        }
    }
}

/// A page that a move has picked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// There is none.
    Hole,
    /// The source's entry is KEPT, with this frame.
    Kept(Frame),
    /// The page is in a slot, which the entry names.
    Swapped(Slot, Entry),
}

/// The outcome of one try to put a page down.
enum Put {
    Moved,
    /// Reclaim has the page. The source is invalidated before the next try.
    Again,
    Refused(MoveCause),
}

/// Checks that pages of `source` may move to `target`, in Linux's order.
fn may_move<H: Host>(source: &Mapping<H>, target: &Mapping<H>, ranges: (PageRange, PageRange)) -> bool {
    let is_plain = |mapping: &Mapping<H>| {
        mapping.sharing == Sharing::Private
            && matches!(mapping.backing, Backing::Anonymous)
            && mapping.protection.contains(Protection::WRITE)
    };
    let is_locked = |mapping: &Mapping<H>| mapping.flags.contains(MappingFlags::LOCKED);
    is_plain(source)
        && is_plain(target)
        && source.protection == target.protection
        && is_locked(source) == is_locked(target)
        && source.range.covers(ranges.0)
        && target.range.covers(ranges.1)
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Moves anonymous pages to places of the same space that have none, without a copy (userfaultfd's UFFDIO_MOVE).
    ///
    /// Call it to compact memory, or to put a page that was prepared elsewhere into its place. The source keeps its mapping, and reads
    /// as zeros afterwards. A page in swap space moves with its slot, and is not read. Pages move one after the other, upwards. Source
    /// and target may overlap.
    ///
    /// Accesses to the source and the target go on meanwhile. An access to a page that is on its way puts it back, and the call
    /// ends there. When the call returns, no access reaches a moved page by its old address.
    ///
    /// Waits as [`AddressSpace::unmap`], for no I/O. Differs from Linux: the target needs no userfaultfd. A page that all other spaces
    /// have let go moves, where Linux says EBUSY until it is stored to. The length is rounded up to whole pages.
    ///
    /// # Errors
    /// [`MoveError`]. It has the number of bytes that were moved. The first page that cannot move stays, as do those above it.
    pub fn move_pages(&self, request: MoveRequest) -> Result<(), MoveError> {
        let nothing = |cause| MoveError { moved: 0, cause };
        let range = |address| PageRange::from_bytes(address, request.length).map_err(MoveCause::from);
        let source = range(request.source).map_err(nothing)?;
        let target = range(request.target).map_err(nothing)?;
        let space = &*self.0;
        for range in [source, target] {
            let hole = MoveCause::Hole { address: range.start().address() };
            range.intersection(space.whole()).filter(|inside| *inside == range).ok_or(nothing(hole))?;
        }
        let mut call = space.change(Call::Discard, source.hull(target));
        let moving = Moving::begin(&mut call, (source, target), request.allow_holes).map_err(nothing)?;
        let mut done = 0;
        let result = moving.run(&mut call, &mut done);
        call.finish();
        result.map_err(|cause| MoveError { moved: done * PAGE_SIZE, cause })
    }
}

/// A move under way. Both ranges are taken.
struct Moving<'a, H: Host, D: LockingDesign> {
    space: &'a Space<H, D>,
    source: PageRange,
    target: PageRange,
    allow_holes: bool,
    /// The record of the target's mapping.
    #[cfg(loom)]
    record: Option<AnonId>,
}

impl<'a, H: Host, D: LockingDesign> Moving<'a, H, D> {
    /// Returns the places of the page with this index.
    fn places(&self, index: u64) -> (PageNumber, PageNumber) {
        let at = |range: PageRange| PageNumber::new(range.start().get() + index);
        (at(self.source), at(self.target))
    }

    /// Takes the ranges, and checks the mappings.
    fn begin(
        call: &mut RangeChange<'a, H, D>,
        (source, target): (PageRange, PageRange),
        allow_holes: bool,
    ) -> Result<Self, MoveCause> {
        let space = call.space;
        let lock = match source.overlaps(target) {
            true => call.take(source.hull(target)),
            false => call.take_both(source, target),
        };
        if lock.exited {
            return Err(MoveCause::Exited);
        }
        let view = space.tree.view_locked(&lock.writer);
        let find = |range: PageRange| {
            let address = range.start().address();
            view.find(range.start()).filter(|vma| !vma.is_busy()).ok_or(MoveCause::Hole { address })
        };
        let (of_source, of_target): (&Vma<H, D>, &Vma<H, D>) = (find(source)?, find(target)?);
        // A host with mappings of its own has no form of an entry that is KEPT.
        let is_supported = space.table.following().is_none();
        if !is_supported || !may_move(of_source.mapping(), of_target.mapping(), (source, target)) {
            let (source_at, target_at) = (source.start().address(), target.start().address());
            return Err(MoveCause::Kind { source_at, target_at });
        }
        // The target has anonymous pages from now on. As in a fault, this comes before the first one.
        if of_target.record().is_some_and(|record| record.id().is_none()) {
            let _ = space.begin_record(view, of_target);
        }
        Ok(Self {
            space,
            source,
            target,
            allow_holes,
            #[cfg(loom)]
            record: of_target.record().and_then(AnonRecord::id),
        })
    }

    /// Returns how many pages are moved at once. If source and target overlap, a page may move to the place that another has left, or
    /// from the place to which another has moved. So that one comes before.
    fn at_once(&self) -> u64 {
        match self.source.start().get().abs_diff(self.target.start().get()) {
            apart if self.source.overlaps(self.target) => apart.clamp(1, BATCH as u64),
            _ => BATCH as u64,
        }
    }

    /// Moves the pages, and counts them in `done`.
    fn run(&self, call: &mut RangeChange<'a, H, D>, done: &mut u64) -> Result<(), MoveCause> {
        while *done < self.source.pages() {
            if self.space.space_flags.dying.is_set() {
                return Err(MoveCause::Exited);
            }
            let mut batch = [Held::Hole; BATCH];
            let most = (self.source.pages() - *done).min(self.at_once()) as usize;
            let (mut count, mut refused) = (0, Ok(()));
            while count < most && refused.is_ok() {
                match self.pick_up(call, *done + count as u64) {
                    Ok(held) => {
                        batch[count] = held;
                        count += 1;
                    }
                    Err(cause) => refused = Err(cause),
                }
            }
            if !mutant!("moves_before_invalidate") {
                call.flush();
            }
            let first = *done;
            for (index, held) in (first..).zip(&batch[..count]) {
                // After the first page that stays, all stay.
                let put = if *done == index { self.put_down(call, index, *held) } else { Ok(()) };
                if *done == index && put.is_ok() {
                    *done += 1;
                    continue;
                }
                self.put_back(call, index, *held);
                refused = put.and(refused);
            }
            // Work that has not taken the pages may have emptied an entry there, and not invalidated it yet.
            let ((from, to), (from_end, to_end)) = (self.places(first), self.places(*done));
            for moved in [PageRange::new(from, from_end), PageRange::new(to, to_end)].into_iter().flatten() {
                call.weakened.swept(self.space, moved);
            }
            call.flush();
            refused?;
        }
        Ok(())
    }

    /// Makes the source's entry of the page KEPT, if it may move.
    fn pick_up(&self, call: &mut RangeChange<'a, H, D>, index: u64) -> Result<Held, MoveCause> {
        let (space, (from, to)) = (self.space, self.places(index));
        let address = from.address();
        let target = call.taken.over(self.target);
        space.table.make_leaf(target, to).map_err(|OutOfMemory| MoveCause::OutOfMemory { address })?;
        space.own_table(PageRange::single(to), |_, entry| entry, |_, _| true);
        let leaf = space.table.leaf(target, to).expect("made above");
        let there = space.table.load(leaf, to);
        if !is_free(there) {
            return Err(MoveCause::Occupied { address: to.address() });
        }
        let source = call.taken.over(self.source);
        let is_own =
            space.own_table(PageRange::single(from), |_, entry| entry, |_, entry| entry.holds_page());
        // A table that others have too has no page there, and may be freed at any time. A page that moves to where it is finds its place
        // free: there was none a moment ago.
        let has_page = (is_own || mutant!("moves_from_a_shared_table")) && from != to;
        let mut look = 0;
        while let Some(leaf) = space.table.leaf(source, from).filter(|_| has_page) {
            let seen = space.table.load(leaf, from);
            if !seen.is_announced() {
                match seen.kind() {
                    EntryKind::Guard => return Err(MoveCause::Guard { address }),
                    EntryKind::Empty | EntryKind::Gone(_) => break,
                    EntryKind::Foreign(_) => return Err(MoveCause::Busy { address }),
                    EntryKind::Swapped(slot, _) => {
                        call.weakened.touch(from);
                        return Ok(Held::Swapped(slot, seen));
                    }
                    EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                        if space.table.try_announce(leaf, from, seen)
                            && let Some(kept) = self.keep(leaf, from, (seen, frame))
                        {
                            call.weakened.touch(from);
                            return kept;
                        }
                    }
                }
            }
            space.engine.pause_on_bit(look);
            look += 1;
        }
        if self.allow_holes { Ok(Held::Hole) } else { Err(MoveCause::Empty { address }) }
    }

    /// Makes the announced entry of `page` KEPT, if the space alone has its page. Ends the announcement. `None` if the caller looks
    /// again.
    fn keep<'s>(
        &'s self,
        leaf: LeafOf<'s, H>,
        page: PageNumber,
        (entry, frame): (Entry, Frame),
    ) -> Option<Result<Held, MoveCause>> {
        let (space, address) = (self.space, page.address());
        let folio = space.engine.folio(frame);
        let owners = match frame == space.engine.zero_frame() {
            true => Owners::One,
            false if mutant!("moves_shared_pages") => Owners::One,
            false if !folio.is_anonymous() || folio.is_pinned_for_io() => Owners::Others,
            false => space.owners(entry),
        };
        if owners == Owners::One {
            let kept = Entry::kept(frame, entry.bits());
            if space.table.install(leaf, page, kept).is_ok() {
                return Some(Ok(Held::Kept(frame)));
            }
        }
        space.table.let_go(leaf, page);
        match owners {
            Owners::One => Some(Err(MoveCause::OutOfMemory { address })),
            Owners::Others => Some(Err(MoveCause::Busy { address })),
            Owners::InTransfer => Some(Err(MoveCause::Changed { address })),
            Owners::Busy => None,
        }
    }

    /// Puts the page into the target. On an error it is not there.
    fn put_down(&self, call: &mut RangeChange<'a, H, D>, index: u64, held: Held) -> Result<(), MoveCause> {
        if held == Held::Hole {
            return Ok(());
        }
        let (from, _) = self.places(index);
        for look in 0..LOOKS {
            match self.try_put_down(call, index, held) {
                Put::Moved => return Ok(()),
                Put::Refused(cause) => return Err(cause),
                Put::Again => {
                    call.weakened.touch(from);
                    call.flush();
                    self.space.engine.pause_on_bit(look);
                }
            }
        }
        Err(MoveCause::Changed { address: from.address() })
    }

    /// Tries once to put the page into the target, under both bits.
    fn try_put_down(&self, call: &mut RangeChange<'a, H, D>, index: u64, held: Held) -> Put {
        let (space, (from, to)) = (self.space, self.places(index));
        let table = &space.table;
        let leaf_of = |range: PageRange, page| table.leaf(call.taken.over(range), page);
        let (Some(source), Some(target)) = (leaf_of(self.source, from), leaf_of(self.target, to)) else {
            return Put::Refused(MoveCause::Changed { address: from.address() });
        };
        let (seen, there) = self.announce_both((source, from), (target, to));
        let let_go = || {
            table.let_go(target, to);
            table.let_go(source, from);
        };
        if !is_free(there) {
            let_go();
            return Put::Refused(MoveCause::Occupied { address: to.address() });
        }
        let changed = Put::Refused(MoveCause::Changed { address: from.address() });
        let refused = match held {
            Held::Hole => None,
            Held::Kept(frame) if !mutant!("moves_what_was_used") && seen.kind() != EntryKind::Kept(frame) => {
                Some(changed)
            }
            Held::Kept(_) => None,
            Held::Swapped(_, entry) if !seen.has_page_of(entry) => Some(changed),
            Held::Swapped(slot, _) => self.refuse_slot(slot, from),
        };
        if let Some(refused) = refused {
            let_go();
            return refused;
        }
        let anonymous =
            seen.counted_frame().map(|frame| space.engine.folio(frame)).filter(|folio| folio.is_anonymous());
        let set_home = |leaf, page| {
            if let Some(folio) = anonymous {
                folio.set_home(table.home(leaf, page));
            }
        };
        // Before the old entry is gone: its table may be freed then (rule H1).
        if !mutant!("moved_without_home") {
            set_home(target, to);
        }
        match table.install(target, to, seen.restored().without(Entry::REFUSED)) {
            Ok(old) => {
                #[cfg(loom)]
                anonymous.into_iter().zip(self.record).for_each(|(folio, id)| folio.note_record(id.get()));
                // Rule S3.
                if let EntryKind::Gone(frame) = old.kind()
                    && space.engine.folio(frame).is_isolated()
                {
                    call.weakened.touch(to);
                }
                // An empty entry takes no memory.
                let _ = table.install(source, from, Entry::EMPTY);
                Put::Moved
            }
            Err(OutOfMemory) => {
                set_home(source, from);
                let_go();
                Put::Refused(MoveCause::OutOfMemory { address: from.address() })
            }
        }
    }

    /// Returns why the page in `slot`, which the announced entry of `page` names, does not move now.
    fn refuse_slot(&self, slot: Slot, page: PageNumber) -> Option<Put> {
        let engine = &self.space.engine;
        let is_isolated = match engine.pin_cached(slot) {
            Cached::Pinned(frame) => {
                // A processor may still store by the translation that reclaim has taken (rule S4).
                let is_isolated = engine.folio(frame).is_isolated();
                engine.put(frame, Reference::Pin);
                is_isolated
            }
            Cached::Absent => false,
            Cached::Busy => true,
        };
        match self.space.owners_of_slot(slot) {
            _ if is_isolated => Some(Put::Again),
            Owners::Busy | Owners::InTransfer => Some(Put::Again),
            Owners::One => None,
            Owners::Others => Some(Put::Refused(MoveCause::Busy { address: page.address() })),
        }
    }

    /// Sets both bits, the lower address first, and returns the entries. Nobody waits with one bit for the other: the second is
    /// tried, and the first let go.
    fn announce_both<'s>(
        &'s self,
        source: (LeafOf<'s, H>, PageNumber),
        target: (LeafOf<'s, H>, PageNumber),
    ) -> (Entry, Entry) {
        let table = &self.space.table;
        let try_one = |(leaf, page): (LeafOf<'s, H>, PageNumber)| {
            let seen = table.load(leaf, page);
            (!seen.is_announced() && table.try_announce(leaf, page, seen)).then_some(seen)
        };
        let is_up = source.1 < target.1;
        let (first, second) = if is_up { (source, target) } else { (target, source) };
        let mut look = 0;
        loop {
            if let Some(of_first) = try_one(first) {
                if let Some(of_second) = try_one(second) {
                    return if is_up { (of_first, of_second) } else { (of_second, of_first) };
                }
                table.let_go(first.0, first.1);
            }
            self.space.engine.pause_on_bit(look);
            look += 1;
        }
    }

    /// Restores the source's entry of a page that does not move, if a fault has not done so.
    fn put_back(&self, call: &RangeChange<'a, H, D>, index: u64, held: Held) {
        let (space, (from, _)) = (self.space, self.places(index));
        let Held::Kept(_) = held else { return };
        let leaf = space.table.leaf(call.taken.over(self.source), from);
        let Some(leaf) = leaf.filter(|_| !mutant!("kept_not_restored")) else { return };
        let Some(entry) = space.announce_page(leaf, from) else { return };
        let is_kept = matches!(entry.kind(), EntryKind::Kept(_));
        if !is_kept || space.table.install(leaf, from, entry.restored()).is_err() {
            space.table.let_go(leaf, from);
        }
    }
}

/// Returns whether a page may move to an entry.
fn is_free(entry: Entry) -> bool {
    matches!(entry.kind(), EntryKind::Empty | EntryKind::Gone(_))
}
