"""A checkpoint that is NVFP4 already to a GGUF: its 4-bit weights are repacked, none is quantized again.

Scales of activations (W4A4) and of the KV cache are left out: the weights are the same without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from orchestrator.artifacts import families
from orchestrator.artifacts.claims import check_nvfp4, scheme_of
from orchestrator.artifacts.gguf_file import Output, aligned, new_file
from orchestrator.artifacts.gguf_nvfp4 import GgufNvfp4OutputWriter, check_served, nvfp4_outputs, stored
from orchestrator.artifacts.head import head_is_own
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.nvfp4 import BLOCK, Codes
from orchestrator.artifacts.nvfp4_checkpoint import Packed, packed_weight
from orchestrator.artifacts.one_pass import BLOCK_ITEMS, Block, Cost, Rows, Weights, sampled
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.rows import read_finite
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, row_blocks
from orchestrator.artifacts.threads import in_order
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

# Tensors that are no weights themselves.
_PART = re.compile(r"_(packed|scale|scale_2|global_scale)$")


@contextmanager
def repacking(directory: Path, template: str | None = None) -> Iterator[Repacking]:
    """The open checkpoint, checked; `template` takes the place of its own chat template. SourceError if it is not NVFP4
    in one of the layouts that orch knows, or no dense model of a known family."""
    scheme = scheme_of(directory, read_json(directory / "config.json"))
    check_nvfp4(directory, scheme.recipe if scheme is not None else Recipe.NVFP4A16)
    config, meaning = families.read_config(directory, quantized=True), read_meaning(directory, template)
    check_served(config)
    with Checkpoint.open(directory) as checkpoint:
        if config.tie_word_embeddings and head_is_own(checkpoint):
            config, meaning = replace(config, tie_word_embeddings=False), replace(meaning, tied=False)
        expected = families.expected_tensors(config)
        linear = (name for name in expected if families.is_linear(name))
        packed = {name: found for name in linear if (found := packed_weight(checkpoint, name)) is not None}
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not _PART.search(name)}
        tensors |= {name: Tensor(name, "BF16", one.shape, one.codes.file, 0) for name, one in packed.items()}
        whole = Checkpoint(checkpoint.files, tensors, {})
        families.check(whole, config)
        weights = Weights(directory, config, meaning, whole, tuple(tensors[name] for name in expected))
        yield Repacking(weights, checkpoint, packed, tuple(nvfp4_outputs(whole, config)))


@dataclass(frozen=True)
class Repacking:
    """A checkpoint that is to be repacked: its `weights` as the model has them, so that they are named, checked and
    ordered like any others, those of them that are packed, and the tensors of the file in their order."""

    weights: Weights
    checkpoint: Checkpoint
    packed: Mapping[str, Packed]
    outputs: tuple[Output, ...]

    @property
    def reads(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.checkpoint.tensors.values())

    def cost(self) -> Cost:
        """What it will take, on this machine."""
        packed = [output for output in self.outputs if output.source in self.packed]
        kind, columns = packed[0].kind, packed[0].shape[-1]

        def convert(block: Block) -> Block:
            codes = block.view(np.uint8)
            return stored(kind, codes[:, : columns // 2], codes[:, : columns // BLOCK])

        cpu_s = sampled(convert, columns, sum(output.elements for output in packed))
        return Cost(sum(aligned(output.size) for output in self.outputs), cpu_s)

    def write(self, out: Path, quantizer: Quantizer, progress: Progress, name: str | None = None) -> None:
        """Writes the file `out`, which appears only when it is whole.

        SourceError for scales that are none, for NaN and Inf; HostError if the disk fails; whatever `progress` raises
        passes through.
        """
        with new_file(out, self.weights, "nvfp4", list(self.outputs), name) as (file, placed):
            writer = GgufNvfp4OutputWriter(file, placed, self.weights.config, quantizer)
            total, done = sum(output.size for output in self.outputs), 0
            progress("repacking", 0, total)
            with closing(in_order(partial(self._convert, writer), self._rows(writer))) as results:
                for rows, parts in results:
                    writer.write(rows, parts)
                    done += sum(part.nbytes for part in parts)
                    progress("repacking", done, total)

    def _rows(self, writer: GgufNvfp4OutputWriter) -> Iterator[Rows]:
        for output in self.outputs:
            if (tensor := self.weights.checkpoint.tensors.get(output.source)) is not None:
                for start, stop in row_blocks(tensor, BLOCK_ITEMS, writer.row_step(tensor)):
                    yield Rows(tensor, start, stop)

    def _convert(self, writer: GgufNvfp4OutputWriter, rows: Rows) -> Sequence[Block]:
        packed = self.packed.get(rows.tensor.name)
        if packed is None:
            return writer.convert(rows, read_finite(self.checkpoint, rows.tensor, rows.start, rows.stop), 0.0)
        codes, scales = (self.checkpoint.read(part, rows.start, rows.stop) for part in (packed.codes, packed.scales))
        return writer.repack(rows, codes, _positive(packed.scales, scales), packed.factor)


def _positive(tensor: Tensor, scales: Codes) -> Codes:
    """The block scales. SourceError where one is NaN, or negative, which ggml's have no sign for."""
    if (((scales & np.uint8(0x7F)) == 0x7F) | (scales > 0x80)).any():
        raise SourceError(f"{tensor.file}: tensor {tensor.name} has scales that are NaN or negative.", "Get it again.")
    return scales
