//! Leaf tables that hang in several tables since a fork (docs/fork.md). The place where such a leaf hangs is marked. No
//! processor stores through it. Processors set accessed bits in its entries. Under the record's lock, reclaim takes pages out of them
//! for all spaces that have the leaf, and read faults bring pages back.
//!
//! ```text
//!            before              shared                    one has left               the other was last
//!  parent    place ──► leaf      place* ──► leaf           place ──► copy             place ──► copy
//!  child                         place* ──┘   └─ spare     place* ──► leaf            place ──► leaf
//! ```
//! Page work or range work that has to write an entry leaves the shared table first. It fills a spare table and hangs it in
//! the shared one's place. There is one spare for each space but one. The space is counted until its processors have left too
//! ([`PendingLeave`]). If all spares are taken, another space is leaving, and the work waits for it. A space that is alone
//! has the table for itself.
//!
//! The host gives steps of one meaning each ([`ShareLeaves`](crate::host::ShareLeaves)). The order, the fences and the counts
//! are here.
//!
//! | file | |
//! |---|---|
//! | `record.rs` | one leaf's lock, counts and spares, and the space that has it |
//! | `share.rs` | to share a leaf, and to leave it |
//! | `family.rs` | the leaves that came from one leaf by copying |
//! | `home.rs` | the entry or the family that an anonymous folio names (docs/home.md) |
//! | `follow.rs` | the way from a folio to the entries that may map it |

mod family;
mod follow;
mod home;
mod record;
mod share;

#[cfg(any(test, feature = "audit"))]
pub(crate) use family::Family;
pub(crate) use family::FormerMember;
pub(crate) use family::SpareFamilies;
pub(crate) use follow::{Places, places};
pub(crate) use home::{Home, MOST_ENTRIES};
pub use record::{LeafRecord, SpareLink};
pub(crate) use record::{Locked, PendingLeave, SpaceMark};
pub(crate) use share::Unshared;
