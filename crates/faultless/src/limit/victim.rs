//! The victim: the space that is ended if a group is at max, or the machine has no frame, and no page can be reclaimed (the OOM
//! killer).
//!
//! ```text
//! a fault finds no memory ─► reclaim, until its looks are over ─► lets everything go ─► takes the turn (one thread has it)
//!     for each space of the group: count its pages, ask the policy for a score
//!     the greatest score: tell the policy, then reap
//! ─► gives the turn back, wakes those that wait for it ─► the fault starts over
//! ```
//! A fault writes no counter for this: pages are counted by a walk of the tables. One victim is ended at a time. Its memory is free
//! before another thread may choose one. Each thread reclaims before it chooses.

use super::group::Event;
use crate::engine::{Dying, Engine, ListedSpace};
use crate::host::{GroupId, Host, OutOfMemory};
use crate::page_cache::MOST_TURNS;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Shared, try_box};
use alloc::boxed::Box;

/// The amount by which a space's score is raised or lowered when a victim is chosen: -1000 to 1000 thousandths of the limit
/// (oom_score_adj). The default is 0.
///
/// [`AddressSpace::set_victim_bias`](crate::AddressSpace::set_victim_bias) sets it. A child of fork has the bias of its parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct VictimBias(i16);

impl VictimBias {
    /// The bias of a space that [`Largest`] never chooses: -1000.
    pub const EXEMPT: Self = Self(-1000);

    /// Makes a bias of so many thousandths of the limit. Returns `None` if the number is not from -1000 to 1000.
    pub const fn new(thousandths: i16) -> Option<Self> {
        if thousandths < -1000 || thousandths > 1000 { None } else { Some(Self(thousandths)) }
    }

    /// Returns the bias in thousandths of the limit, from -1000 to 1000.
    pub const fn get(self) -> i16 {
        self.0
    }

    pub(crate) const fn to_bits(self) -> u64 {
        self.0 as u16 as u64
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits as u16 as i16)
    }
}

/// A space that may become the victim, as a [`VictimPolicy`] sees it. The numbers are in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The number of the space: [`AddressSpace::number`](crate::AddressSpace::number).
    pub space: u64,
    /// The pages in memory that its table maps. Pages that other spaces have too are counted. The page of zeros is not.
    pub resident: u64,
    /// The pages that it has in swap space.
    pub swapped: u64,
    /// Its bias.
    pub bias: VictimBias,
    /// The number of pages that the full group may have, or of the machine's frames.
    pub limit: u64,
}

impl Candidate {
    /// Returns the score by which Linux compares spaces: the pages in memory and in swap space, and the bias's share of the limit.
    /// Returns `None` for a space that is exempt ([`VictimBias::EXEMPT`]).
    pub fn score(&self) -> Option<i64> {
        let pages = self.resident.saturating_add(self.swapped) as i64;
        let share = i128::from(self.bias.get()) * i128::from(self.limit.min(i64::MAX as u64)) / 1000;
        (self.bias != VictimBias::EXEMPT).then(|| pages.saturating_add(share as i64))
    }
}

/// The choice of the space that is ended if nothing can be reclaimed. [`Engine::end_victims`] takes one.
///
/// A thread that has found no memory calls the methods, with nothing held. One thread at a time does so, and other threads that need a
/// victim wait for it. The methods must make no call of the engine that may need memory, or that may need another victim.
pub trait VictimPolicy: Send + Sync {
    /// Returns the score of a space. The space with the greatest score is the victim. Return `None` for a space that must not be ended.
    /// If no space has a score, the access or the call fails for lack of memory. Spaces without a page are not asked about.
    fn score(&self, candidate: &Candidate) -> Option<i64>;

    /// Tells the policy which space was chosen, right before the engine ends it. A kernel sends SIGKILL to its threads here. The
    /// default does nothing.
    fn chosen(&self, victim: &Candidate) {
        let _ = victim;
    }
}

/// The policy of Linux: it chooses the space with the greatest [`Candidate::score`], so mostly the largest one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Largest;

impl VictimPolicy for Largest {
    fn score(&self, candidate: &Candidate) -> Option<i64> {
        candidate.score()
    }
}

/// The error of [`Engine::end_victims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VictimPolicyError {
    /// The engine has a policy already, which stays.
    #[error("the engine has a policy for victims already")]
    AlreadySet,
    /// There is no memory for the policy's place in the engine.
    #[error("out of memory for a policy for victims")]
    OutOfMemory,
}

impl From<OutOfMemory> for VictimPolicyError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The policy of an engine that ends victims.
pub(crate) struct Victims {
    policy: Box<dyn VictimPolicy>,
    /// Set while a thread chooses and ends a victim. Atomic.
    has_turn: AtomicBool,
}

/// The number of times that a call finds free frames in place of a victim, and tries again.
const MOST_SPARED: u32 = 3;

/// The turn to choose and end a victim. Dropping this gives it back, also after a panic of the policy.
struct Turn<'a, H: Host> {
    engine: &'a Engine<H>,
    victims: &'a Victims,
}

impl<H: Host> Drop for Turn<'_, H> {
    fn drop(&mut self) {
        let has_turn = &self.victims.has_turn;
        has_turn.store(false, Ordering::Release);
        self.engine.wake_all(core::ptr::from_ref(has_turn).addr());
    }
}

impl<H: Host> Engine<H> {
    /// Has the engine end a space, from now on, if there is no memory for an access or for fork and nothing can be reclaimed. `policy`
    /// chooses the space.
    ///
    /// Call it once. Without this call, which is the default, such an access fails
    /// ([`FaultError::OutOfMemory`](crate::FaultError::OutOfMemory)) and no space is ended.
    ///
    /// The candidates are the spaces of the full group and of the groups below it, or all spaces if the machine has no frame. The
    /// thread that has found no memory asks `policy`, ends the chosen space ([`AddressSpace::reap`](crate::AddressSpace::reap)), and
    /// starts its fault over. If that is its own space, the fault returns [`FaultError::Exited`](crate::FaultError::Exited).
    ///
    /// # Errors
    /// [`VictimPolicyError`]: nothing is changed.
    pub fn end_victims(&self, policy: Box<dyn VictimPolicy>) -> Result<(), VictimPolicyError> {
        let victims = Victims { policy, has_turn: AtomicBool::new(false) };
        let (_, is_set) = self.victims.set(try_box(victims)?);
        if !is_set {
            return Err(VictimPolicyError::AlreadySet);
        }
        self.charge(size_of::<Victims>());
        Ok(())
    }

    /// Ends a space of `full` or of the groups below it, after reclaim has found too little there for `pages` more pages. Returns whether memory may be free now:
    /// the caller reclaims again. If another thread is ending a space, this call waits for that thread, and ends none. Nor does it end
    /// one if there is room by now: others have freed memory since the caller's last look. The machine may have frames and the
    /// allocator no memory, so each such look at the root counts as many turns at memory in `turns`, and the call gives up in the end.
    /// The end of the space that `dying` belongs to ends the wait. The caller holds nothing.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_a_victim(&self, (full, pages): (GroupId, u64), dying: &Dying, turns: &mut u32) -> bool {
        let Some(victims) = self.victims.get() else { return false };
        let key = core::ptr::from_ref(&victims.has_turn).addr();
        // Acquire and Release: the next thread sees what the last one has freed.
        if victims.has_turn.swap(true, Ordering::Acquire) && !mutant!("two_victims_at_once") {
            let has_turn = || victims.has_turn.load(Ordering::Acquire);
            self.park_killable(Counter::MemoryWait, key, Some(dying), has_turn);
            return true;
        }
        let _turn = Turn { engine: self, victims };
        if self.has_room(full, pages) && !mutant!("victim_for_nothing") {
            if full == GroupId::ROOT {
                *turns += MOST_TURNS / MOST_SPARED;
            }
            return *turns <= MOST_TURNS;
        }
        let Some((space, victim, is_new)) = self.choose(victims, full) else { return false };
        if is_new {
            victims.policy.chosen(&victim);
            self.counters().add(Counter::VictimsEnded, 1);
            self.sections().groups().note(space.payer(), Event::Victim, 1);
        }
        space.end();
        true
    }

    /// Returns whether `group` may have so many more pages, or whether the machine has so many free frames if it is the root.
    fn has_room(&self, group: GroupId, pages: u64) -> bool {
        let (used, limit) = self.used_of(group);
        used.saturating_add(pages) <= limit
    }

    /// Returns whether `group` could have so many pages if all its other pages were gone.
    pub(crate) fn could_have_room(&self, group: GroupId, pages: u64) -> bool {
        pages <= self.used_of(group).1
    }

    /// Returns the pages of `group`, and its limit; of the machine if it is the root.
    fn used_of(&self, group: GroupId) -> (u64, u64) {
        match self.sections().groups().get(group) {
            Some(counts) => (counts.usage(), counts.max()),
            None => {
                let frames = self.frame_usage();
                (frames.used, frames.limit)
            }
        }
    }

    /// Returns the space of `full` with the greatest score, and whether it is not ending already. A space that is ending, and still
    /// has pages, comes first.
    fn choose(&self, victims: &Victims, full: GroupId) -> Option<(Shared<dyn ListedSpace>, Candidate, bool)> {
        let groups = self.sections().groups();
        let limit = groups.get(full).map_or_else(|| self.frame_usage().limit, super::Group::max);
        let (mut best, mut last) = (None, None);
        loop {
            let Some((number, space)) = self.next_space(last) else { break };
            last = Some(number);
            let Some(space) = space.filter(|space| groups.is_within(space.payer(), full)) else { continue };
            let (resident, swapped) = space.pages();
            let candidate = Candidate { space: number, resident, swapped, bias: space.bias(), limit };
            if resident + swapped == 0 {
                continue;
            }
            if space.is_dying() {
                return Some((space, candidate, false));
            }
            let Some(score) = victims.policy.score(&candidate) else { continue };
            if best.as_ref().is_none_or(|(_, _, other)| score > *other) {
                best = Some((space, candidate, score));
            }
        }
        best.map(|(space, candidate, _)| (space, candidate, true))
    }
}
