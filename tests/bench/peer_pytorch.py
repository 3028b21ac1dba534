#!/usr/bin/env python3
"""PyTorch or ONNX Runtime computing what `convoy bench step` computes, a repetition for each line read.

    printf '5\\n5\\n' | peer_pytorch.py --model resnet50 --pass training --precision bf16 --batch 32

It builds one case and warms it up, prints {"ready": true}, then reads numbers of seconds from
standard input, a line each: for each it runs steps for about so long and prints one JSON object.
Between the lines it sleeps, so several such processes can be measured in turns; it ends with its
input. Where the case cannot be built it prints {"error": "..."}. Other output goes to standard error.

A step: training is zero_grad, forward, cross entropy, backward, SGD (momentum 0.9, weight decay
1e-4); inference is forward alone. Random images in memory, channels_last; bf16 and fp16 are autocast,
fp16 with a GradScaler. The rate is the images of a step over the median time of a step, as in `convoy
bench step`. On a GPU (--device cuda) steps are timed by events, so that the host may run ahead,
cudnn.benchmark is on, and SGD is PyTorch's fused one; peak memory is what PyTorch reserved there.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time

DAY_SECONDS = 24 * 3600  # of patience: ranks wait for a command as long as other systems run
WARMUP_STEPS = 3


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", choices=["resnet18", "resnet50", "resnet152", "cifar_resnet20"])
    p.add_argument("--pass", dest="pass_", choices=["training", "inference"], default="training")
    p.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--batch", type=int, default=32, help="images of a step, all processes together")
    p.add_argument("--threads", type=int, default=1, help="of one process")
    p.add_argument("--engine", choices=["eager", "compile", "graph", "onnxruntime"], default="eager",
                   help="compile: torch.compile, on a GPU max-autotune; graph: eager, each step one\n"
                   "CUDA graph")
    p.add_argument("--processes", type=int, default=1, help="training: DDP over gloo")
    p.add_argument("--versions", action="store_true", help="print the libraries' versions and leave")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    if not a.versions and a.model is None:
        p.error("--model is required")
    if a.device == "cpu" and (a.precision in ("tf32", "fp16") or a.engine == "graph"):
        p.error("tf32, fp16 and graph are for --device cuda")
    if a.device == "cuda" and (a.processes > 1 or a.engine == "onnxruntime"):
        p.error("--processes and onnxruntime are for --device cpu")
    if a.batch % a.processes != 0:
        p.error(f"--batch {a.batch} does not divide into --processes {a.processes}")
    return a


def print_versions():
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "torchvision", "onnxruntime"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = None
    print(json.dumps(versions))


# ---- Models


def cifar_resnet20():
    """He et al. 2015, arXiv:1512.03385, section 4.2, n = 3: shortcuts without parameters (option A)."""
    import torch.nn as nn
    import torch.nn.functional as F

    def conv3x3(channels, out, stride):
        return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)

    class Block(nn.Module):
        def __init__(self, channels, out, stride):
            super().__init__()
            self.stride, self.more_channels = stride, out - channels
            self.residual = nn.Sequential(
                conv3x3(channels, out, stride), nn.BatchNorm2d(out), nn.ReLU(),
                conv3x3(out, out, 1), nn.BatchNorm2d(out))

        def forward(self, x):
            shortcut = x
            if self.stride > 1:
                shortcut = F.pad(x[:, :, :: self.stride, :: self.stride],
                                 (0, 0, 0, 0, 0, self.more_channels))
            return F.relu(self.residual(x) + shortcut)

    layers = [conv3x3(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    for channels, out in ((16, 16), (16, 32), (32, 64)):
        layers.append(Block(channels, out, 1 if channels == out else 2))
        layers += [Block(out, out, 1), Block(out, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make_model(a):
    """The model, channels_last, and one batch of it: images and labels."""
    import torch

    torch.manual_seed(1)
    if a.model == "cifar_resnet20":
        model, size, classes = cifar_resnet20(), 32, 10
    else:
        import torchvision

        model, size, classes = getattr(torchvision.models, a.model)(), 224, 1000
    batch = a.batch // a.processes
    images = torch.randn(batch, 3, size, size).to(a.device, memory_format=torch.channels_last)
    labels = (torch.arange(batch) % classes).to(a.device)
    return model.to(a.device, memory_format=torch.channels_last), images, labels


# ---- Steps: functions without arguments


def autocast(a):
    import torch

    if a.precision in ("fp32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(a.device, torch.float16 if a.precision == "fp16" else torch.bfloat16)


def compiled(a, model):
    import torch

    return torch.compile(model, mode="max-autotune" if a.device == "cuda" else None)


def training_step(a):
    import torch
    import torch.nn.functional as F

    model, images, labels = make_model(a)
    model.train()
    if a.processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4,
                                fused=True if a.device == "cuda" else None)
    scaler = torch.amp.GradScaler(a.device, enabled=a.precision == "fp16")
    network = compiled(a, model) if a.engine == "compile" else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast(a):
            loss = F.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return as_graph(step) if a.engine == "graph" else step


def as_graph(step):
    """The step as one CUDA graph, as PyTorch's notes on CUDA graphs capture it."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def inference_step(a):
    import torch

    model, images, _ = make_model(a)
    model.eval()
    if a.engine == "compile":
        import torch._inductor.config

        torch._inductor.config.freezing = True
        model = compiled(a, model)
    # Freezing wants no_grad; eager is a little faster in inference_mode.
    without_gradients = torch.no_grad if a.engine == "compile" else torch.inference_mode

    def step():
        with without_gradients(), autocast(a):
            model(images)

    return as_graph(step) if a.engine == "graph" else step


def onnxruntime_step(a):
    import onnxruntime
    import torch

    model, images, _ = make_model(a)
    # ONNX knows NCHW alone; ONNX Runtime chooses its own layout inside.
    model, images = model.eval().to(memory_format=torch.contiguous_format), images.contiguous()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = a.threads
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        if a.precision == "bf16":
            model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
        # Traced with one image, so that the peak of memory is ONNX Runtime's.
        with torch.no_grad():
            torch.onnx.export(model, (images[:1],), file, dynamo=False, input_names=["images"],
                              dynamic_axes={"images": {0: "batch"}})
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {"images": onnxruntime.OrtValue.ortvalue_from_numpy(images.numpy())}
    return lambda: session.run_with_ort_values(None, feed)


def make_step(a):
    import torch

    torch.set_num_threads(a.threads)
    if a.device == "cuda":
        torch.backends.cudnn.benchmark = True
        # fp32 is fp32: PyTorch lets convolutions use TF32 unless told otherwise.
        torch.backends.cudnn.allow_tf32 = a.precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = a.precision != "fp32"
    if a.pass_ == "training":
        if a.engine == "onnxruntime":
            raise ValueError("onnxruntime does not train")
        return training_step(a)
    if a.processes > 1:
        raise ValueError("DDP is for training")
    return onnxruntime_step(a) if a.engine == "onnxruntime" else inference_step(a)


# ---- Several processes


class Alone:
    """What a single process does where ranks would agree or add."""

    def broadcast(self, value):
        return value

    def sum(self, value):
        return value


class Ranks:
    """gloo. Ranks that wait for rank 0 sleep in a receive."""

    def __init__(self, a):
        import datetime
        import torch.distributed as dist

        self.dist = dist
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{a.port}", rank=a.rank, world_size=a.processes,
            timeout=datetime.timedelta(seconds=DAY_SECONDS))

    def broadcast(self, value):
        import torch

        tensor = torch.tensor([float(value)], dtype=torch.float64)
        self.dist.broadcast(tensor, 0)
        return tensor.item()

    def sum(self, value):
        import torch

        tensor = torch.tensor([float(value)], dtype=torch.float64)
        self.dist.all_reduce(tensor)
        return tensor.item()


def start_other_ranks(a):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        a.port = s.getsockname()[1]
    for rank in range(1, a.processes):
        subprocess.Popen([sys.executable, *sys.argv, "--rank", str(rank), "--port", str(a.port)],
                         stdin=subprocess.DEVNULL)


# ---- Measurement


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory(a):
    if a.device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed_on_gpu(step, count):
    """The same by events: nothing waits between the steps."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(events, events[1:])]


def timed(a, step, count):
    """Seconds of each of `count` steps."""
    if a.device == "cuda":
        return timed_on_gpu(step, count)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def serve(a, step, ranks, say):
    """Rank 0 reads commands and says results; the others follow it."""
    times = timed(a, step, WARMUP_STEPS)
    if a.device == "cuda":  # the first steps compiled, and tried algorithms
        times = timed(a, step, WARMUP_STEPS)
    say({"ready": True})
    while True:
        line = sys.stdin.readline().strip() if a.rank == 0 else "0"
        seconds = ranks.broadcast(float(line) if line else -1.0)
        if seconds < 0:
            return
        # The last repetition tells how many steps fill the time; all ranks take as many.
        count = int(ranks.broadcast(max(2, math.ceil(seconds / statistics.median(times)))))
        cpu = cpu_seconds()
        times = timed(a, step, count)
        cpu = ranks.sum(cpu_seconds() - cpu)
        peak = ranks.sum(peak_memory(a))
        say({"images_per_second": a.batch / statistics.median(times), "steps": count,
             "step_seconds": {"median": statistics.median(times), "min": min(times)},
             "cpu_seconds": cpu, "peak_memory_bytes": int(peak)})


def main():
    a = parse_arguments()
    if a.versions:
        return print_versions()
    # Standard output is for JSON alone, whatever the libraries print.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message):
        if a.rank == 0:
            print(json.dumps(message), file=protocol, flush=True)

    try:
        os.environ["OMP_NUM_THREADS"] = str(a.threads)  # read when torch is loaded
        if a.processes > 1 and a.rank == 0:
            start_other_ranks(a)
        ranks = Ranks(a) if a.processes > 1 else Alone()
        step = make_step(a)
        serve(a, step, ranks, say)
    except Exception as error:  # whatever a library raises is the reason why this peer is missing
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
