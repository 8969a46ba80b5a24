//! Pinning a page of a space for I/O into it, as a kernel does for read(2) into user memory, and a hypervisor for a device.

use crate::address::{PAGE_SIZE, VirtAddr};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::Engine;
use crate::frame::Reference;
use crate::host::{Entry, Frame, Host};
use crate::page_cache::{File, Full};
use crate::protection::{Access, Protection};
use crate::space::fault::page_work::{Leaves, Refused};
use crate::space::{AddressSpace, Space, SpaceFlags, fault::FaultError};
use crate::sync::Shared;
use crate::sync::atomic::Ordering;
use crate::vma::Mapping;
use alloc::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;
/// The number of bytes copied at once by way of the stack, which has no room for a page. Each copy is a step of a model.
const PART: usize = if cfg!(loom) { PAGE } else { 1024 };

/// Returns whether a pin takes the page that is there, as Linux before 5.19 did. Only in mutants of bugs of that time.
fn pins_shared_pages() -> bool {
    mutant!("dirty_cow" | "reuse_ignores_pins")
}

/// A page pinned for I/O. Its frame stays, even if the mapping changes.
///
/// While the page is exclusive to its space, fork copies it for the child. A page of a file that is pinned for writing keeps
/// the file. The bytes written go to the store with the next writeback, at the latest when the file goes.
pub struct PinnedPage<H: Host> {
    engine: Arc<Engine<H>>,
    /// The flags of the space, which counts the pin.
    space_flags: Shared<SpaceFlags>,
    frame: Frame,
    access: Access,
    /// The kind of reference: `IoPin`, or `Pin` of memory that is read from outside, which the space does not count.
    reference: Reference,
    /// The file of a page that is pinned for writing. Bytes written after its mapping has gone belong to the file too.
    _file: Option<Shared<File<H>>>,
}

/// The reason why a page is not pinned.
pub(in crate::space) enum NotPinned {
    Fault(FaultError),
    /// The page has as many pins as can be counted.
    Full(Full),
}

impl From<FaultError> for NotPinned {
    fn from(error: FaultError) -> Self {
        Self::Fault(error)
    }
}

impl<H: Host> PinnedPage<H> {
    /// Returns the frame of the page.
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Copies bytes from the page into `bytes`, starting at byte `offset` of the page and ending with the page. Returns how
    /// many were copied: fewer if the host has lost the page's bytes.
    ///
    /// `bytes` may be memory of a space of this engine. It is touched while nothing is held but this pin, and no thread waits
    /// for the pin.
    #[inline(never)]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let wanted = bytes.len().min(PAGE.saturating_sub(offset));
        let mut bounce = [0; PART];
        let mut done = 0;
        for part in bytes[..wanted].chunks_mut(PART) {
            let count = self.engine.frames().read(self.frame, offset + done, &mut bounce[..part.len()]);
            self.engine.assert_holds_nothing("the buffer of a read of a pinned page");
            part[..count].copy_from_slice(&bounce[..count]);
            done += count;
            if count < part.len() {
                break;
            }
        }
        done
    }

    /// Copies `bytes` into the page, starting at byte `offset` and ending with the page. Returns how many were copied: 0 if the
    /// page was not pinned for writing, fewer if the host has lost it. `bytes` may be memory of a space of this engine, as for
    /// [`PinnedPage::read`].
    #[inline(never)]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        if self.access != Access::Write {
            return 0;
        }
        let wanted = bytes.len().min(PAGE.saturating_sub(offset));
        let mut bounce = [0; PART];
        let mut done = 0;
        for part in bytes[..wanted].chunks(PART) {
            self.engine.assert_holds_nothing("the buffer of a write to a pinned page");
            bounce[..part.len()].copy_from_slice(part);
            let count = self.engine.frames().write(self.frame, offset + done, &bounce[..part.len()]);
            done += count;
            if count < part.len() {
                break;
            }
        }
        done
    }
}

impl<H: Host> Drop for PinnedPage<H> {
    fn drop(&mut self) {
        self.engine.unpin(self.frame, self.reference);
        if self.reference == Reference::IoPin {
            // Release, partner: fork, which copies the pages that are pinned.
            self.space_flags.pins.fetch_sub(1, Ordering::Release);
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Checks that the mapping of the page at `address` allows to pin it.
    fn check_pin(&self, address: VirtAddr, (access, rights): (Access, Protection)) -> Result<(), FaultError> {
        let section = self.engine.enter();
        let vma = self.tree.view(&section).find(address.page());
        let mapping = vma.ok_or(FaultError::NoMapping { address })?.mapping();
        may_pin(mapping, address, (access, rights))
    }
}

/// Checks that a page of `mapping` may be pinned, in Linux's order. There get_user_pages, and so access_process_vm, first
/// refuses VM_IO and VM_PFNMAP with EFAULT (check_vma_flags). A device's own `access` hook, which ptrace then tries, does not
/// exist here.
fn may_pin<H: Host>(
    mapping: &Mapping<H>,
    address: VirtAddr,
    (access, rights): (Access, Protection),
) -> Result<(), FaultError> {
    let protection = mapping.protection;
    if mapping.is_foreign() {
        return Err(FaultError::Foreign { address });
    }
    match protection.contains(rights) {
        true => Ok(()),
        false => Err(FaultError::Protection { address, access, protection }),
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Pins the page of `address` for `access`. Faults it in if need be, and waits for that fault's I/O.
    ///
    /// The page of a private mapping becomes the space's own first, for any access, as on Linux since 5.19. A page shared
    /// with a child or a parent is copied, and so are zeros and a file's page. So the pin shows what the space stores later,
    /// and only the space sees the bytes written through a pin for writing (invariant 5). The page of a shared mapping is the
    /// page that all mappings share.
    ///
    /// # Errors
    /// [`FaultError::NoMapping`], [`FaultError::Protection`], a failed read, [`FaultError::OutOfMemory`],
    /// [`FaultError::Exited`]; [`FaultError::Foreign`]: the frame is not the engine's; [`FaultError::TooManyPins`]: the page is
    /// pinned 4,095 times. Nothing is pinned. The page may have been faulted in or copied.
    pub fn pin(&self, address: VirtAddr, access: Access) -> Result<PinnedPage<H>, FaultError> {
        self.pin_with(address, (access, Protection::empty()), Reference::IoPin).map_err(|why| match why {
            NotPinned::Fault(error) => error,
            NotPinned::Full(_) => FaultError::TooManyPins { address },
        })
    }

    /// Pins as [`AddressSpace::pin`] does, where the mapping must give `rights` by name: a processor also reads where only
    /// writing is allowed.
    ///
    /// With [`Reference::Pin`], for reading only, pins the page that is there, even if others share it. Later stores of the
    /// space may not show.
    pub(in crate::space) fn pin_with(
        &self,
        address: VirtAddr,
        (access, rights): (Access, Protection),
        reference: Reference,
    ) -> Result<PinnedPage<H>, NotPinned> {
        debug_assert!(
            reference == Reference::IoPin || access == Access::Read,
            "fork does not copy such a page"
        );
        let is_long = reference == Reference::IoPin;
        if !self.0.whole().contains(address.page()) {
            return Err(FaultError::NoMapping { address }.into());
        }
        #[allow(unused_mut)]
        let mut wanted = access;
        loop {
            if let Some(page) = self.pin_present(address, (access, rights), wanted, reference)? {
                return Ok(page);
            }
            match is_long && !pins_shared_pages() {
                true => self.unshare_and_wait(address, wanted)?,
                false => self.fault_and_wait(address, wanted)?,
            }
            // CVE-2016-5195: the fault has broken COW, so the write intent seems to be needed no more.
            if mutant!("dirty_cow") {
                wanted = Access::Read;
            }
        }
    }

    /// Pins the page if an entry maps it with the right for `wanted`. Returns `None` if a fault has to come first. Not inlined, so that
    /// its frame is off the stack during that fault.
    #[inline(never)]
    fn pin_present(
        &self,
        address: VirtAddr,
        (access, rights): (Access, Protection),
        wanted: Access,
        reference: Reference,
    ) -> Result<Option<PinnedPage<H>>, NotPinned> {
        let is_long = reference == Reference::IoPin;
        let space = &*self.0;
        let needed = match wanted {
            Access::Read => Entry::READ,
            Access::Write => Entry::WRITE,
            Access::Execute => Entry::EXECUTE,
        };
        let mut attempt = Attempt::first(Purpose::Fault);
        let page = address.page();
        let worked = space.page_work(
            page,
            &mut attempt,
            Leaves::Existing,
            false,
            |work| {
                if let Err(error) = may_pin(work.vma.mapping(), address, (access, rights)) {
                    return Some(Err(error.into()));
                }
                let frame = work.entry.mapped_frame().filter(|_| work.entry.has(needed))?;
                // A page shared with others is copied at the next store, and the pin would not show that store.
                let is_private = work.vma.record().is_some() && !pins_shared_pages();
                if is_long && is_private && !space.is_own(frame) {
                    return None;
                }
                // The entry keeps the frame, so this fails only if the count is full.
                if work.engine().folio(frame).try_get(reference).is_err() {
                    return Some(Err(NotPinned::Full(Full { frame, reference })));
                }
                if is_long {
                    space.space_flags.pins.fetch_add(1, Ordering::Relaxed);
                }
                let file = work.vma.mapping().file_page(page).map(|(file, _)| file);
                let is_files = |file: &&Shared<File<H>>| work.engine().folio(frame).is_page_of(file.home());
                let file = file.filter(|file| access == Access::Write && is_files(file)).cloned();
                Some(Ok((frame, file)))
            },
            |_, _| false,
        );
        match worked.map(|worked| worked.result) {
            Ok(Some(Ok((frame, _file)))) => {
                let (engine, space_flags) = (space.engine.clone(), space.space_flags.clone());
                Ok(Some(PinnedPage { engine, space_flags, frame, access, reference, _file }))
            }
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Ok(None),
            // No mapping grows down to the address, and a refused page is not faulted in, as on Linux.
            Err(Refused::NoTable) => {
                space.check_pin(address, (access, rights))?;
                Ok(None)
            }
            Err(Refused::Hole) => Err(FaultError::NoMapping { address }.into()),
            Err(Refused::OutOfMemory) => Err(FaultError::OutOfMemory { address }.into()),
        }
    }
}
