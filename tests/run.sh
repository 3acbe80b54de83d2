#!/usr/bin/env bash
# tests/run.sh BIN [ARGUMENTS of doctest]: the tests in pieces, as many at a time as there are cores. Shows what fails or
# is skipped and ends, as the program does, with "N passed, N failed"; exit code 1 when a test failed, a piece did not
# end, or there is no test.
set -uo pipefail
program=$1
shift
pieces=48
count=$("$program" --count "$@" | sed -n 's/.*filters: \([0-9]*\)$/\1/p')
[ "${count:-0}" -gt 0 ] || { echo "$program has no test for these arguments: $*"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
piece() {
  local log=$folder/$1 first=$((count * $1 / pieces + 1)) last=$((count * ($1 + 1) / pieces))
  [ "$first" -le "$last" ] || { echo "0 passed, 0 failed" > "$log"; return; }
  if "$program" --first="$first" --last="$last" "${@:2}" > "$log" 2>&1; then
    grep -h 'skipped: ' "$log"
  else
    cat "$log"
  fi
  return 0
}
export -f piece
export program count pieces folder
seq 0 $((pieces - 1)) | xargs -P "$(nproc)" -I{} bash -c 'piece "$@"' _ {} "$@"
ended=$(grep -chE '^[0-9]+ passed, [0-9]+ failed$' "$folder"/* | awk '{n += $1} END {print n + 0}')
[ "$ended" = "$pieces" ] || echo "a piece of the tests did not end"
cat "$folder"/* | awk -v missing=$((pieces - ended)) '/^[0-9]+ passed, [0-9]+ failed$/ {passed += $1; failed += $3}
  END {failed += missing; print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0}'
