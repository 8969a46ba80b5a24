//! `faultless-retry`: a bit in the page-table entry, as in `faultless`, but a fault starts over after its I/O and looks
//! the page up again. The comparison with `faultless` separates the effect of the bit from the effect of resuming. No
//! version of Linux works like this.
//!
//! No lock is held during reclaim for a frame, as with `faultless`.

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, Freeze, Frozen, LockingDesign};
use faultless::host::Host;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use std::convert::Infallible;

/// The `faultless-retry` design; see the module.
#[derive(Clone, Copy, Debug)]
pub struct FaultlessRetry;

impl LockingDesign for FaultlessRetry {
    const NAME: &'static str = "faultless-retry";
    type Space = Freeze;
    type Vma = ();
    type Outside<'s, H: Host> = ();
    type Inside<'s, H: Host> = ();
    type Kept = Infallible;
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
        AfterIo::Retry
    }

    fn keep<'o, 's, H: Host>(_: &Shared<Freeze>, (): (), (): ()) -> Option<Infallible> {
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
