#!/usr/bin/env bash
# Runs the benchmarks and gathers their reports in target/bench.json. Figures are ratios, measured
# side by side in one run: nanoseconds do not travel between machines. What others' programs are
# compared with is installed into .deps/peers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a BENCHES=(blkpilot-env:sim blkpilot-models:decision blkpilot-log:log blkpilot-agent:grpc)
readonly -a PEERS=(gymnasium==1.4.0 numpy==2.4.6 polars==2.1.0)
readonly peers=$PWD/.deps/peers
reports=$PWD/target/bench
mkdir -p "$reports"

if [[ $(cat "$peers/installed" 2>/dev/null) != "${PEERS[*]}" ]]; then
    echo "== installing ${PEERS[*]} into .deps/peers"
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --disable-pip-version-check "${PEERS[@]}"
    echo "${PEERS[*]}" >"$peers/installed"
fi
export GYMNASIUM_PYTHON=$peers/bin/python LOG_PEER_PYTHON=$peers/bin/python

for bench in "${BENCHES[@]}"; do
    echo "== ${bench#*:}"
    cargo bench --quiet -p "${bench%:*}" --bench "${bench#*:}" -- --json "$reports/${bench#*:}.json"
done

python3 - "$reports" target/bench.json <<'PYTHON'
import json, pathlib, platform, subprocess, sys

reports, out = map(pathlib.Path, sys.argv[1:])
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
benches = [json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))]
headlines = {}
for bench in benches:
    headlines |= bench.pop("headlines", {})
document = {"commit": commit or None, "machine": platform.machine(), **headlines, "benches": benches}
out.write_text(json.dumps(document, indent=2) + "\n")
print(f"wrote {out}")
PYTHON
