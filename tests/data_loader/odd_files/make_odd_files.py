#!/usr/bin/env python3
"""Makes the files beside this script: odd images, and the pixels that they must decode to.

    python3 make_odd_files.py      needs Pillow and libjpeg-turbo's cjpeg; writes files/ and expected/

For files/NAME, expected/NAME.ppm holds what Pillow decodes (orientation ignored), and
expected/NAME.upright.ppm what it is once turned as EXIF says. A file without either must be refused.
"""
import io
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def picture(width, height, bands=3):
    """Waves and corners: no symmetry, so that a turn is seen; every band another."""
    out = Image.new({1: "L", 3: "RGB", 4: "CMYK"}[bands], (width, height))
    for y in range(height):
        for x in range(width):
            value = [(x * 9 + y * 3) % 256, (x * 2 + y * 11 + 40) % 256, (255 - x * 5 + y) % 256,
                     (x * y) % 90]
            if x < width // 3 and y < height // 3:
                value[:3] = 240, 20, 30
            out.putpixel((x, y), tuple(value[:bands]) if bands > 1 else value[1])
    return out


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 88, **options})
    return out.getvalue()


def png(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def cjpeg(image, *options):
    ppm = io.BytesIO()
    image.save(ppm, "PPM")
    return subprocess.run(["cjpeg", "-quality", "88", *options], input=ppm.getvalue(),
                          stdout=subprocess.PIPE, check=True).stdout


def exif(orientation, order):
    """An EXIF block of one other tag and the orientation."""
    e = {"little": "<", "big": ">"}[order]
    tiff = {"little": b"II", "big": b"MM"}[order] + struct.pack(e + "HI", 42, 8)
    tiff += struct.pack(e + "H", 2)
    tiff += struct.pack(e + "HHIHH", 0x0103, 3, 1, 6, 0)
    tiff += struct.pack(e + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + tiff + struct.pack(e + "I", 0)


def patched(data, at, value):
    assert at >= 0
    return data[:at] + bytes(value) + data[at + len(value):]


def png_chunk(kind, body):
    return (struct.pack(">I", len(body)) + kind + body +
            struct.pack(">I", zlib.crc32(kind + body)))


def interlaced_png(image):
    """Adam7, which Pillow reads and does not write."""
    rows = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                           (1, 0, 2, 2), (0, 1, 1, 2)):
        for y in range(y0, image.height, dy):
            line = b"".join(bytes(image.getpixel((x, y))) for x in range(x0, image.width, dx))
            if line:
                rows += b"\0" + line
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) +
            png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b""))


def png_16(image):
    """RGB of 16 bits, whose low bytes are noise."""
    rows = b""
    for y in range(image.height):
        rows += b"\0" + b"".join(bytes((v, (v * 37 + 11) % 256)) for x in range(image.width)
                                 for v in image.getpixel((x, y)))
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) +
            png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b""))


def files():
    rgb, small = picture(37, 26), picture(21, 14)
    yield "baseline.jpg", jpeg(rgb)
    yield "progressive.jpg", jpeg(rgb, progressive=True)
    yield "444.jpg", jpeg(rgb, subsampling="4:4:4")
    yield "422.jpg", jpeg(rgb, subsampling="4:2:2")
    yield "411.jpg", cjpeg(rgb, "-sample", "4x1")
    yield "440.jpg", cjpeg(rgb, "-sample", "1x2")
    yield "410.jpg", cjpeg(rgb, "-sample", "4x2")
    yield "restart.jpg", cjpeg(rgb, "-restart", "1")
    yield "grey.jpg", jpeg(picture(37, 26, 1))
    cmyk = jpeg(picture(37, 26, 4))
    yield "cmyk_adobe.jpg", cmyk
    # The same four planes, said to be YCCK.
    yield "ycck_adobe.jpg", patched(cmyk, cmyk.index(b"Adobe") + 11, [2])
    yield "1x1.jpg", jpeg(picture(1, 1))
    yield "1x2000.jpg", jpeg(picture(1, 2000))
    yield "2000x1.jpg", jpeg(picture(2000, 1))
    for orientation in range(1, 9):
        order = "little" if orientation % 2 else "big"
        yield f"orientation_{orientation}.jpg", jpeg(small, exif=exif(orientation, order))
    yield "icc.jpg", jpeg(rgb, icc_profile=b"\0\0\1\0" + b"not a profile that anybody obeys" * 9)
    yield "png_rgb.JPEG", png(small)
    yield "png_palette.JPEG", png(small.quantize(16))
    yield "png_grey.JPEG", png(picture(21, 14, 1))
    yield "png_bits.JPEG", png(picture(21, 14, 1).convert("1"))
    yield "png_16.JPEG", png_16(small)
    alpha = small.convert("RGBA")
    alpha.putalpha(picture(21, 14, 1))
    yield "png_alpha.JPEG", png(alpha)
    yield "png_interlaced.JPEG", interlaced_png(small)
    yield "arithmetic.jpg", cjpeg(small, "-arithmetic")
    yield "arithmetic_progressive.jpg", cjpeg(small, "-arithmetic", "-progressive")
    # Only the headers differ: nobody here writes 12 bits or lossless JPEG.
    whole = jpeg(small)
    frame = whole.index(b"\xff\xc0")
    yield "12_bit.jpg", patched(patched(whole, frame, b"\xff\xc1"), frame + 4, [12])
    yield "lossless.jpg", patched(whole, frame, b"\xff\xc3")


def is_refused(name):
    return name.startswith(("arithmetic", "12_bit", "lossless"))


def main():
    for folder in ("files", "expected"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for name, data in files():
        (HERE / "files" / name).write_bytes(data)
        if is_refused(name):
            continue
        image = Image.open(io.BytesIO(data))
        image.convert("RGB").save(HERE / "expected" / f"{name}.ppm")
        if name.startswith("orientation"):
            upright = ImageOps.exif_transpose(image)
            upright.convert("RGB").save(HERE / "expected" / f"{name}.upright.ppm")


if __name__ == "__main__":
    main()
