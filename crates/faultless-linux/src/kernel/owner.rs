//! Tells the process that opened a userfaultfd from its children by fork(2).

use super::PAGE;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// A page that holds 1 in the process that made it. The kernel gives a child of fork(2) a page of zeros instead
/// (MADV_WIPEONFORK, Linux 4.14), by whichever call it was forked.
pub(super) struct Owner(NonNull<AtomicU8>);

// SAFETY: an atomic that lives as long as this does.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

impl Owner {
    /// Marks the calling process as the owner.
    pub fn new() -> Result<Self, Errno> {
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new page, wherever the kernel finds room.
        let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, rights, flags) }?;
        let owner = Self(NonNull::new(page.cast()).ok_or(Errno::NOMEM)?);
        // SAFETY: the page just mapped.
        unsafe { rustix::mm::madvise(page, PAGE, Advice::LinuxWipeOnFork) }?;
        owner.flag().store(1, Ordering::Relaxed);
        Ok(owner)
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped until drop, and zeros are an `AtomicU8` too.
        unsafe { self.0.as_ref() }
    }

    /// Returns whether the calling process made this.
    #[inline]
    pub fn is_this_process(&self) -> bool {
        self.flag().load(Ordering::Relaxed) != 0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the page that `new` mapped, whose address no other code has; a child has a page of its own there.
        let unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), PAGE) };
        debug_assert!(unmapped.is_ok());
    }
}
