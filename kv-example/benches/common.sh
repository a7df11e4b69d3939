# What the measurements here share: options, a place to work in, servers that go when the script ends, and numbers from reports.
# A script sets the defaults of its options, and then has:
#
#   source "$(dirname "$0")/common.sh"
#   options "rounds seconds" "$@"
#
# It leaves its lines in $work/results: words that name what was measured, and then numbers, of which `middle` makes a table.
# shellcheck shell=bash

name=$(basename "$0" .sh)
kv=${kv:-target/release/kv-example} dir=${dir:-}
base_port=${base_port:?the script sets it}
# The servers, clusters and whatever else ends with the script.
pids=()

die() {
    echo "$name: $1" >&2
    exit "${2:-1}"
}

# Takes the options that the script has, by their names without dashes, and those that all have: --base-port N sets base_port to N.
# With anything else it prints the comment that the script begins with.
options() {
    local known=" $1 kv dir base-port " option
    shift
    while [ $# -gt 0 ]; do
        option=${1#--}
        if [ "$1" = "$option" ] || [[ $known != *" $option "* ]]; then
            awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
            exit 2
        fi
        [ $# -gt 1 ] || die "the last option has no value" 2
        printf -v "${option//-/_}" %s "$2"
        shift 2
    done
}

# needs PROGRAM COMMAND: ends the script where the program is not there, and says what makes it.
needs() { [ -x "$1" ] || die "no program $1; run: $2" 2; }

# A new directory, $work, which goes with the script.
begin() {
    work=$(mktemp -d "${dir:-.}/$name.XXXXXX")
    trap 'set +e; stop; rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
}

# Ends everything in pids, the hard way if it takes longer than ten seconds.
stop() {
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

# Where node N serves clients, and where it serves the other members.
client() { echo "127.0.0.1:$((base_port + 2 * $1 - 2))"; }
peer() { echo "127.0.0.1:$((base_port + 2 * $1 - 1))"; }

# start_cluster OPTIONS...: three nodes, with these options of `kv-example server`. Sets $cluster, the process whose children they are, and $endpoints.
start_cluster() {
    "$kv" cluster --data "$work/data" --base-port "$base_port" -- "$@" >"$work/cluster.log" 2>&1 &
    cluster=$!
    pids+=("$cluster")
    endpoints="$(client 1),$(client 2),$(client 3)"
    until_served "$endpoints"
    all_run
}

# Ends the script where something in pids has ended: who serves at its ports is somebody else then. One that can't have them ends at once.
all_run() {
    local pid
    sleep 0.5
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || last_words "a server did not start"
    done
}

# until_served ENDPOINTS OPTIONS...: waits until a put succeeds there, of a client with these options.
until_served() {
    local began=$SECONDS
    while [ $((SECONDS - began)) -lt 30 ]; do
        "$kv" put "$name" ready --endpoints "$@" --timeout 1 >/dev/null 2>&1 && return
        sleep 0.02
    done
    last_words "nobody serves at $1"
}

last_words() {
    tail -n 5 "$work"/*.log >&2
    die "$1; above are the servers' last words"
}

# bench OPTIONS...: runs the load generator; its report is in $work/out.json.
bench() { "$kv" bench "$@" --json >"$work/out.json" || last_words "the load generator failed"; }

# field KEY: the first number under that key in the report. What is said of all operations comes first.
field() { awk -v key="\"$1\":" '$1 == key { sub(/,$/, "", $2); print $2; exit }' "$work/out.json"; }

median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2; else print 0 }'; }

# column WORDS N [FILE]: the Nth number of all lines of the results that begin with these words.
column() { awk -v words="$1 " -v n="$2" 'index($0, words) == 1 { print $(split(words, parts, " ") + n) }' "${3:-$work/results}"; }

# middle WORDS N [FILE]: their median.
middle() { column "$@" | median; }

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }
