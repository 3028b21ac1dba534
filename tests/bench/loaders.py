#!/usr/bin/env python3
"""Convoy's loader beside torchvision's, DALI's and FFCV's on the same images, in turns.

    tests/bench/loaders.py --data DIR --python PYTHON_WITH_PEERS [--out FILE.json]
    tests/bench/loaders.py --quick --data DIR --python PYTHON_WITH_PEERS

DIR is a folder of JPEGs with a folder for each class, or train/ and val/ with such folders. For each
case (training|evaluation/THREADS) all systems are started, then measured one after the other for
several rounds. A system that cannot run is a row with the reason. README.md beside this file says
how to read the tables.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile

from turns import (CannotRun, Peer, Program, machine_facts, measure_in_turns, rate, ratio_text,
                   ratios, run_json, say, spread, table)

HERE = pathlib.Path(__file__).resolve().parent
PEER = HERE / "peer_loaders.py"
CONVOY = pathlib.Path(os.environ.get("CONVOY") or HERE.parent.parent / "build/release/convoy")

DEFAULT_CASES = ["training/1", "training/2", "evaluation/1", "evaluation/2"]
QUICK_CASES = ["training/1"]

# name: what it is
SYSTEMS = {
    "convoy": "Convoy on the folder",
    "convoy-coefficients": "Convoy on shards by convoy pack --coefficients: the same pixels",
    "convoy-packed": "Convoy on --packed, what convoy pack made of the folder",
    "convoy-reencoded": "Convoy on the images as FFCV writes them",
    "torchvision-pil": "torchvision with Pillow in a DataLoader, normalised float32",
    "torchvision-pil-uint8": "the same without normalisation",
    "torchvision-io": "torchvision.io and transforms v2 in a DataLoader, normalised float32",
    "torchvision-io-uint8": "the same without normalisation",
    "dali": "DALI's CPU pipeline, normalised float32",
    "dali-uint8": "the same without normalisation, NHWC",
    "ffcv": "FFCV's JPEG mode on its own file of smaller images, normalised float32",
    "ffcv-uint8": "the same without normalisation",
}
OURS = [name for name in SYSTEMS if name.startswith("convoy")]
REENCODED = ("convoy-reencoded", "ffcv", "ffcv-uint8")

LIMIT = "fraction_of_limit_by_cpu_time"

# What is promised: so many times as fast as the peer's fastest variant, at one thread and at two.
MUSTS = {
    "training": [("convoy", "dali", 1.9), ("convoy", "torchvision-pil", 3.0),
                 ("convoy-packed", "dali", 4.0), ("convoy-reencoded", "ffcv", 1.0)],
    "evaluation": [("convoy", "dali", 2.0), ("convoy-reencoded", "ffcv", 1.0)],
}


def parse_case(text):
    transform, _, threads = text.partition("/")
    if transform not in MUSTS or not threads.isdigit() or int(threads) < 1:
        sys.exit(f'loaders.py: case "{text}": write training|evaluation/THREADS, for example '
                 f"{DEFAULT_CASES[0]}")
    return transform, int(threads)


# ---- Systems, as turns.py measures them


class Convoy(Program):
    def measure(self, seconds):
        answer = super().measure(seconds)
        answer["cpu_seconds_per_image"] = sum(answer["cpu_seconds_per_image"].values())
        return answer


class Loader(Peer):
    def measure(self, seconds):
        answer = super().measure(seconds)
        answer["cpu_seconds_per_image"] = answer["cpu_seconds"] / answer["images"]
        return answer


class Missing:
    def __init__(self, reason):
        self.reason = reason

    def start(self):
        raise CannotRun(self.reason)

    def stop(self):
        pass


def make_system(name, case, options):
    transform, threads = parse_case(case)
    if name in REENCODED and options.not_reencoded:
        return Missing(options.not_reencoded)
    if name == "convoy-coefficients" and options.not_packed:
        return Missing(options.not_packed)
    if name in OURS:
        data = {"convoy": options.data, "convoy-packed": options.packed,
                "convoy-coefficients": options.scratch / "coefficients",
                "convoy-reencoded": options.scratch / "reencoded"}[name]
        return Convoy([str(CONVOY), "bench", "loader", "--json", "--rounds", "1",
                       "--data", str(data), "--data-threads", str(threads),
                       "--set", f"batch_per_worker={options.batch}",
                       "--set", f"evaluation.batch={options.batch}"]
                      + (["--eval"] if transform == "evaluation" else []), {})
    return Loader([options.python, str(PEER), "--loader", name, "--threads", str(threads),
                   "--data", str(folder_of(options.data, transform)),
                   "--scratch", str(options.scratch), "--batch", str(options.batch)]
                  + (["--evaluation"] if transform == "evaluation" else []), {})


def folder_of(data, transform):
    """The folder of classes; a flat one serves both."""
    split = data / ("val" if transform == "evaluation" else "train")
    return split if split.is_dir() else data


def reencode(options):
    """Writes what FFCV reads; the reason where that is not possible."""
    say("writing the images as FFCV wants them")
    try:
        run_json([options.python, str(PEER), "--reencode", "--scratch", str(options.scratch),
                  "--data", str(folder_of(options.data, "training"))])
    except CannotRun as reason:
        return f"no images of FFCV's: {reason}"
    return None


def pack_coefficients(options):
    """Makes shards of coefficients; the reason where that is not possible."""
    say("packing the images as coefficients")
    try:
        run_json([str(CONVOY), "pack", str(options.data), str(options.scratch / "coefficients"),
                  "--coefficients", "--json"])
    except CannotRun as reason:
        return f"no shards of coefficients: {reason}"
    return None


# ---- Statistics and tables: pure functions


def family(name):
    return name.removesuffix("-uint8")


def fastest(rows, case, name):
    """Of the variants of a peer that were measured the one with the highest median, or None."""
    variants = [row for row in rows if row["case"] == case and family(row["system"]) == name
                and "images_per_second" in row]
    return max(variants, key=lambda row: row["images_per_second"]["median"], default=None)


def per_cpu_second(rounds):
    """The same rounds, by what a second of CPU time gives; other load hardly changes that."""
    return [r | {"images_per_second": 1 / r["cpu_seconds_per_image"]} for r in rounds]


def summarise(case, results):
    """What the tables show: a row for each system, and ratios against each peer's fastest variant."""
    rows, comparisons = [], []
    for name, result in results.items():
        row = {"case": case, "system": name, "reason": result["reason"]}
        rounds = result["rounds"]
        if rounds and result["reason"] is None:
            row["images_per_second"] = spread([r["images_per_second"] for r in rounds])
            row["cpu_seconds_per_image"] = spread([r["cpu_seconds_per_image"] for r in rounds])
            limits = [r[LIMIT] for r in rounds if LIMIT in r]
            row["fraction_of_limit"] = spread(limits)["median"] if limits else None
            row["peak_memory_bytes"] = max(r["peak_memory_bytes"] for r in rounds)
            row["other_cpus"] = max(r["other_cpus"] for r in rounds)
        rows.append(row)
    measured = [row["system"] for row in rows if "images_per_second" in row]
    for peer in dict.fromkeys(family(name) for name in measured if name not in OURS):
        best = fastest(rows, case, peer)["system"]
        theirs = results[best]["rounds"]
        found = {"case": case, "peer": peer, "variant": best, "ratio": {}, "cpu_ratio": {}}
        for ours in (name for name in measured if name in OURS):
            mine = results[ours]["rounds"]
            found["ratio"][ours] = spread(ratios(mine, theirs))
            found["cpu_ratio"][ours] = spread(
                ratios(per_cpu_second(mine), per_cpu_second(theirs)))
        comparisons.append(found)
    return rows, comparisons


def musts(comparisons):
    """Rows of what is promised, where both sides were measured."""
    found = []
    for comparison in comparisons:
        for ours, peer, least in MUSTS[parse_case(comparison["case"])[0]]:
            if peer == comparison["peer"] and ours in comparison["ratio"]:
                ratio = comparison["ratio"][ours]["median"]
                found.append({"case": comparison["case"], "ours": ours,
                              "peer": comparison["variant"], "ratio": ratio,
                              "cpu_ratio": comparison["cpu_ratio"][ours]["median"],
                              "least": least, "met": ratio >= least})
    return found


def tables(rows, comparisons):
    cells = []
    for row in rows:
        if "images_per_second" in row:
            i, limit = row["images_per_second"], row["fraction_of_limit"]
            cells.append([row["case"], row["system"],
                          f"{rate(i['min'])} / {rate(i['median'])} / {rate(i['max'])}",
                          f"{100 * limit:.0f} %" if limit else "",
                          f"{1e3 * row['cpu_seconds_per_image']['median']:.2f}",
                          f"{row['peak_memory_bytes'] / (1 << 20):.0f} MiB",
                          f"{row['other_cpus']:.2f}"])
        else:
            cells.append([row["case"], row["system"], f"not measured: {row['reason']}",
                          "", "", "", ""])
    text = table(["case", "system", "images/s min / median / max", "of limit", "CPU ms an image",
                  "peak memory", "other load (CPUs)"], cells)
    ours = [name for name in OURS if any(name in c["ratio"] for c in comparisons)]
    for key, what in (("ratio", "Times as fast as the peer's fastest variant"),
                      ("cpu_ratio", "The same by images per second of CPU time")):
        if ours:
            text += f"\n{what}, median of the rounds (min - max):\n\n"
            text += table(["case", "peer", *ours],
                          [[c["case"], c["variant"], *(ratio_text(c[key].get(n)) for n in ours)]
                           for c in comparisons])
    found = musts(comparisons)
    if found:
        text += "\nPromised:\n\n"
        text += table(["case", "", "peer", "ratio", "by CPU time", "must", "met"],
                      [[m["case"], m["ours"], m["peer"], f"{m['ratio']:.2f}",
                        f"{m['cpu_ratio']:.2f}", f"{m['least']:.1f}", "yes" if m["met"] else "no"]
                       for m in found])
    return text


# ---- The program


def parse_options(arguments):
    names = "\n".join(f"  {name:22} {what}" for name, what in SYSTEMS.items())
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        epilog="systems:\n" + names + "\n\ndefault cases:\n  " + "\n  ".join(DEFAULT_CASES))
    p.add_argument("--data", type=pathlib.Path, required=True, help="the folder of JPEGs")
    p.add_argument("--packed", type=pathlib.Path, help="what convoy pack made of it, if measured")
    p.add_argument("--cases", help="training|evaluation/THREADS, several with commas")
    p.add_argument("--systems", help="names with commas (default: all)")
    p.add_argument("--rounds", type=int, help="default: 5, --quick: 3")
    p.add_argument("--seconds", type=float, help="of one repetition (default: 4, --quick: 1)")
    p.add_argument("--batch", type=int, default=64, help="default: 64")
    p.add_argument("--quick", action="store_true", help="one case, about a minute")
    p.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    p.add_argument("--scratch", type=pathlib.Path,
                   help="folder for FFCV's images (default: a temporary one)")
    p.add_argument("--out", type=pathlib.Path, help="JSON file of all repetitions and the machine")
    options = p.parse_args(arguments)
    options.cases = options.cases.split(",") if options.cases else (
        QUICK_CASES if options.quick else DEFAULT_CASES)
    for case in options.cases:
        parse_case(case)
    options.systems = options.systems.split(",") if options.systems else [
        name for name in SYSTEMS if name != "convoy-packed" or options.packed]
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 4)
    for name in options.systems:
        if name not in SYSTEMS:
            sys.exit(f'loaders.py: system "{name}": there are {", ".join(SYSTEMS)}')
    if "convoy-packed" in options.systems and not options.packed:
        sys.exit("loaders.py: convoy-packed needs --packed")
    if not options.data.is_dir():
        sys.exit(f"loaders.py: --data {options.data}: no such folder")
    return options


def main(arguments=None):
    options = parse_options(arguments)
    if not CONVOY.exists():
        sys.exit(f"loaders.py: {CONVOY}: no such program; build it (README) or name it in CONVOY")
    with contextlib.ExitStack() as stack:
        if options.scratch is None:
            options.scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options.scratch.mkdir(parents=True, exist_ok=True)
        options.not_reencoded = None
        if any(name in REENCODED for name in options.systems):
            options.not_reencoded = reencode(options)
        options.not_packed = None
        if "convoy-coefficients" in options.systems:
            options.not_packed = pack_coefficients(options)
        return compare(options)


def compare(options):
    report = {"machine": machine_facts(max(parse_case(case)[1] for case in options.cases)),
              "versions": {}, "batch": options.batch, "cases": []}
    if any(name not in OURS for name in options.systems):
        try:
            report["versions"] = run_json([options.python, str(PEER), "--versions"])
        except (OSError, CannotRun) as error:
            sys.exit(f"loaders.py: --python {options.python} does not run: {error}")
    all_rows, all_comparisons = [], []
    for case in options.cases:
        results = measure_in_turns(case, options.systems,
                                   lambda name, c=case: make_system(name, c, options),
                                   options.rounds, options.seconds)
        rows, comparisons = summarise(case, results)
        all_rows += rows
        all_comparisons += comparisons
        report["cases"].append({"case": case, "systems": results, "summary": rows,
                                "comparisons": comparisons})
        if options.out:  # after each case: what was measured stays if a later one fails
            options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(tables(all_rows, all_comparisons), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
