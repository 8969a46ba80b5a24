//! The bytes that memory must have.

use crate::{Failure, Space};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless_soft::Cpu;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Whether a byte was wrong, in a process that was killed too.
static WRONG: AtomicBool = AtomicBool::new(false);

/// Returns whether something was wrong so far.
pub fn was_wrong() -> bool {
    WRONG.load(Ordering::SeqCst)
}

/// Notes that the engine has broken its contract. The run fails, even if a process was being killed.
pub fn wrong(text: String) -> Failure {
    eprintln!("WRONG: {text}");
    WRONG.store(true, Ordering::SeqCst);
    text.into()
}

/// Returns the bytes of a page of the file that is only read.
pub fn page_of(page: u64) -> Vec<u8> {
    (0..PAGE_SIZE / 8).flat_map(|word| (page << 16 | word).to_le_bytes()).collect()
}

/// Returns the bytes that a thread stores. Some pages compress well, and others do not. Stamp 0 stands for zeros.
pub fn bytes_of(stamp: u64, length: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; length as usize];
    }
    let mut numbers = Rng::with_seed(stamp);
    let fixed = numbers.u64(..);
    let is_noise = is_noise(stamp);
    (0..length / 8).flat_map(|_| (if is_noise { numbers.u64(..) } else { fixed }).to_le_bytes()).collect()
}

fn is_noise(stamp: u64) -> bool {
    (stamp / 64).is_multiple_of(4)
}

/// Checks that `bytes` are those of one of `stamps`. Returns the stamp.
pub fn compare(place: &str, bytes: &[u8], stamps: &[u64]) -> Result<u64, Failure> {
    if let Some(stamp) = stamps.iter().find(|stamp| bytes == bytes_of(**stamp, bytes.len() as u64)) {
        return Ok(*stamp);
    }
    let expected = bytes_of(stamps[0], bytes.len() as u64);
    let offset = bytes.iter().zip(&expected).position(|(is, should)| is != should).unwrap_or(0);
    let (is, should) = (bytes[offset], expected[offset]);
    let failure =
        wrong(format!("{place} + {offset} has byte {is:#x} instead of {should:#x}; stamps {stamps:?}"));
    eprintln!("WRONG: {place}: {}", whose(bytes));
    Err(failure)
}

/// The number of stamps that a thread has used at most. It bounds the search of [`whose`].
static MOST_STAMPS: AtomicU64 = AtomicU64::new(0);
/// The number of threads that have stamps.
static THREADS: AtomicU64 = AtomicU64::new(0);

/// Returns stamp `number` of a thread, and notes that it is used. `number` begins with 1.
pub fn stamp(thread: u64, number: u64) -> u64 {
    THREADS.fetch_max(thread + 1, Ordering::Relaxed);
    MOST_STAMPS.fetch_max(number, Ordering::Relaxed);
    (thread << 40) + number * 64
}

/// Describes the words of a page that has wrong bytes: the runs of words that one store has left, and which store it was.
fn whose(bytes: &[u8]) -> String {
    let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (threads, most) = (THREADS.load(Ordering::Relaxed), MOST_STAMPS.load(Ordering::Relaxed));
    let wanted: HashSet<u64> = words.iter().copied().filter(|word| *word != 0).collect();
    let mut names = HashMap::new();
    for (thread, number) in (0..threads).flat_map(|thread| (1..=most).map(move |number| (thread, number))) {
        let stamp = (thread << 40) + number * 64;
        let mut numbers = Rng::with_seed(stamp);
        let different = if is_noise(stamp) { PAGE_SIZE / 8 + 1 } else { 1 };
        for word in (0..different).map(|_| numbers.u64(..)).filter(|word| wanted.contains(word)) {
            names.insert(word, (thread, number));
        }
    }
    let mut runs: Vec<(String, usize, usize)> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let name = match (names.get(word), *word) {
            (Some((thread, number)), _) => format!("store {number} of thread {thread}"),
            (None, 0) => "zeros".to_string(),
            (None, 0xaaaa_aaaa_aaaa_aaaa) => "bytes that were not read".to_string(),
            (None, 0xa5a5_a5a5_a5a5_a5a5) => "bytes of a free page".to_string(),
            (None, _) => format!("unknown, as {word:#x}"),
        };
        match runs.last_mut().filter(|run| run.0 == name || (run.0.starts_with('u') && name.starts_with('u')))
        {
            Some(run) => run.2 = at,
            None => runs.push((name, at, at)),
        }
    }
    let texts: Vec<String> =
        runs.iter().map(|(name, first, last)| format!("words {first} to {last}: {name}")).collect();
    texts.join(", ")
}

/// Checks that the `length` bytes at `at` are those of `stamp`.
pub fn check(space: &Space, at: VirtAddr, length: u64, stamp: u64) -> Result<(), Failure> {
    check_any(space, at, length, &[stamp]).map(|_| ())
}

/// Checks that the `length` bytes at `at` are those of one of `stamps`. Returns the stamp.
pub fn check_any(space: &Space, at: VirtAddr, length: u64, stamps: &[u64]) -> Result<u64, Failure> {
    let mut bytes = vec![0xaa; length as usize];
    space.read_bytes(at, &mut bytes)?;
    compare(&at.to_string(), &bytes, stamps)
}

/// The contents of a page.
#[derive(Clone, Copy, Default)]
struct Content {
    stamp: u64,
    /// Whether the page may have become zeros since, by MADV_FREE.
    may_be_zeros: bool,
}

impl Content {
    fn stamps(self) -> [u64; 2] {
        [self.stamp, if self.may_be_zeros { 0 } else { self.stamp }]
    }
}

/// Private memory that one thread uses, and what its pages must have. Pages that were not stored to are zeros.
pub struct Own {
    pub at: VirtAddr,
    contents: HashMap<u64, Content>,
}

impl Own {
    pub fn new(at: VirtAddr) -> Self {
        Self { at, contents: HashMap::new() }
    }

    /// Returns the address of a page.
    pub fn page(&self, page: u64) -> VirtAddr {
        at_page(self.at, page)
    }

    fn content(&self, page: u64) -> Content {
        self.contents.get(&page).copied().unwrap_or_default()
    }

    /// Notes that the page has been stored to.
    pub fn set(&mut self, page: u64, stamp: u64) {
        self.contents.insert(page, Content { stamp, may_be_zeros: false });
    }

    /// Notes that the page may be dropped.
    pub fn free(&mut self, page: u64) {
        if let Some(content) = self.contents.get_mut(&page) {
            content.may_be_zeros = true;
        }
    }

    /// Notes that the page has become zeros.
    pub fn clear(&mut self, page: u64) {
        self.contents.remove(&page);
    }

    /// Checks the page at `at`, where it is at the moment. Returns whether it has become zeros since the last check.
    pub fn check_at(&mut self, space: &Space, page: u64, at: VirtAddr) -> Result<bool, Failure> {
        let content = self.content(page);
        let stamp = check_any(space, at, PAGE_SIZE, &content.stamps())?;
        let is_gone = stamp != content.stamp;
        if is_gone {
            self.clear(page);
        }
        Ok(is_gone)
    }

    /// Checks the page in another space, which got it by fork.
    pub fn check_in_child(&self, child: &Space, page: u64) -> Result<(), Failure> {
        check_any(child, self.page(page), PAGE_SIZE, &self.content(page).stamps()).map(|_| ())
    }

    /// Checks `bytes`, which were read from the page.
    pub fn compare(&self, page: u64, bytes: &[u8]) -> Result<(), Failure> {
        compare(&self.page(page).to_string(), bytes, &self.content(page).stamps()).map(|_| ())
    }
}

/// Returns the address of page `page` of the memory at `at`.
pub fn at_page(at: VirtAddr, page: u64) -> VirtAddr {
    VirtAddr::new(at.get() + page * PAGE_SIZE)
}
