//! The slots of an engine: found by number without a lock, made in chunks on demand, used again.
//!
//! ```text
//! root ──► directory ──► chunk of slots           free ──► slot ──► slot ──► slot      (numbers, with a version)
//! ```
//! A chunk stays until the engine goes. So a thread may read the link of a slot that another thread takes at the same time: the
//! version, which changes with each step, makes its own step fail.

use super::slot::{Location, SwapSlot};
use crate::host::{GroupId, Slot};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{OnceBox, OutOfMemory, Sections, plain, try_box_zeroed};
use alloc::boxed::Box;
use alloc::sync::Arc;

/// The number of slots that are made together: 32 KiB.
#[cfg(not(loom))]
const CHUNK: usize = 1024;
#[cfg(loom)]
const CHUNK: usize = 2;
/// The number of places of the root and of a directory.
#[cfg(not(loom))]
const FANOUT: usize = 512;
#[cfg(loom)]
const FANOUT: usize = 2;

/// The number of slots that there can be: 2^28, or 1 TiB of pages.
const MOST: u64 = (FANOUT * FANOUT * CHUNK) as u64;
const _: () = assert!(MOST < NUMBER && MOST <= Slot::COUNT);

/// The bits of the number in the head of the free list; zero for none, else the number plus 1. The rest is the version.
const NUMBER: u64 = (1 << VERSION_SHIFT) - 1;
const VERSION_SHIFT: u32 = 32;

struct Chunk([SwapSlot; CHUNK]);
struct Directory([OnceBox<Chunk>; FANOUT]);
struct Root([OnceBox<Directory>; FANOUT]);

/// The slots of an engine: see the module.
pub(crate) struct SlotTable {
    root: Box<Root>,
    /// The number of chunks that were made, or begun. Atomic.
    chunks: plain::AtomicU64,
    /// The first free slot, and a version. Atomic.
    free: AtomicU64,
    /// The number of slots in use. Atomic.
    used: plain::AtomicU64,
    /// The sections to which the memory is charged. Immutable.
    sections: Arc<Sections>,
}

impl SlotTable {
    /// Makes a table without slots.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(sections: Arc<Sections>) -> Result<Self, OutOfMemory> {
        // SAFETY: a root is empty places, and memory of zeros is an empty place.
        let root = unsafe { try_box_zeroed(|| Root(core::array::from_fn(|_| OnceBox::default()))) }?;
        sections.charge(size_of::<Root>());
        let (chunks, used) = Default::default();
        Ok(Self { root, chunks, free: AtomicU64::new(0), used, sections })
    }

    /// Returns the slot with this number, if it was ever made. It may be free.
    #[inline]
    pub fn get(&self, number: u64) -> Option<&SwapSlot> {
        let (chunk, at) = (number / CHUNK as u64, number as usize % CHUNK);
        let directory = self.root.0.get(usize::try_from(chunk / FANOUT as u64).ok()?)?.get()?;
        Some(&directory.0[chunk as usize % FANOUT].get()?.0[at])
    }

    /// Returns the number of slots in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns a number above those of all slots that were made so far.
    pub fn made(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed) * CHUNK as u64
    }

    /// Takes a free slot, and makes a chunk if there is none. The caller has it alone until it begins its life. Does not sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is no memory for a chunk, or as many slots as there can be.
    pub fn take(&self) -> Result<(Slot, &SwapSlot), OutOfMemory> {
        let number = match self.pop() {
            Some(number) => number,
            None => self.grow()?,
        };
        self.used.fetch_add(1, Ordering::Relaxed);
        let slot = Slot::new(number).and_then(|slot| Some((slot, self.get(number)?)));
        slot.ok_or(OutOfMemory)
    }

    /// Ends the life of a slot and makes it free. The caller has dropped the last reference, or has the slot from
    /// [`SlotTable::take`]. Returns the location, which the caller gives back to its device.
    pub fn free(&self, number: u64, slot: &SwapSlot) -> Option<Location> {
        let location = slot.end();
        self.sections.groups().subtract_swap(slot.group());
        slot.set_group(GroupId::ROOT);
        self.used.fetch_sub(1, Ordering::Relaxed);
        self.push(number, slot);
        location
    }

    fn pop(&self) -> Option<u64> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let number = (head & NUMBER).checked_sub(1)?;
            let next = self.get(number)?.link() & NUMBER;
            let new = Self::version_after(head) | next;
            // Acquire, partner: `push`. The taker sees the slot as the end of its last life has left it.
            match self.free.compare_exchange(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(number),
                Err(now) => head = now,
            }
        }
    }

    /// Pushes a slot, or the first of several slots that are linked: `last` is the last of them.
    fn push(&self, number: u64, last: &SwapSlot) {
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            last.set_link(head & NUMBER);
            let new = Self::version_after(head) | (number + 1);
            match self.free.compare_exchange(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn version_after(head: u64) -> u64 {
        (head & !NUMBER).wrapping_add(NUMBER + 1)
    }

    /// Makes a chunk, frees all its slots but the first, and returns the number of that one.
    #[cold]
    fn grow(&self) -> Result<u64, OutOfMemory> {
        // SAFETY: slots are atomic numbers, zero in a new one.
        let made = unsafe { try_box_zeroed(|| Chunk(core::array::from_fn(|_| SwapSlot::default()))) }?;
        let mut next = self.chunks.load(Ordering::Relaxed);
        let directory = loop {
            let place = self.root.0.get(next as usize / FANOUT).ok_or(OutOfMemory)?;
            let directory = match place.get() {
                Some(directory) => directory,
                None => self.make_directory(place)?,
            };
            // Only the thread that takes the number fills the place.
            match self.chunks.compare_exchange(next, next + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break directory,
                Err(now) => next = now,
            }
        };
        let first = next * CHUNK as u64;
        for (slot, number) in made.0.iter().zip(first..) {
            slot.set_link(number + 2);
        }
        self.sections.charge(size_of::<Chunk>());
        let (chunk, _) = directory.0[next as usize % FANOUT].set(made);
        if let [_, .., last] = &chunk.0[..] {
            self.push(first + 1, last);
        }
        Ok(first)
    }

    fn make_directory<'a>(&self, place: &'a OnceBox<Directory>) -> Result<&'a Directory, OutOfMemory> {
        let new = || Directory(core::array::from_fn(|_| OnceBox::default()));
        // SAFETY: a directory is empty places, and memory of zeros is an empty place.
        let made = unsafe { try_box_zeroed(new) }?;
        let (directory, is_ours) = place.set(made);
        if is_ours {
            self.sections.charge(size_of::<Directory>());
        }
        Ok(directory)
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        for directory in self.root.0.iter().filter_map(OnceBox::get) {
            let chunks = directory.0.iter().filter(|place| place.is_set()).count();
            self.sections.uncharge(size_of::<Directory>() + chunks * size_of::<Chunk>());
        }
        self.sections.uncharge(size_of::<Root>());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::host::Frame;
    use std::collections::HashSet;

    const HERE: Location = Location { device: 0, place: 0 };

    fn table() -> SlotTable {
        SlotTable::new(Sections::try_shared().unwrap()).unwrap()
    }

    fn begin(slot: &SwapSlot) -> u16 {
        slot.begin(Frame::new(1).unwrap(), HERE)
    }

    fn end(table: &SlotTable, number: Slot, slot: &SwapSlot) {
        slot.leave_cache(None);
        assert_eq!(table.free(number.get(), slot), Some(HERE));
    }

    #[test]
    fn chunks_are_made_on_demand_and_slots_used_again() {
        let table = table();
        let before = table.sections.charged();
        assert!(table.get(0).is_none() && table.get(u64::MAX).is_none());
        let mut numbers = HashSet::new();
        for _ in 0..2 * CHUNK + 1 {
            let (number, slot) = table.take().unwrap();
            begin(slot);
            assert!(numbers.insert(number.get()), "given out twice");
            assert!(core::ptr::eq(table.get(number.get()).unwrap(), slot));
        }
        assert_eq!(table.used(), 2 * CHUNK as u64 + 1);
        assert!(numbers.iter().all(|number| *number < 3 * CHUNK as u64));
        let grown = table.sections.charged();
        assert_eq!(grown - before, size_of::<Directory>() + 3 * size_of::<Chunk>());
        for &number in &numbers {
            end(&table, Slot::new(number).unwrap(), table.get(number).unwrap());
        }
        let again: Vec<_> = (0..2 * CHUNK + 1).map(|_| table.take().unwrap()).collect();
        assert_eq!(table.sections.charged(), grown, "a chunk was made though slots were free");
        let of_old =
            |(number, slot): &&(Slot, &SwapSlot)| numbers.contains(&number.get()) && begin(slot) == 1;
        // The rest of the third chunk is used for the first time.
        assert_eq!(again.iter().filter(of_old).count(), numbers.len());
        let sections = table.sections.clone();
        drop(table);
        assert_eq!(sections.charged(), before - size_of::<Root>());
    }

    /// No slot has two owners, however threads take and free them.
    #[test]
    fn threads_take_and_free() {
        let table = table();
        std::thread::scope(|scope| {
            for thread in 1..5 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let taken: Vec<_> = (0..round % 7 + 1)
                            .map(|_| {
                                let (number, slot) = table.take().unwrap();
                                slot.begin(Frame::new(thread).unwrap(), HERE);
                                (number, slot)
                            })
                            .collect();
                        for (number, slot) in taken {
                            assert_eq!(slot.attached(), Frame::new(thread));
                            end(table, number, slot);
                        }
                    }
                });
            }
        });
        assert_eq!(table.used(), 0);
    }
}
