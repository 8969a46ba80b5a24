//! Making room in a group that is at max, and the work of a thread whose group is over high. The thread holds nothing meanwhile.

use super::LimitConfig;
use super::group::Event;
use super::stock::Debts;
use crate::engine::{Dying, Engine};
use crate::host::{Clock, GroupId, Host};
use crate::reclaim::{Kinds, Reclaimed};
use crate::stats::Counter;
use crate::sync::Park;
use crate::sync::plain::Ordering;
use alloc::sync::Arc;

/// The greatest number of pages that are reclaimed at once.
const FEW: u64 = 32;

/// The longest sleep of a thread that is over high, in nanoseconds.
const LONGEST_SLEEP: u64 = 10_000_000;

/// The number of batches that a change of the limits reclaims without freeing a page, before it leaves the rest to faults.
const FRUITLESS: u32 = 64;

/// The number of looks for room in a group before a fault gives up. The last [`SLEEPS`] of them sleep, about a millisecond together: a small
/// group may have all its pages in the hands of threads that are preempted, such as one that unmaps them.
const LOOKS_AT_MAX: u32 = if cfg!(loom) { 2 } else { 64 };
const SLEEPS: u32 = 16;

/// The number of looks after which [`Park::wait_for_memory`] sleeps.
const LATE: u32 = 80;

/// Returns the number of pages that are reclaimed at once in a group with this limit.
fn few(limit: u64) -> u64 {
    (limit / 8).clamp(1, FEW)
}

/// The outcome of reclaim for a thread that found no frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shortage {
    pub reclaimed: Reclaimed,
    /// The group that is at max. `None`: the machine has no frame.
    pub full: Option<GroupId>,
}

/// Returns the sleep, in nanoseconds, of a thread whose group is so many pages over high. From an eighth over high on it is the longest.
pub(super) fn sleep_over(high: u64, excess: u64) -> u64 {
    let part = u128::from(LONGEST_SLEEP) * 8 * u128::from(excess) / u128::from(high.max(1));
    u64::try_from(part).map_or(LONGEST_SLEEP, |part| part.min(LONGEST_SLEEP))
}

impl<H: Host> Engine<H> {
    /// Makes room after [`Engine::take_frame`] found no frame for `group`. Reclaims, or waits for a short time until other threads may
    /// have freed memory. `look` counts the calls since a call has freed a page.
    ///
    /// Another thread may take each frame that this call frees. That is no reason to give up: pages can be taken still.
    ///
    /// `pages`: the number of pages that the caller needs at the same time. It is 1, but for a fork that copies pages.
    ///
    /// # Errors
    /// The group that is full, after enough calls; the root if the machine has no frame. See [`Engine::end_a_victim`].
    pub(crate) fn make_room(
        self: &Arc<Self>,
        group: GroupId,
        pages: u64,
        look: &mut u32,
    ) -> Result<(), GroupId> {
        *look += 1;
        let shortage = self.reclaim_for(group, pages);
        self.look_again(shortage, look)
    }

    /// Waits for a short time if reclaim has freed nothing. Not inlined, as [`Engine::look_beside`].
    ///
    /// # Errors
    /// Of [`Engine::make_room`].
    #[inline(never)]
    fn look_again(&self, shortage: Shortage, look: &mut u32) -> Result<(), GroupId> {
        let Shortage { reclaimed, full } = shortage;
        if reclaimed.freed != 0 {
            *look = 0;
            return Ok(());
        }
        let sleeps = full.is_some() && *look + SLEEPS > LOOKS_AT_MAX;
        self.wait_for_memory(if sleeps { LATE + *look } else { *look });
        if self.looks_for_room(*look, reclaimed.is_delayed) || full.is_some() && *look < LOOKS_AT_MAX {
            return Ok(());
        }
        self.note_out_of_memory(full);
        Err(full.unwrap_or(GroupId::ROOT))
    }

    /// Returns whether the machine has [`FEW`] free frames at least: then a thread that found no memory lacks something else.
    pub(crate) fn has_frames(&self) -> bool {
        let usage = self.frame_usage();
        usage.limit.saturating_sub(usage.used) >= FEW
    }

    /// Notes that a fault or a call has found no room, and no page of the group `full` could be taken. `None`: the machine has no frame.
    pub(crate) fn note_out_of_memory(&self, full: Option<GroupId>) {
        full.into_iter().for_each(|full| self.sections().groups().note(full, Event::OutOfMemory, 1));
    }

    /// Reclaims pages after [`Engine::take_frame`] found no frame for `group`. If a group is at max, the pages are its own and those of
    /// the groups below it: no other group gives one. `pages` is as for [`Engine::make_room`].
    pub(crate) fn reclaim_for(self: &Arc<Self>, group: GroupId, pages: u64) -> Shortage {
        // Otherwise the machine has no frame, or the allocator no memory for a table.
        if group == GroupId::ROOT || !self.enter().stock().take_refusal() {
            let wanted = pages.max(FEW);
            return Shortage {
                reclaimed: self.reclaim_directly(|| self.take_pages(GroupId::ROOT, wanted, Kinds::All)),
                full: None,
            };
        }
        let groups = self.sections().groups();
        let Some(full) = groups.full(group, pages) else {
            // Another thread has made room meanwhile.
            return Shortage { reclaimed: Reclaimed { freed: 1, ..Reclaimed::default() }, full: None };
        };
        let (usage, max) = groups.get(full).map_or((0, FEW), |group| (group.usage(), group.max()));
        let wanted = usage.saturating_add(pages).saturating_sub(max).max(few(max));
        let mut reclaimed = self.reclaim_directly(|| self.take_pages(full, wanted, Kinds::All));
        self.look_beside(&mut reclaimed, group, full, pages);
        Shortage { reclaimed, full: Some(full) }
    }

    /// Looks for pages of the group `full` that are in the hands of other threads, after a try to reclaim some for `group`. Not inlined, so
    /// that its frame is off the stack while pages are reclaimed.
    #[inline(never)]
    fn look_beside(&self, reclaimed: &mut Reclaimed, group: GroupId, full: GroupId, pages: u64) {
        let groups = self.sections().groups();
        if reclaimed.freed == 0 {
            match self.take_stocks(|group| groups.is_within(group, full)) {
                Some(taken) => reclaimed.freed = taken,
                None => reclaimed.is_delayed |= !mutant!("stocks_are_not_awaited"),
            }
        }
        if reclaimed.freed == 0 && groups.full(group, pages).is_none() {
            // Another thread has made room meanwhile.
            reclaimed.freed = 1;
        }
        // A call that has taken pages out of their entries, and has not invalidated yet, is about to free them.
        reclaimed.is_delayed |= self.has_stale();
    }

    /// Takes the stocks of other threads back, of the groups that `wanted` accepts. Returns the number of pages, or `None` if another thread
    /// takes stocks. It has them after a grace period.
    fn take_stocks(&self, wanted: impl Fn(GroupId) -> bool) -> Option<u64> {
        let is_taking = &self.takes_stocks;
        if is_taking.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut taken = 0;
        self.timed(Counter::GraceWait, |wait| {
            taken = self.sections().take_stocks(self.host().barrier(), wanted, wait);
        });
        is_taking.store(false, Ordering::Release);
        Some(taken)
    }

    /// Takes the stocks of groups back that have ended.
    pub(super) fn take_stocks_of_ended(&self) {
        let groups = self.sections().groups();
        let _ = self.take_stocks(|group| groups.is_ended(group));
    }

    /// Reclaims until `group` is not over max, or until no page of it can be taken.
    pub(super) fn reclaim_down_to_max(self: &Arc<Self>, group: GroupId) {
        let groups = self.sections().groups();
        let Some(counts) = groups.get(group) else { return };
        let (mut fruitless, mut has_stocks) = (0, true);
        while counts.usage() > counts.max() && fruitless < FRUITLESS {
            if core::mem::take(&mut has_stocks) {
                self.take_stocks(|other| groups.is_within(other, group));
                continue;
            }
            let over = counts.usage().saturating_sub(counts.max());
            let reclaimed = self.take_pages(group, over.clamp(1, FEW), Kinds::All);
            if reclaimed.freed == 0 {
                self.wait_for_memory(fruitless);
                fruitless += 1;
            } else {
                fruitless = 0;
            }
        }
    }

    /// Returns whether this thread has put off work: see [`Engine::pay_debts`].
    pub(crate) fn owes(&self) -> bool {
        let section = self.enter();
        section.stock().owes()
    }

    /// Does the work that this thread has put off until now, when it holds nothing and is about to serve a fault. `group` is that of the
    /// space that `dying` belongs to. May sleep; the end of the space ends the sleep.
    #[cold]
    pub(crate) fn pay_debts(self: &Arc<Self>, group: GroupId, dying: &Dying) {
        let (debts, owing) = {
            let section = self.enter();
            (section.stock().take_debts(Debts::all()), section.stock().seen().0)
        };
        if debts.contains(Debts::CALL) {
            self.wake_background();
        }
        if debts.contains(Debts::DIRTY) {
            self.pay_for_dirty(Some(dying));
        }
        if debts.contains(Debts::HIGH) {
            // The last fault may have been in a space of another group. The stock is of that group.
            self.pay_for_high(if owing == GroupId::ROOT { group } else { owing }, dying);
        }
    }

    /// Reclaims some pages of the first group, from `group` up, that is over high. If none can be taken, sleeps, 10 ms at most: the more
    /// pages there are over high, the longer. The end of the space that `dying` belongs to ends the sleep.
    fn pay_for_high(self: &Arc<Self>, group: GroupId, dying: &Dying) {
        let groups = self.sections().groups();
        let Some((over, counts)) = groups.over_high(group) else { return };
        let high = counts.high();
        if self.reclaim_directly(|| self.take_pages(over, few(high), Kinds::All)).freed != 0 {
            return;
        }
        let excess = counts.usage().saturating_sub(high);
        let sleep = sleep_over(high, excess);
        let (start, mut look) = (self.host().clock().now_ns(), 0);
        let is_over = || self.host().clock().now_ns().saturating_sub(start) >= sleep;
        while !is_over() && !dying.is_set() && counts.usage() > counts.high() {
            self.wait_for_memory(look);
            look += 1;
        }
        self.end_wait(Counter::MemoryWait, start);
    }
}

const _: () = assert!(LimitConfig::MINIMUM >= 2, "a fault needs two frames at a time");
