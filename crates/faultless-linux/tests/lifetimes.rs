//! Regions and pagers that end, are forked or are pinned at a critical moment.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, MapRequest, Placement};
use faultless_linux::{Linux, OpenError, Options, Pager, Region, Serving, access};
use std::io::Write;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PAGE: usize = PAGE_SIZE as usize;
const PAGES: usize = 64;
const MANY: usize = 1024;

fn pager() -> Option<Pager> {
    pager_of(1024)
}

fn pager_of(frames: u64) -> Option<Pager> {
    match Pager::new(Options { memory: frames * PAGE_SIZE, ..Options::default() }) {
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            skipped(&error);
            None
        }
        pager => Some(pager.expect("a pager")),
    }
}

fn numbered(pages: usize) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for page in 0..pages {
        file.write_all(&[page as u8; PAGE]).expect("a page written");
    }
    file
}

fn at(region: &Region, page: usize) -> *mut u8 {
    region.as_ptr().wrapping_add(page * PAGE)
}

static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicI64 = AtomicI64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn touch(_: libc::c_int) {
    // The number of touches that fit into memory.
    if LEFT.fetch_sub(1, Ordering::Relaxed) <= 0 {
        return;
    }
    let page = NEXT.fetch_add(1, Ordering::Relaxed) % MANY;
    let at = START.load(Ordering::Relaxed).wrapping_add(page * PAGE);
    // SAFETY: the region's own memory, into which there are no references.
    unsafe { at.read_volatile() };
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Blocks the signal as long as it lives.
struct Blocked(());

impl Blocked {
    fn new() -> Self {
        mask(libc::SIG_BLOCK);
        Self(())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        mask(libc::SIG_UNBLOCK);
    }
}

fn mask(how: libc::c_int) {
    // SAFETY: a whole set, and the mask is this thread's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        assert_eq!(libc::pthread_sigmask(how, &set, std::ptr::null_mut()), 0);
    }
}

/// Checks "A signal handler may touch regions: calls of `Region`, `Pager` and `Serving` block signals while they last."
/// The end of a region of a file is such a call.
#[test]
fn a_signal_handler_touches_a_region_while_its_thread_drops_another() {
    ends("a_signal_handler_touches_a_region_while_its_thread_drops_another", || {
        let Some(pager) = pager_of(256) else { return };
        // More than fits into memory, so most faults evict.
        let region = pager.file(numbered(MANY)).unwrap();
        START.store(region.as_ptr(), Ordering::Relaxed);
        // SAFETY: the region's own memory. The first access installs the handler of SIGSEGV.
        unsafe { access::load_u8(region.as_ptr()) }.unwrap();
        // SAFETY: a whole structure, and a handler of the right type.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
        let other = numbered(PAGES);
        let changer = std::thread::spawn(move || {
            for _ in 0..300 {
                let other = {
                    // Signals can come only while the region ends.
                    let _blocked = Blocked::new();
                    // SAFETY: there are no references into the region.
                    unsafe { region.discard_shared(..) }.unwrap();
                    let other = pager.file(other.try_clone().unwrap()).unwrap();
                    (0..PAGES).for_each(|page| assert_eq!(other[page * PAGE], page as u8));
                    LEFT.store(100, Ordering::Relaxed);
                    other
                };
                drop(other);
            }
            region
        });
        while !changer.is_finished() {
            // SAFETY: a thread that has not been joined.
            assert_eq!(unsafe { libc::pthread_kill(changer.as_pthread_t(), libc::SIGUSR1) }, 0);
            (0..500).for_each(|_| std::hint::spin_loop());
        }
        changer.join().expect("no panic");
        assert_ne!(HANDLED.load(Ordering::Relaxed), 0);
    });
}

/// The child shares the page, so a pin for reading copies it; at that moment the child unmaps it. The bug that this
/// test is for was met after about 100 rounds.
#[test]
fn a_page_that_is_pinned_while_the_child_lets_go_of_it_is_not_lost() {
    ends("a_page_that_is_pinned_while_the_child_lets_go_of_it_is_not_lost", || {
        let Some(pager) = pager() else { return };
        let space: AddressSpace<Linux, Faultless> = AddressSpace::new(pager.engine()).unwrap();
        let serving = Serving::of(&space).unwrap();
        let at = |page: usize| VirtAddr::new(page as u64 * PAGE_SIZE);
        let place = |page| serving.pointer(at(page)).unwrap();
        let all = (PAGES * PAGE) as u64;
        let begun = Instant::now();
        for round in (0..).take_while(|_| begun.elapsed() < Duration::from_secs(15)) {
            space.map(MapRequest::anonymous(all).at(Placement::Fixed(at(0)))).unwrap();
            // SAFETY: the space's own memory.
            (0..PAGES).for_each(|page| unsafe { access::store_u8(place(page), 7) }.unwrap());
            space.protect(at(0), all, Protection::READ).unwrap();
            let child = space.fork().unwrap();
            let turn = AtomicUsize::new(0);
            let mut wrong = None;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for page in 0..PAGES {
                        while turn.load(Ordering::Acquire) <= page {
                            std::hint::spin_loop();
                        }
                        (0..(round * 7 + page * 13) % 1200).for_each(|_| std::hint::spin_loop());
                        child.unmap(at(page), PAGE_SIZE).unwrap();
                    }
                });
                for page in 0..PAGES {
                    turn.store(page + 1, Ordering::Release);
                    (0..page * 29 % 600).for_each(|_| std::hint::spin_loop());
                    let mut byte = [0];
                    let read = space.pin(at(page), Access::Read).unwrap().read(0, &mut byte);
                    // SAFETY: the space's own memory.
                    let seen = unsafe { access::load_u8(place(page)) };
                    if (read, byte, seen) != (1, [7], Ok(7)) {
                        wrong = wrong.or(Some((page, read, byte, seen)));
                    }
                }
            });
            assert_eq!(
                wrong, None,
                "round {round}: (page, bytes read by the pin, the byte, the program's load)"
            );
        }
    });
}

/// A child of fork(2) that calls for the shared pager gets `Inherited` or a pager of its own, even if another thread of
/// the parent was making it at the time of the fork.
#[test]
fn a_child_forked_while_the_shared_pager_is_made_does_not_wait_for_ever() {
    ends("a_child_forked_while_the_shared_pager_is_made_does_not_wait_for_ever", || {
        if pager().is_none() {
            return;
        }
        let hung = (0..200_u32).find(|round| {
            in_child(|| {
                let making = std::thread::spawn(|| drop(Pager::shared()));
                (0..round % 40 * 1_000).for_each(|_| std::hint::spin_loop());
                let is_hung = in_child(|| {
                    // SAFETY: ends the child if it waits.
                    unsafe { libc::alarm(2) };
                    drop(Pager::shared());
                    false
                });
                let _ = making.join();
                is_hung
            })
        });
        assert_eq!(hung, None, "the child of that round waits for a thread that it does not have");
    });
}

/// Checks "dropping does nothing" in a child of fork(2). A fully unmapped region holds the last handle of its file.
/// Dropping that would drop the store, which ends threads that the child does not have.
#[test]
fn a_child_drops_a_region_all_of_which_was_unmapped() {
    ends("a_child_drops_a_region_all_of_which_was_unmapped", || {
        let Some(pager) = pager() else { return };
        let region = pager.file(numbered(PAGES)).unwrap();
        // SAFETY: the region's own memory.
        assert_eq!(unsafe { access::load_u8(at(&region, 3)) }, Ok(3));
        // SAFETY: there are no references into the region.
        unsafe { region.unmap(..) }.unwrap();
        pager.engine().flush();
        let mut region = Some(region);
        let fails = in_child(|| {
            // SAFETY: ends the child if it waits.
            unsafe { libc::alarm(5) };
            drop(region.take());
            false
        });
        assert!(!fails, "the child's drop panics, or waits");
    });
}

/// Runs `body` in a child of fork(2). Returns `true` if `body` returned `true` or did not return.
fn in_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child exits below.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let says = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child.
        unsafe { libc::_exit(says.map_or(101, i32::from)) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status != 0
}
