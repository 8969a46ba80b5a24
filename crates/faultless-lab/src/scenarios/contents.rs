//! The file that a scenario maps, and the check of its bytes.

use super::Settings;
use crate::native::{self, Served};
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use faultless::fault::FaultError;
use faultless::store::{DelayedStore, FileStore, OpenError, Store, StoreError};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;
/// The maximum number of bytes of a file that are mapped.
pub const MOST: u64 = 1 << 30;

/// The bytes of one page.
pub type Page = [u8; PAGE];

/// A file whose contents are known.
pub struct TestFile {
    /// The open file. It stays open for the whole run.
    file: File,
    /// The path; `None`: a temporary file without a name, which disappears with the process.
    path: Option<PathBuf>,
    /// The number of mapped bytes.
    length: u64,
    contents: Contents,
}

enum Contents {
    /// The pattern of [`pattern`]: each eight bytes depend on their offset.
    Pattern { seed: u64 },
    /// The checksum of each page before the run.
    Sums(Vec<u64>),
}

/// Returns the eight bytes of the pattern at `offset`.
fn pattern(seed: u64, offset: u64) -> [u8; 8] {
    mix(offset ^ seed.rotate_left(32)).to_le_bytes()
}

/// Returns a number that looks random. Different numbers give different results (splitmix64).
pub fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Returns a page number below `pages` that looks random, uniformly distributed, and updates the state `random`.
pub fn pick(random: &mut u64, pages: u64) -> u64 {
    *random = mix(*random);
    ((u128::from(*random) * u128::from(pages)) >> 64) as u64
}

/// Returns the checksum of a page. Each step is a bijection, so one wrong word always changes the sum.
fn sum(page: &Page) -> u64 {
    page.chunks_exact(8).fold(0, |sum: u64, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

impl TestFile {
    /// Opens the file that the settings name, or makes a temporary one of `length` bytes.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the file cannot be opened, read or made.
    pub fn of(settings: &Settings, length: u64) -> Result<Arc<Self>, Trouble> {
        let file = match (&settings.served, &settings.file) {
            (Some(served), _) => Self::served(served)?,
            (None, Some(path)) => Self::read(path)?,
            (None, None) => Self::temporary(length, settings.seed)?,
        };
        Ok(Arc::new(file))
    }

    /// Returns the open file, for a machine that reads it without a [`Store`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes a temporary file of `length` bytes and fills it with a pattern.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the file cannot be made or written, for example because the folder is full.
    pub fn temporary(length: u64, seed: u64) -> Result<Self, Trouble> {
        let refused = |error: io::Error| no_temporary(length, &error);
        let file = tempfile::tempfile().map_err(refused)?;
        let mut writer = BufWriter::with_capacity(1 << 20, &file);
        for offset in (0..length).step_by(8) {
            writer.write_all(&pattern(seed, offset)).map_err(refused)?;
        }
        writer.flush().map_err(refused)?;
        drop(writer);
        Ok(Self { file, path: None, length, contents: Contents::Pattern { seed } })
    }

    /// Opens the file at `path`, and reads it once to compute the checksums of its pages.
    ///
    /// # Errors
    /// [`Trouble::Input`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self, Trouble> {
        // The store opens the file later. It refuses folders, pipes and empty files. This check refuses them now.
        FileStore::open(path).map_err(|error| Trouble::Input(error.to_string()))?;
        let refused = |error: io::Error| Trouble::Input(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(refused)?;
        let length = file.metadata().map_err(refused)?.len().min(MOST);
        let mut this = Self { file, path: Some(path.into()), length, contents: Contents::Sums(Vec::new()) };
        let sums = (0..this.pages()).map(|page| this.on_disk(page).map(|page| sum(&page)));
        let sums = sums.collect::<io::Result<Vec<u64>>>().map_err(refused)?;
        this.contents = Contents::Sums(sums);
        Ok(this)
    }

    /// Opens the file of another process, which is served through `served.path`.
    fn served(served: &Served) -> Result<Self, Trouble> {
        match &served.contents {
            native::Contents::File { path } => Self::read(path),
            native::Contents::Pattern { seed } => {
                let file = File::open(&served.path)
                    .map_err(|error| Trouble::Input(format!("cannot open the temporary file: {error}")))?;
                let contents = Contents::Pattern { seed: *seed };
                Ok(Self { file, path: None, length: served.length, contents })
            }
        }
    }

    /// Returns the data that another process needs to check the file.
    pub fn contents(&self) -> native::Contents {
        match (&self.contents, &self.path) {
            (Contents::Pattern { seed }, _) => native::Contents::Pattern { seed: *seed },
            (Contents::Sums(_), path) => native::Contents::File { path: path.clone().unwrap_or_default() },
        }
    }

    /// Returns a store of the file whose reads take at least `settings.io_latency`.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the file cannot be opened again.
    pub fn delayed(&self, settings: &Settings) -> Result<Arc<dyn Store>, Trouble> {
        let store = DelayedStore::new(self.store()?, settings.io_latency);
        Ok(match settings.queue_depth {
            Some(depth) => Arc::new(store.with_queue_depth(depth)),
            None => Arc::new(store),
        })
    }

    /// Returns the number of mapped bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns the number of mapped pages.
    pub fn pages(&self) -> u64 {
        self.length.div_ceil(PAGE_SIZE)
    }

    /// Returns a store of the file.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the file cannot be opened again.
    pub fn store(&self) -> Result<FileStore, Trouble> {
        let store = match &self.path {
            Some(path) => FileStore::open(path),
            None => match self.file.try_clone() {
                Ok(file) => FileStore::from_file(file),
                Err(source) => Err(OpenError::Io { path: "the temporary file".into(), source }),
            },
        };
        store.map_err(|error| Trouble::Input(error.to_string()))
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or("the temporary file".into(), |path| path.display().to_string())
    }

    /// Reads a page through the operating system. Bytes after the end of the file are zeros.
    fn on_disk(&self, page: u64) -> io::Result<Page> {
        let mut bytes = [0; PAGE];
        let mut done = 0;
        while done < PAGE {
            match self.file.read_at(&mut bytes[done..], page * PAGE_SIZE + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Checks every byte that a mapping showed as page `page`.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] for a wrong byte; [`Trouble::Input`] if another process has changed the file since the run
    /// began.
    pub fn check(&self, page: u64, seen: &Page) -> Result<(), Trouble> {
        let start = page * PAGE_SIZE;
        match &self.contents {
            Contents::Pattern { seed } => {
                let mut words = (start..).step_by(8).zip(seen.chunks_exact(8));
                match words.find(|(offset, word)| *word != pattern(*seed, *offset)) {
                    None => Ok(()),
                    Some((offset, word)) => Err(wrong(offset, word, &pattern(*seed, offset))),
                }
            }
            Contents::Sums(sums) if sums[page as usize] == sum(seen) => Ok(()),
            Contents::Sums(sums) => {
                self.still_as_long()?;
                match self.on_disk(page) {
                    Ok(now) if sum(&now) == sums[page as usize] => {
                        let mut words =
                            (start..).step_by(8).zip(seen.chunks_exact(8).zip(now.chunks_exact(8)));
                        let (offset, (seen, now)) =
                            words.find(|(_, (seen, now))| seen != now).unwrap_or((start, (&[], &[])));
                        Err(wrong(offset, seen, now))
                    }
                    _ => Err(Trouble::Input(format!("{} was changed while it was mapped", self.name()))),
                }
            }
        }
    }

    /// Translates the error of a failed fault on this file into a [`Trouble`].
    pub fn explain(&self, error: FaultError) -> Trouble {
        let shrunk = matches!(
            error,
            FaultError::PastEnd { .. } | FaultError::Io { error: StoreError::PastEnd { .. }, .. }
        );
        if let Err(trouble) = self.still_as_long() {
            return trouble;
        }
        match error {
            FaultError::OutOfMemory { .. } => Trouble::Input(format!("{error}; raise --memory")),
            FaultError::Io { error, .. } if !shrunk => {
                Trouble::Input(format!("cannot read {}: {error}", self.name()))
            }
            _ => Trouble::Wrong(format!("a page fault on {} failed: {error}", self.name())),
        }
    }

    fn still_as_long(&self) -> Result<(), Trouble> {
        match self.file.metadata() {
            Ok(metadata) if metadata.len() < self.length => Err(Trouble::Input(format!(
                "{} has shrunk from {} to {} bytes while it was mapped",
                self.name(),
                self.length,
                metadata.len()
            ))),
            Ok(_) => Ok(()),
            Err(error) => Err(Trouble::Input(format!("cannot read {}: {error}", self.name()))),
        }
    }
}

fn wrong(offset: u64, seen: &[u8], expected: &[u8]) -> Trouble {
    let at = seen.iter().zip(expected).position(|(seen, expected)| seen != expected).unwrap_or(0);
    Trouble::Wrong(format!(
        "wrong byte at offset {} of the file: {:#04x} instead of {:#04x}",
        offset + at as u64,
        seen.get(at).copied().unwrap_or_default(),
        expected.get(at).copied().unwrap_or_default(),
    ))
}

fn no_temporary(length: u64, error: &io::Error) -> Trouble {
    let folder = std::env::temp_dir();
    let (folder, mib) = (folder.display(), length >> 20);
    Trouble::Input(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!(
                "the temporary folder {folder} is full: {mib} MiB are needed; set TMPDIR, or give a --file"
            )
        }
        _ => format!("cannot make a temporary file in {folder}: {error}; set TMPDIR, or give a --file"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(file: &TestFile, page: u64) -> Page {
        file.on_disk(page).unwrap()
    }

    #[test]
    fn each_wrong_byte_of_a_pattern_is_found() {
        let file = TestFile::temporary(2 * PAGE_SIZE, 7).unwrap();
        let right = page_of(&file, 1);
        file.check(1, &right).unwrap();
        // First the right page at the wrong place, then each byte changed.
        assert!(matches!(file.check(0, &right), Err(Trouble::Wrong(_))));
        for at in 0..PAGE {
            let mut page = right;
            page[at] ^= 0x10;
            let Err(Trouble::Wrong(text)) = file.check(1, &page) else { panic!("byte {at} passes") };
            assert!(text.contains(&format!("offset {} ", PAGE + at)), "{text}");
        }
        assert!(TestFile::temporary(PAGE_SIZE, 8).unwrap().check(0, &page_of(&file, 0)).is_err());
    }

    #[test]
    fn each_wrong_byte_of_a_given_file_is_found() {
        let given = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(given.path(), (0..5000_u32).map(|i| (i * 7) as u8).collect::<Vec<u8>>()).unwrap();
        let file = TestFile::read(given.path()).unwrap();
        assert_eq!((file.length(), file.pages()), (5000, 2));
        let right = page_of(&file, 1);
        assert!(right[5000 - PAGE..].iter().all(|byte| *byte == 0));
        file.check(1, &right).unwrap();
        for at in [0, 1, 903, 904, PAGE - 1] {
            let mut page = right;
            page[at] ^= 1;
            let Err(Trouble::Wrong(text)) = file.check(1, &page) else { panic!("byte {at} passes") };
            assert!(text.contains(&format!("offset {} ", PAGE + at)), "{text}");
        }
    }

    #[test]
    fn a_file_that_others_change_is_their_fault() {
        let given = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(given.path(), [1; 2 * PAGE]).unwrap();
        let file = TestFile::read(given.path()).unwrap();
        std::fs::write(given.path(), [2; 2 * PAGE]).unwrap();
        let changed = file.check(0, &[2; PAGE]).unwrap_err();
        assert!(
            matches!(&changed, Trouble::Input(text) if text.ends_with("was changed while it was mapped"))
        );
        std::fs::write(given.path(), [1; 100]).unwrap();
        let shrunk = file.check(1, &[0; PAGE]).unwrap_err();
        assert!(
            matches!(&shrunk, Trouble::Input(text) if text.contains("has shrunk from 8192 to 100 bytes"))
        );
    }

    #[test]
    fn a_full_folder_is_named() {
        let full = no_temporary(64 << 20, &io::Error::from(ErrorKind::StorageFull)).to_string();
        assert!(full.contains("is full: 64 MiB are needed"), "{full}");
    }
}
