#!/bin/bash
# Runs on a machine with a GPU all that needs one, prints one table and writes docs/results/gpu/:
#   tests/gpu/run_all.sh [OPTIONS] [PART...]      e.g. tests/gpu/run_all.sh --build packed unit laws
# --help lists the parts and the options; docs/results/gpu/README.md says what the columns mean.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/run_all.py" "$@"
