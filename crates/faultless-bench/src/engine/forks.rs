//! fork, and the copies that it defers.

use super::host::Zeroing;
use super::{Memory, designs, everybody};
use crate::case::{Case, Entrant, Loop, Sizes, Work};
use crate::lap::Lap;
use crate::linux::{self, Forker};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless_lab::trouble::Trouble;
use std::sync::Arc;

/// The number of pages that are copied before the child ends.
const COPIED: u64 = 512;

pub const FORK: Case = Case {
    name: "fork",
    about: "fork a process whose memory is all resident; the child's end is not counted",
    sizes: Some(Sizes { of: "MiB resident", usual: &[1, 16, 256], least: 1, most: 4096 }),
    slices: 2,
    bars: &[],
    set_up: forks,
};

pub const COW_BREAK: Case = Case {
    name: "cow-break",
    about: "the first write to a page that is shared with a child of fork, which copies the page",
    sizes: None,
    slices: 2,
    bars: &[],
    set_up: |_| everybody(Zeroing::InFault, 2 * COPIED + 512, &[1], &breaking),
};

fn forks(mebibytes: u64) -> Result<Vec<Entrant>, Trouble> {
    let bytes = mebibytes << 20;
    let pages = bytes / PAGE_SIZE;
    // fork reads and writes no byte of a page, so frames that are never zeroed use no memory of the machine.
    let mut all = designs(Zeroing::Ahead, pages + 512, &[1], &|memory| {
        touched(&*memory, pages)?;
        Ok(Arc::new(Forking(memory)))
    })?;
    let linux = Forker::new(bytes).map(|forker| {
        let work = move |_me: usize, lap: &mut Lap| forker.lap(lap);
        Arc::new(Loop(work)) as Arc<dyn Work>
    });
    all.extend(Entrant::with_threads(linux::NAME, &[1], linux));
    Ok(all)
}

/// Maps `pages` pages and writes each once.
fn touched(memory: &dyn Memory, pages: u64) -> Result<VirtAddr, Trouble> {
    let at = memory.map(pages)?;
    memory.write(at, pages)?;
    Ok(at)
}

struct Forking(Box<dyn Memory>);

impl Work for Forking {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        loop {
            drop(lap.part(1, || self.0.fork())?);
            if lap.is_over() {
                return Ok(());
            }
        }
    }
}

fn breaking(memory: Box<dyn Memory>) -> Result<Arc<dyn Work>, Trouble> {
    let at = touched(&*memory, COPIED)?;
    Ok(Arc::new(Breaking { memory, at }))
}

struct Breaking {
    memory: Box<dyn Memory>,
    at: VirtAddr,
}

impl Work for Breaking {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        loop {
            let child = self.memory.fork()?;
            lap.part(COPIED, || self.memory.write(self.at, COPIED))?;
            drop(child);
            if lap.is_over() {
                return Ok(());
            }
        }
    }
}
