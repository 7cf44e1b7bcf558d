"""Results that are kept: a file of JSON lines for each profile, a line for each level of a sweep."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.bench.series import is_of_users
from orchestrator.errors import HostError, host_errors

# Of the lines: others are of another version of orch, and are left alone.
VERSION = 2
# Of a sweep all levels have it.
RUN = "run"


def new_run() -> str:
    """A name for one, by the time; two of a second differ."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Results:
    """In `root`, which need not be there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, result: Mapping[str, Any]) -> None:
        """Keep one."""
        with host_errors(f"write into {self._root}", {}):
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / f"{result['profile']}.jsonl").open("ab+") as file:
                # What was cut in the middle of a line keeps that line to itself.
                whole = file.tell() == 0 or (file.seek(-1, os.SEEK_END), file.read())[1] == b"\n"
                file.write((b"" if whole else b"\n") + json.dumps(result).encode() + b"\n")

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

    def chosen(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The levels of several sweeps; of none named, the newest sweep of each engine of the profile that was measured
        last, in the order in which they were. A sweep is of the base, whole, at more than one number of users; an
        engine that has none such stands with its newest levels of users."""
        if names:
            return [level for name in names for level in self.run(name)]
        profile = self.run(None)[-1]["profile"]
        sweeps: dict[str, list[dict[str, Any]]] = {}
        others: dict[str, list[dict[str, Any]]] = {}
        for levels in reversed(self.runs().values()):
            of_engine: dict[str, list[dict[str, Any]]] = {}
            for level in levels:
                if level["profile"] == profile and is_of_users(level):
                    of_engine.setdefault(level["engine"], []).append(level)
            for engine, own in of_engine.items():
                whole = not any(level["interrupted"] for level in own)
                is_sweep = whole and len({level["max_concurrency"] for level in own}) > 1
                (sweeps if is_sweep else others).setdefault(engine, own)
        newest = {**others, **sweeps}
        return sorted((level for own in newest.values() for level in own), key=lambda level: str(level["date"]))
