#!/bin/bash
# R15 to R18, R20: ranks on several hosts whose network is slow, gone for a while, gone for good, split
# in two or the wrong one, and whose clocks are apart. The hosts are network, UTS and mount namespaces on
# bridges that nobody else sees, so it needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN); without, it says so and
# returns 77, which ctest shows as skipped.
#   CONVOY=build/release/convoy CONVOY_OTHER_HOST=build/release/tests/faults/libother_host.so \
#     tests/faults/hosts.sh [CASE...]
# CONVOY_SEED gives other orders of cuts.
set -uo pipefail
: "${CONVOY:?the program to test}"
CONVOY=$(realpath "$CONVOY")
export CONVOY
if [[ ${1:-} != --inner ]]; then
  if ! unshare -n -m -u true 2>/dev/null || ! command -v ip nsenter >/dev/null; then
    echo "SKIPPED: no namespaces for made-up hosts (needs root with CAP_SYS_ADMIN and iproute2)"
    exit 77
  fi
  exec unshare -n -m "${BASH_SOURCE[0]}" --inner "$@"
fi
shift

work_name=convoy-hosts-  # Open MPI takes what is behind a blank for an argument
# shellcheck source-path=SCRIPTDIR source=../cluster/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/support.sh"

readonly hosts=4
seed=${CONVOY_SEED:-15}
RANDOM=$seed
echo "to repeat: CONVOY_SEED=$seed $0"
holders=() pids=()  # the processes that keep the namespaces: unshare, and its child inside
# A monotonic clock two days ahead, where the system can do that.
ahead=()
if unshare -T --monotonic 172800 true 2>/dev/null; then ahead=(-T --monotonic 172800); fi
# What a sanitizer does not bear before it.
preload=()
if [[ -n ${CONVOY_OTHER_HOST:-} ]]; then preload=(-x "LD_PRELOAD=$CONVOY_OTHER_HOST"); fi

at_exit() {
  local left
  mapfile -t left < <(processes_on_hosts)
  kill -KILL "${left[@]}" 2>/dev/null
  wait "${holders[@]}" 2>/dev/null
}

# ==== the hosts

# h1 ... on 10.99.0.1 ..., each with e0; h1 has e1 too, on a network of its own. Each is another machine
# to whoever asks for the machine's boot.
make_hosts() {
  local i bridge
  ip link set lo up
  for bridge in br0 br1; do
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
  done
  {
    echo "127.0.0.1 localhost"
    for ((i = 1; i <= hosts; ++i)); do echo "10.99.0.$i h$i"; done
  } >"$work/hosts"
  for ((i = 1; i <= hosts; ++i)); do
    # The clock of h3, monotonic as it is, has nothing to do with the others'.
    local clock=()
    if ((i == 3)); then clock=("${ahead[@]}"); fi
    echo "00000000-0000-4000-8000-00000000000$i" >"$work/boot$i"
    unshare -n -u -m "${clock[@]}" --fork --kill-child bash -c \
      "hostname h$i; mount --bind '$work/hosts' /etc/hosts
       mount --bind '$work/boot$i' /proc/sys/kernel/random/boot_id
       echo \$\$ >'$work/up$i'; exec sleep 600" 2>/dev/null &
    holders+=($!)
    while [[ ! -s $work/up$i ]]; do sleep 0.05; done
    pids+=("$(<"$work/up$i")")
    ip link add "v$i" type veth peer name e0 netns "${pids[i - 1]}"
    ip link set "v$i" master br0 up
    on "$i" sh -c "ip link set lo up; ip addr add 10.99.0.$i/24 dev e0; ip link set e0 up"
  done
  on 1 sh -c "ip link add e1 type veth peer name e2; ip addr add 10.98.0.1/24 dev e1; ip link set e1 up; ip link set e2 up"
  # Open MPI's way to another host: mpirun calls AGENT HOST COMMAND...
  {
    echo '#!/bin/bash'
    echo "pid=(${pids[*]})"
    # shellcheck disable=SC2016  # for the agent
    echo 'h=${1#h}; shift; exec nsenter -t "${pid[h - 1]}" -n -u -m '"${ahead:+-T}"' sh -c "$*"'
  } >"$work/agent"
  chmod +x "$work/agent"
}
# on HOST COMMAND...
on() {
  local host=$1
  shift
  nsenter -t "${pids[host - 1]}" -n -u -m "$@"
}
link() { ip link set "v$1" "$2"; }  # link HOST up|down

# All that runs on them, what keeps them included.
processes_on_hosts() {
  local pid network networks=" "
  for pid in "${pids[@]}"; do networks+="$(readlink "/proc/$pid/ns/net") "; done
  for pid in /proc/[0-9]*; do
    network=$(readlink "$pid/ns/net") || continue
    if [[ $networks == *" $network "* ]]; then echo "${pid#/proc/}"; fi
  done
}
# What mpirun left on hosts that it no longer reached.
clear_daemons() {
  local pid
  for pid in $(processes_on_hosts); do
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == orted ]]; then kill -KILL "$pid" 2>/dev/null; fi
  done
  sleep 1  # until links are up
}

# ==== the runs

# train NAME OUT HOSTS OPTIONS...: one rank on each host ("h1,h2"), in the background; what all say is in
# NAME.out, what a rank says, wherever it is, in NAME.ranks/1/rank.R/stderr.
train() {
  local name=$1 out=$2 names=$3 count
  count=$(tr -cd h <<<"$3" | wc -c)
  shift 3
  local first=${names#h}
  nsenter -t "${pids[${first%%,*} - 1]}" -n -u -m env OMPI_ALLOW_RUN_AS_ROOT=1 \
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_tmpdir_base="$work/$name.session" OMP_NUM_THREADS=1 \
    mpirun --mca plm rsh --mca plm_rsh_agent "$work/agent" --mca btl_tcp_if_include e0 \
    --mca oob_tcp_if_include e0 --output-filename "$work/$name.ranks" "${environment[@]}" \
    -H "$names" --map-by node --bind-to none -np "$count" \
    "$CONVOY" train --job "$work/endless.txtpb" --out "$work/$out" --set "workers=$count" \
    --set batch_per_worker=2 --set checkpoint.every_minutes=0 --set watchdog.heartbeat_seconds=0.5 \
    --set watchdog.reduce_seconds=40 "$@" >"$work/$name.out" 2>&1 &
  mpirun=$!
}
environment=()
said_by() { echo "$work/$1.ranks/1/rank.$2/stderr"; }  # said_by NAME RANK

steps_done() { grep -sc '"train_loss"' "$work/$1/metrics.jsonl" || true; }
# at_step OUT N: waits for it, unless mpirun ends first.
at_step() { wait_for came_to_step "$@" && (($(steps_done "$1") >= $2)); }
# shellcheck disable=SC2317  # called by wait_for
came_to_step() { (($(steps_done "$1") >= $2)) || ! kill -0 "$mpirun"; }
# Ranks of a run that are there, on any host.
ranks_of() {
  local pid
  for pid in $(processes_of "$work/$1"); do
    if [[ $(readlink "/proc/$pid/exe") == "$CONVOY" ]]; then echo "$pid"; fi
  done
}
number_of_ranks() { ranks_of "$1" | wc -l; }
# gone_within OUT SECONDS: the ranks and mpirun.
gone_within() {
  local end=$((SECONDS + $2))
  while ((SECONDS <= end)); do
    if [[ -z $(ranks_of "$1") ]] && ! kill -0 "$mpirun" 2>/dev/null; then return 0; fi
    sleep 0.2
  done
  return 1
}
# ends_with CODES: mpirun does; "75|137" where it may have to be killed because it waits for a lost host.
ends_with() {
  local code=0
  wait_for has_ended || { echo "  | it does not end"; kill -KILL "$mpirun"; }
  wait "$mpirun" || code=$?
  [[ $code =~ ^($1)$ ]] || { echo "  | exit code $code"; false; }
}
# shellcheck disable=SC2317  # called by wait_for
has_ended() { ! kill -0 "$mpirun"; }
proof() { "$CONVOY" verify "$work/$1" --json; }
digest_of() { proof "$1" | sed -n 's/.*"digest": *"\([0-9a-f]*\)".*/\1/p' | head -n 1; }

# ==== cases

# R15. The deadline is 16 s: where the kernel cannot be told otherwise (network_address.cpp), TCP may try again
# only 12.6 s after the last heartbeat. The monotonic clock of h3 is days ahead (R20).
case_cut() {
  local host rank
  train cut cut h1,h2,h3 --set watchdog.silence_seconds=16
  check "it trains on three hosts" at_step cut 5
  check "one rank on each" test "$(number_of_ranks cut)" = 3
  link 3 down
  sleep 6
  link 3 up
  check "a link that was down for 6 s ends nothing" at_step cut $(($(steps_done cut) + 20))
  check "it is noted" matches "$work/cut.out" \
    "rank 0: warning: rank 2 on h3: no heartbeat for [0-9.]+ s, now it is back"

  # One after the other goes and comes back, in any order; no one is away for more than 6 s.
  local cut=(1 2 3) heal=(1 2 3)
  shuffle cut
  shuffle heal
  echo "cut in the order ${cut[*]}, healed in the order ${heal[*]}"
  local noted
  noted=$(grep -c "now it is back" "$work/cut.out")
  for host in "${cut[@]}"; do
    link "$host" down
    sleep 1
  done
  for host in "${heal[@]}"; do
    sleep 1
    link "$host" up
  done
  check "links that go and come back one after the other end nothing" at_step cut $(($(steps_done cut) + 20))
  for rank in 1 2; do
    check "the one of rank $rank is noted" wait_for noted_after "$work/cut.out" "$noted" \
      "rank 0: warning: rank $rank on h$((rank + 1)): no heartbeat for [0-9.]+ s, now it is back"
  done

  local lost=$((2 + RANDOM % 2)) other
  other=$((5 - lost))
  link "$lost" down
  check "a link that stays down (h$lost) ends the job on both sides" gone_within cut 26
  check "its exit code says: again" ends_with "75|137"
  check "the verdict names rank and host" matches "$work/cut.out" \
    "rank 0: error: rank $((lost - 1)) on h$lost: no heartbeat for [0-9]+ s .*last .*step [0-9]+; "
  # One of them may have got a bucket more from the lost one than the other.
  for rank in 0 $((other - 1)); do
    check "and where rank $rank waits for it" matches "$work/cut.out" \
      "rank 0: error: rank $((lost - 1)) .*(ranks 0[-,] ?$((other - 1))|rank $rank) waiting in reduce( of bucket [0-9]+)?, step [0-9]+"
  done
  check "the other host has it, too" matches "$work/cut.out" \
    "rank $((other - 1)): error: rank $((lost - 1)) on h$lost: no heartbeat"
  check "and the lost one blames rank 0" matches "$(said_by cut $((lost - 1)))" \
    "rank $((lost - 1)): error: rank 0 on h1: no heartbeat"
  link "$lost" up
  clear_daemons
}
# shuffle ARRAY: by the seed, which a subshell would not have.
shuffle() {
  local -n list=$1
  local i j swap
  for ((i = ${#list[@]} - 1; i > 0; --i)); do
    j=$((RANDOM % (i + 1)))
    swap=${list[i]}
    list[i]=${list[j]}
    list[j]=$swap
  done
}
# noted_after FILE N REGEX: in a warning behind the N-th of its kind.
noted_after() { grep "now it is back" "$1" | tail -n "+$(($2 + 1))" | grep -qE -- "$3"; }

# R16
case_slow() {
  train slow slow h1,h2,h3 --set watchdog.heartbeat_seconds=0.2 --set watchdog.straggler_seconds=3 \
    --set watchdog.straggler_factor=4
  check "it trains" at_step slow 20
  local both="rate 100mbit burst 32kb latency 200ms"
  # shellcheck disable=SC2086  # words
  if ! tc qdisc add dev v3 root tbf $both; then
    echo "SKIPPED: R16 (no tbf in this kernel)"
  else
    # shellcheck disable=SC2086
    on 3 tc qdisc add dev e0 root tbf $both
    check "a slow link is named as what it is" wait_for grep -qF \
      "rank 0: warning: the network of h3 (rank 2) is slow and all wait for it" "$work/slow.out"
    check "its rank is not" test "$(grep -c 'rank 2 on h3 is slow and the others wait' "$work/slow.out")" = 0
    check "no other link is" test "$(grep -c 'the network of h[^3]' "$work/slow.out")" = 0
    tc qdisc del dev v3 root
    on 3 tc qdisc del dev e0 root
  fi
  check "the run goes on" at_step slow $(($(steps_done slow) + 20))
  kill -USR1 "$mpirun"
  check "and stops when it is told" ends_with 75
}

# R17
case_interface() {
  train nowhere nowhere h1,h2,h3 --set watchdog.interface=ib7
  check "an interface that is not there is refused" ends_with 78
  check "it says which there are" matches "$work/nowhere.out" \
    'watchdog.interface is "ib7", but h1 has no such .* e0 10.99.0.1/24'
  train apart apart h1,h2,h3 --set watchdog.interface=e1
  check "a network that others do not reach is refused" ends_with 74
  check "it names the pair, the address and the setting" matches "$work/apart.out" \
    'rank 1 on h2 cannot reach rank 0 on h1 on TCP port [0-9]+: 10.98.0.1: .*watchdog.interface'
  train chosen chosen h1,h2,h3 --set watchdog.interface=10.99.0.0/16 --set stop_after_steps=3
  check "a network that they reach is taken" ends_with 0
}

# R18. All hosts see the file system, which does not carry flock from host to host.
case_split() {
  local options=(--set workers=4 --set watchdog.silence_seconds=4 --set checkpoint.lease_seconds=3
    --set checkpoint.every_steps=5)
  environment=("${preload[@]}" -x CONVOY_TEST_NO_FLOCK=1)
  train split split h1,h2,h3,h4 "${options[@]}"
  check "it trains on four hosts" at_step split 15
  local host
  for host in 3 4; do ip link set "v$host" master br1; done
  check "hosts that are split two and two all leave" gone_within split 14
  check "the exit code says: again" ends_with "75|137"
  check "one side blames the hosts of the other" matches "$(said_by split 0)" \
    "rank 0: error: rank (2 on h3|3 on h4)( and 1 on other hosts)?: no heartbeat"  # one may be heard a little longer
  for host in 3 4; do
    check "the other side (h$host) blames rank 0" matches "$(said_by split $((host - 1)))" \
      "rank $((host - 1)): error: rank 0 on h1: no heartbeat"
  done

  # Each half alone, the network still split.
  local before
  before=$(steps_done split)
  train second split h3,h4 "${options[@]}"
  local second=$mpirun
  check "a new life on one half goes on when the lease is over" at_step split $((before + 6))
  check "it has waited for it" matches "$work/second.out" "last used by pid [0-9]+ on host h1 .*another machine"
  train third split h1,h2 "${options[@]}"
  check "a life on the other half is refused" ends_with 74
  check "it names who has the folder" matches "$work/third.out" "in use by pid [0-9]+ on host h3 \(life 2\)"

  # The life on h3 stands still; healed, the other half takes over, then both are awake.
  local frozen end
  frozen=$(ranks_of split)
  # shellcheck disable=SC2086  # numbers
  kill -STOP $frozen
  for host in 3 4; do ip link set "v$host" master br0; done
  end=$(($(steps_done split) + 200))
  train fourth split h1,h2 "${options[@]}" --set "stop_after_steps=$end"
  local fourth=$mpirun
  check "what stands still for the lease is succeeded" wait_for grep -qF "this is life 3" "$work/fourth.out"
  check "and the run goes on" at_step split $(($(steps_done split) + 6))
  # shellcheck disable=SC2086
  kill -CONT $frozen
  mpirun=$second
  check "the one that wakes up leaves" ends_with 74
  check "and knows its successor" matches "$work/second.out" "pid [0-9]+ on host h1 \(life 3\) has taken the folder over"
  mpirun=$fourth
  check "the other one comes to the end" ends_with 0

  check "each sample once, in all lives together" "$CONVOY" verify "$work/split"
  OMP_NUM_THREADS=1 "$CONVOY" train --job "$work/endless.txtpb" --out "$work/unbroken" "${options[@]}" \
    --set batch_per_worker=2 --set "stop_after_steps=$end" >"$work/unbroken.out" 2>&1
  check "an unbroken run has as many steps" test "$(steps_done unbroken)" = "$end"
  expect "the same bits as an unbroken run's" "$(digest_of split)" "$(digest_of unbroken)"
  check "no checkpoint was damaged" test -z "$(find "$work/split/checkpoints" -name '*.damaged*')"
  environment=()
  clear_daemons
}

# R20. Wall clocks: h2's is days ahead, then days behind; that of rank 0 goes back two hours.
case_clocks() {
  if ((${#preload[@]} == 0)); then
    echo "SKIPPED: R20 with wall clocks (no library to set them)"
    return
  fi
  environment=("${preload[@]}" -x CONVOY_TEST_NO_FLOCK=1 -x "CONVOY_TEST_CLOCK=$work/clock")
  echo 200000 >"$work/clock.h2"
  local start=$SECONDS
  train clocks clocks h1,h2 --set checkpoint.lease_seconds=3 --until "$(date -u -d '+16 seconds' +%FT%TZ)" \
    --set checkpoint.every_steps=50
  local first=$mpirun
  check "it trains with a wall clock that is days ahead" at_step clocks 5
  echo -200000 >"$work/clock.h2"
  echo -7200 >"$work/clock.h1"
  check "clocks that jump back end nothing" at_step clocks $(($(steps_done clocks) + 20))
  check "the metrics show the jump" later_times_are_earlier "$work/clocks/metrics.jsonl"
  train rival clocks h2 --set checkpoint.lease_seconds=3
  check "a lease is not over because a clock is elsewhere" ends_with 74
  check "it names the holder" matches "$work/rival.out" "in use by pid [0-9]+ on host h1"
  mpirun=$first
  check "--until keeps to the time that was left at the start" ends_with 75
  check "it says so" contains "$work/clocks.out" "--until: time is up"
  check "neither sooner nor two hours later" test $((SECONDS - start)) -le 20
  check "no deadline was over" test "$(grep -cE 'no heartbeat|deadline' "$work/clocks.out")" = 0

  train later clocks h2 --set workers=2 --set stop_after_steps=$(($(steps_done clocks) + 3))
  check "a life whose clock is behind goes on" ends_with 0
  check "each sample once" "$CONVOY" verify "$work/clocks"
  "$CONVOY" report "$work/clocks" --json >"$work/report"
  check "the report gives no time back" test "$(grep -c '": -' "$work/report")" = 0
  environment=()
}
later_times_are_earlier() {
  sed -n 's/.*"time":\([0-9]*\).*/\1/p' "$1" | awk 'NR > 1 && $1 < last - 7000 { found = 1 } { last = $1 } END { exit !found }'
}

make_hosts
if (($# == 0)); then set -- cut slow interface split clocks; fi
for name in "$@"; do
  start=$SECONDS
  "case_$name"
  echo "$name: $((SECONDS - start)) s"
done
finish
