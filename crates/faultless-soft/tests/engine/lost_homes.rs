//! Pages that lost their home when mremap moved one of their entries, and that one entry alone maps by now. Reclaim finds them though
//! nobody stores to them.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::swap::CompressedMemory;
use faultless::{AddressSpace, Advice, Engine, Limits, MapRequest, Placement, RemapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 300;
/// A page of another leaf table, at another index.
const FAR: u64 = 5 * 512 + 77;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

/// Makes an engine that swaps, and a space with pages from 0 on, each with its number plus 1 in its first word. With `shared_entries` 1
/// fork shares each table; with more than a table has, fork copies each entry.
fn machine(shared_entries: u64) -> (Arc<Engine<Soft>>, Space) {
    let limits = Limits { shared_entries, ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(4 * PAGES).unwrap(), limits).unwrap();
    engine.add_swap(Arc::new(CompressedMemory::new(4096, 4096 * PAGE_SIZE as usize).unwrap())).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    (engine, space)
}

fn move_far(space: &Space) {
    space.remap(RemapRequest::to(at(0), PAGES * PAGE_SIZE, at(FAR))).unwrap();
}

/// Reclaims until no page is in memory, and reads all pages.
fn swap_out(engine: &Arc<Engine<Soft>>, space: &Space, first: u64) {
    for _ in 0..100 {
        engine.reclaim_for_tests(PAGES);
        engine.flush();
    }
    space.audit().unwrap();
    assert_eq!(engine.frame_usage().used, 1, "pages stay in memory");
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(first + page)).unwrap(), page + 1);
    }
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

#[test]
fn moved_pages_are_taken_when_the_child_has_gone() {
    for shared_entries in [1, u64::MAX] {
        let (engine, parent) = machine(shared_entries);
        let child = parent.fork().unwrap();
        move_far(&parent);
        drop(child);
        swap_out(&engine, &parent, FAR);
        drop(parent);
        end(&engine);
    }
}

#[test]
fn pages_are_taken_when_the_space_that_has_moved_them_has_gone() {
    for shared_entries in [1, u64::MAX] {
        let (engine, parent) = machine(shared_entries);
        let child = parent.fork().unwrap();
        move_far(&child);
        drop(child);
        swap_out(&engine, &parent, 0);
        drop(parent);
        end(&engine);
    }
}

/// The one entry that is left is in a leaf table that two spaces share, and then in that of one of them.
#[test]
fn moved_pages_are_taken_from_a_table_that_fork_has_shared_since() {
    for shared_entries in [1, u64::MAX] {
        let (engine, parent) = machine(shared_entries);
        let child = parent.fork().unwrap();
        move_far(&parent);
        let second = parent.fork().unwrap();
        drop(child);
        if shared_entries == 1 {
            swap_out(&engine, &second, FAR);
        }
        drop(parent);
        swap_out(&engine, &second, FAR);
        drop(second);
        end(&engine);
    }
}

/// The entries named slots when they moved.
#[test]
fn pages_that_come_back_after_a_move_are_taken() {
    for shared_entries in [1, u64::MAX] {
        let (engine, parent) = machine(shared_entries);
        let child = parent.fork().unwrap();
        for space in [&parent, &child] {
            space.advise(at(0), PAGES * PAGE_SIZE, Advice::PageOut).unwrap();
        }
        move_far(&parent);
        (0..PAGES).for_each(|page| assert_eq!(child.load_u64(at(page)).unwrap(), page + 1));
        (0..PAGES).for_each(|page| assert_eq!(parent.load_u64(at(FAR + page)).unwrap(), page + 1));
        drop(child);
        swap_out(&engine, &parent, FAR);
        drop(parent);
        end(&engine);
    }
}

/// A locked mapping keeps its pages, with homes or without.
#[test]
fn locked_pages_that_lost_their_home_stay() {
    let (engine, parent) = machine(u64::MAX);
    let child = parent.fork().unwrap();
    move_far(&parent);
    parent.lock(at(FAR), PAGES * PAGE_SIZE, faultless::LockMode::Now).unwrap();
    drop(child);
    for _ in 0..100 {
        engine.reclaim_for_tests(PAGES);
    }
    assert_eq!(engine.frame_usage().used, PAGES + 1);
    parent.unlock(at(FAR), PAGES * PAGE_SIZE).unwrap();
    swap_out(&engine, &parent, FAR);
    drop(parent);
    end(&engine);
}
