//! Checks of a program's view: loads and stores beside the engine's calls.

use super::{Check, Finding, Rig, Unmet, must};
use crate::address::{PAGE_SIZE, VirtAddr};
use crate::design::Faultless;
use crate::engine::Engine;
use crate::host::{Host, PageTable, Park};
use crate::page_cache::File;
use crate::protection::Protection;
use crate::space::{AddressSpace, MapRequest, Placement, RemapRequest};
use crate::sync::Mutex;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) fn checks<R: Rig>() -> [Check<R>; 11] {
    [
        ("new memory is zero, and a load returns the last store", zeros),
        ("after munmap, no access succeeds", unmapped),
        ("after mprotect to read-only, loads succeed and stores do not", protected),
        ("discarded pages are zero", discarded),
        ("moved pages are at their new address only", moved),
        ("a mapping that replaces another one has its own pages", replaced),
        (
            "after fork, parent and child have the same contents, and neither sees later stores of the other",
            forked,
        ),
        ("a store through one shared mapping of a file is visible in another", shared),
        ("after a file is shortened, no process can access the pages beyond its end", cut_off),
        ("no store reaches a page after munmap", no_late_store),
        ("all frames of ended processes are free", comes_back),
    ]
}

pub(super) type Space<R> = AddressSpace<<R as Rig>::Host, Faultless>;
pub(super) const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// A process under test, and the place of its memory.
pub(super) struct Program<'r, R: Rig> {
    pub rig: &'r R,
    pub engine: Arc<Engine<R::Host>>,
    pub process: R::Process,
}

/// Fails a check with the error of a call that has to succeed.
pub(super) fn say<T, E: core::fmt::Display>(call: &str, result: Result<T, E>) -> Result<T, Unmet> {
    result.map_err(|error| alloc::format!("{call} fails: {error}").into())
}

impl<'r, R: Rig> Program<'r, R> {
    pub fn new(rig: &'r R) -> Result<Self, Unmet> {
        let engine = rig.engine(1024);
        let space = say("AddressSpace::new", Space::<R>::new(&engine))?;
        Ok(Self { rig, process: rig.process(space), engine })
    }

    pub fn space(&self) -> &Space<R> {
        self.rig.space(&self.process)
    }

    /// Makes a child of the process.
    pub fn fork(&self) -> Result<Self, Unmet> {
        let child = say("fork", self.space().fork())?;
        Ok(Self { rig: self.rig, engine: self.engine.clone(), process: self.rig.process(child) })
    }

    /// Maps new anonymous memory of `pages` pages.
    pub fn memory(&self, pages: u64) -> Result<VirtAddr, Unmet> {
        say("map", self.space().map(MapRequest::anonymous(pages * PAGE_SIZE)))
    }

    pub fn store(&self, address: VirtAddr, value: u64) -> Finding {
        must!(
            self.rig.store(&self.process, address, value),
            "a store to {address}, which is mapped, is not served"
        );
        Ok(())
    }

    pub fn must_show(&self, address: VirtAddr, value: u64) -> Finding {
        let found = self.rig.load(&self.process, address);
        must!(found == Some(value), "{address} shows {found:?}, and not {value:#x}");
        Ok(())
    }

    pub fn must_refuse(&self, address: VirtAddr, when: &str) -> Finding {
        let found = self.rig.load(&self.process, address);
        must!(found.is_none(), "{address} shows {found:?} {when}");
        must!(!self.rig.store(&self.process, address, 1), "a store to {address} is served {when}");
        Ok(())
    }
}

/// Returns the address of word `index` of page `page` from `start` on.
pub(super) fn word(start: VirtAddr, page: u64, index: u64) -> VirtAddr {
    VirtAddr::new(start.get() + page * PAGE_SIZE + index * 8)
}

fn zeros<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let start = program.memory(8)?;
    for page in 0..8 {
        for index in [0, 1, 255, 511] {
            program.must_show(word(start, page, index), 0)?;
            program.store(word(start, page, index), page << 32 | index)?;
        }
    }
    for page in 0..8 {
        for index in [0, 1, 255, 511] {
            program.must_show(word(start, page, index), page << 32 | index)?;
        }
        program.must_show(word(start, page, 100), 0)?;
    }
    Ok(())
}

fn unmapped<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let start = program.memory(4)?;
    for page in 0..4 {
        program.store(word(start, page, 0), 7)?;
    }
    say("unmap", program.space().unmap(word(start, 1, 0), 2 * PAGE_SIZE))?;
    for page in [1, 2] {
        program.must_refuse(word(start, page, 0), "after munmap")?;
    }
    program.must_show(word(start, 0, 0), 7)?;
    program.must_show(word(start, 3, 0), 7)
}

fn protected<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let start = program.memory(2)?;
    program.store(start, 5)?;
    say("protect", program.space().protect(start, PAGE_SIZE, Protection::READ))?;
    must!(!program.rig.store(&program.process, start, 6), "a store is served after mprotect to reading");
    program.must_show(start, 5)?;
    say("protect", program.space().protect(start, PAGE_SIZE, Protection::empty()))?;
    program.must_refuse(start, "after mprotect to nothing")?;
    say("protect", program.space().protect(start, PAGE_SIZE, READ_WRITE))?;
    program.must_show(start, 5)?;
    program.store(start, 6)?;
    program.must_show(start, 6)
}

fn discarded<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let start = program.memory(3)?;
    for page in 0..3 {
        program.store(word(start, page, 9), 3)?;
    }
    say("discard", program.space().discard(word(start, 1, 0), PAGE_SIZE))?;
    program.must_show(word(start, 1, 9), 0)?;
    program.must_show(word(start, 0, 9), 3)?;
    program.must_show(word(start, 2, 9), 3)
}

fn moved<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let (start, target) = (program.memory(3)?, program.memory(3)?);
    for page in 0..3 {
        program.store(word(start, page, 1), 40 + page)?;
        program.store(word(target, page, 1), 1)?;
    }
    let length = 3 * PAGE_SIZE;
    say("remap", program.space().remap(RemapRequest::to(start, length, target)))?;
    for page in 0..3 {
        program.must_show(word(target, page, 1), 40 + page)?;
        program.must_refuse(word(start, page, 1), "where memory was moved away")?;
    }
    program.store(target, 2)?;
    program.must_show(target, 2)
}

fn replaced<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let start = program.memory(2)?;
    program.store(start, 8)?;
    let file = say("File::in_memory", File::in_memory(&program.engine, PAGE_SIZE))?;
    let request = MapRequest::file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(start));
    say("map over a mapping", program.space().map(request))?;
    program.must_show(start, 0)?;
    program.store(start, 9)?;
    program.must_show(start, 9)?;
    let request = MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(start));
    say("map over a mapping", program.space().map(request))?;
    program.must_show(start, 0)
}

fn forked<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let leaf = <R::Host as Host>::Table::LEAF_PAGES;
    // A whole leaf table, for hosts that share it, and a range too small to be shared.
    for pages in [leaf.min(512), 3] {
        let start = program.memory(pages)?;
        let is_used = |page: &u64| *page < 80 || page + 1 == pages;
        for page in (0..pages).filter(is_used) {
            program.store(word(start, page, 2), 1000 + page)?;
        }
        let child = program.fork()?;
        program.store(word(start, 0, 2), 1)?;
        child.store(word(start, 1, 2), 2)?;
        child.must_show(word(start, 0, 2), 1000)?;
        program.must_show(word(start, 1, 2), 1001)?;
        program.must_show(word(start, 0, 2), 1)?;
        child.must_show(word(start, 1, 2), 2)?;
        for page in (2..pages).filter(is_used) {
            child.must_show(word(start, page, 2), 1000 + page)?;
            program.must_show(word(start, page, 2), 1000 + page)?;
        }
        say("unmap", program.space().unmap(start, pages * PAGE_SIZE))?;
        program.must_refuse(word(start, 2, 2), "after munmap beside a child")?;
        child.must_show(word(start, 2, 2), 1002)?;
        child.store(word(start, 2, 2), 5)?;
        child.must_show(word(start, 2, 2), 5)?;
    }
    Ok(())
}

fn shared<R: Rig>(rig: &R) -> Finding {
    let program = Program::new(rig)?;
    let file = say("File::in_memory", File::in_memory(&program.engine, 2 * PAGE_SIZE))?;
    if !<R::Host as Host>::Table::SHARES_WRITES {
        let refused = program.space().map(MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE));
        must!(refused.is_err(), "a shared mapping can be written, where no store is seen through others");
        return Err(Unmet::Skipped("this host shares no writes (PageTable::SHARES_WRITES)"));
    }
    let map =
        || say("map", program.space().map(MapRequest::shared_file(&file, 0, 2 * PAGE_SIZE, READ_WRITE)));
    let (one, two) = (map()?, map()?);
    program.must_show(two, 0)?;
    program.store(one, 11)?;
    program.must_show(two, 11)?;
    program.store(word(two, 1, 5), 12)?;
    program.must_show(word(one, 1, 5), 12)
}

/// Checks the cut of a file by more than one batch of [`Host::invalidate_all`].
fn cut_off<R: Rig>(rig: &R) -> Finding {
    const PROCESSES: u64 = 40;
    let first = Program::new(rig)?;
    let file = say("File::in_memory", File::in_memory(&first.engine, 3 * PAGE_SIZE))?;
    let mut programs = alloc::vec![first];
    for _ in 1..PROCESSES {
        let space = say("AddressSpace::new", Space::<R>::new(&programs[0].engine))?;
        programs.push(Program { rig, engine: programs[0].engine.clone(), process: rig.process(space) });
    }
    let request = || MapRequest::file(&file, 0, 3 * PAGE_SIZE, READ_WRITE);
    let mut starts = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        let start = say("map", program.space().map(request()))?;
        program.must_show(word(start, 1, 0), 0)?;
        program.store(start, number as u64)?;
        program.store(word(start, 2, 0), number as u64)?;
        starts.push(start);
    }
    // Its page, and copies.
    file.set_length(PAGE_SIZE).unwrap();
    for (number, (program, start)) in programs.iter().zip(starts).enumerate() {
        program.must_refuse(word(start, 1, 0), "after its page was cut off the file")?;
        program.must_refuse(word(start, 2, 0), "after its page was cut off the file")?;
        program.must_show(start, number as u64)?;
    }
    Ok(())
}

/// Checks that no store comes through an old translation. One thread stores to a page as long as it can. Another unmaps it, and
/// then writes the free frame itself: a store through an old translation would show.
fn no_late_store<R: Rig>(rig: &R) -> Finding {
    const ROUNDS: u64 = 100;
    let program = Program::new(rig)?;
    let (at, stored, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    let work = |number: usize| {
        if number == 1 {
            while !is_over.load(Ordering::Acquire) {
                let address = at.load(Ordering::Acquire);
                if address != 0 && program.rig.store(&program.process, VirtAddr::new(address), u64::MAX) {
                    stored.store(address, Ordering::Release);
                }
            }
            return;
        }
        let round = || -> Finding {
            let start = program.memory(1)?;
            at.store(start.get(), Ordering::Release);
            let mut look = 0;
            while stored.load(Ordering::Acquire) != start.get() {
                program.engine.host().park().spin(look);
                look += 1;
            }
            // Mapped before, so that it lies elsewhere. The frame that is freed now is mostly the next one that is given out.
            let other = program.memory(4)?;
            say("unmap", program.space().unmap(start, PAGE_SIZE))?;
            for page in 0..4 {
                program.must_show(word(other, page, 0), 0)?;
                program.store(word(other, page, 1), 1)?;
            }
            for page in 0..4 {
                program.must_show(word(other, page, 0), 0)?;
            }
            at.store(0, Ordering::Release);
            stored.store(0, Ordering::Release);
            say("unmap", program.space().unmap(other, 4 * PAGE_SIZE))
        };
        let found = (0..ROUNDS).try_for_each(|_| round());
        is_over.store(true, Ordering::Release);
        *failure.lock() = found.err();
    };
    if !rig.side_by_side(2, &work) {
        return Err(Unmet::Skipped("the rig has no threads"));
    }
    failure.lock().take().map_or(Ok(()), Err)
}

fn comes_back<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(1024);
    let before = engine.frame_usage().used;
    {
        let space = say("AddressSpace::new", Space::<R>::new(&engine))?;
        let program = Program { rig, engine: engine.clone(), process: rig.process(space) };
        let start = program.memory(64)?;
        for page in 0..64 {
            program.store(word(start, page, 0), 1)?;
        }
        let child = program.fork()?;
        child.store(start, 2)?;
        child.space().exit();
        child.must_refuse(start, "after exit")?;
    }
    engine.flush();
    let after = engine.frame_usage().used;
    must!(after == before, "{before} frames are used before two processes, and {after} after them");
    Ok(())
}
