//! A mapping as a value: dropping the value unmaps it, unless a rule forbids that, and its parts are those of the
//! mapping.

use faultless::address::{PAGE_SIZE, RangeError};
use faultless::protection::Protection;
use faultless::{AddressSpace, DiscardError, Engine, Limits, MapRequest, Mapped, ProtectError, UnmapError};
use faultless_soft::{Cpu, Soft};

fn space() -> AddressSpace<Soft> {
    AddressSpace::new(&Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap()).unwrap()
}

fn pages(space: &AddressSpace<Soft>, pages: u64) -> Mapped<Soft> {
    space.map_owned(MapRequest::anonymous(pages * PAGE_SIZE)).unwrap()
}

#[test]
fn it_is_unmapped_when_the_value_goes() {
    let space = space();
    let before = space.engine().frame_usage().used;
    let mapped = pages(&space, 3);
    assert_eq!(mapped.length(), 3 * PAGE_SIZE);
    let last = mapped.at(3 * PAGE_SIZE - 8).unwrap();
    space.store_u64(last, 7).unwrap();
    assert_eq!(space.load_u64(last), Ok(7));
    drop(mapped);
    assert!(space.load_u64(last).is_err());
    space.engine().flush();
    assert_eq!(space.engine().frame_usage().used, before);
}

#[test]
fn it_stays_when_the_value_becomes_an_address() {
    let space = space();
    let address = pages(&space, 1).into_address();
    space.store_u64(address, 1).unwrap();
    assert_eq!(space.load_u64(address), Ok(1));
}

#[test]
fn it_outlives_the_handle_that_it_was_made_with() {
    let space = space();
    let mapped = pages(&space, 1);
    drop(space);
    mapped.space().store_u64(mapped.address(), 5).unwrap();
    assert_eq!(mapped.space().load_u64(mapped.address()), Ok(5));
}

#[test]
fn a_refusal_to_unmap_gives_it_back() {
    let space = space();
    let mapped = pages(&space, 1);
    space.seal(mapped.address(), PAGE_SIZE).unwrap();
    let (error, mapped) = mapped.unmap().unwrap_err();
    assert!(matches!(error, UnmapError::Sealed { .. }));
    let address = mapped.address();
    drop(mapped);
    assert_eq!(space.load_u64(address), Ok(0), "a sealed mapping stays");
}

#[test]
fn its_parts_are_inside_it() {
    let space = space();
    let mapped = pages(&space, 2);
    let second = mapped.at(PAGE_SIZE).unwrap();
    space.store_u64(second, 9).unwrap();
    mapped.protect(PAGE_SIZE..2 * PAGE_SIZE, Protection::READ).unwrap();
    assert!(space.store_u64(second, 1).is_err());
    mapped.discard(PAGE_SIZE..2 * PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(second), Ok(0));
    let (address, end) = (mapped.address(), 3 * PAGE_SIZE);
    let outside = RangeError::Outside { address, end };
    assert_eq!(mapped.protect(0..end, Protection::READ), Err(ProtectError::Range(outside)));
    assert_eq!(mapped.discard(PAGE_SIZE..end), Err(DiscardError::Range(outside)));
    #[expect(clippy::reversed_empty_ranges, reason = "a caller may pass one")]
    let reversed = mapped.protect(PAGE_SIZE..0, Protection::READ);
    assert_eq!(reversed, Err(ProtectError::Range(RangeError::Outside { address, end: 0 })));
    let huge = mapped.discard(u64::MAX - PAGE_SIZE..u64::MAX);
    assert_eq!(huge, Err(DiscardError::Range(RangeError::Outside { address, end: u64::MAX })));
    assert_eq!(mapped.at(2 * PAGE_SIZE), None);
    assert_eq!(mapped.at(u64::MAX), None);
}
