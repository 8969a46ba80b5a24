//! One access of a processor. It walks the table, sets the accessed and dirty bits, and uses the frame, all inside one
//! access section. [`PageTable::invalidate`] waits for such sections. On a machine made by
//! [`Soft::with_caches`](crate::Soft::with_caches) the processors keep translations longer.

use crate::memory::PhysicalMemory;
#[cfg(debug_assertions)]
use crate::table::Caches;
use crate::table::{Leaf, RadixTable};
use faultless::address::{PageNumber, VirtAddr};
use faultless::host::{Entry, Frame, PageTable};
use faultless::mutant;
use faultless::protection::Access;
use faultless::sync::AccessSection;

/// A page fault: the page is absent or does not allow the access, so the processor calls the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page fault: {access} at {address}")]
pub struct PageFault {
    /// The address of the access.
    pub address: VirtAddr,
    /// The kind of the access.
    pub access: Access,
}

/// Calls `operation` with the frame and the offset to which a processor now translates `address`.
///
/// An announced entry that is present is used like any other: an announcement stops other page work, not processors.
#[inline]
pub(crate) fn access<R>(
    section: &AccessSection<'_>,
    table: &RadixTable,
    memory: &PhysicalMemory,
    address: VirtAddr,
    access: Access,
    operation: impl FnOnce(&PhysicalMemory, Frame, u64) -> R,
) -> Result<R, PageFault> {
    let fault = PageFault { address, access };
    let page = address.page();
    if page.get() >= RadixTable::PAGES {
        return Err(fault);
    }
    #[cfg(debug_assertions)]
    if let Some(processors) = table.processors() {
        // Held until the access has ended, so that an invalidation waits for it.
        let mut caches = processors.current();
        let frame = through_caches(&mut caches, section, table, page, access).ok_or(fault)?;
        return Ok(operation(memory, frame, address.offset_in_page()));
    }
    let leaf = table.leaf(section, page).ok_or(fault)?;
    let (frame, _) = walk(table, leaf, page, access).ok_or(fault)?;
    Ok(operation(memory, frame, address.offset_in_page()))
}

/// The right that an access needs, and the bits that it leaves in the entry.
#[inline]
fn needs(access: Access) -> (u64, u64) {
    match access {
        Access::Read => (Entry::READ, Entry::ACCESSED),
        Access::Write => (Entry::WRITE, Entry::ACCESSED | Entry::DIRTY),
        Access::Execute => (Entry::EXECUTE, Entry::ACCESSED),
    }
}

/// Does the last step of a walk. Returns the frame and the entry that maps it. The entry allows the access and has the
/// bits that the access leaves.
#[inline]
fn walk(table: &RadixTable, leaf: Leaf<'_>, page: PageNumber, access: Access) -> Option<(Frame, Entry)> {
    let (right, bits) = needs(access);
    // A shared place has no write right, like the write bit of an upper entry, which overrides that of the entry.
    if access == Access::Write && leaf.is_shared() && !mutant!("shared_table_is_writable") {
        return None;
    }
    let mut entry = table.translate(leaf, page);
    loop {
        let frame = entry.mapped_frame().filter(|_| entry.has(right))?;
        if entry.has(bits) {
            return Some((frame, entry));
        }
        // The bits are set before the access: otherwise a page that looks clean could be dropped with the store in it.
        match table.set_hardware(leaf, page, entry, bits) {
            Ok(()) => return Some((frame, entry.with(bits))),
            Err(now) => entry = now,
        }
    }
}

/// Returns the frame of `page` as a processor with caches finds it, and caches the results of the walk.
#[cfg(debug_assertions)]
fn through_caches(
    caches: &mut Caches,
    section: &AccessSection<'_>,
    table: &RadixTable,
    page: PageNumber,
    access: Access,
) -> Option<Frame> {
    let subject = table.subject(page);
    if let Some(frame) = caches.frame(subject, needs(access).0) {
        return Some(frame);
    }
    let leaf = caches.leaf(section, table, page);
    let Some((leaf, (frame, entry))) = leaf.and_then(|leaf| Some((leaf, walk(table, leaf, page, access)?)))
    else {
        caches.faulted(section, table, page);
        return None;
    };
    caches.keep(subject, leaf, (frame, entry));
    Some(frame)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Soft;
    use crate::alone::{Entries, Frames};
    use crate::table::{access_section, section};
    use faultless::address::PageRange;
    use faultless::host::Host;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const AT: VirtAddr = VirtAddr::new(0x5008);

    fn machine(rights: u64) -> (Soft, RadixTable, Frame) {
        let soft = Soft::new(4).unwrap();
        let table = soft.new_table(&Arc::default()).unwrap();
        let frame = soft.frames().take_frame().unwrap();
        Frames(soft.frames()).zero(frame);
        put(&table, Entry::mapping(frame, rights));
        (soft, table, frame)
    }

    /// Does page work that maps the page of `AT`.
    fn put(table: &RadixTable, new: Entry) -> Entry {
        let section = section(table.sections());
        let leaf = table.make_leaf(&section, AT.page()).unwrap();
        while !table.try_announce(leaf, AT.page(), table.load(leaf, AT.page()).without(Entry::ANNOUNCED)) {}
        Entries(table).install(leaf, AT.page(), new).unwrap()
    }

    fn entry(table: &RadixTable) -> Entry {
        let section = section(table.sections());
        table.load(table.leaf(&section, AT.page()).unwrap(), AT.page())
    }

    fn load(soft: &Soft, table: &RadixTable, address: VirtAddr) -> Result<u64, PageFault> {
        let section = access_section(table, address.page());
        access(&section, table, soft.frames(), address, Access::Read, PhysicalMemory::load_u64)
    }

    fn store(soft: &Soft, table: &RadixTable, address: VirtAddr, value: u64) -> Result<(), PageFault> {
        let section = access_section(table, address.page());
        access(&section, table, soft.frames(), address, Access::Write, |memory, frame, offset| {
            memory.store_u64(frame, offset, value);
        })
    }

    #[test]
    fn accesses_set_the_bits_and_reach_the_frame() {
        let (soft, table, frame) = machine(Entry::READ | Entry::WRITE);
        assert_eq!(load(&soft, &table, AT), Ok(0));
        let mapped = Entry::mapping(frame, Entry::READ | Entry::WRITE);
        assert_eq!(entry(&table), mapped.with(Entry::ACCESSED));
        assert_eq!(store(&soft, &table, AT, 9), Ok(()));
        assert_eq!(entry(&table), mapped.with(Entry::HARDWARE));
        assert_eq!(load(&soft, &table, AT), Ok(9));
        assert_eq!(soft.frames().load_u64(frame, 8), 9);
    }

    #[test]
    fn what_is_not_allowed_faults() {
        let (soft, table, frame) = machine(Entry::READ);
        let fault = |address, access| PageFault { address, access };
        assert_eq!(store(&soft, &table, AT, 1), Err(fault(AT, Access::Write)));
        assert_eq!(load(&soft, &table, AT), Ok(0));
        for far in [VirtAddr::new(0), VirtAddr::new(RadixTable::PAGES << 12), VirtAddr::new(u64::MAX - 7)] {
            assert_eq!(load(&soft, &table, far), Err(fault(far, Access::Read)));
        }
        put(&table, Entry::mapping(frame, 0));
        assert_eq!(load(&soft, &table, AT), Err(fault(AT, Access::Read)));
        assert_eq!(
            fault(AT, Access::Write).to_string(),
            "page fault: write at 0x5008",
            "the message names the access and the address"
        );
    }

    #[test]
    fn an_announcement_does_not_stop_a_processor() {
        let (soft, table, frame) = machine(Entry::READ | Entry::WRITE);
        {
            let section = section(table.sections());
            let leaf = table.leaf(&section, AT.page()).unwrap();
            assert!(table.try_announce(leaf, AT.page(), table.load(leaf, AT.page())));
        }
        assert_eq!(store(&soft, &table, AT, 3), Ok(()));
        let mapped = Entry::mapping(frame, Entry::READ | Entry::WRITE).with(Entry::HARDWARE);
        assert_eq!(entry(&table), mapped.with(Entry::ANNOUNCED));
    }

    /// Invariant 3: a frame is freed after invalidate, and no access reaches it through the old translation.
    #[test]
    fn no_store_reaches_a_frame_after_invalidate() {
        let (soft, table, _) = machine(Entry::READ | Entry::WRITE);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = store(&soft, &table, AT, 0x5708);
                    }
                });
            }
            for _ in 0..20_000 {
                let old = put(&table, Entry::EMPTY).mapped_frame().unwrap();
                table.invalidate(PageRange::single(PageNumber::new(5)), |_| faultless::sync::spin_loop());
                soft.frames().store_u64(old, 8, 1);
                (0..20).for_each(|_| std::hint::spin_loop());
                let found = soft.frames().load_u64(old, 8);
                if found != 1 {
                    stop.store(true, Ordering::Relaxed);
                    assert_eq!(found, 1, "invariant 3: a store reached a frame that was taken away");
                }
                Frames(soft.frames()).free(old);
                let new = soft.frames().take_frame().unwrap();
                Frames(soft.frames()).zero(new);
                put(&table, Entry::mapping(new, Entry::READ | Entry::WRITE));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::Soft;
    use crate::alone::{Entries, Frames};
    use crate::table::{access_section, section};
    use faultless::address::PageRange;
    use faultless::host::{Host, StdSlots};
    use loom::thread;
    use std::sync::Arc;

    const PAGE: PageNumber = PageNumber::new(1);
    const RIGHTS: u64 = Entry::READ | Entry::WRITE;

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    fn machine() -> Arc<(Soft, RadixTable)> {
        let soft = Soft::new(2).unwrap();
        let table = soft.new_table(&Arc::default()).unwrap();
        Arc::new((soft, table))
    }

    fn mapped() -> (Arc<(Soft, RadixTable)>, Frame) {
        let machine = machine();
        let frame = machine.0.frames().take_frame().unwrap();
        Frames(machine.0.frames()).zero(frame);
        put(&machine, Entry::EMPTY, Entry::mapping(frame, RIGHTS));
        (machine, frame)
    }

    fn put((_, table): &(Soft, RadixTable), old: Entry, new: Entry) {
        let section = section(table.sections());
        let leaf = table.make_leaf(&section, PAGE).unwrap();
        assert!(table.try_announce(leaf, PAGE, old));
        Entries(table).install(leaf, PAGE, new).unwrap();
    }

    fn spawn(
        machine: &Arc<(Soft, RadixTable)>,
        work: impl FnOnce(&Soft, &RadixTable) + 'static,
    ) -> thread::JoinHandle<()> {
        let machine = Arc::clone(machine);
        thread::spawn(move || {
            StdSlots::set_current(1);
            work(&machine.0, &machine.1);
        })
    }

    fn load(soft: &Soft, table: &RadixTable) -> Result<u64, PageFault> {
        let section = access_section(table, PAGE);
        access(&section, table, soft.frames(), PAGE.address(), Access::Read, PhysicalMemory::load_u64)
    }

    fn store(soft: &Soft, table: &RadixTable, value: u64) -> Result<(), PageFault> {
        let section = access_section(table, PAGE);
        access(&section, table, soft.frames(), PAGE.address(), Access::Write, |memory, frame, offset| {
            memory.store_u64(frame, offset, value);
        })
    }

    /// Checks invariant 4: a page that a processor finds was zeroed.
    fn what_is_mapped_is_zeroed_if(hardware: u64) {
        check(move || {
            let machine = machine();
            // The leaf table exists already, so making it orders nothing.
            put(&machine, Entry::EMPTY, Entry::EMPTY);
            let other = spawn(&machine, |soft, table| {
                if let Ok(value) = load(soft, table) {
                    assert_eq!(value, 0, "invariant 4: old bytes");
                }
            });
            let (soft, table) = &*machine;
            {
                let section = section(table.sections());
                let leaf = table.leaf(&section, PAGE).unwrap();
                assert!(table.try_announce(leaf, PAGE, Entry::EMPTY));
                // After every fence, as a fault does it: the install alone must order the zeros.
                let frame = soft.frames().take_frame().unwrap();
                Frames(soft.frames()).zero(frame);
                Entries(table).install(leaf, PAGE, Entry::mapping(frame, RIGHTS).with(hardware)).unwrap();
            }
            other.join().unwrap();
        });
    }

    #[test]
    fn what_is_mapped_is_zeroed() {
        what_is_mapped_is_zeroed_if(0);
    }

    /// The processor has no bit to set, so only its walk makes the zeros visible.
    #[test]
    fn what_is_mapped_in_advance_is_zeroed() {
        what_is_mapped_is_zeroed_if(Entry::ACCESSED);
    }

    /// A processor that sets its accessed bit while the page is replaced uses the new entry.
    #[test]
    fn a_replaced_page_is_seen_whole() {
        check(|| {
            let (machine, old) = mapped();
            machine.0.frames().store_u64(old, 0, 1);
            let other = spawn(&machine, |soft, table| {
                let value = load(soft, table).unwrap();
                assert!(value <= 1, "invariant 4: old bytes");
            });
            let (soft, table) = &*machine;
            {
                let section = section(table.sections());
                let leaf = table.leaf(&section, PAGE).unwrap();
                let seen = table.load(leaf, PAGE);
                if table.try_announce(leaf, PAGE, seen) {
                    let new = soft.frames().take_frame().unwrap();
                    Frames(soft.frames()).zero(new);
                    let new = Entry::mapping(new, RIGHTS).with(Entry::ACCESSED);
                    Entries(table).install(leaf, PAGE, new).unwrap();
                }
            }
            other.join().unwrap();
        });
    }

    /// Checks invariant 9.
    #[test]
    fn announcing_keeps_the_dirty_bit() {
        check(|| {
            let (machine, frame) = mapped();
            let other = spawn(&machine, |soft, table| store(soft, table, 1).unwrap());
            let (_, table) = &*machine;
            {
                let section = section(table.sections());
                let leaf = table.leaf(&section, PAGE).unwrap();
                let seen = table.load(leaf, PAGE);
                if table.try_announce(leaf, PAGE, seen) {
                    Entries(table).let_go(leaf, PAGE);
                }
                let seen = table.load(leaf, PAGE);
                if table.try_announce(leaf, PAGE, seen) {
                    Entries(table).install(leaf, PAGE, Entry::mapping(frame, RIGHTS)).unwrap();
                }
            }
            other.join().unwrap();
            let section = section(table.sections());
            let entry = table.load(table.leaf(&section, PAGE).unwrap(), PAGE);
            assert_eq!(entry, Entry::mapping(frame, RIGHTS).with(Entry::HARDWARE), "invariant 9");
        });
    }

    /// Checks invariant 3 for the frame and for the leaf table.
    #[test]
    fn nothing_is_freed_under_a_processor() {
        check(|| {
            let (machine, frame) = mapped();
            let other = spawn(&machine, |soft, table| {
                if let Ok(value) = load(soft, table) {
                    assert_eq!(value, 0, "invariant 3: a frame in its next life");
                }
            });
            let (soft, table) = &*machine;
            {
                let section = section(table.sections());
                let leaf = table.leaf(&section, PAGE).unwrap();
                let mut seen = table.load(leaf, PAGE);
                while let Err(now) = Entries(table).exchange(leaf, PAGE, seen, Entry::EMPTY) {
                    seen = now;
                }
            }
            let retired = Entries(table).unhook(PAGE).unwrap();
            table.invalidate(PageRange::single(PAGE), |_| faultless::sync::spin_loop());
            Frames(soft.frames()).free(frame);
            assert_eq!(soft.frames().take_frame(), Some(frame));
            soft.frames().store_u64(frame, 0, 7);
            crate::table::free_retired(retired);
            other.join().unwrap();
        });
    }

    #[test]
    fn two_makers_get_one_leaf() {
        check(|| {
            let machine = machine();
            let other = spawn(&machine, |_, table| {
                let section = section(table.sections());
                let leaf = table.make_leaf(&section, PageNumber::new(0)).unwrap();
                Entries(table)
                    .exchange(leaf, PageNumber::new(0), Entry::EMPTY, Entry::from_bits(1 << 12))
                    .unwrap();
            });
            let (_, table) = &*machine;
            {
                let section = section(table.sections());
                let leaf = table.make_leaf(&section, PAGE).unwrap();
                Entries(table).exchange(leaf, PAGE, Entry::EMPTY, Entry::from_bits(2 << 12)).unwrap();
            }
            other.join().unwrap();
            let section = section(table.sections());
            let leaf = table.leaf(&section, PAGE).unwrap();
            assert_eq!(table.load(leaf, PAGE).bits(), 2 << 12);
            assert_eq!(table.load(leaf, PageNumber::new(0)).bits(), 1 << 12);
        });
    }
}
