//! Where the kernel is not Linux.

use super::Job;
use crate::measure::Measured;
use crate::trouble::Trouble;

/// Says that it cannot be.
///
/// # Errors
/// [`Trouble::Cannot`].
pub fn round(_: Job<'_>) -> Result<Measured, Trouble> {
    Err(Trouble::Cannot("the kernel that this runs on is not Linux".into()))
}
