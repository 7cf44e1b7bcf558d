"""Results that are kept: a file of JSON lines for each profile, a line for each level of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import HostError, host_errors

# Of the lines: others are of another version of orch, and are left alone.
VERSION = 1
# Of a sweep all levels have it.
RUN = "run"


class Results:
    """In `root`, which need not be there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, result: Mapping[str, Any]) -> None:
        """Keep one."""
        with host_errors(f"write into {self._root}", {}):
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / f"{result['profile']}.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")

    def all(self) -> Iterator[dict[str, Any]]:
        """All, those of a profile as they came. What cannot be read, as after a power cut, is left out, as are lines of
        another version."""
        with host_errors(f"read {self._root}", {}):
            files = sorted(self._root.glob("*.jsonl"))
            lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and found.get("version") == VERSION:
                yield found

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """The levels of each sweep, by its name, the newest last."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in sorted(self.all(), key=lambda one: str(one[RUN])):
            found.setdefault(str(one[RUN]), []).append(one)
        return found

    def run(self, name: str | None) -> list[dict[str, Any]]:
        """The levels of one sweep (None: the newest). HostError where there is none."""
        runs = self.runs()
        chosen = name if name is not None else next(reversed(runs), None)
        if chosen is None or chosen not in runs:
            known = "orch bench ls shows those that there are." if runs else "orch bench makes one."
            raise HostError(f"There is no measurement {name or 'yet'}.", hint=known)
        return runs[chosen]
