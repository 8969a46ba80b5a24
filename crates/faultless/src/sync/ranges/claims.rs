//! The queue of claims: who has taken a range, and who waits for one. All of it is under the short lock of
//! [`Ranges`](super::Ranges).

use super::{Edited, FLAGS, Park, Reservation};
use crate::address::PageRange;
use crate::sync::life::OutOfMemory;
use alloc::vec::Vec;

pub(super) struct Claim {
    pub(super) ticket: u64,
    pub(super) range: PageRange,
    /// Its flag, if one was free.
    pub(super) flag: Option<usize>,
    /// What it edits without the lock now.
    pub(super) edits: Option<PageRange>,
}

/// Places that the queue has from the beginning, so that taking a range needs no memory; two, for who takes two at once.
pub(super) const PLACES: usize = 2;

/// Bytes of those places.
pub(crate) const ROOM_OF_RANGES: usize = PLACES * size_of::<Claim>();

/// The claims in the order of their asking; taken ones and waiting ones alike.
#[derive(Default)]
pub struct Claims {
    pub(super) queue: Vec<Claim>,
    pub(super) next_ticket: u64,
    /// A bit for each flag that a claim of the queue has.
    pub(super) flags: u64,
    /// See [`Reservation::leave`].
    pub(super) left: Vec<PageRange>,
}

impl Claims {
    /// None, with room for the first [`PLACES`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn with_room() -> Result<Self, OutOfMemory> {
        let mut claims = Self::default();
        claims.queue.try_reserve_exact(PLACES).map_err(|_| OutOfMemory)?;
        Ok(claims)
    }

    /// The first claimed range that overlaps `range`.
    pub fn overlapping(&self, range: PageRange) -> Option<PageRange> {
        self.queue.iter().map(|c| c.range).find(|c| c.overlaps(range))
    }

    /// The ticket that the next claim gets.
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Fills `ranges` with claimed ranges in the order of their asking, of those that have a ticket of `tickets`. Returns
    /// the ticket to go on with; `None`: that was all.
    pub fn with_tickets(
        &self,
        tickets: core::ops::Range<u64>,
        ranges: &mut [Option<PageRange>],
    ) -> Option<u64> {
        // The queue is in the order of tickets.
        let first = self.queue.partition_point(|claim| claim.ticket < tickets.start);
        let mut claims = self.queue[first..].iter().take_while(|claim| claim.ticket < tickets.end);
        ranges.iter_mut().for_each(|range| *range = None);
        for (range, claim) in ranges.iter_mut().zip(&mut claims) {
            *range = Some(claim.range);
        }
        claims.next().map(|claim| claim.ticket)
    }

    /// Whether somebody besides `taken` has claimed some of `range`.
    pub fn is_claimed_beside<T: Edited, P: Park>(
        &self,
        taken: &Reservation<'_, T, P>,
        range: PageRange,
    ) -> bool {
        self.queue.iter().any(|c| c.ticket != taken.ticket && c.range.overlaps(range))
    }

    pub(super) fn leave(&mut self, range: PageRange) -> Result<(), OutOfMemory> {
        if !self.left.contains(&range) {
            self.left.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.left.push(range);
        }
        Ok(())
    }

    /// Whoever calls this has seen to a place.
    pub(super) fn push(&mut self, range: PageRange) -> (u64, Option<usize>) {
        debug_assert!(self.queue.len() < self.queue.capacity());
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let flag = Some(self.flags.trailing_ones() as usize).filter(|flag| *flag < FLAGS);
        self.flags |= flag.map_or(0, |flag| 1 << flag);
        self.queue.push(Claim { ticket, range, flag, edits: None });
        (ticket, flag)
    }

    /// Takes out those of which `goes` says so.
    pub(super) fn remove(&mut self, mut goes: impl FnMut(&mut Claim) -> bool) {
        let flags = &mut self.flags;
        self.queue.retain_mut(|claim| {
            let stays = !goes(claim);
            *flags &= !claim.flag.filter(|_| !stays).map_or(0, |flag| 1 << flag);
            stays
        });
    }

    /// The ranges that are edited now.
    pub(super) fn edits(&self) -> impl Iterator<Item = PageRange> {
        self.queue.iter().filter_map(|claim| claim.edits)
    }

    pub(super) fn is_first(&self, ticket: u64, range: PageRange) -> bool {
        !self.queue.iter().take_while(|c| c.ticket != ticket).any(|c| c.range.overlaps(range))
    }
}

/// What a search for a free range found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Range(PageRange),
    /// None that is not claimed; one may come when a claim goes.
    Claimed,
    /// None.
    Nothing,
}
