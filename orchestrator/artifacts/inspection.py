"""What a GGUF file or a directory of safetensors holds, told from headers, keys and small files: no weight is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.artifacts.chat_templates import read_templates
from orchestrator.artifacts.claims import scheme_of
from orchestrator.artifacts.gguf_claims import file_type_name, gguf_shape
from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.safetensors import Checkpoint, Tensor
from orchestrator.core.weights import INDEX, SINGLE, shape_of
from orchestrator.errors import SourceError

_ADAPTER = "adapter_model.safetensors"
# By the names of tensors in both worlds; the first that is found decides.
_PARTS = {
    "embedding": r"\btoken_embd\.|\bembed_tokens\.",
    "norms": r"norm\b",
    "attention": r"\battn_|\bself_attn\.",
    "feed-forward": r"\bffn_|\bmlp\.",
    "head": r"^output\.|\blm_head\.",
    "other": r"",
}
# What is no weight itself but says how large weights are.
_SCALE = re.compile(r"_scale(_2)?$")


@dataclass(frozen=True)
class Part:
    """All tensors of one part of a model, their weights counted as the model has them, and their bytes."""

    part: str
    tensors: int
    parameters: int
    size: int

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.size / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Inspection:
    """What is at a path. `size` is that of the tensors in bytes; `types` counts tensors by the type of their elements;
    `context` is 0, and a text empty, where nothing says it."""

    path: str
    form: str
    file_type: str
    architecture: str
    parameters: int
    size: int
    context: int
    tokenizer: str
    chat_template: bool
    types: dict[str, int]
    parts: tuple[Part, ...]

    @property
    def bits(self) -> float:
        """Bits per weight of all tensors together."""
        return 8 * self.size / self.parameters if self.parameters else 0.0


def inspect(path: Path) -> Inspection:
    """What the file or directory holds. SourceError if it is none of what orch knows, or is damaged."""
    file = gguf_in(path)
    return _of_gguf(file) if file is not None else _of_safetensors(path)


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that is meant: the path itself, or the only one in a directory without safetensors."""
    if path.is_dir():
        found = [] if any(path.glob("*.safetensors")) else sorted(path.glob("*.gguf"))
        if len(found) > 1:
            raise SourceError(f"{path} has {len(found)} GGUF files.", f"Name one of them, such as {found[0]}.")
        return found[0] if found else None
    return None if path.suffix == ".safetensors" else path


def part_of(name: str) -> str:
    """The part of a model that a tensor belongs to, by its name in a GGUF file or in safetensors."""
    return next(part for part, pattern in _PARTS.items() if re.search(pattern, name))


def _of_gguf(path: Path) -> Inspection:
    with GgufFile.open(path) as file:
        tensors, shape = file.tensors.values(), gguf_shape(file)
        tokens = file.fields.get("tokenizer.ggml.tokens")
        words = [file.fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        kind = "/".join(filter(None, map(_text, words)))
        number = file.fields.get("general.file_type")
        count = f", {len(tokens):,} tokens" if isinstance(tokens, list) else ""
        return _inspection(
            path,
            tensors,
            {tensor.name: math.prod(tensor.shape) for tensor in tensors},
            form=f"GGUF, version {file.version}",
            file_type=file_type_name(number) if isinstance(number, int) else "",
            architecture=_text(file.fields.get("general.architecture")),
            context=shape.positions if shape is not None else 0,
            tokenizer=kind + count if kind else "",
            chat_template=isinstance(file.fields.get("tokenizer.chat_template"), str),
        )


def _of_safetensors(path: Path) -> Inspection:
    directory = path if path.is_dir() else path.parent
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    scheme, shape = scheme_of(directory, config), shape_of(config)
    with _checkpoint(path) as checkpoint:
        tensors = checkpoint.tensors.values()
        types = Counter[str]()
        for tensor in tensors:
            types[tensor.dtype] += tensor.size
        adapter = checkpoint.files[0].name == _ADAPTER
        architectures = config.get("architectures")
        return _inspection(
            path,
            tensors,
            {tensor.name: _weights_in(tensor) for tensor in tensors},
            form=scheme.form if scheme is not None else "LoRA adapter" if adapter else "safetensors",
            file_type=scheme.recipe.value if scheme is not None else "".join(kind for kind, _ in types.most_common(1)),
            architecture=_text(architectures[0] if isinstance(architectures, list) and architectures else None),
            context=shape.positions if shape is not None else 0,
            tokenizer="tokenizer.json" if (directory / "tokenizer.json").is_file() else "",
            chat_template=bool(read_templates(directory)[0]),
        )


def _checkpoint(path: Path) -> Checkpoint:
    if path.is_file():
        return Checkpoint.open_files((path,))
    adapter = path / _ADAPTER
    if adapter.is_file() and not (path / SINGLE).is_file() and not (path / INDEX).is_file():
        return Checkpoint.open_files((adapter,))
    return Checkpoint.open(path)


def _weights_in(tensor: Tensor) -> int:
    """How many weights of the model it holds: two in a byte of packed codes, none in scales."""
    if _SCALE.search(tensor.name):
        return 0
    return math.prod(tensor.shape) * (2 if tensor.dtype == "U8" else 1)


def _inspection(path: Path, tensors: Iterable[Tensor], weights: dict[str, int], **facts: Any) -> Inspection:
    held: dict[str, list[Tensor]] = {part: [] for part in _PARTS}
    for tensor in tensors:
        held[part_of(tensor.name)].append(tensor)
    parts = tuple(
        Part(part, len(these), sum(weights[tensor.name] for tensor in these), sum(tensor.size for tensor in these))
        for part, these in held.items()
        if these
    )
    return Inspection(
        path=str(path),
        parameters=sum(part.parameters for part in parts),
        size=sum(part.size for part in parts),
        types=dict(Counter(tensor.dtype for these in held.values() for tensor in these).most_common()),
        parts=parts,
        **facts,
    )


def _text(value: object) -> str:
    """A text that others wrote, as it can be shown: nothing in it moves a cursor."""
    if not isinstance(value, str):
        return ""
    return value if value.isprintable() else repr(value)
