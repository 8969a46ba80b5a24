//! `fork-during-io` (linux-mm, May 2026, "reduce mmap_lock contention and improve page fault performance"): threads
//! fault on cold pages of a file. Others stamp private pages in a dependent order. One thread forks at a fixed rate.
//! A bystander maps, touches and unmaps one page at a fixed rate.
//!
//! The scenario shows how long each of them waits, and for which other threads. Headline: the bystander's p99.
//!
//! It cannot show the cost of retries: designs that release all locks for I/O are level here, and only those that
//! hold a lock lose. It cannot show the benefit of a fork that locks only the mappings that it copies. The file's
//! mappings are private, and `vma-lock-hold-cow-fork` locks them like the others.

use super::actors::{Periodic, Round, at_fixed_rate, ended, stand_by, wake_precisely};
use super::contents::{Page, TestFile, mix, pick};
use super::faults::MajorFaults;
use super::figure::{
    BYSTANDER_P99, CPU_EACH, FAULT_P50, FAULT_P99, Figure, MMAP_LOCK_EACH, RETRIES_EACH, Unit, VMA_LOCK_EACH,
};
use super::stamps::{Chain, check_order};
use super::{Kind, Needs, Play, Scenario, Settings, Turn};
use crate::machine::{Child, Machine, Memory, Process, Task};
use crate::measure::Measured;
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Sharing;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "fork-during-io",
    about: "threads fault on cold pages of a file; one thread forks; a bystander maps and unmaps one page",
    source: "linux-mm, May 2026, reduce mmap_lock contention: fork waits for the I/O of every VMA, and all threads wait for fork",
    cannot_show: "the cost of retries: designs that hold nothing during I/O are level here. Also not: forks that skip file mappings. These mappings are private, and vma-lock-hold-cow-fork locks them like the others",
    headline: BYSTANDER_P99,
    figures: &[
        Figure::time("fork_p99", "fork p99", Unit::Micros, |m| m.quantile_us("fork", 0.99)),
        FAULT_P99,
        Figure::rate("major_faults", "major faults", |m| m.a_second_of_all("major_faults")),
        Figure::time("bystander_p50", "bystander p50", Unit::Micros, |m| m.quantile_us("bystander", 0.5))
            .shown(),
        Figure::time("bystander_max", "bystander max", Unit::Micros, |m| m.max_us("bystander")).shown(),
        Figure::time("fork_p50", "fork p50", Unit::Micros, |m| m.quantile_us("fork", 0.5)).shown(),
        FAULT_P50,
        CPU_EACH,
        MMAP_LOCK_EACH,
        VMA_LOCK_EACH,
        RETRIES_EACH,
    ],
    checked: &[
        ("pages_checked", "pages of the file, byte by byte"),
        ("children_checked", "children of fork"),
    ],
    missed: &[
        ("children_unchecked", "children were not checked, for lack of time"),
        ("forks_missed", "forks did not start on time"),
        ("bystander_missed", "bystander operations did not start on time"),
    ],
    // The rates are no multiples of each other. Within a second, each actor therefore meets every phase of the
    // other's period.
    rates: &[("fork", 50.0), ("bystander", 499.0)],
    threads: 5,
    work: "three in five fault on the file, the others write stamps",
    does_io: true,
    kind: Kind::ForkDuringIo,
};

/// The size of the temporary file, in bytes.
const FILE: u64 = 64 << 20;
/// The resident memory of all stampers together, in bytes. It is less if the machine's memory is small.
const STAMPED: u64 = 16 << 20;
/// The warm-up before each measurement.
const WARM_UP: Duration = Duration::from_millis(200);
/// The maximum number of children that wait for their check. A further child is dropped unchecked, and counted.
const WAITING: usize = 2;
/// The time between the first and the second reading of a child's pages.
const LATER: Duration = Duration::from_millis(2);

/// The division of threads and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shares {
    /// Frames of the machine.
    frames: u64,
    /// The number of threads that fault on the file: three in five.
    readers: usize,
    /// The number of threads that stamp.
    stampers: usize,
    /// The number of pages of each stamper.
    stamped: u64,
    /// The limit of the page cache, in pages: an eighth of the file, so that pages become cold again.
    cached: u64,
    /// The number of pages that a reader maps before it maps anew. All readers together map half the cache.
    window: u64,
}

impl Shares {
    fn new(settings: &Settings, file_pages: u64) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        if threads < 2 {
            return Err(Trouble::Input(
                "fork-during-io needs at least 2 threads: one reads, one stamps; raise --threads".into(),
            ));
        }
        let readers = (3 * threads).div_ceil(5).min(threads - 1);
        let stampers = threads - readers;
        let frames = settings.memory / PAGE_SIZE;
        // The pages of the parent and of up to five children take six sixteenths. The cache takes a quarter.
        let stamped = (STAMPED / PAGE_SIZE).min(frames / 16) / stampers as u64;
        let least = 4 * readers as u64;
        if stamped == 0 || frames / 4 < least {
            return Err(settings.too_small(threads, (16 * stampers as u64).max(4 * least)));
        }
        let cached = (file_pages / 8).clamp(least, frames / 4);
        Ok(Self { frames, readers, stampers, stamped, cached, window: cached / 2 / readers as u64 })
    }
}

/// The state that all rounds share.
pub(super) struct Prepared {
    file: Arc<TestFile>,
    shares: Shares,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        // Checks the settings before the file is written or read, so that a wrong number is reported at once.
        Shares::new(settings, FILE / PAGE_SIZE)?;
        let file = TestFile::of(settings, FILE)?;
        let shares = Shares::new(settings, file.pages())?;
        Ok(Self { file, shares })
    }

    fn needs(&self) -> Needs {
        Needs {
            cached_pages: Some(self.shares.cached),
            file_bytes: Some(self.file.length()),
            ..Needs::new(self.shares.frames)
        }
    }

    fn file(&self) -> Option<&Arc<TestFile>> {
        Some(&self.file)
    }

    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let shares = self.shares;
        let process = machine.process()?;
        let chain = Arc::new(Chain::new(&process, shares.stampers, shares.stamped)?);
        let round = Round::new(turn, WARM_UP);
        let cast = Cast { prepared: self, machine, turn, round: &round, process: &process, chain: &chain };
        let measured = cast.play();
        round.result(measured)
    }
}

/// The result of a reader thread.
#[derive(Default)]
struct Read {
    faults: MajorFaults,
    pages: u64,
}

/// The task of a child of fork.
struct CheckStamps {
    chain: Arc<Chain>,
    number: u64,
}

impl Task for CheckStamps {
    /// Checks that the child's pages show one instant (invariant 7) and that they stay the same a little later. Then
    /// writes to a page. The stampers check that they do not see this store.
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble> {
        let torn = |what| Trouble::Wrong(format!("torn child, number {}: {what}", self.number));
        let first = self.chain.snapshot(child)?;
        check_order(&first).map_err(torn)?;
        std::thread::sleep(LATER);
        if self.chain.snapshot(child)? != first {
            return Err(torn("its pages have changed since the fork".into()));
        }
        self.chain.spoil(child, self.number)
    }
}

/// The threads of one round, and the objects that they share.
struct Cast<'a, M: Machine> {
    prepared: &'a Prepared,
    machine: &'a M,
    turn: &'a Turn<'a>,
    round: &'a Round<'a>,
    process: &'a M::Process,
    chain: &'a Arc<Chain>,
}

impl<M: Machine> Cast<'_, M> {
    fn play(&self) -> Result<Measured, Trouble> {
        let (shares, round) = (self.prepared.shares, self.round);
        let rate = |actor| self.turn.settings.rate(&SCENARIO, actor);
        let (send, children) = sync_channel(WAITING);
        let mut measured = Measured::default();
        std::thread::scope(|scope| {
            let readers = (0..shares.readers)
                .map(|me| round.spawn(scope, "reader", move || self.read(me as u64)))
                .collect::<Result<Vec<_>, _>>()?;
            let stampers = (0..shares.stampers)
                .map(|me| round.spawn(scope, "stamper", move || self.chain.run(self.process, me, round)))
                .collect::<Result<Vec<_>, _>>()?;
            let checker = round.spawn(scope, "checker", move || check(children))?;
            let forker = round.spawn(scope, "fork", move || self.fork(rate("fork"), send))?;
            let bystander =
                round.spawn(scope, "bystander", move || stand_by(self.process, round, rate("bystander")))?;

            round.count(self.machine, &mut measured);

            for Read { faults, pages } in readers.into_iter().filter_map(ended) {
                faults.add_to(&mut measured);
                measured.count("pages_checked", pages);
            }
            for stamped in stampers.into_iter().filter_map(ended) {
                measured.count("pages_stamped", stamped);
            }
            if let Some((forks, unchecked)) = ended(forker) {
                measured.count("children_unchecked", unchecked);
                forks.add_to(&mut measured, "fork", ["forks", "forks_missed"]);
            }
            if let Some(acts) = ended(bystander) {
                acts.add_to(&mut measured, "bystander", ["bystander_acts", "bystander_missed"]);
            }
            if let Some(checked) = ended(checker) {
                measured.count("children_checked", checked);
            }
            Ok(measured)
        })
    }

    /// Faults on random pages and checks every byte of each. Maps the file anew after each window, so that its old
    /// pages can be evicted and become cold.
    fn read(&self, me: u64) -> Result<Read, Trouble> {
        let (file, round) = (&self.prepared.file, self.round);
        let mut random = mix(self.turn.seed ^ mix(me));
        let mut result = Read::default();
        let mut bytes: Page = [0; PAGE_SIZE as usize];
        while !round.is_over() {
            let start = self.process.map_file(Sharing::Private)?;
            for _ in 0..self.prepared.shares.window {
                let page = pick(&mut random, file.pages());
                let address = VirtAddr::new(start.get() + page * PAGE_SIZE);
                result.faults.load(self.process, round, address)?;
                self.process.read_page(address, &mut bytes)?;
                file.check(page, &bytes)?;
                result.pages += 1;
                if round.is_over() {
                    break;
                }
            }
            self.process.unmap_file(start)?;
        }
        Ok(result)
    }

    /// Forks at a fixed rate, and hands the children to the checker. The second result is the number of children that
    /// it could not hand over.
    fn fork(
        &self,
        hertz: f64,
        children: SyncSender<<M::Process as Process>::Child>,
    ) -> Result<(Periodic, u64), Trouble> {
        let (mut unchecked, mut number) = (0, 0);
        let forks = at_fixed_rate(self.round, hertz, |_| {
            let task: Arc<dyn Task> = Arc::new(CheckStamps { chain: self.chain.clone(), number });
            let child = self.process.fork(&task)?;
            let ended = Instant::now();
            number += 1;
            if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = children.try_send(child) {
                unchecked += 1;
            }
            Ok(ended)
        })?;
        Ok((forks, unchecked))
    }
}

/// Waits until each child has checked itself and exited. Returns the number of children.
fn check<C: Child>(children: Receiver<C>) -> Result<u64, Trouble> {
    wake_precisely();
    let mut checked = 0;
    // The loop ends when the forking thread has ended.
    for child in children {
        child.join()?;
        checked += 1;
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(threads: usize, memory: u64) -> Settings {
        Settings { threads: Some(threads), memory, ..Settings::default() }
    }

    #[test]
    fn threads_and_memory_are_shared_out() {
        let share = |threads, memory| Shares::new(&settings(threads, memory), 16384);
        let five = share(5, 256 << 20).unwrap();
        assert_eq!((five.readers, five.stampers, five.stamped), (3, 2, 2048));
        assert_eq!((five.cached, five.window), (2048, 341));
        for threads in 2..200 {
            let shares = share(threads, 64 << 20).unwrap();
            assert_eq!(shares.readers + shares.stampers, threads);
            assert!(shares.readers > 0 && shares.stampers > 0 && shares.window > 0);
            // The pages of all processes that exist at the same time fit.
            let stamped = shares.stamped * shares.stampers as u64;
            assert!(6 * stamped + shares.cached + 64 <= shares.frames, "{shares:?}");
        }
        assert!(share(1, 256 << 20).is_err());
        assert!(share(16, 64 << 10).is_err());
        assert!(share(2, 256 << 10).is_ok());
    }
}
