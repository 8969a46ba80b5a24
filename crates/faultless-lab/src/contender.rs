//! The contenders of a comparison: the designs of the engine, and the kernel of this host.

use crate::designs::{self, Design};

/// One contender, which has a row of its own in each report.
#[derive(Clone, Copy, Debug)]
pub enum Contender {
    /// The engine under a locking design.
    Engine(&'static Design),
    /// The host's kernel and its own memory.
    Native {
        /// Whether a system call touches the pages. Such faults take mmap_lock, as all faults did up to Linux 6.3.
        /// Only faults from user space try a VMA lock.
        syscall: bool,
    },
}

const NATIVE: &str = "native";
const NATIVE_SYSCALL: &str = "native-syscall";

/// The contenders of `compare` without `--design`.
const DEFAULT: [&str; 6] =
    ["mmap-lock", "vma-lock", "vma-lock-retry", "vma-lock-hold", designs::OURS, NATIVE];

impl Contender {
    /// Returns all contenders, in the order of reports.
    pub fn all() -> Vec<Self> {
        let engine = designs::ALL.iter().map(Self::Engine);
        engine.chain([false, true].map(|syscall| Self::Native { syscall })).collect()
    }

    /// Returns the contenders of `compare` without `--design`.
    pub fn default_ones() -> Vec<Self> {
        DEFAULT.iter().filter_map(|name| Self::find(name)).collect()
    }

    /// Returns the contender called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|contender| contender.name() == name)
    }

    /// Returns the names of all contenders, separated by commas, for a message.
    pub fn names() -> String {
        Self::all().iter().map(Self::name).collect::<Vec<_>>().join(", ")
    }

    /// Returns the name in commands and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Engine(design) => design.name,
            Self::Native { syscall: false } => NATIVE,
            Self::Native { syscall: true } => NATIVE_SYSCALL,
        }
    }

    /// Returns a one-line description.
    pub fn about(&self) -> &'static str {
        match self {
            Self::Engine(design) => design.about,
            Self::Native { syscall: false } => {
                "the kernel of this machine: real mmap, fork and faults; the file is served by FUSE"
            }
            Self::Native { syscall: true } => {
                "as native, but system calls touch the pages; their faults take mmap_lock"
            }
        }
    }

    /// Returns the kernel version or the mailing-list message that it models.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Engine(design) => design.source,
            Self::Native { .. } => "the Linux of this machine",
        }
    }

    /// Returns whether it is Faultless's own design. A report names the losses of this design first.
    pub fn is_ours(&self) -> bool {
        self.name() == designs::OURS
    }

    /// Returns whether a round of it can be recorded. Native rows cannot: their threads run in another process, and
    /// the kernel reports little about their waits.
    pub fn is_recorded(&self) -> bool {
        matches!(self, Self::Engine(_))
    }

    /// Returns whether it is the kernel on real hardware.
    pub fn is_native(&self) -> bool {
        matches!(self, Self::Native { .. })
    }

    /// Returns whether both run the same code in a scenario, see [`Design::is_twin_of`]. The kernel has no twin.
    pub fn is_twin_of(&self, other: &Self, does_io: bool) -> bool {
        matches!((self, other), (Self::Engine(one), Self::Engine(other)) if one.is_twin_of(other, does_io))
    }

    /// Returns whether a report compares Faultless's own design with it. A variant of that design is not a rival. The
    /// kernel is not one either, because it runs on real hardware and not on the software machine.
    pub fn is_rival(&self) -> bool {
        matches!(self, Self::Engine(design) if !design.name.starts_with(designs::OURS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_and_only_other_designs_are_rivals() {
        for contender in Contender::all() {
            let found = Contender::find(contender.name()).unwrap();
            assert_eq!(found.name(), contender.name());
        }
        assert!(Contender::find("no-such-design").is_none());
        let rivals: Vec<_> = Contender::all().into_iter().filter(Contender::is_rival).collect();
        assert!(rivals.iter().any(|rival| rival.name() == "mmap-lock"));
        assert!(rivals.iter().all(|rival| !rival.is_ours() && !rival.name().starts_with("native")));
        assert!(Contender::default_ones().len() >= 3);
    }
}
