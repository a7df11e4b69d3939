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

rounds=5 seconds=3 kv=target/release/kv-example echo=target/release/examples/echo dir= base=16579
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --kv) kv=$2 ;;
        --echo) echo=$2 ;;
        --dir) dir=$2 ;;
        --base-port) base=$2 ;;
        *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2 || { echo "versus-echo: the last option has no value" >&2; exit 2; }
done
for program in "$kv" "$echo"; do
    [ -x "$program" ] || { echo "versus-echo: no program $program; run: cargo build --release -p kv-example --bins --example echo" >&2; exit 2; }
done

work=$(mktemp -d "${dir:-.}/versus-echo.XXXXXX")
"$kv" cluster --data "$work/data" --base-port "$base" -- --lease-drift-ms 10 >"$work/cluster.log" 2>&1 &
cluster=$!
"$echo" "127.0.0.1:$((base + 6))" 256 &
echoing=$!
trap 'set +e; kill "$cluster" "$echoing"; wait "$cluster" "$echoing" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
endpoints=$(for n in 0 1 2; do echo "127.0.0.1:$((base + n * 2))"; done | paste -sd,)
for _ in $(seq 100); do
    "$kv" put echo ready --endpoints "$endpoints" --timeout 1 >/dev/null 2>&1 && break
    sleep 0.2
done
"$kv" bench get --endpoints "$endpoints" --duration 1 --warmup 0 --json >/dev/null

run() { # the line's name, and options
    local name=$1
    shift
    "$kv" bench get --no-fill --connections "$((clients == 64 ? 8 : 16))" --clients "$clients" --duration "$seconds" --warmup 1 --json "$@" >"$work/out.json"
    awk -v line="$clients $name" '
        /"throughput"/ { gsub(/[^0-9.]/, "", $2); rate = $2 }
        /"p50"/ && p50 == "" { gsub(/[^0-9.]/, "", $2); p50 = $2 }
        /"p99"/ && p99 == "" { gsub(/[^0-9.]/, "", $2); p99 = $2 }
        END { print line, rate, p50, p99 }' "$work/out.json" >>"$work/results"
    echo "round $round: $(tail -n 1 "$work/results")" >&2
}
for round in $(seq "$rounds"); do
    for clients in 64 256; do
        run echo --endpoints "127.0.0.1:$((base + 6))"
        for consistency in linearizable lease stale; do
            run "$consistency" --endpoints "$endpoints" --target leader --consistency "$consistency"
        done
    done
done

median() { awk -v clients="$1" -v line="$2" -v column="$3" '$1 == clients && $2 == line { print $column }' "$work/results" | sort -g |
    awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
printf '| clients | | gets/s | of the echo | p50, ms | p99, ms |\n|--:|---|--:|--:|--:|--:|\n'
for clients in 64 256; do
    for line in echo linearizable lease stale; do
        printf '| %s | %s | %.0f | %.2f | %s | %s |\n' "$clients" "$line" "$(median "$clients" "$line" 3)" \
            "$(awk -v a="$(median "$clients" "$line" 3)" -v b="$(median "$clients" echo 3)" 'BEGIN { print a / b }')" \
            "$(median "$clients" "$line" 4)" "$(median "$clients" "$line" 5)"
    done
done
