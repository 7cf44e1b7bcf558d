"""ggml's own quantizer, called in a shared library that exports `ggml_quantize_chunk`; for much Q6_K a faster one."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from orchestrator.artifacts.gguf_types import QUANTIZED
from orchestrator.errors import HostError

# So many weights are worth a second of compiling.
_WORTH_COMPILING = 1 << 25
# Beyond this float32 overflows on the way, and each program does so in its own manner.
_LARGEST = np.float32(1e6)

_HINT = "Reinstall orch's dependencies; the quantizer comes with the embedded llama.cpp."


Compiled = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]]


class Quantizer:
    """Turns float32 rows into ggml blocks, byte for byte as llama.cpp does.

    The call releases the GIL, so several threads may quantize at once. After `worth_compiling` weights of Q6_K a
    compiled quantizer takes over, if it gives the same bytes. HostError if the library cannot be loaded or numbers
    ggml's types differently.
    """

    def __init__(self, library: Path, worth_compiling: int = _WORTH_COMPILING) -> None:
        self._left = worth_compiling
        self._compiled: Compiled | None = None
        self._compiling = threading.Lock()
        try:
            loaded = ctypes.CDLL(str(library))
            self._quantize = loaded.ggml_quantize_chunk
            row_size = loaded.ggml_row_size
            ggml_version = loaded.ggml_version
        except (OSError, AttributeError) as error:
            raise HostError(f"The quantizer {library} cannot be loaded.", _HINT, str(error)) from error
        row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        row_size.restype = ctypes.c_size_t
        for kind in QUANTIZED:
            items, size = GGML_QUANT_SIZES[kind]
            if row_size(kind, items) != size:
                raise HostError(f"The quantizer {library} has another layout of {kind.name}.", _HINT)
        ggml_version.restype = ctypes.c_char_p
        self.version = f"{library.name} {(ggml_version() or b'').decode(errors='replace')}"
        self._quantize.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        self._quantize.restype = ctypes.c_size_t

    @property
    def compiled(self) -> bool:
        """Whether the compiled quantizer has taken over."""
        return self._compiled is not None

    def expect(self, weights: int) -> None:
        """Of Q6_K so many will come: if that is worth it, the first of them are compiled for."""
        if weights >= self._left:
            self._left = 1

    def __call__(self, kind: GGMLQuantizationType, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """`rows` [n, items] to [n, bytes per row]; items must be a multiple of the type's block size."""
        # The library would abort the whole process where these do not hold.
        if rows.shape[1] % GGML_QUANT_SIZES[kind][0] or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            raise ValueError(f"cannot quantize {rows.dtype} {rows.shape} to {kind.name}")
        if kind is GGMLQuantizationType.Q6_K and self._compiled is not None and _moderate(rows):
            return self._compiled(rows)
        out = self._by_ggml(kind, rows)
        if kind is GGMLQuantizationType.Q6_K and self._left > 0:
            self._left -= rows.size
            if self._left <= 0 and _moderate(rows) and self._compiling.acquire(blocking=False):
                # In this thread only; the others go on meanwhile.
                self._compiled = _same_bytes(rows, out)
        return out

    def _by_ggml(self, kind: GGMLQuantizationType, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        count, items = rows.shape
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        out: npt.NDArray[Any] = np.empty((count, items // per_block * block_bytes), np.uint8)
        written = self._quantize(int(kind), rows.ctypes.data, out.ctypes.data, 0, count, items, None)
        if written != math.prod(out.shape):
            raise ValueError(f"{kind.name}: {written} bytes written instead of {out.size}")
        return out


def _moderate(rows: npt.NDArray[np.float32]) -> bool:
    return bool(max(rows.max(), -rows.min()) < _LARGEST)


def _same_bytes(rows: npt.NDArray[np.float32], expected: npt.NDArray[np.uint8]) -> Compiled | None:
    """The compiled quantizer, if it makes of these rows what ggml made of them."""
    try:
        # Here, because importing numba takes half a second; and where it cannot be, or cannot compile, ggml can go on.
        from numba.core.errors import NumbaError

        from orchestrator.artifacts import q6_k  # as numba
    except ImportError:
        return None
    try:
        return q6_k.quantize if np.array_equal(q6_k.quantize(rows), expected) else None
    except NumbaError:
        return None
