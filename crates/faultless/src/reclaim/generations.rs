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
//! MGLRU walks the tables of processes and looks at the entries around a page. Both find more accessed bits at a time. A policy
//! knows no tables, so neither is here. The tiers of file pages are left out too.

use super::policy::{Demand, Look, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Queue};
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
        let _ = demand;
        if self.length() == 0 {
            return Look::Nothing;
        }
        let oldest = &mut self.queues[self.oldest];
        match oldest.take(folios, self.oldest as u64) {
            Some(taken) if taken.uses.is_some() => Look::Offer(taken.frame),
            Some(_) => Look::PassOver,
            None => {
                self.oldest = (self.oldest + 1) % GENERATIONS;
                Look::PassOver
            }
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

    fn sort(
        &mut self,
        folios: &impl Folios,
        mut count: u64,
        keeps: impl Fn(Frame) -> bool,
        strays: &mut Queue,
    ) {
        for queue in &mut self.queues {
            count -= queue.sort(folios, count, &keeps, strays);
        }
    }

    fn length(&self) -> u64 {
        self.queues.iter().map(Queue::length).sum()
    }
}
