#!/usr/bin/env bash
# Rows per second of offline evaluation beside the Open Bandit Pipeline (obp) and SCOPE-RL, on one core, and
# what reading the decision log costs; steps of training per CPU-second beside stable-baselines3 (PPO) and d3rlpy
# (discrete CQL), on one thread; writes target/bench_peers.json. The peers are installed into .deps/ope-peers and
# .deps/learn-peers, without what is not imported.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Both ask for Python below 3.11 and for packages of that time; their estimators run on these.
readonly -a PEERS=(obp==0.5.7 scope-rl==0.2.1)
readonly -a NEEDS=(numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1)
readonly peers=$PWD/.deps/ope-peers
readonly -a LEARNERS=(stable-baselines3==2.9.2 gymnasium==1.4.0 d3rlpy==2.8.1)
readonly -a LEARNERS_NEED=(
    numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0 h5py==3.16.0 gym==0.26.2
    cloudpickle==3.1.3 Farama-Notifications==0.0.6 structlog==26.1.0 tqdm==4.70.1 dataclasses-json==0.6.7
    marshmallow==4.4.0 typing-inspect==0.9.0 mypy_extensions==1.2.0 typing_extensions==4.16.0 sympy==1.14.0
    mpmath==1.4.1 networkx==3.6.1 Jinja2==3.1.6 MarkupSafe==3.0.4 filelock==4.3.1 fsspec==2026.9.0
)
readonly learners=$PWD/.deps/learn-peers
reports=${CARGO_TARGET_DIR:-$PWD/target}/bench
mkdir -p "$reports" target

if [[ $(cat "$peers/installed" 2>/dev/null) != "${PEERS[*]} ${NEEDS[*]}" ]]; then
    echo "== installing ${PEERS[*]} into .deps/ope-peers"
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --disable-pip-version-check "${NEEDS[@]}"
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps --ignore-requires-python "${PEERS[@]}"
    echo "${PEERS[*]} ${NEEDS[*]}" >"$peers/installed"
fi

# PyTorch is that of .deps/venv, whose libtorch we link; CUDA is stood in for.
install_learners() {
    echo "== installing ${LEARNERS[*]} into .deps/learn-peers"
    python3 -m venv "$learners"
    "$learners/bin/pip" install --quiet --disable-pip-version-check --no-deps "${LEARNERS_NEED[@]}" "${LEARNERS[@]}"
    local torch
    torch=$(cd "$PWD"/.deps/venv/lib/python3.*/site-packages/torch && pwd -P)
    dirname "$torch" >"$(echo "$learners"/lib/python3.*/site-packages)/torch.pth"
    python3 scripts/stand_in_cuda.py "$torch/lib" "$learners/no-cuda"
    echo "${LEARNERS[*]} ${LEARNERS_NEED[*]}" >"$learners/installed"
}
scripts/setup.sh --no-live
if [[ ! -d .deps/venv ]]; then
    echo "bench-peers: the learners beside us want the PyTorch in .deps/venv: unset LIBTORCH and run scripts/setup.sh" >&2
    exit 1
fi
if [[ $(cat "$learners/installed" 2>/dev/null) != "${LEARNERS[*]} ${LEARNERS_NEED[*]}" ]]; then install_learners; fi

export OPE_PEER_PYTHON=$peers/bin/python OPE_PEER_PROGRAM=$PWD/scripts/bench_peers.py
# One core for all: numpy's own threads too.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
core=$(taskset -cp $$ | sed -E 's/.*: ([0-9]+).*/\1/')

cargo bench --quiet --no-run -p blkpilot-models --bench ope
cargo bench --quiet --no-run -p blkpilot-log --bench log
echo "== estimates, 1 million rows of 8 actions; trajectories of 20 steps"
taskset -c "$core" cargo bench --quiet -p blkpilot-models --bench ope -- --json "$reports/ope.json"
echo "== the decision log"
taskset -c "$core" cargo bench --quiet -p blkpilot-log --bench log -- --json "$reports/log.json"

# With the features of the whole workspace, so that libtorch's bindings are built once.
cargo bench --quiet --no-run --workspace --bench ppo --bench offline
echo "== PPO on CartPole-v1, beside stable-baselines3"
PPO_PEER_PROGRAM=$PWD/scripts/bench_ppo_peer.py LEARN_PEER_PYTHON=$learners/bin/python \
    LEARN_PEER_LIBRARIES=$learners/no-cuda \
    taskset -c "$core" cargo bench --quiet --workspace --bench ppo -- --json "$reports/ppo.json"
echo "== discrete CQL, beside d3rlpy"
rm -f "$reports/cql.jsonl"
for _ in 1 2 3; do
    for side in ours peer; do
        if [[ $side == ours ]]; then
            line=$(taskset -c "$core" cargo bench --quiet --workspace --bench offline | tail -n 1)
        else
            line=$(taskset -c "$core" env LD_LIBRARY_PATH="$learners/no-cuda" "$learners/bin/python" scripts/bench_cql_peer.py | tail -n 1)
        fi
        printf '{"side": "%s", "report": %s}\n' "$side" "$line" | tee -a "$reports/cql.jsonl"
    done
done

python3 - "$reports" target/bench_peers.json <<'PYTHON'
import json, pathlib, platform, statistics, subprocess, sys

reports, out = map(pathlib.Path, sys.argv[1:])
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
estimates, log = (json.loads((reports / name).read_text()) for name in ["ope.json", "log.json"])
figures = log["figures"]
scan = {
    columns: 1e9 / figures[f"scan of Parquet, {columns}, rows/s"]
    for columns in ["all columns", "four columns"]
}
ppo = json.loads((reports / "ppo.json").read_text())
runs = [json.loads(line) for line in (reports / "cql.jsonl").read_text().splitlines()]


def grad_steps(side):
    """Median over its runs of their medians."""
    return statistics.median(r["report"]["cql_grad_steps_per_cpu_s"] for r in runs if r["side"] == side)


ours, peer = grad_steps("ours"), grad_steps("peer")
document = {
    "commit": commit or None,
    "machine": platform.machine(),
    "rows": estimates["rows"],
    "ope_rows_per_s": estimates["ope_rows_per_s"],
    "log_scan_ns_per_row": scan,
    "ppo_cartpole_steps_per_cpu_s": ppo["ppo_cartpole_steps_per_cpu_s"],
    "ppo_host_steps_per_cpu_s": ppo["ppo_host_steps_per_cpu_s"],
    "cql_grad_steps_per_cpu_s": {"ours": ours, "peer": peer, "ratio": ours / peer},
}
out.write_text(json.dumps(document, indent=2) + "\n")
print(f"wrote {out}")
PYTHON
