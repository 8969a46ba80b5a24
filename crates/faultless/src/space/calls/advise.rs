//! madvise: takes advice about memory.

use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::page_cache::FileError;
use crate::protection::{Access, Sharing};
use crate::space::calls::flags::{Holes, Wrong};
use crate::space::calls::populate::{Goal, Unpopulated};
use crate::space::{AddressSpace, DiscardError, Space, fault::FaultError};
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Mapping, MappingFlags};

/// Advice that a program gives about its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Takes `Random` and `Sequential` back (MADV_NORMAL).
    Normal,
    /// Says that pages will be read in no order.
    Random,
    /// Says that pages will be read in order.
    Sequential,
    /// Says that pages will be needed soon. Starts reads of a file's pages, and waits for none.
    WillNeed,
    /// Drops the pages; see [`AddressSpace::discard`].
    DontNeed,
    /// Allows to drop pages of private anonymous memory when memory is short, until the next store into each. A page that was
    /// dropped reads as zeros. Pages that another space has too stay; pages in swap space are dropped at once.
    Free,
    /// Punches a hole in the file, or in shared memory without a file. Whole pages of it become zeros for all mappings, and
    /// their storage is freed.
    Remove,
    /// Makes pages readable now.
    PopulateRead,
    /// Makes pages writable now.
    PopulateWrite,
    /// Keeps the mapping from children of fork.
    DontFork,
    /// Passes the mapping to children of fork again: takes `DontFork` back.
    DoFork,
    /// Gives children of fork the mapping without its contents. Private anonymous memory only.
    WipeOnFork,
    /// Gives children of fork the contents again: takes `WipeOnFork` back.
    KeepOnFork,
    /// Has fork copy the anonymous pages for the child at once, so that no store of the parent or of the child has to copy one
    /// later. Private mappings only. A page in swap space is shared all the same. Linux has no such advice.
    CopyAtFork,
    /// Has fork share the pages again: takes `CopyAtFork` back.
    ShareAtFork,
    /// Drops the pages and refuses accesses, even those that the mapping allows. The mapping is not split.
    GuardInstall,
    /// Allows accesses again: takes `GuardInstall` back. The pages read as never touched.
    GuardRemove,
    /// Says that the pages will not be used soon. They count as not used when reclaim comes to them. Has an effect on anonymous pages
    /// that no other space has, and on pages of files without a store that one entry maps.
    Cold,
    /// Reclaims the pages now, if there is a swap device. Has an effect on anonymous pages that no other space has. A page that is
    /// used meanwhile, or that other work is under way on, stays.
    PageOut,
}

/// The number is not one of Linux's advice that this crate knows (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no advice of number {0}")]
pub struct UnknownAdvice(pub i32);

impl UnknownAdvice {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        errno::EINVAL
    }
}

impl TryFrom<i32> for Advice {
    type Error = UnknownAdvice;

    /// Returns the advice that has this number on Linux.
    fn try_from(number: i32) -> Result<Self, UnknownAdvice> {
        Ok(match number {
            0 => Self::Normal,
            1 => Self::Random,
            2 => Self::Sequential,
            3 => Self::WillNeed,
            4 => Self::DontNeed,
            8 => Self::Free,
            9 => Self::Remove,
            10 => Self::DontFork,
            11 => Self::DoFork,
            18 => Self::WipeOnFork,
            19 => Self::KeepOnFork,
            20 => Self::Cold,
            21 => Self::PageOut,
            22 => Self::PopulateRead,
            23 => Self::PopulateWrite,
            102 => Self::GuardInstall,
            103 => Self::GuardRemove,
            unknown => return Err(UnknownAdvice(unknown)),
        })
    }
}

/// The reason why advice was not taken, or not everywhere. The part below the address that an error names has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdviseError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address` (ENOMEM). All mapped parts of the range have been done; only populating stops there.
    #[error("nothing is mapped at {address}, inside the {range} that {advice:?} is for")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The advice given.
        advice: Advice,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// The mapping at `address` is of a kind that does not take such advice (EINVAL).
    #[error("{advice:?} does not apply to the mapping at {address}")]
    Kind {
        /// The advice given.
        advice: Advice,
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping at `address` is locked (EINVAL).
    #[error("the mapping at {address} is locked, and {advice:?} would drop its pages")]
    Locked {
        /// The advice given.
        advice: Advice,
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping at `address` is sealed, and not writable (EPERM).
    #[error("the mapping at {address} is sealed, and {advice:?} would lose its contents")]
    Sealed {
        /// The advice given.
        advice: Advice,
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping is private: only a file that is mapped shared can have a hole punched (EACCES).
    #[error("the mapping at {address} is private: no hole is punched in its file")]
    Private {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping cannot write its file, so it cannot punch a hole in it (EACCES).
    #[error("the file at {address} was not opened for writing: no hole is punched in it")]
    ReadOnly {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The hole could not be punched, or not all of it. The part below that mapping has been done.
    #[error("no hole could be punched: {0}")]
    File(FileError),
    /// The mapping at `address` does not allow the access to populate for (EINVAL).
    #[error("the mapping at {address} does not allow a {access}")]
    NotAllowed {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
        /// The access that was to become possible.
        access: Access,
    },
    /// A page cannot be populated: it is past the end of its file, cannot be read, or is a guard page (EFAULT); or there is no
    /// memory (ENOMEM).
    #[error("a page could not be populated: {0}")]
    Fault(FaultError),
    /// To split a mapping would exceed the limit of mappings. The part below that mapping has been done (EAGAIN).
    #[error("{advice:?} on {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// The range asked for.
        range: PageRange,
        /// The advice given.
        advice: Advice,
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for nodes and tables (EAGAIN).
    #[error("out of memory for {advice:?} on {range}")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
        /// The advice given.
        advice: Advice,
    },
}

impl AdviseError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) | Self::Kind { .. } | Self::Locked { .. } | Self::NotAllowed { .. } => {
                errno::EINVAL
            }
            Self::Hole { .. } | Self::Fault(FaultError::OutOfMemory { .. }) => errno::ENOMEM,
            Self::Sealed { .. } => errno::EPERM,
            Self::Private { .. } | Self::ReadOnly { .. } => errno::EACCES,
            Self::File(error) => error.errno(),
            Self::Fault(_) => errno::EFAULT,
            Self::TooManyMappings { .. } | Self::OutOfMemory { .. } => errno::EAGAIN,
        }
    }
}

/// The reason why a mapping does not take advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Refusal {
    Kind,
    Locked,
    Sealed,
    Private,
    ReadOnly,
}

/// Returns why `mapping` does not take `advice`, if it does not. Sealing comes first, as on Linux.
pub(in crate::space) fn refuses<H: Host>(mapping: &Mapping<H>, advice: Advice) -> Option<Refusal> {
    let (is_private, is_locked) =
        (mapping.sharing == Sharing::Private, mapping.flags.contains(MappingFlags::LOCKED));
    let is_anonymous = is_private && matches!(mapping.backing, Backing::Anonymous);
    let is_foreign = mapping.is_foreign();
    let loses = matches!(
        advice,
        Advice::DontNeed
            | Advice::Free
            | Advice::Remove
            | Advice::DontFork
            | Advice::WipeOnFork
            | Advice::GuardInstall
    );
    let drops = matches!(
        advice,
        Advice::DontNeed
            | Advice::Free
            | Advice::Remove
            | Advice::GuardInstall
            | Advice::Cold
            | Advice::PageOut
    );
    match advice {
        _ if loses && mapping.keeps_contents() => Some(Refusal::Sealed),
        _ if drops && is_locked => Some(Refusal::Locked),
        Advice::Free | Advice::WipeOnFork if !is_anonymous => Some(Refusal::Kind),
        Advice::CopyAtFork if !is_private || is_foreign => Some(Refusal::Kind),
        Advice::Remove if is_anonymous || is_foreign => Some(Refusal::Kind),
        // Linux's VM_SPECIAL.
        Advice::DoFork | Advice::GuardInstall | Advice::GuardRemove if is_foreign => Some(Refusal::Kind),
        Advice::Cold | Advice::PageOut if is_foreign => Some(Refusal::Kind),
        Advice::Remove if is_private => Some(Refusal::Private),
        Advice::Remove if !mapping.reaches_its_file() => Some(Refusal::ReadOnly),
        _ => None,
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Takes `advice` on `length` bytes at `address` (madvise). Length 0 is no error.
    ///
    /// Populating and removing wait for I/O, and hold nothing meanwhile. All other advice waits as [`AddressSpace::unmap`], or
    /// not at all.
    ///
    /// Differs from Linux in three ways. If memory for nodes runs out, nothing is done here, where Linux has done the part
    /// below. If there is room for only one of the two cuts that a mapping needs, Linux makes that cut; here the mapping stays
    /// whole. Linux refuses to drop the entries of foreign frames (MADV_DONTNEED: EINVAL), since no fault would bring them back
    /// there; here the next access does.
    ///
    /// # Errors
    /// [`AdviseError`]. A hole does not keep the rest from being done, except for populating. An error of a mapping ends the
    /// call there.
    pub fn advise(&self, address: VirtAddr, length: u64, advice: Advice) -> Result<(), AdviseError> {
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(()),
            range => range?,
        };
        let space = &*self.0;
        let flags = |set: MappingFlags, clear: MappingFlags| {
            let change = move |mapping: &Mapping<H>| mapping.flags.difference(clear) | set;
            let refuse = |mapping: &Mapping<H>| refuses(mapping, advice);
            let changed = space.change_flags(range, Holes::Skip, |_| Ok(()), refuse, change);
            changed.map_err(|wrong| space.advise_error(range, advice, wrong))
        };
        let none = MappingFlags::empty();
        match advice {
            Advice::Normal => flags(none, MappingFlags::RANDOM | MappingFlags::SEQUENTIAL),
            Advice::Random => flags(MappingFlags::RANDOM, MappingFlags::SEQUENTIAL),
            Advice::Sequential => flags(MappingFlags::SEQUENTIAL, MappingFlags::RANDOM),
            Advice::DontFork => flags(MappingFlags::DONT_FORK, none),
            Advice::DoFork => flags(none, MappingFlags::DONT_FORK),
            Advice::WipeOnFork => flags(MappingFlags::WIPE_ON_FORK, none),
            Advice::KeepOnFork => flags(none, MappingFlags::WIPE_ON_FORK),
            Advice::CopyAtFork => flags(MappingFlags::COPY_AT_FORK, none),
            Advice::ShareAtFork => flags(none, MappingFlags::COPY_AT_FORK),
            Advice::WillNeed => space.start_reads(range),
            Advice::DontNeed => self.discard(address, length).map_err(|error| match error {
                DiscardError::Range(error) => AdviseError::Range(error),
                DiscardError::Hole { range, address } => AdviseError::Hole { range, advice, address },
                DiscardError::Locked { address } => AdviseError::Locked { advice, address },
                DiscardError::Sealed { address } => AdviseError::Sealed { advice, address },
                DiscardError::OutOfMemory { range } => AdviseError::OutOfMemory { range, advice },
            }),
            Advice::Free => space.free_lazily(range),
            Advice::Cold | Advice::PageOut => space.advise_reclaim(range, advice),
            Advice::Remove => space.remove(range),
            Advice::PopulateRead => self.advise_to_populate(range, advice, Access::Read),
            Advice::PopulateWrite => self.advise_to_populate(range, advice, Access::Write),
            Advice::GuardInstall => space.install_guards(range),
            Advice::GuardRemove => space.remove_guards(range),
        }
    }

    fn advise_to_populate(
        &self,
        range: PageRange,
        advice: Advice,
        access: Access,
    ) -> Result<(), AdviseError> {
        self.populate(range, Goal::Access(access)).map_err(|error| match error {
            Unpopulated::Hole(address) => AdviseError::Hole { range, advice, address },
            Unpopulated::NotAllowed(address, access) => AdviseError::NotAllowed { address, access },
            Unpopulated::Foreign(address) => AdviseError::Kind { advice, address },
            Unpopulated::Fault(error) => AdviseError::Fault(error),
        })
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    pub(in crate::space) fn advise_error(
        &self,
        range: PageRange,
        advice: Advice,
        wrong: Wrong<Refusal>,
    ) -> AdviseError {
        match wrong {
            Wrong::Hole(address) => AdviseError::Hole { range, advice, address },
            Wrong::Refused(address, refusal) => match refusal {
                Refusal::Kind => AdviseError::Kind { advice, address },
                Refusal::Locked => AdviseError::Locked { advice, address },
                Refusal::Sealed => AdviseError::Sealed { advice, address },
                Refusal::Private => AdviseError::Private { address },
                Refusal::ReadOnly => AdviseError::ReadOnly { address },
            },
            Wrong::TooMany { limit } => AdviseError::TooManyMappings { range, advice, limit },
            Wrong::All(_) | Wrong::OutOfMemory => AdviseError::OutOfMemory { range, advice },
        }
    }

    /// Checks every mapping in `range` against the rules of `advice`, and changes nothing. Returns the end of the part that takes
    /// the advice, in any case.
    pub(in crate::space) fn ask(
        &self,
        range: PageRange,
        advice: Advice,
    ) -> Result<PageNumber, (AdviseError, PageNumber)> {
        let lock = self.map.lock_by(&*self.engine);
        let reach = self.reach(&lock, range, Holes::Skip, |mapping| refuses(mapping, advice));
        drop(lock);
        match reach.error {
            None => Ok(reach.end),
            Some(wrong) => Err((self.advise_error(range, advice, wrong), reach.end)),
        }
    }

    /// Starts reads of the files' pages, as far as there is room for them. Waits for none.
    fn start_reads(&self, range: PageRange) -> Result<(), AdviseError> {
        let (mut at, mut hole) = (range.start(), None);
        while let Some(rest) = PageRange::new(at, range.end()) {
            let section = self.engine.enter();
            let next = self.tree.view(&section).from(at).next().and_then(|vma| {
                let part = vma.range().intersection(rest)?;
                Some((part, vma.mapping().file_page(part.start()).map(|(file, page)| (file.clone(), page))))
            });
            drop(section);
            let Some((part, file)) = next else { break };
            hole = hole.or((part.start() > at).then_some(at));
            at = part.end();
            if let Some((file, first)) = file {
                file.start_reads(self.group(), first..first + part.pages());
            }
        }
        let hole: Option<PageNumber> = hole.or((at < range.end()).then_some(at));
        let address = hole.map(PageNumber::address);
        address.map_or(Ok(()), |address| Err(AdviseError::Hole { range, advice: Advice::WillNeed, address }))
    }
}
