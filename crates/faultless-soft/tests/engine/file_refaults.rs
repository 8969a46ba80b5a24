//! Refaults of pages of files: pages in use come back to stay, beside a scan of a large file.

use faultless::address::PAGE_SIZE;
use faultless::stats::Counter;
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{Engine, File, FileHandle, Limits};
use faultless_soft::Soft;
use std::sync::Arc;

/// A store of many pages of zeros.
struct Zeros(u64);

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let Bytes::Read(bytes) = transfer.bytes() else { panic!("nothing is stored") };
        bytes.fill(0);
        let moved = bytes.len();
        transfer.complete(Ok(moved));
    }
}

fn read(handle: &FileHandle<Soft>, page: u64) {
    assert_eq!(handle.read_at(page * PAGE_SIZE, &mut [0; 8]), Ok(8));
}

/// A trace: a loop over 600 pages, and after each of its reads a page that is read once. There is room for 1,000 pages, so that the loop
/// fits. But each of its pages comes back later than the small queue keeps it. Without the distance of its refault it would never get
/// into the main queue, and all reads would miss.
#[test]
fn a_loop_that_fits_stays_beside_a_scan() {
    const LOOP: u64 = 600;
    const STEPS: u64 = 20 * LOOP;
    let limits = Limits { cached_pages: 1000, ..Limits::default() };
    let engine = Engine::new(Soft::new(1100).unwrap(), limits).unwrap();
    let file = File::open(&engine, Arc::new(Zeros(LOOP + STEPS))).unwrap();
    let handle = file.handle();
    let reads = || engine.statistics().get(Counter::IoReads);
    let mut misses = 0;
    for step in 0..STEPS {
        let before = reads();
        read(&handle, step % LOOP);
        if step >= STEPS / 2 {
            misses += reads() - before;
        }
        read(&handle, LOOP + step);
    }
    println!("misses of the loop: {misses} of {}", STEPS / 2);
    assert!(misses <= STEPS / 2 / 20, "{misses} of {} reads of the loop missed", STEPS / 2);
    drop((handle, file));
    assert_eq!(engine.frame_usage().used, 1);
}
