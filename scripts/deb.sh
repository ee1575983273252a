#!/usr/bin/env bash
# Builds the Debian package of the service into target/debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly CARGO_DEB=3.8.0

usage() {
    cat <<TEXT
Usage: scripts/deb.sh [--help]

Builds the release binary of the service, which needs no libtorch, and packs it with its systemd
unit and configuration: target/debian/blkpilot_VERSION_ARCH.deb. Installs cargo-deb $CARGO_DEB into
.deps/tools (or \$BLKPILOT_TOOLS) where it is missing. Needs a C compiler, pkg-config, libvirt-dev and
dpkg-dev.
TEXT
}
if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi
die() { echo "deb: $*" >&2; exit 1; }
if [[ $# != 0 ]]; then usage >&2; exit 2; fi
command -v dpkg-shlibdeps >/dev/null || die "dpkg-shlibdeps is missing: install dpkg-dev"

tools=${BLKPILOT_TOOLS:-$PWD/.deps/tools}
if [[ $("$tools/bin/cargo-deb" --version 2>/dev/null) != *"$CARGO_DEB"* ]]; then
    echo "deb: installing cargo-deb $CARGO_DEB into $tools"
    cargo install --quiet --locked --root "$tools" --version "$CARGO_DEB" cargo-deb
fi
release=${CARGO_TARGET_DIR:-target}/release
binary=$release/blkpilot
cargo build --quiet --release --locked -p blkpilot-agent --bin blkpilot
# What the binary says of itself, for shells and man; cargo-deb looks for target/release where the build is.
rm -rf "$release/shell"
"$binary" man "$release/shell/man"
for shell in bash zsh fish; do "$binary" completions "$shell" >"$release/shell/blkpilot.$shell"; done
PATH="$tools/bin:$PATH" cargo deb --quiet --locked --no-build -p blkpilot-agent
if objdump -p "$binary" | grep -E 'NEEDED.*torch'; then die "$binary links libtorch"; fi
ls "${CARGO_TARGET_DIR:-target}"/debian/blkpilot_*.deb
