"""What files of weights hold, by path or by key of the store, and what quantizing has cost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.artifacts.disk import host_errors, write_whole
from orchestrator.artifacts.inspection import Inspection, inspect
from orchestrator.artifacts.quantization_error import TensorError, compare, relative, sqnr
from orchestrator.errors import SourceError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

__all__ = ["Inspection", "TensorError", "compare", "inspect", "place_of", "relative", "sqnr", "write_picture"]


def place_of(orch: Orchestrator, path: str) -> Path:
    """A path of this machine, else an entry of the store."""
    place = Path(path)
    # What is too long for a name is no file, and what has a slash or a space in it is no key.
    with suppress(OSError, ValueError):
        if place.exists():
            return place
        if orch.store.get(path) is not None:
            return orch.store.path(path)
    raise SourceError(
        f"There is no {path}.", hint="Name a file or a directory, or a key that `orch artifacts ls` shows."
    )


def write_picture(file: Path, text: str) -> None:
    """Write a drawing, whole or not at all. HostError when it cannot be written."""
    with host_errors(f"write {file}"):
        write_whole(file, text.encode())
