//! The program itself changes the kernel's mappings of a region (madvise, munmap, mremap) without telling the engine.
//! Each access ends: its page is served again, or it gets a signal.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Access;
use faultless::store::{FileStore, GatedStore};
use faultless::{FaultError, Limits};
use faultless_linux::{OpenError, Options, Pager, Region, access};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use std::io::Write;
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;
const PAGES: usize = 16;

fn pager() -> Option<Pager> {
    match Pager::new(Options { memory: 4 << 20, limits: Limits::default(), ..Options::default() }) {
        Ok(pager) => Some(pager),
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            skipped(&error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns a file whose page `n` is full of `n + 1`.
fn numbered() -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for page in 0..PAGES {
        file.write_all(&[page as u8 + 1; PAGE]).expect("a page written");
    }
    file
}

fn at(region: &Region, page: usize) -> *mut u8 {
    region.as_ptr().wrapping_add(page * PAGE)
}

/// Drops `count` pages of a region by madvise, without telling the region.
fn drop_by_hand(region: &Region, page: usize, count: usize) {
    // SAFETY: the region's own pages, which the test reads by `access` only.
    let done = unsafe { libc::madvise(at(region, page).cast(), count * PAGE, libc::MADV_DONTNEED) };
    assert_eq!(done, 0);
}

fn load(region: &Region, page: usize) -> Result<u8, access::Signal> {
    // SAFETY: the region's own memory.
    unsafe { access::load_u8(at(region, page)) }
}

fn store(region: &Region, page: usize, value: u8) -> Result<(), access::Signal> {
    // SAFETY: the region's own memory.
    unsafe { access::store_u8(at(region, page), value) }
}

/// Asserts that all frames except the engine's page of zeros have been freed.
fn end(pager: &Pager) {
    pager.engine().flush();
    assert_eq!(pager.engine().frame_usage().used, 1, "frames are left");
}

#[test]
fn pages_that_the_program_dropped_are_served_anew() {
    ends("pages_that_the_program_dropped_are_served_anew", || {
        let Some(pager) = pager() else { return };
        let zeros = pager.anonymous(PAGES * PAGE).unwrap();
        for page in 0..PAGES {
            store(&zeros, page, 7).unwrap();
        }
        drop_by_hand(&zeros, 2, 6);
        assert_eq!((load(&zeros, 2), store(&zeros, 3, 8), load(&zeros, 3)), (Ok(0), Ok(()), Ok(8)));
        assert_eq!(
            (load(&zeros, 1), load(&zeros, 8)),
            (Ok(7), Ok(7)),
            "the pages beside them have not changed"
        );

        let file = pager.file(numbered()).unwrap();
        store(&file, 4, 100).unwrap();
        assert_eq!((load(&file, 4), load(&file, 5)), (Ok(100), Ok(6)));
        drop_by_hand(&file, 4, 2);
        assert_eq!((load(&file, 4), load(&file, 5)), (Ok(5), Ok(6)), "the file's bytes");
        drop((zeros, file));
        end(&pager);
    });
}

#[test]
fn the_kernel_itself_reads_pages_that_the_program_dropped() {
    ends("the_kernel_itself_reads_pages_that_the_program_dropped", || {
        let Some(pager) = pager() else { return };
        let mut region = pager.anonymous(PAGES * PAGE).unwrap();
        region.fill(7);
        drop_by_hand(&region, 0, PAGES);
        let mut out = tempfile::tempfile().unwrap();
        out.write_all(&region).unwrap();
        drop(region);
        end(&pager);
    });
}

/// The bytes were in the region's page alone. An access to the snapshot's page gets SIGBUS; its other pages are intact.
#[test]
fn a_snapshot_of_pages_that_the_program_dropped_is_a_signal_and_never_zeros() {
    ends("a_snapshot_of_pages_that_the_program_dropped_is_a_signal_and_never_zeros", || {
        let Some(pager) = pager() else { return };
        let region = pager.anonymous(PAGES * PAGE).unwrap();
        for page in 0..PAGES {
            store(&region, page, 7).unwrap();
        }
        let mut snapshot = region.snapshot().unwrap();
        assert_eq!(load(&snapshot, 9), Ok(7));
        drop_by_hand(&region, 0, 4);
        // Before a fault of the region shows that the page was dropped, and after it.
        for round in 0..2 {
            assert!(load(&snapshot, 0).unwrap_err().is_bus());
            assert!(store(&snapshot, 1, 1).unwrap_err().is_bus());
            assert!(
                matches!(snapshot.refusal(0), Some(FaultError::Lost { .. })),
                "{:?}",
                snapshot.refusal(0)
            );
            assert_eq!((load(&region, 0), load(&region, 1), load(&region, 2)), (Ok(0), Ok(0), Ok(0)));
            assert!(load(&snapshot, 2).unwrap_err().is_bus(), "round {round}");
            // An access that is tried again finds the bytes still lost.
            snapshot.retry(..).unwrap();
        }
        assert_eq!((load(&snapshot, 4), load(&region, 4)), (Ok(7), Ok(7)));
        // After a discard the pages are zeros that can be used.
        snapshot.discard(..4 * PAGE).unwrap();
        assert_eq!((load(&snapshot, 0), store(&snapshot, 1, 9), load(&snapshot, 1)), (Ok(0), Ok(()), Ok(9)));
        drop((region, snapshot));
        end(&pager);
    });
}

/// The program drops pages at any moment, beside snapshots, stores and discards. All calls and accesses end.
#[test]
fn pages_may_be_dropped_beside_everything_else() {
    ends("pages_may_be_dropped_beside_everything_else", || {
        let Some(pager) = pager() else { return };
        let region = pager.anonymous(PAGES * PAGE).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0.. {
                    drop_by_hand(&region, round % 8, 8);
                    if stopped() {
                        return;
                    }
                }
            });
            for thread in 0..2 {
                let region = &region;
                scope.spawn(move || {
                    for round in 0..4_000 {
                        let page = (round * 7 + thread) % PAGES;
                        store(region, page, 1).unwrap();
                        assert!(load(region, page).unwrap() <= 1);
                    }
                });
            }
            for round in 0..300 {
                let snapshot = region.snapshot().unwrap();
                for page in 0..PAGES {
                    match load(&snapshot, page) {
                        Ok(value) => assert!(value <= 1),
                        Err(signal) => assert!(signal.is_bus(), "{signal}"),
                    }
                }
                // SAFETY: there are no references into the region.
                unsafe { region.discard_shared(round % 8 * PAGE..8 * PAGE) }.unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        drop(region);
        end(&pager);
    });
}

#[test]
fn a_page_from_outside_that_the_program_dropped_is_lost() {
    ends("a_page_from_outside_that_the_program_dropped_is_lost", || {
        let Some(pager) = pager() else { return };
        let space: faultless::AddressSpace<faultless_linux::Linux, faultless::design::Faultless> =
            faultless::AddressSpace::new(pager.engine()).unwrap();
        let serving = faultless_linux::Serving::of(&space).unwrap();
        let place = faultless::Placement::Fixed(VirtAddr::new(0));
        space.map(faultless::MapRequest::anonymous(4 * PAGE_SIZE).at(place)).unwrap();
        let page = serving.pointer(VirtAddr::new(0)).unwrap();
        // SAFETY: the space's own memory.
        unsafe { access::store_u8(page, 7) }.unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::madvise(page.cast(), PAGE, libc::MADV_DONTNEED) }, 0);
        let error = space.read_remote(VirtAddr::new(0), &mut [0; 8]).unwrap_err();
        assert!(matches!(error.error, FaultError::Lost { .. }), "{error}");
        assert!(matches!(
            space.write_remote(VirtAddr::new(0), &[1; 8]).unwrap_err().error,
            FaultError::Lost { .. }
        ));
        drop(space.pin(VirtAddr::new(0), Access::Read).unwrap());
        // SAFETY: as above.
        assert_eq!(unsafe { access::load_u8(page) }, Ok(0));
        assert_eq!(space.read_remote(VirtAddr::new(0), &mut [1; 8]), Ok(8));
        drop((serving, space));
        end(&pager);
    });
}

/// The program unmaps a part of a region, and moves another part away. The other parts still work, and every call ends.
#[test]
fn parts_of_a_region_may_be_unmapped_and_moved_by_hand() {
    ends("parts_of_a_region_may_be_unmapped_and_moved_by_hand", || {
        let Some(pager) = pager() else { return };
        let region = pager.anonymous(PAGES * PAGE).unwrap();
        for page in 0..12 {
            store(&region, page, 7).unwrap();
        }
        let early = region.snapshot().unwrap();
        // SAFETY: pages of the region, to which the test has no reference. A mapping without rights keeps other
        // mappings out.
        unsafe {
            rustix::mm::munmap(at(&region, 4).cast(), PAGE).unwrap();
            let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED);
            rustix::mm::mmap_anonymous(at(&region, 5).cast(), PAGE, none, flags).unwrap();
            let moved = rustix::mm::mremap(at(&region, 6).cast(), PAGE, PAGE, MremapFlags::MAYMOVE);
            assert_eq!(moved.unwrap(), at(&region, 6).cast(), "the same size needs no move");
            let room =
                rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, none, MapFlags::PRIVATE).unwrap();
            rustix::mm::mremap_fixed(at(&region, 7).cast(), PAGE, PAGE, MremapFlags::MAYMOVE, room).unwrap();
            assert_eq!(access::load_u8(room.cast()), Ok(7));
        }
        for page in [4, 5, 7] {
            assert!(load(&region, page).unwrap_err().is_segv(), "page {page}");
        }
        for page in [0, 3, 6, 8, 11] {
            assert_eq!(
                (store(&region, page, 8), load(&region, page), load(&early, page)),
                (Ok(()), Ok(8), Ok(7))
            );
        }
        assert!(load(&early, 4).unwrap_err().is_bus());
        let late = region.snapshot().unwrap();
        for page in [0, 3, 6, 8, 11] {
            assert_eq!((store(&region, page, 9), load(&late, page)), (Ok(()), Ok(8)), "page {page}");
        }
        // SAFETY: there are no references into the region.
        unsafe { region.discard_shared(..) }.unwrap();
        assert_eq!((load(&region, 0), load(&region, 15), load(&late, 0)), (Ok(0), Ok(0), Ok(8)));
        drop((region, early, late));
        end(&pager);
    });
}

/// A thread waits for a page that is being read when the program unmaps the page.
#[test]
fn a_page_may_be_unmapped_by_hand_under_a_fault() {
    ends("a_page_may_be_unmapped_by_hand_under_a_fault", || {
        let Some(pager) = pager() else { return };
        let gate = Arc::new(GatedStore::new(FileStore::from_file(numbered()).unwrap()));
        let region = pager.store(gate.clone()).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| load(&region, 3));
            gate.wait_for(1);
            // SAFETY: a page of the region, to which the test has no reference.
            unsafe { rustix::mm::munmap(at(&region, 3).cast(), PAGE) }.unwrap();
            gate.open();
            assert!(reader.join().unwrap().unwrap_err().is_segv());
        });
        assert_eq!(load(&region, 4), Ok(5));
        drop(region);
        end(&pager);
    });
}
