#!/usr/bin/env bash
# The whole loop once: train on simulated hosts, compare with baselines, serve the policy by gRPC,
# and let it retune a running QEMU guest in alternation with the guest's own settings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/demo.sh [--alternations N] [--help]

Trains experiments/configs/quickstart.toml (about a minute), compares the policy with the
baselines, starts two small QEMU guests under a private libvirtd, one with a poor cache mode
and one with a poor binding, serves the policy to them, and prints how default and tuned
windows compare. Where no guest can run, a simulated host stands in, and the output says so.

  --alternations N   pairs of a default and a tuned half (default 6)

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
readonly out=$PWD/out/demo
readonly bin=$PWD/target/release
run_dir=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-demo.XXXXXX")
daemon='' fixture=''

stop() { # pid: asks it to end and waits
    if [[ -n $1 ]] && kill -INT "$1" 2>/dev/null; then wait "$1" 2>/dev/null || true; fi
}
leave() {
    stop "$daemon"
    stop "$fixture"
    rm -rf "$run_dir"
}
trap leave EXIT
say() { printf '\n== %s\n' "$*"; }

say "build"
cargo build --release -p blkpilot-agent -p blkpilot-lab -p blkpilot-tests --bins

say "train: $config"
rm -rf "$out"
mkdir -p "$out"
"$bin/blkpilot-lab" train "$config" --out "$out/train"

say "compare on hosts that training never saw"
"$bin/blkpilot-lab" compare "$config" "$out/train/policy" --out "$out/compare.json"

say "start guests"
uri='' why=''
"$bin/blkpilot-fixture" up --guests poor-cache,poor-binding >"$run_dir/uri" 2>"$run_dir/fixture.log" &
fixture=$!
while kill -0 "$fixture" 2>/dev/null && [[ -z $uri ]]; do
    uri=$(head -n 1 "$run_dir/uri")
    sleep 0.2
done
if [[ -n $uri ]]; then
    sed 's/^/   /' "$run_dir/fixture.log"
else
    wait "$fixture" && why="the fixture ended without a URI" || why=$(tail -n 1 "$run_dir/fixture.log")
    fixture=''
    echo "   NO GUEST CAN RUN HERE: $why"
    echo "   A SIMULATED HOST STANDS IN: what follows was not measured on a guest."
fi

{
    echo 'version = 1'
    echo '[host]'
    echo 'name = "local"'
    if [[ -n $uri ]]; then
        printf 'kind = "libvirt"\nuri = "%s"\ninterval = "2s"\non_exit = "revert"\n' "$uri"
    else
        printf 'kind = "simulated"\nscenario = "mixed"\ntime_scale = 20.0\n'
    fi
    printf '[policy]\ncheckpoint = "%s"\n' "$out/train/policy"
    printf '[service]\nlisten = "unix:%s"\ndata_dir = "%s"\n' "$run_dir/blkpilot.sock" "$out/data"
} >"$out/blkpilot.toml"

say "serve the policy: blkpilot serve --config ${out#"$PWD/"}/blkpilot.toml"
export BLKPILOT_SERVER="unix:$run_dir/blkpilot.sock"
"$bin/blkpilot" serve --config "$out/blkpilot.toml" 2>"$out/daemon.log" &
daemon=$!
for _ in $(seq 100); do
    if "$bin/blkpilot" guests >"$run_dir/guests" 2>/dev/null; then break; fi
    kill -0 "$daemon" 2>/dev/null || { cat "$out/daemon.log" >&2; exit 1; }
    sleep 0.2
done
cat "$run_dir/guests"

say "trial: default and tuned windows in turn"
"$bin/blkpilot" trial --alternations "$alternations" --out "$out/trial.json"
if [[ -z $uri ]]; then
    echo "This was a SIMULATED host, because no guest can run here: $why"
fi
say "done; the policy, its curve, the comparison and the trial are in out/demo"
