"""What the comparisons here share: systems measured in turns, ratios round by round, tables."""

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time


class CannotRun(Exception):
    """The reason why a system has no number."""


# ---- Systems and programs


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


class Program:
    """A process for each repetition: it starts in a fraction of a second, and prints a JSON object."""

    def __init__(self, command, environment):
        self.command, self.environment = command, environment

    def start(self):
        pass

    def measure(self, seconds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = run_json([*self.command, "--seconds", str(seconds)], self.environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer["cpu_seconds"] = (after.ru_utime + after.ru_stime
                                 - before.ru_utime - before.ru_stime)
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


# ---- Measurement


def machine_cpu_seconds():
    """CPU seconds that this machine's processes, and its host (steal), have used since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure_in_turns(case, names, make, rounds, seconds):
    """Starts all systems, measures them in turns, stops them: name -> {"rounds": [...], "reason"}.
    make(name): a system, with start(), measure(seconds) -> a dict with images_per_second,
    peak_memory_bytes and cpu_seconds, and stop()."""
    results = {name: {"rounds": [], "reason": None} for name in names}
    systems = {}
    try:
        for name in names:
            say(f"{case}: starting {name}")
            systems[name] = make(name)
            attempt(results[name], systems[name].start)
        for number in range(rounds):
            # Another one goes first each time, so that none always follows the same one.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if results[name]["reason"] is None:
                    attempt(results[name], lambda n=name: results[n]["rounds"].append(
                        measure(systems[n], seconds, number)))
            say(f"{case}: round {number + 1} of {rounds}: " + ", ".join(
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


def rate(value):
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def table(header, rows):
    """Markdown with columns that stand under each other."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths))
             for row in [header, ["-" * width for width in widths], *rows]]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def ratio_text(ratio):
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"


# ---- The machine


def machine_facts(threads, gpu=False):
    """What a speed depends on."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        first = file.read().split("\n\n")[0]
    cpu = dict([part.strip() for part in line.split(":", 1)]
               for line in first.splitlines() if ":" in line)
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cpus": os.cpu_count(),
        "threads": threads,
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        **({"gpu": gpu_facts()} if gpu else {}),
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
