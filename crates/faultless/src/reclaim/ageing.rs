//! The queues of one class of pages, those of one group and one kind. Asks the policy for victims, and takes reports.

use super::policy::{Demand, Look, ReclaimPolicy};
use super::queue::{Claimed, Folios, Queue};
use crate::frame::Folio;
use crate::host::Frame;

/// The number of frames that reclaim takes at a time.
pub(crate) const BATCH: usize = 64;

/// The number of full passes over the queues without a page taken, after which the policy has to offer the next page whatever
/// its uses. A page has up to 3 uses, and each pass takes one back. So each page that is not used all the time is offered in one
/// of 4 passes.
pub(crate) const PASSES: u64 = 4;

/// The number of looks in one call after which it returns what it has. It bounds the time under the lock.
pub(super) const MANY_LOOKS: u64 = 1024;

/// The policy's queues of one class of pages, with the counts of its use.
#[derive(Debug, Default)]
pub(crate) struct Ageing<P> {
    pub(super) policy: P,
    /// The number of looks since reclaim took a page last.
    looks_since_progress: u64,
    /// The number of frames that were offered and not reported yet. They are in no queue.
    offered: u64,
}

/// The frames that a class offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The number of frames, which is 0 only if there are none.
    pub count: usize,
    /// The number of looks.
    pub looks: u64,
    /// The demand under which the last one was offered.
    pub demand: Demand,
}

impl<P: ReclaimPolicy> Ageing<P> {
    /// Makes the queues of a policy, which are empty.
    pub fn new(policy: P) -> Self {
        Self { policy, looks_since_progress: 0, offered: 0 }
    }

    /// Returns the number of frames in the queues. Arrivals that are not gathered yet are not counted.
    pub fn length(&self) -> u64 {
        self.policy.length()
    }

    /// Returns the pages that are due: after [`PASSES`] passes without progress, any page.
    pub fn demand(&self) -> Demand {
        if self.looks_since_progress >= self.need() { Demand::Any } else { Demand::Old }
    }

    /// Returns the number of looks without progress after which any page is due. A pass is over all pages, with those on trial.
    fn need(&self) -> u64 {
        PASSES * (self.length() + self.offered).max(1)
    }

    /// Fills `batch` with the next frames. Those that are of another class by now go to `strays`.
    pub fn offer(
        &mut self,
        folios: &impl Folios,
        is_of_class: impl Fn(&Folio) -> bool,
        batch: &mut [Frame],
        strays: &mut Queue,
    ) -> Offered {
        let mut offered = Offered { count: 0, looks: 0, demand: self.demand() };
        // The pass has as many looks until the end of this call. Frames that are dropped make it longer, by less than a pass.
        let need = self.need();
        while offered.count < batch.len() && (offered.count == 0 || offered.looks < MANY_LOOKS) {
            if self.looks_since_progress >= need {
                offered.demand = Demand::Any;
            }
            offered.looks += 1;
            self.looks_since_progress += 1;
            match self.policy.look(folios, offered.demand) {
                Look::Offer(frame) if !is_of_class(folios.folio(frame)) => {
                    // Otherwise a fault has put the frame into a stack, in its next life.
                    if let Some((frame, _)) = Claimed::claim(folios, frame) {
                        strays.push(folios, frame);
                    }
                }
                Look::Offer(frame) => {
                    batch[offered.count] = frame;
                    offered.count += 1;
                    self.offered += 1;
                }
                Look::PassOver => {}
                Look::Nothing => break,
            }
        }
        offered
    }

    /// Notes that reclaim has tried and freed `count` pages.
    pub fn freed(&mut self, count: u64) {
        self.offered = self.offered.saturating_sub(count);
        if count != 0 {
            self.looks_since_progress = 0;
        }
    }

    /// Notes that reclaim has tried a page. `has_taken`: it has taken the page.
    pub fn tried(&mut self, has_taken: bool) {
        // A caller may report a page that it has chosen itself.
        self.offered = self.offered.saturating_sub(1);
        if has_taken {
            self.looks_since_progress = 0;
        }
    }
}
