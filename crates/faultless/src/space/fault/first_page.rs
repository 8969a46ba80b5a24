//! The first anonymous page of a mapping, and the number that the mapping's record gets with it.

use crate::design::LockingDesign;
use crate::host::Host;
use crate::space::Space;
use crate::vma::tree::{Ranged, View};
use crate::vma::{AnonId, Vma, edit};

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the record of `vma`, which `view` shows. Its number is that of a neighbour that differs in rights alone, the one
    /// above first, or else a new one. Returns `None` if the VMA is being replaced.
    ///
    /// Nothing keeps the neighbours as they are (CVE-2024-1312). But a neighbour's number does not change, and decides nothing
    /// by itself. If that mapping goes at this moment, two mappings that never lie side by side have the same number. The parts
    /// of a mapping that was cut in the middle have that too. The VMA's own record tells whether the VMA itself is replaced
    /// meanwhile, perhaps with another number.
    pub(in crate::space) fn begin_record(
        &self,
        view: View<'_, Vma<H, D>>,
        vma: &Vma<H, D>,
    ) -> Option<AnonId> {
        let (mapping, range) = (vma.glance(), vma.range());
        let above = view.from(range.end()).next();
        let adopted = above.and_then(|above| edit::adopts(&mapping, &above.glance()));
        let adopted = adopted.or_else(|| edit::adopts(&mapping, &view.before(range.start())?.glance()));
        vma.record()?.begin(adopted.unwrap_or_else(|| AnonId::new(self.engine.unordered_serial())))
    }
}
