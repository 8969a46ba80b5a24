//! Short-lived regions, which end while a thread reads them.

use super::stamp::{Formula, WORDS, Words};
use super::watchdog::{Doing, Progress};
use super::{End, PAGE, Random, Shared, count};
use faultless::store::GatedStore;
use faultless_linux::{Region, access};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const PAGES: usize = 32;

/// The way in which a region ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is dropped.
    Drop,
    /// Its first half is unmapped, then it is dropped.
    Unmap,
    /// It is dropped while its pages are being read from the file.
    InFlight,
}

/// The data by which the reader checks the region.
struct Scene {
    start: usize,
    way: Way,
    /// The contents of the pages.
    expected: Vec<Words>,
    /// Once set, a signal is a correct result. Atomic; written by the disturber.
    going: AtomicBool,
    /// Once set, a signal is the only correct result, unless another mapping has the addresses by now.
    gone: AtomicBool,
}

pub fn run(shared: &Shared, random: &mut Random, progress: &Progress, helper: &Progress) -> Result<(), End> {
    progress.begin(Doing::BriefRegion, 0, 0);
    let way = [Way::Drop, Way::Drop, Way::Unmap, Way::InFlight][random.below(4)];
    let of_file = way == Way::InFlight || random.permille(300);
    let gate = Arc::new(GatedStore::new(Arc::clone(&shared.store)));
    if way != Way::InFlight {
        gate.open();
    }
    let region = if of_file {
        shared.pager.store(Arc::clone(&gate) as Arc<_>)
    } else {
        shared.pager.anonymous(PAGES * PAGE)
    };
    let region = region.map_err(|error| End::Wrong(format!("a short-lived region: {error}")))?;
    let pages = PAGES.min(region.len() / PAGE);
    let expected = contents(shared, &region, of_file, pages, random)?;
    let scene = Scene {
        start: region.as_ptr().addr(),
        way,
        expected,
        going: AtomicBool::new(false),
        gone: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let read = scene.read(shared, helper);
            helper.end();
            read
        });
        if way == Way::InFlight {
            gate.wait_for(1);
        } else if random.permille(700) {
            std::thread::sleep(std::time::Duration::from_micros(random.below(200) as u64));
        }
        scene.going.store(true, SeqCst);
        if way == Way::Unmap {
            // SAFETY: there are no references into the region.
            let unmapped = unsafe { region.unmap(..pages / 2 * PAGE) };
            unmapped.map_err(|error| End::Wrong(format!("unmap: {error}")))?;
            // SAFETY: as above.
            let still = unsafe { access::load_u64(region.as_ptr().cast()) };
            if !still.is_err_and(access::Signal::is_segv) {
                return Err(End::Wrong(
                    "page 0 of a short-lived region: an access succeeds after unmap".into(),
                ));
            }
        }
        drop(region);
        scene.gone.store(true, SeqCst);
        reader.join().unwrap_or(Err(End::Halted))
    })?;
    gate.open();
    count(&shared.counts.brief, 1);
    Ok(())
}

/// Writes to the region unless it is a file's, and returns the contents of all pages.
fn contents(
    shared: &Shared,
    region: &Region,
    of_file: bool,
    pages: usize,
    random: &mut Random,
) -> Result<Vec<Words>, End> {
    if of_file {
        return Ok((0..pages).map(|page| shared.arenas[1].formula.base(page as u32)).collect());
    }
    let own = Formula { seed: random.next(), file: false };
    let page = |page: usize| {
        if page.is_multiple_of(2) {
            return Ok([0; WORDS]);
        }
        let words = own.stamps(page as u32, 1, Default::default());
        for (word, value) in words.iter().enumerate() {
            // SAFETY: the region's own memory, into which there are no references.
            unsafe { access::store_u64(region.as_ptr().wrapping_add(page * PAGE + word * 8).cast(), *value) }
                .map_err(|signal| {
                    End::Wrong(format!("page {page} of a short-lived region, byte {}: {signal}", word * 8))
                })?;
        }
        Ok(words)
    };
    (0..pages).map(page).collect()
}

impl Scene {
    /// Reads until the region ends.
    fn read(&self, shared: &Shared, helper: &Progress) -> Result<(), End> {
        let wrong =
            |page: usize, text: String| Err(End::Wrong(format!("page {page} of a short-lived region{text}")));
        for page in (0..self.expected.len()).cycle() {
            helper.begin(Doing::BriefRegion, 0, page);
            for word in 0..WORDS {
                let gone = self.gone.load(SeqCst);
                let at = std::ptr::without_provenance(self.start + page * PAGE + word * 8);
                // SAFETY: addresses that were a region's; no Rust object is read.
                let found = unsafe { access::load_u64(at) };
                let going = self.going.load(SeqCst);
                match found {
                    Err(signal) if signal.is_segv() && going => {
                        count(&shared.counts.signals, 1);
                        // The second half is still mapped.
                        if self.way == Way::Unmap && page < self.expected.len() / 2 && !gone {
                            break;
                        }
                        return Ok(());
                    }
                    Err(signal) => return wrong(page, format!(", byte {}: {signal}", word * 8)),
                    // Another mapping has the addresses now.
                    Ok(_) if gone => return Ok(()),
                    Ok(found) if !going && found != self.expected[page][word] => {
                        let expected = self.expected[page][word];
                        let text =
                            format!(", byte {}: expected {expected:#018x}, found {found:#018x}", word * 8);
                        return wrong(page, text);
                    }
                    Ok(_) => {}
                }
            }
        }
        Ok(())
    }
}
