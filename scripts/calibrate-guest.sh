#!/usr/bin/env bash
# Sweeps the knobs of one guest of the fixture, records it, and fits a scenario to the recording.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 2 || ${1:-} == --help ]]; then
    cat <<'TEXT'
Usage: scripts/calibrate-guest.sh GUEST OUT [ROUNDS [SETTLE [MEASURE]]]

Starts the fixture's guest preset GUEST (blkpilot-fixture presets lists them) under a private
libvirtd, records it with `blkpilot sweep` under every setting of its knobs, ROUNDS times each
(default 6), MEASURE intervals of a second (4) behind SETTLE (5), and runs `blkpilot-lab
calibrate` on the recording. Writes GUEST.rec, GUEST.toml (the scenario), GUEST.svg (predicted
against measured) and GUEST.json (the report) to OUT, and prints the report.
Where no guest can run, a simulated host stands in, and the output says so.
The release binaries must have been built.
TEXT
    exit 2
fi
readonly guest=$1 rounds=${3:-6} settle=${4:-5} measure=${5:-4}
mkdir -p "$2"
out=$(realpath "$2")
bin=$(realpath -m "${BLKPILOT_BIN:-${CARGO_TARGET_DIR:-target}/release}")
readonly bin
run_dir=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-calibrate.XXXXXX")
fixture=''

leave() {
    if [[ -n $fixture ]] && kill -INT "$fixture" 2>/dev/null; then wait "$fixture" 2>/dev/null || true; fi
    rm -rf "$run_dir"
}
trap leave EXIT

# shellcheck source=scripts/start-guest.sh
source scripts/start-guest.sh

uri='' why=''
start_guest
if [[ -n $uri ]]; then
    from=(--libvirt "$uri" --data-dir "$run_dir/data" --interval 1)
else
    from=(--simulated poor_binding)
fi
rm -f "$out/$guest.rec"
"$bin/blkpilot" sweep "${from[@]}" --record "$out/$guest.rec" \
    --rounds "$rounds" --settle "$settle" --measure "$measure"
echo
"$bin/blkpilot-lab" calibrate "$out/$guest.rec" --settle "$settle" \
    --out "$out/$guest.toml" --plot "$out/$guest.svg" --report "$out/$guest.json"
if [[ -z $uri ]]; then echo "This was a SIMULATED host, because no guest can run here."; fi
