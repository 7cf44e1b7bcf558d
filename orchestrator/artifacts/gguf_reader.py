"""Reading GGUF with suspicion: every count, length and offset is compared with the file before it is believed.

Plain `pread`, no mapped memory, as in safetensors.py. What llama.cpp's own reader refuses is refused here too: a file
that passes is one that it loads. Format (GGUF 2 and 3, little-endian): magic, version, two counts; keys and values;
tensor infos; then, from the next multiple of the alignment on, the tensors in the order of their infos, each padded to
the alignment. llama.cpp: ggml/src/gguf.cpp.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from orchestrator.artifacts.rows import read_rows
from orchestrator.artifacts.safetensors import Tensor
from orchestrator.errors import SourceError

Value = bool | int | float | str | list[str] | npt.NDArray[Any]

_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
# A few times what the largest vocabularies need. As Python's strings a head takes up to seven times of what it has.
_MAX_HEAD = 64 << 20
# Of keys, and of tensors: as Python's objects they take far more than in the file.
_MAX_ENTRIES = 1 << 16
_FIRST_READ = 1 << 16
_MAX_DIMENSIONS = 4
# With its final zero, a name has 64 bytes in llama.cpp.
_MAX_NAME = 63
_MAX_COUNT = 2**63 - 1

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_KINDS = {int(kind): kind for kind in GGML_QUANT_SIZES}
_READ_AS = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2", GGMLQuantizationType.BF16: "<u2"}


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A tensor of a GGUF file; `dtype` is the name of its ggml type, `shape` has the outermost dimension first."""

    @property
    def kind(self) -> GGMLQuantizationType:
        """Its ggml type."""
        return GGMLQuantizationType[self.dtype]

    @property
    def read_as(self) -> str:
        """F32 and F16 as they are, BF16 as its bits, all others as bytes of their blocks."""
        return _READ_AS.get(self.kind, "|u1")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        items, size = GGML_QUANT_SIZES[self.kind]
        return self.row_items // items * size


class GgufFile:
    """The keys and tensors of one GGUF file. Close it, or use `with`.

    `fields` has the values by key: numbers, strings, lists of strings, and arrays of numbers as numpy arrays; `types`
    their types, of an array that of its elements. Reads are `pread`, so any number of threads may read at once.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.files = (path,)
        self._descriptor = descriptor
        head = _Head(path, descriptor)
        self.version, tensors, keys = _start(head)
        self.fields: dict[str, Value] = {}
        self.types: dict[str, GGUFValueType] = {}
        for _ in range(keys):
            self._add_field(head)
        self.tensors = _tensors(head, tensors, _alignment(head, self.fields, self.types))

    @classmethod
    def open(cls, path: Path) -> Self:
        """SourceError if the file cannot be read, or is no sound GGUF file of this byte order."""
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}.", "Name a GGUF file.") from error
        try:
            return cls(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _add_field(self, head: _Head) -> None:
        key = head.name("a key")
        if key in self.fields:
            head.lie(f"it has the key {key[:80]} twice")
        self.types[key], self.fields[key] = head.value(key[:80])

    def read(self, tensor: GgufTensor, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows `start` to `stop`: F32 and F16 as [rows, row_items], BF16 so as uint16 bits, all others as the bytes of
        their blocks, uint8 [rows, row_bytes].

        SourceError if the file has become shorter since it was opened.
        """
        return read_rows(self._descriptor, tensor, start, tensor.rows if stop is None else stop)

    def close(self) -> None:
        """Gives the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Head:
    """Reads the head of a file, from its start on, in growing pieces: never more than about twice what is asked for."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self.file = file
        self._descriptor = descriptor
        self.position = 0
        self._read = bytearray()
        try:
            status = os.fstat(descriptor)
        except OSError as error:
            raise SourceError(f"{file} cannot be read: {error.strerror}.") from error
        if not stat.S_ISREG(status.st_mode):
            self.lie("it is not a regular file")
        self.size = status.st_size
        self._end = min(self.size, _MAX_HEAD)

    def lie(self, reason: str) -> NoReturn:
        raise SourceError(f"{self.file} is not a sound GGUF file: {reason}.", "Download it again, or build it anew.")

    def take(self, count: int, what: str) -> bytearray:
        """The next `count` bytes; they are read only if the file can hold them."""
        end = self.position + count
        if end > self._end:
            self.lie(
                f"{what} would end at byte {end}, "
                + (f"the file has {self.size}" if end > self.size else f"a head may have at most {_MAX_HEAD}")
            )
        while len(self._read) < end:
            self._read += self._more(max(end, 2 * len(self._read), _FIRST_READ))
        begin, self.position = self.position, end
        return self._read[begin:end]

    def _more(self, end: int) -> bytes:
        begin = len(self._read)
        try:
            piece = os.pread(self._descriptor, min(end, self._end) - begin, begin)
        except OSError as error:
            raise SourceError(f"{self.file} cannot be read: {error.strerror}.") from error
        if not piece:
            self.lie("it was cut while being read")
        return piece

    def number(self, form: str, what: str) -> int:
        """One number, of a format of the struct module."""
        (number,) = struct.unpack(form, self.take(struct.calcsize(form), what))
        return int(number)

    def string(self, what: str) -> str:
        """A string with its length before it; GGUF's are UTF-8."""
        length = self.number("<Q", what)
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            self.lie(f"{what} is not UTF-8 ({error.reason} at its byte {error.start})")

    def name(self, what: str) -> str:
        """A string that will stand in messages: nothing in it moves a cursor."""
        name = self.string(what)
        if not name.isprintable():
            self.lie(f"{what} is {name[:80]!r}")
        return name

    def value(self, key: str) -> tuple[GGUFValueType, Value]:
        """(type, value) of the key, an array as (type of its elements, all of them)."""
        kind = self._value_type(key)
        if kind is not GGUFValueType.ARRAY:
            return kind, self.string(key) if kind is GGUFValueType.STRING else self._numbers(key, kind, 1)[0].item()
        kind, count = self._value_type(key), self.number("<Q", key)
        if kind is GGUFValueType.ARRAY:
            self.lie(f"{key} is an array of arrays")
        if kind is not GGUFValueType.STRING:
            return kind, self._numbers(key, kind, count)
        if count * 8 > self._end - self.position:
            self.lie(f"{key} claims {count} strings, the file has {self.size} bytes")
        return kind, [self.string(key) for _ in range(count)]

    def _value_type(self, key: str) -> GGUFValueType:
        number = self.number("<I", key)
        try:
            return GGUFValueType(number)
        except ValueError:
            self.lie(f"{key} is of the unknown type {number}")

    def _numbers(self, key: str, kind: GGUFValueType, count: int) -> npt.NDArray[Any]:
        dtype = np.dtype(_SCALARS[kind])
        taken = self.take(count * dtype.itemsize, key)
        # Any byte but 0 is true, where numpy would believe that it is 1.
        return np.frombuffer(taken, "u1").astype(bool) if kind is GGUFValueType.BOOL else np.frombuffer(taken, dtype)


def _start(head: _Head) -> tuple[int, int, int]:
    """(version, count of tensors, count of keys)."""
    if head.take(4, "its magic") != b"GGUF":
        head.lie("it does not begin with GGUF")
    version = head.number("<I", "its version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        head.lie("it is big-endian" if swapped in _VERSIONS else f"it has version {version}; known: 2 and 3")
    tensors, keys = head.number("<Q", "its count of tensors"), head.number("<Q", "its count of keys")
    if max(tensors, keys) > _MAX_ENTRIES:
        head.lie(f"it claims {tensors} tensors and {keys} keys; the limit is {_MAX_ENTRIES}")
    return version, tensors, keys


def _alignment(head: _Head, fields: dict[str, Value], types: dict[str, GGUFValueType]) -> int:
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if "general.alignment" in types and types["general.alignment"] is not GGUFValueType.UINT32:
        head.lie("general.alignment is not a 32-bit number")
    if not isinstance(alignment, int) or alignment.bit_count() != 1 or alignment > _MAX_ALIGNMENT:
        head.lie(f"general.alignment is {str(alignment)[:80]}, not a power of two")
    return alignment


def _tensors(head: _Head, count: int, alignment: int) -> dict[str, GgufTensor]:
    """The tensors in the order of the file, each where the one before it ends."""
    infos: dict[str, tuple[GgufTensor, int]] = {}
    for _ in range(count):
        tensor, offset = _info(head)
        if tensor.name in infos:
            head.lie(f"it has the tensor {tensor.name} twice")
        infos[tensor.name] = tensor, offset
    start = _aligned(head.position, alignment)
    tensors: dict[str, GgufTensor] = {}
    end = next_offset = 0
    for tensor, offset in infos.values():
        if offset != next_offset:
            head.lie(f"tensor {tensor.name} {'overlaps another' if offset < next_offset else 'follows a hole'}")
        end = offset + tensor.size
        if start + end > head.size:
            head.lie(f"tensor {tensor.name} would end at byte {start + end}, the file has {head.size}")
        next_offset = _aligned(end, alignment)
        tensors[tensor.name] = GgufTensor(tensor.name, tensor.dtype, tensor.shape, tensor.file, start + offset)
    # Not every writer pads the last tensor.
    if tensors and head.size > start + next_offset:
        head.lie(f"its tensors end at byte {start + end}, the file at {head.size}")
    return tensors


def _info(head: _Head) -> tuple[GgufTensor, int]:
    """A tensor as it is told, and its offset from the first tensor."""
    name = head.name("the name of a tensor")
    if len(name.encode()) > _MAX_NAME:
        head.lie(f"the name of a tensor, {name[:20]}..., is longer than {_MAX_NAME} bytes")
    what = f"the info of {name}"
    dimensions = head.number("<I", what)
    if dimensions > _MAX_DIMENSIONS:
        head.lie(f"tensor {name} has {dimensions} dimensions")
    # The innermost comes first here.
    shape = tuple(head.number("<Q", what) for _ in range(dimensions))[::-1]
    if not all(0 < size <= _MAX_COUNT for size in shape):
        head.lie(f"tensor {name} has shape {list(shape)}")
    number, offset = head.number("<I", what), head.number("<Q", what)
    if number not in _KINDS:
        head.lie(f"tensor {name} is of the unknown ggml type {number}")
    tensor = GgufTensor(name, _KINDS[number].name, shape, head.file, 0)
    block = GGML_QUANT_SIZES[tensor.kind][0]
    if tensor.row_items % block:
        head.lie(f"tensor {name} has rows of {tensor.row_items} elements, {tensor.dtype} has blocks of {block}")
    return tensor, offset


def _aligned(position: int, alignment: int) -> int:
    return position + -position % alignment
