#!/usr/bin/env bash
# How near gets come to what the RPC library itself can do: gets at the leader of three servers, and at a bare tonic server that answers the same bytes at once
# (examples/echo.rs), under the same load generator, by turns.
#
# Each round runs every line once; prints medians and each line's share of the echo's rate. The followers' part of a linearizable get, and the load generator,
# run on the same cores.
#
#   cargo build --release -p kv-example --bins --example echo
#   kv-example/benches/versus-echo.sh                # 5 rounds of 3 s a line: about 2.5 minutes
#
# Options: --rounds N (5), --seconds S (3), --kv PROGRAM (target/release/kv-example), --echo PROGRAM (target/release/examples/echo),
#          --dir DIR (a new directory below the current one), --base-port P (16579)
set -euo pipefail

rounds=5 seconds=3 base_port=16579 echo=target/release/examples/echo
source "$(dirname "$0")/common.sh"
options "rounds seconds echo" "$@"
for program in "$kv" "$echo"; do
    needs "$program" "cargo build --release -p kv-example --bins --example echo"
done

begin
start_cluster --lease-drift-ms 10
"$echo" "$(client 4)" 256 &
pids+=($!)
bench get --endpoints "$endpoints" --duration 1 --warmup 0

run() { # the line's name, and options
    local line=$1
    shift
    bench get --no-fill --connections "$((clients == 64 ? 8 : 16))" --clients "$clients" --duration "$seconds" --warmup 1 "$@"
    echo "$clients $line $(field throughput) $(field p50) $(field p99)" >>"$work/results"
    echo "round $round: $(tail -n 1 "$work/results")" >&2
}
for round in $(seq "$rounds"); do
    for clients in 64 256; do
        run echo --endpoints "$(client 4)"
        for consistency in linearizable lease stale; do
            run "$consistency" --endpoints "$endpoints" --target leader --consistency "$consistency"
        done
    done
done

printf '| clients | | gets/s | of the echo | p50, ms | p99, ms |\n|--:|---|--:|--:|--:|--:|\n'
for clients in 64 256; do
    for line in echo linearizable lease stale; do
        rate=$(middle "$clients $line" 1)
        printf '| %s | %s | %.0f | %s | %s | %s |\n' "$clients" "$line" "$rate" "$(ratio "$rate" "$(middle "$clients echo" 1)")" \
            "$(middle "$clients $line" 2)" "$(middle "$clients $line" 3)"
    done
done
