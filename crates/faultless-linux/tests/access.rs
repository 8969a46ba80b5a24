//! Accesses to real memory succeed, or return the signal; signals of other code have the effect that they had before.
//!
//! A test that ends its process, or changes signal actions in it, runs in a child. The child is this program with this
//! one test selected, and an environment variable that marks it as the child.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64"
))]

use faultless_linux::access::{self, Interrupted, Signal};
use libc::{SIGBUS, SIGSEGV, c_int, c_void, siginfo_t};
use linux_raw_sys::general::{BUS_ADRALN, BUS_ADRERR, SEGV_ACCERR, SEGV_MAPERR};
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;

const PAGE: usize = 4096;
/// The bytes of address space reserved for each test mapping, never reused: nothing else maps there.
const ROOM: usize = 1 << 20;
/// An address where the kernel, the program and sanitizers place nothing by themselves.
const WINDOW: usize = 0x2100_0000_0000;

/// Pages that are used by accesses only.
struct Pages {
    start: *mut u8,
    count: usize,
}

// SAFETY: an address range; only `access` and atomics access it.
unsafe impl Sync for Pages {}

impl Pages {
    fn map(count: usize, file: Option<&File>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(WINDOW);
        let place = ptr::without_provenance_mut(NEXT.fetch_add(ROOM, Relaxed));
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::FIXED_NOREPLACE);
        assert!(count * PAGE <= ROOM);
        // SAFETY: new pages where nothing is mapped.
        let start = unsafe {
            match file {
                Some(file) => mm::mmap(place, count * PAGE, rights, flags | MapFlags::SHARED, file, 0),
                None => mm::mmap_anonymous(place, count * PAGE, rights, flags | MapFlags::PRIVATE),
            }
        };
        Self { start: start.unwrap().cast(), count }
    }

    /// Maps one page that may not be accessed.
    fn forbidden() -> Self {
        let pages = Self::map(1, None);
        pages.protect(0, MprotectFlags::empty());
        pages
    }

    fn protect(&self, page: usize, rights: MprotectFlags) {
        assert!(page < self.count);
        // SAFETY: no object is there.
        unsafe { mm::mprotect(self.byte(page * PAGE).cast(), PAGE, rights) }.unwrap();
    }

    fn byte(&self, offset: usize) -> *mut u8 {
        self.start.wrapping_add(offset)
    }

    fn word(&self, offset: usize) -> *mut u64 {
        self.byte(offset).cast()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: no object is there.
        unsafe { mm::munmap(self.start.cast(), self.count * PAGE) }.unwrap();
    }
}

fn segv(code: u32, at: *const u64) -> Signal {
    Signal { number: SIGSEGV, code: code as i32, address: at.addr() }
}

fn bus(code: u32, at: *const u64) -> Signal {
    Signal { number: SIGBUS, code: code as i32, address: at.addr() }
}

/// Asserts that each kind of access to `at` receives the signal `expected`.
fn all_meet(expected: Signal, at: *mut u64) {
    let mut bytes = [7; 3];
    let interrupted = Interrupted { done: 0, signal: expected };
    // SAFETY: no access to this address harms an object.
    unsafe {
        assert_eq!(access::load_u64(at), Err(expected));
        assert_eq!(access::store_u64(at, 1), Err(expected));
        assert_eq!(access::fetch_add_u64(at, 1), Err(expected));
        assert_eq!(access::load_u8(at.cast()), Err(expected));
        assert_eq!(access::store_u8(at.cast(), 1), Err(expected));
        assert_eq!(access::read(at.cast(), &mut bytes), Err(interrupted));
        assert_eq!(access::write(at.cast(), &bytes), Err(interrupted));
    }
    assert_eq!(bytes, [7; 3]);
}

/// Accesses to mapped memory succeed: a load returns the stored bytes.
#[test]
fn memory_works() {
    let pages = Pages::map(2, None);
    // SAFETY: no object is there.
    unsafe {
        let word = pages.word(8);
        assert_eq!(access::load_u64(word), Ok(0));
        assert_eq!(access::store_u64(word, u64::MAX - 1), Ok(()));
        assert_eq!(access::fetch_add_u64(word, 3), Ok(u64::MAX - 1));
        assert_eq!(access::load_u64(word), Ok(1));
        assert_eq!(access::store_u64(word, 0x8877_6655_4433_2211_u64.to_le()), Ok(()));
        assert_eq!(access::load_u8(pages.byte(10)), Ok(0x33));
        assert_eq!(access::store_u8(pages.byte(10), 0xff), Ok(()));
        assert_eq!(access::load_u64(word), Ok(0x8877_6655_44ff_2211_u64.to_le()));
    }
}

/// Ranges with every start and length around words and a page's end: exactly their bytes are accessed.
#[test]
fn ranges_work() {
    let pages = Pages::map(2, None);
    for start in PAGE - 17..PAGE + 1 {
        for length in 0..20 {
            let from: Vec<u8> = (1..).take(length).collect();
            let mut back = vec![0xee; length + 2];
            // SAFETY: no object is there.
            unsafe {
                assert_eq!(access::write(pages.byte(start - 1), &vec![0xaa; length + 2]), Ok(()));
                assert_eq!(access::write(pages.byte(start), &from), Ok(()));
                assert_eq!(access::read(pages.byte(start - 1), &mut back), Ok(()));
            }
            assert_eq!((back[0], back[length + 1]), (0xaa, 0xaa), "{start} {length}");
            assert_eq!(back[1..=length], from, "{start} {length}");
        }
    }
}

/// A forbidden page: SIGSEGV with the code for it, and the address.
#[test]
fn forbidden_pages_say_so() {
    let pages = Pages::forbidden();
    all_meet(segv(SEGV_ACCERR, pages.word(0)), pages.word(0));
    all_meet(segv(SEGV_ACCERR, pages.word(PAGE - 8)), pages.word(PAGE - 8));
}

/// A read-only page: loads succeed; stores and additions fail and change nothing.
#[test]
fn a_page_to_read_refuses_stores() {
    let pages = Pages::map(1, None);
    let (word, byte) = (pages.word(16), pages.byte(16));
    let refused = segv(SEGV_ACCERR, word);
    // SAFETY: no object is there.
    unsafe {
        access::store_u64(word, 5).unwrap();
        pages.protect(0, MprotectFlags::READ);
        assert_eq!(access::store_u64(word, 6), Err(refused));
        assert_eq!(access::fetch_add_u64(word, 6), Err(refused));
        assert_eq!(access::store_u8(byte, 6), Err(refused));
        assert_eq!(access::write(byte, &[6]), Err(Interrupted { done: 0, signal: refused }));
        assert_eq!(access::load_u64(word), Ok(5));
    }
}

/// An unmapped page and the null page: SIGSEGV with the code for no mapping.
#[test]
fn unmapped_pages_say_so() {
    let pages = Pages::map(1, None);
    let word = pages.word(24);
    // SAFETY: no object is there.
    unsafe { access::store_u64(word, 1) }.unwrap();
    drop(pages);
    all_meet(segv(SEGV_MAPERR, word), word);
    all_meet(segv(SEGV_MAPERR, ptr::null()), ptr::null_mut());
}

/// An address that x86-64 cannot translate: the signal has no address.
#[cfg(target_arch = "x86_64")]
#[test]
fn an_address_may_be_none() {
    let none = ptr::without_provenance_mut(0x8000_0000_0000_0000);
    all_meet(segv(linux_raw_sys::general::SI_KERNEL, ptr::null()), none);
}

/// Past the end of a file: SIGBUS. Bytes before the end are accessed, and are the file's.
#[test]
fn past_the_end_of_a_file() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE as u64).unwrap();
    let pages = Pages::map(2, Some(&file));
    // SAFETY: no object is there.
    unsafe { access::store_u64(pages.word(PAGE - 8), 0x0102) }.unwrap();
    all_meet(bus(BUS_ADRERR, pages.word(PAGE)), pages.word(PAGE));
    // The file grows, and the same address can be accessed.
    file.set_len(2 * PAGE as u64).unwrap();
    // SAFETY: no object is there.
    assert_eq!(unsafe { access::load_u64(pages.word(PAGE)) }, Ok(0));
}

/// A word that is not aligned is refused before it is accessed, on every processor.
#[test]
fn words_are_aligned() {
    let pages = Pages::map(1, None);
    let at = pages.word(4);
    // SAFETY: no object is there.
    unsafe {
        assert_eq!(access::load_u64(at), Err(bus(BUS_ADRALN, at)));
        assert_eq!(access::store_u64(at, 1), Err(bus(BUS_ADRALN, at)));
        assert_eq!(access::fetch_add_u64(at, 1), Err(bus(BUS_ADRALN, at)));
        assert_eq!(access::load_u64(pages.word(0)), Ok(0));
    }
}

/// Ranges that run into a forbidden page: all bytes before it are accessed, and no others.
#[test]
fn ranges_tell_how_far_they_came() {
    let pages = Pages::map(2, None);
    let wall = pages.word(PAGE);
    pages.protect(1, MprotectFlags::empty());
    for before in 0..20 {
        let at = pages.byte(PAGE - before);
        let expected = Err(Interrupted { done: before, signal: segv(SEGV_ACCERR, wall) });
        let mut back = [0xee; 32];
        // SAFETY: no object is there.
        unsafe {
            assert_eq!(access::write(at, &[before as u8; 32]), expected);
            assert_eq!(access::read(at, &mut back), expected);
        }
        assert!(back[..before].iter().all(|byte| *byte == before as u8), "{before}");
        assert!(back[before..].iter().all(|byte| *byte == 0xee), "{before}");
    }
}

/// The messages of signals.
#[test]
fn signals_have_names() {
    let signal = segv(SEGV_ACCERR, ptr::without_provenance(0x1000));
    assert!(signal.is_segv() && !signal.is_bus());
    assert_eq!(signal.to_string(), "SIGSEGV (SEGV_ACCERR) at 0x1000");
    let signal = bus(BUS_ADRERR, ptr::without_provenance(0x2000));
    assert!(signal.is_bus() && !signal.is_segv());
    assert_eq!(signal.to_string(), "SIGBUS (BUS_ADRERR) at 0x2000");
    assert_eq!(bus(77, ptr::null()).to_string(), "SIGBUS (code 77) at 0x0");
    let interrupted = Interrupted { done: 3, signal };
    assert_eq!(interrupted.to_string(), "interrupted after 3 bytes");
    assert_eq!(interrupted.source().unwrap().to_string(), signal.to_string());
}

/// Threads that receive signals at the same time: each gets its own, and no addition is lost or done twice.
#[test]
fn many_threads_at_once() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 2000;
    let shared = Pages::map(1, None);
    // Each thread has a page that is always forbidden. All share a page that is forbidden at times.
    let (walls, door) = (Pages::map(THREADS, None), Pages::map(1, None));
    (0..THREADS).for_each(|page| walls.protect(page, MprotectFlags::empty()));
    let done = AtomicUsize::new(0);
    let passed = AtomicU64::new(0);
    thread::scope(|scope| {
        for i in 0..THREADS {
            let (shared, walls, door, done, passed) = (&shared, &walls, &door, &done, &passed);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let wall = walls.word(i * PAGE + round % 512 * 8);
                    // SAFETY: no object is there.
                    unsafe {
                        assert_eq!(access::load_u64(wall), Err(segv(SEGV_ACCERR, wall)));
                        access::fetch_add_u64(shared.word(0), 1).unwrap();
                        match access::fetch_add_u64(door.word(0), 1) {
                            Ok(_) => _ = passed.fetch_add(1, Relaxed),
                            Err(signal) => assert_eq!(signal, segv(SEGV_ACCERR, door.word(0))),
                        }
                    }
                }
                done.fetch_add(1, Relaxed);
            });
        }
        while done.load(Relaxed) < THREADS {
            door.protect(0, MprotectFlags::empty());
            thread::yield_now();
            door.protect(0, MprotectFlags::READ | MprotectFlags::WRITE);
            thread::yield_now();
        }
    });
    // SAFETY: no object is there.
    unsafe {
        assert_eq!(access::load_u64(shared.word(0)), Ok((THREADS * ROUNDS) as u64));
        assert_eq!(access::load_u64(door.word(0)), Ok(passed.into_inner()));
    }
}

const CHILD: &str = "FAULTLESS_ACCESS_CHILD";

/// Runs a test of this file alone in a child process, where `child` is run in place of the rest of the test. Returns
/// the child's output in the parent, `None` in the child.
fn in_child(test: &str, child: impl FnOnce()) -> Option<Output> {
    if std::env::var_os(CHILD).is_none() {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output();
        return Some(output.unwrap());
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: sets a limit of this process, so that it leaves no core file.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, 0);
    child();
    None
}

/// Asserts that the child completed its test.
fn assert_well(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

/// Asserts that the child printed "first", and died by `signal` before it printed "then".
fn assert_died(output: &Output, signal: c_int) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(signal), "{output:?}");
    assert!(text.contains("first") && !text.contains("then"), "{output:?}");
}

/// Makes an ordinary access, whose signal is not caught.
fn stray(at: *const u64) -> u64 {
    // SAFETY: no object is there; the load succeeds, or the process gets a signal.
    unsafe { at.read_volatile() }
}

/// Makes an access that returns its signal. From here on the handler is installed.
fn caught() {
    let pages = Pages::forbidden();
    let word = pages.word(0);
    // SAFETY: no object is there.
    assert_eq!(unsafe { access::load_u64(word) }, Err(segv(SEGV_ACCERR, word)));
}

fn set_action(signal: c_int, handler: usize, flags: c_int, blocked: &[c_int]) {
    // SAFETY: a whole structure, and a handler of the type that the flags name.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        for signal in blocked {
            libc::sigaddset(&raw mut action.sa_mask, *signal);
        }
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

/// A wild pointer in other code still kills the process after the handler was installed.
#[test]
fn a_wild_pointer_kills() {
    let output = in_child("a_wild_pointer_kills", || {
        caught();
        eprintln!("first");
        // Close to null; debug builds would detect null itself.
        stray(ptr::without_provenance(8));
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGSEGV));
}

/// The default action is still done: for SIGBUS, and if it replaced the action of Rust's runtime.
#[test]
fn the_default_action_is_done() {
    let output = in_child("the_default_action_is_done", || {
        set_action(SIGBUS, libc::SIG_DFL, 0, &[]);
        caught();
        let file = tempfile::tempfile().unwrap();
        let pages = Pages::map(1, Some(&file));
        eprintln!("first");
        stray(pages.word(0));
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGBUS));
}

/// The default action is done for a sent signal, although such a signal does not come again by itself.
#[test]
fn the_default_action_is_done_of_sent_signals() {
    let output = in_child("the_default_action_is_done_of_sent_signals", || {
        set_action(SIGSEGV, libc::SIG_DFL, 0, &[]);
        caught();
        eprintln!("first");
        // SAFETY: may end the process.
        unsafe { libc::raise(SIGSEGV) };
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGSEGV));
}

/// The default action is done for memory that broke while no thread accessed it.
#[test]
fn the_default_action_is_done_of_broken_memory() {
    let output = in_child("the_default_action_is_done_of_broken_memory", || {
        set_action(SIGBUS, libc::SIG_DFL, 0, &[]);
        caught();
        eprintln!("first");
        // SAFETY: a whole structure, which the kernel copies. A thread may queue any signal to itself.
        unsafe {
            let mut info: siginfo_t = MaybeUninit::zeroed().assume_init();
            info.si_code = libc::BUS_MCEERR_AO;
            let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, SIGBUS, &raw mut info);
        }
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGBUS));
}

/// With SIG_IGN a sent signal is ignored. A signal that an instruction raises cannot be ignored.
#[test]
fn ignored_signals_are_ignored() {
    let output = in_child("ignored_signals_are_ignored", || {
        set_action(SIGSEGV, libc::SIG_IGN, 0, &[]);
        caught();
        // SAFETY: may end the process.
        unsafe { libc::raise(SIGSEGV) };
        eprintln!("first");
        stray(ptr::without_provenance(8));
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGSEGV));
}

/// Rust's own handler, which was there before, still detects a full stack.
#[test]
fn a_full_stack_is_told() {
    #[expect(unconditional_recursion)]
    fn deeper(frame: &[u64; 64]) -> u64 {
        let mine = [frame[0] + 1; 64];
        deeper(black_box(&mine)) + mine[1]
    }
    let output = in_child("a_full_stack_is_told", || {
        caught();
        eprintln!("first");
        deeper(&[0; 64]);
    });
    output.iter().for_each(|output| {
        assert_died(output, libc::SIGABRT);
        assert!(String::from_utf8_lossy(&output.stderr).contains("has overflowed its stack"), "{output:?}");
    });
}

/// The limit that the module states: the kernel delivers no blocked fault.
#[test]
fn blocked_signals_kill() {
    let output = in_child("blocked_signals_kill", || {
        caught();
        let mut set = MaybeUninit::uninit();
        // SAFETY: changes this thread's mask.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGSEGV);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        }
        eprintln!("first");
        caught();
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGSEGV));
}

/// The number of calls of this file's handlers.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// The page that handlers make accessible.
static BROKEN: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// Whether SIGSEGV and SIGUSR1 were blocked in the last call.
static BLOCKED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

extern "C" fn mend(signal: c_int) {
    CALLS.fetch_add(1, Relaxed);
    let mut set = MaybeUninit::uninit();
    // SAFETY: reads this thread's mask; no object is in the page.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr());
        BLOCKED[0].store(libc::sigismember(set.as_ptr(), signal) == 1, Relaxed);
        BLOCKED[1].store(libc::sigismember(set.as_ptr(), libc::SIGUSR1) == 1, Relaxed);
        mm::mprotect(BROKEN.load(Relaxed).cast(), PAGE, MprotectFlags::READ).unwrap();
    }
}

extern "C" fn mend_told(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments that the kernel gives to a handler with SA_SIGINFO.
    let (number, code, address) = unsafe { ((*info).si_signo, (*info).si_code, (*info).si_addr()) };
    let told = number == signal && code == SEGV_ACCERR as i32 && !context.is_null();
    if told && address.addr() == BROKEN.load(Relaxed).addr() + 8 {
        mend(signal);
    }
}

/// Forbids a page and accesses it by an ordinary load. `mend` must be called exactly once for that.
fn stray_is_mended() {
    let (pages, calls) = (Pages::forbidden(), CALLS.load(Relaxed));
    BROKEN.store(pages.start, Relaxed);
    assert_eq!(stray(pages.word(8)), 0);
    assert_eq!(CALLS.load(Relaxed), calls + 1);
}

fn blocked() -> [bool; 2] {
    [BLOCKED[0].load(Relaxed), BLOCKED[1].load(Relaxed)]
}

/// An earlier handler is called with the kernel's arguments each time, and not for accesses.
#[test]
fn handlers_before_are_told() {
    let output = in_child("handlers_before_are_told", || {
        set_action(SIGSEGV, mend_told as *const () as usize, libc::SA_SIGINFO, &[libc::SIGUSR1]);
        caught();
        assert_eq!(CALLS.load(Relaxed), 0);
        stray_is_mended();
        assert_eq!(blocked(), [true, true]);
        caught();
        stray_is_mended();
        assert_eq!(CALLS.load(Relaxed), 2);
    });
    output.iter().for_each(assert_well);
}

/// The same for a handler without SA_SIGINFO, whose signal is not blocked.
#[test]
fn plain_handlers_before_are_called() {
    let output = in_child("plain_handlers_before_are_called", || {
        set_action(SIGSEGV, mend as *const () as usize, libc::SA_NODEFER, &[]);
        caught();
        stray_is_mended();
        assert_eq!(blocked(), [false, false]);
        caught();
        stray_is_mended();
    });
    output.iter().for_each(assert_well);
}

/// A handler for one call (SA_RESETHAND) is called once. Accesses are caught before and after that.
#[test]
fn handlers_for_once_are_called_once() {
    let output = in_child("handlers_for_once_are_called_once", || {
        set_action(SIGSEGV, mend as *const () as usize, libc::SA_RESETHAND, &[]);
        caught();
        stray_is_mended();
        caught();
        eprintln!("first");
        stray_is_mended();
        eprintln!("then");
    });
    output.iter().for_each(|output| assert_died(output, SIGSEGV));
}

extern "C" fn count(_: c_int) {
    CALLS.fetch_add(1, Relaxed);
}

/// Signals that are sent while accesses run do not belong to them: the earlier handler gets them, and each access
/// succeeds.
#[test]
fn sent_signals_are_no_access_s() {
    let output = in_child("sent_signals_are_no_access_s", || {
        set_action(SIGSEGV, count as *const () as usize, 0, &[]);
        set_action(SIGBUS, count as *const () as usize, 0, &[]);
        caught();
        let pages = Pages::map(64, None);
        // SAFETY: the caller's own number.
        let this = unsafe { libc::pthread_self() };
        let sender = thread::spawn(move || {
            for round in 0..5000 {
                let signal = if round % 2 == 0 { SIGSEGV } else { SIGBUS };
                // SAFETY: that thread waits for this one, so it still exists.
                assert_eq!(unsafe { libc::pthread_kill(this, signal) }, 0);
                thread::yield_now();
            }
        });
        while !sender.is_finished() {
            for page in 0..pages.count {
                // SAFETY: no object is there.
                assert_eq!(unsafe { access::fetch_add_u64(pages.word(page * PAGE), 1) }, Ok(0));
            }
            // The next accesses fault again: a signal that is sent during a fault finds the thread at its access.
            // SAFETY: no object is there.
            unsafe { mm::madvise(pages.start.cast(), pages.count * PAGE, Advice::LinuxDontNeed) }.unwrap();
        }
        sender.join().unwrap();
        assert!(CALLS.load(Relaxed) > 0);
    });
    output.iter().for_each(assert_well);
}
