//! Results of operations, as both sides report them. Equal values are equal lines of JSON.

use super::operation::{At, IN_MEMORY};
use faultless::address::PAGE_SIZE;
use faultless::errno;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::hash::{DefaultHasher, Hasher};

/// Signal that an access received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caught {
    /// SIGSEGV or SIGBUS.
    pub number: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub at: At,
}

impl Caught {
    /// SIGSEGV, on every architecture that Linux runs on here.
    pub const SEGV: i32 = 11;
    /// SIGBUS.
    pub const BUS: i32 = 7;

    /// Returns its name in reports.
    pub fn name(&self) -> String {
        match (self.number, self.code) {
            (Self::SEGV, 1) => "SEGV_MAPERR".into(),
            (Self::SEGV, 2) => "SEGV_ACCERR".into(),
            (Self::BUS, 1) => "BUS_ADRALN".into(),
            (Self::BUS, 2) => "BUS_ADRERR".into(),
            (number, code) => format!("signal {number} code {code}"),
        }
    }
}

/// Contents of a page of the window, as a load sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// A hash of its bytes.
    #[serde(rename = "b")]
    Bytes(u64),
    /// The signal that the load of its first byte received.
    #[serde(rename = "s")]
    Signal(Caught),
}

/// Outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Success, with the loaded value or an address.
    #[serde(rename = "d")]
    Done(u64),
    /// Failure, with this error number.
    #[serde(rename = "e")]
    Error(i32),
    /// Signal that an access received.
    #[serde(rename = "s")]
    Signal(Caught),
    /// Result of reading pages: a hash of the bytes, the number of bytes, and the signal that ended the read.
    #[serde(rename = "r")]
    Read(u64, u64, Option<Caught>),
    /// The whole window: each page, and the flags of each page's mapping. The flags are zero without a mapping.
    #[serde(rename = "l")]
    Looked(Vec<Seen>, Vec<u16>),
    /// The process died, or the engine broke one of its own rules.
    #[serde(rename = "x")]
    Broken(String),
}

/// Returns Linux's name of an error.
pub fn errno_name(number: i32) -> String {
    let name = match number {
        errno::EPERM => "EPERM",
        errno::EIO => "EIO",
        errno::EBADF => "EBADF",
        errno::EAGAIN => "EAGAIN",
        errno::ENOMEM => "ENOMEM",
        errno::EACCES => "EACCES",
        errno::EFAULT => "EFAULT",
        errno::EBUSY => "EBUSY",
        errno::EEXIST => "EEXIST",
        errno::ENODEV => "ENODEV",
        errno::EINVAL => "EINVAL",
        errno::ENOSPC => "ENOSPC",
        errno::EOVERFLOW => "EOVERFLOW",
        errno::EOPNOTSUPP => "EOPNOTSUPP",
        _ => return format!("errno {number}"),
    };
    name.into()
}

impl Outcome {
    /// Result of a mremap that moved out of the window. Each side chooses its own address there.
    pub const ELSEWHERE: u64 = 1;

    /// Returns the outcome of reading `bytes` completely.
    pub fn read(bytes: &[u8]) -> Self {
        Self::Read(number_of(bytes), bytes.len() as u64, None)
    }

    /// Returns mincore's answer for the pages from `at` on, as bits of a number. Pages of files in a folder are left
    /// out, because their residency is not defined.
    pub fn resident(at: At, pages: impl IntoIterator<Item = bool>, map: &[Line]) -> Self {
        let mut bits = 0_u64;
        for (number, page) in
            (at.0 / PAGE_SIZE..).enumerate().zip(pages).filter(|(_, is_in)| *is_in).map(|(page, _)| page)
        {
            let line = map.iter().find(|line| (line.start..line.end).contains(&page));
            if line.is_some_and(|line| line.file.is_none_or(|(file, _)| file == IN_MEMORY)) {
                bits |= 1 << (number % 64);
            }
        }
        Self::Done(bits)
    }

    /// Returns the outcome as seen in a window that lies `offset` bytes lower. Addresses that calls return are not
    /// changed.
    pub fn seen_from(mut self, offset: u64) -> Self {
        let lower = |signal: &mut Caught| signal.at.0 = signal.at.0.wrapping_sub(offset);
        match &mut self {
            Self::Signal(signal) | Self::Read(_, _, Some(signal)) => lower(signal),
            Self::Looked(pages, _) => pages.iter_mut().for_each(|page| match page {
                Seen::Signal(signal) => lower(signal),
                Seen::Bytes(_) => {}
            }),
            Self::Done(_) | Self::Error(_) | Self::Read(_, _, None) | Self::Broken(_) => {}
        }
        self
    }

    /// Returns the name under which a report counts the outcome.
    pub fn class(&self) -> String {
        match self {
            Self::Done(_) | Self::Looked(..) | Self::Read(_, _, None) => "ok".into(),
            Self::Error(number) => errno_name(*number),
            Self::Signal(signal) | Self::Read(_, _, Some(signal)) => signal.name(),
            Self::Broken(_) => "broken".into(),
        }
    }
}

impl Display for Caught {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.at)
    }
}

impl Display for Seen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(number) => write!(f, "bytes #{:04x}", number & 0xffff),
            Self::Signal(signal) => f.write_str(&signal.name()),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(0) => f.write_str("0"),
            Self::Done(value) => write!(f, "{value:#x}"),
            Self::Error(number) => f.write_str(&errno_name(*number)),
            Self::Signal(signal) => signal.fmt(f),
            Self::Read(number, bytes, ended) => {
                write!(f, "{bytes} bytes #{:04x}", number & 0xffff)?;
                ended.map_or(Ok(()), |signal| write!(f, ", then {signal}"))
            }
            Self::Looked(..) => f.write_str("the window's bytes"),
            Self::Broken(what) => f.write_str(what),
        }
    }
}

/// Line of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its first page.
    #[serde(rename = "a")]
    pub start: u64,
    /// The page after its last page.
    #[serde(rename = "z")]
    pub end: u64,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    #[serde(rename = "r")]
    pub rights: u8,
    /// MAP_SHARED.
    #[serde(rename = "s")]
    pub shared: bool,
    /// The file and its first page, unless the mapping is anonymous.
    #[serde(rename = "f")]
    pub file: Option<(usize, u64)>,
}

impl Line {
    /// Returns whether `next` looks like a continuation of this line.
    pub fn goes_on_with(&self, next: &Self) -> bool {
        let file = self.file.map(|(file, first)| (file, first + self.end - self.start));
        (self.end, self.rights, self.shared, file) == (next.start, next.rights, next.shared, next.file)
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "p{}-p{} ", self.start, self.end)?;
        for (bit, letter) in [(1, 'r'), (2, 'w'), (4, 'x')] {
            write!(f, "{}", if self.rights & bit != 0 { letter } else { '-' })?;
        }
        f.write_str(if self.shared { "s" } else { "p" })?;
        self.file.map_or(Ok(()), |(file, first)| write!(f, " file{file}+{first}"))
    }
}

/// Returns the map with all neighbours merged that look alike.
pub fn merged(lines: Vec<Line>) -> Vec<Line> {
    let mut merged: Vec<Line> = Vec::with_capacity(lines.len());
    for line in lines {
        match merged.last_mut() {
            Some(last) if last.goes_on_with(&line) => last.end = line.end,
            _ => merged.push(line),
        }
    }
    merged
}

/// Step of an episode: the outcome of an operation, and the map after it if it has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step(pub Outcome, pub Option<Vec<Line>>);

/// Returns a hash of the bytes. Both sides run the same program, so they compute the same hash.
pub fn number_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Returns the contents of `file` at the start of an episode.
pub fn contents(seed: u64, file: usize, length: u64) -> Vec<u8> {
    let mut draw = super::draw::Draw::new(seed ^ (file as u64 + 1).wrapping_mul(0xa076_1d64_78bd_642f));
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while bytes.len() < length as usize {
        bytes.extend(draw.word().to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

/// Bytes of a page.
pub type Page = [u8; PAGE_SIZE as usize];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_through_json() {
        let signal = Caught { number: Caught::BUS, code: 2, at: At(0x2008) };
        let line = Line { start: 1, end: 3, rights: 5, shared: true, file: Some((1, 7)) };
        for outcome in [
            Outcome::Done(u64::MAX),
            Outcome::Error(12),
            Outcome::Read(1, 4096, Some(signal)),
            Outcome::Looked(vec![Seen::Bytes(5), Seen::Signal(signal)], vec![3]),
        ] {
            let step = Step(outcome, Some(vec![line]));
            let text = serde_json::to_string(&step).unwrap();
            assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), step);
        }
        let lower = Outcome::Signal(signal).seen_from(0x2000);
        assert_eq!(lower, Outcome::Signal(Caught { at: At(8), ..signal }));
        assert_eq!(line.to_string(), "p1-p3 r-xs file1+7");
        assert_eq!(signal.to_string(), "BUS_ADRERR at p2+0x8");
    }

    #[test]
    fn other_bytes_have_other_numbers() {
        let mut page = [0; 4096];
        let zeros = number_of(&page);
        page[4095] = 1;
        assert_ne!(number_of(&page), zeros);
        assert_ne!(number_of(&page[..4095]), zeros);
        assert_eq!(contents(1, 0, 100)[..50], contents(1, 0, 50));
        assert_ne!(contents(1, 0, 100), contents(1, 1, 100));
    }
}
