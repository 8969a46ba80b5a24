//! The queue of claims: who has taken a range, and who waits for one. All of it is under the short lock of
//! [`Ranges`](super::Ranges).

use super::{Edited, FLAGS, Park, Reservation};
use crate::address::{PageNumber, PageRange};
use crate::sync::life::OutOfMemory;
use crate::sync::wait::WaitQueue;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

pub(super) struct Claim {
    pub(super) ticket: u64,
    pub(super) range: PageRange,
    /// Its flag, if one was free.
    pub(super) flag: Option<usize>,
    /// What it edits without the lock now.
    pub(super) edits: Option<PageRange>,
    /// Threads that wait until it has gone.
    pub(super) waiters: WaitQueue,
}

/// Places that the queue has from the beginning, so that taking a range needs no memory; two, for who takes two at once.
pub(super) const PLACES: usize = 2;

/// Bytes of those places.
pub(crate) const ROOM_OF_RANGES: usize = PLACES * size_of::<Claim>();

/// The claims in the order of their asking; taken ones and waiting ones alike.
#[derive(Default)]
pub struct Claims {
    pub(super) queue: VecDeque<Claim>,
    pub(super) next_ticket: u64,
    /// A bit for each flag that a claim of the queue has.
    pub(super) flags: u64,
    /// By flag: the ticket of that claim.
    tickets: [u64; FLAGS],
    /// How many claims edit.
    pub(super) editing: usize,
    /// Threads that waited for claims that have gone, and have not been woken yet.
    pub(super) released: WaitQueue,
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

    /// The ticket of the first claim over `page`.
    pub(super) fn ticket_over(&self, page: PageNumber) -> Option<u64> {
        self.queue.iter().find(|claim| claim.range.contains(page)).map(|claim| claim.ticket)
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
        let mut claims = self.queue.range(first..).take_while(|claim| claim.ticket < tickets.end);
        ranges.iter_mut().for_each(|range| *range = None);
        for (range, claim) in ranges.iter_mut().zip(&mut claims) {
            *range = Some(claim.range);
        }
        claims.next().map(|claim| claim.ticket)
    }

    /// Whether somebody besides `taken` has claimed some of `range`.
    #[inline]
    pub fn is_claimed_beside<T: Edited, P: Park>(
        &self,
        taken: &Reservation<'_, T, P>,
        range: PageRange,
    ) -> bool {
        // Mostly there is no other claim.
        self.queue.len() > 1 && self.queue.iter().any(|c| c.ticket != taken.ticket && c.range.overlaps(range))
    }

    pub(super) fn leave(&mut self, range: PageRange) -> Result<(), OutOfMemory> {
        if !self.left.contains(&range) {
            self.left.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.left.push(range);
        }
        Ok(())
    }

    /// The caller has reserved capacity in the queue.
    pub(super) fn push(&mut self, range: PageRange) -> (u64, Option<usize>) {
        debug_assert!(self.queue.len() < self.queue.capacity());
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let flag = Some(self.flags.trailing_ones() as usize).filter(|flag| *flag < FLAGS);
        if let Some(flag) = flag {
            self.flags |= 1 << flag;
            self.tickets[flag] = ticket;
        }
        self.queue.push_back(Claim { ticket, range, flag, edits: None, waiters: WaitQueue::default() });
        (ticket, flag)
    }

    /// The place of claim `ticket`, if it has not gone.
    #[inline]
    fn place(&self, ticket: u64) -> Option<usize> {
        match self.queue.front() {
            // The one that came first goes first, mostly.
            Some(first) if first.ticket == ticket => Some(0),
            _ => self.queue.binary_search_by_key(&ticket, |claim| claim.ticket).ok(),
        }
    }

    /// Claim `ticket`, if it has not gone.
    #[inline]
    pub(super) fn get_mut(&mut self, ticket: u64) -> Option<&mut Claim> {
        self.place(ticket).map(|place| &mut self.queue[place])
    }

    /// The claim with this flag.
    #[inline]
    pub(super) fn flagged(&mut self, flag: usize) -> Option<&mut Claim> {
        self.get_mut(self.tickets[flag])
    }

    /// Its ticket.
    pub(super) fn ticket_of(&self, flag: usize) -> u64 {
        self.tickets[flag]
    }

    /// Takes claim `ticket` out; who waits for it has to be woken.
    #[inline]
    pub(super) fn remove(&mut self, ticket: u64) {
        let claim = match self.place(ticket) {
            Some(0) => self.queue.pop_front(),
            Some(place) => self.queue.remove(place),
            None => None,
        };
        let Some(mut claim) = claim else { return };
        self.flags &= !claim.flag.map_or(0, |flag| 1 << flag);
        self.released.append(&mut claim.waiters);
    }

    /// The ranges that are edited now.
    pub(super) fn edits(&self) -> impl Iterator<Item = PageRange> {
        self.queue.iter().filter_map(|claim| claim.edits)
    }

    /// The last claim of those before `ticket` that overlaps `range`. In a queue for one place it is the one before, so that
    /// each claim that goes wakes one.
    #[inline]
    pub(super) fn blocker(&self, ticket: u64, range: PageRange) -> Option<u64> {
        if self.queue.len() == 1 {
            return None;
        }
        let place = self.place(ticket)?;
        self.queue.range(..place).rev().find(|claim| claim.range.overlaps(range)).map(|claim| claim.ticket)
    }

    /// The claim that came first, if it came before `end`.
    pub(super) fn first_before(&self, end: u64) -> Option<u64> {
        self.queue.front().map(|claim| claim.ticket).filter(|ticket| *ticket < end)
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
