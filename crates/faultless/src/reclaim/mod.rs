//! Reclaim: takes frames back from spaces.
//!
//! ```text
//!  folio ──home──► record of a leaf table ──mark──► space ──► the entry
//!         in one read section, without a lock or a handle of the space
//! ```
//!
//! | file | |
//! |---|---|
//! | `walk.rs` | the steps for a batch of folios |
//! | `space_head.rs` | a space, as reclaim sees it: without its locking design |

mod space_head;
mod walk;

pub(crate) use space_head::{Refusal, SpaceHead, Victim};
