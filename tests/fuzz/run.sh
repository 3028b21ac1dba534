#!/bin/bash
# Builds the preset `fuzz` and runs the fuzzers, two at a time, from the committed corpus:
#   tests/fuzz/run.sh [SECONDS [NAME...]]        10 seconds each; all of them
#   tests/fuzz/run.sh --merge [NAME...]          into the corpus what was found, and no more than that
# Prints a table; inputs that crash, hang or take too much memory stay in build/fuzz/crashes/. Exit code
# 1 where there is one. What is found is kept in build/fuzz/found/ and taken up by the next run.
#
# Limits: 64 MiB for one allocation, 1 GiB in all (the sanitizer's share included), 10 s for an input.
# The promise is 1 s in a release build; the sanitizers slow parsers down about ten times, so
# fuzz_corpus_test times what was slow here again (CONVOY_FUZZ_CORPUS=build/fuzz/slow).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
build=build/fuzz
corpus=tests/fuzz/corpus
fuzzer=$build/tests/fuzz/convoy_fuzz

merge=false seconds=10
if [[ ${1:-} == --merge ]]; then
  merge=true
  shift
elif (($# > 0)); then
  seconds=$1
  shift
fi
[[ $seconds =~ ^[0-9]+$ ]] || { echo "run.sh: SECONDS must be a number, not $seconds" >&2; exit 64; }

# A row of tests/fuzz/parsers.cpp: its name and the greatest input that is made up.
rows() { sed -n 's/^    {"\([a-z_]*\)", &feed_[a-z_]*, \([0-9]*\)},$/\1 \2/p' tests/fuzz/parsers.cpp; }
max_bytes() { rows | sed -n "s/^$1 //p"; }
names=("$@")
if ((${#names[@]} == 0)); then mapfile -t names < <(rows | cut -d ' ' -f 1); fi
for name in "${names[@]}"; do
  [[ -n $(max_bytes "$name") ]] || { echo "run.sh: no parser \"$name\"" >&2; exit 64; }
done

cmake --preset fuzz >&2 || exit 1
cmake --build --preset fuzz --target convoy_fuzz convoy_fuzz_seeds >&2 || exit 1
$build/tests/fuzz/convoy_fuzz_seeds $build/seeds || exit 1

# Temporary files in memory, where there is such a folder; all of them go when this ends.
scratch=$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo /tmp)/convoy-fuzz-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir -p $build/crashes $build/slow $build/logs

run_one() {
  local name=$1 found=$build/found/$1 log=$build/logs/$1 options
  mkdir -p "$found" $corpus/"$name" $build/seeds/"$name"
  options=(-max_len="$(max_bytes "$name")" -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10)
  [[ -f tests/fuzz/$name.dict ]] && options+=(-dict=tests/fuzz/"$name".dict)
  if $merge; then
    mkdir "$scratch/$name"
    # By edges alone, not by how often they are taken: a tenth of the files.
    options+=(-use_counters=0)
    CONVOY_FUZZ=$name TMPDIR=$scratch $fuzzer "${options[@]}" -merge=1 "$scratch/$name" \
      $corpus/"$name" $build/seeds/"$name" "$found" >"$log" 2>&1 || return 1
    # What a regression needed stays, whatever the merge thinks of it, and so do the seeds: the paths
    # inside libjpeg and libpng are not seen.
    find $corpus/"$name" -type f ! -name 'regression-*' -delete
    cp "$scratch/$name"/* $corpus/"$name"/
    for seed in "$build/seeds/$name"/*; do cp "$seed" "$corpus/$name/seed-${seed##*/}"; done
    return
  fi
  CONVOY_FUZZ=$name TMPDIR=$scratch $fuzzer "${options[@]}" -max_total_time="$seconds" \
    -report_slow_units=1 -artifact_prefix=$build/crashes/"$name"- -print_final_stats=1 \
    "$found" $corpus/"$name" $build/seeds/"$name" >"$log" 2>&1
  echo $? >"$log.rc"
}

for name in "${names[@]}"; do
  while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
  run_one "$name" &
done
wait
find $build/crashes -name '*-slow-unit-*' -exec mv -t $build/slow {} +
if $merge; then
  du -sh --apparent-size $corpus/*
  exit
fi

stat_of() { sed -n "s/^stat::$2: *//p" $build/logs/"$1"; }
status=0
printf '%-12s %12s %8s %9s %10s %9s  %s\n' parser executions seconds exec/s "new units" "peak MiB" result
for name in "${names[@]}"; do
  log=$build/logs/$name
  result="well"
  if [[ $(cat "$log.rc") != 0 ]]; then
    result="FAILED: $(grep -m 1 -E 'ERROR:|SUMMARY:|runtime error|what\(\)' "$log"); $(grep -m 1 -o \
      'Test unit written to .*' "$log")"
    status=1
  fi
  took=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")
  printf '%-12s %12s %8s %9s %10s %9s  %s\n' "$name" "$(stat_of "$name" number_of_executed_units)" \
    "${took:--}" "$(stat_of "$name" average_exec_per_sec)" "$(stat_of "$name" new_units_added)" \
    "$(stat_of "$name" peak_rss_mb)" "$result"
done
exit $status
