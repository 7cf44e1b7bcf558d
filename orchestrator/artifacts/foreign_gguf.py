"""GGUF files that other programs write: which types there are, what room they need, and whether one is what it should
be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf import LlamaFileType

from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.errors import HostError, SourceError, UsageError

# As llama-quantize calls them for short.
_SHORT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# Some tensors are kept wider than a type's name says.
_WIDER_BITS = 2
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")


@dataclass(frozen=True)
class FileType:
    """A type of a whole file: llama-quantize's name for it, and the number that stands in the file."""

    name: str
    number: int

    @property
    def bits(self) -> int:
        """Bits per weight, as the name says."""
        found = re.search(r"\d+", self.name)
        return int(found[0]) if found is not None else 16


def file_type(quant: str) -> FileType:
    """The type that a user has named, in any case. UsageError when gguf has no number for it."""
    known = {_plain(kind.name): int(kind) for kind in LlamaFileType if kind is not LlamaFileType.GUESSED}
    name = _SHORT.get(quant.upper(), quant.upper())
    if name not in known:
        raise UsageError(f"llama.cpp has no quantization {quant}.", hint=f"Known: {', '.join(sorted(known)).lower()}")
    return FileType(name, known[name])


def _plain(name: str) -> str:
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def weights_size(source: Path) -> int:
    """Bytes of the weights in a directory, in the first form that it has; SourceError when it has none."""
    for pattern in _WEIGHTS:
        size = sum(path.stat().st_size for path in source.glob(pattern))
        if size:
            return size
    raise SourceError(f"{source} has no weights.", "Point to a directory in Hugging Face layout.")


def room_needed(weights: int, wanted: FileType, first: FileType | None) -> int:
    """Bytes on disk, at most, for a file of the wanted type made of 16-bit weights of this size, and for the file of
    the type `first` that it is made from, if it is."""
    steps = (wanted,) if first is None else (first, wanted)
    return sum(weights * (step.bits + _WIDER_BITS if step.bits < 16 else step.bits) // 16 for step in steps)


def architecture(path: Path, wanted: FileType, others: str) -> str:
    """What a finished file says it is. HostError when it is no sound GGUF of the wanted type, all tensors in it;
    `others` says how other tools are taken."""
    try:
        with GgufFile.open(path) as made:
            name, found = made.fields.get("general.architecture"), made.fields.get("general.file_type")
    except SourceError as error:
        raise HostError(f"{path.name} is not a sound GGUF file.", "Build it again.", error.message) from error
    if not isinstance(name, str) or not isinstance(found, int):
        raise HostError(f"{path.name} does not say what it holds.", "Build it again.")
    if found != wanted.number:
        names = {int(kind): _plain(kind.name) for kind in LlamaFileType}
        raise HostError(f"{path.name} is {names.get(found, found)}, and {wanted.name} was asked for.", others)
    return name
