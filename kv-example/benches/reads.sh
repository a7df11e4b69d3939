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

rounds=3 seconds=5 clients=64 kv=target/release/kv-example dir= base=15379
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --clients) clients=$2 ;;
        --kv) kv=$2 ;;
        --dir) dir=$2 ;;
        --base-port) base=$2 ;;
        *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2 || { echo "reads: the last option has no value" >&2; exit 2; }
done
[ -x "$kv" ] || { echo "reads: no program $kv; run: cargo build --release -p kv-example" >&2; exit 2; }

work=$(mktemp -d "${dir:-.}/reads.XXXXXX")
"$kv" cluster --data "$work/data" --base-port "$base" -- --lease-drift-ms 10 >"$work/cluster.log" 2>&1 &
cluster=$!
trap 'set +e; kill "$cluster"; wait "$cluster" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
endpoints=$(for n in 0 1 2; do echo "127.0.0.1:$((base + n * 2))"; done | paste -sd,)
for _ in $(seq 100); do
    "$kv" get nothing --endpoints "$endpoints" >/dev/null 2>&1 && break
    [ $? = 1 ] && break
    sleep 0.2
done

"$kv" bench get --endpoints "$endpoints" --target leader --duration 1 --warmup 1 --json >"$work/out.json"
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
        "$kv" bench get --no-fill --endpoints "$endpoints" --target "$target" --consistency "$consistency" --clients "$clients" \
            --connections 8 --duration "$seconds" --warmup 0 --json >"$work/out.json"
        # shellcheck disable=SC2086
        led=$(($(spent $leader) - before)) all=$(($(spent $servers) - before_all))
        awk -v line="$line" -v led="$led" -v all="$all" '
            /"operations"/ { gsub(/[^0-9.]/, "", $2); count = $2 }
            /"throughput"/ { gsub(/[^0-9.]/, "", $2); rate = $2 }
            /"p50"/ && p50 == "" { gsub(/[^0-9.]/, "", $2); p50 = $2 }
            /"p99"/ && p99 == "" { gsub(/[^0-9.]/, "", $2); p99 = $2 }
            END { printf "%s %s %s %s %.1f %.1f\n", line, rate, p50, p99, led / count, all / count }' "$work/out.json" >>"$work/results"
        echo "round $round: $(tail -1 "$work/results")" >&2
    done
done

median() { awk -v line="$1" -v column="$2" '$1 " " $2 == line { print $column }' "$work/results" | sort -g |
    awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
measure=$(median "${lines[0]}" 3)
printf '| sent to | consistency | reads/s | ratio | p50, ms | p99, ms | leader, µs a read | all, µs |\n|---|---|--:|--:|--:|--:|--:|--:|\n'
for line in "${lines[@]}"; do
    rate=$(median "$line" 3)
    printf '| %s | %s | %.0f | %s | %s | %s | %s | %s |\n' "${line% *}" "${line#* }" "$rate" \
        "$(awk -v a="$rate" -v b="$measure" 'BEGIN { printf "%.1f", a / b }')" "$(median "$line" 4)" "$(median "$line" 5)" "$(median "$line" 6)" "$(median "$line" 7)"
done
