#!/usr/bin/env python3
"""ONNX files of `convoy export` through onnx.checker and ONNX Runtime, against our own logits.

    python3 -m venv .venv && .venv/bin/pip install numpy onnx onnxruntime
    .venv/bin/python tests/golden/compare_with_onnxruntime.py --build build/release            # ctest's: seconds
    .venv/bin/python tests/golden/compare_with_onnxruntime.py --build build/release --all      # 224 x 224: minutes

Each network is made with weights of a formula (tests/support/made_state.h), imported, exported with
batch norms kept and folded, and run at two batch sizes. Logits must agree within 1e-4 of the largest
one: fp32 is relative. Exit code 77 where numpy, onnx or onnxruntime are missing: ctest counts that as
skipped. CONVOY_PYTHON names another Python to run this with.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

python = os.environ.get("CONVOY_PYTHON")
if python and "CONVOY_REEXEC" not in os.environ:
    os.execve(python, [python, *sys.argv], {**os.environ, "CONVOY_REEXEC": "1"})
try:
    import numpy as np
    import onnx
    import onnxruntime
except ImportError as error:
    print(f"SKIPPED: {error}: pip install numpy onnx onnxruntime, and name that Python in CONVOY_PYTHON")
    sys.exit(77)

TOLERANCE = 1e-4
BATCHES = (1, 3)
CLASSES = 10
# One of each family, as small as it takes.
SMALL = {
    "cifar_nin": 32,
    "inception_v1": 80,
    "googlenet": 64,
    "highway_fc10": 28,
    "cifar_highway19": 32,
    "cifar_resnet20": 32,
    "resnet18": 64,
    "cifar_preact_resnet110": 32,
    "resnext50_32x4d": 64,
    "densenet121": 64,
}
# Every network that torchvision has, and some of each family that it has not.
ALL = ["alexnet", "alexnet_two_tower", "nin", "cifar_nin", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn",
       "vgg13_bn", "vgg16_bn", "vgg19_bn", "googlenet", "inception_v1", "inception_v1_naive", "highway_fc100",
       "cifar_highway19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain34",
       "cifar_resnet110", "cifar_plain20", "cifar_resnet18", "preact_resnet50", "cifar_preact_resnet164",
       "wide_resnet50_2", "wide_resnet101_2", "cifar_wrn_16_8", "resnext50_32x4d", "resnext101_32x8d",
       "resnext101_64x4d", "cifar_resnext29_8x64d", "densenet121", "densenet161", "densenet169", "densenet201",
       "cifar_densenet40_k12", "cifar_densenet_bc100_k12"]


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Tools:
    def __init__(self, build, folder):
        self.convoy = build / "convoy"
        self.logits = build / "tests/golden/network_logits"
        self.folder = folder

    def image_of(self, model):
        """Channels and sides of the network's usual input."""
        return json.loads(run(self.convoy, "model", "show", model, "--format", "json"))["input"]

    def make_run(self, model, channels, side):
        """A run of one checkpoint with the formula's weights."""
        state, out = self.folder / "state.safetensors", self.folder / "run"
        image = f"{channels}x{side}x{side}"
        run(self.logits, "state", model, image, CLASSES, state)
        shutil.rmtree(out, ignore_errors=True)
        grey = ["--mean", 0.5, "--std", 0.25] if channels == 1 else []
        run(self.convoy, "import", "--model", model, "--weights", state, "--out", out, "--input", image, *grey)
        state.unlink()
        return out

    def ours(self, checkpoint, batch, kind="images"):
        """What the network is given, and its logits."""
        x, y = self.folder / "x", self.folder / "y"
        run(self.logits, "run", checkpoint, batch, kind, x, y)
        return np.fromfile(x, np.float32), np.fromfile(y, np.float32)

    def export(self, checkpoint, *options):
        path = self.folder / "network.onnx"
        run(self.convoy, "export", checkpoint, path, "--force", *options)
        return path


def session_of(path):
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def difference(session, x, y, batch):
    """The largest, as a share of the largest logit (of 1, where all are smaller)."""
    source = session.get_inputs()[0]
    shape = [batch, *source.shape[1:]]
    got = session.run(None, {source.name: x.reshape(shape)})[0]
    y = y.reshape(batch, -1)
    assert got.shape == y.shape, (got.shape, y.shape)
    return float(np.abs(got - y).max() / max(1.0, np.abs(y).max()))


class Judge:
    def __init__(self):
        self.failures = 0

    def __call__(self, what, value):
        good = value <= TOLERANCE
        self.failures += not good
        print(f"{what:<60} {value:9.2e}{'' if good else '  TOO LARGE'}", flush=True)


def compare_network(tools, judge, model, side):
    channels = tools.image_of(model)[0]
    out = tools.make_run(model, channels, side)
    pairs = {batch: tools.ours(out, batch) for batch in BATCHES}
    for option in ("kept", "folded"):
        session = session_of(tools.export(out, *(["--fold"] if option == "folded" else [])))
        for batch, (x, y) in pairs.items():
            judge(f"{model} {channels} x {side} x {side}, batch norm {option}, batch {batch}",
                  difference(session, x, y, batch))


def compare_options(tools, judge):
    """Every opset, and what can be in the graph beside the network."""
    model, side = "cifar_resnet20", 32
    out = tools.make_run(model, 3, side)
    x, y = tools.ours(out, 2)
    for opset in range(13, 23):
        session = session_of(tools.export(out, "--opset", opset, "--batch", 2))
        assert session.get_inputs()[0].shape == [2, 3, side, side]
        judge(f"{model}, opset {opset}, batch 2 fixed", difference(session, x, y, 2))
    rows = y.reshape(2, -1).astype(np.float64)
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    session = session_of(tools.export(out, "--softmax"))
    assert session.get_outputs()[0].name == "probabilities"
    judge(f"{model}, --softmax", difference(session, x, shares.astype(np.float32).ravel(), 2))
    x, y = tools.ours(out, 2, "pixels")
    session = session_of(tools.export(out, "--normalise", "--fold"))
    assert session.get_inputs()[0].name == "pixels"
    judge(f"{model}, --normalise", difference(session, x, y, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="the build's folder")
    parser.add_argument("--all", action="store_true", help="every network, at its usual size")
    parser.add_argument("models", nargs="*", help="these only, at their usual size")
    args = parser.parse_args()
    judge = Judge()
    print(f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}; largest difference as a "
          "share of the largest logit")
    with tempfile.TemporaryDirectory(prefix="convoy-onnx-") as folder:
        tools = Tools(args.build.resolve(), pathlib.Path(folder))
        if args.all or args.models:
            for model in args.models or ALL:
                compare_network(tools, judge, model, tools.image_of(model)[1])
        else:
            compare_options(tools, judge)
            for model, side in SMALL.items():
                compare_network(tools, judge, model, side)
    if judge.failures:
        sys.exit(f"{judge.failures} difference(s) above {TOLERANCE}")


if __name__ == "__main__":
    main()
