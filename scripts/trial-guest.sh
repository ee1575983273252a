#!/usr/bin/env bash
# Serves a policy to one guest of the fixture and tries it out: default and tuned windows in turn.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 4 || ${1:-} == --help ]]; then
    cat <<'TEXT'
Usage: scripts/trial-guest.sh GUEST POLICY OUT ALTERNATIONS

Starts the fixture's guest preset GUEST (blkpilot-fixture presets lists them) under a private
libvirtd, serves the checkpoint POLICY to it with `blkpilot serve`, and runs `blkpilot trial`
with that many ALTERNATIONS. Writes the report to OUT/GUEST.json and the daemon's log and state
to OUT. Where no guest can run, a simulated host stands in, and the output says so.
The release binaries must have been built.
TEXT
    exit 2
fi
readonly guest=$1 alternations=$4
policy=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
bin=$(realpath -m "${CARGO_TARGET_DIR:-target}/release")
readonly bin
run_dir=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-trial.XXXXXX")
daemon='' fixture=''

# shellcheck source=scripts/start-guest.sh
source scripts/start-guest.sh

leave() {
    stop "$daemon"
    stop "$fixture"
    rm -rf "$run_dir"
}
trap leave EXIT

write_config() {
    printf 'version = 1\n[host]\nname = "local"\n'
    if [[ -n $uri ]]; then
        printf 'kind = "libvirt"\nuri = "%s"\ninterval = "2s"\non_exit = "revert"\n' "$uri"
    else
        printf 'kind = "simulated"\nscenario = "poor_binding"\nmode = "advise"\ntime_scale = 10.0\n'
    fi
    printf '[policy]\ncheckpoint = "%s"\n' "$policy"
    printf '[service]\nlisten = "unix:%s"\ndata_dir = "%s"\n' "$run_dir/blkpilot.sock" "$out/data-$guest"
}

wait_for_daemon() {
    for _ in $(seq 100); do
        if "$bin/blkpilot" guests >"$run_dir/guests" 2>/dev/null; then return; fi
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.2
    done
    if ! "$bin/blkpilot" guests >"$run_dir/guests"; then
        cat "$out/daemon-$guest.log" >&2
        exit 1
    fi
}

uri='' why=''
start_guest
write_config >"$out/blkpilot-$guest.toml"
export BLKPILOT_SERVER="unix:$run_dir/blkpilot.sock"
"$bin/blkpilot" serve --config "$out/blkpilot-$guest.toml" 2>"$out/daemon-$guest.log" &
daemon=$!
wait_for_daemon
cat "$run_dir/guests"
echo
"$bin/blkpilot" trial --alternations "$alternations" --out "$out/$guest.json"
if [[ -z $uri ]]; then echo "This was a SIMULATED host, because no guest can run here."; fi
