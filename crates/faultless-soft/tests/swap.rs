//! Anonymous memory that is larger than the machine: pages go to slots and come back, with the bytes that were stored.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{AddressSpace, Engine, Limits, MapRequest, Placement, RemapRequest};
use faultless_soft::{Cpu, Soft};
use std::collections::HashMap;
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// The frames of the machine, and the pages of a space: eight times as many.
const FRAMES: u64 = 64;
const PAGES: u64 = 512;

fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(8192, 8192 * PAGE_SIZE as usize).unwrap())
}

/// A real file, which is gone when it is closed.
fn file() -> Arc<dyn SwapDevice> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192 * PAGE_SIZE).unwrap();
    Arc::new(StoreDevice::new(FileStore::from_file(file).unwrap()).unwrap())
}

fn engine(device: Arc<dyn SwapDevice>, limits: Limits) -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap();
    engine.add_swap(device).unwrap();
    engine
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    space
}

/// Numbers in no order, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn why(engine: &Engine<Soft>) -> String {
    let all: Vec<_> = engine
        .statistics()
        .iter()
        .filter(|(_, n)| *n != 0)
        .map(|(c, n)| format!("{} {n}", c.name()))
        .collect();
    format!("{:?} {:?} {}", engine.frame_usage(), engine.swap_usage(), all.join(", "))
}

/// Checks that nothing is left: no frame but the page of zeros, and no slot. Reads ahead may still be under way.
fn end(engine: &Engine<Soft>) {
    engine.flush();
    for _ in 0..10_000 {
        if engine.frame_usage().used > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
}

/// Stores and loads in random pages, and compares with a model of the memory.
fn random_accesses(space: &Space, model: &mut HashMap<u64, u64>, numbers: &mut Numbers, count: u32) {
    for _ in 0..count {
        let (page, word) = (numbers.next(PAGES), numbers.next(512));
        let place = page * 512 + word;
        let address = VirtAddr::new(at(page).get() + word * 8);
        if numbers.next(2) == 0 {
            let value = numbers.next(u64::MAX);
            space.store_u64(address, value).unwrap();
            model.insert(place, value);
        } else {
            let expected = model.get(&place).copied().unwrap_or(0);
            assert_eq!(space.load_u64(address).unwrap(), expected, "page {page}, word {word}");
        }
    }
}

#[test]
fn a_space_larger_than_memory_keeps_its_bytes() {
    for device in [compressed(), file()] {
        let engine = engine(device, Limits::default());
        let space = space(&engine);
        let (mut model, mut numbers) = (HashMap::new(), Numbers(7));
        random_accesses(&space, &mut model, &mut numbers, 20_000);
        assert!(engine.swap_usage().slots > 0, "the test shows something only if pages are swapped");
        space.audit().unwrap();
        for (place, value) in &model {
            let address = VirtAddr::new(at(place / 512).get() + place % 512 * 8);
            assert_eq!(space.load_u64(address).unwrap(), *value);
        }
        space.exit();
        drop(space);
        end(&engine);
    }
}

/// A page that is only loaded keeps its slot, also if reclaim looks at it while it is in use.
#[test]
fn a_page_that_is_not_stored_into_is_written_once() {
    let engine = engine(compressed(), Limits::default());
    let space = space(&engine);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let mut numbers = Numbers(5);
    for _ in 0..4_000 {
        let page = numbers.next(PAGES);
        assert_eq!(space.load_u64(at(page)).unwrap(), page + 1);
    }
    let [reads, writes, young] = [Counter::SwapIns, Counter::SwapOuts, Counter::PassedYoung]
        .map(|counter| engine.statistics().get(counter));
    assert!(writes <= PAGES && reads > 4 * writes && young > 0, "{}", why(&engine));
    drop(space);
    end(&engine);
}

/// The child has what the parent had, wherever the pages are, and each has its own from then on. With shared leaf tables, and
/// with copied entries.
#[test]
fn fork_with_pages_in_slots() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
        let (mut numbers, mut model) = (Numbers(11), HashMap::new());
        let parent = space(&engine);
        random_accesses(&parent, &mut model, &mut numbers, 2_000);
        let mut family = vec![(parent, model)];
        for round in 0..12 {
            let oldest = numbers.next(family.len() as u64) as usize;
            let (child, model) = (family[oldest].0.fork().unwrap(), family[oldest].1.clone());
            family.push((child, model));
            for (space, model) in &mut family {
                random_accesses(space, model, &mut numbers, 300);
                space.audit().unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            if family.len() > 4 {
                family.remove(numbers.next(4) as usize).0.exit();
            }
        }
        drop(family);
        end(&engine);
    }
}

/// munmap, mprotect, mremap and DONTNEED of pages in slots.
#[test]
fn calls_on_pages_in_slots() {
    let engine = engine(file(), Limits::default());
    let space = space(&engine);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    let slots = engine.swap_usage().slots;
    assert!(slots >= PAGES - FRAMES, "{slots} slots");
    space.unmap(at(0), 64 * PAGE_SIZE).unwrap();
    space.protect(at(64), 64 * PAGE_SIZE, Protection::READ).unwrap();
    assert!(space.store_u64(at(64), 0).is_err());
    space.remap(RemapRequest::to(at(128), 64 * PAGE_SIZE, at(4096))).unwrap();
    space.discard(at(192), 64 * PAGE_SIZE).unwrap();
    space.audit().unwrap();
    for page in 64..PAGES {
        let (place, expected) = match page {
            128..192 => (4096 + page - 128, page + 1),
            192..256 => (page, 0),
            _ => (page, page + 1),
        };
        assert_eq!(space.load_u64(at(place)).unwrap(), expected, "page {page}");
    }
    space.protect(at(64), 64 * PAGE_SIZE, Protection::READ | Protection::WRITE).unwrap();
    space.store_u64(at(64), 5).unwrap();
    assert_eq!(space.load_u64(at(64)).unwrap(), 5);
    drop(space);
    end(&engine);
}

/// Threads store into pages of their own, while a child after the other is forked, checked and ended.
#[test]
fn threads_beside_forks() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(compressed(), Limits { shared_entries, ..Limits::default() });
        let space = space(&engine);
        (0..PAGES).for_each(|page| space.store_u64(at(page), 0).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let space = &space;
                scope.spawn(move || {
                    let mut numbers = Numbers(thread + 1);
                    let mut stamps = vec![0; (PAGES / 4) as usize];
                    for round in 1..4_000 {
                        let mine = numbers.next(PAGES / 4);
                        let page = mine * 4 + thread;
                        let seen = space
                            .load_u64(at(page))
                            .unwrap_or_else(|e| panic!("{e} {}", why(space.engine())));
                        assert_eq!(seen, stamps[mine as usize], "a store to page {page} was lost");
                        stamps[mine as usize] = round;
                        space.store_u64(at(page), round).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                let mut numbers = Numbers(99);
                for _ in 0..60 {
                    let child = space.fork().unwrap();
                    let seen: Vec<_> = (0..64).map(|_| numbers.next(PAGES)).collect();
                    let before: Vec<_> = seen.iter().map(|page| child.load_u64(at(*page)).unwrap()).collect();
                    let after: Vec<_> = seen.iter().map(|page| child.load_u64(at(*page)).unwrap()).collect();
                    assert_eq!(before, after, "invariant 7: a child's page changed");
                    child.exit();
                }
            });
        });
        space.audit().unwrap();
        drop(space);
        end(&engine);
    }
}
