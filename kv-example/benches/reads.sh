#!/usr/bin/env bash
# How reads scale by where they are sent and how they become linearizable: a cluster of three on this machine, 64 clients, reads alone.
#
# Each round runs every line once; prints the medians. The first line is the measure: reads on the leader, each confirmed by a quorum. Where
# all share few cores, what a read costs the leader, and all servers, says more than reads a second: microseconds of processor time.
#
#   cargo build --release -p kv-example
#   kv-example/benches/reads.sh                      # 3 rounds of 5 s a line: about 3 minutes
#   kv-example/benches/reads.sh --rounds 1 --seconds 2
#
# Options: --rounds N (3), --seconds S (5), --clients N (64), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one), --base-port P (15379)
set -euo pipefail

rounds=3 seconds=5 clients=64 base_port=15379
source "$(dirname "$0")/common.sh"
options "rounds seconds clients" "$@"
needs "$kv" "cargo build --release -p kv-example"

begin
start_cluster --lease-drift-ms 10
bench get --endpoints "$endpoints" --target leader --duration 1 --warmup 1
port=$(awk -F'[:"]' '/127.0.0.1:/ { for (i = 1; i < NF; i++) if ($i == "127.0.0.1") { print $(i + 1); exit } }' "$work/out.json")
servers=$(pgrep -P "$cluster" | paste -sd' ')
leader=$(for pid in $servers; do tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "listen-client 127.0.0.1:$port" && echo "$pid"; done || true)
# Processor time of these processes, in microseconds.
spent() { for pid in "$@"; do awk '{ print $14 + $15 }' "/proc/$pid/stat"; done |
    awk -v hz="$(getconf CLK_TCK)" '{ sum += $1 } END { printf "%.0f", sum * 1000000 / hz }'; }

lines=("leader linearizable" "leader lease" "followers linearizable" "followers lease" "followers stale" "all linearizable" "all lease")
for round in $(seq "$rounds"); do
    for line in "${lines[@]}"; do
        read -r target consistency <<<"$line"
        # shellcheck disable=SC2086
        before=$(spent $leader) before_all=$(spent $servers)
        bench get --no-fill --endpoints "$endpoints" --target "$target" --consistency "$consistency" --clients "$clients" \
            --connections 8 --duration "$seconds" --warmup 0
        # shellcheck disable=SC2086
        led=$(($(spent $leader) - before)) all=$(($(spent $servers) - before_all))
        each=$(awk -v led="$led" -v all="$all" -v count="$(field operations)" 'BEGIN { printf "%.1f %.1f", led / count, all / count }')
        echo "$line $(field throughput) $(field p50) $(field p99) $each" >>"$work/results"
        echo "round $round: $(tail -n 1 "$work/results")" >&2
    done
done

measure=$(middle "${lines[0]}" 1)
printf '| sent to | consistency | reads/s | ratio | p50, ms | p99, ms | leader, µs a read | all, µs |\n|---|---|--:|--:|--:|--:|--:|--:|\n'
for line in "${lines[@]}"; do
    rate=$(middle "$line" 1)
    printf '| %s | %s | %.0f | %s | %s | %s | %s | %s |\n' "${line% *}" "${line#* }" "$rate" "$(ratio "$rate" "$measure")" \
        "$(middle "$line" 2)" "$(middle "$line" 3)" "$(middle "$line" 4)" "$(middle "$line" 5)"
done
