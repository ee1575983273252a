#!/usr/bin/env bash
# The whole loop once: train on simulated hosts, compare with baselines, serve the policy by gRPC,
# and let it retune running QEMU guests in alternation with the guests' own settings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/demo.sh [--alternations N] [--help]

Trains experiments/configs/quickstart.toml (about a minute) and compares the policy with the
baselines. Then, for a guest with a poor cache mode and for one with a poor binding: starts it
under a private libvirtd, serves the policy to it, and prints how default and tuned windows
compare. Where no guest can run, a simulated host stands in, and the output says so.

  --alternations N   pairs of a default and a tuned half per guest (default 6, 2 minutes)

Everything that it writes is in out/demo.
TEXT
}

alternations=6
while [[ $# -gt 0 ]]; do
    case "$1" in
        --alternations) alternations=${2:?--alternations needs a number}; shift 2 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "demo: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done

readonly config=experiments/configs/quickstart.toml
readonly out=out/demo
readonly lab=${CARGO_TARGET_DIR:-target}/release/blkpilot-lab
say() { printf '\n== %s\n' "$*"; }

say "build"
cargo build --release -p blkpilot-agent -p blkpilot-lab -p blkpilot-tests --bins

say "train: blkpilot-lab train $config"
rm -rf "$out"
mkdir -p "$out"
"$lab" train "$config" --out "$out/train"

say "compare on hosts that training never saw: blkpilot-lab compare"
"$lab" compare "$config" "$out/train/policy" --out "$out/compare.json"

for guest in poor-cache poor-binding; do
    say "serve the policy to the guest $guest, and try it out: blkpilot serve, blkpilot trial"
    scripts/trial-guest.sh "$guest" "$PWD/$out/train/policy" "$PWD/$out" "$alternations"
done

say "done; the policy, its curve, the comparison and the trials are in $out"
