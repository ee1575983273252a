#!/usr/bin/env bash
# Rows per second of offline evaluation beside the Open Bandit Pipeline (obp) and SCOPE-RL, on one core, and
# what reading the decision log costs; writes target/bench_peers.json. Needs no libtorch. The peers are
# installed into .deps/ope-peers, without what their estimators do not import.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Both ask for Python below 3.11 and for packages of that time; their estimators run on these.
readonly -a PEERS=(obp==0.5.7 scope-rl==0.2.1)
readonly -a NEEDS=(numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1)
readonly peers=$PWD/.deps/ope-peers
reports=${CARGO_TARGET_DIR:-$PWD/target}/bench
mkdir -p "$reports" target

if [[ $(cat "$peers/installed" 2>/dev/null) != "${PEERS[*]} ${NEEDS[*]}" ]]; then
    echo "== installing ${PEERS[*]} into .deps/ope-peers"
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --disable-pip-version-check "${NEEDS[@]}"
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps --ignore-requires-python "${PEERS[@]}"
    echo "${PEERS[*]} ${NEEDS[*]}" >"$peers/installed"
fi
export OPE_PEER_PYTHON=$peers/bin/python OPE_PEER_PROGRAM=$PWD/scripts/bench_peers.py
# One core for all: numpy's own threads too.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
core=$(taskset -cp $$ | sed -E 's/.*: ([0-9]+).*/\1/')

cargo bench --quiet --no-run -p blkpilot-models --bench ope
cargo bench --quiet --no-run -p blkpilot-log --bench log
echo "== estimates, 1 million rows of 8 actions; trajectories of 20 steps"
taskset -c "$core" cargo bench --quiet -p blkpilot-models --bench ope -- --json "$reports/ope.json"
echo "== the decision log"
taskset -c "$core" cargo bench --quiet -p blkpilot-log --bench log -- --json "$reports/log.json"

python3 - "$reports" target/bench_peers.json <<'PYTHON'
import json, pathlib, platform, subprocess, sys

reports, out = map(pathlib.Path, sys.argv[1:])
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
estimates, log = (json.loads((reports / name).read_text()) for name in ["ope.json", "log.json"])
figures = log["figures"]
scan = {
    columns: 1e9 / figures[f"scan of Parquet, {columns}, rows/s"]
    for columns in ["all columns", "four columns"]
}
document = {
    "commit": commit or None,
    "machine": platform.machine(),
    "rows": estimates["rows"],
    "ope_rows_per_s": estimates["ope_rows_per_s"],
    "log_scan_ns_per_row": scan,
}
out.write_text(json.dumps(document, indent=2) + "\n")
print(f"wrote {out}")
PYTHON
