"""A Hugging Face directory of FP8 weights, activations quantized by the engine (FP8_DYNAMIC), in compressed-tensors
layout, as vLLM reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.claims import check_fp8
from orchestrator.artifacts.families import is_linear
from orchestrator.artifacts.fp8 import quantize_rows
from orchestrator.artifacts.nvfp4_checkpoint import Layout, as_bf16, shards
from orchestrator.artifacts.one_pass import Block, Cost, OutputWriter, Rows, Weights, sampled
from orchestrator.artifacts.safetensors import ShardWriter, Tensor, tensor_bytes
from orchestrator.core.progress import Progress

_EIGHT_BITS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "group_size": None,
    "num_bits": 8,
    "observer": None,
    "observer_kwargs": {},
    "scale_dtype": None,
    "symmetric": True,
    "type": "float",
    "zp_dtype": None,
}

# What compressed-tensors 0.19 writes; vLLM's reader is 0.17 and takes it.
QUANTIZATION_CONFIG: dict[str, Any] = {
    "config_groups": {
        "FP8_DYNAMIC": {
            "format": "float-quantized",
            "input_activations": _EIGHT_BITS | {"dynamic": True, "strategy": "token"},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": _EIGHT_BITS | {"dynamic": False, "strategy": "channel"},
        }
    },
    "format": "float-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head", "model.embed_tokens"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "transform_config": {},
    "version": "0.19.0",
}


def build_fp8(source: Path, outdir: Path, progress: Progress) -> None:
    """Quantizes the linear layers of the Hugging Face directory `source` into `outdir`, as build_nvfp4 does."""
    one_pass.build(source, [Fp8OutputSpec(outdir)], progress)


@dataclass(frozen=True)
class Fp8OutputSpec:
    """A directory of FP8 weights. config.json is written last: without it nothing takes it for finished."""

    outdir: Path

    def cost(self, weights: Weights) -> Cost:
        """See one_pass.OutputSpec."""
        size = sum(tensor_bytes(*entry) for entry in _layout(list(weights.tensors)).values())
        linear = [tensor for tensor in weights.tensors if is_linear(tensor.name)]
        items = sum(tensor.rows * tensor.row_items for tensor in linear)
        cpu_s = sampled(lambda block: quantize_rows(as_bf16(block)), linear[0].row_items, items)
        return Cost(size, cpu_s, holds=False)

    @contextmanager
    def writer(self, weights: Weights) -> Iterator[OutputWriter]:
        """See one_pass.OutputSpec."""
        with shards(self.outdir, weights, _layout, QUANTIZATION_CONFIG) as writers:
            yield _Fp8OutputWriter(writers)
        check_fp8(self.outdir)


class _Fp8OutputWriter:
    """Writes a shard for each of the source's. Each row has its own scale: nothing need be measured before."""

    def __init__(self, writers: dict[Path, ShardWriter]) -> None:
        self._writers = writers

    def needs_largest(self, tensor: Tensor) -> bool:
        return False

    def row_step(self, tensor: Tensor) -> int:
        return 1

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        if not is_linear(rows.tensor.name):
            return (block,)
        codes, scales = quantize_rows(as_bf16(block))
        return codes, (scales.view(np.uint32) >> np.uint32(16)).astype(np.uint16)

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        writer, names = self._writers[rows.tensor.file], (rows.tensor.name, f"{rows.tensor.name}_scale")
        for name, part in zip(names, parts, strict=False):
            writer.write(name, part, rows.start)


def _layout(tensors: list[Tensor]) -> Layout:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        linear = is_linear(tensor.name)
        layout[tensor.name] = ("F8_E4M3" if linear else tensor.dtype, tensor.shape)
        if linear:
            layout[f"{tensor.name}_scale"] = ("BF16", (tensor.shape[0], 1))
    return layout
