//! A policy for comparison: four generations. A form of MGLRU, the multi-generational LRU of Linux
//! (Documentation/mm/multigen_lru.rst), restated from its description.
//!
//! ```text
//!  new, young, back soon ─► youngest ┄ second ┄ third ┄ oldest ─► offered
//!                                        ▲                │
//!                           back late ───┴──── busy ──────┘
//! ```
//! Each generation is a queue. Pages are offered from the oldest one. When it is empty, it becomes the youngest, and all others
//! are one older. A page whose accessed bit was set goes to the youngest generation, whatever its count of uses.
//!
//! With this policy reclaim looks at the 64 entries around one whose page is in use (`around.rs`), and counts a use for each page in
//! use that it finds. Such a page goes to the youngest generation without a walk to its entry.
//!
//! MGLRU also walks the tables of whole processes. That is not here, nor are the tiers of file pages.

use super::policy::{Demand, Look, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Part, Queue, sort_all};
use crate::host::Frame;

/// The number of generations. A queue's number has two bits.
const GENERATIONS: usize = 4;

/// The policy: see the module.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    queues: [Queue; GENERATIONS],
    /// The place of the oldest generation in `queues`. Younger ones follow, round and round.
    oldest: usize,
}

impl Generations {
    /// Returns the generation that is `age` older than the youngest.
    fn generation(&mut self, age: usize) -> &mut Queue {
        &mut self.queues[(self.oldest + GENERATIONS - 1 - age) % GENERATIONS]
    }
}

impl ReclaimPolicy for Generations {
    fn arrived(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance) {
        // A page would still be here if it had been among the young half.
        let is_late = distance.evictions().is_some_and(|evictions| evictions > self.length() / 2);
        self.generation(usize::from(is_late)).push(folios, frame);
    }

    fn look(&mut self, folios: &impl Folios, demand: Demand) -> Look {
        if self.length() == 0 {
            return Look::Nothing;
        }
        let oldest = &mut self.queues[self.oldest];
        let Some(taken) = oldest.take(folios, self.oldest as u64) else {
            self.oldest = (self.oldest + 1) % GENERATIONS;
            return Look::PassOver;
        };
        match taken.uses {
            Some(uses) if uses == 0 || demand == Demand::Any => Look::Offer(taken.frame),
            Some(_) => {
                // Otherwise a fault has put the frame into a stack, in its next life.
                if let Some((frame, _)) = Claimed::claim(folios, taken.frame) {
                    folios.folio(taken.frame).forget_uses();
                    self.generation(0).push(folios, frame);
                }
                Look::PassOver
            }
            None => Look::PassOver,
        }
    }

    fn reported(&mut self, folios: &impl Folios, frame: Claimed, origin: u64, report: Report) {
        let _ = origin;
        folios.folio(frame.frame()).forget_uses();
        let age = match report {
            Report::Young => 0,
            Report::Shared => 1,
            Report::Busy => GENERATIONS - 2,
            // It is free at the next look, or in use again.
            Report::Taken | Report::Freed => GENERATIONS - 1,
        };
        self.generation(age).push(folios, frame);
    }

    fn sort(&mut self, folios: &impl Folios, part: Part, keeps: impl Fn(Frame) -> bool, strays: &mut Queue) {
        sort_all(&mut self.queues, folios, part, keeps, strays);
    }

    fn length(&self) -> u64 {
        self.queues.iter().map(Queue::length).sum()
    }
}
