//! First touches of anonymous memory.

use super::host::Zeroing;
use super::{Memory, after, designs, everybody};
use crate::case::{Case, Sizes, Work};
use crate::lap::Lap;
use faultless::address::VirtAddr;
use faultless_lab::trouble::Trouble;
use std::sync::Arc;

/// The pages that a thread touches before it unmaps or discards them.
const PAGES: u64 = 2048;
/// The greatest number of threads.
const THREADS: u64 = 2;
/// The frames of the machine: those of all threads' pages, and some for frames that are being freed.
const FRAMES: u64 = THREADS * PAGES + 512;

pub const FAULT: Case = Case {
    name: "anonymous-fault",
    about: "the first write to a page of the thread's own mapping; the fault zeroes the frame",
    sizes: None,
    slices: 1,
    bars: &[],
    set_up: |_| everybody(Zeroing::InFault, FRAMES, &[1, 2], &in_own_mapping),
};

pub const FAULT_ZEROED_AHEAD: Case = Case {
    name: "anonymous-fault-zeroed-ahead",
    about: "as anonymous-fault, with frames that were zeroed when they were freed",
    sizes: None,
    slices: 1,
    // Without Linux, which zeroes in the fault.
    bars: &[],
    set_up: |_| designs(Zeroing::Ahead, FRAMES, &[1, 2], &in_own_mapping),
};

pub const GIANT_VMA: Case = Case {
    name: "giant-vma",
    about: "the first write to a page, the threads far apart in one mapping of a tebibyte, or in many small ones; frames \
            zeroed ahead",
    sizes: Some(Sizes { of: "mappings", usual: &[1, 128], least: 1, most: 4096 }),
    slices: 1,
    bars: &[],
    set_up: |mappings| everybody(Zeroing::Ahead, FRAMES, &[1, 2], &move |memory| in_parts(memory, mappings)),
};

fn in_own_mapping(memory: Box<dyn Memory>) -> Result<Arc<dyn Work>, Trouble> {
    // Touched once in advance, so that the operating system has backed all frames.
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

/// Each thread's pages, in one part of a mapping that the threads share, or in parts that are mappings of their own.
struct InParts {
    memory: Box<dyn Memory>,
    start: VirtAddr,
    /// The pages from one thread's first part to the other's. Their leaf tables differ.
    apart: u64,
    /// The number of parts of a thread.
    parts: u64,
    /// The pages of a part. If parts are mappings, the page after it is a hole, which keeps neighbours from being
    /// merged.
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
