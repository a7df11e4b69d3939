# Servers one by one, this program's and etcd's, for measurements that start, stop and look at single ones. Comes after common.sh:
#
#   systems=(etcd memory redb) nodes=1
#   source "$(dirname "$0")/servers.sh"
#   at memory; launch_all --engine memory; until_served "$endpoints"; all_run
#
# `etcd` is a system; all others are of this program, by names of the script's choice, and keep their data in $work/NAME.
# shellcheck shell=bash disable=SC2154

etcd=${etcd:-etcd}

needs_etcd() { command -v "$etcd" >/dev/null || die "no program $etcd; install it (Debian: etcd-server), or name it with --etcd" 2; }

# at SYSTEM: what comes next is about this one. Sets $system, $endpoints, and what `client` and `peer` give.
at() {
    local n
    system=$1 first_port=${first_port:-$base_port}
    for n in "${!systems[@]}"; do
        [ "${systems[n]}" = "$system" ] || continue
        base_port=$((first_port + 20 * n)) first_pid=$((10 * n))
    done
    endpoints=$(for ((n = 1; n <= nodes; n++)); do client "$n"; done | paste -sd,)
}

# launch N OPTIONS...: starts node N, with these options of `kv-example server`; etcd has its defaults.
launch() {
    local n=$1 members
    shift
    echo "node $n is started" >>"$work/$system-$n.log"
    if [ "$system" = etcd ]; then
        members=$(for ((m = 1; m <= nodes; m++)); do echo "e$m=http://$(peer "$m")"; done | paste -sd,)
        "$etcd" --name "e$n" --data-dir "$work/$system/n$n" --initial-cluster "$members" --initial-cluster-state new \
            --listen-client-urls "http://$(client "$n")" --advertise-client-urls "http://$(client "$n")" \
            --listen-peer-urls "http://$(peer "$n")" --initial-advertise-peer-urls "http://$(peer "$n")" >>"$work/$system-$n.log" 2>&1 &
    else
        members=$(for ((m = 1; m <= nodes; m++)); do echo "$m=$(peer "$m")"; done | paste -sd,)
        "$kv" server --id "$n" --data "$work/$system/n$n" --listen-client "$(client "$n")" --peers "$members" "$@" >>"$work/$system-$n.log" 2>&1 &
    fi
    pids[first_pid + n]=$!
}

launch_all() {
    local n
    mkdir -p "$work/$system"
    for ((n = 1; n <= nodes; n++)); do launch "$n" "$@"; done
}

# The process of node N.
process() { echo "${pids[first_pid + $1]}"; }

# end SIGNAL N: ends node N, and waits until it is gone.
end() {
    kill "-$1" "${pids[first_pid + $2]}"
    wait "${pids[first_pid + $2]}" 2>/dev/null || true
    unset "pids[first_pid + $2]"
}

end_all() {
    local n
    for ((n = 1; n <= nodes; n++)); do [ -z "${pids[first_pid + n]:-}" ] || end KILL "$n"; done
}

# The node that leads.
leading() {
    "$kv" bench put --target leader --keys 1 --clients 1 --duration 0.1 --warmup 0 --endpoints "$endpoints" --json >"$work/leader.json" ||
        last_words "nobody leads $system"
    awk -v first="$base_port" '/"127\.0\.0\.1:/ { gsub(/[^0-9:]/, ""); split($0, parts, ":"); print (parts[2] - first) / 2 + 1; exit }' "$work/leader.json"
}

# The time, in microseconds.
now() { echo "${EPOCHREALTIME/[.,]/}"; }

# spent PID: the processor time that it has taken, in milliseconds.
spent() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.0f", ($12 + $13) * 1000 / hz }' "/proc/$1/stat"; }

# memory PID FIELD: VmRSS (now) or VmHWM (at most), in MiB.
memory() { awk -v field="$2:" '$1 == field { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }

# imaging N: whether node N writes an image. One that nobody waits for takes little of the processor.
imaging() {
    awk '/ is started$/ || /took a snapshot/ || /the snapshot was not taken/ { busy = 0 } /writing a snapshot/ { busy = 1 } END { exit !busy }' "$work/$system-$1.log"
}

all_imaged() {
    local n
    for ((n = 1; n <= nodes; n++)); do [ -z "${pids[first_pid + n]:-}" ] || ! imaging "$n" || return 1; done
}

# Waits until the system's servers have nothing left to do: images to write, memory to give back. Two minutes at most.
settle() {
    local n before after tries
    for ((tries = 0; tries < 120; tries++)); do
        before=$(for ((n = 1; n <= nodes; n++)); do [ -z "${pids[first_pid + n]:-}" ] || spent "$(process "$n")"; echo; done | awk '{ sum += $1 } END { print sum }')
        sleep 1
        after=$(for ((n = 1; n <= nodes; n++)); do [ -z "${pids[first_pid + n]:-}" ] || spent "$(process "$n")"; echo; done | awk '{ sum += $1 } END { print sum }')
        if [ $((after - before)) -le 50 ] && all_imaged; then break; fi
    done
    sync
}

# forget FILE...: has the kernel drop what it keeps of these files in memory.
forget() {
    local file
    for file in "$@"; do
        sync -d "$file"
        dd if="$file" iflag=nocache count=0 status=none
    done
}
