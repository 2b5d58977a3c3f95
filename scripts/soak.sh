#!/usr/bin/env bash
# `make soak`: the long versions of tests whose short ones are part of `make test`, and the benchmarks of access control.
# Each figure can be set, such as `PAIRS=20000 make soak`; the defaults take hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

PAIRS=${PAIRS:-150000}         # listed against callable: tests/it/rights.rs
SEQUENCES=${SEQUENCES:-100000} # random administrative calls: tests/it/escalation.rs
CALLS=${CALLS:-1000000}        # calls with colliding ids: tests/it/mixups.rs
WINDOWS=${WINDOWS:-300}       # of two seconds, under ten times a limit: tests/it/limits.rs
EVENTS=${EVENTS:-1000000}      # audited calls that a draft is tried on

target=${CARGO_TARGET_DIR:-target}
export WAFFLES_TEST_LIMIT_WINDOWS=$WINDOWS
LISTENERS=${LISTENERS:-10000}  # idle listeners
export WAFFLES_TEST_PAIRS=$PAIRS WAFFLES_TEST_SEQUENCES=$SEQUENCES WAFFLES_TEST_CALLS=$CALLS

soak() {
  "$target/debug/with-services" cargo test -p waffles-tests --test it -- "$@"
}

step "what the tests start" scripts/test-deps.sh
use_new_node
step "programs" cargo build --workspace --bins
step "$PAIRS pairs of listed and callable" soak what_is_listed_is_what_can_be_called
step "$SEQUENCES sequences of administrative calls" soak nobody_gives_or_gets_what_they_do_not_hold
step "$CALLS calls with colliding ids" soak mixups
step "limits, $WINDOWS windows of a flood" soak limits::
step "programs as they are shipped" \
  cargo build --release -p waffles-control-plane -p waffles-data-plane -p waffles-tests --bins
step "a draft on $EVENTS audited calls" "$target/release/waffles-bench" what-if --calls "$EVENTS"
step "a policy of 1000 rules" "$target/release/waffles-bench" rules
step "$LISTENERS idle listeners" "$target/release/waffles-bench" listeners --count "$LISTENERS" --seconds 60
for era in stateless sessions; do
  step "overload, $era" "$target/release/waffles-bench" overload --era "$era"
done
step "overload by clients that do not wait" "$target/release/waffles-bench" overload --rude
