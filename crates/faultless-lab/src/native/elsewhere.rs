//! Replacement of the native machine on kernels other than Linux.

use super::Job;
use crate::measure::Measured;
use crate::trouble::Trouble;

/// Fails, because this kernel is not Linux.
///
/// # Errors
/// Always [`Trouble::Cannot`].
pub fn round(_: Job<'_>) -> Result<Measured, Trouble> {
    Err(Trouble::Cannot("the kernel that this runs on is not Linux".into()))
}
