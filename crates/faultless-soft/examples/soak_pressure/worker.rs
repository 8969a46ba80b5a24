//! A thread of a process, and its accesses. The other operations are in `calls.rs`, `files.rs` and `forks.rs`.

use crate::counts::Kind;
use crate::machine::{Family, Machine, OWN, PART, Process, SHARED, Seat, TOGETHER, WRITTEN, World};
use crate::model::{Own, bytes_of, check, stamp, wrong};
use crate::{Failure, Space, waits};
use fastrand::Rng;
use faultless::MapRequest;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless_soft::Cpu;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Operation = fn(&mut Worker<'_>, &Arc<Process>) -> Result<(), Failure>;

/// One thread: its process and the memory that it has there.
pub struct Worker<'a> {
    pub world: &'a World,
    pub seat: &'a Seat,
    /// The number of the thread, and its number in its process.
    pub number: usize,
    pub me: u64,
    pub numbers: Rng,
    process: Arc<Process>,
    /// The stamps of this thread's parts of the shared pages.
    pub shared: HashMap<u64, u64>,
    /// The thread's own mapping.
    own: Option<Own>,
    /// The stamps of this thread's pages of the shared memory.
    pub memory: HashMap<u64, u64>,
    /// The stamps that each of this thread's pages of the written file may have. There are two if a store was made as the process was
    /// killed.
    pub written: Vec<Vec<u64>>,
    /// The number of stamps that the thread has used.
    stamps: u64,
}

impl<'a> Worker<'a> {
    pub fn new(world: &'a World, number: usize) -> Result<Self, Failure> {
        let seat = &world.seats[number / TOGETHER];
        Ok(Self {
            world,
            seat,
            number,
            me: (number % TOGETHER) as u64,
            numbers: Rng::with_seed(number as u64 + 1),
            process: seat.process()?,
            shared: HashMap::new(),
            own: None,
            memory: HashMap::new(),
            written: vec![vec![0]; WRITTEN as usize],
            stamps: 0,
        })
    }

    pub fn machine(&self) -> &'a Machine {
        self.world.machine(self.seat)
    }

    pub fn family(&self) -> &'a Family {
        self.world.family(self.seat)
    }

    pub fn note(&self, kind: Kind) {
        self.world.counts.note(kind);
    }

    /// Makes operations until the run ends. Returns the stamps of the thread's pages of the written file.
    pub fn run(mut self) -> Result<Vec<Vec<u64>>, Failure> {
        let begun = &self.world.begun[self.number];
        while !self.world.is_over() {
            let now = self.seat.process()?;
            if !Arc::ptr_eq(&now, &self.process) {
                (self.process, self.own) = (now, None);
                self.shared.clear();
                self.memory.clear();
            }
            waits::begin();
            begun.store(self.world.since_start(), Ordering::Relaxed);
            for _ in 0..8 {
                if let Err(failure) = self.operation() {
                    // A call of a process that is ending returns an error.
                    if !self.process.is_killed.load(Ordering::SeqCst) {
                        return Err(failure);
                    }
                    break;
                }
            }
            begun.store(0, Ordering::Relaxed);
        }
        Ok(self.written)
    }

    fn operation(&mut self) -> Result<(), Failure> {
        let process = self.process.clone();
        // In every second process, most accesses are to the written file: many threads make pages dirty, and write them back.
        let is_writer = self.number / TOGETHER % 4 < 2 && self.numbers.u32(..8) != 0;
        let number = if is_writer { 700 } else { self.numbers.u32(..1024) };
        let (name, operation): (&str, Operation) = match number {
            0..480 => ("an access to a shared page", |all, process| all.access_shared(process)),
            480..640 => ("an access to an own page", |all, process| all.access_own(process)),
            640..700 => ("a read of the file", |all, process| all.read_file(process)),
            700..732 => ("an access to the written file", |all, process| all.access_written(process)),
            732..780 => ("an access to shared memory", |all, process| all.access_memory(process)),
            780..800 => ("munmap or DONTNEED", |all, process| all.drop_own(process)),
            800..824 => ("fork", |all, process| all.fork(process)),
            824..852 => ("COLD or PAGEOUT", |all, process| all.advise(process)),
            852..872 => ("advice to another process", |all, _| all.advise_other()),
            872..892 => ("reclaim", |all, _| all.reclaim()),
            892..912 => ("MADV_FREE", |all, process| all.free(process)),
            912..932 => ("mlock", |all, process| all.lock(process)),
            932..952 => ("a pin", |all, process| all.pin(process)),
            952..968 => ("mremap", |all, process| all.remap(process)),
            968..976 => ("mremap to another length", |all, process| all.resize(process)),
            976..1000 => ("a move of pages", |all, process| all.move_pages(process)),
            1000..1012 => ("mprotect", |all, process| all.protect_own(process)),
            1012..1020 => ("a hole", |all, process| all.punch(process)),
            1020..1023 => ("sync", |all, _| all.sync()),
            _ => ("kill", |all, process| all.kill(process)),
        };
        operation(self, &process).map_err(|failure| format!("{name}: {failure}").into())
    }

    pub fn next_stamp(&mut self) -> u64 {
        self.stamps += 1;
        stamp(self.number as u64, self.stamps)
    }

    /// Returns the address of this thread's part of a shared page.
    pub fn part(&self, shared: VirtAddr, page: u64) -> VirtAddr {
        VirtAddr::new(shared.get() + page * PAGE_SIZE + self.me * PART)
    }

    /// Calls `work` with the thread's own mapping, which is made if there is none.
    pub fn with_own<R>(
        &mut self,
        space: &Space,
        work: impl FnOnce(&mut Self, &mut Own) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let mut own = match self.own.take() {
            Some(own) => own,
            None => Own::new(space.map(MapRequest::anonymous(OWN * PAGE_SIZE))?),
        };
        let result = work(self, &mut own);
        self.own = Some(own);
        result
    }

    /// Checks a page of the thread's own mapping.
    pub fn check_own(&self, space: &Space, own: &mut Own, page: u64) -> Result<(), Failure> {
        if own.check_at(space, page, own.page(page))? {
            self.note(Kind::FreedIsGone);
        }
        Ok(())
    }

    /// Stores to a page of the thread's own mapping.
    pub fn store_own(&mut self, space: &Space, own: &mut Own, page: u64) -> Result<(), Failure> {
        let stamp = self.next_stamp();
        space.write_bytes(own.page(page), &bytes_of(stamp, PAGE_SIZE))?;
        own.set(page, stamp);
        Ok(())
    }

    fn access_shared(&mut self, process: &Process) -> Result<(), Failure> {
        let page = self.numbers.u64(..SHARED);
        let at = self.part(process.shared, page);
        check(&process.space, at, PART, self.shared.get(&page).copied().unwrap_or(0))?;
        if self.numbers.u32(..3) == 0 {
            let stamp = self.next_stamp();
            process.space.write_bytes(at, &bytes_of(stamp, PART))?;
            self.shared.insert(page, stamp);
        }
        self.note(Kind::Shared);
        Ok(())
    }

    fn access_own(&mut self, process: &Process) -> Result<(), Failure> {
        let (page, stores) = (self.numbers.u64(..OWN), self.numbers.u32(..4) != 0);
        self.note(Kind::Own);
        self.with_own(&process.space, |worker, own| {
            worker.check_own(&process.space, own, page)?;
            if stores { worker.store_own(&process.space, own, page) } else { Ok(()) }
        })
    }

    fn drop_own(&mut self, process: &Process) -> Result<(), Failure> {
        let Some(mut own) = self.own.take() else { return Ok(()) };
        if self.numbers.bool() {
            self.note(Kind::Unmap);
            return Ok(process.space.unmap(own.at, OWN * PAGE_SIZE)?);
        }
        process.space.discard(own.at, OWN / 2 * PAGE_SIZE)?;
        (0..OWN / 2).for_each(|page| own.clear(page));
        self.own = Some(own);
        self.note(Kind::Discard);
        Ok(())
    }

    fn protect_own(&mut self, process: &Process) -> Result<(), Failure> {
        let Some(own) = &self.own else { return Ok(()) };
        let (space, at) = (&process.space, own.at);
        space.protect(at, OWN * PAGE_SIZE, Protection::READ)?;
        if space.store_u64(at, 1).is_ok() {
            return Err(wrong(format!("{at}: a store to a page without the right")));
        }
        space.protect(at, OWN * PAGE_SIZE, Protection::READ | Protection::WRITE)?;
        self.note(Kind::Protect);
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), Failure> {
        self.machine().engine.reclaim(self.numbers.u64(1..32));
        self.note(Kind::Reclaim);
        Ok(())
    }

    /// Ends the process, while its other threads are in it.
    fn kill(&mut self, process: &Arc<Process>) -> Result<(), Failure> {
        if self.world.replace(self.seat, process)? {
            process.is_killed.store(true, Ordering::SeqCst);
            process.space.exit();
            self.note(Kind::Kill);
        }
        Ok(())
    }

    /// Returns a range of up to `most` pages of `pages`: its first page and its number of pages.
    pub fn range(&mut self, pages: u64, most: u64) -> (u64, u64) {
        let count = self.numbers.u64(1..=most);
        (self.numbers.u64(..=pages - count), count)
    }
}
