#!/usr/bin/env bash
# Runs the models of the protocol on the real code. Argument: the greatest number of preemptions in a run.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
if [ "${1:-}" ]; then export LOOM_MAX_PREEMPTIONS="$1"; fi
cargo test --target-dir target/loom --profile checked -p faultless --lib --test loom_tree --test loom_ranges
cargo test --target-dir target/loom --profile checked -p faultless-soft --lib --test loom --test loom_fork --test loom_homes --test loom_shared --test loom_files --test loom_design --test loom_beside --test loom_calls --test loom_evictions --test loom_reclaim_files --test loom_waits --test loom_swap --test loom_swap_shared --test loom_memory_in_swap --test loom_reap --test loom_move
