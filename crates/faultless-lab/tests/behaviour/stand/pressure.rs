//! Memory pressure: each test runs once more on a machine with swap that has less memory than the test uses.

use super::{Ran, Stand, report};
use std::cell::Cell;

/// The number of frames in use from which on a thread that needs one has to make room first. Most tests use more pages than
/// that, so their pages are swapped out and in all the time.
pub(crate) const FRAMES: u64 = 2;

/// The number of frames that a thread gets at once: for the page of a file and for its copy, since a design that starts over
/// needs both.
pub(crate) const GRANTED: u32 = 2;

/// Tests that are not run under pressure, by module and name, with the reason.
const SKIPPED: &[(&str, &str)] = &[
    ("advice::an_error_ends_advice_where_it_is", "asks which pages are in memory"),
    ("advice::guards_refuse_and_stay", "counts frames"),
    ("advice::populate_brings_pages_or_says_why_not", "counts frames"),
    ("faults::fork_shares_until_written", "counts pages that are reused in place"),
    ("faults::memory_runs_out_with_a_typed_error", "needs memory that runs out"),
    ("foreign::a_mapping_over_another_leaves_the_frames_alone", "counts frames"),
    ("invariants::invariant_8_a_fork_without_memory_changes_nothing", "counts frames"),
    ("locks::locks_split_merge_and_fetch", "counts frames"),
    ("locks::map_fetches_what_it_can", "counts frames"),
    ("locks::usage_tells_whose_pages_are", "counts pages in memory"),
    ("locks::what_runs_out_is_said", "needs memory that runs out"),
    ("moves::a_fixed_place_is_cleared", "counts frames"),
    ("moves::a_move_without_memory_leaves_all", "reads its pages while each allocation fails"),
    ("locks::what_is_mapped_over_is_not_populated", "asks which pages are in memory"),
    ("refresh::a_dirty_page_refuses_to_be_refreshed", "needs a page that stays dirty"),
    ("refresh::refreshed_pages_are_the_stores", "needs pages that stay in memory"),
    ("shared::usage_counts_a_page_of_a_file_as_dirty_until_it_is_written_back", "counts dirty pages"),
    ("tables::a_table_is_shared_until_one_of_both_writes", "counts frames and tables"),
    ("tables::usage_counts_who_shares", "counts pages in memory"),
    ("tables::who_is_left_has_the_table_for_himself", "counts frames"),
    ("tables::without_memory_nothing_is_shared", "reads its pages while each allocation fails"),
    ("threads::no_memory_beside_changes_is_an_error_and_no_hang", "needs memory that runs out"),
];

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the machine that this thread makes is to be under pressure.
pub(crate) fn is_on() -> bool {
    IS_ON.get()
}

/// Runs `test` under pressure, unless it is skipped. `module` is the path of a module in the file of the test.
pub(crate) fn run<S: Stand>(module: &str, name: &str, test: impl FnOnce() -> Ran<S>) {
    let file = module.split("::").nth(1).expect("a module in a file");
    let is_it = |(skipped, _): &&(&str, &str)| skipped.split_once("::") == Some((file, name));
    if let Some((skipped, reason)) = SKIPPED.iter().find(is_it) {
        return faultless_lab::skipped::skipped(format_args!("{skipped} under pressure: {reason}"));
    }
    IS_ON.set(true);
    report::<S>(test());
}
