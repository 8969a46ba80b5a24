//! Address spaces: map, unmap, protect, discard, fork, fault, exit; one verb a file.

#[cfg(any(test, feature = "audit"))]
mod audit;
mod calls;
mod change;
pub mod fault;
mod foreign;
mod limits;
mod truncate;

#[cfg(any(test, feature = "audit"))]
pub use audit::AuditError;
pub use calls::advise::{Advice, AdviseError, UnknownAdvice};
pub use calls::brk::BrkError;
pub use calls::discard::DiscardError;
pub use calls::fork::ForkError;
pub use calls::listing::MappingInfo;
pub use calls::lock::{LockAll, LockError, LockMode};
pub use calls::map::{MapError, MapRequest, Placement, Source};
pub use calls::mapped::Mapped;
pub use calls::pin::PinnedPage;
pub use calls::protect::ProtectError;
pub use calls::remap::{RemapError, RemapFlags, RemapRequest};
pub use calls::remote::RemoteError;
pub use calls::resident::ResidentError;
pub use calls::seal::SealError;
pub use calls::sync_file::{SyncError, SyncFlags};
pub use calls::unmap::UnmapError;
pub use calls::usage::MappingUsage;
pub use foreign::ForeignFrames;
pub use limits::{LimitError, SpaceLimits, SpaceUsage};

use crate::address::PageRange;
use crate::design::{Faultless, LockingDesign};
use crate::engine::{Dying, Engine};
use crate::host::{Host, OutOfMemory, PageTable, Table};
use crate::page_cache::MappedBy;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Claims, ROOM_OF_RANGES, Ranges, Shared, Weak};
use crate::tables::SpaceMark;
use crate::vma::Vma;
use crate::vma::tree::{Tree, Writer};
use alloc::sync::Arc;
use crossbeam_utils::CachePadded;

/// A virtual address space. A handle: clones are the same space, whose last handle ends it.
///
/// Every method may be called by any number of threads at once. What a method waits for is said there; no method but
/// [`fault::PendingFault::wait`] and those that contain it ever waits for I/O.
pub struct AddressSpace<H: Host, D: LockingDesign = Faultless>(pub(crate) Shared<Space<H, D>>);

impl<H: Host, D: LockingDesign> Clone for AddressSpace<H, D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the tree lock guards.
pub(crate) struct TreeState {
    writer: Writer,
    /// Set by exit: nothing is mapped any more.
    exited: bool,
    /// Set by exit, when the map is empty: the host has been told, or is about to be.
    abandoned: bool,
    /// What is locked as it comes, and up to how much.
    locks: calls::lock::Locks,
    /// What the mappings come to; changed with them, or when it is seen that an edit has been made.
    usage: limits::SpaceUsage,
    limits: SpaceLimits,
    heap: Option<calls::brk::Heap>,
    /// How often pages have been moved: who goes through all mappings, and not at once, looks again if it has changed.
    moves: u64,
}

pub(crate) struct Space<H: Host, D: LockingDesign> {
    /// Immutable.
    id: u64,
    /// Immutable.
    engine: Arc<Engine<H>>,
    /// Immutable; entries are atomic.
    table: Table<H::Table>,
    /// Atomic links; changed under `map`, or as an edit of what was taken there.
    tree: Tree<Vma<H, D>>,
    /// The short tree lock, and the ranges taken under it. On lines of their own: faults read what is beside them.
    map: CachePadded<Ranges<TreeState>>,
    /// What the design keeps here.
    lock: Shared<D::Space>,
    /// What its pending faults and its pinned pages hold on to.
    space_flags: Shared<SpaceFlags>,
}

pub(crate) struct SpaceFlags {
    /// Set by exit, before it takes anything: faults that wait for I/O give up.
    dying: Dying,
    /// Pages pinned for I/O by this space. Atomic; counted up under the page's bit, so that fork, which has stopped page work,
    /// finds each that there is.
    pins: AtomicU64,
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn try_new(engine: &Arc<Engine<H>>, table: H::Table) -> Result<Shared<Self>, OutOfMemory> {
        let sections = engine.sections();
        let lock = Shared::try_new_charged(sections, D::Space::default())?;
        let space_flags = SpaceFlags { dying: Dying::default(), pins: AtomicU64::new(0) };
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
                id: engine.next_serial(),
                engine: engine.clone(),
                table: Table::new(table, SpaceMark::new(weak.as_raw())),
                tree,
                map: CachePadded::new(Ranges::with_room(map, room)),
                lock,
                space_flags,
            }
        })?;
        engine.charge(ROOM_OF_RANGES);
        Ok(space)
    }

    /// Every page that the table can address.
    fn whole(&self) -> PageRange {
        self.table.pages()
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// An empty space.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(engine: &Arc<Engine<H>>) -> Result<Self, OutOfMemory> {
        let table = engine.host().new_table(engine.sections())?;
        // SAFETY: new, and of this engine's host.
        unsafe { Self::with_table(engine, table) }
    }

    /// An empty space with a table that the embedder has made for it.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the table is dropped.
    ///
    /// # Safety
    /// The table is empty, nobody else uses it, and this engine's host made it with [`Engine::sections`]: a table of another
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
        engine.prepare()?;
        Ok(Self(Space::try_new(engine, table)?))
    }

    /// The machine it lives in.
    pub fn engine(&self) -> &Arc<Engine<H>> {
        &self.0.engine
    }

    /// Its page table, for the host's own accesses.
    ///
    /// # Safety
    /// The caller walks it inside a section of this engine, and changes entries only as a processor does: accessed and
    /// dirty.
    pub unsafe fn table(&self) -> &H::Table {
        &self.0.table
    }

    /// What the host's own code may know of its page table, by [`PageTable::root`]. A kernel asks at each switch to a thread of the
    /// space, and loads it.
    pub fn root(&self) -> <H::Table as PageTable>::Root<'_> {
        self.0.table.root()
    }

    /// How many ranges are taken or waited for now. Zero when no call is under way (invariant 11).
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
