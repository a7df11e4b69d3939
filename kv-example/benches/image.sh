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

rounds=3 seconds=10 mib=1024 kv=target/release/kv-example dir= base=16379
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --mib) mib=$2 ;;
        --kv) kv=$2 ;;
        --dir) dir=$2 ;;
        --base-port) base=$2 ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2 || { echo "image: the last option has no value" >&2; exit 2; }
done
[ -x "$kv" ] || { echo "image: no program $kv; run: cargo build --release -p kv-example" >&2; exit 2; }

work=$(mktemp -d "${dir:-.}/image.XXXXXX")
# By themselves the nodes take no images.
"$kv" cluster --data "$work/data" --base-port "$base" -- --snapshot-entries 1000000000 --snapshot-mib 1000000 >"$work/log" 2>&1 &
cluster=$!
images=()
stop_images() {
    [ ${#images[@]} -gt 0 ] || return 0
    kill "${images[@]}" 2>/dev/null || true
    wait "${images[@]}" 2>/dev/null || true
    images=()
}
trap 'set +e; stop_images; kill "$cluster"; wait "$cluster" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
nodes=$(for n in 0 1 2; do echo "127.0.0.1:$((base + n * 2))"; done)
endpoints=$(echo "$nodes" | paste -sd,)
for _ in $(seq 100); do
    "$kv" put image ready --endpoints "$endpoints" --timeout 1 >/dev/null 2>&1 && break
    sleep 0.2
done

field() { awk -v name="\"$1\":" '$1 == name { gsub(/[,]/, "", $2); print $2; exit }' "$2"; }
# The latencies of all operations come first in the report, and all of these are writes.
line() {
    "$kv" bench put --clients 64 --value-size "$1" --keys "$2" --duration "$3" --warmup "$4" --endpoints "$endpoints" --json >"$work/out.json" ||
        { echo "image: the load generator failed; the servers said:" >&2; tail -5 "$work/log" >&2; exit 1; }
    echo "$(field throughput "$work/out.json") $(field p50 "$work/out.json") $(field p99 "$work/out.json") $(field max "$work/out.json")"
}

printf 'loading %s MiB\n' "$mib"
while :; do
    line 4096 1000000 5 0 >/dev/null
    bytes=$("$kv" status --json --endpoints "${endpoints%%,*}" | awk '$1 == "\"db_size\":" { gsub(/,/, "", $2); print $2 }')
    [ "$bytes" -ge $((mib << 20)) ] && break
done
# What was written before is on the disk by now, and not in the way.
sync
for round in $(seq "$rounds"); do
    for what in without with; do
        if [ $what = with ]; then
            for node in $nodes; do
                (while :; do "$kv" node snapshot "$node" >>"$work/images.log" 2>&1 || sleep 0.1; done) &
                images+=($!)
            done
        fi
        result=$(line 256 10000 "$seconds" 1)
        stop_images
        echo "round $round: $what images: $result"
        echo "$what $result" >>"$work/results"
        # An image that was begun is written to its end.
        [ $what = without ] || for node in $nodes; do "$kv" node snapshot "$node" >>"$work/images.log"; done
        sync
    done
done

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
echo "| images | puts/s | p50, ms | p99, ms | longest of all, ms |"
echo "|---|--:|--:|--:|--:|"
for what in without with; do
    of() { awk -v what="$what" -v n="$1" '$1 == what { print $n }' "$work/results"; }
    printf '| %s | %.0f | %s | %s | %s |\n' "$what" "$(of 2 | median)" "$(of 3 | median)" "$(of 4 | median)" "$(of 5 | sort -n | tail -1)"
done
echo "$(grep -c 'newest image' "$work/images.log") images were written; the last: $(grep 'newest image' "$work/images.log" | tail -1)"
