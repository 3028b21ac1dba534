#!/bin/bash
# R15, R17: ranks on several hosts whose network is slow to answer, gone for a while, gone for good, or
# the wrong one. The hosts are network, UTS and mount namespaces on a bridge that nobody else sees, so it
# needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN); without, it says so and returns 77, which ctest shows as
# skipped.
#   CONVOY=build/release/convoy tests/faults/hosts.sh
set -uo pipefail
: "${CONVOY:?the program to test}"
export CONVOY
if [[ ${1:-} != --inner ]]; then
  if ! unshare -n -m -u true 2>/dev/null || ! command -v ip nsenter >/dev/null; then
    echo "SKIPPED: no namespaces for made-up hosts (needs root with CAP_SYS_ADMIN and iproute2)"
    exit 77
  fi
  exec unshare -n -m "${BASH_SOURCE[0]}" --inner
fi

readonly hosts=3
work=$(mktemp -d "${TMPDIR:-/tmp}/convoy-hosts-XXXXXX")
failures=0
pids=()  # of the processes that hold the namespaces

cleanup() {
  kill -KILL "${pids[@]}" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

check() {
  local text=$1
  shift
  if "$@"; then
    echo "ok: $text"
  else
    echo "FAILED: $text ($*)"
    failures=$((failures + 1))
  fi
}
contains() { grep -qE -- "$2" "$1" || { tail -n 30 "$1" | sed 's/^/  | /'; false; }; }

# h1, h2, h3 on 10.99.0.1 ..., each with e0; h1 has e1 too, on a network of its own.
make_hosts() {
  local i
  ip link set lo up
  ip link add br0 type bridge
  ip link set br0 up
  {
    echo "127.0.0.1 localhost"
    for ((i = 1; i <= hosts; ++i)); do echo "10.99.0.$i h$i"; done
  } >"$work/hosts"
  for ((i = 1; i <= hosts; ++i)); do
    unshare -n -u -m bash -c "hostname h$i; mount --bind '$work/hosts' /etc/hosts; touch '$work/up$i'; exec sleep 600" &
    pids+=($!)
    while [[ ! -e $work/up$i ]]; do sleep 0.05; done
    ip link add "v$i" type veth peer name e0 netns "${pids[i - 1]}"
    ip link set "v$i" master br0 up
    nsenter -t "${pids[i - 1]}" -n sh -c "ip link set lo up; ip addr add 10.99.0.$i/24 dev e0; ip link set e0 up"
  done
  nsenter -t "${pids[0]}" -n sh -c \
    "ip link add e1 type veth peer name e2; ip addr add 10.98.0.1/24 dev e1; ip link set e1 up; ip link set e2 up"
  # Open MPI's way to another host: mpirun calls AGENT HOST COMMAND...
  {
    echo '#!/bin/bash'
    echo "declare -A pid=([h1]=${pids[0]} [h2]=${pids[1]} [h3]=${pids[2]})"
    # shellcheck disable=SC2016  # for the agent
    echo 'h=$1; shift; exec nsenter -t "${pid[$h]}" -n -u -m sh -c "$*"'
  } >"$work/agent"
  chmod +x "$work/agent"
}

cat >"$work/job.txtpb" <<'JOB'
data {
  format: SYNTHETIC synthetic_samples: 256 classes: 10
  train { crop: CENTER size: 8 }
  eval { resize: 0 }
  mean_subtraction: NONE
}
model { name: "cifar_resnet20" }
workers: 3
batch_per_worker: 2
epochs: 100000
checkpoint { every_minutes: 0 }
evaluation { every_epochs: 0 }
log { every_steps: 1 }
watchdog { heartbeat_seconds: 0.5 silence_seconds: 10 reduce_seconds: 40 }
JOB

# train NAME OPTIONS...: one rank on each host, in the background; output in NAME.out.
train() {
  local name=$1
  shift
  nsenter -t "${pids[0]}" -n -u -m env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
    OMPI_MCA_orte_tmpdir_base="$work/$name.session" CONVOY_CACHE="$work/cache" OMP_NUM_THREADS=1 \
    mpirun --mca plm rsh --mca plm_rsh_agent "$work/agent" --mca btl_tcp_if_include e0 \
    --mca oob_tcp_if_include e0 -H h1,h2,h3 --map-by node --bind-to none -np 3 \
    "$CONVOY" train --job "$work/job.txtpb" --out "$work/$name" "$@" >"$work/$name.out" 2>&1 &
  mpirun=$!
}
steps_done() { cat "$work/$1/metrics.jsonl" 2>/dev/null | grep -c '"train_loss"'; }
# at_step NAME N: waits for it.
at_step() {
  local i
  for ((i = 0; i < 600; ++i)); do
    if (($(steps_done "$1") >= $2)); then return 0; fi
    sleep 0.1
  done
  return 1
}
# Ranks of a run that are there.
ranks_of() { grep -lzxF -- "$work/$1" /proc/[0-9]*/cmdline 2>/dev/null | wc -l; }
# gone_within NAME SECONDS
gone_within() {
  local i
  for ((i = 0; i < 10 * $2; ++i)); do
    if ps -eo args | grep -v "mpirun\|grep\|nsenter" | grep -qF -- "--out $work/$1 "; then sleep 0.1; else return 0; fi
  done
  return 1
}
