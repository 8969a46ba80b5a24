//! The message of a test that does nothing on this machine.

use std::fmt::Display;
use std::io::Write;

/// Prints to the terminal the reason for which a test does nothing. The test harness hides the output of `println!` and
/// `eprintln!` of a test that passes.
pub fn skipped(why: impl Display) {
    // A closed standard error is no reason to fail the test.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
