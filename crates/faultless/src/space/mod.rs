//! Address spaces: map, unmap, protect, discard, fork, fault, exit. Each call has a file of its own.

#[cfg(any(test, feature = "audit"))]
mod audit;
mod calls;
mod change;
pub mod fault;
mod foreign;
mod homes;
mod limits;
mod reclaim;
mod truncate;
mod victim;

#[cfg(any(test, feature = "audit"))]
pub use audit::AuditError;
pub use calls::advise::{Advice, AdviseError, UnknownAdvice};
pub use calls::advise_remote::RemoteAdviseError;
pub use calls::brk::BrkError;
pub use calls::discard::DiscardError;
pub use calls::fork::ForkError;
pub use calls::isolate::IsolateCost;
pub use calls::listing::MappingInfo;
pub use calls::lock::{LockAll, LockError, LockMode};
pub use calls::map::{MapError, MapRequest, Placement, Source};
pub use calls::mapped::Mapped;
pub use calls::move_pages::{MoveCause, MoveError, MoveRequest};
pub use calls::pin::PinnedPage;
pub use calls::protect::ProtectError;
pub use calls::remap::{RemapError, RemapFlags, RemapRequest};
pub use calls::remote::RemoteError;
pub use calls::resident::ResidentError;
pub use calls::seal::SealError;
pub use calls::sync_file::{SyncError, SyncFlags};
pub use calls::unmap::UnmapError;
pub use calls::unshare::{UnshareCost, UnshareError};
pub use calls::usage::MappingUsage;
pub use foreign::ForeignFrames;
pub use limits::{LimitError, SpaceLimits, SpaceUsage};

use crate::address::PageRange;
use crate::design::{Faultless, LockingDesign};
use crate::engine::{Dying, Engine, ListedSpace};
use crate::host::{GroupId, Host, OutOfMemory, PageTable, Table};
use crate::limit::{MemoryLimit, MemoryLimitError};
use crate::page_cache::MappedBy;
use crate::reclaim::SpaceHead;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Claims, ROOM_OF_RANGES, Ranges, Shared, Weak, plain};
use crate::tables::SpaceMark;
use crate::vma::Vma;
use crate::vma::tree::{Tree, Writer};
use alloc::sync::Arc;
use crossbeam_utils::CachePadded;

/// A virtual address space. This is a handle: clones are the same space, and the drop of the last handle ends the space.
///
/// Every method may be called by any number of threads at once. Each method's documentation says what it waits for. No method
/// waits for I/O but [`fault::PendingFault::wait`] and those that contain it.
pub struct AddressSpace<H: Host, D: LockingDesign = Faultless>(pub(crate) Shared<Space<H, D>>);

impl<H: Host, D: LockingDesign> Clone for AddressSpace<H, D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The state that the tree lock guards.
pub(crate) struct TreeState {
    writer: Writer,
    /// Set by exit: nothing is mapped any more.
    exited: bool,
    /// Set by exit, when the map is empty: the host has been told that the space has ended, or is about to be told.
    abandoned: bool,
    /// The flags of locking that new mappings get, and whether a file's mapping may have guards.
    locks: calls::lock::Locks,
    /// The sum of all mappings. Changed with the mappings, or when it is seen that an edit has been made.
    usage: limits::SpaceUsage,
    limits: SpaceLimits,
    heap: Option<calls::brk::Heap>,
    /// Counts how often pages have been moved. A call that goes through all mappings in several steps starts over if this has
    /// changed.
    moves: u64,
}

/// The state of a space. Its first field is the head by which reclaim reaches it, so the order of the fields is fixed.
#[repr(C)]
pub(crate) struct Space<H: Host, D: LockingDesign> {
    /// Immutable.
    head: SpaceHead<H>,
    /// Immutable.
    id: u64,
    /// The number of the group that pays for the space's pages. Immutable.
    group: GroupId,
    /// Keeps the group. Immutable.
    limit: Option<MemoryLimit<H>>,
    /// Immutable.
    engine: Arc<Engine<H>>,
    /// Immutable; entries are atomic.
    table: Table<H::Table>,
    /// Atomic links; changed under `map`, or as an edit of a range taken there.
    tree: Tree<Vma<H, D>>,
    /// The short tree lock, and the ranges taken under it. They have cache lines of their own, since faults read the fields
    /// beside them.
    map: CachePadded<Ranges<TreeState>>,
    /// The state that the locking design keeps for each space.
    lock: Shared<D::Space>,
    /// The flags that pending faults and pinned pages of this space keep alive.
    space_flags: Shared<SpaceFlags>,
}

pub(crate) struct SpaceFlags {
    /// Set by exit, before it takes any lock or range: faults that wait for I/O give up.
    dying: Dying,
    /// Counts the pages pinned for I/O by this space. Atomic. It is counted up under the page's bit. So fork, which has stopped
    /// page work, sees every pin.
    pins: AtomicU64,
    /// A [`VictimBias`](crate::VictimBias). Atomic.
    bias: plain::AtomicU64,
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn try_new(
        engine: &Arc<Engine<H>>,
        table: H::Table,
        limit: Option<MemoryLimit<H>>,
    ) -> Result<Shared<Self>, OutOfMemory> {
        let sections = engine.sections();
        let lock = Shared::try_new_charged(sections, D::Space::default())?;
        let space_flags =
            SpaceFlags { dying: Dying::default(), pins: AtomicU64::new(0), bias: plain::AtomicU64::new(0) };
        let space_flags = Shared::try_new_charged(sections, space_flags)?;
        let room = Claims::with_room()?;
        let space = Shared::try_make_charged(sections, |weak| {
            let (tree, writer) = Tree::new();
            let map = TreeState {
                writer,
                exited: false,
                abandoned: false,
                locks: calls::lock::Locks::default(),
                usage: limits::SpaceUsage::default(),
                limits: SpaceLimits::default(),
                heap: None,
                moves: 0,
            };
            Self {
                head: Self::new_head(),
                id: engine.next_serial(),
                group: limit.as_ref().map_or(GroupId::ROOT, MemoryLimit::group),
                limit,
                engine: engine.clone(),
                table: Table::new(table, SpaceMark::new(weak.place().cast())),
                tree,
                map: CachePadded::new(Ranges::with_room(map, room)),
                lock,
                space_flags,
            }
        })?;
        engine.charge(ROOM_OF_RANGES);
        engine.list_space(space.id, <dyn ListedSpace>::of(Shared::downgrade(&space)))?;
        Ok(space)
    }

    /// Returns the group that pays for the space's pages.
    #[inline]
    fn group(&self) -> GroupId {
        self.group
    }

    /// Returns the range of all pages that the table can address.
    fn whole(&self) -> PageRange {
        self.table.pages()
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Creates an empty space.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(engine: &Arc<Engine<H>>) -> Result<Self, OutOfMemory> {
        let table = engine.host().new_table(engine.sections())?;
        // SAFETY: new, and of this engine's host.
        unsafe { Self::with_table(engine, table) }
    }

    /// Creates an empty space whose pages the group of `limit` pays for. Children that fork makes are in the same group.
    ///
    /// # Errors
    /// [`MemoryLimitError::OtherEngine`] if the limit is not of `engine`; [`MemoryLimitError::OutOfMemory`].
    pub fn new_in(engine: &Arc<Engine<H>>, limit: &MemoryLimit<H>) -> Result<Self, MemoryLimitError> {
        if !limit.is_of(engine) {
            return Err(MemoryLimitError::OtherEngine);
        }
        let table = engine.host().new_table(engine.sections())?;
        // SAFETY: new, and of this engine's host.
        Ok(unsafe { Self::with_table_in(engine, table, Some(limit.clone())) }?)
    }

    /// Creates an empty space with a table that the embedder has made for it.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the table is dropped.
    ///
    /// # Safety
    /// The table is empty, nothing else uses it, and this engine's host made it with [`Engine::sections`]. A table of another
    /// machine names other frames, and waits for other sections.
    ///
    /// ```compile_fail,E0133
    /// # use faultless::host::{Host, OutOfMemory};
    /// # use faultless::{AddressSpace, Engine, design::Faultless};
    /// # use std::sync::Arc;
    /// fn with_the_table_of_another<H: Host>(a: &Arc<Engine<H>>, b: &Arc<Engine<H>>) -> Result<(), OutOfMemory> {
    ///     AddressSpace::<H, Faultless>::with_table(a, b.host().new_table(b.sections())?).map(drop)
    /// }
    /// ```
    pub unsafe fn with_table(engine: &Arc<Engine<H>>, table: H::Table) -> Result<Self, OutOfMemory> {
        // SAFETY: by the contract above.
        unsafe { Self::with_table_in(engine, table, None) }
    }

    /// Creates an empty space as [`AddressSpace::with_table`] does, in the group of `limit`, which is of this engine.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the table is dropped.
    ///
    /// # Safety
    /// The contract is that of [`AddressSpace::with_table`].
    unsafe fn with_table_in(
        engine: &Arc<Engine<H>>,
        table: H::Table,
        limit: Option<MemoryLimit<H>>,
    ) -> Result<Self, OutOfMemory> {
        engine.prepare()?;
        Ok(Self(Space::try_new(engine, table, limit)?))
    }

    /// Returns the engine that the space belongs to.
    pub fn engine(&self) -> &Arc<Engine<H>> {
        &self.0.engine
    }

    /// Returns the space's page table, for the host's own accesses.
    ///
    /// # Safety
    /// The caller walks the table inside a section of this engine. It changes entries only as a processor does: the accessed
    /// and the dirty bit.
    pub unsafe fn table(&self) -> &H::Table {
        &self.0.table
    }

    /// Returns the [`PageTable::root`] of this space's table, for the host's own code. A kernel calls this at each
    /// switch to a thread of the space, and loads the root.
    pub fn root(&self) -> <H::Table as PageTable>::Root<'_> {
        self.0.table.root()
    }

    /// Returns how many ranges are taken or waited for now: zero when no call is under way (invariant 11).
    #[cfg(any(test, feature = "audit"))]
    pub fn taken_ranges(&self) -> usize {
        self.0.map.claimed()
    }

    pub(crate) fn downgrade(&self) -> Weak<Space<H, D>> {
        Shared::downgrade(&self.0)
    }

    pub(crate) fn as_mapped_by(&self) -> Weak<dyn MappedBy<H>> {
        <dyn MappedBy<H>>::of(self.downgrade())
    }
}
