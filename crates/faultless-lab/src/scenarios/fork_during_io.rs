//! `fork-during-io` (linux-mm, May 2026, "reduce mmap_lock contention and improve page fault performance"): threads
//! fault on cold pages of a file, others stamp private pages in a dependent order, one forks at a fixed rate, and a
//! bystander maps, touches and unmaps one page at a fixed rate. It shows what each of them waits, and for whom.

use super::actors::{Periodic, Round, at_fixed_rate, thread_cpu, wake_precisely};
use super::contents::{Page, TestFile, mix};
use super::stamps::{Chain, check_order};
use super::{Scenario, Settings, Turn, not_forked, not_mapped, not_served, not_unmapped};
use crate::measure::{IN_MAJOR_FAULTS, Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::{Access, Protection};
use faultless::stats::Statistics;
use faultless::store::{DelayedStore, Store};
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

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
/// How long what I/O has pinned may take to come free after the last thread has ended.
const SETTLE: Duration = Duration::from_secs(2);

type Space<D> = AddressSpace<Soft, D>;

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
        let threads = settings.threads;
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
            let needed = ((16 * stampers as u64).max(4 * least) * PAGE_SIZE) >> 10;
            return Err(Trouble::Input(format!(
                "{} KiB of memory are too little for {threads} threads: they need {needed} KiB",
                settings.memory >> 10
            )));
        }
        let cached = (file_pages / 8).clamp(least, frames / 4);
        Ok(Self { frames, readers, stampers, stamped, cached, window: cached / 2 / readers as u64 })
    }
}

/// What all rounds share: the file.
pub(super) struct Prepared {
    file: TestFile,
    shares: Shares,
}

impl Prepared {
    pub(super) fn new(settings: &Settings) -> Result<Self, Trouble> {
        // Before the file is written or read: nobody waits to hear of a wrong number.
        Shares::new(settings, FILE / PAGE_SIZE)?;
        let file = match &settings.file {
            Some(path) => TestFile::read(path)?,
            None => TestFile::temporary(FILE, settings.seed)?,
        };
        let shares = Shares::new(settings, file.pages())?;
        Ok(Self { file, shares })
    }

    pub(super) fn round<D: LockingDesign>(
        &self,
        scenario: &Scenario,
        turn: &Turn<'_>,
    ) -> Result<Measured, Trouble> {
        let shares = self.shares;
        let host = Soft::new(shares.frames).map_err(|error| Trouble::Input(format!("--memory: {error}")))?;
        let limits = Limits { cached_pages: shares.cached, ..Limits::default() };
        let engine =
            Engine::new(host, limits).map_err(|error| Trouble::Input(format!("--memory: {error}")))?;
        let file = File::open(&engine, self.store(turn.settings)?)
            .map_err(|error| Trouble::Input(format!("cannot map the file: {error}")))?;
        let space = Space::<D>::new(&engine).map_err(|error| Trouble::Input(format!("--memory: {error}")))?;
        let chain = Chain::new(&space, shares.stampers, shares.stamped)?;

        let round = Round::new(turn.interrupted, WARM_UP, turn.length);
        let cast =
            Cast { prepared: self, scenario, turn, round: &round, space: &space, file: &file, chain: &chain };
        let measured = cast.play();
        let taken = space.taken_ranges();
        drop((space, file));
        if let Some(trouble) = round.into_trouble() {
            return Err(trouble);
        }
        let measured = measured?;
        if taken != 0 {
            return Err(Trouble::Wrong(format!("{taken} ranges are taken after the last call has returned")));
        }
        all_given_back(&engine)?;
        Ok(measured)
    }

    fn store(&self, settings: &Settings) -> Result<Arc<dyn Store>, Trouble> {
        let store = DelayedStore::new(self.file.store()?, settings.io_latency);
        Ok(match settings.queue_depth {
            Some(depth) => Arc::new(store.with_queue_depth(depth)),
            None => Arc::new(store),
        })
    }
}

/// Every frame but the page of zeros is free again, when the last completion has let go of what it pinned.
fn all_given_back(engine: &Engine<Soft>) -> Result<(), Trouble> {
    let deadline = Instant::now() + SETTLE;
    loop {
        engine.flush();
        let used = engine.frame_usage().used;
        if used == 1 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let leaked = used.saturating_sub(1);
            return Err(Trouble::Wrong(format!(
                "leaked frames: {leaked} are in use after the last space is gone"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a reader brings back.
#[derive(Default)]
struct Read {
    faults: Latency,
    cpu: Duration,
    /// What the engine counted in those faults alone: this thread's other faults, and the stampers', are not in it.
    counted: [u64; IN_MAJOR_FAULTS.len()],
    pages: u64,
}

/// What the checker brings back.
#[derive(Default)]
struct Checked {
    children: u64,
}

/// All threads of one round, and what they work on.
struct Cast<'a, D: LockingDesign> {
    prepared: &'a Prepared,
    scenario: &'a Scenario,
    turn: &'a Turn<'a>,
    round: &'a Round<'a>,
    space: &'a Space<D>,
    file: &'a Arc<File<Soft>>,
    chain: &'a Chain,
}

impl<D: LockingDesign> Cast<'_, D> {
    fn play(&self) -> Result<Measured, Trouble> {
        let (engine, shares, round) = (self.space.engine(), self.prepared.shares, self.round);
        let rate = |actor| self.turn.settings.rate(self.scenario, actor);
        let (send, children) = sync_channel(WAITING);
        let mut measured = Measured::default();
        std::thread::scope(|scope| {
            let readers = (0..shares.readers)
                .map(|me| round.spawn(scope, "reader", move || self.read(me as u64)))
                .collect::<Result<Vec<_>, _>>()?;
            let stampers = (0..shares.stampers)
                .map(|me| round.spawn(scope, "stamper", move || self.chain.run(self.space, me, round)))
                .collect::<Result<Vec<_>, _>>()?;
            let checker = round.spawn(scope, "checker", move || self.check(&children))?;
            let forker = round.spawn(scope, "fork", move || self.fork(rate("fork"), &send))?;
            let bystander = round.spawn(scope, "bystander", move || self.stand_by(rate("bystander")))?;

            let (mut before, mut after) = Default::default();
            let length = round.run(|| before = engine.statistics(), || after = engine.statistics());
            measured.seconds = length.as_secs_f64();
            measured.count_all(&after.since(&before));

            let ended = |thread: std::thread::Result<Option<_>>| thread.ok().flatten();
            for read in readers.into_iter().filter_map(|thread| ended(thread.join())) {
                let Read { faults, cpu, counted, pages } = read;
                measured.faults_timed += faults.count();
                measured.fault_cpu += cpu;
                IN_MAJOR_FAULTS.iter().zip(counted).for_each(|((name, _), n)| measured.count(name, n));
                measured.add_latency("fault", &faults);
                measured.count("pages_checked", pages);
            }
            for stamped in stampers.into_iter().filter_map(|thread| thread.join().ok().flatten()) {
                measured.count("pages_stamped", stamped);
            }
            if let Ok(Some((forks, unchecked))) = forker.join() {
                measured.count("children_unchecked", unchecked);
                periodic(&mut measured, "fork", ["forks", "forks_missed"], &forks);
            }
            if let Ok(Some(acts)) = bystander.join() {
                periodic(&mut measured, "bystander", ["bystander_acts", "bystander_missed"], &acts);
            }
            if let Ok(Some(checked)) = checker.join() {
                measured.count("children_checked", checked.children);
            }
            Ok(measured)
        })
    }

    /// Faults on pages at random, checks every byte of each, and maps anew after each window, so that what it has had can
    /// be evicted and is cold the next time.
    fn read(&self, me: u64) -> Result<Read, Trouble> {
        let (file, round) = (&self.prepared.file, self.round);
        let pages = file.pages();
        let mut random = mix(self.turn.seed ^ mix(me));
        let mut result = Read::default();
        let mut bytes: Page = [0; PAGE_SIZE as usize];
        while !round.is_over() {
            let start = self.map_file()?;
            for _ in 0..self.prepared.shares.window {
                random = mix(random);
                // The high half of the product is even over all pages.
                let page = ((u128::from(random) * u128::from(pages)) >> 64) as u64;
                let address = VirtAddr::new(start.get() + page * PAGE_SIZE);
                self.touch(address, &mut result)?;
                self.space.read_bytes(address, &mut bytes).map_err(|error| file.explain(error))?;
                file.check(page, &bytes)?;
                result.pages += 1;
                if round.is_over() {
                    break;
                }
            }
            self.space.unmap(start, file.length()).map_err(not_unmapped)?;
        }
        Ok(result)
    }

    fn map_file(&self) -> Result<VirtAddr, Trouble> {
        let request = MapRequest::file(self.file, 0, self.prepared.file.length(), Protection::READ);
        self.space.map(request).map_err(not_mapped)
    }

    /// One access, its fault timed if that has to wait for a read.
    fn touch(&self, address: VirtAddr, result: &mut Read) -> Result<(), Trouble> {
        let explain = |error| self.prepared.file.explain(error);
        let (cpu, counted, start) = (thread_cpu(), self.counted(), Instant::now());
        if self.space.try_load_u64(address).is_ok() {
            return Ok(());
        }
        let mut fault = self.space.fault(address, Access::Read).map_err(explain)?;
        let is_major = matches!(fault, Fault::Pending(_));
        while let Fault::Pending(pending) = fault {
            fault = pending.wait().map_err(explain)?;
        }
        if is_major && self.round.measures(start) {
            result.faults.record(start.elapsed());
            result.cpu += thread_cpu() - cpu;
            let counted = self.counted().since(&counted);
            for (sum, (_, counter)) in result.counted.iter_mut().zip(IN_MAJOR_FAULTS) {
                *sum += counted.get(counter);
            }
        }
        Ok(())
    }

    /// What the engine has counted for this thread so far.
    fn counted(&self) -> Statistics {
        let mut counted = Statistics::default();
        counted.accumulate(self.space.engine().counters());
        counted
    }

    /// Forks at a fixed rate, and hands the children to the checker. How many it could not hand over is the second.
    fn fork(&self, hertz: f64, children: &SyncSender<Space<D>>) -> Result<(Periodic, u64), Trouble> {
        let mut unchecked = 0;
        let forks = at_fixed_rate(self.round, hertz, |_| {
            let child = self.space.fork().map_err(not_forked)?;
            let ended = Instant::now();
            if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = children.try_send(child) {
                unchecked += 1;
            }
            Ok(ended)
        })?;
        Ok((forks, unchecked))
    }

    /// Each child: one instant (invariant 7), the same a little later, and its own stores seen by nobody else, which
    /// the stampers check. Then it exits.
    fn check(&self, children: &Receiver<Space<D>>) -> Result<Checked, Trouble> {
        wake_precisely();
        let mut checked = Checked::default();
        // Ends when the forking thread has.
        for child in children {
            let torn = |what| Trouble::Wrong(format!("torn child, number {}: {what}", checked.children));
            let first = self.chain.snapshot(&child)?;
            check_order(&first).map_err(torn)?;
            std::thread::sleep(LATER);
            if self.chain.snapshot(&child)? != first {
                return Err(torn("its pages have changed since the fork".into()));
            }
            self.chain.spoil(&child, checked.children)?;
            child.exit();
            checked.children += 1;
        }
        Ok(checked)
    }

    /// Maps one page, stores to it, unmaps it, at a fixed rate.
    fn stand_by(&self, hertz: f64) -> Result<Periodic, Trouble> {
        at_fixed_rate(self.round, hertz, |_| {
            let page = self.space.map(MapRequest::anonymous(PAGE_SIZE)).map_err(not_mapped)?;
            self.space.store_u64(page, 1).map_err(not_served)?;
            self.space.unmap(page, PAGE_SIZE).map_err(not_unmapped)?;
            Ok(Instant::now())
        })
    }
}

fn periodic(
    measured: &mut Measured,
    latency: &'static str,
    [done, missed]: [&'static str; 2],
    acts: &Periodic,
) {
    measured.add_latency(latency, &acts.latency);
    measured.count(done, acts.done);
    measured.count(missed, acts.missed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(threads: usize, memory: u64) -> Settings {
        Settings {
            threads,
            io_latency: Duration::ZERO,
            queue_depth: None,
            rates: Vec::new(),
            file: None,
            memory,
            seed: 1,
        }
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
