//! Compares the kernel's page table with the engine's entries.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, MapRequest, Placement};
use faultless_linux::{Linux, OpenError, Options, Pager, Serving, access};
use std::io::{Read, Seek, SeekFrom, Write};

const PAGES: u64 = 64;

/// Bits of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is in memory; it is in swap;
/// userfaultfd protects it from stores.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const PROTECTED: u64 = 1 << 57;

/// Returns the kernel's pagemap word for each page of the space.
fn pagemap(serving: &Serving) -> Vec<u64> {
    let start = serving.pointer(VirtAddr::new(0)).expect("a window").addr() as u64;
    let mut file = std::fs::File::open("/proc/self/pagemap").expect("/proc");
    file.seek(SeekFrom::Start(start / PAGE_SIZE * 8)).expect("an address");
    let mut bytes = [0; PAGES as usize * 8];
    file.read_exact(&mut bytes).expect("the window's pages");
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// Asserts that the kernel has a page exactly where an entry says so, and protects it wherever the entry has no write
/// right.
fn assert_follows(serving: &Serving, after: &str) {
    // An access can be done before the handler has ended the entry's announcement.
    while serving.space().audit().is_err() {
        std::thread::yield_now();
    }
    for (page, kernel) in (0..).zip(pagemap(serving)) {
        let address = VirtAddr::new(page * PAGE_SIZE);
        let loaded = serving.is_there(address, Access::Read);
        assert_eq!(kernel & (PRESENT | SWAPPED) != 0, loaded, "invariant 13: page {page} after {after}");
        let writable = serving.is_there(address, Access::Write);
        assert!(!loaded || writable || kernel & PROTECTED != 0, "invariant 13: page {page} after {after}");
    }
}

fn touch(serving: &Serving, page: u64, access: Access) {
    let at = serving.pointer(VirtAddr::new(page * PAGE_SIZE)).expect("in the window").cast::<u64>();
    // SAFETY: the space's own memory.
    let done = unsafe {
        match access {
            Access::Write => access::store_u64(at, page),
            _ => access::load_u64(at).map(|_| ()),
        }
    };
    done.expect("a page that is mapped");
}

#[test]
fn invariant_13_the_kernel_follows_the_entries() {
    let pager = match Pager::new(Options { memory: 4 << 20, ..Options::default() }) {
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            return;
        }
        pager => pager.expect("a pager"),
    };
    let space: AddressSpace<Linux, Faultless> = AddressSpace::new(pager.engine()).expect("a space");
    let parent = Serving::of(&space).expect("served once");
    let read_write = Protection::READ | Protection::WRITE;
    let at = |page: u64| VirtAddr::new(page * PAGE_SIZE);
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    assert_follows(&parent, "map");
    (0..40).for_each(|page| touch(&parent, page, if page % 3 == 0 { Access::Read } else { Access::Write }));
    assert_follows(&parent, "loads and stores");
    let child_space = space.fork().unwrap();
    let child = Serving::of(&child_space).expect("served once");
    assert_follows(&parent, "fork");
    assert_follows(&child, "fork, the child");
    (0..10).for_each(|page| touch(&parent, page, Access::Write));
    (5..20).for_each(|page| touch(&child, page, Access::Read));
    (8..15).for_each(|page| touch(&child, page, Access::Write));
    (18..25).for_each(|page| touch(&parent, page, Access::Write));
    assert_follows(&parent, "stores after fork");
    assert_follows(&child, "loads and stores of the child");
    space.discard(at(3), 10 * PAGE_SIZE).unwrap();
    assert_follows(&parent, "discard");
    space.protect(at(20), 10 * PAGE_SIZE, Protection::READ).unwrap();
    assert_follows(&parent, "protect");
    space.protect(at(20), 10 * PAGE_SIZE, read_write).unwrap();
    (22..26).for_each(|page| touch(&parent, page, Access::Write));
    assert_follows(&parent, "rights that came back");
    space.unmap(at(24), 4 * PAGE_SIZE).unwrap();
    let over = MapRequest::anonymous(6 * PAGE_SIZE).at(Placement::Fixed(at(30)));
    space.map(over).unwrap();
    assert_follows(&parent, "unmap, and map over");
    (30..34).for_each(|page| touch(&parent, page, Access::Write));
    drop(parent);
    drop(space);
    (0..PAGES).for_each(|page| touch(&child, page, Access::Read));
    assert_follows(&child, "the parent's end");
    drop((child, child_space));
    assert_eq!(pager.engine().frame_usage().used, 1, "frames are left");
}
