//! Checks of frames that the engine does not own ([`ForeignFrames`](crate::ForeignFrames)).
#![forbid(unsafe_code)]

use super::accesses::{Program, READ_WRITE, say, word};
use super::frames::{Device, take};
use super::tables::{Bench, READ_WRITE as RIGHTS, TableOf, is};
use super::{Check, Finding, Rig, Unmet, must};
use crate::address::{PAGE_SIZE, PageRange, VirtAddr};
use crate::host::{Entry, EntryKind, FrameSource, PageTable};
use crate::protection::Protection;
use crate::space::{MapRequest, Placement};
use alloc::vec::Vec;

pub(super) fn checks<R: Rig>() -> [Check<R>; 4] {
    [
        ("an entry keeps the mark of a foreign frame", marked),
        ("a mapping of foreign frames accesses these frames, also in a child", shown),
        ("a foreign frame is neither counted nor allocated", not_counted),
        ("a mapping of foreign frames obeys its rights", rights),
    ]
}

fn must_be_able<R: Rig>() -> Finding {
    if TableOf::<R>::MAPS_FOREIGN {
        return Ok(());
    }
    Err(Unmet::Skipped("this host maps no foreign frames (PageTable::MAPS_FOREIGN)"))
}

fn marked<R: Rig>(rig: &R) -> Finding {
    must_be_able::<R>()?;
    let bench = Bench::new(rig)?;
    let page = bench.page();
    let device = Device::new(&bench.engine)?;
    let new = Entry::foreign(device.frame, RIGHTS);
    bench.with(page, |leaf, seen| {
        must!(bench.table.try_announce(leaf, page, seen), "try_announce refuses {seen:?}, which is there");
        let old = bench.table.install(leaf, page, new);
        must!(old == Ok(seen), "install returns {old:?} where {seen:?} was");
        let found = bench.table.load(leaf, page);
        must!(is(found, new), "install leaves {found:?}, and was given {new:?}");
        must!(found.kind() == EntryKind::Foreign(device.frame), "the entry is {:?}", found.kind());
        must!(bench.table.try_announce(leaf, page, found), "try_announce refuses {found:?}, which is there");
        bench.table.let_go(leaf, page);
        let now = bench.table.load(leaf, page);
        must!(now == found, "let_go leaves {now:?}, where {found:?} was before");
        let done = bench.table.exchange(leaf, page, now, Entry::EMPTY);
        must!(done.is_ok(), "exchange of {now:?}, which is there, says {done:?}");
        Ok(())
    })?;
    bench.engine.invalidate(&bench.table, PageRange::single(page));
    drop(bench);
    device.give_back();
    Ok(())
}

/// Maps the frame of `device` at `at`, over the present mapping.
fn map<R: Rig>(program: &Program<'_, R>, device: &Device<R::Host>, at: VirtAddr) -> Finding {
    let request = MapRequest::foreign(device.frames()?, READ_WRITE).at(Placement::Fixed(at));
    say("map of a foreign frame", program.space().map(request)).map(|_| ())
}

fn shown<R: Rig>(rig: &R) -> Finding {
    must_be_able::<R>()?;
    let program = Program::new(rig)?;
    let start = program.memory(2)?;
    let devices = [Device::new(&program.engine)?, Device::new(&program.engine)?];
    for (page, device) in (0..).zip(&devices) {
        device.write(100 + page);
        map(&program, device, word(start, page, 0))?;
    }
    for (page, device) in (0..).zip(&devices) {
        let at = word(start, page, 0);
        program.must_show(at, 100 + page)?;
        program.store(at, 200 + page)?;
        let read = device.read();
        must!(read == 200 + page, "{:?} has {read}, where {} was stored", device.frame, 200 + page);
        device.write(300 + page);
        program.must_show(at, 300 + page)?;
    }
    let child = program.fork()?;
    child.must_show(word(start, 1, 0), 301)?;
    child.store(word(start, 1, 0), 401)?;
    program.must_show(word(start, 1, 0), 401)?;
    say("unmap", program.space().unmap(start, 2 * PAGE_SIZE))?;
    program.must_refuse(start, "after munmap")?;
    child.must_show(start, 300)?;
    drop((program, child));
    devices.into_iter().for_each(Device::give_back);
    Ok(())
}

fn not_counted<R: Rig>(rig: &R) -> Finding {
    must_be_able::<R>()?;
    let program = Program::new(rig)?;
    let engine = program.engine.clone();
    let frames = engine.frames();
    let device = Device::new(&engine)?;
    // The pages on both sides bring the leaf tables.
    let start = program.memory(3)?;
    program.store(start, 1)?;
    program.store(word(start, 2, 0), 1)?;
    let before = frames.usage().used;
    let at = word(start, 1, 0);
    map(&program, &device, at)?;
    program.store(at, 7)?;
    let used = frames.usage().used;
    must!(used == before, "usage goes from {before} to {used} with a foreign frame");
    let folio = frames.folio(device.frame);
    must!(folio.is_free() && folio.mappings() == 0, "the folio of a foreign frame has references");
    say("unmap", program.space().unmap(at, PAGE_SIZE))?;
    let used = frames.usage().used;
    must!(used == before, "usage goes from {before} to {used} when a foreign frame is unmapped");
    let out = (0..32).map(|_| take(frames)).collect::<Result<Vec<_>, _>>()?;
    must!(!out.contains(&device.frame), "a foreign frame is given out when it was unmapped");
    out.into_iter().for_each(|frame| frames.free(frame));
    must!(device.read() == 7, "a foreign frame has {} when it was unmapped, and not 7", device.read());
    drop(program);
    device.give_back();
    Ok(())
}

fn rights<R: Rig>(rig: &R) -> Finding {
    must_be_able::<R>()?;
    let program = Program::new(rig)?;
    let device = Device::new(&program.engine)?;
    let at = program.memory(1)?;
    map(&program, &device, at)?;
    program.store(at, 5)?;
    let protect = |rights| say("protect", program.space().protect(at, PAGE_SIZE, rights));
    protect(Protection::READ)?;
    must!(
        !rig.store(&program.process, at, 6),
        "a store to a foreign frame is served after mprotect to reading"
    );
    program.must_show(at, 5)?;
    protect(Protection::empty())?;
    program.must_refuse(at, "after mprotect to nothing")?;
    protect(READ_WRITE)?;
    program.store(at, 6)?;
    must!(device.read() == 6, "{:?} has {}, where 6 was stored", device.frame, device.read());
    say("unmap", program.space().unmap(at, PAGE_SIZE))?;
    program.must_refuse(at, "after munmap")?;
    drop(program);
    device.give_back();
    Ok(())
}
