//! The order in which reclaim tries pages is that which the limits name, and no bytes are lost in any order.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::stats::Counter;
use faultless::swap::CompressedMemory;
use faultless::{AddressSpace, Engine, Limits, MapRequest, Placement, ReclaimOrder};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

/// Many more than reclaim tries at a time, so that its order matters.
const FRAMES: u64 = 512;
const PAGES: u64 = 1024;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// Stores into all pages, loads them in no order, the first ones more often, and checks all bytes. Returns the number of pages
/// that came back from swap space.
fn run(reclaim: ReclaimOrder) -> u64 {
    let limits = Limits { reclaim, ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap();
    engine.add_swap(Arc::new(CompressedMemory::new(4096, 4096 * PAGE_SIZE as usize).unwrap())).unwrap();
    assert_eq!(engine.limits().reclaim, reclaim);
    let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let mut number = 1_u64;
    let mut next = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (number >> 33) % PAGES
    };
    for _ in 0..20_000 {
        let page = next() * next() / PAGES;
        assert_eq!(space.load_u64(at(page)), Ok(page + 1), "{reclaim:?}");
    }
    space.audit().unwrap();
    let swap_ins = engine.statistics().get(Counter::SwapIns);
    drop(space);
    engine.flush();
    assert_eq!((engine.frame_usage().used, engine.swap_usage().slots), (1, 0), "{reclaim:?}");
    swap_ins
}

#[test]
fn an_engine_has_the_order_of_its_limits() {
    let [small_main, generations] = [ReclaimOrder::SmallMain, ReclaimOrder::Generations].map(run);
    assert_eq!(run(ReclaimOrder::default()), small_main);
    assert_ne!(small_main, generations);
}

/// With generations, one look at a page in use finds the pages in use around it. They stay, those of the same batch too, and reclaim
/// does not walk to each of them. The other order walks to each page.
#[test]
fn generations_find_pages_in_use_around_one() {
    let counts = |reclaim: ReclaimOrder| {
        let engine =
            Engine::new(Soft::with_caches(4 * PAGES).unwrap(), Limits { reclaim, ..Limits::default() })
                .unwrap();
        engine.add_swap(Arc::new(CompressedMemory::new(4096, 4096 * PAGE_SIZE as usize).unwrap())).unwrap();
        let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine).unwrap();
        space.map(MapRequest::anonymous(2 * PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
        (0..2 * PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
        // Now no page is young.
        while engine.statistics().get(Counter::PassedYoung) + engine.statistics().get(Counter::FoundAround)
            < 2 * PAGES
        {
            engine.reclaim(0);
        }
        let in_use = || (0..2 * PAGES).filter(|page| page % 128 < 64);
        in_use().for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
        let before = engine.statistics();
        engine.reclaim(PAGES);
        let after = engine.statistics();
        let count = |counter| after.get(counter) - before.get(counter);
        let counts = (count(Counter::PassedYoung), count(Counter::FoundAround));
        let reads = after.get(Counter::SwapIns);
        in_use().for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1)));
        assert_eq!(engine.statistics().get(Counter::SwapIns), reads, "{reclaim:?}: a page in use was taken");
        counts
    };
    let (young, found) = counts(ReclaimOrder::Generations);
    assert!(found > 0, "reclaim looks at one entry at a time");
    assert!(found * 8 > young * 7, "{found} of {young} pages in use were found around another");
    let (_, found) = counts(ReclaimOrder::SmallMain);
    assert_eq!(found, 0);
}

/// The access of the fault that brought a page is no use: a page that is stored into once is tried once, and goes. The pages that came
/// before the first reclaim are looked at once more.
#[test]
fn a_page_that_was_used_once_is_tried_once() {
    let frames = 4 * FRAMES;
    let engine = Engine::new(Soft::new(frames).unwrap(), Limits::default()).unwrap();
    let places = 8 * frames;
    engine.add_swap(Arc::new(CompressedMemory::new(places, usize::MAX).unwrap())).unwrap();
    let space: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine).unwrap();
    space.map(MapRequest::anonymous(places * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..places).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let statistics = engine.statistics();
    let [young, reclaimed] =
        [Counter::PassedYoung, Counter::Reclaimed].map(|counter| statistics.get(counter));
    assert!(reclaimed > 6 * frames, "{reclaimed} of {places} pages were taken");
    assert!(young * 4 < reclaimed, "{young} tries found a page in use, and {reclaimed} took one");
}

/// A page that more processes map than one search tries is found in all of them: by this search and by later ones, which pass over the
/// entries that are taken.
#[test]
fn a_page_that_1200_processes_share_goes_to_swap() {
    let limits = Limits { shared_entries: u64::MAX, ..Limits::default() };
    let engine = Engine::new(Soft::new(64).unwrap(), limits).unwrap();
    engine.add_swap(Arc::new(CompressedMemory::new(64, usize::MAX).unwrap())).unwrap();
    let parent: AddressSpace<Soft, Faultless> = AddressSpace::new(&engine).unwrap();
    parent.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    parent.store_u64(at(0), 7).unwrap();
    let children: Vec<_> = (0..1200).map(|_| parent.fork().unwrap()).collect();
    children.iter().for_each(|child| assert_eq!(child.load_u64(at(0)), Ok(7)));
    for _ in 0..100 {
        engine.reclaim(1);
    }
    assert_eq!(engine.frame_usage().used, 1, "the page stays in memory");
    children.iter().for_each(|child| assert_eq!(child.load_u64(at(0)), Ok(7)));
}
