//! The work of the background worker: a reserve of free frames, and groups below their high limits. Direct reclaim, which is the
//! exception, is here too.

use crate::engine::Engine;
use crate::host::{GroupId, Host, Slots};
use crate::limit::Debts;
use crate::reclaim::Reclaimed;
use crate::stats::Counter;
use alloc::sync::Arc;

/// The number of pages that are reclaimed between two looks at the number of free frames.
const STEP: u64 = 32;

/// Returns the number of steps that may free nothing before the worker gives up, if there are this many pages. A step looks at up to
/// 1,024 pages. In a group with fewer pages it looks at fewer. A page that was used needs two looks.
fn patience(pages: u64) -> u64 {
    2 + pages / 512
}

impl<H: Host> Engine<H> {
    /// Returns the low and the high mark of free frames.
    pub(super) fn marks(&self) -> (u64, u64) {
        self.limits().reserve.marks(self.frame_usage().limit)
    }

    fn free_count(&self) -> u64 {
        let usage = self.frame_usage();
        usage.limit.saturating_sub(usage.used)
    }

    /// Reclaims up to the high mark, if fewer frames are free than the low mark. Gives up if it has looked at all pages and could
    /// take none. From then on each call is one step, until a step frees something.
    pub(super) fn keep_reserve(self: &Arc<Self>, ends: &impl Fn() -> bool) {
        let (low, high) = self.marks();
        let mut free = self.free_count();
        if free >= low || mutant!("no_reserve") {
            return;
        }
        let mut patience = if self.background.is_hopeless() { 1 } else { patience(self.frame_usage().limit) };
        // Frames that are free when the writes that were started have ended.
        let mut written = 0;
        while free + written < high && patience > 0 && !ends() {
            let wanted = (high - free - written).min(STEP);
            let step = self.reclaim_behind(|| self.take_few(GroupId::ROOT, wanted));
            let is_fruitless = step.freed + step.started == 0;
            patience -= u64::from(is_fruitless);
            written += step.started;
            free = self.free_count();
            // A step that frees something ends that state, and one that does not makes it only at the end of the patience.
            if !is_fruitless || patience == 0 {
                self.background.set_hopeless(is_fruitless);
            }
        }
    }

    /// Reclaims in each group that is near its high limit, or over it, down to the group's low mark.
    pub(super) fn relieve_groups(self: &Arc<Self>, ends: &impl Fn() -> bool) {
        let groups = self.sections().groups();
        groups.each_near_high(|group, counts| {
            let mut written = 0;
            let mut patience = if counts.is_hopeless() { 1 } else { patience(counts.usage()) };
            while patience > 0 && !ends() {
                let over = counts.usage().saturating_sub(counts.low());
                if over <= written {
                    break;
                }
                let step = self.reclaim_behind(|| self.take_few(group, (over - written).min(STEP)));
                let is_fruitless = step.freed + step.started == 0;
                patience -= u64::from(is_fruitless);
                written += step.started;
                if !is_fruitless || patience == 0 {
                    counts.set_hopeless(is_fruitless);
                }
            }
        });
    }

    /// Counts the frames that the background worker frees.
    fn reclaim_behind(&self, reclaim: impl FnOnce() -> Reclaimed) -> Reclaimed {
        let reclaimed = reclaim();
        self.counters().add(Counter::ReclaimedInBackground, reclaimed.freed);
        reclaimed
    }

    /// Calls the worker, runs `reclaim`, by which this thread makes room for itself, and counts the frames that it frees.
    pub(crate) fn reclaim_directly(&self, reclaim: impl FnOnce() -> Reclaimed) -> Reclaimed {
        self.wake_background();
        let reclaimed = reclaim();
        self.counters().add(Counter::ReclaimedDirectly, reclaimed.freed);
        reclaimed
    }

    /// Calls the worker if there is work for it by the last allocation or store of this thread. For a caller that has announced nothing.
    pub(crate) fn call_if_owed(&self) {
        let debts = {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().stock(slot).take_debts(Debts::CALL)
        };
        if !debts.is_empty() {
            self.wake_background();
        }
    }
}
