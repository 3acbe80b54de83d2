#!/usr/bin/env bash
# Programs are killed at random moments, and starved of disk, descriptors, memory and rights; what they leave must be
# whole, and what they make in the end equal, byte for byte, to an undisturbed run.
#   tests/chaos.sh BIN KILLS [SEED]
set -uo pipefail
bin=$(realpath "$1") kills=$2
RANDOM=${3:-$$}
echo "chaos: $kills kills, seed ${3:-$$}"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
work=$(mktemp -d)
main=$BASHPID  # a child that is killed before it is another program has this trap, too
cleanup() {
  [ $BASHPID = "$main" ] || return
  umount "$work/disk" 2> /dev/null
  rm -rf "$work"
}
trap cleanup EXIT
faults=0
fault() { echo "FAULT: $*"; faults=$((faults + 1)); }

# ---- The programs, undisturbed ----------------------------------------------------------------------------------
opt="--model data/mini/opt --text data/mini/text/test.txt --calib-text data/mini/text/calib.txt"
mkdir "$work/images"
for class in data/mini/images/val/*/; do  # a few of every class
  mkdir "$work/images/$(basename "$class")"
  find "$class" -type f | sort | head -n 8 | xargs cp -t "$work/images/$(basename "$class")"
done
mkdir "$work/mini"
ln -s "$PWD/data/mini/opt" "$PWD/data/mini/text" "$work/mini"
# NAME OUT: the command that makes everything in the folder OUT, and goes on with what is there.
command_of() {
  case $1 in
    save) echo "$bin/perplexity $opt --nsamples 2 --seqlen 32 --limit 2 --method rtn --wbits 3 --bc position --save $2/model" ;;
    resume) echo "$bin/perplexity $opt --nsamples 2 --seqlen 32 --limit 2 --method gptq --wbits 3 --bc channel --resume --save $2/model --json $2/result.json" ;;
    table) echo "$bin/table language --mini $work/mini --limit 1 --seqlen 16 --nsamples 2 --out $2/cells --json $2/result.json" ;;
    imagenet) echo "$bin/imagenet --model data/mini/vit --data $work/images --cache $2/cache --json $2/result.json" ;;
    vision) echo "$bin/imagenet --model data/mini/vit --data $work/images --limit 10 --calib-data $work/images --calib-images 2 --method repq-vit --wbits 4 --abits 4 --resume --save $2/model" ;;
  esac
}
# What a run has made, without what differs from run to run.
contents() {
  (cd "$1" && find . -type f ! -path '*/.bcq-*' | sort | while read -r file; do
    echo "== $file"
    case $file in
      *.json) sed -E '/"(seconds|peak_rss_mb|passes|moments|solve|evaluation_seconds|threads|folder)":/d' "$file" ;;
      *) cat "$file" ;;
    esac
  done) | cksum
}
names="resume table imagenet save vision"
declare -A length whole
for name in $names; do
  mkdir "$work/$name"
  start=$(date +%s%N)
  $(command_of $name "$work/$name") > "$work/out" 2>&1 || { fault "$name fails undisturbed"; cat "$work/out"; exit 1; }
  length[$name]=$((($(date +%s%N) - start) / 1000000))
  whole[$name]=$(contents "$work/$name")
done

# ---- Kills --------------------------------------------------------------------------------------------------------
# A saved model is there whole or not at all.
check_model() {
  [ ! -e "$1/model" ] || [ "$(contents "$1/model")" = "$(contents "$work/${1##*/run-}/model")" ] ||
    fault "$1/model is not whole after a kill"
}
finish() {  # NAME OUT WHAT: run to the end, and compare
  $(command_of "$1" "$2") > "$work/out" 2>&1 || { fault "$1 after $3 ends with $?"; cat "$work/out"; }
  [ "$(contents "$2")" = "${whole[$1]}" ] || fault "$1 after $3 has another result"
}
for ((i = 0; i < kills; i++)); do
  name=$(cut -d' ' -f$((i % 5 + 1)) <<< "$names")
  out=$work/run-$name
  mkdir -p "$out"
  signal=$((RANDOM % 3 ? 9 : 15))
  $(command_of $name "$out") > /dev/null 2>&1 &
  pid=$!
  sleep "$(printf '0.%03d' $((RANDOM % (length[$name] < 999 ? length[$name] : 999))))"
  kill -$signal $pid 2> /dev/null
  wait $pid 2> /dev/null
  case $name in save | resume | vision) check_model "$out" ;; esac
  if ((i % 25 >= 20)); then  # now and then it may end
    finish $name "$out" "kills"
    rm -rf "$out"
  fi
done
for name in $names; do
  mkdir -p "$work/run-$name"
  finish $name "$work/run-$name" "kills"
  rm -rf "$work/run-$name"
done

# ---- Starvation -----------------------------------------------------------------------------------------------------
# NAME PREFIX CODES WHAT: the command, in a subshell after PREFIX, ends with one of CODES within five minutes; then, without
# it, the work is done.
starve() {
  local out=$work/run-$1 code
  mkdir -p "$out"
  local command
  command=$(command_of "$1" "$out")
  (eval "$2"; exec $command) > "$work/out" 2> "$work/err" &
  local pid=$!
  sleep 300 > /dev/null 2>&1 &
  local clock=$!
  wait -n $pid $clock
  code=$?
  if kill -9 $pid 2> /dev/null; then  # the clock was first
    wait $pid
    code=$?
  fi
  kill $clock 2> /dev/null
  [[ " $3 " == *" $code "* ]] || { fault "$1 with $4 ends with $code"; tail -n 3 "$work/err"; }
  [ $code = 0 ] || [ -s "$work/err" ] || fault "$1 with $4 says nothing"
  case $1 in save | resume | vision) check_model "$out" ;; esac
  finish "$1" "$out" "$4"
  rm -rf "$out"
}
starved() {  # PREFIX CODES WHAT, in turn on one program, or on all where there is time
  ((count++))
  for name in $names; do
    if ((kills >= 200)) || [ $name = "$(cut -d' ' -f$((count % 5 + 1)) <<< "$names")" ]; then
      starve $name "$@"
    fi
  done
}
count=0
for kb in 1 64 1000; do starved "trap '' XFSZ; ulimit -f $kb" "0 1 2 3" "files of at most $kb kB"; done
for files in 5 7 10; do starved "ulimit -n $files" "0 1 2 3 127" "$files descriptors"; done
for mb in 130 200 400; do starved "ulimit -v $((mb * 1024))" "0 1 3" "$mb MB of addresses"; done
for stream in "&-" " /dev/full"; do starved "exec >$stream" "1" "stdout at >$stream"; done

# A full disk, and one that cannot be written.
mkdir "$work/disk"
if mount -t tmpfs -o size=900k bcq "$work/disk" 2> /dev/null; then
  for name in $names; do
    mkdir "$work/disk/run-$name"
    head -c $(((RANDOM % 880) * 1024)) /dev/zero > "$work/disk/filler"
    $(command_of $name "$work/disk/run-$name") > /dev/null 2> "$work/err"
    code=$?
    case $code in 0 | 1 | 2) ;; *) fault "$name on a full disk ends with $code" ;; esac
    [ $code = 0 ] || grep -qE 'cannot be|No space' "$work/err" || { fault "$name on a full disk does not say so"; cat "$work/err"; }
    case $name in save | resume | vision) check_model "$work/disk/run-$name" ;; esac
    rm "$work/disk/filler"
    mount -o remount,size=90m "$work/disk"
    finish $name "$work/disk/run-$name" "a full disk"
    rm -rf "$work/disk/run-$name"
    mkdir "$work/disk/run-$name"
    mount -o remount,ro "$work/disk"
    $(command_of $name "$work/disk/run-$name") > /dev/null 2> "$work/err"
    code=$?
    case $code in 1 | 2) ;; *) fault "$name on a read-only disk ends with $code" ;; esac
    mount -o remount,rw,size=900k "$work/disk"
    rm -rf "$work/disk/run-$name"
  done
  umount "$work/disk"
else
  echo "skipped: nothing can be mounted here, so there is no full disk"
fi

# ---- Two processes on one folder ------------------------------------------------------------------------------------
for name in $names; do
  out=$work/run-$name
  mkdir -p "$out"
  pids=()
  for i in 1 2; do
    $(command_of $name "$out") > /dev/null 2> "$work/err$i" &
    pids+=($!)
  done
  done=0
  for i in 1 2; do
    wait "${pids[i - 1]}"
    code=$?
    if [ $code = 0 ]; then done=$((done + 1))
    elif [[ $name != resume && $name != vision ]] || [ $code != 2 ] || ! grep -q 'is in use by' "$work/err$i"; then
      fault "of two processes, $name ends with $code: $(cat "$work/err$i")"
    fi
  done
  [ $done -gt 0 ] || fault "of two processes, no $name was done"
  [ "$(contents "$out")" = "${whole[$name]}" ] || fault "two processes: $name has another result"
  rm -rf "$out"
done
echo "chaos: $faults faults"
[ $faults = 0 ]
