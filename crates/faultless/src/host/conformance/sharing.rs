//! Checks of leaf tables that hang in two tables at once ([`ShareLeaves`]). One thread makes each call by itself, as fork and
//! the first fault after it do.
#![forbid(unsafe_code)]

use super::tables::{Bench, READ_WRITE, TableOf, is};
use super::{Check, Finding, Rig, Unmet, must};
use crate::address::{PageNumber, PageRange};
use crate::host::{Entry, PageTable, PlaceWord, ShareLeaves};
use crate::sync::Section;
use crate::tables::Unshared;
use alloc::vec::Vec;

pub(super) fn checks<R: Rig>() -> [Check<R>; 6] {
    [
        ("a leaf table that is shared with a child is found in the child", |rig| with_pair(rig, hung)),
        ("found returns the word of the lookup, and now the word in the table", |rig| with_pair(rig, words)),
        ("put stores a word in the table, with its mark", |rig| with_pair(rig, places)),
        ("hangs is false for a shared leaf table", |rig| with_pair(rig, hangs)),
        ("weaken removes the write right of one entry, and changes nothing else", |rig| {
            with_pair(rig, weakened)
        }),
        ("each spare is a separate, empty leaf table", |rig| with_pair(rig, spares)),
    ]
}

/// A leaf table of a bench.
type LeafOf<'s, R> = <TableOf<R> as PageTable>::Leaf<'s>;

/// Two tables, of a parent and its child. In the parent, two pages are mapped in each of two leaf tables.
struct Pair<R: Rig> {
    parent: Bench<R>,
    child: Bench<R>,
    /// The first mapped page of each leaf table. It can be written and has been. The page behind it can be read.
    pages: [PageNumber; 2],
}

/// Runs `work` on a pair. If it fails, or if the tables cannot be separated afterwards, they are leaked, since a leaf table
/// might be freed twice. A failed separation is no finding: it has a check of its own.
fn with_pair<R: Rig>(rig: &R, work: impl FnOnce(&Pair<R>) -> Finding) -> Finding {
    let pair = Pair::new(rig)?;
    let found = work(&pair);
    if found.is_err() || pair.separate().is_err() {
        core::mem::forget(pair);
    }
    found
}

impl<R: Rig> Pair<R> {
    fn new(rig: &R) -> Result<Self, Unmet> {
        let parent = Bench::new(rig)?;
        if parent.table.sharing().is_none() {
            return Err(Unmet::Skipped("this host shares no leaf tables (PageTable::sharing)"));
        }
        let child = parent.child()?;
        must!(
            child.table.sharing().is_some(),
            "a child's table cannot share leaf tables, and its parent's can"
        );
        let page = parent.page();
        let pages = [page, PageNumber::new(page.get() - TableOf::<R>::LEAF_PAGES)];
        for page in pages {
            parent.map(page, READ_WRITE)?;
            parent.with(page, |leaf, seen| {
                let used = seen.with(Entry::HARDWARE);
                must!(
                    parent.table.exchange(leaf, page, seen, used).is_ok(),
                    "exchange refuses {seen:?}, which is there"
                );
                Ok(())
            })?;
            parent.map(behind(page), Entry::READ)?;
        }
        Ok(Self { parent, child, pages })
    }

    /// Hangs the parent's leaf table over `page` in the child as well, as fork does.
    fn share(&self, page: PageNumber) -> Finding {
        {
            let section = self.parent.engine.enter();
            self.share_leaf(leaf_of(&self.parent, &section, page)?, page)?;
        }
        self.parent.engine.invalidate(&self.parent.table, span::<R>(page)?);
        Ok(())
    }

    fn share_leaf<'s>(&'s self, leaf: LeafOf<'s, R>, page: PageNumber) -> Finding {
        let sections = self.parent.engine.sections();
        match self.parent.table.share(leaf, &self.child.table, page, sections) {
            Ok(true) => Ok(()),
            Ok(false) => Err("`now` differs from `found`, for a leaf that was just found".into()),
            Err(_) => Err("a new machine has no memory to share a leaf table".into()),
        }
    }

    /// Takes every page out of both tables. Each then has leaf tables of its own only.
    fn separate(&self) -> Finding {
        for page in self.pages {
            for bench in [&self.child, &self.parent] {
                let is_there = {
                    let section = bench.engine.enter();
                    bench.table.leaf(&section, page).is_some()
                };
                if !is_there {
                    // The check has shared no leaf table here.
                    continue;
                }
                leave(bench, page, |_| Entry::EMPTY)?;
                must!(!word_of(bench, page)?.is_shared(), "a space cannot leave a shared leaf");
                bench.unmap(page)?;
                bench.unmap(behind(page))?;
                let section = bench.engine.enter();
                let record = bench.table.record(leaf_of(bench, &section, page)?);
                must!(record.try_leave_family(), "record gives the record of another leaf table");
            }
        }
        Ok(())
    }
}

fn behind(page: PageNumber) -> PageNumber {
    PageNumber::new(page.get() + 1)
}

/// Returns the pages of the leaf table over `page`.
fn span<R: Rig>(page: PageNumber) -> Result<PageRange, Unmet> {
    let leaf_pages = TableOf::<R>::LEAF_PAGES;
    PageRange::with_pages(page.align_down(leaf_pages), leaf_pages)
        .map_err(|_| "a leaf table has no range".into())
}

fn leaf_of<'s, R: Rig>(
    bench: &'s Bench<R>,
    section: &'s Section<'_>,
    page: PageNumber,
) -> Result<LeafOf<'s, R>, Unmet> {
    let leaf = bench.table.leaf(section, page);
    leaf.ok_or_else(|| alloc::format!("leaf finds no table over {page:?}, where one hangs").into())
}

fn sharing_of<R: Rig>(bench: &Bench<R>) -> Result<&<TableOf<R> as PageTable>::Sharing, Unmet> {
    bench.table.sharing().ok_or_else(|| "sharing gives the ability first, and then not".into())
}

/// Looks the leaf table over `page` up, and returns the word by which it was found.
fn word_of<R: Rig>(bench: &Bench<R>, page: PageNumber) -> Result<PlaceWord, Unmet> {
    let section = bench.engine.enter();
    let leaf = leaf_of(bench, &section, page)?;
    Ok(sharing_of(bench)?.found(leaf))
}

/// Lets the table of `bench` leave a leaf table that it shares, as a fault does. `each` returns the entry that the copy gets
/// for one of the shared leaf. Does nothing if the table does not share it.
fn leave<R: Rig>(bench: &Bench<R>, page: PageNumber, mut each: impl FnMut(Entry) -> Entry) -> Finding {
    let unshared = {
        let section = bench.engine.enter();
        bench.table.unshare(leaf_of(bench, &section, page)?, page, |_, seen| each(seen))
    };
    bench.engine.invalidate(&bench.table, span::<R>(page)?);
    must!(
        !matches!(unshared, Unshared::Busy),
        "an entry of a shared leaf is announced, though no thread has announced it"
    );
    Ok(())
}

/// Keeps an entry in a copy, and counts its page once more.
fn keep<R: Rig>(bench: &Bench<R>) -> impl FnMut(Entry) -> Entry {
    |seen| {
        if let Some(frame) = seen.counted_frame() {
            // The count of two tables is far from full.
            let _ = bench.engine.folio(frame).count_copy();
        }
        seen
    }
}

fn hung<R: Rig>(pair: &Pair<R>) -> Finding {
    let [page, _] = pair.pages;
    pair.share(page)?;
    let of_parent = [pair.parent.entry(page)?, pair.parent.entry(behind(page))?];
    let section = pair.child.engine.enter();
    let Some(leaf) = pair.child.table.leaf(&section, page) else {
        return Err("leaf finds no table in a child, where a shared one was hung".into());
    };
    let next = pair.child.table.next_leaf(&section, pair.child.table.pages());
    must!(next == Some(page.align_down(TableOf::<R>::LEAF_PAGES)), "next_leaf finds {next:?} in the child");
    must!(sharing_of(&pair.child)?.found(leaf).is_shared(), "hang stores the word without its mark");
    let of_child = [pair.child.table.load(leaf, page), pair.child.table.load(leaf, behind(page))];
    must!(of_child == of_parent, "the child has {of_child:?}, and the parent {of_parent:?}");
    Ok(())
}

fn words<R: Rig>(pair: &Pair<R>) -> Finding {
    let [page, other] = pair.pages;
    let sharing = sharing_of(&pair.parent)?;
    must!(
        word_of(&pair.parent, other)?.leaf() != word_of(&pair.parent, page)?.leaf(),
        "two leaves have one word"
    );
    let (before, found, now) = {
        let section = pair.parent.engine.enter();
        let leaf = leaf_of(&pair.parent, &section, page)?;
        let before = sharing.found(leaf);
        must!(!before.is_shared(), "a leaf that no other table has is marked");
        pair.share_leaf(leaf, page)?;
        (before, sharing.found(leaf), sharing.now(leaf))
    };
    pair.parent.engine.invalidate(&pair.parent.table, span::<R>(page)?);
    let again = word_of(&pair.parent, page)?;
    must!(found == before, "found goes from {before:?} to {found:?} when another word is put in the place");
    must!(now == again, "now gives {now:?}, and the place has {again:?}");
    must!(now.leaf() == before.leaf(), "now gives {now:?} for the leaf that was {before:?}");
    Ok(())
}

fn places<R: Rig>(pair: &Pair<R>) -> Finding {
    let [page, _] = pair.pages;
    let before = word_of(&pair.parent, page)?;
    pair.share(page)?;
    let marked = word_of(&pair.parent, page)?;
    must!(marked.is_shared(), "the place of a leaf that fork has shared is not marked");
    must!(marked.leaf() == before.leaf(), "the place has {marked:?}, and had {before:?}");
    leave(&pair.child, page, keep(&pair.child))?;
    let copy = word_of(&pair.child, page)?;
    must!(!copy.is_shared() && copy.leaf() != before.leaf(), "a table that has left has still {copy:?}");
    let parents = word_of(&pair.parent, page)?;
    must!(parents == marked, "the parent's place goes from {marked:?} to {parents:?} when the child leaves");
    leave(&pair.parent, page, |_| Entry::EMPTY)?;
    let own = word_of(&pair.parent, page)?;
    must!(
        own == before,
        "the last table that has a leaf has {own:?} in its place, and {before:?} before fork"
    );
    Ok(())
}

fn hangs<R: Rig>(pair: &Pair<R>) -> Finding {
    let [page, _] = pair.pages;
    let hangs = |bench: &Bench<R>| -> Result<bool, Unmet> {
        let section = bench.engine.enter();
        Ok(bench.table.hangs(leaf_of(bench, &section, page)?))
    };
    let (was_found, hangs_still) = {
        let section = pair.parent.engine.enter();
        let leaf = leaf_of(&pair.parent, &section, page)?;
        let was_found = pair.parent.table.hangs(leaf);
        pair.share_leaf(leaf, page)?;
        (was_found, pair.parent.table.hangs(leaf))
    };
    pair.parent.engine.invalidate(&pair.parent.table, span::<R>(page)?);
    must!(was_found, "a leaf that no other table has does not hang");
    must!(!hangs_still, "a leaf that was found before its place was marked hangs still");
    must!(!hangs(&pair.parent)? && !hangs(&pair.child)?, "a leaf that was found shared hangs");
    leave(&pair.child, page, keep(&pair.child))?;
    must!(hangs(&pair.child)?, "the copy of a table that has left does not hang");
    leave(&pair.parent, page, |_| Entry::EMPTY)?;
    must!(hangs(&pair.parent)?, "a leaf that no other table has any more does not hang");
    Ok(())
}

fn weakened<R: Rig>(pair: &Pair<R>) -> Finding {
    let [page, _] = pair.pages;
    let both = || Ok::<_, Unmet>([pair.parent.entry(page)?, pair.parent.entry(behind(page))?]);
    let before = both()?;
    pair.share(page)?;
    leave(&pair.child, page, keep(&pair.child))?;
    let [written, read] = both()?;
    must!(!written.has(Entry::WRITE), "the shared leaf has {written:?} still, which the child has copied");
    must!(written == before[0].without(Entry::WRITE), "weaken makes {written:?} of {:?}", before[0]);
    must!(read == before[1], "the entry behind goes from {:?} to {read:?}", before[1]);
    Ok(())
}

fn spares<R: Rig>(pair: &Pair<R>) -> Finding {
    let mut words = Vec::new();
    for page in pair.pages {
        pair.share(page)?;
        words.push(word_of(&pair.parent, page)?.leaf());
    }
    for page in pair.pages {
        let of_parent = [pair.parent.entry(page)?, pair.parent.entry(behind(page))?];
        leave(&pair.child, page, keep(&pair.child))?;
        let word = word_of(&pair.child, page)?.leaf();
        must!(!words.contains(&word), "a spare was opened that is in use: one was reserved for each leaf");
        words.push(word);
        let section = pair.child.engine.enter();
        let leaf = leaf_of(&pair.child, &section, page)?;
        let first = page.align_down(TableOf::<R>::LEAF_PAGES).get();
        for at in (first..first + TableOf::<R>::LEAF_PAGES).map(PageNumber::new) {
            let (found, kept) = (pair.child.table.load(leaf, at), at == page || at == behind(page));
            let should = if kept { of_parent[usize::from(at != page)] } else { Entry::EMPTY };
            must!(
                is(found, should.without(Entry::WRITE)),
                "a copy has {found:?} at {at:?}, and not {should:?}"
            );
        }
    }
    Ok(())
}
