#!/usr/bin/env bash
# The long proofs, at full counts. Each writes its figures, with command and commit, to
# docs/verification. What is measured against time wants an otherwise idle machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly -a PROOFS=(
    cartpole dial quickstart four-identical discrete-event simulator-properties journal oracle oracle-mixed oracle-hosts
    trial-poor-cache trial-poor-binding calibration guard harm kills faults jobs soak
    shift live-training log-power log-kills policy-kills daemon-kills log-readers coverage exposure ranking large-log sampling cache
    learning-memory remote-cartpole rough-clients fuzz loop bench
)
usage() {
    cat <<TEXT
Usage: scripts/verify.sh [PROOF...]

Runs the long proofs, all of them or those named, and writes their figures to docs/verification:
  ${PROOFS[*]}
The trials, shift and live-training want the policy that quickstart trains.
TEXT
}
for proof in "$@"; do
    case " ${PROOFS[*]} " in
        *" $proof "*) ;;
        *) if [[ $proof == --help || $proof == -h ]]; then usage; exit 0; fi
           echo "verify: there is no proof '$proof'; see --help" >&2; exit 2 ;;
    esac
done
readonly -a chosen=("${@:-${PROOFS[@]}}")

readonly docs=docs/verification
readonly out=$PWD/out/verify
release=$(realpath -m "${CARGO_TARGET_DIR:-target}/release")
readonly release lab=$release/blkpilot-lab
# Pairs of a default and a tuned half per guest.
readonly alternations=${BLKPILOT_VERIFY_ALTERNATIONS:-12}
# Times that the daemon is killed, and joint decisions of the soak.
readonly kills=${BLKPILOT_VERIFY_KILLS:-200} soak=${BLKPILOT_VERIFY_SOAK:-20000}
# Times that a writer of the decision log is killed.
readonly log_kills=${BLKPILOT_VERIFY_LOG_KILLS:-1000}
# Times that a writer of the policy store is killed.
readonly policy_kills=${BLKPILOT_VERIFY_POLICY_KILLS:-500}
# Times that the whole daemon is killed while it tunes and a client uploads and promotes.
readonly daemon_kills=${BLKPILOT_VERIFY_DAEMON_KILLS:-200}
# Rows of the large decision log.
readonly log_rows=${BLKPILOT_VERIFY_LOG_ROWS:-50000000}
# Seconds for which rough clients come.
readonly rough_seconds=${BLKPILOT_VERIFY_ROUGH_SECONDS:-600}
# Seconds for which requests and files are drawn and broken, each.
readonly fuzz_seconds=${BLKPILOT_VERIFY_FUZZ_SECONDS:-600}
# Updates over which learning must not take more memory.
readonly updates=${BLKPILOT_VERIFY_UPDATES:-2000}
# Windows for which a policy always chooses the worst, and neighbours that make a change look bad.
readonly harm_windows=${BLKPILOT_VERIFY_HARM_WINDOWS:-1200} neighbours=${BLKPILOT_VERIFY_NEIGHBOURS:-20}
# Faults of each kind, and jobs of each kind on each guest.
readonly faults=${BLKPILOT_VERIFY_FAULTS:-10} jobs=${BLKPILOT_VERIFY_JOBS:-10}
# Cycles of the guest whose best setting changes, for each way to set it.
readonly shifts=${BLKPILOT_VERIFY_SHIFTS:-6}
# Times that each setting of the guest's knobs is recorded.
readonly rounds=${BLKPILOT_VERIFY_ROUNDS:-6}
mkdir -p "$docs" "$out"
export BLKPILOT_REQUIRE_LIVE=1
commit=$(git describe --always --dirty --exclude '*')
machine="$(nproc) CPUs, $(. /etc/os-release && echo "$PRETTY_NAME"), $(rustc --version | cut -d' ' -f1,2)"

is_chosen() { [[ " ${chosen[*]} " == *" $1 "* ]]; }

record() { # proof, title, command: runs it if it is chosen, and writes what it prints
    local file=$1 title=$2
    shift 2
    if ! is_chosen "$file"; then return; fi
    printf '\n== %s\n' "$title"
    local start=$SECONDS
    "$@" 2>"$out/$file.stderr" | tee "$out/$file.stdout" || { cat "$out/$file.stderr" >&2; exit 1; }
    {
        printf '# %s\n\n' "$title"
        printf 'Command: `%s`  \n' "$(sed "s|$release/|target/release/|g; s|$PWD/||g" <<<"$*")"
        printf 'Commit: `%s`  \nMachine: %s  \nTook: %d s\n\n' "$commit" "$machine" $((SECONDS - start))
        printf '```text\n%s\n```\n' "$(sed -E "s/^\.+//; /^(running [0-9]+ test|test [^r]|test result|test r.* (\.\.\.|has been running))/d; s|$PWD/||g; s|${TMPDIR:-/tmp}/blkpilot-trial\.[A-Za-z0-9]+|RUN_DIR|" "$out/$file.stdout")"
    } >"$docs/$file.md"
}

# Tests at full counts, of which only what they print is kept.
readonly -a env_test=(cargo test --quiet --release -p blkpilot-env)
readonly -a evaluate_test=(cargo test --quiet --release -p blkpilot-evaluate)
# With the features of the whole workspace, as `make test` builds them: nothing is built twice.
readonly -a live_test=(cargo test --quiet --workspace)

for proof in "${chosen[@]}"; do rm -rf "$out/${proof//-/_}"; done
for proof in "${chosen[@]}"; do
    case $proof in
        # Tests, which bring what they need.
        discrete-event | simulator-properties | journal | guard | harm | kills | faults | jobs | soak | shift | cache \
            | live-training | log-power | log-kills | policy-kills | daemon-kills | coverage | exposure | ranking | large-log | sampling \
            | learning-memory | rough-clients | fuzz) ;;
        *) cargo build --release --workspace --bins; break ;;
    esac
done
record cartpole "CartPole-v1 by PPO and DQN, five seeds each" \
    "$lab" sanity --seeds 5 --out "$out/cartpole"
record dial "One policy for all reward weights beside policies trained for one" \
    scripts/dial.sh "$lab" "$out/dial"
record quickstart "The quickstart policy against the baselines on unseen hosts" \
    "$lab" train experiments/configs/quickstart.toml --out "$out/quickstart"
record four-identical "Four identical disks on four channels" \
    "$lab" train experiments/configs/four_identical.toml --out "$out/four_identical"
record discrete-event "The simulated host against discrete events" \
    env BLKPILOT_FULL=1 "${env_test[@]}" --test discrete_event -- --nocapture
record simulator-properties "What holds on every simulated host" \
    env BLKPILOT_FULL=1 "${env_test[@]}" --test properties -- --nocapture
record journal "Journal and tuner against a model, under crashes and faults" \
    env BLKPILOT_FULL=1 cargo test --quiet --release -p blkpilot-host --lib tuner:: -- --nocapture
record oracle "Policies against the oracle of each scenario" \
    "$lab" oracle env/scenarios/mixed_{bursts,tenants}.toml --episodes 32 --policy agent/configs/policies/default
# What is searched is bounded, and the report says how far: all that there is would take hours.
record oracle-mixed "Policies against the oracle of the larger mixed scenarios" \
    "$lab" oracle env/scenarios/mixed_{cache,crowded,numa}.toml --episodes 16 \
    --exhaustive 2000 --search 400 --policy agent/configs/policies/default
# Hosts of more disks have more phase vectors than can be searched.
sed 's/^disks = .*/disks = [1, 4]/' experiments/configs/quickstart.toml >"$out/hosts.toml"
record oracle-hosts "Policies against the oracle of hosts that none has seen" \
    "$lab" oracle "$out/hosts.toml" --hosts 24 --episodes 4 --first-seed 10000 \
    --exhaustive 2000 --search 400 --policy agent/configs/policies/default
for guest in poor-cache poor-binding; do
    record "trial-$guest" "Default against tuned windows on the guest $guest" \
        scripts/trial-guest.sh "$guest" "$out/quickstart/policy" "$out/trials" "$alternations"
done
record calibration "A scenario fitted to the guest calibration, and its error on settings held out" \
    scripts/calibrate-guest.sh calibration "$out/calibration" "$rounds"
if is_chosen calibration; then
    cp "$out/calibration/calibration.svg" "$docs/calibration.svg"
    printf '\n![Predicted against measured](calibration.svg)\n' >>"$docs/calibration.md"
fi
record guard "The guard on real guests: false alarms, and how soon harm is undone" \
    env BLKPILOT_AA_WINDOWS=300 BLKPILOT_HARMS=20 "${live_test[@]}" --test live_guard -- --nocapture
record harm "A policy and neighbours that mean harm, on real guests" \
    env BLKPILOT_HARM_WINDOWS="$harm_windows" BLKPILOT_NEIGHBOURS="$neighbours" \
    "${live_test[@]}" --test live_harm -- --nocapture --test-threads=1
record kills "The daemon killed while it changes a guest that checks what it reads" \
    env BLKPILOT_KILLS="$kills" "${live_test[@]}" --test live_kills -- --nocapture
record faults "What the daemon in mode auto goes on after: libvirtd, QEMU, guests and disks that go and come" \
    env BLKPILOT_FAULTS="$faults" "${live_test[@]}" --test live_faults -- --nocapture
record jobs "Jobs of libvirt on guests whose cache strategy changes all the time" \
    env BLKPILOT_JOBS="$jobs" "${live_test[@]}" --test live_jobs -- --nocapture
record soak "The daemon in mode auto for long" \
    env BLKPILOT_SOAK="$soak" "${live_test[@]}" --test live_soak -- --nocapture
record shift "A guest whose best setting changes, in mode auto" \
    env BLKPILOT_SHIFT_POLICY="$out/quickstart/policy" BLKPILOT_SHIFT_ALTERNATIONS="$shifts" \
    "${live_test[@]}" --test live_courses -- --nocapture shift::
record live-training "Training on a live guest: from nothing, and fine-tuning what simulation taught" \
    env BLKPILOT_TRAINING_POLICY="$out/quickstart/policy" \
    "${live_test[@]}" --test live_training -- --nocapture
record log-power "The decision log when the power fails at any operation" \
    env BLKPILOT_FULL=1 cargo test --quiet --release -p blkpilot-log --lib power_loss -- --nocapture
record log-kills "A process that writes and compacts the decision log, killed at any moment" \
    env BLKPILOT_KILLS="$log_kills" cargo test --quiet --release -p blkpilot-log --test kill
record policy-kills "A process that uploads, promotes and rolls back policies, killed at any moment" \
    env BLKPILOT_KILLS="$policy_kills" cargo test --quiet --release -p blkpilot-agent --test policy_kill
record daemon-kills "The daemon killed while it tunes guests and a client uploads and promotes policies" \
    env BLKPILOT_KILLS="$daemon_kills" cargo test --quiet --release -p blkpilot-agent --test daemon_kill -- --nocapture
record log-readers "The decision log as others read it: Polars, DuckDB, DataFusion, Minari" \
    scripts/log-readers.sh "$out/log_readers"
record coverage "How often 95 % intervals of offline evaluation cover the true value" \
    env BLKPILOT_FULL=1 cargo test --quiet --release -p blkpilot-models --test ope_coverage -- --nocapture
record exposure "Offline evaluation of eight disks on one device: coverage, and the error of exposure disk" \
    env BLKPILOT_FULL=1 "${evaluate_test[@]}" --test exposure -- --nocapture
record ranking "Offline evaluation of ten policies: their order, and how often a verdict is wrong" \
    env BLKPILOT_FULL=1 "${evaluate_test[@]}" --test ranking -- --nocapture --test-threads=1
record large-log "A decision log larger than memory, evaluated" \
    env BLKPILOT_LOG_ROWS="$log_rows" cargo test --quiet --release --workspace --test large_log -- --nocapture
record sampling "What a sample of twenty guests costs, beside virsh domstats" \
    env BLKPILOT_SAMPLED_GUESTS=20 BLKPILOT_SAMPLES=30 \
    cargo test --quiet --release --workspace --test live_sampling -- --nocapture
record cache "The cache strategy where it is dangerous: misses, and the stall of a disk that goes direct" \
    env BLKPILOT_CACHE_FULL=1 "${live_test[@]}" --test live_cache -- --nocapture --test-threads=1
record learning-memory "Memory of PPO over many updates" \
    env BLKPILOT_UPDATES="$updates" "${live_test[@]}" --test memory -- --nocapture
record remote-cartpole "Remote environments under Gymnasium's checks, and PPO of stable-baselines3 on remote CartPole" \
    scripts/python-clients.sh "$out/remote_cartpole" --train
record loop "The loop on a running guest: explored, learnt, through the gate, harmed, undone and rolled back" \
    env BLKPILOT_BIN="$release" scripts/loop.sh --out "$out/loop"
record rough-clients "Clients that stall, cut connections and send rubbish, beside clients that behave; a thousand watchers" \
    env BLKPILOT_ROUGH_SECONDS="$rough_seconds" cargo test --quiet --release -p blkpilot-agent --test rough \
    -- --nocapture --test-threads=1
# Not --release: an overflow is a panic here.
record fuzz "Requests of every method, configurations and token files, drawn and broken" \
    env BLKPILOT_FUZZ_SECONDS="$fuzz_seconds" BLKPILOT_FUZZ_SEED="$(date +%s)" \
    cargo test --quiet -p blkpilot-agent --test fuzz -- --nocapture --test-threads=1
record bench "Latency of decisions and calls, speed of the simulated host" scripts/bench.sh
