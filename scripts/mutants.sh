#!/usr/bin/env bash
# Plants each mutant, builds, and runs the check that has to kill it: a model, or a test that needs no loom. A mutant counts as
# killed only if the check passes without it and fails with it *for the stated reason*; a build that fails or a check that runs
# out of time does not.
# Arguments: names of mutants; without any, all of them. MUTANT_JOBS: so many at a time; MUTANT_SECONDS: the most that a check may take.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never
seconds=${MUTANT_SECONDS:-400}

# mutant | package | test file, or lib | check | what the failure has to say
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
frames_before_unload     | faultless-soft | processors | a_space_ends_when | invariant 3
fork_without_freeze      | faultless-soft | loom | forks_cut$ | invariant 7
shared_table_is_writable | faultless-soft | loom_fork | a_store_against_fork | invariant 7
store_noted_late         | faultless-soft | loom_shared | a_first_store_against_writeback | invariant 9
unshare_without_invalidate | faultless-soft | loom_fork | an_access_against_leaving | (invariant 7|Causality violation)
shared_pages_not_counted | faultless-soft | loom_fork | both_write | (invariant 6|a reference dropped)
home_stays               | faultless-soft | loom_homes | a_home_against_unmap$ | (invariant 3|Causality violation)
space_without_grace      | faultless-soft | loom_homes | a_home_against_the_last_handle | (invariant 3|Causality violation)
home_stored_past_a_move  | faultless-soft | loom_homes | a_copy_against_a_move | (invariant 3|Causality violation|a home that)
moved_home_stays         | faultless-soft | loom_homes | a_home_of_a_page_that_has_left | (invariant 3|Causality violation)
relative_stays           | faultless-soft | loom_homes | a_home_against_unmap$ | (invariant 3|Causality violation)
family_without_grace     | faultless-soft | loom_homes | the_end_of_a_family | (invariant 3|Causality violation)
locked_table_shared      | faultless-soft | homes | no_table_under_a_locked | rule H6
writeback_keeps_rights   | faultless-soft | loom_shared | a_store_against_writeback$ | invariant 9
writeback_ignores_claims | faultless-soft | loom_shared | a_store_against_writeback_and_unmap | invariant 9
sweep_ignores_batches    | faultless-soft | loom_shared | a_protect_beside_a_writeback | invariant 3
batch_freed_early        | faultless-soft | processors | truncation_frees | invariant 3
unconfirmed              | faultless-soft | loom_design | a_speculation_against_unmap | invariant 3
evicts_dirty             | faultless-soft | loom_shared | eviction_against_writeback | invariant 9
hull_after_publication   | faultless-soft | loom_shared | a_new_mapping_against_writeback | invariant 9
hull_before_moves        | faultless-soft | loom_folios | truncation_against_remap | invariant 3
truncation_ignores_claims | faultless-soft | loom_folios | truncation_against_ | invariant 3
push_ignores_detach      | faultless-soft | loom_folios | a_page_that_becomes_idle_against_truncation | (on the list|invariant 11)
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
frame_not_zeroed         | faultless-soft | first_touch | a_frame_that_is_used_again | invariant 4
resume_over_guard        | faultless-soft | first_touch | a_fault_that_waited | a page came where a guard is
sync_passes_a_refresh    | faultless-soft | loom_files | a_sync_beside_reading_anew | invariant 9
writes_into_a_removal    | faultless-soft | loom_files | a_write_of_two_pages_beside_a_hole | invariant 14
late_ends_are_clean      | faultless-soft | loom_files | a_flush_that_fails | invariant 9
flushes_beside_each_other | faultless-soft | loom_files | a_sync_beside_a_failing_flush | invariant 9
writes_ignore_removals   | faultless-soft | loom_files | a_write_of_two_pages_beside_a_cut | invariant 14
refresh_drops_late_stores | faultless-soft | loom_files | a_store_beside_reading_anew | invariant 9
future_asked_early       | faultless-soft | loom_calls | mlockall_misses_no_mapping | neither current nor future
leaf_left_to_nobody      | faultless-soft | loom_calls | neighbours_that_go_at_once | the table stays
hurry_forgets_retired    | faultless      | lib | a_handle_that_goes_while | nobody is in a hurry
told_before_number       | faultless      | lib | a_handle_that_goes_while | nobody is in a hurry
number_before_fence      | faultless      | lib | a_period_that_begins | (invariant 3|Causality violation)
bytes_free_own_list      | faultless      | lib | what_all_slots_keep | what others have retired is kept
unlisted_by_half         | faultless      | lib | a_slot_that_is_given_on | (invariant 3|Causality violation)
sleeps_by_half           | faultless      | lib | a_slot_that_sleeps | (invariant 3|Causality violation)
unlisted_relaxed         | faultless      | lib | a_slot_that_is_given_on | (invariant 3|Causality violation)
bound_not_asked_again    | faultless      | lib | a_bit_that_comes_while | invariant 3
full_asked_before_the_count | faultless   | lib | copies_at_the_limit | a count of mappings runs over
uncount_relaxed          | faultless      | lib | copies_at_the_limit | a count of mappings runs over
looks_before_it_notes    | faultless-soft | loom_waits | a_wait_for_a_place_against_ | deadlock
wakes_before_the_place   | faultless-soft | loom_waits | a_wait_for_a_place_against_an_unpin | deadlock
no_page_fence            | faultless-soft | loom | page_work_against_unmap | invariant 3
no_range_fence           | faultless-soft | loom | page_work_against_unmap | invariant 3
'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Builds without a mutant are kept apart from those with one, and those of each job: a build without is made once.
build() { # package, test file or lib, arguments of cargo: models are built with loom, other tests as always
    local target=(--test "$2") place=${FAULTLESS_MUTANT:+target/mutants-$job}
    if [ "$2" = lib ]; then target=(--lib); fi
    case "$2" in
        loom* | lib) RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" cargo test -q --target-dir "${place:-target/loom}" --profile checked -p "$1" "${target[@]}" "${@:3}" ;;
        *) cargo test -q --target-dir "${place:-target}" -p "$1" "${target[@]}" "${@:3}" ;;
    esac
}
export -f build
run() { # package, test file, check
    local filter=()
    case "$3" in
        '') ;;
        *'$') filter=(--exact "${3%'$'}") ;;
        *) filter=("$3") ;;
    esac
    timeout "$seconds" bash -c 'build "$@"' build "$1" "$2" -- "${filter[@]}" >"$log" 2>&1
}
try() { # mutant, package, test file, check, reason: says what became of it
    if ! FAULTLESS_MUTANT='' run "$2" "$3" "$4"; then
        echo "NOT COUNTED: the check fails without the mutant"; tail -n 5 "$log"; return
    fi
    if ! grep -qE 'test result: ok\. [1-9]' "$log"; then echo "NOT COUNTED: there is no such check"; return; fi
    if ! FAULTLESS_MUTANT=$1 build "$2" "$3" --no-run >"$log" 2>&1; then
        echo "NOT COUNTED: does not build"; tail -n 5 "$log"; return
    fi
    FAULTLESS_MUTANT=$1 run "$2" "$3" "$4"; local status=$?
    if [ $status -eq 124 ]; then echo "NOT COUNTED: out of time after $seconds s"
    elif [ $status -eq 0 ]; then echo "ALIVE: ${4:-$3} passes with it"
    elif grep -qE "$5" "$log"; then
        echo "killed by ${4:-$3}: $(grep -m1 -oE "$5.*" "$log" | cut -c1-90)"
    else echo "NOT COUNTED: ${4:-$3} fails, and not for '$5'"; tail -n 15 "$log"; fi
}
each() { # job: every so many of those that are asked for
    export job=$1
    log=$work/log.$job
    local number=0 said
    while IFS='|' read -r mutant package file check reason; do
        mutant=$(echo $mutant) package=$(echo $package) file=$(echo $file) check=$(echo $check) reason=$(echo $reason)
        [ -n "$mutant" ] || continue
        if [ ${#asked[@]} -gt 0 ] && ! printf '%s\n' "${asked[@]}" | grep -qx "$mutant"; then continue; fi
        number=$((number + 1))
        if [ $((number % jobs)) -ne "$job" ]; then continue; fi
        said=$(try "$mutant" "$package" "$file" "$check" "$reason")
        printf '%-26s %s\n' "$mutant" "$said" | tee -a "$work/said.$job"
    done <<<"$table"
}
asked=("$@") jobs=${MUTANT_JOBS:-1}
for ((job = 0; job < jobs; job++)); do each $job & done
wait
killed=$(cat "$work"/said.* | grep -cE '^[a-z0-9_]+ +killed by')
all=$(cat "$work"/said.* | grep -cE '^[a-z0-9_]+ +(killed by|ALIVE|NOT COUNTED)')
echo "killed $killed of $all"
[ "$killed" -eq "$all" ] && [ "$all" -gt 0 ]
