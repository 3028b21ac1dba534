#!/bin/bash
# cluster/scaling.sh: a table and the same numbers as JSON, for one and two ranks of a small model.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
scaling_sh=$repository/cluster/scaling.sh
cd "$work" || exit 1

"$scaling_sh" -n 2 -b 8 -t 1 -m cifar_resnet20 -s 0.1 -o scaling.json >table 2>errors
expect "exit code" $? 0
cat table errors
expect "rows" "$(grep -cE '^(weak|strong) +[12] +[0-9]+ +[0-9.]+ +[0-9.]+ %$' table)" 4
expect "images per step" "$(awk '/%$/ { printf "%s%d:%d ", $1, $2, $3 }' table)" \
  "weak1:8 weak2:16 strong1:8 strong2:8 "
# Rounded as they are printed.
# shellcheck disable=SC2016  # awk's own
check "efficiencies" awk '
  /^weak +1 / { one = $4 }
  /%$/ { off = $5 - 100 * $4 / ($2 * one); if (off > 0.3 || off < -0.3) wrong = 1; ++rows }
  END { exit wrong || rows != 4 }' table
check "one rank is 100 %" grep -qE '^weak +1 .* 100.0 %$' table

cat >check.cmake <<'CMAKE'
file(READ scaling.json text)
string(JSON rows LENGTH "${text}" rows)
string(JSON model GET "${text}" model)
if(NOT rows EQUAL 4 OR NOT model STREQUAL "cifar_resnet20")
  message(FATAL_ERROR "${text}")
endif()
string(JSON one GET "${text}" rows 0 images_per_second)
string(JSON two GET "${text}" rows 1 images_per_second)
string(JSON efficiency GET "${text}" rows 1 efficiency)
if(NOT one GREATER 0 OR NOT two GREATER 0 OR NOT efficiency GREATER 0)
  message(FATAL_ERROR "${text}")
endif()
CMAKE
check "the JSON file holds the rows" "$CMAKE_COMMAND" -P check.cmake

"$scaling_sh" -n 3 -b 8 >out 2>&1
expect "exit code of a batch that does not divide" $? 64
check "it names the numbers" contains out "-b 8 does not divide by 3 ranks"
"$scaling_sh" -n two >out 2>&1
expect "exit code of a number that is none" $? 64
"$scaling_sh" -n 1 -m no_such_model >out 2>&1
expect "exit code of an unknown model" $? 78

finish
