#!/usr/bin/env bash
# Lets a service with a simulated host write a decision log, and reads its Parquet files by other
# programs: what they find has to be what `blkpilot log show` shows. They are installed into
# .deps/readers, 700 MB on disk.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h || $# != 1 ]]; then
    echo "Usage: scripts/log-readers.sh OUT    writes the log and the dataset made of it below OUT"
    if [[ ${1:-} == --help || ${1:-} == -h ]]; then exit 0; fi
    exit 2
fi
out=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a READERS=(polars==2.1.0 duckdb==2.0.1 datafusion==55.0.0 pyarrow==26.0.1 minari==0.5.4 pillow==13.0.0)
readonly readers=${BLKPILOT_READERS:-$PWD/.deps/readers}
readonly bin=${BLKPILOT_BIN:-${CARGO_TARGET_DIR:-target}/release}
# Files that are waited for, a second of the service each.
readonly files=${BLKPILOT_READERS_FILES:-8}

if [[ $(cat "$readers/installed" 2>/dev/null) != "${READERS[*]}" ]]; then
    echo "installing ${READERS[*]} into ${readers#"$PWD/"}" >&2
    python3 -m venv "$readers"
    "$readers/bin/pip" install --quiet --disable-pip-version-check "${READERS[@]}"
    echo "${READERS[*]}" >"$readers/installed"
fi
rm -rf "$out"
mkdir -p "$out/log"
cat >"$out/blkpilot.toml" <<'TOML'
version = 1
[host]
kind = "simulated"
scenario = "mixed"
time_scale = 20
mode = "auto"
[policy]
baseline = "random"
[service]
listen = "127.0.0.1:0"
data_dir = "data"
[log]
seal_after = "1s"
TOML
"$bin/blkpilot" serve --config "$out/blkpilot.toml" >"$out/service" 2>&1 &
service=$!
trap 'kill "$service" 2>/dev/null || true' EXIT
for ((tries = 0; tries < 600; tries++)); do
    if (($(find "$out/data" -name 'part-*.parquet' 2>/dev/null | wc -l) >= files)); then break; fi
    if ! kill -0 "$service" 2>/dev/null; then cat "$out/service" >&2; exit 1; fi
    sleep 0.2
done
kill "$service"
wait "$service"
# What is not Parquet yet only blkpilot reads.
cp -r "$out"/data/decisions/host=* "$out/log/"
"$bin/blkpilot" log verify "$out/data"
"$bin/blkpilot" log show "$out/log" --all --json >"$out/rows.jsonl"
"$bin/blkpilot" log export "$out/log" "$out/dataset" --json >"$out/exported.json"
"$readers/bin/python" scripts/log_readers.py "$out"
