"""Q6_K at the speed of the CPU: the bytes that ggml writes, several groups at a time.

ggml's quantizer tries 19 scales for each group of 16 weights, one group after the other, and that is nearly all of the
time that a build takes (36 ns a weight). Here 32 groups go side by side through the same float32 operations in the same
order, in machine code that numba makes when it is first needed (11 ns a weight, after a second of compiling).
The arithmetic is that of quantize_row_q6_K_ref in llama.cpp's ggml-quants.c (MIT License, Copyright (c) The ggml
authors). Whether the bytes are the same on this CPU is for `quantize.Quantizer` to see before it relies on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F = TypeVar("F", bound=Callable[..., Any])

BLOCK_ITEMS = 256
BLOCK_BYTES = 210
# Groups of 16 that are worked on side by side: two blocks.
_LANES = 32
# Below this ggml takes numbers for zero.
_EPS = np.float32(1e-15)
# The first try, then those that may better it; the largest magnitude becomes -32 less a tenth of it.
_TRIES = np.array([0, *range(-9, 0), *range(1, 10)], np.float32)


def _compiled(function: F) -> F:
    # Without fast-math LLVM neither reorders nor contracts: each operation rounds as ggml's does.
    return cast("F", numba.njit(nogil=True, error_model="numpy")(function))


def quantize(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """float32 [n, items], items divisible by 256, to Q6_K [n, items / 256 * 210]. Magnitudes must be far from
    float32's limits."""
    blocks = rows.size // BLOCK_ITEMS
    flat = rows.reshape(-1)
    if blocks % 2:
        flat = np.concatenate([flat, np.zeros(BLOCK_ITEMS, np.float32)])
    scales = np.empty(flat.size // 16, np.float32)
    codes = np.empty(flat.size, np.uint8)
    _find_scales(flat, _TRIES, scales, codes)
    divisor, levels, dead = _block_scales(scales.reshape(-1, 16))
    out = np.empty((flat.size // BLOCK_ITEMS, BLOCK_BYTES), np.uint8)
    _pack(flat, divisor.astype(np.float32), levels, codes, out)
    out[:, 192:208] = levels.view(np.uint8)
    out[:, 208:] = divisor.view(np.uint8).reshape(-1, 2)
    out[dead] = 0
    return out[:blocks].reshape(rows.shape[0], -1)


def _block_scales(
    scales: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """Of each block's 16 scales: the divisor of the block, the scales in units of it, and whether it is all zero."""
    index = np.abs(scales).argmax(axis=1)
    largest = np.take_along_axis(scales, index[:, None], axis=1)[:, 0]
    dead = np.abs(largest) < _EPS
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.float32(-128) / np.where(dead, np.float32(1), largest)
        divisor = (np.float32(1) / inverse).astype(np.float16)
        levels = np.minimum(np.rint(inverse[:, None] * scales), np.float32(127)).astype(np.int8)
    return divisor, levels, dead


@_compiled
def _find_scales(flat: Any, tries: Any, scales: Any, codes: Any) -> None:
    """The best scale of each group, and its codes 0..63 under it."""
    x = np.empty((16, _LANES), np.float32)
    w = np.empty((16, _LANES), np.float32)
    wx = np.empty((16, _LANES), np.float32)
    top = np.empty(_LANES, np.float32)
    inverse = np.empty(_LANES, np.float32)
    chosen = np.empty(_LANES, np.float32)
    best = np.empty(_LANES, np.float32)
    found = np.empty(_LANES, np.float32)
    by_x = np.empty(_LANES, np.float32)
    by_l = np.empty(_LANES, np.float32)
    for first in range(0, scales.size, _LANES):
        _load(flat, first, x, w, wx, top)
        for number in range(tries.size):
            nearest = np.float32(32) + np.float32(0.1) * tries[number]
            for lane in range(_LANES):
                inverse[lane] = -nearest / top[lane]
                by_x[lane] = np.float32(0)
                by_l[lane] = np.float32(0)
            for item in range(16):
                for lane in range(_LANES):
                    level = _level(inverse[lane] * x[item, lane])
                    by_x[lane] += wx[item, lane] * level
                    by_l[lane] += (w[item, lane] * level) * level
            for lane in range(_LANES):
                scale = by_x[lane] / by_l[lane]
                if number == 0:
                    scale = scale if by_l[lane] != 0 else np.float32(0)
                    better = True
                else:
                    better = by_l[lane] > 0 and by_x[lane] * by_x[lane] > best[lane] * by_l[lane]
                found[lane] = scale if better else found[lane]
                best[lane] = scale * by_x[lane] if better else best[lane]
                chosen[lane] = inverse[lane] if better else chosen[lane]
        for lane in range(_LANES):
            zero = abs(top[lane]) < _EPS
            scales[first + lane] = np.float32(0) if zero else found[lane]
            for item in range(16):
                level = np.float32(0) if zero else _level(chosen[lane] * x[item, lane]) + np.float32(32)
                codes[(first + lane) * 16 + item] = np.uint8(level)


@_compiled
def _load(flat: Any, first: int, x: Any, w: Any, wx: Any, top: Any) -> None:
    """Groups `first` and following, a lane each: their weights, those squared and cubed, and the largest of each."""
    for lane in range(_LANES):
        largest = np.float32(0)
        for item in range(16):
            value = flat[(first + lane) * 16 + item]
            x[item, lane] = value
            w[item, lane] = value * value
            wx[item, lane] = (value * value) * value
            largest = value if abs(value) > abs(largest) else largest
        top[lane] = largest


@_compiled
def _level(value: Any) -> Any:
    return max(np.float32(-32), min(np.float32(31), np.rint(value)))


@_compiled
def _pack(flat: Any, divisor: Any, levels: Any, codes: Any, out: Any) -> None:
    """Codes under the rounded scales (where these are zero, those that were found first stay), two to a byte and a
    half."""
    for block in range(levels.shape[0]):
        start = block * BLOCK_ITEMS
        for group in range(16):
            step = divisor[block] * np.float32(levels[block, group])
            if step != 0:
                for item in range(start + group * 16, start + group * 16 + 16):
                    codes[item] = np.uint8(_level(flat[item] / step) + np.float32(32))
        for half in range(2):
            for item in range(32):
                at = start + half * 128 + item
                one, two, three, four = codes[at], codes[at + 32], codes[at + 64], codes[at + 96]
                out[block, half * 64 + item] = (one & 15) | (three & 15) << 4
                out[block, half * 64 + item + 32] = (two & 15) | (four & 15) << 4
                out[block, 128 + half * 32 + item] = one >> 4 | two >> 4 << 2 | three >> 4 << 4 | four >> 4 << 6
