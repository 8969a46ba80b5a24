//! The oracle: a process that does an episode's operations on Linux and reports their results.

use super::generate::Episode;
use super::operation::{
    At, FILES, HEAP, IN_MEMORY, Object, Operation, PAGES, REFUSING, STORED, WINDOW, exit_of,
};
use super::step::{Caught, Line, Outcome, Page, Seen, Step, contents, merged, number_of};
use super::sys;
use crate::native;
use faultless::address::PAGE_SIZE;
use faultless::vma::MappingFlags;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, memfd_create,
};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Subcommand of this executable that runs an oracle.
pub const ORACLE: &str = "check-oracle";

/// First message of an oracle.
pub const READY: &[u8] = b"ready";

/// Size at which collected answers are sent, in bytes.
const COLLECTED: usize = 16 << 10;

/// Request to an oracle: one line of JSON. The oracle answers with one line for each operation.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The episode to do.
    pub episode: Episode,
    /// Whether each answer is sent at once, so that the last answer shows the place where the process died.
    pub at_once: bool,
}

/// Runs an oracle. It takes episodes from the socket on standard input until the socket closes.
pub fn oracle() -> ExitCode {
    // If this fails, the end of the socket still ends the oracle.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let run = || -> io::Result<()> {
        native::forbid_huge_pages()?;
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut requests = BufReader::new(socket.try_clone()?);
        let mut process = Process::new(socket)?;
        process.collected.extend(READY);
        process.collected.push(b'\n');
        process.flush()?;
        let mut line = String::new();
        while requests.read_line(&mut line)? != 0 {
            let request: Request = serde_json::from_str(&line)?;
            process.run(&request)?;
            line.clear();
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faultless: an oracle is started by check, not by hand: {error}");
            ExitCode::from(2)
        }
    }
}

/// File of an episode, by its handles.
struct Handles {
    both: File,
    /// The handle for mappings. It is read-only, unless the file may be written.
    mapped: File,
    inode: u64,
}

impl Handles {
    /// Creates the file `number`, as it is at the start of `episode`.
    fn new(episode: &Episode, number: usize) -> io::Result<Self> {
        let both = match number {
            IN_MEMORY => File::from(memfd_create("file", MemfdFlags::CLOEXEC)?),
            REFUSING => File::from(memfd_create("file", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?),
            _ => tempfile::tempfile()?,
        };
        both.write_all_at(&contents(episode.seed, number, episode.files[number]), 0)?;
        if number == REFUSING {
            fcntl_add_seals(&both, SealFlags::SHRINK | SealFlags::GROW)?;
        }
        let mapped = match number {
            STORED | IN_MEMORY | REFUSING => both.try_clone()?,
            _ => File::open(format!("/proc/self/fd/{}", both.as_raw_fd()))?,
        };
        let inode = both.metadata()?.ino();
        Ok(Self { both, mapped, inode })
    }
}

/// Process that uses the window: the oracle, or a child of fork.
struct Process {
    socket: UnixStream,
    collected: Vec<u8>,
    at_once: bool,
    merged: bool,
    files: Vec<Handles>,
    maps: Maps,
    heap: sys::Heap,
    /// The break of the heap in the window.
    heap_end: At,
    /// The map as it was reported last.
    said: Vec<Line>,
}

impl Process {
    fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self {
            socket,
            collected: Vec::new(),
            at_once: false,
            merged: false,
            files: Vec::new(),
            maps: Maps::of_this_process()?,
            heap: sys::Heap::of_this_process()?,
            heap_end: At::page(HEAP),
            said: Vec::new(),
        })
    }

    /// Does an episode in a child process, so that locks and seals end with it. The files are new. An old file could be
    /// written back meanwhile, which zeroes the bytes after its end.
    fn run(&mut self, request: &Request) -> io::Result<()> {
        let Request { episode, at_once } = request;
        (self.at_once, self.merged) = (*at_once, episode.merged);
        self.files = (0..FILES).map(|number| Handles::new(episode, number)).collect::<io::Result<_>>()?;
        if let Some(died) = self.child(&episode.operations, None)? {
            self.say(died)?;
        }
        self.flush()
    }

    fn perform_all(&mut self, operations: &[Operation]) -> io::Result<()> {
        let mut next = 0;
        while let Some(operation) = operations.get(next) {
            next = match operation {
                Operation::Fork => {
                    let exit = exit_of(operations, next);
                    self.fork(&operations[next + 1..exit], exit < operations.len())?;
                    exit + 1
                }
                _ => {
                    let outcome = self.perform(operation)?;
                    self.say(outcome)?;
                    next + 1
                }
            };
        }
        Ok(())
    }

    /// Does the operations of a child. The child reports the result of fork and its operations. The parent reports the
    /// result of the exit, if the exit is one of the operations.
    fn fork(&mut self, operations: &[Operation], exits: bool) -> io::Result<()> {
        match self.child(operations, Some(Outcome::Done(0)))? {
            Some(died) => self.say(died),
            None if exits => self.say(Outcome::Done(0)),
            None => Ok(()),
        }
    }

    /// Runs operations in a child, which first reports `first`. Waits for the child. Returns a description if it died.
    fn child(&mut self, operations: &[Operation], first: Option<Outcome>) -> io::Result<Option<Outcome>> {
        self.flush()?;
        let child = native::fork(|| {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let run = || {
                self.maps = Maps::of_this_process()?;
                first.map_or(Ok(()), |outcome| self.say(outcome))?;
                self.perform_all(operations)?;
                self.flush()
            };
            match run() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("faultless: the process to check against: {error}");
                    1
                }
            }
        })?;
        let status = loop {
            match waitpid(Some(child), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                waited => break waited?.map(|(_, status)| status),
            }
        };
        match status {
            Some(status) if status.exit_status() == Some(0) => Ok(None),
            status => Ok(Some(Outcome::Broken(format!("the process died: {status:?}")))),
        }
    }

    fn perform(&mut self, operation: &Operation) -> io::Result<Outcome> {
        let refusing = &self.files[REFUSING].both;
        if operation.file() == Some(REFUSING)
            && !operation.is_tried(fcntl_get_seals(refusing)?.contains(SealFlags::FUTURE_WRITE))
        {
            return Ok(Outcome::Done(0));
        }
        Ok(match *operation {
            Operation::Map { at, length, rights, object, place, with } => {
                let source = match object {
                    Object::Anonymous { shared } => (shared, None),
                    Object::File { file, first, shared } => {
                        (shared, Some((self.files[file].mapped.as_fd(), first.wrapping_mul(PAGE_SIZE))))
                    }
                };
                called(sys::map((at, length), rights, source, place, with))
            }
            Operation::Unmap { at, length } => called(sys::unmap(at, length)),
            Operation::Protect { at, length, rights, down } => called(sys::protect(at, length, rights, down)),
            Operation::Remap { at, length, new_length, moves } => {
                called(sys::remap(at, length, new_length, moves))
            }
            Operation::Break { at } => {
                let new = self.heap.set_break(self.heap_end, at)?;
                self.heap_end = At(new - WINDOW);
                Outcome::Done(new)
            }
            Operation::Advise { at, length, advice } => called(sys::advise(at, length, advice)),
            Operation::Lock { at, length, on_fault } => called(sys::lock(at, length, on_fault)),
            Operation::Unlock { at, length } => called(sys::unlock(at, length)),
            Operation::LockAll { flags } => called(sys::lock_all(flags)),
            Operation::UnlockAll => called(sys::unlock_all()),
            Operation::Sync { at, length, flags } => {
                let synced = sys::sync(at, length, flags);
                if operation.syncs(&self.said) {
                    self.files[STORED].both.sync_data()?;
                }
                called(synced)
            }
            Operation::Resident { at, length } => match sys::resident(at, length) {
                Ok(pages) => Outcome::resident(at, pages, &self.said),
                Err(error) => Outcome::Error(error),
            },
            Operation::Seal { at, length } => called(sys::seal(at, length)),
            Operation::Load { at } => accessed(sys::load(at)),
            Operation::LoadByte { at } => accessed(sys::load_byte(at)),
            Operation::Store { at, value } => accessed(sys::store(at, value)),
            Operation::StoreByte { at, value } => accessed(sys::store_byte(at, value)),
            Operation::Add { at, value } => accessed(sys::add(at, value)),
            Operation::Read { at, pages } => {
                let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
                match sys::read(at, &mut bytes) {
                    Ok(()) => Outcome::Read(number_of(&bytes), bytes.len() as u64, None),
                    Err((done, signal)) => {
                        Outcome::Read(number_of(&bytes[..done]), done as u64, Some(signal))
                    }
                }
            }
            Operation::ReadRemote { at, length } => {
                let mut bytes = vec![0; length.0 as usize];
                match sys::read_remote(at, &mut bytes) {
                    Ok(done) => Outcome::read(&bytes[..done]),
                    Err(error) => Outcome::Error(error),
                }
            }
            Operation::WriteRemote { at, length, value } => {
                called(sys::write_remote(at, &mut vec![value; length.0 as usize]))
            }
            Operation::ReadFile { file, offset, length } => {
                let mut bytes = vec![0; length.0 as usize];
                let done = self.files[file].both.read_at(&mut bytes, offset)?;
                Outcome::read(&bytes[..done])
            }
            Operation::WriteFile { file, offset, length, value } => {
                let written = self.files[file].both.write_at(&vec![value; length.0 as usize], offset);
                refused(written.map(|done| done as u64))?
            }
            Operation::Truncate { file, length } => {
                refused(self.files[file].both.set_len(length).map(|()| 0))?
            }
            Operation::Punch { file, offset, length } => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match fallocate(&self.files[file].both, how, offset, length.0) {
                    Ok(()) => Outcome::Done(0),
                    Err(error) => Outcome::Error(error.raw_os_error()),
                }
            }
            Operation::StartSync { file } => called(sys::start_sync(&self.files[file].both)),
            Operation::SealFile => {
                fcntl_add_seals(refusing, SealFlags::FUTURE_WRITE)?;
                Outcome::Done(0)
            }
            Operation::Look => {
                let mut bytes: Page = [0; PAGE_SIZE as usize];
                let mut see = |page| match sys::read(At::page(page), &mut bytes) {
                    Ok(()) => Seen::Bytes(number_of(&bytes)),
                    Err((_, signal)) => Seen::Signal(signal),
                };
                Outcome::Looked((0..PAGES).map(&mut see).collect(), flags()?)
            }
            // The child and the parent handle these together. One without the other does nothing.
            Operation::Fork | Operation::Exit => Outcome::Done(0),
        })
    }

    /// Reports the outcome of an operation.
    fn say(&mut self, outcome: Outcome) -> io::Result<()> {
        let mut map = self.maps.window(&self.files)?;
        if self.merged {
            map = merged(map);
        }
        let step = if map == self.said {
            Step(outcome, None)
        } else {
            self.said.clone_from(&map);
            Step(outcome, Some(map))
        };
        serde_json::to_writer(&mut self.collected, &step)?;
        self.collected.push(b'\n');
        if self.at_once || self.collected.len() >= COLLECTED { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.collected)?;
        self.collected.clear();
        Ok(())
    }
}

fn called(result: Result<u64, i32>) -> Outcome {
    result.map_or_else(Outcome::Error, Outcome::Done)
}

/// Returns the outcome of a call on a file. An error without a number is an error of the oracle itself.
fn refused(result: io::Result<u64>) -> io::Result<Outcome> {
    match result {
        Ok(done) => Ok(Outcome::Done(done)),
        Err(error) => error.raw_os_error().map(Outcome::Error).ok_or(error),
    }
}

fn accessed(result: Result<u64, Caught>) -> Outcome {
    result.map_or_else(Outcome::Signal, Outcome::Done)
}

/// Access to the map of this process.
enum Maps {
    /// PROCMAP_QUERY.
    Queried(File),
    /// The whole text of the map, before Linux 6.11.
    Read,
}

impl Maps {
    fn of_this_process() -> io::Result<Self> {
        let file = File::open("/proc/self/maps")?;
        match sys::mapping_from(&file, 0) {
            Ok(_) => Ok(Self::Queried(file)),
            Err(_) => Ok(Self::Read),
        }
    }

    /// Returns the lines of the window.
    fn window(&self, files: &[Handles]) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        let mut add = |(start, end): (u64, u64), flags: u64, offset: u64, inode: u64| {
            let file = files.iter().position(|handles| handles.inode == inode);
            lines.push(Line {
                start: start.wrapping_sub(WINDOW) / PAGE_SIZE,
                end: end.wrapping_sub(WINDOW) / PAGE_SIZE,
                rights: (flags & 7) as u8,
                shared: flags & 8 != 0,
                file: (inode != 0).then(|| (file.unwrap_or(usize::MAX), offset / PAGE_SIZE)),
            });
        };
        match self {
            Self::Queried(maps) => {
                let mut from = WINDOW;
                while let Some(line) = sys::mapping_from(maps, from)?.filter(|line| inside(line.start)) {
                    add((line.start, line.end), line.flags, line.offset, line.inode);
                    from = line.end;
                }
            }
            Self::Read => {
                for line in BufReader::new(File::open("/proc/self/maps")?).lines() {
                    let line = line?;
                    let Some(range) = range_of(&line) else { continue };
                    if inside(range.0) || inside(range.1 - 1) {
                        let mut words = line.split_ascii_whitespace().skip(1);
                        let mut next = || words.next().unwrap_or_default();
                        let (rights, offset, _, inode) = (next().as_bytes(), next(), next(), next());
                        let set = b"rwxs".iter().enumerate();
                        let flags = set.filter(|(i, letter)| rights.get(*i) == Some(letter));
                        let flags = flags.fold(0, |flags, (i, _)| flags | 1 << i);
                        let offset = u64::from_str_radix(offset, 16).unwrap_or_default();
                        add(range, flags, offset, inode.parse().unwrap_or_default());
                    }
                }
            }
        }
        Ok(lines)
    }
}

fn inside(address: u64) -> bool {
    (WINDOW..WINDOW + PAGES * PAGE_SIZE).contains(&address)
}

/// Returns the addresses at the start of a line of maps or smaps.
fn range_of(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Returns the flags of each page of the window, in the engine's bits.
fn flags() -> io::Result<Vec<u16>> {
    let mut flags = vec![0; PAGES as usize];
    let mut pages = 0..0;
    for line in BufReader::new(File::open("/proc/self/smaps")?).lines() {
        let line = line?;
        if let Some((start, end)) = range_of(&line) {
            let page = |address: u64| (address.saturating_sub(WINDOW) / PAGE_SIZE).min(PAGES) as usize;
            pages = page(start)..page(end);
            if start >= WINDOW + PAGES * PAGE_SIZE {
                break;
            }
        } else if let Some(names) = line.strip_prefix("VmFlags:") {
            let known = names.split_ascii_whitespace().map(|name| match name {
                "lo" => MappingFlags::LOCKED,
                // Older kernels have no name for this flag.
                "lf" | "??" => MappingFlags::LOCKED_ON_FAULT,
                "dc" => MappingFlags::DONT_FORK,
                "wf" => MappingFlags::WIPE_ON_FORK,
                "gd" => MappingFlags::GROWS_DOWN,
                "sr" => MappingFlags::SEQUENTIAL,
                "rr" => MappingFlags::RANDOM,
                "sl" => MappingFlags::SEALED,
                "nr" => MappingFlags::NO_RESERVE,
                _ => MappingFlags::empty(),
            });
            flags[pages.clone()].fill(known.fold(MappingFlags::empty(), |all, flag| all | flag).bits());
        }
    }
    Ok(flags)
}
