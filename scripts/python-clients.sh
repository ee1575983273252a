#!/usr/bin/env bash
# Clients that are not ours, at a service of its own: grpcio with stubs that grpcio-tools makes of the .protos,
# grpcio-reflection, grpcio-health-checking, grpcio-status, and Gymnasium's checks of remote environments; with --train
# stable-baselines3's PPO on remote CartPole too. They are installed into .deps/grpc-peers; PyTorch is that of
# .deps/venv, whose libtorch we link, with stand-ins for CUDA.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/python-clients.sh OUT [--train]    writes stubs, service and log below OUT
       scripts/python-clients.sh --install        only installs what the checks without --train want

BLKPILOT_BIN is the directory of the binary `blkpilot`, target/release if it is not set.
TEXT
}
if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi
if [[ $# -lt 1 || $# -gt 2 || ${2:---train} != --train ]]; then usage >&2; exit 2; fi
out=$(realpath -m -- "$1")
readonly out mode=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a CLIENTS=(
    grpcio==1.85.3 grpcio-tools==1.85.1 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1 grpcio-status==1.85.3
    googleapis-common-protos==1.76.0 protobuf==7.36.2 setuptools==84.2.1 gymnasium==1.4.0 cloudpickle==3.1.3
    Farama-Notifications==0.0.6 typing_extensions==4.16.0
    "numpy==2.4.6; python_version >= '3.11'" "numpy==2.2.6; python_version < '3.11'"
)
readonly -a TRAINERS=(
    stable-baselines3==2.9.2 sympy==1.14.0 mpmath==1.4.1 networkx==3.6.1 Jinja2==3.1.6 MarkupSafe==3.0.4 filelock==4.3.1
    fsspec==2026.9.0
)
readonly peers=$PWD/.deps/grpc-peers
readonly bin=${BLKPILOT_BIN:-${CARGO_TARGET_DIR:-target}/release}
# Seeds that PPO is trained with.
readonly seeds=${BLKPILOT_REMOTE_SEEDS:-3}

install() { # name of the set, packages: installs them unless they are there
    local stamp=$peers/installed-$1
    shift
    if [[ $(cat "$stamp" 2>/dev/null) == "$*" ]]; then return; fi
    echo "installing $* into .deps/grpc-peers" >&2
    if [[ ! -x $peers/bin/pip ]]; then python3 -m venv "$peers"; fi
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps "$@"
    echo "$*" >"$stamp"
}

install_trainers() {
    install trainers "${TRAINERS[@]}"
    local torch
    torch=$(cd "$PWD"/.deps/venv/lib/python3.*/site-packages/torch && pwd -P)
    dirname "$torch" >"$(echo "$peers"/lib/python3.*/site-packages)/torch.pth"
    if [[ ! -d $peers/no-cuda ]]; then python3 scripts/stand_in_cuda.py "$torch/lib" "$peers/no-cuda"; fi
}

install clients "${CLIENTS[@]}"
if [[ $1 == --install ]]; then exit 0; fi
if [[ $mode == --train ]]; then install_trainers; fi

rm -rf "$out"
mkdir -p "$out/stubs"
"$peers/bin/python" -m grpc_tools.protoc -I proto/proto --python_out="$out/stubs" --grpc_python_out="$out/stubs" \
    proto/proto/blkpilot/v1/*.proto proto/proto/google/longrunning/operations.proto
cat >"$out/blkpilot.toml" <<'TOML'
version = 1
[host]
kind = "simulated"
scenario = "mixed"
[policy]
baseline = "keep_default"
[service]
listen = "unix:blkpilot.sock"
data_dir = "data"
TOML
"$bin/blkpilot" serve --config "$out/blkpilot.toml" >"$out/service" 2>&1 &
service=$!
trap 'kill "$service" 2>/dev/null || true' EXIT
for ((tries = 0; tries < 100; tries++)); do
    if [[ -S $out/blkpilot.sock ]]; then break; fi
    if ! kill -0 "$service" 2>/dev/null; then cat "$out/service" >&2; exit 1; fi
    sleep 0.1
done
export PYTHONPATH=$out/stubs:$PWD/tests/python LD_LIBRARY_PATH=$peers/no-cuda OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
"$peers/bin/python" tests/python/check_grpc.py "unix:$out/blkpilot.sock"
"$peers/bin/python" tests/python/check_remote.py "unix:$out/blkpilot.sock"
if [[ $mode != --train ]]; then exit 0; fi
for ((seed = 1; seed <= seeds; seed++)); do
    "$peers/bin/python" tests/python/train_remote.py "unix:$out/blkpilot.sock" "$seed"
done
