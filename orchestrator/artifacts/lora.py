"""The GGUF adapters of llama.cpp, made of what PEFT saves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from orchestrator.artifacts import families
from orchestrator.artifacts.adapter_tensors import Half
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.gguf_file import Output, aligned, places, write_head
from orchestrator.artifacts.peft import Adapter, fitting_tensors, open_weights, read_adapter
from orchestrator.artifacts.rows import is_finite, pairs_together, read_finite, to_float32
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError


def build_lora_gguf(
    adapter_dir: Path, base_config: ModelConfig, out: Path, progress: Progress, name: str | None = None
) -> None:
    """Converts a PEFT directory to a GGUF adapter in F16, which appears at `out` only when it is whole.

    rsLoRA is folded into adapter.lora.alpha; an alpha that only some modules have, into their B. SourceError lists
    every tensor that does not fit the base. Copies of the base's tensors are left out: see adapter_copies.
    """
    adapter = read_adapter(adapter_dir)
    with open_weights(adapter_dir) as checkpoint, host_errors(f"write {out}"):
        halves = {_gguf_name(half): half for half in fitting_tensors(checkpoint, adapter, base_config).halves}
        with replacing(out) as partial:
            writer = GGUFWriter(partial, base_config.family.architecture)
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            if name:
                writer.add_name(name)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            outputs = [
                Output(name, GGMLQuantizationType.F16, half.tensor.shape, half.tensor.name)
                for name, half in halves.items()
            ]
            offset = write_head(writer, outputs)
            _write_data(partial, places(outputs, offset), checkpoint, halves, (adapter, base_config), progress)


def _gguf_name(half: Half) -> str:
    return f"{families.gguf_name(f'{half.module}.weight')}.lora_{half.letter.lower()}"


def _write_data(
    path: Path,
    outputs: Mapping[str, tuple[Output, int]],
    checkpoint: Checkpoint,
    halves: Mapping[str, Half],
    meaning: tuple[Adapter, ModelConfig],
    progress: Progress,
) -> None:
    """Adapters are small: tensor by tensor, without threads."""
    adapter, config = meaning
    total, done = sum(half.tensor.size for half in halves.values()), 0
    descriptor = os.open(path, os.O_WRONLY)
    try:
        reserve(descriptor, max(offset + aligned(output.size) for output, offset in outputs.values()))
        progress("converting", 0, total)
        for name, (_, offset) in outputs.items():
            half = halves[name]
            tensor = half.tensor
            values = to_float32(read_finite(checkpoint, tensor, 0, tensor.rows))
            if half.letter == "B":
                # llama.cpp has one alpha for all modules, and divides it by the rank of each.
                values = values * np.float32(adapter.config.alpha_of(half.module) / adapter.alpha)
            with np.errstate(over="ignore"):
                values = values.astype(np.float16)
            if not is_finite(values):
                raise SourceError(f"{tensor.file}: {tensor.name} is too large for F16.")
            # B's rows are the base's: where those have another order in GGUF, so have these.
            if half.letter == "B" and families.is_reordered(config, f"{half.module}.weight"):
                values = pairs_together(values, config.head_dim)
            pwrite_all(descriptor, values.data, offset)
            done += tensor.size
            progress("converting", done, total)
    finally:
        os.close(descriptor)
