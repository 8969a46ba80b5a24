//! The space that is ended if the fault of a file's page finds no memory: it is of the group that pays for the fault.

use crate::zeros::Zeros;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::FaultError;
use faultless::protection::Protection;
use faultless::{
    AddressSpace, Candidate, Engine, File, FileRef, Largest, LimitConfig, Limits, MapRequest, MemoryLimit,
    Placement, VictimPolicy,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::{Arc, Mutex};

type Space = AddressSpace<Soft, Faultless>;
type Limit = MemoryLimit<Soft>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);
/// The pages of a file.
const FILE: u64 = 16;
/// The page at which a file is mapped. Anonymous memory is mapped at page 0.
const FILE_AT: u64 = 1024;

/// The ways in which a fault brings in a page of a file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Load,
    Store,
    /// A store that copies the page.
    Copy,
    /// A store to a page of a file without a store.
    InMemory,
}

const WAYS: [Way; 4] = [Way::Load, Way::Store, Way::Copy, Way::InMemory];

/// Notes each victim of [`Largest`].
#[derive(Clone, Default)]
struct Noting(Arc<Mutex<Vec<Candidate>>>);

impl VictimPolicy for Noting {
    fn score(&self, candidate: &Candidate) -> Option<i64> {
        Largest.score(candidate)
    }

    fn chosen(&self, victim: &Candidate) {
        self.0.lock().unwrap().push(*victim);
    }
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

fn engine() -> (Arc<Engine<Soft>>, Noting) {
    let engine = Engine::new(Soft::with_caches(1024).unwrap(), Limits::default()).unwrap();
    let policy = Noting::default();
    engine.end_victims(Box::new(policy.clone())).unwrap();
    (engine, policy)
}

/// Makes a space with so many anonymous pages. Without swap space, none of them can be reclaimed.
fn space(engine: &Arc<Engine<Soft>>, limit: &Limit, pages: u64) -> Space {
    let space = Space::new_in(engine, limit).unwrap();
    space.map(MapRequest::anonymous(512 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..pages).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space
}

fn file(engine: &Arc<Engine<Soft>>, way: Way) -> FileRef<Soft> {
    match way {
        Way::InMemory => File::in_memory(engine, FILE * PAGE_SIZE).unwrap(),
        _ => File::open_rw(engine, Arc::new(Zeros(FILE))).unwrap(),
    }
}

fn map(space: &Space, file: &FileRef<Soft>, way: Way) {
    let length = FILE * PAGE_SIZE;
    let request = match way {
        Way::Copy => MapRequest::file(file, 0, length, RIGHTS),
        _ => MapRequest::shared_file(file, 0, length, RIGHTS),
    };
    space.map(request.at(Placement::Fixed(at(FILE_AT)))).unwrap();
}

/// Makes the faults of two pages of the file.
fn touch(space: &Space, way: Way) -> Result<(), AccessError> {
    [0, 1].into_iter().try_for_each(|page| match way {
        Way::Load => space.load_u64(at(FILE_AT + page)).map(|word| assert_eq!(word, 0)),
        _ => space.store_u64(at(FILE_AT + page), 7),
    })
}

fn has_exited(space: &Space) -> bool {
    matches!(space.load_u64(at(0)), Err(AccessError::Fault(FaultError::Exited { .. })))
}

/// Checks that `policy` has chosen `victim` alone, in a group with this limit.
#[track_caller]
fn is_the_victim(policy: &Noting, victim: &Space, limit: u64, others: &[&Space], way: Way) {
    let victims = policy.0.lock().unwrap().clone();
    let [chosen] = victims[..] else { panic!("{way:?}: {victims:?}") };
    assert_eq!((chosen.space, chosen.limit), (victim.number(), limit), "{way:?}");
    assert!(has_exited(victim), "{way:?}");
    for (number, other) in others.iter().enumerate() {
        assert!(!has_exited(other), "{way:?}: space {number} was ended too");
    }
}

/// The victim is of the full group, though the machine has free frames, and another group and no group have larger spaces.
#[test]
fn a_fault_of_a_file_ends_a_space_of_the_group_that_pays_for_it() {
    for way in WAYS {
        let (engine, policy) = engine();
        let [full, other] = [32, 512].map(|max| Limit::new(&engine, LimitConfig::max(max)).unwrap());
        let larger = space(&engine, &other, 200);
        let outside = Space::new(&engine).unwrap();
        outside.map(MapRequest::anonymous(512 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
        (0..300).for_each(|page| outside.store_u64(at(page), page + 1).unwrap());
        let (large, needs) = (space(&engine, &full, 28), space(&engine, &full, 4));
        let file = file(&engine, way);
        map(&needs, &file, way);
        // The larger space shows the file too, and has none of its pages.
        map(&larger, &file, way);
        touch(&needs, way).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        is_the_victim(&policy, &large, 32, &[&larger, &outside, &needs], way);
        assert_eq!((full.usage().victims, other.usage().victims), (1, 0), "{way:?}");
        assert_eq!(other.usage().out_of_memory, 0, "{way:?}");
        (0..4).for_each(|page| assert_eq!(needs.load_u64(at(page)), Ok(page + 1)));
        (0..200).for_each(|page| assert_eq!(larger.load_u64(at(page)), Ok(page + 1)));
        drop((large, needs, larger, outside, file));
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    }
}

/// ```text
/// root ── above (64) ─┬─ left (64): 50 pages
///                     └─ right (64): 14 pages, and a page of a file
/// ```
/// The group above is full, and not that of the space: the largest space of both groups below is ended.
#[test]
fn a_fault_of_a_file_ends_a_space_of_the_group_above_if_that_one_is_full() {
    for way in WAYS {
        let (engine, policy) = engine();
        let above = Limit::new(&engine, LimitConfig::max(64)).unwrap();
        let [left, right] = [(); 2].map(|()| above.child(LimitConfig::max(64)).unwrap());
        let other = Limit::new(&engine, LimitConfig::max(512)).unwrap();
        let larger = space(&engine, &other, 200);
        let (large, beside, needs) =
            (space(&engine, &left, 50), space(&engine, &right, 10), space(&engine, &right, 4));
        let file = file(&engine, way);
        map(&needs, &file, way);
        touch(&needs, way).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        is_the_victim(&policy, &large, 64, &[&larger, &beside, &needs], way);
        assert_eq!((left.usage().victims, right.usage().victims), (1, 0), "{way:?}");
    }
}

/// ```text
/// root ── above (128) ─┬─ left (64): 50 pages
///                      └─ right (16): 15 pages, and a page of a file
/// ```
/// The group of the space is full, and the group above has room: the space of the group beside it stays, though it is larger.
#[test]
fn a_fault_of_a_file_leaves_the_group_beside_its_own_alone() {
    for way in WAYS {
        let (engine, policy) = engine();
        let above = Limit::new(&engine, LimitConfig::max(128)).unwrap();
        let [left, right] = [64, 16].map(|max| above.child(LimitConfig::max(max)).unwrap());
        let (larger, large, needs) =
            (space(&engine, &left, 50), space(&engine, &right, 13), space(&engine, &right, 3));
        let file = file(&engine, way);
        map(&needs, &file, way);
        touch(&needs, way).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        is_the_victim(&policy, &large, 16, &[&larger, &needs], way);
        assert_eq!((left.usage().victims, right.usage().victims), (0, 1), "{way:?}");
        assert_eq!((left.usage().out_of_memory, above.usage().victims), (0, 1), "{way:?}");
    }
}
