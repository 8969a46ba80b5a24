//! What page work and range work take, and what is kept while a fault waits for I/O: the seam between the engine and
//! the designs that it compares. The engine has no branch on a design's name.

use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::host::Host;
use crate::stats::Counter;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Park, full_fence};
use crate::vma::Vma;
use crate::vma::tree::View;
use alloc::sync::Arc;

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

/// Where a fault stands in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who asks.
    pub purpose: Purpose,
    /// How often it has waited for I/O and started over.
    pub retries: u32,
    /// The design's own mark, set in [`LockingDesign::blocked`]: take the slow lock this time.
    pub fallback: bool,
}

impl Attempt {
    /// The first one.
    pub const fn first(purpose: Purpose) -> Self {
        Self { purpose, retries: 0, fallback: false }
    }

    /// The next one, after I/O.
    pub const fn again(self) -> Self {
        Self { retries: self.retries + 1, fallback: false, ..self }
    }
}

/// Page work must not go on now, and must not wait inside its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked;

/// A locking design: a plug-in of the engine.
///
/// Page work calls `outside`, enters the read section, calls `inside`, sets the entry's bit, looks the VMA up, does
/// its work, clears the bit, drops what `inside` gave, leaves, and drops what `outside` gave. The bit stands for the
/// page table's own lock under every design; a design that needs no more takes nothing else.
pub trait LockingDesign: Sized + Send + Sync + 'static {
    /// The name in commands and reports.
    const NAME: &'static str;
    /// What it keeps in each space.
    type Space: Default + Send + Sync + 'static;
    /// What it keeps in each VMA.
    type Vma: Default + Send + Sync + 'static;
    /// What page work takes before it enters the section; taking it may sleep.
    type Outside<'s, H: Host>;
    /// What page work takes in the section; taking it does not sleep.
    type Inside<'s, H: Host>;
    /// What a fault keeps through its I/O, if [`AfterIo::Hold`].
    type Kept: Send + 'static;
    /// What range work takes.
    type Range<'s, H: Host>;
    /// What fork takes besides, for the moment of the copy.
    type Fork<'s, H: Host>;

    /// Takes what page work needs before its section.
    fn outside<'s, H: Host>(
        space: &'s Arc<Self::Space>,
        engine: &'s Engine<H>,
        attempt: Attempt,
    ) -> Self::Outside<'s, H>;

    /// Takes what page work needs inside.
    ///
    /// # Errors
    /// [`Blocked`]: the engine leaves, calls [`LockingDesign::blocked`], and starts over.
    fn inside<'o, 's, H: Host>(
        space: &'s Arc<Self::Space>,
        outside: &Self::Outside<'o, H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Self::Inside<'s, H>, Blocked>;

    /// Waits for what blocked, or marks the attempt so that it goes another way.
    fn blocked<H: Host>(space: &Arc<Self::Space>, engine: &Engine<H>, attempt: &mut Attempt);

    /// What happens after the I/O of such an attempt.
    fn after_io(attempt: Attempt) -> AfterIo;

    /// Turns what page work holds into what is kept through I/O. Called only where `after_io` says
    /// [`AfterIo::Hold`].
    fn keep<'o, 's, H: Host>(
        space: &Arc<Self::Space>,
        outside: Self::Outside<'o, H>,
        inside: Self::Inside<'s, H>,
    ) -> Option<Self::Kept>;

    /// Takes what range work on `range` needs. May sleep.
    fn range_work<'s, H: Host>(
        space: &'s Arc<Self::Space>,
        engine: &'s Engine<H>,
        range: PageRange,
    ) -> Self::Range<'s, H>;

    /// Range work is about to replace `vma`: excludes page work that goes by this VMA.
    fn exclude<'s, H: Host>(work: &mut Self::Range<'s, H>, engine: &'s Engine<H>, vma: &Vma<H, Self>);

    /// Excludes page work from the whole space while fork copies. Called with the whole space taken; the VMAs follow
    /// one by one in [`LockingDesign::exclude_for_fork`].
    fn fork<'s, H: Host>(space: &'s Arc<Self::Space>, engine: &'s Engine<H>) -> Self::Fork<'s, H>;

    /// As [`LockingDesign::exclude`], for the moment of fork's copy.
    fn exclude_for_fork<'s, H: Host>(
        work: &mut Self::Range<'s, H>,
        engine: &'s Engine<H>,
        vma: &Vma<H, Self>,
    );
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

    #[inline]
    fn outside<'s, H: Host>(_: &'s Arc<Freeze>, _: &'s Engine<H>, _: Attempt) {}

    #[inline]
    fn inside<'o, 's, H: Host>(
        space: &'s Arc<Freeze>,
        (): &(),
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        if space.frozen.load(Ordering::Acquire) == 0 { Ok(()) } else { Err(Blocked) }
    }

    fn blocked<H: Host>(space: &Arc<Freeze>, engine: &Engine<H>, _: &mut Attempt) {
        engine.park_until(Counter::FreezeWait, space.key(), || space.frozen.load(Ordering::Acquire) != 0);
    }

    fn after_io(_: Attempt) -> AfterIo {
        AfterIo::Resume
    }

    fn keep<'o, 's, H: Host>(_: &Arc<Freeze>, (): (), (): ()) -> Option<Self::Kept> {
        None
    }

    fn range_work<'s, H: Host>(_: &'s Arc<Freeze>, _: &'s Engine<H>, _: PageRange) {}

    fn exclude<H: Host>((): &mut (), _: &Engine<H>, _: &Vma<H, Self>) {}

    fn fork<'s, H: Host>(space: &'s Arc<Freeze>, engine: &'s Engine<H>) -> Frozen<'s, H> {
        space.freeze(engine)
    }

    fn exclude_for_fork<H: Host>((): &mut (), _: &Engine<H>, _: &Vma<H, Self>) {}
}
