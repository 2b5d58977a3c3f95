#!/usr/bin/env bash
# `make test`: all tests. Arguments go to `cargo test`, such as `-p waffles-tests --test it call`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_sdks() {
  # Client SDKs and the conformance suite, from the package registries, each pinned by a lock file.
  if [ -x tests/sdk/install.sh ]; then
    tests/sdk/install.sh
  fi
}

step "what the tests start" scripts/test-deps.sh
use_new_node
step "client SDKs" install_sdks
# Whole-system tests start the real programs from the target directory, so these are built first.
step "programs" cargo build --workspace --bins
# The control plane's own tests run on SQLite, and with these two also on Postgres and redis.
with_services=${CARGO_TARGET_DIR:-target}/debug/with-services
if [ "$#" -gt 0 ]; then
  step "tests" "$with_services" cargo test "$@"
else
  step "tests" "$with_services" cargo test --workspace
fi
