//! Models of the protocol on the real code: engine, tree, tables and folios under loom, with tables of two entries.
//! loom tries every interleaving up to a bound. Each model names the result that must not happen; CONTRIBUTING.md names
//! the mutant that it detects. `loom_shared.rs` has the models of shared memory that is written.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::host::Host;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Advice, Engine, Fault, FaultError, File, Limits, MapRequest, Placement, RemapRequest};
use faultless_soft::{AccessError, Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, close, in_a_space, map, spawn};
use std::sync::{Arc, Mutex};

/// Makes a machine whose processors keep translations, as hardware does.
fn machine() -> Arc<Engine<Soft>> {
    let soft = Soft::with_caches(6).expect("six frames");
    Engine::new(soft, Limits::default()).expect("memory for an engine")
}

/// Makes a machine without caches. The locks of the caches would order accesses that an access section alone must
/// order.
fn machine_of_sections() -> Arc<Engine<Soft>> {
    let soft = Soft::new(6).expect("six frames");
    Engine::new(soft, Limits::default()).expect("memory for an engine")
}

fn is_unmapped(result: Result<u64, AccessError>) -> bool {
    matches!(result, Err(AccessError::Fault(FaultError::NoMapping { .. })))
}

/// A store of one page full of 5, whose reads end when the test ends them. (loom runs one thread at a time, so an
/// ordinary mutex is enough here.)
#[derive(Default)]
struct Fives(Mutex<Vec<Transfer>>);

impl Store for Fives {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        self.0.lock().unwrap().push(transfer);
    }
}

impl Fives {
    fn end_reads(&self) {
        for mut transfer in std::mem::take(&mut *self.0.lock().unwrap()) {
            if let Bytes::Read(page) = transfer.bytes() {
                page.fill(5);
            }
            transfer.complete(Ok(PAGE_SIZE as usize));
        }
    }
}

fn file(engine: &Arc<Engine<Soft>>) -> (Shared<File<Soft>>, Arc<Fives>) {
    let fives = Arc::<Fives>::default();
    (File::open(engine, fives.clone()).expect("a store with a length"), fives)
}

/// Serves a fault on a page of a file, including its read.
fn bring(space: &Space, page: u64, access: Access, fives: &Fives) {
    if let Fault::Pending(pending) = space.fault(at(page), access).unwrap() {
        fives.end_reads();
        assert!(matches!(pending.wait(), Ok(Fault::Done)));
    }
}

fn map_file(space: &Space, file: &Shared<File<Soft>>, page: u64, rights: Protection) {
    let request = MapRequest::file(file, 0, PAGE_SIZE, rights).at(Placement::Fixed(at(page)));
    space.map(request).expect("a mapping");
}

/// Invariant 3: no access succeeds after unmap has returned, regardless of a concurrent fault.
#[test]
fn page_work_against_unmap() {
    in_a_space(3, machine, |_, space| {
        // The next page stays mapped, and with it the leaf table and the record of anonymous pages.
        map(space, 0, 2);
        space.store_u64(at(0), 1).unwrap();
        let fault = beside(space, move |other| {
            let _ = other.fault(at(1), Access::Write);
        });
        space.unmap(at(1), PAGE_SIZE).unwrap();
        fault.join().unwrap();
        space.audit().unwrap_or_else(|error| panic!("{error}"));
        assert!(is_unmapped(space.load_u64(at(1))), "invariant 3: an access succeeds after unmap");
    });
}

/// Invariant 3: no page is writable after protect has returned.
#[test]
fn page_work_against_protect() {
    in_a_space(3, machine, |_, space| {
        map(space, 1, 1);
        let fault = beside(space, move |other| {
            let _ = other.fault(at(1), Access::Write);
        });
        space.protect(at(1), PAGE_SIZE, Protection::READ).unwrap();
        assert!(space.try_store_u64(at(1), 1).is_err(), "invariant 3: a store succeeds after protect");
        fault.join().unwrap();
    });
}

/// Invariant 3: a frame is freed only after the last access that could reach it has ended.
#[test]
fn an_access_against_unmap() {
    for machine in [machine, machine_of_sections] {
        access_against_unmap(machine);
    }
}

fn access_against_unmap(machine: fn() -> Arc<Engine<Soft>>) {
    in_a_space(3, machine, move |_, space| {
        map(space, 1, 1);
        space.store_u64(at(1), 7).unwrap();
        let access = beside(space, move |other| {
            if let Ok(value) = other.try_load_u64(at(1)) {
                assert_eq!(value, 7, "invariant 3: an access saw a frame's next life");
            }
        });
        space.unmap(at(1), PAGE_SIZE).unwrap();
        // The frame is allocated again.
        map(space, 2, 1);
        space.store_u64(at(2), 9).unwrap();
        access.join().unwrap();
    });
}

/// Invariant 3 holds too if the thread follows the access by one to another page, which the shootdown does not wait
/// for.
#[test]
fn accesses_after_each_other_against_unmap() {
    in_a_space(2, machine_of_sections, |_, space| {
        map(space, 1, 1);
        space.store_u64(at(1), 7).unwrap();
        let accesses = beside(space, move |other| {
            if let Ok(value) = other.try_load_u64(at(1)) {
                assert_eq!(value, 7, "invariant 3: an access saw a frame's next life");
            }
            assert!(other.try_load_u64(at(3)).is_err());
        });
        space.unmap(at(1), PAGE_SIZE).unwrap();
        map(space, 2, 1);
        space.store_u64(at(2), 9).unwrap();
        accesses.join().unwrap();
    });
}

/// A page that is faulted into the new mapping is not removed with the old one.
#[test]
fn page_work_against_map_fixed() {
    in_a_space(3, machine, |_, space| {
        let old = MapRequest::anonymous(PAGE_SIZE).protection(Protection::READ).at(Placement::Fixed(at(1)));
        space.map(old).unwrap();
        let other = space.clone();
        // A store can succeed only in the new mapping.
        let store = spawn(1, move || other.store_u64(at(1), 8).is_ok());
        map(space, 1, 1);
        let expected = if store.join().unwrap() { 8 } else { 0 };
        assert_eq!(
            space.load_u64(at(1)).unwrap(),
            expected,
            "invariant 3: a page of the new mapping was removed with the old one"
        );
    });
}

/// A leaf table is freed with its last mapping. A concurrent fault loses no page of the next mapping.
#[test]
fn freeing_a_leaf_table() {
    in_a_space(3, machine, |engine, space| {
        map(space, 0, 2);
        let fault = beside(space, move |other| other.fault(at(1), Access::Write).is_ok());
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        map(space, 0, 2);
        engine.flush();
        fault.join().unwrap();
        space.store_u64(at(1), 4).unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 4);
    });
}

/// Invariant 15: the same beside a processor that walks, outside of a section, from an upper entry that it keeps.
#[test]
fn a_kept_upper_entry_against_unmap() {
    in_a_space(3, machine, |engine, space| {
        map(space, 0, 2);
        space.store_u64(at(1), 5).unwrap();
        let accesses = beside(space, move |other| {
            // The first access caches the table, even if it faults.
            let _ = other.try_load_u64(at(1));
            let _ = other.try_load_u64(at(0));
        });
        space.unmap(at(0), 2 * PAGE_SIZE).unwrap();
        engine.flush();
        accesses.join().unwrap();
    });
}

/// Rule 7: a leaf table is freed only with its whole span; a neighbour's page stays.
#[test]
fn a_leaf_table_keeps_its_neighbour() {
    in_a_space(2, machine, |engine, space| {
        map(space, 0, 2);
        let store = beside(space, move |other| other.store_u64(at(1), 6).unwrap());
        // The same from the other side.
        map(space, 2, 2);
        space.store_u64(at(2), 7).unwrap();
        space.unmap(at(0), PAGE_SIZE).unwrap();
        space.unmap(at(3), PAGE_SIZE).unwrap();
        store.join().unwrap();
        engine.flush();
        assert_eq!(space.load_u64(at(1)).unwrap(), 6, "rule 7: a neighbour's page went with the leaf table");
        assert_eq!(space.load_u64(at(2)).unwrap(), 7, "rule 7: a neighbour's page went with the leaf table");
    });
}

/// Rule 6: ending the announcement of a present entry keeps a dirty bit that a processor sets meanwhile.
#[test]
fn invariant_9_a_dirty_bit_is_not_lost() {
    in_a_space(3, machine, |_, space| {
        map(space, 1, 1);
        // Writable, but not stored to yet. Over the page of zeros, since a first page is taken to be dirty.
        assert!(matches!(space.fault(at(1), Access::Read), Ok(Fault::Done)));
        assert!(matches!(space.fault(at(1), Access::Write), Ok(Fault::Done)));
        let store = beside(space, move |other| other.try_store_u64(at(1), 2).is_ok());
        assert!(matches!(space.fault(at(1), Access::Write), Ok(Fault::Done)));
        if store.join().unwrap() {
            assert!(space.is_dirty(at(1)), "invariant 9: a dirty bit was lost");
        }
    });
}

/// Rule 8: a fault that resumes after its read maps the page only if it is still mapped in the same way.
#[test]
fn resume_against_unmap() {
    in_a_space(3, machine, |engine, space| {
        let (file, fives) = file(engine);
        map_file(space, &file, 1, Protection::READ);
        // The read is under way, and the fault is a value.
        let Ok(Fault::Pending(pending)) = space.fault(at(1), Access::Read) else { panic!("a cold page") };
        fives.end_reads();
        let other = spawn(1, move || pending.wait().map(|_| ()));
        space.unmap(at(1), PAGE_SIZE).unwrap();
        map(space, 1, 1);
        let _ = other.join().unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 0, "rule 8: the old file's page is in the new mapping");
        close(file);
    });
}

/// Truncation: when it returns, no space maps a page that was cut off, even if a fault resumes meanwhile.
#[test]
fn resume_against_truncation() {
    in_a_space(3, machine, |engine, space| {
        let (file, fives) = file(engine);
        map_file(space, &file, 1, Protection::READ);
        let Ok(Fault::Pending(pending)) = space.fault(at(1), Access::Read) else { panic!("a cold page") };
        fives.end_reads();
        let other = spawn(1, move || pending.wait().map(|_| ()));
        file.set_length(0).unwrap();
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: a page that was cut off is mapped");
        let _ = other.join().unwrap();
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: a page that was cut off is mapped again");
        close(file);
    });
}

/// A fault on a page that is being moved: the page moves too, or the fault finds a hole.
#[test]
fn page_work_against_remap() {
    in_a_space(2, machine, |_, space| {
        map(space, 0, 2);
        space.store_u64(at(0), 1).unwrap();
        let store = beside(space, move |other| other.store_u64(at(1), 2).is_ok());
        space.remap(RemapRequest::to(at(0), 2 * PAGE_SIZE, at(2))).unwrap();
        assert!(space.try_load_u64(at(0)).is_err(), "invariant 3: an access succeeds at the old place");
        let expected = if store.join().unwrap() { 2 } else { 0 };
        assert!(is_unmapped(space.load_u64(at(1))), "invariant 3: an access succeeds at the old place");
        assert_eq!(space.load_u64(at(2)).unwrap(), 1, "a page was lost in the move");
        assert_eq!(space.load_u64(at(3)).unwrap(), expected, "a page was lost in the move");
    });
}

/// CVE-2018-18281: a moved page is freed only after no access by the old address can reach it.
#[test]
fn an_access_against_remap() {
    for machine in [machine_of_sections, machine] {
        in_a_space(2, machine, |_, space| {
            map(space, 0, 2);
            map(space, 3, 1);
            space.store_u64(at(1), 7).unwrap();
            let (first, second) = (space.clone(), space.clone());
            let access = spawn(1, move || {
                if let Ok(value) = first.try_load_u64(at(1)) {
                    assert_eq!(value, 7, "invariant 3: an access saw a frame's next life");
                }
            });
            // In another thread, because the objects that the call itself retires at its end wait for all accesses.
            let discard = spawn(2, move || {
                let _ = second.discard(at(2), PAGE_SIZE);
                // The frame is allocated again.
                second.store_u64(at(3), 9).unwrap();
            });
            space.remap(RemapRequest::to(at(1), PAGE_SIZE, at(2))).unwrap();
            access.join().unwrap();
            discard.join().unwrap();
        });
    }
}

/// 60bae7370896: a discarded page is freed only after no access by the old entry can reach it.
#[test]
fn an_access_against_discard() {
    in_a_space(3, machine, |_, space| {
        map(space, 1, 2);
        space.store_u64(at(1), 7).unwrap();
        let access = beside(space, move |other| {
            if let Ok(value) = other.try_load_u64(at(1)) {
                assert_eq!(value, 7, "invariant 3: an access saw a frame's next life");
            }
        });
        space.discard(at(1), PAGE_SIZE).unwrap();
        // The frame is allocated again.
        space.store_u64(at(2), 9).unwrap();
        access.join().unwrap();
    });
}

/// Lespinasse 2012: a range that is replaced during its population is not populated by mistake.
#[test]
fn populating_against_map_fixed() {
    in_a_space(2, machine, |_, space| {
        let replace = beside(space, move |other| map(&other, 1, 1));
        let request =
            MapRequest::anonymous(PAGE_SIZE).protection(Protection::READ).at(Placement::Fixed(at(1)));
        space.map(MapRequest { populate: true, ..request }).unwrap();
        replace.join().unwrap();
        if space.mappings()[0].protection == READ_WRITE {
            let resident = space.resident(at(1), PAGE_SIZE).unwrap();
            assert_eq!(resident, [false], "populated by mistake");
        }
    });
}

/// The error path of dup_mmap: a fork that fails beside stores leaves no space that its files find.
#[test]
fn a_fork_that_fails() {
    in_a_space(2, machine, |engine, space| {
        let (file, fives) = file(engine);
        map(space, 0, 1);
        map_file(space, &file, 1, READ_WRITE);
        bring(space, 1, Access::Write, &fives);
        // The page is pinned for I/O, so that fork needs a frame for a copy, and there is none.
        let pinned = space.pin(at(0), Access::Write).unwrap();
        engine.host().frames().fail_from(Some(1));
        let store = beside(space, move |other| other.try_store_u64(at(0), 2).is_ok());
        assert!(space.fork().is_err());
        store.join().unwrap();
        engine.host().frames().fail_from(None);
        drop(pinned);
        assert_eq!(file.spaces(), 1, "invariant 11: a fork that failed is found by its file");
        close(file);
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: the parent maps a page that was cut off");
    });
}

/// Invariant 7: the child never sees the second store without the first.
#[test]
fn forks_cut() {
    in_a_space(3, machine, |_, space| {
        // In two leaf tables, so that neither is shared (`loom_fork.rs`).
        map(space, 1, 2);
        space.store_u64(at(1), 0).unwrap();
        space.store_u64(at(2), 0).unwrap();
        let stores = beside(space, move |other| {
            other.store_u64(at(1), 1).unwrap();
            other.store_u64(at(2), 1).unwrap();
        });
        let child = space.fork().unwrap();
        let cut = (child.load_u64(at(1)).unwrap(), child.load_u64(at(2)).unwrap());
        assert_ne!(cut, (0, 1), "invariant 7: the child sees the second store without the first");
        stores.join().unwrap();
        let later = (child.load_u64(at(1)).unwrap(), child.load_u64(at(2)).unwrap());
        assert_eq!(cut, later, "invariant 7: the child changed after fork");
        assert_eq!(space.load_u64(at(1)).unwrap(), 1, "the parent lost a store");
        drop(child);
    });
}

/// The same if fork copies the pages at once: it does so when no processor stores by an old translation.
#[test]
fn forks_cut_of_copies() {
    in_a_space(2, machine, |_, space| {
        map(space, 1, 2);
        space.advise(at(1), 2 * PAGE_SIZE, Advice::CopyAtFork).unwrap();
        space.store_u64(at(1), 0).unwrap();
        space.store_u64(at(2), 0).unwrap();
        let stores = beside(space, move |other| {
            other.store_u64(at(1), 1).unwrap();
            other.store_u64(at(2), 1).unwrap();
        });
        let child = space.fork().unwrap();
        let cut = (child.load_u64(at(1)).unwrap(), child.load_u64(at(2)).unwrap());
        assert_ne!(cut, (0, 1), "invariant 7: the child sees the second store without the first");
        stores.join().unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 1, "the parent lost a store");
        drop(child);
    });
}

/// fb49c455323f: fork reads a mapping's record after page work has stopped, not before.
#[test]
fn forks_cut_of_first_pages() {
    in_a_space(3, machine, |_, space| {
        // Two mappings, since their rights differ.
        map(space, 0, 1);
        let all = READ_WRITE | Protection::EXECUTE;
        space.map(MapRequest::anonymous(PAGE_SIZE).protection(all).at(Placement::Fixed(at(1)))).unwrap();
        let stores = beside(space, move |other| {
            other.store_u64(at(0), 1).unwrap();
            other.store_u64(at(1), 1).unwrap();
        });
        let child = space.fork().unwrap();
        let cut = (child.load_u64(at(0)).unwrap(), child.load_u64(at(1)).unwrap());
        assert_ne!(cut, (0, 1), "invariant 7: the child sees the second store without the first");
        stores.join().unwrap();
        drop(child);
    });
}

/// CVE-2024-27022: truncation during a fork leaves no page in the child that was cut off.
#[test]
fn truncation_during_fork() {
    in_a_space(3, machine, |engine, space| {
        let (file, fives) = file(engine);
        map_file(space, &file, 1, READ_WRITE);
        // A private copy gives the mapping an anonymous page, so that fork copies its entries.
        bring(space, 1, Access::Write, &fives);
        let truncated = file.clone();
        let truncation = spawn(1, move || truncated.set_length(0).unwrap());
        let child = space.fork().unwrap();
        truncation.join().unwrap();
        assert!(child.try_load_u64(at(1)).is_err(), "invariant 3: the child maps a page that was cut off");
        assert!(space.try_load_u64(at(1)).is_err(), "invariant 3: the parent maps a page that was cut off");
        drop(child);
        close(file);
    });
}

/// c46000458d57: a merge reads a record only when the record cannot change any more.
#[test]
fn a_merge_against_a_first_page() {
    in_a_space(3, machine, |_, space| {
        map(space, 0, 1);
        map(space, 2, 1);
        space.store_u64(at(0), 1).unwrap();
        let fault = beside(space, move |other| {
            let _ = other.fault(at(2), Access::Write);
        });
        // Fills the hole. The result is one mapping if the right one has no page yet, else two.
        map(space, 1, 1);
        fault.join().unwrap();
    });
}

/// CVE-2024-1312: a first page takes over a neighbour's number while its own mapping is merged into another one. In
/// either order, its page has the number of the mapping that it ends in.
#[test]
fn a_first_page_against_a_merge() {
    in_a_space(3, machine, |_, space| {
        //   0 rw, pages    1 rwx, none    2 rw, pages of its own
        map(space, 0, 1);
        map(space, 2, 1);
        space.store_u64(at(0), 1).unwrap();
        space.store_u64(at(2), 1).unwrap();
        let all = READ_WRITE | Protection::EXECUTE;
        space.map(MapRequest::anonymous(PAGE_SIZE).protection(all).at(Placement::Fixed(at(1)))).unwrap();
        let fault = beside(space, move |other| other.store_u64(at(1), 1).unwrap());
        // Merges with the upper neighbour if the page exists already, else with the lower one.
        space.protect(at(1), PAGE_SIZE, READ_WRITE).unwrap();
        fault.join().unwrap();
        assert_eq!(space.mappings().len(), 2);
    });
}

/// CVE-2024-1312: the same while the neighbour is unmapped and another one is mapped in its place.
#[test]
fn a_first_page_beside_unmap() {
    in_a_space(3, machine, |_, space| {
        map(space, 0, 1);
        space.store_u64(at(0), 1).unwrap();
        let all = READ_WRITE | Protection::EXECUTE;
        space.map(MapRequest::anonymous(PAGE_SIZE).protection(all).at(Placement::Fixed(at(1)))).unwrap();
        let fault = beside(space, move |other| other.store_u64(at(1), 1).unwrap());
        space.unmap(at(0), PAGE_SIZE).unwrap();
        map(space, 0, 1);
        fault.join().unwrap();
        // One of them is new, so they are merged: both have a page with the same number.
        space.protect(at(1), PAGE_SIZE, READ_WRITE).unwrap();
        space.store_u64(at(0), 1).unwrap();
        assert_eq!(space.mappings().len(), 1);
    });
}

/// CVE-2016-5195: a pin for writing pins a private page, even if pages are discarded meanwhile.
#[test]
fn a_pin_for_writing_against_discard() {
    in_a_space(3, machine, |engine, space| {
        let (file, fives) = file(engine);
        map_file(space, &file, 0, READ_WRITE);
        map_file(space, &file, 2, Protection::READ);
        bring(space, 2, Access::Read, &fives);
        let before = space.load_u64(at(2)).unwrap();
        let discard = beside(space, move |other| other.discard(at(0), PAGE_SIZE).unwrap());
        let pinned = space.pin(at(0), Access::Write).unwrap();
        assert_eq!(pinned.write(0, &[9; 8]), 8);
        drop(pinned);
        discard.join().unwrap();
        let after = space.load_u64(at(2)).unwrap();
        assert_eq!(before, after, "invariant 5: a write through a private mapping reached the file's page");
        close(file);
    });
}

/// CVE-2020-29374: a page that a child has pinned is not written in place after the child has unmapped it.
#[test]
fn reuse_in_place_counts_pins() {
    in_a_space(1, machine, |_, space| {
        map(space, 1, 1);
        space.store_u64(at(1), 1).unwrap();
        let child = space.fork().unwrap();
        let pinned = child.pin(at(1), Access::Read).unwrap();
        child.unmap(at(1), PAGE_SIZE).unwrap();
        space.store_u64(at(1), 2).unwrap();
        let mut seen = [0; 8];
        assert_eq!(pinned.read(0, &mut seen), 8);
        assert_eq!(
            u64::from_ne_bytes(seen),
            1,
            "invariant 6: written in place while the child has it pinned"
        );
        drop((pinned, child));
    });
}
