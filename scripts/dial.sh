#!/usr/bin/env bash
# One policy that reads the reward weights off its observation beside policies that were each trained for one set of
# them: what the first gives up, as a share of the range from random to the oracle, on hosts that none has seen.
# Writes runs to DIRECTORY and prints a table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $# -ne 2 ]]; then
    echo "usage: scripts/dial.sh BLKPILOT_LAB DIRECTORY" >&2
    exit 2
fi
readonly lab=$1 out=$2
# The oracle is only what the range is measured by: a search of 400 values a phase vector does for that, on hosts of at most
# 4 disks. One of 6 may have 729 phase vectors, and takes as long as all of these.
readonly hosts=${BLKPILOT_DIAL_HOSTS:-16} episodes=${BLKPILOT_DIAL_EPISODES:-4}
mkdir -p "$out"

# Weights that no training has met: those of the ranges are drawn, and never twice.
declare -A weights=(
    [default]=""
    [latency]="cpu = 0.03
page_cache = 0.05
writeback = 0.9
change = 0.005"
    [thrift]="cpu = 0.55
page_cache = 0.85
writeback = 0.3
change = 0.09"
    [objective]="cpu = 0.2
page_cache = 0.1
slo = 0.95
slo_p99_us = 900"
)
"$lab" train experiments/configs/dial.toml --out "$out/conditioned" --overwrite --json >"$out/conditioned.json"
for name in default latency thrift objective; do
    config=$out/$name.toml
    awk '/^\[environment.reward_ranges\]/ { skip = 1; next } /^\[/ { skip = 0 } !skip' \
        experiments/configs/dial.toml | sed 's/^env_steps = .*/env_steps = 120_000/' >"$config"
    printf '\n[environment.reward]\n%s\n' "${weights[$name]}" >>"$config"
    "$lab" train "$config" --out "$out/$name" --overwrite --json >"$out/$name.json"
    sed 's/^disks = .*/disks = [1, 4]/' "$config" >"$out/$name-hosts.toml"
    for policy in conditioned "$name"; do
        "$lab" oracle "$out/$name-hosts.toml" --hosts "$hosts" --episodes "$episodes" --first-seed 20000 \
            --exhaustive 2000 --search 400 --policy "$out/$policy/policy" --json >"$out/$name-$policy-regret.json"
    done
done
python3 - "$out" "$hosts" "$episodes" <<'PYTHON'
import json, pathlib, sys

out, hosts, episodes = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print(f"{hosts} hosts, {episodes} episodes each; regret against the lagged oracle; given up: reward of the policy")
print("trained for the weights minus that of the conditioned one, as a share of the range from random to oracle")
print(f"{'weights':<10} {'trained for':>12} {'conditioned':>12} {'keep_default':>13} {'given up':>9}")
worst = 0.0
for name in ["default", "latency", "thrift", "objective"]:
    own, conditioned = (
        json.loads((out / f"{name}-{policy}-regret.json").read_text())["pooled"] for policy in [name, "conditioned"]
    )
    reward = lambda report, policy: report[policy]["reward"]["value"]
    span = reward(own, "oracle") - reward(own, "random")
    lost = (reward(own, "trained") - reward(conditioned, "trained")) / span
    worst = max(worst, lost)
    regret = lambda report, policy: 100 * report[policy]["lagged_regret"]["value"]
    print(
        f"{name:<10} {regret(own, 'trained'):>10.1f} % {regret(conditioned, 'trained'):>10.1f} %"
        f" {regret(own, 'keep_default'):>11.1f} % {100 * lost:>7.1f} %"
    )
print(f"worst {100 * worst:.1f} % (aim: at most 5 %)")
sys.exit(worst > 0.05)
PYTHON
