# One recipe a check. CI (`.ci/run`) runs the same checks by commands of its own. `just --list` shows them.

# The main job: a first comparison.
compare *ARGS:
    cargo run --release -- compare {{ARGS}}

# Shell completions and man pages of `faultless`, into DIR/completions and DIR/man.
generated DIR:
    mkdir -p "{{DIR}}/completions"
    cargo build --release
    target/release/faultless generate man "{{DIR}}/man"
    for shell in bash elvish fish powershell zsh; do target/release/faultless generate completions $shell > "{{DIR}}/completions/faultless.$shell" || exit 1; done

# A million operations on the engine and on this Linux, compared step by step.
check:
    cargo run --release -- check --ops 1000000

# As many as one asks, with any of check's options: `just check-long --ops 10000000 --seed 7 --design vma-lock`.
check-long *ARGS:
    cargo run --release -- check {{ARGS}}

# A difference planted in each kind of operation: the check finds and shrinks it.
plants:
    cargo test -p faultless-lab --test check is_found_and_shrunk -- --include-ignored

# Operations by four threads in one space, against each of them alone; with any other of check's options.
check-threads *ARGS:
    cargo run --release -- check --threads 4 {{ARGS}}

# A million operations on files, by handle and by mapping, in memory and on disk, against a model of a file: as fsx.
fsx *ARGS:
    cargo run --release -- check --files --ops 1000000 {{ARGS}}

# What CI runs.
ci:
    .ci/run

# Formatting and lints.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# All tests but the models.
test:
    cargo test --workspace

# The library without std, for a kernel's target.
no-std:
    cargo build -p faultless --no-default-features --target x86_64-unknown-none

# Models of the protocol on the real code. BOUND: preemptions a run; empty for each model's own.
loom BOUND="":
    scripts/loom.sh {{BOUND}}

# Instructions of a look-up, a fault, an unmap, a read section, under callgrind; `just instructions --update` writes the counts.
instructions *ARGS:
    scripts/instructions.sh {{ARGS}}

# How deep each call goes into its thread's stack; fails beyond 4 KiB.
stack:
    cargo run --release -p faultless-soft --example stack

# What threads that have ended still cost a store and a discard, and a fork.
thread-price *ARGS:
    cargo run --release -p faultless-soft --example thread_price -- {{ARGS}}

# Documentation without warnings.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The book: docs/ to target/book, with its links checked. Builds mdbook into target/tools if it is not on the PATH.
book:
    scripts/book.sh

# The pictures of the book: docs/pictures/*.txt to *.svg.
pictures:
    scripts/pictures.py

# Plants each mutant, or those that are named, and runs the check that has to kill it. The checks are built once.
mutants *NAMES:
    scripts/mutants.sh {{NAMES}}

# Engine and tests under AddressSanitizer (needs a nightly toolchain). Signals are left alone: some tests die by them. What is
# freed is kept back up to 32 MiB only: a test looks for growing memory.
asan:
    ASAN_OPTIONS=handle_segv=0:handle_sigbus=0:quarantine_size_mb=32 RUSTFLAGS="-Zsanitizer=address" RUSTDOCFLAGS="-Zsanitizer=address" cargo +nightly test -p faultless -p faultless-soft -p faultless-linux -p faultless-lab --tests --target x86_64-unknown-linux-gnu --target-dir target/asan

# Ten minutes of `compare` with 16 threads: no wrong byte, no torn child, no leaked frame.
soak:
    cargo run --release -- compare fork-during-io --threads 16 --seconds 100

# Ten minutes of real memory: 4 threads touch it at random, a fifth discards, protects and snapshots it; every byte is checked.
soak-real *ARGS:
    cargo run --release -p faultless-linux --example soak -- {{ARGS}}

# Side by side with the peers, with any of its options: `just bench --quick`. Linux's maple tree takes part after `scripts/maple.sh`.
bench *ARGS:
    cargo run --release -p faultless-bench -- {{ARGS}}

# What recording a round costs a scenario (`compare --perfetto`), by its figures.
recording-price *ARGS:
    cargo run --release -p faultless-lab --example recording_price -- {{ARGS}}

# What a page costs on real memory, beside the barest userfaultfd handler and the kernel.
price *ARGS:
    cargo run --release -p faultless-linux --example price -- {{ARGS}}

# A million files, spaces, mappings and pages and 100,000 threads, made and dropped: the engine and the allocator end where they began.
many:
    cargo test --release -p faultless-lab --test many -- --include-ignored --nocapture
