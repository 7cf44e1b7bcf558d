"""Weights to a GGUF file: dense Qwen3 in Q6_K or BF16, tensors byte for byte as llama.cpp writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

from orchestrator.artifacts import one_pass, qwen3
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.one_pass import Block, Cost, Maker, Rows, Weights, sampled
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, is_finite, to_float32
from orchestrator.artifacts.tokenizer import Tokenizer, read_tokenizer
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

Quant = Literal["q6_k", "bf16"]


@dataclass(frozen=True)
class Output:
    """One tensor of the GGUF: its name, its ggml type and where its elements come from."""

    name: str
    kind: GGMLQuantizationType
    source: Tensor

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as written."""
        items, size = GGML_QUANT_SIZES[self.kind]
        return self.source.row_items // items * size

    @property
    def size(self) -> int:
        """Bytes of the whole tensor as written, without padding."""
        return self.source.rows * self.row_bytes


def build_gguf(
    source: Path, out: Path, quant: Quant, quantizer: Quantizer, progress: Progress, name: str | None = None
) -> None:
    """Converts the Hugging Face directory `source` to the file `out`, which appears only when it is whole.

    Works in row blocks: memory does not depend on the size of the weights, and nothing but `out` is written.
    Quantizing starts from the checkpoint's own precision. SourceError if the directory is no sound dense Qwen3 or has
    NaN or Inf; HostError if the disk fails.
    """
    one_pass.build(source, [WantedGguf(out, quant, quantizer, name)], progress)


@dataclass(frozen=True)
class WantedGguf:
    """The file `out`, of the type `quant`. `name` becomes general.name; without it the key is left out, so that the
    bytes depend on the source's contents only."""

    out: Path
    quant: Quant
    quantizer: Quantizer
    name: str | None = None

    def cost(self, weights: Weights) -> Cost:
        """See one_pass.Wanted."""
        outputs = plan_outputs(weights.checkpoint, weights.config, self.quant)
        cpu_s = 0.0
        for kind in {output.kind for output in outputs}:
            alike = [output for output in outputs if output.kind is kind]
            items = sum(output.source.rows * output.source.row_items for output in alike)
            sample = replace(alike[0], source=replace(alike[0].source, dtype="BF16"))
            cpu_s += sampled(partial(_converted, sample, quantizer=self.quantizer), sample.source.row_items, items)
        return Cost(sum(aligned(output.size) for output in outputs), cpu_s)

    @contextmanager
    def making(self, weights: Weights) -> Iterator[Maker]:
        """See one_pass.Wanted."""
        tokenizer = read_tokenizer(weights.directory, weights.config.vocab_size)
        outputs = plan_outputs(weights.checkpoint, weights.config, self.quant)
        with host_errors(f"write {self.out}"), replacing(self.out) as unfinished:
            writer = GGUFWriter(unfinished, "qwen3")
            _add_metadata(writer, weights.config, tokenizer, self.quant, outputs, self.name)
            offset = write_head(writer, outputs)
            descriptor = os.open(unfinished, os.O_WRONLY)
            try:
                yield _GgufMaker(descriptor, offset, outputs, self.quantizer)
            finally:
                os.close(descriptor)


class _GgufMaker:
    """Writes tensor data behind the head of a GGUF file, each block to its place."""

    def __init__(self, descriptor: int, offset: int, outputs: list[Output], quantizer: Quantizer) -> None:
        self._descriptor, self._quantizer = descriptor, quantizer
        self._outputs: dict[str, tuple[Output, int]] = {}
        for output in outputs:
            self._outputs[output.source.name] = (output, offset)
            offset += aligned(output.size)
        reserve(descriptor, offset)

    def needs_largest(self, tensor: Tensor) -> bool:
        return False

    def row_step(self, tensor: Tensor) -> int:
        return 1

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        return (_converted(self._outputs[rows.tensor.name][0], block, self._quantizer),)

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        output, offset = self._outputs[rows.tensor.name]
        pwrite_all(self._descriptor, parts[0].data, offset + rows.start * output.row_bytes)


def plan_outputs(checkpoint: Checkpoint, config: qwen3.Qwen3Config, quant: Quant) -> list[Output]:
    """The tensors in the order of llama.cpp: its converter's for bf16, its quantizer's for q6_k."""
    expected = qwen3.expected_tensors(config)
    shards = {file: number for number, file in enumerate(checkpoint.files)}
    sources = sorted((checkpoint.tensors[name] for name in expected), key=lambda t: (shards[t.file], t.name))
    outputs = [Output(qwen3.gguf_name(tensor.name), _kind(tensor, quant), tensor) for tensor in sources]
    if quant == "q6_k":
        outputs.sort(key=lambda output: (_layer(output.name), output.name))
    return outputs


def _kind(tensor: Tensor, quant: Quant) -> GGMLQuantizationType:
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    if quant == "bf16":
        return GGMLQuantizationType.BF16
    for kind in (GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q8_0):
        if tensor.row_items % GGML_QUANT_SIZES[kind][0] == 0:
            return kind
    return GGMLQuantizationType.F16


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _add_metadata(
    writer: GGUFWriter,
    config: qwen3.Qwen3Config,
    tokenizer: Tokenizer,
    quant: Quant,
    outputs: list[Output],
    name: str | None,
) -> None:
    parameters = sum(output.source.rows * output.source.row_items for output in outputs)
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
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(LlamaFileType.MOSTLY_Q6_K if quant == "q6_k" else LlamaFileType.MOSTLY_BF16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokenizer.add_to(writer)


def write_head(writer: GGUFWriter, outputs: list[Output]) -> int:
    """Writes header, metadata and tensor infos and closes `writer`; returns the offset of the tensor data.

    GGUFWriter would hold whole tensors to write their data, so that is done here.
    """
    for output in outputs:
        writer.add_tensor_info(
            output.name, output.source.shape, np.dtype(np.float32), output.size, raw_dtype=output.kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    if writer.path is None:
        raise ValueError("the writer has no path")
    return aligned(writer.path.stat().st_size)


def aligned(size: int) -> int:
    """`size` rounded up to GGUF's alignment, at which every tensor begins."""
    return GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)


def _converted(output: Output, block: npt.NDArray[Any], quantizer: Quantizer) -> npt.NDArray[Any]:
    kind = output.kind
    if kind is GGMLQuantizationType.BF16 and output.source.dtype == "BF16":
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
            raise SourceError(
                f"{output.source.file}: {output.source.name} is too large for F16, "
                f"and its {output.source.row_items} columns fit no quantized type."
            )
        return half
    return quantizer(kind, rows)
