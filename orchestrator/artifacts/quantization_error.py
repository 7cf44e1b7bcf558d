"""How far the weights of an artifact are from those that it was made of, tensor by tensor, in row blocks.

The relative error is the Frobenius norm of the difference over that of the source; SQNR is the same in dB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, dequantize

from orchestrator.artifacts import families, fp8, nvfp4, one_pass
from orchestrator.artifacts.claims import check_fp8, check_nvfp4, scheme_of
from orchestrator.artifacts.gguf_reader import GgufFile, GgufTensor
from orchestrator.artifacts.gguf_types import scale_name
from orchestrator.artifacts.inspection import gguf_in
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.nvfp4_checkpoint import Packed, packed_weight
from orchestrator.artifacts.one_pass import BLOCK_ITEMS
from orchestrator.artifacts.rows import pairs_together, read_finite, to_float32
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, row_blocks
from orchestrator.artifacts.threads import in_order
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError

Floats = npt.NDArray[np.float32]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)?(\w+)\.weight")


@dataclass(frozen=True)
class Stored:
    """A weight as an artifact holds it: its type, [out, in], and what gives its rows from start to stop as float32.

    `ordered` puts rows of the source, multiples of `step` of them, in the order in which they are stored.
    """

    kind: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], Floats]
    step: int = 1
    ordered: Callable[[Floats], Floats] = lambda rows: rows


@dataclass
class TensorError:
    """The difference of one matrix: its name in safetensors, its type in the artifact, and the sums of the squares of
    the difference and of the source."""

    name: str
    kind: str
    difference: float = 0.0
    source: float = 0.0

    @property
    def layer(self) -> int | None:
        """Its layer; of embedding and head None."""
        found = _LAYER.fullmatch(self.name)
        return int(found[1]) if found is not None else None

    @property
    def part(self) -> str:
        """Its part of a layer, such as q_proj; of the others the last word of their name."""
        found = _LAYER.fullmatch(self.name)
        return found[2] if found is not None else self.name.split(".")[-2]


def relative(errors: list[TensorError]) -> float:
    """The relative error of all of these together."""
    source = sum(error.source for error in errors)
    return math.sqrt(sum(error.difference for error in errors) / source) if source else 0.0


def sqnr(relative_error: float) -> float:
    """The signal to quantization noise ratio in dB; infinite where there is no error."""
    return -20 * math.log10(relative_error) if relative_error else math.inf


def compare(path: Path, source: Path, progress: Progress) -> list[TensorError]:
    """Every matrix of the Hugging Face directory `source` against the artifact at `path`, in the order of the model.

    Both are read once, all cores dequantize. SourceError if the source is no dense model of a known family, if the
    artifact is of another model, or if weights are NaN or Inf.
    """
    with one_pass.opened(source) as weights, _opened(path, weights.config) as find:
        order = {name: place for place, name in enumerate(families.expected_tensors(weights.config))}
        matrices = sorted((t for t in weights.tensors if len(t.shape) == 2), key=lambda tensor: order[tensor.name])
        pairs = [(tensor, _found(path, tensor, find)) for tensor in matrices]
        errors = {tensor.name: TensorError(tensor.name, stored.kind) for tensor, stored in pairs}
        _compare_all(path, weights.checkpoint, pairs, errors, progress)
        return list(errors.values())


Find = Callable[[str], Stored | None]


def _found(path: Path, tensor: Tensor, find: Find) -> Stored:
    stored = find(tensor.name)
    if stored is None:
        raise SourceError(f"{path} has no {tensor.name}.", "Compare it with the weights that it was made from.")
    if stored.shape != tensor.shape:
        raise SourceError(
            f"{path}: {tensor.name} is {list(stored.shape)}, the source's is {list(tensor.shape)}.",
            "Compare it with the weights that it was made from.",
        )
    return stored


def _compare_all(
    path: Path,
    source: Checkpoint,
    pairs: list[tuple[Tensor, Stored]],
    errors: dict[str, TensorError],
    progress: Progress,
) -> None:
    def squares(job: tuple[Tensor, Stored, int, int]) -> tuple[float, float]:
        tensor, stored, start, stop = job
        rows = stored.ordered(to_float32(read_finite(source, tensor, start, stop)))
        # Damaged scales are told below, by what comes of them.
        with np.errstate(invalid="ignore", over="ignore"):
            return _square(stored.rows(start, stop) - rows), _square(rows)

    total, done = sum(tensor.size for tensor, _ in pairs), 0
    jobs = (
        (tensor, stored, *rows) for tensor, stored in pairs for rows in row_blocks(tensor, BLOCK_ITEMS, stored.step)
    )
    with closing(in_order(squares, jobs)) as results:
        for (tensor, _, start, stop), (difference, square) in results:
            if not math.isfinite(difference):
                raise SourceError(f"{path}: {tensor.name} contains NaN or Inf.", "Build it again.")
            errors[tensor.name].difference += difference
            errors[tensor.name].source += square
            done += (stop - start) * tensor.row_bytes
            progress("comparing", done, total)


def _square(values: Floats) -> float:
    """The sum of the squares, in float64: a block has half a million of them."""
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))


@contextmanager
def _opened(path: Path, config: families.ModelConfig) -> Iterator[Find]:
    """What finds a weight in the artifact by its name in safetensors."""
    file = gguf_in(path)
    if file is not None:
        with GgufFile.open(file) as opened:
            yield lambda name: _in_gguf(opened, config, name)
        return
    scheme = scheme_of(path, read_json(path / "config.json"))
    if scheme is not None and scheme.recipe is Recipe.FP8:
        check_fp8(path)
    elif scheme is not None:
        check_nvfp4(path, scheme.recipe)
    with Checkpoint.open(path) as checkpoint:
        yield lambda name: _in_safetensors(checkpoint, name)


def _in_gguf(file: GgufFile, config: families.ModelConfig, name: str) -> Stored | None:
    tensor = file.tensors.get(families.gguf_name(name))
    if tensor is None:
        return None
    _check_known(file, tensor)
    # NVFP4's second scale; other types have none.
    scale = file.tensors.get(scale_name(tensor.name))
    factor = file.read(scale) if scale is not None else None

    def rows(start: int, stop: int) -> Floats:
        block = file.read(tensor, start, stop)
        found = to_float32(block) if tensor.dtype in families.FLOATS else dequantize(block, tensor.kind)
        return found if factor is None else found * factor

    if not families.is_reordered(config, name):
        return Stored(tensor.dtype, tensor.shape, rows)
    ordered = partial(pairs_together, head_dim=config.head_dim)
    return Stored(tensor.dtype, tensor.shape, rows, config.head_dim, ordered)


def _check_known(file: GgufFile, tensor: GgufTensor) -> None:
    """SourceError if the gguf package has no way back from this type."""
    if tensor.dtype in families.FLOATS:
        return
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.kind][1]), np.uint8), tensor.kind)
    except NotImplementedError as error:
        raise SourceError(
            f"{file.path}: {tensor.name} is {tensor.dtype}, which cannot be compared.",
            "Look at it without --against.",
        ) from error


def _in_safetensors(checkpoint: Checkpoint, name: str) -> Stored | None:
    """In the layouts that claims.py has checked."""
    if (packed := packed_weight(checkpoint, name)) is not None:
        return _packed(checkpoint, packed)
    weight, scale = checkpoint.tensors.get(name), checkpoint.tensors.get(f"{name}_scale")
    if weight is None:
        return None
    if weight.dtype == "F8_E4M3" and scale is not None:
        return _fp8(checkpoint, weight, scale)
    return Stored(weight.dtype, weight.shape, lambda start, stop: to_float32(checkpoint.read(weight, start, stop)))


def _packed(checkpoint: Checkpoint, packed: Packed) -> Stored:
    def rows(start: int, stop: int) -> Floats:
        codes, scales = (checkpoint.read(tensor, start, stop) for tensor in (packed.codes, packed.scales))
        return nvfp4.dequantize_rows(codes, scales, packed.divisor)

    return Stored("NVFP4", packed.shape, rows)


def _fp8(checkpoint: Checkpoint, codes: Tensor, scale: Tensor) -> Stored:
    def rows(start: int, stop: int) -> Floats:
        # One for each row, or one for all.
        scales = checkpoint.read(scale, start, stop) if scale.rows > 1 else checkpoint.read(scale)
        return fp8.dequantize_rows(checkpoint.read(codes, start, stop), to_float32(scales))

    return Stored("FP8", codes.shape, rows)
