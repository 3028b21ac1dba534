#!/usr/bin/env python3
"""Makes tests/golden/images.json: crops resized by Pillow, for image_golden_test.cpp.

    pip install pillow numpy
    tests/golden/image_golden.py > tests/golden/images.json

The source image is a formula, so the file holds results only.
"""

import base64
import json
import sys

import numpy as np
import PIL
from PIL import Image

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


def source(width, height):
    """uint8 [height, width, 3]: waves and noise, from integers alone."""
    y, x, c = np.meshgrid(np.arange(height, dtype=np.uint32), np.arange(width, dtype=np.uint32),
                          np.arange(3, dtype=np.uint32), indexing="ij")
    noise = ((x * 73856093 ^ y * 19349663 ^ c * 83492791) * np.uint32(2654435761)) >> np.uint32(24)
    wave = (3 * x + 5 * y + 80 * c) % 256
    return ((noise + 3 * wave) // 4).astype(np.uint8)


def text(pixels):
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def resized(size, box, output, flip):
    # As torchvision does: first the crop, then the resize.
    image = Image.fromarray(source(*size)).crop(box).resize(output, Image.BILINEAR)
    return image.transpose(Image.FLIP_LEFT_RIGHT) if flip else image


def main():
    resizes = [
        {"name": name, "image": size, "box": box, "output": output, "flip": flip,
         "pixels": text(np.asarray(resized(size, box, output, flip)))}
        for name, (size, box, output, flip) in RESIZES.items()
    ]
    json.dump({"made_by": f"Pillow {PIL.__version__}", "resizes": resizes}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
