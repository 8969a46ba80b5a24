//! Range work: the things that a call which changes mappings holds, its steps, and the order in which it releases the
//! things that it holds.

pub(in crate::space) mod concurrent;
pub(in crate::space) mod moving;
pub(in crate::space) mod publish;
pub(in crate::space) mod range_change;
pub(in crate::space) mod range_work;
