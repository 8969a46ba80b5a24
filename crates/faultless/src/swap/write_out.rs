//! Writing folios to their slots, and freeing those whose slots have the bytes.
//!
//! A write that fails goes to another place: of the next device if this one refused the page (it has no room, or compresses the page
//! badly), else of the same one. After three failures of a page, its folio stays attached and unwritten. Nothing is lost, and a later
//! [`Engine::write_out`] tries again. After three failed writes in a row, a device takes no more pages.

use super::Space;
use super::slot::{Location, SwapSlot};
use super::steps::{Evicted, NoWrite, Steps, Surroundings as _};
use super::transfer::repeated_word;
use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::errno;
use crate::frame::Reference;
use crate::host::{Frame, Host};
use crate::stats::Counter;
use crate::store::{Direction, Outcome, Part, Places, StoreError};
use crate::sync::atomic::Ordering;
use crate::sync::try_box_or_back;
use alloc::sync::Arc;
use smallvec::SmallVec;

/// The number of failures after which the write of a page is given up.
const FAILURES: u8 = 3;

/// The numbers of folios that [`Engine::write_out`] has freed, has begun to write, or has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WrittenOut {
    /// The number of folios whose frames are free now.
    pub freed: usize,
    /// The number of folios whose write was started. A frame is free when its write has succeeded, if nothing else wants it then.
    pub started: usize,
    /// The number of folios that are still in use, or for which there was no place.
    pub kept: usize,
    /// Those of `kept` that another thread has pinned or mapped.
    pub busy: usize,
}

/// The outcome for one folio.
enum Out {
    Freed,
    Started,
    Kept,
    Busy,
}

/// The pages of one transfer. A single page needs no memory of the allocator.
type Run = SmallVec<[Frame; 1]>;

impl<H: Host> Engine<H> {
    /// Frees those of `frames` whose slots have their bytes, and writes the others to theirs. For each frame the caller has a pin and
    /// the folio isolated, has unmapped and invalidated it, and lets go of both here. `frames` is in another order afterwards. Waits
    /// for no I/O. The caller is in no section.
    pub(crate) fn write_out(self: &Arc<Self>, frames: &mut [Frame]) -> WrittenOut {
        self.assert_may_sleep("swap-out");
        let mut out = WrittenOut::default();
        let Some((space, steps)) = self.swap_steps() else { return out };
        for index in 0..frames.len() {
            match self.begin_out(space, steps, frames[index]) {
                Out::Freed => out.freed += 1,
                Out::Kept => out.kept += 1,
                Out::Busy => {
                    out.kept += 1;
                    out.busy += 1;
                }
                Out::Started => {
                    frames.swap(out.started, index);
                    out.started += 1;
                }
            }
        }
        let mut rest = &mut frames[..out.started];
        rest.sort_unstable_by_key(|frame| self.written_slot(space, *frame).and_then(SwapSlot::location));
        while !rest.is_empty() {
            let (run, location) = self.first_run(space, rest);
            rest = &mut rest[run.len()..];
            self.counters().add(Counter::SwapOuts, run.len() as u64);
            self.submit_out(run, location, 0);
        }
        if out.freed > 0 {
            self.tell_freed();
        }
        out
    }

    /// Frees one folio, or begins its write.
    fn begin_out(&self, space: &Space, steps: Steps<'_, Self>, frame: Frame) -> Out {
        if steps.try_evict(frame) == Evicted::Freed {
            return Out::Freed;
        }
        let (number, generation, slot) = match steps.begin_write(frame) {
            Ok(begun) => begun,
            Err(why) => {
                match why {
                    NoWrite::NotBegun => self.folio(frame).end_isolation(),
                    // An access to the file may wait for the end of the write.
                    NoWrite::Ended => self.wake_all(core::ptr::from_ref(self.folio(frame)).addr()),
                }
                self.unpin(frame, Reference::Pin);
                return Out::Busy;
            }
        };
        let bytes = self.bytes_at_rest(frame);
        if let Some(word) = repeated_word(bytes) {
            if let Some(location) = slot.location() {
                self.release(location);
            }
            slot.set_pattern(word);
            self.counters().add(Counter::SwapOuts, 1);
            return self.end_out(frame, true);
        }
        if slot.location().is_none() {
            slot.set_location(space.devices.reserve(0));
        }
        if slot.location().is_none() {
            return self.end_out(frame, false);
        }
        slot.set_checksum(checksum(bytes, number, generation));
        Out::Started
    }

    /// Returns the slot of a folio whose write is under way. The folio may have been taken out, but keeps the slot's number: no thread
    /// attaches a folio that is being written.
    fn written_slot<'a>(&self, space: &'a Space, frame: Frame) -> Option<&'a SwapSlot> {
        space.slots.get(self.folio(frame).index())
    }

    /// Returns the first folios of `rest` that one transfer can have, and the place of the first.
    fn first_run(&self, space: &Space, rest: &[Frame]) -> (Run, Option<Location>) {
        let location = |frame: &Frame| self.written_slot(space, *frame).and_then(SwapSlot::location);
        let Some(first) = location(&rest[0]) else { return (Run::from_buf([rest[0]]), None) };
        let most = space.devices.get(first.device).map_or(1, super::device::Attached::max_pages);
        let next = |place: u64| Some(Location { place: first.place + place, ..first });
        let follows = |(place, frame): &(u64, &Frame)| location(frame) == next(*place);
        let count = (0..).zip(rest.iter().take(most)).take_while(follows).count().max(1);
        let mut run = Run::new();
        let count = if run.try_reserve_exact(count).is_ok() { count } else { 1 };
        run.extend_from_slice(&rest[..count]);
        (run, Some(first))
    }

    /// Submits the write of folios whose places follow each other. `failures`: the number of times that the write has failed.
    fn submit_out(self: &Arc<Self>, run: Run, location: Option<Location>, failures: u8) {
        let there = location.and_then(|to| Some((to, self.swap.0.get()?.devices.get(to.device)?)));
        let mut places = Places::new();
        let (Some((to, attached)), Ok(())) = (there, places.try_reserve_exact(run.len())) else {
            run.iter().for_each(|frame| {
                self.end_out(*frame, false);
            });
            return;
        };
        places.extend(run.iter().map(|frame| self.place_of(*frame)));
        self.cache.transfers.fetch_add(1, Ordering::Relaxed);
        let engine = self.clone();
        let offset = to.place * PAGE_SIZE;
        let completion = match try_box_or_back(move |result| engine.end_outs(&run, to, failures, result)) {
            Ok(completion) => completion,
            Err(end) => return end(Err(StoreError::Io { offset, errno: errno::ENOMEM })),
        };
        attached.device().submit(self.swap_transfer(Direction::Write, to.place, places, completion));
    }

    /// Ends the write of folios whose places follow each other from `first` on. Called on any thread.
    fn end_outs(
        self: &Arc<Self>,
        run: &[Frame],
        first: Location,
        failures: u8,
        result: Result<usize, StoreError>,
    ) {
        self.assert_may_sleep("the end of a write");
        let outcome = Outcome::new(first.place * PAGE_SIZE, run.len(), result);
        for (index, frame) in run.iter().enumerate() {
            let here = Location { place: first.place + index as u64, ..first };
            match outcome.part(index) {
                Part::Moved(bytes) if bytes as u64 == PAGE_SIZE => {
                    if let Some(device) = self.swap.0.get().and_then(|space| space.devices.get(here.device)) {
                        device.note(true);
                    }
                    self.end_out(*frame, true);
                }
                // Alone, so that it is tried.
                Part::NotTried => self.submit_out(Run::from_buf([*frame]), Some(here), failures),
                Part::Moved(_) => {
                    let error = StoreError::PastEnd { offset: here.place * PAGE_SIZE };
                    self.write_elsewhere(*frame, here, failures, error);
                }
                // Memory for the transfer, which a later try may find. The place stays that of the page.
                Part::Failed(error) if error.errno() == errno::ENOMEM => {
                    self.end_out(*frame, false);
                }
                Part::Failed(error) => self.write_elsewhere(*frame, here, failures, error),
            }
        }
        self.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        self.tell_memory();
    }

    /// Writes a folio to another place after its write to `here` has failed.
    fn write_elsewhere(self: &Arc<Self>, frame: Frame, here: Location, failures: u8, error: StoreError) {
        let slot = self.swap.0.get().and_then(|space| Some((space, self.written_slot(space, frame)?)));
        let Some((space, slot)) = slot else { return };
        let is_refused = matches!(error, StoreError::NoSpace { .. });
        let failures = failures + u8::from(!is_refused);
        if !is_refused {
            self.counters().add(Counter::SwapWriteErrors, 1);
            if let Some(device) = space.devices.get(here.device) {
                device.note(false);
            }
        }
        let first = here.device + u8::from(is_refused);
        // Before the old place is free, so that it is another one.
        let next = if failures < FAILURES { space.devices.reserve(first) } else { None };
        self.release(here);
        slot.set_location(next);
        match next {
            Some(_) => self.submit_out(Run::from_buf([frame]), next, failures),
            None => {
                self.end_out(frame, false);
            }
        }
    }

    /// Ends the write of one folio, and frees the frame if the slot has its bytes and nothing else has the folio.
    fn end_out(&self, frame: Frame, has_succeeded: bool) -> Out {
        let folio = self.folio(frame);
        let Some((space, steps)) = self.swap_steps() else { return Out::Kept };
        let number = folio.index();
        if let Some(slot) = space.slots.get(number) {
            steps.end_write(number, slot, frame, has_succeeded);
        }
        self.wake_all(core::ptr::from_ref(folio).addr());
        if steps.try_evict(frame) == Evicted::Freed {
            return Out::Freed;
        }
        self.unpin(frame, Reference::Pin);
        Out::Kept
    }
}

/// Returns the checksum of a page in a life of its slot. It is kept in the slot, and never on a device: other bytes on the device, whoever
/// wrote them, have another checksum.
pub(super) fn checksum(bytes: &[u8], slot: u64, generation: u16) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    hasher.update(&slot.to_le_bytes());
    hasher.update(&generation.to_le_bytes());
    hasher.finalize()
}
