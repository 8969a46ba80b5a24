//! The stock of a slot: pages that are charged to one group already, for the next faults of the slot's thread.
//!
//! ```text
//! fault, in its section:     group is mine, pages > 0: pages - 1            plain loads and stores
//! free:                      mark; group is mine: pages + 1; unmark         plain loads and stores
//! a thread that takes back:  group |= TAKEN; heavy; wait until no section and no mark is older; take the pages; group = 0
//! ```
//! A thread uses its stock in a section, or between two steps of `mark`. A thread that takes the stocks of others sets TAKEN, and
//! then waits for these. So either the owner sees TAKEN and leaves the stock alone, or the other thread waits until it has finished.
//! Only an owner that changes the group of its stock, and a thread that takes it, change `group`; both by compare-and-swap.

use super::group::{Event, MOST_STOCK};
use super::groups::{Charged, Groups, MOST_GROUPS};
use crate::host::GroupId;
use crate::sync::Barrier;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::plain;

/// The number of faults after which a stock adds them to the count of its group.
const MOST_FAULTS: u32 = 1 << 16;

/// Set in `group` while another thread takes the pages.
const TAKEN: u32 = 1 << 31;
const _: () = assert!(MOST_GROUPS < TAKEN as usize);

bitflags::bitflags! {
    /// Work that a thread puts off until its next fault, since it must hold nothing then.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Debts: u8 {
        /// The thread has charged a page over high: it reclaims, or sleeps.
        const HIGH = 1;
        /// Few frames are free, or a group is near its high limit: the thread calls the background worker.
        const CALL = 2;
        /// There are more dirty pages than the limit: the thread sleeps.
        const DIRTY = 4;
    }
}

/// The counts that a thread takes off those of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "pages whose charge is not taken back are lost"]
pub(crate) struct Back {
    /// The pages for which the group pays no longer.
    pub pages: u64,
    /// The change of the count of pages of files.
    pub files: i64,
}

/// All that a stock has, for its group.
#[must_use = "pages whose charge is not taken back are lost"]
struct Contents {
    pages: u64,
    files: i64,
    faults: u64,
}

impl Contents {
    /// Gives it back to `group`. The charge goes last: a group's record is free when the group pays for nothing.
    fn give_to(self, groups: &Groups, group: GroupId) {
        groups.count_files(group, self.files);
        if self.faults != 0 {
            groups.note(group, Event::Fault, self.faults);
        }
        groups.uncharge(group, self.pages);
    }
}

/// The stock of a slot.
#[derive(Debug)]
pub(crate) struct Stock {
    /// The group that pays, 0 for none, and TAKEN. Atomic.
    group: AtomicU32,
    /// The pages. Written by the slot's thread; by the one that has set TAKEN, after its wait.
    pages: AtomicU32,
    /// The pages of files of the group that the slot's thread has charged, less those that it has freed, as far as the group has not
    /// counted them. A signed number. Written as `pages` is.
    files: AtomicU32,
    /// The faults of the slot's thread in spaces of the group, as far as the group has not counted them. Written as `pages` is.
    faults: plain::AtomicU32,
    /// The number of pages that the last charge took for the stock; 0 if only one could be had. Twice as many may gather when
    /// frames are freed. Used by the slot's thread alone.
    share: plain::AtomicU32,
    /// Odd while the slot's thread uses the stock outside a section. Written by the slot's thread.
    mark: AtomicUsize,
    /// The work that the slot's thread has put off until it holds nothing: bits of [`Debts`]. Used by the slot's thread alone.
    debts: plain::AtomicU8,
    /// Whether the last charge of the slot's thread was refused. Used by the slot's thread alone.
    is_refused: plain::AtomicBool,
}

impl Stock {
    /// Makes an empty stock of no group.
    pub fn new() -> Self {
        Self {
            group: AtomicU32::new(0),
            pages: AtomicU32::new(0),
            files: AtomicU32::new(0),
            faults: plain::AtomicU32::new(0),
            share: plain::AtomicU32::new(0),
            mark: AtomicUsize::new(0),
            debts: plain::AtomicU8::new(0),
            is_refused: plain::AtomicBool::new(false),
        }
    }

    /// Takes a page that `group` pays for, if there is one. For the slot's thread, in a section.
    #[inline]
    pub fn take(&self, group: GroupId) -> bool {
        // Acquire, partner: `take_back`, whose use of the pages comes before.
        if self.group.load(Ordering::Acquire) != group.get() {
            return false;
        }
        let Some(rest) = self.pages.load(Ordering::Relaxed).checked_sub(1) else { return false };
        self.pages.store(rest, Ordering::Relaxed);
        true
    }

    /// Charges `group` for a page, and for some more that stay here. For the slot's thread, in a section.
    ///
    /// # Errors
    /// The group that would go over max; nothing is charged.
    #[cold]
    #[inline(never)]
    pub fn charge(&self, groups: &Groups, group: GroupId) -> Result<Charged, GroupId> {
        if !self.change_to(groups, group) {
            return groups.charge(group, 1);
        }
        let charged = groups.charge_some(group);
        let share = charged.map_or(0, |charged| charged.pages as u32 - 1);
        // Of a group without room nothing gathers here.
        self.share.store(share, Ordering::Relaxed);
        self.pages.store(self.pages.load(Ordering::Relaxed) + share, Ordering::Relaxed);
        charged
    }

    /// Gives the pages back, and makes the stock one of `group`. Returns false if another thread is taking the pages.
    fn change_to(&self, groups: &Groups, group: GroupId) -> bool {
        let (old, new) = (self.group.load(Ordering::Acquire), group.get());
        if old == new || old & TAKEN != 0 && !mutant!("stock_changed_while_taken") {
            return old == new;
        }
        let contents = self.empty();
        self.share.store(0, Ordering::Relaxed);
        groups.add_stock(group);
        let is_changed = self.group.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        contents.give_to(groups, id(if mutant!("stock_given_to_the_next") { new } else { old }));
        groups.subtract_stock(if is_changed { id(old) } else { group });
        is_changed
    }

    /// Takes all out of the stock.
    fn empty(&self) -> Contents {
        let (pages, files) = (self.pages.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed));
        let faults = self.faults.load(Ordering::Relaxed);
        self.pages.store(0, Ordering::Relaxed);
        self.files.store(0, Ordering::Relaxed);
        self.faults.store(0, Ordering::Relaxed);
        Contents { pages: u64::from(pages), files: i64::from(files.cast_signed()), faults: u64::from(faults) }
    }

    /// Counts a fault that was served in a space of `group`, which is not the root. For the slot's thread, in a section.
    #[inline]
    pub fn count_fault(&self, groups: &Groups, group: GroupId) {
        let faults = self.faults.load(Ordering::Relaxed) + 1;
        if self.group.load(Ordering::Acquire) == group.get() && faults < MOST_FAULTS {
            self.faults.store(faults, Ordering::Relaxed);
        } else {
            self.count_first_fault(groups, group);
        }
    }

    /// Counts a fault as [`Stock::count_fault`] does, for the slot's thread in no section.
    pub fn count_fault_outside(&self, barrier: &impl Barrier, groups: &Groups, group: GroupId) {
        let mark = self.mark.load(Ordering::Relaxed);
        barrier.mark(&self.mark, mark + 1);
        self.count_fault(groups, group);
        self.mark.store(mark + 2, Ordering::Release);
    }

    /// Counts a fault for the group itself. Makes the stock one of this group, so that the next faults are counted here.
    #[cold]
    #[inline(never)]
    fn count_first_fault(&self, groups: &Groups, group: GroupId) {
        let mut faults = 1;
        // If another thread is about to take the stock, that thread has the count.
        if self.change_to(groups, group) {
            faults += self.faults.load(Ordering::Relaxed);
            self.faults.store(0, Ordering::Relaxed);
        }
        groups.note(group, Event::Fault, u64::from(faults));
    }

    /// Changes the count of pages of files by `change`, for the group of the stock. Returns the part that the caller counts for the
    /// group. For the slot's thread, in a section or between two steps of `mark`.
    fn keep_files(&self, change: i64) -> i64 {
        let files = i64::from(self.files.load(Ordering::Relaxed).cast_signed()) + change;
        let (kept, back) = if files.unsigned_abs() < MOST_STOCK { (files, 0) } else { (0, files) };
        self.files.store((kept as i32).cast_unsigned(), Ordering::Relaxed);
        back
    }

    /// Counts a page of a file for which `group` pays. For the slot's thread, in a section.
    pub fn count_file(&self, groups: &Groups, group: GroupId) {
        let is_mine = self.group.load(Ordering::Acquire) == group.get();
        groups.count_files(group, if is_mine { self.keep_files(1) } else { 1 });
    }

    /// Takes back a page that `group` pays for, after its frame was freed; `is_file` if it was counted as a file's. Returns the counts
    /// that the caller takes off the group's. For the slot's thread, in a section or not.
    pub fn put(&self, barrier: &impl Barrier, group: GroupId, is_file: bool) -> Back {
        let mark = self.mark.load(Ordering::Relaxed);
        barrier.mark(&self.mark, mark + 1);
        let is_mine = mutant!("freed_into_any_stock") || self.group.load(Ordering::Acquire) == group.get();
        let back = if is_mine {
            let share = self.share.load(Ordering::Relaxed);
            let pages = self.pages.load(Ordering::Relaxed) + 1;
            let back = if pages <= 2 * share { 0 } else { pages - share };
            self.pages.store(pages - back, Ordering::Relaxed);
            Back { pages: u64::from(back), files: if is_file { self.keep_files(-1) } else { 0 } }
        } else {
            Back { pages: 1, files: -i64::from(is_file) }
        };
        self.mark.store(mark + 2, Ordering::Release);
        back
    }

    /// Gives all pages back, for the slot's thread, which has ended or is about to.
    pub fn give_back(&self, barrier: &impl Barrier, groups: &Groups) {
        let mark = self.mark.load(Ordering::Relaxed);
        barrier.mark(&self.mark, mark + 1);
        self.change_to_none(groups);
        self.debts.store(0, Ordering::Relaxed);
        self.mark.store(mark + 2, Ordering::Release);
    }

    fn change_to_none(&self, groups: &Groups) {
        let old = self.group.load(Ordering::Acquire);
        if old == 0 || old & TAKEN != 0 {
            return;
        }
        let contents = self.empty();
        let is_changed = self.group.compare_exchange(old, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        contents.give_to(groups, id(old));
        if is_changed {
            groups.subtract_stock(id(old));
        }
    }

    /// Returns the group and the number of pages: a snapshot.
    pub fn seen(&self) -> (GroupId, u64) {
        (id(self.group.load(Ordering::Relaxed)), u64::from(self.pages.load(Ordering::Relaxed)))
    }

    /// Returns the count of pages of files that the group has not counted yet: a snapshot.
    pub fn seen_files(&self) -> i64 {
        i64::from(self.files.load(Ordering::Relaxed).cast_signed())
    }

    /// Returns the number of faults that the group has not counted yet: a snapshot.
    pub fn seen_faults(&self) -> u64 {
        u64::from(self.faults.load(Ordering::Relaxed))
    }

    /// Sets TAKEN, if `wanted` returns true for the group. Returns whether it did. The caller waits for sections and marks, and
    /// then calls [`Stock::take_back`]. One thread at a time does so.
    pub fn begin_taking(&self, wanted: impl FnOnce(GroupId) -> bool) -> bool {
        let group = self.group.load(Ordering::Relaxed);
        group != 0
            && group & TAKEN == 0
            && wanted(id(group))
            && self.group.compare_exchange(group, group | TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the word that is odd while the stock is in use outside a section.
    pub fn mark(&self) -> &AtomicUsize {
        &self.mark
    }

    /// Gives the pages back to their group, if TAKEN is set. Returns their number.
    pub fn take_back(&self, groups: &Groups) -> u64 {
        let group = self.group.load(Ordering::Relaxed);
        if group & TAKEN == 0 {
            return 0;
        }
        let contents = self.empty();
        let pages = contents.pages;
        contents.give_to(groups, id(group));
        groups.subtract_stock(id(group));
        // Release, partner: `take` and `put`.
        self.group.store(0, Ordering::Release);
        pages
    }

    /// Notes work that the slot's thread puts off.
    pub fn owe(&self, debts: Debts) {
        self.debts.store(self.debts.load(Ordering::Relaxed) | debts.bits(), Ordering::Relaxed);
    }

    /// Returns whether the slot's thread has put work off.
    #[inline]
    pub fn owes(&self) -> bool {
        self.debts.load(Ordering::Relaxed) != 0
    }

    /// Returns those of `debts` that the slot's thread has, and forgets them: the thread does that work now.
    pub fn take_debts(&self, debts: Debts) -> Debts {
        let all = self.debts.load(Ordering::Relaxed);
        self.debts.store(all & !debts.bits(), Ordering::Relaxed);
        Debts::from_bits_truncate(all) & debts
    }

    /// Notes that a charge of the slot's thread was refused.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Returns whether a charge of the slot's thread was refused since the last call.
    pub fn take_refusal(&self) -> bool {
        let was_refused = self.is_refused.load(Ordering::Relaxed);
        self.is_refused.store(false, Ordering::Relaxed);
        was_refused
    }
}

fn id(group: u32) -> GroupId {
    GroupId::new(group & !TAKEN)
}
