//! mremap. The expected results were observed on Linux 6.18.

use crate::*;
use faultless::errno::{EFAULT, EINVAL, ENOMEM, EPERM};
use faultless::protection::{Access, Sharing};
use faultless::vma::MappingFlags;
use faultless::{Fault, RemapError, RemapFlags, RemapRequest, Source};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    sizes_change_in_place
    what_cannot_grow_moves
    what_is_too_long_to_cut_off_has_cost_the_target
    pages_move_with_their_bytes
    moved_memory_joins_by_where_it_came_from
    memory_without_pages_joins_wherever_it_is
    the_old_place_can_stay
    several_mappings_move_together
    a_fixed_place_is_cleared
    shared_memory_is_mapped_again
    wrong_remaps_are_typed_errors
    sealed_mappings_stay
    a_pending_fault_finds_its_page_moved
    truncation_reaches_moved_pages
    a_child_has_what_was_moved
    moving_keeps_off_the_limit_of_mappings
    a_move_without_memory_leaves_all
    faults_and_moves_at_once
}

on_real_memory! {
    sizes_change_in_place
    what_cannot_grow_moves
    what_is_too_long_to_cut_off_has_cost_the_target
    pages_move_with_their_bytes
    moved_memory_joins_by_where_it_came_from
    the_old_place_can_stay
    several_mappings_move_together
    a_fixed_place_is_cleared
    shared_memory_is_mapped_again
    wrong_remaps_are_typed_errors
    sealed_mappings_stay
    a_pending_fault_finds_its_page_moved
    truncation_reaches_moved_pages
    a_child_has_what_was_moved
    faults_and_moves_at_once
}

pub(crate) const MOVE: RemapFlags = RemapFlags::MAY_MOVE;
pub(crate) const FIXED: RemapFlags = MOVE.union(RemapFlags::FIXED);
pub(crate) const KEEP: RemapFlags = MOVE.union(RemapFlags::DONT_UNMAP);
pub(crate) const HERE: RemapFlags = RemapFlags::empty();

/// Calls mremap with pages. Returns the first page of the new place, or the error.
pub(crate) fn remap<S: Stand, D: LockingDesign>(
    space: &Space<S, D>,
    (old, old_pages): (u64, u64),
    new_pages: u64,
    flags: RemapFlags,
    new: u64,
) -> Result<u64, RemapError> {
    let (old_length, new_length) = (old_pages * PAGE_SIZE, new_pages * PAGE_SIZE);
    let request = RemapRequest { old: at(old), old_length, new_length, flags, new: at(new) };
    space.remap(request).map(|address| address.page().get())
}

pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T, RemapError>) -> i32 {
    result.expect_err("an error").errno()
}

pub(crate) fn shape<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<(u64, u64)> {
    space.mappings().iter().map(|m| (m.range.start().get(), m.range.end().get())).collect()
}

pub(crate) fn is_hole<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64) -> bool {
    matches!(space.load_u64(at(page)), Err(AccessError::Fault(FaultError::NoMapping { .. })))
}

fn sizes_change_in_place<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    assert_eq!(remap(&space, (10, 4), 6, HERE, 0), Ok(10));
    assert_eq!(remap(&space, (12, 4), 6, HERE, 0), Ok(10 + 2), "the end of a mapping");
    assert_eq!(shape(&space), [(10, 18)]);
    space.store_u64(at(17), 7).unwrap();
    assert_eq!(remap(&space, (10, 8), 8, HERE, 0), Ok(10));
    assert_eq!(errno(remap(&space, (10, 4), 6, HERE, 0)), ENOMEM, "the rest of the mapping is in the way");
    assert_eq!(errno(remap(&space, (10, 9), 12, HERE, 0)), EFAULT);
    space.map(anonymous(20, 2)).unwrap();
    space.store_u64(at(20), 1).unwrap();
    assert_eq!(remap(&space, (10, 8), 10, HERE, 0), Ok(10));
    assert_eq!(shape(&space), [(10, 20), (20, 22)], "both had pages of their own, so they stay apart");
    // A mapping can also be shortened over holes and other mappings.
    assert_eq!(remap(&space, (10, 40), 3, HERE, 0), Ok(10));
    assert_eq!(shape(&space), [(10, 13)]);
    assert!(is_hole(&space, 17));
    assert_eq!(remap(&space, (10, 40), 40, MOVE, 0), Ok(10), "the same length succeeds with any mappings");
    space.map(anonymous(15, 2)).unwrap();
    assert_eq!(remap(&space, (10, 3), 5, HERE, 0), Ok(10));
    assert_eq!(shape(&space), [(10, 17)], "merged on both sides");
    assert_eq!(space.load_u64(at(10)).unwrap(), 1);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn what_cannot_grow_moves<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.map(anonymous(14, 1).protection(Protection::READ)).unwrap();
    (10..14).for_each(|page| space.store_u64(at(page), page).unwrap());
    assert!(matches!(remap(&space, (10, 4), 5, HERE, 0), Err(RemapError::NoRoom { pages: 5, .. })));
    let new = remap(&space, (10, 4), 5, MOVE, 30).unwrap();
    assert_eq!(new, S::PAGES - 5, "the highest free place; the new address is ignored");
    (0..4).for_each(|i| assert_eq!(space.load_u64(at(new + i)).unwrap(), 10 + i));
    assert_eq!(space.load_u64(at(new + 4)).unwrap(), 0);
    assert!(is_hole(&space, 10));
    // The middle of a mapping.
    let part = remap(&space, (new + 1, 2), 3, MOVE, 0).unwrap();
    assert_eq!(space.load_u64(at(part + 1)).unwrap(), 12);
    assert_eq!(shape(&space), [(14, 15), (part, part + 3), (new, new + 1), (new + 3, new + 5)]);
    // A mapping of a file shows the file's next pages.
    let file = machine.file(6);
    space.map(of_file(&file, 20, 2, READ_WRITE)).unwrap();
    space.store_u64(at(21), 5).unwrap();
    space.map(anonymous(22, 1).protection(Protection::READ)).unwrap();
    let new = remap(&space, (20, 2), 8, MOVE, 0).unwrap();
    let seen: Vec<u64> = (0..6).map(|i| space.load_u64(at(new + i)).unwrap()).collect();
    assert_eq!(seen, [word(1), 5, word(3), word(4), word(5), word(6)]);
    assert!(matches!(fault_of(space.load_u64(at(new + 6))), FaultError::PastEnd { page: 6, .. }));
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn pages_move_with_their_bytes<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    // Over several leaf tables, at a different offset in them.
    const PAGES: u64 = 1100;
    space.map(anonymous(500, PAGES)).unwrap();
    (0..PAGES).step_by(7).for_each(|i| space.store_u64(at(500 + i), i + 1).unwrap());
    let before = machine.frames();
    assert_eq!(remap(&space, (500, PAGES), PAGES, FIXED, 3333), Ok(3333));
    assert_eq!(machine.frames(), before, "no frame came or went");
    assert_eq!(shape(&space), [(3333, 3333 + PAGES)]);
    space.audit().unwrap();
    for i in 0..PAGES {
        let expected = if i % 7 == 0 { i + 1 } else { 0 };
        assert_eq!(space.load_u64(at(3333 + i)).unwrap(), expected);
        assert!(is_hole(&space, 500 + i));
    }
    // Back to the old place, after a store, and shorter.
    space.store_u64(at(3333 + 7), 99).unwrap();
    assert_eq!(remap(&space, (3333, PAGES), 600, FIXED, 500), Ok(500));
    assert_eq!(space.load_u64(at(507)).unwrap(), 99);
    assert_eq!(space.load_u64(at(500 + 595)).unwrap(), 596);
    assert_eq!(shape(&space), [(500, 1100)]);
    assert!(is_hole(&space, 3333 + 1099));
    // A move also works without any rights.
    space.protect(at(500), 600 * PAGE_SIZE, Protection::empty()).unwrap();
    assert_eq!(remap(&space, (500, 600), 600, FIXED, 2000), Ok(2000));
    space.protect(at(2000), 600 * PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(space.load_u64(at(2007)).unwrap(), 99);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn moved_memory_joins_by_where_it_came_from<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    remap(&space, (10, 4), 4, FIXED, 20).unwrap();
    space.map(anonymous(24, 2)).unwrap();
    space.map(anonymous(18, 2)).unwrap();
    assert_eq!(shape(&space), [(18, 20), (20, 24), (24, 26)], "its pages come from elsewhere");
    remap(&space, (20, 4), 4, FIXED, 10).unwrap();
    space.map(anonymous(14, 2)).unwrap();
    assert_eq!(shape(&space), [(10, 16), (18, 20), (24, 26)], "its pages are back at their first place");
    remap(&space, (12, 2), 2, FIXED, 40).unwrap();
    assert_eq!(shape(&space), [(10, 12), (14, 16), (18, 20), (24, 26), (40, 42)]);
    remap(&space, (40, 2), 2, FIXED, 12).unwrap();
    assert_eq!(shape(&space), [(10, 16), (18, 20), (24, 26)]);
    // Longer during the move: the new part belongs to the mapping.
    remap(&space, (10, 6), 8, FIXED, 60).unwrap();
    assert_eq!(remap(&space, (60, 8), 12, HERE, 0), Ok(60));
    remap(&space, (64, 6), 6, FIXED, 80).unwrap();
    space.store_u64(at(83), 3).unwrap();
    remap(&space, (80, 6), 6, FIXED, 64).unwrap();
    assert_eq!(shape(&space), [(18, 20), (24, 26), (60, 72)]);
    assert_eq!(space.load_u64(at(67)).unwrap(), 3);
    // A part without pages, of a mapping that has pages.
    remap(&space, (70, 2), 2, FIXED, 22).unwrap();
    assert_eq!(shape(&space), [(18, 20), (22, 24), (24, 26), (60, 70)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn memory_without_pages_joins_wherever_it_is<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    for (page, pages) in [(10, 4), (18, 2), (24, 2)] {
        space.map(anonymous(page, pages)).unwrap();
    }
    assert_eq!(space.load_u64(at(10)).unwrap(), 0, "the page is read but not written");
    remap(&space, (10, 4), 4, FIXED, 20).unwrap();
    assert_eq!(shape(&space), [(18, 26)]);
    space.map(anonymous(40, 4)).unwrap();
    remap(&space, (40, 2), 2, FIXED, 44).unwrap();
    assert_eq!(shape(&space), [(18, 26), (42, 46)], "next to itself");
    remap(&space, (42, 4), 4, KEEP | FIXED, 46).unwrap();
    assert_eq!(shape(&space), [(18, 26), (42, 50)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn the_old_place_can_stay<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(10), 7).unwrap();
    space.store_u64(at(12), 8).unwrap();
    assert_eq!(remap(&space, (10, 4), 4, KEEP | FIXED, 20), Ok(20));
    assert_eq!((space.load_u64(at(20)), space.load_u64(at(22))), (Ok(7), Ok(8)));
    assert_eq!((space.load_u64(at(10)), space.load_u64(at(12))), (Ok(0), Ok(0)));
    space.store_u64(at(10), 1).unwrap();
    assert_eq!(space.load_u64(at(20)).unwrap(), 7);
    assert_eq!(shape(&space), [(10, 14), (20, 24)]);
    // A part moves. The old place is still one mapping.
    assert_eq!(remap(&space, (11, 2), 2, KEEP | FIXED, 40), Ok(40));
    assert_eq!(shape(&space), [(10, 14), (20, 24), (40, 42)]);
    assert_eq!((space.load_u64(at(10)), space.load_u64(at(41))), (Ok(1), Ok(0)));
    // The requested place is used if it is free. Otherwise any place is used.
    assert_eq!(remap(&space, (10, 4), 4, KEEP, 30), Ok(30));
    let anywhere = remap(&space, (10, 4), 4, KEEP, 20).unwrap();
    assert_eq!(anywhere, S::PAGES - 4);
    // Copies of a private file mapping move. The old place shows the file again.
    let file = machine.file(2);
    space.map(of_file(&file, 50, 2, READ_WRITE)).unwrap();
    space.store_u64(at(50), 5).unwrap();
    assert_eq!(remap(&space, (50, 2), 2, KEEP | FIXED, 60), Ok(60));
    assert_eq!((space.load_u64(at(50)), space.load_u64(at(60))), (Ok(word(1)), Ok(5)));
    assert_eq!(space.load_u64(at(61)).unwrap(), word(2));
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn several_mappings_move_together<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(12, 2)).unwrap();
    space.map(anonymous(16, 4)).unwrap();
    (10..14).chain(16..20).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.protect(at(12), 2 * PAGE_SIZE, Protection::READ).unwrap();
    space.map(anonymous(30, 8).protection(Protection::empty())).unwrap();
    assert_eq!(remap(&space, (11, 7), 7, FIXED, 31), Ok(31));
    assert_eq!(shape(&space), [(10, 11), (18, 20), (30, 31), (31, 32), (32, 34), (34, 36), (36, 38)]);
    let seen = [31, 32, 33, 36, 37].map(|page| space.load_u64(at(page)).unwrap());
    assert_eq!(seen, [11, 12, 13, 16, 17]);
    assert!(matches!(fault_of(space.load_u64(at(34))), FaultError::Protection { .. }), "under a hole");
    // A hole may follow, but not come first. The size must not change, and the call needs a fixed place.
    assert_eq!(remap(&space, (36, 20), 20, KEEP | FIXED, 100), Ok(100));
    assert_eq!(errno(remap(&space, (9, 4), 4, FIXED, 100)), EFAULT);
    assert_eq!(errno(remap(&space, (31, 7), 8, FIXED, 200)), EFAULT);
    assert_eq!(errno(remap(&space, (31, 7), 6, FIXED, 200)), EFAULT);
    assert_eq!(errno(remap(&space, (31, 7), 7, KEEP, 200)), EFAULT);
    assert_eq!(errno(remap(&space, (31, 7), 8, MOVE, 200)), EFAULT);
    // The new length is shorter than the first mapping.
    assert_eq!(remap(&space, (32, 6), 1, FIXED, 300), Ok(300));
    assert_eq!(space.load_u64(at(300)).unwrap(), 12);
    assert!(is_hole(&space, 33) && is_hole(&space, 37));
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn a_fixed_place_is_cleared<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(20, 6)).unwrap();
    (10..12).chain(20..26).for_each(|page| space.store_u64(at(page), page).unwrap());
    let before = machine.frames();
    assert_eq!(remap(&space, (10, 2), 4, FIXED, 21), Ok(21));
    let seen = [20, 21, 22, 25].map(|page| space.load_u64(at(page)).unwrap());
    assert_eq!(seen, [20, 10, 11, 25]);
    assert_eq!(machine.frames(), before - 4, "the old pages are freed");
    assert_eq!(space.load_u64(at(23)).unwrap(), 0);
    assert_eq!(shape(&space), [(20, 21), (21, 25), (25, 26)]);
    // With nothing to move, nothing is cleared.
    assert_eq!(errno(remap(&space, (10, 2), 2, FIXED, 25)), EFAULT);
    assert_eq!(space.load_u64(at(25)).unwrap(), 25);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn shared_memory_is_mapped_again<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(6));
    let source = Source::File { file: file.clone(), first: 1, sharing: Sharing::Shared };
    let request = MapRequest { source, ..anonymous(10, 4).protection(Protection::READ) };
    space.map(request).unwrap();
    assert_eq!(remap(&space, (11, 0), 3, FIXED, 20), Ok(20));
    assert_eq!(shape(&space), [(10, 14), (20, 23)]);
    assert_eq!((space.load_u64(at(12)), space.load_u64(at(21))), (Ok(word(4)), Ok(word(4))));
    assert_eq!(remap(&space, (10, 0), 1, MOVE, 0), Ok(S::PAGES - 1));
    assert_eq!(errno(remap(&space, (10, 0), 4, HERE, 0)), ENOMEM);
    assert_eq!(errno(remap(&space, (10, 0), 4, KEEP | FIXED, 30)), EINVAL);
    assert_eq!(errno(remap(&space, (10, 0), 2, FIXED, 9)), EINVAL);
    // Over its own end; and over itself, which unmaps the memory to be mapped.
    assert_eq!(remap(&space, (10, 0), 2, FIXED, 11), Ok(11));
    assert_eq!((space.load_u64(at(11)), space.load_u64(at(12))), (Ok(word(2)), Ok(word(3))));
    assert_eq!(errno(remap(&space, (10, 0), 2, FIXED, 10)), EFAULT);
    assert!(is_hole(&space, 10) && is_hole(&space, 11));
    space.map(anonymous(10, 1)).unwrap();
    assert!(matches!(remap(&space, (10, 0), 1, FIXED, 40), Err(RemapError::Private { .. })));
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn wrong_remaps_are_typed_errors<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    for (flags, new) in [(RemapFlags::FIXED, 20), (RemapFlags::DONT_UNMAP, 20)] {
        assert!(matches!(remap(&space, (10, 4), 4, flags, new), Err(RemapError::MappingFlags { .. })));
    }
    assert_eq!(errno(remap(&space, (10, 4), 5, KEEP, 20)), EINVAL);
    assert_eq!(errno(remap(&space, (10, 4), 0, MOVE, 0)), EINVAL);
    assert_eq!(errno(remap(&space, (10, 0), 4, MOVE, 0)), EINVAL);
    for (new_pages, flags, new) in [(4, FIXED, 12), (4, KEEP, 12), (2, FIXED, 12), (4, FIXED, 7)] {
        let result = remap(&space, (10, 4), new_pages, flags, new);
        assert!(matches!(result, Err(RemapError::Overlap { .. })), "{new_pages} {flags:?} {new}");
    }
    let odd = VirtAddr::new(at(10).get() + 8);
    assert_eq!(errno(space.remap(RemapRequest::resize(odd, 1, 1))), EINVAL);
    assert_eq!(errno(space.remap(RemapRequest::to(at(10), 1, odd))), EINVAL);
    assert_eq!(errno(space.remap(RemapRequest::resize(at(10), 1, u64::MAX))), EINVAL);
    assert_eq!(errno(remap(&space, (10, 1), S::PAGES + 1, MOVE, 0)), EINVAL);
    assert!(matches!(remap(&space, (10, 1), S::PAGES, MOVE, 0), Err(RemapError::NoSpace { .. })));
    assert!(matches!(remap(&space, (10, 1), S::PAGES - 1, HERE, 0), Err(RemapError::NoRoom { .. })));
    assert_eq!(errno(remap(&space, (10, 1), 2, FIXED, S::PAGES - 1)), EINVAL);
    assert_eq!(errno(remap(&space, (9, 1), 1, HERE, 0)), EFAULT);
    assert_eq!(errno(remap(&space, (S::PAGES, 1), 1, HERE, 0)), EFAULT);
    // The last page that an address can name. Nothing can be mapped there.
    let last = VirtAddr::new(u64::MAX - PAGE_SIZE + 1);
    assert_eq!(errno(space.remap(RemapRequest::resize(last, 1, 1))), EFAULT);
    assert_eq!(errno(space.remap(RemapRequest::resize(last, 2 * PAGE_SIZE, 1))), EFAULT);
    assert_eq!(errno(space.remap(RemapRequest::to(last, 1, at(20)))), EFAULT);
    assert_eq!(errno(space.remap(RemapRequest::resize(last, 1, 0))), EINVAL);
    // Odd lengths are rounded up to whole pages.
    let request = RemapRequest { old_length: PAGE_SIZE + 1, ..RemapRequest::to(at(10), 5000, at(20)) };
    assert_eq!(space.remap(request), Ok(at(20)));
    assert_eq!(shape(&space), [(12, 14), (20, 22)]);
    assert_eq!(space.taken_ranges(), 0);
    drop(space);
    machine.end()
}

fn sealed_mappings_stay<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let sealed = |page, pages| MapRequest {
        flags: MappingFlags::SEALED,
        ..anonymous(page, pages).protection(Protection::READ)
    };
    space.map(anonymous(10, 2)).unwrap();
    space.map(sealed(12, 2)).unwrap();
    space.map(anonymous(14, 2)).unwrap();
    space.map(anonymous(30, 6).protection(Protection::empty())).unwrap();
    assert_eq!(errno(remap(&space, (12, 1), 1, HERE, 0)), EPERM);
    assert_eq!(errno(remap(&space, (10, 4), 2, HERE, 0)), EPERM);
    assert_eq!(errno(remap(&space, (14, 2), 2, FIXED, 12)), EPERM);
    // The mappings below the sealed one have moved.
    assert_eq!(errno(remap(&space, (10, 6), 6, FIXED, 30)), EPERM);
    assert_eq!(shape(&space), [(12, 14), (14, 16), (30, 32), (32, 36)]);
    drop(space);
    machine.end()
}

fn a_pending_fault_finds_its_page_moved<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(2));
    space.map(of_file(&file, 10, 2, READ_WRITE)).unwrap();
    let Ok(Fault::Pending(pending)) = space.fault(at(11), Access::Read) else { panic!("a cold page") };
    std::thread::scope(|scope| {
        // Under a design that keeps its lock, the move waits for the read.
        let moved = scope.spawn(|| remap(&space, (10, 2), 2, FIXED, 20));
        std::thread::sleep(Duration::from_millis(20));
        gate.open();
        let fault = pending.wait();
        assert_eq!(moved.join().unwrap(), Ok(20));
        if !matches!(fault, Ok(Fault::Done)) {
            let mut fault = fault;
            while let Ok(Fault::Pending(pending)) = fault {
                fault = pending.wait();
            }
            assert!(matches!(fault, Ok(Fault::Done) | Err(FaultError::NoMapping { .. })));
        }
    });
    assert!(is_hole(&space, 11));
    assert_eq!(space.load_u64(at(21)).unwrap(), word(2));
    space.audit().unwrap();
    drop((space, file, gate));
    machine.end()
}

fn truncation_reaches_moved_pages<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    let stop = AtomicBool::new(false);
    for round in 0..40 {
        (0..4).for_each(|i| assert_eq!(space.load_u64(at(10 + i)).unwrap(), word(i as u8 + 1)));
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stopped = Stopped(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    remap(&space, (10, 4), 4, FIXED, 40).unwrap();
                    remap(&space, (40, 4), 4, FIXED, 10).unwrap();
                }
            });
            file.set_length(2 * PAGE_SIZE).unwrap();
            for page in [12, 13, 42, 43] {
                let seen = space.try_load_u64(at(page));
                assert!(seen.is_err(), "round {round}: page {page} of the truncated file is mapped");
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(matches!(fault_of(space.load_u64(at(13))), FaultError::PastEnd { .. }));
        assert_eq!(space.load_u64(at(11)).unwrap(), word(2));
        file.set_length(4 * PAGE_SIZE).unwrap();
        space.discard(at(10), 4 * PAGE_SIZE).unwrap();
    }
    drop((space, file));
    machine.end()
}

fn a_child_has_what_was_moved<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    (10..14).for_each(|page| space.store_u64(at(page), page).unwrap());
    let first = space.fork().unwrap();
    // Shared pages move in one space, and stay in the other.
    remap(&space, (10, 4), 4, FIXED, 20).unwrap();
    remap(&first, (12, 2), 2, KEEP | FIXED, 5000).unwrap();
    let second = space.fork().unwrap();
    (0..4).for_each(|i| assert_eq!(second.load_u64(at(20 + i)).unwrap(), 10 + i));
    second.store_u64(at(21), 77).unwrap();
    space.store_u64(at(22), 88).unwrap();
    assert_eq!((space.load_u64(at(21)), second.load_u64(at(22))), (Ok(11), Ok(12)));
    assert_eq!((first.load_u64(at(10)), first.load_u64(at(12))), (Ok(10), Ok(0)));
    assert_eq!((first.load_u64(at(5000)), first.load_u64(at(5001))), (Ok(12), Ok(13)));
    // As in the parent, they merge in the child at the place that they came from.
    remap(&second, (20, 4), 4, FIXED, 10).unwrap();
    second.map(anonymous(14, 1)).unwrap();
    assert_eq!(shape(&second)[0].0, 10);
    assert!(is_hole(&second, 20));
    [&space, &first, &second].into_iter().for_each(|space| space.audit().unwrap());
    drop((space, first, second));
    machine.end()
}

fn moving_keeps_off_the_limit_of_mappings<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(64, Limits { mappings: 12, ..Limits::default() })?;
    let space = machine.space::<D>();
    for i in 0..7 {
        space.map(anonymous(10 * (i + 1), 4)).unwrap();
    }
    assert!(matches!(remap(&space, (11, 2), 2, FIXED, 200), Err(RemapError::TooManyMappings { limit: 12 })));
    space.unmap(at(70), 4 * PAGE_SIZE).unwrap();
    remap(&space, (11, 2), 2, FIXED, 200).unwrap();
    remap(&space, (20, 4), 6, MOVE, 0).unwrap();
    assert_eq!(space.mappings().len(), 8);
    assert_eq!(errno(remap(&space, (21, 2), 2, FIXED, 300)), ENOMEM);
    drop(space);
    machine.end()
}

fn a_move_without_memory_leaves_all<S: Stand, D: LockingDesign>() -> Ran<S> {
    // A move of pages needs no frames.
    let machine = Machine::<S>::with(8, Limits::default())?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    (10..14).for_each(|page| space.store_u64(at(page), page).unwrap());
    machine.engine.host().fail_frames_from(Some(0));
    remap(&space, (10, 4), 8, FIXED, 2000).unwrap();
    (0..4).for_each(|i| assert_eq!(space.load_u64(at(2000 + i)).unwrap(), 10 + i));
    machine.engine.host().fail_frames_from(None);
    drop(space);
    machine.end()
}

fn time() -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 400 })
}

/// Each page that is written holds its own number. A load finds this number, zero, or a hole.
fn faults_and_moves_at_once<S: Stand, D: LockingDesign>() -> Ran<S> {
    const PAGES: u64 = 24;
    const HOMES: [u64; 3] = [100, 600, 1017];
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(HOMES[0], PAGES)).unwrap();
    let stop = AtomicBool::new(false);
    let moves = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for thread in 0..2_u64 {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                let mut i = thread;
                while !stop.load(Ordering::Relaxed) {
                    i = i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (home, page) = (HOMES[(i >> 33) as usize % 3], (i >> 40) % PAGES);
                    // The page's number does not depend on its place, because pages never change places with each
                    // other.
                    match space.load_u64(at(home + page)) {
                        Ok(seen) => assert!(seen == 0 || seen == page + 1, "{seen} at {page}"),
                        Err(AccessError::Fault(FaultError::NoMapping { .. })) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                    let _ = space.store_u64(at(home + page), page + 1);
                }
            });
        }
        scope.spawn(|| {
            let mut home = 0;
            while moves.load(Ordering::Relaxed) == 0 || !stop.load(Ordering::Relaxed) {
                let next = (home + 1) % 3;
                let flags = if home == 1 { KEEP | FIXED } else { FIXED };
                remap(&space, (HOMES[home], PAGES), PAGES, flags, HOMES[next]).unwrap();
                if home == 1 {
                    space.unmap(at(HOMES[home]), PAGES * PAGE_SIZE).unwrap();
                }
                moves.fetch_add(1, Ordering::Relaxed);
                home = next;
            }
            // Write, move and check.
            for page in 0..PAGES {
                let _ = space.store_u64(at(HOMES[home] + page), page + 1);
            }
            let there = HOMES[home];
            remap(&space, (there, PAGES), PAGES, FIXED, 3000).unwrap();
            (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(3000 + page)).unwrap(), page + 1));
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let child = space.fork().unwrap();
                for page in 0..PAGES {
                    for home in HOMES {
                        if let Ok(seen) = child.load_u64(at(home + page)) {
                            assert!(seen == 0 || seen == page + 1);
                        }
                    }
                }
                child.audit().unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        std::thread::sleep(time());
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    assert_eq!(space.taken_ranges(), 0);
    drop(space);
    machine.end()
}

fn what_is_too_long_to_cut_off_has_cost_the_target<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(30, 1)).unwrap();
    let old_length = 0_u64.wrapping_sub(PAGE_SIZE);
    let request =
        RemapRequest { old: at(10), old_length, new_length: PAGE_SIZE, flags: MOVE | FIXED, new: at(30) };
    assert_eq!(errno(space.remap(request)), EINVAL);
    assert_eq!(shape(&space), [(10, 12)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}
