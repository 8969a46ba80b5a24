//! A Linux process as a host of the engine.

use crate::frames::Frames;
use crate::handler::{Handlers, Served};
use crate::kernel::Userfault;
use crate::table::{Stale, Table};
use crate::wake::{Bell, WakingPark};
use crate::{OpenError, Options};
use faultless::address::PAGE_SIZE;
use faultless::host::{OutOfMemory, StdHost, StdServices};
use faultless::sync::Sections;
use std::sync::Arc;

/// A Linux process as the engine's host. Frames are memory of this process, and tables fill its pages.
pub struct Linux {
    frames: Arc<Frames>,
    userfault: Arc<Userfault>,
    services: StdServices<WakingPark>,
    /// The size of a space that is made without a table, in pages.
    default_pages: u64,
    handlers: Handlers,
}

impl Linux {
    /// Makes a host whose handler threads run already.
    pub(crate) fn start(options: &Options) -> Result<Self, OpenError> {
        let userfault = Arc::new(Userfault::open()?);
        let bell = Bell::new()
            .map_err(|errno| OpenError::System { call: "eventfd", errno: errno.raw_os_error() })?;
        let bell = Arc::new(bell);
        let frames = Arc::new(Frames::new(options.memory.div_ceil(PAGE_SIZE), &userfault)?);
        let services = StdServices::with_park(WakingPark::new(&bell));
        let served = Served::new(Arc::clone(&userfault), bell);
        let handlers = Handlers::start(served, options.handlers.get())
            .map_err(|error| OpenError::Thread { errno: error.raw_os_error().unwrap_or(0) })?;
        Ok(Self { frames, userfault, services, default_pages: options.window.div_ceil(PAGE_SIZE), handlers })
    }

    /// Returns the spaces whose faults are served.
    pub(crate) fn served(&self) -> &Arc<Served> {
        &self.handlers.served
    }

    /// Makes a table over a new window of `pages` pages.
    pub(crate) fn table(&self, sections: &Arc<Sections>, pages: u64) -> Result<Table, OutOfMemory> {
        Table::new(&self.userfault, &self.frames, sections, pages)
    }
}

// SAFETY: each field is returned as it is and does not move; each keeps its own contract.
unsafe impl StdHost for Linux {
    type Table = Table;
    type Frames = Frames;
    type Park = WakingPark;

    fn frames(&self) -> &Frames {
        &self.frames
    }

    fn services(&self) -> &StdServices<WakingPark> {
        &self.services
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<Table, OutOfMemory> {
        self.table(sections, self.default_pages)
    }

    fn child_table(&self, sections: &Arc<Sections>, parent: &Table) -> Result<Table, OutOfMemory> {
        self.table(sections, parent.window().pages())
    }

    fn invalidate_all(&self, _sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::invalidate_all(batch, wait);
    }
}
