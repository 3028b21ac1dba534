#!/bin/bash
# Transfer learning beside training from scratch: a network trained on classes 0 to 4 of Fashion-MNIST
# learns classes 5 to 9 from few images of each. One command, a table, minutes on two cores:
#   cluster/experiments/transfer.sh [-n "10 30 100"] [-s SEEDS] [-t STEPS] [-d DATA] [-o DIR]
# -n: images per class. -s: seeds, which draw images, order and start (default 3). -t: steps of every
# run, of 32 images (default 300). -d: folder with Fashion-MNIST's IDX files. -o: where the runs and
# table.md are kept (default runs/transfer); what is done there is not done again. CONVOY names another
# program than build/release/convoy.
# Ways: `scratch` everything from random weights; `head` the classifier alone; `last stage` layer3 and
# the classifier; `all` everything, all but the classifier at a tenth of the learning rate; `gradual`
# the classifier alone at first, layer3 from a quarter, everything from a half of the epochs on.
# All have the same steps, batches, schedule and peak learning rate, but scratch, which has the source
# network's: 0.1.
set -euo pipefail
export LC_ALL=C  # numbers with a point
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
convoy=${CONVOY:-$root/build/release/convoy}

usage() {
  printf 'transfer.sh: %s (transfer.sh -h shows all options)\n' "$*" >&2
  exit 64
}

counts="10 30 100" seeds=3 steps=300 data=/usr/share/datasets/fashion-mnist out=$root/runs/transfer
while getopts hn:s:t:d:o: option; do
  case $option in
    h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    n) counts=$OPTARG ;;
    s) seeds=$OPTARG ;;
    t) steps=$OPTARG ;;
    d) data=$OPTARG ;;
    o) out=$OPTARG ;;
    *) usage "unknown option" ;;
  esac
done
for number in $counts "$seeds" "$steps"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || usage "\"$number\" is not a number"
done
[[ -x $convoy ]] ||
  usage "$convoy: no such program; build it: cmake --preset release && cmake --build --preset release"
mkdir -p "$out"

# train NAME JOB OPTIONS...: the run $out/NAME, unless it is done; its log beside it.
train() {
  local name=$1 job=$2 code=0
  shift 2
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
  sed -n 's/^top-1 \([0-9.]*\) %.*/\1/p' "$out/$1.txt" | head -n 1
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
train source "$root/trainer/recipes/fashion_mnist_transfer_source.txtpb"
ways=(scratch head last_stage all gradual)
for count in $counts; do
  epochs=$(epochs_of "$count")
  for way in "${ways[@]}"; do
    job=$(job_of "$way" "$epochs")
    rate=0.02
    if [[ $way == scratch ]]; then rate=0.1; fi
    for ((seed = 1; seed <= seeds; ++seed)); do
      name=$way-$count-seed$seed
      train "$name" "$job" --set "seed=$seed" --set "epochs=$epochs" \
        --set "data.images_per_class=$count" --set "schedule.warmup_epochs=$((epochs / 10))" \
        --set "optimizer.learning_rate=$rate"
      echo "$way, $count images per class, seed $seed: $(top1_of "$name") %" >&2
    done
  done
done

{
  printf 'Top-1 on the 5,000 test images of classes 5 to 9, percent: mean of %d seeds (least to most); ' "$seeds"
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
      for ((seed = 1; seed <= seeds; ++seed)); do top1_of "$way-$count-seed$seed"; done |
        awk '{ sum += $1; if (NR == 1 || $1 < low) low = $1; if (NR == 1 || $1 > high) high = $1 }
             END { printf " %.1f (%.1f to %.1f) |", sum / NR, low, high }'
    done
    printf '\n'
  done
} | tee "$out/table.md"
echo "$((SECONDS - start)) s" >&2
