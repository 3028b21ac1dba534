#!/bin/bash
# Installs what Convoy is built from on Debian 12: only what is missing, with apt-get, as root or
# through sudo. Does nothing, and starts no apt, where all is there. This is the one list of packages.
set -euo pipefail

packages=(
  # to build
  g++ cmake ninja-build ccache pkg-config protobuf-compiler
  # libraries (cmake/Dependencies.cmake)
  libboost-program-options-dev libdeflate-dev libdnnl-dev libfmt-dev libjpeg62-turbo-dev libopenmpi-dev
  libpng-dev libprotobuf-dev libssl-dev nlohmann-json3-dev zlib1g-dev
  # to run on several ranks
  openmpi-bin
  # tests, and the demo's images
  libgtest-dev libboost-context-dev dataset-fashion-mnist
)

stop() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

command -v dpkg-query >/dev/null ||
  stop "this is not Debian (no dpkg); install what stands for ${packages[*]}, then run" \
    "cmake --preset release && cmake --build --preset release"

missing=()
for package in "${packages[@]}"; do
  # shellcheck disable=SC2016  # dpkg-query's own variable
  status=$(dpkg-query -W -f '${db:Status-Status} ' "$package" 2>/dev/null || true)
  [[ " $status" == *' installed '* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

command -v apt-get >/dev/null || stop "no apt-get; missing: ${missing[*]}"
as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || stop "not root and no sudo; as root: apt-get install ${missing[*]}"
  as_root=(sudo)
  [[ -t 0 ]] || as_root+=(-n)  # nobody is there to type a password
fi

echo "install: apt-get installs ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >"$log" 2>&1
}
apt update || {
  cat "$log" >&2
  echo "install: apt-get update failed (above); trying with the lists that are there" >&2
}
apt install --no-install-recommends "${missing[@]}" || {
  cat "$log" >&2
  stop "apt-get failed (above); as root: apt-get install ${missing[*]}"
}
