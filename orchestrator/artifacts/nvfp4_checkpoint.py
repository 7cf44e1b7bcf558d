"""A Hugging Face directory of NVFP4A16 weights in compressed-tensors layout, as vLLM reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.claims import check_nvfp4
from orchestrator.artifacts.description import as_json, write_description
from orchestrator.artifacts.disk import host_errors, replacing, write_whole
from orchestrator.artifacts.families import is_linear
from orchestrator.artifacts.nvfp4 import BLOCK, Floats, dequantize_rows, global_scale, quantize_rows, round_bf16
from orchestrator.artifacts.one_pass import Block, Cost, OutputWriter, Rows, Weights, sampled
from orchestrator.artifacts.rows import to_float32
from orchestrator.artifacts.safetensors import Checkpoint, ShardWriter, Tensor, tensor_bytes
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import Progress
from orchestrator.core.weights import INDEX, SINGLE
from orchestrator.errors import SourceError

# Dtype and shape by name.
Layout = dict[str, tuple[str, tuple[int, ...]]]

_WEIGHTS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "group_size": BLOCK,
    "num_bits": 4,
    "observer": None,
    "observer_kwargs": {},
    "scale_dtype": "torch.float8_e4m3fn",
    "strategy": "tensor_group",
    "symmetric": True,
    "type": "float",
    "zp_dtype": None,
}

# What compressed-tensors 0.19 writes; vLLM's reader is 0.17 and takes it.
QUANTIZATION_CONFIG: dict[str, Any] = {
    "config_groups": {
        "NVFP4A16": {
            "format": "nvfp4-pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": _WEIGHTS,
        }
    },
    "format": "nvfp4-pack-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head", "model.embed_tokens"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "transform_config": {},
    "version": "0.19.0",
}


def build_nvfp4(source: Path, outdir: Path, progress: Progress) -> None:
    """Quantizes the linear layers of the Hugging Face directory `source` into `outdir`, sharded as the source is.

    Embedding, head, norms and biases are copied. Weights in F16 or F32 are rounded to BF16 first. SourceError if the
    source is no sound dense model or has NaN or Inf; HostError if the disk fails.
    """
    one_pass.build(source, [Nvfp4OutputSpec(outdir)], progress)


@dataclass(frozen=True)
class Nvfp4OutputSpec:
    """A directory of NVFP4A16 weights. config.json is written last: without it nothing takes it for finished."""

    outdir: Path

    def cost(self, weights: Weights) -> Cost:
        """See one_pass.OutputSpec."""
        _check_columns(weights.tensors)
        size = sum(tensor_bytes(*entry) for entry in _layout(list(weights.tensors)).values())
        linear = [tensor for tensor in weights.tensors if is_linear(tensor.name)]
        items = sum(tensor.rows * tensor.row_items for tensor in linear)
        cpu_s = sampled(lambda block: quantize_rows(as_bf16(block), np.float32(1)), linear[0].row_items, items)
        return Cost(size, cpu_s, holds=True)

    @contextmanager
    def writer(self, weights: Weights) -> Iterator[OutputWriter]:
        """See one_pass.OutputSpec."""
        _check_columns(weights.tensors)
        with shards(self.outdir, weights, _layout, QUANTIZATION_CONFIG) as writers:
            yield _Nvfp4OutputWriter(writers)
        check_nvfp4(self.outdir, Recipe.NVFP4A16)


@contextmanager
def shards(
    outdir: Path, weights: Weights, layout: Callable[[list[Tensor]], Layout], quantization: dict[str, Any]
) -> Iterator[dict[Path, ShardWriter]]:
    """Writers for a directory of quantized weights in compressed-tensors layout, by the source's shards.

    `layout` says which tensors a shard's become. At the end what describes them is written beside them.
    """
    with host_errors(f"write {outdir}"):
        outdir.mkdir(parents=True, exist_ok=True)
        (outdir / "config.json").unlink(missing_ok=True)
        writers: dict[Path, ShardWriter] = {}
        with ExitStack() as stack:
            for file in weights.checkpoint.files:
                shard = [tensor for tensor in weights.tensors if tensor.file == file]
                if shard:
                    partial = stack.enter_context(replacing(outdir / file.name))
                    writers[file] = stack.enter_context(ShardWriter(partial, layout(shard)))
            yield writers
        weight_map = {name: file.name for file, writer in writers.items() for name in writer.tensors}
        write_index(outdir, weight_map)
        write_description(weights.directory, outdir, weights.meaning, {"quantization_config": quantization})


class _Nvfp4OutputWriter:
    """Writes a shard for each of the source's."""

    def __init__(self, writers: dict[Path, ShardWriter]) -> None:
        self._writers = writers

    def needs_largest(self, tensor: Tensor) -> bool:
        return is_linear(tensor.name)

    def row_step(self, tensor: Tensor) -> int:
        return 1

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        if not is_linear(rows.tensor.name):
            return (block,)
        divisor = global_scale(float(round_bf16(np.array([largest], np.float32))[0]))
        codes, scales = quantize_rows(as_bf16(block), divisor)
        # Once per tensor is enough.
        return (codes, scales) if rows.start else (codes, scales, divisor.reshape(1))

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        writer = self._writers[rows.tensor.file]
        for name, part in zip(_parts(rows.tensor), parts, strict=False):
            writer.write(name, part, rows.start)


def _check_columns(tensors: Sequence[Tensor]) -> None:
    odd = [f"{t.name} {list(t.shape)}" for t in tensors if is_linear(t.name) and t.row_items % BLOCK]
    if odd:
        raise SourceError(
            f"{odd[0]}: NVFP4 needs columns divisible by {BLOCK}.", "Build a GGUF instead.", "\n".join(odd)
        )


def as_bf16(block: npt.NDArray[Any]) -> Floats:
    """A block as float32 holding bf16 values."""
    rows = to_float32(block)
    return rows if block.dtype == np.uint16 else round_bf16(rows)


def _parts(tensor: Tensor) -> tuple[str, ...]:
    """Names of what becomes of a tensor; the row-wise ones first."""
    if not is_linear(tensor.name):
        return (tensor.name,)
    return tuple(f"{tensor.name}_{part}" for part in ("packed", "scale", "global_scale"))


def _layout(tensors: list[Tensor]) -> Layout:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        if not is_linear(tensor.name):
            layout[tensor.name] = (tensor.dtype, tensor.shape)
            continue
        rows, items = tensor.shape
        packed, scale, divisor = _parts(tensor)
        layout[packed] = ("U8", (rows, items // 2))
        layout[scale] = ("F8_E4M3", (rows, items // BLOCK))
        layout[divisor] = ("F32", (1,))
    return layout


def write_index(outdir: Path, weight_map: dict[str, str]) -> None:
    """The index of quantized shards, where there are several, or one of another name."""
    if set(weight_map.values()) == {SINGLE}:
        return
    total = 0
    for file in set(weight_map.values()):
        with Checkpoint.open_files((outdir / file,)) as written:
            total += sum(tensor.size for tensor in written.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_whole(outdir / INDEX, as_json(index))


def read_nvfp4(directory: Path, weight: str) -> Floats:
    """The dequantized linear weight, such as `model.layers.0.mlp.up_proj.weight`, as float32 [out, in].

    SourceError if the directory does not hold it in this layout.
    """
    with Checkpoint.open(directory) as checkpoint:
        parts = [checkpoint.tensors.get(f"{weight}_{part}") for part in ("packed", "scale", "global_scale")]
        packed, scale, divisor = parts
        if packed is None or scale is None or divisor is None:
            raise SourceError(f"{directory} holds no NVFP4 tensors of {weight}.")
        found = [tensor.dtype for tensor in (packed, scale, divisor)]
        rows, half = packed.shape if len(packed.shape) == 2 else (0, 0)
        if found != ["U8", "F8_E4M3", "F32"] or scale.shape != (rows, half * 2 // BLOCK) or divisor.shape != (1,):
            raise SourceError(f"{directory}: the NVFP4 tensors of {weight} have wrong types or shapes.")
        return dequantize_rows(
            checkpoint.read(packed), checkpoint.read(scale), np.float32(checkpoint.read(divisor).item())
        )
