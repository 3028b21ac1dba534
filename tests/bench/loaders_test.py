#!/usr/bin/env python3
"""loaders.py with made-up numbers and made-up programs: statistics, tables, what it asks of whom."""

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
import loaders

# Peers of so many images per second; DALI's bytes are its fastest, FFCV cannot be had.
FAKE_PEER = """
import json, os, sys
if "--versions" in sys.argv:
    print(json.dumps({"nvidia.dali": "2"}))
    sys.exit()
if "--reencode" in sys.argv:
    print(json.dumps({"ready": True}) if os.environ.get("FAKE_FFCV") else "")
    sys.exit(0 if os.environ.get("FAKE_FFCV") else "no module named ffcv")
option = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rate = {"dali": 40, "dali-uint8": 50, "torchvision-pil": 20}.get(option["--loader"], 10)
with open(os.environ["FAKE_LOG"], "a") as log:
    print(option["--loader"], " ".join(sys.argv[3:]), file=log)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    images = rate * int(option["--threads"])
    print(json.dumps({"images_per_second": images, "images": images, "cpu_seconds": 2.0,
                      "peak_memory_bytes": 1 << 20}), flush=True)
"""

FAKE_CONVOY = """#!/bin/sh
echo "convoy $*" >>"$FAKE_LOG"
case " $* " in
  *" --data-threads 2 "*) rate=200 ;;
  *) rate=100 ;;
esac
echo "{\\"images_per_second\\": $rate, \\"fraction_of_limit_by_cpu_time\\": 0.75,
  \\"cpu_seconds_per_image\\": {\\"user\\": 0.009, \\"system\\": 0.001},
  \\"peak_memory_bytes\\": 2097152}"
"""


def result(*rates, cpu=0.01, reason=None):
    return {"reason": reason, "rounds": [
        {"round": n, "images_per_second": r, "cpu_seconds_per_image": cpu,
         "peak_memory_bytes": 1 << 20, "other_cpus": 0.0} for n, r in enumerate(rates)]}


class Statistics(unittest.TestCase):
    def test_ratios_are_against_the_fastest_variant_of_a_peer(self):
        rows, comparisons = loaders.summarise("training/1", {
            "convoy": result(100, 200), "dali": result(40, 80), "dali-uint8": result(50, 100),
            "torchvision-pil": result(25, 20, cpu=0.04), "ffcv": result(reason="no ffcv")})
        self.assertEqual([(c["peer"], c["variant"]) for c in comparisons],
                         [("dali", "dali-uint8"), ("torchvision-pil", "torchvision-pil")])
        self.assertEqual(comparisons[0]["ratio"]["convoy"], {"min": 2, "median": 2, "max": 2})
        self.assertEqual(comparisons[1]["ratio"]["convoy"], {"min": 4, "median": 7, "max": 10})
        # Four times the CPU time an image, however fast the clock ran.
        self.assertEqual(comparisons[1]["cpu_ratio"]["convoy"]["median"], 4)
        self.assertEqual(rows[-1]["reason"], "no ffcv")
        self.assertIn("not measured: no ffcv", loaders.tables(rows, comparisons))

    def test_musts(self):
        def promised(case, **systems):
            _, comparisons = loaders.summarise(
                case, {name.replace("_", "-"): result(r) for name, r in systems.items()})
            return [(m["ours"], m["peer"], m["least"], m["met"]) for m in loaders.musts(comparisons)]

        self.assertEqual(promised("training/2", convoy=19, convoy_packed=39, dali_uint8=10,
                                  torchvision_pil=7),
                         [("convoy", "dali-uint8", 1.9, True),
                          ("convoy-packed", "dali-uint8", 4.0, False),
                          ("convoy", "torchvision-pil", 3.0, False)])
        self.assertEqual(promised("evaluation/1", convoy=19, dali=10, torchvision_pil=10),
                         [("convoy", "dali", 2.0, False)])
        # FFCV reads other images: it is compared with Convoy on the same ones.
        self.assertEqual(promised("training/1", convoy=9, convoy_reencoded=12, ffcv=10),
                         [("convoy-reencoded", "ffcv", 1.0, True)])

    def test_cases(self):
        self.assertEqual(loaders.parse_case("evaluation/12"), ("evaluation", 12))
        for wrong in ("training", "training/0", "testing/1", "training/many"):
            with self.assertRaisesRegex(SystemExit, wrong):
                loaders.parse_case(wrong)


class ProgramOfLoaders(unittest.TestCase):
    """The whole program; convoy and the peers are made up."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        (self.work / "images" / "val" / "class").mkdir(parents=True)
        self.log = self.work / "log"
        os.environ["FAKE_LOG"] = str(self.log)
        os.environ["FAKE_FFCV"] = ""
        loaders.PEER = self.work / "peer.py"
        loaders.PEER.write_text(FAKE_PEER)
        loaders.CONVOY = self.work / "convoy"
        loaders.CONVOY.write_text(FAKE_CONVOY)
        loaders.CONVOY.chmod(0o755)

    def run_program(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            loaders.main(["--data", str(self.work / "images"), "--seconds", "1", "--python",
                          sys.executable, *arguments])
        return [[cell.strip() for cell in line.strip("|").split("|")]
                for line in out.getvalue().splitlines() if line.startswith("|")]

    def test_table_and_file(self):
        file = self.work / "out.json"
        cells = self.run_program("--cases", "training/1,evaluation/2", "--rounds", "2", "--systems",
                                 "convoy,dali,dali-uint8,ffcv", "--out", str(file))
        self.assertEqual(cells[2], ["training/1", "convoy", "100 / 100 / 100", "75 %", "10.00",
                                    "2 MiB", cells[2][6]])
        self.assertEqual(cells[4][:5], ["training/1", "dali-uint8", "50.00 / 50.00 / 50.00", "",
                                        "40.00"])
        self.assertTrue(cells[5][2].startswith("not measured: no images of FFCV's: "), cells[5])
        self.assertEqual(cells[6][2], "200 / 200 / 200")
        self.assertEqual(cells[12:14], [["training/1", "dali-uint8", "2.00 (2.00 - 2.00)"],
                                        ["evaluation/2", "dali-uint8", "2.00 (2.00 - 2.00)"]])
        self.assertEqual(cells[-2:], [
            ["training/1", "convoy", "dali-uint8", "2.00", "4.00", "1.9", "yes"],
            ["evaluation/2", "convoy", "dali-uint8", "2.00", "2.00", "2.0", "yes"]])
        report = json.loads(file.read_text())
        self.assertEqual(report["versions"]["nvidia.dali"], "2")
        self.assertEqual(len(report["cases"][1]["systems"]["dali"]["rounds"]), 2)

    def test_what_everyone_is_asked_for(self):
        os.environ["FAKE_FFCV"] = "1"
        scratch = self.work / "scratch"
        self.run_program("--cases", "evaluation/2", "--rounds", "1", "--batch", "32", "--packed",
                         str(self.work / "shards"), "--scratch", str(scratch))
        lines = self.log.read_text().splitlines()
        images = self.work / "images"
        self.assertEqual(len(lines), len(loaders.SYSTEMS) + 1)
        self.assertEqual(lines[0], f"convoy pack {images} {scratch / 'coefficients'} --coefficients "
                                   "--json")
        common = "--data-threads 2 --set batch_per_worker=32 --set evaluation.batch=32 --eval"
        for data in (images, self.work / "shards", scratch / "coefficients", scratch / "reencoded"):
            self.assertIn(f"convoy bench loader --json --rounds 1 --data {data} {common} "
                          "--seconds 1.0", lines)
        # Convoy finds the split itself, peers are shown it.
        self.assertIn(f"dali --threads 2 --data {images / 'val'} --scratch {scratch} --batch 32 "
                      "--evaluation", lines)

    def test_nonsense_is_refused(self):
        for arguments, words in ((["--systems", "keras"], '"keras"'),
                                 (["--systems", "convoy-packed"], "--packed"),
                                 (["--data", str(self.work / "none")], "no such folder")):
            with self.assertRaisesRegex(SystemExit, words):
                self.run_program(*arguments)
        loaders.CONVOY.unlink()
        with self.assertRaisesRegex(SystemExit, "convoy: no such program"):
            self.run_program()


if __name__ == "__main__":
    unittest.main()
