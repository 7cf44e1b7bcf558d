"""NVFP4 in a GGUF: the very weights of the NVFP4A16 checkpoint, in ggml's own type.

A block has 64 weights in 36 bytes: the E4M3 scales of four times 16, then their codes, of each 16 the first eight in
the low halves of eight bytes and the last eight in the high ones. Beside a `.weight` lies its `.scale`, F32 [1], by
which llama.cpp multiplies. Weights whose columns no block divides are BF16 that holds E2M1 times E4M3, exactly, with
the same `.scale`: so they too are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from orchestrator.artifacts.disk import pwrite_all
from orchestrator.artifacts.families import ModelConfig, expected_tensors, gguf_name, is_linear, is_reordered
from orchestrator.artifacts.gguf_file import GgufOutputWriter, Output, aligned, new_file, plan_outputs
from orchestrator.artifacts.gguf_types import scale_name
from orchestrator.artifacts.nvfp4 import BLOCK, Codes, dequantize_rows, quantize_rows
from orchestrator.artifacts.nvfp4_checkpoint import as_bf16, check_columns, divisor_for
from orchestrator.artifacts.one_pass import Block, Cost, OutputWriter, Rows, Weights, sampled
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.rows import pairs_together
from orchestrator.artifacts.safetensors import Checkpoint, Tensor
from orchestrator.core.weights import NO_SECOND_SCALE
from orchestrator.errors import SourceError

NVFP4 = GGMLQuantizationType.NVFP4
_SCALES = 4
_ITEMS, _BYTES = _SCALES * BLOCK, _SCALES + _SCALES * BLOCK // 2


def is_packed(output: Output) -> bool:
    """Whether it is one of the 4-bit weights of the checkpoint, in whichever of the two forms."""
    return is_linear(output.source)


def check_served(config: ModelConfig) -> None:
    """SourceError where llama.cpp would serve other weights."""
    if config.family.architecture in NO_SECOND_SCALE:
        raise SourceError(
            f"llama.cpp leaves out the second scale of NVFP4 in {config.family.class_name}: answers would be wrong.",
            "Build another type, such as q6_k.",
        )


def nvfp4_outputs(checkpoint: Checkpoint, config: ModelConfig) -> list[Output]:
    """The tensors in the order of llama.cpp's converter: those that it repacks come first, each with its scale.

    SourceError where the columns of one are not divisible by 16.
    """
    check_columns([checkpoint.tensors[name] for name in expected_tensors(config)])
    outputs = []
    for output in sorted(plan_outputs(checkpoint, config, "nvfp4"), key=lambda one: one.kind is not NVFP4):
        outputs.append(output)
        if is_packed(output):
            outputs.append(Output(scale_name(output.name), GGMLQuantizationType.F32, (1,)))
    return outputs


def stored(kind: GGMLQuantizationType, packed: Codes, scales: Codes) -> Block:
    """Rows of the checkpoint as `kind` has them: packed codes [n, in/2] and E4M3 scales [n, in/16]."""
    if kind is not NVFP4:
        products = dequantize_rows(packed, scales, np.float32(1))
        return (products.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    count = packed.shape[0]
    blocks = np.empty((count, packed.shape[1] * 2 // _ITEMS, _BYTES), np.uint8)
    # ggml's scales have no sign; that of a zero may be set.
    blocks[:, :, :_SCALES] = scales.reshape(count, -1, _SCALES) & np.uint8(0x7F)
    halves = packed.reshape(count, -1, _SCALES, 2, BLOCK // 4)
    first, last = halves[:, :, :, 0], halves[:, :, :, 1]
    codes = np.empty((*first.shape, 2), np.uint8)
    codes[..., 0] = (first & np.uint8(15)) | (last << np.uint8(4))
    codes[..., 1] = (first >> np.uint8(4)) | (last & np.uint8(0xF0))
    blocks[:, :, _SCALES:] = codes.reshape(count, -1, _BYTES - _SCALES)
    return blocks.reshape(count, -1)


@dataclass(frozen=True)
class GgufNvfp4OutputSpec:
    """The file `out`; see GgufOutputSpec."""

    out: Path
    quantizer: Quantizer
    name: str | None = None

    def cost(self, weights: Weights) -> Cost:
        """See one_pass.OutputSpec."""
        check_served(weights.config)
        outputs = nvfp4_outputs(weights.checkpoint, weights.config)
        packed = [output for output in outputs if is_packed(output)]

        def convert(block: Block) -> Block:
            return stored(packed[0].kind, *quantize_rows(as_bf16(block), np.float32(1)))

        cpu_s = sampled(convert, packed[0].shape[-1], sum(output.elements for output in packed))
        return Cost(sum(aligned(output.size) for output in outputs), cpu_s, holds=True)

    @contextmanager
    def writer(self, weights: Weights) -> Iterator[OutputWriter]:
        """See one_pass.OutputSpec."""
        check_served(weights.config)
        config, outputs = weights.config, nvfp4_outputs(weights.checkpoint, weights.config)
        with new_file(self.out, weights, "nvfp4", outputs, self.name) as (file, placed):
            yield GgufNvfp4OutputWriter(file, placed, config, self.quantizer)


class GgufNvfp4OutputWriter(GgufOutputWriter):
    """Writes the linear layers packed, each with its scale, and all else as any GGUF has it."""

    def needs_largest(self, tensor: Tensor) -> bool:
        return is_linear(tensor.name)

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        if not is_linear(rows.tensor.name):
            return super().convert(rows, block, largest)
        divisor = divisor_for(largest)
        return self.repack(rows, *quantize_rows(as_bf16(block), divisor), np.float32(1) / divisor)

    def repack(self, rows: Rows, packed: Codes, scales: Codes, factor: np.float32) -> Sequence[Block]:
        """What becomes of a block that is quantized; `factor` is what llama.cpp multiplies by."""
        output, _ = self.outputs[gguf_name(rows.tensor.name)]
        made = stored(output.kind, packed, scales)
        if is_reordered(self.config, rows.tensor.name):
            made = pairs_together(made, self.config.head_dim)
        # Once per tensor is enough.
        return (made,) if rows.start else (made, factor.reshape(1))

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        super().write(rows, parts)
        for factor in parts[1:]:
            _, place = self.outputs[scale_name(gguf_name(rows.tensor.name))]
            pwrite_all(self.descriptor, factor.data, place)
