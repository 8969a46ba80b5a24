//! The policies by name: an engine has one of them, which its limits choose.

use super::generations::Generations;
use super::policy::{Demand, Look, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Part, Queue};
use super::small_main::SmallMain;
use crate::host::Frame;

/// The order in which reclaim tries pages. [`Limits::reclaim`](crate::Limits::reclaim) chooses it. See docs/pressure.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReclaimOrder {
    /// A small queue for pages that were used once, and a main queue: a form of S3-FIFO. The default.
    #[default]
    SmallMain,
    /// Four generations by the time of the last use: a form of MGLRU, the multi-generational LRU of Linux.
    Generations,
}

/// The policy of an engine: one branch a call, and no trait object.
#[derive(Debug)]
pub(crate) enum Policy {
    SmallMain(SmallMain),
    Generations(Generations),
}

impl Policy {
    /// Makes the policy of this name, with empty queues.
    pub fn new(order: ReclaimOrder) -> Self {
        match order {
            ReclaimOrder::SmallMain => Self::SmallMain(SmallMain::default()),
            ReclaimOrder::Generations => Self::Generations(Generations::default()),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(ReclaimOrder::default())
    }
}

impl ReclaimPolicy for Policy {
    fn of_same_kind(&self) -> Self {
        match self {
            Self::SmallMain(policy) => Self::SmallMain(policy.of_same_kind()),
            Self::Generations(policy) => Self::Generations(policy.of_same_kind()),
        }
    }

    fn arrived(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance) {
        match self {
            Self::SmallMain(policy) => policy.arrived(folios, frame, distance),
            Self::Generations(policy) => policy.arrived(folios, frame, distance),
        }
    }

    fn look(&mut self, folios: &impl Folios, demand: Demand) -> Look {
        match self {
            Self::SmallMain(policy) => policy.look(folios, demand),
            Self::Generations(policy) => policy.look(folios, demand),
        }
    }

    fn reported(&mut self, folios: &impl Folios, frame: Claimed, origin: u64, report: Report) {
        match self {
            Self::SmallMain(policy) => policy.reported(folios, frame, origin, report),
            Self::Generations(policy) => policy.reported(folios, frame, origin, report),
        }
    }

    fn sort(&mut self, folios: &impl Folios, part: Part, keeps: impl Fn(Frame) -> bool, strays: &mut Queue) {
        match self {
            Self::SmallMain(policy) => policy.sort(folios, part, keeps, strays),
            Self::Generations(policy) => policy.sort(folios, part, keeps, strays),
        }
    }

    fn has_many_used_once(&self) -> bool {
        match self {
            Self::SmallMain(policy) => policy.has_many_used_once(),
            Self::Generations(policy) => policy.has_many_used_once(),
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::SmallMain(policy) => policy.length(),
            Self::Generations(policy) => policy.length(),
        }
    }
}
