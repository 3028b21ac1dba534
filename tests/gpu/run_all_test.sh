#!/bin/bash
# tests/gpu/run_all.sh on made-up programs, a made-up GPU and a made-up PyTorch: what fails, hangs or is
# not there is a row and decides the exit code; tables and files are written.
# shellcheck source-path=SCRIPTDIR source=../cluster/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/support.sh"
run_all=$repository/tests/gpu/run_all.sh
cd "$work" || exit 1
mkdir -p build/tests/ops build/tests/trainer bin out
python=$(command -v python3)

# A test passes, fails, is skipped, crashes or hangs as its name says; ctest's own cases are no concern.
cat >build/tests/ops/ops_test_gpu <<'FAKE'
#!/bin/bash
for argument; do
  case $argument in
    --gtest_list_tests)
      printf '%s\n' "Running main()" Relu. "  ${FAKE_TEST:-Passes}" Devices/OpTest. \
        "  BatchNormPasses/cpu_fp32  # GetParam() = cpu" "  BatchNormPasses/cuda_fp16  # GetParam()" \
        "  ConvPasses/cuda_fp16"
      exit
      ;;
    --gtest_filter=*) IFS=: read -ra names <<<"${argument#*=}" ;;
  esac
done
for name in "${names[@]}"; do
  echo "[ RUN      ] $name"
  case $name in
    *Fails) printf '/x/tests/a.cpp:1: Failure\none is not two\n[  FAILED  ] %s, where (0 ms)\n' "$name" && exit 1 ;;
    *Skips) printf 'a.cpp:1: Skipped\nno such thing\n[  SKIPPED ] %s (0 ms)\n' "$name" ;;
    *Crashes) kill -SEGV $$ ;;
    *NeverEnds) echo "[       OK ] $name (0 ms)" && never_ends=1 ;;
    *Hangs) sleep 300 ;;
    *)
      [[ -z ${FAKE_RACE:-} ]] || echo "========= Race reported"
      echo "[       OK ] $name (0 ms)"
      ;;
  esac
done
echo "[==========] ${#names[@]} tests ran."
[[ -z ${never_ends:-} ]] || sleep 300
FAKE

# Its digest is that of the number of workers, or where FAKE_LAW=broken of the ranks too.
cat >build/convoy <<'FAKE'
#!/bin/bash
case "$*" in
  --version) echo "convoy 1" ;;
  train*--data\ *--device\ cuda)
    [[ -s $5/train/class1/39-1.jpg && -s $5/val/class0/0-0.jpg ]] || exit 66
    mkdir -p "$7"
    for ((step = 10; step <= 50; step += 10)); do
      echo "{\"train_loss\": 1, \"images_per_second\": ${FAKE_FED:-8730}, \"input_wait_share\": 0.01}"
    done >"$7/metrics.jsonl"
    exit
    ;;
  bench\ loader*) echo "{\"images_per_second\": ${FAKE_LOADER:-9900}}" ;;
  train*--device\ cuda*)
    mkdir -p "$5"
    [[ ${FAKE_LAW:-} != broken ]] || echo "${OMPI_COMM_WORLD_SIZE:-1}" >"$5/digest"
    ;;&
  train*)
    mkdir -p "$5/checkpoints/step-20"
    cp "$(dirname "$0")/weights" "$5/checkpoints/step-20/model.safetensors"
    loss=2.5
    if [[ $* == *cuda* ]]; then loss=${FAKE_LOSS:-2.50002}; fi
    for ((step = 1; step <= 20; ++step)); do echo "{\"train_loss\": $loss}"; done >"$5/metrics.jsonl"
    ;;
  verify*) echo "{\"digest\": \"four workers $(cat "$2/digest" 2>/dev/null)\"}" ;;
  bench\ allreduce\ --device\ cuda*)
    [[ ${OMPI_COMM_WORLD_RANK:-0} == 0 ]] || exit 0
    echo '{"rows": [{"way": "exact staged", "bytes": 65536, "time_us": {"median": 10, "min": 9, "max": 11},
      "algbw_gb_per_second": 6.55, "busbw_gb_per_second": 6.55, "busbw_fraction_of_memcpy": 0.5, "wrong": 0}]}'
    ;;
  bench\ step*"${FAKE_BENCH:-none}"*) echo "no memory left" >&2 && exit 70 ;;
  bench\ step*)
    echo '{"images_per_second": 9000, "gflops": 220000, "peak_gflops": 700000, "fraction_of_peak": 0.31,
      "planned_memory_bytes": 1073741824, "peak_memory_bytes": 1, "model": "resnet50",
      "precision": "fp16", "batch": 256, "step_seconds": {"median": 0.03, "min": 0.02, "p90": 0.04},
      "profile": {"nodes": [{"name": "a", "kind": "conv", "pass": "forward", "seconds": 0.01,
      "flops": 1e12, "bytes": 1e9, "limit_seconds": 0.005}], "other_seconds": {"rest": 0.01}}}'
    ;;
esac
FAKE
printf '#!/bin/sh\necho "Made-up GPU, 580.1, 100, 1980, 3201, 90, 700, 143771, 30"\n' >bin/nvidia-smi
printf '#!/bin/sh\nshift 6\nexec "$@"\n' >bin/compute-sanitizer
# The made-up profiler has timed a kernel of the start, and three steps of two kernels.
cat >bin/ncu <<'FAKE'
#!/bin/bash
echo "==PROF== Connected"
if [[ -n ${FAKE_WIDE:-} ]]; then
  printf '"%s","%s","%s","%s","%s"\n' ID "Kernel Name" gpu__time_duration.sum dram__bytes_read.sum \
    dram__bytes_write.sum "" "" ns byte byte 1 row_loss_kernel "30,000,000" n/a 1
  exit
fi
echo '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo '"0","7","start_kernel","gpu__time_duration.sum","ns","1,000"'
name='void convoy::<unnamed>::row_loss_kernel<convoy::Float16>(T1 *, const int *)'
for step in 1 2 3; do
  echo "\"$step\",\"7\",\"$name\",\"gpu__time_duration.sum\",\"ns\",\"$((step * 1000000))\""
  for each in 1 2; do
    conv="\"$step$each\",\"7\",\"conv\""
    echo "$conv,\"gpu__time_duration.sum\",\"ns\",\"${FAKE_NS:-14,500,000}\""
    echo "$conv,\"dram__bytes_read.sum\",\"byte\",\"6,000,000\""
    echo "$conv,\"dram__bytes_write.sum\",\"byte\",\"1000000\""
  done
done
echo "{}"
FAKE
cat >bin/torch <<FAKE
#!/bin/bash
case "\$*" in
  *--versions) echo '{"torch": "2", "torchvision": "0"}' ;;
  *PIL*images\ 64)
    [[ -z \${FAKE_NO_PIL:-} ]] || { echo "No module named 'PIL'" >&2 && exit 1; }
    echo image >"\${*: -2:1}/0.jpg" && echo another >"\${*: -2:1}/1.jpg"
    ;;
  *peer_pytorch.py*)
    echo '{"ready": true}'
    while read -r _; do echo '{"images_per_second": 5000, "cpu_seconds": 0, "peak_memory_bytes": 1}'; done
    ;;
  *) exec "$python" "\$@" ;;
esac
FAKE
chmod +x build/convoy build/tests/*/* bin/*

"$python" - >build/weights <<'PY'
import json, struct, sys
header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
sys.stdout.buffer.write(struct.pack("<Q", len(header)) + header + struct.pack("<f", 0.5))
PY

# fields TEXT: a Python expression over the result `r` and its rows by name, `n`.
fields() {
  "$python" - "$1" <<'PY'
import glob, json, sys
(file,) = glob.glob("out/*.json")
r = json.load(open(file))
n = {row["name"]: row for row in r["rows"]}
print(eval(sys.argv[1]))
PY
}
# run CODE OPTION...: the exit code must be CODE.
run() {
  local code=$1
  shift
  rm -f out/*
  PATH=$work/bin:$PATH "$run_all" --build build --out out --python "$work/bin/torch" "$@" >printed 2>&1
  expect "exit code of $*" $? "$code"
}

run 64 environment nonsense
check "an unknown part is named" contains printed 'part "nonsense": there are environment, unit'

run 64 --processes 0 unit
check "no process at all" contains printed "--processes 0: at least 1"

run 0 unit sanitizer laws cpu_gpu bench kernels reduce loader peers
expect "fed" "$(fields 'n["training from JPEG files"]["detail"]')" \
  "8730 images/s, 0.970 of 9000 in memory; the loader alone 9900 on $(nproc) CPUs"
expect "kernels of a step" "$(fields '[(k["name"], k["count"], round(k["seconds"], 6), k["memory_bytes"]) for k in r["tables"]["kernels"]["rows"]]')" \
  "[('conv', 2, 0.029, 14000000.0), ('row_loss_kernel<Float16>', 1, 0.002, None)]"
expect "device and driver" "$(fields 'r["device"], r["driver"]')" "('Made-up GPU', '580.1')"
expect "tests of ops_test_gpu" "$(fields '[x["name"] for x in r["rows"] if x["group"] == "ops_test_gpu"]')" \
  "['Relu.Passes', 'Devices/OpTest.BatchNormPasses/cuda_fp16', 'Devices/OpTest.ConvPasses/cuda_fp16']"
expect "tests under racecheck" "$(fields 'sum(x["group"] == "racecheck" for x in r["rows"])')" 1
expect "ways with one digest" "$(fields 'sum(x["part"] == "laws" for x in r["rows"])')" 36
expect "passed rows" "$(fields 'r["passed"] == sum(x["status"] == "passed" for x in r["rows"])')" True
expect "skipped" "$(fields '[x["part"] for x in r["rows"] if x["status"] == "skipped"]')" "[]"
expect "sums" "$(fields '[(x["ranks"], x["way"]) for x in r["tables"]["reduce"]]')" \
  "[(1, 'exact staged'), (2, 'exact staged')]"
expect "cases" "$(fields 'len(r["tables"]["bench"]), len(r["tables"]["peers"]["musts"])')" "(12, 2)"
for text in '| resnet50/fp16/256                     | 9000     | 30.00' '| conv | forward | 10.000' \
  'fp16 9000        | torch         | fp16 5000 | 1.80'; do
  check "the page has a table" contains "$(echo out/*.md)" "$text"
done

FAKE_TEST=Fails run 1 unit
expect "failed" "$(fields 'r["failed"], n["Relu.Fails"]["detail"]')" "(1, 'tests/a.cpp:1: Failure one is not two')"
expect "what comes after it" "$(fields 'r["passed"]')" 2
FAKE_TEST=Skips run 0 unit
expect "skipped" "$(fields 'r["skipped"], n["Relu.Skips"]["detail"]')" "(1, 'no such thing')"
FAKE_TEST=Crashes run 1 unit
expect "crashed" "$(fields 'r["failed"], r["passed"], n["Relu.Crashes"]["status"]')" "(1, 2, 'failed')"
FAKE_TEST=Hangs run 1 --patience 1 unit
expect "hangs" "$(fields 'n["Relu.Hangs"]["status"], n["Relu.Hangs"]["detail"][:9], r["passed"]')" \
  "('failed', 'cut after', 2)"
FAKE_TEST=NeverEnds run 1 --patience 1 unit
expect "never ends" "$(fields 'r["passed"], n["the program"]["status"]')" "(3, 'failed')"
FAKE_TEST=Hangs run 0 --limit 2 unit
expect "no time left" "$(fields 'n["Relu.Hangs"]["status"], n["2 tests"]["detail"]')" \
  "('skipped', 'no time left')"
FAKE_RACE=1 run 1 sanitizer
expect "found by a sanitizer" "$(fields 'r["failed"], r["passed"]')" "(5, 0)"
FAKE_LAW=broken run 1 laws
expect "broken law" "$(fields 'n["2 ranks x 2 workers"]["status"], r["failed"]')" "('failed', 9)"
FAKE_LOSS=2.51 run 1 cpu_gpu
expect "far from the CPU" "$(fields 'n["loss of the first step"]["status"]')" failed
FAKE_WIDE=1 run 0 kernels
expect "a line for each kernel" "$(fields 'r["tables"]["kernels"]["rows"]')" \
  "[{'name': 'row_loss_kernel', 'count': 1, 'seconds': 0.03, 'memory_bytes': None}]"
FAKE_NS=13000000 run 1 kernels
expect "a step of more than its kernels" "$(fields 'n["a step and its kernels"]["detail"]')" \
  "30.00 ms, 3 kernels 28.00 ms, at most 1.05 x"
FAKE_BENCH=autotune run 1 bench kernels
expect "what was not measured" "$(fields '[n[name]["status"] for name in ("resnet50/fp16/256/autotune/profile",
  "resnet50/fp16/256/autotune", "a step and its kernels", "resnet50/fp16/256")]')" \
  "['failed', 'skipped', 'skipped', 'passed']"
FAKE_BENCH=resnet152 run 1 bench
expect "cannot run" "$(fields 'n["resnet152/fp16/128"]["detail"]')" "exit code 70: no memory left"

FAKE_FED=8729 run 1 loader
expect "fed too slowly" "$(fields 'n["training from JPEG files"]["status"], r["tables"]["loader"]["from_files"]')" \
  "('failed', 8729)"
FAKE_FED=100 FAKE_LOADER=9899 run 0 loader
expect "CPUs that cannot feed it" "$(fields 'n["training from JPEG files"]["detail"][:26]')" \
  "the CPUs cannot feed it: 1"
FAKE_NO_PIL=1 run 0 loader
expect "no images" "$(fields 'n["images"]["detail"]')" \
  "--python makes none: exit code 1: No module named 'PIL'"

ln -s ops_test_gpu build/tests/ops/gradient_reducer_test_gpu
run 1 unit
expect "ranks that say nothing" "$(fields 'n["on 4 ranks"]["status"]')" failed
rm bin/nvidia-smi build/tests/ops/*
run 1
expect "without a GPU" "$(fields 'n["everything"]["detail"]')" "no GPU: nvidia-smi names none"
check "missing programs are named" contains printed "has no tests/**/*_gpu: build or pack them"

"$repository/tests/gpu/pack.sh" packed build/tests >printed 2>&1
expect "exit code of packing what is not built" $? 64
check "it says what to do" contains printed "build it: cmake --build --preset cuda"
finish
