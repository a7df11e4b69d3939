#!/usr/bin/env bash
# What servers cost while nobody asks them anything, this one's and etcd's: processor time and memory, of three nodes of each, new and after the same work.
#
# Both clusters run side by side: idle, they are not in each other's way. The work is 300 000 puts of 256 bytes over 100 000 keys and as many gets, all but
# the first of each key at a rate that both can do, one cluster after the other.
#
#   cargo build --release -p kv-example
#   kv-example/benches/idle.sh                       # 3 rounds of 30 s, new and after the work: about 7 minutes
#   kv-example/benches/idle.sh --rounds 1 --seconds 10 --keys 20000 --puts 60000
#
# Options: --rounds N (3), --seconds S (30), --keys N (100000), --puts N (300000; as many gets), --rate N (6000), --server OPTIONS (of this server),
#          --etcd PROGRAM (etcd), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (17779)
#
# Needs bash, awk, and etcd 3.4 or later.
set -euo pipefail

rounds=3 seconds=30 keys=100000 puts=300000 rate=6000 server="" nodes=3 base_port=17779
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds seconds keys puts rate server etcd" "$@"
needs "$kv" "cargo build --release -p kv-example"
needs_etcd
systems=(etcd raftkv)
[ "$puts" -ge "$keys" ] || die "--puts $puts: each of $keys keys is put once at least" 2

# threads PID: for how long each of its threads has run, in ns. What the system samples a hundred times a second counts too much where timers wake threads.
threads() { awk '{ split(FILENAME, part, "/"); print part[5], $1 }' /proc/"$1"/task/*/schedstat; }

# busy BEFORE PID: for how long those have run since that are still there, in per cent of a core.
busy() { threads "$2" | awk -v s="$seconds" 'NR == FNR { before[$1] = $2; next } { sum += $2 - before[$1] } END { printf "%.2f", sum / s / 1e7 }' "$1" -; }

# idle WHEN: the processor time of each node, in percent of a core, and what it has of memory.
idle() {
    local one n took=() leads
    for one in "${systems[@]}"; do
        at "$one"
        settle
    done
    for one in "${systems[@]}"; do
        at "$one"
        for ((n = 1; n <= nodes; n++)); do threads "$(process "$n")" >"$work/threads-$one-$n"; done
    done
    sleep "$seconds"
    for one in "${systems[@]}"; do
        at "$one"
        for ((n = 1; n <= nodes; n++)); do
            took[first_pid + n]=$(busy "$work/threads-$one-$n" "$(process "$n")")
        done
    done
    # Asking who leads costs processor time as well.
    for one in "${systems[@]}"; do
        at "$one"
        leads=$(leading)
        for ((n = 1; n <= nodes; n++)); do
            echo "$1 $one $([ "$n" = "$leads" ] && echo leader || echo follower)" \
                "${took[first_pid + n]} $(memory "$(process "$n")" VmRSS)" >>"$work/results"
            echo "round $round: $(tail -n 1 "$work/results")" >&2
        done
    done
}

begin
for one in "${systems[@]}"; do
    at "$one"
    # shellcheck disable=SC2086  # the options are words
    if [ "$one" = etcd ]; then launch_all; else launch_all $server; fi
    until_served "$endpoints"
    all_run
done
for round in $(seq "$rounds"); do idle new; done
for one in "${systems[@]}"; do
    at "$one"
    echo "work for $one" >&2
    bench get --keys "$keys" --clients 64 --duration 0.1 --warmup 0 --endpoints "$endpoints"
    [ "$puts" = "$keys" ] ||
        bench put --keys "$keys" --clients 64 --rate "$rate" --duration "$(ratio $((puts - keys)) "$rate")" --warmup 0 --endpoints "$endpoints"
    bench get --no-fill --keys "$keys" --clients 64 --rate "$rate" --duration "$(ratio "$puts" "$rate")" --warmup 0 --endpoints "$endpoints"
    for ((n = 1; n <= nodes; n++)); do
        echo "worked $one $(memory "$(process "$n")" VmHWM) $(memory "$(process "$n")" VmRSS)" >>"$work/results"
        echo "$(tail -n 1 "$work/results") (MiB: at most, and now)" >&2
    done
done
for round in $(seq "$rounds"); do idle used; done

echo
row() {
    local etcd_has raftkv_has
    etcd_has=$(middle "$2 etcd${3:+ $3}" "$4") raftkv_has=$(middle "$2 raftkv${3:+ $3}" "$4")
    printf '| %s | %s | %s | %s |\n' "$1" "$etcd_has" "$raftkv_has" "$(ratio "$raftkv_has" "$etcd_has")"
}
echo "Three nodes of each; medians of $rounds rounds of $seconds s, of both followers; the work: $puts puts and $puts gets over $keys keys of 256 bytes"
echo "| | etcd | RaftKV | ratio |"
echo "|---|--:|--:|--:|"
row "the leader's processor time, % of a core: new" new leader 1
row "a follower's: new" new follower 1
row "the leader's: after the work" used leader 1
row "a follower's: after the work" used follower 1
row "memory, MiB: new, the leader" new leader 2
row "new, a follower" new follower 2
row "after the work, any of the three" worked "" 2
row "at most" worked "" 1
row "idle again, the leader" used leader 2
row "idle again, a follower" used follower 2
