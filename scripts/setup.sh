#!/usr/bin/env bash
# Brings a fresh Debian or Ubuntu machine to where `make test` and `make demo` work.
set -euo pipefail

readonly TORCH=2.13.0 CUDA_RUNTIME=13.0.96 CUDA_CUPTI=13.0.85 BUF=1.75.0
readonly -a BUILD_PACKAGES=(ca-certificates g++ gcc libvirt-dev make pkg-config python3)
readonly -a LIVE_PACKAGES=(
    busybox-static cpio dmsetup dpkg-dev libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu
    qemu-system-x86 qemu-utils util-linux xz-utils zstd
)

usage() {
    cat <<TEXT
Usage: scripts/setup.sh [--no-live | --lint] [--help]

Does four things, each only where it is missing, and is quick when all is there:
  1. Debian packages to build with (${BUILD_PACKAGES[*]})
     and to run test guests with (${LIVE_PACKAGES[*]}).
     Installs them as root or through sudo; otherwise prints the one command to run.
  2. libtorch $TORCH into .deps/venv of this checkout (about 540 MB to download, 1.3 GB
     on disk; nothing outside the checkout). A LIBTORCH that is set is kept as it is.
  3. Python clients that are not ours into .deps/grpc-peers, for their test (about 45 MB to
     download, 140 MB on disk; scripts/python-clients.sh).
  4. The test guest: a kernel and an initramfs in .deps/guest (scripts/build-guest.sh).

  --no-live   leave out what only the live tests need (test guests, part 4)
  --lint      only what scripts/lint.sh wants: buf $BUF in .deps/tools/buf (or \$BLKPILOT_TOOLS/buf),
              by npm, which is Debian's package where there is none (93 MB on disk)

With BLKPILOT_REQUIRE_LIVE=1 a machine that cannot run the live tests is an error;
without, it is a loud warning and the live tests are skipped and counted.
TEXT
}

live=yes lint=no
for argument in "$@"; do
    case "$argument" in
        --no-live) live=no ;;
        --lint) lint=yes ;;
        --help | -h) usage; exit 0 ;;
        *) echo "setup: unknown argument '$argument'; see --help" >&2; exit 2 ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps="$root/.deps"
say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# Live tests are given up: an error where they are required, a warning elsewhere.
give_up_live() { # reason
    if [[ -n ${BLKPILOT_REQUIRE_LIVE:-} && ${BLKPILOT_REQUIRE_LIVE} != 0 ]]; then
        die "BLKPILOT_REQUIRE_LIVE is set, but $1"
    fi
    printf 'setup: WARNING: %s\nsetup: WARNING: the live tests will be SKIPPED\n' "$1" >&2
    live=no
}

missing_of() { # packages; prints those that are not installed
    local package status
    for package in "$@"; do
        status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
        if [[ $status != *" installed" ]]; then printf '%s\n' "$package"; fi
    done
}

# The prefix with which packages can be installed; fails where there is no way.
root_prefix() {
    if [[ $(id -u) == 0 ]]; then
        echo ""
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 && -t 2 ]]; }; then
        echo "sudo"
    else
        return 1
    fi
}

install_packages() { # packages
    local prefix
    prefix=$(root_prefix) || return 1
    say "installing ${#} packages: $*"
    # shellcheck disable=SC2086 # the prefix is nothing or one word
    $prefix apt-get update -qq &&
        $prefix env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Installs what is missing of the packages and looks again: to install one, apt may remove another
# of them that came from elsewhere in a version that does not fit (a backport of qemu-utils, say).
complete_packages() { # packages
    local -a missing
    local round
    for round in 1 2 3; do
        mapfile -t missing < <(missing_of "$@")
        if [[ ${#missing[@]} == 0 ]]; then return 0; fi
        if ((round > 1)); then say "not there after installing: ${missing[*]}"; fi
        install_packages "${missing[@]}" || return 1
    done
    mapfile -t missing < <(missing_of "$@")
    [[ ${#missing[@]} == 0 ]]
}

setup_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: looking for what is needed instead of installing it"
        if ! pkg-config --exists libvirt libvirt-qemu 2>/dev/null; then
            die "install a C compiler, pkg-config and the libvirt headers (libvirt-devel or so), then run this again"
        fi
        give_up_live "the test guest is built from Debian packages, and this is not a Debian system"
        return
    fi
    local -a build=("${BUILD_PACKAGES[@]}") wanted
    # The Python in use may not be Debian's: ask it, not dpkg.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then build+=(python3-venv); fi
    wanted=("${build[@]}")
    if [[ $live == yes ]]; then wanted+=("${LIVE_PACKAGES[@]}"); fi
    if complete_packages "${wanted[@]}"; then return; fi

    local -a missing
    mapfile -t missing < <(missing_of "${wanted[@]}")
    local command="sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    if [[ -z $(missing_of "${build[@]}") ]]; then
        give_up_live "packages are missing and could not be installed; run: $command"
    else
        die "packages are missing and could not be installed; run this once, then again what you ran: $command"
    fi
}

setup_libtorch() {
    if [[ -n ${LIBTORCH:-} && ! $LIBTORCH -ef $deps/libtorch ]]; then
        if [[ -e $LIBTORCH/lib/libtorch_cpu.so ]]; then return; fi
        die "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so; unset it to let this script install libtorch $TORCH"
    fi
    if torch_is_there; then return; fi
    if [[ $(uname -m) != x86_64 ]]; then
        die "libtorch is installed for x86_64 only, this machine is $(uname -m): set LIBTORCH to a libtorch $TORCH"
    fi
    python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' ||
        die "PyTorch $TORCH needs Python 3.10 to 3.14, this is $(python3 --version): put a fitting python3 first in PATH or set LIBTORCH"
    say "downloading libtorch $TORCH into .deps/venv: about 540 MB to download, 1.3 GB on disk (set LIBTORCH to use your own)"
    mkdir -p "$deps"
    python3 -m venv "$deps/venv"
    "$deps/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        "torch==$TORCH" "nvidia-cuda-runtime==$CUDA_RUNTIME" "nvidia-cuda-cupti==$CUDA_CUPTI" ||
        die "pip could not install libtorch; look at its message above, or set LIBTORCH to a libtorch $TORCH"
    local torch
    torch=$(cd "$deps" && ls -d venv/lib/python3.*/site-packages/torch)
    ln -sfn "$torch" "$deps/libtorch"
    torch_is_there || die "libtorch is not complete after its installation; remove .deps/venv and run this again"
    say "libtorch $TORCH is in .deps/libtorch"
}

torch_is_there() {
    local torch site
    for torch in "$deps"/venv/lib/python3.*/site-packages/torch; do
        site=$(dirname "$torch")
        if [[ -e $torch/lib/libtorch_cpu.so && -d $site/torch-$TORCH.dist-info &&
            -d $site/nvidia_cuda_runtime-$CUDA_RUNTIME.dist-info && -d $site/nvidia_cuda_cupti-$CUDA_CUPTI.dist-info ]]; then
            if [[ ! $deps/libtorch -ef $torch ]]; then ln -sfn "${torch#"$deps/"}" "$deps/libtorch"; fi
            return 0
        fi
    done
    return 1
}

setup_python_clients() {
    "$root/scripts/python-clients.sh" --install ||
        die "the Python clients could not be installed; look at pip's message above"
}

setup_guest() {
    if [[ $live == no ]]; then return; fi
    "$root/scripts/build-guest.sh" || give_up_live "the test guest could not be built (see above)"
}

# buf, which lints the API and compares it with what was released. Fails where it cannot be had.
setup_buf() {
    local home=${BLKPILOT_TOOLS:-$deps/tools}/buf
    if [[ $("$home/node_modules/.bin/buf" --version 2>/dev/null) == "$BUF" ]]; then return; fi
    if ! command -v npm >/dev/null && ! { command -v dpkg-query >/dev/null && complete_packages npm; }; then
        die "npm is missing and could not be installed; run: sudo apt-get update && sudo apt-get install -y --no-install-recommends npm"
    fi
    say "installing buf $BUF into $home"
    mkdir -p "$home"
    npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$BUF" ||
        die "npm could not install buf $BUF; look at its message above"
}

if [[ $lint == yes ]]; then setup_buf; exit 0; fi
command -v python3 >/dev/null || command -v dpkg-query >/dev/null || die "python3 is missing: install it"
setup_packages
setup_libtorch
setup_python_clients
setup_guest
