//! Policies on traces, without an engine, and queues with many threads.

mod progress;

use super::ageing::{BATCH, PASSES};
use super::generations::Generations;
use super::groups::{Class, PageKind, Queues, Victims, Wanted, gather};
use super::policy::{ReclaimPolicy, Report, Shadow};
use super::queue::{Claimed, Distance, Folios, Gathered, Queue};
use super::small_main::SmallMain;
use crate::frame::{Folio, Reference};
use crate::host::{Frame, GroupId};
use crate::sync::{Sections, SlotIndex};
use crate::tables::Home;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

const ROOT: Wanted = Wanted::all_of(GroupId::ROOT);
const ANONYMOUS: Class = Class { group: GroupId::ROOT, kind: PageKind::Anonymous };

impl Folios for [Folio] {
    fn folio(&self, frame: Frame) -> &Folio {
        &self[usize::try_from(frame.get()).unwrap()]
    }
}

/// Folios by reference, as the functions take them.
struct Frames(Vec<Folio>);

impl Folios for Frames {
    fn folio(&self, frame: Frame) -> &Folio {
        self.0.as_slice().folio(frame)
    }
}

impl Frames {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| Folio::new()).collect())
    }
}

fn frame(number: usize) -> Frame {
    Frame::new(number as u64).unwrap()
}

fn slot(index: u32) -> SlotIndex {
    SlotIndex::new(index).unwrap()
}

/// Pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 up to 1, without 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns the next frames, as the engine does.
fn next_victims<P: ReclaimPolicy>(
    queues: &RefCell<Queues<P>>,
    frames: &Frames,
    sections: &Sections,
    batch: &mut [Frame],
) -> Victims {
    let next = |has_gathered, batch: &mut [Frame]| {
        queues.borrow_mut().next_victims(frames, sections, ROOT, has_gathered, batch)
    };
    next(false, batch).unwrap_or_else(|gathering| {
        gather(frames, sections, gathering, || queues.borrow_mut());
        next(true, batch).unwrap()
    })
}

/// A cache of pages for a trace.
trait Cache {
    /// Accesses `page`. Returns whether it was in memory.
    fn access(&mut self, page: u64) -> bool;

    fn hits(&mut self, trace: impl Iterator<Item = u64>) -> (u64, u64) {
        trace.fold((0, 0), |(hits, all), page| (hits + u64::from(self.access(page)), all + 1))
    }
}

/// A machine with accessed bits, whose reclaim is the policy's. As on real machines, the first touch sets the accessed bit.
struct Machine<P> {
    frames: Frames,
    sections: Sections,
    ageing: RefCell<Queues<P>>,
    /// The page in each frame, and its accessed bit.
    pages: Vec<Option<(u64, bool)>>,
    places: HashMap<u64, usize>,
    shadows: HashMap<u64, Shadow>,
    free: Vec<usize>,
    evictions: u64,
}

impl<P: ReclaimPolicy> Machine<P> {
    fn new(frames: usize) -> Self {
        Self {
            frames: Frames::new(frames),
            sections: Sections::new(),
            ageing: RefCell::default(),
            pages: vec![None; frames],
            places: HashMap::new(),
            shadows: HashMap::new(),
            free: (0..frames).rev().collect(),
            evictions: 0,
        }
    }

    fn evict(&mut self, number: usize) {
        let (page, _) = self.pages[number].take().unwrap();
        assert!(self.frames.0[number].put(Reference::Mapping));
        self.places.remove(&page);
        self.shadows.insert(page, Shadow::new(self.evictions));
        self.evictions += 1;
        self.free.push(number);
        self.ageing.borrow_mut().report(&self.frames, ANONYMOUS, frame(number), Report::Freed);
    }

    fn reclaim(&mut self) {
        let mut batch = [frame(0); BATCH];
        let Victims { count, takes_young, .. } =
            next_victims(&self.ageing, &self.frames, &self.sections, &mut batch);
        assert_ne!(count, 0, "all frames are in use, and none is in a queue");
        for victim in &batch[..count] {
            let number = usize::try_from(victim.get()).unwrap();
            let (_, accessed) = self.pages[number].as_mut().expect("a free frame is offered");
            if std::mem::take(accessed) && !takes_young {
                self.ageing.borrow_mut().report(&self.frames, ANONYMOUS, *victim, Report::Young);
            } else {
                self.evict(number);
            }
        }
    }
}

impl<P: ReclaimPolicy> Cache for Machine<P> {
    fn access(&mut self, page: u64) -> bool {
        if let Some(number) = self.places.get(&page) {
            self.pages[*number].as_mut().unwrap().1 = true;
            return true;
        }
        let number = loop {
            match self.free.pop() {
                Some(number) => break number,
                None => self.reclaim(),
            }
        };
        let distance = self.shadows.remove(&page).map(|shadow| Distance::of(self.evictions - shadow.get()));
        let folio = &self.frames.0[number];
        folio.begin_anonymous(Home::NONE);
        let arrivals = self.sections.arrivals(slot(0));
        arrivals.push(folio, frame(number), distance.unwrap_or(Distance::NEW));
        self.pages[number] = Some((page, true));
        self.places.insert(page, number);
        false
    }
}

struct Fifo(usize, VecDeque<u64>, HashSet<u64>);

impl Cache for Fifo {
    fn access(&mut self, page: u64) -> bool {
        if !self.2.insert(page) {
            return true;
        }
        if self.2.len() > self.0 {
            let oldest = self.1.pop_front().unwrap();
            self.2.remove(&oldest);
        }
        self.1.push_back(page);
        false
    }
}

/// Exact LRU: the pages by the time of the last access.
struct Lru(usize, BTreeMap<u64, u64>, HashMap<u64, u64>, u64);

impl Cache for Lru {
    fn access(&mut self, page: u64) -> bool {
        self.3 += 1;
        let before = self.2.insert(page, self.3);
        if let Some(before) = before {
            self.1.remove(&before);
        } else if self.2.len() > self.0 {
            let (_, oldest) = self.1.pop_first().unwrap();
            self.2.remove(&oldest);
        }
        self.1.insert(self.3, page);
        before.is_some()
    }
}

fn fifo(frames: usize) -> Fifo {
    Fifo(frames, VecDeque::new(), HashSet::new())
}

fn lru(frames: usize) -> Lru {
    Lru(frames, BTreeMap::new(), HashMap::new(), 0)
}

/// Accesses 600 pages round and round, and after each of them a page that is accessed once. Returns the part of hits on the 600
/// pages, after ten rounds.
fn hits_on_a_loop_beside_a_scan(cache: &mut impl Cache) -> f64 {
    const LOOP: u64 = 600;
    let (mut hits, mut all) = (0.0, 0.0);
    for step in 0..60 * LOOP {
        let is_hit = cache.access(step % LOOP);
        if step >= 10 * LOOP {
            hits += f64::from(u8::from(is_hit));
            all += 1.0;
        }
        assert!(!cache.access(LOOP + step));
    }
    hits / all
}

#[test]
fn a_scan_does_not_displace_a_loop_that_fits() {
    let ours = hits_on_a_loop_beside_a_scan(&mut Machine::<SmallMain>::new(1000));
    let plain = hits_on_a_loop_beside_a_scan(&mut fifo(1000));
    assert!(ours >= 0.95, "{ours:.3} of the loop's accesses are hits");
    let generations = hits_on_a_loop_beside_a_scan(&mut Machine::<Generations>::new(1000));
    std::println!("hits: small_main {ours:.3}, generations {generations:.3}, FIFO {plain:.3}");
    assert!(plain < 0.9, "a plain FIFO has {plain:.3}: the trace shows nothing");
}

/// Returns a trace of accesses by Zipf's law.
fn zipf(seed: u64, pages: usize, exponent: f64, length: usize) -> impl Iterator<Item = u64> {
    let mut sum = 0.0;
    let weights = (1..=pages).map(|rank| (rank as f64).powf(-exponent));
    let sums: Vec<f64> = weights.map(|weight| (sum += weight, sum).1).collect();
    let mut random = Random(seed);
    (0..length).map(move |_| {
        let wanted = random.fraction() * sum;
        // Neighbours in rank are not neighbours in memory; the policies do not care.
        sums.partition_point(|sum| *sum < wanted) as u64
    })
}

fn misses_of_zipf(exponent: f64, cache: &mut impl Cache) -> f64 {
    let (hits, all) = cache.hits(zipf(7, 20_000, exponent, 400_000));
    1.0 - hits as f64 / all as f64
}

fn compare_on_zipf(exponent: f64) {
    let ours = misses_of_zipf(exponent, &mut Machine::<SmallMain>::new(2000));
    let generations = misses_of_zipf(exponent, &mut Machine::<Generations>::new(2000));
    let (fifo, lru) = (misses_of_zipf(exponent, &mut fifo(2000)), misses_of_zipf(exponent, &mut lru(2000)));
    let figures =
        format!("misses: small_main {ours:.4}, generations {generations:.4}, LRU {lru:.4}, FIFO {fifo:.4}");
    std::println!("exponent {exponent}: {figures}");
    assert!(ours <= lru * 1.02 && ours <= fifo, "{figures}");
    // It sees one bit a page where LRU sees the order of accesses.
    assert!(generations <= fifo, "{figures}");
}

#[test]
fn misses_are_not_more_than_those_of_lru_on_zipf() {
    [0.7, 0.9, 1.1].into_iter().for_each(compare_on_zipf);
}

/// A page whose accessed bit is set at each look. It is offered with the demand to take it within PASSES + 1 passes.
fn pages_that_are_always_young_are_demanded<P: ReclaimPolicy>(pages: usize) {
    let (frames, sections, ageing) = (Frames::new(pages), Sections::new(), RefCell::<Queues<P>>::default());
    for number in 0..pages {
        frames.0[number].begin_anonymous(Home::NONE);
        sections.arrivals(slot(0)).push(&frames.0[number], frame(number), Distance::NEW);
    }
    let (mut batch, mut offers) = ([frame(0); BATCH], 0);
    let demanded = loop {
        let Victims { count, takes_young, .. } = next_victims(&ageing, &frames, &sections, &mut batch);
        assert_ne!(count, 0);
        if takes_young {
            break batch[count - 1];
        }
        offers += count;
        assert!(offers <= (PASSES as usize + 1) * pages + BATCH, "not demanded after {offers} offers");
        batch[..count]
            .iter()
            .for_each(|frame| ageing.borrow_mut().report(&frames, ANONYMOUS, *frame, Report::Young));
    };
    ageing.borrow_mut().report(&frames, ANONYMOUS, demanded, Report::Taken);
    let victims = next_victims(&ageing, &frames, &sections, &mut batch);
    assert!(!victims.takes_young, "progress ends the demand");
}

#[test]
fn a_page_that_is_always_young_is_demanded_in_the_end() {
    [1, 3, 64, 1000].into_iter().for_each(pages_that_are_always_young_are_demanded::<SmallMain>);
    [1, 3, 64, 1000].into_iter().for_each(pages_that_are_always_young_are_demanded::<Generations>);
}

/// Some pages cannot be taken, as those that another thread keeps. They do not hide the others. The first `used` pages are in use at first, so
/// the policy takes them for better ones. `is_busy`: these are the ones that cannot be taken.
fn busy_pages_hide_no_other<P: ReclaimPolicy>(is_busy: bool) {
    for (used, new) in [(1, 3), (3, 1), (11, 1), (10, 100), (100, 10), (100, 1)] {
        let (frames, sections) = (Frames::new(used + new), Sections::new());
        let ageing = RefCell::<Queues<P>>::default();
        let arrive = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                frames.0[number].begin_anonymous(Home::NONE);
                sections.arrivals(slot(0)).push(&frames.0[number], frame(number), Distance::NEW);
            }
        };
        let next = |batch: &mut [Frame], report| {
            let Victims { count, .. } = next_victims(&ageing, &frames, &sections, batch);
            let mut ageing = ageing.borrow_mut();
            batch[..count].iter().for_each(|frame| ageing.report(&frames, ANONYMOUS, *frame, report));
            count
        };
        arrive(0..used);
        (0..8).for_each(|_| assert_ne!(next(&mut [frame(0); BATCH], Report::Young), 0));
        arrive(used..used + new);
        let wanted = if is_busy { used..used + new } else { 0..used };
        let (mut offers, mut seen, mut one) = (0, HashSet::new(), [frame(0)]);
        while seen.len() < wanted.len() {
            assert_eq!(next(&mut one, Report::Busy), 1);
            let number = usize::try_from(one[0].get()).unwrap();
            seen.extend(wanted.contains(&number).then_some(number));
            offers += 1;
            // Each page has some uses, and arrivals are gathered after a batch's looks.
            let most = 8 * (used + new) + 2 * BATCH;
            assert!(offers <= most, "{} of {} pages are hidden", wanted.len() - seen.len(), wanted.len());
        }
    }
}

#[test]
fn pages_that_cannot_be_taken_hide_no_others() {
    [true, false].into_iter().for_each(busy_pages_hide_no_other::<SmallMain>);
    [true, false].into_iter().for_each(busy_pages_hide_no_other::<Generations>);
}

/// A batch that has all pages is not a pass without progress: the pages on trial count as pages.
#[test]
fn the_first_batch_of_a_small_memory_demands_no_young_page() {
    for pages in [1, 3, 16, 63] {
        let (frames, sections) = (Frames::new(pages), Sections::new());
        let ageing = RefCell::<Queues<SmallMain>>::default();
        for number in 0..pages {
            frames.0[number].begin_anonymous(Home::NONE);
            sections.arrivals(slot(0)).push(&frames.0[number], frame(number), Distance::NEW);
        }
        let mut batch = [frame(0); BATCH];
        let victims = next_victims(&ageing, &frames, &sections, &mut batch);
        assert_eq!((victims.count, victims.takes_young), (pages, false));
    }
}

/// While other pages can be taken, no page that is used all the time is taken, once the policy knows it.
#[test]
fn a_page_in_use_is_not_demanded_while_others_can_be_taken() {
    let mut machine = Machine::<SmallMain>::new(200);
    for step in 0..5000 {
        for page in 0..50 {
            let is_hit = machine.access(page);
            assert!(is_hit || step < 1000, "step {step}: page {page} was taken");
        }
        machine.access(1000 + step);
    }
}

#[test]
fn a_distance_is_rounded_down_by_little() {
    assert_eq!(Distance::NEW.evictions(), None);
    assert_eq!(Distance::of(0).evictions(), Some(1));
    (1..1 << 13).for_each(|evictions| assert_eq!(Distance::of(evictions).evictions(), Some(evictions)));
    for evictions in (13..64).flat_map(|bit| [1 << bit, (1 << bit) | 1234, u64::MAX >> (63 - bit)]) {
        let rounded = Distance::of(evictions).evictions().unwrap();
        assert!(rounded <= evictions && evictions - rounded <= evictions >> 13, "{evictions} {rounded}");
    }
}

/// The order of arrivals of one thread stays, a frame is in one place, and a frame that was freed is dropped.
#[test]
fn a_frame_is_in_one_queue_and_in_order() {
    let (frames, sections) = (Frames::new(5), Sections::new());
    let begin = |number: usize, of| {
        frames.0[number].begin_anonymous(Home::NONE);
        let distance = if number == 3 { Distance::of(9) } else { Distance::NEW };
        sections.arrivals(slot(of)).push(&frames.0[number], frame(number), distance);
    };
    [2, 0, 3].into_iter().for_each(|number| begin(number, 0));
    assert!(frames.0[0].put(Reference::Mapping) && frames.0[2].put(Reference::Mapping));
    begin(2, 1);
    let mut queue = Queue::default();
    let mut gather = |of| {
        let mut gathered = Gathered::from(sections.arrivals(slot(of)), &frames);
        let mut distances = Vec::new();
        while let Some((frame, distance)) = gathered.next(&frames) {
            distances.push(distance.evictions());
            queue.push(&frames, frame);
        }
        distances
    };
    assert_eq!(gather(0), [None, None, Some(9)]);
    assert_eq!(gather(1), [], "frame 2 had its place");
    begin(1, 1);
    assert_eq!(gather(1), [None]);
    assert!(Claimed::claim(&frames, frame(3)).is_none(), "it is in the queue");
    let mut take = || queue.take(&frames, 3).map(|taken| (taken.frame.get(), taken.uses));
    assert_eq!(take(), Some((2, Some(0))));
    assert_eq!(take(), Some((0, None)), "free");
    assert_eq!(
        Claimed::claim(&frames, frame(2)).map(|(frame, origin)| (frame.frame().get(), origin)),
        Some((2, 3))
    );
    assert_eq!((take(), take(), take()), (Some((3, Some(0))), Some((1, Some(0))), None));
    assert_eq!(queue.length(), 0);
}

/// Frames end and begin in many threads while another thread takes them off and puts them back. In the end each frame in use is
/// in the queues once.
fn many_threads_lose_nothing<P: ReclaimPolicy>() {
    const THREADS: usize = 4;
    const EACH: usize = 100;
    let (frames, sections) = (Frames::new(THREADS * EACH), Sections::new());
    let (ageing, running) = (RefCell::<Queues<P>>::default(), AtomicUsize::new(THREADS));
    let mut batch = [frame(0); BATCH];
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (frames, sections, running) = (&frames, &sections, &running);
            scope.spawn(move || {
                let mut random = Random(thread as u64);
                for _ in 0..50_000 {
                    let number = thread * EACH + random.next() as usize % EACH;
                    let folio = &frames.0[number];
                    if folio.is_free() {
                        folio.begin_anonymous(Home::NONE);
                        sections.arrivals(slot(thread as u32)).push(folio, frame(number), Distance::NEW);
                    } else {
                        assert!(folio.put(Reference::Mapping));
                    }
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let reports = [Report::Busy, Report::Young, Report::Taken, Report::Shared];
        for report in reports.into_iter().cycle() {
            if running.load(Ordering::Relaxed) == 0 {
                break;
            }
            let Victims { count, .. } = next_victims(&ageing, &frames, &sections, &mut batch);
            batch[..count]
                .iter()
                .for_each(|frame| ageing.borrow_mut().report(&frames, ANONYMOUS, *frame, report));
        }
    });
    let mut found = HashSet::new();
    loop {
        let Victims { count, .. } = next_victims(&ageing, &frames, &sections, &mut batch);
        if count == 0 {
            break;
        }
        batch[..count]
            .iter()
            .for_each(|frame| assert!(found.insert(frame.get()), "{frame:?} is there twice"));
    }
    let in_use = (0..frames.0.len()).filter(|number| !frames.0[*number].is_free()).count();
    assert!(in_use > 0);
    assert_eq!(found.len(), in_use, "a page in use is in no queue");
    assert_eq!(ageing.borrow_mut().length(), 0);
}

#[test]
fn many_threads_lose_nothing_and_double_nothing() {
    many_threads_lose_nothing::<SmallMain>();
    many_threads_lose_nothing::<Generations>();
}

/// The slot of a thread that has ended leaves its arrivals.
#[test]
fn arrivals_of_a_thread_that_has_ended_are_gathered() {
    let (frames, sections) = (Frames::new(1), Sections::new());
    frames.0[0].begin_anonymous(Home::NONE);
    sections.arrivals(slot(5)).push(&frames.0[0], frame(0), Distance::NEW);
    // SAFETY: no other thread has these sections, and there is no section.
    unsafe { sections.unlist(slot(5)) };
    let (ageing, mut batch) = (RefCell::<Queues<SmallMain>>::default(), [frame(7); BATCH]);
    assert_eq!(next_victims(&ageing, &frames, &sections, &mut batch).count, 1);
    assert_eq!(batch[0], frame(0));
}

#[test]
fn uses_count_to_three_and_pins_are_none() {
    let folio = Folio::new();
    folio.add_use();
    assert_eq!((folio.uses(), folio.is_free()), (None, true));
    folio.begin_anonymous(Home::NONE);
    assert_eq!(folio.try_get(Reference::Pin), Ok(()));
    assert_eq!(folio.uses(), Some(0));
    let count = |_| (folio.add_use(), folio.uses().unwrap()).1;
    assert_eq!([0; 5].map(count), [1, 2, 3, 3, 3]);
    folio.take_use();
    assert_eq!(folio.uses(), Some(2));
    folio.forget_uses();
    folio.take_use();
    assert_eq!(folio.uses(), Some(0));
    assert!(!folio.put(Reference::Pin) && folio.put(Reference::Mapping));
    for has_store in [true, false] {
        folio.begin_reading(Home::of_file(core::ptr::NonNull::<u64>::dangling().cast(), has_store), 0, 1);
        assert_eq!((folio.uses(), folio.is_of_swap()), (Some(0), !has_store));
        assert_eq!(folio.is_of_file_in_memory(), !has_store, "such a page is taken without swap space");
        assert!(folio.cancel_reading(1));
    }
}
