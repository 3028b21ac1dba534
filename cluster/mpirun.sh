#!/bin/bash
# Starts convoy under Open MPI's mpirun so that its ranks get fair shares of the CPUs and a signal
# stops them cleanly:
#   cluster/mpirun.sh [OPTIONS OF mpirun] -- COMMAND [OPTIONS]
#   cluster/mpirun.sh -n 2 -- train --job trainer/recipes/fashion_mnist_resnet20.txtpb --out runs/a
# INT (Ctrl-C), TERM or HUP: every rank finishes its step, the run is saved, exit code 75. Once more,
# two seconds later or more: the ranks are killed; the last checkpoint stands. The exit code is
# convoy's (README, "Exit codes"), or mpirun's 1 or 137 when a rank was lost, which is like 75: run the
# same command again. CONVOY names another program than build/release/convoy.
set -euo pipefail
cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$cluster/env.sh"
convoy=${CONVOY:-$cluster/../build/release/convoy}

usage() {
  printf 'mpirun.sh: %s\n' "$*" >&2
  exit 64
}

options=(--bind-to none --oversubscribe)
given=()
# A batch system's allocation may have several hosts.
one_host=1
if [[ -n ${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}${PE_HOSTFILE:-} ]]; then one_host=0; fi
while (($# > 0)) && [[ $1 != -- ]]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    # Whoever maps or binds by hand gets what they say.
    -bind-to | --bind-to | -map-by | --map-by | -rf | --rankfile | -cpu-set | --cpu-set)
      export CONVOY_BIND=0
      options=()
      ;;
    # The slots of a list of hosts are meant.
    -H | -host | --host | -hostfile | --hostfile | -machinefile | --machinefile)
      one_host=0
      if ((${#options[@]} > 0)); then options=(--bind-to none); fi
      ;;
  esac
  given+=("$1")
  shift
done
if (($# < 2)); then usage "what shall run? mpirun.sh -n 2 -- train --job FILE --out DIR"; fi
shift
[[ -x $convoy ]] ||
  usage "$convoy: no such program; build it: cmake --preset release && cmake --build --preset release"
command -v mpirun >/dev/null || usage "no mpirun; install Open MPI (Debian: openmpi-bin)"
# Ranks of one host talk through its memory (ob1); looking for networks that other layers might
# drive takes 0.2 s of every start.
if ((one_host)); then export OMPI_MCA_pml=${OMPI_MCA_pml:-ob1}; fi
if [[ -n ${CONVOY_BIND:-} ]]; then options+=(-x CONVOY_BIND); fi

# Only a rank on this host can write to this terminal: elsewhere rank.sh finds it missing or, where a
# terminal of that name is there, not ours to write.
terminal=$(readlink "/proc/$$/fd/2" || true)
if [[ -t 2 && -w $terminal ]]; then export CONVOY_TERMINAL=$terminal; fi

stops=0 first_stop=0
# shellcheck disable=SC2317  # called by the trap
stop() {
  if ((stops == 0)); then
    echo "mpirun.sh: stopping at the end of the step, then saving (once more: kill)" >&2
    stops=1 first_stop=$SECONDS
    kill -USR1 "$mpirun" 2>/dev/null || true
  elif ((SECONDS - first_stop >= 2)); then  # what comes at once is the same signal by another way
    kill -TERM "$mpirun" 2>/dev/null || true
  fi
}

# Its own process group (set -m): Ctrl-C must reach us and not mpirun, which would kill the ranks.
set -m
mpirun "${options[@]}" "${given[@]}" "$cluster/rank.sh" "$convoy" "$@" </dev/null &
mpirun=$!
trap stop INT TERM HUP
# Open MPI 4.1 can wait for ever for ranks that were killed while they connected to it: an mpirun that
# has had no process, neither ranks nor daemons on other hosts, for ten seconds is ended.
end_without_ranks() {
  local none=0
  while sleep 1 && kill -0 "$mpirun" 2>/dev/null; do
    if [[ -n $(ps -o stat= --ppid "$mpirun" | sed '/^Z/d') ]]; then
      none=0
    elif ((++none >= 10)); then
      echo "mpirun.sh: mpirun does not end though none of its ranks is left: killed" >&2
      kill -KILL "$mpirun" 2>/dev/null
    fi
  done
}
end_without_ranks &
watcher=$!
disown "$watcher"  # or bash tells of its end
code=0
wait "$mpirun" || code=$?
while kill -0 "$mpirun" 2>/dev/null; do
  code=0
  wait "$mpirun" || code=$?
done
kill "$watcher" 2>/dev/null || true

# A rank that has not come to its first step dies of USR1; what is on disk is the same as before.
if ((code == 138 && stops > 0)); then code=75; fi
case $code in
  75) echo "mpirun.sh: exit code 75: run the same command again to go on" >&2 ;;
  1 | 137)
    echo "mpirun.sh: exit code $code: a rank was lost or killed, or mpirun refused (see above); the" \
      "last checkpoint stands. Like 75: run the same command again to go on" >&2
    ;;
esac
exit "$code"
