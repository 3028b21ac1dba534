#!/bin/bash
# Measures how `convoy bench step` scales from 1 to N ranks:
#   cluster/scaling.sh [-n RANKS] [-b BATCH] [-t THREADS] [-m MODEL] [-p fp32|bf16] [-s SECONDS]
#                      [-o FILE.json] [-- OPTIONS OF mpirun]
# Ranks: 1, 2, 4, ... up to RANKS (default: the CPUs here), each computing with THREADS threads
# (default: CPUs / RANKS) whatever their number, so that a rank is always the same amount of machine.
# weak:   BATCH images per rank (default 32): the step grows with the ranks.
# strong: BATCH images per step: the ranks share it.
# Efficiency = images/s / (ranks x images/s of one rank): 100 % means that the ranks do not hinder
# each other. The table goes to standard output, the same numbers to FILE.json.
set -euo pipefail
export LC_ALL=C  # numbers with a point
cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  printf 'scaling.sh: %s (scaling.sh -h shows all options)\n' "$*" >&2
  exit 64
}

max_ranks=$(nproc) batch=32 threads=0 model=resnet50 precision=fp32 seconds=5 output=
while getopts hn:b:t:m:p:s:o: option; do
  case $option in
    h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    n) max_ranks=$OPTARG ;;
    b) batch=$OPTARG ;;
    t) threads=$OPTARG ;;
    m) model=$OPTARG ;;
    p) precision=$OPTARG ;;
    s) seconds=$OPTARG ;;
    o) output=$OPTARG ;;
    *) usage "unknown option" ;;
  esac
done
shift $((OPTIND - 1))
for number in "$max_ranks" "$batch" "$threads"; do
  [[ $number =~ ^[0-9]+$ ]] || usage "\"$number\" is not a number"
done
if ((max_ranks < 1 || batch < 1)); then usage "-n and -b must be at least 1"; fi
if ((threads == 0)); then threads=$(($(nproc) / max_ranks > 0 ? $(nproc) / max_ranks : 1)); fi

counts=()
for ((ranks = 1; ranks < max_ranks; ranks *= 2)); do counts+=("$ranks"); done
counts+=("$max_ranks")
for ranks in "${counts[@]}"; do
  if ((batch % ranks != 0)); then
    usage "-b $batch does not divide by $ranks ranks; take a multiple of it"
  fi
done

# images_per_second RANKS BATCH_PER_RANK MPIRUN_OPTIONS...
images_per_second() {
  local ranks=$1 batch_per_rank=$2
  shift 2
  "$cluster/mpirun.sh" -n "$ranks" "$@" -- bench step --model "$model" --precision "$precision" \
    --batch "$batch_per_rank" --threads "$threads" --seconds "$seconds" --no-peak --json |
    sed -n 's/^ *"images_per_second": \([0-9.e+-]*\),*$/\1/p'
}

rows=()
printf '%s %s on %s, %d thread(s) per rank\n' "$model" "$precision" "$HOSTNAME" "$threads"
printf '%-7s %5s %14s %12s %11s\n' scaling ranks images/step images/s efficiency
one_rank=
for scaling in weak strong; do
  for ranks in "${counts[@]}"; do
    per_rank=$batch
    if [[ $scaling == strong ]]; then per_rank=$((batch / ranks)); fi
    if ((ranks == 1)) && [[ -n $one_rank ]]; then
      rate=$one_rank  # strong scaling starts from the same measurement
    else
      rate=$(images_per_second "$ranks" "$per_rank" "$@")
      [[ -n $rate ]] || { echo "scaling.sh: no images/s from $ranks rank(s)" >&2; exit 70; }
    fi
    one_rank=${one_rank:-$rate}
    efficiency=$(awk -v rate="$rate" -v one="$one_rank" -v ranks="$ranks" \
      'BEGIN { printf "%.4f", rate / (ranks * one) }')
    awk -v scaling="$scaling" -v ranks="$ranks" -v images=$((per_rank * ranks)) -v rate="$rate" \
      -v efficiency="$efficiency" \
      'BEGIN { printf "%-7s %5d %14d %12.1f %9.1f %%\n", scaling, ranks, images, rate, 100 * efficiency }'
    rows+=("$(printf '{"scaling": "%s", "ranks": %d, "images_per_step": %d, "images_per_second": %s, "efficiency": %s}' \
      "$scaling" "$ranks" $((per_rank * ranks)) "$rate" "$efficiency")")
  done
done

if [[ -n $output ]]; then
  {
    printf '{"model": "%s", "precision": "%s", "host": "%s", "threads_per_rank": %d, "rows": [\n  ' \
      "$model" "$precision" "$HOSTNAME" "$threads"
    for ((i = 0; i < ${#rows[@]}; ++i)); do
      if ((i > 0)); then printf ',\n  '; fi
      printf '%s' "${rows[i]}"
    done
    printf '\n]}\n'
  } >"$output"
fi
