//! The default policy: a small queue, a main queue, and the memory of recent evictions. A form of S3-FIFO (Yang, Zhang, Qiu,
//! Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! ```text
//!  new ─────────────► small (10 %) ── used twice ──► main (90 %) ◄── back within its length
//!                      │  ▲                           │  ▲
//!                      │  └─ young once               │  └─ used: one use less
//!                      ▼                              ▼
//!                   offered                        offered
//! ```
//! A page that is touched once leaves by the small queue, so a scan does not displace the pages in the main queue. A hit changes
//! no queue. Differences from the paper:
//!
//! * Uses are not counted at each access. A visit counts one if the accessed bit is set. A page that is young at its first visit goes
//!   through the small queue once more, and to the main queue at the second one. The first touch sets the bit too; it is cleared when
//!   a few pages arrive, and counts as a use when many arrive at once.
//! * The queue of ghosts is a number in the page's slot, the time of its eviction. A page that comes back is a ghost if fewer
//!   pages were evicted meanwhile than the main queue has place for. (Its present length would not do: an empty main queue would
//!   stay empty under a loop that fits beside a scan.)

use super::policy::{Demand, Look, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Part, Queue, Taken, sort_all};
use crate::host::Frame;

/// The number of the small queue.
const SMALL: u64 = 0;
/// The number of the main queue.
const MAIN: u64 = 1;

/// The part of the small queue in all frames: one of so many.
const SMALL_PART: u64 = 10;

/// The uses from which on a page goes from the small queue to the main queue.
const USED: u64 = 2;

/// The policy: see the module.
#[derive(Debug, Default)]
pub(crate) struct SmallMain {
    small: Queue,
    main: Queue,
}

impl SmallMain {
    fn takes_small(&self) -> bool {
        self.main.length() == 0
            || self.small.length() > 0 && self.small.length() * SMALL_PART >= self.length()
    }

    fn keep(&mut self, folios: &impl Folios, taken: Taken, change: impl FnOnce()) -> Look {
        // Otherwise a fault has put the frame into a stack, in its next life.
        if let Some((frame, _)) = Claimed::claim(folios, taken.frame) {
            change();
            self.main.push(folios, frame);
        }
        Look::PassOver
    }
}

impl ReclaimPolicy for SmallMain {
    fn arrived(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance) {
        let place_in_main = self.length() - self.length() / SMALL_PART;
        let is_ghost = distance.evictions().is_some_and(|evictions| evictions < place_in_main);
        let queue = if is_ghost { &mut self.main } else { &mut self.small };
        queue.push(folios, frame);
    }

    fn look(&mut self, folios: &impl Folios, demand: Demand) -> Look {
        let (origin, queue) =
            if self.takes_small() { (SMALL, &mut self.small) } else { (MAIN, &mut self.main) };
        let Some(taken) = queue.take(folios, origin) else { return Look::Nothing };
        let Some(uses) = taken.uses else { return Look::PassOver };
        let folio = folios.folio(taken.frame);
        match origin {
            _ if demand == Demand::Any => Look::Offer(taken.frame),
            SMALL if uses >= USED => self.keep(folios, taken, || folio.forget_uses()),
            MAIN if uses > 0 => self.keep(folios, taken, || folio.take_use()),
            _ => Look::Offer(taken.frame),
        }
    }

    fn reported(&mut self, folios: &impl Folios, frame: Claimed, origin: u64, report: Report) {
        let folio = folios.folio(frame.frame());
        let goes_to_main = match report {
            // It is free at the next look, or in use again.
            Report::Taken | Report::Freed => {
                folio.forget_uses();
                false
            }
            Report::Young if origin == SMALL => {
                let is_used = folio.uses().is_some_and(|uses| uses >= USED);
                if is_used {
                    folio.forget_uses();
                }
                is_used
            }
            Report::Young => origin == MAIN,
            // Several spaces would have to read it again.
            Report::Shared => true,
            // To the other queue: one of such pages alone would hide the other one.
            Report::Busy => origin == SMALL,
        };
        let queue = if goes_to_main { &mut self.main } else { &mut self.small };
        queue.push(folios, frame);
    }

    fn sort(&mut self, folios: &impl Folios, part: Part, keeps: impl Fn(Frame) -> bool, strays: &mut Queue) {
        sort_all([&mut self.small, &mut self.main], folios, part, keeps, strays);
    }

    fn has_many_used_once(&self) -> bool {
        self.small.length() * SMALL_PART > self.length()
    }

    fn length(&self) -> u64 {
        self.small.length() + self.main.length()
    }
}
