#!/usr/bin/env bash
# The loop from end to end on a running guest, each step with its evidence: explore, decision log, offline learner,
# evaluation, gate, canary, auto, an injected harm, and how it is undone and rolled back without anybody's help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/loop.sh [--explore SECONDS] [--simulated] [--out DIR]

Starts the fixture's guest poor-cache (direct I/O on a slow device, a working set that fits the page cache) under a
private libvirtd and one service, and closes the loop on it. Where no guest can run, a simulated host stands in, and the
output says so.

  --explore SECONDS   how long the guest is explored (default 180)
  --simulated         take a simulated host
  --out DIR           what is written (default out/loop)

BLKPILOT_BIN names a directory with the binaries; by default the release ones are built. Exits with 1 where a step does
not bring what it must, and with BLKPILOT_REQUIRE_LIVE=1 where no guest can run.
TEXT
}

explore=180 out=out/loop simulated='' bin=${BLKPILOT_BIN:-}
while [[ $# -gt 0 ]]; do
    case "$1" in
        --explore) explore=${2:?--explore needs seconds}; shift 2 ;;
        --out) out=${2:?--out needs a directory}; shift 2 ;;
        --simulated) simulated=yes; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "loop: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
if [[ -z $bin ]]; then
    cargo build --release -p blkpilot-agent -p blkpilot-lab -p blkpilot-tests --bins
    bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
fi
out=$(realpath -m "$out")
rm -rf "$out"
mkdir -p "$out"
readonly guest=poor-cache patience=120
run_dir=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-loop.XXXXXX")
daemon='' fixture='' uri='' why=''

# shellcheck source=scripts/start-guest.sh
source scripts/start-guest.sh

leave() {
    stop "$daemon"
    stop "$fixture"
    rm -rf "$run_dir"
}
trap leave EXIT
say() { printf '\n== %s\n' "$*"; }
show() { # a command, and what it prints
    printf '$ %s\n' "$(sed "s|$run_dir|RUN_DIR|g; s|$bin/||g; s|$PWD/||g" <<<"$*")"
    "$@"
}
fail() { echo "loop: $*" >&2; tail -n 20 "$out/service.log" >&2; exit 1; }
blkpilot() { "$bin/blkpilot" "$@"; }

write_config() { # mode, lines of [guard]
    {
        printf 'version = 1\n[host]\nname = "local"\n'
        if [[ -n $uri ]]; then
            printf 'kind = "libvirt"\nuri = "%s"\ninterval = "500ms"\non_exit = "revert"\n' "$uri"
        else
            printf 'kind = "simulated"\nscenario = "%s"\ntime_scale = 4.0\n' "$out/scenario.toml"
        fi
        printf '[[guest]]\nname = "%s"\nopt_in = true\nmode = "%s"\nknobs = ["cache"]\n[guard]\n%s\n' "$guest" "$1" "$2"
        printf '[policy]\nbaseline = "random"\n[candidate]\nbaseline = "keep_default"\n'
        printf '[service]\nlisten = "unix:%s"\ndata_dir = "%s"\n' "$run_dir/blkpilot.sock" "$out/data"
    } >"$out/blkpilot.toml"
}
# To learn what harm is, it must be seen: while it is explored the guest has a guard that bears much.
readonly lenient='dwell = "0s"
changes_per_minute = 1000
trial_windows = 1
doubt_windows = 1
tolerated_ratio = 100.0
retry_undone = "1s"
longest_retry = "1s"
breaker_failures = 1000'
# Its times are short, so that minutes show what takes hours with the defaults; and what was undone while it was explored is
# not held against those who come after.
readonly strict='dwell = "2s"
retry_undone = "4s"
longest_retry = "8s"
breaker_failures = 1000'

holds() { # python expression of the answer `it`, command: whether it holds
    local expression=$1
    shift
    "$@" | python3 -c "import json, sys; it = json.load(sys.stdin); sys.exit(not ($expression))"
}
wait_for() { # what, python expression, command
    local what=$1 expression=$2 end=$((SECONDS + patience))
    shift 2
    until holds "$expression" "$@" 2>/dev/null; do
        kill -0 "$daemon" 2>/dev/null || fail "the service has ended while it was to show: $what"
        ((SECONDS < end)) || fail "in $patience s it did not come to pass: $what"
        sleep 0.5
    done
}
mode_is() { wait_for "mode $1" "it['guests'][0]['mode'].endswith('$1')" blkpilot guests --json; }
cache_is() {
    local disk="it['guests'][0]['disks'][0]"
    wait_for "cache strategy $1" "[h['current'] for h in $disk['heads'] if h['head'] == 'cache'] == ['$1']" \
        blkpilot guests --json
}
take() { # mode, guard: the running service reads its configuration again
    write_config "$1" "$2"
    kill -HUP "$daemon"
    mode_is "$(tr '[:lower:]' '[:upper:]' <<<"$1")"
}

[[ -n $simulated ]] || start_guest
if [[ -z $uri && -z $simulated && ${BLKPILOT_REQUIRE_LIVE:-0} != 0 ]]; then
    echo "loop: BLKPILOT_REQUIRE_LIVE is set, and no guest can run" >&2
    exit 1
fi
if [[ -z $uri ]]; then
    sed "s/working_set_gib = .*/working_set_gib = 0.03/; s/guest = \"guest-0\"/guest = \"$guest\"/" \
        env/scenarios/capped_device.toml | awk '/^\[\[disks\]\]/ && seen++ { exit } { print }' >"$out/scenario.toml"
fi

say "1. explore: a policy that draws at random decides for the guest $guest, for $explore s"
write_config auto "$lenient"
export BLKPILOT_SERVER="unix:$run_dir/blkpilot.sock"
"$bin/blkpilot" serve --config "$out/blkpilot.toml" >"$out/service.out" 2>"$out/service.log" &
daemon=$!
wait_for "a first window" "it['guests'][0]['disks']" blkpilot guests --json
sleep "$explore"
show blkpilot decisions --limit 4

say "2. the decision log, with the propensity of each choice"
show blkpilot log ls "$out/data"
show blkpilot log show "$out/data" --limit 4
show blkpilot log verify "$out/data"

say "3. an offline learner, from the log alone"
show "$bin/blkpilot-lab" train experiments/configs/loop.toml --log "$out/data" --out "$out/train"

say "4. what the policy would have brought: the evaluation, with its bound"
show blkpilot policy upload "$out/train/policy" --name learned
readonly -a judging=(--horizon 2 --block 5s --least-ess 20)
show blkpilot policy evaluate learned/1 "${judging[@]}"

say "5. through the gate, to decide for guests in mode canary"
show blkpilot policy promote learned/1 --to canary --gate "${judging[@]}"
take canary "$strict"
cache_is buffered
sleep 10
show blkpilot guests
show blkpilot decisions --limit 3

say "6. through the gate again, now with the canary's decisions in the log, into production; mode auto"
take advise "$strict"
show blkpilot policy promote learned/1 --to production --mixed "${judging[@]}"
take auto "$strict"
cache_is buffered
sleep 5
show blkpilot guests
show blkpilot policy ls

say "7. an injected harm: the same policy, but that it always wants direct I/O"
python3 scripts/sabotage.py "$out/train/policy" "$out/harmful"
show blkpilot policy upload "$out/harmful" --name harmful --description 'always direct'
echo "The gate does not let it through:"
if show blkpilot policy promote harmful/1 --to production --mixed "${judging[@]}" 2>&1; then
    fail "the gate has let through what does harm"
fi
echo "So it is forced, as somebody might who is sure:"
forced=$(date -u +%FT%T)
show blkpilot policy promote harmful/1 --to production --force 'sure that it is better'

say "8. what the guard does by itself: each change is undone, and after the third the policy is rolled back"
wait_for "learned/1 in production again" \
    "[v['stage'] for v in it['versions'] if v['name'] == 'policies/learned/versions/1'] == ['POLICY_STAGE_PRODUCTION']" \
    blkpilot policy ls --json
show blkpilot policy show harmful/1
show blkpilot policy show learned/1
blkpilot decisions --limit 200 --json | python3 -c '
import json, sys
decisions = json.load(sys.stdin)["decisions"]
undone = [d for d in decisions if d["source"].endswith("GUARD") and d["create_time"] >= sys.argv[1]]
print(f"{len(undone)} changes were undone by the guard:")
for decision in reversed(undone):
    print("  " + decision["create_time"], decision["reason"])
sys.exit(len(undone) < 3)' "$forced" || fail "the guard has not undone three changes"
cache_is buffered
show blkpilot policy ls
show blkpilot guests

say "9. the service stops, and the guest has what it was started with"
[[ -z $uri ]] || show blkpilot journal --data-dir "$out/data"
stop "$daemon"
daemon=''
if [[ -n $uri ]]; then
    show blkpilot journal --data-dir "$out/data"
else
    echo "This was a SIMULATED host."
fi
echo "The loop is closed. What it wrote is in ${out#"$PWD"/}."
