"""What tensors hold, as numpy arrays of rows; where they lie is told by safetensors.py and gguf_reader.py."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.artifacts.safetensors import Checkpoint, Tensor
from orchestrator.errors import SourceError


def read_rows(descriptor: int, tensor: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows `start` to `stop` of a tensor of the open file, as [rows, elements of `read_as`].

    SourceError if the file has become shorter since its header was read.
    """
    dtype = np.dtype(tensor.read_as)
    block = np.empty((stop - start, tensor.row_bytes // dtype.itemsize), dtype)
    view = block.data.cast("B") if block.size else memoryview(b"")
    offset = tensor.offset + start * tensor.row_bytes
    while view:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise SourceError(f"{tensor.file} cannot be read: {error.strerror}.") from error
        if count == 0:
            raise SourceError(
                f"{tensor.file} ends inside tensor {tensor.name}: it was cut while being read.",
                "Download it again, or build it anew.",
            )
        view = view[count:]
        offset += count
    return block


def to_float32(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What `Checkpoint.read` gave for BF16 (as bits), F16 or F32, exactly, in float32."""
    if block.dtype == np.uint16:
        wide = block.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return block.astype(np.float32, copy=False)


def is_finite(block: npt.NDArray[Any]) -> bool:
    """Whether no element of the block is NaN or infinite; BF16 comes as bits."""
    if block.dtype == np.uint16:
        # All exponent bits set is Inf or NaN; shifting the sign out leaves a plain comparison.
        return bool(block.size == 0 or (block << np.uint16(1)).max() < 0xFF00)
    return bool(np.isfinite(block).all())


def read_finite(checkpoint: Checkpoint, tensor: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    """`Checkpoint.read`, refusing NaN and Inf."""
    return finite(tensor, checkpoint.read(tensor, start, stop))


def finite(tensor: Tensor, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The block of `tensor`. SourceError for NaN and Inf: nothing sensible can be quantized from them."""
    if not is_finite(block):
        raise SourceError(
            f"{tensor.file}: tensor {tensor.name} contains NaN or Inf.",
            "The weights are broken (a diverged training, or a damaged file): get them again, or use another commit.",
        )
    return block


def pairs_together(rows: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Rows of whole heads, so that those which are rotated together lie side by side and not half a head apart."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
