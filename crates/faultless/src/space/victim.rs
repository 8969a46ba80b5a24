//! A space, as those see it who go through all spaces: mainly the choice of a victim (`limit/victim.rs`).

use super::{AddressSpace, Space, SpaceFlags};
use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::engine::{ListedSpace, Tally};
use crate::host::{EntryKind, GroupId, Host, PageTable};
use crate::limit::VictimBias;
use crate::space::calls::resident::FEW;
use crate::sync::plain::Ordering;

impl SpaceFlags {
    pub(in crate::space) fn bias(&self) -> VictimBias {
        VictimBias::from_bits(self.bias.load(Ordering::Relaxed))
    }

    pub(in crate::space) fn set_bias(&self, bias: VictimBias) {
        self.bias.store(bias.to_bits(), Ordering::Relaxed);
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Returns the number of the space, by which a [`Candidate`](crate::Candidate) names it. No other space of the engine has or had
    /// this number. Waits for nothing.
    pub fn number(&self) -> u64 {
        self.0.id
    }

    /// Returns the bias of the space for the choice of a victim: see [`AddressSpace::set_victim_bias`]. It is 0 at first.
    pub fn victim_bias(&self) -> VictimBias {
        self.0.space_flags.bias()
    }

    /// Sets the bias of the space for the choice of a victim (oom_score_adj).
    ///
    /// Call it to protect the space, or to have it ended before others, if memory is short. It has an effect only after
    /// [`Engine::end_victims`](crate::Engine::end_victims), and if the policy uses it. Children of later forks have the bias too.
    /// Waits for nothing, and cannot fail.
    pub fn set_victim_bias(&self, bias: VictimBias) {
        self.0.space_flags.set_bias(bias);
    }
}

#[cfg(any(test, feature = "audit"))]
impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Counts the pages in the tables, in memory and in swap space, whether or not there are mappings. For tests.
    pub fn table_pages(&self) -> (u64, u64) {
        ListedSpace::pages(&*self.0)
    }

    /// Does what a thread of this space does that has found no memory in the group of `full`, and nothing to reclaim. Returns whether
    /// it would try again. For tests.
    pub fn find_a_victim(&self, full: &crate::MemoryLimit<H>) -> bool {
        self.0.engine.end_a_victim((full.group(), 1), &self.0.space_flags.dying, &mut 0)
    }
}

impl<H: Host, D: LockingDesign> ListedSpace for Space<H, D> {
    fn payer(&self) -> GroupId {
        self.group()
    }

    fn pages(&self) -> (u64, u64) {
        let (mut resident, mut swapped, mut rest) = (0, 0, Some(self.whole()));
        while let Some(part) = rest {
            let section = self.engine.enter();
            let Some(start) = self.table.next_leaf(&section, part) else { break };
            let few = FEW.min(H::Table::LEAF_PAGES);
            let end = PageNumber::new(start.align_down(few).get() + few).min(part.end());
            if let Some(leaf) = self.table.leaf(&section, start) {
                for page in (start.get()..end.get()).map(PageNumber::new) {
                    match self.table.load(leaf, page).kind() {
                        EntryKind::Page(frame) if frame == self.engine.zero_frame() => {}
                        EntryKind::Page(_) | EntryKind::Kept(_) => resident += 1,
                        EntryKind::Swapped(..) => swapped += 1,
                        EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard | EntryKind::Gone(_) => {}
                    }
                }
            }
            rest = PageRange::new(end, part.end());
        }
        (resident, swapped)
    }

    fn bias(&self) -> VictimBias {
        self.space_flags.bias()
    }

    fn is_dying(&self) -> bool {
        self.space_flags.dying.is_set()
    }

    fn end(&self) -> u64 {
        self.reap()
    }

    fn give_homes(&self, start: PageNumber, tally: &mut Tally) -> Option<PageNumber> {
        self.give_homes_from(start, tally)
    }
}
