#!/usr/bin/env bash
# The long proofs, at full counts. Each writes its figures, with command and commit, to
# docs/verification. What is measured against time wants an otherwise idle machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly docs=docs/verification
readonly out=$PWD/out/verify
readonly lab=target/release/blkpilot-lab
# Pairs of a default and a tuned half per guest.
readonly alternations=${BLKPILOT_VERIFY_ALTERNATIONS:-12}
# Times that each setting of the guest's knobs is recorded.
readonly rounds=${BLKPILOT_VERIFY_ROUNDS:-6}
mkdir -p "$docs" "$out"
commit=$(git describe --always --dirty --exclude '*')
machine="$(nproc) CPUs, $(. /etc/os-release && echo "$PRETTY_NAME"), $(rustc --version | cut -d' ' -f1,2)"

record() { # file, title, command: runs it and writes what it prints
    local file=$1 title=$2
    shift 2
    printf '\n== %s\n' "$title"
    local start=$SECONDS
    "$@" 2>"$out/stderr" | tee "$out/stdout" || { cat "$out/stderr" >&2; exit 1; }
    {
        printf '# %s\n\n' "$title"
        printf 'Command: `%s`  \n' "${*//$PWD\//}"
        printf 'Commit: `%s`  \nMachine: %s  \nTook: %d s\n\n' "$commit" "$machine" $((SECONDS - start))
        printf '```text\n%s\n```\n' "$(sed -E "s|$PWD/||g; s|${TMPDIR:-/tmp}/blkpilot-trial\.[A-Za-z0-9]+|RUN_DIR|" "$out/stdout")"
    } >"$docs/$file.md"
}

rm -rf "$out"/{quickstart,four_identical,cartpole,trials,calibration}
cargo build --release -p blkpilot-agent -p blkpilot-lab -p blkpilot-tests --bins
record cartpole "CartPole-v1 by the same PPO, five seeds" \
    "$lab" sanity --seeds 5 --out "$out/cartpole"
record quickstart "The quickstart policy against the baselines on unseen hosts" \
    "$lab" train experiments/configs/quickstart.toml --out "$out/quickstart"
record four-identical "Four identical disks on four channels" \
    "$lab" train experiments/configs/four_identical.toml --out "$out/four_identical"
record oracle "Policies against the oracle of each scenario" \
    "$lab" oracle mixed env/scenarios/mixed_*.toml identical_disks poor_binding capped_device \
    --episodes 32 --policy "$out/quickstart/policy"
for guest in poor-cache poor-binding; do
    record "trial-$guest" "Default against tuned windows on the guest $guest" \
        scripts/trial-guest.sh "$guest" "$out/quickstart/policy" "$out/trials" "$alternations"
done
record calibration "A scenario fitted to the guest calibration, and its error on settings held out" \
    scripts/calibrate-guest.sh calibration "$out/calibration" "$rounds"
cp "$out/calibration/calibration.svg" "$docs/calibration.svg"
printf '\n![Predicted against measured](calibration.svg)\n' >>"$docs/calibration.md"
record bench "Latency of decisions and calls" scripts/bench.sh
