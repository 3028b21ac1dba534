#!/bin/bash
# Configures (where that is needed) and builds the preset `release` into build/release, from anywhere.
# Arguments go to the build, e.g. --target convoy; those of the form -DNAME=VALUE to the configuration.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/release

settings=() targets=()
for argument in "$@"; do
  if [[ $argument == -D* ]]; then settings+=("$argument"); else targets+=("$argument"); fi
done

# A tree that was moved or copied has the old place in all its rules.
fresh=()
if [[ -f $build/CMakeCache.txt ]] &&
  ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$build/CMakeCache.txt"; then
  fresh=(--fresh)
fi
if [[ ! -f $build/build.ninja ]] || ((${#fresh[@]} + ${#settings[@]} > 0)); then
  cmake -S "$root" --preset release "${fresh[@]}" "${settings[@]}" >&2
fi
cmake --build "$build" "${targets[@]}" >&2
