"""Weights to a GGUF file: dense models in six types, tensors byte for byte as llama.cpp writes them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from orchestrator.artifacts import families, one_pass
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.gguf_types import CONVERTED, FILE_TYPES, Attention, Quant, Shape, tensor_types
from orchestrator.artifacts.one_pass import Block, Cost, OutputWriter, Rows, Weights, sampled
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.rope_factors import llama3_factors
from orchestrator.artifacts.rows import is_finite, pairs_together, to_float32
from orchestrator.artifacts.safetensors import Checkpoint, Tensor
from orchestrator.artifacts.tokenizer import read_tokenizer
from orchestrator.core.meaning import Meaning
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

_ROPE_FACTORS = "rope_freqs.weight"
_LAYER = re.compile(r"blk\.([0-9]+)\.")


@dataclass(frozen=True)
class Output:
    """One tensor of a GGUF: its name, its ggml type, its shape (outermost dimension first), and the name of the tensor
    that its elements come from, or nothing when they follow from the configuration."""

    name: str
    kind: GGMLQuantizationType
    shape: Shape
    source: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as written."""
        items, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // items * size

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the whole tensor as written, without padding."""
        return self.elements // self.shape[-1] * self.row_bytes


def build_gguf(
    source: Path, out: Path, quant: Quant, quantizer: Quantizer, progress: Progress, name: str | None = None
) -> None:
    """Converts the Hugging Face directory `source` to the file `out`, which appears only when it is whole.

    Works in row blocks: memory does not depend on the size of the weights, and nothing but `out` is written.
    Quantizing starts from the checkpoint's own precision. SourceError if the directory is no sound dense model or has
    NaN or Inf; HostError if the disk fails.
    """
    one_pass.build(source, [GgufOutputSpec(out, quant, quantizer, name)], progress)


@dataclass(frozen=True)
class GgufOutputSpec:
    """The file `out`, of the type `quant`. `name` becomes general.name; without it the key is left out, so that the
    bytes depend on the source's contents only."""

    out: Path
    quant: Quant
    quantizer: Quantizer
    name: str | None = None

    def cost(self, weights: Weights) -> Cost:
        """See one_pass.OutputSpec."""
        return cost_of(plan_outputs(weights.checkpoint, weights.config, self.quant), self.quantizer)

    @contextmanager
    def writer(self, weights: Weights) -> Iterator[OutputWriter]:
        """See one_pass.OutputSpec."""
        config = weights.config
        tokenizer = read_tokenizer(weights.directory, config.vocab_size, weights.meaning)
        outputs = plan_outputs(weights.checkpoint, config, self.quant)
        with host_errors(f"write {self.out}"), replacing(self.out) as unfinished:
            writer = GGUFWriter(unfinished, config.family.architecture)
            _add_metadata(writer, config, weights.meaning, self.quant, outputs, self.name)
            tokenizer.add_to(writer)
            offset = write_head(writer, outputs)
            descriptor = os.open(unfinished, os.O_WRONLY)
            try:
                yield _GgufOutputWriter(descriptor, places(outputs, offset), config, self.quantizer)
            finally:
                os.close(descriptor)


class _GgufOutputWriter:
    """Writes tensor data behind the head of a GGUF file, each block to its place."""

    def __init__(
        self, descriptor: int, outputs: Mapping[str, tuple[Output, int]], config: ModelConfig, quantizer: Quantizer
    ) -> None:
        self._descriptor, self._config, self._quantizer = descriptor, config, quantizer
        self._outputs = {output.source: (output, offset) for output, offset in outputs.values()}
        reserve(descriptor, max(offset + aligned(output.size) for output, offset in outputs.values()))
        if _ROPE_FACTORS in outputs:
            pwrite_all(descriptor, llama3_factors(config.rope, config.head_dim).data, outputs[_ROPE_FACTORS][1])

    def needs_largest(self, tensor: Tensor) -> bool:
        return False

    def row_step(self, tensor: Tensor) -> int:
        """Rows change their places within a head, so a block holds whole heads."""
        return self._config.head_dim if families.is_reordered(self._config, tensor.name) else 1

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        if families.is_reordered(self._config, rows.tensor.name):
            if len(rows.tensor.shape) == 1:
                block = pairs_together(block.reshape(-1), self._config.head_dim).reshape(block.shape)
            else:
                block = pairs_together(block, self._config.head_dim)
        return (converted(self._outputs[rows.tensor.name][0].kind, rows.tensor, block, self._quantizer),)

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        output, offset = self._outputs[rows.tensor.name]
        pwrite_all(self._descriptor, parts[0].data, offset + rows.start * output.row_bytes)


def plan_outputs(checkpoint: Checkpoint, config: ModelConfig, quant: Quant) -> list[Output]:
    """The tensors in the order of llama.cpp: its converter's for what that writes, else its quantizer's."""
    shards = {file: number for number, file in enumerate(checkpoint.files)}
    sources = sorted(
        (checkpoint.tensors[name] for name in families.expected_tensors(config)),
        key=lambda tensor: (shards[tensor.file], tensor.name),
    )
    shapes: dict[str, Shape] = {families.gguf_name(tensor.name): tensor.shape for tensor in sources}
    names = {families.gguf_name(tensor.name): tensor.name for tensor in sources}
    if config.rope.kind == "llama3":
        shapes = {_ROPE_FACTORS: (config.head_dim // 2,)} | shapes
    attention = Attention(
        config.family.architecture, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    )
    kinds = tensor_types(quant, shapes, attention)
    outputs = [Output(name, kind, shapes[name], names.get(name, "")) for name, kind in kinds.items()]
    return outputs if quant in CONVERTED else sorted(outputs, key=lambda output: quantizers_order(output.name))


def quantizers_order(name: str) -> tuple[int, str]:
    """A key to sort tensors by, as llama.cpp's quantizer does: what is in no layer comes first."""
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer is not None else -1), name


def _add_metadata(
    writer: GGUFWriter,
    config: ModelConfig,
    meaning: Meaning,
    quant: Quant,
    outputs: list[Output],
    name: str | None,
) -> None:
    parameters = sum(output.elements for output in outputs)
    writer.add_type("model")
    if name:
        writer.add_name(name)
    writer.add_size_label(gguf.size_label(parameters, parameters, 0, 0))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.tells_head_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_file_type(FILE_TYPES[quant])
    if config.family.writes_vocab_size:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for said, add in _SAMPLING.items():
        if said in meaning.sampling:
            add(writer, meaning.sampling[said])


# A profile's names of what llama.cpp reads as defaults.
_SAMPLING: Mapping[str, Callable[[GGUFWriter, Any], None]] = {
    "top_k": GGUFWriter.add_sampling_top_k,
    "top_p": GGUFWriter.add_sampling_top_p,
    "min_p": GGUFWriter.add_sampling_min_p,
    "temperature": GGUFWriter.add_sampling_temp,
    "repeat_penalty": GGUFWriter.add_sampling_penalty_repeat,
}


def write_head(writer: GGUFWriter, outputs: list[Output]) -> int:
    """Writes header, metadata and tensor infos and closes `writer`; returns the offset of the tensor data.

    GGUFWriter would hold whole tensors to write their data, so that is done here.
    """
    for output in outputs:
        writer.add_tensor_info(output.name, output.shape, np.dtype(np.float32), output.size, raw_dtype=output.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    if writer.path is None:
        raise ValueError("the writer has no path")
    return aligned(writer.path.stat().st_size)


def cost_of(outputs: Sequence[Output], quantizer: Quantizer) -> Cost:
    """What writing these will take."""
    cpu_s = 0.0
    for kind in {output.kind for output in outputs}:
        alike = [output for output in outputs if output.kind is kind]
        items, columns = sum(output.elements for output in alike), alike[0].shape[-1]
        if kind is GGMLQuantizationType.Q6_K:
            quantizer.expect(items)
        cpu_s += sampled(partial(_as_kind, kind, quantizer=quantizer), columns, items)
    return Cost(sum(aligned(output.size) for output in outputs), cpu_s)


def places(outputs: Sequence[Output], offset: int) -> dict[str, tuple[Output, int]]:
    """Name to tensor and where its data begins, when that of the first begins at `offset`."""
    found = {}
    for output in outputs:
        found[output.name] = (output, offset)
        offset += aligned(output.size)
    return found


def aligned(size: int) -> int:
    """`size` rounded up to GGUF's alignment, at which every tensor begins."""
    return GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)


def converted(kind: GGMLQuantizationType, source: Tensor, block: Block, quantizer: Quantizer) -> Block:
    """A block of `source` (BF16 as its bits) in the type `kind`. SourceError if F16 cannot hold it."""
    try:
        return _as_kind(kind, block, quantizer)
    except OverflowError as error:
        raise SourceError(
            f"{source.file}: {source.name} is too large for F16, which its {source.row_items} columns are to become.",
            "Build gguf-bf16: it holds every number that the weights can.",
        ) from error


def _as_kind(kind: GGMLQuantizationType, block: Block, quantizer: Quantizer) -> Block:
    if kind is GGMLQuantizationType.BF16 and block.dtype == np.uint16:
        return block
    rows = to_float32(block)
    if kind is GGMLQuantizationType.F32:
        return rows
    if kind is GGMLQuantizationType.BF16:
        return gguf.quantize(rows, kind)
    if kind is GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not is_finite(half):
            raise OverflowError
        return half
    return quantizer(kind, rows)
