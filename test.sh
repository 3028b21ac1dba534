#!/bin/bash
# Installs, builds, and runs all tests:
#   ./test.sh [OPTIONS OF ctest]               e.g. ./test.sh -R conv2d --verbose
# Settings of CMake for this build tree come from CONVOY_CMAKE, e.g. CONVOY_CMAKE=-DCONVOY_WERROR=ON.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

start=$SECONDS
"$root/cmake/install_packages.sh"
installed=$SECONDS
# shellcheck disable=SC2086  # several settings, separated by spaces
"$root/cmake/build_release.sh" ${CONVOY_CMAKE:-}
echo "install: $((installed - start)) s, build: $((SECONDS - installed)) s"

exec ctest --test-dir "$root/build/release" --parallel "$(nproc)" --output-on-failure \
  --no-tests=error "$@"
