//! The rights of a mapping, the kinds of access, and the kinds of sharing.

use core::fmt;

bitflags::bitflags! {
    /// The rights of a mapping: PROT_READ, PROT_WRITE and PROT_EXEC. The empty set is PROT_NONE.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Protection: u8 {
        /// The right to load.
        const READ = 1;
        /// The right to store. It implies loads, as on x86-64.
        const WRITE = 2;
        /// The right to fetch instructions.
        const EXECUTE = 4;
    }
}

impl Protection {
    /// Returns whether the rights allow `access`. Loads are also allowed by [`Protection::WRITE`].
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.intersects(Self::READ | Self::WRITE),
            Access::Write => self.contains(Self::WRITE),
            Access::Execute => self.contains(Self::EXECUTE),
        }
    }
}

impl fmt::Display for Protection {
    /// Writes the rights as `rwx`, as in `/proc/PID/maps`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            write!(f, "{}", if self.contains(flag) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// The kind of access that a fault serves. A fault keeps its access until it ends: a write ends with a writable page or
/// an error.
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

/// Says whether stores reach the mapped object: MAP_PRIVATE or MAP_SHARED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Stores stay in this space (copy-on-write).
    Private,
    /// All mappings of a page show the same memory, and stores reach it.
    Shared,
}
