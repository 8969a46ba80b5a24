//! Checks of the page table of a space: entries and leaf tables. One thread makes each call by itself.

use super::frames::take;
use super::{Check, Finding, Rig, Unmet, must};
use crate::address::{PageNumber, PageRange};
use crate::engine::Engine;
use crate::frame::Reference;
use crate::host::{Entry, Frame, FrameSource, Host, PageTable, Slot, Table};
use crate::sync::RetiredList;
use crate::tables::{Home, SpaceMark};
use alloc::sync::Arc;
use alloc::vec::Vec;

pub(super) fn checks<R: Rig>() -> [Check<R>; 12] {
    [
        ("pages is a range of whole leaf tables, and never changes", pages),
        ("a leaf table is made for the requested page, empty, and once", leaves),
        ("next_leaf finds each leaf table, in order", next_leaf),
        ("try_announce sets the bit if the entry is as expected, and let_go clears it", announce),
        ("install puts the entry in its place and clears the bit", install),
        ("install and let_go keep accessed and dirty bits where the frame stays", hardware_bits),
        ("exchange changes an entry if it is as expected", exchange),
        ("fill writes an entry where none is present", fill),
        ("entries of guards and of pages that are not present are kept unchanged", absent),
        ("a change of an entry leaves its neighbours unchanged", neighbours),
        ("unhook removes a leaf table, and its readers notice", unhook),
        ("the first and the last page have entries", ends),
    ]
}

pub(super) const READ_WRITE: u64 = Entry::READ | Entry::WRITE;
/// The bits that a processor, or the host itself, may add to an entry.
const HOSTS: u64 = Entry::ACCESSED | Entry::DIRTY;

/// A table that belongs to no space.
pub(super) struct Bench<R: Rig> {
    pub engine: Arc<Engine<R::Host>>,
    pub table: Table<<R::Host as Host>::Table>,
}

impl<R: Rig> Drop for Bench<R> {
    fn drop(&mut self) {
        self.engine.unload(&self.table);
    }
}

pub(super) type TableOf<R> = <<R as Rig>::Host as Host>::Table;

impl<R: Rig> Bench<R> {
    pub fn new(rig: &R) -> Result<Self, Unmet> {
        let engine = rig.engine(256);
        let table = engine.host().new_table(engine.sections());
        let table = table.map_err(|_| Unmet::from("a new machine has no memory for a table"))?;
        Ok(Self { engine, table: Table::new(table, SpaceMark::NOBODY) })
    }

    /// Makes a table for a child of this one.
    pub fn child(&self) -> Result<Self, Unmet> {
        let engine = Arc::clone(&self.engine);
        let table = engine.host().child_table(engine.sections(), &self.table);
        let table = table.map_err(|_| Unmet::from("a new machine has no memory for a child's table"))?;
        Ok(Self { engine, table: Table::new(table, SpaceMark::NOBODY) })
    }

    /// Returns a page in the middle of the table.
    pub fn page(&self) -> PageNumber {
        let pages = self.table.pages();
        let middle = PageNumber::new(pages.start().get() + pages.pages() / 2);
        PageNumber::new(middle.align_down(TableOf::<R>::LEAF_PAGES).get() + 3)
    }

    pub fn entry(&self, page: PageNumber) -> Result<Entry, Unmet> {
        let section = self.engine.enter();
        let leaf = self.table.leaf(&section, page);
        let leaf =
            leaf.ok_or_else(|| alloc::format!("leaf finds no table over {page:?}, where one was made"))?;
        Ok(self.table.load(leaf, page))
    }

    /// Runs `work` on the leaf over `page`, which is made if it is missing, and on its entry.
    pub fn with<T>(
        &self,
        page: PageNumber,
        work: impl FnOnce(<TableOf<R> as PageTable>::Leaf<'_>, Entry) -> Result<T, Unmet>,
    ) -> Result<T, Unmet> {
        let section = self.engine.enter();
        let leaf = self.table.make_leaf(&section, page);
        let leaf = leaf.map_err(|_| Unmet::from("a new machine has no memory for a leaf table"))?;
        work(leaf, self.table.load(leaf, page))
    }

    /// Maps a new frame at `page`, as a fault does.
    pub fn map(&self, page: PageNumber, rights: u64) -> Result<(Frame, Entry), Unmet> {
        let frames = self.engine.frames();
        let frame = take(frames)?;
        frames.zero(frame);
        frames.folio(frame).begin_anonymous(Home::NONE);
        let new = Entry::mapping(frame, rights);
        self.with(page, |leaf, seen| {
            must!(self.table.try_announce(leaf, page, seen), "try_announce refuses {seen:?}, which is there");
            let old = self.table.install(leaf, page, new);
            must!(old == Ok(seen), "install returns {old:?} where {seen:?} was");
            Ok(())
        })?;
        Ok((frame, new))
    }

    /// Empties the entry of `page`, as munmap does.
    pub fn unmap(&self, page: PageNumber) -> Finding {
        let taken_out = self.with(page, |leaf, seen| {
            let done = self.table.exchange(leaf, page, seen, Entry::EMPTY);
            must!(done == Ok(()), "exchange says {done:?}, where {seen:?} was");
            Ok(seen)
        })?;
        self.engine.invalidate(&self.table, PageRange::single(page));
        if let Some(frame) = taken_out.counted_frame()
            && self.engine.folio(frame).put(Reference::Mapping)
        {
            self.engine.frames().free(frame);
        }
        Ok(())
    }
}

/// Returns whether both entries are the same, but for bits that a processor may set.
pub(super) fn is(found: Entry, should: Entry) -> bool {
    found.without(HOSTS) == should.without(HOSTS)
}

fn pages<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let (pages, leaf) = (bench.table.pages(), TableOf::<R>::LEAF_PAGES);
    must!(leaf.is_power_of_two(), "LEAF_PAGES is {leaf}, not a power of two");
    let is_whole = |page: PageNumber| page.get().is_multiple_of(leaf);
    must!(
        is_whole(pages.start()) && is_whole(pages.end()),
        "{pages} are not whole leaf tables of {leaf} pages"
    );
    must!(pages.pages() >= 2 * leaf, "there are fewer than two leaf tables, which is too few to check");
    must!(bench.table.pages() == pages, "pages says {pages} first, and {} then", bench.table.pages());
    Ok(())
}

fn leaves<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let (page, leaf_pages) = (bench.page(), TableOf::<R>::LEAF_PAGES);
    let first = page.align_down(leaf_pages);
    let section = bench.engine.enter();
    must!(bench.table.leaf(&section, page).is_none(), "a new table has a leaf table");
    let made = bench.table.make_leaf(&section, page);
    let Ok(made) = made else {
        return Err("a new machine has no memory for a leaf table".into());
    };
    must!(bench.table.hangs(made), "a leaf table that was just made does not hang");
    for page in (first.get()..first.get() + leaf_pages).map(PageNumber::new) {
        let entry = bench.table.load(made, page);
        must!(entry == Entry::EMPTY, "a new leaf table has {entry:?} at {page:?}");
        must!(
            bench.table.leaf(&section, page).is_some(),
            "leaf finds none over {page:?}, of a table that was made"
        );
    }
    let behind = PageNumber::new(first.get() + leaf_pages);
    must!(
        !bench.table.pages().contains(behind) || bench.table.leaf(&section, behind).is_none(),
        "there is a leaf table over {behind:?}, where none was asked for"
    );
    let Ok(again) = bench.table.make_leaf(&section, page) else {
        return Err("make_leaf finds no memory, where the leaf table exists".into());
    };
    must!(bench.table.try_announce(made, page, Entry::EMPTY), "try_announce refuses an empty entry");
    must!(bench.table.load(again, page).is_announced(), "make_leaf makes a second table where there is one");
    bench.table.let_go(made, page);
    Ok(())
}

fn next_leaf<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let (pages, leaf_pages) = (bench.table.pages(), TableOf::<R>::LEAF_PAGES);
    let (first, last) = (pages.start(), PageNumber::new(pages.end().get() - leaf_pages));
    let middle = bench.page().align_down(leaf_pages);
    let mut spans = Vec::from([first, middle, last]);
    spans.dedup();
    {
        let section = bench.engine.enter();
        must!(
            bench.table.next_leaf(&section, pages).is_none(),
            "next_leaf finds a leaf table in a new table"
        );
        for span in &spans {
            must!(bench.table.make_leaf(&section, *span).is_ok(), "no memory for a leaf table over {span:?}");
        }
    }
    let section = bench.engine.enter();
    let (mut found, mut rest) = (Vec::new(), Some(pages));
    while let Some(range) = rest {
        let Some(page) = bench.table.next_leaf(&section, range) else { break };
        must!(range.contains(page), "next_leaf answers {page:?}, outside of {range}");
        let span = page.align_down(leaf_pages);
        found.push(span);
        must!(found.len() <= spans.len(), "next_leaf finds {found:?}, and there are {spans:?}");
        rest = PageRange::new(PageNumber::new(span.get() + leaf_pages), pages.end());
    }
    must!(found == spans, "next_leaf finds {found:?}, and there are {spans:?}");
    let inside =
        PageRange::new(PageNumber::new(middle.get() + 2), PageNumber::new(middle.get() + leaf_pages));
    let at = inside.and_then(|inside| bench.table.next_leaf(&section, inside));
    must!(
        at == Some(PageNumber::new(middle.get() + 2)),
        "from the third page of a leaf table on, next_leaf answers {at:?}"
    );
    let before = PageRange::new(PageNumber::new(middle.get() - 1), middle).filter(|_| middle != first);
    let at = before.and_then(|before| bench.table.next_leaf(&section, before));
    must!(
        at.is_none() || spans.contains(&PageNumber::new(middle.get() - leaf_pages)),
        "in a range that ends before a leaf table, next_leaf answers {at:?}"
    );
    Ok(())
}

fn announce<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    bench.with(page, |leaf, seen| {
        let other = Entry::from_bits(Entry::GUARD);
        must!(!bench.table.try_announce(leaf, page, other), "try_announce takes {seen:?} for {other:?}");
        must!(bench.table.load(leaf, page) == seen, "try_announce says no, and has changed the entry");
        must!(bench.table.try_announce(leaf, page, seen), "try_announce refuses {seen:?}, which is there");
        let now = bench.table.load(leaf, page);
        must!(now == seen.with(Entry::ANNOUNCED), "an announced entry is {now:?}, and was {seen:?}");
        must!(!bench.table.try_announce(leaf, page, seen), "an entry is announced twice");
        bench.table.let_go(leaf, page);
        let now = bench.table.load(leaf, page);
        must!(now == seen, "let_go leaves {now:?}, where {seen:?} was before");
        Ok(())
    })
}

fn install<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    let (frame, new) = bench.map(page, READ_WRITE)?;
    let found = bench.entry(page)?;
    must!(is(found, new), "install leaves {found:?}, and was given {new:?}");
    must!(
        found.mapped_frame() == Some(frame),
        "the entry names {:?}, and not {frame:?}",
        found.mapped_frame()
    );
    bench.unmap(page)?;
    let found = bench.entry(page)?;
    must!(found == Entry::EMPTY, "an entry that was taken out is {found:?}");
    Ok(())
}

fn hardware_bits<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    let (frame, _) = bench.map(page, READ_WRITE)?;
    bench.with(page, |leaf, seen| {
        let used = seen.with(HOSTS);
        must!(
            bench.table.exchange(leaf, page, seen, used).is_ok(),
            "exchange refuses {seen:?}, which is there"
        );
        must!(bench.table.try_announce(leaf, page, used), "try_announce refuses {used:?}");
        bench.table.let_go(leaf, page);
        let now = bench.table.load(leaf, page);
        must!(now == used, "let_go loses bits that a processor has set: {now:?}, and not {used:?}");
        must!(bench.table.try_announce(leaf, page, used), "try_announce refuses {used:?}");
        let old = bench.table.install(leaf, page, Entry::mapping(frame, Entry::READ));
        must!(old == Ok(used), "install returns {old:?}, where {used:?} was: bits of a processor are lost");
        let now = bench.table.load(leaf, page);
        must!(now.has(HOSTS), "install of the same frame loses bits that a processor has set: {now:?}");
        Ok(())
    })?;
    bench.engine.invalidate(&bench.table, PageRange::single(page));
    bench.unmap(page)
}

fn exchange<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    bench.map(page, READ_WRITE)?;
    bench.with(page, |leaf, seen| {
        let other = seen.without(Entry::WRITE);
        let refused = bench.table.exchange(leaf, page, other, Entry::EMPTY);
        must!(refused == Err(seen), "exchange of {other:?}, where {seen:?} is, says {refused:?}");
        must!(bench.table.load(leaf, page) == seen, "exchange refuses, and has changed the entry");
        let done = bench.table.exchange(leaf, page, seen, other);
        must!(done.is_ok(), "exchange of the present entry returns {done:?}");
        let now = bench.table.load(leaf, page);
        must!(is(now, other), "exchange leaves {now:?}, and was given {other:?}");
        must!(bench.table.try_announce(leaf, page, now), "try_announce refuses {now:?}, which is there");
        let refused = bench.table.exchange(leaf, page, now, Entry::EMPTY);
        must!(refused.is_err(), "exchange changes an entry that is announced");
        bench.table.let_go(leaf, page);
        Ok(())
    })?;
    bench.engine.invalidate(&bench.table, PageRange::single(page));
    bench.unmap(page)
}

fn fill<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    let frames = bench.engine.frames();
    let frame = take(frames)?;
    frames.zero(frame);
    frames.folio(frame).begin_anonymous(Home::NONE);
    let new = Entry::mapping(frame, Entry::READ);
    bench.with(page, |leaf, _| {
        bench.table.fill(leaf, page, new);
        Ok(())
    })?;
    let found = bench.entry(page)?;
    must!(is(found, new), "fill leaves {found:?}, and was given {new:?}");
    bench.unmap(page)
}

fn absent<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let frames = bench.engine.frames();
    let frame = take(frames)?;
    let slot = Slot::new(123_456).ok_or_else(|| Unmet::from("the engine has no such slot"))?;
    let kinds = [
        Entry::from_bits(Entry::GUARD),
        Entry::swapped(slot, 77, Entry::READ),
        Entry::gone(frame, Entry::READ | Entry::EXECUTE),
        Entry::kept(frame, READ_WRITE),
    ];
    let page = bench.page();
    for kind in kinds {
        bench.with(page, |leaf, seen| {
            must!(
                bench.table.exchange(leaf, page, seen, kind).is_ok(),
                "exchange refuses {seen:?}, which is there"
            );
            let now = bench.table.load(leaf, page);
            must!(now == kind, "{kind:?} comes back as {now:?}");
            must!(bench.table.try_announce(leaf, page, kind), "try_announce refuses {kind:?}");
            bench.table.let_go(leaf, page);
            let now = bench.table.load(leaf, page);
            must!(now == kind, "let_go makes {now:?} of {kind:?}");
            must!(bench.table.exchange(leaf, page, kind, Entry::EMPTY).is_ok(), "exchange refuses {kind:?}");
            Ok(())
        })?;
    }
    frames.free(frame);
    Ok(())
}

fn neighbours<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let page = bench.page();
    bench.map(page, READ_WRITE)?;
    let span = page.align_down(TableOf::<R>::LEAF_PAGES);
    for other in (span.get()..span.get() + TableOf::<R>::LEAF_PAGES)
        .map(PageNumber::new)
        .filter(|other| *other != page)
    {
        let entry = bench.entry(other)?;
        must!(entry == Entry::EMPTY, "{other:?} has {entry:?} after a change of {page:?}");
    }
    let second = PageNumber::new(page.get() + 1);
    bench.map(second, Entry::READ)?;
    let before = bench.entry(page)?;
    bench.unmap(second)?;
    let after = bench.entry(page)?;
    must!(is(before, after), "{page:?} goes from {before:?} to {after:?} when {second:?} is unmapped");
    bench.unmap(page)
}

fn unhook<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let (page, leaf_pages) = (bench.page(), TableOf::<R>::LEAF_PAGES);
    bench.map(page, READ_WRITE)?;
    bench.unmap(page)?;
    let span = PageRange::with_pages(page.align_down(leaf_pages), leaf_pages);
    let Ok(span) = span else { return Err("a leaf table has no range".into()) };
    let mut tables = RetiredList::new();
    {
        let section = bench.engine.enter();
        let leaf = bench.table.leaf(&section, page);
        let Some(leaf) = leaf else {
            return Err("the leaf table is gone before it is unhooked".into());
        };
        must!(bench.table.hangs(leaf), "a leaf table that is there does not hang");
    }
    must!(tables.try_reserve(1).is_ok(), "a new machine has no memory");
    let unhooked = bench.table.unhook(page);
    let is_out = unhooked.is_some();
    tables.extend(unhooked);
    let found = {
        let section = bench.engine.enter();
        (bench.table.leaf(&section, page).is_some(), bench.table.next_leaf(&section, span))
    };
    // A table that is given twice is freed once: this one is leaked.
    let is_twice = bench.table.unhook(page).map(core::mem::forget).is_some();
    bench.engine.invalidate(&bench.table, span);
    bench.engine.retire_tables(&mut tables);
    bench.engine.flush();
    must!(is_out, "unhook finds no leaf table, where one is");
    must!(!found.0, "leaf finds a table that was unhooked");
    must!(found.1.is_none(), "next_leaf finds a table that was unhooked");
    must!(!is_twice, "unhook gives one table twice");
    bench.map(page, READ_WRITE)?;
    bench.unmap(page)
}

fn ends<R: Rig>(rig: &R) -> Finding {
    let bench = Bench::new(rig)?;
    let pages = bench.table.pages();
    for page in [pages.start(), PageNumber::new(pages.end().get() - 1)] {
        let (_, new) = bench.map(page, READ_WRITE)?;
        let found = bench.entry(page)?;
        must!(is(found, new), "{page:?} has {found:?}, and not {new:?}");
    }
    bench.unmap(pages.start())?;
    bench.unmap(PageNumber::new(pages.end().get() - 1))
}
