//! The bytes that a page shows at its first access.

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::store::{GatedStore, Store, StoreError, Transfer};
use faultless::{AddressSpace, Advice, Engine, Fault, FaultError, File, Limits, MapRequest};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

fn engine() -> Arc<Engine<Soft>> {
    Engine::new(Soft::with_caches(8).unwrap(), Limits::default()).unwrap()
}

#[test]
fn invariant_4_a_frame_that_is_used_again_is_zeros() {
    let engine = engine();
    let space = Space::new(&engine).unwrap();
    for _ in 0..20 {
        let at = space.map(MapRequest::anonymous(PAGE_SIZE)).unwrap();
        let last = at.checked_add(PAGE_SIZE - 8).unwrap();
        // The first word makes the fault; the other must be zeros.
        space.store_u64(at, 7).unwrap();
        assert_eq!(space.load_u64(last).unwrap(), 0, "invariant 4: a frame shows its old bytes");
        space.store_u64(last, 9).unwrap();
        space.unmap(at, PAGE_SIZE).unwrap();
    }
}

/// A store of a page of ones, which is read at once.
struct Ones;

impl Store for Ones {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

#[test]
fn a_fault_that_waited_finds_the_guard() {
    let engine = engine();
    let gate = Arc::new(GatedStore::new(Ones));
    let file = File::open(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ)).unwrap();
    let Fault::Pending(mut fault) = space.fault(at, Access::Read).unwrap() else { panic!("a cold page") };
    gate.wait_for(1);
    space.advise(at, PAGE_SIZE, Advice::GuardInstall).unwrap();
    gate.open();
    let error = loop {
        match fault.wait() {
            Ok(Fault::Pending(again)) => fault = again,
            Ok(Fault::Done) => panic!("a page was mapped over a guard"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, FaultError::Guard { .. }), "{error:?}");
}
