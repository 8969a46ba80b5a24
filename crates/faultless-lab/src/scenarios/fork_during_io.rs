//! `fork-during-io` (linux-mm, May 2026, "reduce mmap_lock contention and improve page fault performance"): threads
//! fault on cold pages of a file, others stamp private pages in a dependent order, one forks at a fixed rate, and a
//! bystander maps, touches and unmaps one page at a fixed rate.
//!
//! Shows what each of them waits, and for whom. Headline: the bystander's p99. Cannot show what retries cost: designs
//! that let go of everything for I/O are level here, and only those that hold lose. Nor what a fork gains that locks
//! only what it copies: the file's mappings are private, which `vma-lock-hold-cow-fork` locks like the others.

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
    // No multiple of each other: within a second each comes at every moment of the other's period, whenever they began.
    rates: &[("fork", 50.0), ("bystander", 499.0)],
    threads: 5,
    work: "three in five fault on the file, the others write stamps",
    kind: Kind::ForkDuringIo,
};

/// What the temporary file has.
const FILE: u64 = 64 << 20;
/// What is stamped and so resident, over all stampers, if the memory is large enough.
const STAMPED: u64 = 16 << 20;
/// Before each measurement.
const WARM_UP: Duration = Duration::from_millis(200);
/// Children that wait to be checked, at most; one more is dropped unchecked, and counted.
const WAITING: usize = 2;
/// How long after its first reading a child is read again.
const LATER: Duration = Duration::from_millis(2);

/// How threads and memory are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shares {
    /// Frames of the machine.
    frames: u64,
    /// Threads that fault on the file: three in five.
    readers: usize,
    /// Threads that stamp.
    stampers: usize,
    /// Pages of each stamper.
    stamped: u64,
    /// The page cache's limit: an eighth of the file, so that pages turn cold again.
    cached: u64,
    /// Pages that a reader has mapped before it maps anew; together half the cache.
    window: u64,
}

impl Shares {
    fn new(settings: &Settings, file_pages: u64) -> Result<Self, Trouble> {
        let threads = settings.threads(&SCENARIO);
        if threads < 2 {
            return Err(Trouble::Input(
                "fork-during-io takes 2 threads at least: one reads, one stamps".into(),
            ));
        }
        let readers = (3 * threads).div_ceil(5).min(threads - 1);
        let stampers = threads - readers;
        let frames = settings.memory / PAGE_SIZE;
        // The parent's pages and those of up to five children take six sixteenths, the cache a quarter.
        let stamped = (STAMPED / PAGE_SIZE).min(frames / 16) / stampers as u64;
        let least = 4 * readers as u64;
        if stamped == 0 || frames / 4 < least {
            return Err(settings.too_small(threads, (16 * stampers as u64).max(4 * least)));
        }
        let cached = (file_pages / 8).clamp(least, frames / 4);
        Ok(Self { frames, readers, stampers, stamped, cached, window: cached / 2 / readers as u64 })
    }
}

/// What all rounds share: the file.
pub(super) struct Prepared {
    file: Arc<TestFile>,
    shares: Shares,
}

impl Play for Prepared {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        // Before the file is written or read: nobody waits to hear of a wrong number.
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

/// What a reader brings back.
#[derive(Default)]
struct Read {
    faults: MajorFaults,
    pages: u64,
}

/// What a child of a fork does.
struct CheckStamps {
    chain: Arc<Chain>,
    number: u64,
}

impl Task for CheckStamps {
    /// One instant (invariant 7), the same a little later, and its own stores seen by nobody else, which the stampers
    /// check.
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

/// All threads of one round, and what they work on.
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

    /// Faults on pages at random, checks every byte of each, and maps anew after each window, so that what it has had can
    /// be evicted and is cold the next time.
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

    /// Forks at a fixed rate, and hands the children to the checker. How many it could not hand over is the second.
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

/// Waits for each child to have checked itself and exited. How many did.
fn check<C: Child>(children: Receiver<C>) -> Result<u64, Trouble> {
    wake_precisely();
    let mut checked = 0;
    // Ends when the forking thread has.
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
            // All that is alive at the same time fits.
            let stamped = shares.stamped * shares.stampers as u64;
            assert!(6 * stamped + shares.cached + 64 <= shares.frames, "{shares:?}");
        }
        assert!(share(1, 256 << 20).is_err());
        assert!(share(16, 64 << 10).is_err());
        assert!(share(2, 256 << 10).is_ok());
    }
}
