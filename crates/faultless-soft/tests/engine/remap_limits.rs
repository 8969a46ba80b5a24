//! mremap beside changes of the limits.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::{AddressSpace, Engine, Limits, MapRequest, Placement, RemapError, RemapRequest, SpaceLimits};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

type Space = AddressSpace<Soft, Faultless>;

fn engine(frames: u64) -> Arc<Engine<Soft>> {
    Engine::new(Soft::new(frames).unwrap(), Limits::default()).unwrap()
}

/// A limit is lowered after the first check, when the old mapping at the new place is already unmapped. The call is
/// refused, and the new place is a hole, where something can be mapped.
#[test]
fn a_remap_that_a_limit_refuses_late_leaves_nothing_at_the_new_place() {
    let at = |page: u64| VirtAddr::new(page * PAGE_SIZE);
    let fixed = |pages: u64, place| MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(place));
    let space = Space::new(&engine(1024)).unwrap();
    let tight = SpaceLimits { address_space: 600 * PAGE_SIZE, ..SpaceLimits::default() };
    for round in 0..1_000_u64 {
        space.map(fixed(512, at(1024))).unwrap();
        (0..512).step_by(8).for_each(|page| space.store_u64(at(1024 + page), 1).unwrap());
        space.map(fixed(1, at(16))).unwrap();
        let go = AtomicBool::new(false);
        let result = thread::scope(|s| {
            s.spawn(|| {
                while !go.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                (0..round % 4000 * 10).for_each(|_| std::hint::spin_loop());
                space.set_limits(tight);
            });
            thread::yield_now();
            go.store(true, Ordering::Release);
            let request =
                RemapRequest { new_length: 700 * PAGE_SIZE, ..RemapRequest::to(at(16), PAGE_SIZE, at(1024)) };
            space.remap(request)
        });
        space.set_limits(SpaceLimits::default());
        if matches!(result, Err(RemapError::Limit(_))) && space.mapping_from(at(1024).page()).is_none() {
            let again = MapRequest::anonymous(PAGE_SIZE).at(Placement::FixedNoReplace(at(1024)));
            let mapped = space.map(again);
            assert!(mapped.is_ok(), "round {round}: {mapped:?}; {:?}", space.mappings());
        }
        space.unmap(at(0), 4096 * PAGE_SIZE).unwrap();
    }
}
