//! What may be done with a page, and how it is mapped.

use core::fmt;

bitflags::bitflags! {
    /// Rights of a mapping, PROT_READ, PROT_WRITE and PROT_EXEC. Empty is PROT_NONE.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Protection: u8 {
        /// Loads.
        const READ = 1;
        /// Stores. Implies loads, as on x86-64.
        const WRITE = 2;
        /// Instruction fetches.
        const EXECUTE = 4;
    }
}

impl Protection {
    /// Whether `access` is allowed.
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.intersects(Self::READ | Self::WRITE),
            Access::Write => self.contains(Self::WRITE),
            Access::Execute => self.contains(Self::EXECUTE),
        }
    }
}

impl fmt::Display for Protection {
    /// `rwx`, as `/proc/PID/maps` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            write!(f, "{}", if self.contains(flag) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// What a fault wants to do. A fault keeps its access until it ends: a write ends with a writable page or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
        })
    }
}

/// Whether stores reach what is mapped: MAP_PRIVATE or MAP_SHARED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Copy-on-write: stores stay in this space.
    Private,
    /// Everybody who maps it sees one page.
    Shared,
}
