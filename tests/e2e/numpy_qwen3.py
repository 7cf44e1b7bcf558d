"""Qwen3 in numpy, as a reference for what an engine computes from an NVFP4 checkpoint: float32, no cache, no fusion.

It knows the checkpoint by its definition (own tables of E2M1 and E4M3) and nothing of the product. Activations are
quantized as hardware for W4A4 does it, in blocks of 16: with the layer's `input_global_scale` g,
scale = e4m3(g * blockmax / 6), value = E2M1(x / (scale / g)) * scale / g, ties to the even code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
# Between two neighbours of E2M1; at the boundary itself the even code wins.
BOUNDS = (E2M1[1:] + E2M1[:-1]) / 2
BLOCK = 16


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


# All finite magnitudes, ascending: the code is the index.
E4M3 = np.array([_e4m3(code) for code in range(127)], np.float32)


def nearest(values: Array, table: Array) -> Array:
    """The nearest entry of an ascending table, the one with the even index where two are equally near."""
    above = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    low, high = table[above - 1].astype(np.float64), table[above].astype(np.float64)
    down, up = values - low, high - values
    take_low = (down < up) | ((down == up) & ((above - 1) % 2 == 0))
    return np.where(take_low, table[above - 1], table[above])


def fake_quantized(x: Array, divisor: float) -> Array:
    """Activations [tokens, width] as W4A4 sees them."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    scale = nearest(np.minimum(np.float32(divisor) * (largest / np.float32(6)), np.float32(448)), E4M3)
    step = np.where(scale == 0, np.float32(1), scale / np.float32(divisor))
    codes = nearest(np.minimum(np.abs(blocks) / step, np.float32(6)), E2M1)
    return np.where(scale == 0, 0, np.sign(blocks) * codes * step).reshape(x.shape).astype(np.float32)


class NumpyQwen3:
    """One checkpoint: of bf16 weights, or NVFP4; `activations` says whether they are 4-bit too."""

    def __init__(self, directory: Path, activations: bool = True) -> None:
        self.config = json.loads((directory / "config.json").read_bytes())
        self._tensors = _read(directory / "model.safetensors")
        self._activations = activations
        self._weights: dict[str, Array] = {}

    def logits(self, tokens: list[int]) -> Array:
        """Log probabilities [tokens, vocab] of what follows each token."""
        config = self.config
        embedding = self._plain("model.embed_tokens.weight")
        x = embedding[tokens]
        for number in range(config["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            x = x + self._attention(layer, self._norm(x, f"{layer}.input_layernorm.weight"))
            x = x + self._feed_forward(layer, self._norm(x, f"{layer}.post_attention_layernorm.weight"))
        x = self._norm(x, "model.norm.weight") @ embedding.T
        x = x - x.max(axis=1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))

    def _attention(self, layer: str, x: Array) -> Array:
        config, count = self.config, len(x)
        heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        query = self._linear(f"{layer}.self_attn.q_proj", x).reshape(count, heads, size)
        key = self._linear(f"{layer}.self_attn.k_proj", x).reshape(count, kv_heads, size)
        value = self._linear(f"{layer}.self_attn.v_proj", x).reshape(count, kv_heads, size)
        query = self._rotated(self._norm(query, f"{layer}.self_attn.q_norm.weight"))
        key = self._rotated(self._norm(key, f"{layer}.self_attn.k_norm.weight"))
        key, value = (np.repeat(one, heads // kv_heads, axis=1) for one in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.float32(np.sqrt(size))
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares = shares / shares.sum(axis=2, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(count, heads * size)
        return self._linear(f"{layer}.self_attn.o_proj", mixed)

    def _feed_forward(self, layer: str, x: Array) -> Array:
        gate = self._linear(f"{layer}.mlp.gate_proj", x)
        up = self._linear(f"{layer}.mlp.up_proj", x)
        return self._linear(f"{layer}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)

    def _norm(self, x: Array, name: str) -> Array:
        mean = np.square(x).mean(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + np.float32(self.config["rms_norm_eps"])) * self._plain(name))

    def _rotated(self, x: Array) -> Array:
        """Rotary positions, the halves of a head rotated against each other."""
        half = x.shape[2] // 2
        frequency = self.config["rope_parameters"]["rope_theta"] ** (-np.arange(half) / half)
        angle = (np.arange(len(x))[:, None] * frequency)[:, None, :]
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        first, second = x[:, :, :half], x[:, :, half:]
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)

    def _linear(self, name: str, x: Array) -> Array:
        if name not in self._weights:
            packed = f"{name}.weight_packed" in self._tensors
            self._weights[name] = self._unpacked(name) if packed else self._plain(f"{name}.weight")
        divisor = self._tensors.get(f"{name}.input_global_scale")
        if self._activations and divisor is not None:
            x = fake_quantized(x, float(divisor[0]))
        return np.asarray(x @ self._weights[name].T)

    def _unpacked(self, name: str) -> Array:
        codes, scale = self._tensors[f"{name}.weight_packed"], self._tensors[f"{name}.weight_scale"]
        nibbles = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1, BLOCK)
        signs = np.where(nibbles & 8, np.float32(-1), np.float32(1))
        step = E4M3[scale] / np.float32(self._tensors[f"{name}.weight_global_scale"][0])
        return (signs * E2M1[nibbles & 7] * step[:, :, None]).reshape(len(codes), -1)

    def _plain(self, name: str) -> Array:
        return self._tensors[name]


def _read(path: Path) -> dict[str, Array]:
    """Every tensor; bf16 as float32, codes and scales as their bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[start + begin : start + end]
        if entry["dtype"] == "BF16":
            values: Array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, np.float32 if entry["dtype"] == "F32" else np.uint8)
        found[name] = values.reshape(entry["shape"])
    return found
