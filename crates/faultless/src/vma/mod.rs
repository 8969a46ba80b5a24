//! Mappings: VMAs, the tree that holds them, and the pure rules of splitting and merging.
pub mod tree;
