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

rounds=3 seconds=10 etcd=etcd only= base_port=14379
source "$(dirname "$0")/common.sh"
options "rounds seconds etcd only" "$@"
needs "$kv" "cargo build --release -p kv-example"
[ "$only" = raftkv ] || command -v "$etcd" >/dev/null ||
    die "no program $etcd; install it (Debian: etcd-server), or name it with --etcd" 2

begin
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

# The lines of the comparison: a name, and options of `kv-example bench`.
lines=(
    "put-1|put --clients 1"
    "put-64|put --clients 64"
    "put-256|put --clients 256"
    "get-64|get --clients 64"
    "get-256|get --clients 256 --no-fill"
    "mixed-256|mixed --clients 256 --no-fill"
)

measure() {
    local system=$1 line what options errors
    for line in "${lines[@]}"; do
        what=${line%%|*} options=${line#*|}
        # shellcheck disable=SC2086  # the options are words
        if ! "$kv" bench $options --endpoints "$endpoints" --duration "$seconds" --warmup 1 --json >"$work/out.json"; then
            echo "versus-etcd: $system: bench $options failed" >&2
        fi
        errors=$(awk '/"errors": {/ { inside = !/}/; next } inside && /}/ { inside = 0 } inside { gsub(",", "", $NF); sum += $NF } END { print sum + 0 }' "$work/out.json")
        echo "$system $what $(field throughput) $(field p50) $(field p99) $errors" >>"$work/results"
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
    rm -rf "$work/data" "$work"/*.log
    mkdir "$work/data"
    "start_$1"
    until_served "$endpoints"
    all_run
    equal_work "$1"
    measure "$1"
    stop
}

for round in $(seq "$rounds"); do
    systems="etcd raftkv"
    [ $((round % 2)) -eq 0 ] && systems="raftkv etcd"
    for system in ${only:-$systems}; do
        echo "round $round of $rounds: $system" >&2
        run_system "$system"
    done
done

echo
echo "Medians of $rounds rounds, ${seconds} s a line, values of 256 bytes, three servers on $(nproc) cores ($(uname -sr))"
printf '%-10s | %10s %10s %6s | %9s %9s | %9s %9s %6s\n' "" etcd/s raftkv/s ratio "etcd p50" raftkv "etcd p99" raftkv ratio
for line in "${lines[@]}"; do
    what=${line%%|*}
    theirs=$(middle "etcd $what" 1) theirs_99=$(middle "etcd $what" 3)
    ours=$(middle "raftkv $what" 1) ours_99=$(middle "raftkv $what" 3)
    printf '%-10s | %10.0f %10.0f %6s | %9.2f %9.2f | %9.2f %9.2f %6s\n' "$what" "$theirs" "$ours" "$(ratio "$ours" "$theirs")" \
        "$(middle "etcd $what" 2)" "$(middle "raftkv $what" 2)" "$theirs_99" "$ours_99" "$(ratio "$ours_99" "$theirs_99")"
done
failed() { awk -v of="$1" '$1 == of { sum += $6 } END { print sum + 0 }' "$work/results"; }
echo "latencies in ms; failed requests: etcd $(failed etcd), raftkv $(failed raftkv)"
# memory WHEN FILE
memory() {
    local when=$1 file=$work/$2 of text=
    for of in "1:at most" "2:at the end"; do
        theirs=$(middle etcd "${of%%:*}" "$file") ours=$(middle raftkv "${of%%:*}" "$file")
        text+=$(printf '  %s  etcd %.0f, raftkv %.0f, ratio %s;' "${of#*:}" "$theirs" "$ours" "$(ratio "$ours" "$theirs")")
    done
    printf 'memory of a server, MiB, %-45s%s\n' "$when:" "${text%;}"
}
memory "after $((12000 * seconds)) puts and $((3000 * seconds)) gets by each" equal
memory "after all lines, more work for the faster one" memory
