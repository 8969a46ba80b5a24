//! Refresh of a file after another program has changed its store.

use crate::shared::{Real, shared};
use crate::*;
use faultless::{FileError, errno};
use faultless_soft::Cpu;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    refreshed_pages_are_the_stores
    a_dirty_page_refuses_to_be_refreshed
    stores_beside_refreshing_are_never_lost
}

/// Writes page `page` of the file on disk, as another program would.
fn write_behind<S: Stand>(real: &Real<S, FileStore>, page: u64, byte: u8) {
    let file = std::fs::OpenOptions::new().write(true).open(real.on_disk.path()).expect("the file");
    file.write_all_at(&[byte; PAGE_SIZE as usize], page * PAGE_SIZE).expect("a page written");
}

fn refreshed_pages_are_the_stores<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let (one, other) = (machine.space::<D>(), machine.space::<D>());
    one.map(shared(&real.file, 10, 8, READ_WRITE)).unwrap();
    other.map(of_file(&real.file, 20, 8, READ_WRITE)).unwrap();
    other.store_u64(at(21), 7).unwrap();
    let handle = real.file.handle();
    let read = |page: u64| {
        let mut bytes = [0; 8];
        handle.read_at(page * PAGE_SIZE, &mut bytes).map(|_| u64::from_ne_bytes(bytes))
    };
    for page in 0..4 {
        assert_eq!(one.load_u64(at(10 + page)).unwrap(), word(page as u8 + 1));
    }
    assert_eq!((other.load_u64(at(20)).unwrap(), other.load_u64(at(22)).unwrap()), (word(1), word(3)));
    (0..8).for_each(|page| write_behind(&real, page, 100 + page as u8));
    assert_eq!((one.load_u64(at(10)).unwrap(), read(0), read(5)), (word(1), Ok(word(1)), Ok(word(105))));
    real.file.refresh(PAGE_SIZE + 1, 2 * PAGE_SIZE).unwrap();
    assert_eq!(one.load_u64(at(10)).unwrap(), word(1), "a page outside the range");
    for page in 1..4 {
        assert_eq!(
            (one.load_u64(at(10 + page)).unwrap(), read(page)),
            (word(100 + page as u8), Ok(word(100 + page as u8)))
        );
    }
    assert_eq!(other.load_u64(at(22)).unwrap(), word(102));
    assert_eq!(other.load_u64(at(21)).unwrap(), 7, "a private copy is the space's own");
    real.file.refresh(0, u64::MAX).unwrap();
    assert_eq!((one.load_u64(at(10)).unwrap(), other.load_u64(at(20)).unwrap()), (word(100), word(100)));
    assert_eq!(real.file.refresh(2, u64::MAX), Err(FileError::TooLong { end: u64::MAX }));
    real.file.refresh(5, 0).unwrap();
    one.audit().unwrap();
    drop((one, other, handle, real));
    machine.end()
}

fn a_dirty_page_refuses_to_be_refreshed<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    (0..4).for_each(|page| assert_eq!(space.load_u64(at(10 + page)).unwrap(), word(page as u8 + 1)));
    space.store_u64(at(12), 7).unwrap();
    (0..4).for_each(|page| write_behind(&real, page, 100));
    let refused = real.file.refresh(0, 4 * PAGE_SIZE).unwrap_err();
    assert_eq!((refused, refused.errno()), (FileError::Dirty { offset: 2 * PAGE_SIZE }, errno::EBUSY));
    assert_eq!((space.load_u64(at(10)).unwrap(), space.load_u64(at(12)).unwrap()), (word(1), 7), "as before");
    real.file.refresh(0, 2 * PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(at(10)).unwrap(), word(100));
    // After its write, the page can be refreshed.
    real.file.sync().unwrap();
    assert_eq!(real.word(2), 7);
    write_behind(&real, 2, 101);
    real.file.refresh(0, 4 * PAGE_SIZE).unwrap();
    assert_eq!((space.load_u64(at(12)).unwrap(), space.load_u64(at(13)).unwrap()), (word(101), word(100)));
    // A file in memory has no store to be read from.
    let memory = File::in_memory(&machine.engine, PAGE_SIZE).unwrap();
    memory.handle().write_at(0, &[5]).unwrap();
    memory.refresh(0, PAGE_SIZE).unwrap();
    let mut byte = [0];
    assert_eq!((memory.handle().read_at(0, &mut byte), byte), (Ok(1), [5]));
    drop((space, real, memory));
    machine.end()
}

/// Each thread stores growing numbers, through a mapping or by a handle, and always finds its last number.
fn stores_beside_refreshing_are_never_lost<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        let mapped = scope.spawn(|| {
            for number in 1..=400 {
                for page in 0..4 {
                    space.store_u64(at(10 + page), number).unwrap();
                }
                for page in 0..4 {
                    assert_eq!(space.load_u64(at(10 + page)).unwrap(), number);
                }
            }
        });
        let by_handle = scope.spawn(|| {
            let handle = real.file.handle();
            for number in 1..=400_u64 {
                for page in 0..4 {
                    handle.write_at(page * PAGE_SIZE + 64, &number.to_ne_bytes()).unwrap();
                }
                for page in 0..4 {
                    let mut bytes = [0; 8];
                    handle.read_at(page * PAGE_SIZE + 64, &mut bytes).unwrap();
                    assert_eq!(u64::from_ne_bytes(bytes), number);
                }
            }
        });
        let (stop, file) = (&stop, &real.file);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                file.sync().unwrap();
                match file.refresh(0, 4 * PAGE_SIZE) {
                    Ok(()) | Err(FileError::Dirty { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let results = [mapped.join(), by_handle.join()];
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.expect("no store is lost"));
    });
    space.audit().unwrap();
    drop((space, real));
    machine.end()
}
