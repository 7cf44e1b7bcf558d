"""The head of a GGUF file as Ollama reads it: metadata and tensors, with its complaints about what is broken."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ollama_words import ApiError, quoted

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# ggml type: name, elements and bytes of a block.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
_FILE_TYPES = {0: "F32", 1: "F16", 7: "Q8_0", 14: "Q4_K_S", 15: "Q4_K_M", 18: "Q6_K", 32: "BF16"}
_MAX_STRING = 2**63 - 1


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the head; `shape` as stored, `offset` from the start of the data, `size` in bytes or 0."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Gguf:
    """A file's head. Arrays in `metadata` are None: nobody here needs a vocabulary."""

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def is_adapter(self) -> bool:
        return self.metadata.get("general.type") == "adapter"

    @property
    def file_type(self) -> str:
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "unknown")

    @property
    def chat_template(self) -> str:
        return str(self.metadata.get("tokenizer.chat_template") or "")

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(_product(tensor.shape) for tensor in self.tensors)

    def size_of(self, key: str) -> int:
        """An integer of the architecture's own metadata, 0 if it is not there."""
        return int(self.metadata.get(f"{self.architecture}.{key}") or 0)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of an f16 KV cache for so many tokens."""
        heads, width = self.size_of("attention.head_count_kv"), self.size_of("attention.key_length")
        return 2 * 2 * self.size_of("block_count") * heads * width * tokens


def human(parameters: int) -> str:
    """4197120 as 4.20M."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if parameters >= size:
            return f"{parameters / size:.{digits}f}{unit}"
    return str(parameters)


def read_gguf(path: Path) -> Gguf:
    """The head of the file at `path`. ApiError (500) in Ollama's words; FileNotFoundError."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ApiError(500, "supplied file was not in GGUF format")
        _version, count, keys = _number(file, "<I"), _number(file, "<Q"), _number(file, "<Q")
        metadata = {}
        for _ in range(keys):
            name = _text(file)
            metadata[name] = _read_value(file, _number(file, "<I"))
        tensors = tuple(_tensor(file) for _ in range(count))
        alignment = int(metadata.get("general.alignment", 32))
        data = -(-file.tell() // alignment) * alignment
    size = path.stat().st_size
    for tensor in tensors:
        if (end := data + tensor.offset + tensor.size) > size:
            raise ApiError(500, f"tensor {quoted(tensor.name)} offset+size ({end}) exceeds file size ({size})")
    return Gguf(metadata, tensors)


def _tensor(file: BinaryIO) -> Tensor:
    name = _text(file)
    shape = tuple(_number(file, "<Q") for _ in range(_number(file, "<I")))
    kind, offset = _number(file, "<I"), _number(file, "<Q")
    label, items, block = _TYPES.get(kind, (str(kind), 1, 0))
    return Tensor(name, label, shape, offset, _product(shape) // items * block)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ApiError(500, "unexpected EOF")
    return data


def _number(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, _exactly(file, struct.calcsize(form)))[0])


def _text(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > _MAX_STRING:
        raise ApiError(500, f"GGUF string length {length} exceeds maximum {_MAX_STRING}")
    return _exactly(file, length).decode(errors="replace")


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        of, length = _number(file, "<I"), _number(file, "<Q")
        if of in _SCALARS:
            _exactly(file, struct.calcsize(_SCALARS[of]) * length)
        else:
            for _ in range(length):
                _read_value(file, of)
        return None
    if kind not in _SCALARS:
        raise ApiError(500, f"invalid type: {kind}")
    form = _SCALARS[kind]
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]
