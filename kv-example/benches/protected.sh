#!/usr/bin/env bash
# What protection costs: puts and linearizable gets on three servers, with and without TLS (of all links, in both directions), with and without users, who
# are asked who they are.
#
# Two clusters run, one of them with certificates (`kv-example certs`); each is loaded by turns, as it is, and with authentication. Prints the medians.
#
#   cargo build --release -p kv-example
#   kv-example/benches/protected.sh                  # 3 rounds of 5 s a line: about 3 minutes
#   kv-example/benches/protected.sh --rounds 1 --seconds 2
#
# Options: --rounds N (3), --seconds S (5), --clients N (64), --server OPTIONS (of all servers), --kv PROGRAM (target/release/kv-example),
#          --dir DIR (a new directory below the current one: it should be on a disk, not in memory), --base-port P (18179)
#
# Needs bash and awk.
set -euo pipefail

rounds=3 seconds=5 clients=64 server="" nodes=3 base_port=18179
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/servers.sh"
options "rounds seconds clients server" "$@"
needs "$kv" "cargo build --release -p kv-example"
systems=(plain tls)

begin
certs=$work/certs
"$kv" certs --out "$certs" --nodes 1,2,3 >/dev/null

# reach SYSTEM: how a client comes to it.
reach() {
    at "$1"
    secrets=()
    [ "$1" = tls ] || return 0
    endpoints="https://${endpoints//,/,https://}" secrets=(--cacert "$certs/ca.crt" --cert "$certs/client.crt" --key "$certs/client.key")
}
# ask COMMAND...: has the client do that.
ask() { "$kv" "$@" --endpoints "$endpoints" ${secrets[@]+"${secrets[@]}"} >/dev/null; }

for one in "${systems[@]}"; do
    reach "$one"
    mkdir -p "$work/$one"
    for n in 1 2 3; do
        tls=()
        [ "$one" = plain ] || tls=(--peer-cert "$certs/node-$n.crt" --peer-key "$certs/node-$n.key" --peer-ca "$certs/ca.crt"
            --client-cert "$certs/node-$n.crt" --client-key "$certs/node-$n.key" --client-ca "$certs/ca.crt")
        # shellcheck disable=SC2086  # the options are words
        launch "$n" ${tls[@]+"${tls[@]}"} $server
    done
    until_served "$endpoints" ${secrets[@]+"${secrets[@]}"}
    all_run
    ask user add root --new-password secret
    ask user grant root root
done

# lines KIND OPTIONS...: puts and gets, and their latencies.
lines() {
    local kind=$1 what
    shift
    for what in put get; do
        bench "$what" --clients "$clients" --duration "$seconds" --warmup 1 --endpoints "$endpoints" ${secrets[@]+"${secrets[@]}"} "$@"
        echo "$what $kind $(field throughput) $(field p50) $(field p99)" >>"$work/results"
        echo "round $round: $(tail -n 1 "$work/results")" >&2
    done
}
for round in $(seq "$rounds"); do
    for one in "${systems[@]}"; do
        reach "$one"
        lines "$one"
        ask auth enable
        lines "$one+users" --user root:secret
        ask auth disable --user root:secret
    done
done

echo
echo "$clients clients, values of 256 bytes; medians of $rounds rounds of $seconds s"
echo "| | TLS | users | per second | ratio | p50, ms | p99, ms |"
echo "|---|---|---|--:|--:|--:|--:|"
for what in put get; do
    for kind in plain plain+users tls tls+users; do
        printf '| %s | %s | %s | %.0f | %s | %s | %s |\n' "$what" "$([[ $kind = tls* ]] && echo yes || echo no)" \
            "$([[ $kind = *+users ]] && echo yes || echo no)" "$(middle "$what $kind" 1)" "$(ratio "$(middle "$what $kind" 1)" "$(middle "$what plain" 1)")" \
            "$(middle "$what $kind" 2)" "$(middle "$what $kind" 3)"
    done
done
