//! mlock, munlock, mlockall, munlockall. The flag is set first, by range work. Then pages come by ordinary faults, which hold
//! nothing across I/O (sources: Lespinasse 2012).

use crate::address::{PAGE_SIZE, PageRange, RangeError, VirtAddr};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::space::calls::flags::{Holes, Wrong};
use crate::space::calls::populate::{Goal, Unpopulated};
use crate::space::{AddressSpace, MapError, Space, TreeState, fault::FaultError};
use crate::vma::{Mapping, MappingFlags};

/// The time at which the pages of a locked mapping are fetched. mlock2 knows no flag but MLOCK_ONFAULT, and refuses all others
/// (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// The pages are fetched before the call returns (mlock).
    Now,
    /// Each page is fetched with its first touch (MLOCK_ONFAULT).
    OnFault,
}

bitflags::bitflags! {
    /// The mappings that [`AddressSpace::lock_all`] locks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct LockAll: u8 {
        /// Locks all existing mappings (MCL_CURRENT).
        const CURRENT = 1;
        /// Locks new mappings, until a call without this flag (MCL_FUTURE).
        const FUTURE = 2;
        /// Fetches each page with its first touch (MCL_ONFAULT).
        const ON_FAULT = 4;
    }
}

/// The reason why nothing was locked, or not everything fetched. The part below the address that an error names is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The range reaches past the last address (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The flags name neither existing nor new mappings, or have unknown bits (EINVAL).
    #[error("the flags must name existing mappings, new mappings or both, and nothing else")]
    Nothing,
    /// The limit of locked memory is zero (EPERM).
    #[error("locking memory is not permitted")]
    NotPermitted,
    /// More than the limit would be locked. Nothing is locked (ENOMEM).
    #[error("more than the limit of {limit} bytes would be locked")]
    Limit {
        /// The limit in bytes.
        limit: u64,
    },
    /// Nothing is mapped at `address`. The part below it is locked, and not fetched (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to lock")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The first address that is not mapped.
        address: VirtAddr,
    },
    /// The mapping at `address` allows no access. All is locked; the pages from there on were not fetched (ENOMEM).
    #[error("the mapping at {address} allows nothing, so its pages were not fetched")]
    NotAllowed {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// A page could not be fetched. All is locked; this page and those behind it were not fetched (ENOMEM; EAGAIN without
    /// memory).
    #[error("not every page was fetched: {0}")]
    Fault(FaultError),
    /// To split a mapping would exceed the limit of mappings. The part below that mapping is locked, and not fetched (ENOMEM).
    #[error("locking {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// The range asked for.
        range: PageRange,
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for nodes (ENOMEM).
    #[error("out of memory to lock")]
    OutOfMemory,
}

impl LockError {
    /// Returns Linux's error number.
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

/// The state of locking and of guards that the tree lock guards.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::space) struct Locks {
    /// The flags that new mappings get: [`MappingFlags::LOCKS`] or a part of them.
    pub future: MappingFlags,
    /// Set once a file's mapping may have guards, and never cleared.
    pub file_guards: bool,
}

impl Locks {
    /// Returns the state for a child of fork, which has no locks.
    pub(in crate::space) fn of_child(self) -> Self {
        Self { future: MappingFlags::empty(), ..self }
    }
}

/// Returns the pages that the bytes touch. Locking takes any address, and rounds it down. If rounding the length up wraps
/// around, the wrapped length counts, as on Linux.
fn touched(address: VirtAddr, length: u64) -> Result<Option<PageRange>, RangeError> {
    let offset = address.offset_in_page();
    match length.wrapping_add(offset).wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1) {
        0 => Ok(None),
        length => PageRange::from_bytes(VirtAddr::new(address.get() - offset), length).map(Some),
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Keeps the pages that `length` bytes at `address` touch in memory (mlock, mlock2). With [`LockMode::Now`] the pages are
    /// fetched before this returns.
    ///
    /// To set the flag, waits as [`AddressSpace::unmap`]. Then the pages come by ordinary faults, and nothing is held while
    /// they wait for I/O. A mapping that is unlocked or replaced meanwhile is not fetched. Pages of a private mapping that can
    /// be written are fetched for writing.
    ///
    /// Reclaim takes no page of a locked mapping. A mapping of foreign frames is skipped: it is never locked,
    /// and not fetched.
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
                // Foreign frames are not fetched for a lock, so `Foreign` does not occur.
                Unpopulated::NotAllowed(address, _) | Unpopulated::Foreign(address) => {
                    LockError::NotAllowed { address }
                }
                Unpopulated::Fault(error) => LockError::Fault(error),
            }),
        }
    }

    /// Takes [`AddressSpace::lock`] back (munlock). Waits as [`AddressSpace::unmap`].
    ///
    /// # Errors
    /// `Range`, `Hole`, `TooManyMappings`, `OutOfMemory` of [`LockError`]. After `Hole` the part below is unlocked.
    pub fn unlock(&self, address: VirtAddr, length: u64) -> Result<(), LockError> {
        let Some(range) = touched(address, length)? else { return Ok(()) };
        self.0.set_locks(range, Holes::Stop, MappingFlags::empty())
    }

    /// Locks existing or new mappings, or both (mlockall). An existing page that cannot be fetched is no error, as on Linux.
    ///
    /// # Errors
    /// [`LockError`]: `Nothing`, `NotPermitted`; `Limit` if existing mappings are to be locked and exceed the limit;
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

    /// Unlocks all mappings, and locks no new ones (munlockall).
    ///
    /// # Errors
    /// [`LockError::OutOfMemory`]: new mappings will not be locked, existing ones stay as they are.
    pub fn unlock_all(&self) -> Result<(), LockError> {
        let space = &*self.0;
        space.map.lock_by(&*space.engine).locks.future = MappingFlags::empty();
        space.set_locks(space.whole(), Holes::Skip, MappingFlags::empty())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Checks that the space may lock anything.
    fn may_lock(&self) -> Result<(), LockError> {
        match self.map.lock_by(&*self.engine).limits.locked {
            0 => Err(LockError::NotPermitted),
            _ => Ok(()),
        }
    }

    /// Sets the flags of locking of all mappings in `range` to `set`; `holes` says whether a hole is an error. mlockall has
    /// checked its limit itself, for the whole space.
    fn set_locks(&self, range: PageRange, holes: Holes, set: MappingFlags) -> Result<(), LockError> {
        let before = |map: &TreeState| {
            if set.is_empty() || holes == Holes::Skip {
                return Ok(());
            }
            // Pages of the range that are locked already count once.
            let others = map.usage.locked - self.usage_in(map, range).locked;
            let limit = map.limits.locked;
            let too_many = others.saturating_add(range.pages()) > limit / PAGE_SIZE;
            if too_many { Err(LockError::Limit { limit }) } else { Ok(()) }
        };
        // Foreign frames are skipped without an error, as on Linux (VM_SPECIAL). They stay in memory anyway.
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
    /// Returns those of the flags asked for that can be given. Flags that mlockall set are added when the mapping is published.
    pub(in crate::space) fn flags_asked(
        &self,
        asked: MappingFlags,
        pages: u64,
    ) -> Result<MappingFlags, MapError> {
        if asked.contains(MappingFlags::LOCKED) && self.limits.locked == 0 {
            return Err(MapError::LockNotPermitted);
        }
        // Unknown flags are ignored, as on Linux.
        let asked = (asked & MappingFlags::all()) - MappingFlags::OWN - MappingFlags::READ_ONLY;
        // The limit is checked again when the mapping is published. It is checked here to keep Linux's order of errors.
        self.check_locked(asked | self.locks.future, pages)?;
        Ok(if mutant!("future_asked_early") { asked | self.locks.future } else { asked })
    }
}
