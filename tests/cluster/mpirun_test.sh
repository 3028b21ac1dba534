#!/bin/bash
# cluster/mpirun.sh: exit codes, a clean stop by signal and what comes after it, lost ranks, CPUs.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
mpirun_sh=$repository/cluster/mpirun.sh
cd "$work" || exit 1

# start_training FOLDER: two ranks in the background (trainer), on their way when this returns. Job
# control, as in a terminal: without it bash would make the background deaf to INT.
start_training() {
  set -m
  "$mpirun_sh" -n 2 -- train --job endless.txtpb --out "$1" >"$1.out" 2>&1 &
  trainer=$!
  set +m
  wait_for contains "$1/metrics.jsonl" '"train_loss"' >/dev/null
}

"$mpirun_sh" -n 2 -- --version >out 2>&1
expect "exit code of success" $? 0
expect "ranks that ran" "$(grep -c '^convoy ' out)" 2
"$mpirun_sh" -n 2 -- train --job nowhere.txtpb --out none >out 2>&1
expect "exit code of a missing job file" $? 74
"$mpirun_sh" -n 2 >out 2>&1
expect "exit code of no command" $? 64
CONVOY=$work/nothing "$mpirun_sh" -n 1 -- --version >out 2>&1
expect "exit code of a program that is not built" $? 64
check "it says what to do" contains out "build it"

for signal in TERM INT; do
  start_training "run $signal"
  # TERM as `kill` sends it, to one process; INT as a terminal does, to the whole process group.
  if [[ $signal == TERM ]]; then kill -TERM "$trainer"; else kill -INT -- "-$trainer"; fi
  wait "$trainer"
  expect "exit code after $signal" $? 75
  check "it says how to go on" contains "run $signal.out" "run the same command again"
  check "the checkpoint after $signal is whole" "$CONVOY" verify "run $signal"
  check "no rank is left after $signal" nobody_left "run $signal"
done

"$mpirun_sh" -n 2 -- train --job endless.txtpb --out "run TERM" --set stop_after_steps=1 >out 2>&1
expect "exit code of the same command again" $? 0
check "it goes on where the first stopped" contains out "resumed at step"

start_training lost
ranks=$(processes_of lost)
for rank in $ranks; do
  if [[ $(readlink "/proc/$rank/exe") == "$(readlink -f "$CONVOY")" ]]; then victim=$rank; fi
done
kill -KILL "$victim"
wait "$trainer"
expect "exit code of a lost rank" $? 137
check "it is called like 75" contains lost.out "Like 75"
check "the other rank is gone" nobody_left lost

# One host needs no network; on several, Open MPI chooses.
# shellcheck disable=SC2016  # for the rank's shell
say_layer='echo "layer ${OMPI_MCA_pml:-any}"'
CONVOY=$BASH "$mpirun_sh" -n 1 -- -c "$say_layer" >out 2>&1
expect "layer on one host" "$(grep layer out)" "layer ob1"
CONVOY=$BASH "$mpirun_sh" -n 1 --host localhost -- -c "$say_layer" >out 2>&1
expect "layer with a list of hosts" "$(grep layer out)" "layer any"
OMPI_MCA_pml=cm CONVOY=$BASH "$mpirun_sh" -n 1 -- -c "$say_layer" >out 2>&1
expect "layer that was chosen before" "$(grep layer out)" "layer cm"

# Each rank says which CPUs it got, in a file of its own: what both print may mix.
# shellcheck disable=SC2016  # for the rank's shell
CONVOY=$BASH "$mpirun_sh" -n 2 -- -c 'taskset -cp $$ >"cpus.$OMPI_COMM_WORLD_RANK"'
sed 's/.*: //' cpus.0 cpus.1 | sort -u >out
if (($(nproc) >= 2)); then
  expect "CPU sets of two ranks" "$(wc -l <out)" 2
fi
# shellcheck disable=SC2016
CONVOY=$BASH "$mpirun_sh" -n $(($(nproc) + 1)) -- -c 'taskset -cp $$' >out 2>&1
expect "exit code of more ranks than CPUs" $? 0
expect "ranks on fewer CPUs" "$(grep -c affinity out)" $(($(nproc) + 1))

finish
