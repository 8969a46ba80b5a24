#!/usr/bin/env bash
# Counts instructions under callgrind, one operation at a time (crates/faultless-soft/examples/instructions), and compares with
# docs/instructions.txt. Fails if a count has grown by more than 5 %, or if the engine's work for a lock in each VMA costs more than 5 %:
# NAME-bare and NAME-vmas are designs without a lock. `--update` writes that file instead.
set -euo pipefail
cd "$(dirname "$0")/.."
counts=docs/instructions.txt grown=5

if ! command -v valgrind >/dev/null; then
    echo "skipped: valgrind is not installed here (its callgrind counts the instructions)"
    exit 0
fi
cargo build --release -p faultless-soft --example instructions
program=${CARGO_TARGET_DIR:-target}/release/examples/instructions
names=$("$program" | cut -d' ' -f1 | grep -v '^zeroing-')

# The cost of zeroing a page depends on the C library's method for this processor, so it is subtracted from operations that zero
# one.
zeroing() { case "$1" in anonymous-fault | fault-*-a-group | map-touch-unmap) echo 1 ;; *) echo 0 ;; esac; }

count() { # name: instructions of one
    local collected rounds=500
    # Whole batches, so that each page is visited as often as the others.
    case "$1" in reclaim-*) rounds=512 ;; esac
    collected=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*measured*' \
        "$program" "$1" "$rounds" 2>&1 | sed -n 's/.*Collected : \([0-9]*\)$/\1/p')
    [ -n "$collected" ] || { echo "callgrind counted nothing for $1" >&2; return 1; }
    echo $(((collected + rounds / 2) / rounds - $(zeroing "$1") * zeros))
}

zeros=0
zeros=$(count zeroing-a-page)

if [ "${1:-}" = --update ]; then
    {
        echo "# Instructions of one operation, counted by scripts/instructions.sh (callgrind), which fails if one grows by more than $grown %."
        echo "# Zeroing a page ($zeros here) is subtracted from operations that zero one."
        echo "# x86-64, $(rustc --version | cut -d' ' -f1-2). Written by \`scripts/instructions.sh --update\`."
        for name in $names; do printf '%-22s %6d\n' "$name" "$(count "$name")"; done
    } >"$counts.new"
    mv "$counts.new" "$counts"
    cat "$counts"
    exit 0
fi

failed=0
declare -A counted
for name in $names; do
    before=$(sed -n "s/^$name  *\([0-9]*\)$/\1/p" "$counts")
    now=$(count "$name")
    counted[$name]=$now
    verdict=
    if [ -z "$before" ]; then
        verdict="not in $counts" failed=1
    elif [ $((now * 100)) -gt $((before * (100 + grown))) ]; then
        verdict="has grown by more than $grown %" failed=1
    elif [ $((now * (100 + grown))) -lt $((before * 100)) ]; then
        verdict="is lower; run scripts/instructions.sh --update"
    fi
    printf '%-22s %6s -> %6d  %s\n' "$name" "${before:-?}" "$now" "$verdict"
done
for name in map-touch-unmap protect-16-pages; do
    bare=${counted[$name-bare]} vmas=${counted[$name-vmas]}
    if [ $((vmas * 100)) -gt $((bare * (100 + grown))) ]; then
        echo "$name: the engine's work for a lock in each VMA costs more than $grown %: $bare -> $vmas"
        failed=1
    fi
done
if [ $failed -ne 0 ]; then
    echo "If the change is intended, run scripts/instructions.sh --update and commit $counts with the change."
fi
exit $failed
