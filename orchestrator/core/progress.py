"""How long jobs report, and how they are told to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

# progress(what, done, total): `done` of `total` bytes (or items) of `what`; total 0 = not known.
# Called between chunks; it raises errors.Interrupted when the user asked to stop, so a job that
# calls it often enough needs no other way to be cancelled.
#
# A job may tell of its parts too: after the call for the whole, a call for each part that is under way, with
# `what` made by part_of(); with total 0 the part is a remark. The next call for the whole begins anew.
Progress = Callable[[str, int, int], None]

# Rates and times left are of the last so many seconds.
WINDOW_S: Final = 10.0
# Before that there is too little to tell them from.
SETTLED_S: Final = 1.0
_PART: Final = "\t"


def silent(what: str, done: int, total: int) -> None:
    """The Progress that nobody watches."""


def part_of(job: str, part: str) -> str:
    """The `what` of a part of a job."""
    return f"{job}{_PART}{part}"


def split_part(what: str) -> tuple[str, str]:
    """The job, and the part of it or ""."""
    job, _, part = what.partition(_PART)
    return job, part


class Pace:
    """How fast something goes, from what it reports: `at` in seconds of one clock, `done` in its own unit."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, done: int) -> None:
        """It is so far now. Going back (what came was wrong) begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((at, done))
        while len(self._seen) > 2 and self._seen[1][0] <= at - WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second; None before there is anything to tell it from."""
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < SETTLED_S:
            return None
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began)

    def left(self, total: int) -> float | None:
        """Seconds until `total`; None when that cannot be told."""
        rate = self.rate
        return (total - self._seen[-1][1]) / rate if rate else None
