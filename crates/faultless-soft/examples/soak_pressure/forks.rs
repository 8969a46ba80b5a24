//! Children, and the operations that end sharing with them.

use crate::counts::Kind;
use crate::machine::{FEW, OWN, PART, Process, SHARED};
use crate::model::{at_page, bytes_of, check};
use crate::worker::Worker;
use crate::{Failure, Space};
use faultless::Advice;
use faultless::address::PAGE_SIZE;
use faultless_soft::Cpu;

impl Worker<'_> {
    /// Forks, and checks and changes pages in the child and here.
    pub fn fork(&mut self, process: &Process) -> Result<(), Failure> {
        let child = self.make_child(process)?;
        self.note(Kind::Fork);
        let is_first = self.numbers.bool();
        if is_first {
            self.unshare(process, &child)?;
        }
        self.change_shared(process, &child)?;
        if !is_first {
            self.unshare(process, &child)?;
        }
        self.change_memory(process, &child)?;
        if self.numbers.bool() {
            child.exit();
        }
        Ok(())
    }

    /// Forks. Some forks copy a part of the thread's own mapping at once.
    fn make_child(&mut self, process: &Process) -> Result<Space, Failure> {
        let space = &process.space;
        let (first, pages) = self.range(OWN, FEW);
        let held = if self.numbers.u32(..3) == 0 { self.family().hold(pages) } else { None };
        let second = (first + self.numbers.u64(1..OWN)) % OWN;
        self.with_own(space, |worker, own| {
            let (at, length) = (own.page(first), pages * PAGE_SIZE);
            if held.is_some() {
                space.advise(at, length, Advice::CopyAtFork)?;
            }
            let child = space.fork()?;
            if held.is_some() {
                space.advise(at, length, Advice::ShareAtFork)?;
                worker.note(Kind::CopyAtFork);
            }
            for page in [first, second] {
                own.check_in_child(&child, page)?;
                child.write_bytes(own.page(page), &[0x5a; 16])?;
                worker.check_own(space, own, page)?;
            }
            Ok(child)
        })
    }

    /// Ends the sharing of some pages before a store does.
    fn unshare(&mut self, process: &Process, child: &Space) -> Result<(), Failure> {
        let (first, pages) = self.range(SHARED, 2 * FEW);
        let (at, length) = (at_page(process.shared, first), pages * PAGE_SIZE);
        let (result, kind) = match self.numbers.u32(..5) {
            0 => (process.space.unshare(at, length).map(|_| ())?, Kind::UnshareParent),
            1 => (child.unshare(at, length).map(|_| ())?, Kind::UnshareChild),
            2 => (process.space.isolate_cowed(at, length).map(|_| ())?, Kind::Isolate),
            3 => (child.isolate_cowed(process.shared, SHARED * PAGE_SIZE).map(|_| ())?, Kind::Isolate),
            _ => return Ok(()),
        };
        self.note(kind);
        Ok(result)
    }

    /// Checks some pages of this thread in the child, and changes them there and here.
    fn change_shared(&mut self, process: &Process, child: &Space) -> Result<(), Failure> {
        let first = self.numbers.u64(..SHARED);
        // Each page once: the child has other bytes than this process afterwards.
        for page in (0..8).map(|step| (first + step * (SHARED / 8)) % SHARED) {
            let at = self.part(process.shared, page);
            let stamp = self.shared.get(&page).copied().unwrap_or(0);
            check(child, at, PART, stamp)?;
            let (theirs, ours) = (self.next_stamp(), self.next_stamp());
            child.write_bytes(at, &bytes_of(theirs, PART))?;
            check(&process.space, at, PART, stamp)?;
            process.space.write_bytes(at, &bytes_of(ours, PART))?;
            self.shared.insert(page, ours);
            check(child, at, PART, theirs)?;
        }
        Ok(())
    }

    /// Stores to shared memory in the child. This process sees the store.
    fn change_memory(&mut self, process: &Process, child: &Space) -> Result<(), Failure> {
        let page = self.memory_page();
        let at = at_page(process.memory.0, page);
        check(child, at, PAGE_SIZE, self.memory.get(&page).copied().unwrap_or(0))?;
        let stamp = self.next_stamp();
        child.write_bytes(at, &bytes_of(stamp, PAGE_SIZE))?;
        self.memory.insert(page, stamp);
        check(&process.space, at, PAGE_SIZE, stamp)
    }
}
