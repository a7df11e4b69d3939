#!/usr/bin/env bash
# Compares three nodes of this server with three of etcd, under the same load generator, on this machine.
#
# Each round starts a fresh cluster of the one and then of the other (in turns, so that neither always goes first), runs the
# same `kv-example bench` lines against each, and notes how much memory the servers took. Prints the medians of all rounds.
#
#   cargo build --release -p kv-example
#   kv-example/benches/versus-etcd.sh                      # 3 rounds of 10 s a line: about 15 minutes
#   kv-example/benches/versus-etcd.sh --rounds 1 --seconds 3
#
# Options: --rounds N (3), --seconds S (10), --etcd PROGRAM (etcd), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (14379),
#          --only etcd|raftkv
# Needs bash, awk, and etcd 3.4 or later.
set -euo pipefail

rounds=3 seconds=10 etcd=etcd kv=target/release/kv-example dir= base=14379 only=
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --etcd) etcd=$2 ;;
        --kv) kv=$2 ;;
        --dir) dir=$2 ;;
        --base-port) base=$2 ;;
        --only) only=$2 ;;
        *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2 || { echo "versus-etcd: the last option has no value" >&2; exit 2; }
done
[ -x "$kv" ] || { echo "versus-etcd: no program $kv; run: cargo build --release -p kv-example" >&2; exit 2; }
[ "$only" = raftkv ] || command -v "$etcd" >/dev/null || {
    echo "versus-etcd: no program $etcd; install it (Debian: etcd-server), or name it with --etcd" >&2; exit 2; }

work=$(mktemp -d "${dir:-.}/versus-etcd.XXXXXX")
pids=()
stop_servers() {
    [ ${#pids[@]} -gt 0 ] || return 0
    kill "${pids[@]}" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
    pids=()
}
trap 'set +e; stop_servers; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

client() { echo "127.0.0.1:$((base + 2 * $1))"; }
peer() { echo "127.0.0.1:$((base + 2 * $1 + 1))"; }
endpoints="$(client 1),$(client 2),$(client 3)"

start_etcd() {
    local n
    for n in 1 2 3; do
        "$etcd" --name "e$n" --data-dir "$work/data/e$n" \
            --listen-client-urls "http://$(client $n)" --advertise-client-urls "http://$(client $n)" \
            --listen-peer-urls "http://$(peer $n)" --initial-advertise-peer-urls "http://$(peer $n)" \
            --initial-cluster "e1=http://$(peer 1),e2=http://$(peer 2),e3=http://$(peer 3)" \
            --initial-cluster-state new >"$work/etcd-$n.log" 2>&1 &
        pids+=($!)
    done
}

start_raftkv() {
    local n
    for n in 1 2 3; do
        "$kv" server --id $n --data "$work/data/n$n" --listen-client "$(client $n)" \
            --peers "1=$(peer 1),2=$(peer 2),3=$(peer 3)" >"$work/raftkv-$n.log" 2>&1 &
        pids+=($!)
    done
}

wait_ready() {
    local _
    for _ in $(seq 100); do
        "$kv" put versus ready --endpoints "$endpoints" --timeout 1 >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "versus-etcd: the servers did not start; their last words:" >&2
    tail -n 5 "$work"/*-[123].log >&2
    exit 1
}

# The lines of the comparison: a name, and options of `kv-example bench`.
lines=(
    "put-1|put --clients 1"
    "put-64|put --clients 64"
    "put-256|put --clients 256"
    "get-64|get --clients 64"
    "get-256|get --clients 256 --no-fill"
    "mixed-256|mixed --clients 256 --no-fill"
)

# The first number under a key: the report's own, or that of all latencies.
number() { awk -v key="\"$1\":" '$1 == key { gsub(",", "", $2); print $2; exit }' "$2"; }

measure() {
    local system=$1 line name options errors
    for line in "${lines[@]}"; do
        name=${line%%|*} options=${line#*|}
        # shellcheck disable=SC2086  # the options are words
        if ! "$kv" bench $options --endpoints "$endpoints" --duration "$seconds" --warmup 1 --json >"$work/out.json"; then
            echo "versus-etcd: $system: bench $options failed" >&2
        fi
        errors=$(awk '/"errors": {/ { inside = !/}/; next } inside && /}/ { inside = 0 } inside { gsub(",", "", $NF); sum += $NF } END { print sum + 0 }' "$work/out.json")
        echo "$system $name $(number throughput "$work/out.json") $(number p50 "$work/out.json") $(number p99 "$work/out.json") $errors" >>"$work/results"
        tail -n 1 "$work/results" >&2
    done
    note_memory "$system" memory
}

# How much memory each server has taken: at most, and now, in MiB.
note_memory() {
    local pid
    for pid in "${pids[@]}"; do
        awk -v name="$1" '/^VmHWM/ { hwm = $2 } /^VmRSS/ { rss = $2 } END { print name, hwm / 1024, rss / 1024 }' \
            "/proc/$pid/status" >>"$work/$2"
    done
}

# The same work for both, at a rate that both can do: only then is their memory to be compared.
equal_work() {
    "$kv" bench put --clients 64 --rate 3000 --duration "$((4 * seconds))" --endpoints "$endpoints" --json >/dev/null
    "$kv" bench get --clients 64 --rate 3000 --duration "$seconds" --no-fill --endpoints "$endpoints" --json >/dev/null
    note_memory "$1" equal
}

run_system() {
    rm -rf "$work/data" && mkdir "$work/data"
    "start_$1"
    wait_ready
    equal_work "$1"
    measure "$1"
    stop_servers
}

for round in $(seq "$rounds"); do
    systems="etcd raftkv"
    [ $((round % 2)) -eq 0 ] && systems="raftkv etcd"
    for system in ${only:-$systems}; do
        echo "round $round of $rounds: $system" >&2
        run_system "$system"
    done
done

median='
function median(list, count,    i, j, t) {
    for (i = 2; i <= count; i++) for (j = i; j > 1 && list[j - 1] > list[j]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
    return count == 0 ? 0 : count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
}
function of(product, name, field,    i, n, list) {
    for (i = 1; i <= rows; i++) if (sys[i] == product && key[i] == name) list[++n] = value[i, field]
    return median(list, n)
}
function ratio(a, b) { return b > 0 ? sprintf("%.2f", a / b) : "-" }'

echo
echo "Medians of $rounds rounds, ${seconds} s a line, values of 256 bytes, three servers on $(nproc) cores ($(uname -sr))"
awk "$median"'
{ rows++; sys[rows] = $1; key[rows] = $2; for (f = 3; f <= 6; f++) value[rows, f] = $f + 0
  errors[$1] += $6; if (!($2 in seen)) { seen[$2] = 1; names[++count] = $2 } }
END {
    printf "%-10s | %10s %10s %6s | %9s %9s | %9s %9s %6s\n", "", "etcd/s", "raftkv/s", "ratio", "etcd p50", "raftkv", "etcd p99", "raftkv", "ratio"
    for (i = 1; i <= count; i++) {
        n = names[i]
        printf "%-10s | %10.0f %10.0f %6s | %9.2f %9.2f | %9.2f %9.2f %6s\n", n,
            of("etcd", n, 3), of("raftkv", n, 3), ratio(of("raftkv", n, 3), of("etcd", n, 3)),
            of("etcd", n, 4), of("raftkv", n, 4),
            of("etcd", n, 5), of("raftkv", n, 5), ratio(of("raftkv", n, 5), of("etcd", n, 5))
    }
    printf "latencies in ms; failed requests: etcd %d, raftkv %d\n", errors["etcd"], errors["raftkv"]
}' "$work/results"
memory() {
    printf 'memory of a server, MiB, %-45s' "$1:"
    awk "$median"'
    { rows++; sys[rows] = $1; key[rows] = ""; value[rows, 3] = $2; value[rows, 4] = $3 }
    END {
        printf "at most  etcd %.0f, raftkv %.0f, ratio %s;  at the end  etcd %.0f, raftkv %.0f, ratio %s\n",
            of("etcd", "", 3), of("raftkv", "", 3), ratio(of("raftkv", "", 3), of("etcd", "", 3)),
            of("etcd", "", 4), of("raftkv", "", 4), ratio(of("raftkv", "", 4), of("etcd", "", 4))
    }' "$work/$2"
}
memory "after $((12000 * seconds)) puts and $((3000 * seconds)) gets by each" equal
memory "after all lines, more work for the faster one" memory
