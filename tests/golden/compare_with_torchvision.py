#!/usr/bin/env python3
"""Weights as torchvision initialises them, in and out: `convoy import`, our logits, ONNX Runtime's of
`convoy export`, and load_state_dict(strict=True) of what comes back. By hand; some minutes.

    python3 -m venv .venv && .venv/bin/pip install torch torchvision numpy onnx onnxruntime
    .venv/bin/python tests/golden/compare_with_torchvision.py --build build/release [MODEL ...]

Batch norms get the statistics of a batch of noise, as in a trained network, so that logits are of
size 1. Prints the largest difference of a logit from torchvision's own in fp32, all at 224 x 224, and
beside it torchvision's from its float64, which is what rounding does to any of them.
"""

import argparse
import copy
import json
import pathlib
import shutil
import struct
import sys
import tempfile

import numpy as np
import torch
import torchvision

import compare_with_onnxruntime as onnx_side
import made_state
from make_logits import MODELS

SIDE = 224
TOLERANCE = 1e-4


def save_file(state, path):
    """The safetensors format, as safetensors.torch.save_file writes it."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for key, value in state.items():
        size = value.numel() * value.element_size()
        header[key] = {"dtype": names[value.dtype], "shape": list(value.shape),
                       "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in state.values():
            file.write(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def load_file(path):
    types = {"F32": torch.float32, "I64": torch.int64}
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    state = {}
    for key, entry in json.loads(data[8:8 + length]).items():
        if key == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        state[key] = torch.frombuffer(bytearray(data[begin:end]) or bytearray(1),
                                      dtype=types[entry["dtype"]]).reshape(entry["shape"])
    return state


def make_model(name):
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    if norms:
        model.train()
        with torch.no_grad():
            model(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def compare(tools, name):
    model = make_model(name)
    state, out = tools.folder / "state.safetensors", tools.folder / "run"
    save_file(model.state_dict(), state)
    shutil.rmtree(out, ignore_errors=True)
    onnx_side.run(tools.convoy, "import", "--model", name, "--weights", state, "--out", out)
    state.unlink()
    x, ours = tools.ours(out, 2)
    x = x.reshape(2, 3, SIDE, SIDE)
    assert np.array_equal(x, made_state.images(x.shape)), "the images' formula differs"
    with torch.no_grad():
        theirs = model(torch.from_numpy(x)).numpy()
        exact = copy.deepcopy(model).double()(torch.from_numpy(x).double()).numpy()
    results = {"Convoy": ours.reshape(theirs.shape)}
    for column, options in (("ONNX", []), ("ONNX folded", ["--fold"])):
        session = onnx_side.session_of(tools.export(out, *options))
        results[column] = session.run(None, {"input": x})[0]
    back = tools.folder / "back.safetensors"
    onnx_side.run(tools.convoy, "export", out, back, "--force")
    returned = load_file(back)
    model.load_state_dict(returned, strict=True)
    with torch.no_grad():
        assert np.array_equal(model(torch.from_numpy(x)).numpy(), theirs), "the state came back changed"
    off = {k: np.abs(v - theirs).max() for k, v in results.items()}
    return np.abs(theirs).max(), off, np.abs(exact - theirs).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="the build's folder")
    parser.add_argument("models", nargs="*", default=list(MODELS), help="default: all")
    args = parser.parse_args()
    print(f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, fp32, 1000 classes, "
          f"{SIDE} x {SIDE}, 2 images; largest difference of a logit from torchvision's\n")
    print("| model | largest logit | Convoy | ONNX Runtime, batch norm kept | folded | float64 |\n|---|---|---|---|---|---|")
    failed = []
    with tempfile.TemporaryDirectory(prefix="convoy-torchvision-") as folder:
        tools = onnx_side.Tools(args.build.resolve(), pathlib.Path(folder))
        for name in args.models:
            largest, off, rounding = compare(tools, name)
            print(f"| {name} | {largest:.2f} | " + " | ".join(f"{v:.1e}" for v in [*off.values(), rounding])
                  + " |", flush=True)
            if max(off.values()) > TOLERANCE * max(1.0, largest):
                failed.append(name)
    if failed:
        sys.exit(f"above {TOLERANCE}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
