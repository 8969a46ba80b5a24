//! Making room in a group that is at max, and the price of being over high. The thread holds nothing meanwhile.

use super::LimitConfig;
use super::group::Event;
use crate::engine::{Dying, Engine};
use crate::host::{Clock, GroupId, Host};
use crate::reclaim::Kinds;
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

/// Returns the number of pages that are reclaimed at once in a group with this limit.
fn few(limit: u64) -> u64 {
    (limit / 8).clamp(1, FEW)
}

impl<H: Host> Engine<H> {
    /// Makes room after [`Engine::take_frame`] found no frame for `group`. `look` counts the calls since one of them has freed a page.
    /// Returns `false` if there were enough.
    pub(crate) fn make_room_for(self: &Arc<Self>, group: GroupId, look: &mut u32) -> bool {
        // Otherwise the machine has no frame, or the allocator no memory for a table.
        if group != GroupId::ROOT && self.enter().stock().take_refusal() {
            return match self.sections().groups().full(group) {
                Some(full) => self.make_room_under(full, look),
                // Another thread has made room meanwhile.
                None => true,
            };
        }
        self.make_room(GroupId::ROOT, look)
    }

    /// Makes room in the group `full` itself and those below it. No other group gives a page.
    fn make_room_under(self: &Arc<Self>, full: GroupId, look: &mut u32) -> bool {
        *look += 1;
        let groups = self.sections().groups();
        let max = groups.get(full).map_or(FEW, super::Group::max);
        let reclaimed = self.take_pages(full, few(max), Kinds::All);
        if reclaimed.freed != 0 || self.take_stocks(|group| groups.is_within(group, full)) != 0 {
            *look = 0;
            return true;
        }
        self.wait_for_memory(*look);
        let goes_on = self.looks_for_room(*look, reclaimed.is_delayed);
        if !goes_on {
            groups.note(full, Event::OutOfMemory, 1);
        }
        goes_on
    }

    /// Takes the stocks of other threads back, of the groups that `wanted` accepts. Returns the number of pages, which is 0 if another
    /// thread is about to take them.
    fn take_stocks(&self, wanted: impl Fn(GroupId) -> bool) -> u64 {
        let is_taking = &self.takes_stocks;
        if is_taking.swap(true, Ordering::Acquire) {
            return 0;
        }
        let mut taken = 0;
        self.timed(Counter::GraceWait, |wait| {
            taken = self.sections().take_stocks(self.host().barrier(), wanted, wait);
        });
        is_taking.store(false, Ordering::Release);
        taken
    }

    /// Takes the stocks of groups back that have ended.
    pub(super) fn take_stocks_of_ended(&self) {
        let groups = self.sections().groups();
        self.take_stocks(|group| groups.is_ended(group));
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

    /// Returns whether this thread has charged a page over high, and has not paid for that.
    pub(crate) fn owes(&self) -> bool {
        let section = self.enter();
        section.stock().owes()
    }

    /// Reclaims some pages of the group over high, from `group` up. If none can be taken, sleeps: up to 10 ms, the longer the more pages
    /// there are over high. The end of the space that `dying` belongs to ends the sleep.
    #[cold]
    pub(crate) fn pay_for_high(self: &Arc<Self>, group: GroupId, dying: &Dying) {
        self.enter().stock().forgive();
        let groups = self.sections().groups();
        let Some((over, counts)) = groups.over_high(group) else { return };
        let high = counts.high();
        if self.take_pages(over, few(high), Kinds::All).freed != 0 {
            return;
        }
        let excess = counts.usage().saturating_sub(high);
        // An eighth over high is as much as can be.
        let sleep = (LONGEST_SLEEP / high.max(1)).saturating_mul(8 * excess).min(LONGEST_SLEEP);
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
