#!/usr/bin/env python3
"""How far training's pixels are from Pillow's, over five random-resized crops of each image.

    pip install pillow numpy
    cmake --build --preset release --target sample_pixels
    tests/golden/compare_with_pillow.py build/release/tests/golden/sample_pixels FOLDER [--shrink]

Prints the largest and the mean difference, with Pillow's rows first (its bits up to version 12) and as
its resize() does it. --shrink: our decoder shrinks images where the crop is much larger than the output.
"""

import pathlib
import subprocess
import sys

import numpy as np
import PIL
from PIL import Image

SIZE = 224


def pillow(image, box, flip, rows_first):
    part = image.crop(box)
    if rows_first:
        part = part.resize((SIZE, part.height), Image.BILINEAR)
    part = part.resize((SIZE, SIZE), Image.BILINEAR)
    return np.asarray(part.transpose(Image.FLIP_LEFT_RIGHT) if flip else part).astype(int)


def main():
    program, folder, options = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
    with subprocess.Popen([program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ours:
        results = {True: [], False: []}
        for file in files:
            ours.stdin.write(f"{file}\n".encode())
            ours.stdin.flush()
            image = Image.open(file).convert("RGB")
            for _ in range(5):
                left, top, width, height, flip = map(int, ours.stdout.readline().split())
                got = np.frombuffer(ours.stdout.read(SIZE * SIZE * 3), np.uint8).astype(int)
                for rows_first, differences in results.items():
                    expected = pillow(image, (left, top, left + width, top + height), flip, rows_first)
                    differences.append(np.abs(got.reshape(SIZE, SIZE, 3) - expected))
        ours.stdin.close()
    for rows_first, differences in results.items():
        each = np.array([(d.max(), d.mean()) for d in differences])
        print(f"Pillow {PIL.__version__}, {'rows first' if rows_first else 'at once'}: "
              f"{len(files)} images, {len(each)} crops, max {each[:, 0].max():.0f}, "
              f"mean {each[:, 1].mean():.5f}, worst crop's mean {each[:, 1].max():.4f}, "
              f"{(each[:, 0] == 0).sum()} crops equal")


if __name__ == "__main__":
    main()
