//! Range work: what a call that changes mappings holds, the steps that it is made of, and the order in which it releases what
//! it holds.

pub(in crate::space) mod concurrent;
pub(in crate::space) mod moving;
pub(in crate::space) mod publish;
pub(in crate::space) mod range_change;
pub(in crate::space) mod range_work;
