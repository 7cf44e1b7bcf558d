"""`orch` in forks (see forks.py), over one data directory, so that it can be killed two hundred times; and what its
store may never show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import Forked
from orch_command import script

from orchestrator.artifacts.store import Store

hub_server = script("hub_server")
# Seconds that a command may take.
PATIENCE = 300


@dataclass(frozen=True)
class Ended:
    """Exit status (the negative signal of a killed one) and all that was written."""

    code: int
    said: str


@dataclass(frozen=True)
class Undisturbed:
    """`source` is a model's directory, `made` what a store lists of it in the end: SHA-256 by file, by key."""

    source: Path
    made: dict[str, dict[str, str]]

    @property
    def weights(self) -> str:
        """The key of the weights."""
        return next(key for key in self.made if key.startswith("weights-"))


class Commands:
    """`orch` with the data directory `home` and the hub at `endpoint`; what it says goes to files in `out`."""

    def __init__(self, home: Path, endpoint: str, out: Path) -> None:
        self.home, self._out, self._count = home, out, 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "HF_"))}
        self._env = kept | {"ORCH_HOME": str(home), "ORCH_TARGET": "local", "HF_ENDPOINT": endpoint}

    def start(self, *words: str) -> Forked:
        """Runs these words, and leaves them to the caller."""
        self._count += 1
        with (self._out / str(self._count)).open("wb") as out:
            return Forked("orchestrator", *words, env=self._env, stdout=out, stderr=out)

    def run(self, *words: str, code: int | None = 0) -> Ended:
        """Runs a command to its end; its exit status has to be `code` (None: any)."""
        status = self.start(*words).wait(PATIENCE)
        ended = Ended(status, (self._out / str(self._count)).read_text())
        assert code is None or ended.code == code, f"orch {' '.join(words)} -> {ended.code}\n{ended.said}"
        return ended

    def listed(self) -> dict[str, int]:
        """What `orch artifacts ls` shows: sizes by key."""
        lines = self.run("artifacts", "ls", "--json").said.splitlines()
        return {row["key"]: row["size"] for row in map(json.loads, lines)}


def sound(root: Path) -> dict[str, dict[str, str]]:
    """Everything that a store lists: SHA-256 of its files by name, by key. Each of them is as its manifest says."""
    store = Store(root)
    found = {}
    for manifest in store.all():
        assert store.verify(manifest.key) == []
        found[manifest.key] = {entry.path: entry.sha256 for entry in manifest.files}
    assert store.broken() == ()
    return found


@contextmanager
def commands_of(place: Path, source: Path, home: Path | None = None) -> Iterator[tuple[Commands, Any]]:
    """Commands over `home` (default: one in `place`), and the hub that serves them `source` as test/tiny."""
    (place / "out").mkdir(parents=True)
    (place / "tiny.toml").write_text(
        'name = "tiny"\npublic_names = ["tiny"]\n[weights]\nrepo = "test/tiny"\nrevision = "main"\n'
        "[serving]\ncontext = 512\n[lora]\nmax_adapters = 1\nmax_rank = 8\n"
    )
    with hub_server.HubServer({"test/tiny": source}) as hub:
        yield Commands(home or place / "home", hub.url, place / "out"), hub
