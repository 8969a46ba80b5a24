//! Measures the cost of waiting with thousands of threads, for the figures of docs/waits.md. It runs on the software
//! MMU, and on Linux if Linux has the same operation.
//!
//! `cargo run --release -p faultless-soft --example ten_thousand`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, GatedStore, Store, StoreError, Transfer};
use faultless::{Engine, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::{Duration, Instant};

type Space = faultless::AddressSpace<Soft, faultless::design::Faultless>;

/// A store of pages of zeros.
struct Zeros(u64);

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(0);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

fn engine(frames: u64, limits: Limits) -> Arc<Engine<Soft>> {
    Engine::new(Soft::new(frames).expect("memory for the frames"), limits).expect("memory for the engine")
}

fn spawn<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, ()> {
    thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, work).expect("a thread")
}

/// Returns the processor time of the process or of the calling thread.
fn cpu_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "clock_gettime");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cpu() -> Duration {
    cpu_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the processor time of the process once it is idle.
fn when_idle() -> Duration {
    let mut before = cpu();
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = cpu();
        if now - before < Duration::from_millis(1) {
            return before;
        }
        before = now;
    }
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[0], times[times.len() - 1])
}

fn row(what: &str, (middle, least, most): (Duration, Duration, Duration)) {
    println!("{what:<66} {middle:>9.1?}  ({least:.1?} to {most:.1?})");
}

/// Has `threads` threads change the rights of one page, a fixed number of times in all. Returns the time for each
/// change, and the longest.
fn changes(threads: usize, change: impl Fn(usize) + Sync) -> (Duration, Duration) {
    const ALL: usize = 16_384;
    let start = Barrier::new(threads + 1);
    let worst = AtomicU64::new(0);
    let mut begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            spawn(scope, || {
                start.wait();
                for n in 0..ALL / threads {
                    let begun = Instant::now();
                    change(n);
                    worst.fetch_max(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
                }
            });
        }
        // Read before the threads start, since this thread may be the last to resume.
        begun = Instant::now();
        start.wait();
    });
    (begun.elapsed() / ALL as u32, Duration::from_nanos(worst.into_inner()))
}

fn one_place() {
    const ROUNDS: usize = 5;
    for threads in [64, 1024, 2048] {
        let engine = engine(64, Limits::default());
        let space = Space::new(&engine).expect("a space");
        let at = space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
        // SAFETY: a new mapping, which no other code uses.
        let page = unsafe {
            let (rights, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), PAGE_SIZE as usize, rights, kind, -1, 0)
        };
        assert_ne!(page, libc::MAP_FAILED, "mmap");
        let page = page.addr();
        let (mut ours, mut linux, mut worst) = (Vec::new(), Vec::new(), [Duration::ZERO; 2]);
        for _ in 0..ROUNDS {
            let (each, longest) = changes(threads, |n| {
                let rights = if n % 2 == 0 { Protection::READ } else { Protection::READ | Protection::WRITE };
                space.protect(at, PAGE_SIZE, rights).expect("mprotect");
            });
            ours.push(each);
            worst[0] = worst[0].max(longest);
            let (each, longest) = changes(threads, |n| {
                let rights = if n % 2 == 0 { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
                // SAFETY: the mapping above, which is not accessed.
                let result = unsafe {
                    libc::mprotect(std::ptr::with_exposed_provenance_mut(page), PAGE_SIZE as usize, rights)
                };
                assert_eq!(result, 0, "mprotect");
            });
            linux.push(each);
            worst[1] = worst[1].max(longest);
        }
        row(&format!("mprotect of one page by {threads} threads"), median(ours));
        row("  the same, Linux", median(linux));
        println!("  the longest: {:.1?}; Linux {:.1?}", worst[0], worst[1]);
    }
}

/// Stores into each frame once, so that the operating system has backed them all. Its own first fault would cost as
/// much as the measured work.
fn use_all_frames(engine: &Arc<Engine<Soft>>) {
    let space = Space::new(engine).expect("a space");
    let usage = engine.frame_usage();
    let pages = usage.limit - usage.used;
    let at = space.map(MapRequest::anonymous(pages * PAGE_SIZE)).expect("a mapping");
    for page in 0..pages {
        space.store_u64(VirtAddr::new(at.get() + page * PAGE_SIZE), 1).expect("a frame");
    }
    space.exit();
}

/// Has `threads` threads wait for pages of a file, each for a different one, while `work` runs.
fn beside_waits(threads: u64, work: impl FnOnce(&Arc<Engine<Soft>>, &Space, &GatedStore<Zeros>)) {
    let engine = engine(threads + 100, Limits::default());
    use_all_frames(&engine);
    let store = Arc::new(GatedStore::new(Zeros(threads)));
    let file = File::open(&engine, store.clone()).expect("a file");
    let space = Space::new(&engine).expect("a space");
    let at = space.map(MapRequest::file(&file, 0, threads * PAGE_SIZE, Protection::READ)).expect("a mapping");
    // Threads that have their pages do not end yet: the end of a thread costs more than the measured work.
    let end = RwLock::new(());
    let may_end = end.write().expect("a lock");
    thread::scope(|scope| {
        for page in 0..threads {
            let (space, end) = (&space, &end);
            spawn(scope, move || {
                let address = VirtAddr::new(at.get() + page * PAGE_SIZE);
                space.load_u64(address).expect("zeros");
                drop(end.read());
            });
        }
        store.wait_for(threads as usize);
        when_idle();
        work(&engine, &space, &store);
        store.open();
        drop(may_end);
    });
}

fn exits() {
    for threads in [100, 8000] {
        beside_waits(threads, |engine, _, _| {
            let times = (0..101).map(|_| {
                let other = Space::new(engine).expect("a space");
                let begun = Instant::now();
                other.exit();
                begun.elapsed()
            });
            row(&format!("exit of an empty space beside {threads} threads in I/O"), median(times.collect()));
        });
    }
}

/// Measures the processor time of waking a sleeping thread by the operating system alone, the least cost of the end of
/// a read. Each of `threads` threads is woken once, as in [`ends_of_reads`], so that no state of a long-sleeping thread
/// is in a cache.
fn bare_wakes(threads: usize) {
    let asleep = AtomicU64::new(0);
    let times = thread::scope(|scope| {
        let sleepers: Vec<_> = (0..threads)
            .map(|_| {
                spawn(scope, || {
                    asleep.fetch_add(1, Ordering::Relaxed);
                    thread::park();
                })
            })
            .collect();
        while asleep.load(Ordering::Relaxed) < threads as u64 {
            thread::yield_now();
        }
        when_idle();
        let wake = |sleeper: &thread::ScopedJoinHandle<'_, ()>| {
            let begun = cpu_of(libc::CLOCK_THREAD_CPUTIME_ID);
            sleeper.thread().unpark();
            cpu_of(libc::CLOCK_THREAD_CPUTIME_ID) - begun
        };
        let times = sleepers[..threads / 10].iter().map(wake).collect();
        sleepers.iter().for_each(|sleeper| sleeper.thread().unpark());
        times
    });
    row(&format!("processor time of waking one of {threads} threads, without the engine"), median(times));
}

fn ends_of_reads() {
    for threads in [100, 1000, 8000] {
        bare_wakes(threads as usize);
        beside_waits(threads, |_, _, store| {
            let some = threads / 10;
            let begun = when_idle();
            let ends = (0..some).map(|_| {
                let begun = cpu_of(libc::CLOCK_THREAD_CPUTIME_ID);
                store.pass(1);
                cpu_of(libc::CLOCK_THREAD_CPUTIME_ID) - begun
            });
            row(
                &format!("processor time of the end of a read, {threads} threads waiting"),
                median(ends.collect()),
            );
            let each = (when_idle() - begun) / some as u32;
            println!("  with that of the thread that it wakes, which sleeps again: {each:.1?}");
        });
    }
}

fn without_memory() {
    for pages in [1000, 100_000] {
        let engine = engine(pages + 1, Limits::default());
        let file = File::open(&engine, Arc::new(Zeros(pages))).expect("a file");
        let space = Space::new(&engine).expect("a space");
        let at =
            space.map(MapRequest::file(&file, 0, pages * PAGE_SIZE, Protection::READ)).expect("a mapping");
        for page in 0..pages {
            space.load_u64(VirtAddr::new(at.get() + page * PAGE_SIZE)).expect("zeros");
        }
        let used = engine.frame_usage();
        assert_eq!(used.used, used.limit, "all frames are mapped");
        let anonymous = space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
        let times = (0..101).map(|_| {
            let begun = Instant::now();
            assert!(space.fault(anonymous, Access::Write).is_err(), "there is no memory");
            begun.elapsed()
        });
        row(&format!("a fault that finds no memory, {pages} pages mapped"), median(times.collect()));
    }
}

fn cold_faults() {
    for threads in [1000, 4000] {
        let engine = engine(threads + 100, Limits { cached_pages: 64, ..Limits::default() });
        let file = File::open(&engine, Arc::new(Zeros(threads))).expect("a file");
        let begun = (Instant::now(), cpu());
        thread::scope(|scope| {
            for page in 0..threads {
                let handle = file.handle();
                spawn(scope, move || {
                    let mut byte = [1];
                    handle.read_at(page * PAGE_SIZE, &mut byte).expect("a read");
                });
            }
        });
        let (took, used) = (begun.0.elapsed(), cpu() - begun.1);
        println!(
            "{threads} threads read a cold page each, room for 64: {took:.1?}, processor time {used:.1?}"
        );
    }
}

fn main() {
    if let Some(only) = std::env::args().nth(1) {
        match &*only {
            "protect" => one_place(),
            "exit" => exits(),
            "reads" => ends_of_reads(),
            "memory" => without_memory(),
            "queue" => cold_faults(),
            _ => {
                eprintln!(
                    "error: there is no part '{only}'; the parts are protect, exit, reads, memory, queue"
                );
                std::process::exit(2);
            }
        }
        return;
    }
    exits();
    ends_of_reads();
    without_memory();
    cold_faults();
    one_place();
}
