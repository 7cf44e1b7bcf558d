"""ggml's own quantizer, called in a shared library that exports `ggml_quantize_chunk`."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from orchestrator.artifacts.gguf_types import QUANTIZED
from orchestrator.errors import HostError

_HINT = "Reinstall orch's dependencies; the quantizer comes with the embedded llama.cpp."


class Quantizer:
    """Turns float32 rows into ggml blocks, byte for byte as llama.cpp does.

    The call releases the GIL, so several threads may quantize at once. HostError if the library
    cannot be loaded or numbers ggml's types differently.
    """

    def __init__(self, library: Path) -> None:
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

    def __call__(self, kind: GGMLQuantizationType, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """`rows` [n, items] to [n, bytes per row]; items must be a multiple of the type's block size."""
        count, items = rows.shape
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        # The library would abort the whole process where these do not hold.
        if items % per_block or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            raise ValueError(f"cannot quantize {rows.dtype} {rows.shape} to {kind.name}")
        out: npt.NDArray[Any] = np.empty((count, items // per_block * block_bytes), np.uint8)
        written = self._quantize(int(kind), rows.ctypes.data, out.ctypes.data, 0, count, items, None)
        if written != math.prod(out.shape):
            raise ValueError(f"{kind.name}: {written} bytes written instead of {out.size}")
        return out
