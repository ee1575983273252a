#!/usr/bin/env bash
# Clients that are not ours, at a service of its own: stubs that grpcio-tools makes of the .protos, Gymnasium's checks
# of remote environments, and stable-baselines3's PPO on remote CartPole. They are installed into .deps/gym-peers;
# PyTorch is that of .deps/venv, whose libtorch we link, with stand-ins for CUDA.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h || $# -lt 1 || $# -gt 2 ]]; then
    echo "Usage: scripts/remote-cartpole.sh OUT [--check-only]    writes stubs, service and log below OUT"
    if [[ ${1:-} == --help || ${1:-} == -h ]]; then exit 0; fi
    exit 2
fi
out=$(realpath -m "$1")
mode=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a STUBS=(grpcio==1.85.3 grpcio-tools==1.85.1 protobuf==7.36.2 setuptools==84.2.1)
readonly -a PEERS=(
    gymnasium==1.4.0 stable-baselines3==2.9.2 numpy==2.4.6 cloudpickle==3.1.3 Farama-Notifications==0.0.6
    typing_extensions==4.16.0 sympy==1.14.0 mpmath==1.4.1 networkx==3.6.1 Jinja2==3.1.6 MarkupSafe==3.0.4
    filelock==4.3.1 fsspec==2026.9.0
)
readonly peers=$PWD/.deps/gym-peers
readonly bin=${BLKPILOT_BIN:-target/release}
# Seeds that PPO is trained with.
readonly seeds=${BLKPILOT_REMOTE_SEEDS:-3}

install_peers() {
    echo "installing ${STUBS[*]} ${PEERS[*]} into .deps/gym-peers" >&2
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --disable-pip-version-check "${STUBS[@]}"
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps "${PEERS[@]}"
    local torch
    torch=$(cd "$PWD"/.deps/venv/lib/python3.*/site-packages/torch && pwd -P)
    dirname "$torch" >"$(echo "$peers"/lib/python3.*/site-packages)/torch.pth"
    python3 scripts/stand_in_cuda.py "$torch/lib" "$peers/no-cuda"
    echo "${STUBS[*]} ${PEERS[*]}" >"$peers/installed"
}
if [[ $(cat "$peers/installed" 2>/dev/null) != "${STUBS[*]} ${PEERS[*]}" ]]; then install_peers; fi

rm -rf "$out"
mkdir -p "$out/stubs"
"$peers/bin/python" -m grpc_tools.protoc -I proto/proto --python_out="$out/stubs" --grpc_python_out="$out/stubs" \
    proto/proto/blkpilot/v1/*.proto
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
export PYTHONPATH=$out/stubs:$PWD/tests/python LD_LIBRARY_PATH=$peers/no-cuda OMP_NUM_THREADS=1
"$peers/bin/python" tests/python/check_remote.py "unix:$out/blkpilot.sock"
if [[ $mode == --check-only ]]; then exit 0; fi
for ((seed = 1; seed <= seeds; seed++)); do
    "$peers/bin/python" tests/python/train_remote.py "unix:$out/blkpilot.sock" "$seed"
done
