#!/usr/bin/env bash
# Says that the API as it stands is released: from then on scripts/lint.sh refuses what breaks it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/release-api.sh [--force] [--help]

Writes proto/released.binpb anew, the API as an image that `buf breaking` compares with. To be run with
each release, after its version was set, and committed with it. What breaks clients of the last release is
refused; --force takes it all the same, for a release that is a new major version.
TEXT
}
force=no
case "${1:-}" in
    --help | -h) usage; exit 0 ;;
    --force) force=yes ;;
    "") ;;
    *) echo "release-api: unknown argument '$1'; see --help" >&2; exit 2 ;;
esac

scripts/setup.sh --lint
PATH="${BLKPILOT_TOOLS:-.deps/tools}/buf/node_modules/.bin:$PATH"
if [[ $force == no ]] && ! buf breaking proto --against proto/released.binpb; then
    echo "release-api: that breaks clients of the last release; see --help" >&2
    exit 1
fi
# Without comments, which break nobody.
buf build proto --exclude-source-info --output proto/released.binpb
