//! madvise.

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

/// What a program says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Nothing special (MADV_NORMAL): takes `Random` and `Sequential` back.
    Normal,
    /// Pages will be read in no order.
    Random,
    /// Pages will be read in order.
    Sequential,
    /// Pages will be needed soon: reads of a file's pages begin, and are not waited for.
    WillNeed,
    /// The pages go; see [`AddressSpace::discard`].
    DontNeed,
    /// The pages of private anonymous memory may go when memory is short. None do in this version.
    Free,
    /// A hole is punched in the file, or in memory that is shared without one: whole pages of it become zeros for all, and
    /// their place is given back.
    Remove,
    /// Pages are made readable now.
    PopulateRead,
    /// Pages are made writable now.
    PopulateWrite,
    /// A child of fork does not get the mapping.
    DontFork,
    /// It does again.
    DoFork,
    /// A child of fork gets the mapping empty; private anonymous memory only.
    WipeOnFork,
    /// It gets the contents again.
    KeepOnFork,
    /// Accesses are refused, whatever the mapping allows, and without splitting it; the pages go.
    GuardInstall,
    /// They are not any more; the pages read as never touched.
    GuardRemove,
    /// The pages are the first to go when memory is short. Not in this version.
    Cold,
    /// The pages go to where they are kept. Not in this version.
    PageOut,
}

/// Not a number of Linux's advice that is known here (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no advice of number {0}")]
pub struct UnknownAdvice(pub i32);

impl UnknownAdvice {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        errno::EINVAL
    }
}

impl TryFrom<i32> for Advice {
    type Error = UnknownAdvice;

    /// By Linux's number.
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

/// Why advice was not taken, or not everywhere. What lies below the address that an error names has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdviseError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address`. Everything else in the range has been done, but for populating, which stops
    /// there (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} that {advice:?} is for")]
    Hole {
        /// What was asked for.
        range: PageRange,
        /// What was advised.
        advice: Advice,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// The mapping at `address` is of another kind than such advice is for (EINVAL).
    #[error("{advice:?} is not for what is mapped at {address}")]
    Kind {
        /// What was advised.
        advice: Advice,
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping at `address` is locked (EINVAL).
    #[error("what is mapped at {address} is locked, and {advice:?} would drop its pages")]
    Locked {
        /// What was advised.
        advice: Advice,
        /// As above.
        address: VirtAddr,
    },
    /// The mapping at `address` is sealed, and not writable (EPERM).
    #[error("what is mapped at {address} is sealed, and {advice:?} would lose its contents")]
    Sealed {
        /// What was advised.
        advice: Advice,
        /// As above.
        address: VirtAddr,
    },
    /// Only a hole in a file that is mapped shared can be punched (EACCES).
    #[error("what is mapped at {address} is private: no hole is punched in its file")]
    Private {
        /// As above.
        address: VirtAddr,
    },
    /// A hole can be punched only by who may write the file (EACCES).
    #[error("the file at {address} was not opened for writing: no hole is punched in it")]
    ReadOnly {
        /// As above.
        address: VirtAddr,
    },
    /// The hole could not be punched, or not all of it; what lies below its mapping has been done.
    #[error("no hole could be punched: {0}")]
    File(FileError),
    /// The mapping at `address` does not allow the access to populate for (EINVAL).
    #[error("the mapping at {address} does not allow a {access}")]
    NotAllowed {
        /// As above.
        address: VirtAddr,
        /// What was to become possible.
        access: Access,
    },
    /// A page cannot be populated: past the end of its file, not readable, a guard (EFAULT); or no memory (ENOMEM).
    #[error("a page could not be populated: {0}")]
    Fault(FaultError),
    /// Splitting a mapping would make more than the limit; what lies below that mapping has been done (EAGAIN).
    #[error("{advice:?} on {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// What was asked for.
        range: PageRange,
        /// What was advised.
        advice: Advice,
        /// The limit.
        limit: usize,
    },
    /// No memory for nodes and tables (EAGAIN).
    #[error("out of memory for {advice:?} on {range}")]
    OutOfMemory {
        /// What was asked for.
        range: PageRange,
        /// What was advised.
        advice: Advice,
    },
    /// Not in this version (EOPNOTSUPP).
    #[error("{advice:?} is not there in this version")]
    NotYet {
        /// What was advised.
        advice: Advice,
    },
}

impl AdviseError {
    /// Linux's number.
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
            Self::NotYet { .. } => errno::EOPNOTSUPP,
        }
    }
}

/// Why a mapping does not take advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Refusal {
    Kind,
    Locked,
    Sealed,
    Private,
    ReadOnly,
    NotYet,
}

/// The rules of each advice. Sealing comes first, as on Linux.
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
        Advice::Remove if is_anonymous || is_foreign => Some(Refusal::Kind),
        // Linux's VM_SPECIAL.
        Advice::DoFork | Advice::GuardInstall | Advice::GuardRemove if is_foreign => Some(Refusal::Kind),
        Advice::Cold | Advice::PageOut if is_foreign => Some(Refusal::Kind),
        Advice::Remove if is_private => Some(Refusal::Private),
        Advice::Remove if !mapping.reaches_its_file() => Some(Refusal::ReadOnly),
        Advice::Cold | Advice::PageOut => Some(Refusal::NotYet),
        _ => None,
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// madvise: takes `advice` on `length` bytes at `address`. Length 0 is no error. Populating and removing wait for I/O,
    /// and hold nothing then; all else waits as [`AddressSpace::unmap`], or not at all.
    ///
    /// Differs from Linux where memory for nodes runs out: nothing is done then, where Linux has done what lies below. Where
    /// there is room for one of the two cuts that a mapping needs, Linux makes that one; here it stays whole. And it refuses to drop the
    /// entries of foreign frames (MADV_DONTNEED: EINVAL), which no fault would bring back there; here the next access does.
    ///
    /// # Errors
    /// [`AdviseError`]. Holes do not keep the rest from being done, except from being populated; an error of a mapping
    /// ends the call there.
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
            Advice::WillNeed => space.start_reads(range),
            Advice::DontNeed => self.discard(address, length).map_err(|error| match error {
                DiscardError::Range(error) => AdviseError::Range(error),
                DiscardError::Hole { range, address } => AdviseError::Hole { range, advice, address },
                DiscardError::Locked { address } => AdviseError::Locked { advice, address },
                DiscardError::Sealed { address } => AdviseError::Sealed { advice, address },
                DiscardError::OutOfMemory { range } => AdviseError::OutOfMemory { range, advice },
            }),
            Advice::Free | Advice::Cold | Advice::PageOut => space.ask(range, advice),
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
                Refusal::NotYet => AdviseError::NotYet { advice },
            },
            Wrong::TooMany { limit } => AdviseError::TooManyMappings { range, advice, limit },
            Wrong::All(_) | Wrong::OutOfMemory => AdviseError::OutOfMemory { range, advice },
        }
    }

    /// What is only a question of what is mapped.
    fn ask(&self, range: PageRange, advice: Advice) -> Result<(), AdviseError> {
        let lock = self.map.lock_by(&*self.engine);
        let error = self.reach(&lock, range, Holes::Skip, |mapping| refuses(mapping, advice)).error;
        drop(lock);
        error.map_or(Ok(()), |wrong| Err(self.advise_error(range, advice, wrong)))
    }

    /// Starts reads of the files' pages, as far as there is room for them, and waits for none.
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
                file.start_reads(first..first + part.pages());
            }
        }
        let hole: Option<PageNumber> = hole.or((at < range.end()).then_some(at));
        let address = hole.map(PageNumber::address);
        address.map_or(Ok(()), |address| Err(AdviseError::Hole { range, advice: Advice::WillNeed, address }))
    }
}
