//! Faults, changes and forks: each locking design in the engine on the software machine, and Linux for comparison.

mod changes;
mod faults;
mod forks;
mod host;

pub use changes::{DISJOINT_CHANGE, MAP_UNMAP};
pub use faults::{FAULT, FAULT_ZEROED_AHEAD, GIANT_VMA};
pub use forks::{COW_BREAK, FORK};

use crate::case::{Entrant, Work};
use crate::lap::Lap;
use crate::linux::{self, Linux};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, Engine, Limits, MapRequest};
use faultless_lab::designs::{self, Visitor};
use faultless_lab::trouble::Trouble;
use host::{Machine, Zeroing};
use std::any::Any;
use std::error::Error;
use std::sync::Arc;

/// The memory of one process, with the operations that a case needs of the engine and of Linux. A call through the
/// trait costs both the same nanosecond, and cases are not compiled for each design.
trait Memory: Send + Sync {
    /// Maps writable private anonymous memory of `pages` pages, as mmap does.
    fn map(&self, pages: u64) -> Result<VirtAddr, Trouble>;
    fn unmap(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble>;
    fn protect(&self, at: VirtAddr, pages: u64, rights: Protection) -> Result<(), Trouble>;
    /// Discards pages, as madvise(MADV_DONTNEED) does.
    fn discard(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble>;
    /// Writes to each of `pages` pages. On the engine each write is a fault.
    fn write(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble>;
    /// Forks. The child does nothing until it is dropped.
    fn fork(&self) -> Result<Box<dyn Any>, Trouble>;
}

impl<D: LockingDesign> Memory for AddressSpace<Machine, D> {
    fn map(&self, pages: u64) -> Result<VirtAddr, Trouble> {
        self.map(MapRequest::anonymous(pages * PAGE_SIZE)).map_err(wrong)
    }

    fn unmap(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        self.unmap(at, pages * PAGE_SIZE).map_err(wrong)
    }

    fn protect(&self, at: VirtAddr, pages: u64, rights: Protection) -> Result<(), Trouble> {
        self.protect(at, pages * PAGE_SIZE, rights).map_err(wrong)
    }

    fn discard(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        self.discard(at, pages * PAGE_SIZE).map_err(wrong)
    }

    fn write(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        (0..pages).try_for_each(|page| self.fault_and_wait(after(at, page), Access::Write)).map_err(wrong)
    }

    fn fork(&self) -> Result<Box<dyn Any>, Trouble> {
        Ok(Box::new(self.fork().map_err(wrong)?))
    }
}

#[cold]
fn wrong(error: impl Error) -> Trouble {
    Trouble::Wrong(error.to_string())
}

impl Memory for Linux {
    fn map(&self, pages: u64) -> Result<VirtAddr, Trouble> {
        self.map(pages * PAGE_SIZE)
    }

    fn unmap(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        self.unmap(at, pages * PAGE_SIZE)
    }

    fn protect(&self, at: VirtAddr, pages: u64, rights: Protection) -> Result<(), Trouble> {
        self.protect(at, pages * PAGE_SIZE, rights)
    }

    fn discard(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        self.discard(at, pages * PAGE_SIZE)
    }

    fn write(&self, at: VirtAddr, pages: u64) -> Result<(), Trouble> {
        (0..pages).for_each(|page| self.write(after(at, page)));
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn Any>, Trouble> {
        Ok(Box::new(self.fork()?))
    }
}

/// Returns the address `pages` pages after `at`.
#[inline]
fn after(at: VirtAddr, pages: u64) -> VirtAddr {
    VirtAddr::new(at.get() + pages * PAGE_SIZE)
}

/// Makes a case's work on a memory.
type Make<'a> = &'a dyn Fn(Box<dyn Memory>) -> Result<Arc<dyn Work>, Trouble>;

/// Returns an entrant for each design, on a machine with `frames` frames.
fn designs(
    zeroing: Zeroing,
    frames: u64,
    threads: &[usize],
    make: Make<'_>,
) -> Result<Vec<Entrant>, Trouble> {
    let mut all = Vec::new();
    for design in designs::ALL {
        let machine = Machine::new(frames, zeroing).map_err(no_memory)?;
        let work = make(design.visit(NewSpace(machine))?)?;
        all.extend(Entrant::with_threads(design.name, threads, Ok(work)));
    }
    Ok(all)
}

/// Returns the entrants of all designs and of Linux.
fn everybody(
    zeroing: Zeroing,
    frames: u64,
    threads: &[usize],
    make: Make<'_>,
) -> Result<Vec<Entrant>, Trouble> {
    let mut all = designs(zeroing, frames, threads, make)?;
    all.extend(Entrant::with_threads(linux::NAME, threads, Ok(make(Box::new(Linux))?)));
    Ok(all)
}

/// Makes a space of an engine on this machine.
struct NewSpace(Machine);

impl Visitor for NewSpace {
    type Output = Result<Box<dyn Memory>, Trouble>;

    fn visit<D: LockingDesign>(self) -> Self::Output {
        let engine = Engine::new(self.0, Limits::default()).map_err(no_memory)?;
        Ok(Box::new(AddressSpace::<_, D>::new(&engine).map_err(no_memory)?))
    }
}

/// Makes two spaces of one engine on this machine.
struct TwoSpaces(Machine);

impl Visitor for TwoSpaces {
    type Output = Result<[Box<dyn Memory>; 2], Trouble>;

    fn visit<D: LockingDesign>(self) -> Self::Output {
        let engine = Engine::new(self.0, Limits::default()).map_err(no_memory)?;
        let space = || AddressSpace::<_, D>::new(&engine).map_err(no_memory);
        Ok([Box::new(space()?), Box::new(space()?)])
    }
}

/// Returns an entrant of our own design with two threads that share no space. It shows the cost of two threads on this
/// machine, to tell it from the cost of sharing a space.
fn apart(zeroing: Zeroing, frames: u64, make: Make<'_>) -> Result<impl Iterator<Item = Entrant>, Trouble> {
    let machine = Machine::new(frames, zeroing).map_err(no_memory)?;
    let [first, second] = TwoSpaces(machine).visit::<Faultless>()?;
    let work: Arc<dyn Work> = Arc::new(Apart([make(first)?, make(second)?]));
    Ok(Entrant::with_threads("faultless, a space each", &[2], Ok(work)))
}

/// A separate work for each of two threads.
struct Apart([Arc<dyn Work>; 2]);

impl Work for Apart {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        self.0[me].lap(me, lap)
    }
}

fn no_memory(error: impl Error) -> Trouble {
    Trouble::Input(error.to_string())
}
