#!/usr/bin/env bash
# Makes the files in experiments/results anew: those of the sweeps that are named, by default those in its README. Runs of
# an earlier time are not taken: they may be of other code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly lab=${BLKPILOT_LAB:-${CARGO_TARGET_DIR:-target}/release/blkpilot-lab}
if [[ -z ${BLKPILOT_LAB:-} ]]; then
    cargo build --release --workspace --bin blkpilot-lab
fi

if [[ $# == 0 ]]; then set -- four_identical_seeds quickstart_seeds quickstart_dqn_seeds; fi
for sweep in "$@"; do
    out=out/results/$sweep
    rm -rf "$out"
    "$lab" sweep "experiments/sweeps/$sweep.toml" --out "$out" --json >"experiments/results/$sweep.json"
    "$lab" report "$out" --out "experiments/results/$sweep.html"
done
