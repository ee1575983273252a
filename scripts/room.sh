#!/usr/bin/env bash
# Says before a long build, not in the middle of it, that the disk has no room for it.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/room.sh PROFILE GIB
       scripts/room.sh --full

With a profile's folder (debug, release) and what a first build in it takes, in GiB:
fails where cargo has not built there yet and the disk has less than that free.

  --full   after a build that failed: says so where the disk is full; never fails

The folder is cargo's: target, or CARGO_TARGET_DIR.
TEXT
}
if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(cargo metadata --format-version 1 --no-deps --offline | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')
mkdir -p "$target"
free_mib=$(df --output=avail -B 1M "$target" | tail -1)
free_gib=$(awk -v mib="$free_mib" 'BEGIN { printf "%.1f", mib / 1024 }')
readonly WAY_OUT="make room there, or set CARGO_TARGET_DIR to a folder on another disk"

if [[ ${1:-} == --full ]]; then
    if ((free_mib < 256)); then echo "room: the disk of $target is full ($free_mib MiB free): $WAY_OUT"; fi
    exit 0
fi
if [[ $# != 2 || ! $2 =~ ^[0-9]+$ ]]; then usage >&2; exit 2; fi

if [[ ! -d $target/$1/deps ]] && ((free_mib < $2 * 1024)); then
    echo "room: a first build takes about $2 GiB in $target/$1, and its disk has $free_gib GiB free: $WAY_OUT" >&2
    exit 1
fi
