#!/usr/bin/env bash
# tests/features.sh PROGRAM: asks a kv-example that was built with nothing but `tarpc` and `redb` for what it does not have, and whether it runs with what it has.
#
#   cargo build -p kv-example --no-default-features --features tarpc,redb --target-dir target/features
#   tests/features.sh target/features/debug/kv-example
set -euo pipefail
[ $# = 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
program=$1
data=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
  rm -rf "$data"
}
trap cleanup EXIT
fail() { echo "features: $1" >&2; exit 1; }

# refuses OPTION KIND INSTEAD: it ends at once, says what it has, and how to get the other.
refuses() {
  local status=0
  timeout 20 "$program" server --id 1 --data "$data/none" --peers 1=127.0.0.1:1 --listen-client 127.0.0.1:2 "$1" "$2" >"$data/said" 2>&1 || status=$?
  [ "$status" = 2 ] || { cat "$data/said" >&2; fail "$1 $2 ended with $status, where it should be refused with 2"; }
  local wanted
  for wanted in "$1" "built without $2, and has $3:" "cargo build --release -p kv-example --features $2,"; do
    grep -qF -- "$wanted" "$data/said" || { cat "$data/said" >&2; fail "$1 $2: it does not say \"$wanted\""; }
  done
  [ ! -e "$data/none" ] || fail "$1 $2: it made a directory"
}
refuses --transport grpc tarpc
refuses --store file redb

# starts: a node with nothing said of transport and store serves. False if somebody has one of its ports.
starts() {
  local port=$((20000 + RANDOM % 12000))
  "$program" server --id 1 --data "$data/node" --peers "1=127.0.0.1:$port" --listen-client "127.0.0.1:$((port + 1))" >"$data/log" 2>&1 &
  server=$!
  local _
  for _ in $(seq 300); do
    ! grep -q "serving clients on" "$data/log" || return 0
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  grep -q "in use" "$data/log" || { cat "$data/log" >&2; fail "a node with tarpc and redb alone does not start"; }
  return 1
}
starts || starts || starts || fail "there are no free ports"
for wanted in "log and images in redb" "over tarpc"; do
  grep -qF "$wanted" "$data/log" || { cat "$data/log" >&2; fail "a node with tarpc and redb alone does not say \"$wanted\""; }
done
kill -TERM "$server"
for _ in $(seq 200); do
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
! kill -0 "$server" 2>/dev/null || { cat "$data/log" >&2; fail "the node has not ended 20 s after SIGTERM"; }
status=0
wait "$server" || status=$?
server=
[ "$status" = 0 ] || { cat "$data/log" >&2; fail "the node ended with $status after SIGTERM"; }
echo "a program with tarpc and redb alone says what it has, and runs"
