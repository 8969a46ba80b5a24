//! Page faults: one entry for every host. A fault announces, looks the mapping up, and does what the page needs: anonymous
//! memory, a file's page, a copy before a write. A fault that needs I/O ends its announcement and becomes a [`PendingFault`].

mod anonymous;
mod copy_on_write;
mod course;
pub(in crate::space) mod entry_count;
mod error;
mod file;
pub(in crate::space) mod first_page;
pub(in crate::space) mod page_work;
mod pending;
pub(in crate::space) mod shared_page;
pub(in crate::space) mod shared_table;
mod swap_ahead;
mod swapped;
pub(in crate::space) mod unshare;

pub use error::{FaultError, Signal};
pub use pending::PendingFault;

use crate::address::{PageNumber, PageRange, VirtAddr};
use crate::design::{AfterIo, Attempt, Awaits, Capability, Faultless, LockingDesign, Purpose};
use crate::engine::Engine;
use crate::host::{Entry, EntryKind, Frame, GroupId, Host, OutOfMemory, PageTable};
use crate::page_cache::{File, Pin};
use crate::protection::{Access, Protection, Sharing};
use crate::space::calls::protect::entry_rights;
use crate::space::fault::page_work::{Announced, Leaves, Refused};
use crate::space::fault::shared_page::{SharedPage, SharedWork};
use crate::space::{AddressSpace, Space};
use crate::sync::Section;
use crate::sync::Shared;
use crate::vma::{AnonRecord, Backing, Mapping, Vma};
use course::Course;
use file::NotReady;
use swapped::SlotName;

/// Returns the step of a fault on a page of `file` that the mapping shows, and that cannot be mapped yet.
fn wait<H: Host, D: LockingDesign>(
    vma: &Vma<H, D>,
    file: &Shared<File<H>>,
    page: u64,
    why: NotReady,
) -> Step<H> {
    let serial = vma.mapping().serial;
    Step::Wait(Absent { file: file.clone(), page, serial, why, cuts: file.cuts() })
}

/// The result of a fault.
pub enum Fault<H: Host, D: LockingDesign = Faultless> {
    /// The page is mapped with the rights asked for.
    Done,
    /// The fault waits for I/O or memory, holding nothing.
    Pending(PendingFault<H, D>),
}

/// The result of one try of a fault.
pub(in crate::space) enum Step<H: Host> {
    /// The fault is done. The translation of this old entry, if any, is to be invalidated and its frame dropped.
    Done(Option<Entry>),
    /// The mapping changed during the try.
    LookAgain,
    /// There is no frame at hand.
    NeedMemory,
    /// The host or the allocator has no memory for a table, or for a place in a file.
    NeedTable,
    /// There is no frame at hand for a copy of the page in this one, on which the fault has a pin.
    NeedCopy(Frame),
    /// The page of a file is not in memory, or is locked.
    Wait(Absent<H>),
    /// The page is in a slot, and not in memory, or being read.
    Swap(SlotName),
    /// The design needs another lock first.
    Blocked,
    /// Nothing is mapped at the address.
    Hole,
    /// The access cannot be served.
    Failed(FaultError),
}

/// A page of a file that cannot be mapped yet, and the mapping that showed it.
pub(in crate::space) struct Absent<H: Host> {
    pub file: Shared<File<H>>,
    pub page: u64,
    pub serial: u64,
    pub why: NotReady,
    /// The file's [`File::cuts`] before the page was looked up again.
    pub cuts: u64,
}

impl<H: Host> Absent<H> {
    /// Returns whether the fault may map the page (rule 8): the file, page, rights, access and serial are as they were, and the
    /// entry is empty.
    pub fn is_wanted(&self, mapping: &Mapping<H>, page: PageNumber, entry: Entry, access: Access) -> bool {
        let same_page = mapping
            .file_page(page)
            .is_some_and(|(file, page)| Shared::ptr_eq(file, &self.file) && page == self.page);
        same_page
            && mapping.serial == self.serial
            && mapping.protection.allows(access)
            && match entry.kind() {
                EntryKind::Empty | EntryKind::Gone(_) => true,
                EntryKind::Guard => mutant!("resume_over_guard"),
                EntryKind::Page(_) | EntryKind::Foreign(_) | EntryKind::Swapped(..) | EntryKind::Kept(_) => {
                    false
                }
            }
    }

    /// Returns the result of [`Absent::is_wanted`] for an announced page.
    pub fn is_wanted_by<D: LockingDesign>(&self, work: &Announced<'_, H, D>, access: Access) -> bool {
        self.is_wanted(work.vma.mapping(), work.page, work.entry, access)
    }

    /// Returns whether the page still has to be waited for.
    fn is_busy<D: LockingDesign>(&self, pin: &Pin<H>) -> bool {
        pin.is_reading()
            || D::LOCKS_FOLIOS && pin.is_locked()
            || self.why == NotReady::Writeback && pin.is_writeback()
    }

    /// Returns what the design does after the wait for the page.
    pub fn after<D: LockingDesign>(&self, attempt: Attempt) -> AfterIo {
        if self.why == NotReady::Absent { D::after_io(attempt, Awaits::File) } else { D::after_lock(attempt) }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Serves a page fault at `address`. Never waits for I/O: a fault that needs some comes back as [`Fault::Pending`].
    ///
    /// # Errors
    /// [`FaultError`]; the entry is as before.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<Fault<H, D>, FaultError> {
        self.begin_fault(address)?;
        let mut pending = None;
        self.fault_from(address, access, Attempt::first(Purpose::Fault), &mut pending)?;
        Ok(pending.map_or(Fault::Done, Fault::Pending))
    }

    /// Serves a page fault and waits for its I/O, as many times as needed.
    ///
    /// # Errors
    /// [`FaultError`].
    pub fn fault_and_wait(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        self.count_and_wait(address, access, Attempt::first(Purpose::Fault))
    }

    /// Serves a fault that makes the page of a private mapping the space's own, and waits for its I/O. For a pin.
    pub(in crate::space) fn unshare_and_wait(
        &self,
        address: VirtAddr,
        access: Access,
    ) -> Result<(), FaultError> {
        self.count_and_wait(address, access, Attempt { unshares: true, ..Attempt::first(Purpose::Fault) })
    }

    #[inline]
    fn count_and_wait(&self, address: VirtAddr, access: Access, attempt: Attempt) -> Result<(), FaultError> {
        self.begin_fault(address)?;
        self.fault_until_done(address, access, attempt)
    }

    /// Counts a fault for this thread, and does the work that its last fault has put off. After the page is mapped, that work could
    /// take the page, or its write right, before the access comes; and so again at each fault for that access.
    #[inline]
    fn begin_fault(&self, address: VirtAddr) -> Result<(), FaultError> {
        match self.0.engine.begin_fault() {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.pay_debts();
                Ok(())
            }
            Err(OutOfMemory) => Err(FaultError::OutOfMemory { address }),
        }
    }

    /// Does the work that this thread has put off. Nothing is held.
    #[cold]
    #[inline(never)]
    pub(in crate::space) fn pay_debts(&self) {
        self.0.engine.pay_debts(self.0.group(), &self.0.space_flags.dying);
    }

    /// Serves a fault and waits for its I/O, as many times as needed.
    pub(in crate::space) fn fault_until_done(
        &self,
        address: VirtAddr,
        access: Access,
        attempt: Attempt,
    ) -> Result<(), FaultError> {
        let mut pending = None;
        self.fault_from(address, access, attempt, &mut pending)?;
        while pending.is_some() {
            PendingFault::wait_in(&mut pending)?;
        }
        // It is empty, which the compiler cannot see.
        core::mem::forget(pending);
        Ok(())
    }

    /// Runs the loop of a fault: tries, and does between two tries the work that is not allowed while the page is
    /// announced. A fault that has to wait is put into `pending`, which the caller passes empty.
    ///
    /// The stack frame of this function is small, since writeback may run below it. A try has a frame of its own, which is gone
    /// by then. A pending fault is too large to be moved from call to call.
    #[inline]
    pub(in crate::space) fn fault_from(
        &self,
        address: VirtAddr,
        access: Access,
        attempt: Attempt,
        pending: &mut Option<PendingFault<H, D>>,
    ) -> Result<(), FaultError> {
        if !self.0.whole().contains(address.page()) {
            return Err(FaultError::NoMapping { address });
        }
        let mut course = Course::new(attempt);
        loop {
            match self.0.try_fault(address, access, &mut course) {
                Step::Done(replaced) => {
                    self.0.after_install(address, replaced);
                    return Ok(());
                }
                step => self.between_tries((address, access), step, &mut course, pending)?,
            }
            if pending.is_some() {
                return Ok(());
            }
        }
    }
}

/// Returns whether what the design took is kept after this step.
fn keeps<H: Host, D: LockingDesign>(step: &Step<H>, attempt: Attempt) -> bool {
    match step {
        Step::Wait(absent) => absent.after::<D>(attempt) == AfterIo::Hold,
        Step::Swap(_) => D::after_io(attempt, Awaits::Anonymous) == AfterIo::Hold,
        Step::NeedMemory | Step::NeedTable | Step::NeedCopy(_) => D::KEEPS_WHILE_RECLAIMING,
        _ => false,
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes one try: announces the page, and does its work, or returns the missing resource.
    #[inline(never)]
    fn try_fault(&self, address: VirtAddr, access: Access, course: &mut Course<H, D>) -> Step<H> {
        let work = |work: Announced<'_, H, D>| {
            if !work.attempt.only.admits(work.vma.mapping()) {
                return Step::Done(None);
            }
            let section = work.section();
            match classify(&work, address, access) {
                Ok(class) => {
                    let step = finish(work, class, address);
                    self.count_if_served(section, &step);
                    step
                }
                Err(step) => step,
            }
        };
        let read = |work: &SharedPage<'_, H, D>| {
            let step = shared_page::read(work, address, access)?;
            self.count_if_served(work.section, &step);
            Some(step)
        };
        let read: SharedWork<'_, H, D, _> = &read;
        let shared = (access != Access::Write && !course.attempt.unshares).then_some(read);
        self.try_with(address.page(), course, Leaves::Make, work, shared)
    }

    /// Counts a fault for the group of the space, if it was served.
    #[inline]
    fn count_if_served(&self, section: &Section<'_>, step: &Step<H>) {
        let group = self.group();
        if group != GroupId::ROOT && matches!(step, Step::Done(_)) {
            section.stock().count_fault(self.engine.sections().groups(), group);
        }
    }

    /// Makes one try of `work`, which comes to the page as a fault does. In a leaf table that others have too, it asks `shared` first.
    #[inline(always)]
    fn try_with(
        &self,
        page: PageNumber,
        course: &mut Course<H, D>,
        leaves: Leaves,
        work: impl Fn(Announced<'_, H, D>) -> Step<H>,
        shared: Option<SharedWork<'_, H, D, Step<H>>>,
    ) -> Step<H> {
        let has_kept = course.kept.is_some();
        let attempt = &mut course.attempt;
        match self.page_work_or_shared(page, attempt, leaves, has_kept, work, shared, keeps::<H, D>) {
            Ok(worked) => {
                if worked.kept.is_some() {
                    course.kept = worked.kept;
                }
                worked.result
            }
            Err(Refused::Hole | Refused::NoTable) => Step::Hole,
            Err(Refused::OutOfMemory) => Step::NeedTable,
        }
    }

    /// Tells the host that an access to `page` cannot be served, if `is_so` still holds.
    fn refuse(&self, page: PageNumber, is_so: impl Fn(&Announced<'_, H, D>) -> bool) {
        let refuse = |work: Announced<'_, H, D>| {
            if is_so(&work) {
                work.refuse();
            }
        };
        let mut attempt = Attempt::first(Purpose::Fault);
        // If there is a hole, or no memory for a table, the access is tried again and finds that.
        let _ = self.page_work(page, &mut attempt, Leaves::Make, false, refuse, |(), _| false);
    }

    /// Returns whether `frame`, which an announced entry of a private mapping names, belongs to this mapping alone. A store
    /// then goes into it in place.
    pub(in crate::space) fn is_own(&self, frame: Frame) -> bool {
        frame != self.engine.zero_frame() && self.engine.folio(frame).is_exclusive()
    }

    /// Invalidates the old translation, then drops the old frame (rule 6). The page is no longer announced.
    fn after_install(&self, address: VirtAddr, replaced: Option<Entry>) {
        if let Some(old) = replaced {
            let is_in_slot = || matches!(old.kind(), EntryKind::Swapped(..));
            if !(mutant!("slot_copy_without_invalidate") && is_in_slot()) {
                self.engine.invalidate(&self.table, PageRange::single(address.page()));
            }
            self.engine.drop_entry(old);
        }
    }
}

/// Returns the right that an entry needs for an access.
fn needed(access: Access) -> u64 {
    match access {
        Access::Read => Entry::READ,
        Access::Write => Entry::WRITE,
        Access::Execute => Entry::EXECUTE,
    }
}

/// Returns whether the mapping allows the access, and the entry does not yet.
fn is_lacking<H: Host, D: LockingDesign>(work: &Announced<'_, H, D>, access: Access) -> bool {
    work.vma.mapping().protection.allows(access) && !work.entry.has(needed(access))
}

/// The class of an announced page. The mapping and the entry decide it, and [`finish`] acts on it.
enum Class<'a, H: Host> {
    /// The entry has the right: another fault was faster, or the processor's own table lags behind.
    Served,
    /// The page is a guard page, or its bytes cannot be had.
    Refused(FaultError),
    /// The entry lacks a right that the mapping gives.
    Rights,
    Zero,
    Fill(Access),
    File(&'a Shared<File<H>>, u64, Access),
    Private(&'a Shared<File<H>>, u64),
    Break(Frame),
    /// The bytes of the page are in a slot.
    Swapped(SlotName, Access),
    /// The page shows a frame that the engine does not own.
    Foreign(Frame),
    /// The store is the first one to a page of a shared mapping since the page was mapped or written back.
    Dirty(&'a Shared<File<H>>, u64, Frame),
}

fn classify<'a, H: Host, D: LockingDesign>(
    work: &Announced<'a, H, D>,
    address: VirtAddr,
    access: Access,
) -> Result<Class<'a, H>, Step<H>> {
    let (vma, entry) = (work.vma, work.entry);
    let mapping = vma.mapping();
    if !mapping.protection.allows(access) {
        let protection = mapping.protection;
        return Err(Step::Failed(FaultError::Protection { address, access, protection }));
    }
    if entry.is_guard() {
        return Ok(Class::Refused(FaultError::Guard { address }));
    }
    if work.attempt.unshares
        && let Some(class) = unshare(work)?
    {
        return Ok(class);
    }
    let needed = needed(access);
    match entry.kind() {
        EntryKind::Page(frame) | EntryKind::Kept(frame) => {
            if entry.has(needed) {
                return Ok(Class::Served);
            }
            if access != Access::Write {
                return Ok(Class::Rights);
            }
            return match (vma.record(), mapping.file_page(work.page)) {
                (Some(record), _) => begin_record(work, record).map(|()| Class::Break(frame)),
                (None, Some((file, page))) => Ok(Class::Dirty(file, page, frame)),
                (None, None) => Err(Step::LookAgain),
            };
        }
        EntryKind::Swapped(slot, generation) => {
            return Ok(Class::Swapped(SlotName { slot, generation }, access));
        }
        EntryKind::Guard => return Ok(Class::Refused(FaultError::Guard { address })),
        EntryKind::Foreign(_) if entry.has(needed) => return Ok(Class::Served),
        EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Gone(_) => {}
    }
    Ok(match (access, &mapping.backing) {
        (_, Backing::Busy) => return Err(Step::LookAgain),
        (_, Backing::Foreign { .. }) => {
            Class::Foreign(mapping.foreign_frame(work.page).ok_or(Step::LookAgain)?)
        }
        (Access::Read | Access::Execute, Backing::Anonymous) if H::Table::MAPS_ZEROS => Class::Zero,
        (_, Backing::Anonymous) => {
            begin_record(work, vma.record().ok_or(Step::LookAgain)?)?;
            Class::Fill(access)
        }
        (access, Backing::File { file, first }) => {
            let page = first + (work.page.get() - mapping.range.start().get());
            match (access, mapping.sharing, vma.record()) {
                (Access::Write, Sharing::Private, Some(record)) => {
                    begin_record(work, record)?;
                    Class::Private(file, page)
                }
                _ => Class::File(file, page, access),
            }
        }
    })
}

/// Returns the work that makes the page, which is about to be pinned for I/O, the space's own. Returns `None` if the page is
/// the space's own already, or the mapping is shared.
#[cold]
fn unshare<'a, H: Host, D: LockingDesign>(
    work: &Announced<'a, H, D>,
) -> Result<Option<Class<'a, H>>, Step<H>> {
    let Some(record) = work.vma.record() else { return Ok(None) };
    let mapping = work.vma.mapping();
    match work.entry.kind() {
        EntryKind::Page(frame) | EntryKind::Kept(frame) => {
            if work.space.is_own(frame) {
                return Ok(None);
            }
            return begin_record(work, record).map(|()| Some(Class::Break(frame)));
        }
        // The caller has refused these.
        EntryKind::Swapped(..) | EntryKind::Guard | EntryKind::Foreign(_) => return Ok(None),
        EntryKind::Empty | EntryKind::Gone(_) => {}
    }
    match &mapping.backing {
        // Foreign frames have no record.
        Backing::Busy | Backing::Foreign { .. } => Err(Step::LookAgain),
        Backing::Anonymous => begin_record(work, record).map(|()| Some(Class::Fill(Access::Read))),
        Backing::File { .. } => match mapping.file_page(work.page) {
            Some((file, page)) => begin_record(work, record).map(|()| Some(Class::Private(file, page))),
            None => Err(Step::LookAgain),
        },
    }
}

/// Makes the record of the mapping, unless it has one: the mapping has anonymous pages from now on. As on Linux, this comes
/// before the page is looked for.
#[inline]
fn begin_record<H: Host, D: LockingDesign>(
    work: &Announced<'_, H, D>,
    record: &AnonRecord,
) -> Result<(), Step<H>> {
    if record.id().is_some() { Ok(()) } else { first_page(work) }
}

#[cold]
fn first_page<H: Host, D: LockingDesign>(work: &Announced<'_, H, D>) -> Result<(), Step<H>> {
    let space = work.space;
    let allowed = D::allows(&space.lock, &space.engine, work.attempt, Capability::FirstAnonymous);
    allowed.map_err(|_| Step::Blocked)?;
    space.begin_record(space.tree.view(work.section()), work.vma).map(drop).ok_or(Step::LookAgain)
}

fn finish<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    class: Class<'_, H>,
    address: VirtAddr,
) -> Step<H> {
    let vma = work.vma;
    let wait = |file: &Shared<File<H>>, page, why| wait(vma, file, page, why);
    match class {
        Class::Refused(error) => {
            work.refuse();
            Step::Failed(error)
        }
        Class::Served => {
            let entry = work.entry.restored();
            install(work, entry)
        }
        Class::Rights => {
            let new = work.entry.restored().with(entry_rights(work.vma.mapping().protection));
            install(work, new)
        }
        // All rights are given at once: such a page is never copied, and its dirty bit is never read.
        Class::Foreign(frame) => {
            let rights = entry_rights(work.vma.mapping().protection) | write_right(&work);
            install(work, Entry::foreign(frame, rights))
        }
        Class::Swapped(name, access) => swapped::map(work, address, name, access),
        Class::Zero => anonymous::map_zero(work),
        Class::Fill(access) => anonymous::fill(work, access),
        Class::File(file, page, access) => {
            file::map(work, address, file, page, access).unwrap_or_else(|no| wait(file, page, no))
        }
        Class::Dirty(file, page, frame) => {
            file::make_writable(work, address, file, page, frame).unwrap_or_else(|no| wait(file, page, no))
        }
        Class::Private(file, page) => {
            let copied = copy_on_write::from_file(work, address, file, page);
            copied.unwrap_or_else(|no| wait(file, page, no))
        }
        Class::Break(frame) => copy_on_write::break_or_reuse(work, frame),
    }
}

/// Installs an entry over an empty one, or over one with the same frame.
fn install<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, new: Entry) -> Step<H> {
    let engine = work.engine();
    match work.install(new) {
        Ok(old) => Step::Done(outlived(engine, old, new)),
        Err(_) => Step::NeedMemory,
    }
}

/// Returns the entry that `new` has replaced, if its translation may still be in use and leads to another frame (rule S3): that of
/// a page which reclaim has taken, and whose folio is isolated until the invalidation (rule S4).
fn outlived<H: Host>(engine: &Engine<H>, old: Entry, new: Entry) -> Option<Entry> {
    match old.kind() {
        EntryKind::Gone(frame) => {
            let is_old = engine.folio(frame).is_isolated() && !mutant!("gone_without_invalidate");
            (is_old && new.counted_frame() != Some(frame)).then_some(old)
        }
        // The same frame is mapped again.
        EntryKind::Page(_) | EntryKind::Foreign(_) | EntryKind::Kept(_) => None,
        // A fault installs nothing over a page in a slot.
        EntryKind::Swapped(..) | EntryKind::Empty | EntryKind::Guard => None,
    }
}

/// Returns the right to store into a page that is the space's own, or is never copied, if the mapping gives that right.
fn write_right<H: Host, D: LockingDesign>(work: &Announced<'_, H, D>) -> u64 {
    if work.vma.mapping().protection.contains(Protection::WRITE) { Entry::WRITE } else { 0 }
}

/// Installs a frame that belongs to this fault alone, with `bits` besides the rights that the mapping allows. If that fails,
/// frees the frame. If the entry has a page now, which others may have too, that page has left its home before.
fn install_new<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, frame: Frame, bits: u64) -> Step<H> {
    let (engine, section) = (work.engine(), work.section());
    let folio = engine.folio(frame);
    if !mutant!("copy_takes_no_group") {
        folio.set_group(work.space.group());
    }
    folio.begin_anonymous(work.home());
    work.note_record(frame);
    let rights = entry_rights(work.vma.mapping().protection);
    let new = Entry::mapping(frame, rights | bits);
    match work.install(new) {
        Ok(old) => {
            let old = match old.kind() {
                EntryKind::Gone(_) => outlived(engine, old, new),
                _ => old.holds_page().then_some(old),
            };
            if engine.reclaims() {
                engine.arrived(section, frame, folio);
            }
            Step::Done(old)
        }
        Err(_) => {
            if folio.cancel_anonymous() {
                engine.free_frame(frame);
            }
            Step::NeedMemory
        }
    }
}

fn past_end<H: Host>(address: VirtAddr, file: &File<H>, page: u64) -> FaultError {
    FaultError::PastEnd { address, page, length: file.length() }
}
