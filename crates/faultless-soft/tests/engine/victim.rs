//! The space that is ended if there is no memory, and nothing can be reclaimed (`Engine::end_victims`).

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::stats::Counter;
use faultless::swap::CompressedMemory;
use faultless::{
    AddressSpace, Advice, Candidate, Engine, Largest, LimitConfig, Limits, MapRequest, MemoryLimit,
    Placement, VictimBias, VictimPolicy, VictimPolicyError,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 256;

fn engine(frames: u64) -> Arc<Engine<Soft>> {
    Engine::new(Soft::with_caches(frames).unwrap(), Limits::default()).unwrap()
}

fn group(engine: &Arc<Engine<Soft>>, pages: u64) -> MemoryLimit<Soft> {
    MemoryLimit::new(engine, LimitConfig::max(pages)).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn map(space: Space) -> Space {
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    space
}

fn space(engine: &Arc<Engine<Soft>>, limit: &MemoryLimit<Soft>) -> Space {
    map(Space::new_in(engine, limit).unwrap())
}

fn store(space: &Space, mut pages: Range<u64>) -> Result<(), AccessError> {
    pages.try_for_each(|page| space.store_u64(at(page), page + 1))
}

fn check(space: &Space, pages: Range<u64>) {
    pages.for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "page {page}"));
}

fn has_exited(space: &Space) -> bool {
    matches!(space.load_u64(at(0)), Err(AccessError::Fault(FaultError::Exited { .. })))
}

fn is_out_of_memory(result: Result<(), AccessError>) -> bool {
    matches!(result, Err(AccessError::Fault(FaultError::OutOfMemory { .. })))
}

/// Notes each victim.
#[derive(Clone, Default)]
struct Noting(Arc<Mutex<Vec<Candidate>>>);

impl VictimPolicy for Noting {
    fn score(&self, candidate: &Candidate) -> Option<i64> {
        Largest.score(candidate)
    }

    fn chosen(&self, victim: &Candidate) {
        self.0.lock().unwrap().push(*victim);
    }
}

/// The largest space of the full group is ended, and the fault that needed memory goes on. A larger space of no group is no candidate.
/// The spaces were made before the engine had a policy.
#[test]
fn the_largest_space_of_the_full_group_is_ended() {
    let (engine, policy) = (engine(1024), Noting::default());
    let limit = group(&engine, 64);
    let (large, small) = (space(&engine, &limit), space(&engine, &limit));
    engine.end_victims(Box::new(policy.clone())).unwrap();
    let outside = map(Space::new(&engine).unwrap());
    store(&outside, 0..100).unwrap();
    store(&large, 0..40).unwrap();
    store(&small, 0..60).unwrap();
    assert!(has_exited(&large) && !has_exited(&small));
    check(&small, 0..60);
    check(&outside, 0..100);
    let victims = policy.0.lock().unwrap().clone();
    let [victim] = victims[..] else { panic!("{victims:?}") };
    assert_eq!((victim.space, victim.resident, victim.swapped), (large.number(), 40, 0));
    assert_eq!((victim.limit, victim.bias), (64, VictimBias::default()));
    let usage = limit.usage();
    assert_eq!((usage.victims, usage.resident), (1, 60), "{usage:?}");
    assert!(usage.out_of_memory >= 1, "{usage:?}");
    assert_eq!(engine.statistics().get(Counter::VictimsEnded), 1);
    drop((large, small, outside));
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// If the space that needs memory is the largest, its own fault finds it ended.
#[test]
fn the_fault_of_the_victim_finds_it_ended() {
    let engine = engine(1024);
    engine.end_victims(Box::new(Largest)).unwrap();
    let limit = group(&engine, 64);
    let (greedy, other) = (space(&engine, &limit), space(&engine, &limit));
    store(&other, 0..10).unwrap();
    let found = store(&greedy, 0..PAGES);
    assert!(matches!(found, Err(AccessError::Fault(FaultError::Exited { .. }))), "{found:?}");
    assert_eq!(limit.usage().resident, 10);
    check(&other, 0..10);
}

/// A bias makes a smaller space the victim, or exempts one. A child has that of its parent.
#[test]
fn a_bias_changes_the_choice() {
    for (bias, is_small_ended) in [(500, true), (-1000, false)] {
        let engine = engine(1024);
        engine.end_victims(Box::new(Largest)).unwrap();
        let limit = group(&engine, 64);
        let (large, small) = (space(&engine, &limit), space(&engine, &limit));
        small.set_victim_bias(VictimBias::new(bias).unwrap());
        assert_eq!(small.fork().unwrap().victim_bias().get(), bias);
        store(&small, 0..20).unwrap();
        let found = store(&large, 0..60);
        assert_eq!(has_exited(&small), is_small_ended, "{bias}");
        assert_eq!(found.is_ok(), is_small_ended, "{bias}");
    }
    assert!(VictimBias::new(1001).is_none() && VictimBias::new(-1001).is_none());
}

/// If all spaces are exempt, the fault fails as without a policy.
#[test]
fn without_a_victim_a_fault_fails() {
    let engine = engine(1024);
    let limit = group(&engine, 16);
    let before = space(&engine, &limit);
    assert!(is_out_of_memory(store(&before, 0..PAGES)), "the default: nobody is ended");
    before.exit();
    engine.end_victims(Box::new(Largest)).unwrap();
    assert_eq!(engine.end_victims(Box::new(Largest)), Err(VictimPolicyError::AlreadySet));
    let exempt = space(&engine, &limit);
    exempt.set_victim_bias(VictimBias::EXEMPT);
    assert!(is_out_of_memory(store(&exempt, 0..PAGES)));
    check(&exempt, 0..8);
    assert_eq!(limit.usage().victims, 0);
}

/// A machine without frames ends the largest space of all. Pages in swap space count.
#[test]
fn a_machine_without_frames_ends_the_largest_space() {
    let engine = engine(128);
    engine.end_victims(Box::new(Largest)).unwrap();
    engine.add_swap(Arc::new(CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap())).unwrap();
    let limit = group(&engine, 1024);
    let (swapped, other) = (space(&engine, &limit), map(Space::new(&engine).unwrap()));
    // Words that differ, so that no page is a pattern.
    (0..60).for_each(|page| swapped.store_u64(VirtAddr::new(at(page).get() + 8), page + 7).unwrap());
    while swapped.usage()[0].swap < 30 * PAGE_SIZE {
        swapped.advise(at(0), 60 * PAGE_SIZE, Advice::PageOut).unwrap();
    }
    (0..110).for_each(|page| other.store_u64(VirtAddr::new(at(page).get() + 8), page + 7).unwrap());
    let needs = map(Space::new(&engine).unwrap());
    (0..100).for_each(|page| needs.store_u64(VirtAddr::new(at(page).get() + 8), page + 7).unwrap());
    assert!(has_exited(&other), "the largest by pages in memory and in swap space");
    assert!(!has_exited(&needs));
}

/// Notes whether two victims are chosen at once, and whether each is free before the next is chosen.
struct OneAtATime {
    spaces: Arc<Mutex<Vec<Space>>>,
    at_work: AtomicU64,
    last: AtomicU64,
}

impl VictimPolicy for OneAtATime {
    fn score(&self, candidate: &Candidate) -> Option<i64> {
        Largest.score(candidate)
    }

    fn chosen(&self, victim: &Candidate) {
        assert_eq!(self.at_work.fetch_add(1, Ordering::SeqCst), 0, "two victims at once");
        // Others find the group full meanwhile.
        std::thread::sleep(Duration::from_millis(5));
        let last = self.last.swap(victim.space, Ordering::SeqCst);
        let spaces = self.spaces.lock().unwrap();
        if let Some(last) = spaces.iter().find(|space| space.number() == last) {
            let pages = last.table_pages();
            assert_eq!(pages, (0, 0), "a victim is chosen, and the last one still has memory");
        }
        assert_eq!(self.at_work.fetch_sub(1, Ordering::SeqCst), 1, "two victims at once");
    }
}

/// Threads of six spaces need more than their group may have. One victim is ended at a time, and all threads come to an end: with
/// their pages, or with their space.
#[test]
fn one_victim_at_a_time() {
    let engine = engine(1024);
    let spaces = Arc::new(Mutex::new(Vec::new()));
    let policy = OneAtATime { spaces: spaces.clone(), at_work: AtomicU64::new(0), last: AtomicU64::new(0) };
    engine.end_victims(Box::new(policy)).unwrap();
    let limit = group(&engine, 64);
    let all: Vec<Space> = (0..6).map(|_| space(&engine, &limit)).collect();
    spaces.lock().unwrap().extend(all.iter().cloned());
    let is_done: Vec<bool> = std::thread::scope(|threads| {
        let workers: Vec<_> = all
            .iter()
            .map(|space| {
                threads.spawn(|| match store(space, 0..50) {
                    Ok(()) => true,
                    Err(AccessError::Fault(FaultError::Exited { .. })) => false,
                    Err(other) => panic!("{other}"),
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let usage = limit.usage();
    assert!(is_done.iter().any(|done| *done), "all were ended");
    assert!(usage.victims >= 4 && usage.victims < 6, "{usage:?}");
    for (space, _) in all.iter().zip(is_done).filter(|(space, done)| *done && !has_exited(space)) {
        check(space, 0..50);
    }
    all.iter().for_each(|space| space.audit().unwrap());
    spaces.lock().unwrap().clear();
    drop(all);
    engine.flush();
    assert_eq!((limit.usage().resident, engine.frame_usage().used), (0, 1), "invariant 11: frames are left");
}

/// A thread that comes to choose a victim when others have freed memory ends no space.
#[test]
fn no_space_is_ended_if_there_is_room_again() {
    let engine = engine(1024);
    engine.end_victims(Box::new(Largest)).unwrap();
    let limit = group(&engine, 64);
    let (large, other) = (space(&engine, &limit), space(&engine, &limit));
    store(&large, 0..40).unwrap();
    assert!(other.find_a_victim(&limit), "there is room: the caller tries again");
    assert!(!has_exited(&large));
    assert_eq!(limit.usage().victims, 0);
}

/// A policy that panics at its first choice.
#[derive(Default)]
struct Panicking(AtomicU64);

impl VictimPolicy for Panicking {
    fn score(&self, candidate: &Candidate) -> Option<i64> {
        assert_ne!(self.0.fetch_add(1, Ordering::Relaxed), 0, "the first choice");
        Largest.score(candidate)
    }
}

/// After a panic of the policy, another thread has its turn.
#[test]
fn a_policy_that_panics_leaves_the_turn_to_others() {
    let engine = engine(1024);
    engine.end_victims(Box::new(Panicking::default())).unwrap();
    let limit = group(&engine, 64);
    let (one, other) = (space(&engine, &limit), space(&engine, &limit));
    store(&one, 0..40).unwrap();
    let result = std::thread::scope(|scope| scope.spawn(|| store(&other, 0..60)).join());
    assert!(result.is_err(), "the policy was not asked");
    store(&other, 0..60).unwrap();
    assert!(has_exited(&one));
}
