#!/usr/bin/env python3
"""Makes logits.json: what torchvision's networks say of two images, computed in double.

    python3 -m venv .venv && .venv/bin/pip install torch torchvision
    .venv/bin/python tests/golden/make_logits.py [MODEL ...]     # default: all; some minutes

Weights and images are made by a formula (made_state.py), so the file holds logits only. Small images
are for every test run, 224 x 224 for those by hand. tests/golden/logits_test.cpp is the other side.
"""

import json
import pathlib
import sys

import torch
import torchvision

import made_state

CLASSES = 10
USUAL = 224
# name: side of the small images; None: only at the usual size, to save the tests' time
MODELS = {
    "alexnet": 64,
    "vgg11": 32, "vgg13": None, "vgg16": None, "vgg19": None,
    "vgg11_bn": 32, "vgg13_bn": None, "vgg16_bn": None, "vgg19_bn": None,
    "googlenet": 64,
    "resnet18": 64, "resnet34": None, "resnet50": 64, "resnet101": None, "resnet152": None,
    "resnext50_32x4d": 64, "resnext101_32x8d": None, "resnext101_64x4d": None,
    "wide_resnet50_2": 64, "wide_resnet101_2": None,
    "densenet121": 64, "densenet161": None, "densenet169": None, "densenet201": None,
}


def make_model(name):
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **options)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = value
        else:
            state[key] = torch.from_numpy(made_state.tensor(key, tuple(value.shape)))
    model.load_state_dict(state)
    return model.double().eval()


def logits(model, side):
    images = torch.from_numpy(made_state.images((2, 3, side, side))).double()
    with torch.no_grad():
        return [[float(f"{v:.9g}") for v in row] for row in model(images).tolist()]


def main():
    path = pathlib.Path(__file__).parent / "logits.json"
    entries = {}
    if path.exists():
        entries = {(e["model"], e["images"][2]): e for e in json.loads(path.read_text())["logits"]}
    for name in sys.argv[1:] or MODELS:
        model = make_model(name)
        for side in {MODELS[name] or USUAL, USUAL}:
            entries[name, side] = {"model": name, "images": [2, 3, side, side],
                                   "logits": logits(model, side)}
            print(name, side, entries[name, side]["logits"][0][:3], flush=True)
    order = list(MODELS)
    lines = [json.dumps(entries[key], separators=(",", ":"))
             for key in sorted(entries, key=lambda k: (order.index(k[0]), k[1]))]
    made_by = (f"make_logits.py, PyTorch {torch.__version__}, torchvision "
               f"{torchvision.__version__}, CPU, float64")
    path.write_text('{"made_by": "%s",\n"logits": [\n%s]}\n' % (made_by, ",\n".join(lines)))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
