"""safetensors to GGUF in one pass: dense Qwen3 in Q6_K or BF16, tensors byte for byte as llama.cpp writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

from orchestrator.artifacts import qwen3
from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, is_finite, read_finite, row_blocks, to_float32
from orchestrator.artifacts.threads import in_order
from orchestrator.artifacts.tokenizer import Tokenizer, read_tokenizer
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

Quant = Literal["q6_k", "bf16"]

# Elements per block: 2 MB of bf16, 4 MB of float32. Two blocks per core are in flight.
_BLOCK_ITEMS = 1 << 20


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
    Quantizing starts from the checkpoint's own precision. `name` becomes general.name; without it the key is
    left out, so that the bytes depend on the source's contents only. SourceError if the directory is no sound
    dense Qwen3 or has NaN or Inf; HostError if the disk fails.
    """
    config = qwen3.read_config(source)
    tokenizer = read_tokenizer(source, config.vocab_size)
    with Checkpoint.open(source) as checkpoint:
        qwen3.check(checkpoint, config)
        outputs = plan_outputs(checkpoint, config, quant)
        with host_errors(f"write {out}"), replacing(out) as partial:
            writer = GGUFWriter(partial, "qwen3")
            _add_metadata(writer, config, tokenizer, quant, outputs, name)
            offset = write_head(writer, outputs)
            _write_data(partial, offset, checkpoint, outputs, quantizer, progress)


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


def _write_data(
    path: Path,
    offset: int,
    checkpoint: Checkpoint,
    outputs: list[Output],
    quantizer: Quantizer,
    progress: Progress,
) -> None:
    total = sum(output.source.size for output in outputs)
    done = 0

    def convert(job: tuple[int, Output, int, int]) -> npt.NDArray[Any]:
        _, output, start, stop = job
        return _converted(output, read_finite(checkpoint, output.source, start, stop), quantizer)

    descriptor = os.open(path, os.O_WRONLY)
    try:
        reserve(descriptor, offset + sum(aligned(output.size) for output in outputs))
        progress("converting", 0, total)
        with closing(in_order(convert, _jobs(outputs, offset))) as blocks:
            for (position, output, start, stop), block in blocks:
                pwrite_all(descriptor, block.data, position)
                done += (stop - start) * output.source.row_bytes
                progress("converting", done, total)
    finally:
        os.close(descriptor)


def _jobs(outputs: list[Output], offset: int) -> Iterator[tuple[int, Output, int, int]]:
    """(position in the file, tensor, first row, row after the last)."""
    for output in outputs:
        for start, stop in row_blocks(output.source, _BLOCK_ITEMS):
            yield offset + start * output.row_bytes, output, start, stop
        offset += aligned(output.size)


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
