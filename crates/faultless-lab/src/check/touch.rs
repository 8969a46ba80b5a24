//! Work of the threads that fault everywhere while others work. They change nothing that the others can see.

use super::draw::Draw;
use super::operation::{PAGES, WINDOW};
use super::threads::{Round, STRIDE};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::Sharing;
use faultless_soft::Cpu;
use std::sync::PoisonError;

/// Touches one page somewhere. Any result is allowed, because other threads decide about the mappings there.
pub fn touch<D: LockingDesign>(round: &Round<D>, draw: &mut Draw) {
    let threads = round.children.len() as u64;
    let (parent, window) = (draw.below(threads) as usize, draw.below(threads));
    let child = {
        let children = round.children[parent].lock().unwrap_or_else(PoisonError::into_inner);
        children.get(draw.below(4) as usize).cloned()
    };
    let space = child.as_ref().unwrap_or(&round.space);
    // Most episodes use few pages, around the middle.
    let around = draw.one_of(&[4, 8, 16, PAGES / 2]);
    let page = PAGES / 2 - around + draw.below(2 * around);
    let at = WINDOW + window * STRIDE + page * PAGE_SIZE;
    let word = VirtAddr::new(at + draw.below(PAGE_SIZE / 8) * 8);
    match draw.below(8) {
        0 => _ = space.read_bytes(VirtAddr::new(at), &mut [0; PAGE_SIZE as usize]),
        1 if round.is_anonymous[window as usize] => _ = space.fetch_add_u64(word, 0),
        // In a child of fork, only its parent's window is in use. The other windows may be changed.
        2 | 3 if child.is_some() && window as usize != parent => {
            let page = VirtAddr::new(at).page();
            let is_private =
                |info: &faultless::MappingInfo| info.range.contains(page) && info.sharing == Sharing::Private;
            if space.mappings().iter().any(is_private) {
                let _ = space.store_u64(word, draw.word());
            }
        }
        _ => _ = space.load_u64(word),
    }
}
