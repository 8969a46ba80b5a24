//! The machine in software: an engine under a design, with a file in a store that delays reads.

use super::{Child, Machine, Memory, Process, Task, Touched};
use crate::designs::{self, LeafTables};
use crate::measure::IN_MAJOR_FAULTS;
use crate::record::{self, Operation};
use crate::scenarios::{Needs, Page, Settings, TestFile, Turn};
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::fault::FaultError;
use faultless::host::{Clock, Host, OutOfMemory};
use faultless::protection::{Access, Protection, Sharing};
use faultless::stats::{Counter, Statistics};
use faultless::store::{DelayedStore, Store};
use faultless::sync::Shared;
use faultless::{
    AddressSpace, DiscardError, Engine, Fault, File, ForkError, Limits, MapError, MapRequest, ProtectError,
    Source, UnmapError,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::collections::BTreeMap;
use std::error::Error;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for pages that I/O has pinned, after the last thread has ended.
const SETTLE: Duration = Duration::from_secs(2);

/// File of a round: its contents, and the engine's handle.
#[derive(Clone)]
struct Opened {
    contents: Arc<TestFile>,
    file: Shared<File<Soft>>,
}

/// An engine with the resources that the scenario needs.
pub struct SoftMachine<D> {
    engine: Arc<Engine<Soft>>,
    file: Option<Opened>,
    /// The number of ranges that were still reserved when their process ended. Atomic.
    taken: Arc<AtomicUsize>,
    design: PhantomData<fn() -> D>,
}

impl<D: LockingDesign> SoftMachine<D> {
    /// Returns a machine with the resources in `needs`.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the settings do not allow it.
    pub fn new(needs: &Needs, file: Option<&Arc<TestFile>>, settings: &Settings) -> Result<Self, Trouble> {
        Self::on(Self::host(needs)?, needs, file, settings)
    }

    /// Returns the machine for a round. If the round is recorded, the machine also records its waits.
    ///
    /// # Errors
    /// As [`SoftMachine::new`].
    pub fn for_turn(needs: &Needs, file: Option<&Arc<TestFile>>, turn: &Turn<'_>) -> Result<Self, Trouble> {
        let host = Self::host(needs)?;
        let host = if turn.recorder.is_some() { host.with_trace(record::on_wait) } else { host };
        Self::on(host, needs, file, turn.settings)
    }

    fn host(needs: &Needs) -> Result<Soft, Trouble> {
        Soft::new(needs.frames).map_err(|error| {
            let size = (needs.frames * PAGE_SIZE) >> 20;
            Trouble::Input(format!("--memory: {error} ({size} MiB)"))
        })
    }

    fn on(
        host: Soft,
        needs: &Needs,
        file: Option<&Arc<TestFile>>,
        settings: &Settings,
    ) -> Result<Self, Trouble> {
        let mut limits = Limits { cached_pages: needs.cached_pages.unwrap_or(u64::MAX), ..Limits::default() };
        let own = designs::find(D::NAME).map_or(LeafTables::Share, |design| design.fork);
        if settings.fork.unwrap_or(own) == LeafTables::Copy {
            limits.shared_entries = u64::MAX;
        }
        let engine = Engine::new(host, limits).map_err(|error| too_small(&error))?;
        let open = |contents: &Arc<TestFile>| {
            let store = DelayedStore::new(contents.store()?, settings.io_latency);
            let store: Arc<dyn Store> = match settings.queue_depth {
                Some(depth) => Arc::new(store.with_queue_depth(depth)),
                None => Arc::new(store),
            };
            let file = File::open(&engine, store)
                .map_err(|error| Trouble::Input(format!("cannot map the file: {error}")))?;
            Ok::<_, Trouble>(Opened { contents: contents.clone(), file })
        };
        let file = file.map(open).transpose()?;
        Ok(Self { engine, file, taken: Arc::default(), design: PhantomData })
    }
}

impl<D: LockingDesign> Machine for SoftMachine<D> {
    type Process = SoftProcess<D>;

    fn process(&self) -> Result<SoftProcess<D>, Trouble> {
        let space = AddressSpace::new(&self.engine).map_err(|error: OutOfMemory| too_small(&error))?;
        Ok(SoftProcess { space, file: self.file.clone(), taken: self.taken.clone() })
    }

    fn statistics(&self) -> BTreeMap<String, u64> {
        self.engine.statistics().iter().map(|(counter, n)| (counter.name().to_string(), n)).collect()
    }

    /// Checks that no range is reserved and that all frames are free except the page of zeros. Waits until the last
    /// completion has unpinned its pages.
    fn finish(mut self) -> Result<(), Trouble> {
        self.file = None;
        let taken = self.taken.load(Ordering::Relaxed);
        if taken != 0 {
            return Err(Trouble::Wrong(format!("{taken} ranges are taken after the last call has returned")));
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            self.engine.flush();
            let used = self.engine.frame_usage().used;
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
}

/// Process that is an address space of the engine.
pub struct SoftProcess<D: LockingDesign> {
    space: AddressSpace<Soft, D>,
    file: Option<Opened>,
    /// The counter of [`SoftMachine`].
    taken: Arc<AtomicUsize>,
}

impl<D: LockingDesign> Drop for SoftProcess<D> {
    fn drop(&mut self) {
        self.taken.fetch_add(self.space.taken_ranges(), Ordering::Relaxed);
    }
}

impl<D: LockingDesign> SoftProcess<D> {
    #[inline]
    fn served<T>(&self, done: Result<T, AccessError>) -> Result<T, Trouble> {
        done.map_err(|error| match error {
            AccessError::Fault(error) => self.not_served(error),
            error @ AccessError::Unaligned { .. } => refused("an access", &error, false),
        })
    }

    /// Handles a fault to its end.
    fn fault(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble> {
        let not_served = |error| self.not_served(error);
        let mut touched = Touched::Minor;
        let mut fault = self.space.fault(at, access).map_err(not_served)?;
        while let Fault::Pending(pending) = fault {
            touched = Touched::Major;
            fault = pending.wait().map_err(not_served)?;
        }
        Ok(touched)
    }

    /// Runs `work`, and records it if the thread is recorded.
    fn recorded<R>(&self, operation: Operation, work: impl FnOnce() -> R) -> R {
        record::operation(operation, || self.space.engine().host().clock().now_ns(), work)
    }

    #[cold]
    fn not_served(&self, error: FaultError) -> Trouble {
        match (&self.file, error) {
            (Some(file), FaultError::PastEnd { .. } | FaultError::Io { .. }) => file.contents.explain(error),
            _ => refused("an access", &error, matches!(error, FaultError::OutOfMemory { .. })),
        }
    }
}

impl<D: LockingDesign> Memory for SoftProcess<D> {
    fn map_anonymous(&self, bytes: u64) -> Result<VirtAddr, Trouble> {
        self.recorded(Operation::Map, || self.space.map(MapRequest::anonymous(bytes))).map_err(not_mapped)
    }

    fn map_file(&self, sharing: Sharing) -> Result<VirtAddr, Trouble> {
        let Some(Opened { contents, file }) = &self.file else {
            return Err(Trouble::Wrong("the scenario maps a file and has asked for none".into()));
        };
        let source = Source::File { file: file.clone(), first: 0, sharing };
        let request = MapRequest::file(file, 0, contents.length(), Protection::READ);
        let request = MapRequest { source, ..request };
        self.recorded(Operation::Map, || self.space.map(request)).map_err(not_mapped)
    }

    fn unmap_file(&self, start: VirtAddr) -> Result<(), Trouble> {
        let length = self.file.as_ref().map_or(0, |file| file.contents.length());
        self.unmap(start, length)
    }

    fn unmap(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        self.recorded(Operation::Unmap, || self.space.unmap(start, bytes))
            .map_err(|error| refused("unmap", &error, matches!(error, UnmapError::OutOfMemory { .. })))
    }

    fn protect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Trouble> {
        self.recorded(Operation::Protect, || self.space.protect(start, bytes, protection))
            .map_err(|error| refused("protect", &error, matches!(error, ProtectError::OutOfMemory { .. })))
    }

    fn discard(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        self.recorded(Operation::Discard, || self.space.discard(start, bytes))
            .map_err(|error| refused("discard", &error, matches!(error, DiscardError::OutOfMemory { .. })))
    }

    #[inline]
    fn load(&self, at: VirtAddr) -> Result<u64, Trouble> {
        match self.space.try_load_u64(at) {
            Ok(value) => Ok(value),
            Err(_) => self.served(self.recorded(Operation::Fault, || self.space.load_u64(at))),
        }
    }

    #[inline]
    fn store(&self, at: VirtAddr, value: u64) -> Result<(), Trouble> {
        match self.space.try_store_u64(at, value) {
            Ok(()) => Ok(()),
            Err(_) => self.served(self.recorded(Operation::Fault, || self.space.store_u64(at, value))),
        }
    }

    fn read_page(&self, start: VirtAddr, page: &mut Page) -> Result<(), Trouble> {
        self.space.read_bytes(start, page).map_err(|error| self.not_served(error))
    }

    fn touch(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble> {
        let there = match access {
            Access::Write => self.space.try_store_u64(at, 1).is_ok(),
            Access::Read | Access::Execute => self.space.try_load_u64(at).is_ok(),
        };
        if there {
            return Ok(Touched::Minor);
        }
        let touched = self.recorded(Operation::Fault, || self.fault(at, access))?;
        if access == Access::Write {
            self.store(at, 1)?;
        }
        Ok(touched)
    }

    fn counted(&self) -> [Option<u64>; IN_MAJOR_FAULTS.len()] {
        let mut counted = Statistics::default();
        counted.accumulate(&self.space.engine().counters());
        IN_MAJOR_FAULTS.map(|(_, counter): (_, Counter)| Some(counted.get(counter)))
    }
}

impl<D: LockingDesign> Process for SoftProcess<D> {
    type Child = SoftChild<D>;

    fn fork(&self, task: &Arc<dyn Task>) -> Result<SoftChild<D>, Trouble> {
        let space = self
            .recorded(Operation::Fork, || self.space.fork())
            .map_err(|error| refused("fork", &error, error == ForkError::OutOfMemory))?;
        let process = Self { space, file: self.file.clone(), taken: self.taken.clone() };
        Ok(SoftChild { process, task: task.clone() })
    }
}

/// Child that is a copied space. The thread that joins it runs its task.
pub struct SoftChild<D: LockingDesign> {
    process: SoftProcess<D>,
    task: Arc<dyn Task>,
}

impl<D: LockingDesign> Child for SoftChild<D> {
    fn join(self) -> Result<(), Trouble> {
        self.task.run(&self.process)?;
        self.process.recorded(Operation::Exit, || self.process.space.exit());
        Ok(())
    }
}

fn too_small(error: &dyn Error) -> Trouble {
    Trouble::Input(format!("--memory: {error}"))
}

/// Returns the error of a failed call. A scenario makes only calls that should succeed, unless memory is too small.
fn refused(call: &str, error: &dyn Error, no_memory: bool) -> Trouble {
    match no_memory {
        true => Trouble::Input(format!("{error}; raise --memory")),
        false => Trouble::Wrong(format!("{call} fails: {error}")),
    }
}

fn not_mapped(error: MapError) -> Trouble {
    refused("map", &error, error == MapError::OutOfMemory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::designs::{ALL, Visitor};

    struct Nothing;

    impl Task for Nothing {
        fn run(&self, _: &dyn Memory) -> Result<(), Trouble> {
            Ok(())
        }
    }

    /// Returns the number of leaf tables that a fork of 1,024 pages shares.
    struct Shared(Option<LeafTables>);

    impl Visitor for Shared {
        type Output = u64;
        fn visit<D: LockingDesign>(self) -> u64 {
            let needs = Needs {
                frames: 4096,
                cached_pages: None,
                file_bytes: None,
                processes: 1,
                is_thrashing: false,
                threads: 1,
            };
            let settings = Settings { fork: self.0, ..Settings::default() };
            let machine = SoftMachine::<D>::new(&needs, None, &settings).unwrap();
            let process = machine.process().unwrap();
            let start = process.map_anonymous(1024 * PAGE_SIZE).unwrap();
            for page in 0..1024 {
                process.store(VirtAddr::new(start.get() + page * PAGE_SIZE), 1).unwrap();
            }
            let task: Arc<dyn Task> = Arc::new(Nothing);
            process.fork(&task).unwrap().join().unwrap();
            drop(process);
            let shared = machine.statistics()[Counter::TablesShared.name()];
            machine.finish().unwrap();
            shared
        }
    }

    /// Linux copies entries at fork, so its models do. `--fork` gives all designs the same way.
    #[test]
    fn models_of_linux_copy_leaf_tables_at_fork() {
        for design in ALL {
            let shares = |how| design.visit(Shared(how)) != 0;
            assert_eq!(shares(None), design.name.starts_with("faultless"), "{}", design.name);
            assert!(!shares(Some(LeafTables::Copy)) && shares(Some(LeafTables::Share)), "{}", design.name);
        }
    }
}
