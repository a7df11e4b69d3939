#!/usr/bin/env bash
# tests/downstream/count.sh: how many lines of code each trait takes here, and whether that is as few as is promised. (README.md has the numbers.)
#
# A line counts if there is something on it that is no comment, and that does not bring a name from elsewhere (`use`). What two traits share counts for both.
set -euo pipefail
cd "$(dirname "$0")/src"

# lines FILE...: those that count.
lines() {
  awk '
    # A declaration that goes over some lines ends with its semicolon.
    importing { if (/;[[:space:]]*$/) importing = 0; next }
    /^[[:space:]]*(pub )?use / { importing = !/;[[:space:]]*$/; next }
    /^[[:space:]]*($|\/\/)/ { next }
    { count++ }
    END { print count + 0 }' "$@"
}
failed=0
# at_most LIMIT TRAIT FILE...
at_most() {
  local limit=$1 trait=$2 count
  shift 2
  count=$(lines "$@")
  echo "$trait: $count lines in $*, of $limit"
  if [ "$count" -gt "$limit" ]; then
    echo "that is more than a stranger was promised: mend the trait, or its documentation" >&2
    failed=1
  fi
  # README says the same.
  if ! grep -qF "\`$trait\` $count" ../../../README.md; then
    echo "README.md does not say \"\`$trait\` $count\"" >&2
    failed=1
  fi
}
at_most 80 Transport transport.rs
at_most 120 LogStore log.rs encoding.rs
at_most 80 Snapshot snapshots.rs encoding.rs
at_most 25 StateMachine ledger.rs
exit $failed
