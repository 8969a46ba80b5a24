//! The list of an engine's spaces: for the choice of a victim (`limit/victim.rs`), and for pages that have lost their home
//! (`reclaim/homes.rs`).

use super::Engine;
use crate::address::PageNumber;
use crate::host::{GroupId, Host, OutOfMemory};
use crate::limit::VictimBias;
use crate::sync::{Counted, Mutex, Shared, Weak};
use alloc::vec::Vec;
use core::ptr::NonNull;

/// A space of any locking design, as those see it who go through all spaces of an engine.
pub(crate) trait ListedSpace: Send + Sync {
    /// Returns the group that pays for the space's pages.
    fn payer(&self) -> GroupId;
    /// Counts the pages in memory and in swap space, by a walk of the tables.
    fn pages(&self) -> (u64, u64);
    fn bias(&self) -> VictimBias;
    /// Returns whether the space has begun to exit.
    fn is_dying(&self) -> bool;
    /// Ends the space; see [`AddressSpace::reap`](crate::AddressSpace::reap).
    fn end(&self) -> u64;
    /// Gives the pages that have none a home, in some leaf tables from `start` on: see `reclaim/homes.rs`. Returns the page to go on
    /// from, or `None` after the last one.
    fn give_homes(&self, start: PageNumber, tally: &mut Tally) -> Option<PageNumber>;
}

/// The work of one search for pages without a home.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// The number of entries that were looked at.
    pub looks: u64,
    /// The number of pages that have got a home.
    pub homes: u64,
}

impl dyn ListedSpace {
    /// Erases the type of a space.
    pub(crate) fn of<S: ListedSpace + 'static>(space: Weak<S>) -> Weak<Self> {
        // SAFETY: it returns the pointer that it gets.
        unsafe { space.unsize(|counted| counted as NonNull<Counted<Self>>) }
    }
}

/// The number of places that a list has at least, halved.
const FEW: usize = 8;

/// A space and its number.
type Place = (u64, Weak<dyn ListedSpace>);

/// The spaces of an engine, in the order of their numbers. Protected by its lock, under which nothing is taken.
#[derive(Default)]
pub(crate) struct Spaces(Mutex<Vec<Place>>);

impl<H: Host> Engine<H> {
    /// Lists a new space with this number.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the space is not listed.
    pub(crate) fn list_space(&self, number: u64, space: Weak<dyn ListedSpace>) -> Result<(), OutOfMemory> {
        let mut spare = Vec::new();
        loop {
            let mut spaces = self.lock(&self.spaces.0);
            if spare.capacity() > spaces.capacity() {
                self.move_spaces(&mut spaces, &mut spare);
            }
            if spaces.len() < spaces.capacity() {
                let place = spaces.partition_point(|(other, _)| *other < number);
                spaces.insert(place, (number, space));
                return Ok(());
            }
            // No memory is asked for under the lock.
            let wanted = 2 * spaces.len().max(FEW);
            drop(spaces);
            spare.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        }
    }

    /// Moves the list to `spare`, which has room for it, and leaves the old memory there.
    fn move_spaces(&self, spaces: &mut Vec<Place>, spare: &mut Vec<Place>) {
        spare.append(spaces);
        core::mem::swap(spare, spaces);
        self.charge(spaces.capacity() * size_of::<Place>());
        self.uncharge(spare.capacity() * size_of::<Place>());
    }

    /// Takes the space with this number off the list. Called when its last handle goes.
    pub(crate) fn unlist_space(&self, number: u64) {
        let mut spaces = self.lock(&self.spaces.0);
        let found = spaces.binary_search_by_key(&number, |(other, _)| *other);
        let gone = found.ok().map(|place| spaces.remove(place));
        let (count, room) = (spaces.len(), spaces.capacity());
        drop(spaces);
        drop(gone);
        // Most of it is unused. Without memory for a smaller one, the list stays as it is.
        let (mut spare, few) = (Vec::new(), 2 * count.max(FEW));
        if 2 * few < room && spare.try_reserve_exact(few).is_ok() {
            let mut spaces = self.lock(&self.spaces.0);
            if spaces.len() <= spare.capacity() && spare.capacity() < spaces.capacity() {
                self.move_spaces(&mut spaces, &mut spare);
            }
        }
    }

    /// Returns the space with the next number after `last`, and its number. The space is `None` if it is about to end. Another thread
    /// may drop its last handle meanwhile. Then the caller's drop ends the space.
    pub(crate) fn next_space(&self, last: Option<u64>) -> Option<(u64, Option<Shared<dyn ListedSpace>>)> {
        let spaces = self.lock(&self.spaces.0);
        let place = last.map_or(0, |last| spaces.partition_point(|(number, _)| *number <= last));
        spaces.get(place).map(|(number, space)| (*number, space.upgrade()))
    }

    /// Gives back what the list of spaces has from the allocator. Called when the engine goes.
    pub(super) fn uncharge_spaces(&mut self) {
        let spaces = self.spaces.0.lock();
        debug_assert!(spaces.is_empty(), "a space that is gone is in the list");
        let room = spaces.capacity() * size_of::<Place>();
        drop(spaces);
        self.uncharge(room);
    }
}
