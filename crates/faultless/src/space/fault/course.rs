//! The steps of a fault between two tries, while nothing is announced: to make room, to let a design take its lock, to begin
//! the read of a page. A fault that would have to wait becomes a [`PendingFault`].

use super::file::NotReady;
use super::pending::Awaited;
use super::swap_ahead::Ahead;
use super::swapped::SlotName;
use super::{Absent, FaultError, PendingFault, Step, is_lacking, past_end};
use crate::address::VirtAddr;
use crate::design::{AfterIo, Attempt, Awaits, Capability, LockingDesign};
use crate::host::{FrameUse, GroupId, Host};
use crate::limit::Event;
use crate::page_cache::{MOST_TURNS, Miss, Pin};
use crate::protection::Access;
use crate::space::AddressSpace;
use crate::stats::Counter;
use crate::swap::{Cached, SwapIn};
use crate::sync::Park;

/// The progress of a fault, kept from try to try.
pub(super) struct Course<H: Host, D: LockingDesign> {
    pub attempt: Attempt,
    /// The state that the design keeps from the last try.
    pub kept: Option<D::Kept>,
    /// A pin on the page to be copied, while room for the copy is made. Otherwise that room could be the page itself: a design that
    /// keeps no pin through its I/O would read and lose the page for ever.
    pub source: Option<Pin<H>>,
    /// Set once the fault is counted as a major fault.
    pub is_counted: bool,
    /// Counts the tries that found no memory; `closed` counts those that met a closed record.
    pub look: u32,
    pub closed: u32,
}

impl<H: Host, D: LockingDesign> Course<H, D> {
    /// Makes the progress of a fault that has made no try.
    #[inline]
    pub fn new(attempt: Attempt) -> Self {
        let is_counted = attempt.retries > 0;
        Self { attempt, kept: None, source: None, is_counted, look: 0, closed: 0 }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Does the work that a fault needs before its next try. The next try comes now, unless the fault is put into
    /// `pending`. Nothing is announced.
    #[cold]
    #[inline(never)]
    pub(super) fn between_tries(
        &self,
        (address, access): (VirtAddr, Access),
        step: Step<H>,
        course: &mut Course<H, D>,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        let space = &*self.0;
        let (page, engine) = (address.page(), &space.engine);
        match step {
            Step::Done(_) => unreachable!("the caller's"),
            Step::Failed(error) => Err(error),
            Step::Hole => {
                // Nothing is held while a mapping above is made longer.
                course.kept = None;
                if space.space_flags.dying.is_set() {
                    return Err(FaultError::Exited { address });
                }
                if space.grow_down(page) { Ok(()) } else { Err(FaultError::NoMapping { address }) }
            }
            Step::Blocked => {
                course.kept = None;
                D::blocked(&space.lock, engine, &mut course.attempt);
                Ok(())
            }
            // Range work has closed a record, and has not yet published the new mapping.
            Step::LookAgain => {
                course.kept = None;
                engine.pause_on_bit(course.closed);
                course.closed += 1;
                Ok(())
            }
            Step::NeedMemory => self.make_room((address, access), course, pending),
            // Frames are there, so a page that is taken would be of no use.
            Step::NeedTable if engine.has_frames() && !mutant!("tables_take_pages") => {
                course.kept = None;
                course.look += 1;
                engine.wait_for_memory(course.look);
                if engine.looks_for_room(course.look, false) {
                    return Ok(());
                }
                self.refuse_for_memory(address, access);
                Err(FaultError::OutOfMemory { address })
            }
            Step::NeedTable => self.make_room((address, access), course, pending),
            Step::NeedCopy(frame) => {
                course.source = Some(Pin::new(engine, frame));
                self.make_room((address, access), course, pending)
            }
            Step::Wait(_) if D::allows(&space.lock, engine, course.attempt, Capability::Wait).is_err() => {
                course.kept = None;
                D::blocked(&space.lock, engine, &mut course.attempt);
                Ok(())
            }
            Step::Wait(absent) => self.wait_for_page((address, access), absent, course, pending),
            Step::Swap(_) if D::allows(&space.lock, engine, course.attempt, Capability::Wait).is_err() => {
                course.kept = None;
                D::blocked(&space.lock, engine, &mut course.attempt);
                Ok(())
            }
            Step::Swap(name) => self.wait_for_slot((address, access), name, course, pending),
        }
    }

    /// Makes room for the page, after a try that found no free frame. If transfers are under way, whose end may free some, the
    /// fault is put into `pending`.
    #[inline(never)]
    fn make_room(
        &self,
        (address, access): (VirtAddr, Access),
        course: &mut Course<H, D>,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        let engine = &self.0.engine;
        let transfers = engine.wait_for_transfers();
        if let Err(full) = engine.make_room(self.0.group(), 1, &mut course.look) {
            if self.end_a_victim(full, address, course)? {
                return Ok(());
            }
            self.refuse_for_memory(address, access);
            return Err(FaultError::OutOfMemory { address });
        }
        // If it has freed some, the next try comes now: no transfer tells of those.
        if let Some(seen) = transfers
            && (course.look != 0 || mutant!("waits_beside_free_frames"))
            && !engine.looks_for_worker(course.look)
            && course.attempt.turns < MOST_TURNS
        {
            course.kept = None;
            let awaited = Awaited::Memory { seen };
            PendingFault::put(pending, self, (address, access), course.attempt, awaited, None);
        }
        Ok(())
    }

    /// Ends a space of the group `full`, in which the fault has found no room, if the engine ends spaces. Returns whether the fault tries
    /// again.
    fn end_a_victim(
        &self,
        full: GroupId,
        address: VirtAddr,
        course: &mut Course<H, D>,
    ) -> Result<bool, FaultError> {
        let dying = &self.0.space_flags.dying;
        // The state is dropped before the design is asked for it again, and before a space is ended.
        course.kept = None;
        let is_relieved = self.0.engine.end_a_victim((full, 1), dying, &mut course.attempt.turns);
        if dying.is_set() {
            return Err(FaultError::Exited { address });
        }
        if is_relieved {
            course.look = 0;
        }
        Ok(is_relieved)
    }

    /// Begins to read the page that a slot has, unless that has happened meanwhile.
    #[inline(never)]
    fn wait_for_slot(
        &self,
        (address, access): (VirtAddr, Access),
        name: SlotName,
        course: &mut Course<H, D>,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        let (space, attempt) = (&*self.0, course.attempt);
        let engine = &space.engine;
        if !core::mem::replace(&mut course.is_counted, true) {
            engine.counters().add(Counter::MajorFaults, 1);
            engine.sections().groups().note(space.group(), Event::MajorFault, 1);
        }
        let (frame, started) = match engine.pin_cached(name.slot) {
            Cached::Pinned(frame) => (frame, false),
            Cached::Busy => return Ok(()),
            Cached::Absent => {
                let group = self.0.group();
                let Some(frame) = engine.take_frame(group, FrameUse::Anonymous) else {
                    return self.make_room((address, access), course, pending);
                };
                let shadow = engine.slot_shadow(name.slot);
                let ahead = match engine.may_read_ahead(name.slot) {
                    true => space.swapped_near(address.page()),
                    false => Ahead::new(),
                };
                match engine.begin_swap_in(name.slot, name.generation, frame, &ahead) {
                    SwapIn::Started => {
                        engine.refaulted(frame, shadow);
                        (frame, true)
                    }
                    // Another thread was faster, or the page is gone, or the next try finds the error.
                    SwapIn::Lost | SwapIn::Gone | SwapIn::Poisoned(_) => return Ok(()),
                    SwapIn::OutOfMemory => {
                        course.kept = None;
                        self.refuse_for_memory(address, access);
                        return Err(FaultError::OutOfMemory { address });
                    }
                }
            }
        };
        let mut kept =
            course.kept.take().filter(|_| D::after_io(attempt, Awaits::Anonymous) == AfterIo::Hold);
        if let Some(kept) = &mut kept {
            D::through_io(kept);
        }
        let awaited = Awaited::Swap { pin: Pin::new(engine, frame), name, started };
        PendingFault::put(pending, self, (address, access), attempt, awaited, kept);
        Ok(())
    }

    #[inline(never)]
    fn refuse_for_memory(&self, address: VirtAddr, access: Access) {
        self.0.refuse(address.page(), |work| is_lacking(work, access));
    }

    /// Begins to read a page of a file that is not in memory, unless that has happened meanwhile.
    #[inline(never)]
    fn wait_for_page(
        &self,
        (address, access): (VirtAddr, Access),
        absent: Absent<H>,
        course: &mut Course<H, D>,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        let (space, attempt) = (&*self.0, course.attempt);
        // A page of a file without a store is often in the swap cache, or on its way to a slot: nothing is read then.
        if absent.why == NotReady::Absent && !absent.file.is_in_memory() {
            self.count_major(course);
        }
        let after = absent.after::<D>(attempt);
        // State that was kept while memory was short is not kept through this wait.
        let kept = course.kept.take().filter(|_| after == AfterIo::Hold);
        let read = absent.file.read(absent.page, attempt.retries > 0, (attempt.ticket, space.group()));
        let read = match read {
            Err(Miss::Queue(_)) if attempt.turns >= MOST_TURNS => Err(Miss::OutOfMemory(Some(GroupId::ROOT))),
            // As for an anonymous page: the pages of the group, or of the machine, give a frame.
            Err(Miss::NoFrame) => {
                drop((kept, absent));
                return self.make_room((address, access), course, pending);
            }
            read => read,
        };
        if absent.file.is_in_memory()
            && read.as_ref().is_ok_and(|(pin, started)| *started || pin.is_reading())
        {
            self.count_major(course);
        }
        self.go_on_after_read((address, access), read, absent, kept, course, pending)
    }

    /// Counts a fault that needs I/O, once.
    fn count_major(&self, course: &mut Course<H, D>) {
        if !core::mem::replace(&mut course.is_counted, true) {
            self.0.engine.counters().add(Counter::MajorFaults, 1);
            self.0.engine.sections().groups().note(self.0.group(), Event::MajorFault, 1);
        }
    }

    /// Goes on with a fault that has begun to read a page, or could not. Not inlined, so that its frame is off the stack while room for
    /// the page is made.
    #[inline(never)]
    fn go_on_after_read(
        &self,
        (address, access): (VirtAddr, Access),
        read: Result<(Pin<H>, bool), Miss>,
        absent: Absent<H>,
        mut kept: Option<D::Kept>,
        course: &mut Course<H, D>,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        let (space, page, attempt) = (&*self.0, address.page(), course.attempt);
        let after = absent.after::<D>(attempt);
        let refused = |absent: &Absent<H>| space.refuse(page, |work| absent.is_wanted_by(work, access));
        let awaited = match read {
            // The page was read or unlocked meanwhile. The resumed fault keeps the pin all the same: it must not lose the page
            // again.
            Ok((pin, _))
                if after != AfterIo::Resume
                    && !absent.is_busy::<D>(&pin)
                    && absent.file.is_attached(absent.page, pin.frame()) =>
            {
                course.kept = kept;
                return Ok(());
            }
            Ok((pin, started)) => {
                // The page of a file without a store is written to a slot, and comes back after that.
                let is_written = absent.file.is_in_memory() && !pin.is_reading() && pin.is_writeback();
                let why = if is_written { NotReady::Writeback } else { absent.why };
                Awaited::Page { pin, absent: Absent { why, ..absent }, started }
            }
            Err(Miss::PastEnd) => {
                drop(kept);
                refused(&absent);
                return Err(past_end(address, &absent.file, absent.page));
            }
            Err(Miss::OutOfMemory(full)) => {
                drop(kept);
                if let Some(full) = full
                    && self.end_a_victim(full, address, course)?
                {
                    return Ok(());
                }
                refused(&absent);
                return Err(FaultError::OutOfMemory { address });
            }
            Err(Miss::Lost(error)) => {
                drop(kept);
                refused(&absent);
                return Err(FaultError::Io { address, error });
            }
            // To wait for others' pins with a lock could keep the others from dropping them.
            Err(miss) => {
                kept = None;
                match miss {
                    Miss::Full(full) => Awaited::Place { full },
                    Miss::Queue(seen) => Awaited::Memory { seen },
                    Miss::Forbidden => Awaited::Allowed { file: absent.file, page: absent.page },
                    Miss::PastEnd | Miss::OutOfMemory(_) | Miss::Lost(_) => unreachable!("matched above"),
                    Miss::NoFrame | Miss::InSlot => unreachable!("room is made; a read brings the page back"),
                }
            }
        };
        if let Some(kept) = &mut kept {
            D::through_io(kept);
        }
        PendingFault::put(pending, self, (address, access), attempt, awaited, kept);
        Ok(())
    }
}
