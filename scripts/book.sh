#!/usr/bin/env bash
# Builds the book, docs/ to target/book, and checks its links and those of all Markdown files. Without mdbook on the PATH, builds
# it once into target/tools. If that fails, prints so and checks only the Markdown files.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_INCREMENTAL=0

command -v python3 > /dev/null || { echo "skipped: python3 is not installed"; exit 0; }
scripts/pictures.py --check
tools=${CARGO_TARGET_DIR:-target}/tools
mdbook=$(command -v mdbook || echo "$tools/bin/mdbook")
# A debug build takes half of the time, and the book is small. `serve` and `watch` are left out.
if [ -x "$mdbook" ] \
    || cargo install --locked --debug --no-default-features --features search --version '^0.5' --root "$tools" mdbook; then
    "$mdbook" build
    scripts/links.py target/book
else
    echo "the book is not built: mdbook could not be installed. Only the Markdown files are checked."
    scripts/links.py
fi
