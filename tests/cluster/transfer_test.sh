#!/bin/bash
# cluster/experiments/transfer.sh on noise in place of Fashion-MNIST: every way runs, a table comes, and
# what is done is not done again.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
transfer_sh=$repository/cluster/experiments/transfer.sh
cd "$work" || exit 1

# idx NAME COUNT: grey images of 28 x 28 of ten classes in turn.
idx() {
  local hex i
  printf -v hex '\\x%02x\\x%02x' $(($2 / 256)) $(($2 % 256))
  {
    printf '\x00\x00\x08\x03\x00\x00%b\x00\x00\x00\x1c\x00\x00\x00\x1c' "$hex"
    head -c $((28 * 28 * $2)) /dev/urandom
  } >"data/$1-images-idx3-ubyte"
  {
    printf '\x00\x00\x08\x01\x00\x00%b' "$hex"
    for ((i = 0; i < $2; ++i)); do printf '%b' "\\x0$((i % 10))"; done
  } >"data/$1-labels-idx1-ubyte"
}
mkdir data
idx train 200
idx t10k 100

"$transfer_sh" -n 8 -s 2 -t 12 -r "0.1 0.02" -d data -o runs >table 2>errors
expect "exit code" $? 0
cat table errors
expect "rows" "$(grep -cE '^\| 8 \|( [0-9.]+ \([0-9.]+ to [0-9.]+\), 0.(1|02) \|){5}$' table)" 1
expect "the table is kept" "$(cat runs/table.md)" "$(cat table)"
check "the source's accuracy is there" matches table 'source network has [0-9.]+ % on'
expect "runs" "$(find runs -name '*-seed*.txt' | wc -l)" 10
for way in scratch head last_stage all gradual; do
  for rate in 0.1 0.02; do
    expect "validation images of $way at $rate" \
      "$(grep -o 'of 100 images' "runs/$way-8-rate$rate.txt")" "of 100 images"
  done
  for rate in 0.1 0.02; do
    echo "$(sed -n 's/^top-1 \([0-9.]*\) %.*/\1/p' "runs/$way-8-rate$rate.txt") $rate"
  done | sort -s -k 1,1nr | sed -n '1s/.* //p' >best
  check "$way takes its best rate" \
    matches errors "^$way, 8 images per class, seed 1, rate $(cat best):"
done
check "the head starts anew" matches runs/head-8-seed1-rate*.log 'start_anew: fc.weight, fc.bias start anew'
check "the classifier alone is trained" \
  matches runs/head-8-seed1-rate*.log '325 of 269109 parameters are trained'
check "all of it at the end" matches runs/gradual-8-seed1-rate*.log 'from step .* on 269109 parameters'
touch before
"$transfer_sh" -n 8 -s 2 -t 12 -r "0.1 0.02" -d data -o runs >again 2>/dev/null
expect "exit code of a second time" $? 0
expect "the same table" "$(cat again)" "$(cat table)"
expect "runs that were done again" "$(find runs -name '*.txt' -newer before | wc -l)" 0
rm runs/all-8-seed*.txt
"$transfer_sh" -n 8 -s 2 -t 12 -r "0.1 0.02" -d data -o runs >again 2>/dev/null
expect "the same table of runs that had ended before their accuracy was kept" "$(cat again)" "$(cat table)"

"$transfer_sh" -n ten -d data -o other >out 2>&1
expect "exit code of a number that is none" $? 64
"$transfer_sh" -n 8 -s 2 -t 13 -d data -o runs >out 2>&1
expect "exit code where runs of other steps are" $? 64
check "it says which" contains out 'has runs of 12 steps, not of 13'
"$transfer_sh" -r much -d data -o other >out 2>&1
expect "exit code of a rate that is none" $? 64
"$transfer_sh" -n 100 -t 3 -d data -o other >out 2>&1
expect "exit code of too few steps" $? 64

finish
