//! Allocation failures in every call of the engine.

use crate::failing::count;
use crate::sweep::{Case, sweep};
use crate::world::{EFAULT, ENOMEM, READ_WRITE, Space, World, at};
use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::LockingDesign;
use faultless::fault::FaultError;
use faultless::host::Host;
use faultless::protection::{Access, Protection};
use faultless::vma::MappingFlags;
use faultless::{
    Advice, FileError, LockAll, LockMode, MapError, MapRequest, MoveRequest, Placement, RemapError,
    RemapFlags, RemapRequest, SyncFlags,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::ops::Range;

crate::under_every_design!(mapping unmapping changing advising locking moving faulting filing reading space_and_exit);

/// Returns the allocations that a design's locks make in a new space, as a range counted from the space's first
/// allocation.
pub fn lock_of_a_space<D: LockingDesign>(world: &World<D>) -> Range<u64> {
    let table = count(|| world.engine.host().new_table(world.engine.sections()).unwrap());
    table + 1..table + 1 + count(D::Space::default)
}

fn fixed(page: u64, pages: u64) -> MapRequest<Soft> {
    MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))
}

fn map<D: LockingDesign>(world: &World<D>, request: MapRequest<Soft>) -> Result<u64, i32> {
    world.space.map(request).map(VirtAddr::get).map_err(|error: MapError| error.errno())
}

fn fault_errno(error: FaultError) -> i32 {
    match error {
        FaultError::OutOfMemory { .. } => ENOMEM,
        FaultError::Io { error, .. } => error.errno(),
        _ => EFAULT,
    }
}

fn done<T, E>(result: Result<T, E>, errno: impl FnOnce(&E) -> i32) -> Result<u64, i32> {
    result.map(|_| 0).map_err(|error| errno(&error))
}

fn mapping<D: LockingDesign>() {
    sweep::<D>(&[
        Case::new("map anywhere", |world| map(world, MapRequest::anonymous(3 * PAGE_SIZE))),
        Case::new("map in a hole", |world| map(world, fixed(100, 3))),
        Case::new("map beside, which joins", |world| map(world, fixed(14, 2))),
        Case::new("map without replacing", |world| {
            map(world, MapRequest::anonymous(PAGE_SIZE).at(Placement::FixedNoReplace(at(101))))
        }),
        Case { may_split: true, ..Case::new("map over a part", |world| map(world, fixed(11, 2))) },
        Case { may_split: true, ..Case::new("map over many", |world| map(world, fixed(9, 44))) },
        Case::new("map a file", |world| {
            map(
                world,
                MapRequest::file(&world.read_only, 1, 2 * PAGE_SIZE, READ_WRITE)
                    .at(Placement::Fixed(at(100))),
            )
        }),
        Case::new("map a file shared", |world| {
            let request = MapRequest::shared_file(&world.writable, 1, 2 * PAGE_SIZE, READ_WRITE);
            map(world, request.at(Placement::Fixed(at(100))))
        }),
        Case::new("map shared memory", |world| {
            map(world, MapRequest::shared_anonymous(2 * PAGE_SIZE).at(Placement::Fixed(at(100))))
        }),
        Case::new("map locked", |world| {
            map(world, MapRequest { flags: MappingFlags::LOCKED, ..fixed(100, 2) })
        }),
        Case::new("map populated", |world| map(world, MapRequest { populate: true, ..fixed(100, 2) })),
        Case::new("map a file populated", |world| {
            let request = MapRequest::file(&world.read_only, 0, 4 * PAGE_SIZE, Protection::READ);
            map(world, MapRequest { populate: true, ..request.at(Placement::Fixed(at(100))) })
        }),
        Case::new("map a file shared, populated", |world| {
            let request = MapRequest::shared_file(&world.writable, 0, 4 * PAGE_SIZE, READ_WRITE);
            map(world, MapRequest { populate: true, ..request.at(Placement::Fixed(at(100))) })
        }),
    ]);
}

fn unmap<D: LockingDesign>(world: &World<D>, page: u64, pages: u64) -> Result<u64, i32> {
    done(world.space.unmap(at(page), pages * PAGE_SIZE), |error| error.errno())
}

fn unmapping<D: LockingDesign>() {
    sweep::<D>(&[
        Case::new("unmap a mapping", |world| unmap(world, 10, 4)),
        Case::new("unmap one with its leaf table", |world| unmap(world, 1024, 4)),
        Case::new("unmap the middle", |world| unmap(world, 11, 2)),
        Case::new("unmap many", |world| unmap(world, 11, 42)),
        Case::new("unmap shared memory", |world| unmap(world, 40, 2)),
        Case::new("unmap a hole", |world| unmap(world, 70, 10)),
    ]);
}

fn protect<D: LockingDesign>(world: &World<D>, page: u64, pages: u64, to: Protection) -> Result<u64, i32> {
    done(world.space.protect(at(page), pages * PAGE_SIZE, to), |error| error.errno())
}

fn changing<D: LockingDesign>() {
    sweep::<D>(&[
        Case::new("protect a mapping", |world| protect(world, 10, 4, Protection::READ)),
        Case::new("protect the middle", |world| protect(world, 11, 2, Protection::empty())),
        Case::new("protect, which joins", |world| protect(world, 50, 2, READ_WRITE)),
        Case::new("protect many", |world| protect(world, 51, 3, Protection::READ | Protection::EXECUTE)),
        Case::new("protect shared memory", |world| protect(world, 30, 4, Protection::READ)),
        Case::new("protect down", |world| {
            done(world.space.protect_down(at(900), PAGE_SIZE, Protection::READ), |error| error.errno())
        }),
        Case::new("seal", |world| done(world.space.seal(at(11), PAGE_SIZE), |error| error.errno())),
        Case {
            cannot_fail: true,
            ..Case::new("discard", |world| {
                done(world.space.discard(at(10), 14 * PAGE_SIZE), |error| error.errno())
            })
        },
        Case::new("brk up", |world| done(world.space.set_break(at(954)), |error| error.errno())),
        Case::new("brk down", |world| done(world.space.set_break(at(951)), |error| error.errno())),
        Case::new("brk to nothing", |world| done(world.space.set_break(at(950)), |error| error.errno())),
    ]);
}

fn advise<D: LockingDesign>(world: &World<D>, page: u64, pages: u64, advice: Advice) -> Result<u64, i32> {
    done(world.space.advise(at(page), pages * PAGE_SIZE, advice), |error| error.errno())
}

fn advising<D: LockingDesign>() {
    let in_part = |name, call| Case { in_part: true, ..Case::<D>::new(name, call) };
    sweep::<D>(&[
        Case::new("normal", |world| advise(world, 11, 2, Advice::Normal)),
        Case::new("random", |world| advise(world, 11, 2, Advice::Random)),
        Case::new("sequential", |world| advise(world, 21, 2, Advice::Sequential)),
        Case::new("will need", |world| advise(world, 20, 4, Advice::WillNeed)),
        Case { cannot_fail: true, ..Case::new("don't need", |world| advise(world, 10, 4, Advice::DontNeed)) },
        Case::new("free", |world| advise(world, 10, 4, Advice::Free)),
        Case::new("remove", |world| advise(world, 30, 2, Advice::Remove)),
        Case::new("cold", |world| advise(world, 10, 4, Advice::Cold)),
        Case::new("page out", |world| advise(world, 10, 4, Advice::PageOut)),
        Case::new("don't fork", |world| advise(world, 11, 2, Advice::DontFork)),
        Case::new("do fork", |world| advise(world, 11, 2, Advice::DoFork)),
        Case::new("wipe on fork", |world| advise(world, 11, 2, Advice::WipeOnFork)),
        Case::new("keep on fork", |world| advise(world, 11, 2, Advice::KeepOnFork)),
        Case::new("copy at fork", |world| advise(world, 11, 2, Advice::CopyAtFork)),
        Case::new("share at fork", |world| advise(world, 11, 2, Advice::ShareAtFork)),
        in_part("unshare", |world| done(world.space.unshare(at(10), 60 * PAGE_SIZE), |error| error.errno())),
        Case::new("leave a family", |world| {
            done(world.space.isolate_cowed(at(10), 60 * PAGE_SIZE), |_| EFAULT)
        }),
        in_part("populate to read", |world| advise(world, 20, 4, Advice::PopulateRead)),
        in_part("populate to write", |world| advise(world, 10, 4, Advice::PopulateWrite)),
        in_part("populate shared to write", |world| advise(world, 30, 4, Advice::PopulateWrite)),
        in_part("install guards", |world| advise(world, 11, 3, Advice::GuardInstall)),
        in_part("install guards without a table", |world| {
            map(world, fixed(5000, 2))?;
            advise(world, 5000, 2, Advice::GuardInstall)
        }),
        Case::new("remove guards", |world| advise(world, 11, 3, Advice::GuardRemove)),
    ]);
}

fn locking<D: LockingDesign>() {
    let in_part = |name, call| Case { in_part: true, ..Case::<D>::new(name, call) };
    sweep::<D>(&[
        in_part("lock", |world| {
            done(world.space.lock(at(11), 3 * PAGE_SIZE, LockMode::Now), |error| error.errno())
        }),
        in_part("lock a file", |world| {
            done(world.space.lock(at(20), 4 * PAGE_SIZE, LockMode::Now), |error| error.errno())
        }),
        Case::new("lock on fault", |world| {
            done(world.space.lock(at(11), 3 * PAGE_SIZE, LockMode::OnFault), |error| error.errno())
        }),
        Case::new("unlock", |world| done(world.space.unlock(at(11), 3 * PAGE_SIZE), |error| error.errno())),
        Case::new("lock all", |world| {
            done(world.space.lock_all(LockAll::CURRENT | LockAll::FUTURE), |error| error.errno())
        }),
        Case::new("unlock all", |world| done(world.space.unlock_all(), |error| error.errno())),
    ]);
}

fn remap<D: LockingDesign>(world: &World<D>, request: RemapRequest) -> Result<u64, i32> {
    world.space.remap(request).map(VirtAddr::get).map_err(|error: RemapError| error.errno())
}

fn to(old: u64, pages: u64, new: u64) -> RemapRequest {
    RemapRequest::to(at(old), pages * PAGE_SIZE, at(new))
}

fn resize(old: u64, pages: u64, more: u64) -> RemapRequest {
    RemapRequest::resize(at(old), pages * PAGE_SIZE, more * PAGE_SIZE)
}

fn moving<D: LockingDesign>() {
    let cases = [
        Case::new("a page", |world| {
            let request = MoveRequest::new(at(11), PAGE_SIZE, at(1025));
            done(world.space.move_pages(request), |error| error.errno())
        }),
        Case::new("longer in place", |world| remap(world, resize(10, 4, 6))),
        Case { can_repeat: false, ..Case::new("longer elsewhere", |world| remap(world, resize(50, 2, 4))) },
        Case::new("shorter", |world| remap(world, resize(10, 4, 2))),
        Case { can_repeat: false, ..Case::new("a part elsewhere", |world| remap(world, resize(10, 2, 5))) },
        Case::new("to a hole", |world| remap(world, to(10, 4, 100))),
        Case::new("the middle to a hole", |world| remap(world, to(11, 2, 100))),
        Case::new("to another leaf table", |world| remap(world, to(1024, 4, 5000))),
        Case { may_go: 20..24, ..Case::new("over something", |world| remap(world, to(10, 4, 20))) },
        Case { may_go: 21..23, ..Case::new("over a part", |world| remap(world, to(30, 2, 21))) },
        Case::new("a file to a hole", |world| remap(world, to(20, 4, 100))),
        Case {
            in_part: true,
            can_repeat: false,
            may_go: 9..70,
            ..Case::new("many to a hole", |world| remap(world, to(10, 44, 5000)))
        },
        // The part that is cut off goes first.
        Case {
            may_go: 12..14,
            ..Case::new("shorter elsewhere", |world| {
                remap(world, RemapRequest { new_length: 2 * PAGE_SIZE, ..to(10, 4, 100) })
            })
        },
        Case::new("longer at a fixed place", |world| {
            remap(world, RemapRequest { new_length: 6 * PAGE_SIZE, ..to(10, 4, 100) })
        }),
        Case {
            can_repeat: false,
            ..Case::new("kept and moved", |world| {
                let flags = RemapFlags::MAY_MOVE | RemapFlags::DONT_UNMAP;
                remap(world, RemapRequest { flags, ..to(10, 4, 100) })
            })
        },
        Case::new("mapped again", |world| remap(world, RemapRequest { old_length: 0, ..to(30, 2, 100) })),
        Case::new("mapped again elsewhere", |world| {
            remap(world, RemapRequest { old_length: 0, ..resize(40, 2, 2) })
        }),
    ];
    // Each move may do this, as `RemapError` states.
    sweep::<D>(&cases.map(|case| Case { may_split: true, may_stay: 20..110, ..case }));
}

fn store<D: LockingDesign>(world: &World<D>, page: u64) -> Result<u64, i32> {
    access(world.space.store_u64(at(page), 7).map(|()| 0))
}

fn load<D: LockingDesign>(world: &World<D>, page: u64) -> Result<u64, i32> {
    access(world.space.load_u64(at(page)))
}

fn access(result: Result<u64, AccessError>) -> Result<u64, i32> {
    result.map_err(|error| match error {
        AccessError::Fault(error) => fault_errno(error),
        _ => 0,
    })
}

fn faulting<D: LockingDesign>() {
    let cases: &[Case<D>] = &[
        Case::new("store to zeros untouched", |world| store(world, 13)),
        Case::new("store to zeros read", |world| store(world, 12)),
        Case::new("load of zeros", |world| load(world, 13)),
        Case::new("load of zeros in a heap", |world| load(world, 950)),
        Case::new("store to a page shared with a child", |world| store(world, 60)),
        Case::new("load of a file's page", |world| load(world, 22)),
        Case::new("store to a private page of a file, in memory", |world| store(world, 20)),
        Case::new("store to a private page of a file", |world| store(world, 22)),
        Case::new("load of a shared page of a file", |world| load(world, 32)),
        Case::new("store to a shared page of a file", |world| store(world, 32)),
        Case::new("store to a shared page that was read", |world| store(world, 31)),
        Case::new("store to shared memory", |world| store(world, 41)),
        // As on Linux: either the stack cannot grow for want of memory, or the store meets a hole.
        Case {
            refusals: &[ENOMEM, EFAULT],
            in_part: true,
            ..Case::new("store below the stack", |world| store(world, 895))
        },
        Case::new("pin for writing", |world| {
            done(world.space.pin(at(13), Access::Write), |error| fault_errno(*error))
        }),
    ];
    sweep(cases);
}

fn file_errno(error: &FileError) -> i32 {
    error.errno()
}

/// Writes until all bytes are written or the call fails. Checks that the file's length follows the written bytes.
fn write_all<D: LockingDesign>(world: &World<D>, offset: u64, bytes: &[u8]) -> Result<u64, i32> {
    let (before, mut done) = (world.writable.length(), 0);
    while done < bytes.len() {
        let written = world.handle.write_at(offset + done as u64, &bytes[done..]);
        let so_far = if done == 0 { 0 } else { offset + done as u64 };
        match written {
            Ok(0) => panic!("a write of 0 bytes without an error"),
            Ok(more) => done += more,
            Err(error) => {
                assert_eq!(world.writable.length(), before.max(so_far), "the length after {error}");
                return Err(error.errno());
            }
        }
        assert_eq!(world.writable.length(), before.max(offset + done as u64), "the length after a write");
    }
    Ok(done as u64)
}

fn filing<D: LockingDesign>() {
    let in_part = |name, call| Case { in_part: true, ..Case::<D>::new(name, call) };
    sweep::<D>(&[
        Case {
            cannot_fail: true,
            ..Case::new("cut off", |world| done(world.handle.set_length(PAGE_SIZE), file_errno))
        },
        Case {
            cannot_fail: true,
            ..Case::new("cut off what is only read", |world| {
                world.read_only.set_length(PAGE_SIZE).unwrap();
                Ok(0)
            })
        },
        Case {
            cannot_fail: true,
            ..Case::new("punch whole pages", |world| {
                done(world.handle.punch_hole(0, 2 * PAGE_SIZE), file_errno)
            })
        },
        in_part("punch parts of pages", |world| {
            done(world.handle.punch_hole(100, 2 * PAGE_SIZE), file_errno)
        }),
        Case::new("sync", |world| {
            done(world.space.sync(at(30), 4 * PAGE_SIZE, SyncFlags::SYNC), |error| error.errno())
        }),
        Case::new("sync of a file", |world| done(world.handle.sync(), file_errno)),
        Case::new("start of a sync", |world| {
            world.handle.start_sync();
            done(world.handle.sync(), file_errno)
        }),
        in_part("write", |world| write_all(world, PAGE_SIZE + 8, &[9; 3 * 4096 - 8])),
        in_part("append", |world| write_all(world, 4 * PAGE_SIZE, &[9; 2 * 4096 + 8])),
        in_part("write behind the end", |world| write_all(world, 5 * PAGE_SIZE + 8, &[9; 100])),
        Case::new("longer", |world| done(world.handle.set_length(6 * PAGE_SIZE + 8), file_errno)),
        Case::new("read", |world| {
            let (mut bytes, mut done) = ([0; 4 * 4096], 0);
            // A read that fails after the first page returns the number of bytes read so far.
            loop {
                let more =
                    world.handle.read_at(done as u64, &mut bytes[done..]).map_err(|error| error.errno())?;
                done += more;
                if more == 0 {
                    return Ok(done as u64);
                }
            }
        }),
    ]);
}

fn reading<D: LockingDesign>() {
    sweep::<D>(&[
        Case::new("resident", |world| {
            let resident = world.space.resident(at(10), 4 * PAGE_SIZE).map_err(|error| error.errno())?;
            Ok(resident.iter().fold(0, |sum, resident| sum * 2 + u64::from(*resident)))
        }),
        Case::new("remote read", |world| {
            let mut bytes = [0; 4 * 4096];
            let count = world.space.read_remote(at(20), &mut bytes).map_err(|error| error.errno())?;
            assert!(count <= bytes.len());
            // As on Linux, the count is lower if a page is not available.
            if count < bytes.len() { Err(ENOMEM) } else { Ok(u64::from(bytes[3 * 4096])) }
        }),
        Case {
            in_part: true,
            ..Case::new("remote write", |world| {
                let bytes = [3; 3 * 4096];
                let count = world.space.write_remote(at(11), &bytes).map_err(|error| error.errno())?;
                if count < bytes.len() { Err(ENOMEM) } else { Ok(0) }
            })
        },
        Case {
            cannot_fail: true,
            ..Case::new("listing", |world| {
                let (mut from, mut sum) = (PageNumber::new(0), 0);
                while let Some(info) = world.space.mapping_from(from) {
                    from = info.range.end();
                    sum += info.range.pages() + world.space.usage_of(info).resident;
                }
                Ok(sum)
            })
        },
    ]);
}

fn space_and_exit<D: LockingDesign>() {
    let passed_over = lock_of_a_space(&World::<D>::new());
    sweep::<D>(&[
        Case {
            passed_over,
            ..Case::new("a new space", |world| done(Space::<D>::new(&world.engine), |_| ENOMEM))
        },
        Case {
            cannot_fail: true,
            ..Case::new("exit", |world| {
                world.space.exit();
                Ok(0)
            })
        },
    ]);
}
