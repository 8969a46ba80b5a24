//! Tables that leave their families (`AddressSpace::isolate_cowed`) beside reclaim, stores and forks, with several threads.

use crate::devices::{compressed, file};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::swap::SwapDevice;
use faultless::{AddressSpace, Advice, Engine, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Space = AddressSpace<Soft, Faultless>;

/// The leaf tables of a space, and the pages in each.
const TABLES: u64 = 3;
const EACH: u64 = 12;
const PAGES: usize = (TABLES * EACH) as usize;
/// The pages that a leaf table spans.
const SPAN: u64 = 512;
/// The threads of each space. Each has a word of its own in each page.
const THREADS: usize = 2;
/// Of three pages, the one that is stored into only before the first round. Spaces of a family have it in common until one unshares it.
const SHARED: usize = 2;
/// The spaces of a family.
const SPACES: usize = 3;

/// The words that one thread has stored, by page.
type Words = [u64; PAGES];

fn first(table: u64) -> VirtAddr {
    VirtAddr::new((1 + table) * SPAN * PAGE_SIZE)
}

fn at(page: usize, thread: usize) -> VirtAddr {
    let (table, page) = (page as u64 / EACH, page as u64 % EACH);
    VirtAddr::new(first(table).get() + page * PAGE_SIZE + 8 * (1 + thread as u64))
}

#[track_caller]
fn check(space: &Space, thread: usize, words: &Words, what: &str) {
    for (page, word) in words.iter().enumerate() {
        assert_eq!(space.load_u64(at(page, thread)), Ok(*word), "{what}: page {page}, thread {thread}");
    }
}

/// The state that the threads of one round share.
struct Round<'a> {
    engine: &'a Arc<Engine<Soft>>,
    /// The tables that have left their families.
    left: AtomicU64,
    is_over: AtomicBool,
}

/// Stores, loads, isolates, unshares and forks at random, and checks each word of `thread`.
fn work(round: &Round<'_>, space: &Space, thread: usize, words: &mut Words, seed: u64) {
    let mut numbers = Rng::with_seed(seed);
    for step in 0..300 {
        let (page, table) = (numbers.usize(..PAGES), first(numbers.u64(..TABLES)));
        match numbers.u64(..200) {
            0..90 if page % 3 != SHARED => {
                words[page] = seed * 1_000 + step + 1;
                space.store_u64(at(page, thread), words[page]).unwrap();
            }
            0..140 => assert_eq!(space.load_u64(at(page, thread)), Ok(words[page]), "page {page}"),
            140..180 => {
                let (start, length) = match numbers.bool() {
                    true => (first(0), TABLES * SPAN * PAGE_SIZE),
                    false => (table, PAGE_SIZE),
                };
                let cost = space.isolate_cowed(start, length).unwrap();
                round.left.fetch_add(cost.left, Ordering::Relaxed);
            }
            180..182 => _ = space.unshare(table, EACH * PAGE_SIZE).unwrap(),
            182..190 => space.advise(table, EACH * PAGE_SIZE, Advice::PageOut).unwrap(),
            190..195 => _ = round.engine.reclaim_for_tests(16),
            _ => {
                // The other thread stores meanwhile: only the own words are known.
                let child = space.fork().unwrap();
                check(&child, thread, words, "child");
                child.store_u64(at(page, thread), 7).unwrap();
                child.unshare(first(0), TABLES * SPAN * PAGE_SIZE).unwrap();
                let cost = child.isolate_cowed(first(0), TABLES * SPAN * PAGE_SIZE).unwrap();
                round.left.fetch_add(cost.left, Ordering::Relaxed);
                assert_eq!(child.load_u64(at(page, thread)), Ok(7));
            }
        }
    }
}

/// Each space of a family has two threads, and a further thread reclaims. After each round all words are checked, and one of the spaces is
/// the parent of the next round's.
fn family_beside_reclaim(shared_entries: u64, device: Arc<dyn SwapDevice>) {
    let limits = Limits { shared_entries, ..Limits::default() };
    // Less than the pages of the spaces, so that faults reclaim too.
    let engine = Engine::new(Soft::with_caches(96).unwrap(), limits).unwrap();
    engine.add_swap(device).unwrap();
    let mut parent = Space::new(&engine).unwrap();
    for table in 0..TABLES {
        let request = MapRequest::anonymous(EACH * PAGE_SIZE);
        parent.map(request.at(Placement::Fixed(first(table)))).unwrap();
    }
    let mut words = [[0; PAGES]; THREADS];
    for (thread, words) in words.iter_mut().enumerate() {
        for (page, word) in words.iter_mut().enumerate() {
            *word = (page * THREADS + thread + 1) as u64;
            parent.store_u64(at(page, thread), *word).unwrap();
        }
    }
    let mut left = 0;
    for number in 0..6 {
        let mut spaces = vec![parent];
        (1..SPACES).for_each(|_| spaces.push(spaces[0].fork().unwrap()));
        let mut all = [words; SPACES];
        let round = Round { engine: &engine, left: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for ((index, space), words) in spaces.iter().enumerate().zip(&mut all) {
                for (thread, words) in words.iter_mut().enumerate() {
                    let seed = ((number * SPACES + index) * THREADS + thread + 1) as u64;
                    let round = &round;
                    threads.push(scope.spawn(move || work(round, space, thread, words, seed)));
                }
            }
            scope.spawn(|| {
                while !round.is_over.load(Ordering::Relaxed) {
                    engine.reclaim_for_tests(8);
                    std::thread::yield_now();
                }
            });
            let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            round.is_over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
        left += round.left.into_inner();
        for (space, words) in spaces.iter().zip(&all) {
            words.iter().enumerate().for_each(|(thread, words)| check(space, thread, words, "round"));
            space.audit().unwrap_or_else(|error| panic!("{error}"));
        }
        // Reclaim still finds each page, by its home.
        (0..100).for_each(|_| _ = engine.reclaim_for_tests(96));
        crate::until("all pages are in slots", || {
            engine.reclaim_for_tests(96);
            engine.frame_usage().used == 1
        });
        for (space, words) in spaces.iter().zip(&all) {
            words.iter().enumerate().for_each(|(thread, words)| check(space, thread, words, "swapped"));
            space.audit().unwrap_or_else(|error| panic!("{error}"));
        }
        let next = number % SPACES;
        words = all[next];
        parent = spaces.swap_remove(next);
    }
    assert_ne!(left, 0, "no table has left its family: the test shows nothing");
    drop(parent);
    // A page that is being transferred is freed when that ends.
    crate::until("invariant 11: all frames are free", || {
        engine.flush();
        engine.frame_usage().used == 1
    });
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// With copied entries, on a device in memory and on one that writes later.
#[test]
fn tables_that_leave_their_family_beside_reclaim_keep_their_bytes() {
    [compressed(), file()].into_iter().for_each(|device| family_beside_reclaim(u64::MAX, device));
}

/// With leaf tables that fork shares.
#[test]
fn shared_tables_that_leave_their_family_beside_reclaim_keep_their_bytes() {
    [compressed(), file()].into_iter().for_each(|device| family_beside_reclaim(1, device));
}
