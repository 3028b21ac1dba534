#!/usr/bin/env python3
"""Convoy beside PyTorch and ONNX Runtime on this machine, in turns, and the table of ratios.

    tests/bench/compare.py --python PYTHON_WITH_TORCH [--device cuda] [--out FILE.json]
    tests/bench/compare.py --quick --python PYTHON_WITH_TORCH

For each case (MODEL/PASS/PRECISION/BATCH) all systems are started, then measured one after the other
for several rounds, so that a machine that grows faster or slower does so for all. A system that
cannot run is a row with the reason. README.md beside this file says how to read the tables.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEER = HERE / "peer_pytorch.py"
MPIRUN = ROOT / "cluster" / "mpirun.sh"
CONVOY = os.environ.get("CONVOY")  # else of the build tree of the device

BUILD = {"cpu": "release", "cuda": "cuda"}
DEFAULT_CASES = {
    "cpu": [
        "resnet50/training/fp32/32",
        "resnet50/training/bf16/32",
        "cifar_resnet20/training/fp32/128",
        "cifar_resnet20/training/bf16/128",
        "resnet50/inference/fp32/32",
        "resnet50/inference/bf16/32",
    ],
    "cuda": [
        "resnet50/training/fp16/256",
        "resnet50/training/bf16/256",
        "resnet18/training/fp16/256",
        "resnet18/training/bf16/256",
        "cifar_resnet20/training/fp16/128",
        "cifar_resnet20/training/bf16/128",
        "resnet152/training/fp16/128",
        "resnet152/training/bf16/128",
    ],
}
QUICK_CASES = {
    "cpu": ["cifar_resnet20/training/fp32/128", "cifar_resnet20/training/bf16/128"],
    "cuda": ["cifar_resnet20/training/fp16/128", "cifar_resnet20/training/bf16/128"],
}
# What is promised on a GPU: so many times as fast as the peer, each in the faster of fp16 and bf16.
MUSTS = {("resnet50", "training", 256): {"torch": 1.5, "torch-compile": 1.2}}

# glibc gives large blocks back to the kernel at every free and faults them in again at every malloc.
# A PyTorch user who knows this keeps them, in huge pages.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# name: what it is
SYSTEMS = {
    "convoy-workers": "Convoy, one rank with 2 workers side by side",
    "convoy-threads": "Convoy, one rank with one worker on all threads",
    "convoy-ranks": "Convoy, two ranks",
    "convoy": "Convoy on one GPU (--device cuda)",
    "torch": "PyTorch eager",
    "torch-tuned": "PyTorch eager, malloc keeps memory in huge pages",
    "torch-compile": "torch.compile (inference: freezing), malloc as tuned; GPU: max-autotune",
    "torch-graph": "PyTorch eager, each step one CUDA graph (--device cuda)",
    "torch-ddp": "PyTorch DDP over gloo, two processes, malloc as tuned (training)",
    "onnxruntime": "ONNX Runtime, malloc as tuned (inference)",
}
DEFAULT_SYSTEMS = {
    "cpu": {
        "training": ["convoy-workers", "convoy-threads", "convoy-ranks",
                     "torch", "torch-tuned", "torch-ddp"],
        "inference": ["convoy-workers", "convoy-threads", "convoy-ranks",
                      "torch", "torch-tuned", "torch-compile", "onnxruntime"],
    },
    "cuda": {
        "training": ["convoy", "torch", "torch-compile"],
        "inference": ["convoy", "torch", "torch-compile"],
    },
}
GPU_ONLY = ("convoy", "torch-graph")
ON_A_GPU = (*GPU_ONLY, "torch", "torch-compile")
PARTS = 2  # workers, ranks and processes where a system splits the batch


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    pass_: str
    precision: str
    batch: int

    @classmethod
    def parse(cls, text):
        fields = text.split("/")
        if len(fields) != 4 or fields[1] not in ("training", "inference") or not fields[3].isdigit():
            sys.exit(f'compare.py: case "{text}": write MODEL/training|inference/PRECISION/BATCH, '
                     f"for example {DEFAULT_CASES['cpu'][0]}")
        return cls(fields[0], fields[1], fields[2], int(fields[3]))

    def __str__(self):
        return f"{self.model}/{self.pass_}/{self.precision}/{self.batch}"


class CannotRun(Exception):
    """The reason why a system has no number."""


# ---- Systems: start(), measure(seconds) -> a dict with images_per_second, peak_memory_bytes and
# cpu_seconds, stop()


class Peer:
    """A process that is measured whenever it is told to and sleeps in between."""

    def __init__(self, command, environment):
        self.command, self.environment = command, environment
        self.process = None
        self.errors = tempfile.TemporaryFile("w+", errors="replace")

    def start(self):
        self.process = subprocess.Popen(
            self.command, env=os.environ | self.environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self._answer()

    def measure(self, seconds):
        with contextlib.suppress(BrokenPipeError):  # it is gone: _answer says why
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        return self._answer()

    def stop(self):
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise CannotRun(f"ended with exit code {code}: {last_line(self.errors.read())}")
        answer = json.loads(line)
        if "error" in answer:
            raise CannotRun(answer["error"])
        return answer


class Convoy:
    """A process for each repetition: it starts in a fraction of a second."""

    def __init__(self, command, environment, warmup):
        self.command = [*command, "--no-peak", "--json", "--warmup", str(warmup)]
        self.environment = environment

    def start(self):
        pass

    def measure(self, seconds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = run_json([*self.command, "--seconds", str(seconds)], self.environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer["cpu_seconds"] = (after.ru_utime + after.ru_stime
                                 - before.ru_utime - before.ru_stime)
        if "cuda" in self.command:
            answer["peak_memory_bytes"] = answer["planned_memory_bytes"]  # on the GPU, as peers say
        return answer

    def stop(self):
        pass


def last_line(text):
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no message"


def run_json(command, environment=None):
    """The JSON object that a command prints."""
    done = subprocess.run(command, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun(f"exit code {done.returncode}: {last_line(done.stderr)}")
    return json.loads(done.stdout)


def make_system(name, case, options):
    if name == "convoy":
        return Convoy([str(options.convoy), *convoy_bench(case, case.batch, options.device)], {},
                      options.warmup)
    if name.startswith("convoy"):
        batch, workers, threads = {
            "convoy-workers": (case.batch, PARTS, options.threads // PARTS),
            "convoy-threads": (case.batch, 1, options.threads),
            "convoy-ranks": (case.batch // PARTS, 1, options.threads // PARTS),
        }[name]
        start = [str(options.convoy)]
        if name == "convoy-ranks":
            start = [str(MPIRUN), "-n", str(PARTS), "--"]
        return Convoy([*start, *convoy_bench(case, batch, options.device), "--workers", str(workers),
                       "--threads", str(threads)], {"CONVOY": str(options.convoy)}, options.warmup)
    ddp = name == "torch-ddp"
    engine = {"torch-compile": "compile", "torch-graph": "graph",
              "onnxruntime": "onnxruntime"}.get(name, "eager")
    return Peer([options.python, str(PEER), "--model", case.model, "--pass", case.pass_,
                 "--precision", case.precision, "--batch", str(case.batch), "--engine", engine,
                 "--device", options.device,
                 "--processes", str(PARTS if ddp else 1),
                 "--threads", str(options.threads // (PARTS if ddp else 1))],
                {} if name == "torch" or options.device == "cuda" else KEEP_MEMORY)


def convoy_bench(case, batch, device):
    return ["bench", "step", "--device", device, "--model", case.model,
            "--precision", case.precision, "--batch", str(batch)] + (["--inference"] if case.pass_ == "inference" else [])


# ---- Measurement


def machine_cpu_seconds():
    """CPU seconds that this machine's processes, and its host (steal), have used since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure_limit(case, options):
    """The machine's matrix-product rate and the FLOPs of an image, as `convoy bench step` counts;
    nothing where Convoy cannot run the case, which its rows will say."""
    try:
        answer = run_json([str(options.convoy), *convoy_bench(case, 2, options.device), "--workers",
                           "1", "--threads", str(options.threads), "--seconds", "0", "--warmup", "0", "--json"])
    except CannotRun as reason:
        say(f"{case}: no matrix-product rate: {reason}")
        return None
    return {"peak_gflops": answer["peak_gflops"],
            "gflop_per_image": answer["gflops"] / answer["images_per_second"]}


def measure_case(case, names, options):
    """Starts all systems, measures them in turns, stops them: name -> {"rounds": [...], "reason"}."""
    results = {name: {"rounds": [], "reason": None} for name in names}
    systems = {}
    try:
        for name in names:
            say(f"{case}: starting {name}")
            systems[name] = make_system(name, case, options)
            attempt(results[name], systems[name].start)
        for number in range(options.rounds):
            # Another one goes first each time, so that none always follows the same one.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if results[name]["reason"] is None:
                    attempt(results[name], lambda n=name: results[n]["rounds"].append(
                        measure(systems[n], options.seconds, number)))
            say(f"{case}: round {number + 1} of {options.rounds}: " + ", ".join(
                f"{name} {r['rounds'][-1]['images_per_second']:.4g}"
                for name, r in results.items() if r["reason"] is None))
    finally:
        for system in systems.values():
            system.stop()
    return results


def attempt(result, action):
    try:
        action()
    except CannotRun as reason:
        result["reason"] = str(reason)


def measure(system, seconds, number):
    machine, start = machine_cpu_seconds(), time.monotonic()
    answer = system.measure(seconds)
    elapsed = time.monotonic() - start
    other = machine_cpu_seconds() - machine - answer["cpu_seconds"]
    # /proc/stat counts ticks: a difference below one in each CPU is none.
    return answer | {"round": number, "other_cpus": max(0.0, other / elapsed)}


# ---- Statistics and tables: pure functions


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(ours, theirs):
    """Of the rounds that both have: ours / theirs, images per second."""
    rates = {r["round"]: r["images_per_second"] for r in theirs}
    return [r["images_per_second"] / rates[r["round"]] for r in ours if r["round"] in rates]


def summarise(case, results, limit):
    """What the tables show: a row for each system, a row of ratios for each peer."""
    rows, comparisons = [], []
    for name, result in results.items():
        row = {"case": str(case), "system": name, "reason": result["reason"]}
        rounds = result["rounds"]
        if rounds and result["reason"] is None:
            row["images_per_second"] = spread([r["images_per_second"] for r in rounds])
            row["fraction_of_peak"] = limit and (
                row["images_per_second"]["median"] * limit["gflop_per_image"]
                / limit["peak_gflops"])
            row["peak_memory_bytes"] = max(r["peak_memory_bytes"] for r in rounds)
            row["other_cpus"] = max(r["other_cpus"] for r in rounds)
        rows.append(row)
    measured = [row["system"] for row in rows if "images_per_second" in row]
    for peer in [name for name in measured if not name.startswith("convoy")]:
        comparisons.append({"case": str(case), "peer": peer, "ratio": {
            ours: spread(ratios(results[ours]["rounds"], results[peer]["rounds"]))
            for ours in measured if ours.startswith("convoy")}})
    return rows, comparisons


def musts(rows):
    """Rows of what is promised, where a peer was measured in fp16 and in bf16 both."""
    rates = {}  # (model, pass, batch), system -> precision -> images per second
    for row in rows:
        if "images_per_second" in row:
            case = Case.parse(row["case"])
            of = rates.setdefault(((case.model, case.pass_, case.batch), row["system"]), {})
            of[case.precision] = row["images_per_second"]["median"]
    found = []
    for key, peers in MUSTS.items():
        ours = rates.get((key, "convoy"))
        for peer, least in peers.items():
            theirs = rates.get((key, peer), {})
            if ours and {"fp16", "bf16"} <= theirs.keys():
                (our_precision, our_rate), (their_precision, their_rate) = (
                    max(r.items(), key=lambda item: item[1]) for r in (ours, theirs))
                ratio = our_rate / their_rate
                found.append({"model": key[0], "pass": key[1], "batch": key[2], "peer": peer,
                              "ours": f"{our_precision} {rate(our_rate)}",
                              "theirs": f"{their_precision} {rate(their_rate)}", "ratio": ratio,
                              "least": least, "met": ratio >= least})
    return found


def rate(value):
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def table(header, rows):
    """Markdown with columns that stand under each other."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths))
             for row in [header, ["-" * width for width in widths], *rows]]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def tables(rows, comparisons):
    cells = []
    for row in rows:
        if "images_per_second" in row:
            i = row["images_per_second"]
            cells.append([row["case"], row["system"],
                          f"{rate(i['min'])} / {rate(i['median'])} / {rate(i['max'])}",
                          share(row["fraction_of_peak"]),
                          f"{row['peak_memory_bytes'] / (1 << 30):.2f} GiB",
                          f"{row['other_cpus']:.2f}"])
        else:
            cells.append([row["case"], row["system"], f"not measured: {row['reason']}", "", "", ""])
    text = table(["case", "system", "images/s min / median / max", "of GEMM rate", "peak memory",
                  "other load (CPUs)"], cells)
    ours = [name for name in SYSTEMS if any(name in c["ratio"] for c in comparisons)]
    if ours:
        cells = [[c["case"], c["peer"], *(ratio_text(c["ratio"].get(name)) for name in ours)]
                 for c in comparisons]
        text += "\nTimes as fast as the peer, median of the rounds (min - max):\n\n"
        text += table(["case", "peer", *ours], cells)
    found = musts(rows)
    if found:
        text += "\nThe faster of fp16 and bf16 on both sides:\n\n"
        text += table(["case", "Convoy, images/s", "peer", "images/s", "ratio", "must", "met"],
                      [[f"{m['model']}/{m['pass']}/{m['batch']}", m["ours"], m["peer"], m["theirs"],
                        f"{m['ratio']:.2f}", f"{m['least']:.1f}", "yes" if m["met"] else "no"]
                       for m in found])
    return text


def share(fraction):
    return f"{100 * fraction:.0f} %" if fraction else ""


def ratio_text(ratio):
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"


# ---- The program


def machine_facts(options):
    """What a speed depends on."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        first = file.read().split("\n\n")[0]
    cpu = dict([part.strip() for part in line.split(":", 1)]
               for line in first.splitlines() if ":" in line)
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        **({"gpu": gpu_facts()} if options.device == "cuda" else {}),
    }


def gpu_facts():
    """Name, driver, and the clock and power that it may have; None where nobody says."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit",
             "--format=csv,noheader"], capture_output=True, text=True, check=True).stdout.strip()
    return None


def say(text):
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def parse_options(arguments):
    names = "\n".join(f"  {name:15} {what}" for name, what in SYSTEMS.items())
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        epilog="systems:\n" + names + "".join(
            f"\n\ndefault cases, --device {device}:\n  " + "\n  ".join(cases)
            for device, cases in DEFAULT_CASES.items()))
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--cases", help="MODEL/PASS/PRECISION/BATCH, several with commas")
    p.add_argument("--systems", help="names with commas (default: all that have the pass;\n"
                   "training on a CPU without torch-compile, which takes a minute to start)")
    p.add_argument("--rounds", type=int, help="default: 5, --quick: 3")
    p.add_argument("--seconds", type=float, help="of one repetition (default: 5, --quick: 1)")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                   help="that a system uses in all (default: the CPUs)")
    p.add_argument("--quick", action="store_true", help="small cases, about two minutes")
    p.add_argument("--python", default=sys.executable, help="the interpreter that has torch")
    p.add_argument("--out", help="JSON file of all repetitions and the machine")
    options = p.parse_args(arguments)
    cases = options.cases.split(",") if options.cases else (
        (QUICK_CASES if options.quick else DEFAULT_CASES)[options.device])
    options.cases = [Case.parse(text) for text in cases]
    options.systems = options.systems.split(",") if options.systems else None
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.warmup = 1 if options.quick else 2
    for name in options.systems or []:
        if name not in SYSTEMS:
            sys.exit(f'compare.py: system "{name}": there are {", ".join(SYSTEMS)}')
        if name not in ON_A_GPU if options.device == "cuda" else name in GPU_ONLY:
            sys.exit(f'compare.py: system "{name}" is not for --device {options.device}')
    options.convoy = pathlib.Path(CONVOY or ROOT / "build" / BUILD[options.device] / "convoy")
    if options.device == "cpu" and options.threads < PARTS:
        sys.exit(f"compare.py: --threads {options.threads}: two workers need two threads")
    return options


def peer_versions(options):
    """Versions of the peers' libraries; leaves where peers are wanted and torch is not there."""
    wanted = options.systems is None or any(not n.startswith("convoy") for n in options.systems)
    if not wanted:
        return {}
    try:
        versions = run_json([options.python, str(PEER), "--versions"])
    except (OSError, CannotRun) as error:
        sys.exit(f"compare.py: --python {options.python} does not run: {error}")
    if versions["torch"] is None or versions["torchvision"] is None:
        sys.exit(f"compare.py: {options.python} has no torch and torchvision; name an interpreter that "
                 "has with --python, or measure Convoy alone with --systems convoy-workers")
    return versions


def main(arguments=None):
    options = parse_options(arguments)
    if not options.convoy.exists():
        sys.exit(f"compare.py: {options.convoy}: no such program; build it (README) or name it in "
                 "CONVOY")
    report = {"machine": machine_facts(options), "versions": peer_versions(options), "cases": []}
    all_rows, all_comparisons = [], []
    for case in options.cases:
        limit = measure_limit(case, options)
        results = measure_case(case, options.systems or
                               DEFAULT_SYSTEMS[options.device][case.pass_], options)
        rows, comparisons = summarise(case, results, limit)
        all_rows += rows
        all_comparisons += comparisons
        report["cases"].append({"case": str(case), "limit": limit, "systems": results,
                                "summary": rows, "comparisons": comparisons})
        if options.out:  # after each case: what was measured stays if a later one fails
            pathlib.Path(options.out).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(tables(all_rows, all_comparisons), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
