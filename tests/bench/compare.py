#!/usr/bin/env python3
"""Convoy beside PyTorch and ONNX Runtime on this machine, in turns, and the table of ratios.

    tests/bench/compare.py --python PYTHON_WITH_TORCH [--device cuda] [--out FILE.json]
    tests/bench/compare.py --quick --python PYTHON_WITH_TORCH

For each case (MODEL/PASS/PRECISION/BATCH) all systems are started, then measured one after the other
for several rounds, so that a machine that grows faster or slower does so for all. A system that
cannot run is a row with the reason. README.md beside this file says how to read the tables.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

from turns import (CannotRun, Peer, Program, machine_facts, measure_in_turns, rate, ratio_text,
                   ratios, run_json, say, spread, table)

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
    "convoy": "Convoy on one GPU (--device cuda), --autotune",
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


# ---- Systems, as turns.py measures them


class Convoy(Program):
    def __init__(self, command, environment, warmup):
        super().__init__([*command, "--no-peak", "--json", "--warmup", str(warmup)], environment)

    def measure(self, seconds):
        answer = super().measure(seconds)
        if "cuda" in self.command:
            answer["peak_memory_bytes"] = answer["planned_memory_bytes"]  # on the GPU, as peers say
        return answer


def make_system(name, case, options):
    if name == "convoy":
        # As PyTorch does here (cudnn.benchmark), it measures its engines first.
        return Convoy([str(options.convoy), *convoy_bench(case, case.batch, options.device),
                       "--autotune"], {}, options.warmup)
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


# ---- Statistics and tables: pure functions


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


# ---- The program


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
    report = {"machine": machine_facts(options.threads, options.device == "cuda"),
              "versions": peer_versions(options), "cases": []}
    all_rows, all_comparisons = [], []
    for case in options.cases:
        limit = measure_limit(case, options)
        results = measure_in_turns(
            case, options.systems or DEFAULT_SYSTEMS[options.device][case.pass_],
            lambda name: make_system(name, case, options), options.rounds, options.seconds)
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
