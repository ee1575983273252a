#!/usr/bin/env bash
# Runs the benchmarks and gathers their reports in target/bench.json. Figures are ratios, measured
# side by side in one run: nanoseconds do not travel between machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a BENCHES=(blkpilot-models:decision blkpilot-agent:grpc)
reports=$PWD/target/bench
mkdir -p "$reports"
for bench in "${BENCHES[@]}"; do
    echo "== ${bench#*:}"
    cargo bench --quiet -p "${bench%:*}" --bench "${bench#*:}" -- --json "$reports/${bench#*:}.json"
done

python3 - "$reports" target/bench.json <<'PYTHON'
import json, pathlib, platform, subprocess, sys

reports, out = map(pathlib.Path, sys.argv[1:])
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
benches = [json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))]
document = {"commit": commit or None, "machine": platform.machine(), "benches": benches}
out.write_text(json.dumps(document, indent=2) + "\n")
print(f"wrote {out}")
PYTHON
