#!/usr/bin/env bash
# Instructions and allocations of the consensus core for each thing it is asked (core.rs), beside those in instructions.txt.
# --check fails when one has grown by more than 3 percent; --write writes the new ones down. Takes valgrind.
# Numbers that were counted with another compiler, C library or kind of processor are shown, and nothing fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode="${1:-}"
known=raft/benches/instructions.txt
command -v valgrind >/dev/null || { echo "valgrind is not installed: instructions can't be counted"; [ "$mode" != --check ]; exit; }

# One code-generation unit, and no optimization across crates, so that the same source gives the same program.
export CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=1 CARGO_PROFILE_BENCH_DEBUG=0
program="$(cargo bench --locked -p raftkv --bench core --features testing --no-run --message-format json 2>/dev/null |
  sed -n 's/.*"name":"core".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)"
[ -x "$program" ] || { echo "the benchmark was not built: cargo bench -p raftkv --bench core tells why"; exit 1; }

compiler="$(rustc --version | cut -d ' ' -f 1,2) for $(rustc -vV | sed -n 's/host: //p'), $(getconf GNU_LIBC_VERSION)"
compiler+=", $(valgrind --version)$(grep -qw avx2 /proc/cpuinfo && echo ", avx2")"
out="$(mktemp)"; trap 'rm -f "$out" "$out".*' EXIT
echo "# $compiler; instructions and allocations for each" >"$out"
while read -r name times; do
  # What one of them allocates is printed, what callgrind collected is in its own output.
  allocations="$(valgrind --tool=callgrind --toggle-collect='*core*measured*' --callgrind-out-file="$out.callgrind" \
    "$program" --only "$name" 2>"$out.log" | cut -d ' ' -f 2)"
  instructions="$(sed -n 's/^summary: \([0-9]*\).*/\1/p;s/^totals: \([0-9]*\).*/\1/p' "$out.callgrind" | head -n 1)"
  [ "${instructions:-0}" -gt 0 ] || { cat "$out.log"; echo "nothing was collected for $name"; exit 1; }
  echo "$name $((instructions / times)) $allocations" >>"$out"
done < <("$program" --list)

if [ "$mode" = --write ]; then cp "$out" "$known"; cat "$known"; exit; fi
same=1; [ "$(head -n 1 "$known" 2>/dev/null)" = "$(head -n 1 "$out")" ] || same=0
awk -v check="$mode" -v same="$same" '
  FNR == NR { if ($1 != "#") { was[$1] = $2; did[$1] = $3 } next }
  $1 == "#" { next }
  {
    printf "%-20s %9d instructions (%+.1f %%), %7.2f allocations (%+.2f)\n", $1, $2, was[$1] ? 100 * ($2 / was[$1] - 1) : 0, $3, $3 - did[$1]
    if (!($1 in was)) { print "  is not in the list: write it down with --write"; bad = 1; next }
    if ($2 > was[$1] * 1.03 || $3 > did[$1] * 1.03 + 0.01) { print "  has become dearer"; bad = 1 }
    if ($2 < was[$1] * 0.97 || $3 < did[$1] * 0.97 - 0.01) { print "  has become cheaper: write it down with --write, so that it stays so" }
  }
  END {
    if (!same) { print "counted with other tools than the numbers in the list, so nothing follows from this"; bad = 0 }
    exit check == "--check" && bad
  }' "$known" "$out"
