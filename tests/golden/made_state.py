"""Weights and images by a formula: tests/support/made_state.h in numpy, to the same bits."""

import numpy as np

PURPOSE_SYNTHETIC_DATA = 7  # of ops/core/random.h


def random_words(seed, purpose, a, calls):
    """uint32 [calls, 4]: random4(seed, purpose, a, b) for b = 0, 1, ... (Philox4x32-10)"""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    b = np.arange(calls, dtype=np.uint64)
    c = [np.full(calls, a & 0xFFFFFFFF, np.uint64), np.full(calls, a >> 32, np.uint64), b & low,
         b >> shift]
    key0 = seed & 0xFFFFFFFF
    key1 = (seed >> 32) ^ (purpose << 24)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(key0), p1 & low,
             (p0 >> shift) ^ c[3] ^ np.uint64(key1), p0 & low]
        key0 = (key0 + 0x9E3779B9) & 0xFFFFFFFF
        key1 = (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def fill(name, shape, low, high):
    """float32; each element rounded once."""
    count = int(np.prod(shape))
    words = random_words(0, PURPOSE_SYNTHETIC_DATA, fnv1a(name), (count + 3) // 4).reshape(-1)
    unit = (words[:count] >> 8).astype(np.float64) * 2.0**-24
    return (low + (high - low) * unit).astype(np.float32).reshape(shape)


def tensor(name, shape):
    """A tensor of a state by its name; num_batches_tracked is not among them."""
    if name.endswith("running_mean"):
        return fill(name, shape, -0.1, 0.1)
    if name.endswith("running_var"):
        return fill(name, shape, 0.5, 1.0)
    if len(shape) > 1:
        bound = np.sqrt(6.0 / (np.prod(shape) / shape[0]))
        return fill(name, shape, -bound, bound)
    if name.endswith("weight"):
        return fill(name, shape, 0.5, 1.0)
    return fill(name, shape, -0.1, 0.1)


def images(shape):
    """NCHW"""
    return fill("input", shape, -2.0, 2.0)
