# Sourced by the scripts that work on a guest of the fixture. They set bin, guest and run_dir, and end
# the process fixture when they leave.
# shellcheck shell=bash disable=SC2154

stop() { # pid: asks it to end and waits
    if [[ -n $1 ]] && kill -INT "$1" 2>/dev/null; then wait "$1" 2>/dev/null || true; fi
}

start_guest() { # sets uri, or why not
    : >"$run_dir/uri" # it is read before the fixture may have made it
    "$bin/blkpilot-fixture" up --guests "$guest" >"$run_dir/uri" 2>"$run_dir/fixture.log" &
    fixture=$!
    while kill -0 "$fixture" 2>/dev/null && [[ -z $uri ]]; do
        uri=$(head -n 1 "$run_dir/uri")
        sleep 0.2
    done
    if [[ -n $uri ]]; then
        sed -n 's/^guest /guest /p' "$run_dir/fixture.log"
        return
    fi
    wait "$fixture" || true
    fixture=''
    why=$(tail -n 1 "$run_dir/fixture.log")
    echo "NO GUEST CAN RUN HERE: ${why:-the fixture ended without a word}"
    echo "A SIMULATED HOST STANDS IN: what follows was not measured on a guest."
}
