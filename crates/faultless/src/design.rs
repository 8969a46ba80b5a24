//! The seam between the engine and the locking designs that it compares: the locks of page work and range work, and the
//! locks that a fault keeps while it waits for I/O. The engine has no branch on a design's name.

use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::host::Host;
use crate::page_cache::NEWCOMER;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Shared, full_fence};
pub use crate::vma::tree::{Tree, View};
pub use crate::vma::{Backing, Mapping, Vma};

/// The way in which a fault continues after its I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterIo {
    /// The fault keeps the locks of page work through the I/O, and goes on with the folio that it pinned.
    Hold,
    /// The fault keeps nothing, not even the pin. It starts over and looks the page up again.
    Retry,
    /// The fault keeps its pin of the folio, so that the page is not lost. It starts over and looks the page up again.
    RetryPinned,
    /// The fault keeps its pin of the folio. It announces again, checks that all is as before, and maps the folio.
    Resume,
}

impl AfterIo {
    /// Returns whether the fault starts over.
    pub(crate) fn is_retry(self) -> bool {
        matches!(self, Self::Retry | Self::RetryPinned)
    }
}

/// The kind of the page for which a fault waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// A page of a file, also of one without a store.
    File,
    /// An anonymous page, which is in swap space.
    Anonymous,
}

/// The origin of page work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Page work that serves a fault.
    Fault,
    /// Page work that comes from a folio or a file: truncation, reclaim. Linux takes only the table's lock there.
    Rmap,
}

/// The mappings that page work is for. On a page of any other mapping, page work does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingFilter {
    /// Any mapping.
    Any,
    /// The mapping that one map call made, named by its serial.
    Mapping(u64),
    /// Locked mappings, except those that are locked on fault only.
    Locked,
}

impl MappingFilter {
    /// Returns whether the filter admits `mapping`.
    pub(crate) fn admits<H: Host>(self, mapping: &Mapping<H>) -> bool {
        match self {
            _ if mutant!("populate_what_is_there") => true,
            Self::Any => true,
            Self::Mapping(serial) => mapping.serial == serial,
            Self::Locked => mapping.flags.is_fetched(),
        }
    }
}

/// The state of one piece of page work over its attempts. The engine keeps it; only the design makes decisions by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The origin of the page work.
    pub purpose: Purpose,
    /// The number of times that the page work has waited for I/O and started over.
    pub retries: u32,
    /// A mark of the design: the attempt may not release its locks for I/O again (Linux: `FAULT_FLAG_TRIED`).
    pub tried: bool,
    /// A mark of the design: the attempt takes the slow lock, since the fast one was not available.
    pub slow: bool,
    /// The engine's filter: the mappings that the page work is for.
    pub only: MappingFilter,
    /// A mark of the engine: a private mapping gets a page of its own, regardless of the access. It is set for a pin for I/O
    /// (Linux: `FAULT_FLAG_UNSHARE`).
    pub unshares: bool,
    /// The engine's ticket: the place in the queue for memory, once the page work has waited there.
    pub ticket: u64,
    /// The engine's count: the turns in the queue for memory that have found none.
    pub turns: u32,
}

impl Attempt {
    /// Returns the state of a first attempt.
    pub const fn first(purpose: Purpose) -> Self {
        Self {
            purpose,
            retries: 0,
            tried: false,
            slow: false,
            only: MappingFilter::Any,
            unshares: false,
            ticket: NEWCOMER,
            turns: 0,
        }
    }
}

/// Tells the engine that page work must not go on now. Page work must not wait inside its section either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The engine leaves the section, calls [`LockingDesign::blocked`], and starts over.
    Wait,
    /// The state has changed meanwhile: the engine leaves the section, and starts over at once.
    Again,
}

/// A need that page work meets on its way. A design may refuse it to an attempt ([`LockingDesign::allows`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// A new leaf table, where there is none.
    LeafTable,
    /// The first anonymous page of a mapping.
    FirstAnonymous,
    /// A wait, for I/O or for a folio's lock.
    Wait,
}

/// The call that does range work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// mmap at a given address.
    Map,
    /// mmap without an address. The place is found later; the range is the whole space. See [`LockingDesign::placed`].
    Place,
    /// munmap, and the unmapping of everything by exit.
    Unmap,
    /// mprotect.
    Protect,
    /// A call that changes pages and leaves the mappings as they are: MADV_DONTNEED, guard pages, a move of pages (as userfaultfd's
    /// MOVE), `isolate_cowed`.
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
/// Page work calls `outside`, enters the read section, calls `inside`, sets the entry's bit, looks the VMA up, and calls
/// `confirm`. It does its work, clears the bit, drops the value of `inside`, leaves the section, and drops the value of
/// `outside`. Under every design the bit stands for the page table's own lock. A design that needs no more takes nothing
/// else.
pub trait LockingDesign: Sized + Send + Sync + 'static {
    /// The design's name in commands and reports.
    const NAME: &'static str;
    /// Says whether a fault that finds no free frame keeps its locks while the engine makes room.
    const KEEPS_WHILE_RECLAIMING: bool = false;
    /// Says whether a fault that finds a file's folio locked waits for the folio's lock.
    const LOCKS_FOLIOS: bool = false;
    /// Says whether range work excludes page work VMA by VMA ([`LockingDesign::exclude`]). The `range_work` of such a
    /// design must exclude all other changes of mappings. That of fork must also keep calls that change pages ([`Call::Discard`])
    /// away from the VMAs that it has excluded. Such a fork excludes and copies one VMA after the other, unless it may share leaf
    /// tables.
    const LOCKS_VMAS: bool = false;
    /// The state of the design in each space.
    type Space: Default + Send + Sync + 'static;
    /// The state of the design in each VMA, which is a part of the VMA. A thread that keeps a lock of a VMA while it waits is in no
    /// section, so what it keeps must not refer to this state.
    type Vma: Default + Send + Sync + 'static;
    /// The locks that page work takes before it enters its section. Taking them may sleep.
    type Outside<'s, H: Host>;
    /// The locks that page work takes inside its section. Taking them does not sleep.
    type Inside<'s, H: Host>;
    /// The locks that a fault keeps while it waits, if [`AfterIo::Hold`].
    type Kept: Send + 'static;
    /// The locks that range work takes.
    type Range<'s, H: Host>;
    /// The locks that fork takes in addition, for the moment of the copy.
    type Fork<'s, H: Host>;

    /// Takes the locks that work on `page` needs before its section.
    fn outside<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Self::Outside<'s, H>;

    /// Takes the locks that page work needs inside its section.
    ///
    /// # Errors
    /// [`Blocked`]; the engine then leaves the section.
    fn inside<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Self::Inside<'s, H>, Blocked>;

    /// Returns the VMA that `inside` has found and protects from changes. The engine does not look it up again.
    #[inline]
    fn found<'s, H: Host>(_inside: &Self::Inside<'s, H>) -> Option<&'s Vma<H, Self>> {
        None
    }

    /// Checks that page work may use the VMA that it has looked up. Called once, while announced and before any work is
    /// done. From here on the bit keeps range work away. Must not sleep.
    ///
    /// # Errors
    /// [`Blocked`], as in [`LockingDesign::inside`].
    #[inline]
    fn confirm<H: Host>(_: &Shared<Self::Space>, _outside: &Self::Outside<'_, H>) -> Result<(), Blocked> {
        Ok(())
    }

    /// Checks that the attempt may have a capability that it has come to need. Called while announced or in the section.
    /// For [`Capability::Wait`] it is called with nothing held but the design's own locks. Must not sleep.
    ///
    /// # Errors
    /// [`Blocked`], as in [`LockingDesign::inside`].
    #[inline]
    fn allows<H: Host>(
        _: &Shared<Self::Space>,
        _: &Engine<H>,
        _: Attempt,
        _: Capability,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    /// Waits until the cause of a [`Blocked::Wait`] has ended, or marks the attempt so that it goes another way.
    fn blocked<H: Host>(space: &Shared<Self::Space>, engine: &Engine<H>, attempt: &mut Attempt);

    /// Returns the way in which a fault with this attempt continues after its I/O for such a page.
    fn after_io(attempt: Attempt, awaits: Awaits) -> AfterIo;

    /// Returns the way in which a fault continues after it waited for a file's folio that is up to date and locked.
    fn after_lock(attempt: Attempt) -> AfterIo {
        Self::after_io(attempt, Awaits::File)
    }

    /// Returns the attempt that follows one that has waited. `major` says that the attempt itself started the read.
    fn again(attempt: Attempt, major: bool) -> Attempt {
        let _ = major;
        Attempt { retries: attempt.retries + 1, slow: false, ..attempt }
    }

    /// Turns the locks that page work holds into those that the fault keeps while it waits. Called only if `after_io` or
    /// `after_lock` returns [`AfterIo::Hold`], or if [`LockingDesign::KEEPS_WHILE_RECLAIMING`].
    fn keep<'o, 's, H: Host>(
        space: &Shared<Self::Space>,
        outside: Self::Outside<'o, H>,
        inside: Self::Inside<'s, H>,
    ) -> Option<Self::Kept>;

    /// Notes that the kept locks are held through I/O from now on.
    fn through_io(_kept: &mut Self::Kept) {}

    /// Takes the locks that `call` on `range` needs. May sleep.
    fn range_work<'s, H: Host>(
        space: &'s Shared<Self::Space>,
        engine: &'s Engine<H>,
        tree: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Self::Range<'s, H>;

    /// Takes the locks that [`Call::Place`] needs for the place that it has found and claimed. Also called for
    /// [`Call::Map`], where `range_work` has locked this place or another one. Called with the tree lock held: must not
    /// sleep.
    ///
    /// # Errors
    /// [`Blocked`]. The engine then releases all locks and starts over with [`Call::Map`] for this place, which may no
    /// longer be free.
    fn placed<'s, H: Host>(_work: &mut Self::Range<'s, H>, _place: PageRange) -> Result<(), Blocked> {
        Ok(())
    }

    /// Excludes page work that uses a VMA, until the range work ends. The range work is about to replace or to publish
    /// this VMA, or to copy it. Called with the tree lock held: must not sleep. May be called again for the same VMA.
    ///
    /// # Errors
    /// [`Blocked`]: page work that uses the VMA is under way, and no more can begin. The engine releases the tree lock, calls
    /// [`LockingDesign::await_page_work`], and starts over with this VMA. For a VMA that no other thread has yet there is no error.
    #[inline]
    fn exclude<'s, H: Host>(
        _work: &mut Self::Range<'s, H>,
        _engine: &'s Engine<H>,
        _vma: &Self::Vma,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    /// Waits until page work has ended that was in the way of [`LockingDesign::exclude`]. May sleep, and may return early.
    fn await_page_work<'s, H: Host>(_work: &mut Self::Range<'s, H>, _engine: &'s Engine<H>) {}

    /// Notes that a VMA leaves the tree in the next step (`gone`), or that it did not leave after all (not `gone`).
    fn detach(_vma: &Self::Vma, _gone: bool) {}

    /// Notes that the mappings of munmap are out of the tree. Only the sweep is left to do.
    fn published<H: Host>(_work: &mut Self::Range<'_, H>) {}

    /// Returns whether fork excludes page work on this mapping.
    fn fork_excludes<H: Host>(_mapping: &Mapping<H>) -> bool {
        true
    }

    /// Excludes page work from the whole space while fork copies. Called with the whole space taken, after page work on
    /// the mappings that [`LockingDesign::fork_excludes`] names has been excluded. A fork that excludes and copies one VMA after the
    /// other does not call it.
    fn fork<'s, H: Host>(space: &'s Shared<Self::Space>, engine: &'s Engine<H>) -> Self::Fork<'s, H>;
}

/// The default design: it takes the entry's bit and nothing else. Faults resume after I/O. A fork freezes the space for
/// the moment of its copy.
#[derive(Clone, Copy, Debug)]
pub struct Faultless;

/// The state that [`Faultless`] keeps in a space.
#[derive(Debug, Default)]
pub struct Freeze {
    /// Not zero while a fork copies. Atomic. Fork sets it before a grace period; page work reads it inside its section.
    /// Either the grace period waits for the section, or the section sees that it is set.
    frozen: AtomicU32,
}

/// A space that is frozen for a fork. Dropping the value thaws the space.
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

    /// Returns whether page work is stopped. Called in a read section.
    #[inline]
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire) != 0
    }

    /// Sleeps until page work may go on.
    pub fn wait<H: Host>(&self, engine: &Engine<H>) {
        engine.park_until(Counter::FreezeWait, self.key(), || self.is_frozen());
    }

    /// Stops page work in the space, and waits until page work that is under way has ended.
    pub fn freeze<'s, H: Host>(&'s self, engine: &'s Engine<H>) -> Frozen<'s, H> {
        if !mutant!("fork_without_freeze") {
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
    /// This design keeps no locks.
    type Kept = core::convert::Infallible;
    type Range<'s, H: Host> = ();
    type Fork<'s, H: Host> = Frozen<'s, H>;

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

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
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
