//! The reverse map: writeback and truncation must visit all mappings of a page, and few others.

use crate::shared::{Real, shared};
use crate::*;
use faultless::RemapRequest;
use faultless::stats::Counter;
use faultless::vma::MappingFlags;
use faultless_soft::Cpu;

under_every_design! {
    walks_look_at_no_mapping_of_other_files
    walks_pass_over_spaces_that_show_other_pages
    walks_find_what_remap_has_made
    walks_find_what_a_fork_has_made
    a_walk_forgets_spaces_that_are_gone
}

/// Returns the number of mappings that writeback and truncation visit in `f`.
fn looks<S: Stand>(machine: &Machine<S>, f: impl FnOnce()) -> u64 {
    let looks = || machine.engine.statistics().get(Counter::RmapLooks);
    let before = looks();
    f();
    looks() - before
}

/// Makes twenty mappings, with one page between each two.
fn others<S: Stand, D: LockingDesign>(file: &Shared<File<S>>, space: &Space<S, D>, start: u64) {
    for i in 0..20 {
        let request = MapRequest::file(file, 0, PAGE_SIZE, Protection::READ);
        space.map(request.at(Placement::Fixed(at(start + 2 * i)))).unwrap();
    }
}

/// A walk must not visit every mapping of a space.
fn walks_look_at_no_mapping_of_other_files<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (real, other) = (Real::new(&machine, 4), machine.file(4));
    let spaces: Vec<_> = (0..10).map(|_| machine.space::<D>()).collect();
    for space in &spaces {
        others(&other, space, 100);
        others(&other, space, 200);
        space.map(shared(&real.file, 150, 4, READ_WRITE)).unwrap();
    }
    real.file.handle().write_at(PAGE_SIZE, &[1; 8]).unwrap();
    assert_eq!(looks(&machine, || real.file.sync().unwrap()), 0, "no space has stored into the file");
    spaces[3].store_u64(at(151), 76).unwrap();
    assert_eq!(looks(&machine, || real.file.sync().unwrap()), 1, "one space has stored into it");
    for space in &spaces {
        space.store_u64(at(151), 77).unwrap();
    }
    assert_eq!(looks(&machine, || real.file.sync().unwrap()), 10, "one mapping of each space shows the file");
    assert!(spaces[3].try_store_u64(at(151), 78).is_err(), "writeback takes the write right");
    assert_eq!(real.word(1), 77);
    assert_eq!(looks(&machine, || real.file.set_length(PAGE_SIZE).unwrap()), 10);
    assert!(spaces[3].load_u64(at(151)).is_err());
    drop((spaces, real, other));
    machine.end()
}

fn walks_pass_over_spaces_that_show_other_pages<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let part = |first: u64, pages: u64| {
        MapRequest::shared_file(&real.file, first, pages * PAGE_SIZE, READ_WRITE)
            .at(Placement::Fixed(at(10 + first)))
    };
    let (low, high) = (machine.space::<D>(), machine.space::<D>());
    low.map(part(0, 3)).unwrap();
    high.map(part(4, 3)).unwrap();
    for page in [0, 2] {
        low.store_u64(at(10 + page), 70 + page).unwrap();
    }
    assert_eq!(looks(&machine, || real.file.sync().unwrap()), 1, "the other space shows none of these pages");
    assert_eq!((real.word(0), real.word(2)), (70, 72));
    // A split, a change of rights and a hole leave parts inside the recorded range.
    high.protect(at(15), PAGE_SIZE, Protection::READ).unwrap();
    high.unmap(at(15), PAGE_SIZE).unwrap();
    high.store_u64(at(16), 76).unwrap();
    low.store_u64(at(11), 71).unwrap();
    real.file.sync().unwrap();
    assert_eq!((real.word(1), real.word(6)), (71, 76));
    assert!(low.try_store_u64(at(11), 1).is_err() && high.try_store_u64(at(16), 1).is_err());
    // No space shows the last page.
    assert_eq!(looks(&machine, || real.file.set_length(7 * PAGE_SIZE).unwrap()), 0);
    real.file.set_length(0).unwrap();
    assert!(low.load_u64(at(10)).is_err() && high.load_u64(at(16)).is_err());
    drop((low, high, real));
    machine.end()
}

/// mremap makes mappings at addresses, and of pages, that the space did not show before.
fn walks_find_what_remap_has_made<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 500, 2, READ_WRITE)).unwrap();
    space.store_u64(at(501), 1).unwrap();
    // To lower addresses, with its pages. Then to higher ones, and longer.
    space.remap(RemapRequest::to(at(500), 2 * PAGE_SIZE, at(100))).unwrap();
    let longer =
        RemapRequest { new_length: 4 * PAGE_SIZE, ..RemapRequest::to(at(100), 2 * PAGE_SIZE, at(900)) };
    space.remap(longer).unwrap();
    // Longer in place. Then a second mapping of it at another place.
    let in_place = RemapRequest::resize(at(900), 4 * PAGE_SIZE, 6 * PAGE_SIZE);
    assert_eq!(space.remap(in_place).unwrap(), at(900));
    let again = RemapRequest { old_length: 0, ..RemapRequest::to(at(904), 2 * PAGE_SIZE, at(2000)) };
    space.remap(again).unwrap();
    let places = [(901, 1), (903, 3), (905, 5), (2000, 4)];
    for (place, page) in places {
        space.store_u64(at(place), 80 + page).unwrap();
    }
    real.file.sync().unwrap();
    for (place, page) in places {
        assert_eq!(real.word(page), 80 + page);
        assert!(space.try_store_u64(at(place), 9).is_err(), "writeback has missed page {place}");
    }
    real.file.set_length(0).unwrap();
    for (place, _) in places {
        assert!(space.try_load_u64(at(place)).is_err(), "truncation has missed page {place}");
    }
    space.audit().unwrap();
    drop((space, real));
    machine.end()
}

fn walks_find_what_a_fork_has_made<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let parent = machine.space::<D>();
    parent.map(shared(&real.file, 10, 2, READ_WRITE)).unwrap();
    // A second mapping, far from the first, shows other pages. It has a private copy of one.
    let private = MapRequest::file(&real.file, 4, 4 * PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(3000)));
    parent.map(private).unwrap();
    parent.store_u64(at(3001), 5).unwrap();
    let not_inherited =
        MapRequest { flags: MappingFlags::DONT_FORK, ..shared(&real.file, 5000, 8, READ_WRITE) };
    parent.map(not_inherited).unwrap();
    // Writeback visits only spaces that have stored.
    parent.store_u64(at(10), 4).unwrap();
    let child = parent.fork().unwrap();
    child.store_u64(at(11), 6).unwrap();
    assert_eq!(
        looks(&machine, || real.file.sync().unwrap()),
        5,
        "three mappings of the parent and two of the child"
    );
    assert_eq!(real.word(1), 6);
    assert!(child.try_store_u64(at(11), 7).is_err(), "writeback has missed the child");
    child.remap(RemapRequest::to(at(3000), 4 * PAGE_SIZE, at(4000))).unwrap();
    assert_eq!(child.load_u64(at(4001)).unwrap(), 5);
    assert_eq!(child.load_u64(at(4002)).unwrap(), word(7));
    real.file.set_length(0).unwrap();
    for gone in [at(4001), at(4002), at(11)] {
        assert!(child.try_load_u64(gone).is_err(), "truncation has missed {gone} of the child");
    }
    assert!(parent.try_load_u64(at(3001)).is_err(), "truncation has missed the parent's copy");
    drop((parent, child, real));
    machine.end()
}

/// A list of spaces must shrink when its spaces are gone.
fn a_walk_forgets_spaces_that_are_gone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let stays = machine.space::<D>();
    stays.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    stays.store_u64(at(11), 1).unwrap();
    real.file.sync().unwrap();
    machine.engine.flush();
    let few = machine.engine.metadata_bytes();
    let go: Vec<_> = (0..200).map(|_| machine.space::<D>()).collect();
    for space in &go {
        space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    }
    drop(go);
    stays.store_u64(at(11), 2).unwrap();
    real.file.sync().unwrap();
    machine.engine.flush();
    let more = machine.engine.metadata_bytes().saturating_sub(few);
    assert!(more < 4096, "{more} bytes are kept for spaces that are gone");
    assert_eq!((real.word(1), real.file.spaces()), (2, 1));
    drop((stays, real));
    machine.end()
}
