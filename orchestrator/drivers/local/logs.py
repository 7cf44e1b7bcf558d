"""The logs of local processes: one file per instance over all its starts, outliving the instance."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orchestrator.drivers.files import host_errors
from orchestrator.drivers.local.keeper import OLD_LOGS

FOLLOW_S = 0.2
STARTED = "--- started "
_KEEP_FILES = 20
_TAIL_BYTES = 1 << 18


class Logs:
    """NAME.log under `root`, with NAME.log.1 and .2 when it was long."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """Where the output of `name` goes."""
        return self._root / f"{name}.log"

    def create(self, name: str) -> None:
        """Have the file, so that it can be opened before anything was written."""
        self._root.mkdir(parents=True, exist_ok=True)
        self.path(name).touch(mode=0o600)

    def tail(self, name: str, lines: int) -> tuple[str, ...]:
        """The last `lines` of the latest start, over a rotation too; empty when there is no log."""
        with host_errors(f"read the log of {name}"):
            return self._tail(name, lines)

    def _tail(self, name: str, lines: int) -> tuple[str, ...]:
        found: list[str] = []
        for path in [self.path(name), *(self._root / f"{name}.log.{number}" for number in range(1, OLD_LOGS + 1))]:
            piece = _last_lines(path)
            marks = [index for index, line in enumerate(piece) if line.startswith(STARTED)]
            found = piece[marks[-1] + 1 if marks else 0 :] + found
            if marks or len(found) >= lines:
                break
        return tuple(found[-lines:])

    def names(self) -> tuple[str, ...]:
        """All that there is a log of."""
        return tuple(sorted(path.stem for path in self._root.glob("*.log")))

    def lines(self, name: str, lines: int, going_on: Callable[[], bool]) -> Iterator[str]:
        """The last lines over all starts, then those that come."""
        path = self.path(name)
        with host_errors(f"read the log of {name}"):
            opened = path.open(errors="replace")
        with opened as file:
            yield from (line.rstrip("\n") for line in file.readlines()[-lines:])
            begun = ""
            while going_on():
                begun += file.readline()
                if begun.endswith("\n"):
                    yield begun.rstrip("\n")
                    begun = ""
                elif path.stat().st_size < file.tell():
                    file.seek(0)  # rotated: copied away and truncated
                else:
                    time.sleep(FOLLOW_S)

    def prune(self, living: Iterable[str]) -> None:
        """Delete all but the newest files of instances that are no more."""
        kept = {f"{name}.log" for name in living}
        dated = []
        for path in self._root.glob("*.log*"):
            if path.name.rpartition(".log")[0] + ".log" not in kept:
                with contextlib.suppress(FileNotFoundError):
                    dated.append((path.stat().st_mtime, path))
        for _, path in sorted(dated, reverse=True)[_KEEP_FILES:]:
            path.unlink(missing_ok=True)


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[1:] if size > _TAIL_BYTES else lines
