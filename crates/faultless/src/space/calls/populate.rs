//! Fetching pages ahead of their first touch, for MAP_POPULATE, mlock and madvise. Pages come by ordinary faults, one after the
//! other, and nothing is held across I/O. Each mapping is looked up anew, and compared again under each page's announcement
//! ([`MappingFilter`]). So a range that is replaced meanwhile is not populated by mistake.

use crate::address::{PageNumber, PageRange, VirtAddr};
use crate::design::{Attempt, LockingDesign, MappingFilter, Purpose};
use crate::host::Host;
use crate::page_cache::File;
use crate::protection::{Access, Protection, Sharing};
use crate::space::AddressSpace;
use crate::space::fault::FaultError;
use crate::sync::Shared;
use crate::vma::tree::Ranged;

/// The number of reads of a file that begin before the first is waited for.
const AHEAD: u64 = 32;

/// The purpose for which pages are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Goal {
    /// Makes this access possible (MADV_POPULATE_READ and MADV_POPULATE_WRITE). The first error ends the call.
    Access(Access),
    /// Fetches pages that are to be locked. The first error ends the call.
    Lock,
    /// Fetches as `Lock` does, for mlockall: an error ends only the work on its mapping.
    LockAll,
    /// Fetches pages of the mapping that the map call of this serial made. An error ends only the work on its mapping.
    New(u64),
}

/// The reason why fetching ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Unpopulated {
    /// Nothing is mapped at this address.
    Hole(VirtAddr),
    /// The mapping does not allow this access.
    NotAllowed(VirtAddr, Access),
    /// The frames at this address do not belong to the engine.
    Foreign(VirtAddr),
    /// The fault failed.
    Fault(FaultError),
}

/// The part of a mapping in a range, by value.
struct Part<H: Host> {
    range: PageRange,
    protection: Protection,
    sharing: Sharing,
    file: Option<(Shared<File<H>>, u64)>,
    is_foreign: bool,
    is_wanted: bool,
}

impl Goal {
    fn only(self) -> MappingFilter {
        match self {
            Self::Access(_) => MappingFilter::Any,
            Self::Lock | Self::LockAll => MappingFilter::Locked,
            Self::New(serial) => MappingFilter::Mapping(serial),
        }
    }

    /// Returns the access to fetch for, or as an error the access that the mapping does not allow. Locking fails only for a
    /// mapping without any rights, since it is no access of the owner. A private page that can be written is fetched for
    /// writing, so that the first store needs no copy.
    fn access(self, protection: Protection, sharing: Sharing) -> Result<Access, Access> {
        let allowed = |access, right| if protection.contains(right) { Ok(access) } else { Err(access) };
        match self {
            Self::Access(Access::Read) => allowed(Access::Read, Protection::READ),
            Self::Access(Access::Write) => allowed(Access::Write, Protection::WRITE),
            Self::Access(Access::Execute) => allowed(Access::Execute, Protection::EXECUTE),
            _ if sharing == Sharing::Private && protection.contains(Protection::WRITE) => Ok(Access::Write),
            _ if protection.allows(Access::Read) => Ok(Access::Read),
            _ if protection.allows(Access::Execute) => Ok(Access::Execute),
            _ => Err(Access::Read),
        }
    }

    fn stops_at_errors(self) -> bool {
        matches!(self, Self::Access(_) | Self::Lock)
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Fetches the pages of `range`.
    pub(in crate::space) fn populate(&self, range: PageRange, goal: Goal) -> Result<(), Unpopulated> {
        let mut at = range.start();
        while let Some(rest) = PageRange::new(at, range.end()) {
            let Some(part) = self.next_part(rest, goal) else {
                return if goal.stops_at_errors() { Err(Unpopulated::Hole(at.address())) } else { Ok(()) };
            };
            if part.range.start() > at && goal.stops_at_errors() {
                return Err(Unpopulated::Hole(at.address()));
            }
            at = part.range.end();
            if part.is_wanted
                && let Err(error) = self.populate_part(&part, goal)
                && goal.stops_at_errors()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn next_part(&self, rest: PageRange, goal: Goal) -> Option<Part<H>> {
        let section = self.engine().enter();
        let vma = self.0.tree.view(&section).from(rest.start()).next()?;
        let (range, mapping) = (vma.range().intersection(rest)?, vma.mapping());
        let file = mapping.file_page(range.start()).map(|(file, page)| (file.clone(), page));
        let is_foreign = mapping.is_foreign();
        // Linux skips VM_IO and VM_PFNMAP here, and refuses advice to populate them.
        let is_wanted = goal.only().admits(mapping) && (!is_foreign || matches!(goal, Goal::Access(_)));
        let (protection, sharing) = (mapping.protection, mapping.sharing);
        Some(Part { range, protection, sharing, file, is_foreign, is_wanted })
    }

    fn populate_part(&self, part: &Part<H>, goal: Goal) -> Result<(), Unpopulated> {
        if part.is_foreign {
            return Err(Unpopulated::Foreign(part.range.start().address()));
        }
        let access = goal
            .access(part.protection, part.sharing)
            .map_err(|access| Unpopulated::NotAllowed(part.range.start().address(), access))?;
        for page in part.range.iter() {
            if let Some((file, first)) = &part.file {
                self.read_ahead(file, *first, page.get() - part.range.start().get(), part.range.pages());
            }
            self.fetch(page, access, goal).map_err(|error| match error {
                FaultError::NoMapping { address } => Unpopulated::Hole(address),
                FaultError::Protection { address, access, .. } => Unpopulated::NotAllowed(address, access),
                error => Unpopulated::Fault(error),
            })?;
        }
        Ok(())
    }

    /// Begins the reads of the next few pages, at each page whose number is a multiple of a few. They are as many as a small
    /// cache keeps. The page that is fetched next is a transfer of its own, so that its access does not wait for the others.
    fn read_ahead(&self, file: &Shared<File<H>>, first: u64, index: u64, pages: u64) {
        let few = AHEAD.min(self.engine().limits().cached_pages / 4).max(1);
        if few > 1 && index.is_multiple_of(few) {
            let (next, end) = (first + index, first + pages.min(index + few));
            let group = self.0.group();
            let _ = file.start_reads(group, next..next + 1) && file.start_reads(group, next + 1..end);
        }
    }

    /// Fetches one page, unless something else than this call is for is mapped there now.
    fn fetch(&self, page: PageNumber, access: Access, goal: Goal) -> Result<(), FaultError> {
        let attempt = Attempt { only: goal.only(), ..Attempt::first(Purpose::Fault) };
        if self.engine().owes() {
            self.pay_debts();
        }
        self.fault_until_done(page.address(), access, attempt)
    }
}
