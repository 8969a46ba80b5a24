//! Repeats one operation in one thread, in exactly the same way at each run. `scripts/instructions.sh` counts the
//! instructions of `measured` under callgrind. Without callgrind the program prints the time of one operation.
//!
//! `cargo run --release -p faultless-soft --example instructions -- NAME [ROUNDS]`; without a name it runs all of them.

mod no_lock;

use faultless::address::{PAGE_SIZE, PageNumber, PageRange, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::host::{
    Barrier, FrameSource, FrameUse, GroupId, Host, PageTable, Slots, StdBarrier, StdSlots,
};
use faultless::protection::{Access, Protection};
use faultless::store::Transfer;
use faultless::swap::{CompressedMemory, SwapDevice};
use faultless::sync::{FenceBarrier, Life, RetiredList, Section, Sections, fence_after_rmw};
use faultless::vma::tree::{Ranged, Tree, Writer};
use faultless::{AddressSpace, Engine, LimitConfig, Limits, MapRequest, MemoryLimit, Placement};
use faultless_soft::{Cpu, RadixTable, Soft};
use no_lock::NoLock;
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

type Failure = Box<dyn Error>;
type Run = fn(u64) -> Result<Took, Failure>;

/// The nanoseconds of one operation.
struct Took(f64);

const ALL: [(&str, Run); 22] = [
    ("look-up-30", |rounds| look_up(30, rounds)),
    ("look-up-1000", |rounds| look_up(1_000, rounds)),
    ("look-up-60000", |rounds| look_up(60_000, rounds)),
    ("update-30", |rounds| update(30, rounds)),
    ("update-1000", |rounds| update(1_000, rounds)),
    ("update-60000", |rounds| update(60_000, rounds)),
    ("anonymous-fault", |rounds| anonymous_fault(machine, rounds)),
    ("fault-beside-a-group", |rounds| anonymous_fault(machine_beside_a_group, rounds)),
    ("fault-in-a-group", |rounds| anonymous_fault(machine_in_a_group, rounds)),
    ("zeroing-a-page", zeroing),
    ("unmap-a-page", unmap),
    ("map-touch-unmap", map_touch_unmap::<Faultless>),
    ("map-touch-unmap-bare", map_touch_unmap::<NoLock<false>>),
    ("map-touch-unmap-vmas", map_touch_unmap::<NoLock<true>>),
    ("protect-16-pages", protect::<Faultless>),
    ("protect-16-pages-bare", protect::<NoLock<false>>),
    ("protect-16-pages-vmas", protect::<NoLock<true>>),
    ("reclaim-clean-page", |rounds| reclaim(rounds, Page::Clean)),
    ("reclaim-zero-page", |rounds| reclaim(rounds, Page::Zero)),
    ("reclaim-dirty-page", |rounds| reclaim(rounds, Page::Dirty)),
    ("section-and-bit", |rounds| section_and_bit(&StdBarrier::new(), rounds)),
    ("section-and-bit-fence", |rounds| section_and_bit(&FenceBarrier, rounds)),
];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next();
    let rounds = arguments.next().map_or(Ok(512), |rounds| rounds.parse())?;
    let mut known =
        ALL.iter().filter(|(known, _)| name.as_deref().is_none_or(|name| name == *known)).peekable();
    known.peek().ok_or_else(|| format!("no such name: {}", name.as_deref().unwrap_or_default()))?;
    known.try_for_each(|(name, run)| {
        let Took(nanoseconds) = run(rounds)?;
        println!("{name} {rounds} rounds, {nanoseconds:.1} ns each");
        Ok(())
    })
}

/// Runs `each` `rounds` times. callgrind counts inside this function.
#[inline(never)]
fn measured<E>(rounds: u64, mut each: impl FnMut(u64) -> Result<(), E>) -> Result<Took, E> {
    let start = Instant::now();
    for round in 0..rounds {
        each(round)?;
    }
    Ok(Took(start.elapsed().as_nanos() as f64 / rounds as f64))
}

/// Returns a pseudo-random number, the same for each run (splitmix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

struct Item(PageRange, Life);

// SAFETY: the fields never change.
unsafe impl Ranged for Item {
    fn range(&self) -> PageRange {
        self.0
    }
    fn life(&self) -> &Life {
        &self.1
    }
}

/// Enters a section of this thread, the only one.
fn enter<'a>(sections: &'a Sections, barrier: &impl Barrier) -> Section<'a> {
    // SAFETY: no two threads have the same slot, and all sections are entered with this barrier or a fence.
    unsafe { sections.enter(StdSlots.current(), barrier) }
}

/// Makes a tree of mappings of 16 pages with 16 pages between them.
fn tree(mappings: u64) -> Result<(Tree<Item>, Writer), Failure> {
    let (tree, mut writer) = Tree::new();
    let items = (0..mappings).map(|index| Ok(Box::new(Item(sixteen(index)?, Life::new()))));
    let mut items = items.collect::<Result<Vec<_>, Failure>>()?;
    let whole = PageRange::with_pages(PageNumber::new(0), mappings * 32)?;
    tree.replace(&mut writer, whole, &mut items, &mut RetiredList::new())?;
    Ok((tree, writer))
}

fn sixteen(index: u64) -> Result<PageRange, Failure> {
    Ok(PageRange::with_pages(PageNumber::new(index * 32), 16)?)
}

/// Removes a mapping from the tree and inserts another in its place. Half of a round's instructions are one operation.
fn update(mappings: u64, rounds: u64) -> Result<Took, Failure> {
    let (tree, writer) = tree(mappings)?;
    let (writers, sections, barrier) = (writer.share(), Sections::new(), StdBarrier::new());
    let (mut new, mut retired) = (Vec::new(), RetiredList::new());
    let took = measured(2 * rounds, |round| {
        let range = sixteen(mixed(round / 2) % mappings)?;
        if round % 2 == 1 {
            new.push(Box::new(Item(range, Life::new())));
        }
        let section = enter(&sections, &barrier);
        // SAFETY: there is no other writer.
        unsafe { tree.replace_beside(&writers, &section, range, &mut new, &mut retired) }?;
        drop(section);
        // SAFETY: there is no other reader.
        unsafe { sections.retire(StdSlots.pin(), &barrier, &mut retired) }?;
        Ok::<_, Failure>(())
    })?;
    // SAFETY: it is the only barrier in use.
    unsafe { sections.flush(&barrier, false, |_| {}) };
    Ok(took)
}

fn look_up(mappings: u64, rounds: u64) -> Result<Took, Failure> {
    let (tree, _) = tree(mappings)?;
    let pages: Vec<_> = (0..rounds).map(|round| PageNumber::new(mixed(round) % (mappings * 32))).collect();
    let sections = Sections::new();
    let section = enter(&sections, &FenceBarrier);
    let view = tree.view(&section);
    measured(rounds, |round| {
        black_box(view.find(pages[round as usize]).map(Ranged::range));
        Ok(())
    })
}

struct Machine<D: LockingDesign = Faultless> {
    engine: Arc<Engine<Soft>>,
    space: AddressSpace<Soft, D>,
}

/// Makes a machine of which each frame was used once, so that the operating system has backed them all.
fn memory(frames: u64) -> Result<Soft, Failure> {
    let soft = Soft::new(frames)?;
    let used: Vec<_> =
        std::iter::from_fn(|| soft.frames().allocate(GroupId::ROOT, FrameUse::Anonymous)).collect();
    for frame in used.into_iter().rev() {
        // SAFETY: just allocated, and no other code uses it.
        unsafe {
            soft.frames().zero(frame);
            soft.frames().free(frame);
        }
    }
    Ok(soft)
}

fn machine<D: LockingDesign>(frames: u64) -> Result<Machine<D>, Failure> {
    let engine = Engine::new(memory(frames)?, Limits::default())?;
    let space = AddressSpace::new(&engine)?;
    Ok(Machine { engine, space })
}

/// Makes a machine whose space is in a group that is far below its limit. Faults note pages for reclaim, as in any engine with a
/// limit.
fn machine_in_a_group(frames: u64) -> Result<Machine, Failure> {
    let engine = Engine::new(memory(frames)?, Limits::default())?;
    let limit = MemoryLimit::new(&engine, LimitConfig::max(1 << 20))?;
    let space = AddressSpace::new_in(&engine, &limit)?;
    Ok(Machine { engine, space })
}

/// Makes a machine with a limit, and a space that is in no group.
fn machine_beside_a_group(frames: u64) -> Result<Machine, Failure> {
    let machine = machine::<Faultless>(frames)?;
    MemoryLimit::new(&machine.engine, LimitConfig::max(1 << 20))?;
    Ok(machine)
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn map<D: LockingDesign>(space: &AddressSpace<Soft, D>, page: u64, pages: u64) -> Result<VirtAddr, Failure> {
    Ok(space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page))))?)
}

/// Stores to an untouched page of a mapping that has other pages. A leaf table that exists serves up to 511 rounds.
fn anonymous_fault(machine: fn(u64) -> Result<Machine, Failure>, rounds: u64) -> Result<Took, Failure> {
    let Machine { space, .. } = machine(rounds + 512)?;
    map(&space, 0, rounds + 1)?;
    space.fault_and_wait(at(rounds), Access::Write)?;
    measured(rounds, |round| Ok(space.fault_and_wait(at(round), Access::Write)?))
}

/// Zeroes a page: the part of `anonymous_fault` that zeroing takes.
fn zeroing(rounds: u64) -> Result<Took, Failure> {
    let soft = memory(rounds + 512)?;
    let frames: Option<Vec<_>> =
        (0..rounds).map(|_| soft.frames().allocate(GroupId::ROOT, FrameUse::Anonymous)).collect();
    let frames = frames.ok_or("no frames")?;
    measured(rounds, |round| {
        // SAFETY: allocated, and no other code uses it.
        unsafe { soft.frames().zero(frames[round as usize]) };
        Ok(())
    })
}

/// Unmaps one page with a frame, among as many mappings as rounds. Includes the work of retiring.
fn unmap(rounds: u64) -> Result<Took, Failure> {
    let Machine { space, engine } = machine::<Faultless>(rounds + 512)?;
    for round in 0..rounds {
        space.fault_and_wait(map(&space, round * 2, 1)?, Access::Write)?;
    }
    engine.flush();
    measured(rounds, |round| Ok(space.unmap(at(round * 2), PAGE_SIZE)?))
}

/// Takes or returns the rights of 16 pages with frames inside a mapping.
fn protect<D: LockingDesign>(rounds: u64) -> Result<Took, Failure> {
    let Machine { space, .. } = machine::<D>(512)?;
    map(&space, 0, 256)?;
    (128..144).try_for_each(|page| space.fault_and_wait(at(page), Access::Write))?;
    measured(rounds, |round| {
        let write = if round % 2 == 0 { Protection::empty() } else { Protection::WRITE };
        Ok(space.protect(at(128), 16 * PAGE_SIZE, Protection::READ | write)?)
    })
}

/// Maps, touches and unmaps a page, as will-it-scale does. Another mapping keeps the leaf table.
fn map_touch_unmap<D: LockingDesign>(rounds: u64) -> Result<Took, Failure> {
    let Machine { space, .. } = machine::<D>(512)?;
    space.fault_and_wait(map(&space, 8, 1)?, Access::Write)?;
    measured(rounds, |_| {
        space.fault_and_wait(map(&space, 0, 1)?, Access::Write)?;
        Ok(space.unmap(at(0), PAGE_SIZE)?)
    })
}

/// A device that keeps no bytes. It takes each page at no cost.
#[derive(Default)]
struct Nowhere(AtomicU64);

impl SwapDevice for Nowhere {
    fn capacity(&self) -> u64 {
        1 << 40
    }
    fn reserve(&self) -> Option<u64> {
        Some(self.0.fetch_add(1, Ordering::Relaxed))
    }
    fn release(&self, _: u64) {}
    fn submit(&self, transfer: Transfer) {
        let bytes = transfer.pages() * PAGE_SIZE as usize;
        transfer.complete(Ok(bytes));
    }
    fn max_pages(&self) -> usize {
        64
    }
}

/// The bytes of a page that is reclaimed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    /// They are in a slot: the page is unmapped and freed.
    Clean,
    /// All are zero: no device takes them.
    Zero,
    /// They have a checksum, and a device takes them at no cost.
    Dirty,
}

/// Reclaims pages that one entry maps and that were not used since the last look, in batches of 64.
fn reclaim(rounds: u64, page: Page) -> Result<Took, Failure> {
    if !rounds.is_multiple_of(64) {
        return Err(format!(
            "{rounds} rounds: pages are reclaimed in batches of 64, so take a multiple of 64"
        )
        .into());
    }
    let Machine { space, engine } = machine::<Faultless>(rounds + 512)?;
    match page {
        Page::Clean => engine.add_swap(Arc::new(CompressedMemory::new(2 * rounds, usize::MAX)?))?,
        Page::Zero | Page::Dirty => engine.add_swap(Arc::new(Nowhere::default()))?,
    }
    map(&space, 0, rounds)?;
    let word = |number| if page == Page::Zero { 0 } else { number + 1 };
    (0..rounds).try_for_each(|number| space.store_u64(at(number), word(number)))?;
    // The first look clears the accessed bits.
    (0..rounds / 64).for_each(|_| _ = engine.reclaim(0));
    if page == Page::Clean {
        engine.reclaim(rounds);
        (0..rounds).try_for_each(|page| space.fault_and_wait(at(page), Access::Read))?;
    }
    let before = engine.frame_usage().used;
    let took = measured(rounds, |round| {
        if round % 64 == 0 {
            black_box(engine.reclaim(1));
        }
        Ok::<_, Failure>(())
    })?;
    let freed = before - engine.frame_usage().used;
    if freed == rounds { Ok(took) } else { Err(format!("{freed} of {rounds} pages were freed").into()) }
}

/// Does page work without the lookup and the install: enters the section, sets the bit, fences, clears the bit, leaves.
fn section_and_bit(barrier: &impl Barrier, rounds: u64) -> Result<Took, Failure> {
    let sections = Arc::new(Sections::new());
    let table = RadixTable::new(Arc::clone(&sections))?;
    table.make_leaf(&enter(&sections, barrier), PageNumber::new(0))?;
    measured(rounds, |round| {
        let section = enter(&sections, barrier);
        let page = PageNumber::new(round % 64);
        let leaf = table.leaf(&section, page).ok_or("no leaf table")?;
        let entry = table.load(leaf, page);
        if table.try_announce(leaf, page, entry) {
            fence_after_rmw();
            black_box(table.hangs(leaf));
            // SAFETY: just announced.
            unsafe { table.let_go(leaf, page) };
        }
        Ok(())
    })
}
