"""Where the fake drivers fail when they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is undone."""


def nothing(index: int, what: str) -> None:
    """The fault of a world in which nothing fails."""


class Faults:
    """Every driver call passes here. While `recording`, calls are counted from 0 and written down; `before` and
    `after` are asked with (index, what) and may raise: before the call's effect, or after it and instead of its answer.
    """

    def __init__(self) -> None:
        self.recording = False
        self.calls: list[str] = []
        self.before: Callable[[int, str], None] = nothing
        self.after: Callable[[int, str], None] = nothing

    @contextmanager
    def call(self, what: str) -> Iterator[None]:
        if not self.recording:
            yield
            return
        index = len(self.calls)
        self.calls.append(what)
        self.before(index, what)
        yield
        self.after(index, what)
