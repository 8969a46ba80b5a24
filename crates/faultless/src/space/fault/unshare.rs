//! Making one page the space's own, without an access: the step of [`AddressSpace::unshare`](crate::AddressSpace::unshare).

use super::course::Course;
use super::page_work::{Announced, Leaves};
use super::swapped::{self, SlotName};
use super::{FaultError, PendingFault, Step, begin_record, copy_on_write};
use crate::address::{PageNumber, VirtAddr};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::host::{EntryKind, Host};
use crate::protection::Access;
use crate::space::{AddressSpace, Space};
use core::cell::Cell;

/// The work that made a page the space's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum PageUnshared {
    /// No work: no other space has the page, or there is no page.
    None,
    /// The page was copied.
    Copied,
    /// The other spaces have let the page go, so it was marked as the space's own.
    Remarked,
    /// The page came back from its slot. Other spaces have entries that name the slot.
    ReadIn,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Makes the page the space's own if other spaces have it too. Waits for the read of a slot, and for room in memory.
    ///
    /// # Errors
    /// [`FaultError::OutOfMemory`], [`FaultError::Exited`], or that of a failed read. The page is as before.
    pub(in crate::space) fn unshare_page(&self, page: PageNumber) -> Result<PageUnshared, FaultError> {
        let (space, address) = (&*self.0, page.address());
        let attempt = Attempt { unshares: true, ..Attempt::first(Purpose::Fault) };
        let mut course = Course::new(attempt);
        let (mut pending, mut was_read) = (None, false);
        if space.engine.owes() {
            self.pay_debts();
        }
        let done = Cell::new(PageUnshared::None);
        loop {
            if space.space_flags.dying.is_set() {
                return Err(FaultError::Exited { address });
            }
            let work = |work: Announced<'_, H, D>| unshare(work, address, &done);
            match space.try_with(page, &mut course, Leaves::Existing, work, None) {
                Step::Done(replaced) => {
                    space.after_install(address, replaced);
                    break;
                }
                Step::Hole => break,
                step => {
                    was_read |= matches!(step, Step::Swap(_));
                    self.between_tries((address, Access::Read), step, &mut course, &mut pending)?;
                }
            }
            while pending.is_some() {
                match PendingFault::wait_in(&mut pending) {
                    // The mapping has changed during the wait: the next try finds out how.
                    Ok(()) | Err(FaultError::NoMapping { .. } | FaultError::Protection { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(match done.get() {
            PageUnshared::None if was_read => PageUnshared::ReadIn,
            done => done,
        })
    }
}

/// Does one try of [`AddressSpace::unshare_page`], and notes its outcome in `done`.
fn unshare<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    address: VirtAddr,
    done: &Cell<PageUnshared>,
) -> Step<H> {
    let Some(record) = work.vma.record().filter(|_| work.space.may_be_shared(work.entry)) else {
        return Step::Done(None);
    };
    if let Err(step) = begin_record(&work, record) {
        return step;
    }
    match work.entry.kind() {
        EntryKind::Page(frame) | EntryKind::Kept(frame) => {
            let step = copy_on_write::break_or_reuse(work, frame);
            done.set(match step {
                Step::Done(None) => PageUnshared::Remarked,
                Step::Done(Some(_)) => PageUnshared::Copied,
                _ => PageUnshared::None,
            });
            step
        }
        // A page that no access may have stays in its slot.
        EntryKind::Swapped(slot, generation) if work.vma.mapping().protection.allows(Access::Read) => {
            let step = swapped::map(work, address, SlotName { slot, generation }, Access::Read);
            if matches!(step, Step::Done(_)) {
                done.set(PageUnshared::ReadIn);
            }
            step
        }
        EntryKind::Swapped(..)
        | EntryKind::Empty
        | EntryKind::Guard
        | EntryKind::Foreign(_)
        | EntryKind::Gone(_) => Step::Done(None),
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns whether another space may have the anonymous page of `entry` too, by its own entry. A hint, unless the entry is
    /// announced.
    pub(in crate::space) fn may_be_shared(&self, entry: crate::host::Entry) -> bool {
        match entry.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => {
                self.engine.folio(frame).is_anonymous() && !self.is_own(frame)
            }
            EntryKind::Swapped(slot, _) => self.engine.is_slot_shared(slot),
            EntryKind::Empty | EntryKind::Guard | EntryKind::Foreign(_) | EntryKind::Gone(_) => false,
        }
    }
}
