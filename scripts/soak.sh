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
MUTATIONS=${MUTATIONS:-1000}    # damaged snapshots: tests/it/scale.rs
DAYS_CALLS=${DAYS_CALLS:-20000}  # calls in 400 days without a control plane
KILLS=${KILLS:-1000}           # proxies killed under load: tests/it/trail.rs
EDITS=${EDITS:-10000}          # changes of an audit trail: tests/it/trail.rs
BROKEN=${BROKEN:-2000}         # calls of each of eight servers, most of them broken: tests/it/breakers.rs
EVENTS=${EVENTS:-1000000}      # audited calls that a draft is tried on

target=${CARGO_TARGET_DIR:-target}
export WAFFLES_TEST_LIMIT_WINDOWS=$WINDOWS
export WAFFLES_TEST_MUTATIONS=$MUTATIONS WAFFLES_TEST_DAYS_CALLS=$DAYS_CALLS
ATTACKS=${ATTACKS:-8}          # how much of each attack on memory: tests/it/attacks.rs
RESTARTS=${RESTARTS:-20}       # restarts under load, and calls meanwhile: tests/it/restarts.rs
RESTART_CALLS=${RESTART_CALLS:-100000}
LISTENERS=${LISTENERS:-10000}  # idle listeners
export WAFFLES_TEST_ATTACKS=$ATTACKS WAFFLES_TEST_RESTARTS=$RESTARTS WAFFLES_TEST_RESTART_CALLS=$RESTART_CALLS
CHECKS=${CHECKS:-2000}         # of a server's health, one after the other: tests/it/health.rs
EVENTS=${EVENTS:-1000000}      # audited calls that a draft is tried on

target=${CARGO_TARGET_DIR:-target}
export WAFFLES_TEST_LIMIT_WINDOWS=$WINDOWS WAFFLES_TEST_CHECKS=$CHECKS
export WAFFLES_TEST_PAIRS=$PAIRS WAFFLES_TEST_SEQUENCES=$SEQUENCES WAFFLES_TEST_CALLS=$CALLS
export WAFFLES_TEST_KILLS=$KILLS WAFFLES_TEST_EDITS=$EDITS
export WAFFLES_TEST_BROKEN_CALLS=$BROKEN

soak() {
  "$target/debug/with-services" cargo test -p waffles-tests --test it -- "$@"
}

step "what the tests start" scripts/test-deps.sh
use_new_node
step "programs" cargo build --workspace --bins
step "$PAIRS pairs of listed and callable" soak what_is_listed_is_what_can_be_called
step "$SEQUENCES sequences of administrative calls" soak nobody_gives_or_gets_what_they_do_not_hold
step "$CALLS calls with colliding ids" soak mixups
step "$CHECKS checks of a server with sessions" soak health::
step "limits, $WINDOWS windows of a flood" soak limits::
step "scale: $MUTATIONS damaged snapshots, 400 days alone, faults of the database" soak scale::
step "$KILLS proxies killed under load" soak every_answer_is_in_the_audit_once_though_proxies_are_killed
step "$EDITS changes of an audit trail" soak whatever_is_done_to_a_trail_is_found_where_it_was_done
step "attacks on memory" soak no_attack_takes_more_memory_than_there_is
step "$RESTARTS restarts under $RESTART_CALLS calls" soak restarting_one_of_two_proxies_loses_no_call
step "$BROKEN calls of each of eight servers" soak broken_servers_give_one_answer
step "programs as they are shipped" \
  cargo build --release -p waffles-control-plane -p waffles-data-plane -p waffles-tests --bins
step "a draft on $EVENTS audited calls" "$target/release/waffles-bench" what-if --calls "$EVENTS"
step "a policy of 1000 rules" "$target/release/waffles-bench" rules
step "10000 servers, 500 proxies, 100000 keys" "$target/release/waffles-bench" scale
step "$LISTENERS idle listeners" "$target/release/waffles-bench" listeners --count "$LISTENERS" --seconds 60
for era in stateless sessions; do
  step "overload, $era" "$target/release/waffles-bench" overload --era "$era"
done
step "overload by clients that do not wait" "$target/release/waffles-bench" overload --rude
step "healthy servers beside broken ones" "$target/release/waffles-bench" neighbours
