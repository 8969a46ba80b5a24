//! The first anonymous page of a mapping: which number its record has from then on.

use crate::design::LockingDesign;
use crate::host::Host;
use crate::space::Space;
use crate::vma::tree::{Ranged, View};
use crate::vma::{AnonId, Vma, edit};

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the record of `vma`, which `view` shows: the number of a neighbour that differs in rights alone, the one above
    /// first, or else a new one. None: the VMA is being replaced.
    ///
    /// Nobody keeps the neighbours as they are (CVE-2024-1312). But a number that one of them has does not change, and
    /// decides nothing by itself: should that mapping go at this moment, then two that never lie side by side have the same
    /// number, as the parts of a mapping have that was cut in the middle. That the VMA itself is not replaced meanwhile,
    /// with another number perhaps, its own record says.
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
