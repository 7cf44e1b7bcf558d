"""Levels put together as curves, one for each engine and artifact, with how sure each point is; where two cross. Pure.

The uncertainty of a throughput is the standard error of its repeats. Of a single one it is estimated from how the
requests' times differ: n rounds of a closed loop are taken as n draws of a round's time, since those that run together
are slow together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Users that bring less than this more than fewer did have shown where an engine is saturated.
SATURATED_GAIN = 0.05


@dataclass(frozen=True)
class Point:
    """At so many `users`: output tokens a second with their standard error, times in milliseconds (None: there was no
    answer to measure), and how many requests were answered and were not, in how many levels."""

    users: int
    throughput: float
    error: float
    ttft_p50: float | None
    ttft_p95: float | None
    tpot_p50: float | None
    e2el_p50: float | None
    completed: int
    failed: int
    levels: int

    @property
    def failing(self) -> float:
        """Which share of its requests was not answered."""
        asked = self.completed + self.failed
        return self.failed / asked if asked else 0.0


@dataclass(frozen=True)
class Series:
    """One curve: what was measured of an engine with an artifact, at the same place, in `runs` by their names."""

    engine: str
    recipe: str
    through: str
    gpus: tuple[str, ...]
    version: str
    points: tuple[Point, ...]
    runs: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """The runs that it is from, and where they were."""
        where = ", ".join(self.gpus) or "the CPU"
        if not self.runs:
            return f"on {where}"
        named = f"run {self.runs[0]}" if len(self.runs) == 1 else f"runs {self.runs[-1]} and {len(self.runs) - 1} more"
        return f"{named} on {where}"

    @property
    def title(self) -> str:
        """What it is called beside another one."""
        return f"{self.engine} ({self.recipe})" if self.recipe else self.engine

    def at(self, users: int) -> Point | None:
        """The point for so many users."""
        return next((point for point in self.points if point.users == users), None)

    def beyond(self, users: int) -> Point | None:
        """The last point, where there are more users than it has and it shows saturation: no more than before came."""
        if len(self.points) < 2 or users <= self.points[-1].users:
            return None
        best = max(point.throughput for point in self.points[:-1])
        return self.points[-1] if self.points[-1].throughput < best * (1 + SATURATED_GAIN) else None


@dataclass(frozen=True)
class Crossover:
    """From about `users` on the other engine gives more tokens a second; it may be from `least` or from `most` on, None
    where that is not among what was measured."""

    users: float
    least: float | None
    most: float | None


def is_of_users(level: Mapping[str, Any]) -> bool:
    """Whether it is of users of the base at a time: not of a rate, nor of adapters."""
    return level["max_concurrency"] is not None and not level["adapters"]


def series_of(levels: Iterable[Mapping[str, Any]]) -> tuple[Series, ...]:
    """The curves of closed-loop levels of the base, in the order in which they came first. Interrupted ones are left
    out."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for level in levels:
        if level["interrupted"] or not is_of_users(level):
            continue
        key = (level["engine"], level["recipe"], level["through"], level.get("engine_version") or "", *level["gpus"])
        found.setdefault(key, []).append(level)
    return tuple(_series(levels) for levels in found.values())


def _series(levels: Sequence[Mapping[str, Any]]) -> Series:
    first = levels[0]
    by_users: dict[int, list[Mapping[str, Any]]] = {}
    for level in levels:
        by_users.setdefault(level["max_concurrency"], []).append(level)
    points = tuple(_point(users, of) for users, of in sorted(by_users.items()))
    version = first.get("engine_version") or ""
    runs = tuple(dict.fromkeys(str(level["run"]) for level in levels))
    return Series(first["engine"], first["recipe"], first["through"], tuple(first["gpus"]), version, points, runs)


def _point(users: int, levels: Sequence[Mapping[str, Any]]) -> Point:
    rates = [level["output_throughput"] for level in levels]

    def middle(name: str) -> float | None:
        told = [level[name] for level in levels if level[name] is not None]
        return statistics.fmean(told) if told else None

    return Point(
        users,
        statistics.fmean(rates),
        statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else _error_of(levels[0]),
        middle("p50_ttft_ms"),
        middle("p95_ttft_ms"),
        middle("p50_tpot_ms"),
        middle("p50_e2el_ms"),
        sum(level["completed"] for level in levels),
        sum(level["failed"] for level in levels),
        len(levels),
    )


def _error_of(level: Mapping[str, Any]) -> float:
    mean, spread = level["mean_e2el_ms"], level["std_e2el_ms"]
    rounds = level["completed"] / level["max_concurrency"]
    if not mean or spread is None or rounds <= 0:
        return 0.0
    return float(level["output_throughput"] * spread / mean / math.sqrt(rounds))


def crossover(simple: Series, other: Series) -> Crossover | None:
    """Where the other one comes to give more tokens a second than the simple one, between numbers of users that both
    were measured at; straight lines over the logarithm of users. One that is saturated is held to give with more users
    what it gave last. None where the lines do not cross in that way."""
    shared = [
        (math.log2(users), theirs.throughput - mine.throughput, math.hypot(mine.error, theirs.error))
        for users in sorted({point.users for series in (simple, other) for point in series.points})
        if (mine := simple.at(users) or simple.beyond(users)) is not None
        and (theirs := other.at(users) or other.beyond(users)) is not None
    ]
    users = _crosses([(at, gain) for at, gain, _ in shared])
    if users is None:
        return None
    # Twice the standard error to both sides: about 95 %.
    least = _crosses([(at, gain + 2 * error) for at, gain, error in shared])
    most = _crosses([(at, gain - 2 * error) for at, gain, error in shared])
    return Crossover(users, least, most)


def _crosses(line: Sequence[tuple[float, float]]) -> float | None:
    """The last place where it goes from below 0 to above, as a number of users; None where it never does."""
    found = None
    for (left, below), (right, above) in pairwise(line):
        if below <= 0 < above:
            found = 2 ** (left + (right - left) * -below / (above - below))
    return found
