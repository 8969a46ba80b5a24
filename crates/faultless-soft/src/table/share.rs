//! Leaf tables that hang in several trees, since a fork. The place where such a leaf hangs is marked: no processor stores
//! through it, as with the write bit of an upper entry, and nobody writes its entries but processors, which set accessed bits.
//!
//! ```text
//!            before              shared                    one has left               the other was last
//!  parent    place ──► leaf      place* ──► leaf           place ──► copy             place ──► copy
//!  child                         place* ──┘   └─ spare     place* ──► leaf            place ──► leaf
//! ```
//! Whoever has to write an entry leaves: fills a spare table, of which there is one for each who may, and hangs it in the
//! place. He is counted until his processors have left too ([`Left`]); if all spares are taken, another one is leaving, and
//! is waited for. Whoever is alone has the table for himself.

use super::block::{Block, Reserve, Spare};
use super::{FAN, Leaf, LeafTable};
use faultless::address::PageNumber;
use faultless::host::{Entry, Fate, OutOfMemory, Unshared};
use faultless::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use faultless::sync::{Sections, full_fence};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Mark of a place: the leaf hangs elsewhere too.
pub(super) const SHARED: usize = 1;
/// Mark of a place: and came here by fork.
const INHERITED: usize = 2;
const MARKS: usize = SHARED | INHERITED;

const _: () = assert!(align_of::<LeafTable>() > MARKS);

#[inline]
pub(super) fn is_marked<T>(place: *mut T) -> bool {
    place.addr() & MARKS != 0
}

#[inline]
pub(super) fn unmarked<T>(place: *mut T) -> *mut T {
    place.map_addr(|address| address & !MARKS)
}

/// Who has a leaf table.
pub(super) struct Sharing {
    /// Places but one where it hangs, and who has left and is waited for. Up under the lock; down by [`Left`].
    others: AtomicU64,
    /// Whether somebody shares or copies the table now.
    locked: AtomicBool,
    /// Whether somebody has copied all of it since it was shared, so that no page of it is exclusive. Under the lock.
    is_copied: AtomicBool,
    /// Tables for those who leave: as many as `others` less those who are leaving. Under the lock.
    spares: AtomicPtr<Spare>,
    /// What its own memory is a part of, if not from a Box. Written by whoever has it alone.
    block: AtomicPtr<Block>,
}

impl Sharing {
    #[cfg(any(loom, shuttle))]
    pub(super) fn new() -> Self {
        Self {
            others: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            is_copied: AtomicBool::new(false),
            spares: AtomicPtr::new(ptr::null_mut()),
            block: AtomicPtr::new(ptr::null_mut()),
        }
    }

    pub(super) fn block(&self) -> *mut Block {
        self.block.load(Ordering::Relaxed)
    }

    pub(super) fn set_block(&self, block: *mut Block) {
        self.block.store(block, Ordering::Relaxed);
    }

    /// Acquire, partner: [`Left`]: what its processors did is seen.
    pub(super) fn others(&self) -> u64 {
        self.others.load(Ordering::Acquire)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.others.load(Ordering::Relaxed) != 0
    }

    /// Acquire, partner: [`Locked`]'s Release.
    fn try_lock(&self) -> Option<Locked<'_>> {
        let locked = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // Made only then: dropping one unlocks.
        locked.is_ok().then(|| Locked(self))
    }
}

/// A leaf table that nobody else shares, leaves or takes over now.
struct Locked<'a>(&'a Sharing);

impl Locked<'_> {
    fn add(&self, spare: NonNull<Spare>) {
        // SAFETY: taken for this table, and the lock's from now on.
        unsafe { spare.as_ref() }.next.store(self.0.spares.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.spares.store(spare.as_ptr(), Ordering::Relaxed);
        self.0.others.fetch_add(1, Ordering::Relaxed);
    }

    /// An empty table, the caller's.
    fn take_spare(&self) -> Option<NonNull<LeafTable>> {
        let spare = NonNull::new(self.0.spares.load(Ordering::Relaxed))?;
        // SAFETY: in the list, which is the lock's.
        let next = unsafe { spare.as_ref() }.next.load(Ordering::Relaxed);
        self.0.spares.store(next, Ordering::Relaxed);
        // SAFETY: out of the list, and so this caller's.
        Some(unsafe { Spare::into_table(spare) })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

/// A leaf table that a tree has left, whose processors may still be in it. Dropped when they are not.
pub struct Left(NonNull<LeafTable>);

// SAFETY: tables are shared between threads anyway; this is a count of one.
unsafe impl Send for Left {}

impl Drop for Left {
    fn drop(&mut self) {
        // SAFETY: counted in `others`: until the next line somebody else has the table and does not free it.
        let table = unsafe { self.0.as_ref() };
        table.life.touch();
        // Release, partner: `others`.
        table.sharing.others.fetch_sub(1, Ordering::Release);
    }
}

/// Hangs `leaf` in `place` too, where nothing hangs; with a table out of `reserve` for whoever leaves first.
pub(super) fn share(
    leaf: Leaf<'_>,
    place: &AtomicPtr<LeafTable>,
    (reserve, sections): (&Reserve, &Arc<Sections>),
) -> Result<bool, OutOfMemory> {
    let Some(locked) = leaf.table().sharing.try_lock() else { return Ok(false) };
    if !ptr::eq(leaf.place.load(Ordering::Relaxed), leaf.found) {
        return Ok(false);
    }
    locked.add(reserve.take(sections)?);
    debug_assert!(place.load(Ordering::Relaxed).is_null(), "shared over something");
    // Release, partner: whoever walks here.
    place.store(leaf.found.map_addr(|address| address | MARKS), Ordering::Release);
    leaf.place.store(leaf.found.map_addr(|address| address | SHARED), Ordering::Release);
    Ok(true)
}

/// See [`PageTable::unshare`](faultless::host::PageTable::unshare).
pub(super) fn unshare(
    leaf: Leaf<'_>,
    page: PageNumber,
    mut each: impl FnMut(Fate, PageNumber, Entry) -> Entry,
) -> Unshared<Left> {
    let table = leaf.table();
    let Some(locked) = table.sharing.try_lock() else { return Unshared::Busy };
    if !is_marked(leaf.found) || !ptr::eq(leaf.place.load(Ordering::Acquire), leaf.found) {
        return Unshared::Own;
    }
    // Somebody may have come to an entry before the place was marked. Partner: the fence after the bit in page work. If
    // ours comes first, he finds the mark and lets go, so that what the bit is set in stays as it is; if his, the bit is
    // seen.
    full_fence();
    if table.entries.iter().any(|entry| Entry::from_bits(entry.load(Ordering::Relaxed)).is_announced()) {
        return Unshared::Busy;
    }
    let first = page.align_down(FAN as u64).get();
    let entries = || {
        let entries = (first..).map(PageNumber::new).zip(&table.entries);
        entries.enumerate().filter_map(|(i, (page, entry))| {
            let seen = Entry::from_bits(entry.load(Ordering::Relaxed)).without(Entry::ANNOUNCED);
            (seen != Entry::EMPTY).then_some((i, page, entry, seen))
        })
    };
    if table.sharing.others() == 0 {
        let is_copied = table.sharing.is_copied.swap(false, Ordering::Relaxed);
        if leaf.found.addr() & INHERITED != 0 && !is_copied {
            entries().for_each(|(_, page, _, seen)| _ = each(Fate::Stays, page, seen));
        }
        leaf.place.store(unmarked(leaf.found), Ordering::Release);
        return Unshared::Own;
    }
    let Some(copy) = locked.take_spare() else { return Unshared::Busy };
    // SAFETY: empty, and nobody else's until it hangs.
    let entries_of_copy = unsafe { &copy.as_ref().entries };
    let mut is_whole = true;
    for (i, page, entry, seen) in entries() {
        let kept = each(Fate::Copied, page, seen).without(Entry::WRITE | Entry::ANNOUNCED);
        if seen.holds_page() && !kept.has_page_of(seen) {
            is_whole = false;
        } else if seen.has(Entry::WRITE) {
            entry.fetch_and(!Entry::WRITE, Ordering::Relaxed);
        }
        entries_of_copy[i].store(kept.bits(), Ordering::Relaxed);
    }
    table.sharing.is_copied.fetch_or(is_whole, Ordering::Relaxed);
    // Release, partner: whoever walks here.
    leaf.place.store(copy.as_ptr(), Ordering::Release);
    drop(locked);
    Unshared::Left(Left(NonNull::from(table)))
}
