#!/bin/bash
# What mpirun.sh starts for each rank: takes the rank's share of this host's CPUs and becomes convoy.
#   rank.sh PROGRAM ARGUMENTS...
# CONVOY_BIND=0: CPUs as they are. CONVOY_TERMINAL: a terminal for rank 0's live progress line.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

rank=${OMPI_COMM_WORLD_LOCAL_RANK:-0} ranks=${OMPI_COMM_WORLD_LOCAL_SIZE:-1}
# Even contiguous shares of the CPUs this process may use, hardware threads of a core together. (Open
# MPI's own --map-by slot:PE=N needs to be told N, and one core per rank is what it does untold.)
if [[ ${CONVOY_BIND:-1} != 0 ]] && ((ranks > 1)); then
  mapfile -t cpus < <(
    allowed=$(taskset -cp $$ 2>/dev/null | sed 's/.*: //')
    lscpu --parse=SOCKET,CORE,CPU 2>/dev/null | grep -v '^#' | sort -t, -n -k1,1 -k2,2 -k3,3 |
      awk -F, -v allowed="$allowed" '{
        n = split(allowed, ranges, ",")
        for (i = 1; i <= n; ++i) {
          m = split(ranges[i], ends, "-")
          if (ends[1] <= $3 + 0 && $3 + 0 <= ends[m]) print $3
        }
      }'
  )
  first=$((rank * ${#cpus[@]} / ranks)) end=$(((rank + 1) * ${#cpus[@]} / ranks))
  if ((end > first)); then
    taskset -cp "$(IFS=, && echo "${cpus[*]:first:end-first}")" $$ >/dev/null || true
  fi
fi

# mpirun hands on standard error through a pipe; the live line needs the terminal itself. A rank is
# not in the terminal's foreground, and with `stty tostop` must not be stopped for writing.
if [[ ${OMPI_COMM_WORLD_RANK:-} == 0 && -w ${CONVOY_TERMINAL:-} ]]; then
  trap '' TTOU
  exec 2>"$CONVOY_TERMINAL"
fi
exec "$@"
