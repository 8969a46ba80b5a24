//! Advice, locks, pins and moves of the thread's own memory.

use crate::counts::Kind;
use crate::machine::{FEW, OWN, Process, SHARED};
use crate::model::{Own, at_page, bytes_of, check, wrong};
use crate::worker::Worker;
use crate::{Failure, Space};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Access;
use faultless::{Advice, LockMode, MapRequest, MoveCause, MoveRequest, RemapFlags, RemapRequest};
use std::sync::atomic::Ordering;

impl Worker<'_> {
    /// Gives advice about shared pages or about the thread's own.
    pub fn advise(&mut self, process: &Process) -> Result<(), Failure> {
        let (advice, kind) = self.cold_or_out();
        let (page, pages) = self.range(SHARED, 16);
        if self.numbers.bool() {
            process.space.advise(at_page(process.shared, page), pages * PAGE_SIZE, advice)?;
        } else {
            let (page, pages) = self.range(OWN, 16);
            self.with_own(&process.space, |worker, own| {
                process.space.advise(own.page(page), pages * PAGE_SIZE, advice)?;
                worker.check_own(&process.space, own, page)
            })?;
        }
        self.note(kind);
        Ok(())
    }

    fn cold_or_out(&mut self) -> (Advice, Kind) {
        [(Advice::PageOut, Kind::PageOut), (Advice::Cold, Kind::Cold)][self.numbers.usize(..2)]
    }

    /// Gives advice about the memory of another process.
    pub fn advise_other(&mut self) -> Result<(), Failure> {
        let seat = self.numbers.usize(..self.world.seats.len());
        let other = self.world.seats[seat].process()?;
        let advice = [Advice::PageOut, Advice::Cold, Advice::WillNeed][self.numbers.usize(..3)];
        let (page, pages) = self.range(SHARED, 16);
        let ranges = [
            (at_page(other.shared, page), pages * PAGE_SIZE),
            (other.memory.0, crate::machine::MEMORY / 2 * PAGE_SIZE),
        ];
        let result = other.space.advise_remote(&ranges, advice);
        self.note(Kind::Remote);
        match result {
            Err(error) if !other.is_killed.load(Ordering::SeqCst) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Allows to drop some pages (MADV_FREE). Each is as before or zeros from then on, until it is stored to.
    pub fn free(&mut self, process: &Process) -> Result<(), Failure> {
        let (first, pages) = self.range(OWN, 2 * FEW);
        let next = self.numbers.u32(..4);
        self.with_own(&process.space, |worker, own| {
            process.space.advise(own.page(first), pages * PAGE_SIZE, Advice::Free)?;
            (first..first + pages).for_each(|page| own.free(page));
            worker.note(Kind::Free);
            match next {
                0 => worker.check_own(&process.space, own, first),
                1 => worker.store_own(&process.space, own, first),
                2 => Ok(process.space.advise(own.page(first), pages * PAGE_SIZE, Advice::PageOut)?),
                _ => Ok(()),
            }
        })
    }

    /// Locks some pages, checks that they stay, and unlocks them.
    pub fn lock(&mut self, process: &Process) -> Result<(), Failure> {
        let (first, pages) = self.range(OWN, FEW);
        let Some(_held) = self.family().hold(pages) else { return Ok(()) };
        let mode = if self.numbers.bool() { LockMode::Now } else { LockMode::OnFault };
        let (wanted, space) = (self.numbers.u64(1..16), &process.space);
        self.with_own(space, |worker, own| {
            let (at, length) = (own.page(first), pages * PAGE_SIZE);
            space.lock(at, length, mode)?;
            worker.check_own(space, own, first)?;
            worker.store_own(space, own, first + pages - 1)?;
            worker.machine().engine.reclaim(wanted);
            let is_away = mode == LockMode::Now && space.resident(at, length)?.contains(&false);
            // A process that another thread ends has no page.
            if is_away && !process.is_killed.load(Ordering::SeqCst) {
                return Err(wrong(format!("{at}: a locked page is not in memory")));
            }
            for page in first..first + pages {
                worker.check_own(space, own, page)?;
            }
            worker.note(Kind::Lock);
            Ok(space.unlock(at, length)?)
        })
    }

    /// Pins a page, as for a transfer of a device into it, and stores by the pin. A child of fork does not get the store.
    pub fn pin(&mut self, process: &Process) -> Result<(), Failure> {
        let (page, forks) = (self.numbers.u64(..OWN), self.numbers.u32(..4) == 0);
        let Some(_held) = self.family().hold(2) else { return Ok(()) };
        let (wanted, space) = (self.numbers.u64(1..16), &process.space);
        self.with_own(space, |worker, own| {
            let pin = space.pin(own.page(page), Access::Write)?;
            let mut bytes = vec![0xaa; PAGE_SIZE as usize];
            pin.read(0, &mut bytes);
            own.compare(page, &bytes)?;
            worker.machine().engine.reclaim(wanted);
            let child = if forks { Some(space.fork()?) } else { None };
            let stamp = worker.next_stamp();
            if let Some(child) = &child {
                own.check_in_child(child, page)?;
            }
            pin.write(0, &bytes_of(stamp, PAGE_SIZE));
            if let Some(child) = &child {
                own.check_in_child(child, page)?;
                worker.note(Kind::PinAcrossFork);
            }
            own.set(page, stamp);
            worker.check_own(space, own, page)?;
            worker.note(Kind::Pin);
            Ok(())
        })
    }

    /// Moves some pages elsewhere and back, by mremap. The old place stays mapped, so no other mapping goes there.
    ///
    /// Reclaim cannot take a page that a child has and mremap has moved, until one of them stores to it. So if the limits are small, no
    /// child has the pages.
    pub fn remap(&mut self, process: &Process) -> Result<(), Failure> {
        let (first, pages) = self.range(OWN, FEW);
        let Some(_held) = self.family().hold(pages) else { return Ok(()) };
        let (stores, is_alone) = (self.numbers.bool(), self.world.pages < 96 || self.numbers.bool());
        let space = &process.space;
        self.with_own(space, |worker, own| {
            if is_alone {
                space.advise(own.page(first), pages * PAGE_SIZE, Advice::DontFork)?;
                space.unshare(own.page(first), pages * PAGE_SIZE)?;
                worker.note(Kind::RemapAlone);
            }
            worker.remap_there_and_back(space, own, (first, pages), stores)?;
            if is_alone {
                space.advise(own.page(first), pages * PAGE_SIZE, Advice::DoFork)?;
            }
            worker.note(Kind::Remap);
            Ok(())
        })
    }

    /// Moves pages of one mapping to another place and back, and stores to them.
    fn remap_there_and_back(
        &mut self,
        space: &Space,
        own: &mut Own,
        (first, pages): (u64, u64),
        stores: bool,
    ) -> Result<(), Failure> {
        let pages = in_one_mapping(space, own.page(first), pages);
        let (old, length) = (own.page(first), pages * PAGE_SIZE);
        let flags = RemapFlags::MAY_MOVE | RemapFlags::DONT_UNMAP;
        let request =
            RemapRequest { old, old_length: length, new_length: length, flags, new: VirtAddr::default() };
        let new = space.remap(request)?;
        check(space, old, PAGE_SIZE, 0)?;
        for page in 0..pages {
            if own.check_at(space, first + page, at_page(new, page))? {
                self.note(Kind::FreedIsGone);
            }
        }
        if stores {
            let stamp = self.next_stamp();
            self.write(space, new, stamp)?;
            own.set(first, stamp);
        }
        space.remap(RemapRequest::to(new, length, old))?;
        for page in first..first + pages {
            self.check_own(space, own, page)?;
            self.store_own(space, own, page)?;
        }
        Ok(())
    }

    fn write(&self, space: &Space, at: VirtAddr, stamp: u64) -> Result<(), Failure> {
        Ok(faultless_soft::Cpu::write_bytes(space, at, &bytes_of(stamp, PAGE_SIZE))?)
    }

    /// Makes a mapping longer, where there is room for it, and shorter again.
    pub fn resize(&mut self, process: &Process) -> Result<(), Failure> {
        let Some(_held) = self.family().hold(2 * FEW) else { return Ok(()) };
        let (space, short, long) = (&process.space, FEW * PAGE_SIZE, 2 * FEW * PAGE_SIZE);
        let at = space.map(MapRequest::anonymous(short))?;
        let stamps: Vec<u64> = (0..2 * FEW).map(|_| self.next_stamp()).collect();
        for page in 0..FEW {
            self.write(space, at_page(at, page), stamps[page as usize])?;
        }
        let at = space.remap(RemapRequest::resize(at, short, long))?;
        for page in FEW..2 * FEW {
            check(space, at_page(at, page), PAGE_SIZE, 0)?;
            self.write(space, at_page(at, page), stamps[page as usize])?;
        }
        for page in 0..2 * FEW {
            check(space, at_page(at, page), PAGE_SIZE, stamps[page as usize])?;
        }
        let at = space.remap(RemapRequest::resize(at, long, short))?;
        for page in 0..FEW {
            check(space, at_page(at, page), PAGE_SIZE, stamps[page as usize])?;
        }
        self.note(Kind::Resize);
        Ok(space.unmap(at, short)?)
    }

    /// Moves some pages to another mapping and back, without a copy (userfaultfd's MOVE).
    pub fn move_pages(&mut self, process: &Process) -> Result<(), Failure> {
        let (first, pages) = self.range(OWN, FEW);
        let (comes_back, space) = (self.numbers.bool(), &process.space);
        self.with_own(space, |worker, own| {
            let pages = in_one_mapping(space, own.page(first), pages);
            let length = pages * PAGE_SIZE;
            let target = space.map(MapRequest::anonymous(length))?;
            let mut moved = worker.move_once(space, own.page(first), target, length)?;
            for page in 0..moved {
                if own.check_at(space, first + page, at_page(target, page))? {
                    worker.note(Kind::FreedIsGone);
                }
            }
            let mut back = 0;
            if comes_back && moved != 0 {
                back = worker.move_once(space, target, own.page(first), moved * PAGE_SIZE)?;
            }
            // The rest of them goes with its mapping.
            while moved > back {
                moved -= 1;
                own.clear(first + moved);
            }
            space.unmap(target, length)?;
            for page in first..first + pages {
                worker.check_own(space, own, page)?;
            }
            worker.note(Kind::Move);
            Ok(())
        })
    }

    /// Returns the number of pages that were moved. A page that is shared or in use ends the move.
    fn move_once(
        &self,
        space: &Space,
        source: VirtAddr,
        target: VirtAddr,
        length: u64,
    ) -> Result<u64, Failure> {
        let request = MoveRequest { allow_holes: true, ..MoveRequest::new(source, length, target) };
        let moved = match space.move_pages(request) {
            Ok(()) => length / PAGE_SIZE,
            Err(error) => match error.cause {
                MoveCause::Busy { .. } | MoveCause::Changed { .. } => {
                    self.note(Kind::MoveStopped);
                    error.moved / PAGE_SIZE
                }
                _ => return Err(error.into()),
            },
        };
        self.world.counts.add(Kind::Moved, moved);
        Ok(moved)
    }
}

/// Returns how many of `pages` pages are of the mapping at `at`. Advice, locks and moves split the thread's own mapping, and its parts do
/// not always join again.
fn in_one_mapping(space: &Space, at: VirtAddr, pages: u64) -> u64 {
    let mapping = space.mapping_from(at.page());
    mapping.map_or(pages, |mapping| pages.min(mapping.range.end().get() - at.page().get()))
}
