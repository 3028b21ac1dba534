#!/bin/bash
# The degradation experiment (He et al. 2015, arXiv:1512.03385, figures 1, 6 and 7): does a deeper plain
# net end worse than a shallower one, and a deeper residual net better? Trains four nets on the same
# data and draws the figures:
#   cluster/experiments/degradation.sh [-o DIR] [-g] [-d DATA] [-s SHALLOW] [-l DEEP] [-n RANKS]
#                                      [-- OPTIONS OF convoy train]
# -o  the folder of the four runs, summary.md and the figures (default: runs/degradation)
# -g  on a GPU: CIFAR-10 with the paper's schedule, 64,000 steps of each net; needs -d. Without it:
#     Fashion-MNIST, 5 epochs of each net: about half an hour on two cores
# -d  the dataset: CIFAR's binary files, or a folder of images (train/CLASS/*, val/CLASS/*)
# -s, -l  layers of the two nets: 20, 32, 44, 56 or 110 (default: 20 and 56)
# -n  ranks, started by cluster/mpirun.sh (default: one process)
# Interrupted (Ctrl-C stops at the end of a step, saved), the same command goes on where it was. The exit
# code is convoy's. CONVOY names another program than build/release/convoy.
set -euo pipefail
export LC_ALL=C  # numbers with a point
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
convoy=${CONVOY:-$root/build/release/convoy}

usage() {
  printf 'degradation.sh: %s (degradation.sh -h shows all options)\n' "$*" >&2
  exit 64
}

out=runs/degradation job=cpu device=cpu data=() shallow=20 deep=56 ranks=0
while getopts ho:gd:s:l:n: option; do
  case $option in
    h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    o) out=$OPTARG ;;
    g) job=gpu device=cuda ;;
    d) data=(--data "$OPTARG") ;;
    s) shallow=$OPTARG ;;
    l) deep=$OPTARG ;;
    n) ranks=$OPTARG ;;
    *) usage "unknown option" ;;
  esac
done
shift $((OPTIND - 1))
for number in "$shallow" "$deep" "$ranks"; do
  [[ $number =~ ^[0-9]+$ ]] || usage "\"$number\" is not a number"
done
shallow=$((10#$shallow)) deep=$((10#$deep)) ranks=$((10#$ranks))
if ((shallow >= deep)); then usage "-s $shallow must be less than -l $deep"; fi
if [[ $job == gpu && ${#data[@]} == 0 ]]; then usage "-g needs -d, the folder of CIFAR-10"; fi
[[ -x $convoy ]] ||
  usage "$convoy: no such program; build it: cmake --preset release && cmake --build --preset release"
mkdir -p "$out"

nets=("plain$shallow" "plain$deep" "resnet$shallow" "resnet$deep")
start=("$convoy")
if ((ranks > 0)); then start=(env CONVOY="$convoy" "$root/cluster/mpirun.sh" -n "$ranks" --); fi

# In the background, because a shell that waits for a command in the foreground hears no signals; with
# TERM, because bash starts background commands deaf to INT.
trainer=
trap '[[ -z $trainer ]] || kill -TERM "$trainer" 2>/dev/null || true' INT TERM HUP
for net in "${nets[@]}"; do
  echo "== $net"
  "${start[@]}" train --job "$here/degradation_$job.txtpb" --out "$out/$net" --device "$device" \
    "${data[@]}" --set "model.name=cifar_$net" "$@" &
  trainer=$!
  code=0
  wait $trainer || code=$?
  while kill -0 $trainer 2>/dev/null; do
    code=0
    wait $trainer || code=$?
  done
  trainer=
  if ((code != 0)); then
    if ((code == 75)); then echo "degradation.sh: run the same command again to go on" >&2; fi
    exit "$code"
  fi
done

# last NET FIELD COUNT: the mean of the field's last COUNT values, as an error in percent.
last() {
  sed -n "s/.*\"$2\":\([0-9.e+-]*\)[,}].*/\1/p" "$out/$1/metrics.jsonl" | tail -n "$3" |
    awk '{ sum += 100 * (1 - $1) } END { if (NR) printf "%.2f", sum / NR }'
}
declare -A test_error train_error
for net in "${nets[@]}"; do
  test_error[$net]=$(last "$net" top1 1)
  train_error[$net]=$(last "$net" train_top1 5)
  [[ -n ${test_error[$net]} && -n ${train_error[$net]} ]] ||
    { echo "degradation.sh: $out/$net/metrics.jsonl has no evaluation" >&2; exit 70; }
done

# verdict QUESTION SHALLOW DEEP: yes where the deeper one's error is higher ("worse") or lower ("better").
verdict() {
  awk -v word="$1" -v a="$2" -v b="$3" 'BEGIN {
    yes = word == "worse" ? b > a : b < a
    printf "%s (%.2f %% against %.2f %%)", yes ? "yes" : "no", b, a }'
}
{
  echo "# Plain against residual, $shallow and $deep layers"
  echo
  echo "| network | training error, % | test error, % |"
  echo "|---|---|---|"
  for net in "${nets[@]}"; do
    echo "| $net | ${train_error[$net]} | ${test_error[$net]} |"
  done
  echo
  echo "Training error: mean of the last five lines of metrics.jsonl, on augmented images."
  echo
  for kind in train test; do
    declare -n error=${kind}_error
    echo "- Does the deeper plain net end worse in ${kind/train/training} error?" \
      "$(verdict worse "${error[plain$shallow]}" "${error[plain$deep]}")"
    echo "- Does the deeper residual net end better in ${kind/train/training} error?" \
      "$(verdict better "${error[resnet$shallow]}" "${error[resnet$deep]}")"
  done
} >"$out/summary.md"

labels=()
for net in "${nets[@]}"; do labels+=(--label "${net/resnet/ResNet-}"); done
labels=("${labels[@]/#plain/plain-}")
folders=("${nets[@]/#/$out/}")
"$convoy" report "${folders[@]}" --plot errors "${labels[@]}" --panel "plain networks" \
  --panel "residual networks" --title "Plain and residual networks" --out "$out/errors.svg"
"$convoy" report "${folders[@]}" --plot gradients "${labels[@]}" --out "$out/gradients.svg"
"$convoy" report "${folders[@]}" --plot responses "${labels[@]}" --out "$out/responses.svg"
cat "$out/summary.md"
echo "figures: $out/errors.svg, gradients.svg, responses.svg"
