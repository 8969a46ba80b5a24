//! The entries that are found through the home of an anonymous page (docs/home.md), as reclaim finds them.

use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Frame, PageTable};
use faultless::protection::{Access, Protection};
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

/// Makes an engine. With `shared_entries` 1 fork shares each table; with more than a table has, fork copies each entry.
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

/// Makes a space with pages from 0 on.
fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, 0, PAGES);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page).unwrap());
    space
}

/// Returns the frame at `page`.
fn frame(space: &Space, page: u64) -> Frame {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
}

/// Returns the pages that are found through the home of the frame at `page`, in tables that are not shared.
fn homes(space: &Space, page: u64) -> Vec<u64> {
    space.engine().pages_by_home(frame(space, page)).into_iter().map(PageNumber::get).collect()
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
    assert_eq!(homes(&parent, 2), [2]);
    let child = parent.fork().unwrap();
    assert_eq!(
        (homes(&parent, 2), homes(&child, 2)),
        (vec![2, 2], vec![2, 2]),
        "the entries of the parent and of the child"
    );
    let before = frame(&child, 2);
    parent.store_u64(at(2), 1).unwrap();
    assert_ne!(frame(&parent, 2), before);
    assert_eq!(homes(&parent, 2)[0], 2, "the copy");
    assert_eq!(
        homes(&child, 2),
        [2, 2],
        "found through the family, since the entry that the home names has another page now"
    );
    audit(&[&parent, &child]);
    child.store_u64(at(2), 3).unwrap();
    assert_eq!(
        (frame(&child, 2), homes(&child, 2)),
        (before, vec![2, 2]),
        "written in place, so it is at home again"
    );
    audit(&[&parent, &child]);
    drop(parent);
    assert_eq!(homes(&child, 2), [2], "the parent's table has left the family");
    drop(child);
    end(&engine);
}

#[test]
fn the_copy_of_a_pinned_page_is_at_home_in_the_child() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(shared_entries);
        let parent = space(&engine);
        let pin = parent.pin(at(2), Access::Write).unwrap();
        let child = parent.fork().unwrap();
        drop(pin);
        assert_ne!(frame(&child, 2), frame(&parent, 2));
        assert_eq!((homes(&parent, 2)[0], homes(&child, 2)[0]), (2, 2));
        audit(&[&parent, &child]);
        drop(parent);
        assert_eq!(homes(&child, 2), [2]);
        drop(child);
        end(&engine);
    }
}

#[test]
fn a_page_that_others_map_too_is_found_when_the_entry_at_its_home_goes() {
    for shared_entries in [1, u64::MAX] {
        for step in 0..4 {
            let engine = engine(shared_entries);
            let parent = space(&engine);
            let child = parent.fork().unwrap();
            match step {
                0 => parent.unmap(at(0), PAGES * PAGE_SIZE).unwrap(),
                1 => parent.advise(at(0), PAGES * PAGE_SIZE, Advice::DontNeed).unwrap(),
                2 => parent.exit(),
                // Only the last handle is dropped.
                _ => {}
            }
            audit(&[&parent, &child]);
            drop(parent);
            audit(&[&child]);
            child.store_u64(at(0), 1).unwrap();
            assert_eq!((homes(&child, 0), homes(&child, 1)), (vec![0], vec![1]), "step {step}");
            drop(child);
            end(&engine);
        }
    }
}

#[test]
fn every_relative_is_found_and_only_living_ones() {
    for (shared_entries, is_youngest_first) in [(1, false), (1, true), (u64::MAX, false), (u64::MAX, true)] {
        let engine = engine(shared_entries);
        let parent = space(&engine);
        let children: Vec<_> = (0..5).map(|_| parent.fork().unwrap()).collect();
        let grandchild = children[4].fork().unwrap();
        // The store gives each space a table of its own.
        for space in children.iter().chain([&parent, &grandchild]) {
            space.store_u64(at(0), 1).unwrap();
        }
        let all: Vec<_> = children.iter().chain([&parent, &grandchild]).collect();
        audit(&all);
        assert_eq!(homes(&parent, 1), [1; 7]);
        let mut children = children;
        for left in (2..7).rev() {
            // Drop from the middle, from either end; or the youngest first.
            let index = if is_youngest_first { children.len() - 1 } else { left % children.len() };
            drop(children.remove(index));
            audit(&[&parent, &grandchild]);
            audit(&children.iter().collect::<Vec<_>>());
            assert_eq!(homes(&grandchild, 1).len(), left);
        }
        drop(parent);
        assert_eq!(homes(&grandchild, 1), [1]);
        drop(grandchild);
        end(&engine);
    }
}

#[test]
fn a_page_that_moves_takes_its_home_along_if_it_is_alone() {
    let engine = engine(u64::MAX);
    let parent = space(&engine);
    let child = parent.fork().unwrap();
    parent.store_u64(at(0), 7).unwrap();
    let to = |page| RemapRequest::to(at(0), PAGES * PAGE_SIZE, at(page));
    parent.remap(to(FAR)).unwrap();
    assert_eq!(homes(&parent, FAR), [FAR]);
    assert_eq!(homes(&parent, FAR + 1), [0; 0], "the child has it at another place");
    audit(&[&parent, &child]);
    child.remap(to(2 * FAR)).unwrap();
    assert_eq!(homes(&child, 2 * FAR), [2 * FAR], "the parent has copied it");
    audit(&[&parent, &child]);
    drop(parent);
    audit(&[&child]);
    assert_eq!(homes(&child, 2 * FAR + 1), [0; 0]);
    child.store_u64(at(2 * FAR + 1), 8).unwrap();
    assert_eq!(homes(&child, 2 * FAR + 1), [2 * FAR + 1], "written in place, so it is at home again");
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

/// One call moves several locked mappings over two tables that the child has too.
#[test]
fn no_table_under_locked_mappings_that_move_together_is_shared() {
    const PARTS: u64 = 2;
    let target = 512 - PAGES / 2;
    let engine = engine(1);
    let parent = space(&engine);
    map(&parent, 512 + PAGES, 1);
    parent.store_u64(at(512 + PAGES), 1).unwrap();
    for part in 0..PARTS {
        map(&parent, FAR + part * PAGES / PARTS, PAGES / PARTS);
    }
    // One of two mappings that would be merged otherwise.
    parent.protect(at(FAR), PAGES / PARTS * PAGE_SIZE, Protection::READ).unwrap();
    parent.lock(at(FAR), PAGES * PAGE_SIZE, LockMode::OnFault).unwrap();
    let child = parent.fork().unwrap();
    assert_eq!(engine.statistics().get(Counter::TablesShared), 2);
    parent.remap(RemapRequest::to(at(FAR), PAGES * PAGE_SIZE, at(target))).unwrap();
    audit(&[&parent, &child]);
    drop(parent);
    drop(child);
    end(&engine);
}

/// A table that has no page in common with its relatives leaves their family. Its pages are at home in its entries, also one whose
/// home was the family.
#[test]
fn a_table_without_shared_pages_leaves_its_family() {
    let engine = engine(u64::MAX);
    let parent = space(&engine);
    let child = parent.fork().unwrap();
    parent.store_u64(at(2), 1).unwrap();
    assert_eq!(homes(&child, 2), [2, 2], "the home is the family");
    for page in [0, 1, 3] {
        child.store_u64(at(page), 7).unwrap();
    }
    let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
    assert_eq!((cost.left, cost.stayed, cost.remarked), (1, 0, 1));
    assert_eq!(
        (homes(&child, 2), homes(&parent, 2)),
        (vec![2], vec![2]),
        "a search still asks the other table"
    );
    audit(&[&parent, &child]);
    let cost = child.isolate_cowed(at(0), FAR * PAGE_SIZE).unwrap();
    assert_eq!((cost.left, cost.stayed, cost.remarked), (0, 0, 0), "it has no relatives");
    // It has relatives again after the next fork, and so has the parent.
    let grandchild = child.fork().unwrap();
    assert_eq!(homes(&child, 2), [2, 2]);
    let cost = parent.isolate_cowed(at(0), PAGE_SIZE).unwrap();
    assert_eq!((cost.left, cost.stayed), (1, 0));
    audit(&[&parent, &child, &grandchild]);
    drop(parent);
    audit(&[&child, &grandchild]);
    drop((child, grandchild));
    end(&engine);
}

/// One page in common keeps a table in its family, and so does a table in common.
#[test]
fn a_table_with_a_shared_page_stays_in_its_family() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(shared_entries);
        let parent = space(&engine);
        let child = parent.fork().unwrap();
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.stayed), (0, 1));
        for page in 0..PAGES - 1 {
            child.store_u64(at(page), 7).unwrap();
        }
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.stayed), (0, 1), "page 3 is the parent's too");
        if shared_entries != 1 {
            assert_eq!(homes(&child, 3), [3, 3], "rule H4: a relative is not found");
        }
        child.unshare(at(0), PAGES * PAGE_SIZE).unwrap();
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.stayed), (1, 0));
        audit(&[&parent, &child]);
        drop((parent, child));
        end(&engine);
    }
}

/// A page in a slot that a relative names too is a page in common.
#[test]
fn a_table_with_a_shared_slot_stays_in_its_family() {
    let engine = engine(u64::MAX);
    let device = faultless::swap::CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap();
    engine.add_swap(Arc::new(device)).unwrap();
    let parent = space(&engine);
    let child = parent.fork().unwrap();
    for page in 1..PAGES {
        child.store_u64(at(page), 7).unwrap();
    }
    let stays = |expected: (u64, u64), why: &str| {
        let cost = child.isolate_cowed(at(0), PAGE_SIZE).unwrap();
        assert_eq!((cost.left, cost.stayed), expected, "{why}");
        child.audit().unwrap_or_else(|error| panic!("{error}"));
    };
    stays((0, 1), "page 0 is mapped in both");
    for _ in 0..100 {
        engine.reclaim_for_tests(64);
    }
    stays((0, 1), "both name the slot");
    assert_eq!(parent.load_u64(at(0)), Ok(0));
    stays((0, 1), "the parent maps the folio of the slot that the child names");
    assert_eq!(child.load_u64(at(0)), Ok(0));
    parent.discard(at(0), PAGE_SIZE).unwrap();
    stays((1, 0), "the child has the page alone");
    assert_eq!(child.load_u64(at(0)), Ok(0));
    drop((parent, child));
    end(&engine);
}
