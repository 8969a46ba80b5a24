//! The kernel of this computer as a [`Machine`]: real mmap, munmap, mprotect, madvise, fork, and real faults.

use super::fuse;
use super::sys;
use super::trace;
use super::wire::{Reply, Variant};
use crate::machine::{Child, Machine, Memory, Process, Task, Touched};
use crate::measure::{IN_MAJOR_FAULTS, Measured};
use crate::scenarios::Page;
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::{Access, Protection, Sharing};
use faultless::stats::Counter;
use rustix::event::EventfdFlags;
use rustix::fs::Advice as FileAdvice;
use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Longest message of a child of fork, in bytes. A pipe takes this much at once.
const MOST_SAID: usize = 64 << 10;

/// The file that scenarios map.
#[derive(Debug)]
pub struct Mapped {
    /// The file, open for reading.
    pub file: File,
    /// Length of the mapping, in bytes.
    pub length: u64,
}

/// State that the processes of a machine share.
struct Shared {
    file: Option<Mapped>,
    trace: Result<trace::Process, String>,
    variant: Variant,
    /// The lowest address of the window that was never mapped. Atomic; only grows.
    fresh: AtomicU64,
    /// Whether the machine's one process is alive. Atomic.
    taken: AtomicBool,
}

/// This process as a machine. There is at most one at a time.
pub struct NativeMachine {
    shared: Arc<Shared>,
    /// The VMA lock counters of the whole system when the machine was made.
    before: BTreeMap<String, u64>,
    faults_before: sys::Faults,
}

/// This process as a process of the machine.
pub struct NativeProcess {
    shared: Arc<Shared>,
}

/// Child of this process.
pub struct NativeChild {
    /// `None` after it was waited for.
    pid: Option<Pid>,
    /// The pipe on which the child reports an error.
    says: OwnedFd,
}

thread_local! {
    /// Addresses that this thread has unmapped, by size. They are mapped again, as the kernel itself does if it
    /// chooses. Each thread has its own list, so that fork copies no lock that another thread holds.
    static UNMAPPED: RefCell<BTreeMap<u64, Vec<u64>>> = const { RefCell::new(BTreeMap::new()) };
    /// The eventfd that this thread's system calls write to and read from.
    static WORDS: OnceCell<Option<OwnedFd>> = const { OnceCell::new() };
}

impl NativeMachine {
    /// Makes a machine that counts mmap_lock by the tracepoint with the number `tracepoint`.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if the kernel refuses something that all rounds need.
    pub fn new(
        file: Option<Mapped>,
        tracepoint: Result<u64, String>,
        variant: Variant,
    ) -> Result<Self, Trouble> {
        sys::forbid_huge_pages().map_err(|error| Trouble::Cannot(format!("prctl: {error}")))?;
        let trace = tracepoint.and_then(trace::Process::new);
        let (fresh, taken) = (AtomicU64::new(sys::WINDOW.start), AtomicBool::new(false));
        let shared = Arc::new(Shared { file, trace, variant, fresh, taken });
        Ok(Self { shared, before: vma_locks(), faults_before: sys::process_faults() })
    }

    /// Adds notes for figures that the machine could not measure.
    pub fn annotate(&self, measured: &mut Measured) {
        if let Err(reason) = &self.shared.trace {
            measured.note(&format!("mmap_lock is not counted: {reason}"));
        }
    }
}

impl Machine for NativeMachine {
    type Process = NativeProcess;

    fn process(&self) -> Result<NativeProcess, Trouble> {
        if self.shared.taken.swap(true, Ordering::Relaxed) {
            return Err(Trouble::Cannot("the kernel gives this process one address space, not two".into()));
        }
        Ok(NativeProcess { shared: Arc::clone(&self.shared) })
    }

    fn statistics(&self) -> BTreeMap<String, u64> {
        let sys::Faults { minor, major } = sys::process_faults();
        let sys::Faults { minor: minor_before, major: major_before } = self.faults_before;
        let mut named = BTreeMap::new();
        let mut say = |counter: Counter, n| named.insert(counter.name().to_owned(), n);
        say(Counter::Faults, (minor + major).saturating_sub(minor_before + major_before));
        say(Counter::MajorFaults, major.saturating_sub(major_before));
        if let Some([reads, writes]) = self.shared.trace.as_ref().ok().and_then(|trace| trace.read().ok()) {
            say(Counter::MmapLockRead, reads);
            say(Counter::MmapLockWrite, writes);
        }
        if let Some(reads) = self.shared.file.as_ref().and_then(|mapped| fuse::reads_of(&mapped.file).ok()) {
            say(Counter::IoReads, reads);
        }
        for (name, n) in vma_locks() {
            let since = n.saturating_sub(self.before.get(&name).copied().unwrap_or(0));
            named.insert(name, since);
        }
        named
    }

    fn finish(self) -> Result<(), Trouble> {
        match waitpid(None, WaitOptions::NOHANG) {
            Err(Errno::CHILD) => Ok(()),
            Ok(_) => Err(Trouble::Wrong("children of fork are left that were not waited for".into())),
            Err(error) => Err(Trouble::Wrong(format!("waitpid fails: {error}"))),
        }
    }
}

/// Returns the VMA lock counters of the whole system, from a kernel built with CONFIG_PER_VMA_LOCK_STATS.
fn vma_locks() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let of_vmas = lines.filter(|(name, _)| name.starts_with("vma_lock_"));
    of_vmas.filter_map(|(name, n)| Some((name.to_owned(), n.trim().parse().ok()?))).collect()
}

/// Returns the error of a failed call. A refusal by a kernel limit is neither the design's error nor the user's,
/// because limits differ between machines.
fn failed(call: &str, error: &io::Error) -> Trouble {
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN) => "; use fewer --threads",
        Some(Errno::MFILE | Errno::NFILE) => "; raise ulimit -n, or use fewer --threads",
        Some(Errno::PERM | Errno::ACCESS) => "; needs root",
        Some(Errno::NOMEM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOSPC | Errno::NOBUFS) => "",
        _ => return Trouble::Wrong(format!("{call} fails: {error}")),
    };
    Trouble::Cannot(format!("{call} fails: {error}{hint}"))
}

fn whole_pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_SIZE)
}

impl NativeProcess {
    /// Maps at a free address: one that this thread has unmapped, or a new one.
    fn map(
        &self,
        bytes: u64,
        protection: Protection,
        file: Option<(&Mapped, Sharing)>,
    ) -> Result<VirtAddr, Trouble> {
        let bytes = whole_pages(bytes);
        loop {
            let used = UNMAPPED.with_borrow_mut(|unmapped| unmapped.get_mut(&bytes)?.pop());
            let start = used.unwrap_or_else(|| self.shared.fresh.fetch_add(bytes, Ordering::Relaxed));
            let start = VirtAddr::new(start);
            let file = file.map(|(mapped, sharing)| (mapped.file.as_fd(), sharing));
            match sys::map(start, bytes, protection, file) {
                Ok(()) => return Ok(start),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("mmap", &error)),
            }
        }
    }

    /// Returns, for each page of a mapping, whether it is in memory. The page need not be mapped.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if the range is not mapped.
    pub fn resident(&self, start: VirtAddr, bytes: u64) -> Result<Vec<bool>, Trouble> {
        sys::resident(start, bytes).map_err(|error| failed("mincore", &error))
    }

    fn file(&self) -> Result<&Mapped, Trouble> {
        self.shared
            .file
            .as_ref()
            .ok_or_else(|| Trouble::Wrong("the scenario maps a file that it has not named".into()))
    }

    /// Makes the access by a system call, so that the kernel accesses the address.
    fn touch_by_system_call(&self, at: VirtAddr, access: Access) -> io::Result<()> {
        WORDS.with(|words| {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let words = words.get_or_init(|| rustix::event::eventfd(0, flags).ok());
            let words = words.as_ref().ok_or(Errno::MFILE)?.as_fd();
            match access {
                Access::Read | Access::Execute => match sys::write_word(words, at) {
                    // The kernel has loaded the word before it found the sum too large.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)) => {}
                    done => drop(done?),
                },
                Access::Write => {
                    // The read empties the counter, so that the write sets it to 1.
                    let _ = rustix::io::read(words, &mut [0; 8]);
                    rustix::io::write(words, &1_u64.to_ne_bytes())?;
                    sys::read_word(words, at)?;
                }
            }
            Ok(())
        })
    }
}

impl Memory for NativeProcess {
    fn map_anonymous(&self, bytes: u64) -> Result<VirtAddr, Trouble> {
        self.map(bytes, Protection::READ | Protection::WRITE, None)
    }

    fn map_file(&self, sharing: Sharing) -> Result<VirtAddr, Trouble> {
        let mapped = self.file()?;
        let start = self.map(mapped.length, Protection::READ, Some((mapped, sharing)))?;
        let bytes = whole_pages(mapped.length);
        sys::advise(start, bytes, Advice::Random).map_err(|error| failed("madvise", &error))?;
        Ok(start)
    }

    fn unmap_file(&self, start: VirtAddr) -> Result<(), Trouble> {
        let mapped = self.file()?;
        self.unmap(start, mapped.length)?;
        // This drops pages that no process maps. Pages that others map stay. The call takes time for each cached page.
        rustix::fs::fadvise(&mapped.file, 0, None, FileAdvice::DontNeed)
            .map_err(|error| failed("posix_fadvise", &error.into()))
    }

    fn unmap(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        let bytes = whole_pages(bytes);
        sys::unmap(start, bytes).map_err(|error| failed("munmap", &error))?;
        UNMAPPED.with_borrow_mut(|unmapped| unmapped.entry(bytes).or_default().push(start.get()));
        Ok(())
    }

    fn protect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Trouble> {
        sys::protect(start, bytes, protection).map_err(|error| failed("mprotect", &error))
    }

    fn discard(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        sys::advise(start, bytes, Advice::LinuxDontNeed).map_err(|error| failed("madvise", &error))
    }

    fn load(&self, at: VirtAddr) -> Result<u64, Trouble> {
        sys::load(at).map_err(|error| failed("a load", &error))
    }

    fn store(&self, at: VirtAddr, value: u64) -> Result<(), Trouble> {
        sys::store(at, value).map_err(|error| failed("a store", &error))
    }

    fn read_page(&self, start: VirtAddr, page: &mut Page) -> Result<(), Trouble> {
        sys::read_page(start, page).map_err(|error| failed("a load", &error))
    }

    fn touch(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble> {
        let before = sys::thread_faults().major;
        let done = match (self.shared.variant, access) {
            (Variant::SystemCall, _) => self.touch_by_system_call(at, access),
            (Variant::Access, Access::Write) => sys::store(at, 1),
            (Variant::Access, _) => sys::load(at).map(drop),
        };
        done.map_err(|error| failed("an access", &error))?;
        Ok(if sys::thread_faults().major == before { Touched::Minor } else { Touched::Major })
    }

    fn counted(&self) -> [Option<u64>; IN_MAJOR_FAULTS.len()] {
        let reads = self.shared.trace.as_ref().ok().and_then(trace::Process::of_this_thread);
        // The kernel has no tracepoint for VMA locks, nor for faults that start over.
        IN_MAJOR_FAULTS.map(|(_, counter)| if counter == Counter::MmapLockRead { reads } else { None })
    }
}

impl Process for NativeProcess {
    type Child = NativeChild;

    fn fork(&self, task: &Arc<dyn Task>) -> Result<NativeChild, Trouble> {
        let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (says, say) = pipe.map_err(|error| failed("pipe", &error.into()))?;
        let child = || match task.run(self) {
            Ok(()) => 0,
            Err(trouble) => {
                let line = serde_json::to_vec(&Reply::from(trouble)).unwrap_or_default();
                // The pipe is empty and takes the line at once. If the write fails, the parent notices it.
                let _ = rustix::io::write(&say, &line);
                1
            }
        };
        let pid = sys::fork(child).map_err(|error| failed("fork", &error))?;
        Ok(NativeChild { pid: Some(pid), says })
    }
}

impl Drop for NativeProcess {
    fn drop(&mut self) {
        let end = self.shared.fresh.load(Ordering::Relaxed).min(sys::WINDOW.end);
        let start = sys::WINDOW.start;
        // The call cannot fail: the range is in the window and page-aligned. Later mappings use higher addresses,
        // because threads remember old ones.
        if end > start {
            let _ = sys::unmap(VirtAddr::new(start), end - start);
        }
        self.shared.taken.store(false, Ordering::Relaxed);
    }
}

impl NativeChild {
    fn wait(&mut self) -> Result<Option<WaitStatus>, Errno> {
        let Some(pid) = self.pid.take() else { return Ok(None) };
        loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                ended => return Ok(ended?.map(|(_, status)| status)),
            }
        }
    }
}

impl Child for NativeChild {
    fn join(mut self) -> Result<(), Trouble> {
        let status = self.wait().map_err(|error| failed("waitpid", &error.into()))?;
        let status = status.ok_or_else(|| Trouble::Wrong("a child of fork is gone".into()))?;
        if status.exit_status() == Some(0) {
            return Ok(());
        }
        if let Some(signal) = status.terminating_signal() {
            return Err(Trouble::Wrong(format!("a child of fork was ended by {}", super::name_of(signal))));
        }
        let mut line = vec![0; MOST_SAID];
        // One read, not until the end of the pipe: a child that was forked meanwhile may hold the other end too.
        let said = rustix::io::read(&self.says, &mut line).unwrap_or(0);
        match serde_json::from_slice::<Reply>(&line[..said]).map(Result::<Measured, Trouble>::from) {
            Ok(Err(trouble)) => Err(trouble),
            _ => Err(Trouble::Wrong("a child of fork ended without a word".into())),
        }
    }
}

impl Drop for NativeChild {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // The child may have exited already. The wait collects it in any case.
            let _ = kill_process(pid, Signal::KILL);
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_counted_is_noted_and_left_out() {
        let machine = NativeMachine::new(None, Err("no root".into()), Variant::Access).unwrap();
        let process = machine.process().unwrap();
        assert_eq!(process.counted(), [None; IN_MAJOR_FAULTS.len()]);
        let mut measured = Measured::default();
        machine.annotate(&mut measured);
        assert_eq!(measured.notes, ["mmap_lock is not counted: no root"]);
        let statistics = machine.statistics();
        assert!(statistics.contains_key("faults") && !statistics.contains_key("mmap_lock_read"));
        assert!(matches!(process.map_file(Sharing::Shared), Err(Trouble::Wrong(_))));
    }

    #[test]
    fn what_the_kernel_refuses_is_nobodys_fault() {
        for refused in [Errno::AGAIN, Errno::NOMEM, Errno::PERM, Errno::NOSYS, Errno::MFILE] {
            assert!(matches!(failed("fork", &refused.into()), Trouble::Cannot(_)), "{refused}");
        }
        assert!(matches!(failed("munmap", &Errno::INVAL.into()), Trouble::Wrong(_)));
    }
}
