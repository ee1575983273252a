#!/usr/bin/env bash
# Formatting and lints, as errors. What the toolchain lacks is said and passed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --all --check
else
    echo "lint: rustfmt is not installed (rustup component add rustfmt): formatting was not checked"
fi
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --quiet --workspace --all-targets -- -D warnings
else
    echo "lint: clippy is not installed (rustup component add clippy): lints were not checked"
fi

# The API: its style, its format, and that nobody who speaks the released one is broken. Every import of it
# is here or comes with buf, so that this needs no network once buf is there.
if scripts/setup.sh --lint; then
    PATH="${BLKPILOT_TOOLS:-.deps/tools}/buf/node_modules/.bin:$PATH"
    buf lint proto
    buf format proto --exclude-path proto/proto/google --diff --exit-code
    buf breaking proto --against proto/released.binpb
else
    echo "lint: buf is not installed (see above): the .proto files were not checked"
fi
