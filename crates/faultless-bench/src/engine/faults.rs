//! First touches of anonymous memory.

use super::host::Zeroing;
use super::{Memory, after, designs, everybody};
use crate::case::{Case, Sizes, Work};
use crate::lap::Lap;
use faultless::address::VirtAddr;
use faultless_lab::trouble::Trouble;
use std::sync::Arc;

/// Pages that a thread touches before they go.
const PAGES: u64 = 2048;
/// Threads at most.
const THREADS: u64 = 2;
/// And some for what is on its way.
const FRAMES: u64 = THREADS * PAGES + 512;

pub const FAULT: Case = Case {
    name: "anonymous-fault",
    about: "the first write to a page of a mapping of the thread's own; who faults zeroes the frame",
    sizes: None,
    slices: 1,
    set_up: |_| everybody(Zeroing::InFault, FRAMES, &[1, 2], &in_own_mapping),
};

pub const FAULT_ZEROED_AHEAD: Case = Case {
    name: "anonymous-fault-zeroed-ahead",
    about: "the same on frames that were zeroed when they came free",
    sizes: None,
    slices: 1,
    // Linux zeroes.
    set_up: |_| designs(Zeroing::Ahead, FRAMES, &[1, 2], &in_own_mapping),
};

pub const GIANT_VMA: Case = Case {
    name: "giant-vma",
    about: "the first write to a page, the threads far apart in one mapping of a tebibyte, or in many small ones; frames \
            zeroed ahead",
    sizes: Some(Sizes { of: "mappings", usual: &[1, 128], least: 1, most: 4096 }),
    slices: 1,
    set_up: |mappings| everybody(Zeroing::Ahead, FRAMES, &[1, 2], &move |memory| in_parts(memory, mappings)),
};

fn in_own_mapping(memory: Box<dyn Memory>) -> Result<Arc<dyn Work>, Trouble> {
    // Once before, so that no frame is new to the operating system.
    let at = memory.map(THREADS * PAGES)?;
    memory.write(at, THREADS * PAGES)?;
    memory.unmap(at, THREADS * PAGES)?;
    Ok(Arc::new(InOwnMapping(memory)))
}

struct InOwnMapping(Box<dyn Memory>);

impl Work for InOwnMapping {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        loop {
            let at = self.0.map(PAGES)?;
            lap.part(PAGES, || self.0.write(at, PAGES))?;
            self.0.unmap(at, PAGES)?;
            if lap.is_over() {
                return Ok(());
            }
        }
    }
}

/// Each thread's pages in one part of a mapping that both share, or in parts that are mappings of their own.
struct InParts {
    memory: Box<dyn Memory>,
    start: VirtAddr,
    /// Pages from one thread's first part to the other's: in other leaf tables.
    apart: u64,
    /// Parts of a thread.
    parts: u64,
    /// Pages of a part. The page behind it is a hole where parts are mappings: neighbours would be one.
    pages: u64,
}

fn in_parts(memory: Box<dyn Memory>, mappings: u64) -> Result<Arc<dyn Work>, Trouble> {
    const TEBIBYTE: u64 = 1 << 28;
    let parts = (mappings / THREADS).max(1);
    let pages = (PAGES / parts).max(1);
    let apart = match mappings {
        1 => TEBIBYTE / THREADS,
        _ => (parts * (pages + 1)).next_multiple_of(512),
    };
    let start = memory.map(apart * THREADS)?;
    let work = InParts { memory, start, apart, parts, pages };
    if mappings > 1 {
        for thread in 0..THREADS {
            work.parts_of(thread).try_for_each(|at| work.memory.unmap(after(at, pages), 1))?;
        }
    }
    Ok(Arc::new(work))
}

impl InParts {
    fn parts_of(&self, thread: u64) -> impl Iterator<Item = VirtAddr> {
        (0..self.parts).map(move |part| after(self.start, thread * self.apart + part * (self.pages + 1)))
    }
}

impl Work for InParts {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let each =
            |work: &dyn Fn(VirtAddr) -> Result<(), Trouble>| self.parts_of(me as u64).try_for_each(work);
        loop {
            lap.part(self.parts * self.pages, || each(&|at| self.memory.write(at, self.pages)))?;
            each(&|at| self.memory.discard(at, self.pages))?;
            if lap.is_over() {
                return Ok(());
            }
        }
    }
}
