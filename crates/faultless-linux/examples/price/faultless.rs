//! The contender "faultless": regions, served by a pager with its own memory.

use crate::case::{Case, Contender, Prepared, Setting};
use crate::memory::{BEFORE, PAGE, Touched};
use crate::trouble::Trouble;
use ::faultless::address::VirtAddr;
use ::faultless::protection::Protection;
use ::faultless::store::FileStore;
use ::faultless::sync::Shared;
use ::faultless::{AddressSpace, File, MapRequest, Placement};
use faultless_linux::{Options, Pager, Region, Serving};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `faultless_linux::Region`.
#[derive(Default)]
pub struct Faultless {
    /// The pagers that are kept when memory must be used before the run. By the number of threads, since handlers stay
    /// on the processors where they were started.
    kept: BTreeMap<usize, Pager>,
}

impl Faultless {
    fn pager(&mut self, threads: usize, setting: &Setting) -> Result<Pager, Trouble> {
        if let Some(pager) = self.kept.get(&threads) {
            return Ok(pager.clone());
        }
        let bytes = (setting.pages * PAGE) as u64;
        // Room for the pages, a snapshot's pages, a file's pages, and a little more.
        let pager =
            Pager::new(Options { memory: 3 * bytes + (16 << 20), window: bytes, ..Options::default() })?;
        if setting.warm {
            self.kept.insert(threads, pager.clone());
        }
        Ok(pager)
    }
}

impl Contender for Faultless {
    fn name(&self) -> &'static str {
        "faultless"
    }

    fn prepare(&mut self, case: Case, threads: usize, setting: &Setting) -> Result<Prepared, Trouble> {
        let pages = setting.pages;
        let pager = self.pager(threads, setting)?;
        if case == Case::CachedRead {
            let file = File::open(pager.engine(), Arc::new(FileStore::from_file(setting.reopen()?)?))?;
            let first = mapped(&pager, &file, setting)?;
            for page in 0..pages {
                first.1.load(page);
            }
            let second = mapped(&pager, &file, setting)?;
            return Ok(Prepared::touch(second.1, (first.0, second.0)));
        }
        if matches!(case, Case::FileRead | Case::FileWrite) {
            let region = pager.file(setting.reopen()?)?;
            return Ok(Prepared::touch(Touched::new(region.as_ptr()), region));
        }
        let mut region: Region = pager.anonymous(pages * PAGE)?;
        let touched = Touched::new(region.as_ptr());
        if matches!(case, Case::SnapshotWrite | Case::Snapshot | Case::Discard) {
            touched.fill(pages);
        }
        Ok(match case {
            Case::SnapshotWrite => {
                let snapshot = Arc::new(region.snapshot()?);
                let seen = Arc::clone(&snapshot);
                let check = move || {
                    let kept = (0..pages).step_by(97).all(|page| seen[page * PAGE] == BEFORE);
                    kept.then_some(())
                        .ok_or(Trouble::Wrong("a snapshot shows a store that was made after it".into()))
                };
                Prepared { check: Box::new(check), ..Prepared::touch(touched, (region, snapshot)) }
            }
            Case::Snapshot => Prepared::call(move || Ok((region.snapshot()?, region))),
            Case::Discard => Prepared::call(move || {
                region.discard(..)?;
                Ok(region)
            }),
            _ => Prepared::touch(touched, region),
        })
    }
}

/// Maps the file in a new space. Two regions would share no page, not even two of the same store.
fn mapped(
    pager: &Pager,
    file: &Shared<File<faultless_linux::Linux>>,
    setting: &Setting,
) -> Result<(Serving, Touched), Trouble> {
    let bytes = (setting.pages * PAGE) as u64;
    let space = AddressSpace::new(pager.engine());
    let space = space.map_err(|_| Trouble::Cannot("no memory for an address space".into()))?;
    let serving = Serving::of(&space).expect("served once");
    let request = MapRequest::file(file, 0, bytes, Protection::READ | Protection::WRITE);
    space.map(request.at(Placement::Fixed(VirtAddr::new(0))))?;
    let start = serving.pointer(VirtAddr::new(0)).ok_or(Trouble::Cannot("a space has no pages".into()))?;
    Ok((serving, Touched::new(start)))
}
