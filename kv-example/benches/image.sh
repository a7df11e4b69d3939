#!/usr/bin/env bash
# What images cost: puts on a cluster of three that holds a GiB, while every node writes an image back to back, and while none does, in turn.
#
#   cargo build --release -p kv-example
#   kv-example/benches/image.sh                       # 3 rounds of 10 s a line: about 2 minutes, and some 12 GiB of disk
#   kv-example/benches/image.sh --rounds 1 --seconds 5 --mib 100
#
# Options: --rounds N (3), --seconds S (10), --mib M of values (1024), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (16379)
#
# Needs bash and awk.
set -euo pipefail

rounds=3 seconds=10 mib=1024 base_port=16379
source "$(dirname "$0")/common.sh"
options "rounds seconds mib" "$@"
needs "$kv" "cargo build --release -p kv-example"

begin
# By themselves the nodes take no images.
start_cluster --snapshot-entries 1000000000 --snapshot-mib 1000000

# puts VALUE-SIZE KEYS SECONDS WARMUP: puts a second, and three latencies.
puts() {
    bench put --clients 64 --value-size "$1" --keys "$2" --duration "$3" --warmup "$4" --endpoints "$endpoints"
    echo "$(field throughput) $(field p50) $(field p99) $(field max)"
}
# Has a node write images for as long as that file is there. One that was begun is written to its end.
images() {
    while [ -e "$work/imaging" ]; do
        "$kv" node snapshot "$1" >>"$work/images.log" 2>&1 || sleep 0.1
    done
}

printf 'loading %s MiB\n' "$mib"
while :; do
    puts 4096 1000000 5 0 >/dev/null
    bytes=$("$kv" status --json --endpoints "$(client 1)" | awk '$1 == "\"db_size\":" { gsub(/,/, "", $2); print $2 }')
    [ "$bytes" -ge $((mib << 20)) ] && break
done
# What was written before is on the disk by now, and not in the way.
sync
for round in $(seq "$rounds"); do
    for what in without with; do
        writers=()
        [ $what = without ] || for n in 1 2 3; do
            touch "$work/imaging"
            images "$(client $n)" &
            writers+=($!)
        done
        result=$(puts 256 10000 "$seconds" 1)
        rm -f "$work/imaging"
        [ $what = without ] || wait "${writers[@]}"
        echo "round $round: $what images: $result"
        echo "$what $result" >>"$work/results"
        sync
    done
done

echo "| images | puts/s | p50, ms | p99, ms | longest of all, ms |"
echo "|---|--:|--:|--:|--:|"
for what in without with; do
    printf '| %s | %.0f | %s | %s | %s |\n' $what "$(middle $what 1)" "$(middle $what 2)" "$(middle $what 3)" "$(column $what 4 | sort -g | tail -n 1)"
done
echo "$(grep -c 'newest image' "$work/images.log") images were written; the last: $(grep 'newest image' "$work/images.log" | tail -n 1)"
