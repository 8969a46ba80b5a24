//! A region as a virtual machine's memory: accesses by devices, and their limits.
#![cfg(all(
    feature = "vm-memory",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod child;

use child::{ends, skipped};
use faultless::address::PAGE_SIZE;
use faultless_linux::{GuestRegion, GuestRegionError, OpenError, Region, RegionError};
use std::io::Write;
use std::sync::atomic::Ordering;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection,
    MemoryRegionAddress,
};

const PAGE: usize = PAGE_SIZE as usize;
const START: u64 = 1 << 20;

fn anonymous(pages: usize) -> Option<Region> {
    match Region::anonymous(pages * PAGE) {
        Ok(region) => Some(region),
        Err(RegionError::Open(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld))) => {
            skipped(&error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn memory(pages: usize) -> Option<GuestRegionCollection<GuestRegion>> {
    let low = GuestRegion::new(anonymous(pages)?, GuestAddress(START)).unwrap();
    let behind = GuestAddress(START + (pages * PAGE) as u64);
    let high = GuestRegion::new(anonymous(pages)?, behind).unwrap();
    Some(GuestRegionCollection::from_regions(vec![low, high]).unwrap())
}

#[test]
fn a_device_reads_what_another_has_written() {
    ends("a_device_reads_what_another_has_written", || {
        let Some(memory) = memory(4) else { return };
        let at = |offset: u64| GuestAddress(START + offset);
        assert_eq!(memory.read_obj::<u64>(at(8)).unwrap(), 0, "new memory is zeros");
        memory.write_obj(0x1122_3344_5566_7788_u64, at(PAGE_SIZE - 4)).unwrap();
        assert_eq!(memory.read_obj::<u64>(at(PAGE_SIZE - 4)).unwrap(), 0x1122_3344_5566_7788);
        // From one region into the next one.
        let across = at(4 * PAGE_SIZE - 100);
        let bytes: Vec<u8> = (0..200).collect();
        memory.write_slice(&bytes, across).unwrap();
        let mut back = [0; 200];
        memory.read_slice(&mut back, across).unwrap();
        assert_eq!(back[..], bytes);
        memory.store(7_u32, at(64), Ordering::Release).unwrap();
        assert_eq!(memory.load::<u32>(at(64), Ordering::Acquire).unwrap(), 7);
    });
}

#[test]
fn a_file_is_memory_and_a_snapshot_keeps_it() {
    ends("a_file_is_memory_and_a_snapshot_keeps_it", || {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 3 * PAGE]).unwrap();
        if anonymous(1).is_none() {
            return;
        }
        let guest = GuestRegion::new(Region::file(file).unwrap(), GuestAddress(0)).unwrap();
        assert_eq!(guest.read_obj::<u8>(MemoryRegionAddress(2 * PAGE_SIZE)).unwrap(), 5);
        let snapshot = guest.snapshot().unwrap();
        guest.write_obj(9_u8, MemoryRegionAddress(2 * PAGE_SIZE)).unwrap();
        assert_eq!(guest.read_obj::<u8>(MemoryRegionAddress(2 * PAGE_SIZE)).unwrap(), 9);
        assert_eq!(snapshot[2 * PAGE], 5);
    });
}

#[test]
fn what_lies_outside_is_refused() {
    ends("what_lies_outside_is_refused", || {
        let Some(memory) = memory(2) else { return };
        assert!(memory.read_obj::<u8>(GuestAddress(START - 1)).is_err());
        assert!(memory.read_obj::<u8>(GuestAddress(START + 4 * PAGE_SIZE)).is_err());
        assert!(memory.write_obj(1_u64, GuestAddress(START + 4 * PAGE_SIZE - 4)).is_err());
        let region = memory.find_region(GuestAddress(START)).unwrap();
        assert_eq!(region.len(), 2 * PAGE_SIZE);
        for (offset, count) in
            [(2 * PAGE_SIZE, 1), (0, 2 * PAGE + 1), (1, usize::MAX), (u64::MAX, 1), (u64::MAX, 0)]
        {
            let slice = region.get_slice(MemoryRegionAddress(offset), count);
            assert!(matches!(slice, Err(GuestMemoryError::InvalidBackendAddress)), "{offset} {count}");
        }
        assert!(region.get_host_address(MemoryRegionAddress(2 * PAGE_SIZE)).is_err());
        assert_eq!(region.get_host_address(MemoryRegionAddress(5)).unwrap(), region.as_ptr().wrapping_add(5));
    });
}

#[test]
fn wrong_places_are_typed_errors() {
    ends("wrong_places_are_typed_errors", || {
        let Some(one) = anonymous(1) else { return };
        let unaligned = GuestRegion::new(one, GuestAddress(8)).map(drop);
        assert_eq!(unaligned, Err(GuestRegionError::Unaligned { start: 8 }));
        let two = anonymous(2).unwrap();
        let start = u64::MAX - PAGE_SIZE + 1;
        let overflow = GuestRegion::new(two, GuestAddress(start)).map(drop);
        assert_eq!(overflow, Err(GuestRegionError::Overflow { start, length: 2 * PAGE }));
        assert!(GuestRegion::new(anonymous(1).unwrap(), GuestAddress(start)).is_ok());
        let Ok(empty) = Region::file(tempfile::tempfile().unwrap()) else { return };
        assert_eq!(GuestRegion::new(empty, GuestAddress(0)).map(drop), Err(GuestRegionError::Empty));
    });
}
