//! A Linux process passes the conformance checks of a host.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod child;

use child::{ends, skipped};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::host::conformance::{Rig, check};
use faultless::{AddressSpace, Engine};
use faultless_linux::{Linux, OpenError, Options, Pager, Serving, access};
use std::sync::Arc;

struct Process;

fn options(frames: u64) -> Options {
    Options { memory: frames * PAGE_SIZE, window: 64 << 20, ..Options::default() }
}

impl Rig for Process {
    type Host = Linux;
    type Process = Serving;

    fn engine(&self, frames: u64) -> Arc<Engine<Linux>> {
        Pager::new(options(frames)).unwrap().engine().clone()
    }

    fn process(&self, space: AddressSpace<Linux>) -> Serving {
        Serving::of(&space).unwrap()
    }

    fn space<'a>(&self, process: &'a Serving) -> &'a AddressSpace<Linux> {
        process.space()
    }

    fn load(&self, process: &Serving, address: VirtAddr) -> Option<u64> {
        let at = process.pointer(address)?;
        // SAFETY: in the window of a served space, where an access ends with a signal at worst.
        unsafe { access::load_u64(at.cast()) }.ok()
    }

    fn store(&self, process: &Serving, address: VirtAddr, value: u64) -> bool {
        let Some(at) = process.pointer(address) else { return false };
        // SAFETY: as above; nothing in this process has a reference into the window.
        unsafe { access::store_u64(at.cast(), value) }.is_ok()
    }
}

#[test]
fn a_linux_process_is_a_host() {
    ends("a_linux_process_is_a_host", || match Pager::new(options(64)) {
        Ok(_) => check(&Process),
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => skipped(&error),
        Err(error) => panic!("{error}"),
    });
}
