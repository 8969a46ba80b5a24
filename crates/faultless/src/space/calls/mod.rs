//! The calls of an address space, each in a file of its own. Those that change mappings are made of the steps in `change/`.

pub(in crate::space) mod advise;
pub(in crate::space) mod brk;
pub(in crate::space) mod discard;
pub(in crate::space) mod exit;
pub(in crate::space) mod flags;
pub(in crate::space) mod fork;
pub(in crate::space) mod free;
pub(in crate::space) mod grow;
pub(in crate::space) mod guard;
pub(in crate::space) mod listing;
pub(in crate::space) mod lock;
pub(in crate::space) mod map;
pub(in crate::space) mod mapped;
pub(in crate::space) mod page_out;
pub(in crate::space) mod pin;
pub(in crate::space) mod populate;
pub(in crate::space) mod protect;
pub(in crate::space) mod remap;
pub(in crate::space) mod remote;
pub(in crate::space) mod remove;
pub(in crate::space) mod resident;
pub(in crate::space) mod seal;
pub(in crate::space) mod sync_file;
pub(in crate::space) mod unmap;
pub(in crate::space) mod usage;
