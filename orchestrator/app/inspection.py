"""What files of weights hold, by path or by key of the store, and what quantizing has cost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.artifacts.disk import host_errors, write_whole
from orchestrator.artifacts.head import head_is_own
from orchestrator.artifacts.inspection import Inspection, gguf_in, inspect
from orchestrator.artifacts.quantization_error import TensorError, compare, relative, sqnr
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.meaning import Meaning, SamplingDefault, deviations, sampling_defaults
from orchestrator.errors import SourceError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

__all__ = [
    "Inspection",
    "Meaning",
    "SamplingDefault",
    "TensorError",
    "compare",
    "deviations",
    "inspect",
    "meaning_of",
    "place_of",
    "relative",
    "sampling_defaults",
    "sqnr",
    "write_picture",
]


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


def meaning_of(orch: Orchestrator, place: Path) -> Meaning | None:
    """What a directory of weights or a GGUF file means; None for what says nothing of it, such as an adapter."""
    file = gguf_in(place)
    if file is None and not (place / "config.json").is_file():
        return None
    meaning = orch.builder.meaning(file or place)
    if file is None and meaning.tied:
        with Checkpoint.open(place) as checkpoint:
            return meaning.model_copy({"tied": not head_is_own(checkpoint)})
    return meaning


def write_picture(file: Path, text: str) -> None:
    """Write a drawing, whole or not at all. HostError when it cannot be written."""
    with host_errors(f"write {file}"):
        write_whole(file, text.encode())
