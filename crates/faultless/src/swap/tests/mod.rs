//! Tests of swap space on a machine without page tables: the test itself holds what entries would hold.

mod ahead;
mod devices;
pub(crate) mod machine;
mod remove;
mod writes;
