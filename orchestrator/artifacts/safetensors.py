"""Reading safetensors with suspicion: headers are checked against the file before any tensor is believed.

Plain `pread`, no mapped memory: a file that shrinks is an error here and not a SIGBUS, and the resident
size of a build stays that of its row blocks. Format: 8 bytes little-endian header length, a JSON header,
then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from orchestrator.artifacts.disk import pwrite_all, reserve
from orchestrator.artifacts.json_file import parse_json, read_json
from orchestrator.core.weights import INDEX, SINGLE
from orchestrator.errors import SourceError

if TYPE_CHECKING:
    import numpy.typing as npt

_MAX_HEADER = 100_000_000
_MAX_DIMENSIONS = 8

# Numpy's names of types. BF16 and F8_E4M3 have none there: they are read as their bits.
_READ_AS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "U8": "|u1", "F8_E4M3": "|u1"}
_ITEM_BYTES = {name: int(read_as[2:]) for name, read_as in _READ_AS.items()}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `offset` is absolute in `file`; `shape` has the outermost dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def row_items(self) -> int:
        """Elements of one row: the last dimension, or all of a one-dimensional tensor."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows of `row_items` elements; none, where a row has none."""
        return math.prod(self.shape[:-1]) if self.row_items else 0

    @property
    def read_as(self) -> str:
        """The numpy type of what is read of it, by its name."""
        return _READ_AS[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.row_items * _ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _ITEM_BYTES[dtype]


class Checkpoint:
    """The tensors of one safetensors file or of all shards that an index names. Close it, or use `with`.

    Reads are `pread` on shared descriptors, so any number of threads may read at once.
    """

    def __init__(self, files: tuple[Path, ...], tensors: dict[str, Tensor], descriptors: dict[Path, int]) -> None:
        self.files = files
        self.tensors = tensors
        self._descriptors = descriptors

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The checkpoint of a Hugging Face directory.

        SourceError if there is none, or if a file is not what its header or the index claims.
        """
        weight_map = _weight_map(directory)
        names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
        checkpoint = cls.open_files(tuple(directory / name for name in names))
        if weight_map is not None:
            try:
                _check_index(directory / INDEX, weight_map, checkpoint.tensors)
            except SourceError:
                checkpoint.close()
                raise
        return checkpoint

    @classmethod
    def open_files(cls, files: tuple[Path, ...]) -> Self:
        """The tensors of just these files."""
        checkpoint = cls(files, {}, {})
        try:
            for file in files:
                checkpoint._add(file)
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint

    def _add(self, file: Path) -> None:
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for ever.
            self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            found = _read_header(file, self._descriptors[file])
        except OSError as error:
            raise SourceError(
                f"{file} cannot be read: {error.strerror}.", "Download the weights again, or complete the directory."
            ) from error
        for tensor in found:
            if tensor.name in self.tensors:
                _lie(file, f"tensor {tensor.name} is also in {self.tensors[tensor.name].file.name}")
            self.tensors[tensor.name] = tensor

    def read(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows `start` to `stop` as [rows, row_items]; BF16 as uint16 bits, F8_E4M3 as uint8 bits.

        SourceError if the file has become shorter since it was opened.
        """
        # Whoever only looks at headers does not pay for numpy.
        from orchestrator.artifacts.rows import read_rows

        stop = tensor.rows if stop is None else stop
        return read_rows(self._descriptors[tensor.file], tensor, start, stop)

    def close(self) -> None:
        """Gives the descriptors back."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ShardWriter:
    """Writes one safetensors file whose layout is known beforehand, in any order of rows.

    `layout` is name to (dtype, shape). Leaving the `with` block without an error checks that every byte of
    every tensor was written.
    """

    def __init__(self, path: Path, layout: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        # Wide types first keeps every tensor aligned to its element, as the safetensors library does it.
        order = sorted(layout, key=lambda name: (-_ITEM_BYTES[layout[name][0]], layout[name][0], name))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.tensors: dict[str, Tensor] = {}
        end = 0
        for name in order:
            dtype, shape = layout[name]
            tensor = Tensor(name, dtype, shape, path, end)
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + tensor.size]}
            self.tensors[name] = tensor
            end += tensor.size
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self._missing = {name: tensor.size for name, tensor in self.tensors.items()}
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            pwrite_all(self._descriptor, len(header).to_bytes(8, "little") + header, 0)
            reserve(self._descriptor, self._start + end)
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, name: str, rows: npt.NDArray[Any], start: int) -> None:
        """Writes `rows` of the tensor, from its row `start` on."""
        tensor = self.tensors[name]
        pwrite_all(self._descriptor, rows.data, self._start + tensor.offset + start * tensor.row_bytes)
        self._missing[name] -= rows.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        wrong = [name for name, missing in self._missing.items() if missing]
        if kind is None and wrong:
            raise ValueError(f"tensors not written exactly once: {wrong}")


def row_blocks(tensor: Tensor, items: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(start, stop) row ranges of about `items` elements, but of at least `multiple` rows; it divides every start."""
    step = max(1, items // max(1, tensor.row_items) // multiple) * multiple
    for start in range(0, tensor.rows, step):
        yield start, min(start + step, tensor.rows)


def _lie(file: Path, reason: str) -> NoReturn:
    raise SourceError(f"{file} is not a sound safetensors file: {reason}.", "Download it again, or build it anew.")


def _weight_map(directory: Path) -> dict[str, str] | None:
    """Tensor name to shard file name, or None for a single file, which counts before an index, as for transformers."""
    index = directory / INDEX
    if (directory / SINGLE).is_file():
        return None
    if not index.is_file():
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
        raise SourceError(
            f"{directory} has no {SINGLE} and no {INDEX}.",
            "Pickled weights are never read: convert them to safetensors first."
            if pickled
            else "Point to a directory in Hugging Face layout, with safetensors weights.",
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index} has no weight_map.", "Download it again.")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise SourceError(f"{index}: {tensor} is said to be in {shard!r}, which is not a file of this directory.")
    return weight_map


def _check_index(index: Path, weight_map: dict[str, str], tensors: dict[str, Tensor]) -> None:
    problems = [
        f"{name}: the index says {shard}, found in {tensors[name].file.name if name in tensors else 'no shard'}"
        for name, shard in weight_map.items()
        if name not in tensors or tensors[name].file.name != shard
    ]
    problems += [
        f"{name}: in {tensors[name].file.name}, not in the index" for name in sorted(tensors.keys() - weight_map)
    ]
    if problems:
        raise SourceError(
            f"{index} and the shards disagree about {len(problems)} tensors.",
            "Download the weights again.",
            "\n".join(problems),
        )


def _read_header(file: Path, descriptor: int) -> list[Tensor]:
    status = os.fstat(descriptor)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        _lie(file, "it is not a regular file")
    if size < 8:
        _lie(file, f"it has only {size} bytes")
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > _MAX_HEADER or length > size - 8:
        _lie(file, f"its header claims {length} bytes, the file has {size}")
    raw = os.pread(descriptor, length, 8)
    if len(raw) != length or not raw.startswith(b"{"):
        _lie(file, "its header is cut or is not a JSON object")
    header = parse_json(file, raw)
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = [_tensor(file, name, entry, start) for name, entry in header.items()]
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            _lie(file, f"tensor {tensor.name} {'overlaps another' if tensor.offset < end else 'follows a hole'}")
        end += tensor.size
    if end != size:
        _lie(file, f"its tensors end at byte {end}, the file at {size}")
    return tensors


def _tensor(file: Path, name: str, entry: object, start: int) -> Tensor:
    if not name.isprintable():
        _lie(file, f"a tensor is called {name[:80]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _lie(file, f"the entry of {name} is not dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _READ_AS:
        _lie(file, f"tensor {name} has dtype {json.dumps(dtype)}; supported are {', '.join(_READ_AS)}")
    if not _is_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        _lie(file, f"tensor {name} has shape {json.dumps(shape)[:80]}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _lie(file, f"tensor {name} has data_offsets {json.dumps(offsets)[:80]}")
    tensor = Tensor(name, dtype, tuple(shape), file, start + offsets[0])
    if tensor.size != offsets[1] - offsets[0]:
        _lie(file, f"tensor {name} {dtype} {shape} needs {tensor.size} bytes, has {offsets[1] - offsets[0]}")
    return tensor


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
