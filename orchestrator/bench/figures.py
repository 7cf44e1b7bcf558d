"""What is known of an engine with so many users: as measured here, else as the article has it. Pure.

Between two numbers of users lines are straight over their logarithm. Beyond the last one nothing is made up: the last
figure is given, and said to be of fewer users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.bench.series import Point, Series
from orchestrator.bench.words import time_text, users_text
from orchestrator.core.reference import Reference, ReferenceEngine

# A larger share of requests that are not answered than this is no way to serve: ASSUMPTION.
FAILING = 0.01


@dataclass(frozen=True)
class Figure:
    """What an engine does with so many users: tokens a second of all with their standard error, the first token in
    milliseconds (p95 where it was measured), and which share of its requests was not answered; `how` it is known, of
    which runs and where (`origin`; empty: not from here). `own`: its first token was measured here, or clients had it.
    `beyond`: of fewer users than are meant, so the first token comes later than that (`first_beyond`, where clients do
    not say); `gains`: and more users still brought more tokens. `between`: `failing` is the worse of two levels'.
    `users` are those that it is of, where it is of one level."""

    engine: str
    throughput: float | None
    error: float
    ttft_ms: float | None
    how: str
    measured: bool
    own: bool = False
    beyond: bool = False
    first_beyond: bool = False
    gains: bool = False
    failing: float = 0.0
    between: bool = False
    origin: str = ""
    users: int = 0

    @property
    def rate(self) -> str:
        """What it gives, in words that say so where that was with fewer users than are meant."""
        if self.beyond:
            return f"{self.engine} gave {self.throughput:,.0f} tokens a second with {users_text(self.users)}"
        return f"{self.engine} gives {self.throughput:,.0f} tokens a second"

    @property
    def first(self) -> str:
        """Its first token, in words."""
        return f"{time_text(self.ttft_ms)} or more" if self.first_beyond else time_text(self.ttft_ms)

    @property
    def fails(self) -> bool:
        """Whether too many of its requests are not answered."""
        return self.failing > FAILING


def measured_figure(series: Series, number: int) -> Figure:
    """What was measured of an engine, for so many users."""
    points = series.points
    exact = series.at(number)
    if exact is not None:
        return _of_point(series, exact, f"measured with {users_text(number)}")
    if number > points[-1].users:
        saturated = series.beyond(number) is not None
        what = "beyond which more brought no more" if saturated else "the most that was measured"
        how = f"as with {users_text(points[-1].users)}, {what}"
        return _of_point(series, points[-1], how, beyond=True, gains=not saturated)
    if number < points[0].users:
        return _of_point(series, points[0], f"as with {users_text(points[0].users)}, the fewest measured")
    low, high = next(pair for pair in pairwise(points) if pair[0].users < number < pair[1].users)
    part = _part(low.users, number, high.users)

    def between(one: float | None, other: float | None) -> float | None:
        return one + (other - one) * part if one is not None and other is not None else None

    return Figure(
        series.engine,
        between(low.throughput, high.throughput),
        max(low.error, high.error),
        between(low.ttft_p95, high.ttft_p95),
        f"between {low.users} and {high.users} users as measured",
        measured=True,
        own=True,
        failing=max(low.failing, high.failing),
        between=True,
        origin=series.origin,
    )


def _of_point(series: Series, point: Point, how: str, beyond: bool = False, gains: bool = False) -> Figure:
    return Figure(
        series.engine, point.throughput, point.error, point.ttft_p95, how, True, True, beyond, beyond, gains,
        point.failing, origin=series.origin, users=point.users,
    )  # fmt: skip


def article_figure(engine: str, known: ReferenceEngine, number: int, reference: Reference) -> Figure:
    """What the article has of an engine's first token with so many users, by the name of the one that is meant."""
    found = told_by_article([(point.users, point.ttft) for point in known.points], number)
    if found is None:
        return Figure(engine, None, 0.0, None, "the article", measured=False)
    value, how = found
    beyond = number > known.points[-1].users
    how = f"the article, {how} on one {reference.gpu}"
    return Figure(engine, None, 0.0, value, how, measured=False, beyond=beyond, first_beyond=beyond)


def told_by_article(told: Sequence[tuple[int, float | None]], number: int) -> tuple[float, str] | None:
    """A figure of the article's for so many users, of those that it gives by users, and how it is known; None where it
    gives none at all."""
    known = [(at, value) for at, value in told if value is not None]
    for at, value in known:
        if at == number:
            return value, f"with {users_text(at)}"
    for (low, below), (high, above) in pairwise(known):
        if low < number < high:
            return below + (above - below) * _part(low, number, high), f"between {low} and {high} users"
    if not known:
        return None
    at, value = known[-1] if number > known[-1][0] else known[0]
    return value, f"as with {users_text(at)}"


def _part(low: int, number: int, high: int) -> float:
    return math.log2(number / low) / math.log2(high / low)
