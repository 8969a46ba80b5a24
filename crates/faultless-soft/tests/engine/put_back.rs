//! Entries that reclaim has announced, and puts back as they were.

use crate::devices::compressed;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::stats::Counter;
use faultless::{AddressSpace, Engine, Limits, LockMode, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};

const PAGES: u64 = 8;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

/// Reclaim announces neighbouring entries together, finds their mapping locked, and lets all of them go. Some have the write right, and
/// some do not, since a child has their pages too.
#[test]
fn entries_of_a_run_keep_their_own_rights() {
    let limits = Limits { shared_entries: u64::MAX, ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(64).unwrap(), limits).unwrap();
    engine.add_swap(compressed()).unwrap();
    let space = AddressSpace::<Soft, Faultless>::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page).unwrap());
    let child = space.fork().unwrap();
    (0..PAGES).step_by(2).for_each(|page| space.store_u64(at(page), 10 + page).unwrap());
    space.lock(at(0), PAGES * PAGE_SIZE, LockMode::OnFault).unwrap();
    let held = || engine.statistics().get(Counter::PassedHeld);
    let before = held();
    // The first look finds the pages in use.
    (0..2).for_each(|_| _ = engine.reclaim_for_tests(0));
    assert!(held() >= before + PAGES, "the test shows something only if entries are announced and let go");
    (0..PAGES).for_each(|page| space.store_u64(at(page), 30 + page).unwrap());
    (0..PAGES).for_each(|page| {
        assert_eq!(child.load_u64(at(page)), Ok(page), "invariant 7: the child sees a later store");
        assert_eq!(space.load_u64(at(page)), Ok(30 + page));
    });
    space.audit().unwrap();
}
