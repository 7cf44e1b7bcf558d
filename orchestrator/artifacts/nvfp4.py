"""BF16 weights to NVFP4A16, data-free, in row blocks: the bytes that llm-compressor would write.

Per linear weight [out, in] the output holds `weight_packed` U8 [out, in/2] (low nibble = even column),
`weight_scale` F8_E4M3 [out, in/16] and `weight_global_scale` F32 [1], a divisor. The rule, in its roundings
exactly that of llm-compressor 0.14: with amax over the layer, joined over q, k, v and over gate, up,
global = bf16(bf16(1/amax) * 2688); scale = e4m3(bf16(blockmax/6) * global), 0.125 where that is 0;
code = the nearest E2M1 value of w / (scale/global), ties to the even code, the sign kept for zero too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 16

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

# The eight magnitudes of E2M1, then the same negative: code 8 is -0.0.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

_E4M3_MAX = 448.0
_E2M1_MAX = 6.0
_SCALE_EPS = 0.125
# Between the magnitudes of E2M1, all but the first.
_BOUNDARIES = (
    (np.float32(0.75), np.greater_equal),
    (np.float32(1.25), np.greater),
    (np.float32(1.75), np.greater_equal),
    (np.float32(2.5), np.greater),
    (np.float32(3.5), np.greater_equal),
    (np.float32(5), np.greater),
)


def round_bf16(values: Floats) -> Floats:
    """The nearest bf16, ties to even, as float32; for finite values."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (odd + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)).view(np.float32)


def to_e4m3(values: Floats) -> Codes:
    """Non-negative float32 to E4M3 bits: nearest, ties to even, saturating at 448."""
    values = np.minimum(values, np.float32(_E4M3_MAX))
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(20)) & np.uint32(1)
    # 3 mantissa bits stay; the exponent's bias goes from 127 to 7.
    normal = ((bits + (odd + np.uint32(0x7FFFF))) >> np.uint32(20)) - np.uint32((127 - 7) << 3)
    subnormal = np.rint(values * np.float32(512)).astype(np.uint32)
    return np.where(values < np.float32(2**-6), subnormal, normal).astype(np.uint8)


def _e4m3_values() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where(codes >= 128, -magnitude, magnitude).astype(np.float32)


# Every E4M3 code as float32; 0x7F and 0xFF would be NaN and are never written.
E4M3 = _e4m3_values()


def global_scale(amax: float) -> np.float32:
    """The divisor of a layer (or of joined layers) whose largest magnitude is `amax`.

    Where amax is so small that the divisor would be infinite, an all-zero layer included, it is 1:
    every weight rounds to zero then, under any divisor.
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.divide(np.float32(1), np.array([amax], np.float32))
        scale = round_bf16(round_bf16(inverse) * np.float32(_E4M3_MAX * _E2M1_MAX))[0]
    return np.float32(scale) if np.isfinite(scale) else np.float32(1)


def quantize_rows(rows: Floats, divisor: np.float32) -> tuple[Codes, Codes]:
    """(packed codes [n, in/2], E4M3 scales [n, in/16]) of float32 rows [n, in], in divisible by 16."""
    count, items = rows.shape
    magnitude = np.abs(rows)
    scales = to_e4m3(round_bf16(_largest_of_blocks(magnitude) / np.float32(_E2M1_MAX)) * divisor)
    scales[scales == 0] = to_e4m3(np.array([_SCALE_EPS], np.float32))[0]
    blocks = magnitude.reshape(count, items // BLOCK, BLOCK)
    blocks /= (E4M3[scales] / divisor)[:, :, None]
    codes = (magnitude > np.float32(0.25)).view(np.uint8)
    # Each comparison passes one boundary between neighbours; where a tie belongs to the even code decides > or >=.
    passed = np.empty(rows.shape, np.bool_)
    for boundary, compare in _BOUNDARIES:
        compare(magnitude, boundary, out=passed)
        codes += passed.view(np.uint8)
    np.signbit(rows, out=passed)
    codes |= passed.view(np.uint8) << np.uint8(3)
    pairs = codes.view("<u2")
    return (pairs | (pairs >> np.uint16(4))).astype(np.uint8), scales


def _largest_of_blocks(magnitude: Floats) -> Floats:
    """The largest of every 16 in a row: halving four times, as numpy is slow at many short maxima."""
    halves = magnitude
    for _ in range(BLOCK.bit_length() - 1):
        halves = np.maximum(halves[:, 0::2], halves[:, 1::2])
    return halves


def dequantize_rows(packed: Codes, scales: Codes, divisor: np.float32) -> Floats:
    """The inverse of `quantize_rows`: float32 [n, in]."""
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=2).reshape(*scales.shape, BLOCK)
    return (E2M1[codes] * (E4M3[scales] / divisor)[:, :, None]).reshape(packed.shape[0], -1)
