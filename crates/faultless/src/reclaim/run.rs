//! Neighbouring pages of one leaf table, which reclaim takes together: one section, one walk to the space, and one look at the mapping
//! serve all of them.

use super::space_head::{Reach, Victim, VictimKind};
use crate::frame::Folio;
use crate::host::{Frame, Slot};

/// The greatest number of pages of a run.
const MOST: usize = 16;

/// The number of entries before the first page of a run, and behind it, among which its other pages are. It bounds the range that is
/// invalidated.
const NEAR: u64 = 64;

/// An entry that a folio's home names. A hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryPlace {
    /// The address of the record of the leaf table.
    record: usize,
    index: u64,
}

impl EntryPlace {
    /// Returns the entry that the home of a mapped folio names. `None` if it names none, or a family.
    #[inline]
    pub fn of(folio: &Folio) -> Option<Self> {
        let (record, index) = folio.mapped_home()?.entry()?;
        Some(Self { record, index })
    }
}

/// Isolated anonymous folios, each attached to a slot, whose homes name entries of one leaf table.
pub(super) struct Run {
    victims: [Victim; MOST],
    count: usize,
    /// The entry of the first one.
    first: EntryPlace,
}

impl Run {
    /// Makes an empty run. `frame` is any frame.
    pub fn new(frame: Frame) -> Self {
        let none = Victim::new(frame, VictimKind::Dropped, Reach::Nothing, 0);
        Self { victims: [none; MOST], count: 0, first: EntryPlace { record: 0, index: 0 } }
    }

    /// Returns whether a page at `place` can be added.
    #[inline]
    pub fn takes(&self, place: EntryPlace) -> bool {
        let is_near = self.first.record == place.record && self.first.index.abs_diff(place.index) < NEAR;
        self.count == 0 || is_near && self.count < MOST
    }

    /// Adds the page of `frame`, which [`Run::takes`].
    #[inline]
    pub fn add(&mut self, place: EntryPlace, frame: Frame, (slot, generation): (Slot, u16), reach: Reach) {
        if self.count == 0 {
            self.first = place;
        }
        let kind = VictimKind::Swapped(slot, generation);
        self.victims[self.count] = Victim::new(frame, kind, reach, place.index);
        self.count += 1;
    }

    /// Returns the first page that has not been tried.
    pub fn first_untried(&mut self) -> Option<&mut Victim> {
        self.victims().iter_mut().find(|victim| victim.outcome.is_none())
    }

    /// Returns all pages.
    #[inline]
    pub fn victims(&mut self) -> &mut [Victim] {
        &mut self.victims[..self.count]
    }

    /// Makes the run empty.
    pub fn clear(&mut self) {
        self.count = 0;
    }
}
