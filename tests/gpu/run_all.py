#!/usr/bin/env python3
"""All that needs a GPU, on a machine that has one: tests, sanitizers, laws, benchmarks, peers.

    tests/gpu/run_all.sh [--build DIR] [--out DIR] [PART...]

The programs lie in DIR: the build tree of the preset `cuda`, or what tests/gpu/pack.sh made of it.
Prints one table and writes <date>-<commit>.json, .md and .log into --out. What could not run is a
row with its reason. Exit code: 0 nothing failed, 1 something did, 64 usage.
"""

import argparse
import array
import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import functools
import glob
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "bench"))
sys.dont_write_bytecode = True
import compare
import turns

MPIRUN = ROOT / "cluster" / "mpirun.sh"
COMPARE = ROOT / "tests" / "bench" / "compare.py"


# ---- What a part does with the machine


@dataclasses.dataclass
class Result:
    code: int  # negative: the signal
    out: str
    errors: str
    timed_out: bool
    seconds: float

    def reason(self):
        """One line that says why it did not do what it should."""
        last = turns.last_line(self.errors or self.out)
        return f"cut after {self.seconds:.0f} s; last line: {last}" if self.timed_out else (
            f"exit code {self.code}: {last}")


class Run:
    """The rows and tables so far, and how programs are started."""

    def __init__(self, options, work):
        self.options, self.work = options, work
        self.build = unpack(pathlib.Path(options.build).resolve(), work)
        self.rows, self.tables, self.facts = [], {}, {}
        self.log = open(options.log, "w", encoding="utf-8", errors="replace")
        self.logging = threading.Lock()
        self.part, self.deadline = None, 0.0
        self.environment = self._environment()
        self.convoy = self._wrapper("convoy.sh", self.build / "convoy")
        self.gpu = None  # its name, from the part "environment"
        self.tuned = {}  # cases of benchmarks whose engines are measured: whether it worked

    def row(self, group, name, status, detail="", tests=1):
        # Of a source's path stays what it is in the repository.
        detail = re.sub(r"/\S*/(?=tests/\S+:\d+: )", "", " ".join(str(detail).split()))
        self.rows.append({"part": self.part, "group": group, "name": name, "status": status,
                          "detail": detail[:600], "tests": tests})

    def judge(self, group, name, good, detail=""):
        self.row(group, name, "passed" if good else "failed", detail)
        return good

    def left(self):
        return self.deadline - time.monotonic()

    def has_time(self, group, name, tests=1):
        """Is there time left for it? A row where there is not."""
        if self.left() <= 0:
            self.row(group, name, "skipped", "no time left", tests)
        return self.left() > 0

    def gave_up(self, group, name, reason):
        """A row of what has no result: no fault of its own where the part's time was up."""
        self.row(group, name, "failed" if self.left() > 0 else "skipped", reason)

    def command(self, command, environment=None, limit=math.inf, silence=math.inf):
        """Runs it with our libraries, at most until the part's time is up, for `limit` seconds, or
        until it has printed nothing for `silence` seconds."""
        command = [str(word) for word in command]
        start = time.monotonic()
        end = min(self.deadline, start + limit)
        with tempfile.TemporaryFile("w+", errors="replace") as out, \
                tempfile.TemporaryFile("w+", errors="replace") as errors:
            try:
                process = subprocess.Popen(
                    command, env=self.environment | (environment or {}), stdin=subprocess.DEVNULL,
                    stdout=out, stderr=errors, start_new_session=True)
            except OSError as error:
                return Result(127, "", f"{command[0]}: {error.strerror}", False, 0)
            timed_out, size, grown = False, 0, start
            while not timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, min(1.0, end - time.monotonic())))
                    break
                now = time.monotonic()
                if os.fstat(out.fileno()).st_size != size:
                    size, grown = os.fstat(out.fileno()).st_size, now
                timed_out = now >= end or now - grown > silence
            if timed_out:
                for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 60)):
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, number)
                        process.wait(patience)
            out.seek(0)
            errors.seek(0)
            result = Result(process.returncode, out.read(), errors.read(), timed_out,
                            time.monotonic() - start)
        with self.logging:
            self.log.write(f"\n==== {self.part}: {shlex.join(command)[:2000]}\n{result.out}{result.errors}"
                           f"==== exit code {result.code}{', cut' if timed_out else ''} after "
                           f"{result.seconds:.1f} s\n")
            self.log.flush()
        return result

    def json(self, command, **keywords):
        """What a command prints as JSON, or None and the reason."""
        result = self.command(command, **keywords)
        if result.code != 0 or result.timed_out:
            return None, result.reason()
        return json.loads(result.out), None

    def mpirun(self, ranks, *arguments, program=None):
        """Words of a command that starts convoy, or `program`, on several ranks."""
        return ["env", f"CONVOY={program or self.convoy}", MPIRUN, "-n", ranks, "--", *arguments]

    def needs_gpu(self):
        """Is there a GPU? A row where there is not."""
        if self.gpu is None:
            self.gpu = find_gpu(self)
        if not self.gpu:
            self.row("", "everything", "skipped", "no GPU: nvidia-smi names none")
        return bool(self.gpu)

    def programs(self):
        """Test programs that are linked with the real CUDA libraries."""
        return sorted(p for p in self.build.glob("tests/**/*_gpu") if p.is_file())

    def _environment(self):
        """Libraries of a packed folder and of the wheels are found; Open MPI finds itself."""
        done = subprocess.run([self.options.python, "-c", "import sys; print(*sys.path, sep='\\n')"],
                              capture_output=True, text=True)
        wheels = [folder for path in done.stdout.split("\n") if path
                  for folder in sorted(glob.glob(f"{path}/nvidia/*/lib"))]
        paths = [str(self.build / "lib"), *wheels, os.environ.get("LD_LIBRARY_PATH", "")]
        environment = dict(os.environ)
        environment["GOLDEN_DIR"] = str(ROOT / "tests" / "golden")
        environment.setdefault("CONVOY_CACHE", str(self.work / "cache"))
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
        openmpi = self.build / "openmpi"
        if openmpi.exists():  # pack.sh laid it out so
            environment |= {"OPAL_PREFIX": str(openmpi), "OPAL_PKGLIBDIR": str(openmpi / "plugins"),
                            "OPAL_PKGDATADIR": str(openmpi / "help"),
                            "OPAL_SYSCONFDIR": str(openmpi / "etc"),
                            "PMIX_INSTALL_PREFIX": str(openmpi),
                            "PMIX_PKGLIBDIR": str(openmpi / "pmix-plugins"),
                            "PMIX_PKGDATADIR": str(openmpi / "pmix-help"),
                            "PATH": f"{openmpi / 'bin'}:{environment['PATH']}"}
        return environment

    def _wrapper(self, name, program):
        """A script that starts one of our programs with its libraries, for those who must not have
        them (PyTorch)."""
        script = self.work / name
        words = [f"{key}={value}" for key, value in self.environment.items()
                 if os.environ.get(key) != value]
        script.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, str(program)])} "$@"\n')
        script.chmod(0o755)
        return script


def unpack(build, work):
    """What pack.sh packed, in a folder that goes away; a build tree as it is."""
    packed = build / "packed.tar.xz"
    if not packed.exists():
        return build
    with tarfile.open(packed) as files:
        files.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return work


# ---- environment


def find_gpu(run):
    fields = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw",
              "power.limit", "memory.total", "temperature.gpu"]
    result = run.command(["nvidia-smi", f"--query-gpu={','.join(fields)}",
                          "--format=csv,noheader,nounits"])
    lines = result.out.strip().splitlines()
    if result.code != 0 or not lines:
        return ""
    run.facts |= dict(zip(fields, [field.strip() for field in lines[0].split(",")]))
    run.facts["gpus"] = len(lines)
    return run.facts["name"]


VERSIONS = """
import ctypes
for name, call, by_pointer in (("libcudnn.so.9", "cudnnGetVersion", 0),
                               ("libcublasLt.so.13", "cublasLtGetVersion", 0),
                               ("libnccl.so.2", "ncclGetVersion", 1)):
    try:
        library, number = ctypes.CDLL(name), ctypes.c_int()
        function = getattr(library, call)
        function.restype = ctypes.c_size_t
        print(name, (function(ctypes.byref(number)), number.value)[1] if by_pointer else function())
    except OSError as error:
        print(name, "missing:", error)
"""


def environment(run):
    if run.needs_gpu():
        run.row("", "GPU", "passed", run.gpu)
    run.facts["cpus"] = os.cpu_count()
    run.facts["cpus_allowed"] = len(os.sched_getaffinity(0))
    nvcc = run.command([shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version"])
    run.facts["nvcc"] = (re.findall(r"release ([\d.]+)", nvcc.out) or ["none"])[0]
    for line in run.command([sys.executable, "-c", VERSIONS]).out.splitlines():
        name, _, version = line.partition(" ")
        run.facts[name] = version
        run.judge("libraries", name, "missing" not in version, version)
    for program in [run.build / "convoy", *run.programs()]:
        missing = re.findall(r"(\S+) => not found", run.command(["ldd", program]).out)
        missing = [name for name in missing if name != "libcuda.so.1" or run.gpu]
        run.judge("libraries", program.name, program.exists() and not missing,
                  f"not found: {', '.join(missing)}" if missing else
                  "" if program.exists() else f"{program}: no such program: build or pack it")
    version = run.command([run.convoy, "--version"])
    run.judge("libraries", "convoy --version", version.code == 0,
              version.out.split("\n")[0] if version.code == 0 else version.reason())


# ---- unit: GoogleTest programs

MPI_PROGRAMS = {"gradient_reducer_test_gpu": (1, 2, 4)}  # started on so many ranks
TESTS_A_PROCESS = 12  # at most: to start one takes seconds
CPU_CASE = re.compile(r"(^|[/_])cpu(_|$)")  # ctest runs these everywhere
VERDICT = re.compile(r"\[( RUN      |       OK |  FAILED  |  SKIPPED )\] ([^ ,]+)")


def list_tests(text):
    names, suite = [], ""
    for line in text.splitlines():
        word = line.split("#")[0].rstrip()
        if word.endswith(".") and not word.startswith(" "):
            suite = word
        elif word.startswith("  ") and suite:
            names.append(suite + word.strip())
    return names


def read_verdicts(text):
    """(name, status, what was said) of each test up to the first failed one; the last may be
    "running"."""
    verdicts, said = [], []
    for line in text.splitlines():
        match = VERDICT.match(line)
        if line.startswith("[==========]") and verdicts:
            break
        if not match:
            said.append(line)
        elif match[1] == " RUN      ":
            verdicts.append((match[2], "running", []))
            said = verdicts[-1][2]
        elif verdicts and verdicts[-1][0] == match[2]:
            status = {"       OK ": "passed", "  FAILED  ": "failed", "  SKIPPED ": "skipped"}[match[1]]
            verdicts[-1] = (match[2], status, said)
            if status == "failed":
                break
    return verdicts


def gtest(run, program, group, wrapper=(), wanted=lambda name: True, most_failures=60):
    """Calls that make each test of a program a row, some tests each."""
    listed = run.command([program, "--gtest_list_tests"])
    names = list_tests(listed.out)
    chosen = [name for name in names if not CPU_CASE.search(name) and wanted(name)]
    if not names:
        run.gave_up(group, "the program", listed.reason())
    elif not chosen:  # with a GPU there are some
        run.row(group, "the program", "failed" if run.gpu else "skipped",
                f"of its {len(names)} tests none is for a GPU")
    parts = -(-len(chosen) // TESTS_A_PROCESS)  # neighbours take equally long: each part has all kinds
    return [functools.partial(run_tests, run, program, group, wrapper, chosen[number::parts], most_failures)
            for number in range(parts)]


def side_by_side(run, lists):
    """Calls of several programs, so many at once as there are to be processes: most of a test is the host's
    work. In turns, so that each program gets its share of the time; the longest list begins."""
    lists = sorted(lists, key=len, reverse=True)
    calls = [call for turn in itertools.zip_longest(*lists) for call in turn if call]
    with concurrent.futures.ThreadPoolExecutor(run.options.processes) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def run_tests(run, program, group, wrapper, left, most_failures):
    """After a failure a new process goes on with the rest, because a crash or a CUDA error fails all that
    comes after it in the same one. After so many failures in a row the rest would not tell more."""
    in_a_row = 0
    while left:
        if not run.has_time(group, f"{len(left)} tests", len(left)):
            return
        result = run.command([*wrapper, program, "--gtest_fail_fast",
                              f"--gtest_filter={':'.join(left)}"], silence=run.options.patience)
        verdicts = read_verdicts(result.out)
        for name, status, said in verdicts:
            detail = [line for line in said if line.strip() and not line.endswith(": Skipped")]
            # The sanitizer's words, but for those of its end.
            found = [line for line in said if line.startswith("=========")
                     and "SUMMARY" not in line and "terminate" not in line]
            if found:
                status, detail = "failed", found
            elif status == "running":  # it crashed or hung; or its time was up, and nobody knows
                status = "skipped" if result.timed_out and run.left() <= 0 else "failed"
                detail = [*detail[:4], result.reason()]
            run.row(group, name, status, " ".join(detail[:6]) if status != "passed" else "")
            in_a_row = in_a_row + 1 if status == "failed" else 0
        done = {name for name, _, _ in verdicts}
        left = [name for name in left if name not in done]
        if not done or (result.code != 0 and not in_a_row and not left):
            run.gave_up(group, "the program", result.reason())
        if left and (not done or in_a_row >= most_failures):
            run.row(group, f"{len(left)} tests", "skipped", f"{in_a_row} tests failed in a row before them"
                    if done else "the program said nothing", tests=len(left))
            return


def unit(run):
    run.gpu = find_gpu(run) if run.gpu is None else run.gpu
    if not run.programs():
        run.row("", "programs", "failed", f"{run.build} has no tests/**/*_gpu: build or pack them")
    lists = []
    for program in run.programs():
        if program.name not in MPI_PROGRAMS:
            lists.append(gtest(run, program, program.name))
        for ranks in MPI_PROGRAMS.get(program.name, ()):
            lists.append([functools.partial(on_ranks, run, program, ranks)])
    side_by_side(run, lists)


def on_ranks(run, program, ranks):
    name = f"on {ranks} ranks"
    if not run.gpu:
        run.row(program.name, name, "skipped", "no GPU")
        return
    if not run.has_time(program.name, name):
        return
    result = run.command(run.mpirun(ranks, "--gtest_color=no", program=program),
                         silence=run.options.patience)
    said = re.findall(r"\[  (PASSED|SKIPPED|FAILED)  ?\] (\d+) test", result.out)
    if result.code != 0 or not said:
        run.gave_up(program.name, name, result.reason())
    else:
        run.row(program.name, name, "passed", ", ".join(
            f"{number} {what.lower()}" for what, number in said))


# ---- sanitizer

# memcheck for everything; the others for what only kernels of our own do: cuDNN is known to be
# reported by synccheck (its release notes say so for norms), and leaves padding unwritten.
OURS = re.compile(r"BatchNorm|Pool|Loss|Softmax|Relu|Sigmoid|Add|Multiply|LocalResponse|Subsample|Concat|Dropout|"
                  r"Optimizer|Sgd|Lars|ImageInput")
SANITIZERS = {
    "memcheck": lambda name: "cuda" in name.lower(),
    "racecheck": lambda name: "cuda_fp16" in name and OURS.search(name),
    "synccheck": lambda name: "cuda_fp16" in name and OURS.search(name),
    "initcheck": lambda name: "cuda_fp16" in name and OURS.search(name),
}


def sanitizer(run):
    """API errors are not asked for: our code checks every call, cuDNN's probing makes some."""
    if not run.needs_gpu():
        return
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    program = run.build / "tests" / "ops" / "ops_test_gpu"
    side_by_side(run, [
        gtest(run, program, tool, (sanitizer, "--tool", tool, "--error-exitcode", "9", "--report-api-errors",
                                   "no"), wanted, most_failures=10)
        for tool, wanted in SANITIZERS.items()])


# ---- laws

JOB = """
data {{
  format: SYNTHETIC synthetic_samples: 512 classes: 10
  train {{ crop: CENTER size: {size} }} eval {{ resize: 0 }}
  mean_subtraction: NONE
}}
model {{ name: "{model}" }}
workers: 4 batch_per_worker: 16 threads_per_worker: 1 precision: {precision}
epochs: 100 stop_after_steps: {steps}
optimizer {{ learning_rate: 0.01 }}
schedule {{ kind: CONSTANT }}
evaluation {{ every_epochs: 0 }}
log {{ every_steps: 1 }}
"""
STEPS = 20
# The first layer is stored as windows and its max pooling merged with a batch norm; and one that a CPU
# trains in seconds.
LAWS_MODEL, SMALL_MODEL = {"model": "resnet18", "size": 64}, {"model": "cifar_resnet20", "size": 32}


def train(run, name, precision, ranks=1, device="cuda", steps=STEPS, settings=(), model=LAWS_MODEL):
    """Folder of the run, or None and a reason."""
    job = run.work / f"{name}-{precision}-{steps}.txtpb"
    job.write_text(JOB.format(precision=precision, steps=steps, **model))
    out = run.work / f"{name}-{precision}"
    arguments = ["train", "--job", job, "--out", out, "--device", device,
                 *(word for setting in settings for word in ("--set", setting))]
    result = run.command(run.mpirun(ranks, *arguments) if ranks > 1 else [run.convoy, *arguments],
                         limit=60)
    return (out, None) if result.code == 0 and not result.timed_out else (None, result.reason())


def digest(run, folder):
    answer, reason = run.json([run.convoy, "verify", folder, "--json"])
    return (answer["digest"], None) if answer else (None, reason)


def laws(run):
    """The same bits whatever the ranks, after a stop, without CUDA graphs, without overlap and
    with batch norms that are not merged; and with engines that were measured, too."""
    if not run.needs_gpu():
        return
    # Engines that are measured are others: runs that share what was measured have one digest.
    tuned = "gpu.autotune=true"
    for precision in ("FP16", "FP32", "BF16"):
        first = {}
        for name, ranks, stops, *settings in (
                ("1 rank x 4 workers", 1, [STEPS]), ("the same again", 1, [STEPS]),
                ("2 ranks x 2 workers", 2, [STEPS]), ("4 ranks x 1", 4, [STEPS]),
                ("stopped and resumed", 1, [STEPS // 2, STEPS]),
                ("without graphs", 1, [STEPS], "gpu.graphs=false"),
                ("without overlap", 1, [STEPS], "gpu.overlap=false"),
                ("batch norms apart", 1, [STEPS], "gpu.merge=false"),
                ("autotune", 1, [STEPS], tuned), ("autotune again", 1, [STEPS], tuned),
                ("autotune, 2 ranks", 2, [STEPS], tuned),
                ("autotune, resumed", 1, [STEPS // 2, STEPS], tuned)):
            if not run.has_time(precision, name):
                continue
            for steps in stops:
                folder, reason = train(run, name.replace(" ", "-"), precision, ranks, steps=steps,
                                       settings=settings)
                if not folder:
                    break
            found, reason = digest(run, folder) if folder else (None, reason)
            expected = first.setdefault(tuned in settings, found) or found
            if found is None:
                run.gave_up(precision, name, reason)
            else:
                run.judge(precision, name, found == expected, f"digest {found[:16]}" + (
                    "" if found == expected else f", not {expected[:16]}"))


# ---- cpu_gpu

# Two instruction sets of one CPU (AVX-512 and AVX2, oneDNN too) were measured on this job: equal in
# step 1, losses apart by at most 2.1e-4 in 20 steps, weights by 5.8e-4 (L2). A GPU may be five times as
# far; TF32 or bf16 in place of fp32 are refused in step 1 already.
FIRST_LOSS, ANY_LOSS, WEIGHTS = 1e-5, 1e-3, 3e-3


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [e["train_loss"] for e in map(json.loads, lines) if "train_loss" in e]


def weights(folder):
    data = next(folder.glob("checkpoints/step-*/model.safetensors")).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    values = array.array("f")
    for name in sorted(header):
        if name != "__metadata__" and header[name]["dtype"] == "F32":
            begin, end = header[name]["data_offsets"]
            values.frombytes(data[8 + length + begin:8 + length + end])
    return values


def norm(values):
    return math.sqrt(sum(x * x for x in values))


def cpu_gpu(run):
    if not run.needs_gpu():
        return
    folders = {}
    for device in ("cpu", "cuda"):
        folders[device], reason = train(run, device, "FP32", device=device, model=SMALL_MODEL)
        if reason:
            run.gave_up("", f"{STEPS} steps on {device}", reason)
            return
    cpu, gpu = losses(folders["cpu"]), losses(folders["cuda"])
    run.judge("", "both trained as many steps", len(cpu) == len(gpu) == STEPS,
              f"{len(cpu)} and {len(gpu)}")
    apart = [abs(a - b) / a for a, b in zip(cpu, gpu)] or [math.inf]
    old, new = weights(folders["cpu"]), weights(folders["cuda"])
    distance = norm(a - b for a, b in zip(old, new)) / norm(old)
    for what, value, most in (("loss of the first step", apart[0], FIRST_LOSS),
                              (f"losses of {STEPS} steps", max(apart), ANY_LOSS),
                              ("weights after them", distance, WEIGHTS)):
        run.judge("", what, value <= most, f"relative difference {value:.1e}, at most {most:.0e}")
    run.tables["cpu_gpu"] = [{"step": n + 1, "cpu": a, "gpu": b} for n, (a, b) in enumerate(zip(cpu, gpu))]


# ---- bench, peers, reduce

# What autotune has measured is kept for those behind it, peers of these cases too.
BENCH = ["resnet50/fp16/256/autotune", "resnet50/fp16/256/autotune/no-overlap",
         "resnet50/fp16/256/autotune/no-merge", "resnet50/fp16/256",
         "resnet50/bf16/256/autotune", "resnet50/fp16/64", "resnet50/fp16/64/no-graphs",
         "resnet18/fp16/256", "resnet152/fp16/128", "cifar_resnet20/fp16/128", "resnet50/fp32/64",
         "cifar_resnet20/fp16/128/no-graphs"]
# torch.compile comes apart and late: it takes minutes to start.
PEERS = [("resnet50/training/fp16/256", "torch"), ("resnet50/training/bf16/256", "torch"),
         ("resnet50/training/fp16/256", "torch-compile"),
         ("resnet50/training/bf16/256", "torch-compile"),
         ("cifar_resnet20/training/fp16/128", "torch"), ("resnet18/training/fp16/256", "torch"),
         ("resnet152/training/fp16/128", "torch")]


def bench(run):
    if not run.needs_gpu():
        return
    table = run.tables.setdefault("bench", [])
    # The profile waits after each call of the network, so its step is slower: it is a run of its own.
    for text in [BENCH[0] + "/profile", *BENCH]:
        model, precision, batch, *words = text.split("/")
        case = model, precision, batch
        if not run.has_time("", text) or ("autotune" in words and not tune(run, text, case)):
            continue
        answer, reason = run.json([*bench_step(run, *case), "--seconds", "2", "--warmup", "5",
                                   *(f"--{word}" for word in words)], limit=60)
        if answer is None:
            run.gave_up("", text, reason)
            continue
        run.row("", text, "passed", f"{answer['images_per_second']:.0f} images/s")
        if "profile" in words:
            run.tables["profile"] = answer["profile"] | {"case": text}
        else:
            table.append(answer | {"case": text})


def bench_step(run, model, precision, batch):
    return [run.convoy, "bench", "step", "--device", "cuda", "--model", model, "--precision",
            precision, "--batch", batch, "--json"]


def tune(run, what, case):
    """Are the engines of a case measured? Once, with all the time that there is: cut, nothing is kept.
    A row of `what` where they are not."""
    if case in run.tuned:
        if not run.tuned[case]:
            run.row("", what, "skipped", "its engines could not be measured")
        return run.tuned[case]
    answer, reason = run.json([*bench_step(run, *case), "--no-peak", "--autotune", "--seconds", "0",
                               "--warmup", "0"])
    run.tuned[case] = answer is not None
    if reason:
        run.gave_up("", what, reason)
    return run.tuned[case]


# A step may take this much longer than its kernels one after the other.
MOST_STEP = 1.05


KERNEL_TIME, KERNEL_BYTES = "gpu__time_duration.sum", ("dram__bytes_read.sum", "dram__bytes_write.sum")


def kernels_of(csv_text):
    """(name, seconds, bytes from and to memory) of each kernel that ncu has timed, in order. One line a
    metric or one a kernel. Of a name stays what tells kernels apart."""
    lines = csv_text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found = {}  # by the kernel's number: its name and metrics
    for row in csv.DictReader(line for line in lines[begin:] if line.startswith('"')):
        if not row["Kernel Name"]:  # the line of units
            continue
        name, metrics = found.setdefault(row["ID"], (row["Kernel Name"], {}))
        row[row.get("Metric Name")] = row.get("Metric Value")
        for metric in (KERNEL_TIME, *KERNEL_BYTES):
            with contextlib.suppress(ValueError):  # n/a
                metrics[metric] = float((row.get(metric) or "n/a").replace(",", ""))
    return [(re.sub(r"^void |convoy::|ops::|<unnamed>::|\(anonymous namespace\)::|\([^()]*\)$", "", name),
             metrics[KERNEL_TIME] / 1e9, sum(metrics.get(metric, math.nan) for metric in KERNEL_BYTES))
            for name, metrics in found.values() if KERNEL_TIME in metrics]


def kernels(run):
    """Every kernel of a step, which is made of those that all steps have, and the step beside their
    sum: as graphs, one kernel after the other."""
    if not run.needs_gpu():
        return
    case = tuple(BENCH[0].split("/")[:3])
    if not tune(run, "a step and its kernels", case):
        return
    step = [*bench_step(run, *case), "--no-peak", "--autotune", "--no-overlap"]
    answer, reason = run.json([*step, "--seconds", "2", "--warmup", "5"], limit=60)
    if answer is None:
        run.gave_up("", "a step", reason)
        return
    result = run.command(
        ["ncu", "--clock-control", "none", "--cache-control", "none", "--csv", "--target-processes", "all",
         "--print-units", "base", "--metrics", ",".join((KERNEL_TIME, *KERNEL_BYTES)), *step,
         "--no-graphs", "--seconds", "0", "--warmup", "0"], limit=150)
    timed = {}
    for name, *measured in kernels_of(result.out):
        timed.setdefault(name, []).append(measured)
    steps = sum(len(each) for name, each in timed.items() if name.startswith("row_loss_kernel"))
    if not steps:
        run.gave_up("", "ncu", result.reason())
        return
    rows = []
    for name, each in timed.items():
        if count := len(each) // steps:
            seconds, moved = (statistics.mean(values) * count for values in zip(*each))
            rows.append({"name": name, "count": count, "seconds": seconds,
                         "memory_bytes": None if math.isnan(moved) else moved})
    rows.sort(key=lambda row: -row["seconds"])
    seconds, total = answer["step_seconds"]["median"], sum(row["seconds"] for row in rows)
    run.tables["kernels"] = {"case": "/".join(case), "step_seconds": seconds, "rows": rows}
    run.judge("", "a step and its kernels", seconds <= MOST_STEP * total,
              f"{1e3 * seconds:.2f} ms, {sum(row['count'] for row in rows)} kernels {1e3 * total:.2f} ms, "
              f"at most {MOST_STEP} x")


def peers(run):
    if not run.needs_gpu():
        return
    table = run.tables.setdefault("peers", {"rows": [], "comparisons": [], "musts": []})
    for case, peer in PEERS:
        if not run.has_time(case, peer):
            continue
        file = run.work / "peers.json"
        file.unlink(missing_ok=True)
        result = run.command([sys.executable, COMPARE, "--device", "cuda", "--python",
                              run.options.python, "--cases", case, "--systems", f"convoy,{peer}",
                              "--rounds", "3", "--seconds", "2",
                              "--out", file],
                             environment={"CONVOY": str(run.convoy),
                                          "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")})
        if result.code != 0 or result.timed_out:
            run.gave_up(case, peer, result.reason())
            continue
        found = json.loads(file.read_text())["cases"][0]
        table["rows"] += found["summary"]
        table["comparisons"] += found["comparisons"]
        for row in found["summary"]:
            run.judge(case, row["system"], row["reason"] is None, row["reason"] or
                      f"{row['images_per_second']['median']:.0f} images/s")
    table["musts"] = compare.musts(table["rows"])
    undecided = {peer for peers in compare.MUSTS.values() for peer in peers} - {
        must["peer"] for must in table["musts"]}
    for peer in sorted(undecided):
        run.row("musts", f"Convoy / {peer}", "skipped", "not both fp16 and bf16 were measured")
    for must in table["musts"]:
        run.judge("musts", f"{must['model']} batch {must['batch']} / {must['peer']}", must["met"],
                  f"{must['ours']} is {must['ratio']:.2f} x {must['theirs']}, must be {must['least']}")


# ---- loader

# JPEG files as large as ImageNet's that take as long to decode; many are copies of one.
MAKE_IMAGES = """
import sys
import numpy
from PIL import Image
random = numpy.random.default_rng(1)
for n in range(int(sys.argv[2])):
    pixels = numpy.full((375, 500, 3), 128.0)
    for width, contrast in (3, 0.5), (12, 0.3), (60, 0.2), (250, 0.5), (500, 0.25):
        noise = random.integers(0, 256, (width * 3 // 4, width, 3), dtype=numpy.uint8)
        wide = Image.fromarray(noise).resize((500, 375), Image.BILINEAR)
        pixels += contrast * (numpy.asarray(wide, float) - 128)
    Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(f"{sys.argv[1]}/{n}.jpg", quality=90)
"""
IMAGES, COPIES, CLASSES = 64, 40, 8
LOADER_STEPS, LOADER_LOG = 100, 10
LOADER_JOB = """
data { train { crop: RANDOM_RESIZED size: 224 } eval { size: 224 } }
model { name: "%s" } workers: 1 batch_per_worker: %s precision: %s gpu { autotune: true }
epochs: 1000 stop_after_steps: %d
optimizer { learning_rate: 0.01 } schedule { kind: CONSTANT }
evaluation { every_epochs: 0 } log { every_steps: %d }
"""
LEAST_FED = 0.97  # of the rate on images that lie in memory
LEAST_LOADER = 1.1  # of that rate: the CPUs can feed it


def loader(run):
    """Training from JPEG files, beside the same step on images that lie in memory; where the CPUs give
    too few, that is said."""
    if not run.needs_gpu():
        return
    made, data = run.work / "images", run.work / "data"
    made.mkdir()
    result = run.command([run.options.python, "-c", MAKE_IMAGES, made, IMAGES])
    if result.code != 0:
        run.row("", "images", "skipped", f"--python makes none: {result.reason()}")
        return
    for number, image in enumerate(sorted(made.iterdir())):
        for split, copies in (("train", COPIES), ("val", 1)):
            folder = data / split / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                os.link(image, folder / f"{copy}-{image.name}")
    case = model, precision, batch = tuple(BENCH[0].split("/")[:3])
    if not tune(run, "training from JPEG files", case):
        return
    in_memory, reason = run.json([*bench_step(run, *case), "--no-peak", "--autotune", "--seconds", "2",
                                  "--warmup", "5"], limit=60)
    job = run.work / "loader.txtpb"
    job.write_text(LOADER_JOB % (model, batch, precision.upper(), LOADER_STEPS, LOADER_LOG))
    capacity, reason_of_capacity = run.json([run.convoy, "bench", "loader", "--data", data, "--job", job,
                                             "--no-limit", "--rounds", "1", "--seconds", "3", "--json"],
                                            limit=60)
    if in_memory is None or capacity is None:
        run.gave_up("", "rates apart", reason or reason_of_capacity)
        return
    out = run.work / "loader"
    result = run.command([run.convoy, "train", "--job", job, "--data", data, "--out", out, "--device",
                          "cuda"], limit=120)
    if result.code != 0 or result.timed_out:
        run.gave_up("", "training from JPEG files", result.reason())
        return
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    entries = [e for e in entries if "train_loss" in e][2:]  # behind the start
    fed, waits = (statistics.median(e[key] for e in entries)
                  for key in ("images_per_second", "input_wait_share"))
    rates = {"case": "/".join(case), "in_memory": in_memory["images_per_second"], "from_files": fed,
             "input_wait_share": waits, "loader_alone": capacity["images_per_second"],
             "cpus": len(os.sched_getaffinity(0))}
    run.tables["loader"] = rates
    detail = (f"{fed:.0f} images/s, {fed / rates['in_memory']:.3f} of {rates['in_memory']:.0f} in memory; the "
              f"loader alone {rates['loader_alone']:.0f} on {rates['cpus']} CPUs")
    if rates["loader_alone"] < LEAST_LOADER * rates["in_memory"]:
        run.row("", "training from JPEG files", "skipped", f"the CPUs cannot feed it: {detail}")
    else:
        run.judge("", "training from JPEG files", fed >= LEAST_FED * rates["in_memory"], detail)


def reduce(run):
    if not run.needs_gpu():
        return
    table = run.tables.setdefault("reduce", [])
    for ranks in (1, 2):
        arguments = ["bench", "allreduce", "--device", "cuda", "--repetitions", "5", "--json"]
        answer, reason = run.json(run.mpirun(ranks, *arguments), limit=60)
        if answer is None:
            run.gave_up("", f"{ranks} ranks", reason)
            continue
        run.row("", f"{ranks} ranks", "passed")
        table += [row | {"ranks": ranks} for row in answer["rows"]]


# name: what it does, its share of the time
PARTS = {
    environment: ("the GPU, driver, clocks, power, versions; all libraries are found", 2),
    unit: ("every test program *_gpu, each test a row", 12),
    sanitizer: ("compute-sanitizer on ops_test_gpu: memcheck, racecheck, synccheck, initcheck", 14),
    laws: ("one digest from 1 x 4, 2 x 2, 4 x 1 ranks x workers, and stopped and resumed", 11),
    cpu_gpu: ("CPU and GPU agree over 20 steps in fp32", 3),
    bench: ("convoy bench step, with a profile", 9),
    kernels: ("each kernel of a ResNet-50 step (ncu), and the step beside their sum", 5),
    reduce: ("convoy bench allreduce", 2),
    loader: ("training from JPEG files, and the same step on images in memory", 5),
    peers: ("PyTorch beside it (tests/bench/compare.py)", 20),
}


# ---- Report


def count(rows, status):
    return sum(row["tests"] for row in rows if row["status"] == status)


def summary_table(rows):
    """A line for each group with its counts, and one for each row that did not pass or that says
    something."""
    cells, groups = [], {}
    for row in rows:
        groups.setdefault((row["part"], row["group"]), []).append(row)
    for (part, group), members in groups.items():
        spoken = [row for row in members if row["status"] != "passed" or row["detail"]]
        quiet = [row for row in members if row not in spoken]
        if quiet or len(members) > 12:
            cells.append([part, group, "all" if not spoken else "counts", ", ".join(
                f"{count(members, status)} {status}" for status in ("passed", "failed", "skipped")
                if count(members, status)), ""])
        cells += [[part, group, row["name"], row["status"], row["detail"].replace("|", "/")[:200]]
                  for row in spoken[:20]]
        if len(spoken) > 20:
            cells.append([part, group, f"{len(spoken) - 20} more", "", "see the JSON file"])
    # Not padded: details are long, and the end of a terminal's output may be all there is.
    return "".join(f"| {' | '.join(row)} |\n" for row in
                   [["part", "of", "what", "result", "detail"], ["---"] * 5, *cells])


def bench_table(rows):
    return turns.table(
        ["case", "images/s", "step ms", "best", "90 %", "TFLOP/s", "of GEMM rate", "planned memory"],
        [[r["case"], f"{r['images_per_second']:.0f}",
          *(f"{1e3 * r['step_seconds'][key]:.2f}" for key in ("median", "min", "p90")),
          f"{r['gflops'] / 1e3:.0f}", f"{100 * r['fraction_of_peak']:.0f} %",
          f"{r['planned_memory_bytes'] / (1 << 30):.2f} GiB"] for r in rows])


def profile_table(profile):
    """The nodes of one kind and pass as one line, longest first, and what is not in a node."""
    sums = {}
    for node in profile["nodes"]:
        row = sums.setdefault((node["kind"], node["pass"]), [0.0, 0.0, 0.0, 0.0])
        for k, key in enumerate(("seconds", "flops", "bytes", "limit_seconds")):
            row[k] += node[key]
    step = sum(row[0] for row in sums.values()) + sum(profile["other_seconds"].values())
    cells = [[kind, pass_, f"{1e3 * s:.3f}", f"{100 * s / step:.1f}", f"{flops / s / 1e12:.0f}",
              f"{b / s / 1e9:.0f}", f"{100 * limit / s:.0f} %"]
             for (kind, pass_), (s, flops, b, limit) in
             sorted(sums.items(), key=lambda item: -item[1][0]) if s > 0]
    cells += [[name, "", f"{1e3 * s:.3f}", f"{100 * s / step:.1f}", "", "", ""]
              for name, s in profile["other_seconds"].items()]
    return turns.table(["kind", "pass", "ms", "step %", "TFLOP/s", "GB/s", "of limit"], cells)


def kernels_table(kernels):
    total = sum(row["seconds"] for row in kernels["rows"])
    return turns.table(
        ["kernel", "per step", "ms", "share %", "MB", "GB/s"],
        [[r["name"][:80], str(r["count"]), f"{1e3 * r['seconds']:.3f}", f"{100 * r['seconds'] / total:.1f}",
          *([""] * 2 if r["memory_bytes"] is None else
            [f"{r['memory_bytes'] / 1e6:.0f}", f"{r['memory_bytes'] / r['seconds'] / 1e9:.0f}"])]
         for r in kernels["rows"][:30]])


def reduce_table(rows):
    return turns.table(
        ["ranks", "way", "bytes", "us", "algbw GB/s", "busbw GB/s", "wrong"],
        [[str(r["ranks"]), r["way"], str(r["bytes"]), f"{r['time_us']['median']:.1f}",
          f"{r['algbw_gb_per_second']:.2f}", f"{r['busbw_gb_per_second']:.2f}", str(r["wrong"])]
         for r in rows])


def report(run, date, commit):
    facts = {key: run.facts.get(key, "none") for key in ("name", "driver_version")}
    return {"commit": commit, "date": date, "device": facts["name"], "driver": facts["driver_version"],
            **{status: count(run.rows, status) for status in ("passed", "failed", "skipped")},
            "environment": run.facts, "rows": run.rows, "tables": run.tables}


def text_of(report):
    tables = report["tables"]
    text = (f"# {report['device']}, {report['date']}, commit {report['commit']}\n\n"
            f"Driver {report['driver']}: **{report['passed']} passed, {report['failed']} failed, "
            f"{report['skipped']} skipped**. tests/gpu/run_all.sh; [README.md](README.md) explains it.\n\n")
    if tables.get("profile"):
        text += f"Profile of {tables['profile']['case']}:\n\n{profile_table(tables['profile'])}\n"
    if tables.get("bench"):
        text += bench_table(tables["bench"]) + "\n"
    if tables.get("kernels"):
        text += (f"Kernels of {tables['kernels']['case']}, each by itself:\n\n"
                 f"{kernels_table(tables['kernels'])}\n")
    if tables.get("reduce"):
        text += reduce_table(tables["reduce"]) + "\n"
    if tables.get("peers", {}).get("rows"):
        text += compare.tables(tables["peers"]["rows"], tables["peers"]["comparisons"]) + "\n"
    return text + summary_table(report["rows"])


def parse_options(arguments):
    parts = {part.__name__: part for part in PARTS}
    listed = "\n".join(f"  {part.__name__:12} {what}" for part, (what, _) in PARTS.items())
    p = argparse.ArgumentParser(prog="run_all.sh", description=__doc__, epilog="parts:\n" + listed,
                                formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help="default: all, in the order below")
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "cuda", metavar="DIR",
                   help="where the programs are (default: build/cuda)")
    p.add_argument("--out", metavar="DIR", type=pathlib.Path,
                   help="where the result goes (default: docs/results/gpu, without a GPU build/gpu)")
    p.add_argument("--processes", type=int, default=max(1, min(8, (os.cpu_count() or 1) // 2)),
                   metavar="N", help="test programs that run side by side (default: half the CPUs, at most 8)")
    p.add_argument("--patience", type=float, default=60, metavar="SECONDS",
                   help="a test that prints nothing for so long hangs (default: 60)")
    p.add_argument("--limit", type=float, default=560, help="seconds in all (default: 560)")
    p.add_argument("--python", default=sys.executable,
                   help="the interpreter that has torch and the wheels of cuDNN and NCCL")
    options = p.parse_args(arguments)
    for name in options.parts:
        if name not in parts:
            print(f'run_all.sh: part "{name}": there are {", ".join(parts)}', file=sys.stderr)
            sys.exit(64)
    if options.processes < 1:
        print(f"run_all.sh: --processes {options.processes}: at least 1", file=sys.stderr)
        sys.exit(64)
    if options.out is None:
        options.out = ROOT / ("docs/results/gpu" if shutil.which("nvidia-smi") else "build/gpu")
    options.parts = [part for name, part in parts.items() if not options.parts or name in options.parts]
    return options


def commit_of(build):
    """Of the programs: pack.sh wrote it down; a build tree is taken for the checkout's."""
    with contextlib.suppress(OSError), tarfile.open(build / "packed.tar.xz") as packed:
        for file in packed:  # it comes first
            if file.name.endswith("commit"):
                return packed.extractfile(file).read().decode().strip()
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True,
                          text=True)
    return done.stdout.strip() or "unknown"


def main(arguments=None):
    options = parse_options(arguments)
    date, commit = datetime.date.today().isoformat(), commit_of(options.build)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{date}-{commit}"
    options.log = f"{stem}.log"
    end = time.monotonic() + options.limit
    with tempfile.TemporaryDirectory(prefix="convoy gpu ") as work:
        run = Run(options, pathlib.Path(work))
        for number, part in enumerate(options.parts):
            # What an early part does not need is the later ones'.
            start = time.monotonic()
            shares = sum(PARTS[other][1] for other in options.parts[number:])
            run.part = part.__name__
            run.deadline = start + max(0.0, end - start) * PARTS[part][1] / shares
            if end - start < 1:
                run.row("", "everything", "skipped", "no time left")
                continue
            before = len(run.rows)
            try:
                part(run)
            except Exception as error:  # a part that breaks must not take the others' results along
                run.row("", "the part itself", "failed", f"{type(error).__name__}: {error}")
            rows = run.rows[before:]
            print(f"{run.part}: {count(rows, 'passed')} passed, {count(rows, 'failed')} failed, "
                  f"{count(rows, 'skipped')} skipped in {time.monotonic() - start:.0f} s", flush=True)
            result = report(run, date, commit)  # after each part: what there is stays
            pathlib.Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            pathlib.Path(f"{stem}.md").write_text(text_of(result), "utf-8")
    print("\n" + text_of(report(run, date, commit)) + f"\n{stem}.json")
    return 1 if count(run.rows, "failed") else 0


if __name__ == "__main__":
    sys.exit(main())
