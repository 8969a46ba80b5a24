//! Memory pressure: each test runs again with less memory than it uses, on a machine with swap. It runs once for each kind of shortage.

use super::{Ran, Stand, report};
use faultless::{Engine, LimitConfig, MemoryLimit};
use std::cell::Cell;
use std::sync::Arc;

/// The reason why memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The machine has few frames.
    Frames,
    /// The spaces of the test are in a group with the smallest max: a thread that needs a page reclaims one of the group first.
    Max,
    /// The spaces of the test are in a group with the smallest high, below one with a max: a thread that has taken a page too many
    /// reclaims some, or sleeps, before its next fault.
    High,
}

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

/// The number of pages by which the max of the group above one with a high is above that high.
const ABOVE_HIGH: u64 = 2;

/// Tests that are not run in a group with limits either, with the reason.
const SKIPPED_IN_A_GROUP: &[(&str, &str)] = &[
    ("locks::lock_all_is_for_now_and_later", "asks which pages are in memory"),
    ("locks::locks_are_limited", "locks more pages than the group may have"),
    ("locks::locks_stop_where_they_cannot_go_on", "asks which pages are in memory"),
    ("locks::what_is_unlocked_is_not_fetched", "asks which pages are in memory"),
];

/// Tests with pages that cannot be reclaimed for a while, the number of these pages, and the reason. A group has room for them.
const ROOM: &[(&str, u64, &str)] = &[
    ("foreign::no_folio_of_a_foreign_frame_is_asked", 16, "locked pages"),
    ("growth::locked_memory_grows_with_its_pages", 64, "locked pages"),
    ("homes::locked_pages_are_in_tables_of_their_own", 64, "locked pages"),
    ("moves::a_child_has_what_was_moved", 4, "pages that several spaces have, and mremap has moved"),
    ("moves::faults_and_moves_at_once", 24, "pages that several threads need at the same time"),
    ("pins::a_read_only_page_is_pinned_as_the_spaces_own_and_stays_read_only", 8, "pinned pages"),
    (
        "shared::a_crowd_of_stores_syncs_and_truncations",
        24,
        "pages that several threads need at the same time",
    ),
    ("tables::a_pin_takes_a_table", 8, "pinned pages"),
    ("tables::many_stores_beside_forks_and_ends", 24, "pages that several threads need at the same time"),
    (
        "threads::a_file_under_a_tight_limit_shows_its_bytes",
        24,
        "pages that several threads need at the same time",
    ),
    ("threads::faults_maps_and_forks_side_by_side", 24, "pages that several threads need at the same time"),
];

thread_local! {
    static SHORTAGE: Cell<Option<Shortage>> = const { Cell::new(None) };
    /// The number of pages that the group has room for beyond the smallest limit.
    static MORE: Cell<u64> = const { Cell::new(0) };
}

/// Returns the shortage of the machine that this thread makes. `None`: it has enough memory.
pub(crate) fn shortage() -> Option<Shortage> {
    SHORTAGE.get()
}

/// Returns whether the machine that this thread makes is to be under pressure.
pub(crate) fn is_on() -> bool {
    shortage().is_some()
}

/// Makes the group of the spaces of a machine. Returns `None` if they are to be in none.
pub(crate) fn limit<S: Stand>(engine: &Arc<Engine<S>>) -> Option<MemoryLimit<S>> {
    let least = LimitConfig::MINIMUM + MORE.get();
    let new = |max| MemoryLimit::new(engine, LimitConfig::max(max)).expect("a group");
    match shortage()? {
        Shortage::Frames => None,
        Shortage::Max => Some(new(least)),
        Shortage::High => {
            let config = LimitConfig { high: least, max: LimitConfig::NONE };
            Some(new(least + ABOVE_HIGH).child(config).expect("a group"))
        }
    }
}

/// Runs `test` under pressure, unless it is skipped. `module` is the path of a module in the file of the test.
pub(crate) fn run<S: Stand>(shortage: Shortage, (module, name): (&str, &str), test: impl FnOnce() -> Ran<S>) {
    let file = module.split("::").nth(1).expect("a module in a file");
    let is_it = |test: &str| test.split_once("::") == Some((file, name));
    let in_a_group = if shortage == Shortage::Frames { &[] } else { SKIPPED_IN_A_GROUP };
    if let Some((skipped, reason)) = SKIPPED.iter().chain(in_a_group).find(|(test, _)| is_it(test)) {
        return faultless_lab::skipped::skipped(format_args!("{skipped} under pressure: {reason}"));
    }
    SHORTAGE.set(Some(shortage));
    let room = ROOM.iter().find(|(test, ..)| is_it(test));
    MORE.set(room.map_or(0, |(_, pages, _)| *pages));
    report::<S>(test());
}
