#!/usr/bin/env bash
# Builds Linux's maple tree as a shared object for faultless-bench: target/maple/libmaple.so. For Debian, without root. Fetches
# the sources of Debian's kernel and liburcu as packages, extracts the needed parts, and compiles
# crates/faultless-bench/maple/maple.c against them. All of it stays in target/maple; the sources are GPL and are not part of this
# repository.
#
# Needs apt-get, dpkg-deb, tar with xz, a C compiler, and 250 MB of disk space, of which it keeps 10 MB.
#   --keep       keeps the packages
#   PACKAGE      the package of the sources [default: linux-source-6.12, or linux-source-6.1 if Debian no longer has that]
set -euo pipefail
cd "$(dirname "$0")/.."
glue="$PWD/crates/faultless-bench/maple/maple.c"
to="$PWD/target/maple"
keep= package=linux-source-6.12
for argument in "$@"; do
    case "$argument" in
        --keep) keep=yes ;;
        linux-source-*) package="$argument" ;;
        *) echo "maple: unknown argument $argument; use --keep or linux-source-…" >&2; exit 2 ;;
    esac
done
say() { printf 'maple: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

for tool in apt-get apt-cache dpkg-deb tar xz cc; do
    command -v "$tool" > /dev/null || stop "$tool is not installed"
done
mkdir -p "$to/packages"
cd "$to/packages"

# Uses its own package lists, with backports, so that it needs no root and changes nothing of the machine.
if [ ! -e lists-are-here ]; then
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keyring" ] || stop "the keys of Debian's archive are missing: $keyring"
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

say "extracting the maple tree of $package"
rm -rf urcu kernel
for deb in liburcu-dev_*.deb liburcu8_*.deb; do dpkg-deb -x "$deb" urcu; done
mkdir kernel
# The tree, and the stand-ins for the kernel from its own user-space tests.
dpkg-deb --fsys-tarfile "${package}"_*.deb \
    | tar xO --wildcards "*/$package.tar.xz" \
    | tar xJ -C kernel --strip-components=1 --wildcards \
        '*/lib/maple_tree.c' '*/tools/testing/radix-tree' '*/tools/testing/shared' '*/tools/include' \
        '*/tools/arch/*/include' '*/include/linux' '*/include/asm-generic' 2> missing || true
[ -e kernel/lib/maple_tree.c ] || stop "$package has no maple tree: $(cat missing)"

# Makes the files that the kernel's test Makefile makes. Up to 6.11 its stand-ins are in radix-tree, later in shared.
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
# liburcu's thread-local reader uses a TLS descriptor, which costs next to nothing. That is the default on other architectures.
if [ "$(uname -m)" = x86_64 ]; then flags+=(-mtls-dialect=gnu2); fi
for folder in tools/testing/shared tools/testing/radix-tree made made/generated tools/include lib; do
    if [ -d "kernel/$folder" ]; then flags+=(-I "$PWD/kernel/$folder"); fi
done
for folder in "$PWD"/urcu/usr/include "$PWD"/urcu/usr/include/*-linux-gnu; do flags+=(-I "$folder"); done
mkdir -p "$to/lib"
cp -P "$libraries"/liburcu.so.8* "$libraries"/liburcu-common.so.8* "$to/lib/"
# The libraries are beside it, so that they are found wherever the repository is.
cc "${flags[@]}" "$glue" -o "$to/libmaple.so.new" "$to/lib/liburcu.so.8" -lpthread \
    -Wl,-z,defs -Wl,-rpath-link,"$to/lib" -Wl,--disable-new-dtags -Wl,-rpath,'$ORIGIN/lib'
mv "$to/libmaple.so.new" "$to/libmaple.so"
cd "$to"
if [ -z "$keep" ]; then rm -rf packages; fi
say "done: target/maple/libmaple.so, from $package"
