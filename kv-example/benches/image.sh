#!/usr/bin/env bash
# What images cost: puts on a cluster of three that holds a GiB, while every node writes one image after the other, or while the leader sends one to a follower that
# lags behind what is left of the log, and while there is neither, in turn.
#
# What is written because the log is long enough has time, and the node pauses on the way ("written"); not where somebody asks for an image and waits ("asked").
#
#   cargo build --release -p kv-example
#   kv-example/benches/image.sh                       # 3 rounds of 10 s a line: about 7 minutes, and some 12 GiB of disk
#   kv-example/benches/image.sh --rounds 1 --seconds 5 --mib 100
#   kv-example/benches/image.sh --what sent           # about 3 minutes
#
# An image takes as long as it takes to be sent: then a line is the median of as many runs of 2 s as fit in, at least one, and --seconds is the time without.
# Clients are those of the two other nodes then, with and without: who asks a node that lags waits until it has caught up.
#
# Options: --what written|sent (written), --rounds N (3), --seconds S (10), --mib M of values (1024), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (16379)
#
# Needs bash and awk.
set -euo pipefail

what=written rounds=3 seconds=10 mib=1024 nodes=3 base_port=16379
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "what rounds seconds mib" "$@"
needs "$kv" "cargo build --release -p kv-example"
[ "$what" = written ] || [ "$what" = sent ] || die "--what $what: say written or sent" 2
systems=(data)

begin
at data
# For an image to be sent, next to nothing of the log may stay.
trailing=()
[ "$what" = written ] || trailing=(--trailing-entries 10)
# serve ENTRIES: starts all nodes, which take an image whenever there were so many entries since the last.
serve() {
    end_all
    launch_all --snapshot-entries "$1" --snapshot-mib 1000000 ${trailing[@]+"${trailing[@]}"}
    until_served "$endpoints"
    all_run
}
by_themselves=10000 when_asked=1000000000
serve $when_asked
# Whom the clients ask: all, or all but the follower that is to lag.
late=0 asked=$endpoints

# puts VALUE-SIZE KEYS SECONDS WARMUP: puts a second, and three latencies.
puts() {
    bench put --clients 64 --value-size "$1" --keys "$2" --duration "$3" --warmup "$4" --endpoints "$asked"
    echo "$(field throughput) $(field p50) $(field p99) $(field max)"
}
# status N FIELD: a number that node N says of itself.
status() {
    "$kv" status --json --timeout 1 --endpoints "$(client "$1")" 2>/dev/null |
        awk -v key="\"$2\":" '$1 == key { sub(/,$/, "", $2); print $2; exit }' || true
}
# Has a node write images for as long as that file is there. One that was begun is written to its end.
images() {
    while [ -e "$work/imaging" ]; do
        "$kv" node snapshot "$1" >>"$work/images.log" 2>&1 || sleep 0.1
    done
}

# Each line but those of an image that is sent begins with a start, so that all know as little of what is on the disk.
while_without() {
    [ "$what" = sent ] || serve $when_asked
    puts 256 10000 "$seconds" 1
}

while_written() {
    local begun finished
    begun=$(told "writing a snapshot") finished=$(told "took a snapshot")
    serve $by_themselves
    puts 256 10000 "$seconds" 1 >"$work/line"
    echo "by themselves: $(($(told "writing a snapshot") - begun)) $(($(told "took a snapshot") - finished))" >>"$work/images.log"
    cat "$work/line"
}

# told WORDS: how often nodes have said this.
told() { cat "$work"/data-*.log | grep -c "$1" || true; }

while_asked() {
    local writers=() n
    serve $when_asked
    for n in 1 2 3; do
        touch "$work/imaging"
        images "$(client $n)" &
        writers+=($!)
    done
    puts 256 10000 "$seconds" 1 >"$work/line"
    rm -f "$work/imaging"
    wait "${writers[@]}"
    cat "$work/line"
}

# How often node N has got an image.
installs() { grep -c "a snapshot takes the place of the state" "$work/data-$1.log" || true; }

# A follower stands still while the others write some and cut their logs; then it goes on, and needs the image.
while_sent() {
    local leader goal began n has installed first
    leader=$(leading)
    installed=$(installs "$late")
    kill -STOP "$(process "$late")"
    puts 256 10000 1 0 >/dev/null
    for n in 1 2 3; do [ "$n" = "$late" ] || "$kv" node snapshot "$(client "$n")" >>"$work/images.log"; done
    goal=$(status "$leader" commit)
    sync
    # The first run begins before the image does, so that clients are connected by then.
    puts 256 10000 2 0.5 >"$work/runs" &
    first=$!
    sleep 0.7
    began=$(now)
    kill -CONT "$(process "$late")"
    wait "$first"
    while :; do
        has=$(status "$late" applied)
        # The last run began before it was over, or is the only one.
        [ "${has:-0}" -lt "$goal" ] || break
        [ $(($(now) - began)) -lt 600000000 ] || last_words "the follower does not get the image"
        puts 256 10000 2 0.2 >>"$work/runs"
    done
    [ "$(installs "$late")" -gt "$installed" ] || last_words "node $late has caught up without an image"
    [ "$(wc -l <"$work/runs")" -eq 1 ] || sed -i '$d' "$work/runs"
    awk '{ print "run", $0 }' "$work/runs" >"$work/run"
    echo "$(middle run 1 "$work/run") $(middle run 2 "$work/run") $(middle run 3 "$work/run") $(column run 4 "$work/run" | sort -g | tail -n 1)"
    echo "sent, with all that came after it, within $((($(now) - began) / 1000)) ms" >>"$work/images.log"
}

lines="without $what"
[ "$what" = sent ] || lines="without written asked"
printf 'loading %s MiB\n' "$mib"
while :; do
    puts 4096 1000000 5 0 >/dev/null
    bytes=$(status 1 db_size)
    [ "$bytes" -ge $((mib << 20)) ] && break
done
# What was written before is on the disk by now, and not in the way.
sync
order=$lines
for round in $(seq "$rounds"); do
    if [ "$what" = sent ]; then
        leader=$(leading) late=$((leader % nodes + 1))
        asked=$(for n in 1 2 3; do [ "$n" = "$late" ] || client "$n"; done | paste -sd,)
    fi
    for line in $order; do
        # In this shell, which knows the servers' processes.
        "while_$line" >"$work/told"
        result=$(<"$work/told")
        echo "round $round: $line: $result"
        echo "$line $result" >>"$work/results"
        if [ "$what" = sent ]; then settle; else sync; fi
    done
    # What a line leaves behind, such as a log that no image has cut, is the next one's burden, so no line always comes after the same other.
    order="${order#* } ${order%% *}"
done

echo "| images | puts/s | p50, ms | p99, ms | longest of all, ms |"
echo "|---|--:|--:|--:|--:|"
for line in $lines; do
    printf '| %s | %.0f | %s | %s | %s |\n' "$line" "$(middle $line 1)" "$(middle $line 2)" "$(middle $line 3)" "$(column $line 4 | sort -g | tail -n 1)"
done
awk '/^by themselves/ { begun += $3; finished += $4 } END { if (NR) print begun + 0, "images were begun by themselves, and", finished + 0, "finished" }' "$work/images.log"
echo "$(grep -c 'newest image' "$work/images.log") images were written as somebody asked; the last: $(grep 'newest image' "$work/images.log" | tail -n 1)"
grep "^sent" "$work/images.log" || true
