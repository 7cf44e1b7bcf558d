"""Scaled rotary frequencies as llama.cpp keeps them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from orchestrator.artifacts.rope import Rope


def llama3_factors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32]:
    """By what each rotary frequency is divided, [head_dim / 2]: `rope_freqs.weight` of a GGUF.

    Fast ones stay, slow ones are divided by `factor`, those between in between. The steps are those of llama.cpp's
    converter and so round as they do: powers are exact, and a number is divided by a tensor as number * (1 / tensor).
    """
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = one / np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    waves = np.float32(2 * math.pi) * (one / frequencies)
    context, factor = rope.original_max_position_embeddings, np.float32(rope.factor)
    span = np.float32(rope.high_freq_factor - rope.low_freq_factor)
    smooth = (np.float32(context) * (one / waves) - np.float32(rope.low_freq_factor)) / span
    between = one / ((one - smooth) / factor + smooth)
    slow = np.where(waves > np.float32(context / rope.low_freq_factor), factor, between)
    return np.where(waves < np.float32(context / rope.high_freq_factor), one, slow).astype(np.float32)
