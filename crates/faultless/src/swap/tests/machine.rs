//! A host with frames and no page tables, for tests of what swap does with folios.

use super::super::{Cached, DeviceUsage, SwapDevice, SwapIn, WrittenOut};
use crate::address::{PAGE_SIZE, PageNumber, PageRange};
use crate::engine::{Engine, Limits};
use crate::frame::{Folio, Reference};
use crate::host::{
    Entry, Frame, FrameSource, FrameUsage, FrameUse, GroupId, LeafRecord, OutOfMemory, PageTable, Retired,
    Sections, Slot, Stable, StdHost, StdServices, Unsupported,
};
use crate::stats::Counter;
use crate::store::StoreError;
use core::ptr::NonNull;
use std::sync::{Arc, Mutex};

pub(crate) const PAGE: usize = PAGE_SIZE as usize;
const FRAMES: usize = 256;

#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "read and written by its address")] [u8; PAGE]);

pub(crate) struct Machine {
    frames: Memory,
    services: StdServices,
}

pub(crate) struct Memory {
    folios: Vec<Folio>,
    /// The frames' bytes: from a box that is dropped with this.
    pages: NonNull<[Page]>,
    free: Mutex<Vec<u64>>,
}

// SAFETY: the owner of a frame has its bytes alone.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: from a box, and nobody has a frame any more.
        drop(unsafe { Box::from_raw(self.pages.as_ptr()) });
    }
}

// SAFETY: a frame is on the list of free frames or given out, and has a page of its own.
unsafe impl FrameSource for Memory {
    fn allocate(&self, _: GroupId, _: FrameUse) -> Option<Frame> {
        self.free.lock().unwrap().pop().and_then(Frame::new)
    }

    unsafe fn free(&self, frame: Frame) {
        assert!(self.folio(frame).is_free());
        let mut free = self.free.lock().unwrap();
        assert!(!free.contains(&frame.get()), "freed twice");
        free.push(frame.get());
    }

    fn folio(&self, frame: Frame) -> &Folio {
        &self.folios[frame.get() as usize]
    }

    unsafe fn zero(&self, frame: Frame) {
        // SAFETY: the caller has the frame alone.
        unsafe { self.memory(frame).as_ptr().write_bytes(0, PAGE) }
    }

    unsafe fn copy(&self, _: Frame, _: Frame) {
        unreachable!("no page is mapped")
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: one of the pages of the box.
        unsafe { self.pages.cast::<u8>().add(frame.get() as usize * PAGE) }
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: the test writes no frame meanwhile.
        unsafe { self.memory(frame).as_ptr().add(offset).copy_to(bytes.as_mut_ptr(), bytes.len()) };
        bytes.len()
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: the test has the frame alone.
        unsafe { self.memory(frame).as_ptr().add(offset).copy_from(bytes.as_ptr(), bytes.len()) };
        bytes.len()
    }

    fn usage(&self) -> FrameUsage {
        let used = FRAMES - self.free.lock().unwrap().len();
        FrameUsage { used: used as u64, limit: FRAMES as u64 }
    }
}

/// No test has a space.
pub(crate) enum NoTable {}

// SAFETY: there is no value of the type.
unsafe impl PageTable for NoTable {
    type Leaf<'s> = ();
    type Root<'s> = ();
    type Stale = ();
    type Sharing = Unsupported;
    type Following = Unsupported;
    type Refusing = Unsupported;
    const LEAF_PAGES: u64 = 512;

    fn pages(&self) -> PageRange {
        match *self {}
    }
    fn root(&self) {
        match *self {}
    }
    fn sharing(&self) -> Option<&Unsupported> {
        match *self {}
    }
    fn following(&self) -> Option<&Unsupported> {
        match *self {}
    }
    fn refusing(&self) -> Option<&Unsupported> {
        match *self {}
    }
    fn leaf<'s>(&'s self, _: &'s impl Stable, _: PageNumber) -> Option<()> {
        match *self {}
    }
    fn make_leaf<'s>(&'s self, _: &'s impl Stable, _: PageNumber) -> Result<(), OutOfMemory> {
        match *self {}
    }
    fn hangs(&self, (): ()) -> bool {
        match *self {}
    }
    fn load(&self, (): (), _: PageNumber) -> Entry {
        match *self {}
    }
    fn try_announce(&self, (): (), _: PageNumber, _: Entry) -> bool {
        match *self {}
    }
    unsafe fn let_go(&self, (): (), _: PageNumber) {
        match *self {}
    }
    unsafe fn install(&self, (): (), _: PageNumber, _: Entry) -> Result<Entry, OutOfMemory> {
        match *self {}
    }
    unsafe fn exchange(&self, (): (), _: PageNumber, _: Entry, _: Entry) -> Result<(), Entry> {
        match *self {}
    }
    unsafe fn fill(&self, (): (), _: PageNumber, _: Entry) {
        match *self {}
    }
    fn record(&self, (): ()) -> &LeafRecord {
        match *self {}
    }
    fn next_leaf(&self, _: &impl Stable, _: PageRange) -> Option<PageNumber> {
        match *self {}
    }
    unsafe fn unhook(&self, _: PageNumber) -> Option<Retired> {
        match *self {}
    }
    fn invalidate(&self, _: PageRange, _: impl FnMut(u32)) {
        match *self {}
    }
    fn stale(&self, _: PageRange) {
        match *self {}
    }
    fn unload(&self, _: impl FnMut(u32)) {
        match *self {}
    }
}

// SAFETY: the frames are as above, and there are no tables.
unsafe impl StdHost for Machine {
    type Table = NoTable;
    type Frames = Memory;
    type Park = crate::host::StdPark;

    fn frames(&self) -> &Memory {
        &self.frames
    }

    fn services(&self) -> &StdServices {
        &self.services
    }

    fn new_table(&self, _: &Arc<Sections>) -> Result<NoTable, OutOfMemory> {
        Err(OutOfMemory)
    }

    fn invalidate_all(&self, _: &Sections, _: &mut [()], _: impl FnMut(u32)) {}
}

/// An engine with swap devices, and the pages of a test.
pub(crate) struct World(pub(crate) Arc<Engine<Machine>>);

/// The slot and the generation that an entry names.
pub(crate) type Swapped = (Slot, u16);

impl World {
    pub(crate) fn new(devices: &[Arc<dyn SwapDevice>]) -> Self {
        let pages: Box<[Page]> = (0..FRAMES).map(|_| Page([0xaa; PAGE])).collect();
        let frames = Memory {
            folios: (0..FRAMES).map(|_| Folio::new()).collect(),
            pages: NonNull::from(Box::leak(pages)),
            free: Mutex::new((0..FRAMES as u64).collect()),
        };
        let machine = Machine { frames, services: StdServices::default() };
        let engine = Engine::new(machine, Limits::default()).unwrap();
        assert!(engine.swap_usage().devices.is_empty());
        devices.iter().for_each(|device| engine.add_swap(device.clone()).unwrap());
        Self(engine)
    }

    /// Takes a frame, and waits for writes if there is none.
    pub(crate) fn frame(&self) -> Frame {
        let transfers = || self.0.cache.transfers.load(crate::sync::plain::Ordering::Relaxed);
        loop {
            // Looked at first: a write that ends in between has freed its frame.
            let is_idle = transfers() == 0;
            match self.0.frames().allocate(GroupId::ROOT, FrameUse::Anonymous) {
                Some(frame) => return frame,
                None => assert!(!is_idle, "frames are lost"),
            }
            std::thread::yield_now();
        }
    }

    /// Returns a frame of a page that was unmapped and is pinned and isolated.
    pub(crate) fn page(&self, bytes: &[u8; PAGE]) -> Frame {
        let frames = self.0.frames();
        let frame = self.frame();
        frames.write(frame, 0, bytes);
        self.0.folio(frame).begin_unmapped();
        assert!(self.0.folio(frame).isolate_pinned());
        frame
    }

    /// Attaches a page to a slot that one entry names.
    pub(crate) fn attach(&self, frame: Frame) -> Option<Swapped> {
        let (slot, generation) = self.0.attach_slot(frame)?;
        assert!(self.0.try_count_slot(slot, generation));
        Some((slot, generation))
    }

    /// Attaches the pages to slots, and writes them out.
    pub(crate) fn write_out(&self, pages: &[[u8; PAGE]]) -> (Vec<Swapped>, Vec<Frame>, WrittenOut) {
        let frames: Vec<_> = pages.iter().map(|page| self.page(page)).collect();
        let slots = frames.iter().map(|frame| self.attach(*frame).expect("a place")).collect();
        let out = self.0.write_out(&mut frames.clone());
        (slots, frames, out)
    }

    /// Writes a page out, and waits until its frame is free.
    pub(crate) fn swap_out(&self, page: &[u8; PAGE]) -> Swapped {
        let (slots, ..) = self.write_out(core::slice::from_ref(page));
        self.wait_until(|| self.0.slot_frame(slots[0].0).is_none());
        slots[0]
    }

    /// Pins the page of an entry, and reads it first if it is not in memory. Returns the frame when the read has ended.
    pub(crate) fn pin(&self, (slot, generation): Swapped) -> Result<Frame, StoreError> {
        let frame = loop {
            match self.0.pin_cached(slot) {
                Cached::Pinned(frame) => break frame,
                Cached::Busy => std::thread::yield_now(),
                Cached::Absent => {
                    let new = self.frame();
                    match self.0.begin_swap_in(slot, generation, new, &[]) {
                        SwapIn::Started => break new,
                        SwapIn::Lost => {}
                        SwapIn::Poisoned(error) => return Err(error),
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        let folio = self.0.folio(frame);
        self.0.park_until(Counter::IoWait, core::ptr::from_ref(folio).addr(), || folio.is_reading());
        match folio.read_error(0) {
            None => Ok(frame),
            Some(error) => {
                self.unpin(frame);
                Err(error)
            }
        }
    }

    pub(crate) fn unpin(&self, frame: Frame) {
        self.0.unpin(frame, Reference::Pin);
    }

    /// Lets a page of [`World::page`] go, which has no slot.
    pub(crate) fn let_go(&self, frame: Frame) {
        self.0.folio(frame).end_isolation();
        self.unpin(frame);
    }

    /// Returns the bytes of the page of an entry.
    pub(crate) fn read(&self, swapped: Swapped) -> Result<[u8; PAGE], StoreError> {
        let frame = self.pin(swapped)?;
        let mut bytes = [0; PAGE];
        self.0.frames().read(frame, 0, &mut bytes);
        self.unpin(frame);
        Ok(bytes)
    }

    /// Waits for other threads.
    pub(crate) fn wait_until(&self, is_over: impl Fn() -> bool) {
        while !is_over() {
            std::thread::yield_now();
        }
    }

    pub(crate) fn devices(&self) -> Vec<DeviceUsage> {
        self.0.swap_usage().devices
    }

    /// Returns the number of pages on each device.
    pub(crate) fn on_devices(&self) -> Vec<u64> {
        self.devices().iter().map(|device| device.pages).collect()
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.0.statistics().get(counter)
    }

    /// Drops the entries, and checks that nothing is left: invariant 7 of docs on swap space.
    pub(crate) fn end(self, entries: &[Swapped]) {
        entries.iter().for_each(|(slot, _)| self.0.put_slot(*slot));
        self.wait_until(|| self.0.cache.transfers.load(crate::sync::plain::Ordering::Relaxed) == 0);
        let usage = self.0.swap_usage();
        assert_eq!(usage.slots, 0, "slots are left");
        assert!(usage.devices.iter().all(|device| device.pages == 0), "places are left: {usage:?}");
        assert_eq!(self.0.frame_usage().used, 1, "frames are left besides the page of zeros");
    }
}

/// Returns a page that LZ4 makes much smaller, and that is not one repeated word.
pub(crate) fn text(number: usize) -> [u8; PAGE] {
    core::array::from_fn(|at| (at / 64 + number) as u8)
}

/// Returns a page that cannot be made smaller.
pub(crate) fn noise(number: usize) -> [u8; PAGE] {
    let mut state = number as u64 + 1;
    core::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}
