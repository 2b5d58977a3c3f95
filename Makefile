# The commands of this repository. Everything that a command needs beyond Rust and a C compiler is installed or
# started by its script; `make run` needs nothing else at all.

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := -p waffles-control-plane -p waffles-data-plane -p wafflectl

.PHONY: help run build check test bench soak
.DEFAULT_GOAL := help

help: ## Lists the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

run: ## Builds and starts a whole Waffles on this machine, with a demo MCP server behind it
	@command -v cc >/dev/null || { echo "make run needs a C compiler; on Debian: apt-get install gcc libc6-dev" >&2; exit 1; }
	$(CARGO) build $(PROGRAMS)
	@exec $(TARGET)/debug/wafflectl up --demo $(UP_ARGS)

build: ## Builds the three programs as they are shipped
	$(CARGO) build --release $(PROGRAMS)

check: ## Formatting, lints, layering, contracts, licences: what needs no running program
	@scripts/check.sh

test: ## All tests, on SQLite and Postgres, with every MCP client SDK
	@scripts/test.sh $(TEST_ARGS)

bench: ## CPU and latency of a call through Waffles against a bare pass-through (BENCH_ARGS=--quick)
	$(CARGO) build --release -p waffles-control-plane -p waffles-data-plane -p waffles-tests --bins
	$(TARGET)/release/waffles-bench $(BENCH_ARGS)

soak: ## The long versions of tests and all benchmarks, with one table of their figures: hours (sizes: scripts/soak.sh)
	@scripts/soak.sh
