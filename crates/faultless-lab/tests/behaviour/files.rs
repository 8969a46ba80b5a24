//! Files by their handles, and in memory: read, written, cut off, with holes.

use crate::shared::{Real, SYNC, byte, shared};
use crate::*;
use faultless::FileError;
use faultless::stats::Counter;
use faultless_soft::Cpu;

under_every_design! {
    reads_and_writes_by_handle_go_through_the_cache
    cutting_off_keeps_the_rest_of_a_page
    a_hole_is_zeros_and_private_copies_stay
    memory_files_are_cut_off_like_any
}

fn reads_and_writes_by_handle_go_through_the_cache<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 2);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    let handle = real.file.handle();
    space.store_u64(at(10), 7).unwrap();
    let mut bytes = [0; 12];
    assert_eq!(handle.read_at(0, &mut bytes), Ok(12));
    assert_eq!((&bytes[..8], &bytes[8..]), (&7_u64.to_ne_bytes()[..], &[1; 4][..]));
    // Over the border of two pages.
    assert_eq!(handle.write_at(PAGE_SIZE - 8, &[9; 16]), Ok(16));
    assert_eq!(
        (space.load_u64(byte(10, PAGE_SIZE - 8)).unwrap(), space.load_u64(at(11)).unwrap()),
        (word(9), word(9))
    );
    assert_eq!(handle.read_at(2 * PAGE_SIZE - 4, &mut bytes), Ok(4), "up to the end");
    assert_eq!(handle.read_at(2 * PAGE_SIZE, &mut bytes), Ok(0));
    assert_eq!(handle.read_at(u64::MAX, &mut bytes), Ok(0));
    // A write behind the end makes it longer; what lies between is zeros.
    assert!(matches!(fault_of(space.load_u64(at(12))), FaultError::PastEnd { .. }));
    assert_eq!(handle.write_at(3 * PAGE_SIZE + 5, &[4; 2]), Ok(2));
    assert_eq!(real.file.length(), 3 * PAGE_SIZE + 7);
    assert_eq!(space.load_u64(at(12)).unwrap(), 0);
    assert!(matches!(handle.write_at(u64::MAX, &[1]), Err(FileError::TooLong { .. })));
    assert!(matches!(handle.set_length(u64::MAX), Err(FileError::TooLong { .. })));
    handle.sync().unwrap();
    let on_disk = real.bytes();
    assert_eq!(on_disk.len() as u64, 3 * PAGE_SIZE + 7);
    assert_eq!(on_disk[PAGE_SIZE as usize - 8..PAGE_SIZE as usize + 9], [[9; 16].as_slice(), &[2]].concat());
    assert_eq!(on_disk[3 * PAGE_SIZE as usize..], [0, 0, 0, 0, 0, 4, 4]);
    drop((space, real, handle));
    machine.end()
}

fn cutting_off_keeps_the_rest_of_a_page<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    space.map(of_file(&real.file, 20, 4, READ_WRITE)).unwrap();
    for page in 0..4 {
        space.store_u64(byte(20 + page, 3000), 50 + page).unwrap();
        space.store_u64(at(10 + page), 70 + page).unwrap();
    }
    handle.set_length(PAGE_SIZE + 104).unwrap();
    assert_eq!(real.bytes().len() as u64, PAGE_SIZE + 104);
    // The partial page stays, dirty, and is zeros behind the end; a private copy of it stays as it is.
    assert_eq!(space.load_u64(at(11)).unwrap(), 71);
    assert_eq!((space.load_u64(byte(11, 96)).unwrap(), space.load_u64(byte(11, 104)).unwrap()), (word(2), 0));
    assert_eq!(space.load_u64(byte(21, 3000)).unwrap(), 51);
    for gone in [12, 13, 22, 23] {
        assert!(matches!(fault_of(space.load_u64(at(gone))), FaultError::PastEnd { .. }));
        assert!(matches!(fault_of(space.store_u64(at(gone), 1)), FaultError::PastEnd { .. }));
    }
    // What is stored behind the end is not kept.
    space.store_u64(byte(11, 200), 5).unwrap();
    space.sync(at(11), PAGE_SIZE, SYNC).unwrap();
    assert_eq!(space.load_u64(byte(11, 200)).unwrap(), 0, "zeros once it is written");
    space.store_u64(byte(11, 200), 6).unwrap();
    handle.set_length(4 * PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(byte(11, 200)).unwrap(), 0, "and when the file grows");
    assert_eq!((space.load_u64(at(12)).unwrap(), space.load_u64(at(22)).unwrap()), (0, 0));
    space.store_u64(at(13), 8).unwrap();
    handle.sync().unwrap();
    assert_eq!((real.word(0), real.word(1), real.word(2), real.word(3)), (70, 71, 0, 8));
    space.audit().unwrap();
    drop((space, real, handle));
    machine.end()
}

fn a_hole_is_zeros_and_private_copies_stay<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    space.map(of_file(&real.file, 20, 4, READ_WRITE)).unwrap();
    for page in 0..4 {
        space.store_u64(at(10 + page), 70 + page).unwrap();
    }
    space.store_u64(byte(21, 3000), 91).unwrap();
    space.load_u64(at(22)).unwrap();
    //   page   0      1   2   3
    //   hole     [104 . . . . 48)
    handle.punch_hole(104, 3 * PAGE_SIZE + 48 - 104).unwrap();
    let seen = |page, offset| space.load_u64(byte(page, offset)).unwrap();
    assert_eq!([seen(10, 0), seen(10, 96), seen(10, 104)], [70, word(1), 0]);
    assert_eq!([seen(11, 0), seen(12, 0), seen(13, 0), seen(13, 48)], [0, 0, 0, word(4)]);
    assert_eq!([seen(21, 3000), seen(21, 0), seen(22, 0)], [91, 71, 0], "a copy stays, the file's page goes");
    assert_eq!(handle.punch_hole(0, 0), Err(FileError::EmptyHole));
    handle.punch_hole(100 * PAGE_SIZE, PAGE_SIZE).unwrap();
    space.store_u64(at(12), 5).unwrap();
    handle.sync().unwrap();
    let on_disk = real.bytes();
    assert_eq!(on_disk.len() as u64, 4 * PAGE_SIZE, "it stays as long as it was");
    assert_eq!((real.word(1), real.word(2)), (0, 5));
    assert_eq!((on_disk[103], on_disk[104], on_disk[3 * PAGE_SIZE as usize + 47]), (1, 0, 0));
    // Over the end: its last page whole.
    handle.punch_hole(3 * PAGE_SIZE, 100 * PAGE_SIZE).unwrap();
    assert_eq!(seen(13, 48), 0);
    drop((space, real, handle));
    machine.end()
}

fn memory_files_are_cut_off_like_any<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let file = File::in_memory(&machine.engine, 4 * PAGE_SIZE);
    let (one, other) = (machine.space::<D>(), machine.space::<D>());
    one.map(shared(&file, 10, 4, READ_WRITE)).unwrap();
    other.map(shared(&file, 20, 4, Protection::READ)).unwrap();
    for page in 0..4 {
        one.store_u64(at(10 + page), page + 1).unwrap();
        assert_eq!(other.load_u64(at(20 + page)).unwrap(), page + 1);
    }
    let handle = file.handle();
    let mut bytes = [0; 8];
    assert_eq!((handle.read_at(PAGE_SIZE, &mut bytes), bytes), (Ok(8), 2_u64.to_ne_bytes()));
    handle.set_length(PAGE_SIZE + 8).unwrap();
    assert_eq!(machine.frames(), 2);
    assert!(matches!(fault_of(other.load_u64(at(22))), FaultError::PastEnd { .. }));
    one.store_u64(byte(11, 200), 5).unwrap();
    file.set_length(4 * PAGE_SIZE);
    assert_eq!(other.load_u64(byte(21, 200)).unwrap(), 5, "as in tmpfs");
    assert_eq!((other.load_u64(at(21)).unwrap(), other.load_u64(at(22)).unwrap()), (2, 0));
    handle.punch_hole(PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!((other.load_u64(at(20)).unwrap(), other.load_u64(at(21)).unwrap()), (1, 0));
    assert_eq!(handle.write_at(2 * PAGE_SIZE, &[3; 8]), Ok(8));
    assert_eq!(one.load_u64(at(12)).unwrap(), word(3));
    handle.sync().unwrap();
    assert_eq!(machine.engine.statistics().get(Counter::IoWrites), 0);
    drop((one, other, file, handle));
    machine.end()
}
