//! Uses an engine under memory pressure for an hour: threads in several processes fault, map, unmap, fork, page out, reclaim, exit and
//! kill, in groups with a tight limit. Every byte that is read is checked.
//!
//! `cargo run --release -p faultless-soft --example soak_pressure -- [--seconds N] [--threads N] [--pages N]`. Prints a line each ten
//! seconds, and ends with 1 if something was wrong: a byte, a fault that found no memory, a wait of more than a second that is not the
//! device's, or something left at the end.
//!
//! The time of a wait does not include the thread's own time in the run queue. It includes that of the thread for which it waits: a thread
//! that holds a range may be off its processor for seconds if the machine has other work. Run it on a machine that has none.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice};
use faultless::{AddressSpace, Advice, Engine, File, FileRef, LimitConfig, Limits, MapRequest, MemoryLimit};
use faultless_soft::{Cpu, Soft};
use std::cell::Cell;
use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

type Failure = Box<dyn Error + Send + Sync>;
type Space = AddressSpace<Soft, Faultless>;

/// The threads of a process.
const TOGETHER: usize = 4;
/// The pages of a process that all its threads use, of a thread's own mapping, and of the file that each process maps.
const SHARED: u64 = 192;
const OWN: u64 = 48;
const FILE: u64 = 256;
/// The bytes of a page that one thread uses.
const PART: u64 = PAGE_SIZE / TOGETHER as u64;
/// The longest wait that is not the device's.
const LONGEST: Duration = Duration::from_secs(1);
/// The time of one operation after which the run is given up.
const STUCK: Duration = Duration::from_secs(300);

/// The waits that end with a device's transfer.
const OF_DEVICES: [Counter; 2] = [Counter::IoWait, Counter::WritebackWait];

/// The longest wait so far, in nanoseconds without the time in the run queue, and the number of its counter.
static WAITS: Mutex<[u64; Counter::ALL.len()]> = Mutex::new([0; Counter::ALL.len()]);

thread_local! {
    /// The time that this thread had spent in the run queue when its operation began.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
}

/// Returns the nanoseconds for which the calling thread was ready to run and had no processor.
fn queued() -> u64 {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Notes a wait. Short ones are of no interest, and cost nothing.
fn waited(counter: Counter, from: u64, to: u64) {
    let time = to.saturating_sub(from);
    if time < 50_000_000 {
        return;
    }
    // The thread may have been in the queue before the wait began. Then the wait seems shorter than it was, by as much.
    let time = time.saturating_sub(queued() - QUEUED.get());
    let mut waits = WAITS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let longest = &mut waits[counter as usize];
    *longest = time.max(*longest);
}

struct Arguments {
    time: Duration,
    threads: usize,
    /// The limit of each group.
    pages: u64,
}

const USAGE: &str = "Usage: soak_pressure [--seconds N] [--threads N] [--pages N]
  --seconds N   the time [default: 3600]
  --threads N   the number of threads, four to a process [default: 64]
  --pages N     the pages of the limit of each group [default: 256]
Exit codes: 0 success; 1 something was wrong; 2 bad input.";

impl Arguments {
    /// Returns the arguments. `None`: the user has asked for help.
    fn parse() -> Result<Option<Self>, String> {
        let mut all = Self { time: Duration::from_secs(3600), threads: 64, pages: 256 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            if !matches!(name.as_str(), "--seconds" | "--threads" | "--pages") {
                return Err(format!("{name}: the options are --seconds, --threads and --pages"));
            }
            let text = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
            let value = text.parse::<u64>().ok().filter(|value| *value > 0);
            let value = value.ok_or_else(|| format!("{name} {text}: a number above 0 is needed"))?;
            match name.as_str() {
                "--seconds" => all.time = Duration::from_secs(value),
                "--threads" => all.threads = value as usize,
                _ if value < LimitConfig::MINIMUM => {
                    return Err(format!(
                        "{name} {value}: a limit has {} pages at least",
                        LimitConfig::MINIMUM
                    ));
                }
                _ => all.pages = value,
            }
        }
        Ok(Some(all))
    }
}

/// A process: a space, and whether one of its threads has killed it.
struct Process {
    space: Space,
    shared: VirtAddr,
    file: VirtAddr,
    is_killed: AtomicBool,
}

/// The process of some threads. One of them kills it, and the others go on in the next one.
type Seat = RwLock<Arc<Process>>;

#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    forks: AtomicU64,
    kills: AtomicU64,
}

struct World {
    engine: Arc<Engine<Soft>>,
    file: FileRef<Soft>,
    limits: Vec<MemoryLimit<Soft>>,
    counts: Counts,
    start: Instant,
    is_over: AtomicBool,
    /// The begin of each thread's operation, in milliseconds from the start, plus one; 0 if it has ended.
    begun: Vec<AtomicU64>,
}

impl World {
    fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let seats = arguments.threads.div_ceil(TOGETHER) as u64;
        // A few groups share the machine, which has not enough frames for all of them.
        let groups = seats.div_ceil(4);
        let frames = groups * arguments.pages + 64 + FILE / 2;
        let soft = Soft::with_caches(frames)?.with_trace(waited);
        let engine = Engine::new(soft, Limits { cached_pages: FILE / 4, ..Limits::default() })?;
        let room = seats * (SHARED + TOGETHER as u64 * OWN) * 4;
        engine.add_swap(Arc::new(CompressedMemory::new(room / 2, (room / 2 * PAGE_SIZE / 4) as usize)?))?;
        let swap = tempfile::tempfile()?;
        swap.set_len(room * PAGE_SIZE)?;
        engine.add_swap(Arc::new(StoreDevice::new(FileStore::from_file(swap)?)?))?;
        let limit = |_| MemoryLimit::new(&engine, LimitConfig::max(arguments.pages));
        let limits = (0..groups).map(limit).collect::<Result<_, _>>()?;
        let mut contents = tempfile::tempfile()?;
        for page in 0..FILE {
            contents.write_all(&page_of(page))?;
        }
        let file = File::open(&engine, Arc::new(FileStore::from_file(contents)?))?;
        let begun = (0..arguments.threads).map(|_| AtomicU64::new(0)).collect();
        let (counts, is_over) = Default::default();
        Ok(Self { engine, file, limits, counts, start: Instant::now(), is_over, begun })
    }

    fn process(&self, seat: usize) -> Result<Arc<Process>, Failure> {
        let space = Space::new_in(&self.engine, &self.limits[seat % self.limits.len()])?;
        let shared = space.map(MapRequest::anonymous(SHARED * PAGE_SIZE))?;
        let file = space.map(MapRequest::file(&self.file, 0, FILE * PAGE_SIZE, Protection::READ))?;
        Ok(Arc::new(Process { space, shared, file, is_killed: AtomicBool::new(false) }))
    }

    fn since_start(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }
}

/// Returns the bytes of a page of the file.
fn page_of(page: u64) -> Vec<u8> {
    (0..PAGE_SIZE / 8).flat_map(|word| (page << 16 | word).to_le_bytes()).collect()
}

/// Returns the bytes that a thread stores. Some pages compress well, and others do not.
fn bytes_of(stamp: u64, length: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; length as usize];
    }
    let mut numbers = Rng::with_seed(stamp);
    let fixed = numbers.u64(..);
    let is_noise = (stamp / 64).is_multiple_of(4);
    (0..length / 8).flat_map(|_| (if is_noise { numbers.u64(..) } else { fixed }).to_le_bytes()).collect()
}

/// One thread: its process and the memory that it has there.
struct Worker<'a> {
    world: &'a World,
    seat: (usize, &'a Seat),
    /// The number of the thread in its process.
    me: u64,
    numbers: Rng,
    process: Arc<Process>,
    /// The stamps of this thread's parts of the shared pages.
    shared: HashMap<u64, u64>,
    /// The thread's own mapping, and the stamps of its pages.
    own: Option<(VirtAddr, HashMap<u64, u64>)>,
    stamp: u64,
}

impl Worker<'_> {
    fn run(&mut self, number: usize) -> Result<(), Failure> {
        let begun = &self.world.begun[number];
        while !self.world.is_over.load(Ordering::Relaxed) {
            let now = self.seat.1.read().map_err(|_| "a thread has panicked")?.clone();
            if !Arc::ptr_eq(&now, &self.process) {
                (self.process, self.own) = (now, None);
                self.shared.clear();
            }
            QUEUED.set(queued());
            begun.store(self.world.since_start(), Ordering::Relaxed);
            for _ in 0..8 {
                if let Err(failure) = self.operation() {
                    // A call of a process that is ending returns an error.
                    if !self.process.is_killed.load(Ordering::SeqCst) {
                        return Err(failure);
                    }
                    break;
                }
                self.world.counts.operations.fetch_add(1, Ordering::Relaxed);
            }
            begun.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn operation(&mut self) -> Result<(), Failure> {
        let process = self.process.clone();
        match self.numbers.u32(..256) {
            0..150 => self.access_shared(&process.space, process.shared),
            150..200 => self.access_own(&process.space),
            200..225 => self.read_file(&process),
            225..233 => self.drop_own(&process.space),
            233..240 => self.fork(&process),
            240..247 => self.page_out(&process),
            247..253 => {
                self.world.engine.reclaim(self.numbers.u64(1..32));
                Ok(())
            }
            253 | 254 => self.protect_own(&process.space),
            _ => self.kill(),
        }
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 64;
        self.stamp
    }

    fn check(&self, space: &Space, at: VirtAddr, length: u64, stamp: u64) -> Result<(), Failure> {
        let mut bytes = vec![0xaa; length as usize];
        space.read_bytes(at, &mut bytes)?;
        let expected = bytes_of(stamp, length);
        match bytes.iter().zip(&expected).position(|(is, should)| is != should) {
            None => Ok(()),
            Some(offset) => {
                eprintln!(
                    "WRONG BYTE: {at} + {offset} has {:#x} instead of {:#x}",
                    bytes[offset], expected[offset]
                );
                WRONG.store(true, Ordering::SeqCst);
                Err("a wrong byte".into())
            }
        }
    }

    fn part(&self, shared: VirtAddr, page: u64) -> VirtAddr {
        VirtAddr::new(shared.get() + page * PAGE_SIZE + self.me * PART)
    }

    fn access_shared(&mut self, space: &Space, shared: VirtAddr) -> Result<(), Failure> {
        let page = self.numbers.u64(..SHARED);
        let at = self.part(shared, page);
        self.check(space, at, PART, self.shared.get(&page).copied().unwrap_or(0))?;
        if self.numbers.u32(..3) == 0 {
            let stamp = self.next_stamp();
            space.write_bytes(at, &bytes_of(stamp, PART))?;
            self.shared.insert(page, stamp);
        }
        Ok(())
    }

    fn access_own(&mut self, space: &Space) -> Result<(), Failure> {
        let page = self.numbers.u64(..OWN);
        let stamp = self.next_stamp();
        let (at, mut stamps) = match self.own.take() {
            Some(own) => own,
            None => (space.map(MapRequest::anonymous(OWN * PAGE_SIZE))?, HashMap::new()),
        };
        let place = VirtAddr::new(at.get() + page * PAGE_SIZE);
        self.check(space, place, PAGE_SIZE, stamps.get(&page).copied().unwrap_or(0))?;
        space.write_bytes(place, &bytes_of(stamp, PAGE_SIZE))?;
        stamps.insert(page, stamp);
        self.own = Some((at, stamps));
        Ok(())
    }

    fn drop_own(&mut self, space: &Space) -> Result<(), Failure> {
        let Some((at, mut stamps)) = self.own.take() else { return Ok(()) };
        if self.numbers.bool() {
            return Ok(space.unmap(at, OWN * PAGE_SIZE)?);
        }
        space.discard(at, OWN / 2 * PAGE_SIZE)?;
        stamps.retain(|page, _| *page >= OWN / 2);
        self.own = Some((at, stamps));
        Ok(())
    }

    fn protect_own(&mut self, space: &Space) -> Result<(), Failure> {
        let Some((at, _)) = self.own else { return Ok(()) };
        space.protect(at, OWN * PAGE_SIZE, Protection::READ)?;
        if space.store_u64(at, 1).is_ok() {
            WRONG.store(true, Ordering::SeqCst);
            return Err("a store to a page without the right".into());
        }
        Ok(space.protect(at, OWN * PAGE_SIZE, Protection::READ | Protection::WRITE)?)
    }

    fn read_file(&mut self, process: &Process) -> Result<(), Failure> {
        let page = self.numbers.u64(..FILE);
        let mut bytes = vec![0; PAGE_SIZE as usize];
        process.space.read_bytes(VirtAddr::new(process.file.get() + page * PAGE_SIZE), &mut bytes)?;
        if bytes == page_of(page) {
            return Ok(());
        }
        WRONG.store(true, Ordering::SeqCst);
        Err(format!("page {page} of the file has other bytes").into())
    }

    fn page_out(&mut self, process: &Process) -> Result<(), Failure> {
        let (page, pages) = (self.numbers.u64(..SHARED - 16), self.numbers.u64(1..16));
        let advice = [Advice::PageOut, Advice::Cold][self.numbers.usize(..2)];
        let at = VirtAddr::new(process.shared.get() + page * PAGE_SIZE);
        Ok(process.space.advise(at, pages * PAGE_SIZE, advice)?)
    }

    /// Forks, checks some pages of this thread in the child, and changes them there and here.
    fn fork(&mut self, process: &Process) -> Result<(), Failure> {
        let child = process.space.fork()?;
        self.world.counts.forks.fetch_add(1, Ordering::Relaxed);
        let first = self.numbers.u64(..SHARED);
        // Each page once: the child has other bytes than this process afterwards.
        for page in (0..8).map(|step| (first + step * (SHARED / 8)) % SHARED) {
            let at = self.part(process.shared, page);
            let stamp = self.shared.get(&page).copied().unwrap_or(0);
            self.check(&child, at, PART, stamp)?;
            let (theirs, ours) = (self.next_stamp(), self.next_stamp());
            child.write_bytes(at, &bytes_of(theirs, PART))?;
            self.check(&process.space, at, PART, stamp)?;
            process.space.write_bytes(at, &bytes_of(ours, PART))?;
            self.shared.insert(page, ours);
            self.check(&child, at, PART, theirs)?;
        }
        if self.numbers.bool() {
            child.exit();
        }
        Ok(())
    }

    /// Ends the process, while its other threads are in it.
    fn kill(&mut self) -> Result<(), Failure> {
        let (number, seat) = self.seat;
        let next = self.world.process(number)?;
        let old = {
            let mut seat = seat.write().map_err(|_| "a thread has panicked")?;
            if !Arc::ptr_eq(&seat, &self.process) {
                return Ok(());
            }
            std::mem::replace(&mut *seat, next)
        };
        old.is_killed.store(true, Ordering::SeqCst);
        old.space.exit();
        self.world.counts.kills.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a byte was wrong, in a process that was killed too.
static WRONG: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("soak_pressure: {wrong}");
            return ExitCode::from(2);
        }
    };
    match soak(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("soak_pressure: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn soak(arguments: &Arguments) -> Result<(), Failure> {
    let world = World::new(arguments)?;
    let seats = (0..arguments.threads.div_ceil(TOGETHER)).map(|seat| Ok(RwLock::new(world.process(seat)?)));
    let seats = seats.collect::<Result<Vec<Seat>, Failure>>()?;
    let work = |number: usize| {
        let seat = (number / TOGETHER, &seats[number / TOGETHER]);
        let process = seat.1.read().map_err(|_| "a thread has panicked")?.clone();
        let numbers = Rng::with_seed(number as u64 + 1);
        let (me, stamp) = ((number % TOGETHER) as u64, (number as u64) << 40);
        let (shared, own) = (HashMap::new(), None);
        let mut worker = Worker { world: &world, seat, me, numbers, process, shared, own, stamp };
        let done = worker.run(number);
        // The others stop too.
        if done.is_err() {
            world.is_over.store(true, Ordering::Relaxed);
        }
        done
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..arguments.threads).map(|number| scope.spawn(move || work(number))).collect();
        watch(&world, arguments);
        let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread has panicked")?);
        ended.collect::<Result<(), Failure>>()
    })?;
    for seat in &seats {
        seat.read().map_err(|_| "a thread has panicked")?.space.audit()?;
    }
    drop(seats);
    end(world)
}

/// Prints a line each ten seconds, until the time is over.
fn watch(world: &World, arguments: &Arguments) {
    let mut next = Duration::from_secs(10);
    while !world.is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100).min(arguments.time));
        let now = world.start.elapsed();
        for (thread, begun) in world.begun.iter().enumerate() {
            let begun = begun.load(Ordering::Relaxed);
            if begun != 0 && world.since_start().saturating_sub(begun) > STUCK.as_millis() as u64 {
                eprintln!("soak_pressure: thread {thread} is in an operation since {} s", STUCK.as_secs());
                std::process::exit(1);
            }
        }
        if now >= next || now >= arguments.time {
            next += Duration::from_secs(10);
            line(world, now);
        }
        if now >= arguments.time {
            world.is_over.store(true, Ordering::Relaxed);
        }
    }
}

fn line(world: &World, now: Duration) {
    let statistics = world.engine.statistics();
    let [ins, outs, reclaimed] =
        [Counter::SwapIns, Counter::SwapOuts, Counter::Reclaimed].map(|counter| statistics.get(counter));
    let Counts { operations, forks, kills } = &world.counts;
    let [operations, forks, kills] = [operations, forks, kills].map(|count| count.load(Ordering::Relaxed));
    println!(
        "{:>5} s: {operations} operations, {forks} forks, {kills} kills, {ins} pages in, {outs} out, {reclaimed} reclaimed; \
         longest wait {:.3} s",
        now.as_secs(),
        longest().map_or(0.0, |(_, time)| time.as_secs_f64())
    );
}

/// Returns the longest wait that is not the device's.
fn longest() -> Option<(Counter, Duration)> {
    let waits = WAITS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let all = Counter::ALL.iter().filter(|counter| !OF_DEVICES.contains(counter));
    let longest = all.max_by_key(|counter| waits[**counter as usize])?;
    Some((*longest, Duration::from_nanos(waits[*longest as usize])))
}

/// Checks that nothing is left, and that no wait was too long.
fn end(world: World) -> Result<(), Failure> {
    let World { engine, file, limits, .. } = world;
    drop(file);
    // Writes may be under way.
    for _ in 0..1000 {
        engine.flush();
        if engine.frame_usage().used == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (frames, slots) = (engine.frame_usage().used - 1, engine.swap_usage().slots);
    let places: u64 = engine.swap_usage().devices.iter().map(|device| device.pages).sum();
    let usage = limits.iter().map(MemoryLimit::usage).find(|usage| usage.resident + usage.swap != 0);
    if frames + slots + places + engine.cached_pages() != 0 || usage.is_some() {
        return Err(
            format!("left: {frames} frames, {slots} slots, {places} places, charges {usage:?}").into()
        );
    }
    for (counter, time) in Counter::ALL.iter().zip(*WAITS.lock().map_err(|_| "a thread has panicked")?) {
        if time != 0 {
            println!("longest wait, {}: {:.3} s", counter.name(), time as f64 / 1e9);
        }
    }
    match longest() {
        _ if WRONG.load(Ordering::SeqCst) => Err("a byte was wrong".into()),
        Some((counter, time)) if time > LONGEST => {
            Err(format!("{} was {time:?} long", counter.name()).into())
        }
        _ => {
            println!("all bytes were right, and nothing is left");
            Ok(())
        }
    }
}
