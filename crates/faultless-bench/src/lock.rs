//! The lock by which page work excludes range work: a shared word, a slot of the thread's own, or a bit in the page's
//! entry.

use crate::case::{Case, Entrant, Loop, Work};
use crate::guard::{Guard, Membarrier, Named};
use crate::lap::Lap;
use crossbeam_utils::CachePadded;
use faultless::address::PageNumber;
use faultless::host::{Entry, FenceBarrier, PageTable};
use faultless::sync::{Section, Sections, full_fence};
use faultless_lab::trouble::Trouble;
use faultless_soft::{Leaf, RadixTable};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub const LOCK_WORD: Case = Case {
    name: "lock-word",
    about: "take for reading and release; the threads share the lock, except that each has its own slot or bit",
    sizes: None,
    slices: 1,
    bars: &[],
    set_up: |_| Ok(lock_words()),
};

pub const PAGE_BIT: Case = Case {
    name: "page-bit",
    about: "enter a read section, find the entry of a page, set its bit, fence, check that its table is reachable, clear the bit, leave",
    sizes: None,
    slices: 1,
    bars: &[],
    set_up: |_| page_bits(),
};

/// The pages that a thread goes through, one after the other: those of a leaf table.
const PAGES: u64 = RadixTable::LEAF_PAGES;

fn page_bits() -> Result<Vec<Entrant>, Trouble> {
    let mut all = Vec::new();
    macro_rules! enter {
        ($($barrier:ty: $apart:literal, $beside:literal;)*) => {$(
            all.extend(Entrant::with_threads($apart, &[1, 2], page_bit::<$barrier>(PAGES)?));
            all.extend(Entrant::with_threads($beside, &[2], page_bit::<$barrier>(1)?));
        )*};
    }
    enter! {
        FenceBarrier: "faultless (fence)", "faultless (fence), neighbours";
        Membarrier: "faultless (membarrier)", "faultless (membarrier), neighbours";
    }
    Ok(all)
}

/// Makes the part of page work without the lookup of the VMA and the installation. The threads' first pages are `apart`
/// pages from each other.
fn page_bit<B: Named>(apart: u64) -> Result<Result<Arc<dyn Work>, String>, Trouble> {
    let table = RadixTable::new(Arc::new(Sections::new())).map_err(no_memory)?;
    let guard = match Guard::<B>::new() {
        Ok(guard) => guard,
        Err(reason) => return Ok(Err(reason)),
    };
    for thread in 0..2 {
        table.make_leaf(&guard.enter(), page_of(thread, 0, apart)).map_err(no_memory)?;
    }
    let work = move |me: usize, lap: &mut Lap| {
        let mut number = 0;
        lap.repeat(64, 1, || {
            number += 1;
            let page = page_of(me as u64, number, apart);
            let section = guard.enter();
            announce(&table, &section, page)
        })
    };
    Ok(Ok(Arc::new(Loop(work))))
}

/// Returns the `number`-th page of a thread: in a leaf table of its own, or every other page of a shared one.
fn page_of(thread: u64, number: u64, apart: u64) -> PageNumber {
    PageNumber::new(match apart {
        1 => (2 * number + thread) % PAGES,
        _ => thread * apart + number % PAGES,
    })
}

#[inline]
fn announce(table: &RadixTable, section: &Section<'_>, page: PageNumber) -> Result<(), Trouble> {
    let leaf = table.leaf(section, page).ok_or_else(|| taken(page))?;
    let entry = table.load(leaf, page);
    if entry.has(Entry::ANNOUNCED) || !table.try_announce(leaf, page, entry) {
        return Err(taken(page));
    }
    full_fence();
    let hangs = table.hangs(leaf);
    let_go(table, leaf, page);
    if hangs { Ok(()) } else { Err(taken(page)) }
}

/// Ends the announcement of this thread.
#[inline]
#[allow(unsafe_code)]
fn let_go(table: &RadixTable, leaf: Leaf<'_>, page: PageNumber) {
    // SAFETY: the caller has just announced the entry.
    unsafe { table.let_go(leaf, page) }
}

#[cold]
fn taken(page: PageNumber) -> Trouble {
    Trouble::Wrong(format!("another thread has announced {page:?}, or its leaf table is missing"))
}

fn no_memory(error: faultless::host::OutOfMemory) -> Trouble {
    Trouble::Input(error.to_string())
}

fn lock_words() -> Vec<Entrant> {
    let mut all: Vec<Entrant> = Vec::new();
    let mut enter = |name: &str, work| all.extend(Entrant::with_threads(name, &[1, 2], work));
    let std = CachePadded::new(std::sync::RwLock::new(1));
    enter(
        "std RwLock",
        looped(move || {
            black_box(*std.read().expect("no thread panics with this lock"));
        }),
    );
    let parking_lot = CachePadded::new(parking_lot::RwLock::new(1));
    enter(
        "parking_lot RwLock",
        looped(move || {
            black_box(*parking_lot.read());
        }),
    );
    let count = CachePadded::new(Count(AtomicU32::new(1)));
    enter(
        "count as vm_refcnt",
        looped(move || {
            assert!(black_box(count.try_get()), "the count shows a writer, and there is none");
            count.put();
        }),
    );
    enter("entry's bit, neighbours", entry_bit());
    enter("own slot (fence)", slot::<FenceBarrier>());
    enter("own slot (membarrier)", slot::<Membarrier>());
    all
}

fn looped(work: impl Fn() + Send + Sync + 'static) -> Result<Arc<dyn Work>, String> {
    Ok(Arc::new(Loop(move |_me, lap: &mut Lap| {
        lap.repeat(256, 1, || {
            work();
            Ok(())
        })
    })))
}

fn slot<B: Named>() -> Result<Arc<dyn Work>, String> {
    let guard = Guard::<B>::new()?;
    looped(move || drop(black_box(guard.enter())))
}

/// A count of readers, as in a VMA of Linux from 6.15 on. Zero means detached, a high bit means a writer.
struct Count(AtomicU32);

impl Count {
    const WRITER: u32 = 1 << 30;

    #[inline]
    fn try_get(&self) -> bool {
        let mut now = self.0.load(Ordering::Relaxed);
        while now != 0 && now < Self::WRITER {
            match self.0.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    #[inline]
    fn put(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Makes the loop in which each thread sets the bit of its own entry by compare-and-swap and clears it by a store. The
/// entries are in one cache line.
fn entry_bit() -> Result<Arc<dyn Work>, String> {
    let sections = Arc::new(Sections::new());
    let table = RadixTable::new(sections).map_err(|error| error.to_string())?;
    let guard = Guard::<FenceBarrier>::new()?;
    table.make_leaf(&guard.enter(), PageNumber::new(0)).map_err(|error| error.to_string())?;
    let work = move |me: usize, lap: &mut Lap| {
        let page = PageNumber::new(me as u64);
        // One section for the whole loop: entering a section is a case of its own.
        let section = guard.enter();
        let leaf = table.leaf(&section, page).ok_or_else(|| taken(page))?;
        lap.repeat(256, 1, || {
            let entry = table.load(leaf, page);
            if !table.try_announce(leaf, page, entry) {
                return Err(taken(page));
            }
            let_go(&table, leaf, page);
            Ok(())
        })
    };
    Ok(Arc::new(Loop(work)))
}
