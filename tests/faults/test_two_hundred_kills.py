"""kill -9 at random moments of pulls and builds: nothing half-finished is listed, nothing is done twice. Two hundred in
`scripts/test long`, and forty others with each commit.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from orch_command import ROOT
from orch_killed import Commands, Undisturbed, commands_of, hub_server, sound

from orchestrator.artifacts.store import Store
from orchestrator.drivers.hub.part import PIECE, arrived, piece_size

WEIGHTS = "model.safetensors"
KILLS, SAMPLE = 200, 20
# Of one command in a row, before it may end.
MOST = 13
# Bytes per second: what comes of the weights between two kills is a part of them.
SLOW = 6_000_000
# What is on its way when a child dies, and comes once more: blocks in the server, in the sockets, in the client.
LOST = 512 * 1024


class Clock:
    """Random moments within the time that commands take here and now, counted from their start."""

    def __init__(self, orch: Commands, chance: random.Random) -> None:
        self._orch, self._random = orch, chance
        self._takes: dict[tuple[str, ...], float] = {}

    def run(self, words: tuple[str, ...]) -> None:
        """Runs a command to its end, and sees how long it takes."""
        began = time.monotonic()
        self._orch.run(*words)
        self._takes[words] = time.monotonic() - began

    def kill(self, words: tuple[str, ...]) -> bool:
        """Runs a command and kills it at a random moment; False if it was through before."""
        process = self._orch.start(*words)
        time.sleep(self._random.uniform(0.2, 1.0) * self._takes[words])
        process.kill()
        code = process.wait()
        assert code in (0, -signal.SIGKILL)
        return code != 0


class Life:
    """One data directory from nothing to all artifacts, as it is seen between kills."""

    def __init__(self, orch: Commands, hub: Any, undisturbed: Undisturbed) -> None:
        self._orch, self._hub, self._undisturbed = orch, hub, undisturbed
        self._store = orch.home / "store"
        self._work = self._store / ".partial" / undisturbed.weights
        whole = (undisturbed.source / WEIGHTS).read_bytes()
        self._size, self._part = len(whole), self._work / ".partial" / hashlib.sha256(whole).hexdigest()
        self._seen: dict[str, tuple[int, int]] = {}
        self._here: set[str] = set()
        self._have = 0
        hub.requests.clear()

    def look(self) -> None:
        """What is listed is whole, right, and the same as before; what had come is there, and was not asked for."""
        listed = sound(self._store)
        assert listed.items() <= self._undisturbed.made.items()
        stats = {key: (self._store / key / "manifest.json").stat() for key in listed}
        seen = {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}
        assert self._seen.items() <= seen.items(), "an entry went, or was made again"
        self._seen = seen
        self._look_at_pull(self._undisturbed.weights in listed)

    def _look_at_pull(self, finished: bool) -> None:
        ranges = {Path(request.path).name: request.range for request in self._hub.requests if request.method == "GET"}
        assert not ranges.keys() & self._here, "a file was asked for that was there"
        if self._have and WEIGHTS in ranges:
            assert ranges[WEIGHTS] == f"bytes={self._have}-", "it began anew"
        self._hub.requests.clear()
        if finished:
            self._here = {path.name for path in self._undisturbed.source.iterdir()}
        elif self._work.is_dir():
            self._here |= {path.name for path in self._work.iterdir() if path.is_file()}
            have = arrived(self._part, self._size, piece_size(self._size, PIECE))
            assert have >= self._have or WEIGHTS in self._here
            self._have = have


@pytest.fixture
def undisturbed(tmp_path: Path) -> Undisturbed:
    """3 MB of weights, and a GGUF and NVFP4 of them."""
    sys.path.append(str(ROOT / "tests" / "artifacts"))
    from tiny_models import write_model

    place = tmp_path / "undisturbed"
    source = write_model("qwen2-tied", place / "source")
    with commands_of(place, source) as (orch, _):
        orch.run("build", "-p", str(place / "tiny.toml"))
        made = sound(orch.home / "store")
    assert len(made) == 3
    return Undisturbed(source, made)


@pytest.mark.sampled
def test_two_hundred_kills(undisturbed: Undisturbed, tmp_path: Path, thorough: bool, chance: random.Random) -> None:
    total = sum(path.stat().st_size for path in undisturbed.source.iterdir())
    with commands_of(tmp_path / "killed", undisturbed.source) as (orch, hub):
        clock, kills = Clock(orch, random.Random(4) if thorough else chance), 0
        pull, build = (
            ("pull", "-p", str(tmp_path / "killed" / "tiny.toml")),
            ("build", "-p", str(tmp_path / "killed" / "tiny.toml")),
        )
        hub.faults.append(hub_server.Fault("slow", WEIGHTS, SLOW))
        clock.run(pull)
        clock.run(build)
        while kills < (KILLS if thorough else SAMPLE):
            shutil.rmtree(orch.home)
            life, sent, before = Life(orch, hub, undisturbed), hub.sent, kills
            for words in (pull, build):
                for _ in range(MOST):
                    killed = clock.kill(words)
                    kills += killed
                    life.look()
                    if not killed:
                        break
                if words == pull:
                    assert hub.sent - sent <= total + LOST * (kills - before)
                clock.run(words)
                life.look()
            assert orch.listed().keys() == undisturbed.made.keys() == sound(orch.home / "store").keys()
            assert Store(orch.home / "store").unfinished() == {}
