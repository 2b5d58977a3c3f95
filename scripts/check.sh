#!/usr/bin/env bash
# `make check`: what can be said about the code without running the programs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

buf_lint() {
  need_npm
  # The package carries the program itself; its lock file pins it by hash.
  npm ci --prefix tools/buf --no-audit --no-fund --loglevel=error
  tools/buf/node_modules/.bin/buf lint
}

deny() {
  if command -v cargo-deny >/dev/null; then
    cargo deny --all-features check bans licenses sources
  else
    echo "cargo-deny is not installed, so deny.toml was not checked (cargo install --locked cargo-deny)."
  fi
}

# The targets compile; running them needs a nightly compiler, see fuzz/README.md.
fuzz_targets() {
  if command -v c++ >/dev/null; then
    cargo check --quiet --manifest-path fuzz/Cargo.toml
  else
    echo "There is no C++ compiler for the fuzzer's runtime, so only the properties are compiled."
    cargo check --quiet --manifest-path fuzz/Cargo.toml --no-default-features
  fi
}

step "formatting" cargo fmt --all --check
step "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
step "house rules" cargo test --quiet -p waffles-tests --test tidy
step "fuzz targets" fuzz_targets
step "contracts (buf lint)" buf_lint
step "licences and sources (cargo-deny)" deny
