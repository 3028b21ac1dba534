#!/bin/bash
# R15, R17: ranks on several hosts whose network is slow to answer, gone for a while, gone for good, or
# the wrong one. The hosts are network, UTS and mount namespaces on a bridge that nobody else sees, so it
# needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN); without, it says so and returns 77, which ctest shows as
# skipped.
#   CONVOY=build/release/convoy tests/faults/hosts.sh
set -uo pipefail
: "${CONVOY:?the program to test}"
CONVOY=$(realpath "$CONVOY")
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
holders=() pids=()  # the processes that keep the namespaces: unshare, and its child inside
# A monotonic clock two days ahead, where the system can do that.
ahead=()
if unshare -T --monotonic 172800 true 2>/dev/null; then ahead=(-T --monotonic 172800); fi

cleanup() {
  kill -KILL "${pids[@]}" 2>/dev/null
  wait "${holders[@]}" 2>/dev/null
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
    # The clock of the last one, monotonic as it is, has nothing to do with the others'.
    local clock=()
    if ((i == hosts)); then clock=("${ahead[@]}"); fi
    unshare -n -u -m "${clock[@]}" --fork --kill-child bash -c \
      "hostname h$i; mount --bind '$work/hosts' /etc/hosts; echo \$\$ >'$work/up$i'; exec sleep 600" 2>/dev/null &
    holders+=($!)
    while [[ ! -s $work/up$i ]]; do sleep 0.05; done
    pids+=("$(<"$work/up$i")")
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
    echo 'h=$1; shift; exec nsenter -t "${pid[$h]}" -n -u -m '"${ahead:+-T}"' sh -c "$*"'
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
watchdog { heartbeat_seconds: 0.5 silence_seconds: 9 reduce_seconds: 40 }
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
steps_done() { grep -sc '"train_loss"' "$work/$1/metrics.jsonl" || true; }
# at_step NAME N: waits for it.
at_step() {
  local i steps
  for ((i = 0; i < 600; ++i)); do
    steps=$(steps_done "$1")
    if ((${steps:-0} >= $2)); then return 0; fi
    kill -0 "$mpirun" 2>/dev/null || return 1
    sleep 0.1
  done
  return 1
}
# Ranks of a run that are there, on any host.
ranks_of() {
  local pid count=0
  for pid in $(pgrep -x convoy); do
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$work/$1"; then count=$((count + 1)); fi
  done
  echo "$count"
}
# gone_within NAME SECONDS: the ranks and mpirun.
gone_within() {
  local end=$((SECONDS + $2))
  while ((SECONDS <= end)); do
    if [[ $(ranks_of "$1") == 0 ]] && ! kill -0 "$mpirun" 2>/dev/null; then return 0; fi
    sleep 0.2
  done
  return 1
}

# ==== cases
make_hosts

# R15. The deadline is 9 s; the clock of h3 is days ahead (R20).
train cut
check "it trains on three hosts" at_step cut 5
check "one rank on each" test "$(ranks_of cut)" = 3
ip link set v3 down
sleep 6
ip link set v3 up
check "a link that was down for 6 s ends nothing" at_step cut $(($(steps_done cut) + 20))
check "it is noted" contains "$work/cut.out" "rank 0: warning: rank 2 on h3: no heartbeat for [0-9.]+ s, now it is back"
ip link set v3 down
check "a link that stays down ends the job on both sides" gone_within cut 19
check "the verdict names rank and host" contains "$work/cut.out" \
  "rank 0: error: rank 2 on h3: no heartbeat for [0-9]+ s .*last .*step [0-9]+; "
# One of them may have got a bucket more from h3 than the other.
for rank in 0 1; do
  check "and where rank $rank waits for it" contains "$work/cut.out" \
    "rank 0: error: rank 2 .*(ranks 0-1|rank $rank) waiting in reduce of bucket [0-9]+, step [0-9]+"
done
check "the other host has it, too" contains "$work/cut.out" "rank 1: error: rank 2 on h3: no heartbeat"
ip link set v3 up
# What mpirun left on the host that it no longer reached.
for daemon in $(pgrep -x orted); do
  if [[ $(readlink "/proc/$daemon/ns/net") == "$(readlink "/proc/${pids[2]}/ns/net")" ]]; then
    kill -KILL "$daemon" 2>/dev/null
  fi
done
sleep 1  # until the link is up

# R17
train nowhere --set watchdog.interface=ib7
wait "$mpirun"
check "an interface that is not there is refused" test $? = 78
check "it says which there are" contains "$work/nowhere.out" 'watchdog.interface is "ib7", but h1 has no such .* e0 10.99.0.1/24'
train apart --set watchdog.interface=e1
wait "$mpirun"
check "a network that others do not reach is refused" test $? = 74
check "it names the pair, the address and the setting" contains "$work/apart.out" \
  'rank 1 on h2 cannot reach rank 0 on h1 on TCP port [0-9]+: 10.98.0.1: .*watchdog.interface'
train chosen --set watchdog.interface=10.99.0.0/16 --set stop_after_steps=3
wait "$mpirun"
check "a network that they reach is taken" test $? = 0

if ((failures > 0)); then
  echo "$failures checks failed"
  exit 1
fi
