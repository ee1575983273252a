#!/usr/bin/env bash
# Runs every test and prints last one line: "N passed, N failed, N skipped".
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/test.sh [cargo test arguments] [-- test binary arguments]

Without arguments all tests of the workspace run. Output streams; the last line is
the sum over all test binaries: "N passed, N failed, N skipped". Fails when a test
fails or the build does.

Live tests start their own libvirtd and small QEMU guests. Where that is not possible
they say so ("SKIPPED live test NAME: REASON") and count as skipped, not as passed;
with BLKPILOT_REQUIRE_LIVE=1 that is a failure. BLKPILOT_NO_LIVE=1 skips them all.
TEXT
}
if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d "${TMPDIR:-/tmp}/blkpilot-test.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# cargo hides what a passing test prints, so a test that skips itself leaves a file here.
export BLKPILOT_SKIP_DIR="$scratch/skips"
mkdir "$BLKPILOT_SKIP_DIR"

if [[ $# == 0 ]]; then set -- --workspace; fi
status=0
cargo test --no-fail-fast "$@" 2>&1 | tee "$scratch/log" || status=$?

sum() { # word, e.g. "passed": its numbers in all result lines
    sed 's/\x1b\[[0-9;]*m//g' "$scratch/log" |
        sed -nE "s/^test result: .* ([0-9]+) $1;.*/\\1/p" | awk '{ total += $1 } END { print total + 0 }'
}
passed=$(sum passed)
failed=$(sum failed)
skipped=$(find "$BLKPILOT_SKIP_DIR" -type f | wc -l)
passed=$((passed - skipped)) # a test that skips itself returns early and is counted as passed
skipped=$((skipped + $(sum ignored)))

if ((status != 0 && failed == 0)); then
    echo "test: the build or a test binary failed before its tests were counted (exit status $status)"
    scripts/room.sh --full || true # it must not hide the counts
    failed=1
fi
if ((failed > 0 && status == 0)); then status=1; fi
if ((passed + failed + skipped == 0)); then
    echo "test: no test ran"
    status=1
fi
if ((skipped > 0)); then
    echo
    cat "$BLKPILOT_SKIP_DIR"/* 2>/dev/null || true
    if [[ ${BLKPILOT_REQUIRE_LIVE:-0} != 0 && ${BLKPILOT_REQUIRE_LIVE:-} != "" && $status == 0 ]]; then
        echo "test: BLKPILOT_REQUIRE_LIVE is set, and tests were skipped"
        status=1
    fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
