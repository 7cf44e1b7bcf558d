"""BF16 weights to FP8 (E4M3) with a scale per output channel, in row blocks: the bytes that llm-compressor would write.

Per linear weight [out, in] the output holds `weight` F8_E4M3 [out, in] and `weight_scale` BF16 [out, 1], a factor. The
rule, in its roundings exactly that of llm-compressor 0.14's FP8_DYNAMIC: scale = bf16(rowmax / 448), 2**-7 where that
is 0; code = e4m3(bf16(w / scale)), saturating at 448, the sign kept for zero too.
Activations are quantized by the engine, token by token: nothing of them is in the file.
"""

from __future__ import annotations

import numpy as np

from orchestrator.artifacts.nvfp4 import E4M3, Codes, Floats, round_bf16, to_e4m3

_E4M3_MAX = 448.0
# What torch calls the epsilon of bf16; llm-compressor puts it where a scale would be 0.
_SCALE_EPS = 2.0**-7


def quantize_rows(rows: Floats) -> tuple[Codes, Floats]:
    """(E4M3 codes [n, in], scales [n, 1], float32 that hold bf16 values) of float32 rows [n, in] that hold bf16
    values."""
    magnitude = np.abs(rows)
    scales = round_bf16(magnitude.max(axis=1, keepdims=True) / np.float32(_E4M3_MAX))
    scales[scales == 0] = np.float32(_SCALE_EPS)
    magnitude /= scales
    codes = to_e4m3(round_bf16(magnitude))
    codes |= np.signbit(rows).view(np.uint8) << np.uint8(7)
    return codes, scales


def dequantize_rows(codes: Codes, scales: Floats) -> Floats:
    """The inverse of `quantize_rows`: float32 [n, in]."""
    return E4M3[codes] * scales
