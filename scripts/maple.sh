#!/usr/bin/env bash
# Linux's maple tree as a shared object, for faultless-bench: target/maple/libmaple.so. On Debian, without root: fetches
# its kernel's sources and liburcu as packages, takes out what is needed, and compiles crates/faultless-bench/maple/maple.c
# against them. All of it stays in target/maple; the sources are GPL and are not part of this repository.
#
# Needs apt-get, dpkg-deb, tar with xz, a C compiler; 250 MB on the disk while it works, 10 MB afterwards.
#   --keep       leaves the packages where they are
#   PACKAGE      of these sources [default: linux-source-6.12; where Debian has it no more, linux-source-6.1]
set -euo pipefail
cd "$(dirname "$0")/.."
glue="$PWD/crates/faultless-bench/maple/maple.c"
to="$PWD/target/maple"
keep= package=linux-source-6.12
for argument in "$@"; do
    case "$argument" in
        --keep) keep=yes ;;
        linux-source-*) package="$argument" ;;
        *) echo "maple: there are --keep and linux-source-…, not $argument" >&2; exit 2 ;;
    esac
done
say() { printf 'maple: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

for tool in apt-get apt-cache dpkg-deb tar xz cc; do
    command -v "$tool" > /dev/null || stop "there is no $tool here"
done
mkdir -p "$to/packages"
cd "$to/packages"

# Lists of our own, with backports: no root, and nothing of this machine's is changed.
if [ ! -e lists-are-here ]; then
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keyring" ] || stop "no keys of Debian's archive at $keyring"
    mkdir -p lists/partial cache/archives/partial
    for suite in bookworm bookworm-backports; do
        printf 'deb [signed-by=%s] http://deb.debian.org/debian %s main\n' "$keyring" "$suite"
    done > sources.list
fi
apt_options=(
    -o "Dir::Etc::SourceList=$PWD/sources.list" -o "Dir::Etc::SourceParts=/dev/null"
    -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
    -o "APT::Architecture=$(dpkg --print-architecture)" -o "APT::Sandbox::User=$(id -un)"
)
if [ ! -e lists-are-here ]; then
    say "fetching the lists of packages"
    apt-get "${apt_options[@]}" -qq update
    touch lists-are-here
fi
has() { [[ $(apt-cache "${apt_options[@]}" policy "$1") == *"Candidate: "[0-9]* ]]; }
has "$package" || package=linux-source-6.1
has "$package" || stop "Debian has neither linux-source-6.12 nor linux-source-6.1 for this machine"
for name in "$package" liburcu-dev liburcu8; do
    if ! compgen -G "${name}_*.deb" > /dev/null; then
        say "fetching $name"
        apt-get "${apt_options[@]}" -qq download "$name"
    fi
done

say "taking out the maple tree of $package"
rm -rf urcu kernel
for deb in liburcu-dev_*.deb liburcu8_*.deb; do dpkg-deb -x "$deb" urcu; done
mkdir kernel
# The tree, and the parts of the kernel that stand in for it in its own user-space tests.
dpkg-deb --fsys-tarfile "${package}"_*.deb \
    | tar xO --wildcards "*/$package.tar.xz" \
    | tar xJ -C kernel --strip-components=1 --wildcards \
        '*/lib/maple_tree.c' '*/tools/testing/radix-tree' '*/tools/testing/shared' '*/tools/include' \
        '*/tools/arch/*/include' '*/include/linux' '*/include/asm-generic' 2> missing || true
[ -e kernel/lib/maple_tree.c ] || stop "no maple tree in $package: $(cat missing)"

# What the kernel's test Makefile makes. Up to 6.11 its stand-ins are in radix-tree, later on in shared.
mkdir -p kernel/made/generated
: > kernel/made/generated/autoconf.h
for autoconf in kernel/tools/testing/{shared,radix-tree/generated}/autoconf.h; do
    if [ -e "$autoconf" ]; then cp "$autoconf" kernel/made/generated/; fi
done
echo '#define XA_CHUNK_SHIFT 6' > kernel/made/generated/map-shift.h
echo "#define CONFIG_$(getconf LONG_BIT)BIT 1" > kernel/made/generated/bit-length.h

say "compiling"
libraries=$(dirname "$(find "$PWD/urcu" -name 'liburcu.so.8' | head -n 1)")
flags=(-std=gnu11 -O2 -fPIC -shared -fvisibility=hidden -w -D_LGPL_SOURCE)
# liburcu's thread-local reader: by a descriptor, which costs next to nothing; elsewhere than here that is usual.
if [ "$(uname -m)" = x86_64 ]; then flags+=(-mtls-dialect=gnu2); fi
for folder in tools/testing/shared tools/testing/radix-tree made made/generated tools/include lib; do
    if [ -d "kernel/$folder" ]; then flags+=(-I "$PWD/kernel/$folder"); fi
done
for folder in "$PWD"/urcu/usr/include "$PWD"/urcu/usr/include/*-linux-gnu; do flags+=(-I "$folder"); done
mkdir -p "$to/lib"
cp -P "$libraries"/liburcu.so.8* "$libraries"/liburcu-common.so.8* "$to/lib/"
# Beside it, so that it is found wherever the repository lies.
cc "${flags[@]}" "$glue" -o "$to/libmaple.so.new" "$to/lib/liburcu.so.8" -lpthread \
    -Wl,-z,defs -Wl,-rpath-link,"$to/lib" -Wl,--disable-new-dtags -Wl,-rpath,'$ORIGIN/lib'
mv "$to/libmaple.so.new" "$to/libmaple.so"
cd "$to"
if [ -z "$keep" ]; then rm -rf packages; fi
say "done: target/maple/libmaple.so, from $package"
