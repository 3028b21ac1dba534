#!/bin/bash
# Transfer learning beside training from scratch: a network trained on classes 0 to 4 of Fashion-MNIST
# learns classes 5 to 9 from few images of each. One command, a table, half an hour on two cores:
#   cluster/experiments/transfer.sh [-n "10 30 100"] [-s SEEDS] [-t STEPS] [-r "RATES"] [-d DATA] [-o DIR]
# -n: images per class. -s: seeds, which draw images, order and start (default 3). -t: steps of every
# run, of 32 images (default 300). -r: peak learning rates (default "0.02 0.05 0.1 0.2 0.5 1"), of which
# every way gets its best for every number of images. -d: folder with Fashion-MNIST's IDX files. -o:
# where the runs and table.md are kept (default runs/transfer); what is done there is not done again.
# CONVOY names another program than build/release/convoy.
# Ways: `scratch` everything from random weights; `head` the classifier alone; `last stage` layer3 and
# the classifier; `all` everything, all but the classifier at a tenth of the learning rate; `gradual`
# the classifier alone at first, layer3 from a quarter, everything from a half of the epochs on.
# All have the same steps, batches and schedule. Rates are compared with seed 0, which is not in the
# table, on the 30,000 training images of the new classes, of which such a run learns from 2 % (at 100
# images per class); the table's test images choose nothing.
set -euo pipefail
export LC_ALL=C  # numbers with a point
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
convoy=${CONVOY:-$root/build/release/convoy}

usage() {
  printf 'transfer.sh: %s (transfer.sh -h shows all options)\n' "$*" >&2
  exit 64
}

counts="10 30 100" seeds=3 steps=300 rates="0.02 0.05 0.1 0.2 0.5 1"
data=/usr/share/datasets/fashion-mnist out=$root/runs/transfer
while getopts hn:s:t:r:d:o: option; do
  case $option in
    h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    n) counts=$OPTARG ;;
    s) seeds=$OPTARG ;;
    t) steps=$OPTARG ;;
    r) rates=$OPTARG ;;
    d) data=$OPTARG ;;
    o) out=$OPTARG ;;
    *) usage "unknown option" ;;
  esac
done
shift $((OPTIND - 1))
(($# == 0)) || usage "$1: no arguments but options are taken"
[[ -d $data ]] || usage "$data: no such folder; -d names that of Fashion-MNIST's IDX files"
for number in $counts "$seeds" "$steps"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || usage "\"$number\" is not a number"
done
for rate in $rates; do
  [[ $rate =~ ^[0-9]*\.?[0-9]+$ ]] || usage "\"$rate\" is not a learning rate"
done
[[ -x $convoy ]] ||
  usage "$convoy: no such program; build it: cmake --preset release && cmake --build --preset release"
mkdir -p "$out"

if [[ -s $out/steps && $(<"$out/steps") != "$steps" ]]; then
  usage "$out has runs of $(<"$out/steps") steps, not of $steps; name another folder with -o"
fi
printf '%s\n' "$steps" >"$out/steps"

# The training images once more as those that a run is measured on.
validation=$out/validation
mkdir -p "$validation"
for file in "$data"/train-*; do
  name=${file##*/}
  ln -sf "$(realpath "$file")" "$validation/$name"
  ln -sf "$(realpath "$file")" "$validation/t10k-${name#train-}"
done

# train DATA NAME JOB OPTIONS...: the run $out/NAME, unless it is done; its log beside it.
train() {
  local data=$1 name=$2 job=$3 code=0
  shift 3
  if [[ -s $out/$name.txt ]]; then return; fi
  "$convoy" train --job "$job" --data "$data" --out "$out/$name" "$@" \
    >"$out/$name.part" 2>>"$out/$name.log" || code=$?
  # A run that was complete says so without its accuracy.
  if ((code == 0)) && ! grep -q '^top-1' "$out/$name.part"; then
    "$convoy" eval --checkpoint "$out/$name" --data "$data" \
      >"$out/$name.part" 2>>"$out/$name.log" || code=$?
  fi
  if ((code != 0)); then
    tail -n 3 "$out/$name.log" >&2
    exit "$code"
  fi
  mv "$out/$name.part" "$out/$name.txt"
}

top1_of() {
  sed -n 's/^\(step [0-9]*: \)\{0,1\}top-1 \([0-9.]*\) %.*/\2/p' "$out/$1.txt" | head -n 1
}

# job_of WAY EPOCHS: the recipe with what WAY changes, in $out/WAY-EPOCHS.txtpb.
job_of() {
  local way=$1 epochs=$2 job=$out/jobs/$1-$2.txtpb
  local from='init_from: "'$out'/source" start_anew: "fc"' transfer='' groups=''
  case $way in
    scratch) ;;
    head) transfer="transfer { $from train_last_blocks: 1 }" ;;
    last_stage) transfer="transfer { $from train_last_blocks: 4 }" ;;
    all)
      transfer="transfer { $from }"
      groups='group { pattern: "fc" } group { pattern: "*" learning_rate_factor: 0.1 }'
      ;;
    gradual)
      transfer="transfer { $from train_last_blocks: 1
        unfreeze { epoch: $((epochs / 4)) pattern: \"layer3\" }
        unfreeze { epoch: $((epochs / 2)) pattern: \"*\" } }"
      ;;
  esac
  mkdir -p "$out/jobs"
  # The recipe's own transfer group goes, and the optimizer gets the groups.
  sed -e '/^transfer {/,/^}/d' -e "s/^optimizer {/optimizer { $groups/" \
    "$root/trainer/recipes/fashion_mnist_transfer.txtpb" >"$job"
  printf '%s\n' "$transfer" >>"$job"
  printf '%s' "$job"
}

epochs_of() { echo $((steps * 32 / (5 * $1))); }
for count in $counts; do
  (($(epochs_of "$count") >= 4)) || usage "-t $steps are fewer than 4 epochs of 5 x $count images"
done

start=$SECONDS
echo "source: classes 0 to 4, all images" >&2
train "$data" source "$root/trainer/recipes/fashion_mnist_transfer_source.txtpb"
ways=(scratch head last_stage all gradual)

# few DATA NAME WAY COUNT SEED RATE: a run from few images.
few() {
  local way=$3 count=$4 epochs
  epochs=$(epochs_of "$count")
  train "$1" "$2" "$(job_of "$way" "$epochs")" --set "seed=$5" --set "epochs=$epochs" \
    --set "data.images_per_class=$count" --set "schedule.warmup_epochs=$((epochs / 10))" \
    --set "optimizer.learning_rate=$6"
  echo "$way, $count images per class, seed $5, rate $6: $(top1_of "$2") %" >&2
}

declare -A best  # rate, by way and count
name_of() { echo "$1-$2-seed$3-rate${best[$1-$2]}"; }
for count in $counts; do
  for way in "${ways[@]}"; do
    for rate in $rates; do few "$validation" "$way-$count-rate$rate" "$way" "$count" 0 "$rate"; done
    best[$way-$count]=$(for rate in $rates; do echo "$(top1_of "$way-$count-rate$rate") $rate"; done |
      sort -k 1,1nr -s | awk 'NR == 1 { print $2 }')
    for ((seed = 1; seed <= seeds; ++seed)); do
      few "$data" "$(name_of "$way" "$count" "$seed")" "$way" "$count" "$seed" "${best[$way-$count]}"
    done
  done
done

{
  printf 'Top-1 on the 5,000 test images of classes 5 to 9, percent: mean of %d seeds (least to most), at rate; ' "$seeds"
  printf '%d steps of 32 images.\nThe source network has %s %% on its own five classes.\n\n' \
    "$steps" "$(top1_of source)"
  printf '| images per class |'
  printf ' %s |' "${ways[@]/_/ }"
  printf '\n|---|'
  for way in "${ways[@]}"; do printf -- '---|'; done
  printf '\n'
  for count in $counts; do
    printf '| %s |' "$count"
    for way in "${ways[@]}"; do
      for ((seed = 1; seed <= seeds; ++seed)); do top1_of "$(name_of "$way" "$count" "$seed")"; done |
        awk -v rate="${best[$way-$count]}" '
          { sum += $1; if (NR == 1 || $1 < low) low = $1; if (NR == 1 || $1 > high) high = $1 }
          END { printf " %.1f (%.1f to %.1f), %s |", sum / NR, low, high, rate }'
    done
    printf '\n'
  done
} | tee "$out/table.md"
echo "$((SECONDS - start)) s" >&2
