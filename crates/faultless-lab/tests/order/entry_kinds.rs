//! Entries of swapped, gone and kept pages in each call: none may be lost or counted twice. An old translation may
//! grant more than such an entry. So each call that changes, copies or drops one must invalidate as if the page were
//! present and writable. A fault that installs another frame over one must invalidate before it returns. The engine
//! makes no such entries yet, so these tests put them into the table by hand.

use super::host::{Recorder, lock};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::{Entry, EntryKind, Frame, FrameSource, Host, PageTable, Slot};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::sync::Shared;
use faultless::{
    AddressSpace, Advice, AuditError, Engine, FaultError, File, Limits, MapRequest, Placement, RemapRequest,
    SyncFlags,
};
use std::sync::Arc;

every_design! { [crate::under] (
    what_drops_pages_drops_each_kind_once_and_invalidates
    what_keeps_pages_keeps_each_kind
    mprotect_changes_the_rights_of_each_kind_and_invalidates
    mremap_moves_each_kind_and_invalidates
    fork_copies_each_kind_and_invalidates
    a_shared_table_counts_each_kind_once
    leaving_a_shared_table_for_munmap_copies_nothing_that_goes
    truncation_drops_each_kind_and_invalidates
    writeback_takes_the_write_right_from_a_kept_page
    a_fault_never_maps_zeros_over_a_page_in_a_slot
    a_fault_restores_a_kept_page
    a_fault_over_a_page_gone_long_ago_invalidates_nothing
    audit_finds_a_foreign_frame_in_memory_of_the_engine
) }

type Space<D> = AddressSpace<Recorder, D>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Swapped,
    Gone,
    Kept,
}

const KINDS: [Kind; 3] = [Kind::Swapped, Kind::Gone, Kind::Kept];
/// The page with the planted entry. Pages 0 and 2 are mapped.
const PLANTED: u64 = 1;
const PAGES: u64 = 4;
const VALUE: u64 = 77;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((512 + page) * PAGE_SIZE)
}

struct World<D: LockingDesign> {
    engine: Arc<Engine<Recorder>>,
    space: Space<D>,
    file: Option<Shared<File<Recorder>>>,
    kind: Kind,
    /// The entry that the test put into the table.
    planted: Entry,
}

impl<D: LockingDesign> World<D> {
    /// Makes a world with four anonymous pages.
    fn anonymous(kind: Kind, shared_entries: u64) -> Self {
        let engine = engine(shared_entries);
        let request = MapRequest::anonymous(PAGES * PAGE_SIZE);
        Self::new(engine, request, None, kind)
    }

    /// Makes the same world without the pages beside the planted one.
    fn alone(kind: Kind) -> Self {
        let world = Self::anonymous(kind, u64::MAX);
        world.space.discard(at(0), PAGE_SIZE).unwrap();
        world.space.discard(at(2), PAGE_SIZE).unwrap();
        world
    }

    /// Makes a world with four pages of a file in memory, shared or private.
    fn file(kind: Kind, is_shared: bool) -> Self {
        let engine = engine(u64::MAX);
        let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
        let (length, rights) = (PAGES * PAGE_SIZE, Protection::READ | Protection::WRITE);
        let request = match is_shared {
            true => MapRequest::shared_file(&file, 0, length, rights),
            false => MapRequest::file(&file, 0, length, rights),
        };
        Self::new(engine, request, Some(file), kind)
    }

    fn new(
        engine: Arc<Engine<Recorder>>,
        request: MapRequest<Recorder>,
        file: Option<Shared<File<Recorder>>>,
        kind: Kind,
    ) -> Self {
        let space = Space::new(&engine).unwrap();
        space.map(request.at(Placement::Fixed(at(0)))).unwrap();
        store(&space, 0, 1);
        store(&space, 2, 2);
        let rights = Entry::READ | Entry::WRITE;
        let planted = match kind {
            Kind::Swapped => Entry::swapped(Slot::new(5).unwrap(), 9, rights),
            Kind::Gone => Entry::gone(Frame::new(0).unwrap(), rights),
            Kind::Kept => {
                store(&space, PLANTED, VALUE);
                Entry::kept(entry(&engine, &space, PLANTED).mapped_frame().unwrap(), rights)
            }
        };
        put(&engine, &space, planted);
        Self { engine, space, file, kind, planted }
    }

    fn entry(&self, page: u64) -> Entry {
        entry(&self.engine, &self.space, page)
    }

    /// Returns how often such an entry was copied and dropped.
    fn counts(&self) -> (u64, u64) {
        let statistics = self.engine.statistics();
        (statistics.get(Counter::AbsentCopied), statistics.get(Counter::AbsentDropped))
    }

    fn assert_counts(&self, copied: u64, dropped: u64) {
        assert_eq!(self.counts(), (copied, dropped), "{:?}: copied, dropped", self.kind);
    }

    /// Ends the space, and checks that everything was given back.
    fn end(self, copied: u64) {
        let Self { engine, space, file, kind, .. } = self;
        drop((space, file));
        engine.flush();
        let statistics = engine.statistics();
        assert_eq!(statistics.get(Counter::AbsentCopied), copied, "{kind:?}");
        assert_eq!(statistics.get(Counter::AbsentDropped), copied + 1, "{kind:?}: dropped once each");
        assert_eq!(engine.frame_usage().used, 1, "{kind:?}: all but the page of zeros");
    }
}

fn engine(shared_entries: u64) -> Arc<Engine<Recorder>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Recorder::new(), limits).expect("a frame")
}

/// Stores as a processor would: faults, then stores into the frame that the entry names. This host has no processors.
fn store<D: LockingDesign>(space: &Space<D>, page: u64, value: u64) {
    space.fault_and_wait(at(page), Access::Write).unwrap();
    let frame = entry(space.engine(), space, page).mapped_frame().unwrap();
    // SAFETY: the page stays mapped, and no other thread uses it.
    unsafe { space.engine().host().frames().write(frame, 0, &value.to_ne_bytes()) };
}

/// Loads as a processor would, see [`store`].
fn load<D: LockingDesign>(space: &Space<D>, page: u64) -> u64 {
    space.fault_and_wait(at(page), Access::Read).unwrap();
    let frame = entry(space.engine(), space, page).mapped_frame().unwrap();
    let mut word = [0; 8];
    // SAFETY: as in `store`.
    unsafe { space.engine().host().frames().read(frame, 0, &mut word) };
    u64::from_ne_bytes(word)
}

/// Calls `call`, and returns whether it has invalidated the planted page of `space`.
fn invalidates<D: LockingDesign>(space: &Space<D>, call: impl FnOnce()) -> bool {
    let log = space.engine().host().log.clone();
    lock(&log.invalidated).clear();
    call();
    let (table, page) = (space.root(), at(PLANTED).page());
    let invalidated = lock(&log.invalidated);
    invalidated.iter().any(|(of, range)| *of == table && range.contains(page))
}

/// Returns the entry of `page`; empty if there is no table.
fn entry<D: LockingDesign>(engine: &Engine<Recorder>, space: &Space<D>, page: u64) -> Entry {
    // SAFETY: the section ends before anything waits.
    let section = unsafe { engine.enter_section() };
    // SAFETY: the table is only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.leaf(&section, page).map_or(Entry::EMPTY, |leaf| table.load(leaf, page))
}

fn put<D: LockingDesign>(engine: &Engine<Recorder>, space: &Space<D>, new: Entry) {
    // SAFETY: the section ends before anything waits.
    let section = unsafe { engine.enter_section() };
    // SAFETY: no other thread uses the space.
    let table = unsafe { space.table() };
    let page = at(PLANTED).page();
    let leaf = table.leaf(&section, page).expect("the pages beside it are mapped");
    let seen = table.load(leaf, page);
    // SAFETY: the new entry takes over the mapping that `seen` counts, or counts nothing. No processor runs.
    unsafe { table.exchange(leaf, page, seen, new) }.unwrap();
}

/// A call that drops the page, with its name and the kind of the entry afterwards.
type Drops<D> = (&'static str, fn(&World<D>), EntryKind);

fn drops<D: LockingDesign>() -> [Drops<D>; 6] {
    [
        ("munmap", |world| world.space.unmap(at(PLANTED), PAGE_SIZE).unwrap(), EntryKind::Empty),
        (
            "munmap of a whole table",
            |world| world.space.unmap(at(0), 512 * PAGE_SIZE).unwrap(),
            EntryKind::Empty,
        ),
        ("MADV_DONTNEED", |world| world.space.discard(at(0), PAGES * PAGE_SIZE).unwrap(), EntryKind::Empty),
        (
            "MADV_GUARD_INSTALL",
            |world| world.space.advise(at(PLANTED), PAGE_SIZE, Advice::GuardInstall).unwrap(),
            EntryKind::Guard,
        ),
        (
            "MAP_FIXED",
            |world| {
                let request = MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(PLANTED)));
                world.space.map(request).unwrap();
            },
            EntryKind::Empty,
        ),
        ("exit", |world| world.space.exit(), EntryKind::Empty),
    ]
}

/// Only the planted page is there, so that no other page makes the call invalidate.
fn what_drops_pages_drops_each_kind_once_and_invalidates<D: LockingDesign>() {
    for kind in KINDS {
        for (name, call, left) in drops::<D>() {
            let world = World::<D>::alone(kind);
            assert!(invalidates(&world.space, || call(&world)), "S1: {kind:?}, {name}");
            assert_eq!(world.entry(PLANTED).kind(), left, "{kind:?}, {name}");
            assert_eq!(world.counts(), (0, 1), "{kind:?}, {name}: copied, dropped");
            world.end(0);
        }
    }
}

/// Calls that keep the page must keep its entry.
fn what_keeps_pages_keeps_each_kind<D: LockingDesign>() {
    type Keeps<D> = (&'static str, fn(&World<D>));
    let calls: [Keeps<D>; 6] = [
        ("msync", |world| world.space.sync(at(0), PAGES * PAGE_SIZE, SyncFlags::SYNC).unwrap()),
        ("mincore", |world| {
            let resident = world.space.resident(at(0), PAGES * PAGE_SIZE).unwrap();
            assert_eq!(resident, [true, world.kind == Kind::Kept, true, false]);
        }),
        ("smaps", |world| {
            let usage = world.space.usage();
            let swapped = if world.kind == Kind::Swapped { PAGE_SIZE } else { 0 };
            let kept = if world.kind == Kind::Kept { PAGE_SIZE } else { 0 };
            assert_eq!((usage[0].swap, usage[0].resident), (swapped, 2 * PAGE_SIZE + kept));
        }),
        ("MADV_GUARD_REMOVE", |world| {
            world.space.advise(at(0), PAGES * PAGE_SIZE, Advice::GuardRemove).unwrap();
        }),
        ("munmap beside it", |world| world.space.unmap(at(2), PAGE_SIZE).unwrap()),
        ("audit", |world| world.space.audit().unwrap()),
    ];
    for kind in KINDS {
        for (name, call) in calls {
            let world = World::<D>::anonymous(kind, u64::MAX);
            call(&world);
            assert_eq!(world.entry(PLANTED), world.planted, "{kind:?}, {name}");
            world.assert_counts(0, 0);
            world.end(0);
        }
    }
}

fn mprotect_changes_the_rights_of_each_kind_and_invalidates<D: LockingDesign>() {
    for kind in KINDS {
        let world = World::<D>::alone(kind);
        for protection in [Protection::READ, Protection::empty(), Protection::READ | Protection::WRITE] {
            let protect = || world.space.protect(at(0), PAGES * PAGE_SIZE, protection).unwrap();
            let is_less = !protection.contains(Protection::WRITE);
            assert!(invalidates(&world.space, protect) || !is_less, "S1: {kind:?}, {protection}");
            let now = world.entry(PLANTED);
            assert!(now.has_page_of(world.planted), "{kind:?}: {now:?}");
            assert_eq!(now.has(Entry::READ), protection.contains(Protection::READ), "{kind:?}: {now:?}");
            // A later fault gives the right back, as for a present page.
            assert!(!now.has(Entry::WRITE), "{kind:?}: {now:?}");
            world.space.audit().unwrap();
        }
        world.assert_counts(0, 0);
        world.end(0);
    }
}

fn mremap_moves_each_kind_and_invalidates<D: LockingDesign>() {
    for kind in KINDS {
        let world = World::<D>::alone(kind);
        let (length, far) = (PAGES * PAGE_SIZE, 4096);
        // Only a part moves, so that the leaf table stays. An unhooked leaf table would be invalidated anyway.
        world.space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(PAGES)))).unwrap();
        let request = RemapRequest::to(at(0), length, at(far));
        let remap = || assert_eq!(world.space.remap(request), Ok(at(far)));
        assert!(invalidates(&world.space, remap), "S1: {kind:?}");
        assert_eq!(world.entry(PLANTED), Entry::EMPTY, "{kind:?}");
        assert!(world.entry(far + PLANTED).has_page_of(world.planted), "{kind:?}");
        world.assert_counts(0, 0);
        world.end(0);
    }
}

fn fork_copies_each_kind_and_invalidates<D: LockingDesign>() {
    for kind in KINDS {
        // By copies of entries, and by a shared table that the child leaves.
        for shared_entries in [u64::MAX, 1] {
            let world = match shared_entries {
                1 => World::<D>::anonymous(kind, 1),
                _ => World::<D>::alone(kind),
            };
            let mut child = None;
            let fork = || child = Some(world.space.fork().unwrap());
            assert!(invalidates(&world.space, fork), "S1: {kind:?}, {shared_entries}");
            let child = child.unwrap();
            let shares = shared_entries == 1;
            assert_eq!(world.engine.statistics().get(Counter::TablesShared), u64::from(shares));
            world.assert_counts(u64::from(!shares), 0);
            assert!(invalidates(&child, || store(&child, 0, 3)) || !shares, "S1: leaving, {kind:?}");
            world.assert_counts(1, 0);
            for entry in [world.entry(PLANTED), entry(&world.engine, &child, PLANTED)] {
                assert!(entry.has_page_of(world.planted) && !entry.has(Entry::WRITE), "{kind:?}: {entry:?}");
                assert!(entry.has(Entry::READ), "{kind:?}: {entry:?}");
            }
            drop(child);
            world.engine.flush();
            world.assert_counts(1, 1);
            world.end(1);
        }
    }
}

fn a_shared_table_counts_each_kind_once<D: LockingDesign>() {
    for kind in KINDS {
        let world = World::<D>::anonymous(kind, 1);
        let child = world.space.fork().unwrap();
        drop(child);
        world.end(0);
    }
}

fn leaving_a_shared_table_for_munmap_copies_nothing_that_goes<D: LockingDesign>() {
    for kind in KINDS {
        let world = World::<D>::anonymous(kind, 1);
        let child = world.space.fork().unwrap();
        child.unmap(at(PLANTED), PAGE_SIZE).unwrap();
        world.assert_counts(0, 0);
        assert!(world.entry(PLANTED).has_page_of(world.planted), "{kind:?}");
        drop(child);
        world.end(0);
    }
}

fn truncation_drops_each_kind_and_invalidates<D: LockingDesign>() {
    for kind in KINDS {
        for is_shared in [false, true] {
            // A page of a shared mapping is never in a swap slot of the mapping.
            if kind == Kind::Swapped && is_shared {
                continue;
            }
            let world = World::<D>::file(kind, is_shared);
            let file = world.file.as_ref().unwrap();
            let cut = || file.handle().set_length(PAGE_SIZE).unwrap();
            assert!(invalidates(&world.space, cut), "S1: {kind:?}, shared: {is_shared}");
            assert_eq!(world.entry(PLANTED), Entry::EMPTY, "{kind:?}, shared: {is_shared}");
            world.assert_counts(0, 1);
            world.end(0);
        }
    }
}

/// Writeback must take the write right from a kept page too, so that later stores are written again.
fn writeback_takes_the_write_right_from_a_kept_page<D: LockingDesign>() {
    let kept = tempfile::NamedTempFile::new().unwrap();
    kept.as_file().set_len(PAGES * PAGE_SIZE).unwrap();
    let engine = engine(u64::MAX);
    let file = File::open_rw(&engine, Arc::new(FileStore::open_rw(kept.path()).unwrap())).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let request = MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, rights);
    let world = World::<D>::new(engine, request, Some(file), Kind::Kept);
    let sync = || world.space.sync(at(PLANTED), PAGE_SIZE, SyncFlags::SYNC).unwrap();
    assert!(invalidates(&world.space, sync), "S1");
    assert_eq!(world.entry(PLANTED), world.planted.without(Entry::WRITE));
    world.assert_counts(0, 0);
    let written = std::fs::read(kept.path()).unwrap();
    assert_eq!(written[PAGE_SIZE as usize], VALUE as u8);
    store(&world.space, PLANTED, 8);
    world.space.sync(at(0), PAGES * PAGE_SIZE, SyncFlags::SYNC).unwrap();
    assert_eq!(std::fs::read(kept.path()).unwrap()[PAGE_SIZE as usize], 8);
}

fn a_fault_never_maps_zeros_over_a_page_in_a_slot<D: LockingDesign>() {
    for access in [Access::Read, Access::Write] {
        let world = World::<D>::anonymous(Kind::Swapped, u64::MAX);
        let lost = FaultError::Lost { address: at(PLANTED) };
        assert_eq!(world.space.fault_and_wait(at(PLANTED), access), Err(lost));
        assert_eq!(world.entry(PLANTED), world.planted);
        world.end(0);
    }
}

fn a_fault_restores_a_kept_page<D: LockingDesign>() {
    let world = World::<D>::anonymous(Kind::Kept, u64::MAX);
    assert_eq!(load(&world.space, PLANTED), VALUE);
    store(&world.space, PLANTED, 8);
    assert_eq!(load(&world.space, PLANTED), 8);
    assert_eq!(world.entry(PLANTED).mapped_frame(), world.planted.counted_frame());
    world.assert_counts(0, 0);
}

/// Only while reclaim has the folio isolated can an old translation be in use (rule S4), and no folio is isolated here.
/// A fault can install each kind of frame over the entry: zeros, a new page, a file's page, a copy of one.
fn a_fault_over_a_page_gone_long_ago_invalidates_nothing<D: LockingDesign>() {
    type Make<D> = (&'static str, fn() -> World<D>);
    let worlds: [Make<D>; 3] = [
        ("anonymous", || World::alone(Kind::Gone)),
        ("of a file, private", || World::file(Kind::Gone, false)),
        ("of a file, shared", || World::file(Kind::Gone, true)),
    ];
    for (name, make) in worlds {
        for access in [Access::Read, Access::Write] {
            let world = make();
            let fault = || world.space.fault_and_wait(at(PLANTED), access).unwrap();
            assert!(!invalidates(&world.space, fault), "{name}, {access}");
            assert_eq!(load(&world.space, PLANTED), 0);
            world.assert_counts(0, 0);
        }
        // A pin for I/O installs a page of the space's own.
        let world = make();
        let pin = || drop(world.space.pin(at(PLANTED), Access::Read).unwrap());
        assert!(!invalidates(&world.space, pin), "{name}, pinned");
        world.assert_counts(0, 0);
    }
}

fn audit_finds_a_foreign_frame_in_memory_of_the_engine<D: LockingDesign>() {
    let world = World::<D>::alone(Kind::Gone);
    let frame = Frame::new(Frame::COUNT - 1).unwrap();
    put(&world.engine, &world.space, Entry::foreign(frame, Entry::READ));
    let wrong = AuditError::Foreign { page: at(PLANTED).page(), frame, shown: None };
    assert_eq!(world.space.audit(), Err(wrong));
    put(&world.engine, &world.space, world.planted);
    world.end(0);
}
