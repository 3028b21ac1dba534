#!/usr/bin/env python3
"""How far the probabilities of `convoy eval` are from torchvision's: centre, ten crops, whole images at scales.

    pip install torch torchvision pillow
    tests/golden/compare_looks.py build/release/convoy RUN DATA [--images N] [--scales 224,256]

RUN: a run of one of torchvision's ResNets in fp32 on an image folder (DATA has val/ or classes alone). Its
weights are loaded into torchvision's network (strict), whose crops are torchvision's own: Resize, CenterCrop
and TenCrop of the central square, softmax, mean. Prints the largest difference of any probability, and how
many images have another first guess.
"""

import argparse
import json
import pathlib
import re
import struct
import subprocess
import tempfile

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as F


def load_safetensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    types = {"F32": np.float32, "I64": np.int64}
    state = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], types[entry["dtype"]])
        state[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return state


class Job:
    """What of RUN/job.txtpb counts here."""

    def __init__(self, run):
        text = (run / "job.txtpb").read_text()
        self.model = re.search(r'model {\s*name: "(\w+)"', text)[1]
        self.mean, self.std = (
            [float(v) for v in re.search(rf"\b{key}: \[([^\]]+)\]", text)[1].split(",")] for key in ("mean", "std"))
        self.resize, self.size = (
            int(v) for v in re.search(r"eval {\s*resize: (\d+)\s*size: (\d+)", text).groups())
        self.size = self.size or int(re.search(r"train {[^}]*\bsize: (\d+)", text)[1])
        self.classes = int(re.search(r"\bclasses: (\d+)", text)[1])

    def tensor(self, image):
        return F.normalize(F.to_tensor(image), self.mean, self.std)


def centre(job, image):
    return [F.center_crop(F.resize(image, job.resize), job.size)]


def ten_crops(job, image):
    return F.ten_crop(F.center_crop(F.resize(image, job.resize), job.resize), job.size)


def whole(scale):
    def looks(_, image):
        resized = F.resize(image, scale)
        cut = [max(scale, min(side, 2 * scale) // 32 * 32) for side in resized.size[::-1]]
        return [F.center_crop(resized, [min(c, s) for c, s in zip(cut, resized.size[::-1])])]

    return looks


def probabilities(network, job, image, rounds):
    with torch.inference_mode():
        each = [network(torch.stack([job.tensor(look) for look in looks(job, image)])).softmax(1).mean(0)
                for looks in rounds]
    return torch.stack(each).mean(0).double().numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("convoy")
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--scales", default="224,256,384")
    arguments = parser.parse_args()
    job = Job(arguments.run)
    network = getattr(torchvision.models, job.model)(num_classes=job.classes)
    newest = sorted((arguments.run / "checkpoints").glob("step-*"))[-1]
    network.load_state_dict(load_safetensors(newest / "model.safetensors"))
    network.eval()
    scales = [int(s) for s in arguments.scales.split(",")]
    for name, options, rounds in (("centre", [], [centre]), ("ten crops", ["--ten-crop"], [ten_crops]),
                                  ("scales", ["--scales", arguments.scales], [whole(s) for s in scales])):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "predictions.jsonl"
            subprocess.run([arguments.convoy, "eval", "--checkpoint", newest, "--data", arguments.data,
                            "--weights", "trained", "--top", str(min(job.classes, 1000)), "--predictions", file,
                            *options], check=True, stdout=subprocess.DEVNULL)
            lines = [json.loads(line) for line in file.read_text().splitlines()]
        chosen = lines[:: max(1, len(lines) // arguments.images)]
        largest, other = 0.0, 0
        for line in chosen:
            expected = probabilities(network, job, Image.open(line["file"]).convert("RGB"), rounds)
            for guess in line["top"]:
                largest = max(largest, abs(guess["probability"] - expected[guess["class"]]))
            other += line["top"][0]["class"] != int(expected.argmax())
        print(f"{name}: {len(chosen)} images, largest difference of a probability {largest:.2e}, "
              f"another first guess in {other}", flush=True)


if __name__ == "__main__":
    main()
