#!/bin/bash
# Packs what tests/gpu/run_all.sh needs on a machine with a GPU that has CUDA, a Python with PyTorch and
# a checkout of these sources, but nothing of Debian's:
#   tests/gpu/pack.sh DIR [BUILD]     then, there: tests/gpu/run_all.sh --build DIR
# BUILD: the build tree of the preset `cuda` (default: build/cuda). DIR gets packed.tar.xz: convoy and the
# test programs *_gpu, stripped, the libraries that they need but for CUDA's and the C and C++ runtimes',
# and Open MPI for ranks on one host. Exit code 1 if it comes to more than 64 MiB.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if (($# < 1 || $# > 2)) || [[ $1 == -* ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  [[ ${1:-} == -h || ${1:-} == --help ]] || exit 64
  exit 0
fi
build=${2:-$root/build/cuda}
[[ -x $build/convoy ]] || {
  echo "pack.sh: $build/convoy: no such program; build it: cmake --build --preset cuda" >&2
  exit 64
}
mkdir -p "$1"
target=$(cd "$1" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
git -C "$root" describe --always --dirty >"$dir/commit" || echo unknown >"$dir/commit"

programs=$(cd "$build" && find tests -type f -name '*_gpu' -perm -u+x -not -path '*/CMakeFiles/*')
[[ -n $programs ]] || {
  echo "pack.sh: $build has no tests/**/*_gpu; build them: cmake --build --preset cuda" >&2
  exit 64
}
for program in convoy $programs; do
  mkdir -p "$dir/$(dirname "$program")"
  strip -o "$dir/$program" "$build/$program"
done

# Open MPI finds its parts by OPAL_* and PMIX_* (run_all.py). What drives networks that one host does not
# need stays behind, as do its many libraries.
openmpi=$(ompi_info --parsable --path pkglibdir | cut -d: -f3)
pmix=$(ldd "$openmpi"/mca_pmix_ext*.so | awk '$1 ~ /^libpmix/ { print $3 }')
pmix=$(dirname "$(readlink -f "$pmix")")
mkdir -p "$dir/openmpi/bin" "$dir/openmpi/etc"
cp -L "$(command -v mpirun)" "$(command -v orted)" "$dir/openmpi/bin/"
cp -rL "$openmpi" "$dir/openmpi/plugins"
rm -f "$dir"/openmpi/plugins/*{ofi,ucx,psm,usnic,openib,portals,monitoring,lustre,slurm,tm,lsf}*
find "$dir/openmpi/plugins" -not -name '*.so' -type f -delete
cp -rL "$(ompi_info --parsable --path pkgdatadir | cut -d: -f3)" "$dir/openmpi/help"
cp -rL "$pmix/pmix" "$dir/openmpi/pmix-plugins"
cp -rL "$pmix/../share/pmix" "$dir/openmpi/pmix-help"
cp -L /etc/openmpi/*.conf "$dir/openmpi/etc/"

# Libraries, those of plugins too. glibc's and the compiler's are older here than where we go, or the
# programs would not start there; CUDA's come with the driver, the toolkit and the wheels.
mkdir "$dir/lib"
own='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libutil|libstdc\+\+|libgcc_s)\.so'
cuda='^lib(cuda|cudart|cudnn.*|cublas.*|nccl|nvrtc.*|nvidia.*)\.so'
find "$dir" -type f \( -perm -u+x -o -name '*.so' \) -print0 | xargs -0 -n 1 ldd |
  awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  while read -r library; do
    name=$(basename "$library")
    if [[ ! $name =~ $own && ! $name =~ $cuda ]]; then cp -L "$library" "$dir/lib/"; fi
  done
find "$dir/lib" "$dir/openmpi" -type f \( -name '*.so*' -o -perm -u+x \) -exec strip --strip-unneeded {} +

# The programs hold the same libraries: a window as wide as them all finds that.
tar -C "$dir" -cf - commit convoy lib openmpi tests |
  xz --lzma2=preset=4,dict=128MiB >"$target/packed.tar.xz"
bytes=$(stat -c %s "$target/packed.tar.xz")
echo "$target/packed.tar.xz: $((bytes >> 20)) MiB ($(du -sm "$dir" | cut -f1) unpacked), commit" \
  "$(<"$dir/commit")"
if ((bytes > 64 << 20)); then
  echo "pack.sh: more than 64 MiB; the largest before packing:" >&2
  find "$dir" -type f -printf '%s %P\n' | sort -rn | head -10 >&2
  exit 1
fi
