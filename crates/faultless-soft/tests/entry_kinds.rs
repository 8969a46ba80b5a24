//! Entries of pages that are swapped, gone or kept pass through each call: none is lost, and none is counted twice. Nothing in
//! the engine makes such entries yet, so these tests put them into the table by hand.
#![cfg(not(any(loom, shuttle)))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Entry, EntryKind, Frame, PageTable, Slot};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::sync::Shared;
use faultless::{
    AddressSpace, Advice, Engine, FaultError, File, Limits, MapRequest, Placement, RemapRequest, SyncFlags,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Swapped,
    Gone,
    Kept,
}

const KINDS: [Kind; 3] = [Kind::Swapped, Kind::Gone, Kind::Kept];
/// The page that has the entry; pages 0 and 2 are mapped.
const PLANTED: u64 = 1;
const PAGES: u64 = 4;
const VALUE: u64 = 77;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((512 + page) * PAGE_SIZE)
}

struct World {
    engine: Arc<Engine<Soft>>,
    space: Space,
    file: Option<Shared<File<Soft>>>,
    kind: Kind,
    /// What was put into the table.
    planted: Entry,
}

impl World {
    /// Four anonymous pages.
    fn anonymous(kind: Kind, shared_entries: u64) -> Self {
        let engine = engine(shared_entries);
        let request = MapRequest::anonymous(PAGES * PAGE_SIZE);
        Self::new(engine, request, None, kind)
    }

    /// Four pages of a file in memory, shared or private.
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
        engine: Arc<Engine<Soft>>,
        request: MapRequest<Soft>,
        file: Option<Shared<File<Soft>>>,
        kind: Kind,
    ) -> Self {
        let space = Space::new(&engine).unwrap();
        space.map(request.at(Placement::Fixed(at(0)))).unwrap();
        space.store_u64(at(0), 1).unwrap();
        space.store_u64(at(2), 2).unwrap();
        let rights = Entry::READ | Entry::WRITE;
        let planted = match kind {
            Kind::Swapped => Entry::swapped(Slot::new(5).unwrap(), 9, rights),
            Kind::Gone => Entry::gone(Frame::new(0).unwrap(), rights),
            Kind::Kept => {
                space.store_u64(at(PLANTED), VALUE).unwrap();
                Entry::kept(entry(&engine, &space, PLANTED).mapped_frame().unwrap(), rights)
            }
        };
        put(&engine, &space, planted);
        Self { engine, space, file, kind, planted }
    }

    fn entry(&self, page: u64) -> Entry {
        entry(&self.engine, &self.space, page)
    }

    /// How often such an entry was copied and dropped.
    fn counts(&self) -> (u64, u64) {
        let statistics = self.engine.statistics();
        (statistics.get(Counter::AbsentCopied), statistics.get(Counter::AbsentDropped))
    }

    fn assert_counts(&self, copied: u64, dropped: u64) {
        assert_eq!(self.counts(), (copied, dropped), "{:?}: copied, dropped", self.kind);
    }

    /// Ends the space, and looks for what was not given back.
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

fn engine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::new(256).expect("memory"), limits).expect("a frame")
}

/// The entry at `page`; empty without a table.
fn entry(engine: &Engine<Soft>, space: &Space, page: u64) -> Entry {
    // SAFETY: it ends before anything waits.
    let section = unsafe { engine.enter_section() };
    // SAFETY: it is only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.leaf(&section, page).map_or(Entry::EMPTY, |leaf| table.load(leaf, page))
}

fn put(engine: &Engine<Soft>, space: &Space, new: Entry) {
    // SAFETY: it ends before anything waits.
    let section = unsafe { engine.enter_section() };
    // SAFETY: no other thread uses the space.
    let table = unsafe { space.table() };
    let page = at(PLANTED).page();
    let leaf = table.leaf(&section, page).expect("the pages beside it are mapped");
    let seen = table.load(leaf, page);
    // SAFETY: it takes over the mapping that `seen` counts, or counts nothing. No processor runs.
    unsafe { table.exchange(leaf, page, seen, new) }.unwrap();
}

/// The calls that drop the page, and the kind that is there afterwards.
type Drops = (&'static str, fn(&World), EntryKind);
const DROPS: [Drops; 6] = [
    ("munmap", |world| world.space.unmap(at(PLANTED), PAGE_SIZE).unwrap(), EntryKind::Empty),
    ("munmap of a whole table", |world| world.space.unmap(at(0), 512 * PAGE_SIZE).unwrap(), EntryKind::Empty),
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
];

#[test]
fn what_drops_pages_drops_each_kind_once() {
    for kind in KINDS {
        for (name, call, left) in DROPS {
            let world = World::anonymous(kind, u64::MAX);
            call(&world);
            assert_eq!(world.entry(PLANTED).kind(), left, "{kind:?}, {name}");
            assert_eq!(world.counts(), (0, 1), "{kind:?}, {name}: copied, dropped");
            world.end(0);
        }
    }
}

/// The calls that keep the page.
#[test]
fn what_keeps_pages_keeps_each_kind() {
    type Keeps = (&'static str, fn(&World));
    let calls: [Keeps; 6] = [
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
            let world = World::anonymous(kind, u64::MAX);
            call(&world);
            assert_eq!(world.entry(PLANTED), world.planted, "{kind:?}, {name}");
            world.assert_counts(0, 0);
            world.end(0);
        }
    }
}

#[test]
fn mprotect_changes_the_rights_of_each_kind() {
    for kind in KINDS {
        let world = World::anonymous(kind, u64::MAX);
        for protection in [Protection::READ, Protection::empty(), Protection::READ | Protection::WRITE] {
            world.space.protect(at(0), PAGES * PAGE_SIZE, protection).unwrap();
            let now = world.entry(PLANTED);
            assert!(now.has_page_of(world.planted), "{kind:?}: {now:?}");
            assert_eq!(now.has(Entry::READ), protection.contains(Protection::READ), "{kind:?}: {now:?}");
            // A later fault gives the right back, as to a present page.
            assert!(!now.has(Entry::WRITE), "{kind:?}: {now:?}");
            world.space.audit().unwrap();
        }
        world.assert_counts(0, 0);
        world.end(0);
    }
}

#[test]
fn mremap_moves_each_kind() {
    for kind in KINDS {
        let world = World::anonymous(kind, u64::MAX);
        let (length, far) = (PAGES * PAGE_SIZE, 4096);
        world.space.remap(RemapRequest::to(at(0), length, at(far))).unwrap();
        assert_eq!(world.entry(PLANTED), Entry::EMPTY, "{kind:?}");
        assert!(world.entry(far + PLANTED).has_page_of(world.planted), "{kind:?}");
        world.assert_counts(0, 0);
        world.end(0);
    }
}

#[test]
fn fork_copies_each_kind_and_a_child_drops_it() {
    for kind in KINDS {
        // By entries, and by a shared table that the child leaves.
        for shared_entries in [u64::MAX, 1] {
            let world = World::anonymous(kind, shared_entries);
            let child = world.space.fork().unwrap();
            let shares = shared_entries == 1;
            assert_eq!(world.engine.statistics().get(Counter::TablesShared), u64::from(shares));
            world.assert_counts(u64::from(!shares), 0);
            child.store_u64(at(0), 3).unwrap();
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

#[test]
fn a_shared_table_counts_each_kind_once() {
    for kind in KINDS {
        let world = World::anonymous(kind, 1);
        let child = world.space.fork().unwrap();
        drop(child);
        world.end(0);
    }
}

#[test]
fn leaving_a_shared_table_for_munmap_copies_nothing_that_goes() {
    for kind in KINDS {
        let world = World::anonymous(kind, 1);
        let child = world.space.fork().unwrap();
        child.unmap(at(PLANTED), PAGE_SIZE).unwrap();
        world.assert_counts(0, 0);
        assert!(world.entry(PLANTED).has_page_of(world.planted), "{kind:?}");
        drop(child);
        world.end(0);
    }
}

#[test]
fn truncation_drops_each_kind() {
    for kind in KINDS {
        for is_shared in [false, true] {
            // A page of a shared mapping is in no slot of the mapping's.
            if kind == Kind::Swapped && is_shared {
                continue;
            }
            let world = World::file(kind, is_shared);
            world.file.as_ref().unwrap().handle().set_length(PAGE_SIZE).unwrap();
            assert_eq!(world.entry(PLANTED), Entry::EMPTY, "{kind:?}, shared: {is_shared}");
            world.assert_counts(0, 1);
            world.end(0);
        }
    }
}

/// A write of the file takes the write right from a kept page too: what is stored later is written again.
#[test]
fn writeback_takes_the_write_right_from_a_kept_page() {
    let kept = tempfile::NamedTempFile::new().unwrap();
    kept.as_file().set_len(PAGES * PAGE_SIZE).unwrap();
    let engine = engine(u64::MAX);
    let file = File::open_rw(&engine, Arc::new(FileStore::open_rw(kept.path()).unwrap())).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let request = MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, rights);
    let world = World::new(engine, request, Some(file), Kind::Kept);
    world.space.sync(at(0), PAGES * PAGE_SIZE, SyncFlags::SYNC).unwrap();
    assert_eq!(world.entry(PLANTED), world.planted.without(Entry::WRITE));
    world.assert_counts(0, 0);
    let written = std::fs::read(kept.path()).unwrap();
    assert_eq!(written[PAGE_SIZE as usize], VALUE as u8);
    world.space.store_u64(at(PLANTED), 8).unwrap();
    world.space.sync(at(0), PAGES * PAGE_SIZE, SyncFlags::SYNC).unwrap();
    assert_eq!(std::fs::read(kept.path()).unwrap()[PAGE_SIZE as usize], 8);
}

#[test]
fn a_fault_never_maps_zeros_over_a_page_in_a_slot() {
    for access in [Access::Read, Access::Write] {
        let world = World::anonymous(Kind::Swapped, u64::MAX);
        let lost = FaultError::Lost { address: at(PLANTED) };
        assert_eq!(world.space.fault_and_wait(at(PLANTED), access), Err(lost));
        assert_eq!(world.entry(PLANTED), world.planted);
        world.end(0);
    }
}

#[test]
fn a_fault_restores_a_kept_page_and_gets_a_gone_one_again() {
    let world = World::anonymous(Kind::Kept, u64::MAX);
    assert_eq!(world.space.load_u64(at(PLANTED)), Ok(VALUE));
    world.space.store_u64(at(PLANTED), 8).unwrap();
    assert_eq!(world.space.load_u64(at(PLANTED)), Ok(8));
    assert_eq!(world.entry(PLANTED).mapped_frame(), world.planted.counted_frame());
    world.assert_counts(0, 0);

    for access in [Access::Read, Access::Write] {
        let world = World::anonymous(Kind::Gone, u64::MAX);
        world.space.fault_and_wait(at(PLANTED), access).unwrap();
        assert_eq!(world.space.load_u64(at(PLANTED)), Ok(0));
        // S3: invalidated, and so dropped.
        world.assert_counts(0, 1);
        world.end(0);
    }
}
