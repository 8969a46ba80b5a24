//! Merging of neighbours, as in Linux 6.18: by their rights, by their accounting, and by the records of their anonymous
//! pages.

use crate::moves::{FIXED, KEEP, MOVE, shape};
use crate::*;
use faultless::vma::MappingFlags;
use faultless::{LockMode, RemapRequest};
use faultless_soft::Cpu;

under_every_design! {
    a_first_page_takes_over_the_record_of_a_neighbour
    a_first_page_looks_above_first
    what_counts_as_promised_merges_with_nothing_else
    what_a_child_has_inherited_merges_with_nothing_new
    what_a_child_has_inherited_grows
    a_store_that_fails_past_the_end_makes_a_record
    what_stays_as_it_was_joins_nothing
    a_heap_joins_nothing_below_its_start
    what_has_grown_has_a_record
    a_part_that_moves_away_and_stays_cuts_nothing
}

on_real_memory! {
    a_first_page_takes_over_the_record_of_a_neighbour
    a_first_page_looks_above_first
    what_counts_as_promised_merges_with_nothing_else
    what_a_child_has_inherited_merges_with_nothing_new
    what_a_child_has_inherited_grows
    a_store_that_fails_past_the_end_makes_a_record
    what_stays_as_it_was_joins_nothing
    a_heap_joins_nothing_below_its_start
    what_has_grown_has_a_record
    a_part_that_moves_away_and_stays_cuts_nothing
}

const ALL: Protection = READ_WRITE.union(Protection::EXECUTE);

fn a_first_page_takes_over_the_record_of_a_neighbour<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    // The two differ in rights alone. The first page of the second one uses the record of the first one.
    space.map(anonymous(10, 2)).unwrap();
    space.protect(at(11), PAGE_SIZE, Protection::WRITE).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(11), 2).unwrap();
    space.protect(at(10), 2 * PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space), [(10, 12)]);
    assert_eq!((space.load_u64(at(10)).unwrap(), space.load_u64(at(11)).unwrap()), (1, 2));
    // The same holds for neighbours in a file.
    space.map(of_file(&file, 20, 2, READ_WRITE)).unwrap();
    space.protect(at(21), PAGE_SIZE, Protection::WRITE).unwrap();
    space.store_u64(at(20), 1).unwrap();
    space.store_u64(at(21), 2).unwrap();
    space.protect(at(21), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space)[1..], [(20, 22)]);
    // The record is not shared if something else differs too. Then each has its own.
    for (page, flags) in [(30, MappingFlags::empty()), (31, MappingFlags::SEQUENTIAL)] {
        space.map(MapRequest { flags, ..anonymous(page, 1) }).unwrap();
        space.store_u64(at(page), 1).unwrap();
    }
    space.map(anonymous(31, 1)).unwrap();
    space.store_u64(at(31), 1).unwrap();
    assert_eq!(shape(&space)[2..], [(30, 32)], "a mapping without a page merges");
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn a_first_page_looks_above_first<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    //   10 rw, a page    11 rwx    12 rw, a page of its own
    for page in [10, 12] {
        space.map(anonymous(page, 1)).unwrap();
        space.store_u64(at(page), 1).unwrap();
    }
    space.map(anonymous(11, 1).protection(ALL)).unwrap();
    space.store_u64(at(11), 1).unwrap();
    space.protect(at(11), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space), [(10, 11), (11, 13)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn what_counts_as_promised_merges_with_nothing_else<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    // A mapping without pages is no longer accounted when it loses the right to be written. One with a page still is.
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(12, 2).protection(ALL)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.protect(at(10), 4 * PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(shape(&space), [(10, 12), (12, 14)]);
    // Both are accounted again.
    space.protect(at(10), 4 * PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space), [(10, 14)]);

    // A private mapping of a file is accounted from the time when it gets the right, and stays so without it.
    let read = Protection::READ;
    space.map(of_file(&file, 20, 4, read)).unwrap();
    space.protect(at(21), PAGE_SIZE, READ_WRITE).unwrap();
    space.protect(at(21), PAGE_SIZE, read).unwrap();
    assert_eq!(shape(&space)[1..], [(20, 21), (21, 22), (22, 24)]);

    // A mapping with NO_RESERVE is never accounted.
    let flags = MappingFlags::NO_RESERVE;
    space.map(MapRequest { flags, ..anonymous(30, 2) }).unwrap();
    space.store_u64(at(30), 1).unwrap();
    space.protect(at(30), PAGE_SIZE, read).unwrap();
    space.map(MapRequest { flags, ..anonymous(31, 1).protection(read) }).unwrap();
    assert_eq!(shape(&space)[4..], [(30, 32)]);
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn what_a_child_has_inherited_merges_with_nothing_new<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 3)).unwrap();
    space.map(anonymous(20, 3)).unwrap();
    space.store_u64(at(12), 1).unwrap();
    let child = space.fork().unwrap();
    for space in [&space, &child] {
        for page in [12, 22] {
            space.map(anonymous(page, 1)).unwrap();
        }
        space.audit().unwrap();
    }
    assert_eq!(shape(&space), [(10, 13), (20, 23)]);
    assert_eq!(shape(&child), [(10, 12), (12, 13), (20, 23)], "the second mapping had no page in the parent");
    // A first page of the child does not take over an inherited record either.
    child.protect(at(12), PAGE_SIZE, ALL).unwrap();
    child.store_u64(at(12), 1).unwrap();
    child.protect(at(12), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&child), [(10, 12), (12, 13), (20, 23)]);
    // The parts of a mapping of the child merge again.
    child.protect(at(10), PAGE_SIZE, Protection::READ).unwrap();
    child.protect(at(10), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&child), [(10, 12), (12, 13), (20, 23)]);
    child.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn what_a_child_has_inherited_grows<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    let flags = MappingFlags::GROWS_DOWN;
    space.map(MapRequest { flags, ..anonymous(1000, 2) }).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(1000), 1).unwrap();
    let child = space.fork().unwrap();
    // Growth by mremap and by a stack's fault gives one mapping.
    child.remap(faultless::RemapRequest::resize(at(10), 2 * PAGE_SIZE, 4 * PAGE_SIZE)).unwrap();
    child.store_u64(at(998), 1).unwrap();
    assert_eq!(shape(&child), [(10, 14), (998, 1002)]);
    child.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn a_store_that_fails_past_the_end_makes_a_record<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    // Two separate mappings of a file, each with a store past its end.
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    space.unmap(at(12), PAGE_SIZE).unwrap();
    for page in [11, 13] {
        assert!(matches!(fault_of(space.store_u64(at(page), 1)), FaultError::PastEnd { .. }));
    }
    let source = faultless::Source::File {
        file: file.clone(),
        first: 2,
        sharing: faultless::protection::Sharing::Private,
    };
    space.map(MapRequest { source, ..anonymous(12, 1) }).unwrap();
    assert_eq!(shape(&space), [(10, 13), (13, 14)], "two records, as on Linux, and no page");
    drop((space, file));
    machine.end()
}

fn what_stays_as_it_was_joins_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let parent = machine.space::<D>();
    parent.map(anonymous(10, 2).protection(Protection::READ)).unwrap();
    parent.lock(at(11), PAGE_SIZE, LockMode::OnFault).unwrap();
    // Without the lock the two look alike, but no call has merged them.
    let child = parent.fork().unwrap();
    child.protect(at(11), PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(shape(&child), [(10, 11), (11, 12)]);
    child.protect(at(11), PAGE_SIZE, Protection::empty()).unwrap();
    child.protect(at(11), PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(shape(&child), [(10, 12)]);
    child.audit().unwrap();
    drop((parent, child));
    machine.end()
}

fn a_heap_joins_nothing_below_its_start<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.set_heap(at(12));
    for (end, expected) in [(14, [(10, 12), (12, 14)]), (16, [(10, 12), (12, 16)])] {
        assert_eq!(space.brk(at(end)), at(end));
        assert_eq!(shape(&space), expected);
    }
    drop(space);
    machine.end()
}

fn what_has_grown_has_a_record<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let stack = |page| MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(page, 1) };
    space.map(stack(304)).unwrap();
    space.map(stack(306)).unwrap();
    space.store_u64(at(306), 1).unwrap();
    // The page is only read, so there is no page of its own. The mapping has its own record, so that the two do not
    // merge.
    assert_eq!(space.load_u64(at(302)).unwrap(), 0);
    space.map(stack(305)).unwrap();
    assert_eq!(shape(&space), [(302, 306), (306, 307)]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn a_part_that_moves_away_and_stays_cuts_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 5)).unwrap();
    let keep = |from, to| {
        let request =
            RemapRequest { flags: MOVE | FIXED | KEEP, ..RemapRequest::to(at(from), PAGE_SIZE, at(to)) };
        space.remap(request).unwrap();
    };
    // Next to itself, over a part of itself, and elsewhere.
    for (from, to, expected) in
        [(14, 15, vec![(10, 16)]), (12, 13, vec![(10, 16)]), (12, 20, vec![(10, 16), (20, 21)])]
    {
        keep(from, to);
        assert_eq!(shape(&space), expected, "{from} to {to}");
    }
    space.audit().unwrap();
    drop(space);
    machine.end()
}
