#!/usr/bin/env python3
"""compare.py with made-up numbers and made-up programs: statistics, tables, the way it asks peers."""

import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.dont_write_bytecode = True
import compare

CASE = "resnet50/inference/bf16/32"

# A peer whose n-th answer is n times its rate; ONNX Runtime says why it cannot, the tuned one dies.
FAKE_PEER = """
import json, os, sys
if "--versions" in sys.argv:
    print(json.dumps({"torch": os.environ.get("FAKE_TORCH"), "torchvision": "0"}))
    sys.exit()
if "onnxruntime" in sys.argv:
    print(json.dumps({"error": "no bf16"}))
    sys.exit(1)
print(json.dumps({"ready": True}), flush=True)
for n, line in enumerate(sys.stdin, 1):
    if "GLIBC_TUNABLES" in os.environ and n == 2:
        sys.exit("first line\\n\\nout of memory")
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write("peer ")
    print(json.dumps({"images_per_second": 10.0 * n, "cpu_seconds": 0.0,
                      "peak_memory_bytes": 1 << 30}), flush=True)
"""

FAKE_CONVOY = """#!/bin/sh
case " $* " in
  *" --no-peak "*) printf 'convoy ' >>"$FAKE_LOG" ;;
esac
case " $* " in
  *" --batch 32 --inference --workers 2 --threads 1 "*) rate=40 ;;
  *" --batch 16 --inference --workers 1 --threads 1 "*) rate=30 ;;
  *" --device cuda "*" fp16 "*) rate=60 ;;
  *) rate=50 ;;
esac
echo "{\\"planned_memory_bytes\\": 3221225472,
  \\"images_per_second\\": $rate, \\"gflops\\": $((rate * 8)), \\"peak_gflops\\": 800,
  \\"peak_memory_bytes\\": 2147483648}"
"""


def rounds(*rates):
    return [{"round": n, "images_per_second": r, "peak_memory_bytes": 1 << 30, "other_cpus": n / 10}
            for n, r in enumerate(rates)]


class Statistics(unittest.TestCase):
    def test_a_ratio_is_taken_round_by_round(self):
        # The machine halves its speed after the first round; the ratio does not see it.
        self.assertEqual(compare.ratios(rounds(200, 100, 120), rounds(100, 50, 50)), [2, 2, 2.4])

    def test_a_round_that_one_side_lacks_is_left_out(self):
        self.assertEqual(compare.ratios(rounds(10, 20, 30), rounds(10, 20, 30)[1:]), [1, 1])

    def test_summary(self):
        results = {"convoy-ranks": {"rounds": rounds(30, 10, 20), "reason": None},
                   "torch": {"rounds": rounds(10, 10, 10), "reason": None},
                   "onnxruntime": {"rounds": rounds(10), "reason": "died"}}
        limit = {"gflop_per_image": 8, "peak_gflops": 320}
        rows, comparisons = compare.summarise(compare.Case.parse(CASE), results, limit)
        self.assertEqual(rows[0]["images_per_second"], {"min": 10, "median": 20, "max": 30})
        self.assertEqual(rows[0]["fraction_of_peak"], 0.5)
        self.assertEqual(rows[0]["other_cpus"], 0.2)
        self.assertEqual(rows[2]["reason"], "died")
        self.assertNotIn("images_per_second", rows[2])  # what died has no number, and no ratio
        self.assertEqual([c["peer"] for c in comparisons], ["torch"])
        self.assertEqual(comparisons[0]["ratio"]["convoy-ranks"], {"min": 1, "median": 2, "max": 3})

    def test_without_a_rate_of_the_machine_there_is_no_share_of_it(self):
        rows, _ = compare.summarise(compare.Case.parse(CASE),
                                    {"torch": {"rounds": rounds(10), "reason": None}}, None)
        self.assertIn("10.00       |              | 1.00 GiB", compare.tables(rows, []))

    def test_cases(self):
        self.assertEqual(str(compare.Case.parse(CASE)), CASE)
        for wrong in ("resnet50", "resnet50/forward/fp32/32", "resnet50/training/fp32/many"):
            with self.assertRaisesRegex(SystemExit, wrong):
                compare.Case.parse(wrong)

    def test_the_must_takes_the_faster_precision_of_both_sides(self):
        def row(precision, system, rate, batch=256):
            return {"case": f"resnet50/training/{precision}/{batch}", "system": system,
                    "images_per_second": {"median": rate}}

        rows = [row("fp16", "convoy", 900), row("bf16", "convoy", 800), row("fp16", "torch", 400),
                row("bf16", "torch", 500), row("fp16", "torch-compile", 800),
                row("bf16", "torch-compile", 700)]
        self.assertEqual([(m["peer"], m["ours"], m["theirs"], m["ratio"], m["met"])
                          for m in compare.musts(rows)],
                         [("torch", "fp16 900", "bf16 500", 1.8, True),
                          ("torch-compile", "fp16 900", "fp16 800", 1.125, False)])
        # Without bf16 of a peer nobody knows which is the faster; other batches promise nothing.
        self.assertEqual([m["peer"] for m in compare.musts(rows[:3] + rows[4:])], ["torch-compile"])
        self.assertEqual(compare.musts([row("fp16", "convoy", 9, 64), row("fp16", "torch", 1, 64),
                                        row("bf16", "torch", 1, 64)]), [])

    def test_columns_stand_under_each_other(self):
        self.assertEqual(compare.table(["a", "long"], [["wide", "b"]]),
                         "| a    | long |\n| ---- | ---- |\n| wide | b    |\n")


class Program(unittest.TestCase):
    """The whole program; convoy and the peers are made up."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        os.environ["FAKE_LOG"] = str(self.work / "log")
        os.environ["FAKE_TORCH"] = "2"
        compare.PEER = self.work / "peer.py"
        compare.PEER.write_text(FAKE_PEER)
        compare.CONVOY = compare.MPIRUN = self.work / "convoy"
        compare.CONVOY.write_text(FAKE_CONVOY)
        compare.CONVOY.chmod(0o755)

    def run_program(self, *arguments, cases=CASE):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            compare.main(["--cases", cases, "--threads", "2", "--seconds", "1",
                          "--python", sys.executable, *arguments])
        return [[cell.strip() for cell in line.strip("|").split("|")]
                for line in out.getvalue().splitlines() if line.startswith("|")]

    def test_table_and_file(self):
        file = self.work / "out.json"
        cells = self.run_program("--rounds", "3", "--out", str(file), "--systems",
                                 "convoy-workers,convoy-ranks,torch,torch-tuned,onnxruntime")
        self.assertEqual([row[1] for row in cells[2:7]],
                         ["convoy-workers", "convoy-ranks", "torch", "torch-tuned", "onnxruntime"])
        self.assertEqual(cells[2][2:5], ["40.00 / 40.00 / 40.00", "40 %", "2.00 GiB"])
        self.assertEqual(cells[3][2], "30.00 / 30.00 / 30.00")
        self.assertEqual(cells[4][2:5], ["10.00 / 20.00 / 30.00", "20 %", "1.00 GiB"])
        self.assertEqual(cells[5][2], "not measured: ended with exit code 1: out of memory")
        self.assertEqual(cells[6][2], "not measured: no bf16")
        self.assertEqual(cells[9:], [[CASE, "torch", "2.00 (1.33 - 4.00)", "1.50 (1.00 - 3.00)"]])
        report = json.loads(file.read_text())
        self.assertEqual(report["versions"]["torch"], "2")
        self.assertEqual(len(report["cases"][0]["systems"]["torch"]["rounds"]), 3)
        self.assertIn("flags", report["machine"])

    def test_systems_take_turns_and_another_goes_first_each_round(self):
        self.run_program("--rounds", "3", "--systems", "convoy-workers,torch")
        self.assertEqual(pathlib.Path(os.environ["FAKE_LOG"]).read_text().split(),
                         ["convoy", "peer", "peer", "convoy", "convoy", "peer"])

    def test_on_a_gpu(self):
        file = self.work / "out.json"
        case = "resnet50/training/{}/256"
        cells = self.run_program("--device", "cuda", "--rounds", "1", "--out", str(file),
                                 cases=f"{case.format('fp16')},{case.format('bf16')}")
        self.assertEqual([row[:5] for row in cells[2:5]], [
            [case.format("fp16"), "convoy", "60.00 / 60.00 / 60.00", "60 %", "3.00 GiB"],
            [case.format("fp16"), "torch", "10.00 / 10.00 / 10.00", "10 %", "1.00 GiB"],
            [case.format("fp16"), "torch-compile", "10.00 / 10.00 / 10.00", "10 %", "1.00 GiB"]])
        self.assertEqual(cells[-2], ["resnet50/training/256", "fp16 60.00", "torch", "fp16 10.00",
                                     "6.00", "1.5", "yes"])
        self.assertIn("gpu", json.loads(file.read_text())["machine"])

    def test_a_system_of_the_other_device_is_refused(self):
        for device, system in (("cuda", "convoy-ranks"), ("cuda", "onnxruntime"), ("cuda", "torch-ddp"),
                               ("cpu", "convoy")):
            with self.assertRaisesRegex(SystemExit, f'"{system}" is not for --device {device}'):
                self.run_program("--device", device, "--systems", system)

    def test_a_python_without_torch_is_named(self):
        del os.environ["FAKE_TORCH"]
        with self.assertRaisesRegex(SystemExit, sys.executable + " has no torch"):
            self.run_program()

    def test_a_program_that_is_not_built_is_named(self):
        compare.CONVOY.unlink()
        with self.assertRaisesRegex(SystemExit, "convoy: no such program"):
            self.run_program()


if __name__ == "__main__":
    unittest.main()
