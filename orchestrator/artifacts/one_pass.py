"""One read of the weights, any number of artifacts made from it.

The weights come in row blocks; each block is read once, checked, and given to every OutputWriter. Matrices that an
engine fuses (q, k, v; gate, up) share one NVFP4 scale, so an OutputWriter may ask for the largest magnitude of all of
them before it converts any: such a unit is held in memory until it is measured. What is too large to be held is read
twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.artifacts import families
from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.head import head_is_own
from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.rows import read_finite, to_float32
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, row_blocks
from orchestrator.artifacts.threads import in_order
from orchestrator.core.meaning import Meaning
from orchestrator.core.progress import Progress

Block = npt.NDArray[Any]

# Elements of a block: 0.5 MB of bf16. Float32 copies of it stay in a core's cache; two per core are in flight.
BLOCK_ITEMS = 1 << 18
# Bytes of a unit that is held in memory; Qwen3-8B's largest, gate and up of a layer, has 201 MB. The unit after it is
# read meanwhile, so there may be two.
HELD_BYTES = 256 << 20

# Elements of a block that is converted to see how long that takes.
_SAMPLE_ITEMS = 1 << 18

_JOINED = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
}


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor."""

    tensor: Tensor
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes that are read for them."""
        return (self.stop - self.start) * self.tensor.row_bytes


@dataclass(frozen=True)
class Weights:
    """Weights that were found sound: the directory, its config with the head that it really has, what they mean, and
    the tensors in the order in which they lie."""

    directory: Path
    config: ModelConfig
    meaning: Meaning
    checkpoint: Checkpoint
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Cost:
    """Bytes that are written, and CPU seconds, as far as a short sample tells. `holds`: units are held in memory."""

    size: int
    cpu_s: float
    holds: bool = False


def sampled(convert: Callable[[Block], object], row_items: int, items: int) -> float:
    """CPU seconds for `items` elements in rows of `row_items`, from converting a few of them."""
    rows = max(1, _SAMPLE_ITEMS // row_items)
    values = np.random.default_rng(0).standard_normal((rows, row_items), np.float32)
    block = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    # The first time is another: things are loaded and compiled.
    convert(block)
    began = time.thread_time()
    convert(block)
    return (time.thread_time() - began) * items / block.size


class OutputWriter(Protocol):
    """One artifact in the making; its files are open and have their final sizes."""

    def needs_largest(self, tensor: Tensor) -> bool:
        """Whether `convert` has to know the largest magnitude of the tensor and all that it is fused with."""
        ...

    def row_step(self, tensor: Tensor) -> int:
        """Blocks of this tensor begin at multiples of so many rows."""
        ...

    def convert(self, rows: Rows, block: Block, largest: float) -> Sequence[Block]:
        """What becomes of a block [rows, row_items] (BF16 as its bits). Runs in any thread; `block` is not changed."""
        ...

    def write(self, rows: Rows, parts: Sequence[Block]) -> None:
        """Writes what `convert` made. Runs in one thread, block after block."""
        ...


class OutputSpec(Protocol):
    """An artifact that is to be made, at a place of its own."""

    def cost(self, weights: Weights) -> Cost:
        """What making it will take, on this machine."""
        ...

    def writer(self, weights: Weights) -> AbstractContextManager[OutputWriter]:
        """Opens its files. It is whole when the block ends without an error; after one nothing looks finished."""
        ...


def build(
    source: Path,
    specs: Sequence[OutputSpec],
    progress: Progress,
    held_bytes: int = HELD_BYTES,
    template: str | None = None,
) -> None:
    """Makes all of `specs` from the Hugging Face directory `source`, in one read of it.

    `template` takes the place of its own chat template. `held_bytes` bounds a unit that is held. SourceError if the
    directory is no sound dense model or has NaN or Inf; HostError if the disk fails; whatever `progress` raises
    passes through.
    """
    with opened(source, template) as weights, ExitStack() as stack:
        writers = [stack.enter_context(one.writer(weights)) for one in specs]
        _convert_all(weights, writers, progress, held_bytes)


@contextmanager
def opened(source: Path, template: str | None = None) -> Iterator[Weights]:
    """The weights of a Hugging Face directory, checked against its config.json."""
    config = families.read_config(source)
    meaning = read_meaning(source, template)
    with Checkpoint.open(source) as checkpoint:
        families.check(checkpoint, config)
        if config.tie_word_embeddings and head_is_own(checkpoint):
            config, meaning = replace(config, tie_word_embeddings=False), replace(meaning, tied=False)
            families.check(checkpoint, config)
        shards = {file: number for number, file in enumerate(checkpoint.files)}
        tensors = [checkpoint.tensors[name] for name in families.expected_tensors(config)]
        tensors.sort(key=lambda tensor: (shards[tensor.file], tensor.offset))
        yield Weights(source, config, meaning, checkpoint, tuple(tensors))


def fused_with(name: str) -> str:
    """A name for the tensor `name` together with those that engines fuse it with."""
    parts = name.removesuffix(".weight").split(".")
    layer, module = ".".join(parts[:3]), ".".join(parts[3:])
    return f"{layer}.{_JOINED[module]}" if module in _JOINED else name


@dataclass
class _Unit:
    """Tensors that are converted only when all of them are measured; their blocks, as far as they are held."""

    rows: list[Rows]
    blocks: list[Block | None]
    held: bool
    largest: float = 0.0
    left: int = 0
    measured: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Measure:
    """Read a block of a unit, hold it if there is room, and see how large its elements are."""

    unit: _Unit
    index: int


@dataclass(frozen=True)
class _Convert:
    """Give a block to all writers. Without a unit it is read now, and its largest magnitude is not asked for."""

    rows: Rows
    unit: _Unit | None = None
    index: int = 0


def _convert_all(weights: Weights, writers: Sequence[OutputWriter], progress: Progress, held_bytes: int) -> None:
    checkpoint = weights.checkpoint

    def work(job: _Measure | _Convert) -> list[Sequence[Block]]:
        if isinstance(job, _Measure):
            _measure(checkpoint, job.unit, job.index)
            return []
        block, largest = _block(checkpoint, job)
        return [writer.convert(job.rows, block, largest) for writer in writers]

    total, done = sum(tensor.size for tensor in weights.tensors), 0
    progress("building", 0, total)
    with closing(in_order(work, _jobs(weights, writers, held_bytes))) as results:
        for job, made in results:
            if isinstance(job, _Measure):
                progress("building", done, total)
                continue
            for writer, parts in zip(writers, made, strict=True):
                writer.write(job.rows, parts)
            done += job.rows.size
            progress("building", done, total)


def _jobs(weights: Weights, writers: Sequence[OutputWriter], held_bytes: int) -> Iterator[_Measure | _Convert]:
    """Measuring goes one unit ahead of converting, so that no core waits for the last block of a unit."""
    waiting: _Unit | None = None
    for tensors in _groups(weights.tensors):
        rows = [piece for tensor in tensors for piece in _rows(tensor, writers)]
        if not any(writer.needs_largest(tensor) for tensor in tensors for writer in writers):
            yield from (_Convert(piece) for piece in rows)
            continue
        held = sum(piece.size for piece in rows) <= held_bytes
        unit = _Unit(rows, [None] * len(rows), held, left=len(rows))
        yield from (_Measure(unit, index) for index in range(len(rows)))
        if waiting is not None:
            yield from (_Convert(piece, waiting, index) for index, piece in enumerate(waiting.rows))
        waiting = unit
    if waiting is not None:
        yield from (_Convert(piece, waiting, index) for index, piece in enumerate(waiting.rows))


def _groups(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors that are fused together, where the first of them lies: the others may be in another shard."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(fused_with(tensor.name), []).append(tensor)
    return list(groups.values())


def _rows(tensor: Tensor, writers: Sequence[OutputWriter]) -> list[Rows]:
    step = max((writer.row_step(tensor) for writer in writers), default=1)
    return [Rows(tensor, *bounds) for bounds in row_blocks(tensor, BLOCK_ITEMS, step)]


def _measure(checkpoint: Checkpoint, unit: _Unit, index: int) -> None:
    rows, largest = unit.rows[index], 0.0
    try:
        block = read_finite(checkpoint, rows.tensor, rows.start, rows.stop)
        largest = largest_of(block)
        if unit.held:
            unit.blocks[index] = block
    finally:
        # Also after an error: those that wait for it must not wait for ever. The error itself comes out first.
        with unit.lock:
            unit.largest = max(unit.largest, largest)
            unit.left -= 1
            if not unit.left:
                unit.measured.set()


def _block(checkpoint: Checkpoint, job: _Convert) -> tuple[Block, float]:
    rows, unit = job.rows, job.unit
    if unit is None:
        return read_finite(checkpoint, rows.tensor, rows.start, rows.stop), 0.0
    # Every job that measures the unit was begun before this one: nobody waits in a circle.
    unit.measured.wait()
    block, unit.blocks[job.index] = unit.blocks[job.index], None
    if block is None:
        block = read_finite(checkpoint, rows.tensor, rows.start, rows.stop)
    return block, unit.largest


def largest_of(block: Block) -> float:
    """The largest magnitude in a block of finite elements."""
    if not block.size:
        return 0.0
    if block.dtype == np.uint16:
        # Without their signs, bf16 bits are in the order of what they stand for.
        return float(to_float32((block & np.uint16(0x7FFF)).max(keepdims=True))[0, 0])
    return max(float(block.max()), -float(block.min()))
