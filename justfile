# One recipe a check. CI (`.ci/run`) runs the same checks by commands of its own. `just --list` shows them.

# Of builds with ThreadSanitizer. Their locks are taken by trying (crates/faultless/src/sync/mutex.rs).
tsan := "-Zsanitizer=thread --cfg tsan -Cunsafe-allow-abi-mismatch=sanitizer"

# Runs the laboratory's main command, a comparison of designs.
compare *ARGS:
    cargo run --release -- compare {{ARGS}}

# Writes shell completions and man pages of `faultless` to DIR/completions and DIR/man.
generated DIR:
    mkdir -p "{{DIR}}/completions"
    cargo build --release
    target/release/faultless generate man "{{DIR}}/man"
    for shell in bash elvish fish powershell zsh; do target/release/faultless generate completions $shell > "{{DIR}}/completions/faultless.$shell" || exit 1; done

# Makes a million operations on the engine and on this Linux, and compares the two step by step.
check:
    cargo run --release -- check --ops 1000000

# The same with any of check's options: `just check-long --ops 10000000 --seed 7 --design vma-lock`.
check-long *ARGS:
    cargo run --release -- check {{ARGS}}

# Plants a difference in each kind of operation. The check must find and shrink it.
plants:
    cargo test -p faultless-lab --test check is_found_and_shrunk -- --include-ignored

# Makes a million operations while the engine swaps. Takes any of check's other options.
check-memory *ARGS:
    cargo run --release -- check --memory 16K --ops 1000000 {{ARGS}}

# Makes operations by four threads in one space, and compares with each thread alone. Takes any of check's other options.
check-threads *ARGS:
    cargo run --release -- check --threads 4 {{ARGS}}

# Makes a million operations on files, by handle and mapping, in memory and on disk, and compares with a model of a file (as fsx).
fsx *ARGS:
    cargo run --release -- check --files --ops 1000000 {{ARGS}}

# Runs the checks of CI.
ci:
    .ci/run

# Checks formatting and lints.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Runs all tests except the models.
test:
    cargo test --workspace

# Builds the library without std, for a kernel's target.
no-std:
    cargo build -p faultless --no-default-features --target x86_64-unknown-none

# Runs the models of the protocol on the real code. BOUND: preemptions in a run; empty for each model's own.
loom BOUND="":
    scripts/loom.sh {{BOUND}}

# Counts instructions of a lookup, a fault, an unmap, a read section under callgrind. `just instructions --update` writes them.
instructions *ARGS:
    scripts/instructions.sh {{ARGS}}

# Counts the instructions of mprotect and of map, touch, unmap under some designs (needs valgrind). `just design-price 100`: rounds.
design-price ROUNDS="500":
    cargo build --release -p faultless-lab --example design_price
    for name in $(target/release/examples/design_price | cut -d' ' -f1); do \
        printf '%-26s ' "$name"; valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*measured*' \
            target/release/examples/design_price "$name" {{ROUNDS}} 2>&1 | awk -v rounds={{ROUNDS}} '/Collected/ { printf "%d\n", $NF / rounds }'; done

# Measures the stack that each call uses. Fails above 4 KiB.
stack:
    cargo run --release -p faultless-soft --example stack

# Measures the cost of ended threads for a store and a discard, and for a fork.
thread-price *ARGS:
    cargo run --release -p faultless-soft --example thread_price -- {{ARGS}}

# Builds the documentation; warnings are errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Builds the book, docs/ to target/book, and checks its links. Builds mdbook into target/tools if it is not on the PATH.
book:
    scripts/book.sh

# Draws the pictures of the book: docs/pictures/*.txt to *.svg.
pictures:
    scripts/pictures.py

# Plants each mutant, or the named ones, and runs the check that must kill it. The checks are built once.
mutants *NAMES:
    scripts/mutants.sh {{NAMES}}

# Runs engine and tests under AddressSanitizer (needs a nightly toolchain). It does not handle signals, since some tests die by
# them. It delays only 32 MiB of freed memory, since a test checks for growing memory.
asan:
    LSAN_OPTIONS="suppressions=$PWD/scripts/asan-leaks.txt" ASAN_OPTIONS=handle_segv=0:handle_sigbus=0:quarantine_size_mb=32 RUSTFLAGS="-Zsanitizer=address" RUSTDOCFLAGS="-Zsanitizer=address" cargo +nightly test -p faultless -p faultless-soft -p faultless-linux -p faultless-lab --tests --target x86_64-unknown-linux-gnu --target-dir target/asan

# Runs the tests of swap, reclaim and limits under ThreadSanitizer (needs a nightly toolchain). It does not know fences: a missing one is
# no race to it. loom checks these. It sees only the orders that occur, and no race inside of the standard library, which is built
# without it. Give names of tests to run others.
tsan *NAMES="swap limit reclaim progress hammer file_refaults liveness":
    TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.txt" RUSTFLAGS="{{tsan}}" cargo +nightly test --release -p faultless-soft --test engine --test errors --target x86_64-unknown-linux-gnu --target-dir target/tsan -- {{NAMES}} error

# Injects a million I/O errors: reads and writes of swap and of a file, once and for ever. None may be silent.
errors:
    cargo test --release -p faultless-soft --test errors -- --include-ignored --nocapture

# Uses an engine under memory pressure for an hour: 64 threads fault, fork, unmap, page out, exit and kill under tight limits. Checks each
# byte, the longest wait, and that nothing is left. `just soak-pressure --seconds 600`, `--threads N`, `--pages N` (of each limit).
soak-pressure *ARGS:
    cargo run --release -p faultless-soft --example soak_pressure -- {{ARGS}}

# The same for ten minutes under AddressSanitizer (needs a nightly toolchain). `--threads N` and the other options follow.
soak-pressure-asan *ARGS="--seconds 600":
    RUSTFLAGS="-Zsanitizer=address" cargo +nightly run --release -p faultless-soft --example soak_pressure --target x86_64-unknown-linux-gnu --target-dir target/asan -- {{ARGS}}

# The same for ten minutes under ThreadSanitizer (needs a nightly toolchain). `just tsan` says what it cannot see.
soak-pressure-tsan *ARGS="--seconds 600":
    TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.txt" RUSTFLAGS="{{tsan}}" cargo +nightly run --release -p faultless-soft --example soak_pressure --target x86_64-unknown-linux-gnu --target-dir target/tsan -- {{ARGS}}

# Runs `compare` for ten minutes with 16 threads, and checks for wrong bytes, torn children and leaked frames.
soak:
    cargo run --release -- compare fork-during-io --threads 16 --seconds 100

# Uses real memory for ten minutes: 4 threads touch it at random, a fifth discards, protects and snapshots it. Checks every byte.
soak-real *ARGS:
    cargo run --release -p faultless-linux --example soak -- {{ARGS}}

# Runs the benchmarks with any of their options: `just bench --quick`. Linux's maple tree takes part after `scripts/maple.sh`.
bench *ARGS:
    cargo run --release -p faultless-bench -- {{ARGS}}

# Measures the cost of recording a round (`compare --perfetto`), by a scenario's figures.
recording-price *ARGS:
    cargo run --release -p faultless-lab --example recording_price -- {{ARGS}}

# Measures the cost of a page on real memory, beside a minimal userfaultfd handler and the kernel.
price *ARGS:
    cargo run --release -p faultless-linux --example price -- {{ARGS}}

# Makes and drops a million files, spaces, mappings and pages and 100,000 threads. Engine and allocator must end as they began.
many:
    cargo test --release -p faultless-lab --test many -- --include-ignored --nocapture
