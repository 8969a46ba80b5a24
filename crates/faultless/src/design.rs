//! What page work and range work take, and what is kept while a fault waits for I/O: the seam between the engine and
//! the designs that it compares. The engine has no branch on a design's name.

use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::host::Host;
use crate::page_cache::NEWCOMER;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{OutOfMemory, Shared, full_fence};
pub use crate::vma::tree::{Tree, View};
pub use crate::vma::{Backing, Mapping, Vma};

/// What happens after a fault's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterIo {
    /// What page work took is kept through the I/O; the fault goes on with the folio it pinned.
    Hold,
    /// Nothing is kept, not even the pin; the fault starts over and looks the page up again.
    Retry,
    /// The folio stays pinned; the fault announces again, checks that all is as before, and maps it.
    Resume,
}

/// Who does page work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A fault.
    Fault,
    /// Somebody who comes from the folio or the file: truncation, reclaim. Linux takes only the table's lock there.
    Rmap,
}

/// Which mapping page work is for, if not for whatever it finds: on another it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingFilter {
    /// Whatever is mapped.
    Any,
    /// What one map call made, by its serial.
    Mapping(u64),
    /// What is locked, and not only on fault.
    Locked,
}

impl MappingFilter {
    /// Whether it is for `mapping`.
    pub(crate) fn admits<H: Host>(self, mapping: &Mapping<H>) -> bool {
        match self {
            _ if cfg!(mutant = "populate_what_is_there") => true,
            Self::Any => true,
            Self::Mapping(serial) => mapping.serial == serial,
            Self::Locked => mapping.flags.is_fetched(),
        }
    }
}

/// Where page work stands in its way. The engine keeps it; the design alone decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who asks.
    pub purpose: Purpose,
    /// How often it has waited for I/O and started over.
    pub retries: u32,
    /// The design's mark: it may not let go for I/O again (Linux: `FAULT_FLAG_TRIED`).
    pub tried: bool,
    /// The design's mark: take the slow lock this time, since the fast one was not to be had.
    pub slow: bool,
    /// The engine's: which mapping it is for.
    pub only: MappingFilter,
    /// The engine's: a private mapping gets a page of its own, whatever the access. Set for a pin for I/O
    /// (Linux: `FAULT_FLAG_UNSHARE`).
    pub unshares: bool,
    /// The engine's: its place in the queue for memory, once it has waited there.
    pub ticket: u64,
}

impl Attempt {
    /// The first one.
    pub const fn first(purpose: Purpose) -> Self {
        Self {
            purpose,
            retries: 0,
            tried: false,
            slow: false,
            only: MappingFilter::Any,
            unshares: false,
            ticket: NEWCOMER,
        }
    }
}

/// Page work must not go on now, and must not wait inside its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The engine leaves, calls [`LockingDesign::blocked`], and starts over.
    Wait,
    /// Something moved: the engine leaves, and starts over at once.
    Again,
}

/// What page work comes to need, and not every design gives to every attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// A leaf table where none is.
    LeafTable,
    /// The first anonymous page of a mapping.
    FirstAnonymous,
    /// To wait, for I/O or for a folio's lock.
    Wait,
}

/// The call that does range work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// mmap at an address.
    Map,
    /// mmap where there is room, found later: the range is all of the space. See [`LockingDesign::placed`].
    Place,
    /// munmap, and the unmapping of everything by exit.
    Unmap,
    /// mprotect.
    Protect,
    /// madvise(MADV_DONTNEED): mappings stay as they are.
    Discard,
    /// mremap.
    Remap,
    /// brk.
    Brk,
    /// A fault below a mapping that grows down.
    Grow,
    /// fork.
    Fork,
}

/// A locking design: a plug-in of the engine.
///
/// Page work calls `outside`, enters the read section, calls `inside`, sets the entry's bit, looks the VMA up, calls
/// `confirm`, does its work, clears the bit, drops what `inside` gave, leaves, and drops what `outside` gave. The bit stands for the
/// page table's own lock under every design; a design that needs no more takes nothing else.
pub trait LockingDesign: Sized + Send + Sync + 'static {
    /// The name in commands and reports.
    const NAME: &'static str;
    /// Whether a fault that finds no frame keeps what it holds while room is made.
    const KEEPS_WHILE_RECLAIMING: bool = false;
    /// Whether a fault that finds a file's folio locked waits for that.
    const LOCKS_FOLIOS: bool = false;
    /// Whether range work excludes page work VMA by VMA: [`LockingDesign::exclude`]. Such a design's `range_work` keeps all
    /// other changes of mappings away.
    const LOCKS_VMAS: bool = false;
    /// What it keeps in each space.
    type Space: Default + Send + Sync + 'static;
    /// What it keeps in each VMA; a clone is the same.
    type Vma: Clone + Send + Sync + 'static;
    /// What page work takes before it enters the section; taking it may sleep.
    type Outside<'s, H: Host>;
    /// What page work takes in the section; taking it does not sleep.
    type Inside<'s, H: Host>;
    /// What a fault keeps while it waits, if [`AfterIo::Hold`].
    type Kept: Send + 'static;
    /// What range work takes.
    type Range<'s, H: Host>;
    /// What fork takes besides, for the moment of the copy.
    type Fork<'s, H: Host>;

    /// What a new VMA gets.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new_vma() -> Result<Self::Vma, OutOfMemory>;

    /// Takes what work on `page` needs before its section.
    fn outside<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Self::Outside<'s, H>;

    /// Takes what page work needs inside.
    ///
    /// # Errors
    /// [`Blocked`]: the engine leaves.
    fn inside<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Self::Inside<'s, H>, Blocked>;

    /// The VMA that `inside` has found and excludes changes of: it is not looked up again.
    #[inline]
    fn found<'s, H: Host>(_inside: &Self::Inside<'s, H>) -> Option<&'s Vma<H, Self>> {
        None
    }

    /// Whether the VMA that has been looked up may be worked with. Called once, while announced and before anything is
    /// done: from here on the bit keeps range work away. Does not sleep.
    ///
    /// # Errors
    /// [`Blocked`], as [`LockingDesign::inside`].
    #[inline]
    fn confirm<H: Host>(_: &Shared<Self::Space>, _outside: &Self::Outside<'_, H>) -> Result<(), Blocked> {
        Ok(())
    }

    /// Whether the attempt may have what it has come to need. Called while announced, or in the section, or, to wait, with
    /// nothing held but what the design keeps: does not sleep.
    ///
    /// # Errors
    /// [`Blocked`], as [`LockingDesign::inside`].
    #[inline]
    fn allows<H: Host>(
        _: &Shared<Self::Space>,
        _: &Engine<H>,
        _: Attempt,
        _: Capability,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    /// Waits for what blocked, or marks the attempt so that it goes another way.
    fn blocked<H: Host>(space: &Shared<Self::Space>, engine: &Engine<H>, attempt: &mut Attempt);

    /// What happens after the I/O of such an attempt.
    fn after_io(attempt: Attempt) -> AfterIo;

    /// What happens after waiting for a folio that is up to date and locked.
    fn after_lock(attempt: Attempt) -> AfterIo {
        Self::after_io(attempt)
    }

    /// The attempt that follows one that has waited. `major`: it started the read itself.
    fn again(attempt: Attempt, major: bool) -> Attempt {
        let _ = major;
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }

    /// Turns what page work holds into what is kept while the fault waits. Called only where `after_io` or
    /// `after_lock` says [`AfterIo::Hold`], or with [`LockingDesign::KEEPS_WHILE_RECLAIMING`].
    fn keep<'o, 's, H: Host>(
        space: &Shared<Self::Space>,
        outside: Self::Outside<'o, H>,
        inside: Self::Inside<'s, H>,
    ) -> Option<Self::Kept>;

    /// What is kept is kept through I/O from now on.
    fn through_io(_kept: &mut Self::Kept) {}

    /// Takes what `call` on `range` needs. May sleep.
    fn range_work<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        tree: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Self::Range<'s, H>;

    /// [`Call::Place`] has found a place and claimed it: takes what it needs of that. Called with the tree lock held: does
    /// not sleep. Also where `range_work` has taken another place, or this one, for [`Call::Map`].
    ///
    /// # Errors
    /// [`Blocked`]: the engine lets all go and starts over with [`Call::Map`] for this place, which is still free perhaps.
    fn placed<'s, H: Host>(_work: &mut Self::Range<'s, H>, _place: PageRange) -> Result<(), Blocked> {
        Ok(())
    }

    /// Excludes page work that goes by a VMA which range work is about to replace or to publish, until that ends. May
    /// sleep. Called before the range is taken, or, for a neighbour that is merged, without the tree lock.
    fn exclude<'s, H: Host>(_work: &mut Self::Range<'s, H>, _engine: &'s Engine<H>, _vma: &Self::Vma) {}

    /// Whether `exclude` has been called for this VMA.
    fn is_excluded<H: Host>(_work: &Self::Range<'_, H>, _vma: &Self::Vma) -> bool {
        true
    }

    /// A VMA leaves the tree in the next step (`gone`), or did not after all.
    fn detach(_vma: &Self::Vma, _gone: bool) {}

    /// munmap's mappings are out of the tree; only its sweep is left.
    fn published<H: Host>(_work: &mut Self::Range<'_, H>) {}

    /// Whether fork excludes such a mapping's page work.
    fn fork_excludes<H: Host>(_mapping: &Mapping<H>) -> bool {
        true
    }

    /// Excludes page work from the whole space while fork copies. Called with the whole space taken, and what
    /// [`LockingDesign::fork_excludes`] names excluded.
    fn fork<'s, H: Host>(space: &'s Shared<Self::Space>, engine: &'s Engine<H>) -> Self::Fork<'s, H>;
}

/// The default design: the entry's bit and nothing else. Faults resume after I/O; a fork freezes the space for the
/// moment of its copy.
#[derive(Clone, Copy, Debug)]
pub struct Faultless;

/// The state that [`Faultless`] keeps in a space.
#[derive(Debug, Default)]
pub struct Freeze {
    /// Not zero while a fork copies. Set before its grace period, read by page work inside its section: either the
    /// grace period waits for the section, or the section sees it set.
    frozen: AtomicU32,
}

/// A space frozen for a fork; thawed by dropping it.
pub struct Frozen<'s, H: Host> {
    freeze: &'s Freeze,
    engine: &'s Engine<H>,
}

impl<H: Host> Drop for Frozen<'_, H> {
    fn drop(&mut self) {
        self.freeze.frozen.store(0, Ordering::Release);
        self.engine.wake_all(self.freeze.key());
    }
}

impl Freeze {
    fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Whether page work is stopped. Asked in a read section.
    #[inline]
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire) != 0
    }

    /// Sleeps until page work may go on.
    pub fn wait<H: Host>(&self, engine: &Engine<H>) {
        engine.park_until(Counter::FreezeWait, self.key(), || self.is_frozen());
    }

    /// Stops page work in the space and waits until what is under way has ended.
    pub fn freeze<'s, H: Host>(&'s self, engine: &'s Engine<H>) -> Frozen<'s, H> {
        #[cfg(not(mutant = "fork_without_freeze"))]
        {
            self.frozen.store(1, Ordering::Release);
            full_fence();
            engine.grace();
        }
        Frozen { freeze: self, engine }
    }
}

impl LockingDesign for Faultless {
    const NAME: &'static str = "faultless";
    type Space = Freeze;
    type Vma = ();
    type Outside<'s, H: Host> = ();
    type Inside<'s, H: Host> = ();
    /// Nothing can be kept.
    type Kept = core::convert::Infallible;
    type Range<'s, H: Host> = ();
    type Fork<'s, H: Host> = Frozen<'s, H>;

    fn new_vma() -> Result<(), OutOfMemory> {
        Ok(())
    }

    #[inline]
    fn outside<'s, H: Host>(_: &'s Shared<Freeze>, _: &'s Engine<H>, _: PageNumber, _: Attempt) {}

    #[inline]
    fn inside<'s, H: Host>(
        space: &'s Shared<Freeze>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        if space.is_frozen() { Err(Blocked::Wait) } else { Ok(()) }
    }

    fn blocked<H: Host>(space: &Shared<Freeze>, engine: &Engine<H>, _: &mut Attempt) {
        space.wait(engine);
    }

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Resume
    }

    fn keep<'o, 's, H: Host>(_: &Shared<Freeze>, (): (), (): ()) -> Option<Self::Kept> {
        None
    }

    fn range_work<'s, H: Host>(
        _: &'s Shared<Freeze>,
        _: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        _: Call,
        _: PageRange,
    ) {
    }

    fn fork<'s, H: Host>(space: &'s Shared<Freeze>, engine: &'s Engine<H>) -> Frozen<'s, H> {
        space.freeze(engine)
    }
}
