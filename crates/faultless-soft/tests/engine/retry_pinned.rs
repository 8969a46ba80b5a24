//! A fault that starts over with its page pinned does not lose the page, and one that starts over without it may.

use crate::devices::file_store;
use faultless::address::{PAGE_SIZE, PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Tree, View, Vma};
use faultless::host::Host;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::GatedStore;
use faultless::sync::Shared;
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapRequest};
use faultless_soft::Soft;
use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;

type Between = Box<dyn Fn()>;

thread_local! {
    /// Called by a fault of this thread that starts over, before it looks its page up again.
    static BETWEEN: RefCell<Option<Between>> = const { RefCell::new(None) };
}

/// A design without a lock, for one thread. Its faults start over, with their page pinned if `PINS`.
struct StartsOver<const PINS: bool>;

impl<const PINS: bool> LockingDesign for StartsOver<PINS> {
    const NAME: &'static str = "starts-over";
    type Space = ();
    type Vma = ();
    type Outside<'s, H: Host> = ();
    type Inside<'s, H: Host> = ();
    type Kept = Infallible;
    type Range<'s, H: Host> = ();
    type Fork<'s, H: Host> = ();

    fn outside<'s, H: Host>(_: &'s Shared<()>, _: &'s Engine<H>, _: PageNumber, attempt: Attempt) {
        let between = BETWEEN.take().filter(|_| attempt.retries == 1);
        between.into_iter().for_each(|between| between());
    }

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
        if PINS { AfterIo::RetryPinned } else { AfterIo::Retry }
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

/// Returns the number of reads of a fault whose page reclaim wants when the fault starts over.
fn reads<const PINS: bool>() -> u64 {
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    let store = Arc::new(GatedStore::new(file_store()));
    let file = File::open(&engine, store.clone()).unwrap();
    let space = AddressSpace::<Soft, StartsOver<PINS>>::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ)).unwrap();
    let Fault::Pending(fault) = space.fault(at, Access::Read).unwrap() else { panic!("nothing is read") };
    let reclaimed = engine.clone();
    // The page was just used, so one look does not take it.
    BETWEEN.set(Some(Box::new(move || (0..8).for_each(|_| _ = reclaimed.reclaim(64)))));
    store.open();
    let mut fault = fault.wait().unwrap();
    while let Fault::Pending(pending) = fault {
        fault = pending.wait().unwrap();
    }
    assert!(engine.statistics().get(Counter::Retries) >= 1);
    engine.statistics().get(Counter::IoReads)
}

#[test]
fn a_fault_that_starts_over_with_a_pin_reads_its_page_once() {
    assert_eq!(reads::<true>(), 1);
    assert_eq!(reads::<false>(), 2, "reclaim takes the page that nobody has pinned");
}
