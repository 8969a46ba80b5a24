#!/usr/bin/env bash
# Runs the check of each mutant: a model, or a test that needs no loom. The tests are built once, with all mutants in them, and
# FAULTLESS_MUTANT names the one that a run plants. A mutant counts as killed only if the check passes without it and fails with
# it *for the stated reason*. A check that runs out of time does not count.
# Arguments: names of mutants; without any, all of them. MUTANT_JOBS: the number of checks at a time; MUTANT_SECONDS: the time
# limit of a check.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never
jobs=${MUTANT_JOBS:-1} seconds=${MUTANT_SECONDS:-400}

table='
dirty_cow                | faultless-soft | loom | a_pin_for_writing_against_discard | invariant 5
reuse_ignores_pins       | faultless-soft | loom | reuse_in_place_counts_pins | invariant 6
merge_reads_record       | faultless-soft | loom | a_merge_against_a_first_page | records:
adopts_while_closed      | faultless-soft | loom | a_first_page_against_a_merge | records:
fork_reads_records_early | faultless-soft | loom | forks_cut_of_first_pages | invariant 7
unburied                 | faultless      | loom_tree | a_writer_beside_a_change_of_shape | (invariant 3|a change was lost|Causality violation)
stackrot                 | faultless      | loom_tree | | (invariant 3|Causality violation)
fork_links_early         | faultless-soft | loom | truncation_during_fork | invariant 3
moved_without_invalidate | faultless-soft | loom | an_access_against_remap | (invariant 3|Causality violation)
moves_past_the_bit       | faultless-soft | loom | page_work_against_remap | (a page was lost|invariant (3|11))
discard_without_invalidate | faultless-soft | loom | an_access_against_discard | (invariant 3|Causality violation)
populate_what_is_there   | faultless-soft | loom | populating_against_map_fixed | populated by mistake
failed_fork_stays        | faultless-soft | loom | a_fork_that_fails | invariant 11
no_invalidate            | faultless-soft | loom | an_access_against_unmap | (invariant 3|Causality violation)
vma_before_bit           | faultless-soft | loom | page_work_against_unmap | invariant 3
edits_of_neighbours      | faultless-soft | loom_beside | two_parts_of_one_mapping | (counts|left == right)
fixed_without_busy       | faultless-soft | loom | page_work_against_map_fixed | invariant 3
install_loses_dirty      | faultless-soft | loom | invariant_9_a_dirty_bit_is_not_lost | invariant 9
subject_relaxed          | faultless-soft | loom | accesses_after_each_other_against_unmap | (invariant 3|Causality violation)
leaf_with_neighbour      | faultless-soft | loom | a_leaf_table_keeps_its_neighbour | rule 7
invalidate_before_unhook | faultless-soft | loom | a_kept_upper_entry_against_unmap | (invariant (3|15)|Causality violation)
frames_before_unload     | faultless-soft | engine | a_space_ends_when | invariant 3
fork_without_freeze      | faultless-soft | loom | forks_cut$ | invariant 7
copied_before_invalidate | faultless-soft | loom | forks_cut_of_copies | (invariant 7|Causality violation)
shared_table_is_writable | faultless-soft | loom_fork | a_store_against_fork | invariant 7
store_noted_late         | faultless-soft | loom_shared | a_first_store_against_writeback | invariant 9
unshare_without_invalidate | faultless-soft | loom_fork | an_access_against_leaving | (invariant 7|Causality violation)
shared_pages_not_counted | faultless-soft | loom_fork | both_write | (invariant 6|a reference dropped)
home_stays               | faultless-soft | loom_homes | a_home_against_unmap$ | (invariant 3|Causality violation)
home_stays_for_a_slot    | faultless      | lib | a_home_is_left_beside_a_swap_in | rule H1
slot_moves_silently      | faultless-soft | engine | a_page_in_a_slot_moves | (rule H|NotFound)
space_without_grace      | faultless-soft | loom_homes | a_home_against_the_last_handle | (invariant 3|Causality violation)
home_stored_past_a_move  | faultless-soft | loom_homes | a_copy_against_a_move | (invariant 3|Causality violation|a home that|rule H)
moved_home_stays         | faultless-soft | loom_homes | a_home_of_a_page_that_has_left | (invariant 3|Causality violation|rule H)
relative_stays           | faultless-soft | loom_homes | a_home_against_unmap$ | (invariant 3|Causality violation)
isolated_home_stays      | faultless-soft | loom_homes | a_home_against_isolation | (invariant 3|Causality violation|left == right)
isolated_while_shared    | faultless-soft | loom_homes | a_shared_page_against_isolation | has left its family
locked_table_shared      | faultless-soft | engine | no_table_under_a_locked | rule H6
writeback_keeps_rights   | faultless-soft | loom_shared | a_store_against_writeback$ | invariant 9
writeback_ignores_claims | faultless-soft | loom_shared | a_store_against_writeback_and_unmap | invariant 9
writeback_protects_others | faultless-lab | order | batches::faultless_design::a_writeback_between_the_pages_of_another | invariant 9
fork_ignores_batches     | faultless-lab  | order | batches::faultless_design::fork_beside_freeing | invariant 7
freeing_ignores_batches  | faultless-lab  | order | batches::faultless_design::freeing_beside_freeing | invariant 3
pages_made_in_a_hole     | faultless-lab  | order | batches::faultless_design::no_page_is_made_in_a_hole | a page was made beside
fork_passes_reclaimed    | faultless-lab  | who_waits | fork_gives_the_child_what_reclaim_takes | invariant 7
sweep_ignores_batches    | faultless-soft | loom_shared | a_protect_beside_a_writeback | invariant 3
batch_freed_early        | faultless-soft | engine | truncation_frees | invariant 3
unconfirmed              | faultless-soft | loom_design | a_speculation_against_unmap | invariant 3
hull_after_publication   | faultless-soft | loom_shared | a_new_mapping_against_writeback | invariant 9
hull_before_moves        | faultless-soft | loom_evictions | truncation_against_remap | invariant 3
truncation_ignores_claims | faultless-soft | loom_evictions | truncation_against_ | invariant 3
failed_write_is_clean    | faultless-soft | loom_shared | a_failed_write_stays_dirty | invariant 9
fsync_asks_before_the_lock | faultless-soft | loom_shared | a_sync_beside_one_that_begins | sync returned before
sleeps_unfenced          | faultless      | lib | is_woken_for_what_it_waits_for | deadlock
wakes_unfenced           | faultless      | lib | is_woken_for_what_it_waits_for | deadlock
turn_ends_silently       | faultless-soft | loom_waits | two_misses_wait_for_one_place | deadlock
turn_yields              | faultless-soft | loom_waits | two_misses_wait_for_one_place | deadlock
event_passed_over        | faultless-soft | loom_waits | a_miss_beside_the_end_of_a_pin | deadlock
resize_under_transfers   | faultless-soft | loom_shared | a_cut_beside_a_writeback | invariant 14
length_before_the_bytes  | faultless-soft | loom_shared | a_reader_beside_an_appender | invariant 14
grows_under_a_write      | faultless-soft | loom_files | growth_against_a_write_of_the_last_page | invariant 14
frame_not_zeroed         | faultless-soft | engine | a_frame_that_is_used_again | invariant 4
resume_over_guard        | faultless-soft | engine | a_fault_that_waited | a page was mapped over a guard
sync_passes_a_refresh    | faultless-soft | loom_files | a_sync_beside_reading_anew | invariant 9
writes_into_a_removal    | faultless-soft | loom_files | a_write_of_two_pages_beside_a_hole | invariant 14
late_ends_are_clean      | faultless-soft | loom_files | a_flush_that_fails | invariant 9
flushes_beside_each_other | faultless-soft | loom_files | a_sync_beside_a_failing_flush | invariant 9
writes_ignore_removals   | faultless-soft | loom_files | a_write_of_two_pages_beside_a_cut | invariant 14
refresh_drops_late_stores | faultless-soft | loom_files | a_store_beside_reading_anew | invariant 9
future_asked_early       | faultless-soft | loom_calls | mlockall_misses_no_mapping | mlockall missed the mapping
leaf_left_to_nobody      | faultless-soft | loom_calls | neighbours_that_go_at_once | the table stays
hurry_forgets_retired    | faultless      | lib | a_handle_that_goes_while | no hurry is noted
told_before_number       | faultless      | lib | a_handle_that_goes_while | no hurry is noted
number_before_fence      | faultless      | lib | a_period_that_begins | (invariant 3|Causality violation)
bytes_free_own_list      | faultless      | lib | what_all_slots_keep | things that other slots have retired are kept
unlisted_by_half         | faultless      | lib | a_slot_that_is_given_on | (invariant 3|Causality violation)
sleeps_by_half           | faultless      | lib | a_slot_that_sleeps | (invariant 3|Causality violation)
unlisted_relaxed         | faultless      | lib | a_slot_that_sleeps | (invariant 3|Causality violation)
bound_not_asked_again    | faultless      | lib | a_bit_that_comes_while | invariant 3
full_asked_before_the_count | faultless   | lib | copies_at_the_limit | a count of mappings runs over
uncount_relaxed          | faultless      | lib | copies_at_the_limit | a count of mappings runs over
popped_after_the_look    | faultless      | lib | a_life_that_begins_while_its_frame_is_taken | pages in the queues
stock_taken_in_a_section | faultless      | lib | a_fault_takes_from_its_stock_while_that_is_taken_back | pages were lost
stock_taken_at_a_mark    | faultless      | lib | a_freed_page_goes_to_a_stock_that_is_taken_back | pages were lost
relinked_by_a_store      | faultless      | lib | a_life_that_begins_while_its_frame_is_gathered | pages in the queues
looks_before_it_notes    | faultless-soft | loom_waits | a_wait_for_a_place_against_ | deadlock
wakes_before_the_place   | faultless-soft | loom_waits | a_wait_for_a_place_against_an_unpin | deadlock
unpin_without_fence      | faultless      | lib | the_last_entry_and_the_last_pin | a page is kept that nobody wants
attaches_beside_take_out | faultless      | lib | a_take_out_beside_an_attach | (the wrong slot was left|taken out twice)
unwant_without_fence     | faultless      | lib | the_last_entry_and_the_last_pin | a page is kept that nobody wants
write_without_generation | faultless      | lib | a_write_beside_the_next_life | (an older write came late|taken for written)
no_recheck_of_slot       | faultless      | lib | a_pin_beside_an_eviction | (pinned, and another|invariant 3|Causality violation)
swapoff_leaves_written   | faultless      | lib | swapoff_beside_a_swap_in | bytes without a place
reads_beside_an_eviction | faultless      | lib | a_read_beside_an_eviction | mark and folio differ
no_look_after_the_freeze | faultless      | lib | a_page_that_is_wanted_again | a page is lost that an entry wants
written_before_invalidate | faultless-soft | loom_swap | a_store_against_reclaim | (a store was lost|Causality violation)
mapping_ends_late        | faultless-soft | loom_swap | an_old_store_against_a_store_fault | a store was lost
freeze_ignores_pins      | faultless-soft | loom_swap | a_store_against_reclaim | (a store was lost|isolated.rs)
copies_its_own_page      | faultless-soft | loom_swap | an_old_store_against_a_store_fault | a store was lost
reclaim_not_undone       | faultless-soft | loom_swap | an_old_store_against_a_load_and_a_store | a store was lost
window_read_only         | faultless-soft | loom_swap_shared | an_old_store_against_a_load_and_fork | invariant 7
stores_into_a_write      | faultless-soft | loom_swap | a_store_against_a_write_to_the_device | a store into a page that is being written
slots_without_invalidate | faultless-soft | loom_swap | an_access_against_reclaim_and_unmap | invariant 3
slots_copied_without_invalidate | faultless-soft | loom_swap_shared | an_old_store_against_fork | invariant 7
slot_not_dropped         | faultless-soft | loom_swap | exit_against_reclaim | a slot is kept that nobody wants
slot_stays_behind        | faultless-soft | loom_swap | remap_against_reclaim | a page was lost
reclaims_pinned          | faultless-soft | loom_swap | a_pin_against_reclaim | a pinned page was reclaimed
reclaims_locked          | faultless-soft | loom_swap | mlock_against_reclaim | a locked page was reclaimed
resumes_by_number        | faultless-soft | loom_swap | a_fault_that_waited_against_the_next_life | a page of the slot.s earlier life
no_lock_at_swap_in       | faultless-soft | loom_swap_shared | two_spaces_bring_a_page_back | (invariant 6|isolated.rs)
slot_left_beside_reclaim | faultless-soft | loom_swap_shared | a_store_against_reclaim_from_a_shared_table | (Lost \{ address|exceeded maximum number of branches)
shared_table_not_locked  | faultless-soft | loom_swap_shared | a_store_against_reclaim_from_a_shared_table | (invariant 6|rule H2)
shared_fault_not_locked  | faultless-soft | loom_swap_shared | a_load_against_a_store_of_a_shared_tables_page | (a page was lost|cache.rs|slot.rs|invariant 6)
shared_fault_drops_twice | faultless-soft | loom_swap_shared | two_loads_of_a_shared_tables_page | (a slot.s count below zero|slot.rs)
shared_fault_writes      | faultless-soft | engine | a_store_after_a_takeover | a store was lost
shared_place_not_asked   | faultless-soft | loom_reclaim_files | a_load_in_a_shared_table_against_map_fixed | another file.s page
slot_not_counted         | faultless-soft | loom_swap_shared | a_copy_of_slots_against_the_childs_end | (a page was lost|a slot.s count below zero)
one_sharer_invalidated   | faultless-soft | loom_swap_shared | accesses_against_reclaim_from_a_shared_table | (invariant 3|Causality violation)
shared_without_invalidate | faultless-soft | loom_swap_shared | fork_shares_a_table_against_reclaim | invariant 7
moves_before_invalidate  | faultless-soft | loom_move | a_store_to_the_source_against_a_move | (a store to the source reached|Causality violation)
moves_from_a_shared_table | faultless-soft | loom_move | a_hole_of_a_shared_table | (invariant (3|15)|Causality violation)
moved_without_home       | faultless-soft | loom_move | a_home_against_a_move | (not at home|invariant 3|Causality violation|rule H)
kept_not_restored        | faultless-soft | loom_move | a_store_to_the_target_against_a_move | KEPT
moves_shared_pages       | faultless-soft | loom_move | a_move_against_fork | (rule H|invariant 7)
gone_without_invalidate  | faultless-soft | loom_reclaim_files | a_private_copy_against_reclaim | rule S3
file_refault_is_new      | faultless-soft | engine | a_loop_that_fits | of the loop
waits_beside_free_frames | faultless-soft | engine | a_fault_that_has_freed_pages | never: stores
worker_calls_itself      | faultless-soft | engine | the_worker_rests_when | never: the worker rests
other_bytes_are_data     | faultless-soft | engine | two_engines_with_devices | another engine.s bytes
limits_stored_later      | faultless      | lib | limits_change_above_and_below | max is above that of
swapoff_charges_one      | faultless-soft | engine | each_group_pays_for_its_pages_when | pays for pages of another
cached_counted_late      | faultless-soft | loom_evictions | a_page_that_is_read_against_truncation | pages are cached, and
relatives_are_tries      | faultless-soft | engine | a_page_that_1200_processes_share_goes_to_swap | stays in memory
tables_take_pages        | faultless-soft | allocation_pressure | a_fault_without_memory_for_a_table_takes_no_page | pages were taken
homes_stay_lost          | faultless-soft | engine | moved_pages_are_taken_when_the_child_has_gone | pages stay in memory
home_given_unannounced   | faultless-soft | loom_lost_homes | a_home_that_is_given_against_unmap | (invariant 3|Causality violation|rule H)
stocks_are_not_awaited   | faultless-soft | engine | a_fault_waits_for_stocks_that_another_takes | faults failed
first_use_stays          | faultless-soft | engine | a_page_that_was_used_once_is_tried_once | tries found a page in use
looks_at_one_entry       | faultless-soft | engine | generations_find_pages_in_use | one entry at a time
reclaim_evicts_dirty     | faultless-soft | loom_reclaim_files | a_store_against_reclaim | invariant 9
truncation_passes_gone   | faultless-soft | loom_reclaim_files | truncation_against_reclaim | invariant 3
file_left_while_mapped   | faultless-soft | loom_memory_in_swap | a_store_against_reclaim | (a store was lost|Causality violation)
joins_while_written      | faultless-soft | loom_memory_in_swap | a_store_against_the_write | (a store into a page that is being written|a store was lost)
zeros_over_a_slot        | faultless-soft | loom_memory_in_swap | a_store_against_reclaim | (a store was lost|invariant 11)
cut_keeps_slots          | faultless-soft | engine | slots_are_free_after | (left:|slots are left)
cut_read_fails           | faultless-soft | loom_evictions | a_read_of_a_page_that_was_cut_off | a read of the file as it is now fails
reclaim_looks_up_early   | faultless-soft | loom_swap | mlock_against_reclaim | a locked page was reclaimed
others_isolation_ended   | faultless      | lib | a_write_that_is_not_needed | another thread has ended
strays_of_stuck_group_stay | faultless-soft | engine | strays_beside_locked | (OutOfMemory|out_of_memory)
sorts_one_class          | faultless-soft | engine | strays_behind_a_long_queue | (OutOfMemory|out_of_memory)
looks_are_tries          | faultless-soft | engine | a_page_that_is_mapped_2500 | left:
failed_writes_without_pause | faultless-soft | engine | pages_whose_writes_fail | writes of
file_keeps_its_slot      | faultless-soft | loom_memory_in_swap | two_accesses_bring | (a page in memory has a slot|invariant 11)
calls_unfenced           | faultless      | lib | a_call_reaches_a_worker | deadlock
looks_unfenced           | faultless      | lib | a_call_reaches_a_worker | deadlock
busy_worker_not_called   | faultless      | lib | a_call_during_a_round | deadlock
no_reserve               | faultless-soft | engine | the_worker_keeps_a_reserve | never:
few_frames_not_noted     | faultless-soft | engine | the_worker_keeps_a_reserve | never:
near_high_not_noted      | faultless-soft | engine | the_worker_keeps_a_group | never:
worker_keeps_the_engine  | faultless-soft | engine | the_worker_does_not_keep | never:
cleaned_pages_count      | faultless-soft | engine | the_count_is_exact | pages count as dirty
dirty_pages_not_noted    | faultless-soft | engine | the_worker_is_woken | never:
handed_pages_stay        | faultless-soft | engine | reclaim_hands_dirty_pages | the worker has written nothing
waits_for_the_worker     | faultless-soft | engine | a_thread_does_not_wait | never:
dirty_without_limit      | faultless-soft | engine | without_a_worker_a_store | dirty pages
two_victims_at_once      | faultless-soft | engine | one_victim_at_a_time | (two victims at once|still has memory)
victim_for_nothing       | faultless-soft | engine | no_space_is_ended_if | has_exited
reaps_beside_exit        | faultless-soft | loom_reap | reap_against_exit | memory is in use when a call
exit_without_fence       | faultless-soft | loom_reap | reap_against_a_fault$ | (invariant 3|memory is in use|a page outside of all mappings)
exit_frees_the_tree_early | faultless-soft | loom_reap | reap_against_a_fault_that_makes_a_table | (invariant 3|Causality violation)
no_page_fence            | faultless-soft | loom | page_work_against_unmap | invariant 3
no_range_fence           | faultless-soft | loom | page_work_against_unmap | invariant 3
drops_what_was_stored    | faultless-soft | loom_swap | a_store_against_reclaim_of_a_freed_page | a store was lost
store_leaves_lazy        | faultless-soft | loom_swap | a_store_against_reclaim_of_a_freed_page | a store was lost
freed_without_invalidate | faultless-soft | loom_swap | an_old_store_against_reclaim_of_a_freed_page | a store was lost
stock_changed_while_taken | faultless      | lib | a_stock_changes_its_group | a group pays for .* gives
stock_given_to_the_next  | faultless      | lib | a_stock_changes_its_group | a group pays for
freed_into_any_stock     | faultless      | lib | a_page_of_another_group_is_freed | a group pays for pages of another
copy_takes_no_group      | faultless-soft | loom_limits | a_copy_by_a_thread | a group pays for other pages
reserves_unfenced        | faultless      | lib | a_reservation_beside_a_removal | a device that is empty gets a page
removal_unfenced         | faultless      | lib | a_reservation_beside_a_removal | a device that is empty gets a page
slot_copy_without_invalidate | faultless-soft | loom_swap_shared | an_old_load_against_a_copy | the old bytes are read
reads_a_slot_twice       | faultless      | lib | two_faults_read_once | (two folios of one slot|read twice)
write_without_slot       | faultless      | lib | a_write_beside_the_next_life | (an older write came late|taken for written)
store_keeps_the_slot     | faultless-soft | loom_swap | a_second_reclaim_after_a_store | a store was lost
protect_leaves_slots     | faultless-soft | loom_swap_shared | a_load_against_protect_of | invariant 3
isolated_late            | faultless-soft | loom_reclaim_files | a_private_copy_against_reclaim | rule S3
moves_what_was_used      | faultless-soft | loom_move | a_store_to_the_source_against_a_move | a store to the source reached
home_is_proof            | faultless-soft | loom_swap | a_new_page_at_the_old_home | a page was lost
home_stored_late         | faultless-soft | loom_homes | a_reuse_against_a_move | (a home that the page has left|invariant 3)
copies_do_not_join       | faultless-soft | loom_homes | a_search_against_a_new_relative | a search misses a relative
first_home_relaxed       | faultless      | lib | a_home_of_the_next_life | (Causality violation|left ==)
first_word_relaxed       | faultless-soft | loom_homes | in_another_table | (invariant 3|Causality violation)
pin_relaxed              | faultless      | lib | a_pin_beside_an_eviction | (pinned, and another|invariant 3|Causality violation)
freeze_relaxed           | faultless      | lib | a_pin_beside_an_eviction | (invariant 3|Causality violation)
home_read_outside        | faultless-soft | loom_gathering | gathering_against_unmap | (invariant 3|Causality violation)
late_drop_keeps_home     | faultless-soft | loom_homes | a_home_against_a_mapping_that_is_dropped_late | (invariant 3|Causality violation)
home_without_mapping     | faultless-soft | loom_homes | a_home_of_a_pinned_page | (invariant 3|Causality violation)
remap_leaves_home        | faultless-soft | loom_homes | a_reuse_against_a_move | (a home that the page has left|invariant 3|Causality violation)
home_followed_relaxed    | faultless      | lib | a_home_of_the_next_life | (Causality violation|left ==)
sweeps_past_the_bit      | faultless-soft | loom | page_work_against_unmap | (invariant 3|is_announced)
section_unfenced         | faultless      | lib | a_slot_that_is_given_on_beside_a_grace | (invariant 3|Causality violation)
grace_unfenced           | faultless      | lib | a_slot_that_is_given_on_beside_a_grace | (invariant 3|Causality violation)
access_unfenced          | faultless      | lib | an_access_beside_an_invalidation | (invariant 3|Causality violation)
shootdown_unfenced       | faultless      | lib | an_access_beside_an_invalidation | (invariant 3|Causality violation)
frees_before_it_leaves   | faultless      | lib | a_pin_beside_an_eviction | (pinned, and another|invariant 3|Causality violation)
run_put_back_writable    | faultless-soft | engine | entries_of_a_run | invariant 7
waits_spin               | faultless-soft | loom | page_work_against_unmap | exceeded maximum number of branches
'

refuse() { echo "scripts/mutants.sh: $1" >&2; exit 2; }
[[ $jobs =~ ^[1-9][0-9]*$ ]] || refuse "MUTANT_JOBS is '$jobs': give a number from 1 on"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || refuse "MUTANT_SECONDS is '$seconds': give a number from 1 on"

# Not by a pipe into grep -q, which ends at the first match: the writer then fails, and pipefail with it.
is_among() { # a text, and others: whether it is one of them
    local one
    for one in "${@:2}"; do [ "$one" != "$1" ] || return 0; done
    return 1
}

# The requested rows, and each of their checks once: package, test file, name.
mutants=() places=() reasons=() checks=() names=()
while IFS='|' read -r mutant package file check reason; do
    read -r mutant <<<"$mutant"
    [ -n "$mutant" ] || continue
    names+=("$mutant")
    if [ $# -gt 0 ] && [[ " $* " != *" $mutant "* ]]; then continue; fi
    read -r package <<<"$package"; read -r file <<<"$file"; read -r check <<<"$check"; read -r reason <<<"$reason"
    place="$package $file $check"
    mutants+=("$mutant") places+=("$place") reasons+=("$reason")
    if ! is_among "$place" "${checks[@]}"; then checks+=("$place"); fi
done <<<"$table"
for name in "$@"; do
    is_among "$name" "${names[@]}" || refuse "there is no mutant '$name': the table in this script lists the names"
done

# Checks that the table and the sources name the same mutants.
planted=$(grep -rhoE --include='*.rs' 'mutant!\([^)]*\)' crates/*/src | grep -oE '"[a-z0-9_]+"' | tr -d '"' | sort -u)
odd=$(comm -3 <(printf '%s\n' "${names[@]}" | sort) <(echo "$planted"))
if [ -n "$odd" ]; then
    sed -E 's/^\t(.*)/the sources plant \1, and the table has no check of it/; t; s/$/ is in the table, and no mutant! in the sources has it/' <<<"$odd"
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
is_model() { [[ $1 == lib || $1 == loom* ]]; }
files() { # package, model or test: those test files of the package that the checks need
    local package file
    while read -r package file _; do
        if [ "$package" = "$1" ] && { if is_model "$file"; then [ "$2" = model ]; else [ "$2" = test ]; fi; }; then echo "$file"; fi
    done < <(printf '%s\n' "${checks[@]}") | sort -u
}
# Models are built with loom, other tests as always. Notes the program of each test file.
build() { # package, model or test
    local file targets=() options=(--target-dir target/mutants) flags=${RUSTFLAGS:-}
    if [ "$2" = model ]; then options=(--target-dir target/mutants-loom --profile checked) flags="$flags --cfg loom"; fi
    for file in $(files "$1" "$2"); do
        if [ "$file" = lib ]; then targets+=(--lib); else targets+=(--test "$file"); fi
    done
    [ ${#targets[@]} -gt 0 ] || return 0
    echo "building $1: ${targets[*]}" >&2
    if ! FAULTLESS_MUTANTS=1 RUSTFLAGS=$flags cargo test --no-run "${options[@]}" -p "$1" "${targets[@]}" 2>"$work/build"; then
        cat "$work/build"; echo "$1 does not build"; exit 1
    fi
    sed -nE -e "s:/main\.rs:.rs:" -e "s:^ *Executable (unittests src|tests)/(.*)\.rs \((.*)\)$:$1 \2 \3:p" "$work/build" >>"$work/programs"
}
for package in $(printf '%s\n' "${checks[@]}" | cut -d' ' -f1 | sort -u); do
    build "$package" model
    build "$package" test
done

run() { # check, log: with the mutant that FAULTLESS_MUTANT names
    local package file check program filter=()
    IFS=' ' read -r package file check <<<"$1"
    program=$(sed -n "s:^$package $file ::p" "$work/programs")
    case "$check" in
        '') ;;
        *'$') filter=(--exact "${check%'$'}") ;;
        *) filter=("$check") ;;
    esac
    program=$(realpath "$program")
    (cd "crates/$package" && exec timeout -k 5 "$seconds" "$program" "${filter[@]}") >"$2" 2>&1
}
try_without() { # number of a check: if its mutants do not count, notes the reason
    local log=$work/without.$1
    if ! FAULTLESS_MUTANT='' run "${checks[$1]}" "$log"; then
        { echo "NOT COUNTED: the check fails without the mutant"; tail -n 5 "$log"; } >"$work/refused.$1"
    elif ! grep -qE 'test result: ok\. [1-9]' "$log"; then
        echo "NOT COUNTED: there is no such check" >"$work/refused.$1"
    fi
}
try() { # number of a mutant: prints its result
    local place=${places[$1]} reason=${reasons[$1]} log=$work/with.$1 number name
    name=${place#* }; name=${name#* }; name=${name:-$(cut -d' ' -f2 <<<"$place")}
    for number in "${!checks[@]}"; do
        if [ "${checks[$number]}" = "$place" ] && [ -e "$work/refused.$number" ]; then cat "$work/refused.$number"; return; fi
    done
    FAULTLESS_MUTANT=${mutants[$1]} run "$place" "$log"; local status=$?
    # 137: the check did not end after the first signal.
    if [ $status -eq 124 ] || [ $status -eq 137 ]; then echo "NOT COUNTED: out of time after $seconds s"
    elif [ $status -eq 0 ]; then echo "ALIVE: $name passes with it"
    elif grep -qE "$reason" "$log"; then
        echo "killed by $name: $(grep -m1 -oE "$reason.*" "$log" | cut -c1-90)"
    else echo "NOT COUNTED: $name fails, and not for '$reason'"; tail -n 15 "$log"; fi
}
tell() { # number of a mutant
    printf '%-26s %s\n' "${mutants[$1]}" "$(try "$1")" | tee "$work/said.$1"
}
at_once() { # function, its arguments: calls it with each argument, $jobs at a time
    local one
    for one in "${@:2}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
        "$1" "$one" &
    done
    wait
}
at_once try_without "${!checks[@]}"
at_once tell "${!mutants[@]}"
killed=$(cat "$work"/said.* | grep -cE '^[a-z0-9_]+ +killed by')
echo "killed $killed of ${#mutants[@]}"
[ "$killed" -eq "${#mutants[@]}" ]
