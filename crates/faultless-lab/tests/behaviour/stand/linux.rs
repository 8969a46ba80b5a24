//! Real memory of this process, served through userfaultfd. The process needs the permission to use it.

use super::Stand;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::Host;
use faultless::protection::Access;
use faultless::{AddressSpace, Engine, FaultError, Limits};
use faultless_linux::access::{self, Interrupted, Signal};
use faultless_linux::{OpenError, Options, Pager, Serving};
use faultless_soft::{AccessError, Cpu, PageFault};
use std::sync::Arc;

pub(crate) use faultless_linux::Linux;

const PAGES: u64 = 1 << 16;

impl Stand for Linux {
    type Refused = OpenError;
    type Processor<D: LockingDesign> = Window<D>;

    /// The page of zeros, which real memory does not map.
    const IDLE_FRAMES: u64 = 1;
    const FRAMES_OF_A_LOAD: u64 = 1;
    const PAGES: u64 = PAGES;
    const LAST_WORD: VirtAddr = VirtAddr::new(PAGES * PAGE_SIZE - 8);

    fn engine(frames: u64, limits: Limits) -> Result<Arc<Engine<Linux>>, OpenError> {
        let (memory, window) = (frames * PAGE_SIZE, PAGES * PAGE_SIZE);
        match Pager::new(Options { memory, limits, window, ..Options::default() }) {
            Ok(pager) => Ok(pager.engine().clone()),
            Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    fn attach<D: LockingDesign>(space: &AddressSpace<Linux, D>) -> Window<D> {
        Window(Serving::of(space).expect("a design that keeps nothing, and one serving"))
    }

    fn fail_frames_from(&self, nth: Option<u64>) {
        self.frames().fail_from(nth);
    }
}

/// A space as this process's threads use it.
pub(crate) struct Window<D: LockingDesign>(Serving<D>);

impl<D: LockingDesign> Window<D> {
    /// Repeats one access until it succeeds or is refused. An address outside the window has no mapping.
    fn complete<R>(
        &self,
        address: VirtAddr,
        access: Access,
        mut operation: impl FnMut(*mut u8) -> Result<R, Signal>,
    ) -> Result<R, FaultError> {
        let pointer = self.0.pointer(address).ok_or(FaultError::NoMapping { address })?;
        loop {
            match operation(pointer) {
                Ok(result) => return Ok(result),
                Err(signal) => self.why(address, access, signal)?,
            }
        }
    }

    /// Returns the error behind a signal, or `Ok` if the access should be tried again.
    fn why(&self, address: VirtAddr, access: Access, signal: Signal) -> Result<(), FaultError> {
        if signal.is_segv() {
            return self.0.space().fault_and_wait(address, access);
        }
        let refusal = self.0.refusal(address);
        // The next access must be served anew.
        self.0.retry(address.page().address(), PAGE_SIZE);
        refusal.map_or(Ok(()), Err)
    }

    /// Does [`Window::complete`] for a range of bytes, page by page.
    fn each(
        &self,
        address: VirtAddr,
        access: Access,
        length: usize,
        mut operation: impl FnMut(*mut u8, usize) -> Result<(), Interrupted>,
    ) -> Result<(), FaultError> {
        let mut done = 0;
        while done < length {
            let at = VirtAddr::new(address.get() + done as u64);
            let page_end = (PAGE_SIZE - at.get() % PAGE_SIZE) as usize;
            let from = done;
            let end = length.min(done + page_end);
            done = self.complete(at, access, |pointer| match operation(pointer, from) {
                Ok(()) => Ok(end),
                Err(Interrupted { done: 0, signal }) => Err(signal),
                Err(Interrupted { done, .. }) => Ok(from + done),
            })?;
        }
        Ok(())
    }
}

fn aligned<F>(address: VirtAddr) -> Result<(), AccessError<F>> {
    if address.get().is_multiple_of(8) { Ok(()) } else { Err(AccessError::Unaligned { address }) }
}

// SAFETY of all accesses here: the memory belongs to a space, and no Rust object lives in it.
impl<D: LockingDesign> Cpu for Window<D> {
    fn try_load_u64(&self, address: VirtAddr) -> Result<u64, AccessError<PageFault>> {
        aligned(address)?;
        let fault = PageFault { address, access: Access::Read };
        if !self.0.is_there(address, Access::Read) {
            return Err(AccessError::Fault(fault));
        }
        self.load_u64(address).map_err(|_| AccessError::Fault(fault))
    }

    fn try_store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError<PageFault>> {
        aligned(address)?;
        let fault = PageFault { address, access: Access::Write };
        if !self.0.is_there(address, Access::Write) {
            return Err(AccessError::Fault(fault));
        }
        self.store_u64(address, value).map_err(|_| AccessError::Fault(fault))
    }

    fn load_u64(&self, address: VirtAddr) -> Result<u64, AccessError> {
        aligned(address)?;
        // SAFETY: above.
        Ok(self.complete(address, Access::Read, |at| unsafe { access::load_u64(at.cast()) })?)
    }

    fn store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError> {
        aligned(address)?;
        // SAFETY: above.
        Ok(self.complete(address, Access::Write, |at| unsafe { access::store_u64(at.cast(), value) })?)
    }

    fn fetch_add_u64(&self, address: VirtAddr, value: u64) -> Result<u64, AccessError> {
        aligned(address)?;
        // SAFETY: above.
        Ok(self.complete(address, Access::Write, |at| unsafe { access::fetch_add_u64(at.cast(), value) })?)
    }

    fn read_bytes(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.each(address, Access::Read, bytes.len(), |at, from| {
            let end = bytes.len().min(from + (PAGE_SIZE as usize - at.addr() % PAGE_SIZE as usize));
            // SAFETY: above.
            unsafe { access::read(at, &mut bytes[from..end]) }
        })
    }

    fn write_bytes(&self, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        self.each(address, Access::Write, bytes.len(), |at, from| {
            let end = bytes.len().min(from + (PAGE_SIZE as usize - at.addr() % PAGE_SIZE as usize));
            // SAFETY: above.
            unsafe { access::write(at, &bytes[from..end]) }
        })
    }

    fn is_dirty(&self, address: VirtAddr) -> bool {
        // A page that can be written is assumed to be dirty.
        self.0.is_there(address, Access::Write)
    }
}
