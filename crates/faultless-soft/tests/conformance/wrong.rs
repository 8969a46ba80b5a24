//! A host with one planted fault. Its processors share one TLB, so that a translation is used until it is invalidated.

use faultless::address::{PageNumber, PageRange, VirtAddr};
use faultless::frame::Folio;
use faultless::host::conformance::Rig;
use faultless::host::{
    Entry, Frame, FrameSource, FrameUsage, FrameUse, GroupId, LeafRecord, OutOfMemory, PageTable, Park,
    PlaceWord, ShareLeaves, Sleeper, SpareLink, Stable, StdHost, StdPark, StdServices, Unsupported,
};
use faultless::protection::Access;
use faultless::sync::{Retired, Sections};
use faultless::{AddressSpace, Engine, Limits};
use faultless_soft::{Leaf, PhysicalMemory, RadixTable};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The fault of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    FrameGivenTwice,
    FolioOfTwoFrames,
    ZeroesHalf,
    CopiesLess,
    FreedStaysUsed,
    WriteSaysAll,
    AnnouncesWhateverIsThere,
    LetGoEmpties,
    InstallForgetsWhatWasUsed,
    ExchangesWhateverIsThere,
    DropsGuards,
    NextLeafPassesOver,
    UnhookedStaysFound,
    InvalidatesNothing,
    InvalidatesOnePage,
    InvalidatesOneOfAll,
    EarlyWakeIsLost,
    HangIsLost,
    HangForgetsTheMark,
    FoundLooksAgain,
    NowIsFound,
    PutIsLost,
    PutForgetsTheMark,
    SharedHangs,
    WeakenLeavesTheRight,
    WeakenClearsAccessed,
    SpareGivenTwice,
    SpareIsNotEmpty,
    StoresThroughTheMark,
    ForeignIsForgotten,
    ForeignShowsAnother,
    ForeignIsCounted,
    ForeignIsGivenOut,
    ForeignKeepsItsRights,
}

/// The state of foreign frames. A correct host needs none.
#[derive(Default)]
struct Foreign {
    mapped: AtomicU64,
    given_up: Mutex<Vec<Frame>>,
}

/// The translations, by table and page.
type Tlb = Mutex<BTreeMap<(u64, u64), Entry>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops the translations of `range` in table `number`, or in all tables.
fn forget(tlb: &Tlb, planted: Planted, number: Option<u64>, range: PageRange) {
    let pages = match planted {
        Planted::InvalidatesNothing => return,
        Planted::InvalidatesOnePage => range.start().get()..range.start().get() + 1,
        _ => range.start().get()..range.end().get(),
    };
    lock(tlb)
        .retain(|(table, page), _| number.is_some_and(|number| *table != number) || !pages.contains(page));
}

pub struct Stale {
    /// The number of the table. `None`: all tables.
    table: Option<u64>,
    range: PageRange,
}

pub struct Wrong {
    frames: Frames,
    services: StdServices<Sleeping>,
    planted: Planted,
    tlb: Arc<Tlb>,
    foreign: Arc<Foreign>,
    tables: AtomicU64,
}

pub struct Frames {
    memory: PhysicalMemory,
    planted: Planted,
    foreign: Arc<Foreign>,
    last: AtomicU64,
    count: AtomicU64,
}

pub struct Sleeping {
    park: StdPark,
    planted: Planted,
    sleeps: [AtomicBool; 64],
}

pub struct Table {
    table: RadixTable,
    planted: Planted,
    number: u64,
    tlb: Arc<Tlb>,
    foreign: Arc<Foreign>,
    /// The spare that was reserved first.
    spare: Mutex<Option<Spare>>,
}

/// A spare, in a table that threads share.
#[derive(Clone, Copy)]
struct Spare(NonNull<SpareLink>);

// SAFETY: it is the engine's; this host only hands it out.
unsafe impl Send for Spare {}

// SAFETY: unsafe on purpose: the checks end with the first error that they find.
unsafe impl StdHost for Wrong {
    type Table = Table;
    type Frames = Frames;
    type Park = Sleeping;

    fn frames(&self) -> &Frames {
        &self.frames
    }

    fn services(&self) -> &StdServices<Sleeping> {
        &self.services
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<Table, OutOfMemory> {
        let number = self.tables.fetch_add(1, Ordering::Relaxed);
        let table = RadixTable::new(Arc::clone(sections))?;
        let (tlb, foreign) = (self.tlb.clone(), self.foreign.clone());
        Ok(Table { table, planted: self.planted, number, tlb, foreign, spare: Mutex::default() })
    }

    fn invalidate_all(&self, _: &Sections, batch: &mut [Stale], _: impl FnMut(u32)) {
        let count = if self.planted == Planted::InvalidatesOneOfAll { 1 } else { batch.len() };
        for Stale { table, range } in &batch[..count] {
            forget(&self.tlb, self.planted, *table, *range);
        }
    }
}

impl Park for Sleeping {
    fn current(&self) -> Sleeper {
        self.park.current()
    }

    fn park(&self, me: Sleeper) {
        let sleeps = self.sleeps.get(me.0 as usize);
        sleeps.inspect(|sleeps| sleeps.store(true, Ordering::SeqCst));
        self.park.park(me);
        sleeps.inspect(|sleeps| sleeps.store(false, Ordering::SeqCst));
    }

    fn unpark(&self, sleeper: Sleeper) {
        let sleeps = self.sleeps.get(sleeper.0 as usize).is_none_or(|sleeps| sleeps.load(Ordering::SeqCst));
        if sleeps || self.planted != Planted::EarlyWakeIsLost {
            self.park.unpark(sleeper);
        }
    }

    fn spin(&self, look: u32) {
        self.park.spin(look);
    }
}

// SAFETY: as above.
unsafe impl FrameSource for Frames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        if self.planted == Planted::FrameGivenTwice && self.count.fetch_add(1, Ordering::Relaxed) % 40 == 39 {
            return Frame::new(self.last.load(Ordering::Relaxed));
        }
        if let Some(frame) = lock(&self.foreign.given_up).pop() {
            return Some(frame);
        }
        self.memory.allocate(group, purpose).inspect(|frame| self.last.store(frame.get(), Ordering::Relaxed))
    }

    unsafe fn free(&self, frame: Frame) {
        if self.planted != Planted::FreedStaysUsed {
            // SAFETY: by the same contract.
            unsafe { self.memory.free(frame) }
        }
    }

    fn folio(&self, frame: Frame) -> &Folio {
        match (self.planted, Frame::new(frame.get() & !1)) {
            (Planted::FolioOfTwoFrames, Some(even)) if even.get() != 0 => self.memory.folio(even),
            _ => self.memory.folio(frame),
        }
    }

    unsafe fn zero(&self, frame: Frame) {
        // SAFETY: by the same contract.
        unsafe {
            match self.planted {
                Planted::ZeroesHalf => _ = self.memory.write(frame, 0, &[0; 2048]),
                _ => self.memory.zero(frame),
            }
        }
    }

    unsafe fn copy(&self, from: Frame, to: Frame) {
        // SAFETY: by the same contract.
        unsafe {
            match self.planted {
                Planted::CopiesLess => {
                    let mut bytes = [0; 4032];
                    self.memory.read(from, 0, &mut bytes);
                    self.memory.write(to, 0, &bytes);
                }
                _ => self.memory.copy(from, to),
            }
        }
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: by the same contract.
        unsafe { self.memory.memory(frame) }
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.memory.read(frame, offset, bytes) }
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: by the same contract.
        let written = unsafe { self.memory.write(frame, offset, bytes) };
        if self.planted == Planted::WriteSaysAll { bytes.len() } else { written }
    }

    fn usage(&self) -> FrameUsage {
        let usage = self.memory.usage();
        FrameUsage { used: usage.used + self.foreign.mapped.load(Ordering::Relaxed), ..usage }
    }
}

// SAFETY: as above.
unsafe impl PageTable for Table {
    type Leaf<'s> = Leaf<'s>;
    type Root<'s> = ();
    type Stale = Stale;
    type Sharing = Self;
    type Following = Unsupported;
    type Refusing = Unsupported;
    const LEAF_PAGES: u64 = RadixTable::LEAF_PAGES;
    const MAPS_FOREIGN: bool = true;

    fn pages(&self) -> PageRange {
        self.table.pages()
    }

    fn root(&self) {}

    fn sharing(&self) -> Option<&Self> {
        Some(self)
    }

    fn following(&self) -> Option<&Unsupported> {
        None
    }

    fn refusing(&self) -> Option<&Unsupported> {
        None
    }

    fn leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Option<Leaf<'s>> {
        self.table.leaf(proof, page)
    }

    fn make_leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Result<Leaf<'s>, OutOfMemory> {
        self.table.make_leaf(proof, page)
    }

    fn age(&self, leaf: Leaf<'_>, page: PageNumber) -> bool {
        self.table.age(leaf, page)
    }

    fn record<'s>(&'s self, leaf: Leaf<'s>) -> &'s LeafRecord {
        self.table.record(leaf)
    }

    fn hangs(&self, leaf: Leaf<'_>) -> bool {
        match self.planted {
            Planted::SharedHangs => self.now(leaf).leaf() == self.found(leaf).leaf(),
            _ => self.table.hangs(leaf),
        }
    }

    fn load(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        self.table.load(leaf, page)
    }

    fn try_announce(&self, leaf: Leaf<'_>, page: PageNumber, seen: Entry) -> bool {
        let seen = match self.planted {
            Planted::AnnouncesWhateverIsThere => self.load(leaf, page),
            _ => seen,
        };
        self.table.try_announce(leaf, page, seen)
    }

    unsafe fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        // SAFETY: by the same contract.
        unsafe {
            match self.planted {
                Planted::LetGoEmpties => _ = self.table.install(leaf, page, Entry::EMPTY),
                _ => self.table.let_go(leaf, page),
            }
        }
    }

    unsafe fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        let is_foreign = new.has(Entry::MAPPED | Entry::FOREIGN);
        let new = match self.planted {
            Planted::ForeignIsForgotten if is_foreign => new.without(Entry::FOREIGN),
            _ => new,
        };
        if is_foreign && self.planted == Planted::ForeignIsCounted {
            self.foreign.mapped.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: by the same contract.
        let old = unsafe { self.table.install(leaf, page, new) }?;
        let forgets = self.planted == Planted::InstallForgetsWhatWasUsed;
        Ok(if forgets { old.without(Entry::ACCESSED | Entry::DIRTY) } else { old })
    }

    unsafe fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        let (seen, new) = match self.planted {
            Planted::ExchangesWhateverIsThere => (self.load(leaf, page), new),
            Planted::DropsGuards if new.is_guard() => (seen, Entry::EMPTY),
            Planted::ForeignKeepsItsRights if new.has(Entry::MAPPED | Entry::FOREIGN) => {
                (seen, new.with(seen.bits() & Entry::WRITE))
            }
            _ => (seen, new),
        };
        let goes = seen.has(Entry::MAPPED | Entry::FOREIGN) && !new.has(Entry::MAPPED);
        if goes && self.planted == Planted::ForeignIsGivenOut {
            lock(&self.foreign.given_up).extend(seen.mapped_frame());
        }
        // SAFETY: by the same contract.
        unsafe { self.table.exchange(leaf, page, seen, new) }
    }

    unsafe fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        // SAFETY: by the same contract.
        unsafe { self.table.fill(leaf, page, new) }
    }

    fn next_leaf(&self, proof: &impl Stable, range: PageRange) -> Option<PageNumber> {
        let page = self.table.next_leaf(proof, range)?;
        let behind = PageNumber::new(page.align_down(Self::LEAF_PAGES).get() + Self::LEAF_PAGES);
        match PageRange::new(behind, range.end()) {
            Some(rest) if self.planted == Planted::NextLeafPassesOver => self.table.next_leaf(proof, rest),
            _ => Some(page),
        }
    }

    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired> {
        if self.planted == Planted::UnhookedStaysFound {
            return None;
        }
        // SAFETY: by the same contract.
        unsafe { self.table.unhook(page) }
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        self.table.invalidate(range, wait);
        forget(&self.tlb, self.planted, Some(self.number), range);
    }

    fn stale(&self, range: PageRange) -> Stale {
        Stale { table: Some(self.number), range }
    }

    fn unload(&self, wait: impl FnMut(u32)) {
        self.table.unload(wait);
        lock(&self.tlb).retain(|(table, _), _| *table != self.number);
    }
}

// SAFETY: as above.
unsafe impl ShareLeaves<Self> for Table {
    fn found(&self, leaf: Leaf<'_>) -> PlaceWord {
        match self.planted {
            Planted::FoundLooksAgain => self.table.now(leaf),
            _ => self.table.found(leaf),
        }
    }

    fn now(&self, leaf: Leaf<'_>) -> PlaceWord {
        match self.planted {
            Planted::NowIsFound => self.table.found(leaf),
            _ => self.table.now(leaf),
        }
    }

    unsafe fn put(&self, leaf: Leaf<'_>, word: PlaceWord) {
        let word = match self.planted {
            Planted::PutIsLost => return,
            Planted::PutForgetsTheMark => PlaceWord::new(word.leaf()),
            _ => word,
        };
        // SAFETY: by the same contract.
        unsafe { self.table.put(leaf, word) }
    }

    unsafe fn reserve(&self, page: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory> {
        // SAFETY: by the same contract.
        let spare = Spare(unsafe { self.table.reserve(page) }?);
        let first = *lock(&self.spare).get_or_insert(spare);
        Ok(if self.planted == Planted::SpareGivenTwice { first.0 } else { spare.0 })
    }

    unsafe fn hang(&self, page: PageNumber, word: PlaceWord) {
        let word = match self.planted {
            Planted::HangIsLost => return,
            Planted::HangForgetsTheMark => PlaceWord::new(word.leaf()),
            _ => word,
        };
        // SAFETY: by the same contract.
        unsafe { self.table.hang(page, word) }
    }

    unsafe fn open<'s>(&'s self, leaf: Leaf<'s>, spare: NonNull<SpareLink>) -> Leaf<'s> {
        // SAFETY: by the same contract; no other thread has the leaf yet.
        unsafe {
            let opened = self.table.open(leaf, spare);
            if self.planted == Planted::SpareIsNotEmpty {
                let last = PageNumber::new(Self::LEAF_PAGES - 1);
                self.table.fill(opened, last, Entry::from_bits(Entry::GUARD));
            }
            opened
        }
    }

    unsafe fn weaken(&self, leaf: Leaf<'_>, page: PageNumber) {
        if self.planted == Planted::WeakenLeavesTheRight {
            return;
        }
        // SAFETY: by the same contract.
        unsafe { self.table.weaken(leaf, page) }
        if self.planted == Planted::WeakenClearsAccessed {
            let seen = self.table.load(leaf, page);
            // SAFETY: by the same contract.
            let _ = unsafe { self.table.exchange(leaf, page, seen, seen.without(Entry::ACCESSED)) };
        }
    }

    unsafe fn load_by_record(record: &LeafRecord, index: u64) -> Entry {
        // SAFETY: by the same contract.
        unsafe { RadixTable::load_by_record(record, index) }
    }

    unsafe fn exchange_by_record(
        record: &LeafRecord,
        index: u64,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        // SAFETY: by the same contract.
        unsafe { RadixTable::exchange_by_record(record, index, seen, new) }
    }

    fn stale_in_all(range: PageRange) -> Stale {
        Stale { table: None, range }
    }
}

/// Makes machines with one fault.
pub struct WrongRig(pub Planted);

impl WrongRig {
    /// Makes one access as a processor does, and serves faults.
    fn access<T>(
        space: &AddressSpace<Wrong>,
        address: VirtAddr,
        access: Access,
        operation: impl Fn(&PhysicalMemory, Frame, usize) -> T,
    ) -> Option<T> {
        let (engine, page) = (space.engine(), address.page());
        let needed = if access == Access::Write { Entry::WRITE } else { Entry::READ };
        let offset = address.offset_in_page() as usize;
        loop {
            {
                let mut tlb = lock(&engine.host().tlb);
                // SAFETY: dropped here; an access calls no engine.
                let section = unsafe { engine.enter_section() };
                // SAFETY: walked in this engine's section; an access only sets accessed and dirty bits.
                let table = unsafe { space.table() };
                let key = (table.number, page.get());
                if let Some(entry) = tlb.get(&key).filter(|entry| entry.has(needed))
                    && let Some(frame) = entry.mapped_frame()
                {
                    let is_wrong = entry.has(Entry::FOREIGN) && table.planted == Planted::ForeignShowsAnother;
                    let frame = if is_wrong { engine.zero_frame() } else { frame };
                    return Some(operation(&engine.host().frames.memory, frame, offset));
                }
                let used = Entry::ACCESSED | if access == Access::Write { Entry::DIRTY } else { 0 };
                let leaf = table.pages().contains(page).then(|| table.table.leaf(&section, page)).flatten();
                if let Some(leaf) = leaf {
                    let entry = table.table.translate(leaf, page);
                    let is_marked = table.table.found(leaf).is_shared();
                    let refused = match is_marked && table.planted != Planted::StoresThroughTheMark {
                        true => Entry::WRITE,
                        false => 0,
                    };
                    if entry.without(refused).has(Entry::MAPPED | needed) {
                        // SAFETY: as hardware does it.
                        if unsafe { table.table.exchange(leaf, page, entry, entry.with(used)) }.is_ok() {
                            tlb.insert(key, entry.without(refused));
                        }
                        continue;
                    }
                }
            }
            space.fault_and_wait(address, access).ok()?;
        }
    }
}

impl Rig for WrongRig {
    type Host = Wrong;
    type Process = AddressSpace<Wrong>;

    fn engine(&self, frames: u64) -> Arc<Engine<Wrong>> {
        let planted = self.0;
        let park =
            Sleeping { park: StdPark::default(), planted, sleeps: [const { AtomicBool::new(false) }; 64] };
        let memory = PhysicalMemory::new(frames).unwrap();
        let foreign = Arc::<Foreign>::default();
        let (last, count) = (AtomicU64::new(0), AtomicU64::new(0));
        let wrong = Wrong {
            frames: Frames { memory, planted, foreign: foreign.clone(), last, count },
            services: StdServices::with_park(park),
            planted,
            tlb: Arc::default(),
            foreign,
            tables: AtomicU64::new(0),
        };
        Engine::new(wrong, Limits::default()).unwrap()
    }

    fn process(&self, space: AddressSpace<Wrong>) -> AddressSpace<Wrong> {
        space
    }

    fn space<'a>(&self, process: &'a AddressSpace<Wrong>) -> &'a AddressSpace<Wrong> {
        process
    }

    fn load(&self, process: &AddressSpace<Wrong>, address: VirtAddr) -> Option<u64> {
        Self::access(process, address, Access::Read, |memory, frame, offset| {
            let mut word = [0; 8];
            // SAFETY: the translation is valid, so the frame is in use.
            unsafe { memory.read(frame, offset, &mut word) };
            u64::from_ne_bytes(word)
        })
    }

    fn store(&self, process: &AddressSpace<Wrong>, address: VirtAddr, value: u64) -> bool {
        let write = |memory: &PhysicalMemory, frame, offset| {
            // SAFETY: as above.
            unsafe { memory.write(frame, offset, &value.to_ne_bytes()) };
        };
        Self::access(process, address, Access::Write, write).is_some()
    }
}
