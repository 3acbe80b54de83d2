#!/usr/bin/env bash
# Run every harness of a fuzz program for its part of TIME seconds, as many at once as there are cores. Corpora stay in
# OUT/corpus and are used again; inputs that show a fault are left in OUT, and the script fails.
# SEED (1) begins another walk; with RUNS=N each harness runs so many inputs instead, the same everywhere.
#   tests/fuzz/run.sh build/asan-clang++-14/bin/fuzz build/fuzz 60 [HARNESS...]
set -euo pipefail
program=$1 out=$2 time=$3
shift 3
harnesses=${*:-$("$program")}
cores=$(nproc) count=$(wc -w <<<"$harnesses")
each=$((time * cores / count))
mkdir -p "$out/corpus"
# The words that files are made of: every name in quotes in the sources that read them.
grep -ohE '"[A-Za-z0-9_.:<>/-]{2,40}"' engine/file/*.cpp models/*.cpp data/*/*.cpp quant/recipe*.cpp quant/methods.cpp eval/*.cpp |
  sort -u > "$out/words.dict"
run() {  # a harness; prints its executions
  mkdir -p "$out/corpus/$1"
  local code=0 limit="-max_total_time=$each"
  [ -z "${RUNS:-}" ] || limit="-runs=$RUNS"
  BCQ_FUZZ=$1 "$program" "$limit" -timeout=25 -seed="${SEED:-1}" -rss_limit_mb=3000 -print_final_stats=1 \
    -dict="$out/words.dict" -artifact_prefix="$out/$1-" "$out/corpus/$1" > "$out/$1.log" 2>&1 || code=$?
  echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$1.log") executions$(((code == 0)) || echo ", FAULT: see $out/$1.log")"
  return $code
}
export -f run
export program out each
printf '%s\n' $harnesses | xargs -P "$cores" -I{} bash -c 'run {}'
