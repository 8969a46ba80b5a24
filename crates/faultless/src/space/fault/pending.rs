//! A fault that waits: a value that holds no lock and may be dropped at any time.

use super::super::{AddressSpace, Space, SpaceFlags};
use super::file::NotReady;
use super::swapped::{self, SlotName};
use super::{Absent, Fault, FaultError, Step, begin_record, copy_on_write, file, past_end};
use crate::address::VirtAddr;
use crate::design::{AfterIo, Attempt, Awaits, Faultless, LockingDesign};
use crate::engine::{Engine, Notice};
use crate::frame::Reference;
use crate::host::{Entry, EntryKind, Host, OutOfMemory, Sleeper};
use crate::page_cache::{AwaitedTurn, File, Full, HAS_TURN, NEWCOMER, Pin, Turn};
use crate::protection::Access;
use crate::space::fault::page_work::{Announced, Leaves, Worked};
use crate::space::fault::shared_page::{SharedPage, SharedWork};
use crate::stats::Counter;
use crate::store::StoreError;
use crate::sync::{Section, Shared, Weak, try_box};
use crate::vma::Mapping;
use alloc::boxed::Box;
use alloc::sync::Arc;

/// The event that a fault waits for.
pub(super) enum Awaited<H: Host> {
    /// The read, or the unlocking, of a folio that the fault has pinned. The pin keeps the page in memory until the fault comes
    /// back.
    Page { pin: Pin<H>, absent: Absent<H>, started: bool },
    /// The read of a slot, into a folio that the fault has pinned.
    Swap { pin: Pin<H>, name: SlotName, started: bool },
    /// Memory, until the count of events is no longer `seen`. Others' pins, or transfers under way, have the memory.
    Memory { seen: u64 },
    /// The permission to begin transfers of a page of a file.
    Allowed { file: Shared<File<H>>, page: u64 },
    /// Room for one more pin of the page.
    Place { full: Full },
}

/// The way to wake the sleeper that the fault was given.
struct Told<H: Host> {
    #[expect(dead_code, reason = "it is in queues")]
    notice: Notice,
    /// The turn in the queue for memory, if the fault waits for memory.
    turn: Option<AwaitedTurn<H>>,
}

/// A page fault whose I/O is under way. It holds values, a pinned folio, a weak handle to its space and the design's `Kept`.
/// For [`crate::design::Faultless`], `Kept` has no values at all (invariant 2).
///
/// To drop the fault is to give it up: the read goes on, nothing else happens.
#[must_use = "a pending fault does nothing until it is waited for or finished"]
pub struct PendingFault<H: Host, D: LockingDesign = Faultless> {
    /// The notices for the sleeper. They are in queues of the engine and of the space's flags, so they are dropped before
    /// those.
    told: Option<Box<Told<H>>>,
    engine: Arc<Engine<H>>,
    space: Weak<Space<H, D>>,
    /// The flags of the space.
    space_flags: Shared<SpaceFlags>,
    address: VirtAddr,
    access: Access,
    attempt: Attempt,
    awaited: Awaited<H>,
    kept: Option<D::Kept>,
}

/// The attempt with which a fault begins anew after its wait, and the pin that it keeps until then.
type Anew<H> = (Attempt, Option<Pin<H>>);

impl<H: Host, D: LockingDesign> PendingFault<H, D> {
    /// Puts a fault that waits into `place`.
    #[inline(never)]
    pub(super) fn put(
        place: &mut Option<Self>,
        space: &AddressSpace<H, D>,
        (address, access): (VirtAddr, Access),
        mut attempt: Attempt,
        awaited: Awaited<H>,
        kept: Option<D::Kept>,
    ) {
        if matches!(awaited, Awaited::Memory { .. }) && attempt.ticket == NEWCOMER {
            attempt.ticket = space.engine().cache.queue.ticket();
        }
        let (engine, space_flags, space) =
            (space.engine().clone(), space.0.space_flags.clone(), space.downgrade());
        *place =
            Some(Self { told: None, engine, space, space_flags, address, access, attempt, awaited, kept });
    }

    /// Returns the address of the access.
    pub fn address(&self) -> VirtAddr {
        self.address
    }

    /// Returns the kind of the access.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Calls the host's [`Park::unpark`](crate::host::Park::unpark) with `sleeper` once, when [`PendingFault::is_ready`] may
    /// have become true, unless the fault is dropped before.
    ///
    /// This is for a host that serves many faults at once, and gives each a name among its sleepers. The fault may have become
    /// ready before the call: check once more afterwards. The wake-up may be for nothing: if the fault is not ready then, call
    /// this again.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the sleeper may not be woken. The fault is as before.
    pub fn notify(&mut self, sleeper: Sleeper) -> Result<(), OutOfMemory> {
        let mut turn = None;
        let key = match &self.awaited {
            Awaited::Page { pin, .. } | Awaited::Swap { pin, .. } => Some(pin.key()),
            Awaited::Allowed { file, .. } => Some(file.forbidden_key()),
            Awaited::Place { full } => Some(self.engine.place_key(*full)),
            Awaited::Memory { seen } => {
                turn = Some(AwaitedTurn::new(&self.engine, sleeper, *seen, self.attempt.ticket)?);
                None
            }
        };
        // SAFETY: the fault has the engine and the signs, and drops the notice before them.
        let notice = unsafe { self.engine.notice(sleeper, key, &self.space_flags.dying)? };
        self.told = Some(try_box(Told { notice, turn })?);
        Ok(())
    }

    /// Returns whether [`PendingFault::finish`] would go on now. For a host that polls.
    pub fn is_ready(&self) -> bool {
        self.is_given_up()
            || match &self.awaited {
                Awaited::Page { pin, absent, .. } => !match absent.why {
                    NotReady::Absent => pin.is_reading(),
                    NotReady::Locked => pin.is_locked(),
                    NotReady::Writeback => pin.is_writeback(),
                },
                Awaited::Swap { pin, .. } => !pin.is_reading(),
                Awaited::Memory { seen } => match &self.told {
                    Some(told) => told.turn.as_ref().is_some_and(AwaitedTurn::is_turn),
                    // A host that polls gets no turn in the queue.
                    None => self.engine.cache.queue.events() != *seen,
                },
                Awaited::Allowed { file, page } => !file.is_forbidden(*page),
                Awaited::Place { full } => self.engine.has_place(*full),
            }
    }

    /// Returns whether the space has exited.
    fn is_given_up(&self) -> bool {
        self.space_flags.dying.is_set()
    }

    /// Sleeps until the I/O has ended or the space has exited, and goes on. Returns a pending fault again if the page must be
    /// fetched anew.
    ///
    /// # Errors
    /// [`FaultError`], as [`AddressSpace::fault`].
    pub fn wait(self) -> Result<Fault<H, D>, FaultError> {
        let mut place = Some(self);
        Self::wait_in(&mut place)?;
        Ok(place.map_or(Fault::Done, Fault::Pending))
    }

    /// Waits as [`PendingFault::wait`], with the fault in `place`. `place` is empty afterwards if the fault is done or has
    /// failed. The stack has no room for a fault in each of the calls that follow.
    pub(super) fn wait_in(place: &mut Option<Self>) -> Result<(), FaultError> {
        let Some(fault) = place else { return Ok(()) };
        if let Some(turn) = fault.turn_that_came() {
            return Self::take_turn(place, Some(turn));
        }
        // From here on the thread itself waits.
        fault.told = None;
        let dying = Some(&fault.space_flags.dying);
        match &fault.awaited {
            Awaited::Page { pin, absent, .. } => match absent.why {
                NotReady::Absent => pin.wait_for_read(dying),
                NotReady::Locked => pin.wait_for_lock(dying),
                NotReady::Writeback => pin.wait_for_write(dying),
            },
            Awaited::Swap { pin, .. } => pin.wait_for_read(dying),
            Awaited::Memory { seen } => {
                let turn = fault.engine.wait_for_turn(*seen, fault.attempt.ticket, dying);
                return Self::take_turn(place, turn);
            }
            Awaited::Allowed { file, page } => file.wait_while_forbidden(*page, dying),
            Awaited::Place { full } => fault.engine.wait_for_place(*full, dying),
        }
        Self::go_on(place)
    }

    /// Goes on if the I/O has ended, otherwise returns the fault as it was. Does not sleep for I/O.
    ///
    /// # Errors
    /// [`FaultError`], as [`AddressSpace::fault`]; `Exited` if the space has exited.
    pub fn finish(mut self) -> Result<Fault<H, D>, FaultError> {
        if !self.is_ready() {
            return Ok(Fault::Pending(self));
        }
        let turn = self.turn_that_came();
        let mut place = Some(self);
        Self::take_turn(&mut place, turn)?;
        Ok(place.map_or(Fault::Done, Fault::Pending))
    }

    /// Returns the turn of the sleeper that the fault was given, if the turn has come.
    fn turn_that_came(&mut self) -> Option<Turn<H>> {
        self.told.as_mut()?.turn.as_mut()?.take_turn()
    }

    /// Goes on with a turn in the queue for memory, unless the space has exited. Releases the turn then.
    fn take_turn(place: &mut Option<Self>, turn: Option<Turn<H>>) -> Result<(), FaultError> {
        let (Some(turn), Some(fault)) = (turn, &mut *place) else { return Self::go_on(place) };
        let ticket = core::mem::replace(&mut fault.attempt.ticket, HAS_TURN);
        let result = Self::go_on(place);
        if let Some(pending) = place {
            pending.attempt.ticket = ticket;
            if let Awaited::Memory { seen } = pending.awaited {
                pending.attempt.turns = pending.attempt.turns.saturating_add(1);
                turn.failed(seen);
            }
        }
        result
    }

    fn go_on(place: &mut Option<Self>) -> Result<(), FaultError> {
        let Some(fault) = place.take() else { return Ok(()) };
        let (address, access) = (fault.address, fault.access);
        let space = fault.space.upgrade().map(AddressSpace).filter(|_| !fault.is_given_up());
        let space = space.ok_or(FaultError::Exited { address })?;
        match fault.after_wait(&space)? {
            None => {
                space.0.engine.count_fault_of(space.0.group());
                space.0.engine.call_if_owed();
                Ok(())
            }
            // The pin stays until then, so that a page still needed is found.
            Some((attempt, _pin)) => space.fault_from(address, access, attempt, place),
        }
    }

    /// Maps the page after the wait, if that is possible. Otherwise returns how the fault begins anew, with nothing kept but
    /// the pin.
    #[inline(never)]
    fn after_wait(self, space: &AddressSpace<H, D>) -> Result<Option<Anew<H>>, FaultError> {
        let Self { address, access, attempt, awaited, kept, .. } = self;
        let (pin, absent, started) = match awaited {
            Awaited::Page { pin, absent, started } => (pin, absent, started),
            Awaited::Swap { pin, name, started } => {
                let was_held = kept.is_some();
                return Self::after_swap_in(
                    space,
                    (address, access, attempt),
                    pin,
                    (name, started),
                    was_held,
                );
            }
            Awaited::Memory { .. } | Awaited::Allowed { .. } | Awaited::Place { .. } => {
                return Ok(Some((attempt, None)));
            }
        };
        if absent.file.is_in_memory() {
            // A page that was read from a slot is the file's from here on, unless the file has been cut. If the read has failed, the
            // fault that starts over finds the error.
            absent.file.join(absent.page, pin.frame());
            if !space.engine().folio(pin.frame()).is_uptodate() {
                return Ok(Some((D::again(attempt, started), None)));
            }
        }
        let offset = absent.page * crate::address::PAGE_SIZE;
        match space.engine().folio(pin.frame()).read_error(offset) {
            None => {}
            Some(error) if absent.file.is_cut_since(absent.cuts, error) => {
                return Ok(Some((D::again(attempt, started), None)));
            }
            Some(error) => {
                drop(kept);
                space.0.refuse(address.page(), |work| absent.is_wanted_by(work, access));
                return Err(match error {
                    StoreError::PastEnd { .. } if absent.page >= absent.file.pages() => {
                        past_end(address, &absent.file, absent.page)
                    }
                    error => FaultError::Io { address, error },
                });
            }
        }
        let again = D::again(attempt, started);
        if absent.why == NotReady::Writeback {
            // The entry may have the page already, so there is nothing to compare.
            return Ok(Some((again, Some(pin))));
        }
        let after = absent.after::<D>(attempt);
        if after.is_retry() {
            space.engine().counters().add(Counter::Retries, 1);
            return Ok(Some((again, Some(pin).filter(|_| after == AfterIo::RetryPinned))));
        }
        if space.0.resume(address, access, attempt, &pin, &absent, kept.is_some()) {
            return Ok(None);
        }
        // Something else is mapped there, or the page was cut off meanwhile, or there was no memory. The fault starts over.
        Ok(Some((again, Some(pin))))
    }

    /// Maps the page that was read from a slot, as [`PendingFault::after_wait`] does for a page of a file.
    #[inline(never)]
    fn after_swap_in(
        space: &AddressSpace<H, D>,
        (address, access, attempt): (VirtAddr, Access, Attempt),
        pin: Pin<H>,
        (name, started): (SlotName, bool),
        was_held: bool,
    ) -> Result<Option<Anew<H>>, FaultError> {
        let again = D::again(attempt, started);
        let after = D::after_io(attempt, Awaits::Anonymous);
        if after.is_retry() {
            space.engine().counters().add(Counter::Retries, 1);
            return Ok(Some((again, Some(pin).filter(|_| after == AfterIo::RetryPinned))));
        }
        // A read that failed has marked the slot. The fault that starts over finds the error, if the entry still names the slot.
        let is_read = space.engine().folio(pin.frame()).is_uptodate();
        if is_read && space.0.resume_swapped(address, access, attempt, &pin, name, was_held) {
            return Ok(None);
        }
        Ok(Some((again, Some(pin))))
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Announces again and maps the folio that was read, if the entry still names the slot, by value, and the folio is still
    /// attached to it. Does not look the page up again.
    fn resume_swapped(
        &self,
        address: VirtAddr,
        access: Access,
        attempt: Attempt,
        pin: &Pin<H>,
        name: SlotName,
        holding: bool,
    ) -> bool {
        let is_same = |mapping: &Mapping<H>, entry: Entry, section: &Section<'_>| {
            // The mutant compares the slot's number only.
            let is_there = match entry.kind() {
                EntryKind::Swapped(slot, generation) => {
                    slot == name.slot && (generation == name.generation || mutant!("resumes_by_number"))
                }
                _ => false,
            };
            let is_same = is_there && mapping.protection.allows(access) && attempt.only.admits(mapping);
            if !is_same {
                section.counters().add(Counter::ResumesChanged, 1);
                return false;
            }
            mutant!("resumes_by_number") || self.engine.folio(pin.frame()).is_of_slot(name.slot)
        };
        let map = |work: Announced<'_, H, D>| {
            is_same(work.vma.mapping(), work.entry, work.section())
                .then(|| swapped::map_pinned(work, pin.frame(), name, access))
        };
        let map_for_all = |work: &SharedPage<'_, H, D>| {
            if !is_same(work.vma.mapping(), work.entry, work.section) {
                return Some(None);
            }
            if !work.admits(access) {
                return None;
            }
            work.map_pinned(pin.frame(), name, Some)
        };
        let map_for_all: SharedWork<'_, H, D, _> = &map_for_all;
        let shared = (access != Access::Write && !attempt.unshares).then_some(map_for_all);
        let mut tried = attempt;
        let page = address.page();
        let worked =
            self.page_work_or_shared(page, &mut tried, Leaves::Make, holding, map, shared, |_, _| false);
        match worked {
            Ok(Worked { result: Some(Step::Done(replaced)), .. }) => {
                self.after_install(address, replaced);
                true
            }
            _ => false,
        }
    }

    /// Announces again and maps the pinned folio. The page must be mapped as before, by value, its entry must still be empty,
    /// and the folio must still be the file's. Does not look the page up again.
    fn resume(
        &self,
        address: VirtAddr,
        access: Access,
        attempt: Attempt,
        pin: &Pin<H>,
        absent: &Absent<H>,
        holding: bool,
    ) -> bool {
        let map = |work: Announced<'_, H, D>| {
            if !absent.is_wanted_by(&work, access) || !work.attempt.only.admits(work.vma.mapping()) {
                work.section().counters().add(Counter::ResumesChanged, 1);
                return None;
            }
            if !absent.file.is_attached(absent.page, pin.frame()) {
                return None;
            }
            let vma = work.vma;
            let step = match (access, vma.record()) {
                (access, Some(record)) if access == Access::Write || work.attempt.unshares => {
                    begin_record(&work, record).ok()?;
                    copy_on_write::copy_of(work, pin.frame())
                }
                _ => {
                    work.engine().folio(pin.frame()).try_get(Reference::Mapping).ok()?;
                    file::map_frame(work, &absent.file, absent.page, access, pin.frame()).ok()?
                }
            };
            Some(step)
        };
        let map_for_all = |work: &SharedPage<'_, H, D>| {
            let mapping = work.vma.mapping();
            if !absent.is_wanted(mapping, work.page, work.entry, access) {
                work.section.counters().add(Counter::ResumesChanged, 1);
                return Some(None);
            }
            if !work.admits(access) || !matches!(work.entry.kind(), EntryKind::Gone(_)) {
                return None;
            }
            if !absent.file.is_attached(absent.page, pin.frame()) {
                return Some(None);
            }
            self.engine.folio(pin.frame()).try_get(Reference::Mapping).ok()?;
            work.map_file(&absent.file, pin.frame()).map(Some)
        };
        let map_for_all: SharedWork<'_, H, D, _> = &map_for_all;
        let shared = (access != Access::Write && !attempt.unshares).then_some(map_for_all);
        let mut tried = attempt;
        let page = address.page();
        let worked =
            self.page_work_or_shared(page, &mut tried, Leaves::Make, holding, map, shared, |_, _| false);
        match worked {
            Ok(Worked { result: Some(Step::Done(replaced)), .. }) => {
                self.after_install(address, replaced);
                true
            }
            _ => false,
        }
    }
}
