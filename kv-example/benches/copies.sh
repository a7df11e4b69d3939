#!/usr/bin/env bash
# How often the bytes of a value are copied from the socket to the log, the contents and the other nodes, and what is allocated for it: counted by valgrind (DHAT),
# so that nothing else on the machine has a say.
#
# Three servers run under valgrind and take the same puts twice, of large values and of single bytes. What the large ones add, divided by their bytes, is how often each byte was copied
# from one place in the process to another. What the system copies from and to sockets and files is not among it. So it is with allocations, of which the small ones
# tell how many a put takes. (The program is one without optimization, which changes neither by much.)
#
#   cargo build -p kv-example --no-default-features --features file,grpc --target-dir target/copies      # valgrind sees the system's allocator alone
#   kv-example/benches/copies.sh                     # 20 puts of 1 MiB: about 3 minutes
#
# Options: --puts N (20), --value-size BYTES (1048576), --kv PROGRAM (target/copies/debug/kv-example), --load PROGRAM (target/release/kv-example: whose client
#          puts), --dir DIR (a new directory below the current one), --base-port P (18379)
#
# Needs bash, awk and valgrind.
set -euo pipefail

puts=20 value_size=1048576 load=target/release/kv-example kv=target/copies/debug/kv-example nodes=3 base_port=18379
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "puts value-size load" "$@"
needs "$kv" "cargo build -p kv-example --no-default-features --features file,grpc --target-dir target/copies"
needs "$load" "cargo build --release -p kv-example"
command -v valgrind >/dev/null || die "no valgrind; install it" 2
systems=(counted)

begin
at counted
rate=4
puts=$((puts / rate * rate))
[ "$puts" -gt 0 ] || die "--puts must be at least $rate" 2
members="1=$(peer 1),2=$(peer 2),3=$(peer 3)"
server=$kv kv=$load

# count MODE SIZE PUTS: runs the servers under DHAT in that mode, with so many puts of so many bytes. Adds to the results all three, who it was, bytes, and blocks.
count() {
    local mode=$1 size=$2 puts=$3 began=$SECONDS n leader
    rm -rf "${work:?}/counted"
    for n in 1 2 3; do
        valgrind --tool=dhat --mode="$mode" --dhat-out-file="$work/dhat-$n.json" --log-file="$work/valgrind-$n.log" \
            "$server" server --id "$n" --data "$work/counted/n$n" --listen-client "$(client "$n")" --peers "$members" \
            --election-timeout-ms 5000 --heartbeat-ms 1000 >>"$work/server-$n.log" 2>&1 &
        pids[first_pid + n]=$!
    done
    until "$kv" put "$name" ready --endpoints "$endpoints" --timeout 5 >/dev/null 2>&1; do
        [ $((SECONDS - began)) -lt 120 ] || last_words "nobody serves at $endpoints"
        sleep 0.5
    done
    bench put --target leader --clients 1 --rate "$rate" --duration "$((puts / rate))" --value-size "$size" --keys 10 --warmup 0 --timeout 60 --endpoints "$endpoints"
    # Whom it asked.
    leader=$(awk -v first="$base_port" '/"127\.0\.0\.1:/ { gsub(/[^0-9:]/, ""); split($0, parts, ":"); print (parts[2] - first) / 2 + 1; exit }' "$work/out.json")
    for n in 1 2 3; do
        end TERM "$n"
        # "==PID== Total:     64,370,914 bytes in 187,213 blocks"
        awk -v what="$mode $size $puts $([ "$n" = "$leader" ] && echo leader || echo follower)" '/ Total: / { gsub(/,/, ""); print what, $3, $6 }' "$work/valgrind-$n.log" >>"$work/results"
    done
    echo "$mode, $puts values of $size bytes: $(tail -n 3 "$work/results" | awk '{ print $4, $5, "bytes in", $6 }' | paste -sd';')" >&2
}
more=$((5 * puts))
count copy "$value_size" "$puts"
count copy 1 "$puts"
count heap "$value_size" "$puts"
count heap 1 "$puts"
count heap 1 "$more"

# difference WORDS WORDS N BY: of the Nth numbers, divided.
difference() { awk -v a="$(middle "$1" "$3")" -v b="$(middle "$2" "$3")" -v by="$4" 'BEGIN { printf "%.1f", (a - b) / by }'; }
echo "$puts puts of $value_size bytes, by one client at the leader"
echo "| | times that each byte of a value is copied | bytes allocated for each byte | allocations for a put of one byte |"
echo "|---|--:|--:|--:|"
bytes=$((puts * value_size))
for role in leader follower; do
    printf '| %s | %s | %s | %s |\n' "$role" "$(difference "copy $value_size $puts $role" "copy 1 $puts $role" 1 "$bytes")" \
        "$(difference "heap $value_size $puts $role" "heap 1 $puts $role" 1 "$bytes")" "$(difference "heap 1 $more $role" "heap 1 $puts $role" 2 $((more - puts)))"
done
