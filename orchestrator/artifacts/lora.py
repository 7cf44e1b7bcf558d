"""The GGUF adapters of llama.cpp, made of what PEFT saves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from orchestrator.artifacts import families
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.gguf_file import Output, aligned, places, write_head
from orchestrator.artifacts.peft import fitting_tensors, linear_part, open_weights, read_adapter
from orchestrator.artifacts.rows import is_finite, pairs_together, read_finite, to_float32
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError


def build_lora_gguf(
    adapter_dir: Path, base_config: ModelConfig, out: Path, progress: Progress, name: str | None = None
) -> None:
    """Converts a PEFT directory to a GGUF adapter in F16, which appears at `out` only when it is whole.

    rsLoRA is folded into adapter.lora.alpha. SourceError lists every tensor that does not fit the base.
    """
    adapter = read_adapter(adapter_dir)
    with open_weights(adapter_dir) as checkpoint, host_errors(f"write {out}"):
        pairs = fitting_tensors(checkpoint, adapter, base_config)
        with replacing(out) as partial:
            writer = GGUFWriter(partial, base_config.family.architecture)
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            if name:
                writer.add_name(name)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            outputs = [Output(name, GGMLQuantizationType.F16, tensor.shape, tensor.name) for name, tensor in pairs]
            offset = write_head(writer, outputs)
            _write_data(partial, places(outputs, offset), checkpoint, base_config, progress)


def _write_data(
    path: Path,
    outputs: Mapping[str, tuple[Output, int]],
    checkpoint: Checkpoint,
    config: ModelConfig,
    progress: Progress,
) -> None:
    """Adapters are small: tensor by tensor, without threads."""
    tensors = [checkpoint.tensors[output.source] for output, _ in outputs.values()]
    total, done = sum(tensor.size for tensor in tensors), 0
    descriptor = os.open(path, os.O_WRONLY)
    try:
        reserve(descriptor, max(offset + aligned(output.size) for output, offset in outputs.values()))
        progress("converting", 0, total)
        for tensor, (_, offset) in zip(tensors, outputs.values(), strict=True):
            with np.errstate(over="ignore"):
                half = to_float32(read_finite(checkpoint, tensor, 0, tensor.rows)).astype(np.float16)
            if not is_finite(half):
                raise SourceError(f"{tensor.file}: {tensor.name} is too large for F16.")
            module, part = linear_part(tensor.name)
            # B's rows are the base's: where those have another order in GGUF, so have these.
            if part == "lora_b" and families.is_reordered(config, f"{module}.weight"):
                half = pairs_together(half, config.head_dim)
            pwrite_all(descriptor, half.data, offset)
            done += tensor.size
            progress("converting", done, total)
    finally:
        os.close(descriptor)
