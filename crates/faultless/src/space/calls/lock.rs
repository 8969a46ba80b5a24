//! mlock, munlock, mlockall, munlockall: the flag first, by range work; then ordinary faults, that hold nothing across
//! I/O (sources: Lespinasse 2012).

use crate::address::{PAGE_SIZE, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::space::calls::flags::{Holes, Wrong};
use crate::space::calls::populate::{Goal, Unpopulated};
use crate::space::{AddressSpace, MapError, Space, TreeState, fault::FaultError};
use crate::vma::{Mapping, MappingFlags};

/// When the pages of a locked mapping come. mlock2 knows no other flag than MLOCK_ONFAULT, and refuses the rest (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Before the call returns (mlock).
    Now,
    /// With their first touch (MLOCK_ONFAULT).
    OnFault,
}

bitflags::bitflags! {
    /// What [`AddressSpace::lock_all`] locks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct LockAll: u8 {
        /// What is mapped now (MCL_CURRENT).
        const CURRENT = 1;
        /// What will be mapped, until a call without this (MCL_FUTURE).
        const FUTURE = 2;
        /// Pages come with their first touch (MCL_ONFAULT).
        const ON_FAULT = 4;
    }
}

/// Why nothing was locked, or not everything fetched. What lies below the address that an error names is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The range reaches past the last address (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Neither what is mapped nor what will be was asked for, or something that is unknown (EINVAL).
    #[error("neither what is mapped now nor what will be is to be locked, or something unknown")]
    Nothing,
    /// The limit is zero (EPERM).
    #[error("locking memory is not permitted")]
    NotPermitted,
    /// More than the limit would be locked; nothing is (ENOMEM).
    #[error("more than the limit of {limit} bytes would be locked")]
    Limit {
        /// The limit in bytes.
        limit: u64,
    },
    /// Nothing is mapped at `address`; what lies below it is locked, and not fetched (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to lock")]
    Hole {
        /// What was asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// All is locked; the pages from `address` on were not fetched, because the mapping there allows nothing (ENOMEM).
    #[error("the mapping at {address} allows nothing, so its pages were not fetched")]
    NotAllowed {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// All is locked; this page and those behind it were not fetched (ENOMEM; EAGAIN without memory).
    #[error("not every page was fetched: {0}")]
    Fault(FaultError),
    /// Splitting a mapping would make more than the limit; what lies below that mapping is locked, and not fetched (ENOMEM).
    #[error("locking {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// What was asked for.
        range: PageRange,
        /// The limit.
        limit: usize,
    },
    /// No memory for nodes (ENOMEM).
    #[error("out of memory to lock")]
    OutOfMemory,
}

impl LockError {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_) | Self::Nothing => errno::EINVAL,
            Self::NotPermitted => errno::EPERM,
            Self::Fault(FaultError::OutOfMemory { .. }) => errno::EAGAIN,
            Self::Limit { .. }
            | Self::Hole { .. }
            | Self::NotAllowed { .. }
            | Self::Fault(_)
            | Self::TooManyMappings { .. }
            | Self::OutOfMemory => errno::ENOMEM,
        }
    }
}

/// What the tree lock guards of locking and of guards.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::space) struct Locks {
    /// What new mappings get: [`MappingFlags::LOCKS`] or a part of them.
    pub future: MappingFlags,
    /// Whether a file's mapping may have guards: never goes back to no.
    pub file_guards: bool,
}

impl Locks {
    /// A child of fork has no locks.
    pub(in crate::space) fn of_child(self) -> Self {
        Self { future: MappingFlags::empty(), ..self }
    }
}

/// The pages that the bytes touch: locking takes any address, and rounds it down. A length that wraps around when it is
/// rounded up is what is left of it then, as on Linux.
fn touched(address: VirtAddr, length: u64) -> Result<Option<PageRange>, RangeError> {
    let offset = address.offset_in_page();
    match length.wrapping_add(offset).wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1) {
        0 => Ok(None),
        length => PageRange::from_bytes(VirtAddr::new(address.get() - offset), length).map(Some),
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// mlock, mlock2: the pages that `length` bytes at `address` touch stay in memory; with [`LockMode::Now`] they are
    /// fetched before this returns. The flag is set as [`AddressSpace::unmap`] waits; then the pages come by ordinary
    /// faults, and nothing is held while they wait for I/O. A mapping that is unlocked or replaced meanwhile is not
    /// fetched. Pages of a private mapping that can be written are had for writing.
    ///
    /// Nothing is evicted from a mapping in this version, locked or not. A mapping of foreign frames is passed over: it is never
    /// locked, and not fetched.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock(&self, address: VirtAddr, length: u64, mode: LockMode) -> Result<(), LockError> {
        let set = match mode {
            LockMode::Now => MappingFlags::LOCKED,
            LockMode::OnFault => MappingFlags::LOCKS,
        };
        self.0.may_lock()?;
        let Some(range) = touched(address, length)? else { return Ok(()) };
        self.0.set_locks(range, Holes::Stop, set)?;
        match mode {
            LockMode::OnFault => Ok(()),
            LockMode::Now => self.populate(range, Goal::Lock).map_err(|error| match error {
                Unpopulated::Hole(address) => LockError::Hole { range, address },
                // Foreign frames are not fetched for this, so that it is not said.
                Unpopulated::NotAllowed(address, _) | Unpopulated::Foreign(address) => {
                    LockError::NotAllowed { address }
                }
                Unpopulated::Fault(error) => LockError::Fault(error),
            }),
        }
    }

    /// munlock: takes [`AddressSpace::lock`] back. Waits as [`AddressSpace::unmap`].
    ///
    /// # Errors
    /// `Range`, `Hole`, `TooManyMappings`, `OutOfMemory` of [`LockError`]; after `Hole` the part below is unlocked.
    pub fn unlock(&self, address: VirtAddr, length: u64) -> Result<(), LockError> {
        let Some(range) = touched(address, length)? else { return Ok(()) };
        self.0.set_locks(range, Holes::Stop, MappingFlags::empty())
    }

    /// mlockall. What cannot be fetched of what is mapped now is no error, as on Linux.
    ///
    /// # Errors
    /// [`LockError`]: `Nothing`, `NotPermitted`; `Limit` if more than that is mapped now, and is to be locked;
    /// `OutOfMemory`.
    pub fn lock_all(&self, what: LockAll) -> Result<(), LockError> {
        if !what.intersects(LockAll::CURRENT | LockAll::FUTURE) || !LockAll::all().contains(what) {
            return Err(LockError::Nothing);
        }
        let space = &*self.0;
        space.may_lock()?;
        let set = if what.contains(LockAll::ON_FAULT) { MappingFlags::LOCKS } else { MappingFlags::LOCKED };
        {
            let mut lock = space.map.lock_by(&*space.engine);
            let limit = lock.limits.locked;
            if what.contains(LockAll::CURRENT) && lock.usage.pages > limit / PAGE_SIZE {
                return Err(LockError::Limit { limit });
            }
            lock.locks.future = if what.contains(LockAll::FUTURE) { set } else { MappingFlags::empty() };
        }
        if what.contains(LockAll::CURRENT) {
            space.set_locks(space.whole(), Holes::Skip, set)?;
            let _ = self.populate(space.whole(), Goal::LockAll);
        }
        Ok(())
    }

    /// munlockall: nothing is locked, and nothing will be.
    ///
    /// # Errors
    /// [`LockError::OutOfMemory`]: what will be mapped will not be locked, what is stays so.
    pub fn unlock_all(&self) -> Result<(), LockError> {
        let space = &*self.0;
        space.map.lock_by(&*space.engine).locks.future = MappingFlags::empty();
        space.set_locks(space.whole(), Holes::Skip, MappingFlags::empty())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Whether anything may be locked.
    fn may_lock(&self) -> Result<(), LockError> {
        match self.map.lock_by(&*self.engine).limits.locked {
            0 => Err(LockError::NotPermitted),
            _ => Ok(()),
        }
    }

    /// Gives all of `range` the flags `set` of locking, holes or not: those of mlockall are of the whole, whose limit it has
    /// asked for itself.
    fn set_locks(&self, range: PageRange, holes: Holes, set: MappingFlags) -> Result<(), LockError> {
        let before = |map: &TreeState| {
            if set.is_empty() || holes == Holes::Skip {
                return Ok(());
            }
            // What is locked already in the range counts once.
            let others = map.usage.locked - self.usage_in(map, range).locked;
            let limit = map.limits.locked;
            let too_many = others.saturating_add(range.pages()) > limit / PAGE_SIZE;
            if too_many { Err(LockError::Limit { limit }) } else { Ok(()) }
        };
        // Passed over without an error, as on Linux (VM_SPECIAL): foreign frames stay anyway.
        let change = |mapping: &Mapping<H>| {
            let set = if mapping.is_foreign() { MappingFlags::empty() } else { set };
            mapping.flags.difference(MappingFlags::LOCKS) | set
        };
        let changed = self.change_flags(range, holes, before, |_| None, change);
        if !set.is_empty() {
            self.own_locked_tables(range);
        }
        changed.or_else(|wrong| match wrong {
            Wrong::Hole(_) if holes == Holes::Skip => Ok(()),
            Wrong::Hole(address) => Err(LockError::Hole { range, address }),
            Wrong::Refused(_, error) | Wrong::All(error) => Err(error),
            Wrong::TooMany { limit } => Err(LockError::TooManyMappings { range, limit }),
            Wrong::OutOfMemory => Err(LockError::OutOfMemory),
        })
    }
}

impl TreeState {
    /// The flags that are asked for, as far as they can be. The mapping gets those that mlockall wants where it is published.
    pub(in crate::space) fn flags_asked(
        &self,
        asked: MappingFlags,
        pages: u64,
    ) -> Result<MappingFlags, MapError> {
        if asked.contains(MappingFlags::LOCKED) && self.limits.locked == 0 {
            return Err(MapError::LockNotPermitted);
        }
        // What is unknown is ignored, as on Linux.
        let asked = (asked & MappingFlags::all()) - MappingFlags::OWN - MappingFlags::READ_ONLY;
        // It will be asked again when the mapping comes; here for Linux's order of errors.
        self.check_locked(asked | self.locks.future, pages)?;
        #[cfg(mutant = "future_asked_early")]
        let asked = asked | self.locks.future;
        Ok(asked)
    }
}
