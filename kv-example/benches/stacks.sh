#!/usr/bin/env bash
# Compares what a server can be made of: each transport, store and engine, in clusters of three under the same load, by turns.
#
#   cargo build --release -p kv-example --features tarpc,redb
#   kv-example/benches/stacks.sh                       # 3 rounds of 4 s a line: about 8 minutes
#   kv-example/benches/stacks.sh --rounds 1 --seconds 2
#
# For each: puts of 256 bytes by 1 and by 64 clients, linearizable gets by 64, the memory of a server and the disk that it takes after that, and
# how long a node that is killed and started again takes until it serves.
#
# Options: --rounds N (3), --seconds S (4), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (18379)
#
# Needs bash and awk.
set -euo pipefail

rounds=3 seconds=4 kv=target/release/kv-example dir= base=18379
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --kv) kv=$2 ;;
        --dir) dir=$2 ;;
        --base-port) base=$2 ;;
        *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2 || { echo "stacks: the last option has no value" >&2; exit 2; }
done
[ -x "$kv" ] || { echo "stacks: no program $kv; run: cargo build --release -p kv-example --features tarpc,redb" >&2; exit 2; }

work=$(mktemp -d "${dir:-.}/stacks.XXXXXX")
pids=()
stop_servers() {
    [ ${#pids[@]} -gt 0 ] || return 0
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
    pids=()
}
trap 'set +e; stop_servers; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

client() { echo "127.0.0.1:$((base + 2 * $1))"; }
peer() { echo "127.0.0.1:$((base + 2 * $1 + 1))"; }
peers="1=$(peer 1),2=$(peer 2),3=$(peer 3)" endpoints="$(client 1),$(client 2),$(client 3)"

# node N STACK...
start() {
    local n=$1
    shift
    "$kv" server --id "$n" --data "$work/data/n$n" --peers "$peers" --listen-client "$(client "$n")" "$@" >>"$work/log" 2>&1 &
    pids[n]=$!
}
serves() {
    for _ in $(seq 400); do
        "$kv" put stacks ready --endpoints "$1" --timeout 1 >/dev/null 2>&1 && return
        sleep 0.02
    done
    echo "stacks: no server at $1; the servers said:" >&2
    tail -5 "$work/log" >&2
    exit 1
}
field() { awk -v name="\"$1\":" '$1 == name { gsub(/[,]/, "", $2); print $2; exit }' "$work/out.json"; }
# WHAT CLIENTS: operations a second and the 99th percentile, in ms.
line() {
    local what=$1 clients=$2
    "$kv" bench "$what" --clients "$clients" --value-size 256 --keys 10000 --duration "$seconds" --warmup 1 --endpoints "$endpoints" --json \
        >"$work/out.json" || { echo "stacks: the load generator failed; the servers said:" >&2; tail -5 "$work/log" >&2; exit 1; }
    echo "$(field throughput) $(field p99)"
}

stacks=()
for transport in grpc tarpc; do for store in file redb; do for engine in memory redb; do
    stacks+=("$transport $store $engine")
done; done; done

for round in $(seq "$rounds"); do
    for stack in "${stacks[@]}"; do
        read -r transport store engine <<<"$stack"
        made=(--transport "$transport" --store "$store" --engine "$engine")
        for n in 1 2 3; do start "$n" "${made[@]}"; done
        serves "$endpoints"
        one=$(line put 1) many=$(line put 64) gets=$(line get 64)
        memory=$(for pid in "${pids[@]}"; do awk '/^VmRSS/ { print $2 / 1024 }' "/proc/$pid/status"; done | sort -n | awk '{ v[NR] = $1 } END { print v[2] }')
        disk=$(du -sm "$work/data/n1" | cut -f1)
        kill -9 "${pids[1]}"
        wait "${pids[1]}" 2>/dev/null || true
        began=$(date +%s%N)
        start 1 "${made[@]}"
        serves "$(client 1)"
        back=$((($(date +%s%N) - began) / 1000000))
        stop_servers
        rm -rf "$work/data"
        sync
        echo "$stack $one $many $gets $memory $disk $back" | tee -a "$work/results"
    done
done

echo
echo "| transport | store | engine | puts/s, 1 client | 64 clients | p99, ms | gets/s, 64 clients | p99, ms | memory, MiB | disk, MiB | back after kill -9, ms |"
echo "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
for stack in "${stacks[@]}"; do
    read -r transport store engine <<<"$stack"
    of() {
        awk -v t="$transport" -v s="$store" -v e="$engine" -v n="$1" '$1 == t && $2 == s && $3 == e { print $n }' "$work/results" |
            sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
    }
    printf '| %s | %s | %s | %.0f | %.0f | %.1f | %.0f | %.1f | %.0f | %.0f | %.0f |\n' "$transport" "$store" "$engine" \
        "$(of 4)" "$(of 6)" "$(of 7)" "$(of 8)" "$(of 9)" "$(of 10)" "$(of 11)" "$(of 12)"
done
