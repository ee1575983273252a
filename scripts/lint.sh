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
