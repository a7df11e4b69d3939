#!/usr/bin/env bash
# Durable puts of three servers beside those of openraft's gRPC example (examples/raft-kv-memstore-grpc of its repository), whose log and contents are in memory
# and on no disk: both under one load generator that favours neither (examples/load.rs), at the leader, by turns.
#
# Prints the medians. The servers and the load generator share the machine; those that are not asked are idle.
#
#   cargo build --release -p kv-example --bins --example load
#   (cd OPENRAFT/examples/raft-kv-memstore-grpc && cargo build --release)
#   kv-example/benches/versus-openraft.sh --openraft OPENRAFT/examples/raft-kv-memstore-grpc/target/release/raft-key-value   # 5 rounds of 3 s: a minute
#
# Options: --openraft PROGRAM, --rounds N (5), --seconds S (3), --value-size BYTES (256), --server OPTIONS (of this program's servers),
#          --kv PROGRAM (target/release/kv-example), --load PROGRAM (target/release/examples/load),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (18179)
#
# Needs bash and awk.
set -euo pipefail

rounds=5 seconds=3 value_size=256 server="" openraft="" load=target/release/examples/load nodes=3 base_port=18179
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds seconds value-size server openraft load" "$@"
needs "$kv" "cargo build --release -p kv-example"
needs "$load" "cargo build --release -p kv-example --example load"
[ -n "$openraft" ] || die "name openraft's server with --openraft" 2
needs "$openraft" "cargo build --release, in openraft's examples/raft-kv-memstore-grpc"
systems=(openraft raftkv)

begin
at openraft
theirs=()
for n in 1 2 3; do
    theirs+=("$(peer "$n")")
    "$openraft" --id "$n" --addr "${theirs[-1]}" >"$work/openraft-$n.log" 2>&1 &
    pids[first_pid + n]=$!
done
all_run
"$load" init "${theirs[@]}"
# The first one campaigns by itself; followers refuse.
until "$load" set "${theirs[0]}" 1 1 0.1 "$value_size" >/dev/null 2>&1; do
    [ "$SECONDS" -lt 30 ] || last_words "the first of openraft's servers does not lead"
    sleep 0.5
done
at raftkv
# shellcheck disable=SC2086  # the options are words
launch_all $server
until_served "$endpoints"
all_run
ours=$(client "$(leading)")

for round in $(seq "$rounds"); do
    for clients in 1 64 256; do
        connections=$((clients == 1 ? 1 : clients == 64 ? 8 : 16))
        echo "$clients openraft $("$load" set "${theirs[0]}" "$clients" "$connections" "$seconds" "$value_size")" >>"$work/results"
        echo "$clients raftkv $("$load" put "$ours" "$clients" "$connections" "$seconds" "$value_size")" >>"$work/results"
        echo "round $round: $(tail -n 2 "$work/results" | paste -sd' ')" >&2
    done
done

printf '| clients | openraft, in memory: puts/s | RaftKV, synced: puts/s | ratio | p50, ms | | p99, ms | |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n'
for clients in 1 64 256; do
    set -- "$clients openraft" "$clients raftkv"
    printf '| %s | %.0f | %.0f | %s | %s | %s | %s | %s |\n' "$clients" "$(middle "$1" 1)" "$(middle "$2" 1)" "$(ratio "$(middle "$2" 1)" "$(middle "$1" 1)")" \
        "$(middle "$1" 2)" "$(middle "$2" 2)" "$(middle "$1" 3)" "$(middle "$2" 3)"
done
