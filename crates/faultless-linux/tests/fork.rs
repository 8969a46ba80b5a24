//! fork(2) of a process with a pager: calls in the child return an error, and the parent is not affected.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, MapRequest, Placement};
use faultless_linux::{Linux, OpenError, Options, Pager, Region, RegionError, ServeError, Serving, access};
use std::io::Write;

const PAGE: usize = PAGE_SIZE as usize;

/// Returns the process's shared pager. Returns `None`, and prints the reason, if there can be none here.
fn pager() -> Option<&'static Pager> {
    match Pager::shared() {
        Ok(pager) => Some(pager),
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            skipped(&error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns a file whose page `n` is full of `n + 1`.
fn numbered(pages: usize) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for page in 0..pages {
        file.write_all(&[page as u8 + 1; PAGE]).expect("a page written");
    }
    file
}

/// Runs `body` in a child of fork(2), and returns its wait status: 0 if it succeeded, not 0 if `body` panicked.
fn forked(body: impl FnOnce()) -> i32 {
    // SAFETY: the child runs `body` and exits, and uses no thread of its parent. This platform's allocator works in a
    // child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: makes a child that hangs end with its parent.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child, without the parent's actions at exit.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    let mut status = 0;
    // SAFETY: a child of this process, and a number to write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status
}

fn is_inherited<T>(result: Result<T, RegionError>) -> bool {
    matches!(result, Err(RegionError::Open(OpenError::Inherited)))
}

#[test]
fn every_call_of_a_child_is_a_typed_error() {
    ends("every_call_of_a_child_is_a_typed_error", || {
        let Some(pager) = pager() else { return };
        let mut region = pager.anonymous(4 * PAGE).unwrap();
        region.fill(7);
        let space: AddressSpace<Linux, Faultless> = AddressSpace::new(pager.engine()).unwrap();
        let other: AddressSpace<Linux, Faultless> = AddressSpace::new(pager.engine()).unwrap();
        let serving = Serving::of(&space).unwrap();
        let file = numbered(4);
        let ended = forked(|| {
            assert!(matches!(Pager::shared(), Err(OpenError::Inherited)));
            assert!(is_inherited(pager.anonymous(PAGE)));
            assert!(is_inherited(Region::anonymous(PAGE)));
            assert!(is_inherited(pager.file(file.try_clone().unwrap())));
            assert!(is_inherited(region.snapshot()));
            assert!(is_inherited(region.retry(..)));
            assert!(is_inherited(region.discard(..)));
            // SAFETY: the call does nothing here.
            assert!(is_inherited(unsafe { region.protect(.., Protection::READ) }));
            // SAFETY: the call does nothing here.
            assert!(is_inherited(unsafe { region.unmap(..) }));
            assert_eq!(region.refusal(0), None);
            assert_eq!(Serving::of(&other).err(), Some(ServeError::Inherited));
            assert_eq!(serving.pointer(VirtAddr::new(0)), None);
            assert!(!serving.is_there(VirtAddr::new(0), Access::Read));
            assert!(AddressSpace::<Linux, Faultless>::new(pager.engine()).is_err());
            // Dropping does nothing, and does not wait for a thread that the child does not have.
            drop((region, serving));
        });
        assert_eq!(ended, 0);
        // The parent's regions are as before.
        let region = pager.file(numbered(4)).unwrap();
        assert_eq!((region[0], region[3 * PAGE]), (1, 4));
    });
}

#[test]
fn a_parent_goes_on_while_and_after_its_child_drops_everything() {
    ends("a_parent_goes_on_while_and_after_its_child_drops_everything", || {
        let Some(_) = pager() else { return };
        let pager = Pager::new(Options { memory: 4 << 20, ..Options::default() }).unwrap();
        let mut region = pager.anonymous(8 * PAGE).unwrap();
        region.fill(7);
        let snapshot = region.snapshot().unwrap();
        let (mine, theirs) = (region.as_ptr() as usize, snapshot.as_ptr() as usize);
        let child = || {
            // The child maps its own memory at the regions' addresses.
            for start in [mine, theirs] {
                // SAFETY: the child has nothing there; otherwise the call fails.
                let place = unsafe {
                    rustix::mm::mmap_anonymous(
                        start as *mut _,
                        8 * PAGE,
                        rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                        rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::FIXED_NOREPLACE,
                    )
                };
                // SAFETY: just mapped.
                unsafe { place.unwrap().cast::<u8>().write(50) };
            }
            drop((region, snapshot));
            drop(pager);
            // SAFETY: mapped above, and still mapped.
            assert_eq!(unsafe { (mine as *const u8).read() }, 50);
        };
        // The child has copies of the parent's values, and this test drops those. The parent's values stay.
        let ended = forked(child);
        assert_eq!(ended, 0);
    });
}

#[test]
fn an_inherited_region_is_a_signal_and_its_parent_s_is_as_before() {
    ends("an_inherited_region_is_a_signal_and_its_parent_s_is_as_before", || {
        let Some(pager) = pager() else { return };
        let mut region = pager.anonymous(4 * PAGE).unwrap();
        region[0] = 1;
        let start = region.as_ptr();
        let ended = forked(|| {
            // SAFETY: addresses at which the child has nothing mapped.
            unsafe {
                assert!(access::load_u8(start).unwrap_err().is_segv());
                assert!(access::store_u8(start.wrapping_add(PAGE), 1).unwrap_err().is_segv());
            }
        });
        assert_eq!(ended, 0);
        region[PAGE] = 2;
        let snapshot = region.snapshot().unwrap();
        region[0] = 3;
        assert_eq!((region[0], region[PAGE], snapshot[0], snapshot[PAGE]), (3, 2, 1, 2));
    });
}

/// The child of a process that has a pager can make its own pager.
#[test]
fn a_child_can_have_a_pager_of_its_own() {
    ends("a_child_can_have_a_pager_of_its_own", || {
        let Some(_inherited) = pager() else { return };
        let mut region = Region::anonymous(4 * PAGE).unwrap();
        region.fill(7);
        let file = numbered(4);
        let ended = forked(|| {
            let own = Pager::new(Options { memory: 4 << 20, ..Options::default() }).unwrap();
            let mut copy = own.file(file.try_clone().unwrap()).unwrap();
            let snapshot = copy.snapshot().unwrap();
            copy[PAGE] = 9;
            assert_eq!((copy[0], copy[PAGE], snapshot[PAGE], copy[3 * PAGE]), (1, 9, 2, 4));
            let place = Placement::Fixed(VirtAddr::new(0));
            let space: AddressSpace<Linux, Faultless> = AddressSpace::new(own.engine()).unwrap();
            space.map(MapRequest::anonymous(PAGE_SIZE).at(place)).unwrap();
            drop((copy, snapshot, space));
            own.engine().flush();
            assert_eq!(own.engine().frame_usage().used, 1);
        });
        assert_eq!(ended, 0);
        assert!(region.iter().all(|byte| *byte == 7));
    });
}
