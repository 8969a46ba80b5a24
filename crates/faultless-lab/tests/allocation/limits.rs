//! Groups of spaces: memory runs out at every point of their making and of the first use of a space in one.

use crate::failing::{Often, with_failure};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::Host;
use faultless::{
    AddressSpace, Engine, LimitConfig, Limits, MapRequest, MemoryLimit, MemoryLimitError, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 8;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// Makes a group and one below it, and a space there, with a child. Returns the pages that the upper group pays for, or `None` if
/// memory ran out.
fn groups_and_spaces(engine: &Arc<Engine<Soft>>) -> Option<u64> {
    let is_lack = |error| assert_eq!(error, MemoryLimitError::OutOfMemory);
    let above = MemoryLimit::new(engine, LimitConfig::max(32)).map_err(is_lack).ok()?;
    let limit = above.child(LimitConfig::max(16)).map_err(is_lack).ok()?;
    let space = Space::new_in(engine, &limit).map_err(is_lack).ok()?;
    let request = MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)));
    space.map(request).ok()?;
    let stored = (0..PAGES).try_for_each(|page| space.store_u64(at(page), page + 1));
    let child = stored.ok().and_then(|()| space.fork().ok());
    let copied = child.as_ref().map(|child| child.store_u64(at(0), 9).is_ok());
    let usage = above.usage();
    assert_eq!(usage.resident, limit.usage().resident);
    // A call that failed has given its charges back.
    assert_eq!(usage.resident, engine.frame_usage().used - 1);
    (copied == Some(true)).then_some(usage.resident)
}

fn sweep(fails: impl Fn(&Arc<Engine<Soft>>, u64, Often) -> (Option<u64>, bool)) {
    for often in [Often::Once, Often::Always] {
        let mut n = 0;
        loop {
            n += 1;
            let engine = Engine::new(Soft::new(64).unwrap(), Limits::default()).unwrap();
            // A first call makes the slot ready.
            drop(Space::new(&engine).unwrap());
            let (result, has_failed) = fails(&engine, n, often);
            assert!(result.is_none_or(|resident| resident == PAGES + 1), "{often:?} at {n}: {result:?}");
            engine.flush();
            assert_eq!(engine.frame_usage().used, 1, "{often:?} at {n}: frames are left");
            assert_eq!(groups_and_spaces(&engine), Some(PAGES + 1), "{often:?} at {n}: the same again");
            engine.flush();
            assert_eq!(engine.frame_usage().used, 1, "{often:?} at {n}: frames are left");
            if !has_failed {
                break;
            }
        }
        assert!(n > 8, "the test shows something only if there are allocations: {n}");
    }
}

#[test]
fn groups_without_memory() {
    sweep(|engine, n, often| with_failure(n, often, || groups_and_spaces(engine)));
}

#[test]
fn groups_without_frames() {
    sweep(|engine, n, often| {
        let memory = engine.host().frames();
        match often {
            Often::Once => memory.fail_once(n),
            Often::Always => memory.fail_from(Some(n)),
        }
        let result = groups_and_spaces(engine);
        memory.fail_from(None);
        (result, n <= PAGES + 1)
    });
}
