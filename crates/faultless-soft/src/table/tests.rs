use super::*;
use crate::alone::Entries;
use faultless::host::Frame;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

const RIGHTS: u64 = Entry::READ | Entry::WRITE;

fn table() -> (Entries<Box<RadixTable>>, Arc<Sections>) {
    let sections = Arc::new(Sections::new());
    (Entries(Box::new(RadixTable::new(Arc::clone(&sections)).unwrap())), sections)
}

fn page(number: u64) -> PageNumber {
    PageNumber::new(number)
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange::new(page(start), page(end)).unwrap()
}

fn mapping(frame: u64) -> Entry {
    Entry::mapping(Frame::new(frame).unwrap(), RIGHTS)
}

#[test]
fn leaves_are_made_once_and_cover_their_span() {
    let (table, sections) = table();
    let proof = section(&sections);
    assert_eq!((RadixTable::PAGES, RadixTable::LEAF_PAGES), (1 << 36, 512));
    assert!(table.leaf(&proof, page(5)).is_none());
    let leaf = table.make_leaf(&proof, page(5)).unwrap();
    assert!(ptr::eq(leaf.table(), table.make_leaf(&proof, page(511)).unwrap().table()));
    assert!(ptr::eq(leaf.table(), table.leaf(&proof, page(0)).unwrap().table()));
    assert!(table.leaf(&proof, page(512)).is_none());
    let last = table.make_leaf(&proof, page(RadixTable::PAGES - 1)).unwrap();
    assert!(!ptr::eq(leaf.table(), last.table()));
    table.exchange(leaf, page(5), Entry::EMPTY, mapping(1)).unwrap();
    assert_eq!(table.load(leaf, page(5)), mapping(1));
    assert_eq!(table.load(leaf, page(6)), Entry::EMPTY);
}

#[test]
fn two_makers_get_one_leaf() {
    const THREADS: usize = 4;
    let (table, sections) = table();
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for id in 0..THREADS as u64 {
            let (table, sections, start) = (&table, &sections, &start);
            scope.spawn(move || {
                start.wait();
                for n in 0..200 {
                    let proof = section(sections);
                    let at = page(n << 18 | id);
                    let leaf = table.make_leaf(&proof, at).unwrap();
                    table.exchange(leaf, at, Entry::EMPTY, mapping(id)).unwrap();
                }
            });
        }
    });
    let proof = section(&sections);
    for (n, id) in (0..200).flat_map(|n| (0..THREADS as u64).map(move |id| (n, id))) {
        let at = page(n << 18 | id);
        assert_eq!(table.load(table.leaf(&proof, at).unwrap(), at), mapping(id));
    }
}

#[test]
fn an_unhooked_leaf_hangs_no_longer() {
    let (table, sections) = table();
    let proof = section(&sections);
    let old = table.make_leaf(&proof, page(512)).unwrap();
    assert!(table.hangs(old));
    let retired = table.unhook(page(1023)).unwrap();
    assert!(!table.hangs(old));
    assert!(table.leaf(&proof, page(512)).is_none() && table.unhook(page(512)).is_none());
    let new = table.make_leaf(&proof, page(512)).unwrap();
    assert!(table.hangs(new) && !table.hangs(old));
    drop(proof);
    table.invalidate(pages(512, 1024), |_| faultless::sync::spin_loop());
    // SAFETY: unhooked, and a grace period has passed.
    unsafe { retired.free() };
    assert!(table.unhook(page(1 << 30)).is_none(), "no upper table there");
}

#[test]
fn next_leaf_skips_what_is_absent() {
    // page    0        512            2^18+512         2^36-512     2^36
    //         |  none  |  leaf |  …   |  leaf  |   …   |   leaf   |
    let (table, sections) = table();
    let proof = section(&sections);
    let (second, far, last) = (512, (1 << 18) + 512, RadixTable::PAGES - 512);
    for start in [second, far, last] {
        table.make_leaf(&proof, page(start + 7)).unwrap();
    }
    let next = |start, end| table.next_leaf(&proof, pages(start, end)).map(PageNumber::get);
    assert_eq!(next(0, RadixTable::PAGES), Some(second));
    assert_eq!(next(0, second), None);
    assert_eq!(next(0, second + 1), Some(second));
    assert_eq!(next(second + 9, second + 10), Some(second + 9));
    assert_eq!(next(second + 511, far), Some(second + 511));
    assert_eq!(next(second + 512, far), None);
    assert_eq!(next(second + 512, far + 1), Some(far));
    assert_eq!(next(far + 512, RadixTable::PAGES), Some(last));
    assert_eq!(next(RadixTable::PAGES - 1, RadixTable::PAGES), Some(RadixTable::PAGES - 1));
    // The search passes the whole upper level in a few steps.
    let start = std::time::Instant::now();
    (0..1000).for_each(|_| assert_eq!(next(far + 512, last), None));
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn an_announcement_excludes_others() {
    let (table, sections) = table();
    let proof = section(&sections);
    let at = page(3);
    let leaf = table.make_leaf(&proof, at).unwrap();
    assert!(!table.try_announce(leaf, at, mapping(1)), "the entry differs from `seen`");
    assert!(table.try_announce(leaf, at, Entry::EMPTY));
    assert!(!table.try_announce(leaf, at, Entry::EMPTY));
    let announced = Entry::EMPTY.with(Entry::ANNOUNCED);
    assert_eq!(table.exchange(leaf, at, Entry::EMPTY, mapping(1)), Err(announced));
    table.let_go(leaf, at);
    assert_eq!(table.load(leaf, at), Entry::EMPTY);
    assert_eq!(table.exchange(leaf, at, Entry::EMPTY, mapping(1)), Ok(()));
    assert_eq!(table.exchange(leaf, at, Entry::EMPTY, mapping(2)), Err(mapping(1)));
}

#[test]
fn install_keeps_what_the_hardware_said_of_the_same_frame() {
    let (table, sections) = table();
    let proof = section(&sections);
    let at = page(3);
    let leaf = table.make_leaf(&proof, at).unwrap();
    let install = |new| {
        let seen = table.load(leaf, at);
        assert!(table.try_announce(leaf, at, seen));
        table.install(leaf, at, new).unwrap()
    };
    assert_eq!(install(mapping(1)), Entry::EMPTY);
    let used = mapping(1).with(Entry::HARDWARE);
    table.set_hardware(leaf, at, mapping(1), Entry::HARDWARE).unwrap();
    assert_eq!(table.set_hardware(leaf, at, mapping(1), Entry::ACCESSED), Err(used));
    let read_only = Entry::mapping(Frame::new(1).unwrap(), Entry::READ);
    assert_eq!(install(read_only), used);
    assert_eq!(table.load(leaf, at), read_only.with(Entry::HARDWARE));
    assert_eq!(install(mapping(2)), read_only.with(Entry::HARDWARE));
    assert_eq!(table.load(leaf, at), mapping(2), "another frame keeps none of the old bits");
    assert_eq!(install(Entry::EMPTY), mapping(2));
    assert_eq!(table.load(leaf, at), Entry::EMPTY);
}

/// One thread stores in a loop while another one announces the entry: rule 9 of the protocol.
#[test]
fn no_dirty_bit_is_lost() {
    let (table, sections) = table();
    let at = page(3);
    {
        let proof = section(&sections);
        let leaf = table.make_leaf(&proof, at).unwrap();
        table.exchange(leaf, at, Entry::EMPTY, mapping(1)).unwrap();
    }
    let (stop, turns) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let proof = section(&sections);
            let leaf = table.leaf(&proof, at).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let seen = table.load(leaf, at);
                if seen.is_announced() || !table.try_announce(leaf, at, seen) {
                    continue;
                }
                if turns.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    table.let_go(leaf, at);
                } else {
                    table.install(leaf, at, mapping(1)).unwrap();
                }
            }
        });
        let proof = section(&sections);
        let leaf = table.leaf(&proof, at).unwrap();
        let (mut stores, mut lost) = (0u64, 0);
        while stores < 100_000 || turns.load(Ordering::Relaxed) < 100_000 {
            let mut seen = table.translate(leaf, at);
            while let Err(now) = table.set_hardware(leaf, at, seen, Entry::HARDWARE) {
                seen = now;
            }
            stores += 1;
            (0..stores % 64).for_each(|_| std::hint::spin_loop());
            lost += u64::from(!table.translate(leaf, at).has(Entry::HARDWARE));
            // Make the entry clean again, as range work does it.
            while table
                .exchange(leaf, at, table.load(leaf, at).without(Entry::ANNOUNCED), mapping(1))
                .is_err()
            {
                std::hint::spin_loop();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "invariant 9: a processor's dirty bit was lost");
    });
}
