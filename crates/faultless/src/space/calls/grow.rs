//! Mappings that grow down (MAP_GROWSDOWN). A fault below makes them longer. If they are locked, the pages between come with
//! their first touch, as on Linux.

use crate::address::{PAGE_SHIFT, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::host::Host;
use crate::protection::Protection;
use crate::space::calls::protect::ProtectError;
use crate::space::calls::remap::extension;
use crate::space::change::publish::{Joins, Origin};
use crate::space::{AddressSpace, Space};
use crate::vma::tree::{Ranged, View};
use crate::vma::{MappingFlags, Vma};

/// Pages that stay free between a mapping that grows down and the next usable address below it (Linux: stack_guard_gap).
const GUARD_GAP: u64 = 256;

/// Returns the pages of a mapping, with the gap below it if it grows down. Nothing is placed there, except at a fixed address.
pub(in crate::space) fn guarded<H: Host, D: LockingDesign>(vma: &Vma<H, D>) -> PageRange {
    let range = vma.range();
    let gap = if vma.mapping().flags.contains(MappingFlags::GROWS_DOWN) { GUARD_GAP } else { 0 };
    let start = range.start().get().saturating_sub(gap);
    PageRange::new(PageNumber::new(start), range.end()).unwrap_or(range)
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Changes the protection as [`AddressSpace::protect`] does, from the start of the mapping on, which must grow down
    /// (PROT_GROWSDOWN). The address may lie below the mapping, the end may not.
    ///
    /// # Errors
    /// [`ProtectError`]; [`ProtectError::NotGrowing`] if the first mapping above the address does not grow down.
    pub fn protect_down(
        &self,
        address: VirtAddr,
        length: u64,
        protection: Protection,
    ) -> Result<(), ProtectError> {
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(()),
            range => range?,
        };
        let space = &self.0;
        let hole = ProtectError::Hole { range, address };
        loop {
            let found = {
                let section = space.engine.enter();
                above(space.tree.view(&section), range.start())
            };
            let Some((mapped, grows)) = found.filter(|(mapped, _)| mapped.start() < range.end()) else {
                return Err(hole);
            };
            if !grows {
                return Err(ProtectError::NotGrowing { address: mapped.start().address() });
            }
            let wider = PageRange::new(mapped.start(), range.end()).ok_or(hole)?;
            let is_still = |start| start == Some(mapped.start());
            let protected = self.protect_range(wider, protection, |view| {
                let now = above(view, range.start());
                is_still(now.filter(|(_, grows)| *grows).map(|(mapped, _)| mapped.start()))
            });
            if let Some(result) = protected {
                return result;
            }
        }
    }
}

/// Returns the first mapping that ends above `page`, and whether it grows down.
fn above<H: Host, D: LockingDesign>(
    view: View<'_, Vma<H, D>>,
    page: PageNumber,
) -> Option<(PageRange, bool)> {
    view.from(page).next().map(|vma| (vma.range(), vma.flags().contains(MappingFlags::GROWS_DOWN)))
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the mapping above `page`, a hole, reach down to it. That mapping must grow down, must not become too long, and
    /// must keep its gap to the mapping below. Returns true if the caller is to look again.
    ///
    /// The caller has announced and taken nothing. Readers of the tree see the old map or the new one (CVE-2023-3269).
    #[inline(never)]
    pub(in crate::space) fn grow_down(&self, page: PageNumber) -> bool {
        let look = || {
            let section = self.engine.enter();
            above(self.tree.view(&section), page)
        };
        if !matches!(look(), Some((_, true))) {
            return false;
        }
        let mut call = self.change(Call::Grow, self.whole());
        loop {
            let Some((mapped, true)) = look() else { break false };
            // Another thread was faster.
            let Some(range) = PageRange::new(page, mapped.start()) else { break true };
            call.exclude(range.hull(mapped), |_| true);
            // The first page of the mapping is taken too, so that the mapping stays as it is while a host follows.
            let claim = range.hull(PageRange::single(mapped.start()));
            let lock = call.take(claim);
            let view = self.tree.view_locked(&lock.writer);
            if above(view, page) != Some((mapped, true)) {
                drop(lock);
                call.release();
                continue;
            }
            let Some(vma) = view.find(mapped.start()) else { break false };
            let below = view.before(page).filter(|vma| {
                let mapping = vma.mapping();
                !mapping.protection.is_empty() && !mapping.flags.contains(MappingFlags::GROWS_DOWN)
            });
            let gap = below.is_none_or(|below| page.get() - below.range().end().get() >= GUARD_GAP);
            let length = mapped.end().get() - page.get();
            let more = extension(vma, range);
            // This comes before there is a record. It is checked again when the mapping is published.
            let fits = length <= lock.limits.stack >> PAGE_SHIFT
                && lock.check_room(&more, range.pages()).is_ok()
                && lock.check_locked(more.flags, range.pages()).is_ok();
            if gap && !vma.is_busy() {
                // As on Linux, a mapping that grows has a record.
                let _ = self.begin_record(view, vma);
            }
            if vma.is_busy() || !gap || !fits {
                break vma.is_busy();
            }
            let mut new = extension(vma, range);
            break call.publish_followed(lock, (&mut new, Origin::Longer), Joins::ABOVE).is_ok();
        }
    }
}
