//! Folio
/// Counts and state of one frame.
pub struct Folio {}
