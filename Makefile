# Two commands matter: `make demo` and `make test`. Each does its own set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help setup build deb test demo loop bench bench-peers verify results lint fmt clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## Install what is missing: packages, libtorch, the test guest
	@scripts/setup.sh

build: setup ## Build the release binaries
	cargo build --release --workspace --bins

deb: ## Build the Debian package of the service; no libtorch needed
	@scripts/deb.sh

test: setup ## Set up, check the style and run every test; the counts come last
	@scripts/room.sh debug $(if $(filter 0,$(CARGO_INCREMENTAL)),10,14)
	@scripts/lint.sh
	@scripts/test.sh

demo: setup ## Set up, train, compare, and retune a running guest
	@scripts/demo.sh

loop: setup ## Close the loop on a running guest: explore, learn, gate, canary, auto, harm, undo
	@scripts/loop.sh

bench: setup ## Run the benchmarks; writes target/bench.json
	@scripts/bench.sh

bench-peers: ## Measure offline evaluation and training beside obp, SCOPE-RL, SB3 and d3rlpy
	@scripts/bench-peers.sh

verify: setup ## Run the long proofs and write docs/verification
	@scripts/verify.sh

results: setup ## Train what experiments/results shows and write it anew
	@scripts/results.sh

lint: setup ## Check formatting and lints
	@scripts/lint.sh

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove what was built, downloaded and produced
	rm -rf target out .deps
