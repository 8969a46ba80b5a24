//! The queues of an engine: gathers the arrivals of all threads, asks the policy for victims, and takes reports.

use super::policy::{Demand, Look, ReclaimPolicy, Report};
use super::queue::{Claimed, Folios, Gathered};
use crate::host::Frame;
use crate::sync::Sections;

/// The number of frames that reclaim takes at a time.
pub(crate) const BATCH: usize = 64;

/// The number of full passes over the queues without a page taken, after which the policy has to offer the next page whatever
/// its uses. A page has up to 3 uses, and each pass takes one back. So each page that is not used all the time is offered in one
/// of 4 passes.
pub(crate) const PASSES: u64 = 4;

/// The number of looks in one call after which it returns what it has. It bounds the time under the lock.
const MANY_LOOKS: u64 = 1024;

/// The policy's queues, with the counts of its use. The engine keeps it under a lock that no fault takes.
#[derive(Debug, Default)]
pub(crate) struct Ageing<P> {
    policy: P,
    /// The number of looks since arrivals were gathered last.
    looks_since_gathering: u64,
    /// The number of looks since reclaim took a page last.
    looks_since_progress: u64,
    /// The number of frames that were offered and not reported yet. They are in no queue.
    offered: u64,
}

impl<P: ReclaimPolicy> Ageing<P> {
    /// Makes the queues of a policy, which are empty.
    pub fn new(policy: P) -> Self {
        Self { policy, looks_since_gathering: 0, looks_since_progress: 0, offered: 0 }
    }

    /// Returns the number of frames in the queues. Arrivals that are not gathered yet are not counted.
    pub fn length(&self) -> u64 {
        self.policy.length()
    }

    /// Returns the pages that are due: after [`PASSES`] passes without progress, any page.
    pub fn demand(&self) -> Demand {
        // A pass is over all pages, with those that are on trial.
        let pass = (self.length() + self.offered).max(1);
        let is_in_need = self.looks_since_progress >= PASSES * pass;
        if is_in_need { Demand::Any } else { Demand::Old }
    }

    /// Fills `batch` with the next frames to try. Returns their number, which is 0 only if there are none, and the demand under
    /// which the last one was offered.
    pub fn next_victims(
        &mut self,
        folios: &impl Folios,
        sections: &Sections,
        batch: &mut [Frame; BATCH],
    ) -> (usize, Demand) {
        // Gathering looks at each slot, so it is not done for each batch.
        let mut is_gathered = self.looks_since_gathering >= (self.length() / 32).max(BATCH as u64);
        if is_gathered {
            self.gather(folios, sections);
        }
        let (mut count, mut looks, mut demand) = (0, 0, self.demand());
        while count < BATCH && (count == 0 || looks < MANY_LOOKS) {
            demand = self.demand();
            looks += 1;
            self.looks_since_gathering += 1;
            self.looks_since_progress += 1;
            match self.policy.look(folios, demand) {
                Look::Offer(frame) => {
                    batch[count] = frame;
                    count += 1;
                    self.offered += 1;
                }
                Look::PassOver => {}
                Look::Nothing if is_gathered => break,
                Look::Nothing => {
                    self.gather(folios, sections);
                    is_gathered = true;
                }
            }
        }
        (count, demand)
    }

    /// Takes the result of reclaim's try of `frame`, which was offered.
    pub fn report(&mut self, folios: &impl Folios, frame: Frame, report: Report) {
        // A caller may report a page that it has chosen itself.
        self.offered = self.offered.saturating_sub(1);
        match report {
            Report::Taken | Report::Freed => self.looks_since_progress = 0,
            Report::Young => folios.folio(frame).add_use(),
            Report::Busy | Report::Shared => {}
        }
        // If a page has begun in the frame since it was offered, a fault may have claimed it.
        if report != Report::Freed
            && let Some((frame, origin)) = Claimed::claim(folios, frame)
        {
            self.policy.reported(folios, frame, origin, report);
        }
    }

    /// Puts the arrivals of all slots into the policy's queues, also of slots whose threads have ended.
    fn gather(&mut self, folios: &impl Folios, sections: &Sections) {
        self.looks_since_gathering = 0;
        sections.each_arrivals(|arrivals| {
            let mut gathered = Gathered::from(arrivals, folios);
            while let Some((frame, distance)) = gathered.next(folios) {
                self.policy.arrived(folios, frame, distance);
            }
        });
    }
}
