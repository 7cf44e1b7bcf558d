"""Where an adapter lies, when a directory was named that is none: nobody guesses, and nobody has to search."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from orchestrator.artifacts.adapter_config import CONFIG
from orchestrator.errors import SourceError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def refuse_other_places(directory: Path) -> None:
    """SourceError where it is not a directory with an adapter; the hint names the one that is meant, if any."""
    if (directory / CONFIG).exists():
        return
    if directory.is_file():
        raise SourceError(
            f"{directory} is a file.",
            f"An adapter is the directory that PEFT has saved: name {directory.parent}."
            if (directory.parent / CONFIG).is_file()
            else _WHAT_IT_IS,
        )
    if not directory.is_dir():
        raise SourceError(f"There is no directory {directory}.", _WHAT_IT_IS)
    found = _snapshots(directory) or _checkpoints(directory) or _folders(directory)
    if not found:
        raise SourceError(f"{directory} is not an adapter: it has no {CONFIG}.", _WHAT_IT_IS)
    best = found[0]
    more = ", ".join(path.name for path in found[1:4])
    others = f" Others: {more}{', ...' if len(found) > 4 else '.'}" if more else ""
    below = "There is one below" if not more else f"There are {len(found)} below"
    raise SourceError(f"{directory} is not an adapter: it has no {CONFIG}. {below}.", f"Name it: {best}.{others}")


_WHAT_IT_IS = "An adapter is a directory that PEFT has saved: adapter_config.json and adapter_model.safetensors."


def _snapshots(directory: Path) -> list[Path]:
    """Those of a hub cache's root: what main is first, then the newest."""
    main = directory / "refs" / "main"
    commit = main.read_text(errors="replace").strip() if main.is_file() else ""
    found = _with_adapters(directory.glob("snapshots/*"))
    return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


def _checkpoints(directory: Path) -> list[Path]:
    """Those that a trainer has saved, the newest first."""
    steps = {path: match for path in directory.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))}
    return sorted(_with_adapters(steps), key=lambda path: int(steps[path][1]), reverse=True)


def _folders(directory: Path) -> list[Path]:
    """Others, such as those of adapters that PEFT has saved under their names."""
    return sorted(_with_adapters(directory.glob("*")))


def _with_adapters(places: Iterable[Path]) -> list[Path]:
    return [path for path in places if (path / CONFIG).is_file()]
