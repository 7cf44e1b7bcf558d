"""JSON that other people wrote: an object without duplicate keys, or a SourceError that names the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from orchestrator.errors import SourceError

_MAX_BYTES = 256_000_000


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; SourceError if it is missing, unreadable or not an object."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise SourceError(f"{file} is not a regular file, or too large to be what its name says.")
        raw = file.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{file} cannot be read: {error.strerror}.", "Point to a complete directory in Hugging Face layout."
        ) from error
    return parse_json(file, raw)


def parse_json(file: Path, raw: bytes) -> dict[str, Any]:
    """The object in `raw`, which came from `file`."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} does not hold valid JSON: {error}.", "Correct it, or download it again.") from error
    if not isinstance(value, dict):
        raise SourceError(f"{file} does not hold a JSON object.", "Correct it, or download it again.")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"duplicate key {name!r}")
        found[name] = value
    return found
