//! Our read sections with each of their barriers, as the bench uses them. The only place that names either.
#![allow(unsafe_code)]

use faultless::host::{FenceBarrier, Slots, StdSlots};
use faultless::sync::{Barrier, Retired, Section, Sections};
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use std::sync::Mutex;
use std::sync::atomic::{Ordering, compiler_fence};

/// Retired things are freed in batches of so many, as the engine does it.
const BATCH: usize = 256;

/// A barrier with its name, made if this kernel has it.
pub trait Named: Barrier + Sized + 'static {
    const NAME: &'static str;

    /// # Errors
    /// Why there is none here.
    fn new() -> Result<Self, String>;
}

impl Named for FenceBarrier {
    const NAME: &'static str = "fence";

    fn new() -> Result<Self, String> {
        Ok(Self)
    }
}

/// Nothing on entering a section; at a grace period a fence in every thread of the process, by membarrier(2).
pub struct Membarrier(());

impl Named for Membarrier {
    const NAME: &'static str = "membarrier";

    fn new() -> Result<Self, String> {
        if !membarrier_query().contains_command(MembarrierCommand::PrivateExpedited) {
            return Err("this kernel has no membarrier".into());
        }
        membarrier(MembarrierCommand::RegisterPrivateExpedited)
            .map_err(|errno| format!("membarrier cannot be registered: {errno}"))?;
        Ok(Self(()))
    }
}

impl Barrier for Membarrier {
    #[inline]
    fn light(&self) {
        compiler_fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        membarrier(MembarrierCommand::PrivateExpedited).expect("registered when it was made");
    }
}

/// Sections of one structure, and what waits for their end.
pub struct Guard<B> {
    sections: Sections,
    barrier: B,
    retired: Mutex<Vec<Retired>>,
}

impl<B: Named> Guard<B> {
    /// # Errors
    /// Why this barrier is not to be had.
    pub fn new() -> Result<Self, String> {
        Ok(Self { sections: Sections::new(), barrier: B::new()?, retired: Mutex::default() })
    }

    /// Enters a section of this thread, which is in none.
    #[inline]
    pub fn enter(&self) -> Section<'_> {
        // SAFETY: `StdSlots` gives no two threads the same slot.
        unsafe { self.sections.enter(StdSlots.current(), &self.barrier) }
    }

    /// Takes what was unhooked; waits for a grace period and frees when there are enough. The caller is in no section.
    pub fn retire(&self, thing: Retired) {
        let mut retired = self.retired.lock().expect("nobody panics with this lock");
        retired.push(thing);
        if retired.len() < BATCH {
            return;
        }
        let batch = std::mem::take(&mut *retired);
        drop(retired);
        self.sections.grace(&self.barrier, |_| std::thread::yield_now());
        for thing in batch {
            // SAFETY: unhooked before it came here, and a grace period has passed since.
            unsafe { thing.free() };
        }
    }
}

impl<B> Drop for Guard<B> {
    fn drop(&mut self) {
        for thing in self.retired.get_mut().map(std::mem::take).unwrap_or_default() {
            // SAFETY: `&mut self`: nobody is in a section of these any more.
            unsafe { thing.free() };
        }
    }
}
