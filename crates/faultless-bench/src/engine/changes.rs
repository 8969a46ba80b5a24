//! The smallest changes of an address space.

use super::host::Zeroing;
use super::{Make, Memory, after, apart, everybody};
use crate::case::{Case, Entrant, Sizes, Work};
use crate::lap::Lap;
use faultless::address::VirtAddr;
use faultless::protection::Protection;
use faultless_lab::trouble::Trouble;
use std::sync::Arc;

const FRAMES: u64 = 1024;
/// The greatest number of threads.
const THREADS: u64 = 2;
/// The pages of a thread's mapping. No leaf table has pages of two threads.
const OWN: u64 = 4096;
/// The number of a thread's pages whose rights change.
const CHANGED: u64 = 16;
/// The first page whose rights change, in the middle of the thread's mapping.
const FROM: u64 = 2048;

pub const MAP_UNMAP: Case = Case {
    name: "map-unmap",
    about: "map a page, write it, unmap it",
    sizes: None,
    slices: 1,
    bars: &[],
    set_up: |_| set_up(&|memory| Ok(Arc::new(Mapping(memory)))),
};

pub const DISJOINT_CHANGE: Case = Case {
    name: "disjoint-change",
    about: "mprotect 16 touched pages inside the thread's own mapping, to read-only or back; each is one operation",
    sizes: Some(Sizes { of: "other mappings", usual: &[0, 1000], least: 0, most: 20_000 }),
    slices: 1,
    bars: &[],
    set_up: |others| set_up(&move |memory| changing(memory, others)),
};

fn set_up(make: Make<'_>) -> Result<Vec<Entrant>, Trouble> {
    let mut all = everybody(Zeroing::InFault, FRAMES, &[1, 2], make)?;
    all.extend(apart(Zeroing::InFault, FRAMES, make)?);
    Ok(all)
}

struct Mapping(Box<dyn Memory>);

impl Work for Mapping {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        lap.repeat(16, 1, || {
            let at = self.0.map(1)?;
            self.0.write(at, 1)?;
            self.0.unmap(at, 1)
        })
    }
}

fn changing(memory: Box<dyn Memory>, others: u64) -> Result<Arc<dyn Work>, Trouble> {
    if others != 0 {
        // Holes between the mappings keep them from being merged.
        let start = memory.map(others * 2)?;
        (0..others).try_for_each(|other| memory.unmap(after(start, other * 2), 1))?;
    }
    let start = memory.map(THREADS * OWN)?;
    let work = Changing { memory, start };
    for thread in 0..THREADS {
        // A hole keeps the threads' mappings from being merged.
        work.memory.unmap(after(work.start, thread * OWN), 1)?;
        work.memory.write(work.of(thread), CHANGED)?;
    }
    Ok(Arc::new(work))
}

struct Changing {
    memory: Box<dyn Memory>,
    start: VirtAddr,
}

impl Changing {
    fn of(&self, thread: u64) -> VirtAddr {
        after(self.start, thread * OWN + FROM)
    }
}

impl Work for Changing {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let at = self.of(me as u64);
        lap.repeat(8, 2, || {
            self.memory.protect(at, CHANGED, Protection::READ)?;
            self.memory.protect(at, CHANGED, Protection::READ | Protection::WRITE)
        })
    }
}
