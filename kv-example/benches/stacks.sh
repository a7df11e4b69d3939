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

rounds=3 seconds=4 base_port=18379
source "$(dirname "$0")/common.sh"
options "rounds seconds" "$@"
needs "$kv" "cargo build --release -p kv-example --features tarpc,redb"

begin
peers="1=$(peer 1),2=$(peer 2),3=$(peer 3)" endpoints="$(client 1),$(client 2),$(client 3)"

# start N STACK...: node N.
start() {
    local n=$1
    shift
    "$kv" server --id "$n" --data "$work/data/n$n" --peers "$peers" --listen-client "$(client "$n")" "$@" >>"$work/servers.log" 2>&1 &
    pids[n]=$!
}
# line WHAT CLIENTS: operations a second and the 99th percentile, in ms.
line() {
    bench "$1" --clients "$2" --value-size 256 --keys 10000 --duration "$seconds" --warmup 1 --endpoints "$endpoints"
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
        until_served "$endpoints"
        all_run
        one=$(line put 1)
        many=$(line put 64)
        gets=$(line get 64)
        memory=$(for pid in "${pids[@]}"; do awk '/^VmRSS/ { print $2 / 1024 }' "/proc/$pid/status"; done | median)
        disk=$(du -sm "$work/data/n1" | cut -f1)
        kill -9 "${pids[1]}"
        wait "${pids[1]}" 2>/dev/null || true
        began=$(date +%s%N)
        start 1 "${made[@]}"
        until_served "$(client 1)"
        back=$((($(date +%s%N) - began) / 1000000))
        stop
        rm -rf "$work/data"
        sync
        echo "$stack $one $many $gets $memory $disk $back" | tee -a "$work/results"
    done
done

echo
echo "| transport | store | engine | puts/s, 1 client | 64 clients | p99, ms | gets/s, 64 clients | p99, ms | memory, MiB | disk, MiB | back after kill -9, ms |"
echo "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
for stack in "${stacks[@]}"; do
    # shellcheck disable=SC2086  # three words
    printf '| %s | %s | %s | %.0f | %.0f | %.1f | %.0f | %.1f | %.0f | %.0f | %.0f |\n' $stack \
        "$(middle "$stack" 1)" "$(middle "$stack" 3)" "$(middle "$stack" 4)" "$(middle "$stack" 5)" "$(middle "$stack" 6)" \
        "$(middle "$stack" 7)" "$(middle "$stack" 8)" "$(middle "$stack" 9)"
done
