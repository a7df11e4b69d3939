#!/usr/bin/env bash
# Runs the tests of real processes over all that a server can be made of: {grpc, tarpc} x {file, redb} x {memory, redb}.
#
#   tests/matrix.sh                                       # all stacks, all tests
#   tests/matrix.sh --stack "tarpc redb memory" rolling:: # one stack, the tests whose names have this
#   tests/matrix.sh --stack 2 --part 3/5                  # the second stack, and of the tests every fifth from the third on
#
# These are the tests in tests/tests/processes, and those of kv-example that start its program (kv-example/tests/cli); a test that is about one store, engine or
# transport keeps that one, and takes the rest from the stack. At the end there is a table; the exit code is 1 if a test failed.
#
# Options: --stack N or "TRANSPORT STORE ENGINE" (may be repeated; all), --part K/N (1/1), --logs DIR (target/matrix).
# Whatever else is said are parts of names: a test needs one of them.
#
# Needs bash and awk. RAFTKV_TEST_ROUNDS and the like are in tests/src/lib.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,15s/^# \{0,1\}//p' tests/matrix.sh; exit 2; }

all=()
for transport in grpc tarpc; do for store in file redb; do for engine in memory redb; do
    all+=("$transport $store $engine")
done; done; done

stacks=() names=() part=1/1 logs=${CARGO_TARGET_DIR:-target}/matrix
while [ $# -gt 0 ]; do
    case $1 in
        --stack)
            if [[ ${2:-} =~ ^[0-9]+$ ]] && [ "$2" -ge 1 ] && [ "$2" -le ${#all[@]} ]; then
                stacks+=("${all[$2 - 1]}")
            elif [ -n "${2:-}" ] && printf '%s\n' "${all[@]}" | grep -qx -- "$2"; then
                stacks+=("$2")
            else
                echo "matrix: no stack \"${2:-}\"; there are:" >&2
                printf '%s\n' "${all[@]}" | cat -n >&2
                exit 2
            fi
            shift ;;
        --part) part=${2:-}; shift ;;
        --logs) logs=${2:-}; shift ;;
        -*) usage ;;
        *) names+=("$1") ;;
    esac
    shift || usage
done
[[ $part =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] && [ "${part%/*}" -le "${part#*/}" ] || usage
[ ${#stacks[@]} -gt 0 ] || stacks=("${all[@]}")
[ -n "$logs" ] || usage
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)

built=$(cargo test --workspace --locked --test processes --test cli --no-run 2>&1) || { echo "$built" >&2; exit 1; }
mapfile -t programs < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$built")
[ ${#programs[@]} -gt 0 ] || { echo "$built" >&2; echo "matrix: cargo names no programs" >&2; exit 1; }

# PROGRAM TEST, for each that is wanted. The parts are made of all tests, so that a filter changes none of them.
for program in "${programs[@]}"; do
    "$program" --list --format terse | sed -n "s|^\(.*\): test\$|$program \1|p"
done | awk -v k="${part%/*}" -v n="${part#*/}" -v names="${names[*]:-}" '
    BEGIN { count = split(names, name, " ") }
    (NR - 1) % n == k - 1 {
        wanted = count == 0
        for (i = 1; i <= count; i++) if (index($2, name[i])) wanted = 1
        if (wanted) print
    }' >"$logs/tests"
[ -s "$logs/tests" ] || { echo "matrix: there is no such test" >&2; exit 2; }

rows=() failures=()
for stack in "${stacks[@]}"; do
    read -r transport store engine <<<"$stack"
    log=$logs/$transport-$store-$engine.log began=$SECONDS
    echo "matrix: $transport $store $engine: $(wc -l <"$logs/tests") tests; log: $log"
    : >"$log"
    broken=0
    for program in "${programs[@]}"; do
        mapfile -t tests < <(awk -v program="$program" '$1 == program { print $2 }' "$logs/tests")
        [ ${#tests[@]} -gt 0 ] || continue
        echo "== $program" >>"$log"
        status=0
        RAFTKV_TEST_SERVER="--transport $transport --store $store --engine $engine" "$program" --exact "${tests[@]}" >>"$log" 2>&1 || status=$?
        # 101: tests failed, and are counted below.
        [ "$status" = 0 ] || [ "$status" = 101 ] || { broken=1; failures+=("$stack: $program ended with $status: see $log"); }
    done
    count() { awk -v what="$1" '/^test result: / { for (i = 2; i <= NF; i++) if ($i ~ "^" what) sum += $(i - 1) } END { print sum + 0 }' "$log"; }
    ran=$(($(count passed) + $(count failed))) failed=$(($(count failed) + broken))
    skipped=$(grep -c SKIPPED "$log" || true)
    # Whatever did not come to its result failed.
    if [ "$broken" = 0 ] && [ "$ran" != "$(wc -l <"$logs/tests")" ]; then
        failed=$((failed + 1))
        failures+=("$stack: only $ran tests have a result: see $log")
    fi
    while read -r name; do failures+=("$stack: $name: see $log"); done < <(sed -n 's/^test \([^ ]*\)\( - .*\)\{0,1\} \.\.\. FAILED$/\1/p' "$log")
    rows+=("| $transport | $store | $engine | $ran | $failed | $skipped | $((SECONDS - began)) |")
done

echo
echo "| transport | store | engine | tests | failed | skipped | seconds |"
echo "|---|---|---|--:|--:|--:|--:|"
printf '%s\n' "${rows[@]}"
awk -F'|' '{ if ($6 > 0) bad = 1 } END { exit bad }' < <(printf '%s\n' "${rows[@]}") && exit 0
echo
printf 'matrix: %s\n' "${failures[@]:-a stack failed}"
exit 1
