//! The contender "native": the kernel alone.

use crate::case::{Case, Contender, Prepared, Setting};
use crate::memory::Mapping;
use crate::trouble::Trouble;

/// mmap(2), fork(2) and madvise(2).
pub struct Native;

impl Contender for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn prepare(&mut self, case: Case, _: usize, setting: &Setting) -> Result<Prepared, Trouble> {
        let pages = setting.pages;
        if matches!(case, Case::FileRead | Case::CachedRead | Case::FileWrite) {
            let mapping = Mapping::file(pages, &setting.file)?;
            return Ok(Prepared::touch(mapping.touched(), mapping));
        }
        let mapping = Mapping::anonymous(pages, false)?;
        let touched = mapping.touched();
        if matches!(case, Case::SnapshotWrite | Case::Snapshot | Case::Discard) {
            touched.fill(pages);
        }
        Ok(match case {
            Case::SnapshotWrite => {
                let child = Child::fork()?;
                Prepared::touch(touched, (mapping, child))
            }
            Case::Snapshot => Prepared::call(move || Ok((Child::fork()?, mapping))),
            Case::Discard => Prepared::call(move || mapping.discard().map(|()| mapping)),
            _ => Prepared::touch(touched, mapping),
        })
    }
}

/// A child process that has this process's memory as it was. Dropping ends it.
struct Child(libc::pid_t);

impl Child {
    fn fork() -> Result<Self, Trouble> {
        // SAFETY: the child calls only functions that may be called after a fork of a process with threads.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: waits for a signal, the parent's SIGKILL.
                unsafe { libc::pause() };
            },
            -1 => Err(Trouble::last("fork")),
            child => Ok(Self(child)),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that no other code waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
