//! Buffers in a region's own memory: a call that fills or reads one faults on it, and ends.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::store::FileStore;
use faultless::{AddressSpace, File, MapRequest, Placement};
use faultless_linux::{Linux, OpenError, Options, Pager, Serving};
use std::io::Write;
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;
const PAGES: usize = 8;

type Space = AddressSpace<Linux, Faultless>;

fn pager() -> Option<Pager> {
    match Pager::new(Options { memory: 4 << 20, ..Options::default() }) {
        Ok(pager) => Some(pager),
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            skipped(&error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn at(page: usize) -> VirtAddr {
    VirtAddr::new((page * PAGE) as u64)
}

/// Returns a served space with `request` at its first address.
fn served(pager: &Pager, request: MapRequest<Linux>) -> (Space, Serving) {
    let space = AddressSpace::new(pager.engine()).expect("a space");
    let serving = Serving::of(&space).expect("served once");
    space.map(request.at(Placement::Fixed(at(0)))).expect("room in the window");
    (space, serving)
}

fn anonymous(pager: &Pager) -> (Space, Serving) {
    served(pager, MapRequest::anonymous((PAGES * PAGE) as u64))
}

/// Makes a file whose page `n` is full of `n + 1`, and a private mapping of it.
fn of_file(pager: &Pager) -> (faultless::sync::Shared<File<Linux>>, Space, Serving) {
    let mut bytes = tempfile::tempfile().expect("a temporary file");
    for page in 0..PAGES {
        bytes.write_all(&[page as u8 + 1; PAGE]).expect("a page written");
    }
    let store = Arc::new(FileStore::from_file(bytes).expect("a store"));
    let file = File::open_rw(pager.engine(), store).expect("a file");
    let rights = Protection::READ | Protection::WRITE;
    let (space, serving) = served(pager, MapRequest::file(&file, 0, (PAGES * PAGE) as u64, rights));
    (file, space, serving)
}

/// Returns `count` pages of a space's memory from `page` on.
#[expect(clippy::mut_from_ref, reason = "the memory is not the handle's")]
fn memory(serving: &Serving, page: usize, count: usize) -> &mut [u8] {
    let start = serving.pointer(at(page)).expect("in the window");
    // SAFETY: plain bytes of a mapping that lives as long as `serving`; each test has one reference to a page at a time.
    unsafe { std::slice::from_raw_parts_mut(start, count * PAGE) }
}

#[test]
fn a_page_of_a_file_is_written_from_an_untouched_mapping_of_it() {
    ends("a_page_of_a_file_is_written_from_an_untouched_mapping_of_it", || {
        let Some(pager) = pager() else { return };
        let (file, _space, serving) = of_file(&pager);
        assert_eq!(file.handle().write_at(0, memory(&serving, 0, 1)), Ok(PAGE));
        // The written pages are not the buffer's: the buffer's faults still need other pages of the file.
        assert_eq!(file.handle().write_at(2 * PAGE_SIZE, memory(&serving, 1, 3)), Ok(3 * PAGE));
        let mut bytes = [0; PAGES * PAGE];
        assert_eq!(file.handle().read_at(0, &mut bytes), Ok(bytes.len()));
        let pages: Vec<u8> = bytes.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(pages[..2], [1, 2], "written with their own bytes");
        assert_eq!(pages[2], 2);
        assert_eq!(pages[5..], [6, 7, 8]);
    });
}

#[test]
fn a_page_of_a_file_is_read_into_an_untouched_mapping_of_it() {
    ends("a_page_of_a_file_is_read_into_an_untouched_mapping_of_it", || {
        let Some(pager) = pager() else { return };
        let (file, _space, serving) = of_file(&pager);
        assert_eq!(file.handle().read_at(0, memory(&serving, 0, 1)), Ok(PAGE));
        assert_eq!(file.handle().read_at(3 * PAGE_SIZE, memory(&serving, 2, 3)), Ok(3 * PAGE));
        let pages: Vec<u8> = memory(&serving, 0, PAGES).chunks(PAGE).map(|page| page[7]).collect();
        assert_eq!(pages, [1, 2, 4, 5, 6, 6, 7, 8]);
    });
}

/// The buffer's fault needs the bytes of the same frame that is being read.
#[test]
fn a_page_is_read_from_outside_into_a_snapshot_of_it() {
    ends("a_page_is_read_from_outside_into_a_snapshot_of_it", || {
        let Some(pager) = pager() else { return };
        let (space, serving) = anonymous(&pager);
        for page in 0..PAGES {
            memory(&serving, page, 1).fill(page as u8 + 1);
        }
        let child = space.fork().expect("memory");
        let snapshot = Serving::of(&child).expect("served once");
        assert_eq!(space.read_remote(at(3), memory(&snapshot, 3, 2)), Ok(2 * PAGE));
        assert_eq!(space.read_remote(at(6), memory(&snapshot, 5, 1)), Ok(PAGE));
        let pinned = space.pin(at(0), Access::Read).expect("a page");
        assert_eq!(pinned.read(0, memory(&snapshot, 0, 1)), PAGE);
        let pages: Vec<u8> = memory(&snapshot, 0, PAGES).chunks(PAGE).map(|page| page[7]).collect();
        assert_eq!(pages, [1, 2, 3, 4, 5, 7, 7, 8]);
    });
}

#[test]
fn a_page_is_written_from_outside_from_a_snapshot_of_it() {
    ends("a_page_is_written_from_outside_from_a_snapshot_of_it", || {
        let Some(pager) = pager() else { return };
        let (space, serving) = anonymous(&pager);
        for page in 0..PAGES {
            memory(&serving, page, 1).fill(page as u8 + 1);
        }
        let child = space.fork().expect("memory");
        let snapshot = Serving::of(&child).expect("served once");
        assert_eq!(space.write_remote(at(3), memory(&snapshot, 3, 2)), Ok(2 * PAGE));
        assert_eq!(space.write_remote(at(6), memory(&snapshot, 5, 1)), Ok(PAGE));
        let pinned = child.pin(at(1), Access::Write).expect("a page");
        assert_eq!(pinned.write(0, memory(&serving, 0, 1)), PAGE);
        let pages: Vec<u8> = memory(&serving, 0, PAGES).chunks(PAGE).map(|page| page[7]).collect();
        assert_eq!(pages, [1, 2, 3, 4, 5, 6, 6, 8]);
        assert_eq!(memory(&snapshot, 1, 1)[9], 1);
    });
}

/// Copies into new memory of a space that another thread forks in a loop. A fork locks the whole space while it waits
/// for the bytes of a pinned page.
#[test]
fn pages_are_read_into_fresh_memory_beside_forks() {
    ends("pages_are_read_into_fresh_memory_beside_forks", || {
        let Some(pager) = pager() else { return };
        let (space, serving) = anonymous(&pager);
        memory(&serving, 0, 1).fill(9);
        std::thread::scope(|scope| {
            let forks = scope.spawn(|| {
                for _ in 0..300 {
                    drop(space.fork().expect("memory"));
                }
            });
            while !forks.is_finished() {
                space.discard(at(1), (PAGES - 1) as u64 * PAGE_SIZE).expect("mapped");
                for page in 1..PAGES {
                    assert_eq!(space.read_remote(at(0), memory(&serving, page, 1)), Ok(PAGE));
                    assert_eq!(memory(&serving, page, 1)[PAGE - 1], 9);
                }
            }
        });
    });
}
