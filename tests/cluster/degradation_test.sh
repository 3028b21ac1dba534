#!/bin/bash
# cluster/experiments/degradation.sh on tiny made-up images: four runs, a table, three figures; it goes
# on after a stop, and what is done is not done again.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
script=$repository/cluster/experiments/degradation.sh
cd "$work" || exit 1

tiny=(--set data.format=synthetic --set data.synthetic_samples=64 --set data.classes=4
  --set data.train.size=8 --set data.train.pad=1 --set data.mean_subtraction=none --set workers=2
  --set batch_per_worker=4 --set epochs=1 --set 'schedule.milestones=0.5' --set log.every_steps=1
  --set log.gradients=2)

"$script" -o out -s 20 -l 32 -- "${tiny[@]}" --set stop_after_steps=3 >stopped 2>&1
expect "exit code of runs that were not evaluated" $? 70
check "it says so" contains stopped "out/plain20/metrics.jsonl has no evaluation"
"$script" -o out -s 20 -l 32 -- "${tiny[@]}" >log 2>errors
expect "exit code" $? 0
cat log errors
for net in plain20 plain32 resnet20 resnet32; do
  check "$net is in the table" matches out/summary.md "^\\| $net \\| [0-9.]+ \\| [0-9.]+ \\|\$"
  check "$net was trained to its end" matches "out/$net/metrics.jsonl" '"step":8,.*"event":"end"'
  check "$net logged gradients" matches "out/$net/gradients.jsonl" '"step":8,'
done
expect "questions" "$(grep -cE '^- Does .*\? (yes|no) \([0-9.]+ % against [0-9.]+ %\)$' out/summary.md)" 4
for figure in errors gradients responses; do
  check "$figure.svg is whole" matches "out/$figure.svg" '^</svg>$'
  for name in plain-20 plain-32 ResNet-20 ResNet-32; do
    check "$figure.svg names $name" contains "out/$figure.svg" ">$name<"
  done
done
steps=$(wc -l <out/plain20/gradients.jsonl)
"$script" -o out -s 20 -l 32 -- "${tiny[@]}" >again 2>&1
expect "exit code where all is done" $? 0
expect "lines of gradients" "$(wc -l <out/plain20/gradients.jsonl)" "$steps"

"$script" -s 56 -l 20 >out.txt 2>&1
expect "exit code of depths the wrong way round" $? 64
"$script" -g >out.txt 2>&1
expect "exit code of -g without data" $? 64
"$script" -l many >out.txt 2>&1
expect "exit code of a number that is none" $? 64
"$script" -o bad -- --set model.nmae=x >out.txt 2>&1
expect "exit code of a misspelt key" $? 78

finish
