#!/usr/bin/env bash
# make soak MINUTES=60: the long forms of the tests one after the other, as long as asked, each with its share of the time.
#
#   35 %  end-to-end tests with SOAK=1, in a new order each time, one by one until the share is used
#   15 %  the simulation, with seeds that nobody has seen before
#   10 %  power failures of the store
#   rest  an overloaded machine that must see no failover
#
# A part that fails does not end the others; the end says which did. Everything that was said is in target/soak.
set -u
minutes=$1
cargo=${CARGO:-cargo}
read -ra all <<<"${ALL:-}"
logs=target/soak
rm -rf "$logs"
mkdir -p "$logs"
total=$((minutes * 60))
SECONDS=0
failed=0
summary=()

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
say() { echo "soak $(clock "$SECONDS") of $(clock "$total"): $*"; }

# run NAME COMMAND...: into a log of its own; what it measured is shown, and of a failure the end.
run() {
  local name=$1 log="$logs/$1.log" from=$SECONDS verdict=passed
  shift
  if ! "$@" >"$log" 2>&1; then
    verdict=FAILED
    failed=$((failed + 1))
    tail -n 40 "$log"
  elif ! grep -qE '^test result: ok\. [1-9]' "$log"; then
    # Nothing ran: that proves nothing.
    verdict="FAILED (no such test)"
    failed=$((failed + 1))
  fi
  grep -aE '^(measured:|seeds? (from )?[0-9]|[0-9]+ seeds,|[0-9]+ power failures)' "$log"
  summary+=("$(printf '%-9s %6s  %s' "$verdict" "$(clock $((SECONDS - from)))" "$name")")
}

test_of() { "$cargo" test --locked --quiet "${all[@]}" --test "$@"; }

# A test that lets something last does so for a second in each minute of the whole, and ten minutes at most.
export SOAK_SECONDS=$((minutes < 600 ? minutes : 600))
end=$((total * 35 / 100))
say "end-to-end tests, until $(clock $end)"
tests=$(test_of e2e -- --list --format terse 2>/dev/null | sed -n 's/: test$//p' | grep -vE '::tests::|^overload::')
[ -n "$tests" ] || { echo "soak: there are no end-to-end tests"; exit 1; }
round=0
while [ $SECONDS -lt $end ]; do
  round=$((round + 1))
  # The order is a new one each time, so that short soaks come to all of them.
  for name in $(awk -v seed="$RANDOM" 'BEGIN { srand(seed) } { print rand() "\t" $0 }' <<<"$tests" | sort -n | cut -f 2); do
    [ $SECONDS -lt $end ] || break
    say "round $round: $name"
    run "$round-${name//::/.}" env SOAK=1 "$cargo" test --locked --quiet "${all[@]}" --test e2e -- --exact "$name" --nocapture
  done
done

share=$(((minutes * 15 + 99) / 100))
say "simulation, $(clock $((share * 60)))"
run simulation env SIM_MINUTES=$share "$cargo" test --locked --quiet "${all[@]}" --profile simulate --test sim -- --nocapture fresh_seeds

share=$((total * 10 / 100))
say "power failures of the store, $(clock $share)"
run power env POWER_SECONDS=$share "$cargo" test --locked --quiet "${all[@]}" --test raft_store -- --nocapture what_was_acknowledged_survives_power

rest=$((total - SECONDS))
[ $rest -gt 30 ] || rest=30
say "an overloaded machine, $(clock $rest)"
run overload env OVERLOAD_SECONDS=$rest "$cargo" test --locked --quiet "${all[@]}" --test e2e -- --nocapture overload::

say "the end"
printf '%s\n' "${summary[@]}"
[ $failed = 0 ] || { echo "soak: $failed of ${#summary[@]} failed; see $logs"; exit 1; }
echo "soak: ${#summary[@]} passed"
