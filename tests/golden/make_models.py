#!/usr/bin/env python3
"""Makes torchvision_models.json: what torchvision's models have for parameters, and in which order.

    python3 -m venv .venv && .venv/bin/pip install torch torchvision
    .venv/bin/python tests/golden/make_models.py                # writes the file beside itself

Runs a minute on the CPU. For each model: the number of parameters and multiply-accumulates of
convolutions and linear layers at its usual size (without auxiliary classifiers, as torchvision
documents them), its documented smallest size, and for each part of the network (the first two words
of a name, "layer1.0") in order the SHA-256 of its lines "name [shape]\n" for parameters, and for
batch norms "name running [channels]\n" behind them. tests/trainer/models/models_test.cpp makes the same
lines of our models.
"""

import hashlib
import json
import pathlib
import warnings

import torch
import torchvision

MODELS = (
    "alexnet vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn googlenet "
    "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2 "
    "resnext50_32x4d resnext101_32x8d resnext101_64x4d "
    "densenet121 densenet169 densenet201 densenet161"
).split()


def make(name, **options):
    with warnings.catch_warnings():  # googlenet warns of its slow start
        warnings.simplefilter("ignore")
        if name == "googlenet":
            options["init_weights"] = False
        return getattr(torchvision.models, name)(weights=None, **options).eval()


def macs(name):
    total = 0

    def hook(module, args, out):
        nonlocal total
        weight = module.weight  # [out, in / groups, ...]: each output takes one of its rows
        total += out.numel() * weight[0].numel()

    model = make(name, **({"aux_logits": False} if name == "googlenet" else {}))
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return total, sum(p.numel() for p in model.parameters())


def parts(name):
    model = make(name)
    lines = [(k, f"{k} [{', '.join(map(str, p.shape))}]\n") for k, p in model.named_parameters()]
    for k, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            lines.append((k, f"{k} running [{module.num_features}]\n"))
    result = {}
    for key, line in lines:
        result.setdefault(".".join(key.split(".")[:2]), []).append(line)
    return {part: {"lines": len(of_part),
                   "sha256": hashlib.sha256("".join(of_part).encode()).hexdigest()[:16]}
            for part, of_part in result.items()}


def main():
    models = {}
    for name in MODELS:
        counted, parameters = macs(name)
        meta = torchvision.models.get_model_weights(name).DEFAULT.meta
        assert parameters == meta["num_params"], (name, parameters, meta["num_params"])
        assert round(counted / 1e9, 3) == meta["_ops"], (name, counted, meta["_ops"])
        models[name] = {"parameters": parameters, "macs": counted, "min_size": meta["min_size"][0],
                        "parts": parts(name)}
    out = {"torchvision": torchvision.__version__, "models": models}
    path = pathlib.Path(__file__).parent / "torchvision_models.json"
    text = json.dumps(out, indent=1)
    path.write_text(text.replace('{\n     "lines"', '{"lines"').replace(',\n     "sha256"', ', "sha256"')
                    .replace('"\n    }', '"}') + "\n")


if __name__ == "__main__":
    main()
