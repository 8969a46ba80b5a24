//! The entry that an anonymous page names as its own (docs/home.md), asked as reclaim will ask it.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Frame, PageTable};
use faultless::stats::Counter;
use faultless::vma::MappingFlags;
use faultless::{
    AddressSpace, Advice, Engine, Limits, LockAll, LockMode, MapRequest, Placement, RemapRequest,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 4;
/// A page of another leaf table.
const FAR: u64 = 5 * 512;

/// `shared_entries`: 1 to share each table at fork, more than a table has to copy each entry.
fn engine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::with_caches(64).unwrap(), limits).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn map(space: &Space, page: u64, pages: u64) {
    space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))).unwrap();
}

/// A space with pages from 0 on.
fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, 0, PAGES);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page).unwrap());
    space
}

/// The frame at `page`.
fn frame(space: &Space, page: u64) -> Frame {
    // SAFETY: it ends before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: it is only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
}

/// The page that the home of what `page` shows names, in a table that is one space's own.
fn home(space: &Space, page: u64) -> Option<u64> {
    space.engine().follow_home(frame(space, page)).map(PageNumber::get)
}

fn audit(spaces: &[&Space]) {
    spaces.iter().for_each(|space| space.audit().unwrap_or_else(|error| panic!("{error}")));
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

#[test]
fn a_first_page_and_a_copy_are_at_home_where_they_are_mapped() {
    let engine = engine(u64::MAX);
    let parent = space(&engine);
    assert_eq!(home(&parent, 2), Some(2));
    let child = parent.fork().unwrap();
    assert_eq!((home(&parent, 2), home(&child, 2)), (Some(2), Some(2)), "fork writes no home");
    let before = frame(&child, 2);
    parent.store_u64(at(2), 1).unwrap();
    assert_ne!(frame(&parent, 2), before);
    assert_eq!(home(&parent, 2), Some(2), "the copy");
    assert_eq!(home(&child, 2), None, "the entry that its home named has let it go");
    audit(&[&parent, &child]);
    child.store_u64(at(2), 3).unwrap();
    assert_eq!((frame(&child, 2), home(&child, 2)), (before, Some(2)), "written in place: at home again");
    audit(&[&parent, &child]);
    drop((parent, child));
    end(&engine);
}

#[test]
fn a_page_that_others_map_too_has_no_home_when_its_entry_goes() {
    for shared_entries in [1, u64::MAX] {
        for step in 0..3 {
            let engine = engine(shared_entries);
            let parent = space(&engine);
            let child = parent.fork().unwrap();
            match step {
                0 => parent.unmap(at(0), PAGES * PAGE_SIZE).unwrap(),
                1 => parent.advise(at(0), PAGES * PAGE_SIZE, Advice::DontNeed).unwrap(),
                _ => parent.exit(),
            }
            audit(&[&parent, &child]);
            drop(parent);
            audit(&[&child]);
            // A table that came by fork is the child's now, and so are the homes in it.
            child.store_u64(at(0), 1).unwrap();
            assert_eq!(home(&child, 0), Some(0));
            assert_eq!(home(&child, 1), (shared_entries == 1).then_some(1), "step {step}");
            drop(child);
            end(&engine);
        }
    }
}

#[test]
fn a_page_that_moves_takes_its_home_along() {
    let engine = engine(u64::MAX);
    let parent = space(&engine);
    let child = parent.fork().unwrap();
    parent.store_u64(at(0), 7).unwrap();
    let to = |page| RemapRequest::to(at(0), PAGES * PAGE_SIZE, at(page));
    parent.remap(to(FAR)).unwrap();
    assert_eq!((home(&parent, FAR), home(&parent, FAR + 1)), (Some(FAR), Some(FAR + 1)));
    audit(&[&parent, &child]);
    // The child's pages are at home in the parent, but for the one that the parent has copied.
    child.remap(to(2 * FAR)).unwrap();
    assert_eq!((home(&child, 2 * FAR), home(&child, 2 * FAR + 1)), (Some(2 * FAR), Some(FAR + 1)));
    audit(&[&parent, &child]);
    drop(parent);
    audit(&[&child]);
    drop(child);
    end(&engine);
}

#[test]
fn no_table_under_a_locked_mapping_is_shared() {
    type Work = fn(&Space);
    let works: [(&str, Work); 4] = [
        ("mlock", |space| space.lock(at(1), PAGE_SIZE, LockMode::OnFault).unwrap()),
        ("mlockall", |space| space.lock_all(LockAll::CURRENT | LockAll::ON_FAULT).unwrap()),
        ("a locked mapping beside", |space| {
            let request = MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(PAGES + 1)));
            space.map(MapRequest { flags: MappingFlags::LOCKS, ..request }).unwrap();
        }),
        ("mlockall before mmap", |space| {
            space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
            map(space, PAGES + 1, 1);
        }),
    ];
    for (what, work) in works {
        for is_before in [true, false] {
            let engine = engine(1);
            let parent = space(&engine);
            let child = if is_before {
                work(&parent);
                let child = parent.fork().unwrap();
                assert_eq!(engine.statistics().get(Counter::TablesShared), 0, "{what}, rule H6");
                child
            } else {
                let child = parent.fork().unwrap();
                assert_eq!(engine.statistics().get(Counter::TablesShared), 1);
                work(&parent);
                child
            };
            audit(&[&parent, &child]);
            parent.store_u64(at(0), 9).unwrap();
            assert_eq!((child.load_u64(at(0)), parent.load_u64(at(0))), (Ok(0), Ok(9)));
            audit(&[&parent, &child]);
            drop(parent);
            drop(child);
            end(&engine);
        }
    }
}
