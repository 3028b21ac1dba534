#!/usr/bin/env python3
"""Makes the golden files of this folder: what PyTorch computes for one step and for ten.

    python3 -m venv .venv && .venv/bin/pip install torch torchvision
    .venv/bin/python tests/golden/make_golden.py                # writes *.json beside itself
    .venv/bin/python tests/golden/make_golden.py --search 20    # prints the kink_margin of seeds

It runs on the CPU, some minutes. Weights, inputs and labels are not stored: both sides make them
from counters with Philox4x32-10 (ops/core/random.h), so the files stay small.
tests/support/golden_file.h is the other side; it says what each field means and how the tolerances
follow from it.

Reference values are those of the float64 model, which starts from the same float32 weights. Beside
each stands how far PyTorch's own float32 is from it: the largest error of several float32 runs that
differ only in rounding (other convolution kernels, other memory layout, inputs and weights one ulp
away). The reference values are the same on every machine to about 12 digits; the errors are not.

A ReLU is a kink: where its input is so near zero that rounding decides its sign, two correct
float32 programs differ by a whole gradient element (1e-3 of a tensor; rounding is 1e-6), and that
would hide real errors. So each channel's batch-norm bias gets a nudge, 0 to 9 times 2^-6, that
keeps step one's ReLU inputs away from zero; the nudges are written. A max pool is a kink, too:
there the seed is chosen. `kink_margin` is the distance left, in units of the root mean square error
of float32 at that layer.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
import torchvision

from made_state import random_words

STEPS = 10
# A small learning rate: from step two on some ReLU does flip, and training amplifies it. At 0.05
# rounding alone moves the tenth loss by a per cent, at 0.0001 by 1e-6.
# A large weight decay, so that its effect after ten such steps (4e-4 of the weights) stands clear.
SGD = {"learning_rate": 1e-4, "momentum": 0.9, "weight_decay": 0.1}
# name: classes, input shape (N, C, H, W), seed
MODELS = {
    "resnet20": (10, (16, 3, 32, 32), 2),
    "resnet18_64": (1000, (8, 3, 64, 64), 4),
    "resnet20_frozen": (10, (8, 3, 32, 32), 1),
}
# Models of which a part is frozen, its batch norms in eval(): prefixes of names. What is trained has
# several learning rates: prefix -> what SGD's learning rate and weight decay are multiplied by.
FROZEN = {"resnet20_frozen": ("conv1", "bn1", "layer1")}
FACTORS = {"resnet20_frozen": {"layer2": (0.25, 2.0), "fc": (4.0, 0.5)}}

# The counter `a` of random4(seed, Purpose::kInitialise, a, b). A parameter's is its position in the
# list of parameters; the step is added to that of inputs and labels.
# Running statistics, where a part is frozen: by their position in the list of them.
INPUTS, LABELS, SIGNS, SAMPLES, RUNNING = 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000
PURPOSE_INITIALISE = 4
NUDGE = 2.0**-6
GRADIENT_SAMPLES, STATE_SAMPLES = 64, 16


# ---- Numbers from counters


def words(seed, a, count):
    """One word per element: element i is word i % 4 of counter b = i / 4."""
    return random_words(seed, PURPOSE_INITIALISE, a, (count + 3) // 4).reshape(-1)[:count]


def uniform(seed, a, shape, low, width):
    """float32 low + width * [0, 1). width is a power of two, so only the sum rounds: the same bits
    from any IEEE machine, with or without fused multiply-add."""
    unit = (words(seed, a, int(np.prod(shape))) >> 8).astype(np.float32) * np.float32(2.0**-24)
    return (np.float32(low) + np.float32(width) * unit).reshape(shape)


def uniform_below(word, n):
    return (word.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)


def inputs(seed, step, shape):
    """NCHW, in [-2, 2)."""
    return uniform(seed, INPUTS + step, shape, -2.0, 4.0)


def labels(seed, step, batch, classes):
    return uniform_below(words(seed, LABELS + step, batch), classes).astype(np.int64)


def parameter_range(name, shape):
    """(low, width) of a parameter's uniform numbers."""
    if len(shape) > 1:  # He's uniform bound, sqrt(6 / fan_in), or fc's 1 / sqrt(fan_in), as 2^n
        gain = 1.0 if name.startswith("fc") else 6.0
        bound = 2.0 ** round(np.log2(gain / np.prod(shape[1:])) / 2)
        return -bound, 2 * bound
    if name.endswith("weight"):  # batch norm's gamma
        return 0.5, 1.0
    if name.startswith("fc"):
        return -0.125, 0.25
    return -0.1875, 0.25  # batch norm's beta, before its nudge


# ---- The models


class ShortcutA(torch.nn.Module):
    """He et al. 2015, section 3.3, option A: subsample, zero channels half front, half behind."""

    def forward(self, x):
        pad = x.shape[1] // 2
        return torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))


class ResNet20(torch.nn.Module):
    """He et al. 2015, section 4.2 with n = 3; names in torchvision's style."""

    def __init__(self, classes):
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        self.relu = torch.nn.ReLU(inplace=True)
        self.layer1 = torch.nn.Sequential(*[block(16, 16) for _ in range(3)])
        for stage, c in ((2, 32), (3, 64)):
            first = block(c // 2, c, 2, ShortcutA())
            setattr(self, f"layer{stage}", torch.nn.Sequential(first, block(c, c), block(c, c)))
        self.fc = torch.nn.Linear(64, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def is_frozen(name, key):
    return key.startswith(FROZEN.get(name, ()))


def running_range(key):
    """(low, width) of the running statistics that a model with frozen parts starts with."""
    return (-0.5, 1.0) if key.endswith("running_mean") else (0.75, 1.0)


def bare_model(name):
    classes = MODELS[name][0]
    if name.startswith("resnet20"):
        return ResNet20(classes)
    return torchvision.models.resnet18(weights=None, num_classes=classes)


def make_nudges(name, seed):
    """Batch-norm bias name -> integers 0..9 per channel: those that leave the ReLU inputs of that
    channel farthest from zero in step one. One forward pass: a ReLU's input is what the batch norm
    that ran last put out, perhaps plus a shortcut; a nudge of its bias moves just that channel."""
    model = make_model(name, seed, torch.float64, {})
    norms = {id(m): key for key, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    nudges = {}
    last = []

    def before_relu(_, args):
        candidates = torch.arange(10, dtype=torch.float64) * NUDGE
        channels = args[0].transpose(0, 1).flatten(1)  # [C, N * H * W]
        nearest = torch.stack([(channels + c).abs().amin(dim=1) for c in candidates])
        best = nearest.argmax(dim=0)
        nudges[norms[id(last[-1])] + ".bias"] = best.numpy()
        return args[0] + candidates[best].view(1, -1, 1, 1)

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, out: last.append(m))
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(before_relu)
    with torch.no_grad():
        model(torch.from_numpy(inputs(seed, 0, MODELS[name][1])).double())
    return nudges


def make_model(name, seed, dtype, nudges, ulp_run=0):
    model = bare_model(name)
    with torch.no_grad():
        for index, (key, p) in enumerate(model.named_parameters()):
            w = uniform(seed, index, tuple(p.shape), *parameter_range(key, tuple(p.shape)))
            if key in nudges:
                w = w + nudges[key].astype(np.float32) * np.float32(NUDGE)
            p.copy_(torch.from_numpy(one_ulp_away(w, ulp_run) if ulp_run else w))
            p.requires_grad = not is_frozen(name, key)
        for index, (key, b) in enumerate(running_statistics(model)):
            if name in FROZEN:
                w = uniform(seed, RUNNING + index, tuple(b.shape), *running_range(key))
                b.copy_(torch.from_numpy(one_ulp_away(w, ulp_run) if ulp_run else w))
    model = model.to(dtype).train()
    for key, m in model.named_modules():
        if isinstance(m, torch.nn.BatchNorm2d) and is_frozen(name, key):
            m.eval()
    return model


def running_statistics(model):
    return [(key, b) for key, b in model.named_buffers() if "running" in key]


def make_optimizer(name, model):
    """One group for each entry of FACTORS, one for the rest."""
    groups = {}
    for key, p in model.named_parameters():
        if p.requires_grad:
            prefix = next((f for f in FACTORS.get(name, {}) if key.startswith(f)), None)
            groups.setdefault(prefix, []).append(p)
    rate, decay = SGD["learning_rate"], SGD["weight_decay"]
    listed = []
    for prefix, parameters in groups.items():
        of_rate, of_decay = FACTORS[name][prefix] if prefix else (1.0, 1.0)
        listed.append({"params": parameters, "lr": rate * of_rate, "weight_decay": decay * of_decay})
    return torch.optim.SGD(listed, momentum=SGD["momentum"])


# ---- Running it


def one_ulp_away(x, run):
    """Each number of x moved one ulp up or down by a random sign of this run."""
    up = words(run, SIGNS + 1, x.size).reshape(x.shape) >> 31 != 0
    return np.nextafter(x, np.where(up, np.float32(np.inf), np.float32(-np.inf)))


def run(name, seed, nudges, dtype=torch.float32, channels_last=False, onednn=True, ulp_run=0):
    """Trains STEPS steps; everything returned is float64 numpy."""
    torch.backends.mkldnn.enabled = onednn
    classes, shape, _ = MODELS[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model(name, seed, dtype, nudges, ulp_run).to(memory_format=layout)
    optimizer = make_optimizer(name, model)
    result = {"losses": []}
    for step in range(STEPS):
        x = inputs(seed, step, shape)
        x = one_ulp_away(x, ulp_run) if ulp_run else x
        x = torch.from_numpy(x).to(dtype).contiguous(memory_format=layout)
        target = torch.from_numpy(labels(seed, step, shape[0], classes))
        optimizer.zero_grad()
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss.backward()
        result["losses"].append(loss.item())
        if step == 0:
            result["logits"] = logits.detach().double().numpy().copy()
            result["gradients"] = {k: p.grad.double().numpy().copy()
                                   for k, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
    result["parameters_after"] = {k: p.detach().double().numpy().copy()
                                  for k, p in model.named_parameters()}
    result["running_after"] = {k: b.double().numpy().copy()
                               for k, b in running_statistics(model)}
    return result


FLOAT32_RUNS = [{}, {"channels_last": True}, {"onednn": False}]
FLOAT32_RUNS += [{"ulp_run": i} for i in range(1, 11)]


def kink_margin(name, seed, nudges):
    """How far the nearest ReLU input or max-pool runner-up of step one is from the kink, in units
    of the root mean square of float32's error at that layer."""
    torch.backends.mkldnn.enabled = True
    shape = MODELS[name][1]
    values = {}
    for dtype in (torch.float32, torch.float64):
        model = make_model(name, seed, dtype, nudges)
        seen = values[dtype] = []

        def before_relu(_, args):
            seen.append(args[0].detach().double().clone().flatten())  # the ReLU works in place

        def before_max_pool(_, args):
            x = args[0].detach().double()
            planes = x.reshape(-1, 1, *x.shape[2:])
            windows = torch.nn.functional.unfold(planes, 3, padding=1, stride=2)
            best = windows.topk(2, dim=1).values
            gap = best[:, 0] - best[:, 1]
            # Where the whole window is zero no gradient passes; any large number will do.
            seen.append(torch.where(best[:, 0] > 0, gap, torch.full_like(gap, 1e9)).flatten())

        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.register_forward_pre_hook(before_relu)
            if isinstance(module, torch.nn.MaxPool2d):
                module.register_forward_pre_hook(before_max_pool)
        with torch.no_grad():
            model(torch.from_numpy(inputs(seed, 0, shape)).to(dtype))
    margins = []
    for x32, x64 in zip(values[torch.float32], values[torch.float64]):
        margins.append((x64.abs().min() / (x32 - x64).square().mean().sqrt()).item())
    return min(margins)


# ---- Writing it


def digits(x, n):
    return float(f"{x:.{n}g}")


def projections(flat):
    """Sums with random signs: element i's sign in sum p is bit i % 32 of word p of counter i / 32
    (set: minus)."""
    bits = random_words(0, PURPOSE_INITIALISE, SIGNS, (flat.size + 31) // 32)  # [calls, 4]
    minus = (bits[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    minus = minus.reshape(-1, 4)[: flat.size]
    return [float(np.sum(np.where(minus[:, p], -flat, flat))) for p in range(4)]


def sample_positions(size, count):
    return np.arange(size) if size <= count else uniform_below(words(0, SAMPLES, count), size)


def summary(name, exact, runs, samples):
    flat = exact.reshape(-1)
    errors = [r.reshape(-1) - flat for r in runs]
    return {
        "name": name,
        "shape": list(exact.shape),
        "norm": float(np.linalg.norm(flat)),
        "sum": float(flat.sum()),
        "projections": projections(flat),
        "error_norm": max((digits(np.linalg.norm(e), 3) for e in errors), default=0.0),
        "error_sum": max((digits(abs(e.sum()), 3) for e in errors), default=0.0),
        "error_max": max((digits(np.abs(e).max(), 3) for e in errors), default=0.0),
        "samples": [digits(flat[i], 9) for i in sample_positions(flat.size, samples)],
    }


def generated(name, x):
    """A generated tensor as the other side must make it: digest of the bytes, and a summary, which
    tests that side's projections and samples."""
    x = np.ascontiguousarray(x)
    return {"sha256": hashlib.sha256(x.tobytes()).hexdigest(),
            **summary(name, x.astype(np.float64), [], STATE_SAMPLES)}


def golden(name):
    classes, shape, seed = MODELS[name]
    nudges = make_nudges(name, seed)
    exact = run(name, seed, nudges, torch.float64)
    runs = [run(name, seed, nudges, **options) for options in FLOAT32_RUNS]
    model = make_model(name, seed, torch.float32, nudges)
    parameters = []
    for key, p in model.named_parameters():
        low, width = parameter_range(key, tuple(p.shape))
        parameters.append({"name": key, "shape": list(p.shape), "low": low, "width": width,
                           "nudges": "".join(map(str, nudges.get(key, [])))})

    def summaries(part, samples):
        return [summary(key, value, [r[part][key] for r in runs], samples)
                for key, value in exact[part].items()]

    keys = [p["name"] for p in parameters]
    initial = dict(model.named_parameters())
    largest = max(keys, key=lambda k: initial[k].numel())
    made = [generated(k, initial[k].detach().numpy())
            for k in dict.fromkeys((keys[0], keys[1], keys[2], largest, "fc.weight", "fc.bias"))]
    if name in FROZEN:
        made += [generated(k, b.numpy()) for k, b in running_statistics(model)[:2]]
    for step in (0, STEPS - 1):
        made.append(generated(f"input {step}", inputs(seed, step, shape).transpose(0, 2, 3, 1)))
        made.append(generated(f"labels {step}",
                              labels(seed, step, shape[0], classes).astype(np.int32)))
    logit_errors = [r["logits"] - exact["logits"] for r in runs]
    frozen = {} if name not in FROZEN else {
        "frozen": [k for k in keys if is_frozen(name, k)],
        "factors": [{"prefix": prefix, "learning_rate": rate, "weight_decay": decay}
                    for prefix, (rate, decay) in FACTORS[name].items()],
        "running": [{"name": k, "shape": list(b.shape), "low": running_range(k)[0],
                     "width": running_range(k)[1], "nudges": ""}
                    for k, b in running_statistics(model)]}
    return {
        "model": name,
        "made_by": f"make_golden.py, PyTorch {torch.__version__}, "
                   f"torchvision {torchvision.__version__}, CPU",
        "seed": seed,
        "kink_margin": digits(kink_margin(name, seed, nudges), 3),
        "classes": classes,
        "input_shape": list(shape),
        "sgd": SGD,
        "losses": exact["losses"],
        "losses_float32": runs[0]["losses"],
        # Of this step and those before: what a run was off once, another may be off later.
        "error_losses": [max(digits(abs(r["losses"][t] - exact["losses"][t]), 3)
                             for r in runs for t in range(s + 1)) for s in range(STEPS)],
        "error_logits": digits(max(np.abs(e).max() for e in logit_errors), 3),
        "logits": [[digits(v, 9) for v in row] for row in exact["logits"]],
        "parameters": parameters,
        **frozen,
        "generated": made,
        "gradients": summaries("gradients", GRADIENT_SAMPLES),
        "parameters_after": summaries("parameters_after", STATE_SAMPLES),
        "running_after": summaries("running_after", STATE_SAMPLES),
    }


def write(path, value):
    """One line per field, and per entry of a list of objects or rows: diffs stay readable."""
    def compact(x):
        return json.dumps(x, separators=(",", ":"))

    lines = []
    for key, field in value.items():
        if isinstance(field, list) and isinstance(field[0], (list, dict)):
            lines.append(f'"{key}": [\n' + ",\n".join(compact(x) for x in field) + "]")
        else:
            lines.append(f'"{key}": {compact(field)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--search", type=int, metavar="N", help="print kink margins of seeds 1..N")
    parser.add_argument("models", nargs="*", default=list(MODELS), help="default: all")
    args = parser.parse_args()
    for name in args.models:
        if args.search:
            for seed in range(1, args.search + 1):
                margin = kink_margin(name, seed, make_nudges(name, seed))
                print(f"{name} seed {seed}: kink margin {margin:.1f}", flush=True)
        else:
            path = pathlib.Path(__file__).parent / f"{name}.json"
            write(path, golden(name))
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
