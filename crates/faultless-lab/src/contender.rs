//! Who is compared: the designs that the engine runs, and the kernel that this runs on.

use crate::designs::{self, Design};

/// One row of a report.
#[derive(Clone, Copy, Debug)]
pub enum Contender {
    /// The engine under a design.
    Engine(&'static Design),
    /// The kernel's own memory.
    Native {
        /// Pages are touched by a system call. Such faults take mmap_lock, as all did up to Linux 6.3: only those that come
        /// from user space try a VMA lock.
        syscall: bool,
    },
}

const NATIVE: &str = "native";
const NATIVE_SYSCALL: &str = "native-syscall";

/// The designs of `compare` without `--design`.
const DEFAULT: [&str; 6] =
    ["mmap-lock", "vma-lock", "vma-lock-retry", "vma-lock-hold", designs::OURS, NATIVE];

impl Contender {
    /// Every one, in the order of reports.
    pub fn all() -> Vec<Self> {
        let engine = designs::ALL.iter().map(Self::Engine);
        engine.chain([false, true].map(|syscall| Self::Native { syscall })).collect()
    }

    /// The ones that `compare` takes by itself.
    pub fn default_ones() -> Vec<Self> {
        DEFAULT.iter().filter_map(|name| Self::find(name)).collect()
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|contender| contender.name() == name)
    }

    /// All names, for a message.
    pub fn names() -> String {
        Self::all().iter().map(Self::name).collect::<Vec<_>>().join(", ")
    }

    /// Its name in commands and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Engine(design) => design.name,
            Self::Native { syscall: false } => NATIVE,
            Self::Native { syscall: true } => NATIVE_SYSCALL,
        }
    }

    /// What it does, in a line.
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

    /// Which kernel or message it models.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Engine(design) => design.source,
            Self::Native { .. } => "the Linux of this machine",
        }
    }

    /// Whether it is the design whose losses a report names first.
    pub fn is_ours(&self) -> bool {
        self.name() == designs::OURS
    }

    /// Whether a round of it can be recorded. The threads of the kernel's rows are in another process, and the kernel tells little
    /// of their waits.
    pub fn is_recorded(&self) -> bool {
        matches!(self, Self::Engine(_))
    }

    /// Whether it is the kernel, on the hardware itself.
    pub fn is_native(&self) -> bool {
        matches!(self, Self::Native { .. })
    }

    /// Whether ours is measured against it. A variant of ours is no rival, and the kernel runs on other hardware: on the
    /// machine itself, not on the one in software.
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
