//! The kernel of this machine, called as a user program calls it, for the reference rows; and its figures of a thread.
#![allow(unsafe_code)]

use crate::lap::{self, Lap, Reading};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless_lab::trouble::Trouble;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

/// The name of Linux's rows. Each fault and each call is a trap.
pub const NAME: &str = "linux (traps)";

/// The argument with which [`Forker`] runs this program.
pub const FORKER: &str = "fork-worker";

/// Returns the number of times that the calling thread has gone to sleep by itself.
pub fn sleeps() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for the structure that the call writes; its plain numbers are zero or written.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_nvcsw.unsigned_abs()
}

/// The memory of this process. Each caller uses only the memory that it has mapped.
pub struct Linux;

fn refused(call: &str) -> impl Fn(Errno) -> Trouble {
    move |errno| Trouble::Wrong(format!("{call} fails: {errno}"))
}

fn pointer<T>(at: VirtAddr) -> *mut T {
    ptr::with_exposed_provenance_mut(at.get() as usize)
}

impl Linux {
    /// Maps anonymous private memory, by mmap.
    pub fn map(&self, bytes: u64) -> Result<VirtAddr, Trouble> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, where nothing is mapped.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), bytes as usize, rights, flags) };
        Ok(VirtAddr::new(at.map_err(refused("mmap"))?.expose_provenance() as u64))
    }

    /// Prevents huge pages in a range.
    pub fn in_small_pages(&self, at: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        // SAFETY: changes no byte.
        let done = unsafe { madvise(pointer(at), bytes as usize, Advice::LinuxNoHugepage) };
        match done {
            // The kernel has no huge pages.
            Err(Errno::INVAL) => Ok(()),
            done => done.map_err(refused("madvise(MADV_NOHUGEPAGE)")),
        }
    }

    pub fn unmap(&self, at: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        // SAFETY: memory that a caller has mapped by `map`; references into it are never made.
        unsafe { munmap(pointer(at), bytes as usize) }.map_err(refused("munmap"))
    }

    pub fn protect(&self, at: VirtAddr, bytes: u64, rights: Protection) -> Result<(), Trouble> {
        let read = MprotectFlags::READ;
        let flags = if rights.contains(Protection::WRITE) { read | MprotectFlags::WRITE } else { read };
        // SAFETY: as in `unmap`.
        unsafe { mprotect(pointer(at), bytes as usize, flags) }.map_err(refused("mprotect"))
    }

    pub fn discard(&self, at: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        // SAFETY: as in `unmap`.
        unsafe { madvise(pointer(at), bytes as usize, Advice::LinuxDontNeed) }
            .map_err(refused("madvise(MADV_DONTNEED)"))
    }

    /// Stores a word to the page.
    #[inline]
    pub fn write(&self, at: VirtAddr) {
        // SAFETY: the caller has mapped the page with the right to write.
        unsafe { pointer::<u64>(at).write_volatile(1) };
    }

    /// Forks. The child does nothing until it is dropped here.
    pub fn fork(&self) -> Result<Child, Trouble> {
        // SAFETY: the child calls only functions that may be called after a fork of a process with threads.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: as above. The child ends with the thread that made it, if not before.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    loop {
                        libc::pause();
                    }
                }
            }
            pid => match Pid::from_raw(pid) {
                Some(pid) if !pid.is_init() => Ok(Child(pid)),
                _ => Err(Trouble::Wrong(format!("fork fails: {}", std::io::Error::last_os_error()))),
            },
        }
    }
}

/// A forked process, which ends when this is dropped.
pub struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        // The process exists until it is waited for.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// A process that forks, with memory of a given size and no other. It is separate, because this process also has the
/// memory of other contenders.
pub struct Forker {
    process: std::process::Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Forker {
    pub fn new(bytes: u64) -> Result<Self, String> {
        let cannot = |error: std::io::Error| format!("cannot start the process that forks: {error}");
        let mut process = Command::new(std::env::current_exe().map_err(cannot)?)
            .args([FORKER, &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        let pipes =
            process.stdin.take().zip(process.stdout.take()).map(|(to, from)| (to, BufReader::new(from)));
        Ok(Self { process, pipes: Mutex::new(pipes.expect("both are piped")) })
    }

    /// Has the process fork for the time of the slice.
    pub fn lap(&self, lap: &mut Lap) -> Result<(), Trouble> {
        let mut pipes = self.pipes.lock().expect("one thread at a time");
        let (to, from) = &mut *pipes;
        let mut answer = String::new();
        writeln!(to, "{}", lap.left().as_nanos())
            .and_then(|()| from.read_line(&mut answer))
            .map_err(|error| Trouble::Wrong(format!("the process that forks is gone: {error}")))?;
        let reading: Result<Reading, String> = serde_json::from_str(&answer)
            .unwrap_or_else(|error| Err(format!("the process that forks says {answer:?}: {error}")));
        lap.take(reading.map_err(Trouble::Wrong)?);
        Ok(())
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        // The process exists until it is waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs as the process of [`Forker`]. For each line of input, it forks for that many nanoseconds and prints its
/// measurements.
pub fn forker(bytes: u64) -> Result<(), Trouble> {
    let memory = Linux.map(bytes)?;
    Linux.in_small_pages(memory, bytes)?;
    for page in 0..bytes / PAGE_SIZE {
        Linux.write(VirtAddr::new(memory.get() + page * PAGE_SIZE));
    }
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| Trouble::Wrong(error.to_string()))?;
        let slice =
            line.parse().map_err(|_| Trouble::Input(format!("not a number of nanoseconds: {line:?}")))?;
        let read = lap::run(Duration::from_nanos(slice), 0, |lap| {
            loop {
                drop(lap.part(1, || Linux.fork())?);
                if lap.is_over() {
                    return Ok(());
                }
            }
        });
        let answer = read.map(|(reading, _)| reading).map_err(|trouble| trouble.to_string());
        let answer = serde_json::to_string(&answer).map_err(|error| Trouble::Wrong(error.to_string()))?;
        println!("{answer}");
    }
    Ok(())
}
