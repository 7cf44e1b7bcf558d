"""Waiting for a condition, and small programs to keep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.core.launch import Launch
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.drivers.local.records import State

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], what: str, timeout_s: float = 10) -> Value:
    """The first true value of `condition()`; AssertionError when there was none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def program(text: str, *arguments: str, **launch: object) -> Launch:
    """A Launch of a Python program (no site-packages: it starts in a few milliseconds)."""
    return Launch((sys.executable, "-S", "-u", "-c", text, *arguments), **launch)  # type: ignore[arg-type]


SLEEP = program("import time; print('up'); time.sleep(600)", stop_grace_s=2.0)


class Seen:
    """What the files of one instance say, for tests that must know its keeper."""

    def __init__(self, root: Path, name: str) -> None:
        self.directory = root / name

    @property
    def state(self) -> State:
        state = records.read_state(self.directory)
        assert state is not None
        return state

    @property
    def keeper(self) -> proc.Identity:
        assert self.state.keeper is not None
        return self.state.keeper

    @property
    def engine(self) -> proc.Identity:
        assert self.state.engine is not None
        return self.state.engine


def only(target: LocalTarget, name: str):  # type: ignore[no-untyped-def]
    """The instance `name` as the target sees it."""
    return next(instance for instance in target.observe() if instance.name == name)
