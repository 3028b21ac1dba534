#!/bin/bash
# Installs, builds, and trains ResNet-20 on Fashion-MNIST with two ranks, in minutes on two cores:
#   ./demo.sh [OPTIONS OF convoy train]        e.g. ./demo.sh --set epochs=1
# Each call trains anew, in runs/demo-<time>. Ctrl-C stops cleanly: saved, exit code 75. The last two
# lines on standard output are the accuracy and the folder of the run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 0
fi

start=$SECONDS
"$root/cmake/install_packages.sh"
installed=$SECONDS
"$root/cmake/build_release.sh" --target convoy
built=$SECONDS
echo "install: $((installed - start)) s, build: $((built - installed)) s"

run=$root/runs/demo-$(date +%Y%m%d-%H%M%S)
while [[ -e $run ]]; do run+=x; done
mkdir -p "$run"
command=("$root/cluster/mpirun.sh" -n 2 --
  train --job "$root/trainer/recipes/fashion_mnist_resnet20.txtpb" --out "$run" "$@")

# In the background, because a shell that waits for a command in the foreground hears no signals.
# mpirun.sh is told with TERM: bash starts background commands deaf to INT.
trap 'kill -TERM $trainer 2>/dev/null || true' INT TERM HUP
"${command[@]}" >"$run/result.txt" &
trainer=$!
code=0
wait $trainer || code=$?
while kill -0 $trainer 2>/dev/null; do
  code=0
  wait $trainer || code=$?
done

echo "training: $((SECONDS - built)) s"
cat "$run/result.txt"
echo "run: $run"
if ((code == 75)); then
  printf 'to go on:'
  printf ' %q' "${command[@]}"
  printf '\n'
fi >&2
exit $code
