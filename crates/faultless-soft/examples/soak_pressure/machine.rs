//! The engines, with their devices, groups and files, and the processes on them.

use crate::arguments::Arguments;
use crate::counts::Counts;
use crate::model::page_of;
use crate::waits::waited;
use crate::{Failure, Space};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use faultless::{
    DirtyLimits, Engine, File, FileRef, LimitConfig, Limits, MapRequest, MemoryLimit, ReclaimOrder, Reserve,
};
use faultless_soft::Soft;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// The threads of a process.
pub const TOGETHER: usize = 4;
/// The pages of a process that all its threads use, and of a thread's own mapping.
pub const SHARED: u64 = 192;
pub const OWN: u64 = 48;
/// The pages of the file that is only read.
pub const FILE: u64 = 256;
/// The pages of a process's shared memory. Thread `n` uses each fourth page, from page `n` on.
pub const MEMORY: u64 = 64;
/// The pages of the written file that one thread uses. They outlive the process.
pub const WRITTEN: u64 = 8;
/// The most pages that a thread has in other mappings.
pub const FEW: u64 = 8;
/// The bytes of a shared page that one thread uses.
pub const PART: u64 = PAGE_SIZE / TOGETHER as u64;

/// Two groups below a third one. A process is in one of the three.
pub struct Family {
    parent: MemoryLimit<Soft>,
    children: [MemoryLimit<Soft>; 2],
    /// The pages that reclaim may not be able to take, as locked pages. With more of them, a fault could find no memory.
    held: AtomicU64,
    most_held: u64,
}

impl Family {
    fn new(engine: &Arc<Engine<Soft>>, pages: u64) -> Result<Self, Failure> {
        let limits = LimitConfig { high: pages + pages / 4, max: pages + pages / 2 };
        let parent = MemoryLimit::new(engine, limits)?;
        let children = [parent.child(LimitConfig::max(pages))?, parent.child(LimitConfig::max(pages))?];
        let family = Self { parent, children, held: AtomicU64::new(0), most_held: pages / 6 };
        family.set_high(pages)?;
        Ok(family)
    }

    /// Gives the second group a limit above which its threads are slowed down.
    fn set_high(&self, pages: u64) -> Result<(), Failure> {
        let high = (pages - pages / 4).max(LimitConfig::MINIMUM);
        Ok(self.children[1].set(LimitConfig { high, max: pages })?)
    }

    /// Makes the limit of a group smaller, or as before.
    pub fn set(&self, child: usize, pages: u64, is_small: bool) -> Result<(), Failure> {
        match (child, is_small) {
            (1, false) => self.set_high(pages),
            (_, true) => {
                let less = (pages - pages / 4).max(LimitConfig::MINIMUM);
                Ok(self.children[child].set(LimitConfig::max(less))?)
            }
            _ => Ok(self.children[child].set(LimitConfig::max(pages))?),
        }
    }

    /// Returns the groups: those below first.
    pub fn groups(&self) -> [&MemoryLimit<Soft>; 3] {
        [&self.children[0], &self.children[1], &self.parent]
    }

    /// Lets the caller hold `pages` pages until the returned value is dropped, if others do not hold too many.
    pub fn hold(&self, pages: u64) -> Option<Hold<'_>> {
        let more = |held| (held + pages <= self.most_held).then_some(held + pages);
        let held = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        held.ok().map(|_| Hold { family: self, pages })
    }
}

/// Some pages of [`Family::hold`].
pub struct Hold<'a> {
    family: &'a Family,
    pages: u64,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.family.held.fetch_sub(self.pages, Ordering::Relaxed);
    }
}

/// An engine. Its groups together may have more pages than it has frames.
pub struct Machine {
    pub engine: Arc<Engine<Soft>>,
    pub families: Vec<Family>,
    /// Compressed memory and two files. The pages fit without any one of them.
    pub devices: [Arc<dyn SwapDevice>; 3],
    /// A file that is only read.
    pub file: FileRef<Soft>,
    /// A file to which threads write.
    pub written: FileRef<Soft>,
    /// The bytes of the written file, for a look behind the engine's back.
    pub disk: std::fs::File,
}

impl Machine {
    fn new(arguments: &Arguments, order: ReclaimOrder, seats: u64) -> Result<Self, Failure> {
        let count = seats.div_ceil(TOGETHER as u64).max(1);
        let frames = count * arguments.pages + 64 + FILE / 4;
        let dirty = match order {
            ReclaimOrder::SmallMain => DirtyLimits::LINUX,
            ReclaimOrder::Generations => DirtyLimits::NONE,
        };
        let reserve = Reserve::per_mille(30, 60)?;
        let limits = Limits { cached_pages: FILE / 2, reclaim: order, reserve, dirty, ..Limits::default() };
        let machine = Soft::with_caches(frames)?.with_trace(waited);
        let machine = match order {
            ReclaimOrder::SmallMain => machine.with_pauses(pause),
            ReclaimOrder::Generations => machine,
        };
        let engine = Engine::new(machine, limits)?;
        let own = TOGETHER as u64 * (OWN + 2 * FEW);
        let room = seats.max(1) * (SHARED + MEMORY + own) * 4;
        let file = || -> Result<Arc<dyn SwapDevice>, Failure> {
            let swap = tempfile::tempfile()?;
            swap.set_len(room * PAGE_SIZE)?;
            Ok(Arc::new(StoreDevice::new(FileStore::from_file(swap)?)?))
        };
        let compressed = CompressedMemory::new(room / 2, (room / 2 * PAGE_SIZE / 4) as usize)?;
        let devices: [Arc<dyn SwapDevice>; 3] = [Arc::new(compressed), file()?, file()?];
        for device in &devices {
            engine.add_swap(device.clone())?;
        }
        let families = (0..count).map(|_| Family::new(&engine, arguments.pages)).collect::<Result<_, _>>()?;
        let mut contents = tempfile::tempfile()?;
        for page in 0..FILE {
            contents.write_all(&page_of(page))?;
        }
        let file = File::open(&engine, Arc::new(FileStore::from_file(contents)?))?;
        let disk = tempfile::tempfile()?;
        disk.set_len(WRITTEN * arguments.threads as u64 * PAGE_SIZE)?;
        let written = File::open_rw(&engine, Arc::new(FileStore::from_file(disk.try_clone()?)?))?;
        Ok(Self { engine, families, devices, file, written, disk })
    }
}

/// Interrupts one copy of bytes in eight for a moment, as a scheduler seldom does. Work that should wait for the copy has time to come
/// in between.
fn pause() {
    if fastrand::u32(..8) == 0 {
        std::thread::sleep(Duration::from_micros(fastrand::u64(..4000)));
    }
}

/// A process: a space, and whether one of its threads has killed it.
pub struct Process {
    pub space: Space,
    pub shared: VirtAddr,
    pub file: VirtAddr,
    pub written: VirtAddr,
    /// Shared memory, and the file that it is.
    pub memory: (VirtAddr, FileRef<Soft>),
    pub is_killed: AtomicBool,
}

impl Process {
    /// Makes the next process of a seat. A quarter of the processes are in a family's parent group.
    fn new(machine: &Machine, number: usize) -> Result<Arc<Self>, Failure> {
        let family = &machine.families[number % machine.families.len()];
        let group = family.groups()[[0, 1, 0, 2][number / machine.families.len() % 4]];
        let space = Space::new_in(&machine.engine, group)?;
        let rights = Protection::READ | Protection::WRITE;
        let shared = space.map(MapRequest::anonymous(SHARED * PAGE_SIZE))?;
        let file = space.map(MapRequest::file(&machine.file, 0, FILE * PAGE_SIZE, Protection::READ))?;
        let length = machine.written.length();
        let written = space.map(MapRequest::shared_file(&machine.written, 0, length, rights))?;
        let memory = File::in_memory(&machine.engine, MEMORY * PAGE_SIZE)?;
        let at = space.map(MapRequest::shared_file(&memory, 0, MEMORY * PAGE_SIZE, rights))?;
        let is_killed = AtomicBool::new(false);
        Ok(Arc::new(Self { space, shared, file, written, memory: (at, memory), is_killed }))
    }
}

/// The place of a process. One of its threads kills it, and all go on in the next one.
pub struct Seat {
    /// The number of the engine, and of the seat in it.
    machine: usize,
    number: usize,
    process: RwLock<Arc<Process>>,
}

impl Seat {
    pub fn process(&self) -> Result<Arc<Process>, Failure> {
        Ok(self.process.read().map_err(|_| "a thread has panicked")?.clone())
    }
}

/// All that the threads share.
pub struct World {
    /// An engine for each reclaim order.
    pub machines: [Machine; 2],
    pub seats: Vec<Seat>,
    pub counts: Counts,
    pub pages: u64,
    pub start: Instant,
    is_over: AtomicBool,
    /// The begin of each thread's operation, in milliseconds from the start, plus one; 0 if it has ended.
    pub begun: Vec<AtomicU64>,
}

impl World {
    /// Makes the world for the threads of the arguments and `others`.
    pub fn new(arguments: &Arguments, others: usize) -> Result<Self, Failure> {
        let count = arguments.threads.div_ceil(TOGETHER);
        let machine = |order, seats: usize| Machine::new(arguments, order, seats as u64);
        let machines = [
            machine(ReclaimOrder::SmallMain, count.div_ceil(2))?,
            machine(ReclaimOrder::Generations, count / 2)?,
        ];
        let seat = |seat: usize| -> Result<Seat, Failure> {
            let (machine, number) = (seat % 2, seat / 2);
            let process = RwLock::new(Process::new(&machines[machine], number)?);
            Ok(Seat { machine, number, process })
        };
        let seats = (0..count).map(seat).collect::<Result<_, _>>()?;
        let begun = (0..arguments.threads + others).map(|_| AtomicU64::new(0)).collect();
        let (is_over, start, pages) = (AtomicBool::new(false), Instant::now(), arguments.pages);
        Ok(Self { machines, seats, counts: Counts::new(), pages, start, is_over, begun })
    }

    pub fn machine(&self, seat: &Seat) -> &Machine {
        &self.machines[seat.machine]
    }

    pub fn family(&self, seat: &Seat) -> &Family {
        let families = &self.machine(seat).families;
        &families[seat.number % families.len()]
    }

    /// Puts a new process in the place of `old`. Returns whether `old` was still there.
    pub fn replace(&self, seat: &Seat, old: &Arc<Process>) -> Result<bool, Failure> {
        let next = Process::new(self.machine(seat), seat.number)?;
        let mut process = seat.process.write().map_err(|_| "a thread has panicked")?;
        let is_there = Arc::ptr_eq(&process, old);
        if is_there {
            *process = next;
        }
        Ok(is_there)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Ends the run.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn since_start(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }
}
