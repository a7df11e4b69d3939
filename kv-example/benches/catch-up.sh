#!/usr/bin/env bash
# How long a follower that was stopped takes to get what the others wrote meanwhile, entry by entry (no images are taken, and no log is cut), beside
# how long the disk takes to read the leader's log, and to write and sync as many bytes.
#
# Each round begins with a fresh cluster of three: a follower is stopped, the others write, their logs are dropped from the page cache, and the follower is started
# again. The clock runs from its start until it has applied all that was written. Then the same log is read by dd, from the disk as well. Prints the medians.
#
#   cargo build --release -p kv-example
#   kv-example/benches/catch-up.sh                   # 1 000 000 entries, 3 rounds: about 4 minutes, and 1.5 GiB of disk
#   kv-example/benches/catch-up.sh --entries 200000 --rounds 1
#   kv-example/benches/catch-up.sh --server "--transport tarpc"
#
# Options: --rounds N (3), --entries N (1000000), --value-size BYTES (256), --server OPTIONS (of all servers), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (17579)
#
# Needs bash, awk, and dd of GNU coreutils.
set -euo pipefail

rounds=3 entries=1000000 value_size=256 server="" nodes=3 base_port=17579
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds entries value-size server" "$@"
needs "$kv" "cargo build --release -p kv-example"
systems=(raftkv)
read -ra more <<<"--snapshot-entries 1000000000 --snapshot-mib 1000000 $server"

# number FIELD N: how far node N is; nothing where it does not say.
number() {
    "$kv" status --json --endpoints "$(client "$2")" --timeout 1 2>/dev/null | awk -v key="\"$1\":" '$1 == key { sub(/,$/, "", $2); print $2 }' || true
}
# log_of N: how many bytes of each file of its log are in use, and the file: the newest segment has room left, and the next one is made in advance.
log_of() {
    local dir=$work/$system/n$1 used name
    if [ -z "$(find "$dir" -name '*.wal' -print -quit)" ]; then
        find "$dir" -type f -size +32k -printf '%s %p\n'
        return
    fi
    "$kv" log dump "$dir" | awk '$1 == "segment" { name = $2; sub(/,$/, "", name) } $3 == "bytes" && $4 == "batch" { end[name] = $1 + $2 }
        END { for (name in end) printf "%.0f %s\n", end[name], name }' | sort -k 2 |
        while read -r used name; do echo "$used $(find "$dir" -name "${name##*/}")"; done
}
# What is in use of each, one after the other.
read_log() { printf '%s\n' "${log[@]}" | while read -r used file; do dd if="$file" bs=1M iflag=count_bytes count="$used" status=none; done; }

begin
for round in $(seq "$rounds"); do
    at raftkv
    launch_all "${more[@]}"
    until_served "$endpoints"
    all_run
    leader=$(leading) away=$((leader % nodes + 1))
    there=$(client "$away")
    end TERM "$away"
    others=$(for n in 1 2 3; do [ "$n" = "$away" ] || client "$n"; done | paste -sd,)
    goal=$(($(number commit "$leader") + entries))
    while [ "$(number commit "$leader")" -lt "$goal" ]; do
        bench put --clients 256 --value-size "$value_size" --keys 100000 --duration 4 --warmup 0 --endpoints "$others"
    done
    written=$(($(number commit "$leader") - goal + entries))
    goal=$((goal - entries + written))
    settle
    mapfile -t log < <(log_of "$leader")
    forget "${log[@]#* }"

    began=$(now)
    launch "$away" "${more[@]}"
    # Clients wait longer the more often they find nobody.
    until (: <>"/dev/tcp/${there/://}") 2>/dev/null; do
        kill -0 "$(process "$away")" || last_words "the follower ended"
        sleep 0.005
    done
    # A linearizable read at the follower waits until it has applied what was committed before: nothing has to look again and again, and take the cores.
    until "$kv" get any --endpoints "$there" --timeout 60 >>"$work/asked.log" 2>&1 && has=$(number applied "$away") && [ "${has:-0}" -ge "$goal" ]; do
        [ $(($(now) - began)) -lt 600000000 ] || last_words "the follower does not catch up"
        kill -0 "$(process "$away")" || last_words "the follower ended"
        sleep 0.02
    done
    caught=$(($(now) - began))

    forget "${log[@]#* }"
    began=$(now)
    read_log >/dev/null
    read=$(($(now) - began))
    began=$(now)
    read_log | dd of="$work/copy" bs=1M iflag=fullblock conv=fdatasync status=none
    wrote=$(($(now) - began))
    bytes=$(stat -c %s "$work/copy")
    echo "raftkv $caught $read $wrote $bytes $written" >>"$work/results"
    echo "round $round: $(tail -n 1 "$work/results") (µs to catch up, to read the log, to write as much; its bytes; entries)" >&2
    end_all
    rm -rf "${work:?}/$system" "$work/copy"
    sync
done

echo
row() {
    awk -v what="$1" -v us="$2" -v bytes="$(middle raftkv 4)" -v entries="$(middle raftkv 5)" -v caught="$(middle raftkv 1)" 'BEGIN {
        printf "| %s | %.2f | %.0f | %.0f | %.3f |\n", what, us / 1e6, bytes / 1048576 / us * 1e6, entries / us * 1e6, us / caught }'
}
echo "A log of $(middle raftkv 5) entries with values of $value_size bytes, $(awk -v bytes="$(middle raftkv 4)" 'BEGIN { printf "%.0f", bytes / 1048576 }') MiB; medians of $rounds rounds"
echo "| | s | MiB/s | entries/s | of the time of catching up |"
echo "|---|--:|--:|--:|--:|"
row "a follower catches up" "$(middle raftkv 1)"
row "dd reads the log" "$(middle raftkv 2)"
row "dd writes as much, and syncs once" "$(middle raftkv 3)"
