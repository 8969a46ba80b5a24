//! Duties of the engine to processors: it tells them of the end of a space, and no thread spins while it waits for
//! them.

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::{AddressSpace, Engine, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// Makes a space with four pages that were stored to.
fn stored() -> (Arc<Engine<Soft>>, Space) {
    let limits = Limits { shared_entries: 4, ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(64).unwrap(), limits).unwrap();
    let space = Space::new(&engine).unwrap();
    let start = space.map(MapRequest::anonymous(4 * PAGE_SIZE)).unwrap();
    (0..4).for_each(|page| space.store_u64(start.checked_add(page * PAGE_SIZE).unwrap(), page).unwrap());
    (engine, space)
}

/// Invariants 3 and 15: the end of a space leaves no entry in the processors' caches. Debug builds panic if one is
/// left.
#[test]
fn a_space_ends_when_no_processor_has_its_table_loaded() {
    let (engine, space) = stored();
    drop(space);
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "frames other than the page of zeros are left");
}

/// Invariant 17: fork holds no short lock while it waits for a grace period and an invalidation, whether it shares a
/// table, copies its entries, or finds it shared and gets its own. Debug builds panic at a wait with a short lock held.
#[test]
fn invariant_17_a_fork_waits_with_no_short_lock_held() {
    let (engine, space) = stored();
    let child = space.fork().unwrap();
    assert_eq!(engine.statistics().get(Counter::TablesShared), 1);
    let few = space.map(MapRequest::anonymous(PAGE_SIZE)).unwrap();
    space.store_u64(few, 1).unwrap();
    let grandchild = child.fork().unwrap();
    let second = space.fork().unwrap();
    assert_eq!(second.load_u64(few), Ok(1));
    drop((space, child, grandchild, second));
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1);
}

/// Invariant 3: a page that truncation takes out of several spaces is freed only after no processor has a translation
/// to it. Debug builds panic if it is freed earlier.
#[test]
fn truncation_frees_what_no_processor_can_reach() {
    const SPACES: u64 = 40;
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    let file = File::in_memory(&engine, 2 * PAGE_SIZE).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let request = || MapRequest::shared_file(&file, 0, 2 * PAGE_SIZE, rights);
    let spaces: Vec<_> = (0..SPACES).map(|_| Space::new(&engine).unwrap()).collect();
    let starts: Vec<_> = spaces.iter().map(|space| space.map(request()).unwrap()).collect();
    for (number, (space, start)) in spaces.iter().zip(&starts).enumerate() {
        space.store_u64(*start, number as u64).unwrap();
    }
    file.set_length(0).unwrap();
    for (space, start) in spaces.iter().zip(&starts) {
        assert!(space.try_load_u64(*start).is_err(), "invariant 3: a page that was cut off is reached");
    }
    assert_eq!(engine.frame_usage().used, 1, "frames other than the page of zeros are left");
}
