//! Reading the bytes of slots into new folios. They are checked before the folio is up to date: a page that cannot be read as it was
//! written is an error at each access, and never data.
//!
//! A fault needs one page, and may read some near it ahead. Those whose places follow that of the fault's page are one transfer
//! with it. A page that is read ahead has a free frame, or is left out. If its read fails, the slot stays as it is: a fault that
//! needs the page reads it again, and finds the error.

use super::Space;
use super::cache::SwapIn;
use super::device::Attached;
use super::slot::{Location, NotBegun, SwapSlot};
use super::steps::Steps;
use super::window::MOST;
use super::write_out::checksum;
use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::errno;
use crate::frame::Reference;
use crate::host::{Frame, GroupId, Host, Slot, Slots};
use crate::page_cache::NEWCOMER;
use crate::reclaim::queue::Distance;
use crate::stats::Counter;
use crate::store::{Completion, Direction, Outcome, Part, Places, StoreError};
use crate::sync::atomic::Ordering;
use crate::sync::try_box;
use alloc::sync::Arc;
use smallvec::SmallVec;

/// The error of a read that was not tried. The slot stays as it is.
const NO_MEMORY: StoreError = StoreError::Io { offset: 0, errno: errno::ENOMEM };

/// A slot, and the generation by which an entry names it.
pub(crate) type Named = (Slot, u16);

/// A page that is attached and counted for its read, which is not submitted yet.
#[derive(Clone, Copy)]
struct Read {
    slot: Slot,
    frame: Frame,
    from: Location,
    is_ahead: bool,
}

/// Pages that are read together.
type Reads = SmallVec<[Read; MOST as usize]>;

impl<H: Host> Engine<H> {
    /// Attaches `frame` to `slot` and starts to read the slot's bytes into it. The caller has the frame alone, and an entry with this
    /// slot and generation was there a moment ago. It is in no section. Waits for no I/O, which may have ended when this returns.
    ///
    /// Reads those of `ahead` too that have no folio and for which there is a free frame. Entries named them a moment ago.
    pub(crate) fn begin_swap_in(
        self: &Arc<Self>,
        slot: Slot,
        generation: u16,
        frame: Frame,
        ahead: &[Named],
    ) -> SwapIn {
        self.assert_may_sleep("swap-in");
        let swap_in = self.try_begin_swap_in((slot, generation), frame, ahead);
        if swap_in != SwapIn::Started {
            self.free_frame(frame);
        }
        swap_in
    }

    /// Returns whether pages near that of `slot` may be read ahead. A device that moves one page at a time, such as compressed
    /// memory, would make the fault wait for each of them.
    pub(crate) fn may_read_ahead(&self, slot: Slot) -> bool {
        let Some(space) = self.swap.0.get() else { return false };
        let Some(found) = space.slots.get(slot.get()).filter(|found| !found.state().is_pattern()) else {
            return false;
        };
        let device = found.location().and_then(|from| space.devices.get(from.device));
        device.is_some_and(|device| device.max_pages() > 1)
    }

    fn try_begin_swap_in(
        self: &Arc<Self>,
        (slot, generation): Named,
        frame: Frame,
        ahead: &[Named],
    ) -> SwapIn {
        let Some((space, steps)) = self.swap_steps() else { return SwapIn::Gone };
        let Some(found) = space.slots.get(slot.get()) else { return SwapIn::Gone };
        // Made before any thread waits for the read.
        let Some(completion) = self.completion_of(slot, frame) else { return SwapIn::OutOfMemory };
        match steps.begin_read(slot, found, generation, frame, false) {
            Ok(()) => {}
            Err(NotBegun::InCache) => return SwapIn::Lost,
            Err(NotBegun::Gone) => return SwapIn::Gone,
            // A slot that was never written has lost its bytes.
            Err(NotBegun::Poisoned) => {
                return SwapIn::Poisoned(found.error().unwrap_or(StoreError::WrongBytes { offset: 0 }));
            }
        }
        self.counters().add(Counter::SwapIns, 1);
        self.cache.transfers.fetch_add(1, Ordering::Relaxed);
        if found.state().is_pattern() {
            self.fill_page(frame, found.pattern());
            self.finish_swap_in(slot, frame, Ok(()), true);
            return SwapIn::Started;
        }
        match found.location() {
            Some(from) if ahead.is_empty() => self.submit_read(from, frame, completion),
            Some(from) => {
                let first = Read { slot, frame, from, is_ahead: false };
                self.submit_with(space, steps, first, completion, ahead);
            }
            None => completion(Err(StoreError::WrongBytes { offset: 0 })),
        }
        SwapIn::Started
    }

    fn completion_of(self: &Arc<Self>, slot: Slot, frame: Frame) -> Option<Completion> {
        let engine = self.clone();
        let made = try_box(move |result| engine.end_swap_in(slot, frame, result, true));
        Some(made.ok()?)
    }

    fn submit_read(&self, from: Location, frame: Frame, completion: Completion) {
        match self.device_of(from) {
            Some(attached) => {
                let places = Places::from_buf([self.place_of(frame)]);
                attached.device().submit(self.swap_transfer(Direction::Read, from.place, places, completion));
            }
            None => completion(Err(StoreError::WrongBytes { offset: 0 })),
        }
    }

    // ---- reading ahead

    /// Submits the read of `first`, whose completion is at hand, and of those of `ahead` that can be read now. From the first page
    /// that is attached to the submission of the last one nothing waits: other threads may wait for these pages.
    #[inline(never)]
    fn submit_with(
        self: &Arc<Self>,
        space: &Space,
        steps: Steps<'_, Self>,
        first: Read,
        completion: Completion,
        ahead: &[Named],
    ) {
        let group = self.folio(first.frame).group();
        let mut reads = Reads::from_elem(first, 1);
        let near = ahead.iter().copied().filter(|named| self.may_read_ahead(named.0));
        self.begin_all_ahead((space, steps), group, near, &mut reads);
        self.submit_all(&mut reads, Some(completion));
    }

    /// Starts reads of those of the slots in `asked`, [`MOST`] at most, that have no folio, as a caller has asked for. `group` pays. Waits
    /// for none. Returns false if there is no frame for one of them. The caller is in no section.
    pub(crate) fn swap_in_ahead(self: &Arc<Self>, group: GroupId, asked: &[Named]) -> bool {
        let Some((space, steps)) = self.swap_steps() else { return true };
        let mut reads = Reads::new();
        let has_frames = self.begin_all_ahead((space, steps), group, asked.iter().copied(), &mut reads);
        self.submit_all(&mut reads, None);
        has_frames
    }

    /// Attaches free frames to those slots of `ahead` that can be read now, as far as there is room in `reads`. Returns false if there
    /// is no frame for one of them.
    fn begin_all_ahead(
        &self,
        (space, steps): (&Space, Steps<'_, Self>),
        group: GroupId,
        ahead: impl Iterator<Item = Named>,
        reads: &mut Reads,
    ) -> bool {
        for named in ahead.take(reads.inline_size() - reads.len()) {
            let Some(slot) = space.slots.get(named.0.get()).filter(|slot| !slot.state().is_in_cache()) else {
                continue;
            };
            // Waiters for memory come first.
            let is_free = self.cache.queue.is_first(NEWCOMER);
            let frame = is_free.then(|| self.take_frame(group, slot.state().purpose())).flatten();
            let Some(frame) = frame else { return false };
            if self.begin_ahead(space, steps, named, frame) {
                reads.extend(self.place_ahead(space, named, frame));
            } else {
                self.free_frame(frame);
            }
        }
        true
    }

    /// Submits the reads of pages that are attached, in runs. `completion` is that of the fault's page, if one of them is.
    fn submit_all(self: &Arc<Self>, reads: &mut Reads, mut completion: Option<Completion>) {
        reads.sort_unstable_by_key(|read| read.from);
        // The run with the page of the fault goes first.
        for is_of_fault in [true, false] {
            for run in reads.chunk_by(|one, next| next.from == one.from.next()) {
                let most = self.device_of(run[0].from).map_or(1, Attached::max_pages);
                for run in run.chunks(most) {
                    if run.iter().any(|read| !read.is_ahead) == is_of_fault {
                        self.submit_run(run, if is_of_fault { completion.take() } else { None });
                    }
                }
            }
        }
    }

    /// Attaches the free `frame` to a slot whose bytes are to be read ahead. Returns false if that cannot be: the caller still has the
    /// frame alone.
    fn begin_ahead(
        &self,
        space: &Space,
        steps: Steps<'_, Self>,
        (slot, generation): Named,
        frame: Frame,
    ) -> bool {
        let found = space.slots.get(slot.get());
        let has_begun =
            found.is_some_and(|found| steps.begin_read(slot, found, generation, frame, true).is_ok());
        if has_begun {
            let (own, _guard) = self.host().slots().pin();
            let counters = self.sections().counters(own);
            counters.add(Counter::SwapIns, 1);
            counters.add(Counter::SwapAhead, 1);
            self.cache.transfers.fetch_add(1, Ordering::Relaxed);
            // As a page that is new: reclaim finds it, also if no fault uses it.
            self.sections().arrivals(own).push(self.folio(frame), frame, Distance::NEW);
        }
        has_begun
    }

    /// Returns the read of a page that was attached, which the caller submits. Returns `None` if the read has ended: no device has
    /// the page. The slot is counted for the read, so it keeps its place.
    fn place_ahead(&self, space: &Space, (slot, _): Named, frame: Frame) -> Option<Read> {
        let found = space.slots.get(slot.get())?;
        if found.state().is_pattern() {
            self.fill_page(frame, found.pattern());
            self.finish_swap_in(slot, frame, Ok(()), false);
            return None;
        }
        let from = found.location();
        if from.is_none() {
            self.finish_swap_in(slot, frame, Err(NO_MEMORY), false);
        }
        Some(Read { slot, frame, from: from?, is_ahead: true })
    }

    /// Submits the reads of pages whose places follow each other, as one transfer. `alone` is the completion of the fault's page, if
    /// the run has that page. It serves if there is no memory for the run: then that page is read alone.
    fn submit_run(self: &Arc<Self>, run: &[Read], alone: Option<Completion>) {
        let Some(Read { from, frame, .. }) = run.first().copied() else { return };
        match (self.transfer_of(run), alone) {
            (_, Some(alone)) if run.len() == 1 => self.submit_read(from, frame, alone),
            (Some((places, completion)), _) => match self.device_of(from) {
                Some(attached) => {
                    let transfer = self.swap_transfer(Direction::Read, from.place, places, completion);
                    attached.device().submit(transfer);
                }
                None => completion(Err(StoreError::WrongBytes { offset: 0 })),
            },
            (None, mut alone) => {
                for read in run {
                    match alone.take_if(|_| !read.is_ahead) {
                        Some(alone) => self.submit_read(read.from, read.frame, alone),
                        None => self.end_swap_in(read.slot, read.frame, Err(NO_MEMORY), false),
                    }
                }
            }
        }
    }

    fn device_of(&self, from: Location) -> Option<&Attached> {
        self.swap.0.get()?.devices.get(from.device)
    }

    /// Returns the pages in memory and the completion of a run. Returns `None` if there is no memory for them.
    fn transfer_of(self: &Arc<Self>, run: &[Read]) -> Option<(Places, Completion)> {
        let (mut places, mut reads) = (Places::new(), SmallVec::<[Read; 1]>::new());
        places.try_reserve_exact(run.len()).ok()?;
        reads.try_reserve_exact(run.len()).ok()?;
        places.extend(run.iter().map(|read| self.place_of(read.frame)));
        reads.extend_from_slice(run);
        let engine = self.clone();
        Some((places, try_box(move |result| engine.end_run(&reads, result)).ok()?))
    }

    /// Ends the reads of a run. Called on any thread.
    fn end_run(self: &Arc<Self>, run: &[Read], result: Result<usize, StoreError>) {
        let first = run.first().map_or(0, |read| read.from.place * PAGE_SIZE);
        let outcome = Outcome::new(first, run.len(), result);
        for (index, read) in run.iter().enumerate() {
            let result = match outcome.part(index) {
                Part::Moved(bytes) => Ok(bytes),
                Part::Failed(error) => Err(error),
                Part::NotTried if read.is_ahead => Err(NO_MEMORY),
                // A page before it, which no fault needs, has failed.
                Part::NotTried => match self.completion_of(read.slot, read.frame) {
                    Some(alone) => {
                        self.submit_read(read.from, read.frame, alone);
                        continue;
                    }
                    None => Err(NO_MEMORY),
                },
            };
            self.end_swap_in(read.slot, read.frame, result, !read.is_ahead);
        }
    }

    // ---- the end of a read

    /// Ends a read. Called on any thread. A page that cannot be had is lost for all if `is_final`.
    fn end_swap_in(&self, slot: Slot, frame: Frame, result: Result<usize, StoreError>, is_final: bool) {
        let found = self.swap.0.get().and_then(|space| space.slots.get(slot.get()));
        let Some(found) = found else { return };
        let offset = found.location().map_or(0, |location| location.place * PAGE_SIZE);
        let result = match result {
            Ok(moved) if moved as u64 >= PAGE_SIZE => {
                let generation = found.state().generation();
                let checksum = checksum(self.bytes_at_rest(frame), slot.get(), generation);
                let is_same = mutant!("other_bytes_are_data") || checksum == found.checksum();
                if is_same { Ok(()) } else { Err(StoreError::WrongBytes { offset }) }
            }
            Ok(_) => Err(StoreError::PastEnd { offset }),
            Err(error) => Err(error.at(offset)),
        };
        self.finish_swap_in(slot, frame, result, is_final);
    }

    /// Ends a read with its checked result.
    fn finish_swap_in(&self, slot: Slot, frame: Frame, result: Result<(), StoreError>, is_final: bool) {
        self.assert_may_sleep("the end of a read");
        let folio = self.folio(frame);
        match result {
            Ok(()) => folio.finish_read(),
            Err(error) => {
                // A device without memory may have some at the next access.
                if is_final && error.errno() != errno::ENOMEM {
                    self.poison(slot, error);
                }
                self.take_out(frame);
                folio.fail_read(error);
            }
        }
        self.wake_all(core::ptr::from_ref(folio).addr());
        self.put_slot(slot);
        self.unpin(frame, Reference::Pin);
        self.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        self.tell_memory();
    }

    fn poison(&self, slot: Slot, error: StoreError) {
        let found = self.swap.0.get().and_then(|space| space.slots.get(slot.get()));
        found.into_iter().for_each(|slot: &SwapSlot| slot.poison(error));
    }
}
