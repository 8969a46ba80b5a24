//! A program's signal handler touches a region while its thread is inside a call of that region.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::PAGE_SIZE;
use faultless::protection::Protection;
use faultless_linux::{OpenError, Options, Pager, access};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

const PAGE: usize = PAGE_SIZE as usize;
const PAGES: usize = 32;

/// The region's first byte, for the signal handler.
static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static NEXT: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// Stores into a page of the region, as a profiler or a garbage collector might. Accesses are async-signal-safe.
extern "C" fn touch(_: libc::c_int) {
    let page = NEXT.fetch_add(1, Ordering::Relaxed) % PAGES;
    let at = START.load(Ordering::Relaxed).wrapping_add(page * PAGE);
    // SAFETY: the region's own memory, into which there are no references. It may be protected, which gives a signal.
    let _ = unsafe { access::store_u8(at, 1) };
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_signal_handler_touches_the_region_that_its_thread_changes() {
    ends("a_signal_handler_touches_the_region_that_its_thread_changes", || {
        let pager = match Pager::new(Options { memory: 4 << 20, ..Options::default() }) {
            Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
                return skipped(&error);
            }
            pager => pager.expect("a pager"),
        };
        let region = pager.anonymous(PAGES * PAGE).unwrap();
        START.store(region.as_ptr(), Ordering::Relaxed);
        // SAFETY: the region's own memory. The first access installs the handler of SIGSEGV.
        unsafe { access::store_u8(region.as_ptr(), 1) }.unwrap();
        // SAFETY: a whole structure, and a handler of the right type.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
        let changer = std::thread::spawn(move || {
            let all = Protection::READ | Protection::WRITE;
            for _ in 0..2_000 {
                // SAFETY: there are no references into the region.
                unsafe {
                    region.protect(..PAGES / 2 * PAGE, Protection::READ).unwrap();
                    region.protect(..PAGES / 2 * PAGE, all).unwrap();
                    region.discard_shared(..).unwrap();
                }
                drop(region.snapshot().unwrap());
            }
            region
        });
        while !changer.is_finished() {
            // SAFETY: a thread that has not been joined.
            assert_eq!(unsafe { libc::pthread_kill(changer.as_pthread_t(), libc::SIGUSR1) }, 0);
            std::thread::yield_now();
        }
        drop(changer.join().expect("no panic"));
        assert_ne!(HANDLED.load(Ordering::Relaxed), 0);
    });
}
