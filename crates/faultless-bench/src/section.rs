//! Read sections: the cost of protecting the objects that a reader reaches from being freed.

use crate::case::{Case, Entrant, Loop, Work};
use crate::guard::{Guard, Membarrier, Named};
use crate::index::Maple;
use crate::lap::Lap;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use faultless::host::FenceBarrier;
use faultless_lab::trouble::Trouble;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CASE: Case = Case {
    name: "read-section",
    about: "enter a read section, read a shared word that is never written, leave",
    sizes: None,
    slices: 1,
    bars: &[],
    set_up: |_| Ok(entrants()),
};

fn entrants() -> Vec<Entrant> {
    let word = || CachePadded::new(AtomicU64::new(1));
    let mut all: Vec<Entrant> = Vec::new();
    let mut enter = |name: &str, work| all.extend(Entrant::with_threads(name, &[1, 2], work));

    let plain = word();
    enter("none: a plain load", looped(move |lap| lap.repeat(256, 1, || read(&plain))));
    enter("faultless (fence)", guarded::<FenceBarrier>());
    enter("faultless (membarrier)", guarded::<Membarrier>());
    let epoch = word();
    let pinned = move |lap: &mut Lap| {
        lap.repeat(256, 1, || {
            let _guard = crossbeam_epoch::pin();
            read(&epoch)
        })
    };
    enter("crossbeam-epoch", looped(pinned));
    let (collector, entered) = (seize::Collector::new(), word());
    let entered = move |lap: &mut Lap| {
        lap.repeat(256, 1, || {
            let _guard = collector.enter();
            read(&entered)
        })
    };
    enter("seize", looped(entered));
    let swapped = ArcSwap::from_pointee(AtomicU64::new(1));
    enter("arc-swap", looped(move |lap| lap.repeat(256, 1, || read(&swapped.load()))));
    let liburcu = Maple::get().and_then(|maple| {
        looped(move |lap| {
            let (member, word) = (maple.enter(), black_box(1));
            lap.repeat(256, 1, || {
                black_box(member.read(&word));
                Ok(())
            })
        })
    });
    enter("liburcu, memb", liburcu);
    all
}

#[inline]
fn read(word: &AtomicU64) -> Result<(), Trouble> {
    black_box(word.load(Ordering::Acquire));
    Ok(())
}

fn looped(
    work: impl Fn(&mut Lap) -> Result<(), Trouble> + Send + Sync + 'static,
) -> Result<Arc<dyn Work>, String> {
    Ok(Arc::new(Loop(move |_me, lap: &mut Lap| work(lap))))
}

fn guarded<B: Named>() -> Result<Arc<dyn Work>, String> {
    let (guard, word) = (Guard::<B>::new()?, CachePadded::new(AtomicU64::new(1)));
    looped(move |lap| {
        lap.repeat(256, 1, || {
            let _section = guard.enter();
            read(&word)
        })
    })
}
