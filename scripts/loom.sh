#!/usr/bin/env bash
# Runs the models of the protocol on the real code, two at a time, each as a process of its own. Argument: the greatest number of
# preemptions in a run. LOOM_JOBS: the number of models at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
export CARGO_TERM_COLOR=never
if [ "${1:-}" ]; then export LOOM_MAX_PREEMPTIONS="$1"; fi
jobs=${LOOM_JOBS:-2}
[[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo "scripts/loom.sh: LOOM_JOBS is '$jobs': give a number from 1 on" >&2; exit 2; }

# Those with the longest models first.
files=(loom_swap loom_swap_shared loom_memory_in_swap loom loom_fork loom_homes loom_shared loom_files loom_design loom_beside loom_calls
    loom_evictions loom_gathering loom_reclaim_files loom_waits loom_reap loom_move loom_limits loom_lost_homes)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build() { # package, its targets: builds them, and notes their programs
    if ! cargo test --no-run --target-dir target/loom --profile checked -p "$@" 2>"$work/build"; then cat "$work/build"; exit 1; fi
    sed -nE 's:^ *Executable .* \((.*)\)$:\1:p' "$work/build" >"$work/new"
    sed "s:^:$1 :" "$work/new" >>"$work/programs"
}
build faultless-soft --lib "${files[@]/#/--test=}"
build faultless --lib --test loom_tree --test loom_ranges
# Cargo names the programs in the order of their names.
for file in "${files[@]}" ''; do
    while read -r package program; do
        name=$(basename "$program"); name=${name%-*}
        if [ -z "$file" ]; then case " ${files[*]} " in *" $name "*) continue ;; esac; elif [ "$name" != "$file" ]; then continue; fi
        realpath=$(realpath "$program")
        (cd "crates/$package" && "$realpath" --list --format terse) | sed -nE "s|^(.*): test$|$package $realpath \1|p" >>"$work/models"
    done <"$work/programs"
done
echo "$(wc -l <"$work/models") models"

run() { # a line: package, program, model
    local package program model log
    read -r package program model <<<"$1"
    log=$(mktemp "$work/log.XXXXXX")
    local start=$SECONDS
    if (cd "crates/$package" && "$program" --exact "$model") >"$log" 2>&1 && grep -q 'test result: ok. 1 passed' "$log"; then
        printf '%5d s  %s %s\n' $((SECONDS - start)) "$(basename "${program%-*}")" "$model"
    else
        echo "FAILED: $(basename "${program%-*}") $model"; cat "$log"
        return 1
    fi
}
export -f run
export work
if ! xargs -d '\n' -n 1 -P "$jobs" bash -c 'run "$1"' _ <"$work/models"; then
    echo "scripts/loom.sh: models have failed" >&2
    exit 1
fi
