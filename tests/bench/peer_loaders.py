#!/usr/bin/env python3
"""Other libraries' loaders doing what `convoy bench loader` does, a repetition for each line read.

    printf '5\\n5\\n' | peer_loaders.py --loader dali --data FOLDER --threads 2

It builds one loader, warms it up by an epoch, prints {"ready": true}, then reads numbers of seconds
from standard input, a line each: for each it takes batches for about so long and prints one JSON
object. Between the lines it sleeps, so several such processes can be measured in turns; it ends with
its input. Where the loader cannot be built it prints {"error": "..."}.

FOLDER holds a folder of JPEGs for each class. Training is the random-resized crop to 224 pixels and
a flip, evaluation the shorter side at 256 pixels and a centre crop of 224. Loaders give normalised
float32; those whose name ends in -uint8 leave the normalisation out and give bytes, as Convoy's does.
Streams have no end, so no loader pays for the border of a short epoch.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MEAN_255, STD_255 = [255 * m for m in MEAN], [255 * s for s in STD]
SIZE, SHORTER_SIDE = 224, 256
# FFCV's JPEG mode: images are written anew, the longer side at most so long.
FFCV_LONGER_SIDE, FFCV_QUALITY = 500, 90


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--loader", choices=[*LOADERS, *(f"{name}-uint8" for name in LOADERS)])
    p.add_argument("--data", type=pathlib.Path, help="a folder with a folder of images per class")
    p.add_argument("--scratch", type=pathlib.Path, help="ffcv: the folder that --reencode filled")
    p.add_argument("--evaluation", action="store_true", help="its transform (default: training)")
    p.add_argument("--threads", type=int, default=1, help="or processes, where a loader has those")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--versions", action="store_true", help="print the libraries' versions and leave")
    p.add_argument("--reencode", action="store_true",
                   help="write what FFCV reads to --scratch: its own file, and the same images as\n"
                   "files in reencoded/<class>/")
    a = p.parse_args()
    a.uint8 = a.loader is not None and a.loader.endswith("-uint8")
    if not a.versions and not a.reencode and (a.loader is None or a.data is None):
        p.error("--loader and --data are required")
    return a


def print_versions():
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "torchvision", "pillow", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "ffcv"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print(json.dumps(versions))


def images_of(folder):
    """(class, file) of every image, in the order of their names."""
    return [(c.name, file) for c in sorted(folder.iterdir()) if c.is_dir()
            for file in sorted(c.iterdir())]


# ---- Loaders: functions (arguments) -> an iterator of the sizes of batches, without end


def endless(count, shuffled):
    import torch

    while True:
        yield from (torch.randperm(count).tolist() if shuffled else range(count))


def torch_batches(a, transform, read):
    import torch
    import torchvision

    torch.set_num_threads(1)  # in this process, which only collects
    dataset = torchvision.datasets.ImageFolder(str(a.data), transform, loader=read)
    loader = torch.utils.data.DataLoader(
        dataset, a.batch, sampler=endless(len(dataset), not a.evaluation), num_workers=a.threads)
    for images, _ in loader:
        yield len(images)


def torchvision_pil(a):
    """As PyTorch's ImageNet example does it."""
    from torchvision import transforms as t
    from torchvision.datasets.folder import pil_loader

    steps = ([t.Resize(SHORTER_SIDE), t.CenterCrop(SIZE)] if a.evaluation else
             [t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip()])
    steps += [t.PILToTensor()] if a.uint8 else [t.ToTensor(), t.Normalize(MEAN, STD)]
    return torch_batches(a, t.Compose(steps), pil_loader)


def torchvision_io(a):
    """decode_jpeg and transforms v2 on uint8 tensors."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2 as t

    steps = ([t.Resize(SHORTER_SIDE, antialias=True), t.CenterCrop(SIZE)] if a.evaluation else
             [t.RandomResizedCrop(SIZE, antialias=True), t.RandomHorizontalFlip()])
    if not a.uint8:
        steps += [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN, STD)]
    return torch_batches(a, t.Compose(steps),
                         lambda path: decode_jpeg(read_file(path), mode=ImageReadMode.RGB))


def dali(a):
    """NVIDIA DALI's CPU pipeline: decodes the crop alone in training."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=a.batch, num_threads=a.threads, device_id=None, seed=1,
                  prefetch_queue_depth=2)
    def pipeline():
        files, labels = fn.readers.file(file_root=str(a.data), random_shuffle=not a.evaluation,
                                        initial_fill=1024)
        mirror = 0
        if a.evaluation:
            images = fn.decoders.image(files, device="cpu")
            images = fn.resize(images, resize_shorter=SHORTER_SIDE, antialias=True)
        else:
            images = fn.decoders.image_random_crop(
                files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
            images = fn.resize(images, size=(SIZE, SIZE), antialias=True)
            mirror = fn.random.coin_flip()
        kind = ({"dtype": types.UINT8, "output_layout": "HWC"} if a.uint8 else
                {"dtype": types.FLOAT, "output_layout": "CHW", "mean": MEAN_255, "std": STD_255})
        images = fn.crop_mirror_normalize(images, crop=(SIZE, SIZE), mirror=mirror, **kind)
        return images, labels

    p = pipeline()
    p.build()
    while True:
        yield len(p.run()[0])


def ffcv(a):
    """FFCV's JPEG mode. Its file holds images that were written anew, smaller: see --reencode."""
    import numpy
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import (CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder)
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor,
                                 ToTorchImage)

    images = ([CenterCropRGBImageDecoder((SIZE, SIZE), ratio=SIZE / SHORTER_SIDE)] if a.evaluation
              else [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()])
    if not a.uint8:
        images.append(NormalizeImage(numpy.array(MEAN_255), numpy.array(STD_255), numpy.float32))
    images += [ToTensor(), ToTorchImage()]
    count = len(images_of(a.data))
    repeats = max(1, 20000 // count)  # an epoch's border is far away
    loader = Loader(str(a.scratch / "images.beton"), batch_size=a.batch, num_workers=a.threads,
                    order=OrderOption.SEQUENTIAL if a.evaluation else OrderOption.RANDOM,
                    indices=numpy.tile(numpy.arange(count), repeats), os_cache=True,
                    pipelines={"image": images, "label": [IntDecoder(), ToTensor(), Squeeze()]})
    while True:
        for batch, _ in loader:
            yield len(batch)


LOADERS = {"torchvision-pil": torchvision_pil, "torchvision-io": torchvision_io, "dali": dali,
           "ffcv": ffcv}


def reencode(a):
    """FFCV's own file, and the very same JPEGs in folders, so that others can read them too."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import encode_jpeg, resizer
    from ffcv.writer import DatasetWriter
    import numpy
    from PIL import Image

    folders = sorted({c for c, _ in images_of(a.data)})

    class Images:
        def __init__(self):
            self.files = images_of(a.data)

        def __len__(self):
            return len(self.files)

        def __getitem__(self, i):
            name, file = self.files[i]
            return Image.open(file).convert("RGB"), folders.index(name)

    images = Images()
    DatasetWriter(str(a.scratch / "images.beton"), {
        "image": RGBImageField(write_mode="jpg", max_resolution=FFCV_LONGER_SIDE,
                               jpeg_quality=FFCV_QUALITY),
        "label": IntField()}, num_workers=1).from_indexed_dataset(images)
    for i, (name, file) in enumerate(images.files):
        folder = a.scratch / "reencoded" / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = resizer(numpy.array(images[i][0]), FFCV_LONGER_SIDE)
        (folder / f"{file.stem}.jpg").write_bytes(encode_jpeg(pixels, FFCV_QUALITY).tobytes())


# ---- Measurement


def family():
    """This process and all below it."""
    children = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(parent), []).append(int(folder.name))
    found = [os.getpid()]
    for process in found:
        found += children.get(process, [])
    return found


def cpu_seconds(processes):
    ticks = 0
    for process in processes:
        try:
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(processes):
    """The largest resident sets, added up; pages that they share count for each."""
    kibibytes = 0
    for process in processes:
        try:
            lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        kibibytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 1024 * kibibytes


def take(batches, seconds, least):
    """Images and seconds of batches taken for so long, and at least so many."""
    start, images, taken = time.perf_counter(), 0, 0
    while taken < least or time.perf_counter() - start < seconds:
        images += next(batches)
        taken += 1
    return images, time.perf_counter() - start


def serve(a, say):
    batches = LOADERS[a.loader.removesuffix("-uint8")](a)
    take(batches, 0, -(-len(images_of(a.data)) // a.batch))
    say({"ready": True})
    for line in sys.stdin:
        # What was made ahead while this process slept.
        take(batches, 0, 2 * a.threads + 2)
        processes = family()
        cpu = cpu_seconds(processes)
        images, seconds = take(batches, float(line), 3)
        say({"images_per_second": images / seconds, "images": images,
             "cpu_seconds": cpu_seconds(processes) - cpu,
             "peak_memory_bytes": peak_memory(processes)})


def main():
    a = parse_arguments()
    if a.versions:
        return print_versions()
    # Standard output is for JSON alone, whatever the libraries print.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message):
        print(json.dumps(message), file=protocol, flush=True)

    try:
        os.environ["OMP_NUM_THREADS"] = "1"  # read when libraries are loaded
        if a.reencode:
            reencode(a)
            say({"ready": True})
        else:
            serve(a, say)
    except Exception as error:  # whatever a library raises is the reason why this peer is missing
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
