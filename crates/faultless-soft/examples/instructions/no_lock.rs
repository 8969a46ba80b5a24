//! Two designs without a lock. Under `NoLock<false>` the engine asks for none. Under `NoLock<true>` it does all that it does for a design
//! with a lock in each VMA, and the design does nothing. The difference is what such designs pay for this engine alone.

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Tree, View, Vma};
use faultless::host::Host;
use faultless::sync::Shared;
use std::convert::Infallible;

/// A design that takes no lock. `LOCKS_VMAS`: the engine excludes page work VMA by VMA. For one thread only.
pub struct NoLock<const LOCKS_VMAS: bool>;

impl<const LOCKS_VMAS: bool> LockingDesign for NoLock<LOCKS_VMAS> {
    const NAME: &'static str = "no-lock";
    const LOCKS_VMAS: bool = LOCKS_VMAS;
    type Space = ();
    type Vma = ();
    type Outside<'s, H: Host> = ();
    type Inside<'s, H: Host> = ();
    type Kept = Infallible;
    type Range<'s, H: Host> = ();
    type Fork<'s, H: Host> = ();

    fn outside<'s, H: Host>(_: &'s Shared<()>, _: &'s Engine<H>, _: PageNumber, _: Attempt) {}

    fn inside<'s, H: Host>(
        _: &'s Shared<()>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Shared<()>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Retry
    }

    fn keep<'o, 's, H: Host>(_: &Shared<()>, (): (), (): ()) -> Option<Infallible> {
        None
    }

    fn range_work<'s, H: Host>(
        _: &'s Shared<()>,
        _: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        _: Call,
        _: PageRange,
    ) {
    }

    fn fork<'s, H: Host>(_: &'s Shared<()>, _: &'s Engine<H>) {}
}
