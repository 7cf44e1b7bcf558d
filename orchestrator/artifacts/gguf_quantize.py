"""An unquantized GGUF file to another type, byte for byte as llama.cpp's quantizer writes the tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from orchestrator.artifacts.disk import host_errors, pwrite_all, replacing, reserve
from orchestrator.artifacts.families import FAMILIES, LINEAR
from orchestrator.artifacts.gguf_file import (
    Output,
    aligned,
    converted,
    cost_of,
    places,
    quantizers_order,
    write_head,
)
from orchestrator.artifacts.gguf_reader import GgufFile, GgufTensor
from orchestrator.artifacts.gguf_types import FILE_TYPES, Attention, Quant, tensor_types
from orchestrator.artifacts.one_pass import BLOCK_ITEMS, Block, Cost
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.rows import finite
from orchestrator.artifacts.safetensors import row_blocks
from orchestrator.artifacts.threads import in_order
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

_ARCHITECTURES = {family.architecture for family in FAMILIES.values()}
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
_MATRIX = re.compile(rf"(token_embd|output|blk\.\d+\.({'|'.join(LINEAR.values())}))\.weight")

_FILE_TYPE, _VERSION = gguf.Keys.General.FILE_TYPE, gguf.Keys.General.QUANTIZATION_VERSION
# The alignment is always GGUF's own here; the other two are written anew, at the end as llama.cpp does.
_NOT_COPIED = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.ALIGNMENT, _FILE_TYPE, _VERSION)


@dataclass(frozen=True)
class Quantizing:
    """A file that is to be quantized, and its tensors in the order and the types that they will have."""

    file: GgufFile
    quant: Quant
    quantizer: Quantizer
    outputs: tuple[Output, ...]

    @property
    def reads(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.size for tensor in self.file.tensors.values())

    def cost(self) -> Cost:
        """What it will take, on this machine."""
        return cost_of(self.outputs, self.quantizer)

    def write(self, out: Path, progress: Progress) -> None:
        """Writes the file `out`, which appears only when it is whole. Works in row blocks, as all builders do.

        SourceError for NaN and Inf; HostError if the disk fails; whatever `progress` raises passes through.
        """
        with host_errors(f"write {out}"), replacing(out) as unfinished:
            writer = GGUFWriter(unfinished, str(self.file.fields["general.architecture"]))
            _copy_fields(writer, self.file)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(FILE_TYPES[self.quant])
            placed = places(self.outputs, write_head(writer, list(self.outputs)))
            descriptor = os.open(unfinished, os.O_WRONLY)
            try:
                reserve(descriptor, max(offset + aligned(output.size) for output, offset in placed.values()))
                self._write_data(descriptor, placed, progress)
            finally:
                os.close(descriptor)

    def _write_data(self, descriptor: int, placed: Mapping[str, tuple[Output, int]], progress: Progress) -> None:
        def convert(job: _Rows) -> Block:
            block = finite(job.tensor, self.file.read(job.tensor, job.start, job.stop))
            return converted(job.output.kind, job.tensor, block, self.quantizer)

        total, done = self.reads, 0
        progress("quantizing", 0, total)
        with closing(in_order(convert, self._jobs(placed))) as blocks:
            for job, block in blocks:
                pwrite_all(descriptor, block.data, job.place)
                done += (job.stop - job.start) * job.tensor.row_bytes
                progress("quantizing", done, total)

    def _jobs(self, placed: Mapping[str, tuple[Output, int]]) -> Iterator[_Rows]:
        for output, offset in placed.values():
            tensor = self.file.tensors[output.source]
            for start, stop in row_blocks(tensor, BLOCK_ITEMS):
                yield _Rows(output, tensor, start, stop, offset + start * output.row_bytes)


@dataclass(frozen=True)
class _Rows:
    """Rows `start` to `stop` of a tensor, and where in the file what becomes of them begins."""

    output: Output
    tensor: GgufTensor
    start: int
    stop: int
    place: int


@contextmanager
def quantizing(source: Path, quant: Quant, quantizer: Quantizer) -> Iterator[Quantizing]:
    """The open file `source`, checked.

    SourceError with every problem if it is no sound GGUF, or quantized already, or no dense model of a family that orch
    knows: llama.cpp's policy for others is not in gguf_types.
    """
    with GgufFile.open(source) as file:
        _check(file)
        tensors = sorted(file.tensors.values(), key=lambda tensor: quantizers_order(tensor.name))
        kinds = tensor_types(quant, {tensor.name: tensor.shape for tensor in tensors}, _attention(file))
        outputs = [
            # Only matrices are given another type.
            Output(one.name, kinds[one.name] if len(one.shape) > 1 else one.kind, one.shape, one.name)
            for one in tensors
        ]
        yield Quantizing(file, quant, quantizer, tuple(outputs))


def _check(file: GgufFile) -> None:
    quantized = [f"{tensor.name} is {tensor.dtype}" for tensor in file.tensors.values() if tensor.kind not in _FLOATS]
    if quantized:
        raise SourceError(
            f"{file.path} is quantized already: {quantized[0]}.",
            "To quantize twice is to lose twice: start from the F32, F16 or BF16 file, or from the original weights.",
            "\n".join(quantized),
        )
    problems = [*_identity_problems(file), *_tensor_problems(file)]
    if problems:
        raise SourceError(
            f"{file.path} cannot be quantized: {problems[0]}{' (and more)' if len(problems) > 1 else ''}.",
            "Of dense Qwen2, Qwen3, Llama and Mistral models orch knows llama.cpp's types; for others use its "
            "llama-quantize.",
            "\n".join(problems),
        )


def _identity_problems(file: GgufFile) -> list[str]:
    # A list of numbers, as some models have one for each layer, is none of the values that are looked for.
    fields = {key: "a list" if isinstance(value, list | np.ndarray) else value for key, value in file.fields.items()}
    architecture = fields.get("general.architecture")
    problems: list[str] = []
    if architecture not in _ARCHITECTURES:
        problems.append(f"its architecture is {str(architecture)[:80]}, not one of {', '.join(sorted(_ARCHITECTURES))}")
    if fields.get(f"{architecture}.expert_count", 0) != 0:
        problems.append("it is a mixture of experts")
    for key, plain in (("general.type", "model"), ("split.count", 1)):
        if fields.get(key, plain) != plain:
            problems.append(f"{key} is {str(fields[key])[:80]}, not {plain}")
    for name in ("block_count", "attention.head_count"):
        value = fields.get(f"{architecture}.{name}")
        if type(value) is not int or value <= 0:
            problems.append(f"{architecture}.{name} is {str(value)[:80]}")
    return problems


def _tensor_problems(file: GgufFile) -> list[str]:
    """Matrices of other names might have types of their own in llama.cpp's policy."""
    missing = [] if "token_embd.weight" in file.tensors else ["it has no token_embd.weight"]
    return missing + [
        f"it has the matrix {tensor.name} {list(tensor.shape)}"
        for tensor in file.tensors.values()
        if len(tensor.shape) > 2 or (len(tensor.shape) == 2 and not _MATRIX.fullmatch(tensor.name))
    ]


def _attention(file: GgufFile) -> Attention:
    architecture = str(file.fields["general.architecture"])
    layers, heads = (file.fields[f"{architecture}.{name}"] for name in ("block_count", "attention.head_count"))
    kv_heads = file.fields.get(f"{architecture}.attention.head_count_kv", heads)
    assert isinstance(layers, int)
    assert isinstance(heads, int)
    return Attention(architecture, layers, heads, kv_heads if isinstance(kv_heads, int) else heads)


def _copy_fields(writer: GGUFWriter, file: GgufFile) -> None:
    for key, value in file.fields.items():
        if key in _NOT_COPIED:
            continue
        if isinstance(value, list | np.ndarray):
            items = value.tolist() if isinstance(value, np.ndarray) else value
            # gguf cannot write an empty list, and it says nothing.
            if items:
                writer.add_key_value(key, items, GGUFValueType.ARRAY, file.types[key])
        else:
            writer.add_key_value(key, value, file.types[key])
