//! Checks of physical memory.

use super::{Check, Finding, Rig, must};
use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::host::{Frame, FrameSource, FrameUse, Frames, GroupId, Host};
use crate::space::ForeignFrames;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

const PAGE: usize = PAGE_SIZE as usize;

pub(super) fn checks<R: Rig>() -> [Check<R>; 6] {
    [
        ("a frame is allocated once, and again after it is freed", given_out_once),
        ("each frame has its own folio, which is free", folios),
        ("zero fills a whole frame with zeros", zero),
        ("copy copies a whole frame", copy),
        ("read and write access every byte of a frame, and nothing beyond it", parts),
        ("memory has the same bytes as read and write", memory),
    ]
}

/// Takes a frame that no other user has, for a check.
pub(super) fn take<F: FrameSource>(frames: Frames<'_, F>) -> Result<Frame, super::Unmet> {
    frames
        .allocate(GroupId::ROOT, FrameUse::Anonymous)
        .ok_or_else(|| "allocate finds no frame, and few are given out".into())
}

/// A frame that a check has taken, and that it maps as a device's. A check that fails never gives it back.
pub(super) struct Device<H: Host> {
    engine: Arc<Engine<H>>,
    pub frame: Frame,
}

impl<H: Host> Device<H> {
    pub fn new(engine: &Arc<Engine<H>>) -> Result<Self, super::Unmet> {
        let frame = take(engine.frames())?;
        engine.frames().zero(frame);
        Ok(Self { engine: engine.clone(), frame })
    }

    /// Returns the frame in the form that a mapping of it needs.
    pub fn frames(&self) -> Result<ForeignFrames, super::Unmet> {
        // SAFETY: the engine has not got the frame, and gets it when nothing maps it any more: see `give_back`.
        let frames = unsafe { ForeignFrames::new(self.frame, 1) };
        frames.ok_or_else(|| "a frame has a number that no entry has room for".into())
    }

    /// Writes the first word of the frame, as the device does.
    pub fn write(&self, value: u64) {
        self.engine.frames().write(self.frame, 0, &value.to_ne_bytes());
    }

    /// Reads the first word of the frame.
    pub fn read(&self) -> u64 {
        let mut word = [0; 8];
        self.engine.frames().read(self.frame, 0, &mut word);
        u64::from_ne_bytes(word)
    }

    /// Gives the frame back. The caller has dropped the spaces that mapped it.
    pub fn give_back(self) {
        self.engine.frames().free(self.frame);
    }
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..PAGE).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed)).collect()
}

fn bytes_of<F: FrameSource>(frames: Frames<'_, F>, frame: Frame) -> Result<Vec<u8>, super::Unmet> {
    let mut bytes = alloc::vec![0xee; PAGE];
    let read = frames.read(frame, 0, &mut bytes);
    must!(read == PAGE, "read gives {read} of {PAGE} bytes of {frame:?}");
    Ok(bytes)
}

fn given_out_once<R: Rig>(rig: &R) -> Finding {
    const MANY: usize = 64;
    let engine = rig.engine(256);
    let frames = engine.frames();
    for round in 0..3 {
        let before = frames.usage();
        must!(before.used <= before.limit, "usage says that {} of {} are used", before.used, before.limit);
        let mut out = BTreeSet::new();
        for _ in 0..MANY {
            let frame = take(frames)?;
            must!(out.insert(frame.get()), "frame {} is given out twice, in round {round}", frame.get());
        }
        must!(!out.contains(&engine.zero_frame().get()), "the frame of the page of zeros is given out");
        let used = frames.usage().used;
        must!(
            used == before.used + MANY as u64,
            "usage goes from {} to {used} with {MANY} frames",
            before.used
        );
        out.into_iter().filter_map(Frame::new).for_each(|frame| frames.free(frame));
        let used = frames.usage().used;
        must!(used == before.used, "usage is {used} and was {} before, with all given back", before.used);
    }
    Ok(())
}

fn folios<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(256);
    let frames = engine.frames();
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for _ in 0..32 {
        let frame = take(frames)?;
        let folio = frames.folio(frame);
        must!(folio.is_free(), "the folio of {frame:?}, just given out, has references");
        let again = core::ptr::from_ref(frames.folio(frame)).addr();
        let place = core::ptr::from_ref(folio).addr();
        must!(place == again, "folio gives two folios for {frame:?}");
        must!(seen.insert(place), "{frame:?} has the folio of another frame");
        out.push(frame);
    }
    out.into_iter().for_each(|frame| frames.free(frame));
    Ok(())
}

fn zero<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let frames = engine.frames();
    let frame = take(frames)?;
    frames.write(frame, 0, &pattern(1));
    frames.zero(frame);
    let bytes = bytes_of(frames, frame)?;
    let wrong = bytes.iter().position(|byte| *byte != 0);
    must!(wrong.is_none(), "byte {wrong:?} is not zero");
    frames.free(frame);
    Ok(())
}

fn copy<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let frames = engine.frames();
    let (from, to) = (take(frames)?, take(frames)?);
    frames.write(from, 0, &pattern(2));
    frames.write(to, 0, &pattern(3));
    frames.copy(from, to);
    let copied = bytes_of(frames, to)?;
    let wrong = copied.iter().zip(pattern(2)).position(|(is, should)| *is != should);
    must!(wrong.is_none(), "byte {wrong:?} of the copy is not that of the original");
    must!(bytes_of(frames, from)? == pattern(2), "the original has changed");
    frames.free(to);
    frames.free(from);
    Ok(())
}

fn parts<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let frames = engine.frames();
    let frame = take(frames)?;
    frames.zero(frame);
    let mut should = alloc::vec![0; PAGE];
    for (offset, length) in [(0, 1), (1, 6), (7, 9), (4088, 8), (4095, 1), (100, 1000), (2047, 3)] {
        let part = pattern(offset as u8)[..length].to_vec();
        let written = frames.write(frame, offset, &part);
        must!(written == length, "write of {length} bytes at {offset} says {written}");
        should[offset..offset + length].copy_from_slice(&part);
        must!(bytes_of(frames, frame)? == should, "a write of {length} bytes at {offset} changes others");
        let mut back = alloc::vec![0; length];
        let read = frames.read(frame, offset, &mut back);
        must!(read == length && back == part, "read of {length} bytes at {offset} gives {read}, or others");
    }
    let mut back = [0xaa; 16];
    let (written, read) = (frames.write(frame, PAGE - 4, &[9; 16]), frames.read(frame, PAGE - 4, &mut back));
    must!(written == 4 && read == 4, "16 bytes, 4 before the end: {written} written, {read} read");
    must!(back[4..] == [0xaa; 12], "read writes behind what it says that it has read");
    frames.free(frame);
    Ok(())
}

fn memory<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let frames = engine.frames();
    let frame = take(frames)?;
    frames.write(frame, 0, &pattern(4));
    let memory = frames.memory(frame);
    must!(memory.addr().get().is_multiple_of(8), "memory is at {memory:?}, not a multiple of eight");
    // SAFETY: `memory` names a page of initialised bytes; the frame is this check's alone, and mapped nowhere.
    let bytes = unsafe { core::slice::from_raw_parts_mut(memory.as_ptr(), PAGE) };
    must!(bytes == pattern(4), "memory shows other bytes than write has written");
    bytes.copy_from_slice(&pattern(5));
    must!(bytes_of(frames, frame)? == pattern(5), "read gives other bytes than memory has");
    frames.free(frame);
    must!(engine.host().frames().usage().used >= 1, "the page of zeros is not counted as used");
    Ok(())
}
