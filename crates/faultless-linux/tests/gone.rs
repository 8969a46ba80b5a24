//! The end of a region that threads still use. This test is alone in its process, so that nothing else maps memory at
//! the region's former addresses.

use faultless::address::PAGE_SIZE;
use faultless::store::{FileStore, GatedStore};
use faultless_linux::{OpenError, Options, Pager, access};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: usize = PAGE_SIZE as usize;

#[test]
fn a_region_may_go_while_faults_are_in_flight() {
    let pager = match Pager::new(Options { memory: 1 << 20, ..Options::default() }) {
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            return;
        }
        pager => pager.expect("a pager"),
    };
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&[1; 16 * PAGE]).expect("pages written");
    let gate = Arc::new(GatedStore::new(FileStore::from_file(file).expect("a store")));
    let region = pager.store(gate.clone()).expect("a region");
    let start = region.as_ptr() as usize;
    let readers: Vec<_> = (0..4)
        .map(|page| {
            // SAFETY: an address that was a region's; no Rust object lives there.
            std::thread::spawn(move || unsafe { access::load_u8((start + page * PAGE) as *const u8) })
        })
        .collect();
    gate.wait_for(4);
    drop(region);
    for reader in readers {
        assert!(reader.join().expect("no panic").expect_err("nothing is there").is_segv());
    }
    gate.open();
    let deadline = Instant::now() + Duration::from_secs(10);
    while pager.engine().frame_usage().used != 1 && Instant::now() < deadline {
        std::thread::yield_now(); // the reads under way hold their frames until they complete
    }
    assert_eq!(pager.engine().frame_usage().used, 1, "frames are left");
}
