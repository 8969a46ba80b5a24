//! brk, mappings that grow down, and the limits of a space. The expected results were observed on Linux 6.18.

use crate::advice::{flags, resident};
use crate::moves::{FIXED, HERE, KEEP, MOVE, errno, is_hole, remap, shape};
use crate::*;
use faultless::errno::{EAGAIN, EINVAL, ENOMEM};
use faultless::vma::MappingFlags;
use faultless::{BrkError, LimitError, LockAll, LockMode, MapError, ProtectError, RemapError, SpaceLimits};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    the_heap_grows_and_shrinks
    the_heap_meets_what_is_mapped
    the_heap_is_locked_as_it_comes
    locked_memory_grows_with_its_pages
    growth_holds_nothing_while_it_is_fetched
    a_locked_stack_grows_without_pages
    stacks_grow_down
    stacks_keep_their_gap
    protection_down_to_the_start
    limits_of_a_space
    a_limit_counts_what_is_replaced_as_gone
    a_refused_move_leaves_what_it_would_replace
    nothing_is_mapped_after_exit
    exit_beside_every_call_that_maps
    stacks_grow_under_a_crowd
}

on_real_memory! {
    the_heap_grows_and_shrinks
    the_heap_meets_what_is_mapped
    the_heap_is_locked_as_it_comes
    locked_memory_grows_with_its_pages
    growth_holds_nothing_while_it_is_fetched
    a_locked_stack_grows_without_pages
    stacks_grow_down
    stacks_keep_their_gap
    protection_down_to_the_start
    limits_of_a_space
    a_limit_counts_what_is_replaced_as_gone
    a_refused_move_leaves_what_it_would_replace
    nothing_is_mapped_after_exit
    exit_beside_every_call_that_maps
    stacks_grow_under_a_crowd
}

fn stack<S: Stand>(page: u64, pages: u64) -> MapRequest<S> {
    MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(page, pages) }
}

fn the_heap_grows_and_shrinks<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let byte = |pages: u64, bytes: u64| VirtAddr::new(at(100 + pages).get() + bytes);
    assert_eq!(space.brk(at(5)), VirtAddr::default());
    assert_eq!(space.set_break(at(5)), Err(BrkError::NoHeap));
    space.set_heap(at(100));
    assert_eq!(space.brk(VirtAddr::default()), at(100));
    assert_eq!(space.brk(byte(0, 1)), byte(0, 1));
    assert_eq!(shape(&space), [(100, 101)]);
    space.store_u64(at(100), 5).unwrap();
    assert_eq!(space.brk(byte(1, 900)), byte(1, 900));
    assert_eq!(shape(&space), [(100, 102)]);
    assert_eq!(space.brk(byte(0, 100)), byte(0, 100));
    assert_eq!(shape(&space), [(100, 101)]);
    assert_eq!(space.load_u64(at(100)).unwrap(), 5);
    assert_eq!(space.brk(at(99)), byte(0, 100), "below the start");
    assert!(matches!(space.set_break(at(99)), Err(BrkError::BelowStart { .. })));
    assert_eq!(space.brk(at(100)), at(100));
    assert!(space.mappings().is_empty());
    // With a hole in the heap.
    space.brk(at(110));
    space.unmap(at(103), 3 * PAGE_SIZE).unwrap();
    assert_eq!(space.brk(at(105)), at(105));
    assert_eq!(space.brk(at(104)), at(105), "the part to remove has a hole");
    assert_eq!(space.brk(at(102)), at(102));
    assert_eq!(space.brk(at(110)), at(110));
    assert_eq!(shape(&space), [(100, 110)]);
    // Other mappings inside the heap go too.
    space.map(anonymous(103, 1).protection(Protection::READ)).unwrap();
    let child = space.fork().unwrap();
    assert_eq!(child.brk(at(111)), at(111));
    assert_eq!(space.brk(at(100)), at(100));
    assert!(space.mappings().is_empty());
    drop((space, child));
    machine.end()
}

fn the_heap_meets_what_is_mapped<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.set_heap(at(100));
    space.map(anonymous(110, 1)).unwrap();
    assert_eq!(space.brk(at(109)), at(109), "a page stays free");
    assert_eq!(space.brk(at(110)), at(109));
    assert_eq!(space.brk(at(120)), at(109));
    assert!(matches!(space.set_break(at(110)), Err(BrkError::NoRoom { .. })));
    space.unmap(at(110), PAGE_SIZE).unwrap();
    space.map(stack(1100, 1)).unwrap();
    assert_eq!(space.brk(at(844)), at(109));
    assert_eq!(space.brk(at(843)), at(843), "below the gap of what grows down");
    assert_eq!(space.brk(at(S::PAGES + 1)), at(843));
    let limits = SpaceLimits { data: 745 * PAGE_SIZE, ..SpaceLimits::default() };
    space.unmap(at(1100), PAGE_SIZE).unwrap();
    space.set_limits(limits);
    assert!(matches!(space.set_break(at(846)), Err(BrkError::Limit(_))));
    assert_eq!(space.brk(at(845)), at(845));
    space.set_limits(SpaceLimits { address_space: 746 * PAGE_SIZE, ..SpaceLimits::default() });
    assert_eq!(space.brk(at(847)), at(845));
    assert_eq!(space.brk(at(846)), at(846));
    drop(space);
    machine.end()
}

fn the_heap_is_locked_as_it_comes<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.set_heap(at(100));
    space.brk(at(102));
    space.lock_all(LockAll::FUTURE).unwrap();
    space.brk(VirtAddr::new(at(103).get() + 1));
    assert_eq!(flags(&space), [(100, 102, MappingFlags::empty()), (102, 104, MappingFlags::LOCKED)]);
    assert_eq!(resident(&space, 100, 4), "0011");
    assert_eq!(space.brk(at(104)), at(104), "nothing to map");
    space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
    space.brk(at(106));
    assert_eq!(resident(&space, 104, 2), "00");
    assert_eq!(flags(&space)[2], (104, 106, MappingFlags::LOCKS));
    // The limit counts all locked memory. If it did not, the heap could grow without bound.
    let limits = SpaceLimits { locked: 6 * PAGE_SIZE, ..SpaceLimits::default() };
    space.set_limits(limits);
    let error = space.set_break(at(109)).unwrap_err();
    assert!(matches!(error, BrkError::Limit(LimitError::Locked { pages: 3, .. })) && error.errno() == EAGAIN);
    assert_eq!(space.brk(at(109)), at(106), "the old break");
    assert_eq!(space.brk(at(108)), at(108));
    space.unlock_all().unwrap();
    assert_eq!(space.brk(at(120)), at(120));
    assert_eq!(resident(&space, 108, 12), "000000000000");
    // As on Linux, missing memory for the pages is no error.
    space.lock_all(LockAll::FUTURE).unwrap();
    space.set_limits(SpaceLimits::default());
    machine.engine.host().fail_frames_from(Some(0));
    assert_eq!(space.brk(at(121)), at(121));
    machine.engine.host().fail_frames_from(None);
    drop(space);
    machine.end()
}

fn locked_memory_grows_with_its_pages<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.lock(at(10), 2 * PAGE_SIZE, LockMode::Now).unwrap();
    remap(&space, (10, 2), 4, HERE, 0).unwrap();
    assert_eq!(resident(&space, 10, 4), "1111");
    remap(&space, (10, 4), 6, FIXED, 100).unwrap();
    assert_eq!(resident(&space, 100, 6), "111111");
    // The middle of a mapping moves away and grows there.
    let new = remap(&space, (100, 2), 3, crate::moves::MOVE, 0).unwrap();
    assert_eq!(resident(&space, new, 3), "111");
    assert_eq!(flags(&space).iter().filter(|line| line.2 == MappingFlags::LOCKED).count(), 2);
    space.lock(at(102), 4 * PAGE_SIZE, LockMode::OnFault).unwrap();
    remap(&space, (102, 4), 6, HERE, 0).unwrap();
    assert_eq!(resident(&space, 102, 6), "111100");
    // Pages that cannot be fetched are no error.
    let file = machine.file(3);
    space.map(of_file(&file, 200, 2, READ_WRITE)).unwrap();
    space.lock(at(200), 2 * PAGE_SIZE, LockMode::Now).unwrap();
    remap(&space, (200, 2), 5, HERE, 0).unwrap();
    assert_eq!(resident(&space, 200, 5), "11100");
    drop((space, file));
    machine.end()
}

fn growth_holds_nothing_while_it_is_fetched<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(4));
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    std::thread::scope(|scope| {
        let lock = scope.spawn(|| space.lock(at(10), PAGE_SIZE, LockMode::Now).unwrap());
        gate.wait_for(1);
        gate.pass(1);
        lock.join().unwrap();
        let grow = scope.spawn(|| remap(&space, (10, 1), 4, HERE, 0).unwrap());
        gate.wait_for(1);
        // A design that holds a lock through the read lets this call through only afterwards.
        let unmap = scope.spawn(|| space.unmap(at(10), 4 * PAGE_SIZE).unwrap());
        if D::NAME.starts_with("faultless") {
            unmap.join().unwrap();
        }
        gate.open();
        assert_eq!(grow.join().unwrap(), 10);
    });
    assert!(space.mappings().is_empty());
    drop((space, file, gate));
    machine.end()
}

fn a_locked_stack_grows_without_pages<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(stack(1000, 2)).unwrap();
    space.lock(at(1000), 2 * PAGE_SIZE, LockMode::Now).unwrap();
    space.store_u64(at(995), 1).unwrap();
    assert_eq!(flags(&space), [(995, 1002, MappingFlags::LOCKED | MappingFlags::GROWS_DOWN)]);
    assert_eq!(resident(&space, 995, 7), "1000011");
    space.set_limits(SpaceLimits { locked: 8 * PAGE_SIZE, ..SpaceLimits::default() });
    assert!(is_hole(&space, 993));
    space.store_u64(at(994), 1).unwrap();
    drop(space);
    machine.end()
}

fn stacks_grow_down<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(stack(3000, 4)).unwrap();
    space.store_u64(at(2999), 1).unwrap();
    space.store_u64(at(2990), 2).unwrap();
    assert_eq!(space.load_u64(at(2980)).unwrap(), 0);
    assert_eq!(shape(&space), [(2980, 3004)]);
    // The whole 8 MiB.
    space.store_u64(at(3004 - 2048), 3).unwrap();
    assert!(is_hole(&space, 3003 - 2048));
    assert_eq!(shape(&space), [(956, 3004)]);
    space.set_limits(SpaceLimits { stack: 16 * PAGE_SIZE, ..SpaceLimits::default() });
    space.map(stack(5000, 4)).unwrap();
    assert!(is_hole(&space, 4987));
    space.store_u64(at(4988), 1).unwrap();
    assert_eq!(shape(&space), [(956, 3004), (4988, 5004)]);
    // Rights do not prevent growth. The new part has the rights of the lowest part.
    space.map(stack(6000, 4)).unwrap();
    space.protect(at(6000), PAGE_SIZE, Protection::READ).unwrap();
    assert!(matches!(fault_of(space.store_u64(at(5999), 1)), FaultError::Protection { .. }));
    assert_eq!(space.load_u64(at(5998)).unwrap(), 0);
    assert_eq!(shape(&space)[2..], [(5998, 6001), (6001, 6004)]);
    // A stack can move, and grows at its new place.
    remap(&space, (6001, 3), 3, FIXED, 7000).unwrap();
    space.store_u64(at(6999), 1).unwrap();
    assert_eq!(shape(&space)[3..], [(6999, 7003)]);
    let child = space.fork().unwrap();
    child.store_u64(at(6998), 1).unwrap();
    assert!(matches!(
        space.map(MapRequest {
            flags: MappingFlags::GROWS_DOWN,
            ..of_file(&machine.file(1), 20, 1, READ_WRITE)
        }),
        Err(MapError::GrowingFile)
    ));
    space.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn stacks_keep_their_gap<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let grows = |below: MapRequest<S>| {
        space.unmap(at(0), S::PAGES * PAGE_SIZE).unwrap();
        space.map(stack(1000, 4)).unwrap();
        space.map(below).unwrap();
        [860, 859, 604, 603].map(|page| space.store_u64(at(page), 1).is_ok())
    };
    assert_eq!(grows(anonymous(600, 4).protection(Protection::READ)), [true, false, false, false]);
    assert_eq!(shape(&space), [(600, 604), (860, 1004)]);
    assert_eq!(grows(anonymous(600, 4).protection(Protection::empty())), [true, true, true, false]);
    assert_eq!(grows(stack(600, 4)), [true, true, true, true]);
    assert_eq!(shape(&space), [(600, 604), (604, 1004)], "two stacks stay two");
    // No mapping is placed into the gap by choice, but a fixed mapping may lie there.
    space.unmap(at(0), S::PAGES * PAGE_SIZE).unwrap();
    let top = MapRequest { flags: MappingFlags::GROWS_DOWN, ..MapRequest::anonymous(PAGE_SIZE) };
    let top = space.map(top).unwrap().page().get();
    let next = space.map(MapRequest::anonymous(PAGE_SIZE)).unwrap().page().get();
    assert_eq!(top - next, 257);
    space.map(anonymous(10, 1)).unwrap();
    assert_eq!(remap(&space, (10, 1), 1, KEEP, top - 256), Ok(next - 1));
    space.map(anonymous(top - 1, 1).at(Placement::FixedNoReplace(at(top - 1)))).unwrap();
    assert!(is_hole(&space, top - 2));
    drop(space);
    machine.end()
}

fn protection_down_to_the_start<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let down = |page, pages, rights| space.protect_down(at(page), pages * PAGE_SIZE, rights);
    space.map(stack(1000, 8)).unwrap();
    down(1004, 1, Protection::READ).unwrap();
    assert_eq!(shape(&space), [(1000, 1005), (1005, 1008)]);
    down(998, 4, READ_WRITE).unwrap();
    assert_eq!(shape(&space), [(1000, 1002), (1002, 1005), (1005, 1008)]);
    assert!(matches!(down(996, 2, READ_WRITE), Err(ProtectError::Hole { .. })));
    assert!(matches!(down(1006, 4, Protection::READ), Err(ProtectError::Hole { .. })));
    assert_eq!(shape(&space), [(1000, 1002), (1002, 1008)]);
    space.map(anonymous(2000, 2)).unwrap();
    let error = down(2001, 1, Protection::READ).unwrap_err();
    assert!(matches!(error, ProtectError::NotGrowing { .. }) && error.errno() == EINVAL);
    drop(space);
    machine.end()
}

fn limits_of_a_space<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let pages = |n: u64| n * PAGE_SIZE + 100;
    space.map(anonymous(10, 4)).unwrap();
    space.set_limits(SpaceLimits { address_space: pages(10), ..SpaceLimits::default() });
    assert_eq!(errno(remap(&space, (10, 4), 11, HERE, 0)), ENOMEM);
    remap(&space, (10, 4), 10, HERE, 0).unwrap();
    remap(&space, (10, 10), 5, HERE, 0).unwrap();
    remap(&space, (10, 5), 5, KEEP | FIXED, 40).unwrap();
    assert_eq!(errno(remap(&space, (10, 5), 5, KEEP | FIXED, 50)), ENOMEM);
    remap(&space, (10, 5), 5, FIXED, 60).unwrap();
    assert!(matches!(space.map(anonymous(100, 1)), Err(MapError::Limit(_))));
    assert!(matches!(space.map(MapRequest::anonymous(1)), Err(MapError::Limit(_))));
    space.map(anonymous(60, 5)).unwrap();
    assert_eq!(space.map(anonymous(60, 6)).unwrap_err().errno(), ENOMEM);
    space.map(stack(1000, 0).at(Placement::Anywhere)).unwrap_err();
    assert_eq!(errno(remap(&space, (40, 5), 7, FIXED, 60)), ENOMEM);
    assert_eq!(shape(&space), [(40, 45), (60, 65)]);

    // Data: private and writable, but no stack.
    space.unmap(at(0), 200 * PAGE_SIZE).unwrap();
    space.map(anonymous(10, 4)).unwrap();
    space.map(anonymous(100, 20).protection(Protection::READ)).unwrap_err();
    space.set_limits(SpaceLimits { data: pages(10), ..SpaceLimits::default() });
    space.map(anonymous(100, 20).protection(Protection::READ)).unwrap();
    remap(&space, (10, 4), 10, HERE, 0).unwrap();
    assert_eq!(space.map(anonymous(40, 1)).unwrap_err().errno(), ENOMEM);
    assert!(matches!(space.protect(at(100), PAGE_SIZE, READ_WRITE), Err(ProtectError::Limit { .. })));
    space.protect(at(10), 5 * PAGE_SIZE, Protection::READ).unwrap();
    space.protect(at(100), PAGE_SIZE, READ_WRITE).unwrap();
    assert!(space.protect(at(100), 6 * PAGE_SIZE, READ_WRITE).is_err());
    assert_eq!(shape(&space), [(10, 15), (15, 20), (100, 101), (101, 120)]);
    space.map(stack(300, 30)).unwrap();
    space.map(anonymous(200, 1).protection(Protection::empty())).unwrap();
    // A mapping over others may take as many pages as they have.
    space.map(anonymous(101, 19)).unwrap();
    assert!(space.map(anonymous(400, 1)).is_err());
    let child = space.fork().unwrap();
    assert!(child.map(anonymous(400, 1)).is_err(), "inherited");
    child.set_limits(SpaceLimits::default());
    child.map(anonymous(400, 1)).unwrap();

    // The limit of locked memory.
    let locked = MapRequest { flags: MappingFlags::LOCKED, ..anonymous(500, 4) };
    space.set_limits(SpaceLimits { locked: pages(5), ..SpaceLimits::default() });
    space.map(locked).unwrap();
    assert_eq!(errno(remap(&space, (500, 4), 6, HERE, 0)), EAGAIN);
    remap(&space, (500, 4), 5, HERE, 0).unwrap();
    remap(&space, (500, 5), 5, KEEP | FIXED, 600).unwrap();
    let flags = |page| {
        let found = space.mappings().into_iter().find(|m| m.range.start().get() == page);
        found.expect("a mapping").flags
    };
    assert_eq!((flags(500), flags(600)), (MappingFlags::empty(), MappingFlags::LOCKED));

    // The limit of mappings.
    let now = space.mappings().len();
    space.set_limits(SpaceLimits { mappings: now - 1, ..SpaceLimits::default() });
    assert_eq!(space.map(anonymous(700, 1)), Err(MapError::TooManyMappings { limit: now - 1 }));
    drop((space, child));
    machine.end()
}

/// CVE-2023-3269: faults find their mapping while another one grows next to it.
fn stacks_grow_under_a_crowd<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    for thread in 0..4_u64 {
        space.map(stack(2000 * (thread + 1), 1)).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let space = &space;
            scope.spawn(move || {
                // Two threads for each stack. Both fault at the same pages.
                let top = 2000 * (thread / 2 + 1);
                for page in (top - 300..top).rev() {
                    space.fetch_add_u64(at(page), 1).unwrap();
                }
            });
        }
    });
    for top in [2000, 4000] {
        (top - 300..top).for_each(|page| assert_eq!(space.load_u64(at(page)).unwrap(), 2));
    }
    assert_eq!(shape(&space), [(1700, 2001), (3700, 4001), (6000, 6001), (8000, 8001)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

/// Makes a space with twelve mapped pages, which is also its limit. Four of them start at 40.
fn full<S: Stand, D: LockingDesign>(machine: &Machine<S>) -> Space<S, D> {
    let space = machine.space::<D>();
    space.map(anonymous(10, 8)).unwrap();
    space.map(anonymous(40, 4)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(40), 4).unwrap();
    space.set_limits(SpaceLimits { address_space: 12 * PAGE_SIZE, ..SpaceLimits::default() });
    space
}

/// As on Linux, the pages that a call replaces make room for the new ones.
fn a_limit_counts_what_is_replaced_as_gone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = full::<S, D>(&machine);
    assert_eq!(remap(&space, (10, 4), 4, KEEP | FIXED, 40), Ok(40));
    assert_eq!(shape(&space), [(10, 18), (40, 44)]);
    assert_eq!((space.load_u64(at(40)).unwrap(), space.load_u64(at(10)).unwrap()), (1, 0));
    // Data is counted in the same way.
    space.set_limits(SpaceLimits { data: 12 * PAGE_SIZE, ..SpaceLimits::default() });
    assert_eq!(remap(&space, (40, 4), 4, KEEP | FIXED, 14), Ok(14));
    assert_eq!(space.load_u64(at(14)).unwrap(), 1);
    // Over four pages of which two are mapped, there is room for two pages only.
    let error = remap(&space, (14, 4), 4, KEEP | FIXED, 42).unwrap_err();
    assert_eq!(error, RemapError::Limit(LimitError::Data { pages: 4, limit: 12 * PAGE_SIZE }));
    space.set_limits(SpaceLimits { address_space: 12 * PAGE_SIZE, ..SpaceLimits::default() });
    space.map(anonymous(40, 4)).unwrap();
    space.map(anonymous(12, 6)).unwrap();
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn a_refused_move_leaves_what_it_would_replace<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = full::<S, D>(&machine);
    let unchanged = |error: RemapError| {
        assert!(matches!(error, RemapError::Limit(_)), "{error}");
        assert_eq!(shape(&space), [(10, 18), (40, 44)]);
        assert_eq!((space.load_u64(at(10)).unwrap(), space.load_u64(at(40)).unwrap()), (1, 4));
        space.audit().unwrap();
    };
    unchanged(remap(&space, (10, 4), 4, KEEP | FIXED, 42).unwrap_err());
    unchanged(remap(&space, (10, 2), 4, FIXED, 40).unwrap_err());
    unchanged(remap(&space, (10, 4), 4, KEEP, 60).unwrap_err());
    space.set_limits(SpaceLimits { address_space: 11 * PAGE_SIZE, ..SpaceLimits::default() });
    unchanged(remap(&space, (10, 4), 4, KEEP | FIXED, 40).unwrap_err());
    let over = space.map(anonymous(40, 4)).unwrap_err();
    assert!(matches!(over, MapError::Limit(LimitError::AddressSpace { .. })));
    assert_eq!(space.load_u64(at(40)).unwrap(), 4);
    space.set_limits(SpaceLimits { data: 11 * PAGE_SIZE, ..SpaceLimits::default() });
    unchanged(remap(&space, (10, 4), 4, KEEP | FIXED, 40).unwrap_err());
    space.set_limits(SpaceLimits { locked: 4 * PAGE_SIZE, ..SpaceLimits::default() });
    space.lock(at(10), 4 * PAGE_SIZE, LockMode::OnFault).unwrap();
    assert_eq!(errno(remap(&space, (10, 4), 5, FIXED, 40)), EAGAIN);
    let over = MapRequest { flags: MappingFlags::LOCKED, ..anonymous(40, 4) };
    assert_eq!(space.map(over).unwrap_err().errno(), EAGAIN);
    assert_eq!(space.load_u64(at(40)).unwrap(), 4);
    // A call at the limit of mappings removes nothing either.
    let now = space.mappings().len();
    space.set_limits(SpaceLimits { mappings: now - 1, ..SpaceLimits::default() });
    assert_eq!(errno(remap(&space, (11, 1), 1, FIXED, 41)), ENOMEM);
    assert_eq!(errno(remap(&space, (11, 1), 1, KEEP | FIXED, 41)), ENOMEM);
    assert_eq!(space.map(anonymous(41, 1)), Err(MapError::TooManyMappings { limit: now - 1 }));
    assert_eq!((space.load_u64(at(40)).unwrap(), space.mappings().len()), (4, now));
    drop(space);
    machine.end()
}

/// Maps by every call that can map, each independent of the results of the others.
fn map_by_every_call<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> [bool; 8] {
    let grown = space.mappings().last().map_or(VirtAddr::new(u64::MAX), |last| last.range.end().address());
    let request = |placement| MapRequest::anonymous(PAGE_SIZE).at(placement);
    [
        space.map(request(Placement::Anywhere)).is_ok(),
        space.map(request(Placement::Hint(at(300)))).is_ok(),
        space.map(request(Placement::Fixed(at(40)))).is_ok(),
        space.map(request(Placement::FixedNoReplace(grown))).is_ok(),
        space.map(MapRequest::shared_anonymous(PAGE_SIZE)).is_ok(),
        space.set_break(at(104)).is_ok() && space.set_break(at(108)).is_ok(),
        remap(space, (10, 1), 2, MOVE, 0).is_ok(),
        remap(space, (10, 1), 1, KEEP | FIXED, 200).is_ok(),
    ]
}

fn nothing_is_mapped_after_exit<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.set_heap(at(100));
    space.map(stack(400, 1)).unwrap();
    space.exit();
    assert_eq!(map_by_every_call(&space), [false; 8]);
    assert_eq!(space.set_break(at(102)), Err(BrkError::Exited));
    assert_eq!(space.brk(at(102)), at(100), "brk returns the old break");
    for page in [399, 100] {
        assert!(matches!(fault_of(space.load_u64(at(page))), FaultError::Exited { .. }), "page {page}");
    }
    assert_eq!(shape(&space), []);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

/// A call that began before exit maps nothing after it.
fn exit_beside_every_call_that_maps<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    for _ in 0..40 {
        let space = machine.space::<D>();
        space.set_heap(at(100));
        space.map(anonymous(10, 1)).unwrap();
        let exited = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !exited.load(Ordering::Relaxed) {
                        map_by_every_call(&space);
                    }
                });
            }
            space.exit();
            exited.store(true, Ordering::Relaxed);
        });
        assert_eq!(shape(&space), []);
        assert_eq!(map_by_every_call(&space), [false; 8]);
        space.audit().unwrap();
        drop(space);
    }
    machine.end()
}
