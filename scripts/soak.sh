#!/usr/bin/env bash
# `make soak`: the long versions of tests whose short ones are part of `make test`, the benchmarks, and a page of all their
# figures. Each size can be set, such as `PAIRS=20000 make soak`; the defaults take hours on two cores. A step that fails
# does not keep the others from running; the end says which did.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

PAIRS=${PAIRS:-150000}           # listed against callable: tests/it/rights.rs
SEQUENCES=${SEQUENCES:-100000}   # random administrative calls: tests/it/escalation.rs
CALLS=${CALLS:-1000000}          # calls with colliding ids: tests/it/mixups.rs
CHECKS=${CHECKS:-2000}           # of a server's health, one after the other: tests/it/health.rs
WINDOWS=${WINDOWS:-300}          # of two seconds, under ten times a limit: tests/it/limits.rs
MUTATIONS=${MUTATIONS:-1000}     # damaged snapshots: tests/it/scale.rs
DAYS_CALLS=${DAYS_CALLS:-20000}  # calls in 400 days without a control plane: tests/it/scale.rs
KILLS=${KILLS:-1000}             # proxies killed under load: tests/it/trail.rs
EDITS=${EDITS:-10000}            # changes of an audit trail: tests/it/trail.rs
BROKEN=${BROKEN:-2000}           # calls of each of eight servers, most of them broken: tests/it/breakers.rs
ATTACKS=${ATTACKS:-8}            # how much of each attack on memory: tests/it/attacks.rs
RESTARTS=${RESTARTS:-20}         # restarts under load, and calls meanwhile: tests/it/restarts.rs
RESTART_CALLS=${RESTART_CALLS:-100000}
EVENTS=${EVENTS:-1000000}        # audited calls that a draft is tried on
LISTENERS=${LISTENERS:-10000}    # idle listeners
UPGRADE_CALLS=${UPGRADE_CALLS:-300000} # calls while everything is upgraded from the version before
# The version before, which an upgrade begins with.
PREVIOUS=${PREVIOUS:-$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse HEAD~20)}

export WAFFLES_TEST_PAIRS=$PAIRS WAFFLES_TEST_SEQUENCES=$SEQUENCES WAFFLES_TEST_CALLS=$CALLS
export WAFFLES_TEST_CHECKS=$CHECKS WAFFLES_TEST_LIMIT_WINDOWS=$WINDOWS WAFFLES_TEST_MUTATIONS=$MUTATIONS
export WAFFLES_TEST_DAYS_CALLS=$DAYS_CALLS WAFFLES_TEST_KILLS=$KILLS WAFFLES_TEST_EDITS=$EDITS
export WAFFLES_TEST_BROKEN_CALLS=$BROKEN WAFFLES_TEST_ATTACKS=$ATTACKS
export WAFFLES_TEST_RESTARTS=$RESTARTS WAFFLES_TEST_RESTART_CALLS=$RESTART_CALLS

target=${CARGO_TARGET_DIR:-target}
# One JSON object for each figure. What was noted before stays, so that a run of a few steps completes an earlier one.
[[ $target = /* ]] || target=$PWD/$target
export WAFFLES_REPORT=${WAFFLES_REPORT:-$target/promises.jsonl}
page=$target/promises.md
failed=()

try() {
  step "$@" || failed+=("$1")
}

soak() {
  "$target/debug/with-services" cargo test -p waffles-tests --test it -- "$@"
}

bench() {
  "$target/release/waffles-bench" "$@"
}

# Programs of the version before, in a folder of their own.
build_previous() {
  rm -rf "$target/previous"
  git worktree prune
  git worktree add --detach "$target/previous" "$PREVIOUS"
  (cd "$target/previous" && CARGO_TARGET_DIR=$target/previous/target \
    cargo build -p waffles-control-plane -p waffles-data-plane --bins)
}

upgrade() {
  build_previous
  "$target/debug/with-services" "$target/release/waffles-bench" upgrade \
    --previous "$target/previous/target/debug" --calls "$UPGRADE_CALLS"
}

step "what the tests start" scripts/test-deps.sh
use_new_node
step "programs" cargo build --workspace --bins
try "$PAIRS pairs of listed and callable" soak what_is_listed_is_what_can_be_called
try "$SEQUENCES sequences of administrative calls" soak nobody_gives_or_gets_what_they_do_not_hold
try "$CALLS calls with colliding ids" soak mixups
try "$CHECKS checks of a server with sessions" soak health::
try "limits, $WINDOWS windows of a flood" soak limits::
try "scale: $MUTATIONS damaged snapshots, 400 days alone, faults of the database" soak scale::
try "$KILLS proxies killed under load" soak every_answer_is_in_the_audit_once_though_proxies_are_killed
try "$EDITS changes of an audit trail" soak whatever_is_done_to_a_trail_is_found_where_it_was_done
try "$RESTARTS restarts under $RESTART_CALLS calls" soak restarting_one_of_two_proxies_loses_no_call
try "$BROKEN calls of each of eight servers" soak broken_servers_give_one_answer
step "programs as they are shipped" \
  cargo build --release -p waffles-control-plane -p waffles-data-plane -p waffles-tests --bins
# Memory is that of the programs as they are shipped.
try "attacks on memory" env WAFFLES_TEST_PROGRAMS="$target/release" \
  "$target/debug/with-services" cargo test -p waffles-tests --test it -- no_attack_takes_more_memory_than_there_is
try "the network broken between proxy and control plane" bench partition
try "a resolver that is dead" bench dead-resolver
try "a disk that is full" bench full-disk
try "an upgrade of everything from $PREVIOUS" upgrade
try "a call, beside a bare pass-through" bench
try "a policy of 1000 rules" bench rules
try "few and many servers and keys" bench flat
try "a draft on $EVENTS audited calls" bench what-if --calls "$EVENTS"
try "10000 servers, 500 proxies, 100000 keys" bench scale
try "$LISTENERS idle listeners" bench listeners --count "$LISTENERS" --seconds 60
for era in stateless sessions; do
  try "overload, $era" bench overload --era "$era"
done
try "overload by clients that do not wait" bench overload --rude
try "healthy servers beside broken ones" bench --rounds 9 neighbours
cargo run -q -p waffles-tests --bin waffles-report -- "$WAFFLES_REPORT" >"$page"
printf '\n'
cat "$page"
printf '\nThe same in %s, its figures in %s.\n' "$page" "$WAFFLES_REPORT"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'Failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
