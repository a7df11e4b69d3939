#!/usr/bin/env bash
# How long a node that was killed (kill -9) takes until it serves again: this server, with its contents in memory and in a database (redb), and etcd, with the
# same keys, by turns.
#
# Each system is filled: all keys, by transactions, and then as many puts of random ones as make each write an image (a snapshot) with some log
# behind it. Then, in each round, node 1 of each is killed and started again; from there a client asks it for a key until it gets it, and puts one until
# that is acknowledged. Prints the medians.
#
#   cargo build --release -p kv-example --features redb
#   kv-example/benches/restart.sh                    # 1 000 000 keys, 5 rounds: about 4 minutes, and some 3 GiB of disk
#   kv-example/benches/restart.sh --keys 100000 --rounds 3
#   kv-example/benches/restart.sh --nodes 3          # the node of a cluster: three times as much memory and disk
#
# Options: --rounds N (5), --keys N (1000000), --puts N (120000), --nodes N (1), --etcd PROGRAM (etcd), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (17379)
#
# Needs bash, awk, and etcd 3.4 or later.
set -euo pipefail

rounds=5 keys=1000000 puts=120000 nodes=1 base_port=17379
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds keys puts nodes etcd" "$@"
needs "$kv" "cargo build --release -p kv-example --features redb"
needs_etcd
systems=(etcd memory redb)
rate=6000 # that all can do

begin
for one in "${systems[@]}"; do
    at "$one"
    echo "filling $one" >&2
    launch_all --engine "$one"
    until_served "$endpoints"
    all_run
    # What is read first has to be written.
    bench get --fill-batch 128 --keys "$keys" --clients 64 --duration 0.5 --warmup 0 --endpoints "$endpoints"
    bench put --keys "$keys" --clients 64 --rate "$rate" --duration "$(((puts + rate - 1) / rate))" --warmup 0 --endpoints "$endpoints"
    settle
done

# wait_for WHAT...: repeats a command of the client at node 1 until it succeeds.
wait_for() {
    local began=$SECONDS
    until "$kv" "$@" --endpoints "$(client 1)" --timeout 0.1 >/dev/null 2>&1; do
        [ $((SECONDS - began)) -lt 120 ] || last_words "$system does not serve again"
    done
}
digits=$((${#keys} - 1))
[ "$keys" -le $((10 ** digits)) ] || digits=$((digits + 1))
first=bench/$(printf "%0${digits}d" 0)

for round in $(seq "$rounds"); do
    for one in "${systems[@]}"; do
        at "$one"
        end KILL 1
        # In a cluster another one leads before it is back.
        [ "$nodes" = 1 ] || sleep 4
        began=$(now)
        launch 1 --engine "$one"
        wait_for get "$first" --value-only
        read=$(now)
        wait_for put restart "$round"
        echo "$one $(awk -v a="$began" -v b="$read" -v c="$(now)" 'BEGIN { print (b - a) / 1000, (c - a) / 1000 }')" >>"$work/results"
        echo "round $round: $(tail -n 1 "$work/results") $(memory "$(process 1)" VmRSS)" >&2
        settle
    done
done

echo
echo "From the start of a killed node to its first answers; $keys keys of 256 bytes, $nodes node(s), medians of $rounds rounds"
echo "| | a get, ms | a put, ms | longest, ms | of etcd's (put) |"
echo "|---|--:|--:|--:|--:|"
for one in "${systems[@]}"; do
    printf '| %s | %.0f | %.0f | %.0f | %s |\n' "$one" "$(middle "$one" 1)" "$(middle "$one" 2)" "$(column "$one" 2 | sort -g | tail -n 1)" \
        "$(ratio "$(middle "$one" 2)" "$(middle etcd 2)")"
done
