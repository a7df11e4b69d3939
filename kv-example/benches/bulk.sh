#!/usr/bin/env bash
# How many bytes pass when values are large: puts of 1 MiB by 8 clients at the leader of three servers, beside what this machine can do with bytes at all: a TCP
# stream over loopback, and a file that is written and synced (examples/machine.rs), by turns.
#
# All of this shares one machine, where each value passes loopback three times (from the client, and to both followers) and is written three times.
#
# A fresh cluster for each round, as old revisions stay: prints the medians, and the servers' memory beside what they hold.
#
#   cargo build --release -p kv-example --bins --example machine
#   kv-example/benches/bulk.sh                       # 5 rounds of 5 s a line: about 2 minutes, and some 4 GiB of disk
#   kv-example/benches/bulk.sh --rounds 1 --seconds 2
#
# Options: --rounds N (5), --seconds S (5), --clients N (8), --value-size BYTES (1048576), --server OPTIONS (of all servers),
#          --kv PROGRAM (target/release/kv-example), --machine PROGRAM (target/release/examples/machine),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (17979)
#
# Needs bash and awk.
set -euo pipefail

rounds=5 seconds=5 clients=8 value_size=1048576 server="" machine=target/release/examples/machine nodes=3 base_port=17979
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds seconds clients value-size server machine" "$@"
needs "$kv" "cargo build --release -p kv-example"
needs "$machine" "cargo build --release -p kv-example --example machine"
systems=(raftkv)

begin
for round in $(seq "$rounds"); do
    "$machine" "$work" "$seconds" "$value_size" "$clients" >>"$work/results"
    at raftkv
    # shellcheck disable=SC2086  # the options are words
    launch_all $server
    until_served "$endpoints"
    all_run
    bench put --target leader --clients "$clients" --value-size "$value_size" --keys 1000 --duration "$seconds" --warmup 0.5 --timeout 30 --endpoints "$endpoints"
    leader=$(leading)
    held=$("$kv" status --json --endpoints "$(client "$leader")" | awk '$1 == "\"db_size\":" { sub(/,$/, "", $2); print $2; exit }')
    most=$(for n in 1 2 3; do memory "$(process "$n")" VmHWM; echo; done | sort -g | tail -n 1)
    echo "puts $(awk -v rate="$(field throughput)" -v size="$value_size" 'BEGIN { print rate * size / 1048576 }') $(field p50) $(field p99) $(field max) $most $((held >> 20))" >>"$work/results"
    echo "round $round: $(tail -n 3 "$work/results" | paste -sd' ')" >&2
    end_all
    rm -rf "${work:?}/$system"
    sync
done

echo
puts=$(middle puts 1)
# row NAME WORDS: the rate of the machine, and what the puts are of it, as they are and with the factor three.
row() { printf '| %s | %.0f | %s | %s |\n' "$1" "$2" "$(ratio "$puts" "$2")" "$(awk -v a="$puts" -v b="$2" 'BEGIN { printf "%.2f", 3 * a / b }')"; }
echo "Puts of $value_size bytes by $clients clients; medians of $rounds rounds of $seconds s"
echo "| | MiB/s | puts are of this | three times that |"
echo "|---|--:|--:|--:|"
printf '| puts | %.0f | | |\n' "$puts"
row "a stream over loopback" "$(middle loopback 1)"
row "a file, synced after each value" "$(middle disk-each 1)"
row "a file, synced after $clients values" "$(middle disk-batch 1)"
echo "A put: p50 $(middle puts 2) ms, p99 $(middle puts 3) ms, longest of all $(column puts 4 | sort -g | tail -n 1) ms; memory of a server at most $(column puts 5 | sort -g | tail -n 1) MiB, of which contents (all revisions) $(column puts 6 | sort -g | tail -n 1) MiB"
