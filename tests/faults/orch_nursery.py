"""`orch` in children of a nursery (see nursery.py), over one data directory; and what its store may never show."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch_command import ROOT, script

from orchestrator.artifacts.store import Store

hub_server = script("hub_server")
# Seconds that a command may take.
PATIENCE = 300
NURSERY = Path(__file__).with_name("nursery.py")


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


class Nursery:
    """Children that run `orch` with the data directory `home` and the hub at `endpoint`; a context."""

    def __init__(self, home: Path, endpoint: str, out: Path) -> None:
        self.home, self._out, self._count = home, out, 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "HF_"))}
        own = {"ORCH_HOME": str(home), "ORCH_TARGET": "local", "HF_ENDPOINT": endpoint, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(NURSERY)],
            cwd=ROOT,
            env=kept | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, *words: str) -> int:
        """The pid of a child that runs these words."""
        self._count += 1
        return self._ask({"start": words, "out": str(self._out / str(self._count))})

    def wait(self, pid: int) -> int:
        """The exit status of a child, once it has ended."""
        return self._ask({"wait": pid})

    def kill(self, pid: int) -> int:
        """Ends a child at once, if it has not ended; its exit status."""
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def run(self, *words: str, code: int | None = 0) -> Ended:
        """Runs a child to its end; its exit status has to be `code` (None: any)."""
        status = self.wait(self.start(*words))
        ended = Ended(status, (self._out / str(self._count)).read_text())
        assert code is None or ended.code == code, f"orch {' '.join(words)} -> {ended.code}\n{ended.said}"
        return ended

    def listed(self) -> dict[str, int]:
        """What `orch artifacts ls` shows: sizes by key."""
        lines = self.run("artifacts", "ls", "--json").said.splitlines()
        return {row["key"]: row["size"] for row in map(json.loads, lines)}

    def _ask(self, command: dict[str, object]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, f"{command} was not answered in {PATIENCE} s"
        return int(self._process.stdout.readline())


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
def nursery_of(place: Path, source: Path, home: Path | None = None) -> Iterator[tuple[Nursery, Any]]:
    """Children over `home` (default: one in `place`), and the hub that serves them `source` as test/tiny."""
    (place / "out").mkdir(parents=True)
    (place / "tiny.toml").write_text(
        'name = "tiny"\npublic_names = ["tiny"]\n[weights]\nrepo = "test/tiny"\nrevision = "main"\n'
        "[serving]\ncontext = 512\n[lora]\nmax_adapters = 1\nmax_rank = 8\n"
    )
    with (
        hub_server.HubServer({"test/tiny": source}) as hub,
        Nursery(home or place / "home", hub.url, place / "out") as nursery,
    ):
        yield nursery, hub
