//! The page table of one window: the engine's entries, which the kernel's page table follows.
//!
//! | entry | state of the kernel's page |
//! |---|---|
//! | a frame, with `LOADED` | present: the frame's home, or a write-protected copy of it |
//! | a frame without `LOADED` | absent: the first access faults, and the engine installs the page again |
//! | nothing, with `LOADED` | present but no longer needed, until `invalidate` |
//! | nothing, or a guard | absent |
//! | `REFUSED` | poisoned: an access gets SIGBUS |
//!
//! The program itself may change the kernel's pages, by madvise(2), munmap(2) or mremap(2). This crate asks for no
//! userfaultfd event of such a change. With events, the kernel would make each such call, this crate's own too, wait
//! until a handler has read the event, and would refuse all copies meanwhile. Instead, a fault on a page whose entry is
//! `LOADED` shows that the page was dropped ([`Table::note_dropped`]), and a call that the kernel refuses shows that
//! the addresses are taken ([`Obstacle`]).
//!
//! After an entry loses its write right, the kernel's page can be written until `invalidate`, and not after it. The
//! kernel's page may be write-protected although the entry can be written: then a store takes one fault more than it
//! needs.

mod invalidate;

use crate::Linux;
use crate::entries::Entries;
use crate::frames::{Frames, Home, LOST};
use crate::kernel::{Userfault, Window};
use crate::place::Place;
use faultless::AddressSpace;
use faultless::address::{PAGE_SIZE, PageNumber, PageRange};
use faultless::design::LockingDesign;
use faultless::host::{
    Entry, FenceBarrier, FollowRanges, Frame, FrameSource, LeafRecord, OutOfMemory, PageTable,
    RefuseAccesses, Stable, StdSlots, Unsupported,
};
use faultless::protection::{Access, Protection};
use faultless::sync::{Retired, Section, Sections, Shared, Weak};
use faultless_soft::{Leaf, RadixTable};
use rustix::io::Errno;
use std::ops::Deref;
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;

/// The host's bit of an entry: the kernel has a page or poison there.
const LOADED: u64 = 1 << 11;

/// The page table of one window; see the module.
pub struct Table(Shared<Parts>);

/// Pages of a window that [`StdHost::invalidate_all`](faultless::host::StdHost::invalidate_all) invalidates.
pub struct Stale {
    /// Once the table is gone, so is the window, and its pages are not in use.
    table: Weak<Parts>,
    range: PageRange,
}

/// The parts of a table.
pub struct Parts {
    /// The entries, by the page's number in the window.
    entries: Entries,
    window: Window,
    userfault: Arc<Userfault>,
    frames: Arc<Frames>,
    sections: Arc<Sections>,
}

impl Deref for Table {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Stale {
    /// Makes the kernel follow the entries of all of `batch`, one after the other: one system call takes one run of
    /// pages of one window.
    pub(crate) fn invalidate_all(batch: &[Self], mut wait: impl FnMut(u32)) {
        for stale in batch {
            if let Some(table) = stale.table.upgrade() {
                Table(table).invalidate(stale.range, &mut wait);
            }
        }
    }
}

/// Returns the table of a space, so that the caller can ask it for its window.
pub(crate) fn table<D: LockingDesign>(space: &AddressSpace<Linux, D>) -> &Table {
    // SAFETY: only the engine changes entries; this crate walks no table that it gets here.
    unsafe { space.table() }
}

/// Returns the entry without the host's bit, as the engine sees it.
fn seen(raw: Entry) -> Entry {
    raw.without(LOADED)
}

/// Returns whether the entry says that the kernel has a page of a frame.
fn has_page(raw: Entry) -> bool {
    raw.mapped_frame().is_some() && raw.has(LOADED) && !raw.has(Entry::REFUSED)
}

/// The reason that the kernel's page table did not follow an entry.
enum Obstacle {
    /// The kernel has no memory. The engine makes room and tries again.
    NoMemory,
    /// The frame's bytes are lost.
    Lost,
    /// The addresses are no longer the window's: the program has unmapped them, or has mapped something else there. The
    /// access meets the program's mapping, or SIGSEGV.
    Taken,
}

impl From<Errno> for Obstacle {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOMEM => Self::NoMemory,
            LOST => Self::Lost,
            _ => Self::Taken,
        }
    }
}

impl Table {
    /// Makes an empty table over a new window of at least `pages` pages.
    pub(crate) fn new(
        userfault: &Arc<Userfault>,
        frames: &Arc<Frames>,
        sections: &Arc<Sections>,
        pages: u64,
    ) -> Result<Self, OutOfMemory> {
        let pages = pages.checked_next_multiple_of(Self::LEAF_PAGES).filter(|n| *n <= RadixTable::PAGES);
        let window = Window::reserve(userfault, pages.ok_or(OutOfMemory)?).map_err(|_| OutOfMemory)?;
        Ok(Self(Shared::try_new(Parts {
            entries: Entries::new(RadixTable::new(Arc::clone(sections))?),
            window,
            userfault: Arc::clone(userfault),
            frames: Arc::clone(frames),
            sections: Arc::clone(sections),
        })?))
    }

    /// Returns the window: the addresses of this process where the space's pages are.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Returns whether an access to `page` would find the page.
    pub(crate) fn is_there(&self, proof: &impl Stable, page: PageNumber, access: Access) -> bool {
        let needed = match access {
            Access::Read => Entry::READ,
            Access::Write => Entry::WRITE,
            Access::Execute => Entry::EXECUTE,
        };
        let raw = self.entries.leaf(proof, page).map(|leaf| self.entries.load(leaf, page));
        raw.is_some_and(|raw| raw.has(needed | LOADED) && !raw.has(Entry::REFUSED))
    }

    /// Returns whether an access to `page` gets SIGBUS.
    pub(crate) fn is_refused(&self, proof: &impl Stable, page: PageNumber) -> bool {
        let raw = self.entries.leaf(proof, page).map(|leaf| self.entries.load(leaf, page));
        raw.is_some_and(|raw| raw.has(Entry::REFUSED))
    }

    /// Takes refusals back: the next access to each refused page of `range` faults.
    pub(crate) fn forgive(&self, section: &Section<'_>, range: PageRange) {
        let inside = PageRange::with_pages(PageNumber::new(0), self.window.pages());
        let mut rest = inside.ok().and_then(|inside| inside.intersection(range));
        while let Some(range) = rest {
            let Some(first) = self.entries.next_leaf(section, range) else { return };
            let span = PageRange::with_pages(first.align_down(Self::LEAF_PAGES), Self::LEAF_PAGES);
            let Some(part) = span.ok().and_then(|span| span.intersection(range)) else { return };
            rest = PageRange::new(part.end(), range.end());
            let Some(leaf) = self.entries.leaf(section, first) else { continue };
            for page in part.iter() {
                let raw = self.entries.load(leaf, page);
                // If the entry is announced, that thread does the same, or has refused the page again.
                if raw.has(Entry::REFUSED)
                    && !raw.is_announced()
                    && self.entries.try_announce(leaf, page, raw)
                {
                    let gone = self.unload(page).is_ok();
                    let left = if gone { raw.without(LOADED | Entry::REFUSED) } else { raw };
                    let _ = self.entries.install(leaf, page, left);
                }
            }
        }
    }

    /// Drops the kernel's page at `page`, whose entry is announced.
    fn unload(&self, page: PageNumber) -> Result<(), Errno> {
        self.window.drop_pages(PageRange::single(page))
    }

    /// Keeps the bytes of the kernel's page at `at`, before that page and its announced entry go. If the page is the
    /// home of a frame with other mappings, the bytes move into the frame's buffer.
    fn save(&self, raw: Entry, at: usize) -> Result<(), Errno> {
        match raw.mapped_frame() {
            Some(frame) if !self.frames.folio(frame).has_one_mapping_only() => {
                self.bring_home(raw, frame, at)
            }
            _ => Ok(()),
        }
    }

    /// Moves the bytes of `frame` out of the kernel's page at `at`, if that page is its home.
    fn bring_home(&self, raw: Entry, frame: Frame, at: usize) -> Result<(), Errno> {
        let mut home = self.frames.home(frame);
        if *home != Home::Page(at) || !raw.has(LOADED) {
            return Ok(());
        }
        if raw.has(Entry::WRITE) {
            // The frame is mapped by this entry alone, and pinned: the process may write it until it is gone. Any other
            // error means that the page is no longer the window's, so no store reaches it here.
            if self.userfault.write_protect(at, PAGE, true) == Err(Errno::NOMEM) {
                return Err(Errno::NOMEM);
            }
        }
        self.frames.bring_home(frame, &mut home)
    }

    /// Copies the bytes of `frame` into its buffer, before a page goes, if its home is a copy of another frame. That
    /// frame may have its bytes in the page, and may have no other mapping left.
    fn keep_copy(&self, frame: Frame) -> Result<(), Errno> {
        let mut home = self.frames.home(frame);
        if matches!(*home, Home::CopyOf(_)) { self.frames.bring_home(frame, &mut home) } else { Ok(()) }
    }

    /// Loads the page of `frame` at `at`, where the page is absent, with the rights of `new`.
    fn load_page(&self, frame: Frame, at: usize, new: Entry) -> Result<(), Errno> {
        let mut home = self.frames.home(frame);
        let writable = new.has(Entry::WRITE);
        if !writable && matches!(*home, Home::CopyOf(_)) {
            self.frames.bring_home(frame, &mut home)?;
        }
        let loaded = if *home == Home::Zeros && writable && !new.has(Entry::DIRTY) {
            self.userfault.zero(at)
        } else {
            self.frames.copy_out(frame, &home, at, !writable)
        };
        match loaded {
            Ok(()) if writable => *home = Home::Page(at),
            // Recorded here, since the frame that this is a copy of may be freed now.
            Err(LOST) => *home = Home::Lost,
            _ => {}
        }
        loaded
    }

    /// Makes the page at `at`, which holds the bytes of `frame`, writable and the home of `frame`.
    fn settle(&self, frame: Frame, at: usize) -> Result<(), Errno> {
        let mut home = self.frames.home(frame);
        self.userfault.write_protect(at, PAGE, false)?;
        *home = Home::Page(at);
        Ok(())
    }

    /// Turns the page at `at` into the copy `new`, if `new` is a writable copy of the frame that is loaded there. The
    /// old frame keeps its bytes elsewhere; they are copied only if something still needs them.
    fn turn_into_copy(&self, raw: Entry, new: Entry, at: usize) -> Result<bool, Errno> {
        let (Some(old), Some(frame)) = (raw.mapped_frame(), new.mapped_frame()) else { return Ok(false) };
        let is_copy = *self.frames.home(frame) == Home::CopyOf(old);
        if !is_copy || !new.has(Entry::WRITE) || !raw.has(LOADED) || raw.has(Entry::REFUSED) {
            return Ok(false);
        }
        self.save(raw, at)?;
        self.settle(frame, at)?;
        Ok(true)
    }

    /// Makes the kernel's page at `page`, whose entry `raw` is announced, match `new`, and wakes the threads that wait
    /// for it.
    fn show(&self, leaf: Leaf<'_>, page: PageNumber, raw: Entry, new: Entry) -> Result<(), Obstacle> {
        let at = self.window.address(page);
        match new.mapped_frame() {
            None => self.save(raw, at)?,
            Some(frame)
                if raw.mapped_frame() == Some(frame) && raw.has(LOADED) && !raw.has(Entry::REFUSED) =>
            {
                if new.has(Entry::WRITE) {
                    self.settle(frame, at)?;
                } else if !raw.has(Entry::WRITE) {
                    // Another fault came first. `invalidate` takes away a lost right.
                    self.userfault.wake(at)?;
                }
            }
            Some(frame) => {
                if !self.turn_into_copy(raw, new, at)? {
                    if raw.has(LOADED) {
                        self.keep_copy(frame)?;
                        self.save(raw, at)?;
                        self.unload(page)?;
                        // If loading fails, the entry still describes the kernel's state.
                        self.entries.clear(leaf, page, LOADED | Entry::REFUSED);
                    }
                    self.load_page(frame, at, new)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the entry of `page` says that the kernel has a page of a frame there.
    pub(crate) fn is_loaded(&self, proof: &impl Stable, page: PageNumber) -> bool {
        let raw = self.entries.leaf(proof, page).map(|leaf| self.entries.load(leaf, page));
        raw.is_some_and(has_page)
    }

    /// Checks whether the program has dropped `page`, after a fault that found no page there. Returns `true` if it has.
    ///
    /// If the bytes were in that page alone, they are lost. The entry stays as it is, so that every other fault on the
    /// page leads here too, until the page is discarded.
    pub(crate) fn note_dropped(&self, section: &Section<'_>, page: PageNumber) -> bool {
        self.if_absent(section, page, |raw, at| {
            if let Some(frame) = raw.mapped_frame() {
                let mut home = self.frames.home(frame);
                if *home == Home::Page(at) {
                    *home = Home::Lost;
                }
            }
            raw
        })
    }

    /// Marks the dropped `page` as not loaded, if it cannot be discarded. The next fault loads it again, or finds that
    /// its bytes are lost.
    pub(crate) fn unload_dropped(&self, section: &Section<'_>, page: PageNumber) {
        self.if_absent(section, page, |raw, _| raw.without(LOADED));
    }

    /// Replaces the entry by the result of `step`, if the entry says that the kernel has a page and the kernel has
    /// none. Returns whether it did.
    fn if_absent(
        &self,
        section: &Section<'_>,
        page: PageNumber,
        step: impl FnOnce(Entry, usize) -> Entry,
    ) -> bool {
        let Some(leaf) = self.entries.leaf(section, page) else { return false };
        let raw = self.entries.load(leaf, page);
        // If the entry is announced, that thread wakes the access, which then faults again.
        if !self.is_loaded(section, page) || raw.is_announced() || !self.entries.try_announce(leaf, page, raw)
        {
            return false;
        }
        let at = self.window.address(page);
        // The page is present if another fault came first.
        let absent = self.userfault.peek(at, &mut [0]).is_err();
        let left = if absent { step(raw, at) } else { raw };
        let _ = self.entries.install(leaf, page, left);
        absent
    }

    /// Returns whether the bytes of `page` are lost, so that an access gets SIGBUS.
    pub(crate) fn is_lost(&self, proof: &impl Stable, page: PageNumber) -> bool {
        let raw = self.entries.leaf(proof, page).map(|leaf| self.entries.load(leaf, page));
        raw.and_then(Entry::mapped_frame).is_some_and(|frame| *self.frames.home(frame) == Home::Lost)
    }
}

// SAFETY: the entries are `RadixTable`'s and are changed by its rules; the kernel's pages follow as the module states.
unsafe impl PageTable for Table {
    type Leaf<'s> = Leaf<'s>;
    type Root<'s> = Place;
    /// The kernel's own page table is not visible here, so processes cannot share it.
    type Stale = Stale;
    type Sharing = Unsupported;
    type Following = Self;
    type Refusing = Self;

    const LEAF_PAGES: u64 = RadixTable::LEAF_PAGES;
    const MAPS_ZEROS: bool = false;
    /// userfaultfd copies pages in, so two entries that map one frame have two pages of the kernel's.
    const SHARES_WRITES: bool = false;

    fn pages(&self) -> PageRange {
        PageRange::with_pages(PageNumber::new(0), self.window.pages()).expect("a window has pages")
    }

    fn root(&self) -> Place {
        Place::of(&self.window)
    }

    fn sharing(&self) -> Option<&Unsupported> {
        None
    }

    fn following(&self) -> Option<&Self> {
        Some(self)
    }

    fn refusing(&self) -> Option<&Self> {
        Some(self)
    }

    fn leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Option<Leaf<'s>> {
        self.entries.leaf(proof, page)
    }

    fn make_leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Result<Leaf<'s>, OutOfMemory> {
        self.entries.make_leaf(proof, page)
    }

    fn record<'s>(&'s self, leaf: Leaf<'s>) -> &'s LeafRecord {
        self.entries.record(leaf)
    }

    fn hangs(&self, leaf: Leaf<'_>) -> bool {
        self.entries.hangs(leaf)
    }

    fn load(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        seen(self.entries.load(leaf, page))
    }

    fn try_announce(&self, leaf: Leaf<'_>, page: PageNumber, entry: Entry) -> bool {
        let raw = self.entries.load(leaf, page);
        seen(raw) == entry && self.entries.try_announce(leaf, page, raw)
    }

    unsafe fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        self.entries.let_go(leaf, page);
    }

    unsafe fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        let (raw, at) = (self.entries.load(leaf, page), self.window.address(page));
        let next = new.without(Entry::ANNOUNCED | Entry::REFUSED | LOADED);
        match self.show(leaf, page, raw, new) {
            Ok(()) if raw.has(LOADED) || new.mapped_frame().is_some() => {
                self.entries.install(leaf, page, next.with(LOADED)).map(seen)
            }
            Ok(()) => self.entries.install(leaf, page, next).map(seen),
            Err(Obstacle::NoMemory) => Err(OutOfMemory),
            Err(obstacle) => {
                // The access ends by a signal: SIGBUS if the bytes are lost, otherwise the kernel's own.
                let sends = matches!(obstacle, Obstacle::Lost) && self.userfault.poison(at).is_ok();
                let next = if sends { next.with(LOADED | Entry::REFUSED) } else { next };
                let old = self.entries.install(leaf, page, next).map(seen);
                // Threads may still wait at an address that is no longer registered.
                let _ = self.userfault.wake(at);
                old
            }
        }
    }

    unsafe fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        entry: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        let raw = self.entries.load(leaf, page);
        if seen(raw) != entry {
            return Err(seen(raw));
        }
        if new.mapped_frame().is_some() && raw.mapped_frame().is_none() && raw.has(LOADED) {
            // An entry moves to a place where the kernel still has a page that is no longer needed. Drop that page
            // first.
            if !self.entries.try_announce(leaf, page, raw) {
                return Err(self.load(leaf, page));
            }
            // It fails only where the program has mapped something else.
            let _ = self.unload(page);
            let _ = self.entries.install(leaf, page, new);
            return Ok(());
        }
        if new.mapped_frame().is_some() || !raw.has(LOADED) {
            let new = new.with(raw.bits() & LOADED);
            return self.entries.exchange(leaf, page, raw, new).map_err(seen);
        }
        // The kernel's page is dropped later. The place of the frame's bytes is settled now, since the next fault puts
        // another page there. The announcement keeps other page work away meanwhile.
        if !self.entries.try_announce(leaf, page, raw) {
            return Err(self.load(leaf, page));
        }
        let refused = raw.has(Entry::REFUSED);
        if self.save(raw, self.window.address(page)).is_err() {
            // There is no memory at the moment. Bytes that others need must not be dropped.
            self.entries.let_go(leaf, page);
            return Err(seen(raw));
        }
        let gone = !refused || self.unload(page).is_ok();
        let left = if refused && gone { new } else { new.with(LOADED) };
        let _ = self.entries.install(leaf, page, left);
        Ok(())
    }

    unsafe fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        self.entries.fill(leaf, page, new);
    }

    fn next_leaf(&self, proof: &impl Stable, range: PageRange) -> Option<PageNumber> {
        self.entries.next_leaf(proof, range)
    }

    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // The entries still describe the kernel's pages, and a later `invalidate` would not find them.
        let first = page.align_down(Self::LEAF_PAGES);
        let span = PageRange::with_pages(first, Self::LEAF_PAGES).expect("the table's pages have addresses");
        self.invalidate(span, |_| std::thread::yield_now());
        self.entries.unhook(page)
    }

    fn invalidate(&self, range: PageRange, mut wait: impl FnMut(u32)) {
        let mut rest = Some(range);
        let mut look = 0;
        while let Some(range) = rest {
            let waits_at = {
                // The stronger of the two barriers: beside a system call it costs nothing.
                // SAFETY: `StdSlots` gives no two threads the same slot, and the caller is in no section.
                let section = unsafe { self.sections.enter(StdSlots.current(), &FenceBarrier) };
                let Some(page) = self.entries.next_leaf(&section, range) else { break };
                let first = page.align_down(Self::LEAF_PAGES);
                let span =
                    PageRange::with_pages(first, Self::LEAF_PAGES).expect("the table's pages have addresses");
                let Some(part) = span.intersection(range) else { break };
                rest = PageRange::new(part.end(), range.end());
                self.follow_entries(&section, part)
            };
            if let Some(page) = waits_at {
                rest = PageRange::new(page, range.end());
                wait(look);
                look += 1;
            }
        }
    }

    fn stale(&self, range: PageRange) -> Stale {
        Stale { table: Shared::downgrade(&self.0), range }
    }

    fn unload(&self, _wait: impl FnMut(u32)) {
        // The kernel's tables are its own and go with the window, which is no longer used by then.
    }
}

// SAFETY: when the call returns, the kernel's mappings have those rights.
unsafe impl FollowRanges for Table {
    unsafe fn follow(&self, range: PageRange, rights: Option<Protection>) -> Result<(), OutOfMemory> {
        self.window.protect(range, rights).map_err(|_| OutOfMemory)
    }
}

// SAFETY: the entry describes the kernel's state, and the same step ends its announcement.
unsafe impl RefuseAccesses<Self> for Table {
    unsafe fn refuse(&self, leaf: Leaf<'_>, page: PageNumber) {
        let (raw, at) = (self.entries.load(leaf, page), self.window.address(page));
        let home = raw.mapped_frame().map_or(Ok(()), |frame| self.bring_home(raw, frame, at));
        let gone = !raw.has(LOADED) || home.and_then(|()| self.unload(page)).is_ok();
        let next = match gone {
            true if self.userfault.poison(at).is_ok() => raw.with(LOADED | Entry::REFUSED),
            // Poisoning failed: the access is tried again.
            true => raw.without(LOADED | Entry::REFUSED),
            false => raw,
        };
        let _ = self.entries.install(leaf, page, next.without(Entry::ANNOUNCED));
    }
}
