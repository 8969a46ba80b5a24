//! Measures the cost that remains after threads have ended: of a store to a page that is then discarded, and of a fork
//! whose child is dropped. Compares a machine that many threads have used at once with one that only this thread has
//! used. They run in turns. Prints medians in nanoseconds.
//!
//! `cargo run --release -p faultless-soft --example thread_price -- [THREADS] [ROUNDS]`

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::{AddressSpace, Advice, Engine, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::sync::{Arc, Barrier};
use std::time::Instant;

type Failure = Box<dyn Error + Send + Sync>;

/// The operations of one kind in a round.
const BATCH: u32 = 200;

struct Machine {
    name: &'static str,
    engine: Arc<Engine<Soft>>,
    space: AddressSpace<Soft, Faultless>,
    page: VirtAddr,
    discards: Vec<f64>,
    forks: Vec<f64>,
}

impl Machine {
    fn new(name: &'static str) -> Result<Self, Failure> {
        let engine = Engine::new(Soft::new(4096)?, Limits::default())?;
        let space = AddressSpace::new(&engine)?;
        let page = space.map(MapRequest::anonymous(PAGE_SIZE))?;
        Ok(Self { name, engine, space, page, discards: Vec::new(), forks: Vec::new() })
    }

    fn discard(&self) -> Result<(), Failure> {
        self.space.store_u64(self.page, 1)?;
        Ok(self.space.advise(self.page, PAGE_SIZE, Advice::DontNeed)?)
    }

    /// Runs `threads` threads that all exist before the first one ends.
    fn visit(&self, threads: usize) -> Result<(), Failure> {
        let all_here = Barrier::new(threads);
        std::thread::scope(|scope| {
            let visit = || {
                let done = self.discard();
                all_here.wait();
                done
            };
            let spawn = |_| std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, visit);
            // If a thread cannot be made, the others would wait for ever, so that ends the program.
            let threads: Vec<_> = (0..threads).map(|n| spawn(n).expect("that many threads")).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })
    }

    fn round(&mut self) -> Result<(), Failure> {
        let discard = each(|| self.discard())?;
        let fork = each(|| self.space.fork().map(drop).map_err(Failure::from))?;
        self.discards.push(discard);
        self.forks.push(fork);
        Ok(())
    }
}

/// Returns the nanoseconds of one call of `work`.
fn each(mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    (0..BATCH).try_for_each(|_| work())?;
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |or: usize| arguments.next().map_or(Ok(or), |text| text.parse());
    let (threads, rounds) = (number(10_000)?, number(101)?);
    let mut machines = [Machine::new("one thread")?, Machine::new("threads that ended")?];
    machines[1].visit(threads)?;
    for _ in 0..rounds {
        machines.iter_mut().try_for_each(Machine::round)?;
    }
    println!("{threads} threads that have ended, {rounds} rounds\n");
    println!("{:<20} {:>6} {:>16} {:>12}", "used by", "slots", "store + discard", "fork + drop");
    let [one, many] = machines.each_mut().map(|machine| {
        let medians = [median(&mut machine.discards), median(&mut machine.forks)];
        let slots = machine.engine.sections().listed();
        println!("{:<20} {slots:>6} {:>16.0} {:>12.0}", machine.name, medians[0], medians[1]);
        medians
    });
    println!("{:<20} {:>6} {:>16.2} {:>12.2}", "ratio", "", many[0] / one[0], many[1] / one[1]);
    Ok(())
}
