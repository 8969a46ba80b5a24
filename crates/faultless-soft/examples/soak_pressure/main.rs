//! Uses engines under memory pressure for an hour: threads in several processes fault, map, unmap, fork, page out, reclaim, lock, pin,
//! move, unshare, exit and kill, in nested groups with tight limits, while swap devices are removed and added. Every byte that is read
//! is checked.
//!
//! `cargo run --release -p faultless-soft --example soak_pressure -- [--seconds N] [--threads N] [--pages N]`. Prints a line each ten
//! seconds, and the number of operations of each kind at the end. It ends with 1 if something was wrong: a byte, a fault that found no
//! memory, a wait of more than a second that is not the device's, or something left at the end.
//!
//! | engine | groups | threads |
//! |---|---|---|
//! | reclaim order SmallMain, limits of dirty pages as Linux, pauses in the middle of copies | families: two groups below a third one | half of the processes; a [`keeper`] |
//! | reclaim order Generations | the same | the other half; a [`keeper`] |
//! | with a device that fails, and too little room ([`troubled`]) | none | two of its own |
//!
//! The time of a wait does not include the thread's own time in the run queue. It includes that of the thread for which it waits: a thread
//! that holds a range may be off its processor for seconds if the machine has other work. Run it on a machine that has none.

mod arguments;
mod calls;
mod counts;
mod ending;
mod files;
mod forks;
mod keeper;
mod machine;
mod model;
mod troubled;
mod waits;
mod worker;

use arguments::{Arguments, USAGE};
use counts::Kind;
use faultless::AddressSpace;
use faultless::design::Faultless;
use faultless::stats::Counter;
use faultless_soft::Soft;
use keeper::Keeper;
use machine::World;
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::Duration;
use troubled::Troubled;
use worker::Worker;

type Failure = Box<dyn Error + Send + Sync>;
type Space = AddressSpace<Soft, Faultless>;

/// The time of one operation after which the run is given up.
const STUCK: Duration = Duration::from_secs(300);

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
    let threads = arguments.threads;
    let keepers = if threads > machine::TOGETHER { 2 } else { 1 };
    let (world, troubled) = (World::new(arguments, keepers + troubled::THREADS)?, Troubled::new()?);
    let (world_ref, troubled_ref) = (&world, &troubled);
    let written = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || all_stop(world_ref, Worker::new(world_ref, number)?.run())))
            .collect();
        let keepers_made = (0..keepers).map(|number| {
            let keeper = Keeper::new(world_ref, number, threads + number);
            scope.spawn(move || all_stop(world_ref, keeper.run()))
        });
        let users = (0..troubled::THREADS).map(|me| {
            let run = move || troubled_ref.run(world_ref, me, threads + keepers + me);
            scope.spawn(move || all_stop(world_ref, run()))
        });
        let others: Vec<_> = keepers_made.chain(users).collect();
        watch(world_ref, arguments);
        let written = workers.into_iter().map(join).collect::<Result<Vec<_>, Failure>>();
        others.into_iter().try_for_each(join)?;
        written
    })?;
    ending::end(world, troubled, &written)
}

/// Ends the run if a thread has failed.
fn all_stop<R>(world: &World, result: Result<R, Failure>) -> Result<R, Failure> {
    result.inspect_err(|failure| {
        eprintln!("soak_pressure: {failure}");
        world.end();
    })
}

fn join<R>(thread: ScopedJoinHandle<'_, Result<R, Failure>>) -> Result<R, Failure> {
    thread.join().map_err(|_| "a thread has panicked")?
}

/// Prints a line each ten seconds, until the time is over.
fn watch(world: &World, arguments: &Arguments) {
    let mut next = Duration::from_secs(10);
    while !world.is_over() {
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
            world.end();
        }
    }
}

fn line(world: &World, now: Duration) {
    let counters = [Counter::SwapIns, Counter::SwapOuts, Counter::Reclaimed, Counter::ReclaimedInBackground];
    let statistics = world.machines.each_ref().map(|machine| machine.engine.statistics());
    let sum = |counter| statistics.iter().map(|all| all.get(counter)).sum::<u64>();
    let [ins, outs, reclaimed, background] = counters.map(sum);
    let kinds = [Kind::Shared, Kind::Own, Kind::Fork, Kind::Kill, Kind::SwapOff];
    let [shared, own, forks, kills, removed] = kinds.map(|kind| world.counts.get(kind));
    println!(
        "{:>5} s: {} accesses, {forks} forks, {kills} kills, {removed} swapoffs, {ins} pages in, {outs} out, {reclaimed} reclaimed, \
         {background} freed in background; longest wait {:.3} s",
        now.as_secs(),
        shared + own,
        waits::longest().map_or(0.0, |(_, time)| time.as_secs_f64())
    );
}
