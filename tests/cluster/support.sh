# shellcheck shell=bash
# What the tests in shell share: a temporary folder that goes away, checks that count, waiting for a
# condition, a job. The folder has a space in its name, as a user's may have, unless `work_name` says
# otherwise; a test with more to clean up defines at_exit.
set -uo pipefail
# shellcheck disable=SC2034  # for the tests
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/${work_name:-convoy test }XXXXXX")
at_exit() { :; }
trap 'at_exit; rm -rf "$work"' EXIT
export CONVOY_CACHE=$work/cache
export OMPI_MCA_orte_tmpdir_base=$work/session  # tests/end_to_end/program.cpp says why
failures=0

# check TEXT COMMAND...: the command must succeed.
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

# expect TEXT ACTUAL EXPECTED
expect() { check "$1: $2" test "$2" = "$3"; }

contains() { grep -qF -- "$2" "$1" || { sed 's/^/  | /' "$1"; false; }; }
# matches FILE REGEX: a line does.
matches() { grep -qE -- "$2" "$1" || { tail -n 30 "$1" | sed 's/^/  | /'; false; }; }

# wait_for COMMAND...: until it succeeds, at most for the limit of a run (a minute).
wait_for() {
  local i
  for ((i = 0; i < 10 * ${CONVOY_RUN_LIMIT:-60}; ++i)); do
    if "$@" 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  return 1
}

# Process ids whose command line has this text.
processes_of() {
  local file
  for file in /proc/[0-9]*/cmdline; do
    if tr '\0' '\n' 2>/dev/null <"$file" | grep -qxF -- "$1"; then
      file=${file#/proc/}
      echo "${file%/cmdline}"
    fi
  done
}

nobody_left() { [[ -z $(processes_of "$1") ]]; }

# A job of tiny made-up images that goes on for ever, as far as a test can tell.
cat >"$work/endless.txtpb" <<'JOB'
data {
  format: SYNTHETIC synthetic_samples: 256 classes: 10
  train { crop: CENTER size: 8 }
  eval { resize: 0 }
  mean_subtraction: NONE
}
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 4
epochs: 1000000
evaluation { every_epochs: 0 }
log { every_steps: 1 }
JOB

finish() {
  if ((failures > 0)); then
    echo "$failures checks failed"
    exit 1
  fi
}
