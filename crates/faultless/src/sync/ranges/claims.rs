//! The queue of claims: the ranges that are reserved, and those that threads wait for. All of it is under the short lock of
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
    /// The claim's flag, if one was free.
    pub(super) flag: Option<usize>,
    /// The range that the claim's holder edits without the lock now.
    pub(super) edits: Option<PageRange>,
    /// The threads that wait until the claim has gone.
    pub(super) waiters: WaitQueue,
}

/// The number of claims for which the queue has room from the beginning, so that a reservation needs no memory: two, for a
/// thread that reserves two ranges at once.
pub(super) const PLACES: usize = 2;

/// The bytes of that room.
pub(crate) const ROOM_OF_RANGES: usize = PLACES * size_of::<Claim>();

/// The claims in the order in which they were made, reserved ones and waiting ones alike.
#[derive(Default)]
pub struct Claims {
    pub(super) queue: VecDeque<Claim>,
    pub(super) next_ticket: u64,
    /// The flags that claims of the queue have, one bit each.
    pub(super) flags: u64,
    /// The ticket of the claim that has each flag.
    tickets: [u64; FLAGS],
    /// The number of claims that edit.
    pub(super) editing: usize,
    /// The threads that waited for claims that have gone, and have not been woken yet.
    pub(super) released: WaitQueue,
    /// The ranges that were left: see [`Reservation::leave`].
    pub(super) left: Vec<PageRange>,
}

impl Claims {
    /// Makes an empty queue, with room for the first [`PLACES`] claims.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn with_room() -> Result<Self, OutOfMemory> {
        let mut claims = Self::default();
        claims.queue.try_reserve_exact(PLACES).map_err(|_| OutOfMemory)?;
        Ok(claims)
    }

    /// Returns the first claimed range that overlaps `range`.
    pub fn overlapping(&self, range: PageRange) -> Option<PageRange> {
        self.queue.iter().map(|c| c.range).find(|c| c.overlaps(range))
    }

    /// Returns the ticket of the first claim over `page`.
    pub(super) fn ticket_over(&self, page: PageNumber) -> Option<u64> {
        self.queue.iter().find(|claim| claim.range.contains(page)).map(|claim| claim.ticket)
    }

    /// Returns the ticket that the next claim gets.
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Fills `ranges` with the claimed ranges whose ticket is in `tickets`, in the order of their tickets. Returns the ticket
    /// to go on with, or `None` if there are no more.
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

    /// Returns whether a claim other than `taken` overlaps `range`.
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

    /// Adds a claim of `range`, and returns its ticket and its flag. The caller has reserved capacity in the queue.
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

    /// Returns the index of claim `ticket`, if it has not gone.
    #[inline]
    fn place(&self, ticket: u64) -> Option<usize> {
        match self.queue.front() {
            // The first claim mostly goes first.
            Some(first) if first.ticket == ticket => Some(0),
            _ => self.queue.binary_search_by_key(&ticket, |claim| claim.ticket).ok(),
        }
    }

    /// Returns claim `ticket`, if it has not gone.
    #[inline]
    pub(super) fn get_mut(&mut self, ticket: u64) -> Option<&mut Claim> {
        self.place(ticket).map(|place| &mut self.queue[place])
    }

    /// Returns the claim with this flag.
    #[inline]
    pub(super) fn flagged(&mut self, flag: usize) -> Option<&mut Claim> {
        self.get_mut(self.tickets[flag])
    }

    /// Returns the ticket of the claim with this flag.
    pub(super) fn ticket_of(&self, flag: usize) -> u64 {
        self.tickets[flag]
    }

    /// Removes claim `ticket`. The threads that wait for it have to be woken.
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

    /// Returns the ranges that are edited now.
    pub(super) fn edits(&self) -> impl Iterator<Item = PageRange> {
        self.queue.iter().filter_map(|claim| claim.edits)
    }

    /// Returns the ticket of the last claim before `ticket` that overlaps `range`. In a queue for one place it is the one
    /// before, so that each claim that goes wakes one thread.
    #[inline]
    pub(super) fn blocker(&self, ticket: u64, range: PageRange) -> Option<u64> {
        if self.queue.len() == 1 {
            return None;
        }
        let place = self.place(ticket)?;
        self.queue.range(..place).rev().find(|claim| claim.range.overlaps(range)).map(|claim| claim.ticket)
    }

    /// Returns the ticket of the first claim, if it is before `end`.
    pub(super) fn first_before(&self, end: u64) -> Option<u64> {
        self.queue.front().map(|claim| claim.ticket).filter(|ticket| *ticket < end)
    }
}

/// The result of a search for a free range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The search found this range.
    Range(PageRange),
    /// All suitable ranges are claimed; one may become free when a claim goes.
    Claimed,
    /// There is no suitable range.
    Nothing,
}
