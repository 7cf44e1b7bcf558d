"""A Hugging Face directory of NVFP4A16 weights in compressed-tensors layout, as vLLM reads it."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.artifacts import qwen3
from orchestrator.artifacts.disk import host_errors, replacing, write_whole
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.nvfp4 import BLOCK, Floats, dequantize_rows, global_scale, quantize_rows, round_bf16
from orchestrator.artifacts.safetensors import (
    INDEX,
    Checkpoint,
    ShardWriter,
    Tensor,
    read_finite,
    row_blocks,
    to_float32,
)
from orchestrator.artifacts.threads import in_order
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

# Copied beside the weights where the source has them.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

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

_BLOCK_ITEMS = 1 << 19

# Layers that vLLM fuses share one divisor.
_JOINED = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
}


@dataclass(frozen=True)
class _Rows:
    """Rows `start` to `stop` of a tensor."""

    tensor: Tensor
    start: int
    stop: int

    @property
    def size(self) -> int:
        return (self.stop - self.start) * self.tensor.row_bytes


def build_nvfp4(source: Path, outdir: Path, progress: Progress) -> None:
    """Quantizes the linear layers of the Hugging Face directory `source` into `outdir`, sharded as the source is.

    Two passes over row blocks: the largest magnitudes first, because q, k, v (and gate, up) share one divisor
    wherever their shards lie. Embedding, head and norms are copied. config.json is written last: without it
    nothing takes the directory for finished. Weights in F16 or F32 are rounded to BF16 first.
    SourceError if the source is no sound dense Qwen3 or has NaN or Inf; HostError if the disk fails.
    """
    config = qwen3.read_config(source)
    with Checkpoint.open(source) as checkpoint, host_errors(f"write {outdir}"):
        qwen3.check(checkpoint, config)
        tensors = [checkpoint.tensors[name] for name in qwen3.expected_tensors(config)]
        _check_columns(tensors)
        outdir.mkdir(parents=True, exist_ok=True)
        (outdir / "config.json").unlink(missing_ok=True)
        divisors = _divisors(checkpoint, tensors, progress)
        weight_map: dict[str, str] = {}
        total = sum(tensor.size for tensor in tensors)
        done = 0
        for file in checkpoint.files:
            shard = [tensor for tensor in tensors if tensor.file == file]
            if not shard:
                continue
            with replacing(outdir / file.name) as partial:
                names = _write_shard(partial, checkpoint, shard, divisors, progress, done, total)
            weight_map |= dict.fromkeys(names, file.name)
            done += sum(tensor.size for tensor in shard)
        _write_companions(source, outdir, weight_map)


def _check_columns(tensors: list[Tensor]) -> None:
    odd = [f"{t.name} {list(t.shape)}" for t in tensors if _is_linear(t) and t.row_items % BLOCK]
    if odd:
        raise SourceError(
            f"{odd[0]}: NVFP4 needs columns divisible by {BLOCK}.", "Build a GGUF instead.", "\n".join(odd)
        )


def _is_linear(tensor: Tensor) -> bool:
    return _split(tensor.name)[1] in qwen3.LINEAR


def _split(name: str) -> tuple[str, str]:
    """(`model.layers.N`, module) of a layer's tensor; other names come out without a module of qwen3.LINEAR."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[:3]), ".".join(parts[3:])


def _group(tensor: Tensor) -> str:
    layer, module = _split(tensor.name)
    return f"{layer}.{_JOINED.get(module, module)}"


def _jobs(tensors: list[Tensor]) -> list[_Rows]:
    return [_Rows(tensor, *rows) for tensor in tensors for rows in row_blocks(tensor, _BLOCK_ITEMS)]


def _as_bf16(block: npt.NDArray[Any]) -> Floats:
    """A block as float32 holding bf16 values."""
    rows = to_float32(block)
    return rows if block.dtype == np.uint16 else round_bf16(rows)


def _divisors(checkpoint: Checkpoint, tensors: list[Tensor], progress: Progress) -> dict[str, np.float32]:
    """Group to its global scale."""
    linear = [tensor for tensor in tensors if _is_linear(tensor)]
    largest = {_group(tensor): 0.0 for tensor in linear}
    total = sum(tensor.size for tensor in linear)
    done = 0

    def amax(job: _Rows) -> float:
        block = _as_bf16(read_finite(checkpoint, job.tensor, job.start, job.stop))
        return max(float(block.max()), -float(block.min()))

    with closing(in_order(amax, _jobs(linear))) as results:
        for job, value in results:
            group = _group(job.tensor)
            largest[group] = max(largest[group], value)
            done += job.size
            progress("measuring weights", done, total)
    return {group: global_scale(value) for group, value in largest.items()}


def _write_shard(
    path: Path,
    checkpoint: Checkpoint,
    tensors: list[Tensor],
    divisors: dict[str, np.float32],
    progress: Progress,
    done: int,
    total: int,
) -> list[str]:
    """Writes one output shard; returns the names of its tensors."""

    def convert(job: _Rows) -> tuple[npt.NDArray[Any], ...]:
        block = read_finite(checkpoint, job.tensor, job.start, job.stop)
        if not _is_linear(job.tensor):
            return (block,)
        return quantize_rows(_as_bf16(block), divisors[_group(job.tensor)])

    with ShardWriter(path, _layout(tensors)) as writer:
        for tensor in tensors:
            if _is_linear(tensor):
                writer.write(f"{tensor.name}_global_scale", divisors[_group(tensor)].reshape(1), 0)
        with closing(in_order(convert, _jobs(tensors))) as results:
            for job, parts in results:
                names = _parts(job.tensor)
                for name, part in zip(names, parts, strict=False):
                    writer.write(name, part, job.start)
                done += job.size
                progress("quantizing", done, total)
        return list(writer.tensors)


def _parts(tensor: Tensor) -> tuple[str, ...]:
    """Names of what becomes of a tensor; the row-wise ones first."""
    if not _is_linear(tensor):
        return (tensor.name,)
    return tuple(f"{tensor.name}_{part}" for part in ("packed", "scale", "global_scale"))


def _layout(tensors: list[Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        if not _is_linear(tensor):
            layout[tensor.name] = (tensor.dtype, tensor.shape)
            continue
        rows, items = tensor.shape
        packed, scale, divisor = _parts(tensor)
        layout[packed] = ("U8", (rows, items // 2))
        layout[scale] = ("F8_E4M3", (rows, items // BLOCK))
        layout[divisor] = ("F32", (1,))
    return layout


def _write_companions(source: Path, outdir: Path, weight_map: dict[str, str]) -> None:
    if len(set(weight_map.values())) > 1 or "model.safetensors" not in weight_map.values():
        total = 0
        for file in set(weight_map.values()):
            with Checkpoint.open_files((outdir / file,)) as written:
                total += sum(tensor.size for tensor in written.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(outdir / INDEX, _json(index))
    for name in COMPANIONS:
        if (source / name).is_file():
            with replacing(outdir / name) as partial:
                shutil.copyfile(source / name, partial)
    config = read_json(source / "config.json") | {"quantization_config": QUANTIZATION_CONFIG}
    write_whole(outdir / "config.json", _json(config))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


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
