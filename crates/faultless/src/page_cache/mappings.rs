//! The spaces that may map a file, in the order of their numbers.
//!
//! A space registers before its first page of the file can be mapped. A fork's child has a higher number than its parent.
//! Truncation goes through the spaces upwards, so it comes to the child after the parent, and finds what was copied
//! meanwhile. A space that registers behind the place where truncation is now is found. One that registers before that place
//! finds no page to map: the pages were detached before truncation came to the first space.

use super::Maps;
use crate::engine::Engine;
use crate::host::{Host, OutOfMemory};
use crate::sync::{Mutex, Weak};
use alloc::vec::Vec;

/// Spaces that are gone are looked for when the list has become twice as long as it was after the last time, and longer than
/// this.
const FEW: usize = 16;

#[derive(Default)]
pub(super) struct FileMappings(Mutex<List>);

/// Protected by its lock.
#[derive(Default)]
struct List {
    /// By number.
    spaces: Vec<(u64, Weak<dyn Maps>)>,
    /// How many there were when those that are gone were last taken out.
    living: usize,
}

impl FileMappings {
    /// Adds a space, if it is not there. Numbers grow with each space made, so that most come last.
    ///
    /// # Errors
    /// [`OutOfMemory`]; it is not added.
    pub fn register<H: Host>(
        &self,
        engine: &Engine<H>,
        id: u64,
        space: Weak<dyn Maps>,
    ) -> Result<(), OutOfMemory> {
        let mut list = engine.lock(&self.0);
        let before = list.room();
        let added = list.add(id, space);
        match list.room().checked_sub(before) {
            None | Some(0) => {}
            Some(more) => engine.charge(more),
        }
        added
    }

    /// Bytes that it has from the allocator.
    pub fn room<H: Host>(&self, engine: &Engine<H>) -> usize {
        engine.lock(&self.0).room()
    }

    /// The first space behind number `last`.
    pub fn after<H: Host>(&self, engine: &Engine<H>, last: Option<u64>) -> Option<(u64, Weak<dyn Maps>)> {
        engine.lock(&self.0).after(last)
    }

    /// How many of them are there still.
    pub fn living<H: Host>(&self, engine: &Engine<H>) -> usize {
        let list = engine.lock(&self.0);
        list.spaces.iter().filter(|(_, space)| space.strong_count() != 0).count()
    }
}

impl List {
    fn room(&self) -> usize {
        self.spaces.capacity() * size_of::<(u64, Weak<dyn Maps>)>()
    }

    fn add(&mut self, id: u64, space: Weak<dyn Maps>) -> Result<(), OutOfMemory> {
        if self.place(id).is_ok() {
            return Ok(());
        }
        if self.spaces.len() >= (2 * self.living).max(FEW) {
            self.spaces.retain(|(_, space)| space.strong_count() != 0);
            self.living = self.spaces.len();
        }
        self.spaces.try_reserve(1).map_err(|_| OutOfMemory)?;
        if let Err(place) = self.place(id) {
            self.spaces.insert(place, (id, space));
        }
        Ok(())
    }

    fn after(&self, last: Option<u64>) -> Option<(u64, Weak<dyn Maps>)> {
        let place = last.map_or(0, |last| self.spaces.partition_point(|(id, _)| *id <= last));
        self.spaces.get(place).cloned()
    }

    fn place(&self, id: u64) -> Result<usize, usize> {
        // A child of fork registers with each of its mappings, one after the other, and is the youngest then.
        match self.spaces.last() {
            Some((last, _)) if *last == id => Ok(self.spaces.len() - 1),
            Some((last, _)) if *last < id => Err(self.spaces.len()),
            _ => self.spaces.binary_search_by_key(&id, |(id, _)| *id),
        }
    }
}

#[cfg(all(test, feature = "std", not(loom), not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::Shared;
    use core::ops::Range;
    use core::ptr::NonNull;

    struct Nobody;

    impl Maps for Nobody {
        fn drop_pages_of(&self, _: u64, _: Range<u64>, _: Range<u64>) {}
        fn protect_pages_of(&self, _: u64, _: Range<u64>) {}
    }

    fn weak(space: &Shared<Nobody>) -> Weak<dyn Maps> {
        // SAFETY: the pointer that comes in.
        unsafe {
            Shared::downgrade(space).unsize(|counted| counted as NonNull<crate::sync::Counted<dyn Maps>>)
        }
    }

    #[test]
    fn spaces_come_in_the_order_of_their_numbers_each_once() {
        let mut list = List::default();
        let space = Shared::try_new(Nobody).unwrap();
        for id in [5, 9, 9, 2, 5, 7, 11, 2] {
            list.add(id, weak(&space)).unwrap();
        }
        let (mut ids, mut last) = (Vec::new(), None);
        while let Some((id, _)) = list.after(last) {
            ids.push(id);
            last = Some(id);
        }
        assert_eq!(ids, [2, 5, 7, 9, 11]);
    }

    #[test]
    fn spaces_that_are_gone_are_forgotten() {
        let mut list = List::default();
        let parent = Shared::try_new(Nobody).unwrap();
        list.add(0, weak(&parent)).unwrap();
        for id in 1..10_000 {
            list.add(id, weak(&Shared::try_new(Nobody).unwrap())).unwrap();
            assert!(list.spaces.len() <= FEW, "one is left of {}", list.spaces.len());
        }
        assert!(list.after(None).is_some_and(|(id, _)| id == 0));
    }
}
