#!/usr/bin/env python3
"""Makes tests/golden/images.json, for image_golden_test.cpp: crops resized by Pillow, and colours
changed by torchvision and by AlexNet's formula.

    pip install pillow numpy torch torchvision
    tests/golden/image_golden.py > tests/golden/images.json

The source image is a formula, so the file holds results only.
"""

import base64
import json
import sys

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

# name: image width and height, box (left, top, right, bottom), output width and height, flip
RESIZES = {
    "down to a half": ((90, 70), (5, 3, 85, 66), (40, 32), False),
    "random crop, flipped": ((100, 75), (13, 9, 67, 70), (48, 48), True),
    "up": ((60, 50), (20, 10, 39, 31), (50, 50), False),
    "up by ten": ((20, 20), (0, 0, 4, 5), (40, 50), True),
    "down by ten": ((300, 200), (0, 0, 300, 200), (30, 20), False),
    "one axis": ((64, 64), (10, 0, 42, 64), (32, 40), False),
    "one pixel": ((9, 9), (4, 4, 5, 5), (6, 6), False),
}

COLOUR_SIZE = (23, 17)
# name: (operation, amount) one after the other
COLOURS = {
    "darker": [("brightness", 0.6)],
    "brighter": [("brightness", 1.47)],
    "flatter": [("contrast", 0.3)],
    "harder": [("contrast", 1.8)],
    "paler": [("saturation", 0.2)],
    "gaudier": [("saturation", 1.9)],
    "hue up": [("hue", 0.1)],
    "hue down": [("hue", -0.45)],
    "one after the other": [("hue", 0.07), ("contrast", 1.2), ("brightness", 0.8), ("saturation", 1.3)],
}
# The three shares alpha of AlexNet's colour axes
PCA = [(0.1, 0.0, 0.0), (0.0, -0.3, 0.0), (0.0, 0.0, 2.0), (-0.25, 0.13, 0.07), (20.0, 0.0, 0.0)]
# Square roots of the eigenvalues, and the eigenvectors as columns, of the covariance of ImageNet's RGB
# values in [0, 1]; as in fb.resnet.torch and its many descendants.
LENGTHS = np.array([0.2175, 0.0188, 0.0045])
AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def source(width, height):
    """uint8 [height, width, 3]: waves and noise, from integers alone."""
    y, x, c = np.meshgrid(np.arange(height, dtype=np.uint32), np.arange(width, dtype=np.uint32),
                          np.arange(3, dtype=np.uint32), indexing="ij")
    noise = ((x * 73856093 ^ y * 19349663 ^ c * 83492791) * np.uint32(2654435761)) >> np.uint32(24)
    wave = (3 * x + 5 * y + 80 * c) % 256
    return ((noise + 3 * wave) // 4).astype(np.uint8)


def text(pixels):
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def resized(size, box, output, flip, at_once):
    """As torchvision does: first the crop, then the resize. Pillow 13 resizes some shapes' columns
    before their rows, older ones never do; in two steps the rows come first with any."""
    image = Image.fromarray(source(*size)).crop(box)
    if not at_once:
        image = image.resize((output[0], image.height), Image.BILINEAR)
    image = image.resize(output, Image.BILINEAR)
    return image.transpose(Image.FLIP_LEFT_RIGHT) if flip else image


def to_bytes(values):
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def coloured(steps):
    """torchvision on floats, rounded to bytes after each operation."""
    image = source(*COLOUR_SIZE)
    for operation, amount in steps:
        x = torch.from_numpy(image).permute(2, 0, 1).double() / 255
        x = getattr(functional, f"adjust_{operation}")(x, amount)
        image = to_bytes(x.permute(1, 2, 0).numpy() * 255)
    return image


def pca(alpha):
    return to_bytes(source(*COLOUR_SIZE) + 255 * (AXES @ (np.array(alpha) * LENGTHS)))


def main():
    resizes = [
        {"name": name, "image": size, "box": box, "output": output, "flip": flip,
         "pixels": text(np.asarray(resized(size, box, output, flip, False))),
         "at_once": text(np.asarray(resized(size, box, output, flip, True)))}
        for name, (size, box, output, flip) in RESIZES.items()
    ]
    colours = [{"name": name, "steps": steps, "pixels": text(coloured(steps))}
               for name, steps in COLOURS.items()]
    json.dump({"made_by": f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}",
               "resizes": resizes, "colour_size": COLOUR_SIZE, "colours": colours,
               "pca": [{"alpha": alpha, "pixels": text(pca(alpha))} for alpha in PCA]}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
